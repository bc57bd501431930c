//! A vCPU's state when it starts: 32-bit protected mode, no paging, `ebx` = start information.
//!
//! Source: Xen docs/misc/pvh.pandoc; AMD64 APM vol. 2, appendix B for the attribute format.

use proto::abi::{Segment, VcpuState, gpr, groups, seg};

use crate::loader::place::Entry;

const FLAT_LIMIT: u32 = 0xffff_ffff;
/// 32-bit code, readable, present, 4 KiB granularity.
const CODE: u16 = 0xc9b;
/// 32-bit data, writable, present, 4 KiB granularity.
const DATA: u16 = 0xc93;
/// Busy 32-bit TSS, present.
const TSS: u16 = 0x8b;
/// Power-on values (APM vol. 2, 14.1.3).
pub const PAT_RESET: u64 = 0x0007_0406_0007_0406;
const DR6_RESET: u64 = 0xffff_0ff0;
const DR7_RESET: u64 = 0x400;
/// CR0: PE, and ET, which is always set.
const CR0_START: u64 = 0x11;
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
        store: 0,
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
}
