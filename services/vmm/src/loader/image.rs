//! The kernel's ELF file: where its segments go and where it is entered.
//!
//! Segments are loaded at their physical address. The entry point is that of the Xen note PHYS32_ENTRY,
//! which is read from the file because some kernels have the note outside of every loaded segment.
//! Sources: System V ABI (ELF); Xen docs/misc/pvh.pandoc, public/elfnote.h and common/libelf.

use alloc::vec::Vec;

use elf::abi::{EM_386, EM_X86_64, PN_XNUM, PT_LOAD, PT_NOTE, SHT_NOTE};
use elf::endian::AnyEndian;
use elf::file::{Class, FileHeader, parse_ident};
use elf::parse::{ParseAt, ParsingTable};
use elf::section::SectionHeader;
use elf::segment::ProgramHeader;
use proto::guest::{HIGH_RAM_START, LOW_RAM_END};

use super::LoadError;
use crate::memory::{GuestMemory, GuestPhys};

/// XEN_ELFNOTE_PHYS32_ENTRY.
const PHYS32_ENTRY: u32 = 18;
/// Most loadable segments; the list of them comes from the VMM's heap.
const SEGMENTS_MAX: usize = 1024;
/// Length of an ELF32 file header, the shorter one, and of what both begin with.
const HEADER_MIN: usize = 52;
const IDENT: usize = 16;

/// A part of the file that is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Where it goes.
    pub start: u64,
    /// Its content.
    pub bytes: &'a [u8],
    /// Its length in memory; what `bytes` leaves is zero.
    pub len: u64,
}

impl Segment<'_> {
    /// First address behind it; [`Image::parse`] made sure that there is one.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }
}

/// A checked kernel.
#[derive(Debug)]
pub struct Image<'a> {
    /// Its segments, in the file's order.
    pub segments: Vec<Segment<'a>>,
    /// The PVH entry point.
    pub entry: u64,
    /// First address behind all segments.
    pub end: u64,
}

impl<'a> Image<'a> {
    /// Checks an ELF file and finds what there is to load.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn parse(file: &'a [u8]) -> Result<Self, LoadError> {
        const HEADER: LoadError = LoadError::Truncated("the ELF header");
        if file.len() < HEADER_MIN {
            return Err(HEADER);
        }
        let ident = parse_ident(file).map_err(|_| LoadError::Corrupt("its ELF header"))?;
        let header: FileHeader<AnyEndian> =
            FileHeader::parse_tail(ident, file.get(IDENT..).unwrap_or(&[])).map_err(|_| HEADER)?;
        let is_x86 = matches!(header.e_machine, EM_X86_64 | EM_386);
        if !is_x86 || header.endianness != AnyEndian::Little {
            return Err(LoadError::WrongMachine);
        }
        let headers = program_headers(file, &header)?;
        let segments = segments(file, &headers)?;
        let end = segments.iter().map(Segment::end).max().unwrap_or(0);
        let image = Self { segments, entry: entry(file, &header, &headers)?, end };
        if !image.segments.iter().any(|segment| (segment.start..segment.end()).contains(&image.entry)) {
            return Err(LoadError::EntryOutside(image.entry));
        }
        Ok(image)
    }

    /// Copies the segments into guest RAM, in the file's order: where two overlap the later one stays, as on Xen.
    ///
    /// # Errors
    /// [`LoadError::DoesNotFit`], [`LoadError::InHole`].
    pub fn load(&self, memory: &GuestMemory) -> Result<(), LoadError> {
        let in_hole = |segment: &&Segment<'_>| segment.start < HIGH_RAM_START && segment.end() > LOW_RAM_END;
        if let Some(segment) = self.segments.iter().find(in_hole) {
            return Err(LoadError::InHole(segment.start));
        }
        for segment in &self.segments {
            // RAM starts as zeros but the guest may be started again in the same frames.
            memory
                .load(GuestPhys(segment.start), segment.bytes, segment.len)
                .map_err(|_| LoadError::DoesNotFit("the kernel", self.end))?;
        }
        Ok(())
    }
}

/// Part of the file, if all of it is there.
fn part(file: &[u8], offset: u64, len: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    file.get(start..start.checked_add(usize::try_from(len).ok()?)?)
}

/// A table of `count` entries of `size` bytes.
fn table<'a, T: ParseAt>(
    file: &'a [u8],
    header: &FileHeader<AnyEndian>,
    offset: u64,
    count: u16,
    size: usize,
) -> Option<ParsingTable<'a, AnyEndian, T>> {
    let bytes = part(file, offset, u64::from(count) * size as u64)?;
    Some(ParsingTable::new(header.endianness, header.class, bytes))
}

