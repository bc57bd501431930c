//! A virtio-blk function as a disk, with as many operations in flight as its queue takes.
//!
//! The data of an operation goes straight between the device and the channel's pool, which is contiguous
//! in physical memory; only the request's header and status are copied.
//! Source: virtio 1.2, 5.2 block device.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use blkback::{Disk, Geometry, Operation, Outcome, Tag};
use proto::blk::Direction;
use proto::boot::DeviceInfo;
use rt::time::Clock;
use virtio_domain::hal::{Buffer, Part};
use virtio_domain::queue::{Queue, QueueError};
use virtio_domain::transport::MsixTransport;
use virtio_domain::{DeviceType, Transport};

/// Descriptors of the queue.
const DESCRIPTORS: usize = 128;
/// Descriptors of one operation: header, data, status.
const PER_OPERATION: usize = 3;
/// Operations in flight.
const OPERATIONS: usize = DESCRIPTORS / PER_OPERATION;
/// Bytes of [`VirtioDisk::headers`] for one operation: header, status, padding.
const HEADER_STRIDE: usize = 64;
const HEADER_LEN: usize = 16;
/// Bytes of a serial number.
const SERIAL_LEN: usize = 20;
/// How long the device may take to tell its serial number.
const SERIAL_TIMEOUT_NS: u64 = 5_000_000_000;

/// Feature bits.
mod feature {
    pub const SIZE_MAX: u64 = 1 << 1;
    pub const READ_ONLY: u64 = 1 << 5;
    pub const BLOCK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
}

/// Offsets in the device's configuration.
mod config {
    pub const CAPACITY_LOW: usize = 0;
    pub const CAPACITY_HIGH: usize = 4;
    pub const SIZE_MAX: usize = 8;
    pub const BLOCK_SIZE: usize = 20;
}

/// Request types.
mod request {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
}

/// Status: done.
const STATUS_OK: u8 = 0;
/// What the status byte is before the device has written it; no device answers this.
const STATUS_NONE: u8 = 0xff;

/// An operation at the device.
#[derive(Debug, Clone, Copy)]
struct InFlight {
    tag: Tag,
    header: usize,
}

/// The disk. The transport comes first: it is dropped first and resets the device.
#[derive(Debug)]
pub struct VirtioDisk {
    transport: MsixTransport,
    queue: Queue<DESCRIPTORS>,
    headers: Buffer,
    free_headers: Vec<usize>,
    /// By the queue's token.
    in_flight: Vec<Option<InFlight>>,
    /// Operations of a device that was reset.
    failed: VecDeque<Tag>,
    is_broken: bool,
    /// Those of all its vectors.
    signals: u64,
    name: String,
    geometry: Geometry,
}

impl VirtioDisk {
    /// Sets the device up.
    ///
    /// # Errors
    /// A sentence for people.
    pub fn new(device: &DeviceInfo, clock: &Clock) -> Result<Self, String> {
        let config = rt::memory::bytes(device.config);
        let mut transport = MsixTransport::new(device, config).map_err(|error| format!("{error}"))?;
        if transport.device_type() != DeviceType::Block {
            return Err(String::from("it is no block device"));
        }
        let wanted = feature::SIZE_MAX | feature::READ_ONLY | feature::BLOCK_SIZE | feature::FLUSH;
        let features = transport.negotiate(wanted).map_err(|error| format!("{error}"))?;
        let queue = Queue::new(&mut transport, 0).map_err(|error| format!("its queue: {error}"))?;
        transport.check_vectors().map_err(|error| format!("{error}"))?;
        let headers = Buffer::allocate(OPERATIONS * HEADER_STRIDE)
            .ok_or_else(|| String::from("its memory for DMA is too small"))?;
        let geometry =
            geometry(&transport, features).map_err(|error| format!("its configuration: {error}"))?;
        transport.finish_init();
        let mut disk = Self {
            transport,
            queue,
            headers,
            free_headers: (0..OPERATIONS).collect(),
            in_flight: alloc::vec![None; DESCRIPTORS],
            failed: VecDeque::new(),
            is_broken: false,
            signals: device.vectors.iter().fold(0, |all, vector| all | vector),
            name: String::new(),
            geometry,
        };
        disk.name = disk.serial(clock)?;
        if disk.name.is_empty() {
            let (bus, slot, function) = (device.address >> 8, device.address >> 3 & 0x1f, device.address & 7);
            disk.name = format!("pci-{bus:02x}:{slot:02x}.{function}");
        }
        Ok(disk)
    }

    /// Asks the device for its serial number, which names the volume; empty where it has none.
    fn serial(&mut self, clock: &Clock) -> Result<String, String> {
        let no_memory = || String::from("its memory for DMA is too small");
        // Nothing else is in flight: the headers' memory holds the answer too.
        let data_at = HEADER_STRIDE;
        let (header, status) = self.prepare(0, request::GET_ID, 0).ok_or_else(no_memory)?;
        let data = self.headers.part(data_at, SERIAL_LEN).ok_or_else(no_memory)?;
        self.queue
            .submit(&[header], &[data, status])
            .map_err(|error| format!("its queue refused a request: {error:?}"))?;
        self.queue.notify(&mut self.transport);
        let end = clock.now_ns().saturating_add(SERIAL_TIMEOUT_NS);
        while self.queue.complete().map_err(|_| String::from("its queue is broken"))?.is_none() {
            if clock.now_ns() > end {
                return Err(String::from("it does not answer"));
            }
            core::hint::spin_loop();
        }
        let mut serial = [0; SERIAL_LEN];
        if self.status(0) != STATUS_OK || !self.headers.read(data_at, &mut serial) {
            return Ok(String::new());
        }
        let len = serial.iter().position(|byte| *byte == 0).unwrap_or(SERIAL_LEN);
        let text = core::str::from_utf8(serial.get(..len).unwrap_or(&[])).unwrap_or("");
        Ok(String::from(text.trim()))
    }

