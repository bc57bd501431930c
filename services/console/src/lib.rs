//! The console: one serial line shared by the operator, the log and every guest.
//!
//! All of it is a state machine ([`Console`]): bytes, records and messages go in; bytes for the line,
//! input for guests and commands for the toolstack come out. It never blocks and never holds more than a
//! bounded number of bytes: what it cannot take now it does not want, and the peer's ring fills.
//!
//! | module | is |
//! |---|---|
//! | `uart` | driver of a 16550 |
//! | `text_ring` | the last bytes of an endless text, read by position |
//! | `escape` | text and bytes as printable ASCII |
//! | `editor` | the operator's line, with history |
//! | `guests` | guests' consoles: scrollback and input |
//! | `state` | what both modes share |
//! | `interactive` | mode for a person at a terminal |
//! | `mux` | mode for a program that runs the machine |
//! | `replay` | what of the scrollback is shown again |
#![no_std]

extern crate alloc;

pub mod editor;
pub mod escape;
pub mod guests;
mod interactive;
mod mux;
mod replay;
pub mod state;
pub mod text_ring;
pub mod uart;

#[cfg(test)]
mod interactive_tests;
#[cfg(test)]
mod mux_tests;

pub use state::{Console, Mode};
