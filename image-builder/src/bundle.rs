//! The boot bundle: written here, read back by `image-builder list` and by the tests.
//!
//! Invariant: every file starts on a page boundary and shares no page with another, so that init can hand
//! out its frames. The format is [`proto::bundle`].

use std::io::{Read as _, Write};
use std::path::PathBuf;

use proto::abi::PAGE_SIZE;
use proto::bundle::{Entry, Header, MAGIC, SEGMENTS_MAX, Segment, VERSION};
use proto::text::Text;

use crate::Error;
use crate::elf::Flat;

const HEADER_LEN: usize = size_of::<Header>();
const _: () = assert!(HEADER_LEN == 56 + SEGMENTS_MAX * 40 - 8);

/// Where a file's content comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Here it is.
    Bytes(Vec<u8>),
    /// From a file of the host.
    Path(PathBuf),
}

/// A file of the bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Name in the bundle.
    pub name: String,
    /// Content.
    pub content: Content,
}

impl File {
    /// A file with this content.
    pub fn bytes(name: impl Into<String>, bytes: Vec<u8>) -> Self {
        Self { name: name.into(), content: Content::Bytes(bytes) }
    }

    /// A file with the content of a host file.
    pub fn path(name: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        Self { name: name.into(), content: Content::Path(path.into()) }
    }

    fn len(&self) -> Result<u64, Error> {
        match &self.content {
            Content::Bytes(bytes) => Ok(bytes.len() as u64),
            Content::Path(path) => Ok(std::fs::metadata(path).map_err(Error::io(path))?.len()),
        }
    }
}

/// Where everything is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of the bundle, whole pages.
    pub len: u64,
    /// Init's entry point.
    pub init_entry: u64,
    /// Init's program.
    pub segments: Vec<(u64, u64, u64, u64, u64)>,
    /// The files.
    pub entries: Vec<Entry>,
}

/// Writes a bundle.
///
/// # Errors
/// A name that is too long or used twice, too many segments, a file that cannot be read or changes its
/// length meanwhile, an error of the writer.
pub fn write(out: &mut impl Write, init: &Flat, files: &[File]) -> Result<Layout, Error> {
    if init.segments.len() > SEGMENTS_MAX {
        return Err(Error::Bundle(format!(
            "init's program has {} segments; the bundle's header holds {SEGMENTS_MAX}",
            init.segments.len()
        )));
    }
    let mut entries = Vec::new();
    for file in files {
        let name = Text::try_from(file.name.as_str())
            .map_err(|_| Error::Bundle(format!("{}: the name is longer than 64 bytes", file.name)))?;
        if entries.iter().any(|e: &Entry| e.name == name) {
            return Err(Error::Bundle(format!("{name}: there are two files of this name")));
        }
        entries.push(Entry { name, offset: u64::MAX, len: file.len()? });
    }
    // Offsets are found with the largest encoding that the index can have.
    let index_max = encode_index(&entries)?.len();
    let mut end = (HEADER_LEN as u64 + index_max as u64).next_multiple_of(PAGE_SIZE);
    let mut place = |len: u64| {
        let offset = end;
        end = (end + len).next_multiple_of(PAGE_SIZE);
        offset
    };
    let segments: Vec<_> = init
        .segments
        .iter()
        .map(|s| (s.addr, place(s.bytes.len() as u64), s.bytes.len() as u64, s.memory_len, s.flags))
        .collect();
    for entry in &mut entries {
        entry.offset = place(entry.len);
    }
    let layout = Layout { len: end, init_entry: init.entry, segments, entries };
    let index = encode_index(&layout.entries)?;

    let mut out = Counted { out, written: 0 };
    out.put(&encode_header(&layout, index.len() as u64))?;
    out.put(&index)?;
    for segment in &init.segments {
        out.align()?;
        out.put(&segment.bytes)?;
    }
    for (file, entry) in files.iter().zip(&layout.entries) {
        out.align()?;
        match &file.content {
            Content::Bytes(bytes) => out.put(bytes)?,
            Content::Path(path) => {
                let source = std::fs::File::open(path).map_err(Error::io(path))?;
                let copied = std::io::copy(&mut source.take(entry.len), &mut out).map_err(Error::io(path))?;
                if copied != entry.len {
                    return Err(Error::Bundle(format!("{}: the file became shorter", path.display())));
                }
            }
        }
    }
    out.align()?;
    Ok(layout)
}

