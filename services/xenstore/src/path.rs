//! Paths: checked, absolute, and ordered by (parent, name), so that a node's children are neighbours in
//! a sorted map and nothing has to keep a list of children beside it.
//!
//! Limits and characters: Xen's `docs/misc/xenstore.txt` and `xs_wire.h`.

use alloc::rc::Rc;
use alloc::string::String;
use core::borrow::Borrow;
use core::cmp::Ordering;
use core::fmt;

use crate::error::Error;

/// Longest absolute path in bytes (XENSTORE_ABS_PATH_MAX).
pub const ABSOLUTE_MAX: usize = 3072;
/// Longest path below a domain's home in bytes (XENSTORE_REL_PATH_MAX).
pub const RELATIVE_MAX: usize = 2048;
/// Every domain's home lies below this.
pub const HOMES: &str = "/local/domain/";

/// Where a path stands in the order: its parent's text, then its name. The root is `("", "")`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key<'a> {
    /// Path of the parent, without a slash at the end.
    pub parent: &'a str,
    /// Last component.
    pub name: &'a str,
}

impl<'a> Key<'a> {
    /// The key of an absolute path in the form that [`Path`] keeps (the root is empty).
    fn of(text: &'a str) -> Self {
        let (parent, name) = text.rsplit_once('/').unwrap_or(("", ""));
        Self { parent, name }
    }
}

/// Anything that has a key: lets a map that is keyed by [`Path`] be searched without allocating.
pub trait Keyed {
    /// The key.
    fn key(&self) -> Key<'_>;
}

impl Keyed for Key<'_> {
    fn key(&self) -> Key<'_> {
        *self
    }
}

impl Keyed for Path {
    fn key(&self) -> Key<'_> {
        Key::of(&self.0)
    }
}

impl PartialEq for dyn Keyed + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}
impl Eq for dyn Keyed + '_ {}
impl PartialOrd for dyn Keyed + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for dyn Keyed + '_ {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}
impl<'a> Borrow<dyn Keyed + 'a> for Path {
    fn borrow(&self) -> &(dyn Keyed + 'a) {
        self
    }
}

/// A checked absolute path. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct Path(Rc<str>);

impl PartialOrd for Path {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Path {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'@')
}

/// Bytes of `text` that are a path below a home, when it is one.
fn below_home(text: &str) -> Option<&str> {
    let (domid, rest) = text.strip_prefix(HOMES)?.split_once('/')?;
    (!domid.is_empty() && domid.bytes().all(|b| b.is_ascii_digit())).then_some(rest)
}

impl Path {
    /// The root.
    pub fn root() -> Self {
        Self(Rc::from(""))
    }

    /// The home of a domain.
    pub fn home(domid: u32) -> Self {
        Self(Rc::from(alloc::format!("{HOMES}{domid}")))
    }

    /// Checks an absolute path.
    ///
    /// # Errors
    /// [`Error::Invalid`]: not absolute, too long, a character that no name has, an empty name.
    pub fn absolute(text: &str) -> Result<Self, Error> {
        if text == "/" {
            return Ok(Self::root());
        }
        let names = text.strip_prefix('/').ok_or(Error::Invalid)?;
        let has_good_names = names.split('/').all(|name| !name.is_empty() && name.bytes().all(is_name_byte));
        let fits = text.len() <= ABSOLUTE_MAX
            && below_home(text).is_none_or(|relative| relative.len() <= RELATIVE_MAX);
        if has_good_names && fits { Ok(Self(Rc::from(text))) } else { Err(Error::Invalid) }
    }

    /// Checks a path that is relative to `home` unless it starts with a slash.
    ///
    /// # Errors
    /// [`Error::Invalid`] as [`Self::absolute`].
    pub fn resolve(text: &str, home: &Path) -> Result<Self, Error> {
        if text.starts_with('/') {
            return Self::absolute(text);
        }
        if text.len() > RELATIVE_MAX {
            return Err(Error::Invalid);
        }
        let mut absolute = String::with_capacity(home.0.len() + 1 + text.len());
        absolute.push_str(&home.0);
        absolute.push('/');
        absolute.push_str(text);
        Self::absolute(&absolute)
    }

