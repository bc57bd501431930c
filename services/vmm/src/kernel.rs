//! The kernel as the machine sees it: mapping of special frames and RAM, the TSC, the vCPU's state page, CPUID.
#![expect(unsafe_code, reason = "the state page is at an address that init chose")]

use core::ops::Range;

use proto::abi::{Field, Slot, VcpuState, map, rights};
use proto::guest::{FREE_SLOTS, GuestInfo, SPECIAL_FRAMES, VMM_SLOTS};
use vmm::cpuid::Leaf;
use vmm::machine::{MapFailed, Platform};
use vmm::memory::{Gfn, PAGE};

/// A slot for RAM that is taken out of the VM; it is empty between two calls. Before it is one per special frame.
const TAKEN_SLOT: Slot = FREE_SLOTS + SPECIAL_FRAMES as Slot;
/// The slots behind it are for regions of RAM that were put back, each with the whole region.
const REGION_SLOTS: Slot = TAKEN_SLOT + 1;
const REGION_SLOT_COUNT: usize = (VMM_SLOTS - REGION_SLOTS as u64) as usize;
/// Regions that RAM is cut in at most: fewer than slots, because ranges may begin inside of a region.
const REGIONS_MAX: u64 = REGION_SLOT_COUNT as u64 - 8;
/// Pages of a large page.
const LARGE: u64 = 512;
/// Large pages from which single pages are taken: each costs a page table, and special frames need some, too.
const CUT_MAX: usize = 16;

/// What may be done with special frames in the guest.
const SPECIAL_RIGHTS: u64 = rights::READ | rights::WRITE;
const RAM_RIGHTS: u64 = rights::READ | rights::WRITE | rights::EXECUTE;
const RAM_FLAGS: u64 = map::READ | map::WRITE | map::EXECUTE;

/// Access to the kernel's objects of this guest.
#[derive(Debug)]
pub struct Kernel {
    info: &'static GuestInfo,
    /// Bit per special frame whose capability was derived.
    derived: u64,
    /// Regions that have a slot, in the slots' order.
    regions: heapless::Vec<u64, REGION_SLOT_COUNT>,
    region_pages: u64,
    /// Large pages that were cut up.
    cut: heapless::Vec<u64, CUT_MAX>,
}

impl Kernel {
    /// For this guest.
    pub fn new(info: &'static GuestInfo) -> Self {
        let pages: u64 = info.ram.iter().map(|range| range.len / PAGE as u64).sum();
        let region_pages = pages.div_ceil(REGIONS_MAX).max(LARGE).next_power_of_two();
        let (regions, cut) = (heapless::Vec::new(), heapless::Vec::new());
        Self { info, derived: 0, regions, region_pages, cut }
    }
}

impl Kernel {
    /// The slot of the RAM around a frame, and the range's frames.
    fn ram_at(&self, gfn: u64) -> Option<(Slot, Range<u64>)> {
        let frames = |start: u64, len: u64| start / PAGE as u64..(start + len) / PAGE as u64;
        let ranges = self.info.ram.iter().map(|range| (range.slot, frames(range.gpa, range.len)));
        ranges.into_iter().find(|(_, frames)| frames.contains(&gfn))
    }

    /// Whether single pages of a large page may be taken.
    fn may_cut(&mut self, large: u64) -> bool {
        self.cut.contains(&large) || self.cut.push(large).is_ok()
    }

    /// Takes frames that lie in one large page out of the VM. Mapping them over themselves gives them a capability
    /// of their own in the VM's tables, whose unmapping then leaves a hole.
    fn take_out(&self, frames: &Range<u64>) -> Result<(), proto::abi::Error> {
        let Some((source, bounds)) = self.ram_at(frames.start) else { return Ok(()) };
        let (offset, count) = (frames.start - bounds.start, frames.end - frames.start);
        rt::sys::cap_derive(source, 0, TAKEN_SLOT, offset, count, RAM_RIGHTS)?;
        let mapped = rt::sys::cap_map(TAKEN_SLOT, self.info.vm, frames.start * PAGE as u64, RAM_FLAGS);
        let taken = mapped.and_then(|()| rt::sys::cap_unmap(TAKEN_SLOT));
        rt::sys::cap_delete(0, TAKEN_SLOT)?;
        taken
    }
}

