//! A channel's pool: bulk data that both ends may write at any time.

pub use crate::shared::{OutOfBounds, Shared as Pool};