    /// The text; the root is `/`.
    pub fn as_str(&self) -> &str {
        if self.0.is_empty() { "/" } else { &self.0 }
    }

    /// The text without the root's slash: a prefix of everything below, up to a slash.
    pub fn prefix(&self) -> &str {
        &self.0
    }

    /// Last component, empty for the root.
    pub fn name(&self) -> &str {
        self.key().name
    }

    /// Whether this is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The path one up, `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        (!self.is_root()).then(|| Self(Rc::from(self.key().parent)))
    }

    /// The path of a child whose name was checked before.
    pub fn child(&self, name: &str) -> Self {
        let mut text = String::with_capacity(self.0.len() + 1 + name.len());
        text.push_str(&self.0);
        text.push('/');
        text.push_str(name);
        Self(Rc::from(text))
    }

    /// Whether this is `other` or lies below it.
    pub fn is_within(&self, other: &Path) -> bool {
        self.0.strip_prefix(other.prefix()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Keys of the path and its ancestors, the root last.
    pub fn upwards(&self) -> impl Iterator<Item = Key<'_>> {
        core::iter::successors(Some(&*self.0), |text| text.rsplit_once('/').map(|(parent, _)| parent))
            .map(Key::of)
    }

    /// Texts of the path and its ancestors without the root's slash, the root (empty) last.
    pub fn prefixes(&self) -> impl Iterator<Item = &str> {
        core::iter::successors(Some(&*self.0), |text| text.rsplit_once('/').map(|(parent, _)| parent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    #[test]
    fn malformed_paths_are_invalid() {
        let home = Path::home(3);
        for bad in ["", "a/", "/a/", "//", "/a//b", "a b", "/a.b", "/\u{e4}", "/@x y", "a\n"] {
            assert_eq!(Path::resolve(bad, &home), Err(Error::Invalid), "{bad:?}");
        }
        assert_eq!(Path::resolve("device/vif", &home).unwrap().as_str(), "/local/domain/3/device/vif");
        assert_eq!(Path::resolve("/", &home).unwrap(), Path::root());
    }

    #[test]
    fn length_limits_are_those_of_the_wire() {
        let long = |n: usize| "a".repeat(n);
        let home = Path::home(1);
        assert!(Path::absolute(&("/".to_string() + &long(ABSOLUTE_MAX - 1))).is_ok());
        assert!(Path::absolute(&("/".to_string() + &long(ABSOLUTE_MAX))).is_err());
        assert!(Path::resolve(&long(RELATIVE_MAX), &home).is_ok());
        assert!(Path::resolve(&long(RELATIVE_MAX + 1), &home).is_err());
        assert!(Path::absolute(&("/local/domain/1/".to_string() + &long(RELATIVE_MAX + 1))).is_err());
    }

    #[test]
    fn upwards_ends_at_the_root() {
        let path = Path::absolute("/a/b").unwrap();
        let keys: Vec<_> = path.upwards().map(|k| (k.parent.to_string(), k.name.to_string())).collect();
        assert_eq!(keys, [("/a".into(), "b".into()), ("".into(), "a".into()), ("".into(), "".into())]);
        assert_eq!(path.parent().unwrap().parent().unwrap(), Path::root());
        assert_eq!(Path::root().parent(), None);
    }

    #[test]
    fn within_needs_a_whole_component() {
        let path = |text| Path::absolute(text).unwrap();
        assert!(path("/a/b").is_within(&path("/a")));
        assert!(path("/a").is_within(&path("/a")));
        assert!(path("/a").is_within(&Path::root()));
        assert!(!path("/ab").is_within(&path("/a")));
    }

    proptest! {
        #[test]
        fn any_text_is_a_path_that_reads_back_or_an_error(text in "[a-c/@ .]{0,12}") {
            let home = Path::home(7);
            if let Ok(path) = Path::resolve(&text, &home) {
                prop_assert_eq!(Path::absolute(path.as_str()).unwrap(), path);
            }
        }
    }
}
