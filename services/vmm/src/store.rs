//! The guest's xenstore ring, and the channel to the store.
//!
//! Messages are relayed without looking into their payload: the store parses and checks. One request is
//! put together and one answer written out at a time, so memory is bounded; while the guest takes no
//! answers, none is taken from the channel. A guest that breaks the ring's rules finds an error code in
//! the ring and is served no more. The VMM's own requests as backend share the channel.
//! Source: Xen public/io/xs_wire.h.

use proto::counters::STORE_REQUESTS;
use proto::text::Bytes;
use proto::xenstore::{Message, PAYLOAD_MAX, Role, Xenstore};
use rt::channel::{Client, SendError};

use crate::backend::Backend;
use crate::console::{ring_read, ring_write};
use crate::devices::{Sleep, sleep};
use crate::machine::Guest;
use crate::memory::Page;

const REQUESTS: usize = 0;
const RESPONSES: usize = 1024;
const SIZE: u32 = 1024;
const REQ_CONS: usize = 2048;
const REQ_PROD: usize = 2052;
const RSP_CONS: usize = 2056;
const RSP_PROD: usize = 2060;
const ERROR: usize = 2072;
const HEADER: usize = 16;

/// Values of the ring's error field.
const ERROR_COMMUNICATION: u32 = 1;
const ERROR_RING_INDEX: u32 = 2;
const ERROR_PROTOCOL: u32 = 3;

/// A message in the ring's format, partly moved.
#[derive(Debug)]
struct Wire {
    bytes: [u8; HEADER + PAYLOAD_MAX],
    /// Bytes that are there (request) or to be written (answer).
    len: usize,
    /// Bytes of an answer that are in the ring already.
    done: usize,
}

impl Wire {
    const fn new() -> Self {
        Self { bytes: [0; HEADER + PAYLOAD_MAX], len: 0, done: 0 }
    }

    fn word(&self, n: usize) -> u32 {
        self.bytes.get(4 * n..).and_then(|rest| rest.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b))
    }

    fn fill(&mut self, message: &Message) {
        let words = [message.op, message.id, message.tx, message.payload.len() as u32];
        let bytes = words.iter().flat_map(|word| word.to_le_bytes()).chain(message.payload.iter().copied());
        for (to, from) in self.bytes.iter_mut().zip(bytes) {
            *to = from;
        }
        (self.len, self.done) = (HEADER + message.payload.len(), 0);
    }
}

/// The store as guest and backends reach it.
#[derive(Debug)]
pub struct Store {
    ring: Page,
    link: Option<Client<Xenstore>>,
    req_cons: u32,
    rsp_prod: u32,
    request: Wire,
    answer: Wire,
    is_broken: bool,
    /// The VMM's requests.
    pub backend: Backend,
}

impl Store {
    /// The store over its ring page.
    pub fn new(ring: Page, backend: Backend) -> Self {
        Self {
            ring,
            link: None,
            req_cons: 0,
            rsp_prod: 0,
            request: Wire::new(),
            answer: Wire::new(),
            is_broken: false,
            backend,
        }
    }

    /// Uses this channel from now on, or none.
    pub fn set_link(&mut self, link: Option<Client<Xenstore>>) {
        self.link = link;
    }

    /// The channel.
    pub fn link(&self) -> Option<&Client<Xenstore>> {
        self.link.as_ref()
    }

    /// Moves what can be moved in both directions.
    pub fn service(&mut self, guest: &mut Guest) {
        let sent = self.requests();
        let received = self.answers();
        self.backend_requests();
        if sent || received {
            guest.events.raise(guest.store_port);
        }
        if let Some(link) = &mut self.link {
            link.flush();
        }
    }

    /// Asks for a signal when an answer comes.
    pub fn prepare_sleep(&mut self) -> Sleep {
        // While the guest takes no answers there is no point in asking for more.
        if self.answer.done < self.answer.len && !self.is_broken {
            return Sleep::Blocked;
        }
        sleep(self.link.as_mut().map(Client::prepare_sleep))
    }

    fn fail(&mut self, code: u32, why: &str) {
        if !self.is_broken {
            log::warn!("the guest's store ring is closed: {why}");
        }
        self.is_broken = true;
        self.ring.set_u32(ERROR, code);
    }

