//! A blkfront request, copied out of the ring and checked.
//!
//! The entry is copied once, and so is the page of an indirect request; what was copied is checked, and
//! nothing is read again. A 32-bit frontend's entries lack the four bytes that align 64-bit words; they get
//! them back, and are the same from then on. Source: Xen public/io/blkif.h, io/protocols.h, layouts "x86_64-abi"
//! and "x86_32-abi".

use crate::grants::GrantRef;
use crate::memory::Page;

/// Bytes of a ring entry as it is read here: that of [`Layout::Wide`].
pub const LEN: usize = 112;
/// Bytes of a ring entry of [`Layout::Narrow`].
pub const NARROW_LEN: usize = 108;
/// Entries of the ring.
pub const ENTRIES: u32 = 32;
/// Segments of a request that stand in the ring.
const DIRECT_MAX: usize = 11;
/// Segments of a request, as the frontend is told; Linux uses no more unless it is told to.
pub const SEGMENTS_MAX: usize = 32;
/// Bytes of a sector.
pub const SECTOR: u32 = 512;
const SECTORS_PER_PAGE: u8 = 8;

const READ: u8 = 0;
const WRITE: u8 = 1;
const FLUSH: u8 = 3;
const INDIRECT: u8 = 6;

/// Where a direct request's segments begin in its entry.
const DIRECT_AT: usize = 24;
/// Where the reference to an indirect request's first page of segments is.
const INDIRECT_AT: usize = 28;
/// Bytes of a segment.
const SEGMENT_LEN: usize = 8;

/// What stands before the padding that only 64-bit frontends have, and behind it.
const BEFORE_PADDING: usize = 4;
const BEHIND_PADDING: usize = 8;

/// How a frontend lays out its ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// 64-bit words are aligned to eight bytes: "x86_64-abi".
    Wide,
    /// To four: "x86_32-abi".
    Narrow,
}

impl Layout {
    /// By the name that the frontend wrote. None is the backend's own: that of 64-bit programs.
    pub fn of(protocol: &str) -> Option<Self> {
        match protocol.trim() {
            "" | "x86_64-abi" => Some(Self::Wide),
            "x86_32-abi" => Some(Self::Narrow),
            _ => None,
        }
    }

    /// Bytes of a ring entry.
    pub fn stride(self) -> usize {
        match self {
            Self::Wide => LEN,
            Self::Narrow => NARROW_LEN,
        }
    }
}

/// A narrow entry as a wide one. Behind the operation's own bytes all fields are where they were, four bytes later.
pub fn widen(narrow: &[u8; NARROW_LEN]) -> [u8; LEN] {
    let mut wide = [0; LEN];
    let (head, rest) = narrow.split_at(BEFORE_PADDING);
    for (to, from) in wide.iter_mut().zip(head) {
        *to = *from;
    }
    for (to, from) in wide.iter_mut().skip(BEHIND_PADDING).zip(rest) {
        *to = *from;
    }
    wide
}

/// Part of a page. Invariant: it lies inside of the page and is not empty, unless it is [`Segment::NONE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    grant: GrantRef,
    offset: u16,
    len: u16,
}

impl Segment {
    /// None yet.
    pub const NONE: Self = Self { grant: GrantRef(0), offset: 0, len: 0 };

    /// From what the ring has: a grant, the first and the last sector; `None` if it makes no sense.
    #[inline]
    fn parse(word: u64) -> Option<Self> {
        let (first, last) = ((word >> 32) as u8, (word >> 40) as u8);
        if first > last || last >= SECTORS_PER_PAGE {
            return None;
        }
        let sectors = u16::from(last - first + 1);
        let (offset, len) = (u16::from(first) * SECTOR as u16, sectors * SECTOR as u16);
        Some(Self { grant: GrantRef(word as u32), offset, len })
    }

    /// The page.
    #[inline]
    pub fn grant(self) -> GrantRef {
        self.grant
    }

    /// First byte in the page.
    #[inline]
    pub fn offset(self) -> usize {
        usize::from(self.offset)
    }

    /// Bytes.
    #[inline]
    pub fn bytes(self) -> usize {
        usize::from(self.len)
    }
}

/// What a request is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Volume to pages.
    Read,
    /// Pages to volume.
    Write,
    /// Empty the volume's cache.
    Flush,
}

