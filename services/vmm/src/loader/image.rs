//! The kernel's ELF file: where its segments go and where it is entered.
//!
//! Segments are loaded at their physical address. The entry point is that of the Xen note PHYS32_ENTRY,
//! which is read from the file because some kernels have the note outside of every loaded segment.
//! Sources: System V ABI (ELF); Xen docs/misc/pvh.pandoc and public/elfnote.h.

use elf::ElfBytes;
use elf::abi::{EM_386, EM_X86_64, PT_LOAD, PT_NOTE};
use elf::endian::AnyEndian;
use elf::note::Note;

use super::LoadError;
use crate::memory::{GuestMemory, GuestPhys};

/// XEN_ELFNOTE_PHYS32_ENTRY.
const PHYS32_ENTRY: u64 = 18;
/// Most loadable segments.
const SEGMENTS_MAX: usize = 32;

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

/// A checked kernel.
#[derive(Debug)]
pub struct Image<'a> {
    /// Its segments.
    pub segments: heapless::Vec<Segment<'a>, SEGMENTS_MAX>,
    /// The PVH entry point.
    pub entry: u64,
    /// First address behind all segments.
    pub end: u64,
}

const TRUNCATED: LoadError = LoadError::Truncated("an ELF segment");

impl<'a> Image<'a> {
    /// Checks an ELF file and finds what there is to load.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn parse(file: &'a [u8]) -> Result<Self, LoadError> {
        if file.len() < 64 {
            return Err(LoadError::Truncated("the ELF header"));
        }
        let elf = ElfBytes::<AnyEndian>::minimal_parse(file)
            .map_err(|_| LoadError::Corrupt("its ELF header or one of its tables"))?;
        let is_x86 = matches!(elf.ehdr.e_machine, EM_X86_64 | EM_386);
        if !is_x86 || elf.ehdr.endianness != AnyEndian::Little {
            return Err(LoadError::WrongMachine);
        }
        let headers = elf.segments().ok_or(LoadError::Corrupt("it has no program headers"))?;
        let mut image = Self { segments: heapless::Vec::new(), entry: 0, end: 0 };
        let mut entry = None;
        for header in headers.iter() {
            match header.p_type {
                PT_LOAD if header.p_memsz > 0 => {
                    let bytes = elf.segment_data(&header).map_err(|_| TRUNCATED)?;
                    if header.p_filesz > header.p_memsz {
                        return Err(LoadError::Corrupt("a segment is longer in the file than in memory"));
                    }
                    let end = header.p_paddr.checked_add(header.p_memsz);
                    image.end = image.end.max(end.ok_or(LoadError::Corrupt("a segment's address"))?);
                    image
                        .segments
                        .push(Segment { start: header.p_paddr, bytes, len: header.p_memsz })
                        .map_err(|_| LoadError::Corrupt("it has too many segments"))?;
                }
                PT_NOTE if entry.is_none() => {
                    let notes = elf.segment_data_as_notes(&header);
                    entry = notes.map_err(|_| LoadError::Truncated("an ELF note"))?.find_map(pvh_entry);
                }
                _ => {}
            }
        }
        image.entry = entry.ok_or(LoadError::NoPvhNote)?;
        let holds = |segment: &Segment<'_>| {
            image.entry.checked_sub(segment.start).is_some_and(|offset| offset < segment.len)
        };
        if !image.segments.iter().any(holds) {
            return Err(LoadError::EntryOutside(image.entry));
        }
        Ok(image)
    }

    /// Copies the segments into guest RAM.
    ///
    /// # Errors
    /// [`LoadError::DoesNotFit`].
    pub fn load(&self, memory: &GuestMemory) -> Result<(), LoadError> {
        for segment in &self.segments {
            let window = memory
                .ram_window(GuestPhys(segment.start), segment.len)
                .map_err(|_| LoadError::DoesNotFit("the kernel", self.end))?;
            // RAM starts as zeros but the guest may be started again in the same frames.
            let filled = segment.bytes.len();
            let zeroed = (segment.len as usize).saturating_sub(filled);
            window
                .write(0, segment.bytes)
                .and_then(|()| window.fill(filled, zeroed, 0))
                .map_err(|_| LoadError::DoesNotFit("the kernel", self.end))?;
        }
        Ok(())
    }
}