/// Reads a bundle's header and index back.
///
/// # Errors
/// Whatever is not as [`write`] makes it.
pub fn read(bundle: &[u8]) -> Result<Layout, Error> {
    let bad = |what: &str| Error::Bundle(format!("not a boot bundle: {what}"));
    let word = |at: usize| -> Result<u64, Error> {
        let bytes = bundle.get(at..at + 8).and_then(|b| b.try_into().ok());
        Ok(u64::from_le_bytes(bytes.ok_or_else(|| bad("too short"))?))
    };
    if word(0)? != MAGIC {
        return Err(bad("it does not begin with the magic number"));
    }
    let (version, segment_count) = (word(8)? as u32, (word(8)? >> 32) as usize);
    if version != VERSION {
        return Err(bad(&format!("its version is {version}, not {VERSION}")));
    }
    let (len, init_entry) = (word(16)?, word(24)?);
    if len != bundle.len() as u64 {
        return Err(bad(&format!("it has {} bytes where its header says {len}", bundle.len())));
    }
    if segment_count > SEGMENTS_MAX {
        return Err(bad("too many segments"));
    }
    let mut segments = Vec::new();
    for i in 0..segment_count {
        let at = 32 + 40 * i;
        segments.push((word(at)?, word(at + 8)?, word(at + 16)?, word(at + 24)?, word(at + 32)?));
    }
    let tail = 32 + 40 * SEGMENTS_MAX;
    let (index_offset, index_len) = (word(tail)?, word(tail + 8)?);
    let index = index_offset
        .checked_add(index_len)
        .and_then(|end| bundle.get(usize::try_from(index_offset).ok()?..usize::try_from(end).ok()?));
    let index = index.ok_or_else(|| bad("the index is outside"))?;
    let (entries, rest): (Vec<Entry>, _) =
        postcard::take_from_bytes(index).map_err(|e| bad(&format!("the index is damaged ({e})")))?;
    if !rest.is_empty() {
        return Err(bad("the index is damaged (bytes are left over)"));
    }
    for entry in &entries {
        if entry.offset % PAGE_SIZE != 0 || entry.offset.checked_add(entry.len).is_none_or(|end| end > len) {
            return Err(bad(&format!("{} is outside", entry.name)));
        }
    }
    Ok(Layout { len, init_entry, segments, entries })
}

fn encode_index(entries: &[Entry]) -> Result<Vec<u8>, Error> {
    postcard::to_stdvec(entries).map_err(|e| Error::Bundle(format!("the index cannot be encoded: {e}")))
}

fn encode_header(layout: &Layout, index_len: u64) -> Vec<u8> {
    let mut header = Vec::with_capacity(HEADER_LEN);
    let mut word = |value: u64| header.extend_from_slice(&value.to_le_bytes());
    word(MAGIC);
    word(u64::from(VERSION) | (layout.segments.len() as u64) << 32);
    word(layout.len);
    word(layout.init_entry);
    for i in 0..SEGMENTS_MAX {
        let Segment { addr, offset, file_len, memory_len, flags } = layout
            .segments
            .get(i)
            .map(|&(addr, offset, file_len, memory_len, flags)| Segment {
                addr,
                offset,
                file_len,
                memory_len,
                flags,
            })
            .unwrap_or_default();
        for value in [addr, offset, file_len, memory_len, flags] {
            word(value);
        }
    }
    word(HEADER_LEN as u64);
    word(index_len);
    header
}

/// A writer that knows how far it is.
struct Counted<'a, W> {
    out: &'a mut W,
    written: u64,
}

impl<W: Write> Counted<'_, W> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.write_all(bytes).map_err(Error::io("boot bundle"))
    }

    fn align(&mut self) -> Result<(), Error> {
        let missing = self.written.next_multiple_of(PAGE_SIZE) - self.written;
        self.put(&[0; PAGE_SIZE as usize][..missing as usize])
    }
}

