//! I/O ports: there is no device behind any of them, and Linux asks a hundred of them anyway.
//!
//! Reads answer all ones, so that PIC, PCI, UARTs and CMOS are seen as absent; the PIT's second counter
//! answers 0, because Linux polls it a hundred thousand times while it reads 0xff. Writes go nowhere, but
//! port 0xe9, the customary debug console, and the sleep register that the ACPI tables name. String instructions go element by element, a bounded number
//! per exit. Source: AMD64 APM vol. 2, 15.10.2 (EXITINFO1 of IOIO).

use proto::abi::{VcpuState, gpr, groups, seg};

use crate::inject;
use crate::loader::acpi::{SLEEP_CONTROL_PORT, SLEEP_S5};
use crate::machine::{Machine, Platform};
use crate::walk::{EFER_LMA, Paging};

const PIT_COUNTER_2: u16 = 0x42;
const DEBUG_CONSOLE: u16 = 0xe9;
/// Elements of a string instruction that one exit handles.
const ELEMENTS_PER_EXIT: u64 = 256;
const DIRECTION: u64 = 1 << 10;
const CODE_64: u32 = 1 << 9;

/// An IOIO exit, decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Io {
    port: u16,
    is_in: bool,
    is_string: bool,
    is_rep: bool,
    /// Bytes per element.
    size: u8,
    /// Mask of the address registers in use.
    address_mask: u64,
    segment: usize,
}

fn decode(info: u64) -> Option<Io> {
    let size = match info >> 4 & 7 {
        1 => 1,
        2 => 2,
        4 => 4,
        _ => return None,
    };
    let address_mask = match info >> 7 & 7 {
        1 => 0xffff,
        2 => 0xffff_ffff,
        _ => u64::MAX,
    };
    Some(Io {
        port: (info >> 16) as u16,
        is_in: info & 1 != 0,
        is_string: info & 4 != 0,
        is_rep: info & 8 != 0,
        size,
        address_mask,
        segment: (info >> 10 & 7) as usize,
    })
}

/// What an IOIO exit leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoDone {
    /// The guest goes on.
    Run,
    /// It asked ACPI to power off.
    PowerOff,
    /// The exit makes no sense.
    Senseless,
}

/// Bits of EXITINFO1: IN, string, and the three sizes.
const IN: u64 = 1;
const STRING: u64 = 4;
const SIZES: u64 = 7 << 4;

impl<P: Platform> Machine<P> {
    /// Serves an IN from a port that nothing is behind, which is what guests probe; `false`: it is something
    /// else, for [`Self::io`].
    #[inline]
    pub fn plain_io(&self, state: &mut VcpuState) -> bool {
        let info = state.exit_info1;
        if info & (IN | STRING) != IN || (info >> 16) as u16 == PIT_COUNTER_2 {
            return false;
        }
        let rax = &mut state.gprs[gpr::RAX];
        *rax = match (info & SIZES) >> 4 {
            1 => *rax | 0xff,
            2 => *rax | 0xffff,
            4 => 0xffff_ffff,
            _ => return false,
        };
        inject::finish_at(state, state.exit_info2);
        true
    }

    /// Serves an IOIO exit.
    pub fn io(&mut self, state: &mut VcpuState) -> IoDone {
        let Some(io) = decode(state.exit_info1) else { return IoDone::Senseless };
        if io.is_string {
            self.string_io(state, io);
            return IoDone::Run;
        }
        if !io.is_in && io.port == SLEEP_CONTROL_PORT && state.gprs[gpr::RAX] as u8 == SLEEP_S5 {
            return IoDone::PowerOff;
        }
        if io.is_in {
            let value = u64::from(read_port(io));
            let rax = &mut state.gprs[gpr::RAX];
            *rax = match io.size {
                1 => *rax & !0xff | value,
                2 => *rax & !0xffff | value,
                _ => value,
            };
        } else if io.port == DEBUG_CONSOLE {
            self.guest.write_early(core::iter::once(state.gprs[gpr::RAX] as u8));
        }
        inject::finish_at(state, state.exit_info2);
        IoDone::Run
    }

    fn string_io(&mut self, state: &mut VcpuState, io: Io) {
        // Segment bases are stored only on request: ask, and let the instruction exit again.
        if state.store & groups::SEGMENTS == 0 {
            state.store |= groups::SEGMENTS;
            return;
        }
        state.store &= !groups::SEGMENTS;
        let (index, segment) = if io.is_in { (gpr::RDI, seg::ES) } else { (gpr::RSI, io.segment) };
        let is_long = state.efer & EFER_LMA != 0 && state.cs_attributes & CODE_64 != 0;
        let has_base = !is_long || matches!(segment, seg::FS | seg::GS);
        let base = state.segments.get(segment).filter(|_| has_base).map_or(0, |segment| segment.base);
        let step = if state.rflags & DIRECTION == 0 {
            u64::from(io.size)
        } else {
            u64::from(io.size).wrapping_neg()
        };
        let count = if io.is_rep { state.gprs[gpr::RCX] & io.address_mask } else { 1 };
        let paging = Paging::of(state);
        for _ in 0..count.min(ELEMENTS_PER_EXIT) {
            let linear = base.wrapping_add(state.gprs[index] & io.address_mask);
            if let Err(fault) = self.string_element(paging, linear, io) {
                inject::page_fault(state, fault);
                return;
            }
            state.gprs[index] = merge(state.gprs[index], step, io.address_mask);
            if io.is_rep {
                state.gprs[gpr::RCX] = merge(state.gprs[gpr::RCX], u64::MAX, io.address_mask);
            }
        }
        // What is left of the repetition exits again from the same instruction.
        if count <= ELEMENTS_PER_EXIT {
            inject::finish_at(state, state.exit_info2);
        }
    }

