//! A virtio function over PCI with MSI-X: the crate's `PciTransport` and what it lacks.
//!
//! The crate sets no interrupt vectors, so each queue gets its vector here just before it is enabled;
//! init has set up the MSI-X table and bus mastering. All capabilities are checked before the crate sees
//! them: it translates addresses with no way to refuse.
//! Sources: virtio 1.2, 4.1.4.3 common configuration, 4.1.4.4 notification, 4.1.5.1.2 MSI-X.
#![cfg_attr(test, expect(unsafe_code, reason = "the tests play the device in plain memory"))]

use core::fmt;

use proto::boot::DeviceInfo;
use proto::channel::Region;
use proto::counters;
use rt::memory::{MmioRegion, OutOfBounds};
use virtio_drivers::PhysAddr;
use virtio_drivers::transport::pci::{PciTransport, VirtioPciError, bus::PciRoot};
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::config_space::{Capabilities, Snapshot, Structure, function, structure};
use crate::hal::{self, DomainHal};
use crate::memory::AreaError;

/// Queues whose notification registers are remembered.
const QUEUES: usize = 4;
/// "No vector" in the two vector registers.
const NO_VECTOR: u16 = 0xffff;

/// Feature of every device that is not of the time before virtio 1.
const VERSION_1: u64 = 1 << 32;

/// Offsets in the common configuration.
mod common {
    pub const CONFIG_VECTOR: usize = 16;
    pub const QUEUE_SELECT: usize = 22;
    pub const QUEUE_VECTOR: usize = 26;
    pub const QUEUE_NOTIFY_OFFSET: usize = 30;
    pub const LEN: u32 = 56;
}

/// Why a function cannot be driven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TransportError {
    /// Its capabilities are malformed.
    Capabilities,
    /// It has no MSI-X, or init gave it no vector.
    NoVectors,
    /// A structure of this kind is missing.
    Missing(u8),
    /// A structure lies in a BAR that is not mapped, or outside of it.
    Outside(u8),
    /// Memory could not be registered.
    Memory(AreaError),
    /// The crate refused it.
    Pci(VirtioPciError),
    /// It does not speak virtio 1 with the features that are needed.
    Features,
    /// The device did not take the vector for this queue.
    VectorRefused(u16),
}

impl fmt::Display for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Capabilities => f.write_str("its PCI capabilities are malformed"),
            Self::NoVectors => f.write_str("it has no MSI-X interrupt, and no other kind is supported"),
            Self::Missing(kind) => write!(f, "it lacks the virtio structure {kind}"),
            Self::Outside(kind) => write!(f, "its virtio structure {kind} is not in a mapped BAR"),
            Self::Memory(error) => write!(f, "its memory cannot be used: {error}"),
            Self::Pci(error) => write!(f, "{error}"),
            Self::Features => f.write_str("it does not agree to virtio 1"),
            Self::VectorRefused(queue) => write!(f, "it refused the interrupt vector of queue {queue}"),
        }
    }
}

impl core::error::Error for TransportError {}

impl From<AreaError> for TransportError {
    fn from(error: AreaError) -> Self {
        Self::Memory(error)
    }
}

/// A function with its vectors.
pub struct MsixTransport {
    inner: PciTransport,
    common: MmioRegion,
    notify: MmioRegion,
    notify_multiplier: u32,
    /// Where each queue's notification register is in `notify`.
    notify_offsets: [Option<usize>; QUEUES],
    vectors: u16,
    refused_queue: Option<u16>,
    /// The counter of notifications of this kind of device.
    counter: usize,
}

impl fmt::Debug for MsixTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MsixTransport").field("type", &self.inner.device_type()).finish_non_exhaustive()
    }
}

/// Where a structure is mapped.
fn locate(device: &DeviceInfo, found: &Structure) -> Result<Region, TransportError> {
    let outside = TransportError::Outside(found.kind);
    let bar = device.bars.iter().find(|bar| bar.index == found.bar && bar.addr != 0);
    let bar = bar.ok_or(outside.clone())?;
    let end = u64::from(found.offset) + u64::from(found.len);
    if end > bar.size || found.len == 0 || u32::try_from(end).is_err() {
        return Err(outside);
    }
    let addr = bar.addr.checked_add(u64::from(found.offset)).ok_or(outside)?;
    Ok(Region { addr, len: u64::from(found.len) })
}

