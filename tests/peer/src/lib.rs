//! A station on the switch: the other end of the network figures.
//!
//! It stands where a guest stands, behind a net channel to netback, and answers ARP, ping and TCP: a server
//! that takes, gives and echoes bytes ([`session`]), and a port that accepts and closes. What it costs is part
//! of what is measured, so it computes no checksum that nobody looks at, sends and receives large segments
//! whole, handles everything that waits in one go, and allocates nothing after its start.
#![no_std]

extern crate alloc;

pub mod port;
pub mod session;
pub mod station;

#[cfg(test)]
mod tests;
