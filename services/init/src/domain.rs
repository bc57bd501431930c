//! A domain as init keeps it: every capability and every frame that it was given, so that all of it can
//! be taken back.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use proto::abi::{PAGE_SIZE, Slot, map, rights};
use proto::boot::{ARENA_BASE, DomainInfo, HEAP_BASE, INFO_BASE, INFO_MAX, STACK_TOP};
use proto::channel::Region;
use proto::counters::COUNTERS_BASE;
use proto::text::Text;

use crate::bundle::{Bundle, File};
use crate::error::{BuildError, Step};
use crate::frames::Run;
use crate::kernel::Kernel;
use crate::loader;
use crate::resources::Resources;
use crate::slots::Slots;
use crate::space::Space;

/// Slot of a domain's own event in its table.
pub const OWN_EVENT: Slot = 1;
/// Signal of a domain's event that its supervise channel sets.
pub const SUPERVISE_SIGNAL: u64 = 1;
/// Signal of its own timer.
pub const TIMER_SIGNAL: u64 = 2;
/// From this many frames on memory is aligned so that large pages map it.
const LARGE: u64 = 512;

/// Addresses of a domain for channels, devices and files. A part that was given back is used again for
/// one of the same size, so that page tables do not grow with the number of channels ever made.
#[derive(Debug)]
pub struct Arena {
    next: u64,
    free: BTreeMap<u64, Vec<u64>>,
}

impl Arena {
    /// Addresses from `base` on.
    pub fn new(base: u64) -> Self {
        Self { next: base, free: BTreeMap::new() }
    }

    /// Takes addresses for `len` bytes (whole pages); an unmapped page follows.
    pub fn take(&mut self, len: u64) -> u64 {
        if let Some(address) = self.free.get_mut(&len).and_then(Vec::pop) {
            return address;
        }
        let align = if len >= LARGE * PAGE_SIZE { LARGE * PAGE_SIZE } else { PAGE_SIZE };
        let address = self.next.next_multiple_of(align);
        self.next = address + len + PAGE_SIZE;
        address
    }

    /// As [`Self::take`] for memory that begins at frame `first` and is never given back: where it is long,
    /// address and frame lie alike within 2 MiB, so that large pages map all but its ends.
    pub fn take_for(&mut self, len: u64, first: u64) -> u64 {
        if len < 2 * LARGE * PAGE_SIZE {
            return self.take(len);
        }
        let address = self.next.next_multiple_of(LARGE * PAGE_SIZE) + first % LARGE * PAGE_SIZE;
        self.next = address + len + PAGE_SIZE;
        address
    }

    /// Gives addresses back.
    pub fn give(&mut self, address: u64, len: u64) {
        self.free.entry(len).or_default().push(address);
    }
}

/// What a domain is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Init.
    Root,
    /// A service: its number in the manifest, and how far it is.
    Service(usize, ServiceState),
    /// A guest's VMM.
    Guest {
        /// Frames of RAM.
        ram: u64,
        /// Virtual CPUs.
        vcpus: u32,
        /// It faulted, and the toolstack was told.
        is_dead: bool,
    },
}

/// How far a service is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceState {
    /// Waits for others.
    Built,
    /// Runs and is not ready yet.
    Started,
    /// Start-up is complete.
    Ready,
    /// It gave up or faulted.
    Dead,
}

/// A domain.
#[derive(Debug)]
pub struct Domain {
    /// Its number.
    pub domid: u32,
    /// Its name.
    pub name: Text<32>,
    /// What it is.
    pub kind: Kind,
    /// Its address space; the slot is its domain capability.
    pub space: Space,
    /// A guest's nested address space.
    pub vm: Option<Space>,
    /// Its event.
    pub event: Slot,
    /// Its thread.
    pub thread: Slot,
    /// Free slots of its table.
    pub table: Slots,
    /// Free addresses.
    pub arena: Arena,
    /// Its channels.
    pub channels: Vec<u32>,
    /// Where init sees its counters; 0: nowhere.
    pub counters: u64,
    signals_taken: u32,
    entry: u64,
    runs: Vec<Run>,
    objects: Vec<(Slot, Run)>,
    caps: Vec<Slot>,
}

impl Domain {
    /// A domain of which nothing is built yet; `slots` is the size of its capability table.
    pub fn new(domid: u32, name: Text<32>, kind: Kind, slots: Slot) -> Self {
        Self {
            domid,
            name,
            kind,
            space: Space::new(0),
            vm: None,
            event: 0,
            thread: 0,
            table: Slots::new(OWN_EVENT + 1, slots),
            arena: Arena::new(ARENA_BASE),
            channels: Vec::new(),
            counters: 0,
            signals_taken: 0,
            entry: 0,
            runs: Vec::new(),
            objects: Vec::new(),
            caps: Vec::new(),
        }
    }

