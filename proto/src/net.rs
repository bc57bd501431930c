//! A VMM (A) and netback (B): Ethernet frames through the channel's pool.
//!
//! The pool's first half is for frames that the guest sends and is allocated by the VMM; the second half
//! is for frames that it receives and is allocated by netback. A buffer belongs to the other side from the
//! message that names it to the message that gives it back.

use postcard::experimental::max_size::MaxSize;
use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

use crate::channel::{ChannelKind, Protocol};
use crate::text::Text;

/// The protocol.
#[derive(Debug)]
pub enum Net {}

impl Protocol for Net {
    type Request = Request;
    type Response = Response;
    const KIND: ChannelKind = ChannelKind::Net;
    const VERSION: u16 = 1;
    const SLOTS: usize = 256;
}

/// Bytes of the pool of a net channel.
pub const POOL_SIZE: u64 = 512 * 1024;
/// Bytes of one buffer; a frame fits one.
pub const BUFFER_SIZE: u32 = 2048;
/// Buffers per direction. Offsets are multiples of [`BUFFER_SIZE`]; sending 0.., receiving from half the pool.
pub const BUFFERS: usize = 128;
/// Longest Ethernet frame, without the checksum at its end.
pub const FRAME_MAX: u16 = 1514;

/// From the VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub enum Request {
    /// Asks for [`Response::Opened`] or [`Response::Refused`]; the first request.
    Open,
    /// A frame that the guest sends.
    Send {
        /// Buffer in the first half of the pool.
        offset: u32,
        /// Bytes.
        len: u16,
        /// The TCP or UDP checksum holds only the pseudo-header's sum and has to be completed.
        needs_checksum: bool,
    },
    /// The received buffer was copied and is free.
    Release {
        /// Buffer in the second half of the pool.
        offset: u32,
    },
}

/// From netback.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub enum Response {
    /// The vif is a port of its bridge.
    Opened,
    /// The vif cannot be used.
    Refused {
        /// A sentence for people.
        reason: Text<160>,
    },
    /// The sent buffer is free.
    Sent {
        /// From the request.
        offset: u32,
        /// `false`: the frame was dropped because it broke a rule (length, source MAC).
        is_accepted: bool,
    },
    /// A frame for the guest.
    Receive {
        /// Buffer in the second half of the pool.
        offset: u32,
        /// Bytes.
        len: u16,
        /// From another guest with the checksum still to be completed; its data is intact.
        needs_checksum: bool,
    },
}
