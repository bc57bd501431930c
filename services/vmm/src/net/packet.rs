//! Entries of netfront's rings, and packets that are spread over several of them.
//!
//! A packet that the guest sends is its first slot, with the whole packet's size, then extra slots (what
//! segmentation it asks for), then the slots with the rest, each with its own size. A packet for the guest
//! likewise, but its first slot has its own size too. Everything here is a copy of what the guest wrote and
//! may be anything. Source: Xen public/io/netif.h.

use proto::net::{Checksum, FRAME_MAX, FRAME_MIN, PLAIN_MAX, Segments};

use crate::front_ring::BrokenRing;
use crate::grants::GrantRef;
use crate::memory::PAGE;

/// Bytes of a tx entry.
pub const TX_LEN: usize = 12;
/// Bytes of an rx entry.
pub const RX_LEN: usize = 8;
/// Slots with data of one packet that are accepted (XEN_NETIF_NR_SLOTS_MIN).
pub const TX_SLOTS_MAX: usize = 18;

/// The two are the other way round in rx.
const CHECKSUM_BLANK: u16 = 1;
const DATA_VALIDATED: u16 = 2;
const RX_DATA_VALIDATED: u16 = 1;
const RX_CHECKSUM_BLANK: u16 = 2;
const MORE_DATA: u16 = 4;
const EXTRA_INFO: u16 = 8;

const OKAY: i16 = 0;
const ERROR: i16 = -1;
/// Of an extra slot.
const NULL: i16 = 1;

const EXTRA_GSO: u8 = 1;
/// Flag of an extra slot: another one follows.
const EXTRA_MORE: u8 = 1;
const GSO_TCP_V4: u8 = 1;
const GSO_TCP_V6: u8 = 2;

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
    /// Bytes; of the whole packet in its first slot as the guest wrote it, of the slot in a [`Packet`].
    pub size: u16,
}

impl TxRequest {
    /// Reads an entry.
    #[inline]
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
}

/// The next packet that the guest sends.
#[derive(Debug, PartialEq, Eq)]
pub struct Packet {
    /// Its slots with data.
    pub slots: heapless::Vec<TxRequest, TX_SLOTS_MAX>,
    /// Entries of the ring that it takes.
    pub entries: u32,
    /// Extra entries among them, behind the first.
    pub extras: u32,
    /// Bytes.
    pub len: u32,
    /// What is known of its checksum.
    pub checksum: Checksum,
    /// Whether it stands for several.
    pub segments: Segments,
    /// Whether it keeps to the rules and can be sent.
    pub is_sound: bool,
}

impl Packet {
    /// Looks at the next packet of a ring with `available` entries, at least one.
    ///
    /// # Errors
    /// [`BrokenRing`]: the guest published a part of a packet.
    pub fn parse(available: u32, peek: impl Fn(u32) -> [u8; TX_LEN]) -> Result<Self, BrokenRing> {
        let first = TxRequest::decode(peek(0));
        let mut packet = Self {
            slots: heapless::Vec::new(),
            entries: 1,
            extras: 0,
            len: u32::from(first.size),
            checksum: match (first.flags & CHECKSUM_BLANK, first.flags & DATA_VALIDATED) {
                (0, 0) => Checksum::Unknown,
                (0, _) => Checksum::Valid,
                _ => Checksum::Partial,
            },
            segments: Segments::One,
            is_sound: true,
        };
        let _ = packet.slots.push(first);
        let mut has_extra = first.flags & EXTRA_INFO != 0;
        while has_extra {
            if packet.entries >= available {
                return Err(BrokenRing);
            }
            has_extra = packet.extra(peek(packet.entries));
            packet.entries += 1;
            packet.extras += 1;
        }
        let mut has_more = first.flags & MORE_DATA != 0;
        let mut others = 0;
        while has_more {
            if packet.entries >= available {
                return Err(BrokenRing);
            }
            let slot = TxRequest::decode(peek(packet.entries));
            has_more = slot.flags & MORE_DATA != 0;
            packet.entries += 1;
            others += u32::from(slot.size);
            packet.is_sound &=
                slot.offset + usize::from(slot.size) <= PAGE && packet.slots.push(slot).is_ok();
        }
        packet.check(others);
        Ok(packet)
    }

