//! One guest's virtual machine monitor.
//!
//! The whole Xen PVH interface of a guest lives here, in a domain of its own: a bug harms that guest
//! alone. Exits are handled by functions over plain values ([`machine`], [`exit`], [`hypercall`]); the
//! guest's rings are translated to the native channels of console, store, blkback and netback. The
//! binary adds the main loop. Source of the interface's facts: Xen's public headers and docs/misc/pvh.
#![no_std]

extern crate alloc;

pub mod apic;
pub mod backend;
pub mod balloon;
pub mod blk;
pub mod clock;
pub mod console;
pub mod cpuid;
pub mod debug;
pub mod deliver;
pub mod devices;
pub mod emulate;
pub mod entry;
pub mod errno;
pub mod events;
pub mod exit;
pub mod front_ring;
pub mod grants;
pub mod hypercall;
pub mod inject;
pub mod limiter;
pub mod loader;
pub mod machine;
pub mod memory;
pub mod msr;
pub mod net;
pub mod nmi;
pub mod ports;
pub mod reservation;
pub mod runstate;
pub mod shutdown;
pub mod store;
mod task_priority;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod tsc;
pub mod vcpus;
pub mod walk;
pub mod watchdog;
