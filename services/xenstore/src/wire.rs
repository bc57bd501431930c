//! Payloads to typed requests: the only place that reads what guests wrote.
//!
//! Source: `xen/include/public/io/xs_wire.h` and `docs/misc/xenstore.txt`. Strings end in NUL.

use core::str;

use crate::error::Error;
use crate::permissions::parse_decimal;

/// `xsd_sockmsg.type` of a watch event.
pub const WATCH_EVENT: u32 = 15;
/// `xsd_sockmsg.type` of an error.
pub const ERROR: u32 = 16;

/// A request whose payload has the right form. Paths are not yet checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "fields are named as in Xen's documentation of each operation")]
pub enum Request<'a> {
    /// Names of the children.
    Directory { path: &'a str },
    /// Names of the children from a byte offset on.
    DirectoryPart { path: &'a str, offset: usize },
    /// The value.
    Read { path: &'a str },
    /// The permissions.
    GetPermissions { path: &'a str },
    /// Changes the permissions; `entries` are NUL-terminated.
    SetPermissions { path: &'a str, entries: &'a str },
    /// Registers a watch.
    Watch { path: &'a str, token: &'a [u8] },
    /// Removes a watch.
    Unwatch { path: &'a str, token: &'a [u8] },
    /// Removes all watches and transactions.
    ResetWatches,
    /// Starts a transaction.
    TransactionStart,
    /// Ends the transaction.
    TransactionEnd { is_commit: bool },
    /// Path of a domain's home.
    GetDomainPath { domid: u32 },
    /// Whether a domain has a channel to the store.
    IsDomainIntroduced { domid: u32 },
    /// Sets the value, creating what is missing.
    Write { path: &'a str, value: &'a [u8] },
    /// Creates a node with an empty value.
    Mkdir { path: &'a str },
    /// Removes a node and all below.
    Remove { path: &'a str },
}

/// Splits off the bytes before the first NUL.
fn split_nul(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|&byte| byte == 0)?;
    let (first, rest) = bytes.split_at(end);
    Some((first, rest.get(1..)?))
}

fn text(bytes: &[u8]) -> Result<&str, Error> {
    str::from_utf8(bytes).map_err(|_| Error::Invalid)
}

/// The one string that the payload consists of.
fn one(payload: &[u8]) -> Result<&str, Error> {
    match split_nul(payload) {
        Some((first, [])) => text(first),
        _ => Err(Error::Invalid),
    }
}

/// The two strings that the payload consists of.
fn two(payload: &[u8]) -> Result<(&str, &[u8]), Error> {
    let (first, rest) = split_nul(payload).ok_or(Error::Invalid)?;
    match split_nul(rest) {
        Some((second, [])) => Ok((text(first)?, second)),
        _ => Err(Error::Invalid),
    }
}

impl<'a> Request<'a> {
    /// Reads the payload of an operation.
    ///
    /// # Errors
    /// [`Error::Unknown`] operation; [`Error::Invalid`] payload.
    pub fn parse(op: u32, payload: &'a [u8]) -> Result<Self, Error> {
        Ok(match op {
            1 => Self::Directory { path: one(payload)? },
            2 => Self::Read { path: one(payload)? },
            3 => Self::GetPermissions { path: one(payload)? },
            4 => two(payload).map(|(path, token)| Self::Watch { path, token })?,
            5 => two(payload).map(|(path, token)| Self::Unwatch { path, token })?,
            6 => Self::TransactionStart,
            7 => match one(payload)? {
                "T" => Self::TransactionEnd { is_commit: true },
                "F" => Self::TransactionEnd { is_commit: false },
                _ => return Err(Error::Invalid),
            },
            10 => Self::GetDomainPath { domid: parse_decimal(one(payload)?)? },
            11 => {
                let (path, value) = split_nul(payload).ok_or(Error::Invalid)?;
                Self::Write { path: text(path)?, value }
            }
            12 => Self::Mkdir { path: one(payload)? },
            13 => Self::Remove { path: one(payload)? },
            14 => {
                let (path, entries) = split_nul(payload).ok_or(Error::Invalid)?;
                let entries = entries.strip_suffix(&[0]).ok_or(Error::Invalid)?;
                Self::SetPermissions { path: text(path)?, entries: text(entries)? }
            }
            17 => Self::IsDomainIntroduced { domid: parse_decimal(one(payload)?)? },
            21 => Self::ResetWatches,
            22 => {
                let (path, offset) = two(payload)?;
                Self::DirectoryPart { path, offset: parse_decimal(text(offset)?)? as usize }
            }
            _ => return Err(Error::Unknown),
        })
    }

    /// Whether the operation may change the tree.
    pub fn is_change(&self) -> bool {
        matches!(
            self,
            Self::Write { .. } | Self::Mkdir { .. } | Self::Remove { .. } | Self::SetPermissions { .. }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    #[test]
    fn payloads_are_read_as_xen_frames_them() {
        assert_eq!(Request::parse(2, b"a/b\0"), Ok(Request::Read { path: "a/b" }));
        assert_eq!(Request::parse(11, b"a\0x\0y"), Ok(Request::Write { path: "a", value: b"x\0y" }));
        assert_eq!(Request::parse(11, b"a\0"), Ok(Request::Write { path: "a", value: b"" }));
        assert_eq!(Request::parse(4, b"a\0tok\0"), Ok(Request::Watch { path: "a", token: b"tok" }));
        assert_eq!(Request::parse(7, b"T\0"), Ok(Request::TransactionEnd { is_commit: true }));
        assert_eq!(Request::parse(22, b"a\x0017\0"), Ok(Request::DirectoryPart { path: "a", offset: 17 }));
        assert_eq!(
            Request::parse(14, b"a\0n0\0r1\0"),
            Ok(Request::SetPermissions { path: "a", entries: "n0\0r1" })
        );
    }

    #[test]
    fn malformed_payloads_are_invalid() {
        for (op, payload) in [
            (1, &b""[..]),
            (2, b"a"),
            (2, b"a\0b\0"),
            (2, b"\xff\0"),
            (4, b"a\0"),
            (4, b"a\0b"),
            (4, b"a\0b\0c\0"),
            (7, b"X\0"),
            (7, b""),
            (10, b"-1\0"),
            (11, b"a"),
            (14, b"a\0"),
            (14, b"a\0n0"),
            (22, b"a\0-1\0"),
        ] {
            assert_eq!(Request::parse(op, payload), Err(Error::Invalid), "{op} {payload:?}");
        }
        for op in [0, 8, 9, 15, 16, 18, 19, 20, 23, u32::MAX] {
            assert_eq!(Request::parse(op, b"a\0"), Err(Error::Unknown));
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(op in 0u32..24, payload in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Request::parse(op, &payload);
        }

        #[test]
        fn what_was_framed_is_parsed(path in "[a-z/]{0,20}", token in "[ -~]{0,20}") {
            let payload: Vec<u8> = [path.as_bytes(), &[0], token.as_bytes(), &[0]].concat();
            prop_assert_eq!(
                Request::parse(4, &payload),
                Ok(Request::Watch { path: &path, token: token.as_bytes() })
            );
        }
    }
}
