//! Time: the TSC, and the conversion between its ticks and nanoseconds.
#![expect(unsafe_code, reason = "reading the time stamp counter")]

/// Bits after the point of the conversion factors.
const FRACTION: u32 = 40;

/// The time stamp counter now.
#[inline]
pub fn tsc() -> u64 {
    // SAFETY: reading the counter has no effect.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Converts between TSC ticks and nanoseconds by multiplication only.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    ns_per_tick: u64,
    ticks_per_ns: u64,
}

impl Clock {
    /// A clock for a TSC that counts `tsc_khz` ticks per millisecond (0 is taken as 1).
    pub fn new(tsc_khz: u64) -> Self {
        let khz = u128::from(tsc_khz.max(1));
        let ns_per_tick = (1_000_000u128 << FRACTION) / khz;
        let ticks_per_ns = (khz << FRACTION) / 1_000_000;
        Self {
            ns_per_tick: u64::try_from(ns_per_tick).unwrap_or(u64::MAX),
            ticks_per_ns: u64::try_from(ticks_per_ns).unwrap_or(u64::MAX),
        }
    }

    /// Nanoseconds since the TSC was 0.
    #[inline]
    pub fn now_ns(&self) -> u64 {
        self.tsc_to_ns(tsc())
    }

    /// Nanoseconds that `ticks` last.
    #[inline]
    pub fn tsc_to_ns(&self, ticks: u64) -> u64 {
        ((u128::from(ticks) * u128::from(self.ns_per_tick)) >> FRACTION) as u64
    }

    /// Ticks in `ns` nanoseconds.
    #[inline]
    pub fn ns_to_tsc(&self, ns: u64) -> u64 {
        ((u128::from(ns) * u128::from(self.ticks_per_ns)) >> FRACTION) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_converts_within_a_microsecond_both_ways() {
        for khz in [999_847, 1_000_000, 2_893_202, 4_000_000] {
            let clock = Clock::new(khz);
            let hour_ns = 3_600_000_000_000u64;
            let ticks = khz * 3_600_000;
            assert!(clock.tsc_to_ns(ticks).abs_diff(hour_ns) < 10_000, "{khz}");
            assert!(clock.ns_to_tsc(hour_ns).abs_diff(ticks) < 10_000, "{khz}");
        }
    }

    #[test]
    fn a_clock_of_zero_khz_does_not_divide_by_zero() {
        assert!(Clock::new(0).tsc_to_ns(1) > 0);
    }
}