impl Platform for Kernel {
    #[inline]
    fn tsc(&self) -> u64 {
        rt::time::tsc()
    }

    fn cpu_time(&self) -> u64 {
        // Slot 0 is the calling thread, whose time may always be read.
        rt::sys::cap_read(0, Field::CpuTime).unwrap_or(0)
    }

    fn map_special(&mut self, index: usize, gfn: Gfn) -> Result<(), MapFailed> {
        let slot = FREE_SLOTS + index as Slot;
        let failed = |error| {
            log::error!("special frame {index} at {:#x}: {error:?}", gfn.0);
            MapFailed
        };
        if self.derived & 1 << index == 0 {
            rt::sys::cap_derive(self.info.special_slot, 0, slot, index as u64, 1, SPECIAL_RIGHTS)
                .map_err(failed)?;
            self.derived |= 1 << index;
        }
        rt::sys::cap_map(slot, self.info.vm, gfn.base().0, map::READ | map::WRITE).map_err(failed)
    }

    fn unmap_special(&mut self, index: usize) -> Result<(), MapFailed> {
        rt::sys::cap_unmap(FREE_SLOTS + index as Slot).map_err(|_| MapFailed)
    }

    fn unmap_ram(&mut self, gfn: Gfn, count: u64) {
        let (mut first, end) = (gfn.0, gfn.0 + count);
        while first < end {
            let next = (first / LARGE + 1) * LARGE;
            let part = first..next.min(end);
            if part.end - part.start == LARGE || self.may_cut(first / LARGE) {
                // What cannot be taken out stays the guest's own memory: no harm but to itself.
                let _ = self.take_out(&part);
            }
            first = part.end;
        }
    }

    fn map_ram(&mut self, gfn: Gfn) -> Result<Range<u64>, MapFailed> {
        let (source, bounds) = self.ram_at(gfn.0).ok_or(MapFailed)?;
        let number = gfn.0 / self.region_pages;
        let region = (number * self.region_pages).max(bounds.start)
            ..((number + 1) * self.region_pages).min(bounds.end);
        let known = self.regions.iter().position(|&start| start == region.start);
        let slot = REGION_SLOTS + known.unwrap_or(self.regions.len()) as Slot;
        match known {
            // Mapped before, perhaps with holes by now.
            Some(_) => rt::sys::cap_unmap(slot).map_err(|_| MapFailed)?,
            None => {
                self.regions.push(region.start).map_err(|_| MapFailed)?;
                let (offset, count) = (region.start - bounds.start, region.end - region.start);
                if rt::sys::cap_derive(source, 0, slot, offset, count, RAM_RIGHTS).is_err() {
                    self.regions.pop();
                    return Err(MapFailed);
                }
            }
        }
        rt::sys::cap_map(slot, self.info.vm, region.start * PAGE as u64, RAM_FLAGS).map_err(|_| MapFailed)?;
        Ok(region)
    }
}

/// A vCPU's state page. The kernel uses it only inside of `vcpu_run`.
#[derive(Debug)]
pub struct StatePage(*mut VcpuState);

impl StatePage {
    /// The page that init mapped at `address`.
    pub fn new(address: u64) -> Self {
        Self(address as *mut VcpuState)
    }

    /// The state, between two runs.
    #[inline]
    pub fn get(&mut self) -> &mut VcpuState {
        // SAFETY: init mapped the vCPU's state frame here for the domain's life. The kernel accesses it only
        // in `vcpu_run`, which nobody calls while this borrow lives; any content is a valid `VcpuState`.
        unsafe { &mut *self.0 }
    }
}

/// The processor's CPUID.
pub fn host_cpuid(leaf: u32, subleaf: u32) -> Leaf {
    let result = core::arch::x86_64::__cpuid_count(leaf, subleaf);
    [result.eax, result.ebx, result.ecx, result.edx]
}
