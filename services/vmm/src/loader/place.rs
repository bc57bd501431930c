//! The guest's memory map, and where kernel, RAM disk and start information go in it.
//!
//! Linux reads the start information through boot page tables of the first GiB and writes to it: it lies
//! in RAM below 1 GiB, outside of every segment, behind the kernel if there is room. The RAM disk goes to the
//! highest place below 4 GiB, because Linux takes 32 bits of its address.
//! Source: Xen public/arch-x86/hvm/start_info.h, docs/misc/pvh.pandoc.

use alloc::vec;
use alloc::vec::Vec;

use proto::guest::LOW_RAM_END;

use super::room::Room;
use super::{LoadError, acpi, image::Image};
use crate::memory::{Gfn, GuestMemory, GuestPhys, PAGE};

/// Where the ACPI tables are.
pub const ACPI_BASE: u64 = 0xfc00_0000;
/// Pages set aside for them.
pub const ACPI_PAGES: u64 = 4;
/// The special pages' range, as Xen places it.
pub const SPECIAL_BASE: u64 = 0xfeff_8000;
/// Pages of it.
pub const SPECIAL_PAGES: u64 = 8;
/// Frame of the console ring.
pub const CONSOLE_GFN: Gfn = Gfn(0xfeffc);
/// Frame of the xenstore ring.
pub const XENSTORE_GFN: Gfn = Gfn(0xfeffd);

/// Numbers of the VMM's special frames.
pub mod special {
    /// shared_info.
    pub const SHARED_INFO: usize = 0;
    /// Console ring.
    pub const CONSOLE: usize = 1;
    /// Xenstore ring.
    pub const XENSTORE: usize = 2;
    /// First frame of the ACPI tables.
    pub const ACPI: usize = 4;
    /// First frame of the grant table.
    pub const GRANTS: usize = 8;
}

const RAM: u32 = 1;
const RESERVED: u32 = 2;
const ACPI_DATA: u32 = 3;

/// Below this address old PCs have devices, which Linux expects there.
const FIRST_MIB: u64 = 1 << 20;
/// start_info must lie below this address.
const FIRST_GIB: u64 = 1 << 30;
/// The RAM disk must lie below this address.
const FOUR_GIB: u64 = 1 << 32;
/// hvm_start_info: magic number, version, sizes.
const MAGIC: u32 = 0x336e_c578;
const START_INFO_LEN: usize = 56;
const MODULE_LEN: usize = 32;
const ENTRY_LEN: usize = 24;
/// Longest command line that Linux takes (COMMAND_LINE_SIZE without the NUL).
pub const CMDLINE_MAX: usize = 2047;

/// One range of the guest's memory map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapEntry {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// E820 type.
    pub kind: u32,
}

/// The guest's memory map, in ascending order.
pub fn memory_map(memory: &GuestMemory) -> Vec<MapEntry> {
    let mut map: Vec<MapEntry> =
        memory.ram().map(|(start, len)| MapEntry { start: start.0, len, kind: RAM }).collect();
    map.push(MapEntry { start: ACPI_BASE, len: ACPI_PAGES * PAGE as u64, kind: ACPI_DATA });
    map.push(MapEntry { start: SPECIAL_BASE, len: SPECIAL_PAGES * PAGE as u64, kind: RESERVED });
    map.sort_by_key(|entry| entry.start);
    map
}

/// Where the vCPU starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// PVH entry point.
    pub rip: u64,
    /// Address of hvm_start_info.
    pub start_info: u64,
}

