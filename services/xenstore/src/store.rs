//! The store: channels in, replies and events out. No I/O: the binary moves messages.
//!
//! Invariant: whatever a channel sends, only its own domain's quota pays for it, and when the channel is
//! detached nothing of the domain stays.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::rc::Rc;
use alloc::vec::Vec;

use proto::xenstore::{Message, Role};

use crate::connection::{Connection, Outgoing, event_message, reply_message};
use crate::error::Error;
use crate::path::Path;
use crate::permissions::{Actor, Permissions, READ};
use crate::quota::{Limits, Quota, Violation, Violations};
use crate::transaction::{Change, View};
use crate::tree::{Content, Tree};
use crate::watch::{INTRODUCE_DOMAIN, RELEASE_DOMAIN, Watch, WatchId, Watches};
use crate::wire::{self, Request};

/// How many times more events than an ordinary domain's may wait for a privileged client.
const PRIVILEGED_EVENTS: usize = 16;

/// The store and everything that its clients hold in it.
#[derive(Debug)]
pub struct Store {
    pub(crate) tree: Tree,
    pub(crate) watches: Watches,
    pub(crate) connections: BTreeMap<u32, Connection>,
    /// Domains that have a channel: how many.
    pub(crate) domains: BTreeMap<u32, usize>,
    pub(crate) limits: Limits,
    pub(crate) violations: Violations,
    ready: BTreeSet<u32>,
}

/// A node that changed, with the permissions that decide who hears of it.
#[derive(Debug)]
pub(crate) struct Fired {
    pub change: Change,
    pub before: Option<Permissions>,
    pub after: Option<Permissions>,
}

/// What a request does besides its reply.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    pub fired: Vec<Fired>,
    /// A new watch, which fires once.
    pub first_event: Option<WatchId>,
}

impl Store {
    /// A store with the directories that every Xen system has.
    pub fn new(limits: Limits) -> Self {
        let mut tree = Tree::new(limits.history);
        for text in ["/tool", "/vm", "/local", "/local/domain", "/local/domain/0"] {
            let content = Content { value: Rc::from([]), permissions: Permissions::private(0), account: 0 };
            if let Ok(path) = Path::absolute(text) {
                tree.put(&path, Some(content));
            }
        }
        Self {
            tree,
            watches: Watches::default(),
            connections: BTreeMap::new(),
            domains: BTreeMap::new(),
            limits,
            violations: Violations::default(),
            ready: BTreeSet::new(),
        }
    }

