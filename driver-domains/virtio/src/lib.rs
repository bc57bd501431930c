//! What virtio drivers of driver domains share: a PCI function as init hands it over, its memory for
//! DMA, its interrupt vectors and its queues, around the crate `virtio-drivers`.
//!
//! A domain never sees real configuration space, only init's snapshot and a list of mapped BARs; and a
//! device never sees an address that was not registered with [`memory`] first.
#![no_std]

extern crate alloc;

pub mod config_space;
pub mod hal;
pub mod memory;
pub mod queue;
pub mod transport;

pub use virtio_drivers::Result;
pub use virtio_drivers::transport::{DeviceType, Transport};
