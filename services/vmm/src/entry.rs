//! A vCPU's state when it starts: the boot vCPU at the PVH entry (32-bit protected mode, no paging, `ebx` =
//! start information), the others in real mode, where a start-up interrupt says.
//!
//! Sources: Xen docs/misc/pvh.pandoc and hvm.c:hvm_vcpu_reset_state; AMD64 APM vol. 2, 14.1.3 (state after
//! RESET and INIT), appendix B for the attribute format.

use proto::abi::{Segment, VcpuState, gpr, groups, seg};

use crate::loader::place::Entry;

const FLAT_LIMIT: u32 = 0xffff_ffff;
/// 32-bit code, readable, present, 4 KiB granularity.
const CODE: u16 = 0xc9b;
/// 32-bit data, writable, present, 4 KiB granularity.
const DATA: u16 = 0xc93;
/// Busy 32-bit TSS, present.
const TSS: u16 = 0x8b;
/// Code, readable, accessed, present, 16-bit and bytes: real mode.
const REAL_CODE: u16 = 0x9b;
/// Data, writable, accessed, present likewise.
const REAL_DATA: u16 = 0x93;
/// Local descriptor table, present.
const LDT: u16 = 0x82;
const REAL_LIMIT: u32 = 0xffff;
/// Power-on values (APM vol. 2, 14.1.3).
pub const PAT_RESET: u64 = 0x0007_0406_0007_0406;
const DR6_RESET: u64 = 0xffff_0ff0;
const DR7_RESET: u64 = 0x400;
/// CR0: PE, and ET, which is always set.
const CR0_START: u64 = 0x11;
/// CR0 after RESET and INIT: caches off, and ET.
const CR0_RESET: u64 = 0x6000_0010;
/// EDX after RESET and INIT: the processor's signature, which Xen gives as family 15.
const RDX_RESET: u64 = 0xf00;
/// RFLAGS bit 1 is always set.
const RFLAGS_START: u64 = 2;

/// Sets up the boot vCPU for the PVH entry.
pub fn boot(state: &mut VcpuState, entry: Entry, tsc_offset: u64) {
    *state = blank();
    state.rip = entry.rip;
    state.gprs[gpr::RBX] = entry.start_info;
    state.tsc_offset = tsc_offset;
    state.load = groups::ALL;
}

/// The state of a vCPU after power-on, which waits for a start-up interrupt: [`sipi`] completes it.
pub fn reset(state: &mut VcpuState, tsc_offset: u64) {
    *state = blank();
    init(state);
    state.tsc_offset = tsc_offset;
    state.load = groups::ALL;
}

/// INIT: what the processor resets. The MSRs but EFER, PAT, FPU and the time stamp counter keep their values.
pub fn init(state: &mut VcpuState) {
    let data = Segment { selector: 0, attributes: REAL_DATA, limit: REAL_LIMIT, base: 0 };
    state.segments = [data; 10];
    state.segments[seg::CS] = Segment { selector: 0xf000, attributes: REAL_CODE, base: 0xffff_0000, ..data };
    state.segments[seg::LDTR].attributes = LDT;
    state.segments[seg::TR].attributes = TSS;
    for index in [seg::GDTR, seg::IDTR] {
        state.segments[index].attributes = 0;
    }
    state.gprs = [0; 16];
    state.gprs[gpr::RDX] = RDX_RESET;
    (state.rip, state.rflags, state.cpl) = (0xfff0, RFLAGS_START, 0);
    (state.cr0, state.cr2, state.cr3, state.cr4, state.efer) = (CR0_RESET, 0, 0, 0, 0);
    (state.dr6, state.dr7, state.debug) = (DR6_RESET, DR7_RESET, [0; 4]);
    (state.interrupt, state.inject, state.interrupt_shadow, state.exit_int_info) = (0, 0, 0, 0);
    state.cs_attributes = u32::from(REAL_CODE);
    state.load |= groups::CONTROL | groups::SEGMENTS | groups::DEBUG | groups::DR6;
}

/// The start-up interrupt: after INIT, the vCPU begins in real mode at `vector << 12`.
pub fn sipi(state: &mut VcpuState, vector: u8) {
    init(state);
    let code = &mut state.segments[seg::CS];
    (code.selector, code.base) = (u16::from(vector) << 8, u64::from(vector) << 12);
    state.rip = 0;
}

