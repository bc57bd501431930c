//! The runtime of a ring-3 domain.
//!
//! What every domain needs and none should write twice: the entry point, the system calls, the heap, the
//! log, both ends of a channel, checked access to memory that others write. It is the one place in ring 3
//! where `unsafe` is at home; each module says why it needs it. On the host everything compiles and the
//! system calls answer [`proto::abi::Error::NotSupported`], so that logic over channels is tested there.
#![no_std]

extern crate alloc;

pub mod channel;
pub mod counters;
#[cfg(target_os = "none")]
mod heap;
pub mod logger;
pub mod memory;
pub mod pool;
pub mod port;
pub mod shared;
pub mod start;
pub mod supervise;
pub mod sys;
pub mod time;

pub use start::{Env, exit_failed};
