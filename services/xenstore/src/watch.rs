//! Watches, indexed by the path that they watch: a change looks up its own path and each ancestor, and
//! never meets a watch that lies elsewhere.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::rc::Rc;

use proto::xenstore::Role;

use crate::error::Error;
use crate::path::Path;
use crate::permissions::Actor;

/// Fires when a domain gets a channel to the store.
pub const INTRODUCE_DOMAIN: &str = "@introduceDomain";
/// Fires when a domain is gone.
pub const RELEASE_DOMAIN: &str = "@releaseDomain";
/// Longest token: the longest path, the token and two NULs fit a payload.
pub const TOKEN_MAX: usize = 1022;
/// Bytes that a watch costs besides path and token.
const WATCH_OVERHEAD: usize = 256;

/// Number of a watch, unique while the store runs.
pub type WatchId = u64;

/// What is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A node and all below.
    Node(Path),
    /// [`INTRODUCE_DOMAIN`] or [`RELEASE_DOMAIN`].
    Special(&'static str),
}

impl Target {
    /// Reads the path of a WATCH or UNWATCH.
    ///
    /// # Errors
    /// [`Error::Invalid`]: malformed, or an unknown special name.
    pub fn parse(text: &str, actor: Actor) -> Result<Self, Error> {
        match text {
            INTRODUCE_DOMAIN => Ok(Self::Special(INTRODUCE_DOMAIN)),
            RELEASE_DOMAIN => Ok(Self::Special(RELEASE_DOMAIN)),
            _ if text.starts_with('@') => Err(Error::Invalid),
            _ => Path::resolve(text, &actor.home()).map(Self::Node),
        }
    }

    /// The key in the index: one text for however the client wrote the path.
    pub fn index(&self) -> &str {
        match self {
            Self::Node(path) => path.prefix(),
            Self::Special(name) => name,
        }
    }
}

/// A watch.
#[derive(Debug, Clone)]
pub struct Watch {
    /// Channel that gets the events.
    pub channel: u32,
    /// On whose behalf.
    pub actor: Actor,
    /// What.
    pub target: Target,
    /// The path as the client wrote it.
    pub text: Rc<str>,
    /// Chosen by the client.
    pub token: Rc<[u8]>,
}

impl Watch {
    /// Bytes to charge.
    pub fn cost(&self) -> usize {
        WATCH_OVERHEAD + self.target.index().len() + self.text.len() + self.token.len()
    }

    /// How an event names the changed node: relative to the home when the watch is.
    pub fn name_of<'a>(&self, changed: &'a Path) -> &'a str {
        let text = changed.as_str();
        if self.text.starts_with('/') {
            return text;
        }
        let home = self.actor.home();
        text.strip_prefix(home.prefix()).and_then(|rest| rest.strip_prefix('/')).unwrap_or(text)
    }
}

/// A client's name of a watch: role, target (absolute), token.
pub type WatchName = (u8, Rc<str>, Rc<[u8]>);

/// The number that stands for a role in a [`WatchName`].
pub fn role_number(role: Role) -> u8 {
    match role {
        Role::Guest => 0,
        Role::Backend => 1,
        Role::Toolstack => 2,
    }
}

/// All watches.
#[derive(Debug, Default)]
pub struct Watches {
    watches: BTreeMap<WatchId, Watch>,
    index: BTreeMap<Rc<str>, BTreeSet<WatchId>>,
    last: WatchId,
}

impl Watches {
    /// Adds a watch.
    pub fn insert(&mut self, watch: Watch) -> WatchId {
        self.last += 1;
        match self.index.get_mut(watch.target.index()) {
            Some(ids) => {
                ids.insert(self.last);
            }
            None => {
                self.index.insert(Rc::from(watch.target.index()), BTreeSet::from([self.last]));
            }
        }
        self.watches.insert(self.last, watch);
        self.last
    }

    /// Removes a watch.
    pub fn remove(&mut self, id: WatchId) -> Option<Watch> {
        let watch = self.watches.remove(&id)?;
        let key = watch.target.index();
        if let Some(ids) = self.index.get_mut(key) {
            ids.remove(&id);
            if ids.is_empty() {
                self.index.remove(key);
            }
        }
        Some(watch)
    }

    /// A watch.
    pub fn get(&self, id: WatchId) -> Option<&Watch> {
        self.watches.get(&id)
    }

    /// The watches that a change of `path` fires: of the node and, unless `is_exact`, of its ancestors.
    pub fn of_node<'a>(
        &'a self,
        path: &'a Path,
        is_exact: bool,
    ) -> impl Iterator<Item = (WatchId, &'a Watch)> {
        self.found(path.prefixes().take(if is_exact { 1 } else { usize::MAX }))
    }

    /// The watches of a special name.
    pub fn of_special(&self, name: &'static str) -> impl Iterator<Item = (WatchId, &Watch)> {
        self.found(core::iter::once(name))
    }

    fn found<'a>(
        &'a self,
        keys: impl Iterator<Item = &'a str>,
    ) -> impl Iterator<Item = (WatchId, &'a Watch)> {
        keys.filter_map(|key| self.index.get(key))
            .flatten()
            .filter_map(|id| self.watches.get(id).map(|watch| (*id, watch)))
    }
}
