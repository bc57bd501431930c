//! The toolstack's side of its xenstore channel: requests in order, several of them under way.
//!
//! The store answers in any order; an answer is matched by its number. After the store was rebuilt all
//! unanswered requests are sent again: each of them may be carried out twice without harm.

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;

use proto::text::Bytes;
use proto::xenstore::{Message, Role};

/// Operations (`xs_wire.h`).
mod op {
    pub(super) const READ: u32 = 2;
    pub(super) const WATCH: u32 = 4;
    pub(super) const UNWATCH: u32 = 5;
    pub(super) const WRITE: u32 = 11;
    pub(super) const RM: u32 = 13;
    pub(super) const SET_PERMS: u32 = 14;
    pub(super) const WATCH_EVENT: u32 = 15;
    pub(super) const ERROR: u32 = 16;
}

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreRequest {
    /// Reads a node.
    Read {
        /// Node.
        path: String,
    },
    /// Writes a node and makes those above it.
    Write {
        /// Node.
        path: String,
        /// Value.
        value: String,
    },
    /// Removes a node and all below it.
    Remove {
        /// Node.
        path: String,
    },
    /// Sets who may do what; the first entry names the owner (`n5`), the others exceptions (`r0`).
    Permit {
        /// Node.
        path: String,
        /// Entries.
        permissions: Vec<String>,
    },
    /// Asks for an event whenever a node changes.
    Watch {
        /// Node.
        path: String,
        /// Comes back with each event.
        token: String,
    },
    /// Ends a watch.
    Unwatch {
        /// Node.
        path: String,
        /// As in [`StoreRequest::Watch`].
        token: String,
    },
}

impl StoreRequest {
    fn encode(&self) -> (u32, Vec<u8>) {
        let terminated = |parts: &[&str]| {
            let mut bytes = Vec::new();
            for part in parts {
                bytes.extend_from_slice(part.as_bytes());
                bytes.push(0);
            }
            bytes
        };
        match self {
            Self::Read { path } => (op::READ, terminated(&[path])),
            Self::Write { path, value } => {
                let mut bytes = terminated(&[path]);
                bytes.extend_from_slice(value.as_bytes());
                (op::WRITE, bytes)
            }
            Self::Remove { path } => (op::RM, terminated(&[path])),
            Self::Permit { path, permissions } => {
                let mut bytes = terminated(&[path]);
                for permission in permissions {
                    bytes.extend(terminated(&[permission]));
                }
                (op::SET_PERMS, bytes)
            }
            Self::Watch { path, token } => (op::WATCH, terminated(&[path, token])),
            Self::Unwatch { path, token } => (op::UNWATCH, terminated(&[path, token])),
        }
    }

    /// The node that it is about.
    pub fn path(&self) -> &str {
        match self {
            Self::Read { path }
            | Self::Write { path, .. }
            | Self::Remove { path }
            | Self::Permit { path, .. }
            | Self::Watch { path, .. }
            | Self::Unwatch { path, .. } => path,
        }
    }
}

/// What the store said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreEvent<T> {
    /// An answer: what the request was for, the request, and the value read or the error's name (`EACCES`).
    Answer(T, StoreRequest, Result<Vec<u8>, String>),
    /// A watch fired; its token.
    Watch(String),
}

/// A request and what it is for.
#[derive(Debug)]
struct Pending<T> {
    id: u32,
    request: StoreRequest,
    purpose: T,
}

/// Requests and their answers. `T` says what a request is for.
#[derive(Debug)]
pub struct Store<T> {
    next_id: u32,
    waiting: VecDeque<Pending<T>>,
    sent: VecDeque<Pending<T>>,
}

impl<T> Default for Store<T> {
    fn default() -> Self {
        Self { next_id: 1, waiting: VecDeque::new(), sent: VecDeque::new() }
    }
}

impl<T> Store<T> {
    /// Queues a request.
    pub fn submit(&mut self, request: StoreRequest, purpose: T) {
        let id = self.next_id;
        // 0 is for watch events.
        self.next_id = self.next_id.checked_add(1).unwrap_or(1);
        self.waiting.push_back(Pending { id, request, purpose });
    }

