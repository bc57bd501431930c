//! The boot bundle: everything that is loaded beside the kernel, as one file.
//!
//! A fixed header that the kernel reads (it says how to start init), a postcard index that init reads,
//! then the files, each on a page boundary so that its frames can be handed out without a copy.

use postcard::experimental::max_size::MaxSize;
use serde::{Deserialize, Serialize};

use crate::text::Text;

/// First 8 bytes.
pub const MAGIC: u64 = u64::from_le_bytes(*b"AILURUSB");
/// Version of the format.
pub const VERSION: u32 = 1;
/// Most segments of init's program.
pub const SEGMENTS_MAX: usize = 4;

/// The first bytes of the bundle; little-endian.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: u64,
    /// [`VERSION`].
    pub version: u32,
    /// Valid entries of `segments`.
    pub segment_count: u32,
    /// Bytes of the whole bundle.
    pub len: u64,
    /// Init's entry point.
    pub init_entry: u64,
    /// Init's program.
    pub segments: [Segment; SEGMENTS_MAX],
    /// Offset of the index in the bundle.
    pub index_offset: u64,
    /// Bytes of the index: `postcard` of a sequence of [`Entry`].
    pub index_len: u64,
}

/// A segment of init's program: the kernel copies `file_len` bytes to fresh zeroed frames.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct Segment {
    /// Page-aligned virtual address.
    pub addr: u64,
    /// Offset in the bundle, page-aligned.
    pub offset: u64,
    /// Bytes in the bundle.
    pub file_len: u64,
    /// Bytes in memory; the rest is zero.
    pub memory_len: u64,
    /// [`crate::abi::map`] flags.
    pub flags: u64,
}

/// A file of the bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, MaxSize)]
pub struct Entry {
    /// Name, for example `services/xenstore` or `guest/0/kernel`.
    pub name: Text<64>,
    /// Offset in the bundle, page-aligned.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}
