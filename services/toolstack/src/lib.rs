//! The toolstack: guests' configurations, their life cycle, and the operator's `xl` commands.
//!
//! No I/O of its own: the domain's binary feeds messages in and carries messages out, so all of it is
//! tested on the host. Whatever becomes of a guest, the operator is told, and at the end nothing of it
//! stays in xenstore.
#![no_std]

extern crate alloc;

mod arguments;
pub mod boot;
mod command;
pub mod config;
mod counters;
mod format;
mod jobs;
mod life;
mod nearest;
mod nodes;
mod operator;
mod sample;
mod store;
#[cfg(test)]
mod tests;
mod toolstack;
mod top;
mod trace;

pub use toolstack::Toolstack;
