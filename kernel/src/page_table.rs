//! Page tables of domains and VMs: four levels, in frames that were donated to the space.
//!
//! The same walk serves ring-3 address spaces and nested page tables: SVM's nested format is the host's
//! own, with every access a user access (APM vol. 2, 15.25.5). Work is done in steps of one leaf, so that
//! the caller can stop in between.
//!
//! Invariant: a leaf is removed only by a caller that names the frame it points to; a table frame belongs
//! to exactly one space and stays with it until the space is destroyed.

use core::cell::Cell;

use proto::abi::{Error, PAGE_SHIFT, map};
use x86_64::structures::paging::PageTableFlags as Flags;

use crate::memory::{HostPhys, Pfn, zero};

/// Entries of a table.
const ENTRIES: u64 = 512;
/// Physical address bits of an entry.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Flags of entries that point to tables: the leaf alone decides.
const TABLE: u64 = Flags::PRESENT.bits() | Flags::WRITABLE.bits() | Flags::USER_ACCESSIBLE.bits();

/// Frames for tables, as a list threaded through their first words.
#[derive(Debug, Default)]
pub struct FramePool {
    first: Cell<u64>,
    count: Cell<u64>,
}

impl FramePool {
    /// An empty pool.
    pub const fn new() -> Self {
        Self { first: Cell::new(0), count: Cell::new(0) }
    }

    /// Adds a frame.
    pub fn give(&self, frame: Pfn) {
        entry(frame, 0).set(self.first.get());
        self.first.set(frame.0);
        self.count.set(self.count.get() + 1);
    }

    /// Takes a zeroed frame.
    fn take(&self) -> Option<Pfn> {
        if self.first.get() == 0 {
            return None;
        }
        let frame = Pfn(self.first.get());
        self.first.set(entry(frame, 0).get());
        self.count.set(self.count.get() - 1);
        zero(frame, 1);
        Some(frame)
    }

    /// Frames left.
    pub fn count(&self) -> u64 {
        self.count.get()
    }
}

/// An entry of a table.
#[expect(unsafe_code, reason = "tables are reached through the direct map")]
fn entry(table: Pfn, index: u64) -> &'static Cell<u64> {
    // SAFETY: `table` is a frame of a space's pool (or a root), which only the kernel can reach, and the
    // index is masked to the table.
    unsafe { &*((table.direct() + (index & (ENTRIES - 1)) * 8) as *const Cell<u64>) }
}

/// Frames that an entry of a level covers (level 1: 1).
const fn span(level: u32) -> u64 {
    1 << (9 * (level - 1))
}

/// Index of the entry for an address at a level.
const fn index(virt: u64, level: u32) -> u64 {
    (virt >> (PAGE_SHIFT + 9 * (level - 1))) & (ENTRIES - 1)
}

/// What a leaf in the way means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conflict {
    /// An error: domains.
    Refuse,
    /// It is replaced: VMs, whose VMM puts pages of its own over RAM.
    Replace,
}

/// The tables of a space.
#[derive(Debug)]
pub struct PageTable<'a> {
    /// Level-4 table.
    pub root: Pfn,
    /// Where further tables come from.
    pub pool: &'a FramePool,
    /// What a leaf in the way means.
    pub conflict: Conflict,
    /// Largest leaf: 2 (2 MiB) or 3 (1 GiB).
    pub largest_leaf: u32,
}

/// Entry flags for `map` flags.
pub fn leaf_flags(flags: u64) -> u64 {
    let mut bits = Flags::PRESENT.bits() | Flags::USER_ACCESSIBLE.bits();
    if flags & map::WRITE != 0 {
        bits |= Flags::WRITABLE.bits();
    }
    if flags & map::EXECUTE == 0 {
        bits |= Flags::NO_EXECUTE.bits();
    }
    if flags & map::UNCACHED != 0 {
        bits |= Flags::NO_CACHE.bits() | Flags::WRITE_THROUGH.bits();
    }
    bits
}

const fn is_present(value: u64) -> bool {
    value & Flags::PRESENT.bits() != 0
}

const fn is_large(value: u64) -> bool {
    value & Flags::HUGE_PAGE.bits() != 0
}

