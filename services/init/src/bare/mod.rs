//! What needs the machine: system calls, ports, channels.

pub mod carrier;
pub mod machine;
