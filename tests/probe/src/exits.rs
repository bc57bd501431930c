//! Exits: instructions that a hypervisor intercepts, from ring 3, and beside them some that it should not.
//!
//! Every instruction is measured in a loop of its own, which is the best case of a hypervisor that remembers
//! the last instruction; `alternating` takes two in turn, as a real guest does.
#![expect(unsafe_code, reason = "the instructions that are measured, and the right to use I/O ports")]

use std::arch::asm;

use crate::Result;
use crate::clock::{now, tsc};
use crate::figure::{Spread, print};

/// Samples of each when nothing else is asked for.
pub const SAMPLES: usize = 2000;
/// Repetitions before the first sample.
const WARM_UP: usize = 16;
/// A port that no device of any PC has.
const UNCLAIMED_PORT: u8 = 0xe0;
/// XEN's `__HYPERVISOR_xen_version`; from ring 3 every hypervisor refuses it, so it is a call that does nothing.
const XEN_VERSION: u64 = 17;

/// Measures all of them.
pub fn measure(samples: usize) -> Result<()> {
    let mut stamps = vec![0; samples];
    time("stamps-alone", &mut stamps, || {});
    time("rdtsc", &mut stamps, || {
        let _ = tsc();
    });
    time("cpuid", &mut stamps, || cpuid(0));
    time("cpuid-hypervisor", &mut stamps, || cpuid(0x4000_0000));
    time("vmmcall", &mut stamps, vmmcall);
    alternate(&mut stamps);
    // SAFETY: the process may then use every port; it uses one that has no device.
    if unsafe { libc::iopl(3) } != 0 {
        return Err(format!("iopl(3): {}; it takes root", std::io::Error::last_os_error()).into());
    }
    time("in-unclaimed", &mut stamps, input);
    // After iopl, as the peers had it: Linux looks after the ports at each return from a system call then.
    time("syscall", &mut stamps, || {
        // SAFETY: a system call without pointers.
        unsafe { libc::syscall(libc::SYS_getppid) };
    });
    Ok(())
}

/// Prints what `body` takes, alone between two stamps (two RDTSC and a move are in it), and the mean in a loop.
#[inline(always)]
fn time(name: &str, stamps: &mut [u64], mut body: impl FnMut()) {
    for _ in 0..WARM_UP {
        body();
    }
    for stamp in stamps.iter_mut() {
        let before = tsc();
        body();
        *stamp = tsc() - before;
    }
    let (clock_before, tsc_before) = (now(), tsc());
    for _ in 0..stamps.len() {
        body();
    }
    let (ticks, ns) = (tsc() - tsc_before, now() - clock_before);
    report(name, stamps, &[("loop-ticks", ticks), ("loop-ns", ns)]);
}

/// CPUID and VMMCALL in turn, each between stamps of its own; the samples are of both.
fn alternate(stamps: &mut [u64]) {
    for pair in stamps.chunks_exact_mut(2) {
        let before = tsc();
        cpuid(0);
        pair[0] = tsc() - before;
        let before = tsc();
        vmmcall();
        pair[1] = tsc() - before;
    }
    report("alternating", stamps, &[]);
}

fn report(name: &str, stamps: &mut [u64], more: &[(&str, u64)]) {
    let spread = Spread::of(stamps);
    let n = stamps.len() as u64;
    let values = [("n", n), ("min", spread.min), ("median", spread.median), ("max", spread.max)];
    print(name, &[&values, more].concat());
}

#[inline(always)]
fn cpuid(leaf: u32) {
    // SAFETY: RBX, which Rust keeps for itself, is put back.
    unsafe {
        asm!("mov {0:r}, rbx", "cpuid", "mov rbx, {0:r}", out(reg) _, inout("eax") leaf => _, inout("ecx") 0 => _,
            out("edx") _, options(nomem, nostack, preserves_flags));
    }
}

#[inline(always)]
fn vmmcall() {
    // SAFETY: from ring 3 the hypervisor answers with an error number in RAX and changes nothing else;
    // without a hypervisor the instruction is invalid and ends the process.
    unsafe {
        asm!("vmmcall", inout("rax") XEN_VERSION => _, in("rdi") 0u64, in("rsi") 0u64, in("rdx") 0u64,
            in("rcx") 0u64, options(nostack));
    }
}

#[inline(always)]
fn input() {
    // SAFETY: reads a port without a device; `measure` got the right to do so.
    unsafe { asm!("in al, {port}", port = const UNCLAIMED_PORT, out("al") _, options(nostack)) };
}