    /// Sends; `false`: not now.
    fn send(&mut self, message: &Message) -> bool {
        let Some(link) = &mut self.link else { return false };
        match link.send(message) {
            Ok(()) => true,
            Err(SendError::Full) => false,
            Err(error) => {
                log::warn!("store channel: {error}");
                self.link = None;
                self.fail(ERROR_COMMUNICATION, "the store is gone");
                false
            }
        }
    }

    /// Takes the guest's requests out of the ring and sends them.
    fn requests(&mut self) -> bool {
        let before = self.req_cons;
        while !self.is_broken {
            let want = match self.request.len {
                len if len < HEADER => HEADER,
                _ => match self.request.word(3) as usize {
                    payload if payload <= PAYLOAD_MAX => HEADER + payload,
                    _ => {
                        self.fail(ERROR_PROTOCOL, "a message is too long");
                        break;
                    }
                },
            };
            if self.request.len >= HEADER && self.request.len == want {
                let payload = self.request.bytes.get(HEADER..want).unwrap_or(&[]);
                let message = Message {
                    role: Role::Guest,
                    op: self.request.word(0),
                    id: self.request.word(1),
                    tx: self.request.word(2),
                    payload: Bytes::truncated(payload),
                };
                if !self.send(&message) {
                    break;
                }
                rt::counters::inc(STORE_REQUESTS);
                self.request.len = 0;
                continue;
            }
            // Published before the look at the producer: the guest rings only if it sees us caught up.
            self.ring.set_u32(REQ_CONS, self.req_cons);
            core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
            let waiting = self.ring.u32(REQ_PROD).wrapping_sub(self.req_cons);
            if waiting > SIZE {
                self.fail(ERROR_RING_INDEX, "its request index is impossible");
                break;
            }
            let len = (want - self.request.len).min(waiting as usize);
            if len == 0 {
                break;
            }
            let start = self.request.len;
            if let Some(out) = self.request.bytes.get_mut(start..start + len) {
                ring_read(&self.ring, REQUESTS, SIZE, self.req_cons, out);
            }
            self.request.len += len;
            self.req_cons = self.req_cons.wrapping_add(len as u32);
        }
        self.ring.set_u32(REQ_CONS, self.req_cons);
        self.req_cons != before
    }

    /// Writes answers and watch events into the ring; hands the backend its own.
    fn answers(&mut self) -> bool {
        let before = self.rsp_prod;
        loop {
            if self.answer.done < self.answer.len && !self.is_broken && !self.write_answer() {
                break;
            }
            let Some(link) = &mut self.link else { break };
            match link.receive() {
                Ok(Some(message)) if message.role == Role::Backend => self.backend.answered(&message),
                Ok(Some(message)) => self.answer.fill(&message),
                Ok(None) => break,
                Err(error) => {
                    log::warn!("store channel: {error}");
                    self.link = None;
                    self.fail(ERROR_COMMUNICATION, "the store is gone");
                }
            }
        }
        self.rsp_prod != before
    }

    /// Writes the current answer, as much as there is room; whether all of it is in the ring.
    fn write_answer(&mut self) -> bool {
        let used = self.rsp_prod.wrapping_sub(self.ring.u32(RSP_CONS));
        if used > SIZE {
            self.fail(ERROR_RING_INDEX, "its response index is impossible");
            return true;
        }
        let rest = self.answer.bytes.get(self.answer.done..self.answer.len).unwrap_or(&[]);
        let chunk = rest.get(..rest.len().min((SIZE - used) as usize)).unwrap_or(&[]);
        ring_write(&self.ring, RESPONSES, SIZE, self.rsp_prod, chunk);
        self.rsp_prod = self.rsp_prod.wrapping_add(chunk.len() as u32);
        self.answer.done += chunk.len();
        self.ring.set_u32(RSP_PROD, self.rsp_prod);
        self.answer.done >= self.answer.len
    }