/// Loads the kernel (an ELF file), the RAM disk (or nothing), the command line and the start information.
/// Special frames must not hide RAM yet.
///
/// # Errors
/// What is wrong with the files, or what does not fit.
pub fn load(memory: &GuestMemory, elf: &[u8], ramdisk: &[u8], cmdline: &str) -> Result<Entry, LoadError> {
    if cmdline.len() > CMDLINE_MAX {
        return Err(LoadError::CommandLine(cmdline.len(), CMDLINE_MAX));
    }
    let image = Image::parse(elf)?;
    image.load(memory)?;

    let map = memory_map(memory);
    let mut room = Room::beside(&image, memory);
    let len = StartInfo::new(0, &map, !ramdisk.is_empty(), cmdline.len()).end;
    let behind = image.end.next_multiple_of(PAGE as u64);
    // A kernel in high memory, or one that ends at the end of its RAM, has room before it.
    let start =
        [behind, FIRST_MIB, PAGE as u64].into_iter().find_map(|floor| room.lowest(len, floor, FIRST_GIB));
    let start = start.ok_or(match behind.saturating_add(len) {
        end if end <= FIRST_GIB => LoadError::DoesNotFit("the kernel with its start information", end),
        _ => LoadError::NoRoom("the start information", FIRST_GIB),
    })?;
    let info = StartInfo::new(start, &map, !ramdisk.is_empty(), cmdline.len());
    room.take(info.start, info.end);

    let module = place_ramdisk(memory, &room, ramdisk, image.end.max(info.end))?;
    let bytes = info.bytes(&map, module, ramdisk.len() as u64, cmdline);
    memory
        .write(GuestPhys(start), &bytes)
        .map_err(|_| LoadError::DoesNotFit("the kernel with its start information", info.end))?;
    Ok(Entry { rip: image.entry, start_info: start })
}

/// Copies the RAM disk to the highest place below 4 GiB that holds it; its address. `end` is where the kernel and
/// its start information end.
fn place_ramdisk(memory: &GuestMemory, room: &Room<'_>, ramdisk: &[u8], end: u64) -> Result<u64, LoadError> {
    let len = ramdisk.len() as u64;
    if len == 0 {
        return Ok(0);
    }
    let too_small = match end.saturating_add(len).next_multiple_of(PAGE as u64) {
        end if end <= LOW_RAM_END => LoadError::DoesNotFit("the kernel with its RAM disk", end),
        _ => LoadError::NoRoom("the RAM disk", FOUR_GIB),
    };
    let start = room.highest(len, FOUR_GIB).ok_or(too_small.clone())?;
    memory.load(GuestPhys(start), ramdisk, len).map_err(|_| too_small)?;
    Ok(start)
}

/// Writes the ACPI tables into their special frames, which the caller maps.
pub fn write_acpi(memory: &GuestMemory, processors: &[acpi::Processor]) {
    let blob = acpi::tables(ACPI_BASE, processors);
    for (index, bytes) in blob.chunks(PAGE).take(ACPI_PAGES as usize).enumerate() {
        if let Some(page) = memory.special(special::ACPI + index) {
            page.write(0, bytes);
        }
    }
}

/// Addresses of the parts of the start information.
struct StartInfo {
    start: u64,
    modules: u64,
    module_count: u32,
    map: u64,
    cmdline: u64,
    end: u64,
}

impl StartInfo {
    fn new(start: u64, map: &[MapEntry], has_ramdisk: bool, cmdline_len: usize) -> Self {
        let modules = start + START_INFO_LEN.next_multiple_of(16) as u64;
        let module_count = u32::from(has_ramdisk);
        let map_at = modules + u64::from(module_count) * MODULE_LEN as u64;
        let cmdline = map_at + (map.len() * ENTRY_LEN) as u64;
        let end = (cmdline + cmdline_len as u64 + 1).next_multiple_of(PAGE as u64);
        Self { start, modules, module_count, map: map_at, cmdline, end }
    }

