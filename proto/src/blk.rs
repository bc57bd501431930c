//! A VMM (A) and blkback (B): reads and writes between a volume and the channel's pool.
//!
//! The VMM owns the pool's allocation: a request names a part of the pool that nothing else uses until
//! its answer. Every request is answered exactly once. A volume in memory lies in the client's pool, and
//! blkback, which cannot reach it, checks and answers requests.

use postcard::experimental::max_size::MaxSize;
use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

use crate::channel::{ChannelKind, Protocol};

/// The protocol.
#[derive(Debug)]
pub enum Blk {}

impl Protocol for Blk {
    type Request = Request;
    type Response = Response;
    const KIND: ChannelKind = ChannelKind::Blk;
    const VERSION: u16 = 2;
    const SLOTS: usize = 64;
}

/// Bytes of the pool of a blk channel: two of the largest transfers, so that the device works on one while the
/// other is copied.
pub const POOL_SIZE: u64 = 2 * TRANSFER_MAX as u64;
/// Bytes of a sector in [`Request`] and [`Response`], whatever the device's own.
pub const SECTOR: u64 = 512;
/// Requests that a client may have in flight.
pub const IN_FLIGHT_MAX: usize = 32;
/// Largest transfer of one request in bytes.
pub const TRANSFER_MAX: u32 = 128 * 1024;

/// From the VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub enum Request {
    /// Asks for [`Response::Opened`] or [`Response::Refused`]; the first request.
    Open,
    /// Moves bytes.
    Transfer {
        /// Chosen by the client among the ones not in flight; below [`IN_FLIGHT_MAX`].
        id: u16,
        /// Which way.
        direction: Direction,
        /// First sector, in units of [`SECTOR`].
        sector: u64,
        /// Where in the pool; a multiple of [`SECTOR`]. For a volume in memory 0: the client moves the bytes
        /// itself, a write's before it asks and a read's after the answer.
        pool_offset: u32,
        /// Bytes; a multiple of [`SECTOR`], not 0, at most [`TRANSFER_MAX`].
        len: u32,
    },
    /// Everything answered before this request is on stable storage when it is answered.
    Flush {
        /// As in [`Request::Transfer`].
        id: u16,
    },
}

/// Which way bytes move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub enum Direction {
    /// Volume to pool.
    Read,
    /// Pool to volume.
    Write,
}

/// From blkback.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub enum Response {
    /// The volume exists.
    Opened {
        /// Size in units of [`SECTOR`].
        sectors: u64,
        /// The device's own sector size in bytes.
        sector_size: u32,
        /// Writes will be refused.
        is_read_only: bool,
        /// The device caches writes: send [`Request::Flush`] for durability.
        has_cache: bool,
    },
    /// The volume cannot be used.
    Refused {
        /// Why.
        reason: Refusal,
    },
    /// A transfer or flush ended.
    Done {
        /// From the request.
        id: u16,
        /// How.
        status: Status,
    },
}

/// Why a volume cannot be used. A code and not a sentence: slots are as large as the largest message, and
/// messages are copied with every request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub enum Refusal {
    /// The channel was opened before.
    OpenedBefore,
    /// Nothing has its name.
    NoVolume,
    /// It has a writer.
    InUse,
    /// The device's sectors are too small, or their size is no power of two.
    SectorSize,
    /// The device is larger than can be.
    ImpossibleSize,
    /// The device is smaller than one sector.
    TooSmall,
    /// The device takes less than one sector at a time.
    TooLittleAtATime,
}

impl core::fmt::Display for Refusal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::OpenedBefore => "The channel was opened before.",
            Self::NoVolume => "There is no volume of this name.",
            Self::InUse => "Another guest has the volume open for writing.",
            Self::SectorSize => "The device's sector size is not supported.",
            Self::ImpossibleSize => "The device's size is impossible.",
            Self::TooSmall => "The device is smaller than one sector.",
            Self::TooLittleAtATime => "The device takes less than one sector at a time.",
        })
    }
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub enum Status {
    /// Done.
    Ok,
    /// The device reported an error.
    IoError,
    /// Outside the volume, misaligned, outside the pool, or an id in flight.
    BadRequest,
    /// A write to a read-only volume.
    ReadOnly,
}