type ProgramHeaders<'a> = ParsingTable<'a, AnyEndian, ProgramHeader>;

fn program_headers<'a>(
    file: &'a [u8],
    header: &FileHeader<AnyEndian>,
) -> Result<ProgramHeaders<'a>, LoadError> {
    let size = if header.class == Class::ELF32 { 32 } else { 56 };
    if header.e_phnum == 0 {
        return Err(LoadError::Corrupt("it has no program headers"));
    }
    if usize::from(header.e_phentsize) != size {
        return Err(LoadError::Corrupt("its program headers have another size than ELF's"));
    }
    if header.e_phnum == PN_XNUM {
        return Err(LoadError::TooManySegments(SEGMENTS_MAX));
    }
    table(file, header, header.e_phoff, header.e_phnum, size)
        .ok_or(LoadError::Truncated("the table of program headers"))
}

fn segments<'a>(file: &'a [u8], headers: &ProgramHeaders<'a>) -> Result<Vec<Segment<'a>>, LoadError> {
    let loaded = || headers.iter().filter(|header| header.p_type == PT_LOAD && header.p_memsz > 0);
    let count = loaded().count();
    let mut segments = Vec::new();
    if count > SEGMENTS_MAX || segments.try_reserve_exact(count).is_err() {
        return Err(LoadError::TooManySegments(SEGMENTS_MAX));
    }
    for header in loaded() {
        if header.p_filesz > header.p_memsz {
            return Err(LoadError::Corrupt("a segment is longer in the file than in memory"));
        }
        header.p_paddr.checked_add(header.p_memsz).ok_or(LoadError::Corrupt("a segment's address"))?;
        let bytes = part(file, header.p_offset, header.p_filesz);
        let bytes = bytes.ok_or(LoadError::Truncated("an ELF segment"))?;
        segments.push(Segment { start: header.p_paddr, bytes, len: header.p_memsz });
    }
    Ok(segments)
}

/// The PVH entry point of the notes of all PT_NOTE; where these have none, of all SHT_NOTE, for notes that no
/// program header covers. Xen looks in this order, too, and takes the last one that it finds.
fn entry(
    file: &[u8],
    header: &FileHeader<AnyEndian>,
    headers: &ProgramHeaders<'_>,
) -> Result<u64, LoadError> {
    let mut is_cut = false;
    let mut search = |offset, len| match part(file, offset, len) {
        Some(notes) => entry_in(notes),
        None => {
            is_cut = true;
            None
        }
    };
    let notes = headers.iter().filter(|header| header.p_type == PT_NOTE);
    let mut entry = notes.filter_map(|notes| search(notes.p_offset, notes.p_filesz)).last();
    let size = if header.class == Class::ELF32 { 40 } else { 64 };
    // Sections are for linkers: what is wrong with their table is no reason to refuse a kernel.
    if entry.is_none()
        && usize::from(header.e_shentsize) == size
        && let Some(sections) = table::<SectionHeader>(file, header, header.e_shoff, header.e_shnum, size)
    {
        let notes = sections.iter().filter(|section| section.sh_type == SHT_NOTE);
        entry = notes.filter_map(|notes| search(notes.sh_offset, notes.sh_size)).last();
    }
    entry.ok_or(if is_cut { LoadError::Truncated("an ELF note") } else { LoadError::NoPvhNote })
}

/// The last PVH entry point in a run of notes: each has the lengths of name and descriptor, a type, the name and
/// the descriptor, both padded to 4 bytes whatever the segment's alignment (libelf does so as well).
fn entry_in(notes: &[u8]) -> Option<u64> {
    let mut entry = None;
    let mut rest = notes;
    while let Some((header, tail)) = rest.split_first_chunk::<12>() {
        let [name_len, len, kind] = [0, 4, 8].map(|at| {
            header.get(at..).and_then(|word| word.first_chunk()).map_or(0, |word| u32::from_le_bytes(*word))
        });
        let (name_len, len) = (name_len as usize, len as usize);
        let Some((name, tail)) = tail.split_at_checked(name_len) else { break };
        let tail = tail.get(name_len.next_multiple_of(4) - name_len..).unwrap_or(&[]);
        let Some((descriptor, tail)) = tail.split_at_checked(len) else { break };
        // The name may be padded with more zeros than its own.
        let name = name.iter().position(|&byte| byte == 0).and_then(|end| name.get(..end)).unwrap_or(name);
        if kind == PHYS32_ENTRY && name == b"Xen" && matches!(len, 4 | 8) {
            // The address is in the low 32 bits either way.
            entry = descriptor.first_chunk().map(|word| u64::from(u32::from_le_bytes(*word))).or(entry);
        }
        rest = tail.get(len.next_multiple_of(4) - len..).unwrap_or(&[]);
    }
    entry
}

