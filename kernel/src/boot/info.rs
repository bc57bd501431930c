//! What the boot loader says: memory map, the boot bundle, command line, RSDP.
//!
//! Two formats, both read through a function that fetches bytes, so that the parsers are safe and tested on
//! the host. Sources: Xen `arch-x86/hvm/start_info.h`; Multiboot2 specification 2.0, section 3.6.

use heapless::Vec;

/// Most memory regions that are kept.
pub const REGIONS_MAX: usize = 64;

/// A range of physical addresses: first, one past the last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Region {
    /// First address.
    pub start: u64,
    /// One past the last address.
    pub end: u64,
}

/// What the boot loader said.
#[derive(Debug, Default)]
pub struct BootInfo {
    /// RAM, ascending, in whole pages.
    pub ram: Vec<Region, REGIONS_MAX>,
    /// The boot bundle.
    pub bundle: Region,
    /// Command line, cut to fit.
    pub cmdline: Vec<u8, 1024>,
    /// Address of the ACPI root pointer, or 0: not known (multiboot2).
    pub rsdp: u64,
}

impl BootInfo {
    /// Enters RAM, in whole pages; keeps the list ascending.
    fn add_ram(&mut self, start: u64, len: u64) {
        let start = start.next_multiple_of(4096);
        let end = start.max((start.saturating_add(len)) / 4096 * 4096);
        let at = self.ram.iter().position(|region| region.start > start).unwrap_or(self.ram.len());
        if end > start {
            // A 65th region is not used: less memory, nothing worse.
            let _ = self.ram.insert(at, Region { start, end });
        }
    }
}

/// Reads little-endian numbers of physical memory.
pub trait Memory {
    /// One byte.
    fn byte(&self, address: u64) -> u8;
    /// Four bytes.
    fn u32(&self, address: u64) -> u32 {
        u32::from_le_bytes(core::array::from_fn(|n| self.byte(address + n as u64)))
    }
    /// Eight bytes.
    fn u64(&self, address: u64) -> u64 {
        u64::from_le_bytes(core::array::from_fn(|n| self.byte(address + n as u64)))
    }
}

const PVH_MAGIC: u32 = 0x336e_c578;
const TYPE_RAM: u32 = 1;

fn copy_text(memory: &impl Memory, mut address: u64, to: &mut Vec<u8, 1024>) {
    loop {
        let byte = memory.byte(address);
        if byte == 0 || to.push(byte).is_err() {
            return;
        }
        address += 1;
    }
}

/// Reads an `hvm_start_info`; `None` when it is not one.
pub fn parse_pvh(memory: &impl Memory, at: u64) -> Option<BootInfo> {
    if memory.u32(at) != PVH_MAGIC || memory.u32(at + 4) < 1 {
        return None;
    }
    let mut info = BootInfo { rsdp: memory.u64(at + 32), ..BootInfo::default() };
    if memory.u32(at + 12) > 0 {
        let module = memory.u64(at + 16);
        let start = memory.u64(module);
        info.bundle = Region { start, end: start + memory.u64(module + 8) };
    }
    if memory.u64(at + 24) != 0 {
        copy_text(memory, memory.u64(at + 24), &mut info.cmdline);
    }
    let (map, entries) = (memory.u64(at + 40), memory.u32(at + 48));
    for n in 0..u64::from(entries) {
        let entry = map + 24 * n;
        if memory.u32(entry + 16) == TYPE_RAM {
            info.add_ram(memory.u64(entry), memory.u64(entry + 8));
        }
    }
    Some(info)
}

/// Reads multiboot2's information.
pub fn parse_multiboot2(memory: &impl Memory, at: u64) -> Option<BootInfo> {
    let mut info = BootInfo::default();
    let end = at + u64::from(memory.u32(at));
    let mut tag = at + 8;
    while tag + 8 <= end {
        let (kind, size) = (memory.u32(tag), u64::from(memory.u32(tag + 4)));
        match kind {
            0 => break,
            1 => copy_text(memory, tag + 8, &mut info.cmdline),
            3 if info.bundle == Region::default() => {
                info.bundle = Region { start: memory.u32(tag + 8).into(), end: memory.u32(tag + 12).into() };
            }
            6 => {
                let step = u64::from(memory.u32(tag + 8)).max(24);
                let mut entry = tag + 16;
                while entry + 24 <= tag + size {
                    if memory.u32(entry + 16) == TYPE_RAM {
                        info.add_ram(memory.u64(entry), memory.u64(entry + 8));
                    }
                    entry += step;
                }
            }
            // The RSDP's tags (14, 15) hold a copy, in memory that will be somebody's RAM: no address to keep.
            _ => {}
        }
        tag += size.max(8).next_multiple_of(8);
    }
    Some(info)
}

