//! ELF programs of the machine: checked, flattened into segments (init), shortened (all others).
//!
//! Whatever is not loaded (symbols, debug information) never reaches the image.
//! Source: System V ABI, ELF-64 object file format.

use object::LittleEndian;
use object::elf::{
    EM_X86_64, ET_EXEC, FileHeader64, PF_R, PF_W, PF_X, PT_LOAD, ProgramFlags, ProgramHeader64,
};
use object::read::elf::{FileHeader as _, ProgramHeader as _};
use proto::abi::{PAGE_SIZE, map};
use proto::boot::{IMAGE_BASE, INFO_BASE};

type Header = FileHeader64<LittleEndian>;

/// Why a file is not a program of the machine.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ElfError {
    /// Not an ELF file for x86-64, or damaged.
    #[error("{name}: not a 64-bit x86 ELF program: {detail}")]
    Malformed {
        /// Which program.
        name: String,
        /// What is wrong.
        detail: String,
    },
    /// Loaded where it may not be.
    #[error("{name}: {detail}")]
    Layout {
        /// Which program.
        name: String,
        /// What is wrong.
        detail: String,
    },
}

/// A part of a program: page-aligned address, content, size in memory and [`map`] flags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlatSegment {
    /// Page-aligned virtual address.
    pub addr: u64,
    /// Content; the rest up to `memory_len` is zero.
    pub bytes: Vec<u8>,
    /// Bytes in memory.
    pub memory_len: u64,
    /// [`map`] flags.
    pub flags: u64,
}

/// A flattened program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flat {
    /// Entry point.
    pub entry: u64,
    /// Parts in ascending order, no two on one page.
    pub segments: Vec<FlatSegment>,
}

/// Flattens a domain's ELF program.
///
/// # Errors
/// What is wrong with the file; `name` stands in the message.
pub fn flatten(name: &str, data: &[u8]) -> Result<Flat, ElfError> {
    let layout = |detail: String| ElfError::Layout { name: name.to_owned(), detail };
    let (header, load) = parse(name, data)?;
    let mut segments: Vec<FlatSegment> = Vec::new();
    for segment in load {
        let (addr, memory_len) = (segment.p_vaddr(LittleEndian), segment.p_memsz(LittleEndian));
        let content = segment.data(LittleEndian, data).map_err(|()| ElfError::Malformed {
            name: name.to_owned(),
            detail: format!("the segment at {addr:#x} reaches past the end of the file"),
        })?;
        if memory_len == 0 {
            continue;
        }
        let end = addr.checked_add(memory_len).filter(|end| *end <= INFO_BASE);
        let Some(end) = end.filter(|_| addr >= IMAGE_BASE) else {
            return Err(layout(format!(
                "a segment of {memory_len:#x} bytes at {addr:#x} is outside of {IMAGE_BASE:#x}..{INFO_BASE:#x}, \
                 where programs are loaded"
            )));
        };
        if content.len() as u64 > memory_len {
            return Err(layout(format!(
                "the segment at {addr:#x} has more bytes in the file than in memory"
            )));
        }
        let flags = map_flags(segment.p_flags(LittleEndian));
        if flags & map::WRITE != 0 && flags & map::EXECUTE != 0 {
            return Err(layout(format!("the segment at {addr:#x} is both writable and executable")));
        }
        let page = addr - addr % PAGE_SIZE;
        let mut bytes = vec![0; (addr - page) as usize];
        bytes.extend_from_slice(content);
        if let Some(last) = segments.last_mut() {
            let last_end = last.addr + last.memory_len;
            if page < last_end.next_multiple_of(PAGE_SIZE) {
                return Err(layout(format!("two segments share the page at {page:#x}")));
            }
            // The linker splits read-write data where relocations end; the difference means nothing here.
            if last.flags == flags && page == last_end.next_multiple_of(PAGE_SIZE) {
                last.bytes.resize((page - last.addr) as usize, 0);
                last.bytes.append(&mut bytes);
                last.memory_len = end - last.addr;
                continue;
            }
        }
        segments.push(FlatSegment { addr: page, bytes, memory_len: end - page, flags });
    }
    let entry = header.e_entry(LittleEndian);
    let is_code =
        |s: &FlatSegment| s.flags & map::EXECUTE != 0 && (s.addr..s.addr + s.memory_len).contains(&entry);
    if !segments.iter().any(is_code) {
        return Err(layout(format!("the entry point {entry:#x} is in no executable segment")));
    }
    Ok(Flat { entry, segments })
}

