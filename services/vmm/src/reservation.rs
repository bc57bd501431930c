//! Which pages of its RAM a guest has given away, and how many it may have.
//!
//! The frames stay set aside for the guest, so giving back never fails for want of memory; what Xen counts
//! (pages that a domain has, present or not, and its maximum) is counted here so that the same requests are
//! refused. Invariant: a page is absent here exactly when [`crate::memory::GuestMemory`] denies that it is there.
//! Sources: Xen common/memory.c, xenmem_add_to_physmap_one in arch/x86/mm/p2m.c.

use alloc::boxed::Box;
use alloc::vec;

/// Pages of RAM by number, counted through all ranges.
#[derive(Debug)]
pub struct Reservation {
    /// A bit per page that is absent.
    absent: Box<[u64]>,
    pages: u64,
    absent_count: u64,
    /// Pages that count as the guest's but are nowhere: taken out of its address space without being given
    /// back, hidden by others, or ordered without a place.
    lost: u64,
    /// Bit `gfn % 64` is set if some page with such a number may be absent.
    filter: u64,
}

impl Reservation {
    /// All of `pages` are there.
    pub fn new(pages: u64) -> Self {
        let words = pages.div_ceil(64) as usize;
        Self { absent: vec![0; words].into_boxed_slice(), pages, absent_count: 0, lost: 0, filter: 0 }
    }

    /// Pages that the guest has.
    pub fn current(&self) -> u64 {
        self.pages - self.absent_count + self.lost
    }

    /// Pages that the guest may have.
    pub fn maximum(&self) -> u64 {
        self.pages
    }

    /// Whether the guest may have `count` pages more.
    pub fn has_room(&self, count: u64) -> bool {
        self.current().checked_add(count).is_some_and(|sum| sum <= self.maximum())
    }

    /// Counts pages that are the guest's and nowhere.
    pub fn lose(&mut self, count: u64) {
        self.lost += count;
    }

    /// See [`Reservation`]'s field.
    #[inline]
    pub fn filter(&self) -> u64 {
        self.filter
    }

    /// Whether page `index` is absent.
    #[inline]
    pub fn is_absent(&self, index: u64) -> bool {
        self.absent.get((index / 64) as usize).is_some_and(|word| word & 1 << (index % 64) != 0)
    }

    /// Makes page `index`, which the guest sees at `gfn`, absent.
    pub fn take(&mut self, index: u64, gfn: u64) {
        let bit = 1 << (index % 64);
        if index < self.pages
            && let Some(word) = self.absent.get_mut((index / 64) as usize)
            && *word & bit == 0
        {
            *word |= bit;
            self.absent_count += 1;
            self.filter |= 1 << (gfn % 64);
        }
    }

    /// Makes page `index` present.
    pub fn put(&mut self, index: u64) {
        let bit = 1 << (index % 64);
        if let Some(word) = self.absent.get_mut((index / 64) as usize)
            && *word & bit != 0
        {
            *word &= !bit;
            self.absent_count -= 1;
            if self.absent_count == 0 {
                self.filter = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_counted_once() {
        let mut pages = Reservation::new(100);
        pages.take(99, 3);
        pages.take(99, 3);
        pages.take(100, 4);
        assert_eq!((pages.current(), pages.maximum(), pages.filter()), (99, 100, 8));
        assert!(pages.is_absent(99) && !pages.is_absent(100) && !pages.is_absent(u64::MAX));
        assert!(pages.has_room(1) && !pages.has_room(2) && !pages.has_room(u64::MAX));
        pages.lose(1);
        assert!(!pages.has_room(1));
        pages.put(99);
        pages.put(99);
        assert_eq!((pages.current(), pages.filter()), (101, 0));
    }
}
