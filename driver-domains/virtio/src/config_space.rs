//! Configuration space of a PCI function out of init's read-only snapshot.
//!
//! `virtio-drivers` sizes BARs the usual way, by writing all ones and reading back. Nothing here reaches
//! the device: that write only makes the next read answer from the list of sizes, every other write is
//! ignored. Invariant: no word that is read was ever written by the driver.
//! Sources: PCI Local Bus 3.0, 6.1, 6.2.5.1 and 6.7; virtio 1.2, 4.1.4 virtio structure PCI capabilities.
#![expect(unsafe_code, reason = "`ConfigurationAccess` has an unsafe method; this one does nothing unsafe")]

use heapless::Vec;
use proto::boot::{BarInfo, DeviceInfo};
use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction};

/// Bytes of the snapshot.
pub const SNAPSHOT_LEN: usize = 256;

const WORDS: usize = SNAPSHOT_LEN / 4;
const STATUS_HAS_CAPABILITIES: u32 = 1 << 20;
const FIRST_BAR: u8 = 0x10;
const BARS: usize = 6;
const CAPABILITIES: u8 = 0x34;
/// Capability of vendors, used by virtio.
const ID_VENDOR: u8 = 0x09;
/// Capability of MSI-X.
const ID_MSIX: u8 = 0x11;
/// Capabilities that fit behind the header; a longer chain is a circle.
const CHAIN_MAX: usize = 48;

/// A structure of virtio inside a BAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Structure {
    /// Which one, see [`structure`].
    pub kind: u8,
    /// Number of the BAR.
    pub bar: u8,
    /// First byte in the BAR.
    pub offset: u32,
    /// Bytes.
    pub len: u32,
    /// Notification structure: bytes between the registers of two queues.
    pub notify_multiplier: u32,
}

/// Values of [`Structure::kind`].
pub mod structure {
    /// Common configuration.
    pub const COMMON: u8 = 1;
    /// Notifications.
    pub const NOTIFY: u8 = 2;
    /// Interrupt status.
    pub const ISR: u8 = 3;
    /// The device type's own configuration.
    pub const DEVICE: u8 = 4;
}

/// The capabilities in the snapshot are in no order that a function may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadChain;

/// What the capabilities of a function say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Capabilities {
    /// The first structure of each kind from 1 to 4.
    pub structures: Vec<Structure, 4>,
    /// The function has MSI-X.
    pub has_msix: bool,
}

impl Capabilities {
    /// The structure of a kind.
    pub fn structure(&self, kind: u8) -> Option<&Structure> {
        self.structures.iter().find(|found| found.kind == kind)
    }
}

/// A function's configuration space.
#[derive(Debug, Clone)]
pub struct Snapshot {
    words: [u32; WORDS],
    sizes: [u64; BARS],
    is_sizing: [bool; BARS],
}

/// The function's number as `virtio-drivers` has it.
pub fn function(device: &DeviceInfo) -> DeviceFunction {
    DeviceFunction {
        bus: (device.address >> 8) as u8,
        device: (device.address >> 3 & 0x1f) as u8,
        function: (device.address & 7) as u8,
    }
}

impl Snapshot {
    /// Takes a copy; bytes that `bytes` lacks read as zero.
    pub fn new(bytes: &[u8], bars: &[BarInfo]) -> Self {
        let mut words = [0; WORDS];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = chunk.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte));
        }
        let mut sizes = [0; BARS];
        for bar in bars {
            if let Some(size) = sizes.get_mut(usize::from(bar.index)) {
                *size = bar.size;
            }
        }
        Self { words, sizes, is_sizing: [false; BARS] }
    }

    fn word(&self, offset: u8) -> u32 {
        self.words.get(usize::from(offset / 4)).copied().unwrap_or(0)
    }

    fn byte(&self, offset: u8) -> u8 {
        (self.word(offset) >> (offset % 4 * 8)) as u8
    }

    /// Walks the chain of capabilities.
    ///
    /// # Errors
    /// [`BadChain`] for a chain that points outside or in a circle.
    pub fn capabilities(&self) -> Result<Capabilities, BadChain> {
        let mut found = Capabilities::default();
        if self.word(4) & STATUS_HAS_CAPABILITIES == 0 {
            return Ok(found);
        }
        let mut offset = self.byte(CAPABILITIES) & !3;
        for _ in 0..CHAIN_MAX {
            if offset == 0 {
                return Ok(found);
            }
            if offset < 0x40 {
                return Err(BadChain);
            }
            match self.byte(offset) {
                ID_MSIX => found.has_msix = true,
                ID_VENDOR => self.add_structure(&mut found, offset)?,
                _ => {}
            }
            offset = self.byte(offset + 1) & !3;
        }
        Err(BadChain)
    }

    fn add_structure(&self, found: &mut Capabilities, offset: u8) -> Result<(), BadChain> {
        let (len, kind) = (self.byte(offset + 2), self.byte(offset + 3));
        let shortest = if kind == structure::NOTIFY { 20 } else { 16 };
        if usize::from(offset) + usize::from(len) > SNAPSHOT_LEN {
            return Err(BadChain);
        }
        let is_known = (structure::COMMON..=structure::DEVICE).contains(&kind);
        if !is_known || len < shortest || found.structure(kind).is_some() {
            return Ok(());
        }
        let notify_multiplier = if kind == structure::NOTIFY { self.word(offset + 16) } else { 0 };
        let structure = Structure {
            kind,
            bar: self.byte(offset + 4),
            offset: self.word(offset + 8),
            len: self.word(offset + 12),
            notify_multiplier,
        };
        found.structures.push(structure).map_err(|_| BadChain)
    }

    fn bar_index(offset: u8) -> Option<usize> {
        let index = usize::from(offset.checked_sub(FIRST_BAR)? / 4);
        (index < BARS).then_some(index)
    }

    fn is_upper_half(&self, index: usize) -> bool {
        index > 0 && self.words.get(3 + index).is_some_and(|low| low & 0b111 == 0b100)
    }

    /// What a BAR reads as after all ones were written to it.
    fn size_mask(&self, index: usize) -> u32 {
        let mask = |size: u64| if size == 0 { 0 } else { !(size - 1) };
        let size = |index: usize| self.sizes.get(index).copied().unwrap_or(0);
        if self.is_upper_half(index) {
            (mask(size(index - 1)) >> 32) as u32
        } else {
            let flags = self.words.get(4 + index).map_or(0, |low| low & 0xf);
            if size(index) == 0 { 0 } else { mask(size(index)) as u32 & !0xf | flags }
        }
    }
}