/// The file without what is never loaded: cut after the last segment, section table forgotten.
///
/// # Errors
/// What is wrong with the file; `name` stands in the message.
pub fn shorten(name: &str, data: &[u8]) -> Result<Vec<u8>, ElfError> {
    let (header, load) = parse(name, data)?;
    let table_end = header.e_phoff(LittleEndian)
        + u64::from(header.e_phentsize(LittleEndian)) * u64::from(header.e_phnum(LittleEndian));
    let end = load.iter().fold(table_end, |end, segment| {
        end.max(segment.p_offset(LittleEndian).saturating_add(segment.p_filesz(LittleEndian)))
    });
    let kept = usize::try_from(end).ok().and_then(|end| data.get(..end));
    let mut kept = kept.map(<[u8]>::to_vec).ok_or_else(|| ElfError::Malformed {
        name: name.to_owned(),
        detail: "a segment reaches past the end of the file".to_owned(),
    })?;
    // e_shoff, then e_shnum and e_shstrndx (parse() made sure that the header is there).
    for field in [0x28..0x30, 0x3c..0x40] {
        if let Some(bytes) = kept.get_mut(field) {
            bytes.fill(0);
        }
    }
    Ok(kept)
}

/// Bytes in memory of a program's loaded parts, for `image-builder list`.
///
/// # Errors
/// What is wrong with the file; `name` stands in the message.
pub fn memory_size(name: &str, data: &[u8]) -> Result<u64, ElfError> {
    let (_, load) = parse(name, data)?;
    Ok(load.iter().map(|s| s.p_memsz(LittleEndian).next_multiple_of(PAGE_SIZE)).sum())
}

fn parse<'a>(
    name: &str,
    data: &'a [u8],
) -> Result<(&'a Header, Vec<&'a ProgramHeader64<LittleEndian>>), ElfError> {
    let malformed = |detail: String| ElfError::Malformed { name: name.to_owned(), detail };
    let header = Header::parse(data).map_err(|e| malformed(e.to_string()))?;
    if header.endian().is_err() || header.e_machine(LittleEndian) != EM_X86_64 {
        return Err(malformed("it is for another machine".to_owned()));
    }
    if header.e_type(LittleEndian) != ET_EXEC {
        return Err(malformed("it is not linked to a fixed address".to_owned()));
    }
    let headers = header.program_headers(LittleEndian, data).map_err(|e| malformed(e.to_string()))?;
    let mut load: Vec<_> = headers.iter().filter(|p| p.p_type(LittleEndian) == PT_LOAD).collect();
    load.sort_by_key(|p| p.p_vaddr(LittleEndian));
    Ok((header, load))
}

