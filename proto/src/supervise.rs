//! Init (A) and a service (B): wiring at run time and signs of life.

use postcard::experimental::max_size::MaxSize;
use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

use crate::channel::{ChannelInfo, ChannelKind, Protocol};
use crate::text::Text;

/// The protocol.
#[derive(Debug)]
pub enum Supervise {}

impl Protocol for Supervise {
    type Request = Request;
    type Response = Response;
    const KIND: ChannelKind = ChannelKind::Supervise;
    const VERSION: u16 = 1;
    const SLOTS: usize = 8;
}

/// From init.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub enum Request {
    /// A new channel is mapped and its capabilities are installed: use it.
    Attach(ChannelInfo),
    /// The channel's other end is gone. Answer [`Response::Detached`] after the last access to it: only
    /// then is it unmapped. A service that does not answer in time loses it anyway.
    Detach {
        /// [`ChannelInfo::id`].
        id: u32,
    },
    /// Answer [`Response::Pong`] with the same number.
    Ping {
        /// Any number.
        nonce: u32,
    },
}

/// From the service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub enum Response {
    /// Start-up is complete; services that depend on this one may start.
    Ready,
    /// The channel is in use.
    Attached {
        /// [`ChannelInfo::id`].
        id: u32,
    },
    /// The channel cannot be used.
    Refused {
        /// [`ChannelInfo::id`].
        id: u32,
        /// A sentence for people.
        reason: Text<160>,
    },
    /// The channel is no longer accessed.
    Detached {
        /// [`ChannelInfo::id`].
        id: u32,
    },
    /// Alive.
    Pong {
        /// From the ping.
        nonce: u32,
    },
    /// Start-up failed for good.
    Failed {
        /// A sentence for people.
        reason: Text<160>,
    },
}
