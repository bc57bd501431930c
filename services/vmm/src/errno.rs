//! Errors as Xen's hypercalls report them: negative numbers in `rax`.
//!
//! Source: Xen public/errno.h.

use crate::walk::Fault;

/// A hypercall's error; the value is what the guest sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i64)]
pub enum Errno {
    /// Operation not permitted.
    Perm = -1,
    /// No such entry.
    NoEntry = -2,
    /// No such domain.
    Search = -3,
    /// No such device or address.
    NoDevice = -6,
    /// Too long a list.
    TooBig = -7,
    /// Out of memory.
    NoMemory = -12,
    /// Permission denied.
    Access = -13,
    /// Bad address.
    Fault = -14,
    /// In use.
    Busy = -16,
    /// Exists already.
    Exists = -17,
    /// There is no such equipment.
    NoEquipment = -19,
    /// Invalid argument.
    Invalid = -22,
    /// No room left.
    NoSpace = -28,
    /// Progress of a continued call that cannot be.
    Domain = -33,
    /// Not implemented.
    NoSys = -38,
    /// Nothing to do.
    NoData = -61,
    /// The time has passed.
    Time = -62,
    /// Too large a number.
    Overflow = -75,
    /// Progress of a continued call beyond its end.
    IllegalSequence = -84,
    /// Not supported.
    NotSupported = -95,
}

impl From<Fault> for Errno {
    fn from(_: Fault) -> Self {
        Self::Fault
    }
}

/// What a hypercall answers: a value of at least 0, or an error.
pub type Answer = Result<u64, Errno>;

/// The answer as the guest finds it in `rax`.
pub fn to_rax(answer: Answer) -> u64 {
    match answer {
        Ok(value) => value,
        Err(errno) => errno as i64 as u64,
    }
}