fn map_flags(flags: ProgramFlags) -> u64 {
    [(PF_R, map::READ), (PF_W, map::WRITE), (PF_X, map::EXECUTE)]
        .into_iter()
        .filter(|(elf, _)| flags.0 & elf.0 != 0)
        .fold(0, |all, (_, flag)| all | flag)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An ELF program with these segments: (address, flags, content, bytes in memory).
    pub(crate) fn program(entry: u64, segments: &[(u64, u32, &[u8], u64)]) -> Vec<u8> {
        let mut file = vec![0; 64 + 56 * segments.len()];
        file[..8].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0]);
        file[16..18].copy_from_slice(&2u16.to_le_bytes());
        file[18..20].copy_from_slice(&62u16.to_le_bytes());
        file[20..24].copy_from_slice(&1u32.to_le_bytes());
        file[24..32].copy_from_slice(&entry.to_le_bytes());
        file[32..40].copy_from_slice(&64u64.to_le_bytes());
        file[40..48].copy_from_slice(&0xdead_0000u64.to_le_bytes()); // e_shoff
        file[52..54].copy_from_slice(&64u16.to_le_bytes());
        file[54..56].copy_from_slice(&56u16.to_le_bytes());
        file[56..58].copy_from_slice(&(segments.len() as u16).to_le_bytes());
        file[60..62].copy_from_slice(&9u16.to_le_bytes()); // e_shnum
        for (i, (addr, flags, content, memory_len)) in segments.iter().enumerate() {
            let offset = file.len() as u64;
            let at = 64 + 56 * i;
            file[at..at + 4].copy_from_slice(&1u32.to_le_bytes());
            file[at + 4..at + 8].copy_from_slice(&flags.to_le_bytes());
            let fields = [offset, *addr, *addr, content.len() as u64, *memory_len, 0x1000];
            for (k, value) in fields.into_iter().enumerate() {
                file[at + 8 + 8 * k..at + 16 + 8 * k].copy_from_slice(&value.to_le_bytes());
            }
            file.extend_from_slice(content);
        }
        file.extend_from_slice(b"debug information");
        file
    }

    #[test]
    fn segments_are_flattened_to_whole_pages() {
        let file = program(
            0x20_1010,
            &[
                (0x20_0000, 4, b"rodata", 6),
                (0x20_1010, 5, b"code", 4),
                (0x20_2000, 6, b"relro", 0x1000),
                (0x20_3000, 6, b"data", 0x2800),
            ],
        );
        let flat = flatten("x", &file).unwrap();
        assert_eq!(flat.entry, 0x20_1010);
        let shape: Vec<_> =
            flat.segments.iter().map(|s| (s.addr, s.bytes.len(), s.memory_len, s.flags)).collect();
        assert_eq!(shape, [(0x20_0000, 6, 6, 1), (0x20_1000, 0x14, 0x14, 5), (0x20_2000, 0x1004, 0x3800, 3)]);
        assert_eq!(&flat.segments[1].bytes[0x10..], b"code");
        assert_eq!(&flat.segments[2].bytes[..5], b"relro");
        assert_eq!(&flat.segments[2].bytes[0x1000..], b"data");
    }

    #[test]
    fn what_may_not_be_loaded_is_refused() {
        type Case<'a> = (u64, &'a [(u64, u32, &'a [u8], u64)], &'a str);
        let cases: &[Case] = &[
            (0x20_0000, &[(0x20_0000, 7, b"code", 4)], "both writable and executable"),
            (0x20_0000, &[(0x10_0000, 5, b"code", 4)], "is outside of"),
            (0x20_0000, &[(0x20_0000, 5, b"code", u64::MAX)], "is outside of"),
            (0x20_0000, &[(0x20_0000, 5, b"code", 3)], "more bytes in the file"),
            (0x20_0000, &[(0x20_0000, 5, b"code", 4), (0x20_0800, 6, b"data", 4)], "share the page"),
            (0x30_0000, &[(0x20_0000, 5, b"code", 4)], "is in no executable segment"),
        ];
        for (entry, segments, expected) in cases {
            let error = flatten("bad", &program(*entry, segments)).unwrap_err().to_string();
            assert!(error.starts_with("bad: ") && error.contains(expected), "{error}");
        }
    }

    #[test]
    fn damaged_files_are_refused() {
        let file = program(0x20_0000, &[(0x20_0000, 5, &[0x90; 64], 64)]);
        for len in [0, 3, 63, 64, 100, 130] {
            assert!(flatten("cut", &file[..len]).is_err(), "{len}");
            assert!(shorten("cut", &file[..len]).is_err(), "{len}");
        }
        assert!(flatten("text", b"#!/bin/sh").is_err());
        let mut relocatable = file;
        relocatable[16] = 3;
        assert!(flatten("pie", &relocatable).unwrap_err().to_string().contains("fixed address"));
    }

    #[test]
    fn shortening_keeps_the_program() {
        let file = program(0x20_0000, &[(0x20_0000, 5, b"code", 4)]);
        let short = shorten("x", &file).unwrap();
        assert_eq!(short.len(), file.len() - b"debug information".len());
        assert_eq!(flatten("x", &short).unwrap(), flatten("x", &file).unwrap());
        assert_eq!(&short[0x28..0x30], &[0; 8]);
        assert_eq!(memory_size("x", &short).unwrap(), 4096);
    }
}