impl ConfigurationAccess for Snapshot {
    fn read_word(&self, _function: DeviceFunction, offset: u8) -> u32 {
        match Self::bar_index(offset) {
            Some(index) if self.is_sizing[index] => self.size_mask(index),
            _ => self.word(offset),
        }
    }

    fn write_word(&mut self, _function: DeviceFunction, offset: u8, data: u32) {
        if let Some(index) = Self::bar_index(offset) {
            self.is_sizing[index] = data == u32::MAX;
        }
    }

    unsafe fn unsafe_clone(&self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use virtio_drivers::transport::pci::bus::PciRoot;

    pub(crate) const FUNCTION: DeviceFunction = DeviceFunction { bus: 0, device: 3, function: 0 };

    /// A virtio-blk function as QEMU makes it: 64-bit BAR 4 of 16 KiB, four structures and MSI-X.
    pub(crate) fn snapshot_bytes(bar: u64, common_len: u32) -> [u8; SNAPSHOT_LEN] {
        let mut bytes = [0; SNAPSHOT_LEN];
        let mut put =
            |offset: usize, value: u32| bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
        put(0, 0x1042 << 16 | 0x1af4);
        put(4, STATUS_HAS_CAPABILITIES | 6);
        put(0x20, bar as u32 | 0xc);
        put(0x24, (bar >> 32) as u32);
        put(0x34, 0x40);
        let mut capability = |at: u32, next: u32, kind: u32, offset: u32, len: u32| {
            let at = at as usize;
            put(at, u32::from(ID_VENDOR) | next << 8 | 20 << 16 | kind << 24);
            put(at + 4, 4);
            put(at + 8, offset);
            put(at + 12, len);
            put(at + 16, 4);
        };
        capability(0x40, 0x54, 1, 0, common_len);
        capability(0x54, 0x68, 3, 0x1000, 0x1000);
        capability(0x68, 0x7c, 4, 0x2000, 0x1000);
        capability(0x7c, 0x90, 2, 0x3000, 0x1000);
        put(0x90, u32::from(ID_MSIX));
        bytes
    }

    pub(crate) fn bars(phys: u64, addr: u64) -> [BarInfo; 1] {
        [BarInfo { index: 4, phys, size: 0x4000, addr }]
    }

    #[test]
    fn bars_are_sized_from_the_list() {
        let phys = 0x38_0000_0000;
        let snapshot = Snapshot::new(&snapshot_bytes(phys, 0x1000), &bars(phys, 0));
        let mut root = PciRoot::new(snapshot);
        let info = root.bar_info(FUNCTION, 4).unwrap().unwrap();
        assert_eq!(info.memory_address_size(), Some((phys, 0x4000)));
        assert_eq!(root.bar_info(FUNCTION, 4).unwrap().unwrap().memory_address_size(), Some((phys, 0x4000)));
        assert!(root.bar_info(FUNCTION, 0).unwrap().is_none());
    }

    #[test]
    fn structures_and_msix_are_found() {
        let found = Snapshot::new(&snapshot_bytes(0x1000, 0x1000), &[]).capabilities().unwrap();
        assert!(found.has_msix);
        assert_eq!(found.structures.len(), 4);
        let notify = found.structure(structure::NOTIFY).unwrap();
        assert_eq!((notify.bar, notify.offset, notify.notify_multiplier), (4, 0x3000, 4));
    }

    #[test]
    fn a_circle_and_a_capability_past_the_end_are_refused() {
        let mut bytes = snapshot_bytes(0x1000, 0x1000);
        bytes[0x91] = 0x40;
        assert_eq!(Snapshot::new(&bytes, &[]).capabilities(), Err(BadChain));
        bytes[0x91] = 0xfc;
        bytes[0xfc] = ID_VENDOR;
        bytes[0xfe] = 16;
        assert_eq!(Snapshot::new(&bytes, &[]).capabilities(), Err(BadChain));
    }

    #[test]
    fn writes_change_nothing_but_the_answer_to_sizing() {
        let phys = 0x1_0000_0000;
        let mut snapshot = Snapshot::new(&snapshot_bytes(phys, 0x1000), &bars(phys, 0));
        snapshot.write_word(FUNCTION, 4, 0);
        assert_eq!(snapshot.read_word(FUNCTION, 4), STATUS_HAS_CAPABILITIES | 6);
        snapshot.write_word(FUNCTION, 0x24, u32::MAX);
        assert_eq!(snapshot.read_word(FUNCTION, 0x24), u32::MAX);
        snapshot.write_word(FUNCTION, 0x24, 5);
        assert_eq!(snapshot.read_word(FUNCTION, 0x24), 1);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_walked_without_a_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let _ = Snapshot::new(&bytes, &[]).capabilities();
        }
    }
}
