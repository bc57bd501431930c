//! Guest-physical memory: RAM, and the VMM's own frames that the guest sees in it.
//!
//! Every access goes through [`GuestMemory::page`], which answers the frame that the guest would reach at
//! that number: a special frame where one was mapped (shared_info, grant table, rings, ACPI), else RAM.
//! Invariant: the overlay says what the nested page table says; whoever changes one changes the other.

use core::sync::atomic::AtomicU64;

use proto::abi::{PAGE_SHIFT, PAGE_SIZE};
use proto::channel::Region;
use proto::guest::SPECIAL_FRAMES;
use rt::shared::Shared;

use crate::reservation::Reservation;

/// Bytes in a page.
pub const PAGE: usize = PAGE_SIZE as usize;
/// How many special frames there are.
pub const SPECIALS: usize = SPECIAL_FRAMES as usize;
/// Highest guest frame number that anything may be mapped at (40 physical address bits).
pub const GFN_END: u64 = 1 << (40 - PAGE_SHIFT);

/// A guest-physical address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct GuestPhys(pub u64);

/// A guest frame number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gfn(pub u64);

impl GuestPhys {
    /// The frame that holds the address.
    #[inline]
    pub fn gfn(self) -> Gfn {
        Gfn(self.0 >> PAGE_SHIFT)
    }

    /// The offset in that frame.
    #[inline]
    pub fn offset(self) -> usize {
        (self.0 % PAGE_SIZE) as usize
    }
}

impl Gfn {
    /// First address of the frame.
    #[inline]
    pub fn base(self) -> GuestPhys {
        GuestPhys(self.0 << PAGE_SHIFT)
    }
}

/// No memory is mapped at a guest-physical address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unbacked;

/// One frame that the guest may write at any time. Offsets are taken modulo the page size and rounded
/// down to the word's alignment, so that no access can leave the frame.
#[derive(Debug, Clone, Copy)]
pub struct Page(Shared);

macro_rules! page_words {
    ($($read:ident $write:ident $shared_read:ident $shared_write:ident $type:ty;)*) => {
        $(
            /// Reads a word.
            #[inline]
            pub fn $read(&self, offset: usize) -> $type {
                self.0.$shared_read(offset & (PAGE - size_of::<$type>())).unwrap_or(0)
            }

            /// Writes a word.
            #[inline]
            pub fn $write(&self, offset: usize, value: $type) {
                // Cannot fail: the offset is inside the page and aligned.
                let _ = self.0.$shared_write(offset & (PAGE - size_of::<$type>()), value);
            }
        )*
    };
}

impl Page {
    /// The frame that `memory` is, or `None` if it is not exactly one page.
    pub fn new(memory: Shared) -> Option<Self> {
        (memory.len() == PAGE).then_some(Self(memory))
    }

    page_words! {
        u8 set_u8 read_u8 write_u8 u8;
        u16 set_u16 read_u16 write_u16 u16;
        u32 set_u32 read_u32 write_u32 u32;
        u64 set_u64 read_u64 write_u64 u64;
    }

    /// Sets bits of a word atomically; the word before.
    #[inline]
    pub fn or_u64(&self, offset: usize, bits: u64) -> u64 {
        self.0.or_u64(offset & (PAGE - 8), bits).unwrap_or(0)
    }

    /// Keeps only `bits` of a word, atomically; the word before.
    #[inline]
    pub fn and_u64(&self, offset: usize, bits: u64) -> u64 {
        self.0.and_u64(offset & (PAGE - 8), bits).unwrap_or(0)
    }

    /// Sets bits of a 32-bit word atomically; the word before.
    #[inline]
    pub fn or_u32(&self, offset: usize, bits: u32) -> u32 {
        self.0.or_u32(offset & (PAGE - 4), bits).unwrap_or(0)
    }

    /// Keeps only `bits` of a 32-bit word, atomically; the word before.
    #[inline]
    pub fn and_u32(&self, offset: usize, bits: u32) -> u32 {
        self.0.and_u32(offset & (PAGE - 4), bits).unwrap_or(0)
    }

    /// Keeps only `bits` of a half-word, atomically; the half-word before.
    #[inline]
    pub fn and_u16(&self, offset: usize, bits: u16) -> u16 {
        self.0.and_u16(offset & (PAGE - 2), bits).unwrap_or(0)
    }

    /// Replaces a word if it is `current`; whether it was.
    #[inline]
    pub fn replace_u32(&self, offset: usize, current: u32, new: u32) -> bool {
        matches!(self.0.compare_exchange_u32(offset & (PAGE - 4), current, new), Ok(Ok(_)))
    }

