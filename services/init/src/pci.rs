//! PCI functions: what is there, what their BARs and their MSI-X capability say.
//!
//! Configuration space stays with init for ever: whoever can write it can move BARs over other memory.
//! It is reached through configuration mechanism 1 (ports 0xcf8, 0xcfc), which every x86 machine has;
//! nothing here needs what only the memory-mapped mechanism reaches (bytes 256 and up), so no ACPI table
//! has to be parsed to find it. Sources: PCI Local Bus 3.0, sections 6.1, 6.2.5 and 6.8.2.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use proto::abi::PAGE_SIZE;

/// Configuration space: `address` is `bus << 8 | device << 3 | function`, `offset` a multiple of 4.
pub trait ConfigSpace {
    /// Reads 32 bits.
    fn read(&mut self, address: u16, offset: u8) -> u32;
    /// Writes 32 bits.
    fn write(&mut self, address: u16, offset: u8, value: u32);
}

/// The address register's value for configuration mechanism 1.
pub const fn mechanism_1(address: u16, offset: u8) -> u32 {
    1 << 31 | (address as u32) << 8 | (offset & 0xfc) as u32
}

const COMMAND: u8 = 0x04;
const HEADER: u8 = 0x0c;
const BARS: u8 = 0x10;
const BUSES: u8 = 0x18;
const CAPABILITIES: u8 = 0x34;
const COMMAND_MEMORY: u32 = 1 << 1;
const COMMAND_MASTER: u32 = 1 << 2;
const COMMAND_NO_INTX: u32 = 1 << 10;
const COMMAND_DECODE: u32 = 3;
const STATUS_CAPABILITIES: u32 = 1 << 20;
const MSIX: u32 = 0x11;
const MSIX_ENABLE: u32 = 1 << 31;
const MSIX_MASKED: u32 = 1 << 30;
/// Bytes of an entry of an MSI-X table.
pub const MSIX_ENTRY: u64 = 16;
/// Most functions that are looked at.
const FUNCTIONS_MAX: usize = 256;

/// A function of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// `bus << 8 | device << 3 | function`.
    pub address: u16,
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
}

/// A memory BAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bar {
    /// Number, 0 to 5.
    pub index: u8,
    /// Physical address.
    pub phys: u64,
    /// Bytes.
    pub size: u64,
}

/// Where a function's MSI-X table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Msix {
    /// Offset of the capability.
    pub capability: u8,
    /// BAR of the table.
    pub bar: u8,
    /// Offset of the table in that BAR.
    pub offset: u64,
    /// Entries.
    pub entries: u16,
}

impl Msix {
    /// The pages of the table, as offsets in its BAR: first byte and end.
    pub fn pages(&self) -> (u64, u64) {
        let end = self.offset + u64::from(self.entries) * MSIX_ENTRY;
        (self.offset - self.offset % PAGE_SIZE, end.next_multiple_of(PAGE_SIZE))
    }
}

/// All functions of all buses that are reachable from bus 0.
pub fn scan(config: &mut impl ConfigSpace) -> Vec<Function> {
    let mut found = Vec::new();
    let mut seen = BTreeSet::from([0u8]);
    let mut buses = Vec::from([0u8]);
    while let Some(bus) = buses.pop() {
        for slot in 0..32u16 {
            let first = u16::from(bus) << 8 | slot << 3;
            if config.read(first, 0) as u16 == 0xffff {
                continue;
            }
            let is_multiple = config.read(first, HEADER) >> 16 & 0x80 != 0;
            for function in 0..if is_multiple { 8 } else { 1 } {
                let address = first | function;
                let id = config.read(address, 0);
                if id as u16 == 0xffff || found.len() == FUNCTIONS_MAX {
                    continue;
                }
                if config.read(address, HEADER) >> 16 & 0x7f == 1 {
                    let secondary = (config.read(address, BUSES) >> 8) as u8;
                    if seen.insert(secondary) {
                        buses.push(secondary);
                    }
                } else {
                    found.push(Function { address, vendor: id as u16, device: (id >> 16) as u16 });
                }
            }
        }
    }
    found
}

