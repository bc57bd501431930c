//! Which memory a device may use, and who has which part of it.
//!
//! The traits of `virtio-drivers` that allocate and translate have no `self`, so the list of areas is one
//! static behind a lock. It holds the DMA memory of each function (handed out in pages), the pools of
//! channels (translated in place, nothing is copied) and the mapped BARs. Devices are set up one after
//! the other, and each gets its pages from the DMA memory that was added last.
//! Invariant: an address that lies in no area is never given to a device; an area that a device may
//! still access is never removed.

use heapless::Vec;
use proto::abi::PAGE_SIZE;
use proto::channel::Region;

/// Areas that the list holds.
const AREAS: usize = 128;
/// Pages of one function's DMA memory that are managed (4 MiB).
const PAGES_MAX: usize = 1024;

/// Why an area is not taken or not given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AreaError {
    /// The list is full.
    TooMany,
    /// It is empty, misaligned, wraps, or overlaps another one.
    Bad,
    /// There is no such area.
    Unknown,
    /// A device may still access it.
    InUse,
}

impl core::fmt::Display for AreaError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::TooMany => "too many areas of memory",
            Self::Bad => "the area of memory is empty, misaligned or overlaps another one",
            Self::Unknown => "no such area of memory",
            Self::InUse => "a device still uses the area of memory",
        })
    }
}

/// What an area is for.
#[derive(Debug)]
enum Use {
    /// A function's DMA memory; a bit per page that is taken.
    Dma([u64; PAGES_MAX / 64]),
    /// A channel's pool.
    Pool,
    /// A BAR.
    Registers,
}

#[derive(Debug)]
struct Area {
    addr: u64,
    phys: u64,
    len: u64,
    purpose: Use,
    /// Buffers in it that a device has.
    shared: u64,
}

impl Area {
    fn holds(&self, start: u64, addr: u64, len: u64) -> Option<u64> {
        let offset = addr.checked_sub(start)?;
        (len > 0 && offset.checked_add(len)? <= self.len).then_some(offset)
    }
}

/// The list of areas.
#[derive(Debug, Default)]
pub struct Areas {
    list: Vec<Area, AREAS>,
}

/// Pages that were handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pages {
    /// Where they are mapped.
    pub addr: u64,
    /// Where they are for the device.
    pub phys: u64,
}

impl Areas {
    /// An empty list.
    pub const fn new() -> Self {
        Self { list: Vec::new() }
    }

    fn add(&mut self, region: Region, phys: u64, purpose: Use) -> Result<(), AreaError> {
        let Region { addr, len } = region;
        let end = addr.checked_add(len).filter(|_| phys.checked_add(len).is_some());
        // A BAR may be smaller than a page and start inside of one.
        let is_aligned = matches!(purpose, Use::Registers)
            || addr.is_multiple_of(PAGE_SIZE) && phys.is_multiple_of(PAGE_SIZE);
        let Some(end) = end.filter(|_| is_aligned && addr != 0 && phys != 0 && len > 0) else {
            return Err(AreaError::Bad);
        };
        if self.list.iter().any(|other| addr < other.addr + other.len && other.addr < end) {
            return Err(AreaError::Bad);
        }
        self.list.push(Area { addr, phys, len, purpose, shared: 0 }).map_err(|_| AreaError::TooMany)
    }

    /// Adds a function's DMA memory; pages come from here until the next one is added.
    ///
    /// # Errors
    /// See [`AreaError`].
    pub fn add_dma(&mut self, region: Region, phys: u64) -> Result<(), AreaError> {
        self.add(region, phys, Use::Dma([0; PAGES_MAX / 64]))
    }

    /// Adds a channel's pool.
    ///
    /// # Errors
    /// See [`AreaError`].
    pub fn add_pool(&mut self, region: Region, phys: u64) -> Result<(), AreaError> {
        self.add(region, phys, Use::Pool)
    }

    /// Adds a mapped BAR.
    ///
    /// # Errors
    /// See [`AreaError`].
    pub fn add_registers(&mut self, region: Region, phys: u64) -> Result<(), AreaError> {
        self.add(region, phys, Use::Registers)
    }