    fn string_element(&mut self, paging: Paging, linear: u64, io: Io) -> Result<(), crate::walk::Fault> {
        let size = usize::from(io.size);
        let mut bytes = read_port(io).to_le_bytes();
        let element = bytes.get_mut(..size).unwrap_or(&mut []);
        if io.is_in {
            return paging.write(&self.guest.memory, linear, element);
        }
        paging.read(&self.guest.memory, linear, element)?;
        if io.port == DEBUG_CONSOLE {
            self.guest.write_early(bytes.into_iter().take(1));
        }
        Ok(())
    }
}

/// Adds to the part of an address register that is in use; a 32-bit result clears the upper half.
fn merge(register: u64, step: u64, mask: u64) -> u64 {
    let sum = register.wrapping_add(step) & mask;
    if mask == 0xffff { register & !mask | sum } else { sum }
}

fn read_port(io: Io) -> u32 {
    let ones = u32::MAX >> (32 - 8 * u32::from(io.size));
    if io.port == PIT_COUNTER_2 { 0 } else { ones }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::blank;
    use crate::memory::GuestPhys;
    use crate::testing::machine;

    fn info(port: u64, bits: u64) -> u64 {
        port << 16 | bits
    }

    #[test]
    fn absent_ports_read_as_ones_of_their_width_and_the_pit_as_zero() {
        let (mut machine, _) = machine();
        let mut state = blank();
        state.exit_info2 = 0x1234;
        for (bits, before, after) in
            [(0x11, 0, 0xff), (0x21, 1 << 40, 1 << 40 | 0xffff), (0x41, u64::MAX, 0xffff_ffff)]
        {
            state.gprs[gpr::RAX] = before;
            state.exit_info1 = info(0xcfc, bits);
            assert_eq!(machine.io(&mut state), IoDone::Run);
            assert_eq!(state.gprs[gpr::RAX], after);
        }
        state.exit_info1 = info(0x42, 0x11);
        state.gprs[gpr::RAX] = 0x1ff;
        assert_eq!(machine.io(&mut state), IoDone::Run);
        assert_eq!((state.gprs[gpr::RAX], state.rip), (0x100, 0x1234));
        state.exit_info1 = info(0x42, 0x71);
        assert_eq!(machine.io(&mut state), IoDone::Senseless);
    }

    #[test]
    fn s5_powers_off_and_other_values_do_not() {
        let (mut machine, _) = machine();
        let mut state = blank();
        state.exit_info1 = info(u64::from(SLEEP_CONTROL_PORT), 0x10);
        state.gprs[gpr::RAX] = 0x14;
        assert_eq!(machine.io(&mut state), IoDone::Run);
        state.gprs[gpr::RAX] = 0x34;
        assert_eq!(machine.io(&mut state), IoDone::PowerOff);
    }

    #[test]
    fn rep_outsb_to_the_debug_console_takes_everything_in_bounded_steps() {
        let (mut machine, _) = machine();
        let mut state = blank();
        machine.guest.memory.write(GuestPhys(0x2000), &[b'x'; 600]).unwrap();
        state.exit_info1 = info(0xe9, 0x1c | 2 << 7 | (seg::DS as u64) << 10);
        (state.rip, state.exit_info2) = (0x100, 0x102);
        state.gprs[gpr::RSI] = 0x2000;
        state.gprs[gpr::RCX] = 600;
        let mut exits = 0;
        while state.rip == 0x100 {
            assert_eq!(machine.io(&mut state), IoDone::Run);
            exits += 1;
        }
        assert_eq!((state.gprs[gpr::RSI], state.gprs[gpr::RCX]), (0x2000 + 600, 0));
        assert_eq!(machine.guest.early_output.len(), 600);
        assert!((3..=6).contains(&exits), "{exits}");
    }

    #[test]
    fn insb_writes_ones_to_memory_and_a_fault_is_the_guests() {
        let (mut machine, _) = machine();
        let mut state = blank();
        state.store = groups::SEGMENTS;
        state.exit_info1 = info(0x60, 0x15 | 2 << 7);
        state.gprs[gpr::RDI] = 0x3000;
        assert_eq!(machine.io(&mut state), IoDone::Run);
        assert_eq!(machine.guest.memory.page(crate::memory::Gfn(3)).unwrap().u16(0), 0xff);
        state.store = groups::SEGMENTS;
        state.gprs[gpr::RDI] = 0x5000_0000;
        assert_eq!(machine.io(&mut state), IoDone::Run);
        assert_eq!((state.inject & 0x8000_07ff, state.cr2), (0x8000_030e, 0x5000_0000));
    }
}