/// The memory BARs. Decoding is off while their sizes are found out, so that no half-written address
/// answers.
pub fn bars(config: &mut impl ConfigSpace, address: u16) -> Vec<Bar> {
    let command = config.read(address, COMMAND) & 0xffff;
    config.write(address, COMMAND, command & !COMMAND_DECODE);
    let mut bars = Vec::new();
    let mut index = 0;
    while index < 6 {
        let offset = BARS + 4 * index;
        let low = config.read(address, offset);
        let is_64_bit = low & 7 == 4 && index < 5;
        if low & 1 == 0 {
            let mask_low = size_mask(config, address, offset, low);
            let (phys, mask) = if is_64_bit {
                let high = config.read(address, offset + 4);
                let mask_high = size_mask(config, address, offset + 4, high);
                let mask = u64::from(mask_high) << 32 | u64::from(mask_low & !15);
                (u64::from(high) << 32 | u64::from(low & !15), mask)
            } else {
                (u64::from(low & !15), u64::from(mask_low & !15) | !0xffff_ffff)
            };
            let size = (!mask).wrapping_add(1);
            let is_there = mask_low & !15 != 0 || (is_64_bit && mask != 0);
            if is_there && phys != 0 && size.is_power_of_two() && phys.checked_add(size).is_some() {
                bars.push(Bar { index, phys, size });
            }
        }
        index += if is_64_bit { 2 } else { 1 };
    }
    config.write(address, COMMAND, command);
    bars
}

fn size_mask(config: &mut impl ConfigSpace, address: u16, offset: u8, old: u32) -> u32 {
    config.write(address, offset, u32::MAX);
    let mask = config.read(address, offset);
    config.write(address, offset, old);
    mask
}

/// The MSI-X capability, if there is one.
pub fn msix(config: &mut impl ConfigSpace, address: u16) -> Option<Msix> {
    if config.read(address, COMMAND) & STATUS_CAPABILITIES == 0 {
        return None;
    }
    let mut at = config.read(address, CAPABILITIES) as u8 & 0xfc;
    // 48 capabilities fill the space: a longer list is a loop.
    for _ in 0..48 {
        if at < 0x40 {
            return None;
        }
        let word = config.read(address, at);
        if word & 0xff == MSIX {
            let table = config.read(address, at.checked_add(4)?);
            return Some(Msix {
                capability: at,
                bar: (table & 7) as u8,
                offset: u64::from(table & !7),
                entries: ((word >> 16) & 0x7ff) as u16 + 1,
            });
        }
        at = (word >> 8) as u8 & 0xfc;
    }
    None
}

/// Lets the function answer at its BARs: firmware leaves that off for what it does not use itself.
pub fn decode(config: &mut impl ConfigSpace, address: u16) {
    let command = config.read(address, COMMAND) & 0xffff;
    config.write(address, COMMAND, command | COMMAND_MEMORY);
}

/// Lets the function do DMA, and signal by MSI-X only.
pub fn enable(config: &mut impl ConfigSpace, address: u16, msix: Option<Msix>) {
    let command = config.read(address, COMMAND) & 0xffff;
    config.write(address, COMMAND, command | COMMAND_MASTER | COMMAND_NO_INTX);
    if let Some(msix) = msix {
        let control = config.read(address, msix.capability);
        config.write(address, msix.capability, (control | MSIX_ENABLE) & !MSIX_MASKED);
    }
}

/// A copy of the first 256 bytes.
pub fn copy(config: &mut impl ConfigSpace, address: u16) -> [u8; 256] {
    let mut bytes = [0; 256];
    for (offset, word) in (0..=252).step_by(4).zip(bytes.chunks_exact_mut(4)) {
        word.copy_from_slice(&config.read(address, offset).to_le_bytes());
    }
    bytes
}

/// The parts of a BAR that a driver gets: all of it but the pages of the MSI-X table, as offset and
/// length in bytes. Empty when the BAR is not of whole pages (another function's may be beside it).
pub fn open_parts(bar: &Bar, msix: Option<Msix>) -> Vec<(u64, u64)> {
    if !bar.phys.is_multiple_of(PAGE_SIZE) || !bar.size.is_multiple_of(PAGE_SIZE) {
        return Vec::new();
    }
    let guarded = msix.filter(|msix| msix.bar == bar.index).map(|msix| msix.pages());
    let (start, end) = guarded.unwrap_or((bar.size, bar.size));
    let parts = [(0, start.min(bar.size)), (end.min(bar.size), bar.size)];
    parts.into_iter().filter(|(from, to)| from < to).map(|(from, to)| (from, to - from)).collect()
}

/// Tests, and makers of input that other tests use.
#[cfg(test)]
pub mod tests {
    use super::*;
    use alloc::collections::BTreeMap;

    /// Configuration spaces of functions, with BARs that answer to sizing.
    #[derive(Debug, Default)]
    pub struct FakeConfig {
        /// Registers by function.
        pub functions: BTreeMap<u16, [u32; 64]>,
        /// Size of each BAR register's address space.
        pub sizes: BTreeMap<(u16, u8), u64>,
        /// Functions that decoded memory while a BAR was being sized.
        pub violations: u32,
    }