#[cfg(test)]
pub mod tests {
    //! Small ELF files, and what can be wrong with them.
    use super::*;
    use crate::memory::tests::{fake, leak};
    use alloc::vec;
    use proptest::prelude::*;

    /// A segment: where it goes, bytes in the file (0x90), bytes in memory.
    type Load = (u64, usize, u64);
    /// A note: name with its zeros, type, descriptor.
    type Note<'a> = (&'a [u8], u32, &'a [u8]);

    fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
        file[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn notes(notes: &[Note<'_>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (name, kind, descriptor) in notes {
            for word in [name.len() as u32, descriptor.len() as u32, *kind] {
                bytes.extend(word.to_le_bytes());
            }
            for part in [name, descriptor] {
                bytes.extend_from_slice(part);
                bytes.resize(bytes.len().next_multiple_of(4), 0);
            }
        }
        bytes
    }

    /// A kernel for class 1 (32 bits) or 2 (64 bits) whose only PT_NOTE has virtual address 0 and lies outside of
    /// every segment. Its program headers begin at 64.
    fn elf(class: u8, loads: &[Load], note: &[Note<'_>]) -> Vec<u8> {
        let (size, header_len) = if class == 1 { (32, 52u16) } else { (56, 64) };
        let note = notes(note);
        let mut file = vec![0; 64 + size * (loads.len() + 1)];
        put(&mut file, 0, &[0x7f, b'E', b'L', b'F', class, 1, 1]);
        put(&mut file, 16, &[2, 0, if class == 1 { 3 } else { 62 }, 0, 1]);
        let (table, sizes) = if class == 1 { (28, 40) } else { (32, 52) };
        put(&mut file, table, &64u32.to_le_bytes());
        for (n, half) in [header_len, size as u16, loads.len() as u16 + 1].into_iter().enumerate() {
            put(&mut file, sizes + 2 * n, &half.to_le_bytes());
        }
        let loads = loads.iter().map(|&(start, filled, len)| (1, start, vec![0x90; filled], len));
        let len = note.len() as u64;
        for (n, (kind, start, bytes, len)) in loads.chain([(4, 0, note, len)]).enumerate() {
            let (offset, filled) = (file.len() as u64, bytes.len() as u64);
            file.extend(bytes);
            let at = 64 + size * n;
            put(&mut file, at, &u32::to_le_bytes(kind));
            if class == 1 {
                for (n, word) in [offset, 0, start, filled, len, 7, 4].into_iter().enumerate() {
                    put(&mut file, at + 4 + 4 * n, &(word as u32).to_le_bytes());
                }
            } else {
                for (n, word) in [offset, 0, start, filled, len, 4].into_iter().enumerate() {
                    put(&mut file, at + 8 + 8 * n, &word.to_le_bytes());
                }
            }
        }
        file
    }

    /// An ELF64 kernel.
    pub fn elf64(loads: &[Load], note: &[Note<'_>]) -> Vec<u8> {
        elf(2, loads, note)
    }

    /// An ELF64 kernel: one segment of 0x100 bytes (0x1000 in memory) at `paddr`, entered at `entry`.
    pub fn kernel(paddr: u64, entry: u32) -> Vec<u8> {
        elf64(&[(paddr, 0x100, 0x1000)], &[(b"Xen\0", 18, &u64::from(entry).to_le_bytes())])
    }

    fn parse(file: &[u8]) -> Result<u64, LoadError> {
        Image::parse(file).map(|image| image.entry)
    }

    #[test]
    fn segments_land_at_their_physical_address_with_zeros_behind() {
        let memory = fake(8);
        memory.write(GuestPhys(0x2000), &[0xff; 0x1000]).unwrap();
        let file = kernel(0x2000, 0x2010);
        let image = Image::parse(&file).unwrap();
        assert_eq!((image.entry, image.end), (0x2010, 0x3000));
        image.load(&memory).unwrap();
        let mut bytes = [0; 0x1000];
        memory.read(GuestPhys(0x2000), &mut bytes).unwrap();
        assert!(bytes[..0x100].iter().all(|&b| b == 0x90) && bytes[0x100..].iter().all(|&b| b == 0));
    }

    #[test]
    fn both_classes_with_notes_of_four_and_eight_bytes_are_kernels() {
        let load = [(0x2000, 0x100, 0x1000), (0x3000, 0, 0x10)];
        for class in [1, 2] {
            let entry = |note: &[Note<'_>]| parse(&elf(class, &load, note));
            assert_eq!(entry(&[(b"Xen\0", 18, &[0x10, 0x20, 0, 0])]), Ok(0x2010));
            // Whatever is in the upper half.
            assert_eq!(entry(&[(b"Xen\0", 18, &[0x10, 0x20, 0, 0, 9, 9, 9, 9])]), Ok(0x2010));
            // Other notes around it, names with no zero and with more than one; of several the last one counts.
            let good: Note<'_> = (b"Xen\0", 18, &[4, 0x20, 0, 0]);
            let (gnu, other): (Note<'_>, Note<'_>) = ((b"GNU\0", 18, &[0; 20]), (b"Xen\0", 6, b"linux"));
            assert_eq!(entry(&[gnu, other, good, gnu]), Ok(0x2004));
            assert_eq!(entry(&[(b"Xen", 18, good.2)]), Ok(0x2004));
            assert_eq!(entry(&[(b"Xen\0\0\0\0", 18, good.2), (b"Xenon\0", 18, good.2)]), Ok(0x2004));
            assert_eq!(entry(&[good, (b"Xen\0", 18, &[8, 0x20, 0, 0])]), Ok(0x2008));
            assert_eq!(entry(&[(b"Xen\0", 18, &[8, 0x20])]), Err(LoadError::NoPvhNote));
            assert_eq!(entry(&[]), Err(LoadError::NoPvhNote));
        }
    }

    #[test]
    fn a_note_that_only_a_section_names_is_found() {
        let mut file = elf64(&[(0x2000, 0x100, 0x1000)], &[]);
        let note = notes(&[(b"Xen\0", 18, &[0x10, 0x20, 0, 0])]);
        let (at, sections) = (file.len() as u64, file.len() + note.len());
        file.extend_from_slice(&note);
        file.resize(sections + 2 * 64, 0);
        put(&mut file, 40, &(sections as u64).to_le_bytes());
        put(&mut file, 58, &[64, 0, 2]);
        put(&mut file, sections + 64 + 4, &7u32.to_le_bytes());
        put(&mut file, sections + 64 + 24, &at.to_le_bytes());
        put(&mut file, sections + 64 + 32, &(note.len() as u64).to_le_bytes());
        assert_eq!(parse(&file), Ok(0x2010));
        // A table of sections that is not there is nobody's business.
        file.truncate(sections);
        assert_eq!(parse(&file), Err(LoadError::NoPvhNote));
        let mut stripped = kernel(0x2000, 0x2010);
        put(&mut stripped, 40, &u64::MAX.to_le_bytes());
        put(&mut stripped, 58, &[64, 0, 9]);
        assert_eq!(parse(&stripped), Ok(0x2010));
    }

    #[test]
    fn an_entry_at_zero_is_one_if_a_segment_is_there() {
        assert_eq!(parse(&kernel(0, 0)), Ok(0));
        assert_eq!(parse(&kernel(0x1000, 0)), Err(LoadError::EntryOutside(0)));
    }

    #[test]
    fn defects_are_told_apart() {
        let good = kernel(0x2000, 0x2010);
        assert_eq!(parse(&good), Ok(0x2010));
        assert_eq!(parse(&good[..40]), Err(LoadError::Truncated("the ELF header")));
        assert_eq!(parse(&good[..60]), Err(LoadError::Truncated("the ELF header")));
        assert_eq!(parse(&good[..100]), Err(LoadError::Truncated("the table of program headers")));
        assert_eq!(parse(&good[..0x100]), Err(LoadError::Truncated("an ELF segment")));
        assert_eq!(parse(&good[..good.len() - 1]), Err(LoadError::Truncated("an ELF note")));
        assert_eq!(parse(&kernel(0x2000, 0x4000)), Err(LoadError::EntryOutside(0x4000)));
        let changed = |at: usize, bytes: &[u8]| {
            let mut file = good.clone();
            put(&mut file, at, bytes);
            parse(&file)
        };
        assert_eq!(changed(18, &[183]), Err(LoadError::WrongMachine));
        assert_eq!(changed(5, &[2]), Err(LoadError::WrongMachine));
        assert!(matches!(changed(4, &[7]), Err(LoadError::Corrupt(_))));
        assert!(matches!(changed(54, &[32]), Err(LoadError::Corrupt(_))));
        assert!(matches!(changed(56, &[0]), Err(LoadError::Corrupt(_))));
        // Its address wraps; more in the file than in memory.
        assert!(matches!(changed(64 + 24, &u64::MAX.to_le_bytes()), Err(LoadError::Corrupt(_))));
        assert!(matches!(changed(64 + 40, &0xffu64.to_le_bytes()), Err(LoadError::Corrupt(_))));
    }

    #[test]
    fn many_segments_are_loaded_and_too_many_are_refused() {
        let loads = |count| -> Vec<Load> { (0..count).map(|n| (n * 16, 8, 16)).collect() };
        let note: [Note<'_>; 1] = [(b"Xen\0", 18, &[0; 4])];
        let file = elf64(&loads(1024), &note);
        let image = Image::parse(&file).unwrap();
        let memory = fake(4);
        image.load(&memory).unwrap();
        assert_eq!((image.end, memory.word(GuestPhys(1023 * 16))), (0x4000, Some(0x9090_9090_9090_9090)));
        assert_eq!(parse(&elf64(&loads(1025), &note)), Err(LoadError::TooManySegments(1024)));
        let mut file = file;
        put(&mut file, 56, &PN_XNUM.to_le_bytes());
        assert_eq!(parse(&file), Err(LoadError::TooManySegments(1024)));
    }

    /// The order is the file's, not that of the addresses: the zeros of the second one hide the first.
    #[test]
    fn of_two_segments_that_overlap_the_later_one_stays() {
        let file = elf64(&[(0x1008, 16, 16), (0x1000, 8, 16)], &[(b"Xen\0", 18, &[0, 0x10, 0, 0])]);
        let memory = fake(4);
        Image::parse(&file).unwrap().load(&memory).unwrap();
        let words = [0x1000, 0x1008, 0x1010].map(|at| memory.word(GuestPhys(at)));
        assert_eq!(words, [Some(0x9090_9090_9090_9090), Some(0), Some(0x9090_9090_9090_9090)]);
    }

    #[test]
    fn segments_above_4_gib_and_over_two_ranges_are_loaded() {
        let ranges = [(0, leak(2)), (0x2000, leak(2)), (HIGH_RAM_START, leak(2))];
        let memory = GuestMemory::new(&ranges.map(|(start, ram)| (GuestPhys(start), ram)), leak(1));
        let note: [Note<'_>; 1] = [(b"Xen\0", 18, &[0, 0x10, 0, 0])];
        let file = elf64(&[(0x1000, 0x1800, 0x3000), (HIGH_RAM_START + 0x1000, 8, 0x1000)], &note);
        Image::parse(&file).unwrap().load(&memory).unwrap();
        let words = [0x1000, 0x27f8, 0x2800, HIGH_RAM_START + 0x1000].map(|at| memory.word(GuestPhys(at)));
        let nops = Some(0x9090_9090_9090_9090);
        assert_eq!(words, [nops, nops, Some(0), nops]);
        for start in [LOW_RAM_END - 0x800, LOW_RAM_END, HIGH_RAM_START - 8] {
            let file = elf64(&[(0x1000, 8, 8), (start, 8, 0x1000)], &note);
            assert_eq!(Image::parse(&file).unwrap().load(&memory), Err(LoadError::InHole(start)));
        }
    }

    #[test]
    fn a_kernel_above_the_ram_says_how_much_is_needed() {
        let needed =
            |file: &[u8]| alloc::format!("{}", Image::parse(file).unwrap().load(&fake(8)).unwrap_err());
        assert!(needed(&kernel(0x10_0000, 0x10_0000)).contains("at least 2 MiB"));
        // Only the zeros behind it cross the end; and behind the hole, which is no memory.
        let note: [Note<'_>; 1] = [(b"Xen\0", 18, &[0, 0x10, 0, 0])];
        assert!(needed(&elf64(&[(0x1000, 8, 0x8000)], &note)).contains("at least 1 MiB"));
        assert!(needed(&elf64(&[(0x1000, 8, 8), (5 << 30, 8, 8)], &note)).contains("at least 4097 MiB"));
    }

    proptest! {
        #[test]
        fn damaged_files_never_panic(
            class in 1u8..3, at in 0usize..0x200, value: u8, more in 0usize..0x200, other: u8, cut in 0usize..0x401
        ) {
            let mut file = elf(class, &[(0x2000, 0x100, 0x1000)], &[(b"Xen\0", 18, &[0x10, 0x20, 0, 0])]);
            let len = file.len();
            file[at % len] = value;
            file[more % len] = other;
            file.truncate(cut);
            if let Ok(image) = Image::parse(&file) {
                let _ = image.load(&fake(8));
            }
        }
    }
}
