//! Hypercalls by name, and what several modes ask of them. Source: Xen public/xen.h and the headers of each.

use crate::machine::{hypercall, peek, poke};

/// Numbers.
pub const MEMORY_OP: u64 = 12;
/// A list of calls.
pub const MULTICALL: u64 = 13;
/// xen_version.
pub const XEN_VERSION: u64 = 17;
/// console_io.
pub const CONSOLE_IO: u64 = 18;
/// grant_table_op.
pub const GRANT_TABLE_OP: u64 = 20;
/// vcpu_op.
pub const VCPU_OP: u64 = 24;
/// sched_op.
pub const SCHED_OP: u64 = 29;
/// event_channel_op.
pub const EVENT_CHANNEL_OP: u64 = 32;
/// hvm_op.
pub const HVM_OP: u64 = 34;

/// "Myself", where a domain is named.
pub const DOMID_SELF: u64 = 0x7ff0;

/// Errors, as hypercalls answer them.
pub mod errno {
    /// Not permitted.
    pub const EPERM: i64 = -1;
    /// No such thing.
    pub const ENOENT: i64 = -2;
    /// No such domain.
    pub const ESRCH: i64 = -3;
    /// Permission denied.
    pub const EACCES: i64 = -13;
    /// A bad address.
    pub const EFAULT: i64 = -14;
    /// In use.
    pub const EBUSY: i64 = -16;
    /// Exists already.
    pub const EEXIST: i64 = -17;
    /// An invalid argument.
    pub const EINVAL: i64 = -22;
    /// No room.
    pub const ENOSPC: i64 = -28;
    /// No such call.
    pub const ENOSYS: i64 = -38;
    /// Not supported.
    pub const EOPNOTSUPP: i64 = -95;
}

/// Where this module keeps arguments.
const ARGUMENTS: u64 = crate::SCRATCH;

/// Reads a parameter; 0 where there is none.
pub fn parameter(index: u32) -> u64 {
    poke(ARGUMENTS, DOMID_SELF | u64::from(index) << 32);
    poke(ARGUMENTS + 8, 0);
    hypercall(HVM_OP, [1, ARGUMENTS, 0, 0, 0]);
    peek(ARGUMENTS + 8)
}

/// Sets a parameter.
pub fn set_parameter(index: u32, value: u64) -> i64 {
    poke(ARGUMENTS, DOMID_SELF | u64::from(index) << 32);
    poke(ARGUMENTS + 8, value);
    hypercall(HVM_OP, [0, ARGUMENTS, 0, 0, 0])
}

/// Maps shared_info (space 0) or a grant frame (space 1) to a frame.
pub fn map_frame(space: u64, index: u64, frame: u64) -> i64 {
    poke(ARGUMENTS, DOMID_SELF | space << 32);
    poke(ARGUMENTS + 8, index);
    poke(ARGUMENTS + 16, frame);
    hypercall(MEMORY_OP, [7, ARGUMENTS, 0, 0, 0])
}

/// Notifies the other end of a port.
pub fn notify(port: u64) {
    poke(ARGUMENTS, port);
    hypercall(EVENT_CHANNEL_OP, [4, ARGUMENTS, 0, 0, 0]);
}

/// Lets others have the processor.
pub fn give_way() {
    hypercall(SCHED_OP, [0, 0, 0, 0, 0]);
}
