//! Allocation of the blk channel's pool: runs of pages, first fit.

use proto::blk::POOL_SIZE;

use crate::memory::PAGE;

/// Pages of the pool: as many as one word has bits.
const PAGES: u32 = u64::BITS;
const _: () = assert!(POOL_SIZE as usize / PAGE == PAGES as usize);

/// A run of pages of the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    first: u32,
    pages: u32,
}

impl Extent {
    /// Offset in the pool in bytes.
    pub fn offset(self) -> usize {
        self.first as usize * PAGE
    }

    fn mask(self) -> u64 {
        run(self.pages) << self.first
    }
}

/// `pages` (1 to 64) low bits.
fn run(pages: u32) -> u64 {
    u64::MAX >> (PAGES - pages.clamp(1, PAGES))
}

/// Which pages are free.
#[derive(Debug)]
pub struct Extents {
    free: u64,
}

impl Default for Extents {
    fn default() -> Self {
        Self { free: u64::MAX }
    }
}

impl Extents {
    /// Takes a run that holds `len` bytes.
    pub fn allocate(&mut self, len: u32) -> Option<Extent> {
        let pages = len.div_ceil(PAGE as u32).max(1);
        if pages > PAGES {
            return None;
        }
        // A bit survives where the `pages` bits from it on are all set.
        let mut starts = self.free;
        for shift in 1..pages {
            starts &= self.free >> shift;
        }
        if starts == 0 {
            return None;
        }
        let extent = Extent { first: starts.trailing_zeros(), pages };
        self.free &= !extent.mask();
        Some(extent)
    }

    /// Gives a run back.
    pub fn release(&mut self, extent: Extent) {
        self.free |= extent.mask();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    #[test]
    fn the_whole_pool_can_be_used_and_comes_back() {
        let mut extents = Extents::default();
        let all: Vec<Extent> = core::iter::from_fn(|| extents.allocate(11 * 4096)).collect();
        assert_eq!(all.len(), 5);
        assert_eq!(extents.allocate(9 * 4096 + 1), None);
        let last = extents.allocate(9 * 4096).unwrap();
        assert_eq!(last.offset(), 55 * 4096);
        all.into_iter().chain([last]).for_each(|extent| extents.release(extent));
        assert_eq!(extents.allocate(POOL_SIZE as u32).map(Extent::offset), Some(0));
        assert_eq!(extents.allocate(1), None);
    }

    proptest! {
        #[test]
        fn runs_never_overlap_and_stay_inside(steps in prop::collection::vec((any::<bool>(), 1u32..131_072), 1..200)) {
            let mut extents = Extents::default();
            let mut held: Vec<Extent> = Vec::new();
            for (take, len) in steps {
                if take || held.is_empty() {
                    if let Some(extent) = extents.allocate(len) {
                        prop_assert!(extent.offset() + len as usize <= POOL_SIZE as usize);
                        prop_assert!(held.iter().all(|other| other.mask() & extent.mask() == 0));
                        held.push(extent);
                    }
                } else {
                    extents.release(held.swap_remove(len as usize % held.len()));
                }
            }
        }
    }
}
