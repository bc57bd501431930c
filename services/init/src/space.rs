//! An address space under construction: how many page-table frames its mappings take.
//!
//! The kernel takes page tables from frames that are donated to the space and never gives one back
//! before the space ends; so init counts which tables exist and donates exactly what the next mapping
//! adds. The count follows the kernel's rule: a 2 MiB leaf where address, frame and length allow it and
//! no table is in its place. Where the kernel can use larger leaves, some donated frames stay unused.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use proto::abi::{PAGE_SHIFT, Slot};

use crate::frames::Run;

/// Pages that a table of each level covers, as a shift: page table, page directory, level 3.
const SHIFTS: [u32; 3] = [9, 18, 27];
/// Pages of a large leaf.
const LARGE: u64 = 512;

/// The tables that exist below the root, by level and the number of what they cover.
#[derive(Debug, Default)]
pub struct Tables([BTreeSet<u64>; 3]);

impl Tables {
    fn add(&mut self, page: u64, from_level: usize) -> u64 {
        let mut added = 0;
        for (set, shift) in self.0.iter_mut().zip(SHIFTS).skip(from_level) {
            added += u64::from(set.insert(page >> shift));
        }
        added
    }

    /// Adds the tables that a mapping needs; how many of them are new.
    pub fn map(&mut self, address: u64, first: u64, count: u64) -> u64 {
        let start = address >> PAGE_SHIFT;
        let mut done = 0;
        let mut added = 0;
        while done < count {
            let page = start + done;
            let has_table = self.0[0].contains(&(page >> SHIFTS[0]));
            let is_aligned = (page | (first + done)).is_multiple_of(LARGE);
            if is_aligned && count - done >= LARGE && !has_table {
                added += self.add(page, 1);
                done += LARGE;
            } else {
                added += self.add(page, 0);
                done += (LARGE - page % LARGE).min(count - done);
            }
        }
        added
    }
}

/// A space that init maps into.
#[derive(Debug)]
pub struct Space {
    /// Capability of the domain or VM; 0: init itself.
    pub slot: Slot,
    /// Its tables.
    pub tables: Tables,
    /// Frames that were donated to it.
    pub donated: Vec<Run>,
}

impl Space {
    /// An empty space.
    pub fn new(slot: Slot) -> Self {
        Self { slot, tables: Tables::default(), donated: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_counted_once() {
        let mut tables = Tables::default();
        assert_eq!(tables.map(0x20_0000, 7, 3), 3);
        assert_eq!(tables.map(0x20_3000, 7, 3), 0);
        assert_eq!(tables.map(0x3f_f000, 7, 2), 1);
        assert_eq!(tables.map(0x4000_0000, 7, 1), 2);
        assert_eq!(tables.map(0x100_0000_0000, 7, 1), 3);
    }

    #[test]
    fn aligned_memory_takes_large_leaves() {
        let mut tables = Tables::default();
        // 64 MiB: a level-3 table and a page directory.
        assert_eq!(tables.map(0, 512 * 9, 512 * 32), 2);
        // Misaligned frames: a page table for each 2 MiB.
        assert_eq!(tables.map(0x4000_0000, 512 * 9 + 1, 512 * 4), 5);
        // Where a page table is, the kernel goes on using it.
        assert_eq!(tables.map(0x4000_0000, 512 * 9, 512), 0);
    }
}
