//! What of an ELF program goes where in a domain, checked: a domain's program is data to init.
//!
//! Segments are inside the program's part of the address space, share no page, and are never both
//! writable and executable. A segment that is not written and lies page-aligned in the bundle is mapped
//! from there; the others are copied.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use elf::ElfBytes;
use elf::abi::{EM_X86_64, ET_EXEC, PF_R, PF_W, PF_X, PT_LOAD};
use elf::endian::LittleEndian;
use elf::file::Class;
use proto::abi::{PAGE_SIZE, map};
use proto::boot::{IMAGE_BASE, INFO_BASE};

/// Most segments of a program.
const SEGMENTS_MAX: usize = 16;

/// A program, ready to be mapped.
#[derive(Debug, PartialEq, Eq)]
pub struct Program {
    /// Where its thread starts.
    pub entry: u64,
    /// What to map.
    pub segments: Vec<Segment>,
}

/// A range of whole pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Page-aligned address.
    pub address: u64,
    /// Pages.
    pub pages: u64,
    /// Where its content begins after `address`.
    pub lead: u64,
    /// Where its content is in the file.
    pub offset: u64,
    /// Bytes of content; the rest is zero.
    pub len: u64,
    /// `abi::map` flags.
    pub flags: u64,
}

impl Segment {
    /// Whether the file's own pages can be mapped: nothing writes them, and nothing has to be zeroed.
    pub fn is_mappable(&self) -> bool {
        let end = self.lead + self.len;
        let is_whole = end.div_ceil(PAGE_SIZE) == self.pages && self.len > 0;
        self.flags & map::WRITE == 0 && is_whole && self.offset % PAGE_SIZE == self.lead
    }
}

/// Checks a program.
///
/// # Errors
/// What is wrong with it.
pub fn plan(file: &[u8]) -> Result<Program, String> {
    let elf =
        ElfBytes::<LittleEndian>::minimal_parse(file).map_err(|error| format!("not an ELF file: {error}"))?;
    let header = &elf.ehdr;
    if header.class != Class::ELF64 || header.e_machine != EM_X86_64 || header.e_type != ET_EXEC {
        return Err("not a statically linked program for x86_64".into());
    }
    let table = elf.segments().ok_or("the program has no segments")?;
    let mut segments: Vec<Segment> = Vec::new();
    for header in table.iter().filter(|segment| segment.p_type == PT_LOAD && segment.p_memsz > 0) {
        let end = header.p_vaddr.checked_add(header.p_memsz).ok_or("a segment wraps")?;
        let file_end = header.p_offset.checked_add(header.p_filesz).ok_or("a segment wraps")?;
        if header.p_vaddr < IMAGE_BASE || end > INFO_BASE {
            return Err(format!("a segment at {:#x} is outside of the program's range", header.p_vaddr));
        }
        if header.p_filesz > header.p_memsz || file_end > file.len() as u64 {
            return Err(format!("the segment at {:#x} is larger than the file", header.p_vaddr));
        }
        if header.p_flags & PF_W != 0 && header.p_flags & PF_X != 0 {
            return Err(format!("the segment at {:#x} is writable and executable", header.p_vaddr));
        }
        let bit = |flag, value| if header.p_flags & flag != 0 { value } else { 0 };
        let address = header.p_vaddr - header.p_vaddr % PAGE_SIZE;
        segments.push(Segment {
            address,
            pages: (end - address).div_ceil(PAGE_SIZE),
            lead: header.p_vaddr - address,
            offset: header.p_offset,
            len: header.p_filesz,
            flags: map::READ | bit(PF_R, map::READ) | bit(PF_W, map::WRITE) | bit(PF_X, map::EXECUTE),
        });
        if segments.len() > SEGMENTS_MAX {
            return Err("the program has too many segments".into());
        }
    }
    segments.sort_unstable_by_key(|segment| segment.address);
    let is_disjoint = |pair: &[Segment]| match pair {
        [a, b] => a.address + a.pages * PAGE_SIZE <= b.address,
        _ => true,
    };
    if !segments.windows(2).all(is_disjoint) {
        return Err("two segments share a page".into());
    }
    let holds_entry = |segment: &Segment| {
        segment.flags & map::EXECUTE != 0
            && (segment.address..segment.address + segment.pages * PAGE_SIZE).contains(&header.e_entry)
    };
    if !segments.iter().any(holds_entry) {
        return Err("the entry point is not in an executable segment".into());
    }
    Ok(Program { entry: header.e_entry, segments })
}

