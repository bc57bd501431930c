//! The guest's time: the parameters by which it turns its TSC into nanoseconds, and the wall clock.
//!
//! System time is 0 when the guest starts and follows the machine's TSC at a constant rate, so the parameters change only
//! when a vCPU sets its own TSC ([`crate::tsc`]). The VMM computes time by the guest's own formula: neither is
//! ever ahead.
//! Sources: Xen public/xen.h (vcpu_time_info), guest-visible formula of Linux arch/x86/include/asm/pvclock.h.

use crate::memory::Page;

/// Fraction bits of the inverse factor.
const INVERSE_BITS: u32 = 40;
/// vcpu_time_info flag: stable across vCPUs.
const TSC_STABLE: u8 = 1;
/// Nanoseconds in a second.
const SECOND_NS: u64 = 1_000_000_000;

/// The TSC of one vCPU.
#[derive(Debug, Clone, Copy)]
pub struct Tsc {
    /// What it is ahead of the machine's, modulo 2^64.
    pub offset: u64,
    /// All vCPUs read the same.
    pub is_stable: bool,
}

impl Tsc {
    /// The machine's own, which all vCPUs begin with.
    pub const OWN: Self = Self { offset: 0, is_stable: true };
}

/// Conversion between the machine's TSC and the guest's system time.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// TSC when system time was 0.
    start: u64,
    mul: u32,
    shift: i8,
    ticks_per_ns: u64,
    khz: u64,
}

impl Clock {
    /// A clock for a TSC of `tsc_khz`, whose system time is 0 at TSC `start`.
    pub fn new(tsc_khz: u64, start: u64) -> Self {
        let khz = tsc_khz.max(1);
        // Bring the frequency into (1 GHz, 2 GHz], so that the multiplier uses its 32 bits.
        let mut hz = khz.saturating_mul(1000);
        let mut shift = 0i8;
        while hz > 2 * SECOND_NS {
            hz >>= 1;
            shift -= 1;
        }
        while hz <= SECOND_NS {
            hz <<= 1;
            shift += 1;
        }
        let mul = u32::try_from((SECOND_NS << 32) / hz).unwrap_or(u32::MAX);
        let ticks_per_ns = (u128::from(khz) << INVERSE_BITS) / 1_000_000;
        let ticks_per_ns = u64::try_from(ticks_per_ns).unwrap_or(u64::MAX);
        Self { start, mul, shift, ticks_per_ns, khz }
    }

    /// System time at TSC `tsc`.
    #[inline]
    pub fn ns(&self, tsc: u64) -> u64 {
        let delta = tsc.saturating_sub(self.start);
        let scaled = if self.shift < 0 { delta >> -self.shift } else { delta << self.shift };
        ((u128::from(scaled) * u128::from(self.mul)) >> 32) as u64
    }

    /// Ticks in a millisecond.
    #[inline]
    pub fn khz(&self) -> u64 {
        self.khz
    }

    /// How long `ticks` are.
    pub fn span_ns(&self, ticks: u64) -> u64 {
        self.ns(self.start.saturating_add(ticks))
    }

    /// A TSC at which system time is at least `ns`, late by a few ticks at most in any sensible future.
    #[inline]
    pub fn tsc(&self, ns: u64) -> u64 {
        let ticks = (u128::from(ns) * u128::from(self.ticks_per_ns)) >> INVERSE_BITS;
        // The factors are rounded down: allow for one part in 2^30 and the last bits.
        let ticks = ticks + (ticks >> 30) + 4;
        self.start.saturating_add(u64::try_from(ticks).unwrap_or(u64::MAX))
    }

    /// Fills a vcpu_time_info for a vCPU with this TSC.
    pub fn write_time(&self, page: &Page, offset: usize, tsc: Tsc) {
        // An odd version says that the rest is being written. Who was in the middle of reading finds another one.
        let version = page.u32(offset).wrapping_add(1) | 1;
        page.set_u32(offset, version);
        page.write(offset + 8, &self.fields(tsc));
        page.set_u32(offset, version.wrapping_add(1));
    }

