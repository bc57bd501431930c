//! Starting the machine: memory, the boot CPU, and init with all there is to give.

#![expect(unsafe_code, reason = "the first code that runs; reads the boot loader's memory")]

use core::arch::global_asm;

use proto::abi::{MSI_ADDRESS, ObjectType, PAGE_SHIFT, PAGE_SIZE, Slot, init_slots, map, rights};
use proto::boot::{
    BUNDLE_BASE, HEAP_BASE, INFO_BASE, INIT_HEAP, INIT_MAGIC, INIT_SLOTS, INIT_STACK, InitInfo, RUNS_MAX,
    Run, STACK_TOP, run_kind,
};
use proto::bundle;

use super::info::{BootInfo, Memory, Region, device_runs, parse_multiboot2, parse_pvh};
use crate::arch::{self, Ram};
use crate::cap::{Cap, OWNED};
use crate::cpu;
use crate::memory::{HostPhys, Pfn};
use crate::object::domain::Domain;
use crate::object::event::Event;
use crate::object::irq;
use crate::object::thread::Thread;
use crate::object::{Object, place};
use crate::page_table::leaf_flags;
use crate::syscall::boot_frames;

global_asm!(include_str!("entry.s"), options(att_syntax, raw));

const MULTIBOOT2_MAGIC: u32 = 0x36d7_6289;
/// Frames beside init's own memory that the kernel needs at start: tables, per-CPU pages, objects.
const KERNEL_RESERVE: u64 = 512;
/// Frames for init's page tables to begin with.
const INIT_TABLES: u64 = 256;
/// RAM below this is left alone: firmware data, and where application processors start.
const LOW_MEMORY: u64 = 1 << 20;
/// Priority of init: above every service, so that wiring and supervision are never starved.
const INIT_PRIORITY: u8 = 50;

/// Physical memory through the boot tables.
struct Physical;

impl Memory for Physical {
    fn byte(&self, address: u64) -> u8 {
        // SAFETY: the boot tables map the first 4 GiB; reading has no effect on what boot loaders point to.
        unsafe { (HostPhys(address & 0xffff_ffff).direct() as *const u8).read_volatile() }
    }
}

#[unsafe(no_mangle)]
extern "C" fn kernel_start(magic: u32, info: u32, boot_tsc: u64) -> ! {
    let parsed = if magic == MULTIBOOT2_MAGIC {
        parse_multiboot2(&Physical, info.into())
    } else {
        parse_pvh(&Physical, info.into())
    };
    let Some(info) = parsed else {
        arch::halt(format_args!("started by neither PVH nor multiboot2: boot with one of them"));
    };
    run(&info, boot_tsc)
}

fn run(info: &BootInfo, boot_tsc: u64) -> ! {
    let bundle = info.bundle;
    if bundle.end <= bundle.start || !bundle.start.is_multiple_of(PAGE_SIZE) || bundle.end > 1 << 32 {
        arch::halt(format_args!(
            "no boot bundle below 4 GiB on a page boundary: pass it as the first module"
        ));
    }
    let header = read_header(bundle);
    let bundle_pages = Region { start: bundle.start, end: bundle.end.next_multiple_of(PAGE_SIZE) };
    let image = Region { start: LOW_MEMORY, end: arch::image_end().0 };
    let regions: heapless::Vec<(HostPhys, HostPhys), 64> =
        info.ram.iter().map(|region| (HostPhys(region.start), HostPhys(region.end))).collect();
    let segments: u64 = header.segments.iter().map(|segment| segment.memory_len.div_ceil(PAGE_SIZE)).sum();
    let total: u64 = info.ram.iter().map(|region| (region.end - region.start) >> PAGE_SHIFT).sum();
    let direct_map = regions.last().map_or(0, |last| last.1.0 >> 30) + 8;
    let wanted = KERNEL_RESERVE
        + direct_map
        + segments
        + (INIT_HEAP + INIT_STACK) / PAGE_SIZE
        + Domain::frames(INIT_SLOTS)
        + INIT_TABLES;
    let Some(own) = place_own(info, wanted, &[image, bundle_pages]) else {
        arch::halt(format_args!("{wanted} frames of contiguous RAM below 4 GiB are needed to start"));
    };
    let first = Pfn::containing(HostPhys(own.start));
    let mut ram = Ram::new(first, first.offset(wanted), &regions);
    arch::build_kernel_space(&mut ram);
    arch::init_cpu(&mut ram);
    let kernel_frames = wanted + ((image.end - image.start) >> PAGE_SHIFT);
    super::set_totals(total, kernel_frames);
    let init = Init::create(&mut ram);
    init.map_program(&mut ram, &header, bundle);
    init.map_bundle(bundle_pages);
    let mut start = InitInfo {
        magic: INIT_MAGIC,
        tsc_khz: arch::tsc_khz(),
        boot_tsc,
        rsdp: info.rsdp,
        bundle_len: bundle.end - bundle.start,
        kernel_frames,
        cmdline_len: info.cmdline.len() as u64,
        cmdline: [0; 1024],
        run_count: 0,
        runs: [Run::default(); RUNS_MAX],
    };
    for (to, from) in start.cmdline.iter_mut().zip(&info.cmdline) {
        *to = *from;
    }
    init.give_everything(&mut start, info, &[image, bundle_pages, own], bundle_pages);
    init.start(&mut ram, start, header.init_entry)
}

