//! Error names on the wire: a reply of type 16 carries one of them, not a number.
//!
//! Source: `xen/include/public/io/xs_wire.h`, `xsd_errors`.

/// Why a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Error {
    /// The payload or a path in it is malformed.
    Invalid,
    /// The permissions of the node, or of the nearest ancestor of a missing one, forbid it.
    Access,
    /// The same watch exists.
    Exists,
    /// No such node, watch or transaction.
    NotFound,
    /// A quota is used up (nodes, node size, transactions, memory).
    NoSpace,
    /// Unknown operation.
    Unknown,
    /// A transaction cannot start inside a transaction.
    Busy,
    /// The transaction lost against another change: do it again.
    Again,
    /// The answer does not fit, or too many watches.
    TooBig,
    /// Only a privileged client may give a node to another owner.
    NotPermitted,
}

impl Error {
    /// The name that a client reads.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Invalid => "EINVAL",
            Self::Access => "EACCES",
            Self::Exists => "EEXIST",
            Self::NotFound => "ENOENT",
            Self::NoSpace => "ENOSPC",
            Self::Unknown => "ENOSYS",
            Self::Busy => "EBUSY",
            Self::Again => "EAGAIN",
            Self::TooBig => "E2BIG",
            Self::NotPermitted => "EPERM",
        }
    }
}
