//! Permissions of a node, and what each role may touch.
//!
//! The first entry names the owner, who may do everything, and what everybody may do who is not listed;
//! the others name single domains. Source: Xen's `docs/misc/xenstore.txt`, SET_PERMS.
//! Invariant: a VMM acting as backend reaches only its own guest's directories, whatever the lists say.

use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

use proto::xenstore::Role;

use crate::error::Error;
use crate::path::{HOMES, Path};

/// May be read.
pub const READ: u8 = 1;
/// May be written, created below, removed.
pub const WRITE: u8 = 2;
/// Permissions may be changed.
pub const OWN: u8 = 4;

/// One entry: what a domain may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Domain.
    pub domid: u32,
    /// [`READ`] and [`WRITE`].
    pub access: u8,
}

/// A node's permissions; never empty. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permissions(Rc<[Entry]>);

impl Permissions {
    /// Owned by `domid`, closed to everybody else.
    pub fn private(domid: u32) -> Self {
        Self(Rc::from([Entry { domid, access: 0 }]))
    }

    /// Parses the entries of a SET_PERMS payload, for example `n0` and `r5`.
    ///
    /// # Errors
    /// [`Error::Invalid`]: none, or one that is not a letter of `nrwb` and a domain ID.
    pub fn parse<'a>(entries: impl Iterator<Item = &'a str>) -> Result<Self, Error> {
        let parsed: Vec<Entry> = entries.map(parse_entry).collect::<Result<_, _>>()?;
        if parsed.is_empty() { Err(Error::Invalid) } else { Ok(Self(Rc::from(parsed))) }
    }

    /// The owner.
    pub fn owner(&self) -> u32 {
        self.0.first().map_or(0, |entry| entry.domid)
    }

    /// How many entries.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Never: a node has an owner.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The same list with another owner.
    pub fn owned_by(&self, domid: u32) -> Self {
        if self.owner() == domid {
            return self.clone();
        }
        let mut entries: Vec<Entry> = self.0.to_vec();
        if let Some(first) = entries.first_mut() {
            first.domid = domid;
        }
        Self(Rc::from(entries))
    }

    /// What an ordinary domain may do.
    fn access(&self, domid: u32) -> u8 {
        match self.0.split_first() {
            Some((owner, _)) if owner.domid == domid => READ | WRITE | OWN,
            Some((default, others)) => {
                others.iter().find(|entry| entry.domid == domid).unwrap_or(default).access
            }
            None => 0,
        }
    }

    /// The entries as GET_PERMS answers them, each ended by NUL.
    pub fn to_wire(&self) -> String {
        let mut text = String::new();
        for entry in self.0.iter() {
            let letter = match entry.access {
                0 => 'n',
                READ => 'r',
                WRITE => 'w',
                _ => 'b',
            };
            // Writing to a String cannot fail.
            let _ = write!(text, "{letter}{}\0", entry.domid);
        }
        text
    }
}

fn parse_entry(text: &str) -> Result<Entry, Error> {
    let mut chars = text.chars();
    let access = match chars.next() {
        Some('n') => 0,
        Some('r') => READ,
        Some('w') => WRITE,
        Some('b') => READ | WRITE,
        _ => return Err(Error::Invalid),
    };
    Ok(Entry { domid: parse_decimal(chars.as_str())?, access })
}

/// A decimal number: digits only, no sign.
///
/// # Errors
/// [`Error::Invalid`] when it is something else or too large.
pub fn parse_decimal(text: &str) -> Result<u32, Error> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Error::Invalid);
    }
    text.parse().map_err(|_| Error::Invalid)
}

/// On whose behalf a request is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Actor {
    /// The role; the store has checked that the channel allows it.
    pub role: Role,
    /// The domain that pays: the peer of the channel (0 for the toolstack).
    pub domid: u32,
}

impl Actor {
    /// Whether quotas and permissions do not apply.
    pub fn is_privileged(self) -> bool {
        self.role == Role::Toolstack
    }

    /// Where relative paths start.
    pub fn home(self) -> Path {
        match self.role {
            Role::Guest => Path::home(self.domid),
            Role::Backend | Role::Toolstack => Path::home(0),
        }
    }

    /// What the actor may do with a node.
    pub fn access(self, path: &Path, permissions: &Permissions) -> u8 {
        match self.role {
            Role::Toolstack => READ | WRITE | OWN,
            Role::Guest => permissions.access(self.domid),
            Role::Backend => backend_access(path, self.domid),
        }
    }
}

/// A backend's reach: `/local/domain/0/backend/<kind>/<domid>` and below, and to read the guest's home.
fn backend_access(path: &Path, domid: u32) -> u8 {
    let is_domid = |text: &str| parse_decimal(text) == Ok(domid) && !has_leading_zero(text);
    let Some(rest) = path.as_str().strip_prefix(HOMES) else { return 0 };
    let mut names = rest.split('/');
    match (names.next(), names.next(), names.next(), names.next()) {
        (Some("0"), Some("backend"), Some(_), Some(id)) if is_domid(id) => READ | WRITE,
        (Some(id), ..) if is_domid(id) && domid != 0 => READ,
        _ => 0,
    }
}

fn has_leading_zero(text: &str) -> bool {
    text.len() > 1 && text.starts_with('0')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permissions(entries: &[&str]) -> Permissions {
        Permissions::parse(entries.iter().copied()).unwrap()
    }

    #[test]
    fn the_owner_may_do_everything_and_others_what_their_entry_says() {
        let list = permissions(&["n1", "r2", "w3", "b4"]);
        assert_eq!(list.access(1), READ | WRITE | OWN);
        assert_eq!((list.access(2), list.access(3), list.access(4)), (READ, WRITE, READ | WRITE));
        assert_eq!(list.access(5), 0);
        assert_eq!(permissions(&["r0"]).access(9), READ);
        assert_eq!(list.to_wire(), "n1\0r2\0w3\0b4\0");
    }

    #[test]
    fn malformed_entries_are_invalid() {
        for bad in ["", "n", "x1", "r-1", "r+1", "r4294967296", "n1 ", "1"] {
            assert_eq!(Permissions::parse([bad].into_iter()), Err(Error::Invalid), "{bad:?}");
        }
        assert_eq!(Permissions::parse([].into_iter()), Err(Error::Invalid));
    }

    #[test]
    fn a_backend_reaches_its_own_guest_only() {
        let access = |text| backend_access(&Path::absolute(text).unwrap(), 5);
        assert_eq!(access("/local/domain/0/backend/vbd/5"), READ | WRITE);
        assert_eq!(access("/local/domain/0/backend/vbd/5/51712/state"), READ | WRITE);
        assert_eq!(access("/local/domain/5/device/vbd/51712/state"), READ);
        assert_eq!(access("/local/domain/5"), READ);
        for foreign in [
            "/",
            "/local/domain/0",
            "/local/domain/0/backend/vbd",
            "/local/domain/0/backend/vbd/50/x",
            "/local/domain/0/backend/vbd/05/x",
            "/local/domain/0/device/vbd/5",
            "/local/domain/55",
            "/local/domain/6",
            "/tool/5",
        ] {
            assert_eq!(access(foreign), 0, "{foreign}");
        }
    }
}
