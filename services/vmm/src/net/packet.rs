//! Entries of netfront's rings, and packets that are spread over several of them.
//!
//! The first slot of a packet carries the whole packet's size, the others their own. Packets with extra
//! slots (segmentation) are refused: that was not offered. Source: Xen public/io/netif.h.

use crate::front_ring::BrokenRing;
use crate::grants::{BadGrant, GrantRef};
use crate::memory::PAGE;

/// Bytes of a tx entry.
pub const TX_LEN: usize = 12;
/// Bytes of an rx entry.
pub const RX_LEN: usize = 8;
/// Slots of one packet that are accepted (XEN_NETIF_NR_SLOTS_MIN).
pub const TX_SLOTS_MAX: usize = 18;

const CHECKSUM_BLANK: u16 = 1;
const DATA_VALIDATED: u16 = 2;
const MORE_DATA: u16 = 4;
const EXTRA_INFO: u16 = 8;

const OKAY: i16 = 0;
const ERROR: i16 = -1;

/// A tx request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TxRequest {
    /// The page.
    pub grant: GrantRef,
    /// First byte in it.
    pub offset: usize,
    flags: u16,
    /// The guest's number of the slot.
    pub id: u16,
    size: u16,
}

impl TxRequest {
    /// Reads an entry.
    pub fn decode(entry: [u8; TX_LEN]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = entry;
        Self {
            grant: GrantRef(u32::from_le_bytes([a, b, c, d])),
            offset: usize::from(u16::from_le_bytes([e, f])),
            flags: u16::from_le_bytes([g, h]),
            id: u16::from_le_bytes([i, j]),
            size: u16::from_le_bytes([k, l]),
        }
    }

    /// Whether the checksum is to be completed.
    pub fn needs_checksum(&self) -> bool {
        self.flags & CHECKSUM_BLANK != 0
    }
}

/// Looks at the slots of the next packet; how many it has. Slots beyond the limit are counted only.
///
/// # Errors
/// [`BrokenRing`]: the guest published a part of a packet.
pub fn collect(
    available: u32,
    peek: impl Fn(u32) -> [u8; TX_LEN],
    slots: &mut heapless::Vec<TxRequest, TX_SLOTS_MAX>,
) -> Result<u32, BrokenRing> {
    for n in 0..available {
        let slot = TxRequest::decode(peek(n));
        let _ = slots.push(slot);
        // What follows an extra slot cannot be told apart from requests: the packet ends the connection.
        if slot.flags & EXTRA_INFO != 0 {
            return Err(BrokenRing);
        }
        if slot.flags & MORE_DATA == 0 {
            return Ok(n + 1);
        }
    }
    Err(BrokenRing)
}

/// The size of a packet of `count` slots, if its pieces add up and lie in their pages.
pub fn pieces(slots: &[TxRequest], count: u32) -> Option<usize> {
    if slots.len() != count as usize {
        return None;
    }
    let len = usize::from(slots.first()?.size);
    (0..slots.len()).all(|n| piece(slots, n, len).is_some()).then_some(len)
}

/// How many of a packet's `len` bytes are in its `n`th slot.
pub fn piece(slots: &[TxRequest], n: usize, len: usize) -> Option<usize> {
    let slot = slots.get(n)?;
    let size = if n == 0 {
        let others: usize = slots.iter().skip(1).map(|slot| usize::from(slot.size)).sum();
        len.checked_sub(others)?
    } else {
        usize::from(slot.size)
    };
    (slot.offset + size <= PAGE).then_some(size)
}

/// The answer to a tx slot.
pub fn tx_response(id: u16, is_sent: bool) -> [u8; 4] {
    let [a, b] = id.to_le_bytes();
    let [c, d] = if is_sent { OKAY } else { ERROR }.to_le_bytes();
    [a, b, c, d]
}

/// An rx request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RxRequest {
    /// The guest's number of the slot.
    pub id: u16,
    /// The page.
    pub grant: GrantRef,
}

impl RxRequest {
    /// Reads an entry.
    pub fn decode(entry: [u8; RX_LEN]) -> Self {
        let [a, b, _, _, e, f, g, h] = entry;
        Self { id: u16::from_le_bytes([a, b]), grant: GrantRef(u32::from_le_bytes([e, f, g, h])) }
    }
}

/// The answer to an rx slot: a frame's length and whether its checksum is still to be completed.
pub fn rx_response(id: u16, frame: Result<(u16, bool), BadGrant>) -> [u8; 8] {
    let (flags, status) = match frame {
        Ok((len, true)) => (CHECKSUM_BLANK | DATA_VALIDATED, len as i16),
        Ok((len, false)) => (0, len as i16),
        Err(BadGrant) => (0, ERROR),
    };
    let [a, b] = id.to_le_bytes();
    let [c, d] = u16::to_le_bytes(flags);
    let [e, f] = status.to_le_bytes();
    [a, b, 0, 0, c, d, e, f]
}
