//! The nodes, and the old versions that open transactions still read.
//!
//! Children are found by the order of keys, not by lists in their parents, so creating a node costs the
//! same under a parent with one child and with a thousand. While a snapshot is open each change leaves
//! the version that it replaces in `history`; without snapshots nothing is kept.
//! Invariant: every node but the root has a parent that exists.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::ops::Bound;

use crate::path::{Key, Keyed, Path};
use crate::permissions::Permissions;

/// Bytes that a node costs besides its path, value and permissions.
const NODE_OVERHEAD: usize = 160;

/// What clients put into a node. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// The value.
    pub value: Rc<[u8]>,
    /// Who may do what.
    pub permissions: Permissions,
    /// Domain that pays for it.
    pub account: u32,
}

impl Content {
    /// Bytes to charge.
    pub fn cost(&self, path: &Path) -> usize {
        NODE_OVERHEAD + path.as_str().len() + self.value.len() + self.permissions.len() * 8
    }
}

/// A node of the tree.
#[derive(Debug, Clone)]
pub struct Node {
    /// What is in it.
    pub content: Content,
    /// When it was created or its content last changed.
    pub generation: u64,
    /// When a child was last added or removed.
    pub children_generation: u64,
}

/// What a node was before the change of generation `until`.
#[derive(Debug)]
struct Version {
    until: u64,
    content: Option<Content>,
}

/// What a domain is charged for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Nodes.
    pub nodes: usize,
    /// Bytes of them.
    pub bytes: usize,
}

/// The tree.
#[derive(Debug)]
pub struct Tree {
    nodes: BTreeMap<Path, Node>,
    history: BTreeMap<Path, Vec<Version>>,
    history_bytes: usize,
    history_limit: usize,
    /// Open snapshots by generation, with how many share it.
    snapshots: BTreeMap<u64, usize>,
    /// Snapshots of an earlier generation were given up.
    valid_from: u64,
    generation: u64,
    usage: BTreeMap<u32, Usage>,
    total: usize,
}

/// The entries of a map whose keys are children of `parent`.
fn range<'a, V>(map: &'a BTreeMap<Path, V>, parent: &'a Path) -> impl Iterator<Item = (&'a Path, &'a V)> {
    let parent = parent.prefix();
    let start = Key { parent, name: "" };
    map.range::<dyn Keyed, _>((Bound::Excluded(&start as &dyn Keyed), Bound::Unbounded))
        .take_while(move |(path, _)| path.key().parent == parent)
}

impl Tree {
    /// A tree that has only a root, owned by domain 0.
    pub fn new(history_limit: usize) -> Self {
        let mut tree = Self {
            nodes: BTreeMap::new(),
            history: BTreeMap::new(),
            history_bytes: 0,
            history_limit,
            snapshots: BTreeMap::new(),
            valid_from: 0,
            generation: 0,
            usage: BTreeMap::new(),
            total: 0,
        };
        let content = Content { value: Rc::from([]), permissions: Permissions::private(0), account: 0 };
        tree.put(&Path::root(), Some(content));
        tree
    }

    /// A node as it is now.
    pub fn node(&self, path: &Path) -> Option<&Node> {
        self.nodes.get(path)
    }

    /// A node's content as it is now.
    pub fn get(&self, path: &Path) -> Option<&Content> {
        self.nodes.get(path).map(|node| &node.content)
    }

    /// A node's content in a snapshot.
    pub fn get_at(&self, path: &Path, snapshot: u64) -> Option<&Content> {
        let versions = self.history.get(path).map_or(&[][..], Vec::as_slice);
        let first = versions.partition_point(|version| version.until <= snapshot);
        versions.get(first).map_or_else(|| self.get(path), |version| version.content.as_ref())
    }

    /// Names of the children now.
    pub fn children<'a>(&'a self, parent: &'a Path) -> impl Iterator<Item = &'a str> {
        range(&self.nodes, parent).map(|(path, _)| path.name())
    }

    /// Names of the children in a snapshot.
    pub fn children_at(&self, parent: &Path, snapshot: u64) -> BTreeSet<String> {
        let current = range(&self.nodes, parent).map(|(path, _)| path);
        let old = range(&self.history, parent).map(|(path, _)| path);
        current
            .chain(old)
            .filter(|path| self.get_at(path, snapshot).is_some())
            .map(|path| path.name().to_string())
            .collect()
    }