/// Checks everything that the crate relies on: returns the common and the notification structure.
fn check(device: &DeviceInfo, found: &Capabilities) -> Result<(Region, Region, u32), TransportError> {
    if !found.has_msix || device.vectors.is_empty() {
        return Err(TransportError::NoVectors);
    }
    for found in &found.structures {
        locate(device, found)?;
    }
    let get = |kind| found.structure(kind).ok_or(TransportError::Missing(kind));
    get(structure::ISR)?;
    let (common, notify) = (get(structure::COMMON)?, get(structure::NOTIFY)?);
    if common.len < common::LEN {
        return Err(TransportError::Outside(structure::COMMON));
    }
    Ok((locate(device, common)?, locate(device, notify)?, notify.notify_multiplier))
}

impl MsixTransport {
    /// Takes a function over: registers its BARs and its DMA memory. `config` is the snapshot that
    /// `device.config` names.
    ///
    /// # Errors
    /// See [`TransportError`].
    pub fn new(device: &DeviceInfo, config: &[u8]) -> Result<Self, TransportError> {
        let snapshot = Snapshot::new(config, &device.bars);
        let found = snapshot.capabilities().map_err(|_| TransportError::Capabilities)?;
        let (common, notify, notify_multiplier) = check(device, &found)?;
        for bar in device.bars.iter().filter(|bar| bar.addr != 0) {
            hal::add_registers(Region { addr: bar.addr, len: bar.size }, bar.phys)?;
        }
        hal::add_dma(device.dma, device.dma_phys)?;
        let inner = PciTransport::new::<DomainHal, _>(&mut PciRoot::new(snapshot), function(device))
            .map_err(TransportError::Pci)?;
        let counter = match inner.device_type() {
            DeviceType::Block => counters::BLK_NOTIFICATIONS,
            _ => counters::NET_NOTIFICATIONS,
        };
        Ok(Self {
            inner,
            common: MmioRegion::from_region(common),
            notify: MmioRegion::from_region(notify),
            notify_multiplier,
            notify_offsets: [None; QUEUES],
            vectors: u16::try_from(device.vectors.len()).unwrap_or(1),
            refused_queue: None,
            counter,
        })
    }

    /// Whether every queue that was set up got its vector; asked before the device goes live.
    ///
    /// # Errors
    /// [`TransportError::VectorRefused`].
    pub fn check_vectors(&self) -> Result<(), TransportError> {
        self.refused_queue.map_or(Ok(()), |queue| Err(TransportError::VectorRefused(queue)))
    }

    /// Resets the device and agrees on features: those of `wanted` that it offers, always with version 1.
    /// Queues are set up next, then [`Transport::finish_init`] is called.
    ///
    /// # Errors
    /// [`TransportError::Features`].
    pub fn negotiate(&mut self, wanted: u64) -> Result<u64, TransportError> {
        self.reset();
        let mut status = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
        self.inner.set_status(status);
        let features = self.inner.read_device_features() & (wanted | VERSION_1);
        self.inner.write_driver_features(features);
        status |= DeviceStatus::FEATURES_OK;
        self.inner.set_status(status);
        let is_agreed = self.inner.get_status().contains(DeviceStatus::FEATURES_OK);
        if features & VERSION_1 == 0 || !is_agreed {
            self.inner.set_status(DeviceStatus::FAILED);
            return Err(TransportError::Features);
        }
        Ok(features)
    }

    /// Stops the device: it forgets its queues and accesses no memory any more.
    pub fn reset(&mut self) {
        self.inner.set_status(DeviceStatus::empty());
        while self.inner.get_status() != DeviceStatus::empty() {
            core::hint::spin_loop();
        }
    }

    /// Queue `n` has vector `n`; the last one serves all that are left.
    fn vector_of(&self, queue: u16) -> u16 {
        queue.min(self.vectors.saturating_sub(1))
    }

    fn set_vector(&mut self, queue: u16) {
        if self.try_set_vector(queue) != Ok(true) {
            self.refused_queue.get_or_insert(queue);
        }
    }