fn read_header(bundle: Region) -> bundle::Header {
    // SAFETY: the header is plain numbers at the start of the bundle, which the boot tables map.
    let header = unsafe { (HostPhys(bundle.start).direct() as *const bundle::Header).read() };
    let len = bundle.end - bundle.start;
    let is_sane = header.magic == bundle::MAGIC
        && header.version == bundle::VERSION
        && header.segment_count as usize <= bundle::SEGMENTS_MAX
        && header.segments.iter().all(|segment| {
            segment.offset.checked_add(segment.file_len).is_some_and(|end| end <= len)
                && segment.file_len <= segment.memory_len
                && segment.memory_len < 1 << 30
        });
    if !is_sane {
        arch::halt(format_args!("the boot bundle is damaged or of another version: build it again"));
    }
    header
}

/// Where the kernel's own frames go: the end of the first RAM below 4 GiB in which they fit.
fn place_own(info: &BootInfo, frames: u64, taken: &[Region]) -> Option<Region> {
    let len = frames << PAGE_SHIFT;
    for region in &info.ram {
        let mut end = region.end.min(1 << 32);
        loop {
            let start = match end.checked_sub(len) {
                Some(start) if start >= region.start.max(LOW_MEMORY) => start,
                _ => break,
            };
            match taken.iter().find(|other| other.start < end && start < other.end) {
                Some(other) => end = other.start,
                None => return Some(Region { start, end }),
            }
        }
    }
    None
}

struct Init {
    domain: &'static Domain,
}

impl Init {
    fn create(ram: &mut Ram<'_>) -> Self {
        let frames = arch::take_frames(ram, Domain::frames(INIT_SLOTS));
        let Ok(domain) = Domain::create(frames, INIT_SLOTS) else {
            arch::halt(format_args!("init's domain cannot be made"));
        };
        for n in 0..INIT_TABLES {
            domain.space.pool.give(arch::take_frames(ram, 1).offset(0));
            let _ = n;
        }
        Self { domain }
    }

    fn map(&self, address: u64, first: Pfn, count: u64, flags: u64) {
        let tables = self.domain.space.tables();
        let mut done = 0;
        while done < count {
            let at = address + (done << PAGE_SHIFT);
            match tables.map_step(at, first.offset(done), count - done, leaf_flags(flags)) {
                Ok(frames) => done += frames,
                Err(error) => arch::halt(format_args!("init cannot be mapped at {at:#x}: {error:?}")),
            }
        }
    }

    /// Fresh frames at an address.
    fn map_fresh(&self, ram: &mut Ram<'_>, address: u64, len: u64, flags: u64) -> Pfn {
        let count = len.div_ceil(PAGE_SIZE);
        let first = arch::take_frames(ram, count);
        self.map(address, first, count, flags);
        first
    }

    fn map_program(&self, ram: &mut Ram<'_>, header: &bundle::Header, bundle: Region) {
        for segment in header.segments.iter().take(header.segment_count as usize) {
            if segment.memory_len == 0 {
                continue;
            }
            let first = self.map_fresh(ram, segment.addr, segment.memory_len, segment.flags);
            let from = HostPhys(bundle.start + segment.offset).direct() as *const u8;
            // SAFETY: the bundle is RAM in the direct map and the range was checked; the target is fresh.
            unsafe {
                core::ptr::copy_nonoverlapping(from, first.direct() as *mut u8, segment.file_len as usize)
            };
        }
        let flags = map::READ | map::WRITE;
        self.map_fresh(ram, STACK_TOP - INIT_STACK, INIT_STACK, flags);
        self.map_fresh(ram, HEAP_BASE, INIT_HEAP, flags);
    }