/// Tests, and makers of input that other tests use.
#[cfg(test)]
pub mod tests {
    use super::*;
    use alloc::vec;

    /// A program header: flags, offset, address, bytes in the file, bytes in memory.
    type Part = (u32, u64, u64, u64, u64);

    /// An ELF file with these segments.
    pub fn program(entry: u64, parts: &[Part]) -> Vec<u8> {
        let len = parts.iter().map(|part| part.1 + part.3).max().unwrap_or(0).max(4096);
        let mut file = vec![0x90; len as usize];
        let mut header = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        header.extend(2u16.to_le_bytes());
        header.extend(62u16.to_le_bytes());
        header.extend(1u32.to_le_bytes());
        header.extend(entry.to_le_bytes());
        header.extend(64u64.to_le_bytes());
        header.extend(0u64.to_le_bytes());
        header.extend(0u32.to_le_bytes());
        for half in [64u16, 56, parts.len() as u16, 64, 0, 0] {
            header.extend(half.to_le_bytes());
        }
        for &(flags, offset, address, in_file, in_memory) in parts {
            header.extend(1u32.to_le_bytes());
            header.extend(flags.to_le_bytes());
            for word in [offset, address, address, in_file, in_memory, 4096] {
                header.extend(word.to_le_bytes());
            }
        }
        file[..header.len()].copy_from_slice(&header);
        file
    }

    /// A small valid program: text, read-only data, data with a zeroed tail.
    pub fn good() -> Vec<u8> {
        program(
            0x20_1010,
            &[
                (4, 0, 0x20_0000, 0x800, 0x800),
                (5, 0x1000, 0x20_1000, 0x1800, 0x1800),
                (6, 0x3000, 0x20_4000, 0x10, 0x2010),
            ],
        )
    }

    #[test]
    fn a_program_becomes_pages() {
        let plan = plan(&good()).unwrap();
        assert_eq!(plan.entry, 0x20_1010);
        let pages: Vec<_> = plan.segments.iter().map(|s| (s.pages, s.flags, s.is_mappable())).collect();
        assert_eq!(pages, [(1, 1, true), (2, 5, true), (3, 3, false)]);
    }

    #[test]
    fn programs_that_break_a_rule_are_refused_by_it() {
        let refusal = |entry, parts: &[Part]| plan(&program(entry, parts)).unwrap_err();
        assert!(refusal(0x20_0000, &[(7, 0, 0x20_0000, 9, 9)]).contains("writable and executable"));
        assert!(refusal(0x20_0000, &[(5, 0, 0x1000, 9, 9)]).contains("outside"));
        assert!(refusal(0x20_0000, &[(5, 0, INFO_BASE - 1, 2, 2)]).contains("outside"));
        assert!(refusal(0x20_0000, &[(5, 0, u64::MAX, 2, 2)]).contains("wraps"));
        assert!(refusal(0x20_0000, &[(5, 0, 0x20_0000, 9, 8)]).contains("larger than the file"));
        assert!(refusal(0x20_0000, &[(6, 0, 0x20_0000, 9, 9)]).contains("entry"));
        assert!(refusal(0x30_0000, &[(5, 0, 0x20_0000, 9, 9)]).contains("entry"));
        let overlap = [(5, 0, 0x20_0000, 9, 0x1001), (6, 0, 0x20_1800, 9, 9)];
        assert!(refusal(0x20_0000, &overlap).contains("share a page"));
        assert!(plan(b"MZ").unwrap_err().contains("ELF"));
    }

    #[test]
    fn a_segment_longer_than_the_file_is_refused() {
        let mut file = good();
        file.truncate(0x2000);
        assert!(plan(&file).unwrap_err().contains("larger than the file"));
    }
}