    /// Forgets the pool at `addr`.
    ///
    /// # Errors
    /// [`AreaError::InUse`] while a device has a buffer in it, [`AreaError::Unknown`] if there is none.
    pub fn remove_pool(&mut self, addr: u64) -> Result<(), AreaError> {
        let is_it = |area: &Area| area.addr == addr && matches!(area.purpose, Use::Pool);
        let index = self.list.iter().position(is_it).ok_or(AreaError::Unknown)?;
        if self.list.get(index).is_some_and(|area| area.shared > 0) {
            return Err(AreaError::InUse);
        }
        // Not `swap_remove`: the order of the DMA areas counts.
        self.list.remove(index);
        Ok(())
    }

    /// Hands out `count` contiguous pages of the DMA memory that was added last.
    pub fn allocate(&mut self, count: usize) -> Option<Pages> {
        let area = self.list.iter_mut().rev().find(|area| matches!(area.purpose, Use::Dma(_)))?;
        let total = usize::try_from(area.len / PAGE_SIZE).unwrap_or(PAGES_MAX).min(PAGES_MAX);
        let Use::Dma(taken) = &mut area.purpose else { return None };
        let is_free =
            |taken: &[u64], page: usize| taken.get(page / 64).is_some_and(|w| w >> (page % 64) & 1 == 0);
        let last = total.checked_sub(count).filter(|_| count > 0)?;
        let first = (0..=last).find(|first| (*first..first + count).all(|page| is_free(taken, page)))?;
        for page in first..first + count {
            if let Some(word) = taken.get_mut(page / 64) {
                *word |= 1 << (page % 64);
            }
        }
        let offset = first as u64 * PAGE_SIZE;
        Some(Pages { addr: area.addr + offset, phys: area.phys + offset })
    }

    /// Takes back pages; `false` when they were not handed out.
    pub fn free(&mut self, addr: u64, count: usize) -> bool {
        let len = count as u64 * PAGE_SIZE;
        for area in &mut self.list {
            let Some(offset) = area.holds(area.addr, addr, len) else { continue };
            let Use::Dma(taken) = &mut area.purpose else { return false };
            let first = usize::try_from(offset / PAGE_SIZE).unwrap_or(PAGES_MAX);
            let mut were_taken = true;
            for page in first..first + count {
                if let Some(word) = taken.get_mut(page / 64) {
                    were_taken &= *word >> (page % 64) & 1 == 1;
                    *word &= !(1 << (page % 64));
                }
            }
            return were_taken;
        }
        false
    }

    /// Whether a device may be given `addr..addr + len`.
    pub fn is_for_devices(&self, addr: u64, len: u64) -> bool {
        self.list
            .iter()
            .any(|area| !matches!(area.purpose, Use::Registers) && area.holds(area.addr, addr, len).is_some())
    }

    /// Physical address of memory that a device gets now.
    pub fn share(&mut self, addr: u64, len: u64) -> Option<u64> {
        self.list.iter_mut().find_map(|area| {
            let offset = area.holds(area.addr, addr, len)?;
            if matches!(area.purpose, Use::Registers) {
                return None;
            }
            area.shared += 1;
            Some(area.phys + offset)
        })
    }

    /// The device has finished with memory that [`Self::share`] gave it.
    pub fn unshare(&mut self, addr: u64, len: u64) {
        let area = self.list.iter_mut().find(|area| area.holds(area.addr, addr, len).is_some());
        if let Some(area) = area {
            area.shared = area.shared.saturating_sub(1);
        }
    }