    /// Writes a header: the parts for header and status.
    fn prepare(&mut self, header: usize, kind: u32, sector: u64) -> Option<(Part, Part)> {
        let offset = header.checked_mul(HEADER_STRIDE)?;
        let mut bytes = [0; HEADER_LEN + 1];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[8..HEADER_LEN].copy_from_slice(&sector.to_le_bytes());
        bytes[HEADER_LEN] = STATUS_NONE;
        if !self.headers.write(offset, &bytes) {
            return None;
        }
        Some((self.headers.part(offset, HEADER_LEN)?, self.headers.part(offset + HEADER_LEN, 1)?))
    }

    fn status(&self, header: usize) -> u8 {
        let mut status = [STATUS_NONE];
        self.headers.read(header * HEADER_STRIDE + HEADER_LEN, &mut status);
        status[0]
    }

    fn start(&mut self, tag: Tag, header: usize, operation: Operation) -> Option<()> {
        let token = match operation {
            Operation::Transfer { direction, sector, addr, len } => {
                let data = Part { addr, len };
                match direction {
                    Direction::Read => {
                        let (header, status) = self.prepare(header, request::IN, sector)?;
                        self.queue.submit(&[header], &[data, status])
                    }
                    Direction::Write => {
                        let (header, status) = self.prepare(header, request::OUT, sector)?;
                        self.queue.submit(&[header, data], &[status])
                    }
                }
            }
            Operation::Flush => {
                let (header, status) = self.prepare(header, request::FLUSH, 0)?;
                self.queue.submit(&[header], &[status])
            }
        };
        let slot = self.in_flight.get_mut(usize::from(token.ok()?))?;
        *slot = Some(InFlight { tag, header });
        Some(())
    }

    /// The device names operations that it was not given: stop it, and let all of them fail.
    fn give_up(&mut self) {
        log::error!("volume {}: the device broke the rules of its queue and was stopped", self.name);
        self.transport.reset();
        self.queue.abandon();
        self.is_broken = true;
        for slot in &mut self.in_flight {
            if let Some(in_flight) = slot.take() {
                self.failed.push_back(in_flight.tag);
            }
        }
    }
}

fn geometry(transport: &MsixTransport, features: u64) -> virtio_domain::Result<Geometry> {
    let (low, high) = transport.read_consistent(|| {
        let low = transport.read_config_space::<u32>(config::CAPACITY_LOW)?;
        let high = transport.read_config_space::<u32>(config::CAPACITY_HIGH)?;
        Ok((low, high))
    })?;
    let optional = |bit: u64, offset: usize, default: u32| {
        if features & bit == 0 { Ok(default) } else { transport.read_config_space::<u32>(offset) }
    };
    Ok(Geometry {
        sectors: u64::from(high) << 32 | u64::from(low),
        sector_size: optional(feature::BLOCK_SIZE, config::BLOCK_SIZE, 512)?,
        is_read_only: features & feature::READ_ONLY != 0,
        has_flush: features & feature::FLUSH != 0,
        operation_max: optional(feature::SIZE_MAX, config::SIZE_MAX, u32::MAX)?,
    })
}

impl Disk for VirtioDisk {
    fn name(&self) -> &str {
        &self.name
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn signals(&self) -> u64 {
        self.signals
    }

    fn room(&self) -> usize {
        // A broken device takes everything, to fail it.
        if self.is_broken { 1 } else { self.free_headers.len().min(self.queue.free() / PER_OPERATION) }
    }

    fn submit(&mut self, tag: Tag, operation: Operation) -> Option<Outcome> {
        let header = if self.is_broken { None } else { self.free_headers.pop() };
        let Some(header) = header else { return Some(Outcome::Error) };
        if self.start(tag, header, operation).is_none() {
            self.free_headers.push(header);
            return Some(Outcome::Error);
        }
        None
    }

    fn kick(&mut self) {
        if !self.is_broken {
            self.queue.notify(&mut self.transport);
        }
    }

    fn complete(&mut self) -> Option<(Tag, Outcome)> {
        if !self.is_broken {
            let completion = match self.queue.complete() {
                Ok(None) => return None,
                Ok(Some(completion)) => Ok(completion),
                Err(error) => Err(error),
            };
            let slot = completion.and_then(|completion| {
                let slot = self.in_flight.get_mut(usize::from(completion.token)).and_then(Option::take);
                slot.ok_or(QueueError::Device)
            });
            if let Ok(InFlight { tag, header }) = slot {
                let is_done = self.status(header) == STATUS_OK;
                self.free_headers.push(header);
                return Some((tag, if is_done { Outcome::Ok } else { Outcome::Error }));
            }
            self.give_up();
        }
        self.failed.pop_front().map(|tag| (tag, Outcome::Error))
    }
}
