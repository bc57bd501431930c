//! vcpu_hvm_context: the state in which VCPUOP_initialise has a vCPU start.
//!
//! The checks are Xen's, but for the bits of CR4 and EFER, which are those that this VMM's guests are offered.
//! Sources: Xen public/hvm/hvm_vcpu.h, arch/x86/hvm/domain.c (arch_set_info_hvm_guest).

use proto::abi::{Segment, VcpuState, gpr, groups, seg};

use super::Field;
use crate::entry;
use crate::errno::Errno;

/// Length of the structure.
pub(super) const LEN: usize = 128;
const MODE_32: u32 = 0;
const MODE_64: u32 = 1;

const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
/// VME to OSXMMEXCPT, UMIP, FSGSBASE, SMEP, SMAP.
const CR4_VALID: u64 = 0xfff | 1 << 16 | 1 << 20 | 1 << 21;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// SCE, LME, LMA, NXE.
const EFER_VALID: u64 = 1 | EFER_LME | EFER_LMA | 1 << 11;
/// RFLAGS that software has, and bit 1.
const RFLAGS_ALL: u64 = 0x003f_7fd5;
const RFLAGS_SET: u64 = 2;

/// Bits of a segment's attributes.
const TYPE: u16 = 15;
const ACCESSED: u16 = 1;
const READ_OR_WRITE: u16 = 2;
const IS_CODE: u16 = 8;
const NOT_SYSTEM: u16 = 1 << 4;
const PRESENT: u16 = 1 << 7;
const PAGES: u16 = 1 << 11;
const UNUSED: u16 = 0xf000;
const BUSY_TSS: u16 = 11;
const FLAT: Segment = Segment { selector: 0, attributes: 0xc93, limit: u32::MAX, base: 0 };

/// The state that the structure describes.
///
/// # Errors
/// [`Errno::Invalid`].
pub(super) fn state(context: &[u8; LEN]) -> Result<VcpuState, Errno> {
    if context.u32_at(4) != 0 {
        return Err(Errno::Invalid);
    }
    let mut state = entry::blank();
    match context.u32_at(0) {
        MODE_32 => narrow(&mut state, context)?,
        MODE_64 => wide(&mut state, context)?,
        _ => return Err(Errno::Invalid),
    }
    state.rflags = state.rflags & RFLAGS_ALL | RFLAGS_SET;
    if state.efer & EFER_LME != 0 && state.cr0 & CR0_PG != 0 {
        state.efer |= EFER_LMA;
    }
    if state.cr4 & !CR4_VALID != 0 || state.efer & !EFER_VALID != 0 {
        return Err(Errno::Invalid);
    }
    state.cs_attributes = u32::from(state.segments[seg::CS].attributes);
    state.cpl = u32::from(privilege(state.segments[seg::SS]));
    state.load = groups::ALL;
    Ok(state)
}

/// General registers in the order of both structures.
const REGISTERS: [usize; 8] =
    [gpr::RAX, gpr::RCX, gpr::RDX, gpr::RBX, gpr::RSP, gpr::RBP, gpr::RSI, gpr::RDI];

fn wide(state: &mut VcpuState, context: &[u8; LEN]) -> Result<(), Errno> {
    let word = |n: usize| context.u64_at(8 + 8 * n);
    for (n, register) in REGISTERS.into_iter().enumerate() {
        state.gprs[register] = word(n);
    }
    (state.rip, state.rflags) = (word(8), word(9));
    (state.cr0, state.cr3, state.cr4, state.efer) = (word(10), word(11), word(12), word(13));
    let is_canonical = (state.rip as i64) << 16 >> 16 == state.rip as i64;
    let is_long = state.cr0 & CR0_PG != 0 && state.cr4 & CR4_PAE != 0 && state.efer & EFER_LME != 0;
    if !is_canonical || !is_long {
        return Err(Errno::Invalid);
    }
    state.segments[seg::CS] = Segment { attributes: 0xa9b, ..FLAT };
    for index in [seg::DS, seg::ES, seg::SS] {
        state.segments[index] = FLAT;
    }
    Ok(())
}

fn narrow(state: &mut VcpuState, context: &[u8; LEN]) -> Result<(), Errno> {
    let word = |n: usize| context.u32_at(8 + 4 * n);
    let half = |n: usize| context.u16_at(112 + 2 * n);
    for (n, register) in REGISTERS.into_iter().enumerate() {
        state.gprs[register] = word(n).into();
    }
    (state.rip, state.rflags) = (word(8).into(), word(9).into());
    (state.cr0, state.cr3, state.cr4) = (word(10).into(), word(11).into(), word(12).into());
    state.efer = context.u64_at(64);
    if word(13) != 0 || [half(5), half(6), half(7)] != [0; 3] {
        return Err(Errno::Invalid);
    }
    for (n, index) in [seg::CS, seg::DS, seg::SS, seg::ES, seg::TR].into_iter().enumerate() {
        // A present segment counts as accessed, a task state segment as busy.
        let attributes = match half(n) {
            ar if index == seg::TR => ar | 2,
            ar if ar & PRESENT != 0 => ar | ACCESSED,
            ar => ar,
        };
        let segment = Segment { selector: 0, attributes, limit: word(21 + n), base: word(16 + n).into() };
        check(index, segment)?;
        state.segments[index] = segment;
    }
    let [code, stack] = [state.segments[seg::CS], state.segments[seg::SS]];
    let limit = if code.attributes & PAGES != 0 { code.limit << 12 | 0xfff } else { code.limit };
    let is_below = |index: usize| {
        let segment = state.segments[index];
        segment.attributes & PRESENT != 0 && privilege(segment) > privilege(code)
    };
    if state.rip > u64::from(limit)
        || privilege(stack) != privilege(code)
        || is_below(seg::DS)
        || is_below(seg::ES)
        || state.efer & (EFER_LMA | EFER_LME) == EFER_LMA
    {
        return Err(Errno::Invalid);
    }
    Ok(())
}