    /// Replaces a node's content, creates it (its parent exists) or removes it (its children are removed
    /// too, by the caller). Answers what was there.
    pub fn put(&mut self, path: &Path, content: Option<Content>) -> Option<Content> {
        self.generation += 1;
        let generation = self.generation;
        if let Some(new) = &content {
            self.charge(new.account, new.cost(path));
        }
        let is_present = content.is_some();
        let old = match (self.nodes.get_mut(path), content) {
            (Some(node), Some(content)) => {
                node.generation = generation;
                Some(core::mem::replace(&mut node.content, content))
            }
            (Some(_), None) => self.nodes.remove(path).map(|node| node.content),
            (None, Some(content)) => {
                let node = Node { content, generation, children_generation: generation };
                self.nodes.insert(path.clone(), node);
                None
            }
            (None, None) => return None,
        };
        if let Some(old) = &old {
            self.discharge(old.account, old.cost(path));
        }
        if old.is_some() != is_present
            && let Some(parent) = path.parent()
            && let Some(parent) = self.nodes.get_mut(&parent)
        {
            parent.children_generation = generation;
        }
        self.remember(path, old.clone());
        old
    }

    fn charge(&mut self, account: u32, bytes: usize) {
        let usage = self.usage.entry(account).or_default();
        usage.nodes += 1;
        usage.bytes += bytes;
        self.total += bytes;
    }

    fn discharge(&mut self, account: u32, bytes: usize) {
        self.total = self.total.saturating_sub(bytes);
        let Some(usage) = self.usage.get_mut(&account) else { return };
        usage.nodes = usage.nodes.saturating_sub(1);
        usage.bytes = usage.bytes.saturating_sub(bytes);
        if usage.nodes == 0 {
            self.usage.remove(&account);
        }
    }

    /// What a domain is charged for.
    pub fn usage(&self, account: u32) -> Usage {
        self.usage.get(&account).copied().unwrap_or_default()
    }

    /// Bytes of all nodes and old versions.
    pub fn total_bytes(&self) -> usize {
        self.total + self.history_bytes
    }

    /// Every path whose node is charged to a domain. Looks at all nodes: for the end of a domain only.
    pub fn charged_to(&self, account: u32) -> Vec<Path> {
        self.nodes
            .iter()
            .filter(|(_, node)| node.content.account == account)
            .map(|(path, _)| path.clone())
            .collect()
    }

    fn remember(&mut self, path: &Path, content: Option<Content>) {
        if self.snapshots.is_empty() {
            return;
        }
        self.history_bytes += version_cost(path, content.as_ref());
        self.history.entry(path.clone()).or_default().push(Version { until: self.generation, content });
        while self.history_bytes > self.history_limit {
            let Some((oldest, _)) = self.snapshots.pop_first() else { break };
            self.valid_from = oldest + 1;
            self.prune();
        }
    }

    /// Opens a snapshot of the tree as it is now.
    pub fn open_snapshot(&mut self) -> u64 {
        *self.snapshots.entry(self.generation).or_default() += 1;
        self.generation
    }

    /// Whether an open snapshot can still be read; it was given up when too much changed since.
    pub fn has_snapshot(&self, snapshot: u64) -> bool {
        snapshot >= self.valid_from
    }

    /// Ends the use of a snapshot.
    pub fn close_snapshot(&mut self, snapshot: u64) {
        let is_oldest = self.snapshots.keys().next() == Some(&snapshot);
        if let Some(count) = self.snapshots.get_mut(&snapshot) {
            *count -= 1;
            if *count == 0 {
                self.snapshots.remove(&snapshot);
                if is_oldest {
                    self.prune();
                }
            }
        }
    }

    /// Drops the versions that no snapshot reads.
    fn prune(&mut self) {
        let Some((&oldest, _)) = self.snapshots.first_key_value() else {
            self.history.clear();
            self.history_bytes = 0;
            return;
        };
        let mut freed = 0;
        self.history.retain(|path, versions| {
            let first = versions.partition_point(|version| version.until <= oldest);
            freed += versions.drain(..first).map(|v| version_cost(path, v.content.as_ref())).sum::<usize>();
            !versions.is_empty()
        });
        self.history_bytes = self.history_bytes.saturating_sub(freed);
    }