    fn backend_requests(&mut self) {
        while let Some(message) = self.backend.next_request() {
            if !self.send(&message) {
                break;
            }
            self.backend.was_sent();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loader::place::special;
    use crate::testing::{channel, guest};
    use alloc::vec;
    use alloc::vec::Vec;
    use proptest::prelude::*;
    use rt::channel::Server;

    fn store() -> (Guest, Store, Page, Server<Xenstore>) {
        let guest = guest();
        let page = guest.special(special::XENSTORE).unwrap();
        let mut store = Store::new(page, Backend::new(5));
        let (client, server) = channel::<Xenstore>();
        store.set_link(Some(client));
        (guest, store, page, server)
    }

    fn wire(op: u32, id: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes: Vec<u8> =
            [op, id, 0, payload.len() as u32].iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.extend_from_slice(payload);
        bytes
    }

    #[test]
    fn requests_larger_than_the_ring_arrive_whole() {
        let (mut guest, mut store, page, mut server) = store();
        let payload: Vec<u8> = (0..3000u32).map(|n| n as u8).collect();
        let bytes = wire(11, 7, &payload);
        let mut sent = 0;
        while sent < bytes.len() {
            let room = SIZE - (sent as u32).wrapping_sub(page.u32(REQ_CONS));
            let end = bytes.len().min(sent + room as usize);
            ring_write(&page, REQUESTS, SIZE, sent as u32, &bytes[sent..end]);
            sent = end;
            page.set_u32(REQ_PROD, sent as u32);
            store.service(&mut guest);
        }
        let message = server.receive().unwrap().unwrap();
        assert_eq!((message.role, message.op, message.id), (Role::Guest, 11, 7));
        assert_eq!(&*message.payload, &payload[..]);
        assert_eq!(server.receive(), Ok(None));
    }

    #[test]
    fn answers_wait_for_room_and_arrive_in_order() {
        let (mut guest, mut store, page, mut server) = store();
        let answer = |id, byte| Message {
            role: Role::Guest,
            op: 2,
            id,
            tx: 0,
            payload: Bytes::truncated(&[byte; 1500]),
        };
        server.send(&answer(1, 1)).unwrap();
        server.send(&answer(2, 2)).unwrap();
        let mut got = Vec::new();
        for _ in 0..10 {
            store.service(&mut guest);
            let (cons, prod) = (page.u32(RSP_CONS), page.u32(RSP_PROD));
            let mut bytes = vec![0; (prod - cons) as usize];
            ring_read(&page, RESPONSES, SIZE, cons, &mut bytes);
            got.extend(bytes);
            page.set_u32(RSP_CONS, prod);
        }
        assert_eq!(got, [wire(2, 1, &[1; 1500]), wire(2, 2, &[2; 1500])].concat());
    }

    #[test]
    fn a_guest_that_breaks_the_rules_is_told_and_served_no_more() {
        let (mut guest, mut store, page, mut server) = store();
        let mut bytes = wire(2, 1, b"");
        bytes[12..16].copy_from_slice(&5000u32.to_le_bytes());
        ring_write(&page, REQUESTS, SIZE, 0, &bytes);
        page.set_u32(REQ_PROD, 16);
        store.service(&mut guest);
        assert_eq!(page.u32(ERROR), ERROR_PROTOCOL);
        page.set_u32(REQ_PROD, 900);
        store.service(&mut guest);
        assert_eq!(server.receive(), Ok(None));
    }

    #[test]
    fn a_full_channel_holds_the_guests_requests_back() {
        let (mut guest, mut store, page, mut server) = store();
        let before = rt::counters::get(STORE_REQUESTS);
        let all: Vec<u8> = (0..8).flat_map(|id| wire(1, id, b"p\0")).collect();
        ring_write(&page, REQUESTS, SIZE, 0, &all);
        page.set_u32(REQ_PROD, all.len() as u32);
        let mut ids = Vec::new();
        for _ in 0..4 {
            store.service(&mut guest);
            while let Ok(Some(message)) = server.receive() {
                ids.push(message.id);
            }
        }
        assert_eq!(ids, (0..8).collect::<Vec<_>>());
        assert!(rt::counters::get(STORE_REQUESTS) >= before + 8);
    }

    proptest! {
        #[test]
        fn random_rings_are_survived(
            words in prop::collection::vec((0usize..520, any::<u32>()), 1..60), near in any::<bool>()
        ) {
            let (mut guest, mut store, page, mut server) = store();
            for (index, value) in words {
                page.set_u32(index * 4, if near { value % 5000 } else { value });
                server.send(&Message { role: Role::Guest, op: 15, id: 0, tx: 0, payload: Bytes::truncated(b"a\0b\0") }).ok();
                store.service(&mut guest);
                while let Ok(Some(_)) = server.receive() {}
            }
        }
    }
}