/// The state at the PVH entry, but for the addresses.
pub fn blank() -> VcpuState {
    let data = Segment { selector: 0, attributes: DATA, limit: FLAT_LIMIT, base: 0 };
    let mut segments = [Segment::default(); 10];
    for index in [seg::DS, seg::ES, seg::SS, seg::FS, seg::GS] {
        segments[index] = data;
    }
    segments[seg::CS] = Segment { attributes: CODE, ..data };
    segments[seg::TR] = Segment { selector: 0, attributes: TSS, limit: 0x67, base: 0 };
    VcpuState {
        gprs: [0; 16],
        rip: 0,
        rflags: RFLAGS_START,
        exit_code: 0,
        exit_info1: 0,
        exit_info2: 0,
        exit_int_info: 0,
        cr0: CR0_START,
        cr2: 0,
        cr3: 0,
        cr4: 0,
        efer: 0,
        cpl: 0,
        cs_attributes: u32::from(CODE),
        interrupt_shadow: 0,
        interrupt: 0,
        inject: 0,
        load: 0,
        // The first exit is in 32-bit code, which is found through its segment.
        store: groups::SEGMENTS,
        dr6: DR6_RESET,
        dr7: DR7_RESET,
        segments,
        star: 0,
        lstar: 0,
        cstar: 0,
        sfmask: 0,
        kernel_gs_base: 0,
        sysenter_cs: 0,
        sysenter_esp: 0,
        sysenter_eip: 0,
        pat: PAT_RESET,
        tsc_offset: 0,
        intercept_iret: 0,
        debug: [0; 4],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_state_is_the_one_of_the_pvh_entry() {
        let mut state = blank();
        boot(&mut state, Entry { rip: 0x100_0000, start_info: 0x500_0000 }, 7);
        assert_eq!((state.rip, state.gprs[gpr::RBX], state.rflags), (0x100_0000, 0x500_0000, 2));
        assert_eq!((state.cr0, state.cr4, state.efer), (0x11, 0, 0));
        assert_eq!(state.segments[seg::CS].attributes, 0xc9b);
        assert_eq!(state.segments[seg::DS].attributes, 0xc93);
        assert_eq!((state.segments[seg::TR].attributes, state.segments[seg::TR].limit), (0x8b, 0x67));
        assert_eq!((state.load, state.tsc_offset), (groups::ALL, 7));
    }

    #[test]
    fn a_start_up_interrupt_begins_in_real_mode_at_its_page() {
        let mut state = blank();
        reset(&mut state, 9);
        assert_eq!((state.load, state.tsc_offset, state.pat), (groups::ALL, 9, PAT_RESET));
        assert_eq!(
            (state.segments[seg::CS].base + state.rip, state.segments[seg::CS].limit),
            (0xffff_fff0, 0xffff)
        );
        sipi(&mut state, 0x9a);
        let code = state.segments[seg::CS];
        assert_eq!((code.selector, code.base, code.limit, code.attributes), (0x9a00, 0x9_a000, 0xffff, 0x9b));
        assert_eq!((state.rip, state.rflags, state.cr0, state.efer), (0, 2, 0x6000_0010, 0));
        assert_eq!((state.gprs[gpr::RDX], state.dr6, state.dr7), (0xf00, 0xffff_0ff0, 0x400));
        assert_eq!((state.segments[seg::IDTR].limit, state.segments[seg::LDTR].attributes), (0xffff, 0x82));
        assert_eq!(state.load, groups::ALL, "never entered: everything is still to be loaded");
    }

    #[test]
    fn init_of_a_running_vcpu_keeps_what_the_processor_keeps() {
        let mut state = blank();
        (state.pat, state.star, state.tsc_offset, state.efer, state.cr4) = (6, 7, 8, 0xd01, 0x20);
        (state.inject, state.interrupt) = (0x8000_0b0d, 0x1f3);
        sipi(&mut state, 1);
        assert_eq!((state.pat, state.star, state.tsc_offset, state.efer, state.cr4), (6, 7, 8, 0, 0));
        assert_eq!((state.inject, state.interrupt), (0, 0));
        assert_eq!(
            state.load,
            groups::CONTROL | groups::SEGMENTS | groups::DEBUG | groups::DR6,
            "the MSRs in the VMCB are not touched"
        );
    }
}