    fn try_set_vector(&mut self, queue: u16) -> Result<bool, OutOfBounds> {
        // Nobody here acts on a change of the configuration, so that has no vector.
        self.common.write_u16(common::CONFIG_VECTOR, NO_VECTOR)?;
        let vector = self.vector_of(queue);
        self.common.write_u16(common::QUEUE_SELECT, queue)?;
        self.common.write_u16(common::QUEUE_VECTOR, vector)?;
        let offset = u32::from(self.common.read_u16(common::QUEUE_NOTIFY_OFFSET)?);
        let offset = offset.checked_mul(self.notify_multiplier);
        if let (Some(slot), Some(offset)) = (self.notify_offsets.get_mut(usize::from(queue)), offset) {
            *slot = Some(offset as usize);
        }
        Ok(self.common.read_u16(common::QUEUE_VECTOR)? == vector)
    }
}

impl Transport for MsixTransport {
    fn device_type(&self) -> DeviceType {
        self.inner.device_type()
    }

    fn read_device_features(&mut self) -> u64 {
        self.inner.read_device_features()
    }

    fn write_driver_features(&mut self, driver_features: u64) {
        self.inner.write_driver_features(driver_features);
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.inner.max_queue_size(queue)
    }

    fn notify(&mut self, queue: u16) {
        rt::counters::inc(self.counter);
        // One write instead of the crate's three accesses, each of which leaves the machine.
        let offset = self.notify_offsets.get(usize::from(queue)).copied().flatten();
        if offset.is_none_or(|offset| self.notify.write_u16(offset, queue).is_err()) {
            self.inner.notify(queue);
        }
    }

    fn get_status(&self) -> DeviceStatus {
        self.inner.get_status()
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.inner.set_status(status);
    }

    fn set_guest_page_size(&mut self, guest_page_size: u32) {
        self.inner.set_guest_page_size(guest_page_size);
    }

    fn requires_legacy_layout(&self) -> bool {
        self.inner.requires_legacy_layout()
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        self.set_vector(queue);
        self.inner.queue_set(queue, size, descriptors, driver_area, device_area);
    }

    fn queue_unset(&mut self, queue: u16) {
        self.inner.queue_unset(queue);
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.inner.queue_used(queue)
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        self.inner.ack_interrupt()
    }

