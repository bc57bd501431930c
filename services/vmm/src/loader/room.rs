//! Where in a guest's RAM there is room: outside of the kernel's segments, of page 0, whose address means "none" in
//! the start information, and of where old PCs have no RAM.

use alloc::vec::Vec;

use super::image::Image;
use crate::memory::{GuestMemory, PAGE};

/// Video memory and ROMs of a PC: RAM in a PVH guest, but Linux takes it out of its memory map.
const PC_DEVICES: (u64, u64) = (0xa_0000, 0x10_0000);
/// As many ranges of RAM as a guest can have.
const SPANS: usize = 4;

/// RAM, and what of it is taken.
#[derive(Debug)]
pub struct Room<'a> {
    image: &'a Image<'a>,
    spans: heapless::Vec<(u64, u64), SPANS>,
    taken: Vec<(u64, u64)>,
}

impl<'a> Room<'a> {
    /// The RAM beside a kernel.
    pub fn beside(image: &'a Image<'a>, memory: &GuestMemory) -> Self {
        let mut spans: heapless::Vec<(u64, u64), SPANS> = heapless::Vec::new();
        for (start, len) in memory.ram() {
            match spans.last_mut() {
                // Two ranges of the machine's memory, but one of the guest's.
                Some((_, end)) if *end == start.0 => *end += len,
                _ => {
                    // Memory has no more ranges than that.
                    let _ = spans.push((start.0, start.0 + len));
                }
            }
        }
        Self { image, spans, taken: alloc::vec![(0, PAGE as u64), PC_DEVICES] }
    }

    /// Takes a range away.
    pub fn take(&mut self, start: u64, end: u64) {
        self.taken.push((start, end));
    }

    fn taken(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let segments = self.image.segments.iter().map(|segment| (segment.start, segment.end()));
        segments.chain(self.taken.iter().copied())
    }

    fn is_free(&self, start: u64, len: u64, limit: u64) -> bool {
        let Some(end) = start.checked_add(len).filter(|&end| end <= limit) else { return false };
        self.spans.iter().any(|&(first, last)| first <= start && end <= last)
            && !self.taken().any(|(first, last)| first < end && start < last)
    }

    /// The lowest page at or above `floor` from which `len` bytes below `limit` are free.
    pub fn lowest(&self, len: u64, floor: u64, limit: u64) -> Option<u64> {
        let edges = self.spans.iter().map(|&(start, _)| start).chain(self.taken().map(|(_, end)| end));
        let pages = edges.chain([floor]).filter_map(|edge| edge.checked_next_multiple_of(PAGE as u64));
        pages.filter(|&page| page >= floor && self.is_free(page, len, limit)).min()
    }

    /// The highest page from which `len` bytes below `limit` are free.
    pub fn highest(&self, len: u64, limit: u64) -> Option<u64> {
        let edges =
            self.spans.iter().map(|&(_, end)| end.min(limit)).chain(self.taken().map(|(start, _)| start));
        let pages = edges.filter_map(|edge| edge.checked_sub(len)).map(|start| start & !(PAGE as u64 - 1));
        pages.filter(|&page| self.is_free(page, len, limit)).max()
    }
}

#[cfg(test)]
mod tests {
    use super::super::image::tests::elf64;
    use super::*;
    use crate::memory::GuestPhys;
    use crate::memory::tests::leak;
    use proptest::prelude::*;
    use proto::channel::Region;

    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;

    /// Memory that nobody touches.
    fn memory(ranges: &[(u64, u64)]) -> GuestMemory {
        let ranges: Vec<_> =
            ranges.iter().map(|&(start, len)| (GuestPhys(start), Region { addr: 4096, len })).collect();
        GuestMemory::new(&ranges, leak(1))
    }

    #[test]
    fn ram_in_pieces_is_one_and_the_hole_is_not() {
        let memory = memory(&[(0, 16 * MIB), (16 * MIB, 16 * MIB), (4096 * MIB, MIB)]);
        let file = elf64(&[(MIB, 0x100, 2 * MIB)], &[(b"Xen\0", 18, &[0, 0, 0x10, 0])]);
        let image = Image::parse(&file).unwrap();
        let mut room = Room::beside(&image, &memory);
        assert_eq!(room.highest(20 * MIB, 4096 * MIB), Some(12 * MIB));
        assert_eq!(room.highest(29 * MIB, 4096 * MIB), Some(3 * MIB));
        assert_eq!(room.highest(29 * MIB + 1, 4096 * MIB), None);
        assert_eq!(room.highest(MIB / 2, u64::MAX), Some(4096 * MIB + MIB / 2));
        assert_eq!(room.lowest(MIB, 0, 1024 * MIB), Some(3 * MIB));
        assert_eq!(room.lowest(636 * KIB, 0, 1024 * MIB), Some(4 * KIB));
        assert_eq!(room.lowest(640 * KIB, 0, 1024 * MIB), Some(3 * MIB));
        room.take(3 * MIB, 31 * MIB);
        assert_eq!(room.highest(MIB, 4096 * MIB), Some(31 * MIB));
        assert_eq!(room.highest(MIB + 1, 4096 * MIB), None);
        assert_eq!(room.lowest(1, u64::MAX, u64::MAX), None);
    }

    proptest! {
        #[test]
        fn what_is_found_is_free_and_nothing_better_is(
            starts in prop::collection::vec(0u64..60, 0..6), len in 1u64..20, floor in 0u64..64, limit in 0u64..80
        ) {
            const UNIT: u64 = 64 * KIB;
            let memory = memory(&[(0, 30 * UNIT), (30 * UNIT, 10 * UNIT), (44 * UNIT, 20 * UNIT)]);
            let file = elf64(&[(0, 0, UNIT)], &[(b"Xen\0", 18, &[0; 4])]);
            let image = Image::parse(&file).unwrap();
            let mut room = Room::beside(&image, &memory);
            starts.iter().for_each(|&start| room.take(start * UNIT, (start + 2) * UNIT));
            let (len, limit) = (len * UNIT, limit * UNIT);
            let free: Vec<_> = (0..80).map(|n| n * UNIT).filter(|&at| room.is_free(at, len, limit)).collect();
            prop_assert_eq!(room.highest(len, limit), free.last().copied());
            let above = free.into_iter().find(|&at| at >= floor * UNIT);
            prop_assert_eq!(room.lowest(len, floor * UNIT, limit), above);
        }
    }
}