    fn map_bundle(&self, bundle: Region) {
        let count = (bundle.end - bundle.start) >> PAGE_SHIFT;
        self.map(BUNDLE_BASE, Pfn::containing(HostPhys(bundle.start)), count, map::READ);
    }

    fn slot(&self, slot: Slot) -> &'static Cap {
        match self.domain.slot(u64::from(slot)) {
            Ok(cap) => cap,
            Err(error) => arch::halt(format_args!("init's table is too small: {error:?}")),
        }
    }

    /// Fills init's table: RAM that nobody uses, the bundle, everything that is not RAM, ports, interrupts.
    fn give_everything(&self, start: &mut InitInfo, info: &BootInfo, taken: &[Region], bundle: Region) {
        let mut give = |region: Region, kind: u64| {
            let index = start.run_count as usize;
            let (first, count) = (region.start >> PAGE_SHIFT, (region.end - region.start) >> PAGE_SHIFT);
            let (Some(run), Ok(frames)) = (start.runs.get_mut(index), u32::try_from(count)) else { return };
            *run = Run { first, count, kind };
            let cap = self.slot(init_slots::FIRST_FRAMES + index as Slot);
            boot_frames(cap, Pfn(first), frames, kind == run_kind::DEVICE);
            start.run_count += 1;
        };
        for region in &info.ram {
            let mut at = region.start.max(LOW_MEMORY);
            while at < region.end {
                match taken
                    .iter()
                    .filter(|other| other.end > at && other.start < region.end)
                    .min_by_key(|o| o.start)
                {
                    Some(other) => {
                        if other.start > at {
                            give(Region { start: at, end: other.start }, run_kind::RAM);
                        }
                        at = other.end;
                    }
                    None => {
                        give(Region { start: at, end: region.end }, run_kind::RAM);
                        at = region.end;
                    }
                }
            }
        }
        give(bundle, run_kind::BUNDLE);
        let high: heapless::Vec<Region, 64> =
            info.ram.iter().copied().filter(|region| region.end > LOW_MEMORY).collect();
        let [local_apic, io_apic] = arch::APIC_PAGES;
        debug_assert!(local_apic.0 == MSI_ADDRESS);
        let limit = 1 << arch::guest_physical_bits().min(44);
        device_runs(&high, &[io_apic.0, local_apic.0], limit, |run| give(run, run_kind::DEVICE));

        let ports = self.slot(init_slots::IO_PORTS);
        ports.fill_root(ObjectType::IoPorts, 0, 1 << 16, rights::ALL);
        self.slot(init_slots::IRQS).fill_root(ObjectType::Irq, 0, irq::LINES as u32, rights::ALL);
        self.slot(init_slots::LOG).fill_root(ObjectType::Log, 0, 0, rights::ALL);
    }

    fn start(self, ram: &mut Ram<'_>, info: InitInfo, entry: u64) -> ! {
        let page = self.map_fresh(ram, INFO_BASE, PAGE_SIZE, map::READ);
        // SAFETY: a fresh frame of the kernel's, mapped read-only for init.
        unsafe { (page.direct() as *mut InitInfo).write(info) };
        let thread = place(arch::take_frames(ram, 1), Thread::new(self.domain));
        let event = place(arch::take_frames(ram, 1), Event::new());
        self.install(init_slots::DOMAIN, self.domain);
        self.install(init_slots::THREAD, thread);
        self.install(init_slots::EVENT, event).aux.set(u64::MAX);
        thread.register(None);
        thread.priority.set(INIT_PRIORITY);
        thread.set_start(entry, STACK_TOP, INFO_BASE);
        cpu::start(thread);
        cpu::reschedule()
    }

    fn install<T: Object>(&self, slot: Slot, object: &'static T) -> &'static Cap {
        let cap = self.slot(slot);
        cap.fill_root(T::KIND, core::ptr::from_ref(object) as u64, 0, rights::ALL);
        cap.set(OWNED);
        object.header().cap.set(Some(cap));
        cap
    }
}