    fn read_config_generation(&self) -> u32 {
        self.inner.read_config_generation()
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> virtio_drivers::Result<T> {
        self.inner.read_config_space(offset)
    }

    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: T,
    ) -> virtio_drivers::Result<()> {
        self.inner.write_config_space(offset, value)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::config_space::tests::{bars, snapshot_bytes};
    use crate::hal::tests::host_memory;
    use crate::hal::{Buffer, Part};
    use crate::queue::{Completion, Queue, QueueError};
    use proto::text::List;

    /// The list of areas is one per process: tests that set up a device take turns.
    pub(crate) static SERIAL: spin::Mutex<()> = spin::Mutex::new(());

    /// A function whose registers are plain memory; physical addresses are the host's.
    fn device(vectors: &[u64]) -> (DeviceInfo, [u8; 256]) {
        let registers = host_memory(0x4000);
        let dma = host_memory(64 * 1024);
        let mut device = DeviceInfo {
            address: 3 << 3,
            config: Region::default(),
            bars: List::default(),
            vectors: List::default(),
            dma,
            dma_phys: dma.addr,
        };
        for bar in bars(registers.addr, registers.addr) {
            device.bars.push(bar).unwrap();
        }
        for vector in vectors {
            device.vectors.push(*vector).unwrap();
        }
        (device, snapshot_bytes(registers.addr, 0x1000))
    }

    fn poke(device: &DeviceInfo, offset: usize, value: u16) {
        // SAFETY: inside the fake registers.
        unsafe { ((device.bars[0].addr + offset as u64) as *mut u16).write_volatile(value) };
    }

    fn peek(device: &DeviceInfo, offset: usize) -> u16 {
        // SAFETY: inside the fake registers.
        unsafe { ((device.bars[0].addr + offset as u64) as *const u16).read_volatile() }
    }

    #[test]
    fn a_queue_gets_its_vector_and_is_notified_by_one_write() {
        let _guard = SERIAL.lock();
        let (device, config) = device(&[1, 2]);
        let mut transport = MsixTransport::new(&device, &config).unwrap();
        poke(&device, 24, 256); // queue size
        poke(&device, common::QUEUE_NOTIFY_OFFSET, 3);
        let mut queue = Queue::<8>::new(&mut transport, 1).unwrap();
        assert_eq!(transport.check_vectors(), Ok(()));
        assert_eq!(peek(&device, common::QUEUE_VECTOR), 1);
        assert_eq!(peek(&device, common::CONFIG_VECTOR), NO_VECTOR);
        let buffer = Buffer::allocate(64).unwrap();
        let part = buffer.part(0, 64).unwrap();
        queue.submit(&[part], &[]).unwrap();
        assert_eq!(peek(&device, 0x3000 + 12), 0);
        queue.notify(&mut transport);
        assert_eq!(peek(&device, 0x3000 + 12), 1);
        // The reset at the end waits for a status of 0, which plain memory gives at once.
    }

    #[test]
    fn chains_come_back_once_and_a_lying_device_is_found_out() {
        let _guard = SERIAL.lock();
        let (device, config) = device(&[1]);
        let mut transport = MsixTransport::new(&device, &config).unwrap();
        poke(&device, 24, 256);
        let mut queue = Queue::<4>::new(&mut transport, 0).unwrap();
        let read_u64 = |offset: u64| {
            // SAFETY: inside the fake registers.
            unsafe { ((device.bars[0].addr + offset) as *const u64).read_volatile() }
        };
        let used = read_u64(48); // queue_device, host address = physical address here
        let answer = |index: u16, id: u32, len: u32| {
            // SAFETY: inside the used ring of the queue: 4 bytes of header, 8 per element.
            unsafe {
                let element = (used + 4 + u64::from(index) * 8) as *mut u32;
                element.write_volatile(id);
                element.add(1).write_volatile(len);
                ((used + 2) as *mut u16).write_volatile(index + 1);
            }
        };
        let buffer = Buffer::allocate(4096).unwrap();
        let part = |offset| buffer.part(offset, 512).unwrap();
        let token = queue.submit(&[part(0)], &[part(512), part(1024)]).unwrap();
        assert_eq!(queue.free(), 1);
        assert_eq!(queue.submit(&[part(0)], &[part(512)]), Err(QueueError::Full));
        assert_eq!(queue.submit(&[], &[]), Err(QueueError::BadChain));
        let heap = Part { addr: config.as_ptr() as u64, len: 16 };
        assert_eq!(queue.submit(&[heap], &[]), Err(QueueError::BadChain));
        assert_eq!(queue.complete(), Ok(None));
        answer(0, u32::from(token), 7);
        assert_eq!(queue.complete(), Ok(Some(Completion { token, written: 7 })));
        assert_eq!((queue.free(), queue.complete()), (4, Ok(None)));
        answer(1, 3, 0);
        assert_eq!(queue.complete(), Err(QueueError::Device));
    }

    #[test]
    fn a_device_without_version_1_is_refused() {
        let _guard = SERIAL.lock();
        let (device, config) = device(&[1]);
        let mut transport = MsixTransport::new(&device, &config).unwrap();
        // Plain memory answers the same word for both halves of the features.
        assert_eq!(transport.negotiate(u64::MAX), Err(TransportError::Features));
        poke(&device, 4, 1);
        assert_eq!(transport.negotiate(0), Ok(VERSION_1));
        assert_eq!(transport.negotiate(1), Ok(VERSION_1 | 1));
    }

    #[test]
    fn a_function_without_vectors_or_with_structures_outside_is_refused() {
        let (mut device, mut config) = device(&[]);
        assert_eq!(MsixTransport::new(&device, &config).err(), Some(TransportError::NoVectors));
        device.vectors.push(1).unwrap();
        config[0x90] = 0;
        assert_eq!(MsixTransport::new(&device, &config).err(), Some(TransportError::NoVectors));
        config[0x90] = 0x11;
        config[0x54 + 8..0x54 + 12].copy_from_slice(&0x3fffu32.to_le_bytes());
        assert_eq!(MsixTransport::new(&device, &config).err(), Some(TransportError::Outside(3)));
        device.bars = List::default();
        assert_eq!(MsixTransport::new(&device, &config).err(), Some(TransportError::Outside(1)));
    }
}
