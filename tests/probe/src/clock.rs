//! The two clocks: CLOCK_MONOTONIC and the time stamp counter.
#![expect(unsafe_code, reason = "reading the time stamp counter")]

use std::arch::asm;

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds of CLOCK_MONOTONIC.
#[inline]
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The time stamp counter. Written out, so that the compiler moves nothing across it.
#[inline(always)]
pub fn tsc() -> u64 {
    let (low, high): (u64, u64);
    // SAFETY: reading the counter has no effect.
    unsafe { asm!("rdtsc", out("rax") low, out("rdx") high, options(nostack, preserves_flags)) };
    high << 32 | low
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_clocks_go_forward() {
        let (before, tsc_before) = (now(), tsc());
        std::thread::sleep(std::time::Duration::from_millis(1));
        assert!(now() >= before + 1_000_000);
        assert!(tsc() > tsc_before);
    }
}