impl PageTable<'_> {
    /// Maps one leaf, the largest that fits, at `virt` for the run of `count` frames from `pfn`. Answers
    /// how many frames it covers.
    ///
    /// # Errors
    /// `NoMemory` without a frame for a table; `AddressInUse`.
    pub fn map_step(&self, virt: u64, pfn: Pfn, count: u64, flags: u64) -> Result<u64, Error> {
        let page = virt >> PAGE_SHIFT;
        let mut table = self.root;
        let mut level = 4;
        loop {
            let slot = entry(table, index(virt, level));
            let frames = span(level);
            let value = slot.get();
            let fits = level <= self.largest_leaf
                && (page | pfn.0).is_multiple_of(frames)
                && count >= frames
                && (level == 1 || !is_present(value) || is_large(value));
            if fits {
                if is_present(value) && self.conflict == Conflict::Refuse {
                    return Err(Error::AddressInUse);
                }
                let large = if level > 1 { Flags::HUGE_PAGE.bits() } else { 0 };
                slot.set(pfn.phys().0 | flags | large);
                return Ok(frames);
            }
            if !is_present(value) {
                let next = self.pool.take().ok_or(Error::NoMemory)?;
                slot.set(next.phys().0 | TABLE);
            } else if level > 1 && is_large(value) {
                if self.conflict == Conflict::Refuse {
                    return Err(Error::AddressInUse);
                }
                self.split(slot, level)?;
            }
            table = Pfn::containing(HostPhys(slot.get() & ADDRESS));
            level -= 1;
        }
    }

    /// Replaces a large leaf by a table of smaller ones.
    fn split(&self, slot: &Cell<u64>, level: u32) -> Result<(), Error> {
        let table = self.pool.take().ok_or(Error::NoMemory)?;
        let old = slot.get();
        let base = (old & ADDRESS) >> PAGE_SHIFT;
        let mut flags = old & !ADDRESS;
        if level == 2 {
            flags &= !Flags::HUGE_PAGE.bits();
        }
        for n in 0..ENTRIES {
            entry(table, n).set(Pfn(base + n * span(level - 1)).phys().0 | flags);
        }
        slot.set(table.phys().0 | TABLE);
        Ok(())
    }

    /// Removes the leaf at `virt` if it points to `pfn`, the next of `count` frames. Answers how many
    /// frames of the run are dealt with.
    pub fn unmap_step(&self, virt: u64, pfn: Pfn, count: u64) -> u64 {
        let page = virt >> PAGE_SHIFT;
        let mut table = self.root;
        for level in (1..=4).rev() {
            let slot = entry(table, index(virt, level));
            let value = slot.get();
            let rest = (span(level) - page % span(level)).min(count);
            if !is_present(value) {
                return rest;
            }
            if level == 1 || is_large(value) {
                let mapped = (value & ADDRESS) >> PAGE_SHIFT;
                if mapped == pfn.0 && rest == span(level) {
                    slot.set(0);
                }
                return rest;
            }
            table = Pfn::containing(HostPhys(value & ADDRESS));
        }
        1
    }

    /// The entry's flags and frame for an address, if it is mapped.
    #[cfg(test)]
    pub fn lookup(&self, virt: u64) -> Option<(Pfn, u64)> {
        let mut table = self.root;
        for level in (1..=4).rev() {
            let value = entry(table, index(virt, level)).get();
            if !is_present(value) {
                return None;
            }
            let frame = Pfn::containing(HostPhys(value & ADDRESS));
            if level == 1 || is_large(value) {
                let offset = (virt >> PAGE_SHIFT) % span(level);
                return Some((frame.offset(offset), value & !ADDRESS));
            }
            table = frame;
        }
        None
    }
}

/// Fills an entry of a level-4 table; for the kernel's own half.
pub fn set_root_entry(root: Pfn, index: u64, value: u64) {
    entry(root, index).set(value);
}

