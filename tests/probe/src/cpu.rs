//! Work that needs no device: arithmetic, memory, processes, and the guest's timer.
#![expect(unsafe_code, reason = "fork, and memory from the kernel; nothing safe has page faults to count")]

use std::arch::asm;
use std::ffi::c_void;

use rustix::io::{read, write};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use rustix::pipe::pipe;
use rustix::process::{Pid, WaitOptions, waitpid};
use rustix::thread::{NanosleepRelativeResult, Timespec, clock_nanosleep_relative};
use rustix::time::ClockId;

use crate::Result;
use crate::clock::now;
use crate::figure::{Spread, print};

const ROUNDS: u64 = 20_000_000;
const FAULT_BYTES: usize = 32 << 20;
const PAGE: usize = 4096;
const FORKS: u64 = 200;
const PINGS: u64 = 2000;
const SLEEPS: usize = 300;
const SLEEP_NS: u32 = 1_000_000;

/// Measures all of it.
pub fn measure() -> Result<()> {
    arithmetic();
    page_faults()?;
    forks()?;
    ping_pong()?;
    sleeps();
    Ok(())
}

/// Five instructions a round: what the hypervisor takes of the processor shows as more.
fn arithmetic() {
    let before = now();
    let mut x = 1u64;
    for round in 0..ROUNDS {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(round);
        // SAFETY: no instruction; it keeps the compiler from folding the loop.
        unsafe { asm!("/* {0} */", inout(reg) x, options(nomem, nostack, preserves_flags)) };
    }
    print("alu", &[("rounds", ROUNDS), ("total-ns", now() - before)]);
}

/// First touches of pages of 4 KiB, with the mapping itself.
fn page_faults() -> Result<()> {
    let before = now();
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping, wherever the kernel puts it.
    let memory = unsafe { mmap_anonymous(std::ptr::null_mut(), FAULT_BYTES, access, MapFlags::PRIVATE)? };
    // SAFETY: the mapping is ours, and pages keep their content.
    unsafe { madvise(memory, FAULT_BYTES, Advice::LinuxNoHugepage)? };
    for offset in (0..FAULT_BYTES).step_by(PAGE) {
        // SAFETY: inside the mapping, which nobody else uses.
        unsafe { memory.cast::<u8>().add(offset).write_volatile(1) };
    }
    let ns = now() - before;
    // SAFETY: nobody has a reference into it.
    unsafe { munmap(memory.cast::<c_void>(), FAULT_BYTES)? };
    let n = (FAULT_BYTES / PAGE) as u64;
    print("page-fault", &[("n", n), ("each-ns", ns / n)]);
    Ok(())
}

/// A child that ends at once, and the wait for it.
fn forks() -> Result<()> {
    let before = now();
    for _ in 0..FORKS {
        let child = fork(|| {})?;
        waitpid(Some(child), WaitOptions::empty())?;
    }
    print("fork-wait", &[("n", FORKS), ("each-ns", (now() - before) / FORKS)]);
    Ok(())
}

/// A byte to a child and back through two pipes: two switches of process each time.
fn ping_pong() -> Result<()> {
    let (there_out, there_in) = pipe()?;
    let (back_out, back_in) = pipe()?;
    let mut byte = [0];
    let child = fork(|| {
        let mut byte = [0];
        for _ in 0..PINGS {
            if read(&there_out, &mut byte) != Ok(1) || write(&back_in, &byte) != Ok(1) {
                break;
            }
        }
    })?;
    let before = now();
    for _ in 0..PINGS {
        write(&there_in, &byte)?;
        read(&back_out, &mut byte)?;
    }
    let ns = now() - before;
    waitpid(Some(child), WaitOptions::empty())?;
    print("pipe-ping-pong", &[("n", PINGS), ("each-ns", ns / PINGS)]);
    Ok(())
}

/// How late a sleep of 1 ms ends. Linux adds up to 50 us by itself (the timer slack of a process).
fn sleeps() {
    let mut late = [0; SLEEPS];
    let request = Timespec { tv_sec: 0, tv_nsec: SLEEP_NS.into() };
    for sample in &mut late {
        let before = now();
        // Nothing interrupts it: the process handles no signals.
        let NanosleepRelativeResult::Ok = clock_nanosleep_relative(ClockId::Monotonic, &request) else {
            continue;
        };
        *sample = (now() - before).saturating_sub(SLEEP_NS.into());
    }
    let spread = Spread::of(&mut late);
    let values = [("min", spread.min), ("median", spread.median), ("p99", spread.p99)];
    print("sleep-overshoot", &[&[("n", SLEEPS as u64)][..], &values].concat());
}

/// A child that does this and ends.
fn fork(work: impl FnOnce()) -> Result<Pid> {
    // SAFETY: the process has one thread, so the child may do what the parent may; it never returns from here.
    let pid = unsafe { libc::fork() };
    match pid {
        0 => {
            work();
            // SAFETY: ends the process without what `exit` runs, which is the parent's.
            unsafe { libc::_exit(0) }
        }
        pid => Pid::from_raw(pid).filter(|_| pid > 0).ok_or_else(|| std::io::Error::last_os_error().into()),
    }
}