impl<W: Write> Write for Counted<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::FlatSegment;
    use core::mem::offset_of;

    fn init() -> Flat {
        let segment = |addr, len: usize, memory_len, flags| FlatSegment {
            addr,
            bytes: vec![addr as u8 | 1; len],
            memory_len,
            flags,
        };
        Flat {
            entry: 0x20_1000,
            segments: vec![segment(0x20_0000, 10, 10, 1), segment(0x20_1000, 5000, 9000, 5)],
        }
    }

    #[test]
    fn a_bundle_reads_back_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kernel");
        std::fs::write(&path, [7; 4097]).unwrap();
        let files = [
            File::bytes("manifest", vec![1, 2, 3]),
            File::bytes("empty", vec![]),
            File::path("guest/0/kernel", &path),
        ];
        let mut out = Vec::new();
        let written = write(&mut out, &init(), &files).unwrap();
        assert_eq!(written.len, out.len() as u64);
        assert_eq!(read(&out).unwrap(), written);
        assert_eq!(out.len() % 4096, 0);
        let content = |name: &str| {
            let entry = written.entries.iter().find(|e| &*e.name == name).unwrap();
            assert_eq!(entry.offset % 4096, 0);
            &out[entry.offset as usize..(entry.offset + entry.len) as usize]
        };
        assert_eq!(content("manifest"), [1, 2, 3]);
        assert_eq!(content("guest/0/kernel"), [7; 4097]);
        for (segment, flat) in written.segments.iter().zip(init().segments) {
            assert_eq!((segment.0, segment.3, segment.4), (flat.addr, flat.memory_len, flat.flags));
            assert_eq!(out[segment.1 as usize..(segment.1 + segment.2) as usize], flat.bytes[..]);
        }
        // No two parts share a page.
        let mut starts: Vec<_> = written.segments.iter().map(|s| (s.1, s.2)).collect();
        starts.extend(written.entries.iter().filter(|e| e.len > 0).map(|e| (e.offset, e.len)));
        starts.sort_unstable();
        assert!(starts.windows(2).all(|w| (w[0].0 + w[0].1).next_multiple_of(4096) <= w[1].0));
    }

    #[test]
    fn the_header_is_where_the_kernel_looks() {
        assert_eq!(offset_of!(Header, segment_count), 12);
        assert_eq!(offset_of!(Header, len), 16);
        assert_eq!(offset_of!(Header, init_entry), 24);
        assert_eq!(offset_of!(Header, segments), 32);
        assert_eq!(offset_of!(Header, index_offset), 32 + 40 * SEGMENTS_MAX);
        assert_eq!(size_of::<Segment>(), 40);
        let mut out = Vec::new();
        write(&mut out, &init(), &[]).unwrap();
        assert_eq!(&out[..8], b"AILURUSB");
        assert_eq!(out[8..16], [1, 0, 0, 0, 2, 0, 0, 0]);
    }

    #[test]
    fn names_are_checked() {
        let same = [File::bytes("a", vec![]), File::bytes("a", vec![])];
        let error = write(&mut Vec::new(), &init(), &same).unwrap_err().to_string();
        assert_eq!(error, "a: there are two files of this name");
        let long = [File::bytes("x".repeat(65), vec![])];
        assert!(write(&mut Vec::new(), &init(), &long).unwrap_err().to_string().contains("longer than 64"));
        let missing = [File::path("a", "/nonexistent/file")];
        let error = write(&mut Vec::new(), &init(), &missing).unwrap_err().to_string();
        assert!(error.starts_with("/nonexistent/file: "), "{error}");
    }

    #[test]
    fn damage_is_noticed() {
        let mut out = Vec::new();
        write(&mut out, &init(), &[File::bytes("a", vec![1])]).unwrap();
        assert!(read(&out[..out.len() - 1]).is_err());
        assert!(read(b"short").is_err());
        for (at, value) in [(0, 0), (8, 9), (12, 200), (32 + 160, 0xff), (32 + 168, 0xff)] {
            let mut bad = out.clone();
            bad[at] = value;
            assert!(read(&bad).is_err(), "byte {at}");
        }
    }
}
