//! The block backend: volumes offered to VMMs over native rings.
//!
//! The logic without a device and without rings: requests are checked in [`request`], a [`Backend`]
//! schedules them fairly onto a [`Disk`] and answers each exactly once over a [`Client`].
#![no_std]

extern crate alloc;

pub mod backend;
mod channel;
pub mod disk;
pub mod request;
mod set;

pub use backend::{Attachment, Backend, Client, Gone};
pub use disk::{Disk, Geometry, Operation, Outcome, Tag};

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;
