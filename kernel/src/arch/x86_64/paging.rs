//! The kernel's own address space: the direct map of RAM, the image, the interrupt controllers.
//!
//! W^X: the direct map is never executable, the image's code never writable. Device memory is not in the
//! direct map. Every domain's table shares the upper half.

use core::sync::atomic::{AtomicU64, Ordering};

use x86_64::structures::paging::PageTableFlags as Flags;

use super::take_frames;
use crate::memory::{DIRECT_BASE, HostPhys, LARGE_PAGE, Pfn};
use crate::page_table::{root_entry, set_root_entry};

/// Where the kernel image is linked.
const KERNEL_BASE: u64 = 0xffff_ffff_8000_0000;
/// Where the local APIC's page is mapped.
pub const LOCAL_APIC: u64 = 0xffff_ffff_c000_0000;
/// Where the I/O APIC's page is mapped.
pub const IO_APIC: u64 = LOCAL_APIC + 0x1000;
/// Physical addresses of the two, the PC's fixed ones.
pub const APIC_PAGES: [HostPhys; 2] = [HostPhys(0xfee0_0000), HostPhys(0xfec0_0000)];

static ROOT: AtomicU64 = AtomicU64::new(0);

/// RAM for the kernel's own use while it starts: a contiguous range, taken from the front.
#[derive(Debug)]
pub struct Ram<'a> {
    next: Pfn,
    end: Pfn,
    regions: &'a [(HostPhys, HostPhys)],
}

impl<'a> Ram<'a> {
    /// The frames from `next` to `end`; `regions` is all RAM, for the direct map.
    pub fn new(next: Pfn, end: Pfn, regions: &'a [(HostPhys, HostPhys)]) -> Self {
        Self { next, end, regions }
    }

    /// Takes zeroed frames.
    pub fn take(&mut self, count: u64) -> Option<Pfn> {
        let first = self.next;
        if first.0 + count > self.end.0 {
            return None;
        }
        self.next = first.offset(count);
        crate::memory::zero(first, count);
        Some(first)
    }

    /// The frame that is taken next.
    pub fn next(&self) -> Pfn {
        self.next
    }
}

const TABLE: u64 = Flags::PRESENT.bits() | Flags::WRITABLE.bits();
const DATA: u64 = TABLE | Flags::NO_EXECUTE.bits() | Flags::ACCESSED.bits() | Flags::DIRTY.bits();

/// The table that an entry points to, made if it is missing.
fn descend(ram: &mut Ram<'_>, table: Pfn, index: u64) -> Pfn {
    let value = root_entry(table, index);
    if value & Flags::PRESENT.bits() != 0 {
        return Pfn::containing(HostPhys(value & 0x000f_ffff_ffff_f000));
    }
    let next = take_frames(ram, 1);
    set_root_entry(table, index, next.phys().0 | TABLE);
    next
}

fn map(ram: &mut Ram<'_>, root: Pfn, virt: u64, phys: HostPhys, flags: u64, is_large: bool) {
    let directory = descend(ram, root, virt >> 39 & 511);
    let directory = descend(ram, directory, virt >> 30 & 511);
    if is_large {
        set_root_entry(directory, virt >> 21 & 511, phys.0 | flags | Flags::HUGE_PAGE.bits());
        return;
    }
    let table = descend(ram, directory, virt >> 21 & 511);
    set_root_entry(table, virt >> 12 & 511, phys.0 | flags);
}

unsafe extern "C" {
    static kernel_text_start: u8;
    static kernel_rodata_start: u8;
    static kernel_data_start: u8;
    static kernel_end: u8;
}

/// End of the kernel image in physical memory.
pub fn image_end() -> HostPhys {
    HostPhys(&raw const kernel_end as u64 - KERNEL_BASE)
}

/// Builds the final tables and switches to them. Until then the boot tables map the first 4 GiB.
pub fn build_kernel_space(ram: &mut Ram<'_>) {
    let root = take_frames(ram, 1);
    for &(start, end) in ram.regions {
        let mut at = start.0 / LARGE_PAGE * LARGE_PAGE;
        while at < end.0 {
            map(ram, root, DIRECT_BASE + at, HostPhys(at), DATA, true);
            at += LARGE_PAGE;
        }
    }
    let sections = [
        (&raw const kernel_text_start as u64, &raw const kernel_rodata_start as u64, Flags::PRESENT.bits()),
        (
            &raw const kernel_rodata_start as u64,
            &raw const kernel_data_start as u64,
            Flags::PRESENT.bits() | Flags::NO_EXECUTE.bits(),
        ),
        (&raw const kernel_data_start as u64, &raw const kernel_end as u64, DATA),
    ];
    for (start, end, flags) in sections {
        for at in (start..end).step_by(4096) {
            map(ram, root, at, HostPhys(at - KERNEL_BASE), flags | Flags::ACCESSED.bits(), false);
        }
    }
    let device = DATA | Flags::NO_CACHE.bits() | Flags::WRITE_THROUGH.bits();
    for (virt, phys) in [LOCAL_APIC, IO_APIC].into_iter().zip(APIC_PAGES) {
        map(ram, root, virt, phys, device, false);
    }
    ROOT.store(root.0, Ordering::Relaxed);
    // SAFETY: the new tables map the image where it runs, the stack (in the image) and all RAM.
    unsafe { core::arch::asm!("mov cr3, {}", in(reg) root.phys().0, options(nostack)) };
}

/// Enters the kernel's half into a domain's table.
pub fn share_kernel_half(root: Pfn) {
    let kernel = Pfn(ROOT.load(Ordering::Relaxed));
    for index in 256..512 {
        set_root_entry(root, index, root_entry(kernel, index));
    }
}