/// A response's status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i16)]
pub enum Status {
    /// BLKIF_RSP_OKAY.
    Okay = 0,
    /// BLKIF_RSP_ERROR.
    Error = -1,
    /// BLKIF_RSP_EOPNOTSUPP.
    Unsupported = -2,
}

/// What every response repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tag {
    /// The guest's number of the request.
    pub id: u64,
    /// Operation; of an indirect request the one that it stands for.
    pub op: u8,
}

impl Tag {
    /// The response for the ring.
    #[inline]
    pub fn response(self, status: Status) -> [u8; 12] {
        let mut response = [0; 12];
        let (id, rest) = response.split_at_mut(8);
        id.copy_from_slice(&self.id.to_le_bytes());
        if let [op, _, low, high] = rest {
            *op = self.op;
            [*low, *high] = (status as i16).to_le_bytes();
        }
        response
    }
}

/// A ring entry whose segments are not looked at yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// What to do.
    pub operation: Operation,
    /// First sector of the volume.
    pub sector: u64,
    /// Segments: 1 to [`SEGMENTS_MAX`], for a flush 0.
    count: usize,
    /// The page that holds them, unless they stand in the entry.
    pub indirect: Option<GrantRef>,
}

/// Reads a ring entry: what every response needs, and what to do or why not.
#[inline]
pub fn parse(entry: &[u8; LEN]) -> (Tag, Result<Head, Status>) {
    let op = if entry[0] == INDIRECT { entry[1] } else { entry[0] };
    (Tag { id: u64_at(entry, 8), op }, head(entry))
}

#[inline]
fn head(entry: &[u8; LEN]) -> Result<Head, Status> {
    let sector = u64_at(entry, 16);
    let (op, count, limit, indirect) = match entry[0] {
        INDIRECT => {
            let count = usize::from(u16::from_le_bytes([entry[2], entry[3]]));
            let grant = GrantRef(u64_at(entry, INDIRECT_AT) as u32);
            (entry[1], count, SEGMENTS_MAX, Some(grant))
        }
        op => (op, usize::from(entry[1]), DIRECT_MAX, None),
    };
    let operation = match op {
        READ => Operation::Read,
        WRITE => Operation::Write,
        FLUSH if indirect.is_none() && count == 0 => {
            return Ok(Head { operation: Operation::Flush, sector: 0, count: 0, indirect });
        }
        FLUSH => return Err(Status::Error),
        _ => return Err(Status::Unsupported),
    };
    if count == 0 || count > limit {
        return Err(Status::Error);
    }
    Ok(Head { operation, sector, count, indirect })
}

impl Head {
    /// Copies the segments out of the entry, or out of the page that the request names, and checks them
    /// against a page's size and the volume's: how many, and how many bytes they are.
    ///
    /// # Errors
    /// What to answer.
    #[inline]
    pub fn segments(
        &self,
        entry: &[u8; LEN],
        page: Option<&Page>,
        volume_sectors: u64,
        out: &mut [Segment; SEGMENTS_MAX],
    ) -> Result<(usize, u32), Status> {
        let out = out.get_mut(..self.count).ok_or(Status::Error)?;
        let len = match page {
            Some(page) => {
                let mut words = [[0; SEGMENT_LEN]; SEGMENTS_MAX];
                let words = words.get_mut(..self.count).ok_or(Status::Error)?;
                page.read(0, words.as_flattened_mut());
                check(words.iter().map(|bytes| u64::from_le_bytes(*bytes)), out)?
            }
            None => check((0..self.count).map(|n| u64_at(entry, DIRECT_AT + n * SEGMENT_LEN)), out)?,
        };
        let end = self.sector.checked_add(u64::from(len / SECTOR));
        if end.is_none_or(|end| end > volume_sectors) {
            return Err(Status::Error);
        }
        Ok((self.count, len))
    }
}

/// Checks the segments that `words` are; the bytes of all of them.
#[inline]
fn check(words: impl Iterator<Item = u64>, out: &mut [Segment]) -> Result<u32, Status> {
    let mut len = 0;
    for (word, slot) in words.zip(out) {
        *slot = Segment::parse(word).ok_or(Status::Error)?;
        len += u32::from(slot.len);
    }
    Ok(len)
}