    /// The next message to send; [`Store::sent`] says that it was.
    pub fn next_message(&self) -> Option<Message> {
        let pending = self.waiting.front()?;
        let (op, payload) = pending.request.encode();
        // Requests are made here from bounded names: they fit.
        Some(Message {
            role: Role::Toolstack,
            op,
            id: pending.id,
            tx: 0,
            payload: Bytes::truncated(&payload),
        })
    }

    /// The message of [`Store::next_message`] is in the ring.
    pub fn sent(&mut self) {
        self.sent.extend(self.waiting.pop_front());
    }

    /// Takes a message of the store; nothing if it is no answer to anything.
    pub fn receive(&mut self, message: &Message) -> Option<StoreEvent<T>> {
        if message.op == op::WATCH_EVENT {
            let token = message.payload.split(|&byte| byte == 0).nth(1)?;
            return Some(StoreEvent::Watch(String::from_utf8_lossy(token).into_owned()));
        }
        let index = self.sent.iter().position(|pending| pending.id == message.id)?;
        let pending = self.sent.remove(index)?;
        let result = if message.op == op::ERROR {
            let name = message.payload.split(|&byte| byte == 0).next().unwrap_or(&[]);
            Err(String::from_utf8_lossy(name).into_owned())
        } else {
            Ok(message.payload.to_vec())
        };
        Some(StoreEvent::Answer(pending.purpose, pending.request, result))
    }

    /// The store was rebuilt: everything unanswered is sent again, in the old order.
    pub fn reconnected(&mut self) {
        while let Some(pending) = self.sent.pop_back() {
            self.waiting.push_front(pending);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &str) -> StoreRequest {
        StoreRequest::Read { path: path.into() }
    }

    fn reply(id: u32, op: u32, payload: &[u8]) -> Message {
        Message { role: Role::Toolstack, op, id, tx: 0, payload: Bytes::truncated(payload) }
    }

    #[test]
    fn payloads_are_xens() {
        let cases: [(StoreRequest, u32, &[u8]); 6] = [
            (read("/a"), 2, b"/a\0"),
            (StoreRequest::Write { path: "/a".into(), value: "v".into() }, 11, b"/a\0v"),
            (StoreRequest::Remove { path: "/a".into() }, 13, b"/a\0"),
            (
                StoreRequest::Permit { path: "/a".into(), permissions: ["n0".into(), "r5".into()].into() },
                14,
                b"/a\0n0\0r5\0",
            ),
            (StoreRequest::Watch { path: "/a".into(), token: "t".into() }, 4, b"/a\0t\0"),
            (StoreRequest::Unwatch { path: "/a".into(), token: "t".into() }, 5, b"/a\0t\0"),
        ];
        for (request, op, payload) in cases {
            let mut store = Store::default();
            store.submit(request, ());
            let message = store.next_message().unwrap();
            assert_eq!((message.op, &*message.payload, message.role), (op, payload, Role::Toolstack));
        }
    }

    #[test]
    fn answers_are_matched_by_number_in_any_order() {
        let mut store = Store::default();
        store.submit(read("/a"), 'a');
        store.submit(read("/b"), 'b');
        for _ in 0..2 {
            store.next_message().unwrap();
            store.sent();
        }
        assert!(store.next_message().is_none());
        assert_eq!(
            store.receive(&reply(2, 2, b"value")),
            Some(StoreEvent::Answer('b', read("/b"), Ok(b"value".to_vec())))
        );
        assert_eq!(store.receive(&reply(2, 2, b"again")), None);
        assert_eq!(
            store.receive(&reply(1, 16, b"ENOENT\0")),
            Some(StoreEvent::Answer('a', read("/a"), Err("ENOENT".into())))
        );
        assert_eq!(store.receive(&reply(0, 15, b"/a\0token\0")), Some(StoreEvent::Watch("token".into())));
        assert_eq!(store.receive(&reply(0, 15, b"/a")), None);
    }

    #[test]
    fn unanswered_requests_are_sent_again_in_order() {
        let mut store = Store::default();
        for path in ["/a", "/b", "/c"] {
            store.submit(read(path), ());
        }
        store.sent();
        store.sent();
        store.receive(&reply(1, 2, b"")).unwrap();
        store.reconnected();
        let mut order = Vec::new();
        while let Some(message) = store.next_message() {
            order.push(message.id);
            store.sent();
        }
        assert_eq!(order, [2, 3]);
    }
}
