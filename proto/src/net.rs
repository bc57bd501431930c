//! A client (A: a VMM, or a service with an interface) and netback (B): Ethernet frames through the
//! channel's pool.
//!
//! The pool's first half holds frames that the client sends and is allocated by the client; the second half
//! holds frames that it receives and is allocated by netback. Both allocate in a circle ([`Runs`]), so a
//! message gives frames back by number, oldest first. A frame belongs to the other side from the message
//! that names it to the message that gives it back.
//!
//! No ring is ever full between two ends that keep to this: of each direction at most [`FRAMES_MAX`] frames
//! are under way, and a message that gives frames back covers at least one.
//!
//! A frame is at most [`PLAIN_MAX`] bytes long, unless it is a TCP packet that stands for several
//! ([`Segments`]): then it is at most [`FRAME_MAX`] and each of its segments at most [`PLAIN_MAX`] bytes long.

mod runs;

use core::fmt;

use postcard::experimental::max_size::MaxSize;
use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

use crate::channel::{ChannelKind, Protocol};

pub use runs::{NotTaken, Runs};

/// The protocol.
#[derive(Debug)]
pub enum Net {}

impl Protocol for Net {
    type Request = Request;
    type Response = Response;
    const KIND: ChannelKind = ChannelKind::Net;
    const VERSION: u16 = 2;
    const SLOTS: usize = 2 * FRAMES_MAX;
}

const _: () = assert!(Net::SLOT_SIZE <= 24);

/// Bytes of the pool of a net channel.
pub const POOL_SIZE: u64 = 512 * 1024;
/// First byte of the pool's receiving half.
pub const RECEIVE_BASE: u32 = (POOL_SIZE / 2) as u32;
/// Frames of one direction that are under way at most.
pub const FRAMES_MAX: usize = 128;
/// Longest frame; the longest that Xen's network interface can describe.
pub const FRAME_MAX: u32 = 65_535;
/// Longest Ethernet frame as it is on a wire, without the checksum at its end.
pub const PLAIN_MAX: u32 = 1514;
/// Shortest frame: an Ethernet header.
pub const FRAME_MIN: u32 = 14;

/// What is known of a frame's TCP or UDP checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, Schema, MaxSize)]
pub enum Checksum {
    /// It is there, and nobody has looked at it.
    #[default]
    Unknown,
    /// It is there, and right.
    Valid,
    /// It holds only the pseudo-header's sum and has to be completed before a wire; the data is intact.
    Partial,
}

/// Whether a frame stands for several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, Schema, MaxSize)]
pub enum Segments {
    /// It stands for itself.
    #[default]
    One,
    /// A TCP packet over IPv4; each segment but the last carries `size` bytes of its data.
    TcpV4 {
        /// Bytes, not 0.
        size: u16,
    },
    /// A TCP packet over IPv6; likewise.
    TcpV6 {
        /// Bytes, not 0.
        size: u16,
    },
}

/// A frame in the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub struct Frame {
    /// First byte in the pool.
    pub offset: u32,
    /// Bytes.
    pub len: u32,
    /// Its checksum; [`Checksum::Partial`] where it stands for several.
    pub checksum: Checksum,
    /// Whether it stands for several.
    pub segments: Segments,
}

impl Frame {
    /// Whether it lies in the half of the pool that begins at `base`, and has a length that may be.
    #[inline]
    pub fn is_within(&self, base: u32) -> bool {
        let max = if self.segments == Segments::One { PLAIN_MAX } else { FRAME_MAX };
        let is_sized = self.len >= FRAME_MIN && self.len <= max;
        is_sized && self.offset.checked_sub(base).is_some_and(|at| at <= RECEIVE_BASE - self.len)
    }
}

/// What a client can be given. What it cannot take, netback makes frames of that it can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, Schema, MaxSize)]
pub struct Offloads {
    /// Frames whose checksum is [`Checksum::Partial`].
    pub has_partial_checksum: bool,
    /// Frames that are [`Segments::TcpV4`].
    pub has_tcp_v4: bool,
    /// Frames that are [`Segments::TcpV6`].
    pub has_tcp_v6: bool,
}

impl Offloads {
    /// Everything.
    pub const ALL: Self = Self { has_partial_checksum: true, has_tcp_v4: true, has_tcp_v6: true };

    /// Whether a client with these can be given the frame.
    #[inline]
    pub fn allow(&self, frame: &Frame) -> bool {
        match frame.segments {
            Segments::One => frame.checksum != Checksum::Partial || self.has_partial_checksum,
            Segments::TcpV4 { .. } => self.has_tcp_v4,
            Segments::TcpV6 { .. } => self.has_tcp_v6,
        }
    }
}

/// From the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub enum Request {
    /// Asks for [`Response::Opened`] or [`Response::Refused`]; the first request.
    Open,
    /// What the client can be given from now on; nothing of it before it says so.
    Accept(Offloads),
    /// A frame that the client sends, in the first half of the pool.
    Send(Frame),
    /// The client has done with the oldest received frames.
    Release {
        /// How many, not 0.
        count: u16,
    },
}

/// From netback.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub enum Response {
    /// The vif is a port of its bridge.
    Opened,
    /// The vif cannot be used.
    Refused(Refusal),
    /// Netback has done with the oldest sent frames: they went on, or broke a rule and were dropped.
    Sent {
        /// How many, not 0.
        count: u16,
    },
    /// A frame for the client, in the second half of the pool.
    Receive(Frame),
}

/// Why a vif cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub enum Refusal {
    /// The channel was opened before.
    OpenedBefore,
    /// There is no bridge of that name.
    Bridge,
    /// The vif's MAC address is not one of a station.
    Address,
    /// Another vif has the MAC address.
    AddressTaken,
    /// The bridge has no free port.
    Ports,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OpenedBefore => "The channel was opened before.",
            Self::Bridge => "There is no bridge of that name; the only one is xenbr0.",
            Self::Address => "The vif's MAC address is not one of a station.",
            Self::AddressTaken => "Another guest has the vif's MAC address.",
            Self::Ports => "The bridge has no free port.",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_lies_in_one_half_and_is_long_only_when_it_stands_for_several() {
        let frame = |offset, len, segments| Frame { offset, len, checksum: Checksum::Partial, segments };
        let tcp = Segments::TcpV4 { size: 1448 };
        assert!(frame(0, 1514, Segments::One).is_within(0));
        assert!(!frame(0, 1515, Segments::One).is_within(0));
        assert!(!frame(0, 13, tcp).is_within(0));
        assert!(frame(RECEIVE_BASE - 65_535, 65_535, tcp).is_within(0));
        assert!(!frame(RECEIVE_BASE - 65_534, 65_535, tcp).is_within(0));
        assert!(!frame(0, 60, tcp).is_within(RECEIVE_BASE));
        assert!(frame(RECEIVE_BASE, 60, tcp).is_within(RECEIVE_BASE));
        assert!(!frame(u32::MAX, 60, tcp).is_within(RECEIVE_BASE));
        assert!(!frame(0, u32::MAX, tcp).is_within(0));
    }
}
