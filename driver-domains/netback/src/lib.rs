//! The network backend: a learning Ethernet switch between the guests' vifs and one uplink.
//!
//! The logic without a device and without rings: [`switch`] decides where a frame goes, a
//! [`Bridge`](bridge::Bridge) moves it between [`Link`](bridge::Link)s (vifs) and the
//! [`Uplink`](bridge::Uplink). A frame is copied out of a vif's pool once and only the copy is looked at.
#![no_std]

extern crate alloc;

pub mod bridge;
pub mod buffers;
pub mod checksum;
pub mod queue;
pub mod switch;
pub mod table;

#[cfg(test)]
mod tests;