    /// A slot of the domain's own table.
    ///
    /// # Errors
    /// [`BuildError::Slots`].
    pub fn slot(&mut self) -> Result<Slot, BuildError> {
        self.table.take().ok_or(BuildError::Slots("the domain"))
    }

    /// A signal of its event. There are 62 beside the fixed ones; after that they are shared, and the
    /// domain looks at all who share it.
    pub fn take_signal(&mut self) -> u64 {
        let signal = 1 << (2 + self.signals_taken % 62);
        self.signals_taken = self.signals_taken.wrapping_add(1);
        signal
    }

    /// Frames that the domain has, guest RAM included, channels not.
    pub fn frames(&self) -> u64 {
        let tables = self.space.donated.iter().chain(self.vm.iter().flat_map(|vm| &vm.donated));
        let objects = self.objects.iter().map(|(_, run)| run);
        tables.chain(objects).chain(&self.runs).map(|run| run.count).sum()
    }

    /// Makes an object of `count` frames with `create(kernel, frames, dst)`; its capability in init.
    ///
    /// # Errors
    /// No memory, no slot, or the kernel's.
    pub fn object<K: Kernel>(
        &mut self,
        resources: &mut Resources<K>,
        count: u64,
        step: &'static str,
        create: impl FnOnce(&mut K, Slot, Slot) -> Result<(), proto::abi::Error>,
    ) -> Result<Slot, BuildError> {
        let run = resources.take(count, 1)?;
        let dst = match resources.slot() {
            Ok(dst) => dst,
            Err(error) => {
                resources.give(run);
                return Err(error);
            }
        };
        if let Err(error) = create(&mut resources.kernel, run.slot, dst) {
            resources.slots.give(dst);
            resources.give(run);
            return Err(BuildError::Kernel(step, error));
        }
        self.objects.push((dst, run));
        Ok(dst)
    }

    /// Makes event, address space with `slots` capability slots, and thread; the domain's own event is
    /// its first capability.
    ///
    /// # Errors
    /// No memory, no slot, or the kernel's.
    pub fn create<K: Kernel>(
        &mut self,
        resources: &mut Resources<K>,
        slots: u64,
        fault_event: Slot,
    ) -> Result<(), BuildError> {
        self.event = self.object(resources, 1, "make an event", |k, run, dst| k.event_create(run, dst))?;
        let frames = 2 + slots / proto::abi::SLOTS_PER_FRAME;
        let make = |k: &mut K, run, dst| k.domain_create(run, dst, slots);
        self.space.slot = self.object(resources, frames, "make a domain", make)?;
        let domain = self.space.slot;
        let make = |k: &mut K, run, dst| k.thread_create(run, domain, dst, fault_event);
        self.thread = self.object(resources, 1, "make a thread", make)?;
        let own = rights::SIGNAL | rights::WAIT;
        let kernel = &mut resources.kernel;
        kernel.cap_derive(self.event, domain, OWN_EVENT, u64::MAX, 0, own).step("install the event")?;
        self.map_counters(resources)
    }

    /// Gives the domain a page for its counters, which init reads through a mapping of its own.
    fn map_counters<K: Kernel>(&mut self, resources: &mut Resources<K>) -> Result<(), BuildError> {
        let index = self.map_new(resources, 1, COUNTERS_BASE, map::READ | map::WRITE, &[])?;
        let (owned, first) = self.run(index).map_or((0, 0), |run| (run.slot, run.first));
        let view = resources.derive(owned, 0, 1, rights::READ)?;
        self.keep_cap(view);
        self.counters = resources.arena.take(PAGE_SIZE);
        resources.map_own(view, (first, 1), self.counters, map::READ)
    }

    /// Gives the domain zeroed memory of its own with `pieces` in it. The run's place in [`Self::run`].
    ///
    /// # Errors
    /// No memory, or the kernel's.
    pub fn map_new<K: Kernel>(
        &mut self,
        resources: &mut Resources<K>,
        count: u64,
        address: u64,
        flags: u64,
        pieces: &[(u64, &[u8])],
    ) -> Result<usize, BuildError> {
        let align = if count >= LARGE { LARGE } else { 1 };
        let run = resources.take_filled(count, align, pieces)?;
        let range = (run.first, run.count);
        let index = self.keep(run);
        let slot = self.run(index).map_or(0, |run| run.slot);
        resources.map(&mut self.space, slot, range, address, flags)?;
        Ok(index)
    }

