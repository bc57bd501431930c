//! Transactions: a private overlay over a snapshot; whatever was read is checked at the end.
//!
//! A transaction that commits had the effect that it would have had if run alone at that moment: each
//! node that it looked at, present or not, and each list of children is unchanged since its start.
//! Creating different children of one parent is not a conflict.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::path::{Key, Keyed, Path};
use crate::permissions::Actor;
use crate::tree::{Content, Tree};
use core::ops::Bound;

/// Bytes that an entry of a transaction costs besides its path.
const ENTRY_OVERHEAD: usize = 96;

/// Something that fires watches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The node.
    pub path: Path,
    /// Only watches of exactly this node fire: it vanished with the node above it, whose watches fire.
    pub is_exact: bool,
}

/// An open transaction.
#[derive(Debug)]
pub struct Transaction {
    /// Who started it; no other role may use it.
    pub actor: Actor,
    /// Snapshot of the tree.
    pub snapshot: u64,
    /// What was written, `None` for removed.
    pub overlay: BTreeMap<Path, Option<Content>>,
    /// What fires at commit.
    pub changes: Vec<Change>,
    /// Nodes charged to the actor's domain that it adds to its snapshot.
    pub new_nodes: isize,
    reads: BTreeSet<Path>,
    listed: BTreeSet<Path>,
    bytes: usize,
}

impl Transaction {
    /// An empty one.
    pub fn new(actor: Actor, snapshot: u64) -> Self {
        Self {
            actor,
            snapshot,
            overlay: BTreeMap::new(),
            changes: Vec::new(),
            new_nodes: 0,
            reads: BTreeSet::new(),
            listed: BTreeSet::new(),
            bytes: 0,
        }
    }

    /// How many nodes it remembers.
    pub fn size(&self) -> usize {
        self.reads.len() + self.listed.len()
    }

    /// Bytes that it costs.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether somebody changed what it relies on.
    pub fn has_conflict(&self, tree: &Tree) -> bool {
        !tree.has_snapshot(self.snapshot)
            || self.reads.iter().any(|path| !tree.is_unchanged(path, self.snapshot))
            || self.listed.iter().any(|path| !tree.has_same_children(path, self.snapshot))
    }

    /// By how much committing now would change what a domain is charged for: nodes and bytes.
    pub fn growth(&self, tree: &Tree, account: u32) -> (isize, isize) {
        let (mut nodes, mut bytes) = (0isize, 0isize);
        for (path, new) in &self.overlay {
            if let Some(new) = new.as_ref().filter(|content| content.account == account) {
                nodes += 1;
                bytes += new.cost(path) as isize;
            }
            if let Some(old) = tree.get(path).filter(|content| content.account == account) {
                nodes -= 1;
                bytes -= old.cost(path) as isize;
            }
        }
        (nodes, bytes)
    }

    fn get(&mut self, tree: &Tree, path: &Path) -> Option<Content> {
        if let Some(content) = self.overlay.get(path) {
            return content.clone();
        }
        if self.reads.insert(path.clone()) {
            self.bytes += ENTRY_OVERHEAD + path.as_str().len();
        }
        self.base(tree, path).cloned()
    }

    fn base<'a>(&self, tree: &'a Tree, path: &Path) -> Option<&'a Content> {
        if tree.has_snapshot(self.snapshot) { tree.get_at(path, self.snapshot) } else { tree.get(path) }
    }

    fn children(&mut self, tree: &Tree, parent: &Path) -> Vec<String> {
        if self.listed.insert(parent.clone()) {
            self.bytes += ENTRY_OVERHEAD + parent.as_str().len();
        }
        let mut names = if tree.has_snapshot(self.snapshot) {
            tree.children_at(parent, self.snapshot)
        } else {
            tree.children(parent).map(String::from).collect()
        };
        let start = Key { parent: parent.prefix(), name: "" };
        let written = self
            .overlay
            .range::<dyn Keyed, _>((Bound::Excluded(&start as &dyn Keyed), Bound::Unbounded))
            .take_while(|(path, _)| path.key().parent == parent.prefix());
        for (path, content) in written {
            if content.is_some() {
                names.insert(path.name().to_string());
            } else {
                names.remove(path.name());
            }
        }
        names.into_iter().collect()
    }

    fn put(&mut self, tree: &Tree, path: &Path, content: Option<Content>) {
        let is_own = |content: Option<&Content>| {
            isize::from(content.is_some_and(|content| content.account == self.actor.domid))
        };
        let old = self.overlay.get(path).map_or_else(|| self.base(tree, path), Option::as_ref);
        self.new_nodes += is_own(content.as_ref()) - is_own(old);
        let cost = |content: &Option<Content>| {
            ENTRY_OVERHEAD + content.as_ref().map_or(path.as_str().len(), |content| content.cost(path))
        };
        self.bytes += cost(&content);
        if let Some(old) = self.overlay.insert(path.clone(), content) {
            self.bytes = self.bytes.saturating_sub(cost(&old));
        }
    }
}

/// What one request works on: the tree itself or a transaction's view of it.
#[derive(Debug)]
pub struct View<'a> {
    /// The tree.
    pub tree: &'a mut Tree,
    /// The transaction, if the request is in one.
    pub transaction: Option<&'a mut Transaction>,
}

impl View<'_> {
    /// A node.
    pub fn get(&mut self, path: &Path) -> Option<Content> {
        match &mut self.transaction {
            None => self.tree.get(path).cloned(),
            Some(transaction) => transaction.get(self.tree, path),
        }
    }

    /// Names of a node's children, in order.
    pub fn children(&mut self, path: &Path) -> Vec<String> {
        match &mut self.transaction {
            None => self.tree.children(path).map(String::from).collect(),
            Some(transaction) => transaction.children(self.tree, path),
        }
    }

    /// A number that changes when the list of children does.
    pub fn children_generation(&self, path: &Path) -> u64 {
        let own = self.transaction.as_ref().map_or(0, |transaction| transaction.changes.len() as u64);
        self.tree.node(path).map_or(0, |node| node.children_generation).wrapping_add(own)
    }

    /// Changes a node.
    pub fn put(&mut self, path: &Path, content: Option<Content>) {
        match &mut self.transaction {
            None => {
                self.tree.put(path, content);
            }
            Some(transaction) => transaction.put(self.tree, path, content),
        }
    }

    /// The nearest ancestor that exists, with its path. There is always the root.
    pub fn nearest(&mut self, path: &Path) -> Option<(Path, Content)> {
        let mut ancestor = path.parent();
        while let Some(path) = ancestor {
            if let Some(content) = self.get(&path) {
                return Some((path, content));
            }
            ancestor = path.parent();
        }
        None
    }
}
