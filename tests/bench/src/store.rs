//! What the store's operations cost beside 10, 100 and 1,000 nodes and as many watches: everything between the
//! request and its answer, this domain, the store and the kernel between them.

use alloc::format;
use alloc::string::String;

use proto::abi::Slot;
use proto::channel::ChannelKind;
use proto::text::Bytes;
use proto::xenstore::{Message, Role, Xenstore};
use rt::channel::Client;
use rt::{sys, time};

use crate::{figure, finish, ready};

/// How many nodes and watches there are when samples are taken.
const POPULATIONS: [u32; 3] = [10, 100, 1000];
/// Operations (`xs_wire.h`).
const READ: u32 = 2;
const WATCH: u32 = 4;
const WRITE: u32 = 11;
const WATCH_EVENT: u32 = 15;
const ERROR: u32 = 16;
/// The node that is used, among the others.
const NODE: &str = "/bench/n0";

/// The privileged client of a store.
pub fn client(env: &rt::Env) -> ! {
    let supervisor = ready(env);
    let Some(mut store) = env.channel(ChannelKind::Xenstore).and_then(|info| Store::new(info, env)) else {
        rt::exit_failed("the bench domain has no channel to the store")
    };
    let mut nodes = 0;
    for population in POPULATIONS {
        while nodes < population {
            let node = format!("/bench/n{nodes}");
            store.write(&node);
            store.ask(WATCH, &format!("{node}\0{nodes}\0"));
            // A new watch fires once.
            store.events(1);
            nodes += 1;
        }
        figure(&format!("store-read-{population}"), 0, || {
            let before = time::tsc();
            store.ask(READ, &format!("{NODE}\0"));
            time::tsc().wrapping_sub(before)
        });
        figure(&format!("store-write-{population}"), 0, || {
            let before = time::tsc();
            store.write(NODE);
            store.events(1);
            time::tsc().wrapping_sub(before)
        });
    }
    finish(env, supervisor)
}

/// The channel to the store.
struct Store {
    channel: Client<Xenstore>,
    event: Slot,
    id: u32,
    /// Events that came and nobody waited for yet.
    fired: u32,
}

impl Store {
    fn new(info: &proto::channel::ChannelInfo, env: &rt::Env) -> Option<Self> {
        Some(Self { channel: Client::connect(info).ok()?, event: env.info.event, id: 0, fired: 0 })
    }

    fn write(&mut self, node: &str) {
        let payload: String = format!("{node}\0value");
        self.ask(WRITE, &payload);
    }

    /// Sends a request and waits for its answer.
    fn ask(&mut self, op: u32, payload: &str) {
        self.id += 1;
        let payload = Bytes::truncated(payload.as_bytes());
        let message = Message { role: Role::Toolstack, op, id: self.id, tx: 0, payload };
        if self.channel.send(&message).is_err() {
            rt::exit_failed("the store takes no request");
        }
        let id = self.id;
        while self.receive() != Some(id) {}
    }

    /// Waits for this many events of watches.
    fn events(&mut self, count: u32) {
        while self.fired < count {
            let _other = self.receive();
        }
        self.fired -= count;
    }

    /// The next message's number; waits for it. An event has none.
    fn receive(&mut self) -> Option<u32> {
        loop {
            match self.channel.receive() {
                Ok(Some(message)) if message.op == WATCH_EVENT => {
                    self.fired += 1;
                    return None;
                }
                Ok(Some(message)) if message.op == ERROR => rt::exit_failed("the store refused a request"),
                Ok(Some(message)) => return Some(message.id),
                Ok(None) => {
                    self.channel.flush();
                    if self.channel.prepare_sleep() == Ok(true) {
                        let _signals = sys::event_wait(self.event);
                    }
                }
                Err(_) => rt::exit_failed("the store broke its channel"),
            }
        }
    }
}