    /// Copies out of the page, as much as lies in it.
    pub fn read(&self, offset: usize, out: &mut [u8]) {
        let len = out.len().min(PAGE.saturating_sub(offset));
        if let Some(out) = out.get_mut(..len) {
            let _ = self.0.read(offset, out);
        }
    }

    /// Copies into the page, as much as lies in it.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let len = bytes.len().min(PAGE.saturating_sub(offset));
        if let Some(bytes) = bytes.get(..len) {
            let _ = self.0.write(offset, bytes);
        }
    }

    /// Sets all bytes to 0.
    pub fn clear(&self) {
        let _ = self.0.fill(0, PAGE, 0);
    }

    /// The page as memory.
    #[inline]
    pub fn memory(&self) -> &Shared {
        &self.0
    }
}

/// Number of a special frame in the overlay that is mapped nowhere.
const NOWHERE: u64 = u64::MAX;

/// The guest's physical address space as the VMM sees it.
#[derive(Debug)]
pub struct GuestMemory {
    ram: heapless::Vec<(u64, Shared), 4>,
    special: Shared,
    /// Where each special frame is mapped.
    overlay: [u64; SPECIALS],
    /// Pages that the guest gave away.
    reservation: Reservation,
    /// Bit `gfn % 64` is set if there some special frame may hide RAM, or RAM may be absent: most look-ups
    /// end here.
    filter: u64,
}

impl GuestMemory {
    /// Memory made of `ram` (guest-physical address and where the VMM has it) and the special frames.
    pub fn new(ram: &[(GuestPhys, Region)], special: Region) -> Self {
        let mut ranges = heapless::Vec::new();
        for &(gpa, region) in ram {
            // More ranges than init ever lists are left out: they are then no RAM.
            let _ = ranges.push((gpa.0, Shared::from_region(region)));
        }
        let pages = ranges.iter().map(|(_, memory)| (memory.len() / PAGE) as u64).sum();
        Self {
            ram: ranges,
            special: Shared::from_region(special),
            overlay: [NOWHERE; SPECIALS],
            reservation: Reservation::new(pages),
            filter: 0,
        }
    }

    /// The frame that the guest reaches at `gfn`.
    #[inline]
    pub fn page(&self, gfn: Gfn) -> Option<Page> {
        if self.filter & (1 << (gfn.0 % 64)) == 0
            && let Some(page) = self.ram_page(gfn)
        {
            return Some(page);
        }
        match self.special_at(gfn) {
            Some(index) => self.special(index),
            None if self.is_absent(gfn) => None,
            None => self.ram_page(gfn),
        }
    }

