//! A domain (A) and xenstore (B): the Xen wire protocol's operations, framed by postcard.
//!
//! The payload is the one of Xen's `xs_wire.h` messages (paths and values separated by NUL), so that a
//! VMM only relays and one parser, in the store, reads what guests write.

use postcard::experimental::max_size::MaxSize;
use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

use crate::channel::{ChannelKind, Protocol};
use crate::text::Bytes;

/// The protocol.
#[derive(Debug)]
pub enum Xenstore {}

impl Protocol for Xenstore {
    type Request = Message;
    type Response = Message;
    const KIND: ChannelKind = ChannelKind::Xenstore;
    const VERSION: u16 = 1;
    const SLOTS: usize = 4;
}

/// Largest payload (XENSTORE_PAYLOAD_MAX).
pub const PAYLOAD_MAX: usize = 4096;

/// `ChannelInfo::target` of a channel whose client may act in every role (the toolstack).
pub const TARGET_PRIVILEGED: &str = "privileged";

/// In whose name a request is made; the store checks that the channel allows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub enum Role {
    /// The guest whose domain ID is the channel's peer: relative paths are its home.
    Guest,
    /// The VMM as backend of that guest: as domain 0, but only below `/local/domain/0/backend/*/<domid>`
    /// and, to read, below `/local/domain/<domid>`.
    Backend,
    /// The toolstack, as domain 0; only on a channel with [`TARGET_PRIVILEGED`].
    Toolstack,
}

/// A request, its reply (same `id`), or a watch event (`op` 15, `id` 0).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub struct Message {
    /// Who asks, or whose watch it is.
    pub role: Role,
    /// Operation: `xs_wire.h`'s `xsd_sockmsg.type`; replies carry the request's, errors 16.
    pub op: u32,
    /// `req_id`, chosen by the client.
    pub id: u32,
    /// `tx_id`, 0 outside a transaction.
    pub tx: u32,
    /// The wire payload.
    pub payload: Bytes<PAYLOAD_MAX>,
}