    fn bytes(&self, map: &[MapEntry], module: u64, module_len: u64, cmdline: &str) -> Vec<u8> {
        let mut bytes = vec![0; (self.end - self.start) as usize];
        let start = self.start;
        let mut put = |address: u64, field: &[u8]| {
            let at = (address - start) as usize;
            if let Some(to) = bytes.get_mut(at..at + field.len()) {
                to.copy_from_slice(field);
            }
        };
        put(start, &MAGIC.to_le_bytes());
        put(start + 4, &1u32.to_le_bytes());
        put(start + 12, &self.module_count.to_le_bytes());
        put(start + 16, &if self.module_count == 0 { 0 } else { self.modules }.to_le_bytes());
        put(start + 24, &self.cmdline.to_le_bytes());
        put(start + 32, &ACPI_BASE.to_le_bytes());
        put(start + 40, &self.map.to_le_bytes());
        put(start + 48, &(map.len() as u32).to_le_bytes());
        if self.module_count > 0 {
            put(self.modules, &module.to_le_bytes());
            put(self.modules + 8, &module_len.to_le_bytes());
        }
        for (n, entry) in map.iter().enumerate() {
            let at = self.map + (n * ENTRY_LEN) as u64;
            put(at, &entry.start.to_le_bytes());
            put(at + 8, &entry.len.to_le_bytes());
            put(at + 16, &entry.kind.to_le_bytes());
        }
        put(self.cmdline, cmdline.as_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::super::image::tests::{elf64, kernel};
    use super::*;
    use crate::memory::tests::{fake, leak};

    fn u64_at(memory: &GuestMemory, at: u64) -> u64 {
        let mut bytes = [0; 8];
        memory.read(GuestPhys(at), &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }

    #[test]
    fn the_start_information_leads_to_everything() {
        let memory = fake(64);
        let ramdisk = [0xcd; 5000];
        let entry = load(&memory, &kernel(0x2000, 0x2010), &ramdisk, "console=hvc0").unwrap();
        assert_eq!(entry, Entry { rip: 0x2010, start_info: 0x3000 });
        let info = entry.start_info;
        assert_eq!(u64_at(&memory, info), 0x1_336e_c578);
        assert_eq!(u64_at(&memory, info + 8) >> 32, 1);
        let module = u64_at(&memory, info + 16);
        let (at, len) = (u64_at(&memory, module), u64_at(&memory, module + 8));
        assert_eq!((at % 4096, len), (0, 5000));
        assert_eq!(u64_at(&memory, at + 4992), 0xcdcd_cdcd_cdcd_cdcd);
        let mut cmdline = [0; 13];
        memory.read(GuestPhys(u64_at(&memory, info + 24)), &mut cmdline).unwrap();
        assert_eq!(&cmdline, b"console=hvc0\0");
        let map = u64_at(&memory, info + 40);
        assert_eq!(u64_at(&memory, info + 48), 3);
        assert_eq!((u64_at(&memory, map), u64_at(&memory, map + 8)), (0, 64 * 4096));
        assert_eq!(u64_at(&memory, map + 24), ACPI_BASE);
        assert_eq!(u64_at(&memory, map + 48), SPECIAL_BASE);
    }

    /// RAM above 4 GiB is no place for a RAM disk, and a range's end below it is; the start information of a
    /// kernel that leaves no room behind itself lies before it.
    #[test]
    fn the_hole_and_the_first_gib_are_respected() {
        const HIGH: u64 = 4 << 30;
        const LOW: u64 = 32 << 12;
        let memory = GuestMemory::new(&[(GuestPhys(0), leak(32)), (GuestPhys(HIGH), leak(32))], leak(8));
        let note: [(&[u8], u32, &[u8]); 1] = [(b"Xen\0", 18, &[0, 0x40, 0, 0])];
        let entry = load(&memory, &elf64(&[(0x4000, 8, 0x1000)], &note), &[7; 5000], "").unwrap();
        let module = |entry: Entry| u64_at(&memory, u64_at(&memory, entry.start_info + 16));
        assert_eq!((entry.start_info, module(entry)), (0x5000, LOW - 0x2000));

        let high = elf64(&[(0x4000, 8, LOW - 0x4000), (HIGH + 0x1000, 8, 0x1000)], &note);
        let entry = load(&memory, &high, &[7; 5000], "").unwrap();
        assert_eq!((entry.start_info, module(entry)), (0x1000, 0x2000));
        assert_eq!(u64_at(&memory, 0x2000), 0x0707_0707_0707_0707);

        let full = elf64(&[(0, 8, LOW), (HIGH, 8, 8)], &[(b"Xen\0", 18, &[0; 4])]);
        let error = load(&memory, &full, &[], "").unwrap_err();
        assert_eq!(error, LoadError::NoRoom("the start information", FIRST_GIB));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_size_that_would() {
        let memory = fake(4);
        let elf = kernel(0x2000, 0x2010);
        assert!(load(&memory, &elf, &[], "").is_ok());
        assert_eq!(
            load(&memory, &elf, &[1; 8192], ""),
            Err(LoadError::DoesNotFit("the kernel with its RAM disk", 0x4000 + 8192))
        );
        assert_eq!(
            load(&fake(2), &kernel(0x1000, 0x1010), &[], ""),
            Err(LoadError::DoesNotFit("the kernel with its start information", 0x3000))
        );
        let long = "x".repeat(CMDLINE_MAX + 1);
        assert_eq!(load(&memory, &elf, &[], &long), Err(LoadError::CommandLine(2048, 2047)));
    }
}
