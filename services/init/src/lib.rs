//! The root domain: from what the kernel hands over it builds every other domain, with exactly the
//! capabilities, memory and channels that the manifest (services) or the toolstack (guests) names, and
//! watches over them.
//!
//! The library holds all logic over the [`kernel::Kernel`] trait and is tested on the host against a model
//! that checks the capability rules; the binary carries messages in and out. After start-up every step is
//! bounded and a failure undoes what was done for it.
#![no_std]

extern crate alloc;

pub mod bundle;
pub mod clock;
pub mod devices;
pub mod domain;
pub mod error;
pub mod frames;
pub mod guest_plan;
pub mod guests;
pub mod kernel;
pub mod loader;
pub mod operation;
pub mod pci;
pub mod power;
pub mod resources;
pub mod services;
pub mod slots;
pub mod space;
pub mod stat;
pub mod supervise;
pub mod system;
pub mod trace;
pub mod wiring;

#[cfg(test)]
mod fake;