/// Everything below `limit` that is not RAM and not one of `hidden` pages, which ascend.
pub fn device_runs(ram: &[Region], hidden: &[u64], limit: u64, mut each: impl FnMut(Region)) {
    let mut start = 0;
    let mut emit = |from: u64, end: u64| {
        let mut start = from;
        for &page in hidden.iter().filter(|&&page| page >= from && page < end) {
            if page > start {
                each(Region { start, end: page });
            }
            start = page + 4096;
        }
        if end > start {
            each(Region { start, end });
        }
    };
    for region in ram {
        if region.start > start {
            emit(start, region.start);
        }
        start = start.max(region.end);
    }
    if limit > start {
        emit(start, limit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Memory for std::vec::Vec<u8> {
        fn byte(&self, address: u64) -> u8 {
            self.get(address as usize).copied().unwrap_or(0)
        }
    }

    fn put(memory: &mut [u8], at: usize, bytes: &[u8]) {
        memory[at..at + bytes.len()].copy_from_slice(bytes);
    }

    #[test]
    fn pvh_gives_ram_sorted_and_the_first_module() {
        let mut m = std::vec![0u8; 4096];
        put(&mut m, 0, &PVH_MAGIC.to_le_bytes());
        put(&mut m, 4, &1u32.to_le_bytes());
        put(&mut m, 12, &1u32.to_le_bytes());
        put(&mut m, 16, &0x100u64.to_le_bytes());
        put(&mut m, 24, &0x180u64.to_le_bytes());
        put(&mut m, 40, &0x200u64.to_le_bytes());
        put(&mut m, 48, &3u32.to_le_bytes());
        put(&mut m, 0x100, &0x7000u64.to_le_bytes());
        put(&mut m, 0x108, &0x123u64.to_le_bytes());
        put(&mut m, 0x180, b"debug-exit\0");
        for (n, (start, len, kind)) in
            [(0x10_0000u64, 0x20_0800u64, 1u32), (0, 0x9_fc00, 1), (0xf000_0000, 0x1000, 2)]
                .into_iter()
                .enumerate()
        {
            put(&mut m, 0x200 + 24 * n, &start.to_le_bytes());
            put(&mut m, 0x208 + 24 * n, &len.to_le_bytes());
            put(&mut m, 0x210 + 24 * n, &kind.to_le_bytes());
        }
        let info = parse_pvh(&m, 0).unwrap();
        assert_eq!(info.bundle, Region { start: 0x7000, end: 0x7123 });
        assert_eq!(&info.cmdline[..], b"debug-exit");
        assert_eq!(
            &info.ram[..],
            &[Region { start: 0, end: 0x9_f000 }, Region { start: 0x10_0000, end: 0x30_0000 }]
        );
        m[0] = 0;
        assert!(parse_pvh(&m, 0).is_none());
    }

    #[test]
    fn multiboot2_tags_are_read_and_a_zero_size_does_not_loop() {
        let mut m = std::vec![0u8; 4096];
        put(&mut m, 0, &200u32.to_le_bytes());
        put(&mut m, 8, &[3, 0, 0, 0, 17, 0, 0, 0]);
        put(&mut m, 16, &0x8000u32.to_le_bytes());
        put(&mut m, 20, &0x9000u32.to_le_bytes());
        put(&mut m, 32, &[99, 0, 0, 0, 0, 0, 0, 0]);
        put(&mut m, 40, &[6, 0, 0, 0, 40, 0, 0, 0, 24, 0, 0, 0]);
        put(&mut m, 56, &0x10_0000u64.to_le_bytes());
        put(&mut m, 64, &0x1000u64.to_le_bytes());
        put(&mut m, 72, &1u32.to_le_bytes());
        let info = parse_multiboot2(&m, 0).unwrap();
        assert_eq!(info.bundle, Region { start: 0x8000, end: 0x9000 });
        assert_eq!(&info.ram[..], &[Region { start: 0x10_0000, end: 0x10_1000 }]);
    }

    #[test]
    fn device_runs_are_the_gaps_without_the_hidden_pages() {
        let ram = [Region { start: 0x1000, end: 0x3000 }, Region { start: 0x8000, end: 0x9000 }];
        let mut runs = std::vec![];
        device_runs(&ram, &[0x5000, 0x9000], 0xb000, |run| runs.push((run.start, run.end)));
        assert_eq!(runs, [(0, 0x1000), (0x3000, 0x5000), (0x6000, 0x8000), (0xa000, 0xb000)]);
    }
}
