//! One channel: its watches, its transactions and what waits to be sent on it.
//!
//! Replies and events share one queue, so a client sees them in the order in which they came about.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

use proto::text::Bytes;
use proto::xenstore::{Message, Role};

use crate::path::Path;
use crate::transaction::Transaction;
use crate::watch::{WatchId, WatchName};
use crate::wire;

/// Bytes that a queued event costs besides its path.
pub const EVENT_OVERHEAD: usize = 64;

/// Something to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outgoing {
    /// An answer.
    Reply {
        /// From the request.
        role: Role,
        /// The request's, or [`wire::ERROR`].
        op: u32,
        /// From the request.
        id: u32,
        /// From the request.
        tx: u32,
        /// Payload.
        payload: Vec<u8>,
    },
    /// A watch fired.
    Event {
        /// Which.
        watch: WatchId,
        /// The payload's first part; `None`: the path as the client wrote it.
        path: Option<Path>,
    },
}

/// A channel's state.
#[derive(Debug)]
pub struct Connection {
    /// Domain at the other end.
    pub domid: u32,
    /// It may act in every role.
    pub is_privileged: bool,
    /// Its watches by name.
    pub watches: BTreeMap<WatchName, WatchId>,
    /// Its open transactions.
    pub transactions: BTreeMap<u32, Transaction>,
    /// Bytes of its watches.
    pub watch_bytes: usize,
    /// What waits to be sent.
    pub outbox: VecDeque<Outgoing>,
    /// How many of these are replies.
    pub replies: usize,
    /// Bytes of the events among them.
    pub event_bytes: usize,
    last_transaction: u32,
}

impl Connection {
    /// A new channel.
    pub fn new(domid: u32, is_privileged: bool) -> Self {
        Self {
            domid,
            is_privileged,
            watches: BTreeMap::new(),
            transactions: BTreeMap::new(),
            watch_bytes: 0,
            outbox: VecDeque::new(),
            replies: 0,
            event_bytes: 0,
            last_transaction: 0,
        }
    }

    /// Bytes of all that it holds besides nodes.
    pub fn bytes(&self) -> usize {
        let transactions: usize = self.transactions.values().map(Transaction::bytes).sum();
        self.watch_bytes + self.event_bytes + transactions
    }

    /// Keeps a transaction under a number that no open one has.
    pub fn add_transaction(&mut self, transaction: Transaction) -> u32 {
        loop {
            self.last_transaction = self.last_transaction.wrapping_add(1);
            if self.last_transaction != 0 && !self.transactions.contains_key(&self.last_transaction) {
                break;
            }
        }
        self.transactions.insert(self.last_transaction, transaction);
        self.last_transaction
    }

    /// Whether the same event already waits: one is as good as two.
    pub fn has_event(&self, watch: WatchId, path: Option<&Path>) -> bool {
        self.outbox.iter().any(|waiting| {
            matches!(waiting, Outgoing::Event { watch: id, path: old } if *id == watch && old.as_ref() == path)
        })
    }

    /// How many events wait.
    pub fn events(&self) -> usize {
        self.outbox.len() - self.replies
    }

    /// Queues something.
    pub fn queue(&mut self, outgoing: Outgoing) {
        match &outgoing {
            Outgoing::Reply { .. } => self.replies += 1,
            Outgoing::Event { path, .. } => self.event_bytes += event_cost(path.as_ref()),
        }
        self.outbox.push_back(outgoing);
    }

    /// Takes what was sent off the queue.
    pub fn pop(&mut self) {
        match self.outbox.pop_front() {
            Some(Outgoing::Reply { .. }) => self.replies -= 1,
            Some(Outgoing::Event { path, .. }) => self.forget_event(path.as_ref()),
            None => {}
        }
    }

    /// Drops the events of a watch that is no more.
    pub fn drop_events(&mut self, watch: WatchId) {
        let mut freed = 0;
        self.outbox.retain(|outgoing| match outgoing {
            Outgoing::Event { watch: id, path } if *id == watch => {
                freed += event_cost(path.as_ref());
                false
            }
            _ => true,
        });
        self.event_bytes = self.event_bytes.saturating_sub(freed);
    }

    fn forget_event(&mut self, path: Option<&Path>) {
        self.event_bytes = self.event_bytes.saturating_sub(event_cost(path));
    }
}

fn event_cost(path: Option<&Path>) -> usize {
    EVENT_OVERHEAD + path.map_or(0, |path| path.as_str().len())
}

/// A reply as a message.
pub fn reply_message(role: Role, op: u32, id: u32, tx: u32, payload: &[u8]) -> Message {
    Message { role, op, id, tx, payload: Bytes::truncated(payload) }
}

/// A watch event as a message.
pub fn event_message(role: Role, name: &str, token: &[u8]) -> Message {
    let mut payload = Vec::with_capacity(name.len() + token.len() + 2);
    payload.extend_from_slice(name.as_bytes());
    payload.push(0);
    payload.extend_from_slice(token);
    payload.push(0);
    reply_message(role, wire::WATCH_EVENT, 0, 0, &payload)
}
