//! What crosses a boundary in Ailurus: the kernel's ABI, the shared ring, one module per protocol.
//!
//! Nothing here does I/O and nothing here is unsafe: a domain maps shared memory with `rt` and hands
//! it over as atomics. Every decoder takes bytes that a hostile peer may have written and answers with
//! a value or an error, never a panic.
#![no_std]

pub mod abi;
pub mod bits;
pub mod blk;
pub mod boot;
pub mod builder;
pub mod bundle;
pub mod channel;
pub mod console;
pub mod counters;
pub mod cpuid;
pub mod guest;
pub mod manifest;
pub mod net;
pub mod ring;
pub mod supervise;
pub mod text;
pub mod toolstack;
pub mod xenstore;