/// Reads an entry of a level-4 table.
pub fn root_entry(root: Pfn, index: u64) -> u64 {
    entry(root, index).get()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::frames;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn space(pool: &FramePool, conflict: Conflict) -> PageTable<'_> {
        let memory = frames(65, 1);
        for n in 1..65 {
            pool.give(memory.offset(n));
        }
        zero(memory, 1);
        PageTable { root: memory, pool, conflict, largest_leaf: 2 }
    }

    fn map_all(table: &PageTable<'_>, virt: u64, pfn: u64, count: u64) -> Result<(), Error> {
        let mut done = 0;
        while done < count {
            done +=
                table.map_step(virt + (done << PAGE_SHIFT), Pfn(pfn + done), count - done, leaf_flags(3))?;
        }
        Ok(())
    }

    fn unmap_all(table: &PageTable<'_>, virt: u64, pfn: u64, count: u64) {
        let mut done = 0;
        while done < count {
            done += table.unmap_step(virt + (done << PAGE_SHIFT), Pfn(pfn + done), count - done);
        }
    }

    #[test]
    fn an_aligned_run_takes_large_leaves() {
        let pool = FramePool::new();
        let table = space(&pool, Conflict::Refuse);
        let before = pool.count();
        map_all(&table, 0x4000_0000, 0x800, 1024).unwrap();
        assert_eq!(before - pool.count(), 2);
        assert_eq!(table.lookup(0x4000_0000 + 0x20_1000).unwrap().0, Pfn(0x800 + 0x201));
    }

    #[test]
    fn a_domain_refuses_a_second_mapping_and_a_vm_replaces_one_page_of_a_large_leaf() {
        let pool = FramePool::new();
        let mut table = space(&pool, Conflict::Refuse);
        map_all(&table, 0, 0x200, 512).unwrap();
        assert_eq!(map_all(&table, 0x1000, 7, 1), Err(Error::AddressInUse));
        table.conflict = Conflict::Replace;
        map_all(&table, 0x1000, 7, 1).unwrap();
        assert_eq!(table.lookup(0x1000).unwrap().0, Pfn(7));
        assert_eq!(table.lookup(0x2000).unwrap().0, Pfn(0x202));
        unmap_all(&table, 0, 0x200, 512);
        assert_eq!(table.lookup(0x1000).unwrap().0, Pfn(7));
        assert_eq!(table.lookup(0x2000), None);
    }

    #[test]
    fn a_gibibyte_is_one_leaf_until_a_page_of_it_is_replaced() {
        let pool = FramePool::new();
        let mut table = space(&pool, Conflict::Replace);
        table.largest_leaf = 3;
        let gib = 512 * 512;
        let before = pool.count();
        assert_eq!(table.map_step(1 << 30, Pfn(4 * gib), gib, leaf_flags(3)), Ok(gib));
        assert_eq!(before - pool.count(), 1);
        assert_eq!(table.lookup((1 << 30) + 0x12_3000).unwrap().0, Pfn(4 * gib + 0x123));
        // Two tables more: the leaf becomes 512 of 2 MiB, one of them 512 pages.
        assert_eq!(table.map_step((1 << 30) + 0x12_3000, Pfn(7), 1, leaf_flags(3)), Ok(1));
        assert_eq!(before - pool.count(), 3);
        assert_eq!(table.lookup((1 << 30) + 0x12_3000).unwrap().0, Pfn(7));
        assert_eq!(table.lookup((1 << 30) + 0x12_4000).unwrap().0, Pfn(4 * gib + 0x124));
        assert_eq!(table.lookup((2 << 30) - 0x1000).unwrap().0, Pfn(5 * gib - 1));
        unmap_all(&table, 1 << 30, 4 * gib, gib);
        assert_eq!(table.lookup((2 << 30) - 0x1000), None);
        assert_eq!(table.lookup((1 << 30) + 0x12_3000).unwrap().0, Pfn(7));
    }

    #[test]
    fn running_out_of_table_frames_is_an_error() {
        let pool = FramePool::new();
        let memory = frames(1, 1);
        zero(memory, 1);
        let table = PageTable { root: memory, pool: &pool, conflict: Conflict::Refuse, largest_leaf: 2 };
        assert_eq!(map_all(&table, 0, 1, 1), Err(Error::NoMemory));
    }

    proptest! {
        #[test]
        fn a_vm_maps_exactly_what_the_model_maps(
            steps in prop::collection::vec((any::<bool>(), 0u64..1100, 1u64..600), 1..12)
        ) {
            let pool = FramePool::new();
            let table = space(&pool, Conflict::Replace);
            let mut model = BTreeMap::new();
            for (is_map, page, count) in steps {
                // Frame numbers congruent to the page, so that large leaves occur.
                let pfn = 0x10_0000 + page;
                if is_map {
                    if map_all(&table, page << PAGE_SHIFT, pfn, count).is_err() { break; }
                    for n in 0..count { model.insert(page + n, pfn + n); }
                } else {
                    let mut done = 0;
                    while done < count {
                        let step = table.unmap_step((page + done) << PAGE_SHIFT, Pfn(pfn + done), count - done);
                        done += step;
                    }
                    // A partial unmap of a large leaf leaves the leaf: the kernel always unmaps whole mappings.
                    for n in 0..count {
                        if table.lookup((page + n) << PAGE_SHIFT).is_none() { model.remove(&(page + n)); }
                    }
                }
                for probe in (0..1700).step_by(7) {
                    prop_assert_eq!(
                        table.lookup(probe << PAGE_SHIFT).map(|found| found.0.0),
                        model.get(&probe).copied()
                    );
                }
            }
        }
    }
}