    /// A channel appears. Domain 0 owns the tree and has no channel of its own unless it is privileged.
    ///
    /// # Errors
    /// The reason why it is refused.
    pub fn attach(&mut self, channel: u32, domid: u32, is_privileged: bool) -> Result<(), &'static str> {
        if domid == 0 && !is_privileged {
            return Err("domain 0 needs a privileged channel");
        }
        if self.connections.contains_key(&channel) {
            return Err("the channel is attached already");
        }
        self.connections.insert(channel, Connection::new(domid, is_privileged));
        if !is_privileged {
            *self.domains.entry(domid).or_default() += 1;
            self.fire_special(INTRODUCE_DOMAIN);
        }
        Ok(())
    }

    /// A channel is gone, and with an ordinary domain's last one all that the domain had: watches,
    /// transactions, queued messages and nodes.
    pub fn detach(&mut self, channel: u32) {
        let Some(connection) = self.connections.remove(&channel) else { return };
        self.ready.remove(&channel);
        for id in connection.watches.into_values() {
            self.watches.remove(id);
        }
        for transaction in connection.transactions.into_values() {
            self.tree.close_snapshot(transaction.snapshot);
        }
        if connection.is_privileged {
            return;
        }
        let domid = connection.domid;
        let Some(count) = self.domains.get_mut(&domid) else { return };
        *count -= 1;
        if *count > 0 {
            return;
        }
        self.domains.remove(&domid);
        self.remove_nodes_of(domid);
        self.violations.forget(domid);
        self.fire_special(RELEASE_DOMAIN);
    }

    /// Removes a domain's home, its backend directories, and what else it pays for.
    fn remove_nodes_of(&mut self, domid: u32) {
        let mut roots = Vec::from([Path::home(domid)]);
        let backends = Path::home(0).child("backend");
        let domid_text = alloc::format!("{domid}");
        roots.extend(self.tree.children(&backends).map(|kind| backends.child(kind).child(&domid_text)));
        self.remove_subtrees(&roots);
        if self.tree.usage(domid).nodes > 0 {
            let rest = self.tree.charged_to(domid);
            self.remove_subtrees(&rest);
        }
    }

    fn remove_subtrees(&mut self, roots: &[Path]) {
        for root in roots {
            let mut fired = Vec::new();
            let mut view = View { tree: &mut self.tree, transaction: None };
            Self::remove_subtree(&mut view, root, &mut fired);
            self.fire(&fired);
        }
    }

    /// Whether the channel's next request may be taken: not while a reply waits for room.
    pub fn accepts(&self, channel: u32) -> bool {
        self.connections.get(&channel).is_some_and(|connection| connection.replies < self.limits.replies)
    }

    /// Handles a request; reply and events are queued.
    pub fn request(&mut self, channel: u32, message: &Message) {
        let result = self.perform(channel, message);
        let (op, payload, effects) = match result {
            Ok((payload, effects)) => (message.op, payload, effects),
            Err(error) => {
                let mut name = Vec::from(error.name());
                name.push(0);
                (wire::ERROR, name, Effects::default())
            }
        };
        let Some(connection) = self.connections.get_mut(&channel) else { return };
        let (role, id, tx) = (message.role, message.id, message.tx);
        connection.queue(Outgoing::Reply { role, op, id, tx, payload });
        self.ready.insert(channel);
        if let Some(watch) = effects.first_event {
            self.queue_event(channel, watch, None);
        }
        self.fire(&effects.fired);
    }

    fn perform(&mut self, channel: u32, message: &Message) -> Result<(Vec<u8>, Effects), Error> {
        let connection = self.connections.get_mut(&channel).ok_or(Error::Invalid)?;
        let domid = connection.domid;
        if message.role == Role::Toolstack && !connection.is_privileged {
            return Err(Error::Access);
        }
        let actor = Actor { role: message.role, domid };
        let request = Request::parse(message.op, &message.payload)?;
        // The transaction is out of the map while the request runs on it.
        let mut transaction = match message.tx {
            0 => None,
            tx => {
                let is_own = connection.transactions.get(&tx).is_some_and(|t| t.actor.role == actor.role);
                let found = is_own.then(|| connection.transactions.remove(&tx)).flatten();
                Some(found.ok_or(Error::NotFound)?)
            }
        };
        if let Request::TransactionEnd { is_commit } = request {
            let mut transaction = transaction.ok_or(Error::NotFound)?;
            let result = if is_commit { self.commit(actor, &mut transaction) } else { Ok(Vec::new()) };
            self.tree.close_snapshot(transaction.snapshot);
            return result.map(|fired| (Vec::from(b"OK\0"), Effects { fired, first_event: None }));
        }
        let mut effects = Effects::default();
        let result = self.execute(channel, actor, &request, transaction.as_mut(), &mut effects);
        if let (Some(transaction), Some(connection)) = (transaction, self.connections.get_mut(&channel)) {
            connection.transactions.insert(message.tx, transaction);
        }
        result.map(|payload| (payload, effects))
    }

    /// The next message for a channel; [`Self::pop`] when it was sent.
    pub fn peek(&mut self, channel: u32) -> Option<Message> {
        let connection = self.connections.get(&channel)?;
        match connection.outbox.front()? {
            Outgoing::Reply { role, op, id, tx, payload } => {
                Some(reply_message(*role, *op, *id, *tx, payload))
            }
            Outgoing::Event { watch, path } => {
                // Events of a watch are dropped with it, so it is there.
                let watch = self.watches.get(*watch)?;
                let name = path.as_ref().map_or(&*watch.text, |path| watch.name_of(path));
                Some(event_message(watch.actor.role, name, &watch.token))
            }
        }
    }

    /// The message that [`Self::peek`] showed was sent.
    pub fn pop(&mut self, channel: u32) {
        if let Some(connection) = self.connections.get_mut(&channel) {
            connection.pop();
        }
    }

    /// Channels for which something was queued since the last call.
    pub fn take_ready(&mut self) -> BTreeSet<u32> {
        core::mem::take(&mut self.ready)
    }

    /// Quota violations to report.
    pub fn take_violations(&mut self) -> Vec<Violation> {
        self.violations.take()
    }

    fn fire_special(&mut self, name: &'static str) {
        let privileged: Vec<(WatchId, u32)> = self
            .watches
            .of_special(name)
            .filter(|(_, watch)| watch.actor.is_privileged())
            .map(|(id, watch)| (id, watch.channel))
            .collect();
        for (id, channel) in privileged {
            self.queue_event(channel, id, None);
        }
    }

    /// Tells every watch that may know.
    pub(crate) fn fire(&mut self, fired: &[Fired]) {
        for one in fired {
            let path = &one.change.path;
            let parent = path.parent();
            let parent = parent.and_then(|path| self.tree.get(&path).map(|c| (path, c.permissions.clone())));
            let may_know = |watch: &Watch| {
                let can_read = |path: &Path, list: &Permissions| watch.actor.access(path, list) & READ != 0;
                [&one.before, &one.after].into_iter().flatten().any(|list| can_read(path, list))
                    || parent.as_ref().is_some_and(|(path, list)| can_read(path, list))
            };
            let hits: Vec<(WatchId, u32)> = self
                .watches
                .of_node(path, one.change.is_exact)
                .filter(|(_, watch)| may_know(watch))
                .map(|(id, watch)| (id, watch.channel))
                .collect();
            for (id, channel) in hits {
                self.queue_event(channel, id, Some(path.clone()));
            }
        }
    }

    fn queue_event(&mut self, channel: u32, watch: WatchId, path: Option<Path>) {
        let Some(connection) = self.connections.get_mut(&channel) else { return };
        if connection.has_event(watch, path.as_ref()) {
            return;
        }
        let (domid, waiting) = (connection.domid, connection.events() + 1);
        // A privileged client that stops draining must not fill the heap either.
        let factor = if connection.is_privileged { PRIVILEGED_EVENTS } else { 1 };
        let limit = self.limits.events.saturating_mul(factor);
        let has_room = self.violations.check(domid, Quota::Events, waiting, limit);
        if has_room {
            connection.queue(Outgoing::Event { watch, path });
            self.ready.insert(channel);
        }
    }

    /// Whether an ordinary domain may use `nodes` and `bytes` more.
    pub(crate) fn check_room(
        &mut self,
        domid: u32,
        held: usize,
        nodes: isize,
        bytes: isize,
    ) -> Result<(), Error> {
        let usage = self.tree.usage(domid);
        let nodes_after = usage.nodes.saturating_add_signed(nodes);
        let bytes_after = usage.bytes.saturating_add(held).saturating_add_signed(bytes);
        let total = self.tree.total_bytes().saturating_add_signed(bytes);
        // A request that needs less than before passes even where a limit was lowered.
        let is_fine = (nodes <= 0
            || self.violations.check(domid, Quota::Nodes, nodes_after, self.limits.nodes))
            && (bytes <= 0
                || self.violations.check(domid, Quota::Memory, bytes_after, self.limits.memory)
                    && self.violations.check(domid, Quota::Total, total, self.limits.total));
        if is_fine { Ok(()) } else { Err(Error::NoSpace) }
    }
}