    /// This memory for many look-ups of frames that are most likely plain RAM.
    #[inline]
    pub fn lookup(&self) -> Lookup<'_> {
        let none = || (0, Shared::from_region(Region::default()));
        let (start, usual) = self.ram.first().copied().unwrap_or_else(none);
        Lookup { memory: self, start, usual, filter: self.filter }
    }

    /// The aligned word at a guest-physical address, as [`Self::page`] and [`Page::u64`] have it: what a walk
    /// of the guest's page tables does at each level.
    #[inline]
    pub fn word(&self, gpa: GuestPhys) -> Option<u64> {
        if self.filter & (1 << (gpa.gfn().0 % 64)) == 0 {
            for (start, memory) in &self.ram {
                let offset = gpa.0.wrapping_sub(*start);
                if offset < memory.len() as u64 {
                    return memory.read_u64(offset as usize).ok();
                }
            }
        }
        self.page(gpa.gfn()).map(|page| page.u64(gpa.offset()))
    }

    /// The RAM frame at `gfn`, whatever is mapped over it.
    #[inline]
    fn ram_page(&self, gfn: Gfn) -> Option<Page> {
        let gpa = gfn.0.checked_mul(PAGE_SIZE)?;
        for (start, memory) in &self.ram {
            if let Some(offset) = gpa.checked_sub(*start)
                && offset < memory.len() as u64
            {
                return Page::new(memory.part(offset as usize, PAGE).ok()?);
            }
        }
        None
    }

    /// Whether RAM was at `gfn` when the guest started: there is a frame for it, even if it is hidden or absent.
    pub fn is_ram(&self, gfn: Gfn) -> bool {
        self.ram_page(gfn).is_some()
    }

    /// The number of the page at `gfn`, counted through all ranges of RAM.
    fn ram_index(&self, gfn: Gfn) -> Option<u64> {
        let mut before = 0;
        for (start, memory) in &self.ram {
            let pages = (memory.len() / PAGE) as u64;
            match gfn.0.checked_sub(start / PAGE as u64) {
                Some(offset) if offset < pages => return Some(before + offset),
                _ => before += pages,
            }
        }
        None
    }

    /// Whether RAM at `gfn` was given away.
    pub fn is_absent(&self, gfn: Gfn) -> bool {
        self.ram_index(gfn).is_some_and(|index| self.reservation.is_absent(index))
    }

    /// What the guest may have and has.
    pub fn reservation(&self) -> &Reservation {
        &self.reservation
    }

    /// To count pages that are nowhere.
    pub fn reservation_mut(&mut self) -> &mut Reservation {
        &mut self.reservation
    }

    /// Makes the RAM at `gfn` absent. No special frame is there.
    pub fn give_away(&mut self, gfn: Gfn) {
        if let Some(index) = self.ram_index(gfn) {
            self.reservation.take(index, gfn.0);
            self.update_filter();
        }
    }

    /// Puts RAM back at `gfn`, as zeros.
    ///
    /// # Errors
    /// [`Unbacked`] where the guest never had RAM.
    pub fn take_back(&mut self, gfn: Gfn) -> Result<(), Unbacked> {
        let page = self.ram_page(gfn).ok_or(Unbacked)?;
        page.clear();
        if let Some(index) = self.ram_index(gfn) {
            self.reservation.put(index);
            self.update_filter();
        }
        Ok(())
    }

    /// RAM ranges: first address and length.
    pub fn ram(&self) -> impl Iterator<Item = (GuestPhys, u64)> + '_ {
        self.ram.iter().map(|(start, memory)| (GuestPhys(*start), memory.len() as u64))
    }

    /// The words of `count` special frames from number `first` on; none if there are not as many.
    #[inline]
    pub fn special_words(&self, first: usize, count: usize) -> &[AtomicU64] {
        const WORDS: usize = PAGE / 8;
        self.special.words().get(first * WORDS..(first + count) * WORDS).unwrap_or(&[])
    }

    /// Special frame number `index`.
    pub fn special(&self, index: usize) -> Option<Page> {
        Page::new(self.special.part(index.checked_mul(PAGE)?, PAGE).ok()?)
    }

    /// Which special frame is mapped at `gfn`.
    #[inline(never)]
    pub fn special_at(&self, gfn: Gfn) -> Option<usize> {
        if gfn.0 == NOWHERE {
            return None;
        }
        self.overlay.iter().position(|&at| at == gfn.0)
    }

    /// Where special frame `index` is mapped.
    pub fn where_is(&self, index: usize) -> Option<Gfn> {
        self.overlay.get(index).filter(|&&gfn| gfn != NOWHERE).map(|&gfn| Gfn(gfn))
    }

    /// Records that special frame `index` is now mapped at `gfn`, or nowhere.
    pub fn set_overlay(&mut self, index: usize, gfn: Option<Gfn>) {
        if let Some(slot) = self.overlay.get_mut(index) {
            *slot = gfn.map_or(NOWHERE, |gfn| gfn.0);
        }
        self.update_filter();
    }

    fn update_filter(&mut self) {
        let hiding = self.overlay.iter().filter(|&&at| at != NOWHERE && self.is_ram(Gfn(at)));
        self.filter = hiding.fold(self.reservation.filter(), |bits, at| bits | 1 << (at % 64));
    }

    /// The highest frame number at which anything is.
    pub fn last_gfn(&self) -> Gfn {
        let ram = self.ram.iter().map(|(start, memory)| (start + memory.len() as u64) / PAGE as u64);
        let special = self.overlay.iter().filter(|&&at| at != NOWHERE).map(|at| at + 1);
        Gfn(ram.chain(special).max().unwrap_or(1).saturating_sub(1))
    }

    /// Copies out of guest memory.
    ///
    /// # Errors
    /// [`Unbacked`]; part may have been copied.
    pub fn read(&self, gpa: GuestPhys, out: &mut [u8]) -> Result<(), Unbacked> {
        let mut at = gpa.0;
        let mut rest = out;
        while !rest.is_empty() {
            let here = GuestPhys(at);
            let page = self.page(here.gfn()).ok_or(Unbacked)?;
            let len = rest.len().min(PAGE - here.offset());
            let (chunk, tail) = rest.split_at_mut(len);
            page.read(here.offset(), chunk);
            rest = tail;
            at = at.checked_add(len as u64).ok_or(Unbacked)?;
        }
        Ok(())
    }

    /// Copies into guest memory.
    ///
    /// # Errors
    /// [`Unbacked`]; part may have been copied.
    pub fn write(&self, gpa: GuestPhys, bytes: &[u8]) -> Result<(), Unbacked> {
        let mut at = gpa.0;
        let mut rest = bytes;
        while !rest.is_empty() {
            let here = GuestPhys(at);
            let page = self.page(here.gfn()).ok_or(Unbacked)?;
            let len = rest.len().min(PAGE - here.offset());
            let (chunk, tail) = rest.split_at(len);
            page.write(here.offset(), chunk);
            rest = tail;
            at = at.checked_add(len as u64).ok_or(Unbacked)?;
        }
        Ok(())
    }

    /// Copies `bytes` to RAM at `gpa` and zeros behind them, `len` bytes together: large files in one copy per
    /// range. What special frames hide is written, not they.
    ///
    /// # Errors
    /// [`Unbacked`] when not all of it is RAM; part may have been copied.
    pub fn load(&self, gpa: GuestPhys, bytes: &[u8], len: u64) -> Result<(), Unbacked> {
        let (mut at, mut rest, mut left) = (gpa.0, bytes, len.max(bytes.len() as u64));
        while left > 0 {
            let window = self.ram_from(GuestPhys(at), left).ok_or(Unbacked)?;
            let (now, later) = rest.split_at(rest.len().min(window.len()));
            let written = window.write(0, now);
            let zeroed = window.fill(now.len(), window.len() - now.len(), 0);
            written.and(zeroed).map_err(|_| Unbacked)?;
            rest = later;
            left -= window.len() as u64;
            at = at.checked_add(window.len() as u64).ok_or(Unbacked)?;
        }
        Ok(())
    }

    /// What one range has of the `len` bytes of RAM from `gpa` on; at least one byte.
    fn ram_from(&self, gpa: GuestPhys, len: u64) -> Option<Shared> {
        self.ram.iter().find_map(|(start, memory)| {
            let offset = gpa.0.checked_sub(*start).filter(|&offset| offset < memory.len() as u64)?;
            let len = len.min(memory.len() as u64 - offset);
            memory.part(offset as usize, len as usize).ok()
        })
    }
}

