//! A kernel for tests: it keeps capabilities, mappings and memory, and refuses what the real one refuses.
//! Memory that a domain had is full of `DIRT`; giving it to another one without zeroing it is an error.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

use proto::abi::{Error, Field, NO_FAULT, Slot, SystemField, ThreadState, rights};
use proto::builder::GuestSpec;
use proto::channel::ChannelKind;
use proto::manifest::{DeviceMatch, Manifest, Service, VmmTemplate, Wire};
use proto::text::{List, Text};

use crate::kernel::Kernel;
use crate::space::Tables;

/// What memory holds after somebody used it.
const DIRT: u8 = 0xaa;

/// A table of capabilities: 0 is init's, the others are domains' object numbers.
type Key = (u32, Slot);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Thing {
    Frames { first: u64, count: u64, is_owned: bool, is_device: bool },
    Object(Type, u32),
    Range(Type, u64, u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    Event,
    Domain,
    Thread,
    Vm,
    Vcpu,
    Ports,
    Irq,
    Log,
}

/// Where a run is "mapped" that is the kernel's trace.
const TRACE: u32 = u32::MAX;

#[derive(Debug, Clone)]
struct Cap {
    thing: Thing,
    rights: u64,
    parent: Option<Key>,
    mapped: Option<(u32, u64)>,
    /// Donated to the object with this number, or pinned by it.
    donated: Option<u32>,
}

#[derive(Debug, Default)]
struct FakeSpace {
    tables: Tables,
    frames: u64,
}

/// The kernel.
#[derive(Debug, Default)]
pub struct FakeKernel {
    caps: BTreeMap<Key, Cap>,
    spaces: BTreeMap<u32, FakeSpace>,
    memory: (u64, Vec<u8>),
    next: u32,
    /// State of threads, by object number.
    pub threads: BTreeMap<u32, ThreadState>,
    /// Registers of devices that were written.
    pub registers: Vec<(u64, u32)>,
    /// Interrupt lines that were bound.
    pub lines: Vec<u64>,
    /// Time.
    pub now: u64,
    /// Bytes that were set to zero.
    pub zeroed: u64,
    /// Calls that still succeed; then one fails.
    pub calls_left: Option<u32>,
}

impl FakeKernel {
    /// A kernel that handed out nothing yet.
    pub fn new() -> Self {
        Self {
            spaces: BTreeMap::from([(0, FakeSpace { frames: 64, ..FakeSpace::default() })]),
            next: 1,
            ..Self::default()
        }
    }

    fn put(&mut self, key: Key, thing: Thing, rights: u64, parent: Option<Key>) -> Result<(), Error> {
        if self.caps.contains_key(&key) {
            return Err(Error::SlotInUse);
        }
        self.caps.insert(key, Cap { thing, rights, parent, mapped: None, donated: None });
        Ok(())
    }

    /// Hands out an owned run.
    pub fn give_run(&mut self, slot: Slot, first: u64, count: u64, is_device: bool) {
        let thing = Thing::Frames { first, count, is_owned: true, is_device };
        self.put((0, slot), thing, rights::ALL, None).unwrap();
    }

    /// Lets frames hold content.
    pub fn give_memory(&mut self, first: u64, count: u64) {
        self.memory = (first, vec![DIRT; (count * 4096) as usize]);
    }

    /// Hands out what init begins with.
    pub fn give_init(&mut self) {
        use proto::abi::init_slots as slots;
        for (slot, thing) in [
            (slots::DOMAIN, Thing::Object(Type::Domain, 0)),
            (slots::THREAD, Thing::Object(Type::Thread, 0)),
            (slots::EVENT, Thing::Object(Type::Event, 0)),
            (slots::LOG, Thing::Object(Type::Log, TRACE)),
            (slots::IO_PORTS, Thing::Range(Type::Ports, 0, 65536)),
            (slots::IRQS, Thing::Range(Type::Irq, 0, 184)),
        ] {
            self.put((0, slot), thing, rights::ALL, None).unwrap();
        }
    }

    /// An owned run's first frame and count.
    pub fn run(&self, slot: Slot) -> Option<(u64, u64)> {
        match self.caps.get(&(0, slot))?.thing {
            Thing::Frames { first, count, is_owned: true, .. } => Some((first, count)),
            _ => None,
        }
    }

    /// Object number of a capability of init.
    pub fn object(&self, slot: Slot) -> Option<u32> {
        match self.caps.get(&(0, slot))?.thing {
            Thing::Object(_, number) => Some(number),
            _ => None,
        }
    }

    /// Capabilities of a domain, by object number.
    pub fn table(&self, number: u32) -> Vec<Slot> {
        self.caps.keys().filter(|key| key.0 == number).map(|key| key.1).collect()
    }

    /// Capabilities of init.
    pub fn caps(&self) -> usize {
        self.caps.len()
    }

    /// What is mapped into a space: address, first frame, count, rights.
    pub fn mappings(&self, space: u32) -> Vec<(u64, u64, u64)> {
        let entry = |cap: &Cap| match (cap.mapped, &cap.thing) {
            (Some((own, address)), Thing::Frames { first, count, .. }) if own == space => {
                Some((address, *first, *count))
            }
            _ => None,
        };
        self.caps.values().filter_map(entry).collect()
    }

    fn slice(&mut self, address: u64, len: usize) -> &mut [u8] {
        let is_inside =
            |(at, _, count): &(u64, u64, u64)| address >= *at && address + len as u64 <= at + count * 4096;
        let found = self.mappings(0).into_iter().find(is_inside);
        let (at, first, _) = found.expect("init touched memory that is not mapped");
        let start = ((first - self.memory.0) * 4096 + address - at) as usize;
        &mut self.memory.1[start..start + len]
    }

    /// A domain writes to memory that it has.
    pub fn write_frame(&mut self, frame: u64, offset: usize, bytes: &[u8]) {
        self.page(frame).unwrap()[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    /// The kernel writes a record of its trace, if it has one; the kind is the record's number.
    pub fn record(&mut self) {
        let Some((_, first, count)) = self.mappings(TRACE).pop() else { return };
        let capacity = (count - 1) * 128;
        let written = u64::from_le_bytes(self.page(first).unwrap()[16..24].try_into().unwrap());
        let at = written % capacity;
        let record = &mut self.page(first + 1 + at / 128).unwrap()[(at % 128 * 32) as usize..][..32];
        record[..8].copy_from_slice(&(1000 + written).to_le_bytes());
        record[8..16].copy_from_slice(&(written & 0xffff | 7 << 32).to_le_bytes());
        record[16..].fill(0);
        self.page(first).unwrap()[16..24].copy_from_slice(&(written + 1).to_le_bytes());
    }

    /// Starts the trace.
    fn begin_trace(&mut self, src: Slot) -> Result<(), Error> {
        let (first, count) = match self.cap((0, src))?.thing {
            Thing::Frames { first, count, is_owned: true, is_device: false } => (first, count),
            _ => return Err(Error::BadArgument),
        };
        if !self.mappings(TRACE).is_empty() {
            return Err(Error::Busy);
        }
        self.caps.get_mut(&(0, src)).unwrap().mapped = Some((TRACE, 0));
        let header = self.page(first).unwrap();
        header[..8].copy_from_slice(&proto::abi::trace::MAGIC.to_le_bytes());
        header[8..16].copy_from_slice(&((count - 1) * 128).to_le_bytes());
        header[16..24].fill(0);
        Ok(())
    }

    fn step(&mut self) -> Result<(), Error> {
        match &mut self.calls_left {
            Some(0) => {
                self.calls_left = None;
                Err(Error::NoMemory)
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn cap(&self, key: Key) -> Result<&Cap, Error> {
        self.caps.get(&key).ok_or(Error::BadSlot)
    }

    fn children(&self, key: Key) -> Vec<Key> {
        self.caps.iter().filter(|(_, cap)| cap.parent == Some(key)).map(|(key, _)| *key).collect()
    }

    fn idle(&self, slot: Slot) -> Result<(u64, u64), Error> {
        let cap = self.cap((0, slot))?;
        let Thing::Frames { first, count, is_owned, .. } = cap.thing else { return Err(Error::WrongType) };
        match () {
            () if !is_owned => Err(Error::NotOwned),
            () if cap.donated.is_some() => Err(Error::Busy),
            () if cap.mapped.is_some() => Err(Error::IsMapped),
            () if !self.children((0, slot)).is_empty() => Err(Error::HasChildren),
            () => Ok((first, count)),
        }
    }

    fn make(&mut self, frames: Slot, dst: Slot, count: u64, kind: Type) -> Result<u32, Error> {
        self.step()?;
        if self.idle(frames)?.1 != count {
            return Err(Error::BadArgument);
        }
        let number = self.next;
        self.put((0, dst), Thing::Object(kind, number), rights::ALL, Some((0, frames)))?;
        self.next += 1;
        self.caps.get_mut(&(0, frames)).unwrap().donated = Some(number);
        Ok(number)
    }

    fn number(&self, slot: Slot, kind: Type) -> Result<u32, Error> {
        match self.cap((0, slot))?.thing {
            Thing::Object(own, number) if own == kind => Ok(number),
            _ => Err(Error::WrongType),
        }
    }

    fn space(&self, slot: Slot) -> Result<u32, Error> {
        if slot == 0 {
            return Ok(0);
        }
        self.number(slot, Type::Domain).or_else(|_| self.number(slot, Type::Vm))
    }

    fn soil(&mut self, first: u64, count: u64) {
        for frame in first..first + count {
            if let Some(page) = self.page(frame) {
                page.fill(DIRT);
            }
        }
    }

    fn page(&mut self, frame: u64) -> Option<&mut [u8]> {
        let at = frame.checked_sub(self.memory.0)? as usize * 4096;
        self.memory.1.get_mut(at..at + 4096)
    }

    fn unmap(&mut self, key: Key) {
        let cap = self.caps.get_mut(&key).unwrap();
        let (mapped, thing) = (cap.mapped.take(), cap.thing.clone());
        if let (Some((space, _)), Thing::Frames { first, count, is_device: false, .. }) = (mapped, thing)
            && space != 0
            && space != TRACE
        {
            self.soil(first, count);
        }
    }

    fn delete(&mut self, key: Key) {
        for child in self.children(key) {
            self.delete(child);
        }
        let cap = self.cap(key).unwrap().clone();
        assert!(
            !matches!(cap.thing, Thing::Frames { is_owned: true, .. }),
            "owned memory was deleted: {key:?}"
        );
        if let (Thing::Object(kind, number), Some(parent)) = (&cap.thing, cap.parent)
            && self.cap(parent).is_ok_and(|parent| parent.donated == Some(*number))
        {
            // The object goes: its space with all mappings, its table, and what was donated.
            for (key, other) in self.caps.clone() {
                if other.mapped.is_some_and(|(space, _)| space == *number) {
                    self.unmap(key);
                }
                if other.donated == Some(*number) {
                    self.caps.get_mut(&key).unwrap().donated = None;
                }
            }
            if *kind == Type::Domain {
                for slot in self.table(*number) {
                    if self.cap((*number, slot)).is_ok() {
                        self.delete((*number, slot));
                    }
                }
            }
            self.spaces.remove(number);
            self.threads.remove(number);
        }
        self.unmap(key);
        self.caps.remove(&key);
    }
}

impl Kernel for FakeKernel {
    fn event_create(&mut self, frames: Slot, dst: Slot) -> Result<(), Error> {
        self.make(frames, dst, 1, Type::Event).map(|_| ())
    }

    fn domain_create(&mut self, frames: Slot, dst: Slot, slots: u64) -> Result<(), Error> {
        let number = self.make(frames, dst, 2 + slots / 64, Type::Domain)?;
        self.spaces.insert(number, FakeSpace::default());
        Ok(())
    }

    fn space_donate(&mut self, space: Slot, frames: Slot) -> Result<(), Error> {
        self.step()?;
        let (space, (_, count)) = (self.space(space)?, self.idle(frames)?);
        self.spaces.get_mut(&space).ok_or(Error::BadSlot)?.frames += count;
        self.caps.get_mut(&(0, frames)).unwrap().donated = Some(space);
        Ok(())
    }

    fn thread_create(&mut self, frames: Slot, domain: Slot, dst: Slot, fault: Slot) -> Result<(), Error> {
        self.number(domain, Type::Domain)?;
        self.number(fault, Type::Event)?;
        let number = self.make(frames, dst, 1, Type::Thread)?;
        self.threads.insert(number, ThreadState::Stopped);
        Ok(())
    }

    fn thread_start(&mut self, thread: Slot, entry: u64, stack: u64, argument: u64) -> Result<(), Error> {
        self.step()?;
        assert!(
            entry >= proto::boot::IMAGE_BASE
                && stack.is_multiple_of(16)
                && argument == proto::boot::INFO_BASE
        );
        let number = self.number(thread, Type::Thread)?;
        self.threads.insert(number, ThreadState::Waiting);
        Ok(())
    }

    fn thread_suspend(&mut self, thread: Slot) -> Result<(), Error> {
        let number = self.number(thread, Type::Thread)?;
        self.threads.insert(number, ThreadState::Stopped);
        Ok(())
    }

    fn thread_schedule(&mut self, thread: Slot, priority: u64, _: u64, _: u64) -> Result<(), Error> {
        self.step()?;
        self.number(thread, Type::Thread)?;
        if priority > proto::abi::PRIORITY_MAX { Err(Error::BadArgument) } else { Ok(()) }
    }

    fn cap_read(&mut self, slot: Slot, field: Field) -> Result<u64, Error> {
        let number = self.number(slot, Type::Thread)?;
        Ok(match field {
            Field::ThreadState => self.threads.get(&number).map_or(2, |state| *state as u64),
            Field::FaultVector if self.threads.get(&number) == Some(&ThreadState::Faulted) => 14,
            Field::FaultVector => NO_FAULT,
            Field::CpuTime => 5_000_000,
            field => field as u64,
        })
    }

    fn vm_create(&mut self, frames: Slot, dst: Slot) -> Result<(), Error> {
        let number = self.make(frames, dst, 2, Type::Vm)?;
        self.spaces.insert(number, FakeSpace::default());
        Ok(())
    }

    fn vcpu_create(&mut self, frames: Slot, vm: Slot, state: Slot, dst: Slot) -> Result<(), Error> {
        self.number(vm, Type::Vm)?;
        if self.idle(state)?.1 != 1 {
            return Err(Error::BadArgument);
        }
        self.make(frames, dst, proto::abi::VCPU_FRAMES, Type::Vcpu).map(|_| ())
    }

    fn frames_split(&mut self, frames: Slot, at: u64, dst: Slot) -> Result<(), Error> {
        self.step()?;
        let (first, count) = self.idle(frames)?;
        if at == 0 || at >= count {
            return Err(Error::BadArgument);
        }
        let cap = self.cap((0, frames))?.clone();
        let Thing::Frames { is_device, .. } = cap.thing else { return Err(Error::WrongType) };
        let thing = |first, count| Thing::Frames { first, count, is_owned: true, is_device };
        self.put((0, dst), thing(first + at, count - at), cap.rights, None)?;
        self.caps.get_mut(&(0, frames)).unwrap().thing = thing(first, at);
        Ok(())
    }

    fn frames_merge(&mut self, low: Slot, high: Slot) -> Result<(), Error> {
        let ((first, count), (next, more)) = (self.idle(low)?, self.idle(high)?);
        if first + count != next {
            return Err(Error::BadArgument);
        }
        self.caps.remove(&(0, high));
        let Thing::Frames { count, .. } = &mut self.caps.get_mut(&(0, low)).unwrap().thing else {
            unreachable!()
        };
        *count += more;
        Ok(())
    }

    fn cap_derive(
        &mut self,
        src: Slot,
        domain: Slot,
        dst: Slot,
        offset: u64,
        count: u64,
        rights: u64,
    ) -> Result<(), Error> {
        self.step()?;
        let table = if domain == 0 { 0 } else { self.number(domain, Type::Domain)? };
        let cap = self.cap((0, src))?.clone();
        if cap.rights & rights != rights {
            return Err(Error::NoRight);
        }
        let within = |own: u64| offset < own && count > 0 && count <= own - offset;
        let thing = match cap.thing {
            Thing::Frames { first, count: own, is_device, .. } if cap.donated.is_none() && within(own) => {
                Thing::Frames { first: first + offset, count, is_owned: false, is_device }
            }
            Thing::Frames { .. } => return Err(Error::BadArgument),
            Thing::Range(kind, first, own) if within(own) => Thing::Range(kind, first + offset, count),
            Thing::Range(..) => return Err(Error::BadArgument),
            Thing::Object(Type::Event, _) if offset == 0 => return Err(Error::BadArgument),
            thing @ Thing::Object(..) => thing,
        };
        self.put((table, dst), thing, rights, Some((0, src)))
    }

    fn cap_delete(&mut self, domain: Slot, slot: Slot) -> Result<(), Error> {
        let table = if domain == 0 { 0 } else { self.number(domain, Type::Domain)? };
        self.cap((table, slot))?;
        self.delete((table, slot));
        Ok(())
    }

    fn cap_revoke(&mut self, slot: Slot) -> Result<(), Error> {
        self.cap((0, slot))?;
        for child in self.children((0, slot)) {
            self.delete(child);
        }
        Ok(())
    }

    fn cap_map(&mut self, src: Slot, space: Slot, address: u64, flags: u64) -> Result<(), Error> {
        self.step()?;
        if self.number(space, Type::Log).is_ok() {
            return self.begin_trace(src);
        }
        let number = self.space(space)?;
        let cap = self.cap((0, src))?.clone();
        if cap.mapped.is_some() {
            return Err(Error::IsMapped);
        }
        if cap.rights & flags & 7 != flags & 7 {
            return Err(Error::NoRight);
        }
        if let Thing::Frames { first, count, is_owned, is_device } = cap.thing {
            assert!(flags & 6 != 6 || self.number(space, Type::Vm).is_ok(), "writable and executable");
            let end = address + count * 4096;
            if self.mappings(number).iter().any(|(at, _, len)| address < at + len * 4096 && *at < end) {
                return Err(Error::AddressInUse);
            }
            let space = self.spaces.get_mut(&number).ok_or(Error::Dead)?;
            let tables = space.tables.map(address, first, count);
            space.frames = space.frames.checked_sub(tables).ok_or(Error::NoMemory)?;
            if number != 0 && is_owned && !is_device {
                for frame in first..first + count {
                    let page = self.page(frame).map(|page| page[4095]);
                    assert_ne!(
                        page,
                        Some(DIRT),
                        "frame {frame:#x} is given to a domain as another one left it"
                    );
                }
            }
        }
        self.caps.get_mut(&(0, src)).unwrap().mapped = Some((number, address));
        Ok(())
    }

    fn cap_unmap(&mut self, src: Slot) -> Result<(), Error> {
        if self.cap((0, src))?.mapped.is_none() {
            return Err(Error::NotMapped);
        }
        self.unmap((0, src));
        Ok(())
    }

    fn irq_bind(&mut self, irq: Slot, event: Slot, offset: u64) -> Result<(), Error> {
        self.step()?;
        self.number(event, Type::Event)?;
        let Thing::Range(Type::Irq, first, _) = self.cap((0, irq))?.thing else {
            return Err(Error::WrongType);
        };
        self.lines.push(first + offset);
        Ok(())
    }

    fn system_info(&mut self, field: SystemField) -> Result<u64, Error> {
        Ok(if field == SystemField::FirstMsiVector { 64 } else { 1 })
    }

    fn zero(&mut self, address: u64, len: u64) {
        self.zeroed += len;
        self.slice(address, len as usize).fill(0);
    }

    fn copy(&mut self, address: u64, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.slice(address, bytes.len()).copy_from_slice(bytes);
        }
    }

    fn read(&mut self, address: u64, out: &mut [u8]) {
        out.copy_from_slice(self.slice(address, out.len()));
    }

    fn write_register(&mut self, address: u64, value: u32) {
        assert!(self.mappings(0).iter().any(|(at, _, count)| address >= *at && address < at + count * 4096));
        self.registers.push((address, value));
    }

    fn tsc(&self) -> u64 {
        self.now
    }
}

/// A service without needs.
pub fn service(name: &str) -> Service {
    Service {
        name: Text::truncated(name),
        program: Text::truncated("services/any"),
        priority: 30,
        weight: 256,
        heap_kib: 64,
        stack_kib: 16,
        after: List::new(),
        ports: List::new(),
        lines: List::new(),
        devices: List::new(),
        options: Text::new(),
        file: Text::new(),
        serves: List::new(),
    }
}

/// A list of these.
pub fn list<T: core::fmt::Debug, const N: usize>(values: impl IntoIterator<Item = T>) -> List<T, N> {
    let mut list = List::new();
    values.into_iter().for_each(|value| list.push(value).unwrap());
    list
}

/// The usual services.
pub fn manifest() -> Manifest {
    let device = DeviceMatch { vendor: 0x1af4, devices: list([0x1042]), dma_kib: 64, vectors: 2 };
    let services = [
        Service {
            ports: list([(0x3f8, 8)]),
            lines: list([4]),
            serves: list([ChannelKind::Log, ChannelKind::GuestConsole]),
            ..service("console")
        },
        Service {
            serves: list([ChannelKind::Xenstore]),
            after: list([Text::truncated("console")]),
            ..service("xenstore")
        },
        Service { serves: list([ChannelKind::Blk]), devices: list([device]), ..service("blkback") },
        Service { serves: list([ChannelKind::Net]), ..service("netback") },
        Service {
            after: list(["xenstore", "blkback", "netback"].map(Text::truncated)),
            file: Text::truncated("guests"),
            ..service("toolstack")
        },
    ];
    let wire = |kind, client: &str, server: &str| Wire {
        kind,
        client: Text::truncated(client),
        server: Text::truncated(server),
        target: Text::new(),
        mac: [0; 6],
    };
    Manifest {
        services: list(services),
        channels: list([
            wire(ChannelKind::Operator, "console", "toolstack"),
            wire(ChannelKind::Xenstore, "toolstack", "xenstore"),
            wire(ChannelKind::Builder, "toolstack", "init"),
        ]),
        vmm: VmmTemplate {
            program: Text::truncated("services/any"),
            priority: 10,
            heap_kib: 64,
            decompression_kib: 128,
            stack_kib: 16,
        },
    }
}

/// A guest with this memory.
pub fn spec(name: &str, memory_kib: u64) -> GuestSpec {
    GuestSpec {
        name: Text::truncated(name),
        uuid: [7; 16],
        memory_kib,
        vcpus: 1,
        kernel: Text::truncated("kernel"),
        ramdisk: Text::new(),
        cmdline: Text::truncated("console=hvc0"),
        cpuid: Default::default(),
        disks: List::new(),
        vifs: List::new(),
    }
}