fn pvh_entry(note: Note<'_>) -> Option<u64> {
    let Note::Unknown(note) = note else { return None };
    if note.n_type != PHYS32_ENTRY || note.name_str().ok()? != "Xen" {
        return None;
    }
    // Four or eight bytes; the address is in the low 32 bits either way.
    note.desc.first_chunk().map(|bytes| u64::from(u32::from_le_bytes(*bytes)))
}

#[cfg(test)]
pub mod tests {
    //! A small ELF file, and what can be wrong with it.
    use super::*;
    use crate::memory::tests::fake;
    use alloc::vec;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
        file[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// An ELF64 kernel: one segment of 0x100 bytes (0x1000 in memory) at `paddr`, entered at `entry`.
    pub fn kernel(paddr: u64, entry: u32) -> Vec<u8> {
        let mut file = vec![0; 0x400];
        put(&mut file, 0, b"\x7fELF\x02\x01\x01");
        put(&mut file, 16, &[2, 0, 62, 0, 1]);
        put(&mut file, 32, &64u64.to_le_bytes());
        put(&mut file, 52, &[64, 0, 56, 0, 2, 0]);
        let load = [1u64 | 5 << 32, 0x200, 0xffff_ffff_8100_0000, paddr, 0x100, 0x1000, 0x1000];
        let note = [4u64 | 4 << 32, 0x300, 0, 0, 24, 24, 4];
        for (n, word) in load.iter().chain(&note).enumerate() {
            put(&mut file, 64 + 8 * n, &word.to_le_bytes());
        }
        put(&mut file, 0x200, &[0x90; 0x100]);
        put(&mut file, 0x300, &[4, 0, 0, 0, 8, 0, 0, 0, 18, 0, 0, 0]);
        put(&mut file, 0x30c, b"Xen\0");
        put(&mut file, 0x310, &u64::from(entry).to_le_bytes());
        file
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
    fn defects_are_told_apart() {
        let parse = |file: &[u8]| Image::parse(file).map(|image| image.entry);
        let good = kernel(0x2000, 0x2010);
        assert_eq!(parse(&good), Ok(0x2010));
        assert_eq!(parse(&good[..40]), Err(LoadError::Truncated("the ELF header")));
        assert_eq!(parse(&good[..0x280]), Err(TRUNCATED));
        assert_eq!(parse(&kernel(0x2000, 0x4000)), Err(LoadError::EntryOutside(0x4000)));
        let mut no_note = good.clone();
        no_note[0x30c] = b'x';
        assert_eq!(parse(&no_note), Err(LoadError::NoPvhNote));
        let mut arm = good.clone();
        arm[18] = 183;
        assert_eq!(parse(&arm), Err(LoadError::WrongMachine));
        let mut wrapping = good.clone();
        put(&mut wrapping, 64 + 24, &u64::MAX.to_le_bytes());
        assert!(matches!(parse(&wrapping), Err(LoadError::Corrupt(_))));
    }

    #[test]
    fn a_kernel_above_the_ram_says_how_much_is_needed() {
        let file = kernel(0x10_0000, 0x10_0000);
        let error = Image::parse(&file).unwrap().load(&fake(8)).unwrap_err();
        assert_eq!(error, LoadError::DoesNotFit("the kernel", 0x10_1000));
        assert!(alloc::format!("{error}").contains("at least 2 MiB"));
    }

    proptest! {
        #[test]
        fn damaged_files_never_panic(at in 0usize..0x400, value: u8, more in 0usize..0x400, other: u8, cut in 0usize..0x401) {
            let mut file = kernel(0x2000, 0x2010);
            file[at] = value;
            file[more] = other;
            file.truncate(cut);
            if let Ok(image) = Image::parse(&file) {
                let _ = image.load(&fake(8));
            }
        }
    }
}