/// Guest memory for many look-ups, with what the usual one needs at hand.
#[derive(Debug)]
pub struct Lookup<'a> {
    memory: &'a GuestMemory,
    /// First address of the first range of RAM, where most of it is.
    start: u64,
    usual: Shared,
    filter: u64,
}

impl Lookup<'_> {
    /// The frame that the guest reaches at `gfn`, as [`GuestMemory::page`] has it.
    #[inline]
    pub fn page(&self, gfn: Gfn) -> Option<Page> {
        // Another frame's address is out of the range's bounds; one below it wraps and is so too.
        let offset = (gfn.0 << PAGE_SHIFT).wrapping_sub(self.start);
        if gfn.0 <= u64::MAX >> PAGE_SHIFT
            && self.filter & (1 << (gfn.0 % 64)) == 0
            && let Ok(memory) = self.usual.part(offset as usize, PAGE)
        {
            return Some(Page(memory));
        }
        self.rare(gfn)
    }

    #[cold]
    #[inline(never)]
    fn rare(&self, gfn: Gfn) -> Option<Page> {
        self.memory.page(gfn)
    }
}

#[cfg(test)]
pub mod tests {
    //! Fake guest memory for every module's tests.
    use super::*;
    pub use crate::testing::{fake, leak};

    #[test]
    fn a_special_frame_hides_the_ram_under_it_and_gives_it_back() {
        let mut memory = fake(4);
        memory.write(GuestPhys(0x1000), &[1; 16]).unwrap();
        memory.set_overlay(3, Some(Gfn(1)));
        assert_eq!(memory.page(Gfn(1)).unwrap().u64(0), 0);
        memory.write(GuestPhys(0x1008), &[2; 8]).unwrap();
        memory.set_overlay(3, None);
        assert_eq!(memory.page(Gfn(1)).unwrap().u64(8), 0x0101_0101_0101_0101);
        assert_eq!(memory.special(3).unwrap().u64(8), 0x0202_0202_0202_0202);
    }