    /// Takes an extra slot; whether another one follows.
    fn extra(&mut self, entry: [u8; TX_LEN]) -> bool {
        let [kind, flags, a, b, gso, ..] = entry;
        let size = u16::from_le_bytes([a, b]);
        self.segments = match (kind, gso) {
            (EXTRA_GSO, GSO_TCP_V4) => Segments::TcpV4 { size },
            (EXTRA_GSO, GSO_TCP_V6) => Segments::TcpV6 { size },
            // Nothing else was offered.
            _ => {
                self.is_sound = false;
                self.segments
            }
        };
        self.is_sound &= size != 0;
        flags & EXTRA_MORE != 0
    }

    /// Checks what only the whole packet shows; `others` bytes are in the slots but the first.
    fn check(&mut self, others: u32) {
        let max = if self.segments == Segments::One {
            PLAIN_MAX
        } else {
            // Who makes segments of it writes their checksums.
            self.is_sound &= self.checksum == Checksum::Partial;
            FRAME_MAX
        };
        self.is_sound &= self.len >= FRAME_MIN && self.len <= max;
        let own = self.len.checked_sub(others).and_then(|own| u16::try_from(own).ok());
        match (own, self.slots.first_mut()) {
            (Some(own), Some(first)) if first.offset + usize::from(own) <= PAGE => first.size = own,
            _ => self.is_sound = false,
        }
    }

    /// The answer to the `n`th of its entries, which has this `id`.
    #[inline]
    pub fn response(&self, n: u32, id: u16, is_sent: bool) -> [u8; 4] {
        let is_extra = n >= 1 && n <= self.extras;
        let status = match (is_extra, is_sent) {
            (true, _) => NULL,
            (false, true) => OKAY,
            (false, false) => ERROR,
        };
        let [a, b] = id.to_le_bytes();
        let [c, d] = status.to_le_bytes();
        [a, b, c, d]
    }
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
    #[inline]
    pub fn decode(entry: [u8; RX_LEN]) -> Self {
        let [a, b, _, _, e, f, g, h] = entry;
        Self { id: u16::from_le_bytes([a, b]), grant: GrantRef(u32::from_le_bytes([e, f, g, h])) }
    }
}

/// Entries that a frame of `len` bytes takes in the rx ring.
#[inline]
pub fn rx_entries(len: u32, segments: Segments) -> u32 {
    len.div_ceil(PAGE as u32) + u32::from(segments != Segments::One)
}

/// The first answer for a frame: its flags. Those behind it have [`rx_more`].
#[inline]
pub fn rx_flags(checksum: Checksum, segments: Segments) -> u16 {
    let checksum = match checksum {
        Checksum::Unknown => 0,
        Checksum::Valid => RX_DATA_VALIDATED,
        Checksum::Partial => RX_CHECKSUM_BLANK | RX_DATA_VALIDATED,
    };
    checksum | if segments == Segments::One { 0 } else { EXTRA_INFO }
}

/// The flag of an answer that is not a frame's last.
#[inline]
pub fn rx_more(has_more: bool) -> u16 {
    if has_more { MORE_DATA } else { 0 }
}

/// The answer to an rx slot with `len` bytes at its page's start, or none when the page cannot be written.
#[inline]
pub fn rx_response(id: u16, flags: u16, len: Option<u16>) -> [u8; 8] {
    let [a, b] = id.to_le_bytes();
    let [c, d] = u16::to_le_bytes(flags);
    let [e, f] = len.map_or(ERROR, |len| len as i16).to_le_bytes();
    [a, b, 0, 0, c, d, e, f]
}

