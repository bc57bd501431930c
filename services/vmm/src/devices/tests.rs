//! The devices together.
