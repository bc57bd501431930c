//! A blkfront request, copied out of the ring and checked.
//!
//! Source: Xen public/io/blkif.h, layout "x86_64-abi".

use crate::grants::GrantRef;

/// Bytes of a ring entry.
pub const LEN: usize = 112;
/// Entries of the ring.
pub const ENTRIES: u32 = 32;
/// Segments of a request.
pub const SEGMENTS_MAX: usize = 11;
/// Bytes of a sector.
pub const SECTOR: u32 = 512;
const SECTORS_PER_PAGE: u8 = 8;

const READ: u8 = 0;
const WRITE: u8 = 1;
const FLUSH: u8 = 3;

/// Part of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// The page.
    pub grant: GrantRef,
    /// First byte.
    pub offset: usize,
    /// Bytes.
    pub len: usize,
}

/// What a request is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Volume to pages.
    Read(Transfer),
    /// Pages to volume.
    Write(Transfer),
    /// Empty the volume's cache.
    Flush,
}

/// What a transfer moves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transfer {
    /// First sector.
    pub sector: u64,
    /// Where in memory, in order.
    pub segments: heapless::Vec<Segment, SEGMENTS_MAX>,
    /// Bytes.
    pub len: u32,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag {
    /// The guest's number of the request.
    pub id: u64,
    /// Operation.
    pub op: u8,
}

impl Tag {
    /// The response for the ring.
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

/// Reads a ring entry: what every response needs, and what to do or why not.
pub fn parse(entry: &[u8; LEN], volume_sectors: u64) -> (Tag, Result<Operation, Status>) {
    let tag = Tag { id: u64_at(entry, 8), op: entry[0] };
    (tag, operation(entry, volume_sectors))
}

fn operation(entry: &[u8; LEN], volume_sectors: u64) -> Result<Operation, Status> {
    let (op, count) = (entry[0], usize::from(entry[1]));
    match op {
        FLUSH if count == 0 => return Ok(Operation::Flush),
        READ | WRITE => {}
        FLUSH => return Err(Status::Error),
        _ => return Err(Status::Unsupported),
    }
    if count == 0 || count > SEGMENTS_MAX {
        return Err(Status::Error);
    }
    let mut transfer = Transfer { sector: u64_at(entry, 16), segments: heapless::Vec::new(), len: 0 };
    for segment in entry[24..].chunks_exact(8).take(count) {
        let [a, b, c, d, first, last, ..] = *segment else { return Err(Status::Error) };
        if first > last || last >= SECTORS_PER_PAGE {
            return Err(Status::Error);
        }
        let len = u32::from(last - first + 1) * SECTOR;
        transfer.len += len;
        let segment = Segment {
            grant: GrantRef(u32::from_le_bytes([a, b, c, d])),
            offset: usize::from(first) * SECTOR as usize,
            len: len as usize,
        };
        transfer.segments.push(segment).map_err(|_| Status::Error)?;
    }
    let end = transfer.sector.checked_add(u64::from(transfer.len / SECTOR));
    if end.is_none_or(|end| end > volume_sectors) {
        return Err(Status::Error);
    }
    Ok(if op == READ { Operation::Read(transfer) } else { Operation::Write(transfer) })
}

fn u64_at(entry: &[u8; LEN], at: usize) -> u64 {
    entry.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
pub mod tests {
    //! Ring entries, good and bad.
    use super::*;
    use proptest::prelude::*;

    /// An entry as blkfront writes it.
    pub fn entry(op: u8, id: u64, sector: u64, segments: &[(u32, u8, u8)]) -> [u8; LEN] {
        let mut entry = [0; LEN];
        entry[0] = op;
        entry[1] = segments.len() as u8;
        entry[8..16].copy_from_slice(&id.to_le_bytes());
        entry[16..24].copy_from_slice(&sector.to_le_bytes());
        for (n, (grant, first, last)) in segments.iter().enumerate() {
            entry[24 + 8 * n..28 + 8 * n].copy_from_slice(&grant.to_le_bytes());
            entry[28 + 8 * n] = *first;
            entry[29 + 8 * n] = *last;
        }
        entry
    }

    #[test]
    fn a_read_names_its_parts_and_length() {
        let (tag, operation) = parse(&entry(0, 77, 100, &[(9, 2, 7), (10, 0, 0)]), 107);
        assert_eq!(tag, Tag { id: 77, op: 0 });
        let Ok(Operation::Read(transfer)) = operation else { panic!() };
        assert_eq!((transfer.sector, transfer.len), (100, 3584));
        assert_eq!(transfer.segments[0], Segment { grant: GrantRef(9), offset: 1024, len: 3072 });
    }

    #[test]
    fn what_makes_no_sense_is_an_error() {
        let status = |entry: &[u8; LEN]| parse(entry, 100).1.unwrap_err();
        assert_eq!(status(&entry(0, 1, 0, &[])), Status::Error);
        assert_eq!(status(&entry(1, 1, 0, &[(8, 3, 2)])), Status::Error);
        assert_eq!(status(&entry(1, 1, 0, &[(8, 0, 8)])), Status::Error);
        assert_eq!(status(&entry(1, 1, 93, &[(8, 0, 7)])), Status::Error);
        assert_eq!(status(&entry(1, 1, u64::MAX, &[(8, 0, 7)])), Status::Error);
        assert_eq!(status(&entry(2, 1, 0, &[(8, 0, 7)])), Status::Unsupported);
        assert_eq!(status(&entry(6, 1, 0, &[])), Status::Unsupported);
        let mut many = entry(0, 1, 0, &[(8, 0, 0)]);
        many[1] = 12;
        assert_eq!(status(&many), Status::Error);
        assert_eq!(parse(&entry(3, 1, 0, &[]), 100).1, Ok(Operation::Flush));
    }

    #[test]
    fn responses_repeat_number_and_operation() {
        let response = Tag { id: 5, op: 1 }.response(Status::Unsupported);
        assert_eq!(response, [5, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0xfe, 0xff]);
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_lies_in_pages_and_volume(bytes: [u8; 32], more: [u8; 32], last: [u8; 32], sectors: u64) {
            let mut entry = [0; LEN];
            entry[..32].copy_from_slice(&bytes);
            entry[32..64].copy_from_slice(&more);
            entry[64..96].copy_from_slice(&last);
            entry[0] %= 4;
            entry[1] %= 14;
            if let Ok(Operation::Read(transfer) | Operation::Write(transfer)) = parse(&entry, sectors).1 {
                prop_assert!(transfer.segments.iter().all(|s| s.offset + s.len <= 4096 && s.len > 0));
                prop_assert_eq!(transfer.segments.iter().map(|s| s.len as u32).sum::<u32>(), transfer.len);
                prop_assert!(transfer.sector + u64::from(transfer.len / 512) <= sectors);
            }
        }
    }
}