    /// Where the registers at a physical address are mapped.
    pub fn registers(&self, phys: u64, len: u64) -> Option<u64> {
        self.list.iter().filter(|area| matches!(area.purpose, Use::Registers)).find_map(|area| {
            let offset = area.holds(area.phys, phys, len)?;
            Some(area.addr + offset)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DMA: Region = Region { addr: 0x10_0000, len: 8 * PAGE_SIZE };
    const POOL: Region = Region { addr: 0x20_0000, len: 4 * PAGE_SIZE };

    fn areas() -> Areas {
        let mut areas = Areas::new();
        areas.add_dma(DMA, 0x70_0000).unwrap();
        areas.add_pool(POOL, 0x90_0000).unwrap();
        areas.add_registers(Region { addr: 0x30_0000, len: PAGE_SIZE }, 0xfe00_0000).unwrap();
        areas
    }

    #[test]
    fn pages_are_contiguous_and_run_out() {
        let mut areas = areas();
        assert_eq!(areas.allocate(3), Some(Pages { addr: 0x10_0000, phys: 0x70_0000 }));
        assert_eq!(areas.allocate(5), Some(Pages { addr: 0x10_3000, phys: 0x70_3000 }));
        assert_eq!(areas.allocate(1), None);
        assert!(areas.free(0x10_0000, 3));
        assert!(!areas.free(0x10_0000, 3));
        assert_eq!(areas.allocate(4), None);
        assert_eq!(areas.allocate(2).map(|pages| pages.addr), Some(0x10_0000));
        assert_eq!(areas.allocate(0), None);
    }

    #[test]
    fn each_function_gets_its_own_pages() {
        let mut areas = areas();
        areas.add_dma(Region { addr: 0x40_0000, len: PAGE_SIZE }, 0xa0_0000).unwrap();
        assert_eq!(areas.allocate(1).map(|pages| pages.phys), Some(0xa0_0000));
        assert_eq!(areas.allocate(1), None);
    }

    #[test]
    fn only_registered_memory_is_translated() {
        let mut areas = areas();
        assert_eq!(areas.share(POOL.addr + 512, 1024), Some(0x90_0000 + 512));
        assert_eq!(areas.share(POOL.addr + POOL.len - 512, 513), None);
        assert_eq!(areas.share(0x30_0000, 16), None);
        assert_eq!(areas.share(u64::MAX, 2), None);
        assert!(!areas.is_for_devices(POOL.addr, 0));
        assert_eq!(areas.registers(0xfe00_0010, 16), Some(0x30_0010));
        assert_eq!(areas.registers(0x90_0000, 16), None);
    }

    #[test]
    fn a_pool_in_use_is_not_removed() {
        let mut areas = areas();
        assert!(areas.share(POOL.addr, 512).is_some());
        assert_eq!(areas.remove_pool(POOL.addr), Err(AreaError::InUse));
        areas.unshare(POOL.addr, 512);
        assert_eq!(areas.remove_pool(POOL.addr), Ok(()));
        assert_eq!(areas.remove_pool(POOL.addr), Err(AreaError::Unknown));
        assert_eq!(areas.remove_pool(DMA.addr), Err(AreaError::Unknown));
        assert!(!areas.is_for_devices(POOL.addr, 512));
    }

    #[test]
    fn bad_areas_are_refused() {
        let mut areas = areas();
        let pool = |addr, len| Region { addr, len };
        assert_eq!(areas.add_pool(pool(0x10_1000, PAGE_SIZE), 0x1000), Err(AreaError::Bad));
        assert_eq!(areas.add_pool(pool(0x50_0000, PAGE_SIZE), 0), Err(AreaError::Bad));
        assert_eq!(areas.add_pool(pool(0x50_0800, PAGE_SIZE), 0x1000), Err(AreaError::Bad));
        assert_eq!(areas.add_pool(pool(0x50_0000, 0), 0x1000), Err(AreaError::Bad));
        assert_eq!(areas.add_pool(pool(!0xfff, PAGE_SIZE), 0x1000), Err(AreaError::Bad));
    }

    proptest! {
        #[test]
        fn pages_are_never_handed_out_twice(steps in prop::collection::vec((any::<bool>(), 1usize..5), 1..40)) {
            let mut areas = areas();
            let mut held: alloc::vec::Vec<(u64, usize)> = alloc::vec::Vec::new();
            for (is_allocation, count) in steps {
                if is_allocation {
                    if let Some(pages) = areas.allocate(count) {
                        let end = pages.addr + count as u64 * PAGE_SIZE;
                        for (addr, count) in &held {
                            prop_assert!(end <= *addr || *addr + *count as u64 * PAGE_SIZE <= pages.addr);
                        }
                        prop_assert!(end <= DMA.addr + DMA.len);
                        held.push((pages.addr, count));
                    }
                } else if let Some((addr, count)) = held.pop() {
                    prop_assert!(areas.free(addr, count));
                }
            }
        }
    }
}