fn privilege(segment: Segment) -> u16 {
    segment.attributes >> 5 & 3
}

/// Whether the attributes are possible in this segment register.
fn check(index: usize, segment: Segment) -> Result<(), Errno> {
    let ar = segment.attributes;
    let is_optional = matches!(index, seg::DS | seg::ES);
    let is_writable = ar & READ_OR_WRITE != 0;
    let is_code = ar & IS_CODE != 0;
    let is_fit = match index {
        _ if ar & UNUSED != 0 => false,
        _ if ar == 0 => return if is_optional { Ok(()) } else { Err(Errno::Invalid) },
        seg::TR => ar & NOT_SYSTEM == 0 && ar & TYPE == BUSY_TSS,
        _ if ar & NOT_SYSTEM == 0 => false,
        seg::CS => is_code,
        seg::SS => !is_code && is_writable,
        _ => !is_code || is_writable,
    };
    if is_fit && ar & PRESENT != 0 { Ok(()) } else { Err(Errno::Invalid) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A flat 32-bit start at 0x10_0000.
    fn flat() -> [u8; LEN] {
        let mut context = [0; LEN];
        let mut put = |at: usize, bytes: &[u8]| context[at..at + bytes.len()].copy_from_slice(bytes);
        put(8, &7u32.to_le_bytes());
        put(8 + 32, &0x10_0000u32.to_le_bytes());
        put(8 + 40, &1u32.to_le_bytes());
        for n in 0..4 {
            put(92 + 4 * n, &u32::MAX.to_le_bytes());
        }
        put(92 + 16, &0x67u32.to_le_bytes());
        for (n, ar) in [0xc9bu16, 0xc93, 0xc93, 0xc93, 0x8b].into_iter().enumerate() {
            put(112 + 2 * n, &ar.to_le_bytes());
        }
        context
    }

    fn with(mut context: [u8; LEN], at: usize, bytes: &[u8]) -> [u8; LEN] {
        context[at..at + bytes.len()].copy_from_slice(bytes);
        context
    }

    #[test]
    fn a_flat_start_is_that_of_the_pvh_entry() {
        let state = state(&flat()).unwrap();
        assert_eq!((state.rip, state.gprs[gpr::RAX], state.cr0, state.efer), (0x10_0000, 7, 1, 0));
        assert_eq!(state.segments[seg::CS], entry::blank().segments[seg::CS]);
        assert_eq!(state.segments[seg::TR], entry::blank().segments[seg::TR]);
        assert_eq!((state.load, state.cpl, state.rflags), (groups::ALL, 0, 2));
    }

    #[test]
    fn what_cannot_start_is_refused() {
        let refused: [(usize, &[u8]); 14] = [
            (0, &[2]),
            (4, &[1]),
            (8 + 52, &[1]),
            (122, &[1]),
            (64, &EFER_LMA.to_le_bytes()),
            // SVME and VMXE.
            (64, &(1u64 << 12).to_le_bytes()),
            (8 + 48, &(1u32 << 13).to_le_bytes()),
            // CS: absent, data, a system segment, a privilege that SS has not, an unused bit.
            (112, &0xc1bu16.to_le_bytes()),
            (112, &0xc93u16.to_le_bytes()),
            (112, &0xc8bu16.to_le_bytes()),
            (112, &0xcfbu16.to_le_bytes()),
            (112, &0x1c9bu16.to_le_bytes()),
            // SS: none. TR: a 16-bit one.
            (116, &[0, 0]),
            (120, &0x83u16.to_le_bytes()),
        ];
        for (at, bytes) in refused {
            assert!(state(&with(flat(), at, bytes)).is_err(), "{at} {bytes:?}");
        }
        // EIP beyond a limit of bytes.
        let small = with(with(flat(), 112, &0x49bu16.to_le_bytes()), 92, &0xfffffu32.to_le_bytes());
        assert!(state(&small).is_err());
        assert!(state(&with(flat(), 114, &[0, 0])).is_ok(), "DS may be none");
        assert!(
            state(&with(flat(), 120, &0x89u16.to_le_bytes())).is_ok(),
            "a task state segment becomes busy"
        );
    }

    #[test]
    fn a_64_bit_start_needs_long_mode() {
        let mut context = [0; LEN];
        context[0] = 1;
        let words = [0, 0, 0, 0, 0x8000, 0, 0, 5, 0x1234, 0, CR0_PG | 1, 0x5000, CR4_PAE, EFER_LME];
        for (n, word) in words.into_iter().enumerate() {
            context[8 + 8 * n..][..8].copy_from_slice(&u64::to_le_bytes(word));
        }
        let started = state(&context).unwrap();
        assert_eq!((started.rip, started.gprs[gpr::RSP], started.gprs[gpr::RDI]), (0x1234, 0x8000, 5));
        assert_eq!((started.efer, started.cs_attributes), (EFER_LME | EFER_LMA, 0xa9b));
        for (n, word) in [(8, 1 << 47), (10, 1), (12, 0), (13, 0)] {
            assert!(state(&with(context, 8 + 8 * n, &u64::to_le_bytes(word))).is_err(), "{n}");
        }
    }
}