/// The extra answer of a frame that stands for several; `None`: it does not.
#[inline]
pub fn rx_extra(segments: Segments) -> Option<[u8; 8]> {
    let (kind, size) = match segments {
        Segments::One => return None,
        Segments::TcpV4 { size } => (GSO_TCP_V4, size),
        Segments::TcpV6 { size } => (GSO_TCP_V6, size),
    };
    let [a, b] = size.to_le_bytes();
    Some([EXTRA_GSO, 0, a, b, kind, 0, 0, 0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn slot(offset: u16, flags: u16, size: u16) -> [u8; TX_LEN] {
        let mut entry = [0; TX_LEN];
        for (n, half) in [9, 0, offset, flags, 7, size].iter().enumerate() {
            entry[2 * n..2 * n + 2].copy_from_slice(&half.to_le_bytes());
        }
        entry
    }

    fn gso(kind: u8, flags: u8, size: u16, protocol: u8) -> [u8; TX_LEN] {
        let [a, b] = size.to_le_bytes();
        [kind, flags, a, b, protocol, 0, 0, 0, 0, 0, 0, 0]
    }

    fn parse(entries: &[[u8; TX_LEN]]) -> Result<Packet, BrokenRing> {
        Packet::parse(entries.len() as u32, |n| entries[n as usize])
    }

    #[test]
    fn a_large_tcp_packet_has_its_extra_slot_behind_the_first() {
        let packet =
            parse(&[slot(0, 1 | 2 | 4 | 8, 8292), gso(1, 0, 1448, 1), slot(0, 4, 4096), slot(0, 0, 4096)])
                .unwrap();
        assert!(packet.is_sound);
        assert_eq!((packet.len, packet.entries, packet.extras), (8292, 4, 1));
        assert_eq!((packet.checksum, packet.segments), (Checksum::Partial, Segments::TcpV4 { size: 1448 }));
        assert_eq!(packet.slots.iter().map(|slot| slot.size).collect::<Vec<_>>(), [100, 4096, 4096]);
        let status = |n| packet.response(n, 7, true)[2];
        assert_eq!([status(0), status(1), status(2), status(3)], [0, 1, 0, 0]);
    }

    #[test]
    fn what_was_not_offered_or_makes_no_sense_is_not_sound() {
        let large = slot(0, 1 | 8, 3000);
        for extra in [gso(1, 0, 0, 1), gso(1, 0, 1448, 3), gso(2, 0, 1448, 1), gso(0, 0, 1448, 1)] {
            assert!(!parse(&[large, extra]).unwrap().is_sound);
        }
        assert!(!parse(&[slot(0, 8, 3000), gso(1, 0, 1448, 1)]).unwrap().is_sound, "checksum not blank");
        assert!(!parse(&[slot(0, 1, 3000)]).unwrap().is_sound, "too long for one");
        assert!(!parse(&[slot(4000, 0, 100)]).unwrap().is_sound);
        assert!(parse(&[large, gso(1, 0, 1448, 2)]).unwrap().is_sound);
    }

    #[test]
    fn a_checksum_that_is_right_is_not_one_to_complete() {
        // It was, once: a guest dropped such frames. The flags of rx have other places than those of tx.
        let flags = |checksum| rx_flags(checksum, Segments::One);
        assert_eq!([Checksum::Unknown, Checksum::Valid, Checksum::Partial].map(flags), [0, 1, 3]);
    }

    #[test]
    fn a_part_of_a_packet_breaks_the_ring() {
        assert_eq!(parse(&[slot(0, 4, 60)]), Err(BrokenRing));
        assert_eq!(parse(&[slot(0, 8, 60)]), Err(BrokenRing));
        assert_eq!(parse(&[slot(0, 1 | 8, 60), gso(1, 1, 1448, 1)]), Err(BrokenRing));
        assert_eq!(parse(&[slot(0, 4 | 8, 60), gso(1, 0, 1448, 1)]), Err(BrokenRing));
    }

    proptest! {
        #[test]
        fn a_sound_packet_lies_in_its_pages_and_adds_up(
            raw in prop::collection::vec((prop_oneof![Just(0u16), any::<u16>()], 0u16..16,
                prop_oneof![0u16..200, any::<u16>()], any::<bool>()), 1..40),
        ) {
            let entries: Vec<_> = raw
                .iter()
                .map(|&(a, flags, b, is_slot)| match is_slot {
                    true => slot(a, flags, b),
                    false => gso(flags as u8 & 3, flags as u8 >> 3, b, a as u8 & 3),
                })
                .collect();
            let Ok(packet) = parse(&entries) else { return Ok(()) };
            prop_assert!(packet.entries as usize <= entries.len() && packet.extras < packet.entries);
            if packet.is_sound {
                let sum: u32 = packet.slots.iter().map(|slot| u32::from(slot.size)).sum();
                prop_assert_eq!(sum, packet.len);
                prop_assert!(packet.slots.iter().all(|slot| slot.offset + usize::from(slot.size) <= PAGE));
                prop_assert_eq!(packet.slots.len() as u32, packet.entries - packet.extras);
                let max = if packet.segments == Segments::One { PLAIN_MAX } else { FRAME_MAX };
                prop_assert!(packet.len <= max);
            }
        }
    }
}
