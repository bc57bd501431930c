//! A frame's first bytes, copied out of memory that its sender may still write.
//!
//! What is decided about a frame is decided by this copy, and the copy is what goes on: the rest of the frame
//! is never looked at on its way from one guest to another.

use crate::table::Mac;

/// Bytes that are copied: Ethernet with a VLAN tag, IPv4 and TCP with all their options, and some more.
pub const HEADER_MAX: usize = 144;

/// The first bytes of a frame.
#[derive(Debug, Clone)]
pub struct Header {
    bytes: [u8; HEADER_MAX],
    len: usize,
}

impl Header {
    /// Takes the first bytes of a frame of `frame_len` bytes from `read`; `None`: it cannot be read.
    #[inline]
    pub fn read(frame_len: u32, read: impl FnOnce(&mut [u8]) -> bool) -> Option<Self> {
        let mut header = Self { bytes: [0; HEADER_MAX], len: HEADER_MAX.min(frame_len as usize) };
        read(header.bytes.get_mut(..header.len)?).then_some(header)
    }

    /// The bytes.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }

    /// Where the frame goes to, and where it says that it comes from; `None`: too short.
    #[inline]
    pub fn addresses(&self) -> Option<(&Mac, &Mac)> {
        let (destination, rest) = self.bytes().split_first_chunk::<6>()?;
        Some((destination, rest.first_chunk::<6>()?))
    }
}