    #[test]
    fn a_page_that_was_given_away_is_absent_for_everybody_until_it_comes_back_as_zeros() {
        let (low, high) = (leak(2), leak(70));
        let ram = [(GuestPhys(0x4000), low), (GuestPhys(0x10_0000), high)];
        let mut memory = GuestMemory::new(&ram, leak(SPECIALS));
        let gfn = Gfn(0x100 + 64);
        memory.page(gfn).unwrap().set_u64(0, 7);
        memory.give_away(gfn);
        assert!(memory.page(gfn).is_none() && memory.lookup().page(gfn).is_none());
        assert!(memory.word(gfn.base()).is_none() && memory.is_absent(gfn) && memory.is_ram(gfn));
        assert!(memory.page(Gfn(0x100)).is_some(), "one that the filter takes for it");
        assert!(memory.write(GuestPhys(gfn.base().0 - 4), &[1; 8]).is_err());
        assert_eq!(memory.reservation().current(), 71);
        memory.set_overlay(3, Some(gfn));
        assert!(memory.page(gfn).is_some());
        memory.set_overlay(3, None);
        assert!(memory.page(gfn).is_none());
        assert_eq!(memory.take_back(gfn), Ok(()));
        assert_eq!(memory.page(gfn).unwrap().u64(0), 0);
        assert_eq!((memory.take_back(Gfn(6)), memory.reservation().current()), (Err(Unbacked), 72));
        assert_eq!(memory.last_gfn(), Gfn(0x100 + 69));
    }

    #[test]
    fn special_frames_may_lie_outside_of_ram_and_nothing_else_does() {
        let mut memory = fake(4);
        assert!(memory.page(Gfn(0x10000)).is_none());
        memory.set_overlay(0, Some(Gfn(0x10000)));
        assert!(memory.page(Gfn(0x10000)).is_some());
        memory.page(Gfn(0x10000)).unwrap().set_u64(8, 7);
        assert_eq!(
            (memory.word(GuestPhys(0x1000_0008)), memory.word(GuestPhys(0x1000_1000))),
            (Some(7), None)
        );
        memory.write(GuestPhys(0x3ff8), &[1; 8]).unwrap();
        assert_eq!(memory.word(GuestPhys(0x3ff8)), Some(0x0101_0101_0101_0101));
        assert_eq!((memory.word(GuestPhys(0x4000)), memory.word(GuestPhys(u64::MAX - 7))), (None, None));
        assert_eq!(memory.read(GuestPhys(0x3ffc), &mut [0; 8]), Err(Unbacked));
        assert_eq!(memory.write(GuestPhys(u64::MAX - 2), &[0; 8]), Err(Unbacked));
        assert!(memory.page(Gfn(u64::MAX)).is_none());
        assert!(memory.special(SPECIALS).is_none());
        assert_eq!(memory.load(GuestPhys(0x3000), &[], 0x1001), Err(Unbacked));
    }

    #[test]
    fn files_are_loaded_over_the_border_of_two_ranges() {
        let (low, high) = (leak(2), leak(2));
        let memory = GuestMemory::new(&[(GuestPhys(0), low), (GuestPhys(0x2000), high)], leak(SPECIALS));
        memory.write(GuestPhys(0), &[0xff; 0x4000]).unwrap();
        memory.load(GuestPhys(0x1800), &[7; 0x1000], 0x1800).unwrap();
        let mut bytes = [0; 0x4000];
        memory.read(GuestPhys(0), &mut bytes).unwrap();
        let expected =
            [(0, 0xff), (0x17ff, 0xff), (0x1800, 7), (0x27ff, 7), (0x2800, 0), (0x2fff, 0), (0x3000, 0xff)];
        assert_eq!(expected.map(|(at, _)| (at, bytes[at])), expected);
        assert_eq!(memory.load(GuestPhys(0x3000), &[], u64::MAX), Err(Unbacked));
        assert_eq!(memory.load(GuestPhys(u64::MAX), &[1], 1), Err(Unbacked));
    }

    #[test]
    fn a_lookup_finds_what_a_single_one_finds() {
        let (low, high) = (leak(2), leak(3));
        let mut memory =
            GuestMemory::new(&[(GuestPhys(0x4000), low), (GuestPhys(0x6000), high)], leak(SPECIALS));
        memory.set_overlay(1, Some(Gfn(5)));
        memory.set_overlay(2, Some(Gfn(0x10000)));
        for index in 0..5 {
            memory.page(Gfn(4 + index)).unwrap().set_u64(0, 10 + index);
        }
        memory.special(2).unwrap().set_u64(0, 20);
        let word = |page: Option<Page>| page.map(|page| page.u64(0));
        for gfn in (0..80).chain([0x10000, GFN_END, GFN_END + 4, (1 << 52) + 4, u64::MAX]) {
            assert_eq!(word(memory.lookup().page(Gfn(gfn))), word(memory.page(Gfn(gfn))), "{gfn:#x}");
        }
        assert_eq!(word(memory.lookup().page(Gfn(5))), memory.special(1).map(|page| page.u64(0)));
        let none = GuestMemory::new(&[], leak(SPECIALS));
        assert!(none.lookup().page(Gfn(0)).is_none());
    }
}