    impl ConfigSpace for FakeConfig {
        fn read(&mut self, address: u16, offset: u8) -> u32 {
            self.functions.get(&address).map_or(u32::MAX, |space| space[usize::from(offset / 4)])
        }
        fn write(&mut self, address: u16, offset: u8, value: u32) {
            let size = self.sizes.get(&(address, offset)).copied();
            let Some(space) = self.functions.get_mut(&address) else { return };
            let register = &mut space[usize::from(offset / 4)];
            if (0x10..0x28).contains(&offset) {
                let low = *register & 15;
                *register = match size {
                    Some(size) if size <= 1 << 32 => (value & !(size - 1) as u32 & !15) | low,
                    // The high half of a 64-bit BAR.
                    Some(_) => value,
                    None => 0,
                };
                self.violations += u32::from(space[1] & 2 != 0);
            } else if offset == 4 {
                *register = *register & 0xffff_0000 | value & 0xffff;
            } else {
                *register = value;
            }
        }
    }

    /// A virtio function as QEMU has it: a 4 KiB BAR 1 with the MSI-X table, a 16 KiB 64-bit BAR 4.
    pub fn virtio(device: u16) -> ([u32; 64], Vec<(u8, u64)>) {
        let mut space = [0; 64];
        space[0] = u32::from(device) << 16 | 0x1af4;
        space[1] = STATUS_CAPABILITIES | 2;
        space[5] = 0xfebd_1000;
        space[8] = 0xfe00_000c;
        space[9] = 0x8;
        space[13] = 0x98;
        space[0x98 / 4] = 2 << 16 | 0x40 << 8 | MSIX;
        space[0x9c / 4] = 1;
        space[0x40 / 4] = 0x09;
        (space, Vec::from([(0x14, 4096), (0x20, 16384), (0x24, 1 << 33)]))
    }

    /// A bus with one virtio-blk function at 0:3.0 and a virtio-net function behind a bridge.
    pub fn machine() -> FakeConfig {
        let mut config = FakeConfig::default();
        let mut bridge = [0; 64];
        bridge[0] = 0x0001_8086;
        bridge[3] = 1 << 16;
        bridge[6] = 0x0001_0100;
        config.functions.insert(2 << 3, bridge);
        for (address, device) in [(3 << 3, 0x1042), (1 << 8, 0x1041)] {
            let (space, sizes) = virtio(device);
            config.functions.insert(address, space);
            config.sizes.extend(sizes.into_iter().map(|(bar, size)| ((address, bar), size)));
        }
        config
    }

    #[test]
    fn functions_behind_bridges_are_found() {
        let mut config = machine();
        let mut found: Vec<_> = scan(&mut config).iter().map(|f| (f.address, f.device)).collect();
        found.sort_unstable();
        assert_eq!(found, [(3 << 3, 0x1042), (1 << 8, 0x1041)]);
    }

    #[test]
    fn bars_are_sized_with_decoding_off_and_restored() {
        let mut config = machine();
        let before = config.functions.clone();
        let bars = bars(&mut config, 3 << 3);
        let expected = [
            Bar { index: 1, phys: 0xfebd_1000, size: 4096 },
            Bar { index: 4, phys: 0x8_fe00_0000, size: 16384 },
        ];
        assert_eq!(bars, expected);
        assert_eq!((config.functions, config.violations), (before, 0));
    }

    #[test]
    fn msix_is_found_and_a_loop_of_capabilities_ends() {
        let mut config = machine();
        let found = msix(&mut config, 3 << 3).unwrap();
        assert_eq!(found, Msix { capability: 0x98, bar: 1, offset: 0, entries: 3 });
        config.functions.get_mut(&(3 << 3)).unwrap()[1] &= !2;
        decode(&mut config, 3 << 3);
        assert_eq!(config.functions[&(3 << 3)][1] & 0x406, 2);
        enable(&mut config, 3 << 3, Some(found));
        let space = config.functions.get_mut(&(3 << 3)).unwrap();
        assert_eq!((space[1] & 0x406, space[0x98 / 4] >> 30), (0x406, 2));
        space[0x98 / 4] = 0x98 << 8 | 5;
        assert_eq!(msix(&mut config, 3 << 3), None);
    }

    #[test]
    fn the_table_of_vectors_is_never_handed_out() {
        let bar = Bar { index: 1, phys: 0x10_0000, size: 0x8000 };
        let msix = |offset, entries| Some(Msix { capability: 0, bar: 1, offset, entries });
        assert_eq!(open_parts(&bar, None), [(0, 0x8000)]);
        assert_eq!(open_parts(&bar, msix(0x2010, 3)), [(0, 0x2000), (0x3000, 0x5000)]);
        assert_eq!(open_parts(&bar, msix(0x7000, 2048)), [(0, 0x7000)]);
        assert_eq!(open_parts(&Bar { size: 0x1000, ..bar }, msix(0, 3)), []);
        assert_eq!(open_parts(&Bar { phys: 0x10_0100, ..bar }, None), []);
        assert_eq!(open_parts(&Bar { size: 0x100, ..bar }, None), []);
    }
}
