//! TSC as the clock, local APIC timer (one-shot) as the alarm. Both are calibrated against the PIT.

use core::sync::atomic::{AtomicU64, Ordering};

use x86_64::instructions::port::Port;

use super::apic;

static TSC_KHZ: AtomicU64 = AtomicU64::new(0);
/// APIC timer ticks per TSC tick, as a 32.32 fixed-point number.
static APIC_PER_TSC: AtomicU64 = AtomicU64::new(0);

/// Longest alarm in TSC ticks; a later deadline is approached in several.
const LONGEST: u64 = 1 << 31;

/// PIT input clock in Hz.
const PIT_HZ: u64 = 1_193_182;
/// Length of the calibration in PIT ticks (10 ms).
const PIT_TICKS: u64 = PIT_HZ / 100;

/// Time stamp counter.
#[inline(always)]
pub fn tsc() -> u64 {
    // SAFETY: no effect.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// TSC ticks per millisecond.
#[inline(always)]
pub fn tsc_khz() -> u64 {
    TSC_KHZ.load(Ordering::Relaxed)
}

/// Sets the alarm for a TSC value; 0 switches it off.
pub fn set_timer(deadline: u64) {
    if deadline == 0 {
        apic::set_timer_count(0);
        return;
    }
    let ticks = deadline.saturating_sub(tsc()).min(LONGEST);
    let count = (u128::from(ticks) * u128::from(APIC_PER_TSC.load(Ordering::Relaxed))) >> 32;
    // Round up: an alarm that comes early would only be set again.
    apic::set_timer_count(u32::try_from(count + 1).unwrap_or(u32::MAX));
}

/// Measures TSC and APIC timer for 10 ms of PIT channel 2.
pub fn calibrate() {
    // SAFETY: PIT channel 2 and its gate belong to nobody else this early; the speaker stays off.
    unsafe {
        let mut gate = Port::<u8>::new(0x61);
        let off = gate.read() & !0b11;
        gate.write(off);
        Port::<u8>::new(0x43).write(0b1011_0000);
        Port::<u8>::new(0x42).write(PIT_TICKS as u8);
        Port::<u8>::new(0x42).write((PIT_TICKS >> 8) as u8);
        apic::set_timer_count(u32::MAX);
        let start = tsc();
        gate.write(off | 1);
        while gate.read() & 1 << 5 == 0 {
            core::hint::spin_loop();
        }
        let ticks = tsc().wrapping_sub(start);
        let apic_ticks = u64::from(u32::MAX - apic::timer_count());
        apic::set_timer_count(0);
        gate.write(off);
        TSC_KHZ.store((ticks * PIT_HZ / PIT_TICKS / 1000).max(1), Ordering::Relaxed);
        APIC_PER_TSC.store((apic_ticks << 32) / ticks.max(1), Ordering::Relaxed);
    }
}
