//! Guest exits: a VMM whose part is to step over the guest's instruction.
#![expect(unsafe_code, reason = "writes the guest's program and the state page that init mapped")]

use core::mem::offset_of;

use proto::abi::{Segment, Syscall, VcpuState, groups, seg};
use proto::guest::RAM_BASE;

use crate::stamps;
use crate::{figure, finish, ready};

/// Where the guest's programs lie.
const CPUID_AT: u64 = 0x1000;
const VMMCALL_AT: u64 = 0x1100;
/// `1: cpuid; jmp 1b`.
const CPUID_LOOP: [u8; 4] = [0x0f, 0xa2, 0xeb, 0xfc];
/// `1: vmmcall; jmp 1b`.
const VMMCALL_LOOP: [u8; 5] = [0x0f, 0x01, 0xd9, 0xeb, 0xfb];
/// Instructions of the guest per exit: the jump. The intercepted one is not executed, and not counted.
const GUEST_OWN: u64 = 1;

/// Stands in for the VMM.
pub fn vmm(env: &rt::Env) -> ! {
    let Some((guest, vcpu)) = env.info.guest.as_ref().and_then(|g| Some((g, g.vcpus.first()?))) else {
        rt::exit_failed("a bench domain has neither role nor guest")
    };
    if guest.ram.first().is_none_or(|range| range.gpa != 0 || range.len < 0x10000) {
        rt::exit_failed("the bench guest has too little memory");
    }
    let state = vcpu.state as *mut VcpuState;
    // SAFETY: init maps the guest's RAM at `RAM_BASE` and the state page at its address, both writable.
    unsafe {
        core::ptr::copy_nonoverlapping(CPUID_LOOP.as_ptr(), (RAM_BASE + CPUID_AT) as *mut u8, 4);
        core::ptr::copy_nonoverlapping(VMMCALL_LOOP.as_ptr(), (RAM_BASE + VMMCALL_AT) as *mut u8, 5);
        start(state);
    }
    let supervisor = ready(env);
    for (name, at, len) in [("exit-cpuid", CPUID_AT, 2), ("exit-vmmcall", VMMCALL_AT, 3)] {
        // SAFETY: as above.
        unsafe { (&raw mut (*state).rip).write_volatile(at) };
        figure(name, stamps::CALL_OWN + GUEST_OWN, || {
            let (before, after) =
                stamps::call(Syscall::VcpuRun as u64, u64::from(vcpu.slot), u64::from(env.info.event));
            // SAFETY: as above.
            unsafe {
                let rip = (vcpu.state as usize + offset_of!(VcpuState, rip)) as *mut u64;
                if rip.read_volatile() == at {
                    rip.write_volatile(at + len);
                }
            }
            after.wrapping_sub(before)
        });
    }
    finish(env, supervisor)
}

/// 32-bit protected mode without paging, as at the PVH entry.
///
/// # Safety
/// `state` is the vCPU's state page.
unsafe fn start(state: *mut VcpuState) {
    let data = Segment { selector: 0, attributes: 0xc93, limit: u32::MAX, base: 0 };
    // SAFETY: the caller's; the page is zero before.
    unsafe {
        let state = &mut *state;
        state.rflags = 2;
        state.cr0 = 0x11;
        state.dr6 = 0xffff_0ff0;
        state.dr7 = 0x400;
        state.segments = [Segment::default(); 10];
        for index in [seg::DS, seg::ES, seg::SS, seg::FS, seg::GS] {
            state.segments[index] = data;
        }
        state.segments[seg::CS] = Segment { attributes: 0xc9b, ..data };
        state.segments[seg::TR] = Segment { selector: 0, attributes: 0x8b, limit: 0x67, base: 0 };
        state.pat = 0x0007_0406_0007_0406;
        state.load = groups::ALL;
    }
}