    /// The fields of vcpu_time_info from `tsc_timestamp` on.
    fn fields(&self, tsc: Tsc) -> [u8; 24] {
        let mut fields = [0; 24];
        let (timestamp, rest) = fields.split_at_mut(8);
        timestamp.copy_from_slice(&self.start.wrapping_add(tsc.offset).to_le_bytes());
        // System time at the timestamp is 0.
        let (_, rest) = rest.split_at_mut(8);
        let (mul, rest) = rest.split_at_mut(4);
        mul.copy_from_slice(&self.mul.to_le_bytes());
        if let [shift, flags, ..] = rest {
            *shift = self.shift as u8;
            *flags = if tsc.is_stable { TSC_STABLE } else { 0 };
        }
        fields
    }

    /// A whole vcpu_time_info (32 bytes) of this version, for the area in the guest's own memory.
    pub fn time_info(&self, version: u32, tsc: Tsc) -> [u8; 32] {
        let mut info = [0; 32];
        let (first, fields) = info.split_at_mut(8);
        first.copy_from_slice(&u64::from(version).to_le_bytes());
        fields.copy_from_slice(&self.fields(tsc));
        info
    }

    /// Fills shared_info's wall clock (64-bit layout): the time since 1970 at system time 0.
    pub fn write_wall_clock(&self, shared_info: &Page, wall_ns: u64) {
        const VERSION: usize = 0xc00;
        let seconds = wall_ns / SECOND_NS;
        shared_info.set_u32(VERSION, 1);
        shared_info.set_u32(VERSION + 4, seconds as u32);
        shared_info.set_u32(VERSION + 8, (wall_ns % SECOND_NS) as u32);
        shared_info.set_u32(VERSION + 12, (seconds >> 32) as u32);
        shared_info.set_u32(VERSION, 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::tests::fake;

    #[test]
    fn an_hour_is_an_hour_at_any_frequency() {
        for khz in [800_000, 999_999, 1_000_000, 1_000_001, 2_000_000, 2_445_120, 5_000_000] {
            let clock = Clock::new(khz, 12345);
            let hour = 3600 * SECOND_NS;
            let ns = clock.ns(12345 + khz * 3_600_000);
            assert!(ns.abs_diff(hour) < 100_000, "{khz} kHz: {ns}");
        }
    }

    #[test]
    fn a_timer_never_fires_early_and_hardly_late() {
        for khz in [800_000, 1_000_000, 2_893_202] {
            let clock = Clock::new(khz, 999);
            for ns in [1, 17, 100_000, 12_345_678, 3600 * SECOND_NS, 86_400 * SECOND_NS] {
                let due = clock.ns(clock.tsc(ns));
                assert!(due >= ns, "{khz} kHz, {ns}: {due}");
                assert!(due - ns <= 10 + (ns >> 28), "{khz} kHz, {ns}: {due}");
            }
            assert_eq!(clock.tsc(u64::MAX).max(1), clock.tsc(u64::MAX));
        }
    }

    #[test]
    fn the_guest_finds_frequency_and_stable_flag() {
        let memory = fake(1);
        let page = memory.page(crate::memory::Gfn(0)).unwrap();
        let clock = Clock::new(2_000_000, 77);
        clock.write_time(&page, 32, Tsc::OWN);
        assert_eq!((page.u32(32), page.u64(40), page.u64(48)), (2, 77, 0));
        // Linux: (10^6 << 32) / mul, shifted back.
        let khz = ((1_000_000u64 << 32) / u64::from(page.u32(56))) << -(page.u8(60) as i8);
        assert!(khz.abs_diff(2_000_000) < 2, "{khz}");
        assert_eq!(page.u8(61), 1);
        let mut info = [0; 32];
        page.read(32, &mut info);
        assert_eq!(info, clock.time_info(2, Tsc::OWN));
        clock.write_time(&page, 32, Tsc { offset: 78u64.wrapping_neg(), is_stable: false });
        assert_eq!((page.u32(32), page.u64(40), page.u8(61)), (4, u64::MAX, 0));
        clock.write_wall_clock(&page, 1_700_000_000_123_456_789);
        assert_eq!((page.u32(0xc04), page.u32(0xc08), page.u32(0xc0c)), (1_700_000_000, 123_456_789, 0));
    }
}
