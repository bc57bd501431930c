//! The store's domain: moves messages between channels and the store.
//!
//! Each round takes at most one request of each channel, so a busy domain does not delay another by more
//! than one request. A channel whose peer breaks the protocol is dropped with all that its domain had.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;

use proto::channel::{ChannelInfo, ChannelKind};
use proto::counters::STORE_REQUESTS;
use proto::xenstore::{TARGET_PRIVILEGED, Xenstore};
use rt::channel::{SendError, Server};
use rt::supervise::{Channels, Supervisor};
use xenstore::Store;
use xenstore::quota::Limits;

/// Rounds before init's requests are looked at again.
const ROUNDS: usize = 32;

rt::entry!(main);

/// The store and its channels.
struct Service {
    store: Store,
    channels: BTreeMap<u32, Server<Xenstore>>,
    /// Channels that may have something to do.
    active: BTreeSet<u32>,
    /// Channels used since the last sleep.
    touched: BTreeSet<u32>,
}

/// Whether a channel may have more to do.
enum Turn {
    Again,
    Idle,
    Broken,
}

fn main(env: rt::Env) -> ! {
    let mut supervisor = Supervisor::new(&env);
    let mut service = Service {
        store: Store::new(limits(&env)),
        channels: BTreeMap::new(),
        active: BTreeSet::new(),
        touched: BTreeSet::new(),
    };
    for info in env.channels(ChannelKind::Xenstore) {
        if let Err(reason) = service.attach(info) {
            log::error!("channel {} of {}: {reason}", info.id, info.peer_name);
        }
    }
    supervisor.ready();
    log::info!("the store is ready");
    loop {
        supervisor.serve(&mut service);
        service.work();
        supervisor.flush();
        let is_idle = service.prepare_sleep();
        if supervisor.prepare_sleep() && is_idle {
            match rt::sys::event_wait(env.info.event) {
                Ok(signals) => service.wake(signals),
                Err(_) => rt::exit_failed("the domain's event cannot be waited for"),
            }
        }
    }
}

/// The limits: Xen's defaults, half of the heap for all domains together, then the options
/// (`quota-<name>=<number>`).
fn limits(env: &rt::Env) -> Limits {
    let heap = usize::try_from(env.info.heap.len).unwrap_or(0);
    let mut limits = Limits { total: heap / 2, history: heap / 8, ..Limits::default() };
    for option in env.info.options.split_ascii_whitespace() {
        let Some((name, value)) = option.strip_prefix("quota-").and_then(|rest| rest.split_once('=')) else {
            continue;
        };
        let is_set = value.parse().is_ok_and(|limit| limits.set(name, limit));
        if !is_set {
            log::warn!("option {option}: no such quota, or not a number");
        }
    }
    limits
}

impl Channels for Service {
    fn attach(&mut self, info: &ChannelInfo) -> Result<(), String> {
        let server = Server::connect(info).map_err(|error| alloc::format!("{error}"))?;
        self.store.attach(info.id, info.peer, info.target.as_str() == TARGET_PRIVILEGED)?;
        self.channels.insert(info.id, server);
        self.active.insert(info.id);
        Ok(())
    }

    fn detach(&mut self, id: u32) {
        self.channels.remove(&id);
        self.active.remove(&id);
        self.touched.remove(&id);
        self.store.detach(id);
    }
}

impl Service {
    /// Marks the channels whose peers signalled.
    fn wake(&mut self, signals: u64) {
        let woken = self.channels.iter().filter(|(_, channel)| channel.info().signals & signals != 0);
        self.active.extend(woken.map(|(id, _)| *id));
    }

    /// Some rounds over the active channels.
    fn work(&mut self) {
        for _ in 0..ROUNDS {
            self.active.extend(self.store.take_ready());
            let round = core::mem::take(&mut self.active);
            if round.is_empty() {
                break;
            }
            for id in round {
                self.touched.insert(id);
                match self.turn(id) {
                    Turn::Again => {
                        self.active.insert(id);
                    }
                    Turn::Idle => {}
                    Turn::Broken => self.detach(id),
                }
            }
        }
        for id in &self.touched {
            if let Some(channel) = self.channels.get_mut(id) {
                channel.flush();
            }
        }
        for violation in self.store.take_violations() {
            log::warn!("{violation}");
        }
    }

    /// Takes one request of a channel, if its last reply is out, and sends what waits for it.
    fn turn(&mut self, id: u32) -> Turn {
        let Some(channel) = self.channels.get_mut(&id) else { return Turn::Idle };
        let name = channel.info().peer_name.clone();
        let mut turn = Turn::Idle;
        if self.store.accepts(id) {
            match channel.receive() {
                Ok(Some(message)) => {
                    rt::counters::inc(STORE_REQUESTS);
                    self.store.request(id, &message);
                    turn = Turn::Again;
                }
                Ok(None) => {}
                Err(error) => {
                    log::warn!("channel {id} of {name} is dropped: {error}");
                    return Turn::Broken;
                }
            }
        }
        while let Some(message) = self.store.peek(id) {
            match channel.send(&message) {
                Ok(()) => {
                    self.store.pop(id);
                    turn = Turn::Again;
                }
                Err(SendError::Full) => break,
                Err(error) => {
                    log::warn!("channel {id} of {name} is dropped: {error}");
                    return Turn::Broken;
                }
            }
        }
        turn
    }

    /// Announces on every channel used that this domain will wait; `true` when it may.
    fn prepare_sleep(&mut self) -> bool {
        for id in core::mem::take(&mut self.touched) {
            let Some(channel) = self.channels.get_mut(&id) else { continue };
            // A request that waits behind a reply without room is not work: the peer signals first.
            let is_waiting = !self.store.accepts(id);
            if !(is_waiting || matches!(channel.prepare_sleep(), Ok(true))) {
                self.active.insert(id);
            }
        }
        self.active.is_empty()
    }
}
