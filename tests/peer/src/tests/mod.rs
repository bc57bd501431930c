//! The station against a guest: another TCP stack at the other end of a model of netback.

mod frames;
mod guest;
mod server;