#[inline]
fn u64_at(entry: &[u8; LEN], at: usize) -> u64 {
    entry.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
pub mod tests {
    //! Ring entries, good and bad.
    use super::*;
    use crate::memory::{Gfn, tests::fake};
    use alloc::vec::Vec;
    use proptest::prelude::*;

    /// An entry as blkfront writes it.
    pub fn entry(op: u8, id: u64, sector: u64, segments: &[(u32, u8, u8)]) -> [u8; LEN] {
        let mut entry = [0; LEN];
        entry[0] = op;
        entry[1] = segments.len() as u8;
        entry[8..16].copy_from_slice(&id.to_le_bytes());
        entry[16..24].copy_from_slice(&sector.to_le_bytes());
        for (n, segment) in segments.iter().enumerate() {
            entry[24 + 8 * n..32 + 8 * n].copy_from_slice(&segment_bytes(*segment));
        }
        entry
    }

    /// A segment as it stands in an entry or a page.
    pub fn segment_bytes((grant, first, last): (u32, u8, u8)) -> [u8; 8] {
        let [a, b, c, d] = grant.to_le_bytes();
        [a, b, c, d, first, last, 0, 0]
    }

    /// An entry whose segments are in the page `grant`.
    pub fn indirect(op: u8, id: u64, sector: u64, count: u16, grant: u32) -> [u8; LEN] {
        let mut entry = entry(INDIRECT, id, sector, &[]);
        entry[1] = op;
        entry[2..4].copy_from_slice(&count.to_le_bytes());
        entry[28..32].copy_from_slice(&grant.to_le_bytes());
        entry
    }

    fn all(
        entry: &[u8; LEN],
        page: Option<&Page>,
        sectors: u64,
    ) -> Result<(Head, Vec<Segment>, u32), Status> {
        let head = parse(entry).1?;
        let mut out = [Segment::NONE; SEGMENTS_MAX];
        let (count, len) = head.segments(entry, page, sectors, &mut out)?;
        Ok((head, out[..count].to_vec(), len))
    }

    /// A wide entry as a 32-bit frontend writes it.
    pub fn narrow(entry: &[u8; LEN]) -> [u8; NARROW_LEN] {
        let mut narrow = [0; NARROW_LEN];
        narrow[..4].copy_from_slice(&entry[..4]);
        narrow[4..].copy_from_slice(&entry[8..]);
        narrow
    }

    /// The offsets of struct blkif_x86_32_request and of its indirect form, written out.
    #[test]
    fn a_32_bit_frontends_fields_are_where_its_compiler_puts_them() {
        let mut bytes = [0; NARROW_LEN];
        bytes[..2].copy_from_slice(&[READ, 2]);
        bytes[4..12].copy_from_slice(&77u64.to_le_bytes());
        bytes[12..20].copy_from_slice(&100u64.to_le_bytes());
        bytes[20..28].copy_from_slice(&segment_bytes((9, 2, 7)));
        bytes[28..36].copy_from_slice(&segment_bytes((10, 0, 0)));
        assert_eq!(widen(&bytes), entry(READ, 77, 100, &[(9, 2, 7), (10, 0, 0)]));

        let mut bytes = [0; NARROW_LEN];
        bytes[..4].copy_from_slice(&[INDIRECT, WRITE, 32, 0]);
        bytes[4..12].copy_from_slice(&5u64.to_le_bytes());
        bytes[12..20].copy_from_slice(&9u64.to_le_bytes());
        bytes[24..28].copy_from_slice(&44u32.to_le_bytes());
        assert_eq!(widen(&bytes), indirect(WRITE, 5, 9, 32, 44));

        // The last of eleven segments is the entry's last.
        let mut bytes = [0; NARROW_LEN];
        bytes[100..108].copy_from_slice(&segment_bytes((9, 1, 2)));
        assert_eq!(widen(&bytes)[104..], segment_bytes((9, 1, 2)));
    }

    #[test]
    fn layouts_have_names() {
        for (name, layout) in [
            ("", Some(Layout::Wide)),
            ("x86_64-abi", Some(Layout::Wide)),
            ("x86_32-abi", Some(Layout::Narrow)),
        ] {
            assert_eq!(Layout::of(name), layout);
        }
        for name in ["arm-abi", "x86_32", "x86_32-abi\0", "\u{fffd}"] {
            assert_eq!(Layout::of(name), None);
        }
    }

    #[test]
    fn a_read_names_its_parts_and_length() {
        let entry = entry(0, 77, 100, &[(9, 2, 7), (10, 0, 0)]);
        assert_eq!(parse(&entry).0, Tag { id: 77, op: 0 });
        let (head, segments, len) = all(&entry, None, 107).unwrap();
        assert_eq!((head.operation, head.sector, len), (Operation::Read, 100, 3584));
        let first = segments[0];
        assert_eq!((first.grant(), first.offset(), first.bytes()), (GrantRef(9), 1024, 3072));
        assert_eq!(all(&entry, None, 106), Err(Status::Error));
    }

    #[test]
    fn an_indirect_request_has_its_segments_in_a_page() {
        let memory = fake(1);
        let page = memory.page(Gfn(0)).unwrap();
        for n in 0..33 {
            page.write(n * 8, &segment_bytes((100 + n as u32, 0, 7)));
        }
        let request = indirect(1, 5, 0, 32, 44);
        let (tag, head) = parse(&request);
        // The response repeats the operation that the request stands for.
        assert_eq!(tag, Tag { id: 5, op: 1 });
        assert_eq!(head.unwrap().indirect, Some(GrantRef(44)));
        let (head, segments, len) = all(&request, Some(&page), 256).unwrap();
        assert_eq!((head.operation, segments.len(), len), (Operation::Write, 32, 128 * 1024));
        assert_eq!(segments[31].grant(), GrantRef(131));
        assert_eq!(all(&request, Some(&page), 255), Err(Status::Error));
        for (request, status) in [
            (indirect(0, 5, 0, 33, 44), Status::Error),
            (indirect(0, 5, 0, 0, 44), Status::Error),
            (indirect(3, 5, 0, 0, 44), Status::Error),
            (indirect(6, 5, 0, 1, 44), Status::Unsupported),
        ] {
            assert_eq!(parse(&request).1, Err(status));
        }
    }

    #[test]
    fn what_makes_no_sense_is_an_error() {
        let status = |entry: &[u8; LEN]| all(entry, None, 100).unwrap_err();
        assert_eq!(status(&entry(0, 1, 0, &[])), Status::Error);
        assert_eq!(status(&entry(1, 1, 0, &[(8, 3, 2)])), Status::Error);
        assert_eq!(status(&entry(1, 1, 0, &[(8, 0, 8)])), Status::Error);
        assert_eq!(status(&entry(1, 1, 93, &[(8, 0, 7)])), Status::Error);
        assert_eq!(status(&entry(1, 1, u64::MAX, &[(8, 0, 7)])), Status::Error);
        assert_eq!(status(&entry(2, 1, 0, &[(8, 0, 7)])), Status::Unsupported);
        assert_eq!(status(&entry(3, 1, 0, &[(8, 0, 7)])), Status::Error);
        let mut many = entry(0, 1, 0, &[(8, 0, 0)]);
        many[1] = 12;
        assert_eq!(status(&many), Status::Error);
        assert_eq!(parse(&entry(3, 1, 0, &[])).1.unwrap().operation, Operation::Flush);
    }

    #[test]
    fn responses_repeat_number_and_operation() {
        let response = Tag { id: 5, op: 1 }.response(Status::Unsupported);
        assert_eq!(response, [5, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0xfe, 0xff]);
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_lies_in_pages_and_volume(
            mut entry in prop::collection::vec(any::<u8>(), LEN),
            is_sane: bool,
            is_narrow: bool,
            words in prop::collection::vec((any::<u32>(), 0u8..10, 0u8..10), 40),
            sectors: u64
        ) {
            let memory = fake(1);
            let page = memory.page(Gfn(0)).unwrap();
            for (n, segment) in words.iter().enumerate() {
                page.write(n * 8, &segment_bytes(*segment));
            }
            entry[0] %= 8;
            if is_sane {
                entry[1] %= 14;
                entry[2] %= 34;
                entry[3] = 0;
            }
            let entry = match is_narrow {
                true => widen(entry.first_chunk().unwrap()),
                false => *entry.first_chunk().unwrap(),
            };
            let head = parse(&entry).1;
            let page = head.ok().and_then(|head| head.indirect).map(|_| &page);
            if let Ok((head, segments, len)) = all(&entry, page, sectors) {
                let inside = |s: &Segment| s.bytes() > 0 && s.offset() + s.bytes() <= 4096;
                prop_assert!(segments.iter().all(inside) && segments.len() <= SEGMENTS_MAX);
                prop_assert_eq!(segments.iter().map(|s| s.bytes()).sum::<usize>(), len as usize);
                prop_assert!(head.sector + u64::from(len / 512) <= sectors);
                prop_assert!(head.operation == Operation::Flush || len > 0);
            }
        }
    }
}
