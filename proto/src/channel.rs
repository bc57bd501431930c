//! Channels: two rings and, for bulk data, a pool, between exactly two domains that init wired.
//!
//! Memory of a channel, in frames that both ends map: one header page ([`ChannelHeader`]), then the
//! slots of the ring from side A to side B, then those of the ring from B to A. Side A is the client
//! (it asks), side B the server. Sizes are constants of the protocol: neither end believes the other.
//! At connect each side writes its greeting; a side that reads a greeting other than its own protocol's
//! refuses the channel and says which field differs.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use postcard::experimental::max_size::MaxSize;
use postcard_schema::Schema;
use postcard_schema::key::hash::fnv1a64::hash_ty_path;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::abi::{PAGE_SIZE, Slot};
use crate::ring::{CacheLine, LENGTH, RingHeader};
use crate::text::Text;

/// A protocol: what may stand in the slots of a channel's two rings.
pub trait Protocol {
    /// Messages from the client (side A) to the server (side B).
    type Request: Serialize + DeserializeOwned + MaxSize + Schema;
    /// Messages from the server to the client.
    type Response: Serialize + DeserializeOwned + MaxSize + Schema;
    /// Which one it is.
    const KIND: ChannelKind;
    /// Raised whenever the meaning of a message changes.
    const VERSION: u16;
    /// Slots per direction, a power of two.
    const SLOTS: usize;

    /// Bytes of a slot: the largest message behind its length, rounded up to a multiple of 8. Decided at
    /// compile time, so a message always fits.
    const SLOT_SIZE: usize = {
        let request = <Self::Request as MaxSize>::POSTCARD_MAX_SIZE;
        let response = <Self::Response as MaxSize>::POSTCARD_MAX_SIZE;
        let largest = if request > response { request } else { response };
        assert!(Self::SLOTS.is_power_of_two());
        assert!(largest <= u16::MAX as usize);
        (LENGTH + largest).next_multiple_of(8)
    };

    /// Bytes of a channel, a multiple of the page size.
    const CHANNEL_SIZE: usize =
        (PAGE_SIZE as usize + 2 * Self::SLOTS * Self::SLOT_SIZE).next_multiple_of(PAGE_SIZE as usize);

    /// Hash of both message types' schemas.
    const SCHEMA: u64 = u64::from_le_bytes(hash_ty_path::<Self::Request>(""))
        ^ u64::from_le_bytes(hash_ty_path::<Self::Response>("response")).rotate_left(1);
}

/// What a channel is for; decides its protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Schema, MaxSize)]
#[repr(u16)]
pub enum ChannelKind {
    /// Init (A) and a service (B): [`crate::supervise`].
    Supervise = 1,
    /// A domain (A) and the console's log (B): [`crate::console::Log`].
    Log = 2,
    /// A VMM (A) and the console (B): [`crate::console::GuestConsole`].
    GuestConsole = 3,
    /// The console (A) and the toolstack (B): [`crate::console::Operator`].
    Operator = 4,
    /// A domain (A) and xenstore (B): [`crate::xenstore`].
    Xenstore = 5,
    /// A VMM (A) and blkback (B): [`crate::blk`].
    Blk = 6,
    /// A VMM (A) and netback (B): [`crate::net`].
    Net = 7,
    /// The toolstack (A) and init (B): [`crate::builder`].
    Builder = 8,
    /// The toolstack (A) and a VMM (B): [`crate::toolstack`].
    Guest = 9,
}

/// Which end of a channel a domain holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub enum Side {
    /// The client.
    A,
    /// The server.
    B,
}

/// A mapped range of the domain's own address space.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub struct Region {
    /// First address.
    pub addr: u64,
    /// Bytes.
    pub len: u64,
}