    /// Keeps memory until the domain ends.
    pub fn keep(&mut self, run: Run) -> usize {
        self.runs.push(run);
        self.runs.len() - 1
    }

    /// Memory that the domain keeps.
    pub fn run(&self, index: usize) -> Option<&Run> {
        self.runs.get(index)
    }

    /// Keeps a capability of init's table until the domain ends.
    pub fn keep_cap(&mut self, cap: Slot) {
        self.caps.push(cap);
    }

    /// Maps a part of a capability into the domain, by a derived one that init keeps.
    ///
    /// # Errors
    /// No slot, no memory for page tables, or the kernel's.
    pub fn map_shared<K: Kernel>(
        &mut self,
        resources: &mut Resources<K>,
        (src, offset): (Slot, u64),
        range: (u64, u64),
        address: u64,
        flags: u64,
    ) -> Result<(), BuildError> {
        let needed = flags & (map::READ | map::WRITE | map::EXECUTE);
        let cap = resources.derive(src, offset, range.1, needed)?;
        self.keep_cap(cap);
        resources.map(&mut self.space, cap, range, address, flags)
    }

    /// Maps a file of the bundle read-only.
    ///
    /// # Errors
    /// No slot, no memory for page tables, or the kernel's.
    pub fn map_file<K: Kernel>(
        &mut self,
        resources: &mut Resources<K>,
        bundle: &Bundle,
        file: File,
    ) -> Result<Region, BuildError> {
        let len = file.bytes.len() as u64;
        if len == 0 {
            return Ok(Region::default());
        }
        let pages = bundle.pages(file.offset, len);
        let pages =
            pages.ok_or_else(|| BuildError::Request("a file is not in the bundle's frames".into()))?;
        let addr = self.arena.take_for(pages.count * PAGE_SIZE, pages.first);
        let range = (pages.first, pages.count);
        self.map_shared(resources, (pages.slot, pages.offset), range, addr, map::READ)?;
        Ok(Region { addr, len })
    }

    /// Loads a program of the bundle, and gives the domain its stack and heap.
    ///
    /// # Errors
    /// The program breaks a rule, no memory, or the kernel's.
    pub fn load<K: Kernel>(
        &mut self,
        resources: &mut Resources<K>,
        bundle: &Bundle,
        program: &str,
        (stack_kib, heap_kib): (u64, u64),
    ) -> Result<Region, BuildError> {
        let file = bundle.file(program);
        let file = file.ok_or_else(|| BuildError::Request(format!("the bundle has no file {program:?}")))?;
        let plan =
            loader::plan(file.bytes).map_err(|why| BuildError::Request(format!("{program}: {why}")))?;
        self.entry = plan.entry;
        for segment in &plan.segments {
            let shared = if segment.is_mappable() {
                bundle.pages(file.offset + segment.offset - segment.lead, segment.lead + segment.len)
            } else {
                None
            };
            if let Some(pages) = shared {
                let (src, range) = ((pages.slot, pages.offset), (pages.first, pages.count));
                self.map_shared(resources, src, range, segment.address, segment.flags)?;
                continue;
            }
            let end = segment.offset.saturating_add(segment.len) as usize;
            let content = file.bytes.get(segment.offset as usize..end).unwrap_or(&[]);
            self.map_new(
                resources,
                segment.pages,
                segment.address,
                segment.flags,
                &[(segment.lead, content)],
            )?;
        }
        let pages = |kib: u64| (kib * 1024).div_ceil(PAGE_SIZE).max(1);
        let (stack, heap) = (pages(stack_kib), pages(heap_kib));
        let room = (STACK_TOP - COUNTERS_BASE) / PAGE_SIZE;
        if stack > room - 2 || heap > (ARENA_BASE - HEAP_BASE) / PAGE_SIZE {
            return Err(BuildError::Request(format!("{program}: the stack or heap is absurdly large")));
        }
        let read_write = map::READ | map::WRITE;
        self.map_new(resources, stack, STACK_TOP - stack * PAGE_SIZE, read_write, &[])?;
        self.map_new(resources, heap, HEAP_BASE, read_write, &[])?;
        Ok(Region { addr: HEAP_BASE, len: heap * PAGE_SIZE })
    }

    /// Enables ports for the domain.
    ///
    /// # Errors
    /// No slot, or the kernel's.
    pub fn enable_ports<K: Kernel>(
        &mut self,
        resources: &mut Resources<K>,
        (first, count): (u16, u16),
    ) -> Result<(), BuildError> {
        let ports = proto::abi::init_slots::IO_PORTS;
        let cap =
            resources.derive(ports, u64::from(first), u64::from(count), rights::READ | rights::WRITE)?;
        self.keep_cap(cap);
        let flags = map::READ | map::WRITE;
        resources.kernel.cap_map(cap, self.space.slot, 0, flags).step("enable ports")
    }

