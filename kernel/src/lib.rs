//! The kernel of Ailurus: CPU, memory and IPC, and nothing else.
//!
//! Ring 0 holds no policy, no strings, no parser beyond the boot information, no heap and no device driver
//! but the interrupt controllers and an early serial log. See `README.md` in this folder for the map of
//! its files, and `proto::abi` for its interface.
#![cfg_attr(not(test), no_std)]

pub mod arch;
pub mod boot;
pub mod cap;
pub mod cpu;
pub mod destroy;
pub mod frames;
pub mod memory;
pub mod object;
pub mod page_table;
pub mod schedule;
pub mod syscall;
#[cfg(test)]
mod syscall_tests;
#[cfg(test)]
mod testing;
pub mod timer;
pub mod trace;