/// One end of a channel as init describes it to the domain that holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub struct ChannelInfo {
    /// Number of the channel, unique while the system runs.
    pub id: u32,
    /// What it is for.
    pub kind: ChannelKind,
    /// Which end this domain holds.
    pub side: Side,
    /// Domain at the other end (for a VMM: the guest's domain ID).
    pub peer: u32,
    /// Name of the domain at the other end.
    pub peer_name: Text<32>,
    /// Header page and slots.
    pub rings: Region,
    /// Bulk data shared with the peer, or length 0. Blk with a volume in memory: the volume itself, mapped at
    /// the client only.
    pub pool: Region,
    /// Physical address of the pool, for a domain that may do DMA to it; else 0.
    pub pool_phys: u64,
    /// Event capability that signals the peer.
    pub signal: Slot,
    /// Signals (a mask of this domain's own event) that the peer sets.
    pub signals: u64,
    /// Which one of several: the volume for blk, the bridge for net, else empty.
    pub target: Text<64>,
    /// Blk: the volume may only be read. Net: unused.
    pub is_read_only: bool,
    /// Blk: bytes of a volume in memory. 0: the volume is one of blkback's.
    pub memory: u64,
    /// Net: the vif's MAC address.
    pub mac: [u8; 6],
}

/// First page of a channel.
#[derive(Debug, Default)]
#[repr(C, align(4096))]
pub struct ChannelHeader {
    /// Ring from A to B.
    pub requests: RingHeader,
    /// Ring from B to A.
    pub responses: RingHeader,
    /// What side A speaks.
    pub greeting_a: Greeting,
    /// What side B speaks.
    pub greeting_b: Greeting,
}

const _: () = assert!(size_of::<ChannelHeader>() == PAGE_SIZE as usize);

/// What a side speaks; zero until it has connected.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Greeting {
    /// [`ChannelKind`] in bits 16-31, version in bits 0-15; written last.
    pub protocol: CacheLine<AtomicU32>,
    /// Schema hash.
    pub schema: CacheLine<AtomicU64>,
}

/// Why a channel was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mismatch {
    /// The peer speaks another protocol (its number).
    Kind(u16),
    /// The peer speaks another version (its number).
    Version(u16),
    /// The peer's messages have another schema (its hash).
    Schema(u64),
}

impl core::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Kind(kind) => write!(f, "the peer's protocol kind is {kind}"),
            Self::Version(version) => write!(f, "the peer's protocol version is {version}"),
            Self::Schema(hash) => write!(f, "the peer's schema hash is {hash:#018x}"),
        }
    }
}

impl Greeting {
    /// Writes this side's greeting.
    pub fn write<P: Protocol>(&self) {
        self.schema.0.store(P::SCHEMA, Ordering::Relaxed);
        self.protocol.0.store((P::KIND as u32) << 16 | u32::from(P::VERSION), Ordering::Release);
    }

    /// Checks the peer's greeting; `false`: it has not connected yet.
    ///
    /// # Errors
    /// The field that differs.
    pub fn check<P: Protocol>(&self) -> Result<bool, Mismatch> {
        let protocol = self.protocol.0.load(Ordering::Acquire);
        if protocol == 0 {
            return Ok(false);
        }
        let (kind, version) = ((protocol >> 16) as u16, protocol as u16);
        if kind != P::KIND as u16 {
            return Err(Mismatch::Kind(kind));
        }
        if version != P::VERSION {
            return Err(Mismatch::Version(version));
        }
        let schema = self.schema.0.load(Ordering::Relaxed);
        if schema == P::SCHEMA { Ok(true) } else { Err(Mismatch::Schema(schema)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blk::Blk;
    use crate::net::Net;

    #[test]
    fn a_greeting_is_awaited_accepted_or_refused_by_the_field_that_differs() {
        let greeting = Greeting::default();
        assert_eq!(greeting.check::<Blk>(), Ok(false));
        greeting.write::<Blk>();
        assert_eq!(greeting.check::<Blk>(), Ok(true));
        assert_eq!(greeting.check::<Net>(), Err(Mismatch::Kind(ChannelKind::Blk as u16)));
        greeting.protocol.0.store((ChannelKind::Blk as u32) << 16 | 999, Ordering::Relaxed);
        assert_eq!(greeting.check::<Blk>(), Err(Mismatch::Version(999)));
        greeting.write::<Blk>();
        greeting.schema.0.store(1, Ordering::Relaxed);
        assert_eq!(greeting.check::<Blk>(), Err(Mismatch::Schema(1)));
    }
}