    /// Binds an interrupt line to a signal of the domain's event; the capability of the line in init.
    ///
    /// # Errors
    /// No slot, or the kernel's.
    pub fn bind_line<K: Kernel>(
        &mut self,
        resources: &mut Resources<K>,
        line: u64,
        signals: u64,
    ) -> Result<Slot, BuildError> {
        let irq = resources.derive(proto::abi::init_slots::IRQS, line, 1, rights::READ | rights::CONTROL)?;
        self.keep_cap(irq);
        let event = resources.derive(self.event, signals, 0, rights::SIGNAL)?;
        self.keep_cap(event);
        resources.kernel.irq_bind(irq, event, 0).step("bind an interrupt")?;
        Ok(irq)
    }

    /// Gives the domain its start information and starts its thread.
    ///
    /// # Errors
    /// No memory, or the kernel's.
    pub fn start<K: Kernel>(
        &mut self,
        resources: &mut Resources<K>,
        info: &DomainInfo,
        (priority, weight): (u8, u16),
    ) -> Result<(), BuildError> {
        let body = postcard::to_allocvec(info)
            .map_err(|_| BuildError::Request("the start information cannot be encoded".into()))?;
        let mut bytes = vec![0; 4];
        bytes.copy_from_slice(&(body.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&body);
        if bytes.len() as u64 > INFO_MAX {
            return Err(BuildError::Request("the start information is too long: use fewer devices".into()));
        }
        let pages = (bytes.len() as u64).div_ceil(PAGE_SIZE);
        self.map_new(resources, pages, INFO_BASE, map::READ, &[(0, &bytes)])?;
        let (kernel, weight) = (&mut resources.kernel, u64::from(weight));
        kernel.thread_schedule(self.thread, u64::from(priority), weight, 0).step("set the priority")?;
        kernel.thread_start(self.thread, self.entry, STACK_TOP, INFO_BASE).step("start the thread")
    }

    /// Ends the domain and takes back all that it had. Its channels have been disconnected.
    pub fn dismantle<K: Kernel>(mut self, resources: &mut Resources<K>) {
        // The last made first: thread and vCPUs before the spaces that they live in.
        while let Some((cap, run)) = self.objects.pop() {
            if let Err(error) = resources.kernel.cap_delete(0, cap) {
                log::error!("{}: an object could not be destroyed: {error:?}", self.name);
                continue;
            }
            resources.slots.give(cap);
            resources.give(run);
        }
        for cap in self.caps {
            resources.delete(cap);
        }
        if self.counters != 0 {
            resources.arena.give(self.counters, PAGE_SIZE);
        }
        let tables = self.space.donated.into_iter().chain(self.vm.into_iter().flat_map(|vm| vm.donated));
        for run in tables {
            resources.give(run);
        }
        for run in self.runs {
            resources.release(run);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_used_again_and_never_adjacent() {
        let mut arena = Arena::new(0x1000);
        let (a, b) = (arena.take(4096), arena.take(8192));
        assert!(a + 4096 < b);
        assert!(arena.take(2 << 20).is_multiple_of(2 << 20));
        arena.give(a, 4096);
        assert_ne!(arena.take(8192), a);
        assert_eq!(arena.take(4096), a);
    }

    #[test]
    fn a_long_file_takes_large_pages_wherever_it_lies_in_memory() {
        let mut arena = Arena::new(0x10_0000_0000);
        let before = arena.take(4096);
        let (first, count) = (0x1_2345, 30 * LARGE);
        let address = arena.take_for(count * PAGE_SIZE, first);
        assert!(address > before && address / PAGE_SIZE % LARGE == first % LARGE);
        assert!(arena.take(4096) > address + count * PAGE_SIZE);
        // A page directory for both, the level above it, and a page table at each end.
        assert_eq!(crate::space::Tables::default().map(address, first, count), 4);
        assert_eq!(arena.take_for(8192, 7) % PAGE_SIZE, 0);
    }

    #[test]
    fn signals_of_supervision_and_timer_are_never_handed_out() {
        let mut domain = Domain::new(1, Text::new(), Kind::Root, 64);
        for _ in 0..200 {
            let signal = domain.take_signal();
            assert!(signal.is_power_of_two() && signal & (SUPERVISE_SIGNAL | TIMER_SIGNAL) == 0);
        }
    }
}
