//! The boot bundle's files: where each one is, as bytes and as frames to hand out.
//!
//! Files begin on page boundaries, so a file's frames can be mapped read-only into a domain without a
//! copy; what follows a file in its last page belongs to no other file.

use alloc::vec::Vec;

use proto::abi::{PAGE_SIZE, Slot};
use proto::bundle::{Entry, Header, MAGIC, VERSION};

/// The bundle as init has it.
#[derive(Debug)]
pub struct Bundle {
    bytes: &'static [u8],
    entries: Vec<Entry>,
    runs: Vec<BundleRun>,
}

/// A run of the bundle's frames.
#[derive(Debug, Clone, Copy)]
pub struct BundleRun {
    /// Its capability.
    pub slot: Slot,
    /// First frame number.
    pub first: u64,
    /// Frames.
    pub count: u64,
}

/// A file.
#[derive(Debug, Clone, Copy)]
pub struct File {
    /// Its content.
    pub bytes: &'static [u8],
    /// Its place in the bundle.
    pub offset: u64,
}

/// Frames of the bundle: a part of one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pages {
    /// Capability of the run.
    pub slot: Slot,
    /// First frame of the part, counted from the run's.
    pub offset: u64,
    /// First frame number.
    pub first: u64,
    /// Frames.
    pub count: u64,
}

/// A little-endian word of the header.
fn word(bytes: &[u8], offset: usize) -> Option<u64> {
    let raw = bytes.get(offset..offset.checked_add(8)?)?;
    Some(u64::from_le_bytes(raw.try_into().ok()?))
}

impl Bundle {
    /// Reads the index.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &'static [u8], runs: Vec<BundleRun>) -> Result<Self, &'static str> {
        let field = |offset| word(bytes, offset).ok_or("the bundle is truncated");
        if field(core::mem::offset_of!(Header, magic))? != MAGIC {
            return Err("the bundle has no magic number");
        }
        if field(core::mem::offset_of!(Header, version))? as u32 != VERSION {
            return Err("the bundle has another version");
        }
        let offset =
            usize::try_from(field(core::mem::offset_of!(Header, index_offset))?).map_err(|_| "index")?;
        let len = usize::try_from(field(core::mem::offset_of!(Header, index_len))?).map_err(|_| "index")?;
        let index = offset.checked_add(len).and_then(|end| bytes.get(offset..end));
        let index = index.ok_or("the bundle's index is outside of it")?;
        let entries: Vec<Entry> = postcard::from_bytes(index).map_err(|_| "the bundle's index is garbled")?;
        for entry in &entries {
            let end = entry.offset.checked_add(entry.len).ok_or("a file's length is absurd")?;
            if !entry.offset.is_multiple_of(PAGE_SIZE) || end > bytes.len() as u64 {
                return Err("a file of the bundle is outside of it or not on a page boundary");
            }
        }
        Ok(Self { bytes, entries, runs })
    }

    /// A file by name.
    pub fn file(&self, name: &str) -> Option<File> {
        let entry = self.entries.iter().find(|entry| &*entry.name == name)?;
        let start = usize::try_from(entry.offset).ok()?;
        let bytes = self.bytes.get(start..start.checked_add(usize::try_from(entry.len).ok()?)?)?;
        Some(File { bytes, offset: entry.offset })
    }

    /// The frames that hold `len` bytes from `offset` (a multiple of the page size) of the bundle.
    pub fn pages(&self, offset: u64, len: u64) -> Option<Pages> {
        let (mut page, count) = (offset / PAGE_SIZE, len.div_ceil(PAGE_SIZE));
        for run in &self.runs {
            if page < run.count {
                let is_inside = page.checked_add(count)? <= run.count;
                let pages = Pages { slot: run.slot, offset: page, first: run.first + page, count };
                return is_inside.then_some(pages);
            }
            page -= run.count;
        }
        None
    }

    /// Frames of the whole bundle.
    pub fn frames(&self) -> u64 {
        self.runs.iter().map(|run| run.count).sum()
    }
}

/// Tests, and makers of input that other tests use.
#[cfg(test)]
pub mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec;
    use proto::text::Text;

    /// A bundle of these files.
    pub fn image(files: &[(&str, &[u8])]) -> &'static [u8] {
        let mut entries = Vec::new();
        let mut offset = 4096 * 4;
        for (name, bytes) in files {
            entries.push(Entry { name: Text::truncated(name), offset, len: bytes.len() as u64 });
            offset = (offset + bytes.len() as u64).next_multiple_of(4096);
        }
        let mut image = vec![0; offset as usize];
        let index = postcard::to_allocvec(&entries).unwrap();
        image[4096..4096 + index.len()].copy_from_slice(&index);
        image[..8].copy_from_slice(&MAGIC.to_le_bytes());
        image[8..12].copy_from_slice(&VERSION.to_le_bytes());
        let at = core::mem::offset_of!(Header, index_offset);
        image[at..at + 8].copy_from_slice(&4096u64.to_le_bytes());
        image[at + 8..at + 16].copy_from_slice(&(index.len() as u64).to_le_bytes());
        for ((_, bytes), entry) in files.iter().zip(&entries) {
            image[entry.offset as usize..][..bytes.len()].copy_from_slice(bytes);
        }
        image.leak()
    }

    #[test]
    fn files_are_found_with_their_frames() {
        let image = image(&[("a", &[1; 5000]), ("b", &[2; 10])]);
        let runs =
            vec![BundleRun { slot: 9, first: 100, count: 3 }, BundleRun { slot: 8, first: 500, count: 30 }];
        let bundle = Bundle::parse(image, runs).unwrap();
        assert_eq!(bundle.file("b").unwrap().bytes, [2; 10]);
        assert!(bundle.file("c").is_none());
        let a = bundle.file("a").unwrap();
        assert_eq!(bundle.pages(a.offset, 5000), Some(Pages { slot: 8, offset: 1, first: 501, count: 2 }));
        assert_eq!(bundle.pages(4096 * 2, 5000), None);
        assert_eq!(bundle.pages(4096 * 40, 1), None);
    }

    #[test]
    fn a_broken_bundle_is_refused() {
        let good = image(&[("a", &[1; 5000])]);
        assert!(Bundle::parse(&good[..50], Vec::new()).is_err());
        let mut bad = good.to_vec();
        bad[0] ^= 1;
        assert!(Bundle::parse(bad.leak(), Vec::new()).is_err());
        let short = &good[..4096 * 5];
        assert!(Bundle::parse(short, Vec::new()).unwrap_err().to_string().contains("outside"));
    }
}
