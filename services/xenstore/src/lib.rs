//! The store: a tree of small values that guests, their VMMs and the toolstack share.
//!
//! Semantics and error names are those of Xen's store (`docs/misc/xenstore.txt`, `xs_wire.h`), because
//! unmodified guests speak to it. What differs is who pays: every node, watch, transaction and queued
//! event is charged to the domain on whose channel it was made, so that a guest or its VMM can exhaust
//! its own quota and nothing else.
//!
//! | module | is |
//! |---|---|
//! | `error` | error names on the wire |
//! | `path` | checked absolute paths, ordered so that siblings are neighbours |
//! | `permissions` | owner and access list of a node; what a role may touch |
//! | `wire` | payloads to typed requests and back |
//! | `quota` | limits, usage, violations |
//! | `tree` | nodes and the versions that open transactions still see |
//! | `transaction` | a private view over a snapshot, and its conflicts |
//! | `watch` | watches indexed by path |
//! | `connection` | one channel's watches, transactions and outgoing queue |
//! | `store`, `operations` | all of it together |
#![no_std]

extern crate alloc;

pub mod connection;
pub mod error;
mod operations;
pub mod path;
pub mod permissions;
pub mod quota;
pub mod store;
pub mod transaction;
pub mod tree;
pub mod watch;
pub mod wire;

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod store_tests;

pub use store::Store;