    /// Whether a node is as it was in the snapshot.
    pub fn is_unchanged(&self, path: &Path, snapshot: u64) -> bool {
        match self.node(path) {
            Some(node) => node.generation <= snapshot,
            None => self.get_at(path, snapshot).is_none(),
        }
    }

    /// Whether a node has the children that it had in the snapshot.
    pub fn has_same_children(&self, path: &Path, snapshot: u64) -> bool {
        match self.node(path) {
            Some(node) => node.children_generation <= snapshot,
            None => self.get_at(path, snapshot).is_none(),
        }
    }
}

fn version_cost(path: &Path, content: Option<&Content>) -> usize {
    content.map_or(NODE_OVERHEAD, |content| content.cost(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Path {
        Path::absolute(text).unwrap()
    }

    fn content(value: &str, account: u32) -> Content {
        Content { value: Rc::from(value.as_bytes()), permissions: Permissions::private(0), account }
    }

    fn names(tree: &Tree, parent: &str) -> Vec<String> {
        tree.children(&path(parent)).map(String::from).collect()
    }

    #[test]
    fn children_are_direct_children_only() {
        let mut tree = Tree::new(1 << 20);
        for text in ["/a", "/a/b", "/a/b/c", "/a-b", "/a/d", "/a0", "/ab"] {
            tree.put(&path(text), Some(content("", 0)));
        }
        assert_eq!(names(&tree, "/"), ["a", "a-b", "a0", "ab"]);
        assert_eq!(names(&tree, "/a"), ["b", "d"]);
        assert_eq!(names(&tree, "/a/d"), [""; 0]);
    }

    #[test]
    fn a_snapshot_keeps_values_and_children() {
        let mut tree = Tree::new(1 << 20);
        tree.put(&path("/a"), Some(content("1", 0)));
        tree.put(&path("/a/old"), Some(content("x", 0)));
        let snapshot = tree.open_snapshot();
        tree.put(&path("/a"), Some(content("2", 0)));
        tree.put(&path("/a"), Some(content("3", 0)));
        tree.put(&path("/a/old"), None);
        tree.put(&path("/a/new"), Some(content("y", 0)));
        assert_eq!(&*tree.get_at(&path("/a"), snapshot).unwrap().value, b"1");
        assert_eq!(&*tree.get(&path("/a")).unwrap().value, b"3");
        assert_eq!(tree.children_at(&path("/a"), snapshot).into_iter().collect::<Vec<_>>(), ["old"]);
        assert_eq!(names(&tree, "/a"), ["new"]);
        assert!(!tree.is_unchanged(&path("/a/old"), snapshot));
        assert!(!tree.has_same_children(&path("/a"), snapshot));
        assert!(tree.is_unchanged(&path("/"), snapshot));
        tree.close_snapshot(snapshot);
        assert_eq!((tree.history.len(), tree.history_bytes), (0, 0));
    }

    #[test]
    fn too_much_history_costs_the_oldest_snapshot_only() {
        let mut tree = Tree::new(2000);
        let old = tree.open_snapshot();
        tree.put(&path("/a"), Some(content("x", 0)));
        let new = tree.open_snapshot();
        while tree.has_snapshot(old) {
            tree.put(&path("/a"), Some(content("y", 0)));
        }
        assert!(tree.has_snapshot(new));
        assert_eq!(&*tree.get_at(&path("/a"), new).unwrap().value, b"x");
        assert!(tree.history_bytes <= 2000);
        tree.close_snapshot(old);
        tree.close_snapshot(new);
        assert_eq!(tree.history_bytes, 0);
    }

    #[test]
    fn usage_follows_the_account() {
        let mut tree = Tree::new(1 << 20);
        tree.put(&path("/a"), Some(content("xyz", 5)));
        assert_eq!(tree.usage(5), Usage { nodes: 1, bytes: NODE_OVERHEAD + 2 + 3 + 8 });
        tree.put(&path("/a"), Some(content("xyz", 6)));
        assert_eq!((tree.usage(5), tree.usage(6).nodes), (Usage::default(), 1));
        assert_eq!(tree.charged_to(6), [path("/a")]);
        tree.put(&path("/a"), None);
        assert_eq!(tree.usage(6), Usage::default());
    }
}
