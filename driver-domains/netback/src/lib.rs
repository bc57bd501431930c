//! The network backend: a learning Ethernet switch between the guests' vifs and one uplink.
//!
//! The logic without a device and without rings: [`switch`] decides where a frame goes, a
//! [`Bridge`](bridge::Bridge) moves it between [`Link`](link::Link)s (vifs) and the
//! [`Uplink`](link::Uplink). A frame's [`header`] is copied out of a vif's pool once and only the copy is
//! looked at and sent on; the data behind it goes from pool to pool and is never looked at.
#![no_std]

extern crate alloc;

pub mod bridge;
pub mod checksum;
pub mod header;
pub mod link;
pub mod segment;
pub mod switch;
pub mod table;
pub mod vif;

#[cfg(test)]
mod tests;
