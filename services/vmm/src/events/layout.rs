//! Where a guest finds its words in shared_info and vcpu_info: the 64-bit layout and the 32-bit one.
//!
//! A port's bit is at the same place in both, whether the words are taken as 32 or 64 bits; what lies
//! behind the pending bits is not. Which one applies is latched when the guest writes the hypercall page's
//! MSR or sets CALLBACK_IRQ, from the mode in which it does so (GRUB is 32-bit, Linux after it is not).
//! Sources: Xen public/xen.h (shared_info, vcpu_info), public/arch-x86/xen.h (arch_shared_info);
//! arch/x86/hvm/hvm.c (hvm_latch_shinfo_size).

use crate::memory::Page;

/// shared_info: a bit per port.
pub(super) const PENDING: usize = 0x800;
/// vcpu_info: a byte.
pub(super) const UPCALL_PENDING: usize = 0;
/// Bytes of vcpu_info.
pub const VCPU_INFO_LEN: usize = 64;
/// Offset of vcpu_time_info in vcpu_info.
pub const TIME: usize = 32;

/// A port's bit is in the word with this many bits; words are accessed so in both layouts.
const WORD_BITS: u32 = 64;

/// One of the two layouts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Ports that have a bit.
    pub ports: u32,
    /// Offset of the mask bits.
    pub(super) mask: usize,
    /// Offset of the wall clock's version; seconds and nanoseconds follow it.
    wall_clock: usize,
    /// Offset of the upper half of the wall clock's seconds.
    wall_seconds_high: usize,
    /// vcpu_info: offset of the selector, a bit for each word of pending bits.
    selector: usize,
}

impl Layout {
    /// That of 64-bit guests.
    pub const BITS_64: Self =
        Self { ports: 4096, mask: 0xa00, wall_clock: 0xc00, wall_seconds_high: 0xc0c, selector: 8 };
    /// That of 32-bit guests.
    pub const BITS_32: Self =
        Self { ports: 1024, mask: 0x880, wall_clock: 0x900, wall_seconds_high: 0x924, selector: 4 };

    #[inline]
    fn is_64(&self) -> bool {
        self.ports == Self::BITS_64.ports
    }

    /// Selects the word of `port` in a vcpu_info; whether it was selected already.
    #[inline]
    pub(super) fn select(&self, page: &Page, info: usize, port: u32) -> bool {
        let at = info + self.selector;
        if self.is_64() {
            let bit = 1u64 << (port / 64 % 64);
            page.or_u64(at, bit) & bit != 0
        } else {
            let bit = 1u32 << (port / 32 % 32);
            page.or_u32(at, bit) & bit != 0
        }
    }

    /// Selects all words in a vcpu_info.
    pub(super) fn select_all(&self, page: &Page, info: usize) {
        let at = info + self.selector;
        if self.is_64() {
            page.set_u64(at, u64::MAX);
        } else {
            page.set_u32(at, u32::MAX);
        }
    }

    /// Moves what is in `shared_info` from this layout to `new`. A port that was masked in either stays so:
    /// the guest may have masked its ports by the new layout before it was latched. `claim` is asked about each
    /// pending bit that is none in the new layout, and says whether it was a port's.
    pub(super) fn convert(&self, new: &Self, shared_info: &Page, mut claim: impl FnMut(u32) -> bool) {
        let mut wall_clock = [0; 12];
        shared_info.read(self.wall_clock, &mut wall_clock);
        let high = shared_info.u32(self.wall_seconds_high);
        let ports = self.ports.min(new.ports);
        // The 32-bit layout has its masks, and more, where the other has pending bits of higher ports.
        let higher = (ports..Self::BITS_64.ports).step_by(WORD_BITS as usize);
        if new.is_64() {
            move_mask(shared_info, self, new, ports);
            higher.for_each(|port| shared_info.set_u64(PENDING + word(port), 0));
        } else {
            for first in higher {
                let at = PENDING + word(first);
                let bits = shared_info.u64(at);
                // What is no port's is what the guest has written there by the new layout.
                let mut is_claimed = |port: &u32| bits & bit(*port) != 0 && claim(*port);
                let claimed = (first..first + WORD_BITS).filter(|port| is_claimed(port));
                let claimed = claimed.fold(0, |bits, port| bits | bit(port));
                shared_info.and_u64(at, !claimed);
            }
            move_mask(shared_info, self, new, ports);
        }
        shared_info.write(new.wall_clock, &wall_clock);
        shared_info.set_u32(new.wall_seconds_high, high);
    }
}

fn move_mask(shared_info: &Page, from: &Layout, to: &Layout, ports: u32) {
    for port in (0..ports).step_by(WORD_BITS as usize) {
        let bits = shared_info.u64(from.mask + word(port));
        shared_info.or_u64(to.mask + word(port), bits);
    }
}

/// Offset of the word that holds a port's bit.
#[inline]
pub(super) fn word(port: u32) -> usize {
    port as usize / WORD_BITS as usize * 8
}

/// A port's bit in its word.
#[inline]
pub(super) fn bit(port: u32) -> u64 {
    1 << (port % WORD_BITS)
}
