//! The toolstack's domain: carries messages between its channels and the toolstack.
//!
//! A channel that breaks the rules is dropped, and only that one; init attaches a new one after it has
//! rebuilt the domain at the other end.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::vec::Vec;

use proto::builder::Builder;
use proto::channel::{ChannelInfo, ChannelKind, Side};
use proto::console::Operator;
use proto::supervise;
use proto::toolstack::Guest;
use proto::xenstore::Xenstore;
use rt::channel::{ChannelError, Client, SendError, Server};
use rt::supervise::Supervisor;
use rt::time::Clock;
use toolstack::{Toolstack, boot};

rt::entry!(main);

fn main(env: rt::Env) -> ! {
    let file = rt::memory::bytes(env.info.file);
    let (configs, damage) = match boot::decode(file) {
        Ok(configs) => (configs, None),
        Err(reason) => (Vec::new(), Some(reason)),
    };
    let mut domain = Domain {
        toolstack: Toolstack::new(configs),
        supervisor: Supervisor::new(&env),
        builder: None,
        store: None,
        operator: None,
        guests: BTreeMap::new(),
    };
    for info in env.info.channels.iter() {
        if let Err(error) = domain.attach(info) {
            log::error!("channel {} to {} cannot be used: {error}", info.id, info.peer_name);
        }
    }
    if domain.builder.is_none() {
        rt::exit_failed("the toolstack has no channel to the builder");
    }
    if let Some(reason) = damage {
        domain.toolstack.report_damage(&reason);
    }
    domain.supervisor.ready();
    let clock = Clock::new(env.info.tsc_khz);
    loop {
        domain.toolstack.tick(clock.now_ns());
        domain.receive();
        domain.send();
        if domain.prepare_sleep() {
            let deadline = domain.toolstack.next_deadline().map_or(0, |at| clock.ns_to_tsc(at).max(1));
            // Both can only fail if init wired the domain wrongly; then polling still serves.
            let timer = rt::sys::event_timer(env.info.event, deadline, env.info.timer_signals);
            if timer.and_then(|()| rt::sys::event_wait(env.info.event).map(drop)).is_err() {
                let _yielded = rt::sys::thread_yield();
            }
        }
    }
}

/// The domain's channels and what they serve.
struct Domain {
    toolstack: Toolstack,
    supervisor: Supervisor,
    builder: Option<Client<Builder>>,
    store: Option<Client<Xenstore>>,
    operator: Option<Server<Operator>>,
    /// By domain ID.
    guests: BTreeMap<u32, Client<Guest>>,
}

/// Drops a channel whose peer broke the rules.
fn drop_broken<T>(channel: &mut Option<T>, name: &str, error: ChannelError) {
    log::error!("the channel to {name} is dropped: {error}");
    *channel = None;
}

impl Domain {
    fn attach(&mut self, info: &ChannelInfo) -> Result<(), ChannelError> {
        match (info.kind, info.side) {
            (ChannelKind::Builder, Side::A) => self.builder = Some(Client::connect(info)?),
            (ChannelKind::Operator, Side::B) => self.operator = Some(Server::connect(info)?),
            (ChannelKind::Xenstore, Side::A) => {
                self.store = Some(Client::connect(info)?);
                self.toolstack.store_reconnected();
            }
            (ChannelKind::Guest, Side::A) => {
                self.guests.insert(info.peer, Client::connect(info)?);
                self.toolstack.guest_attached(info.peer);
            }
            // The runtime's own.
            (ChannelKind::Supervise, Side::B) | (ChannelKind::Log, Side::A) => {}
            _ => return Err(ChannelError::Wiring("kind")),
        }
        Ok(())
    }

    fn detach(&mut self, id: u32) {
        if self.builder.as_ref().is_some_and(|channel| channel.info().id == id) {
            self.builder = None;
        }
        if self.operator.as_ref().is_some_and(|channel| channel.info().id == id) {
            self.operator = None;
        }
        if self.store.as_ref().is_some_and(|channel| channel.info().id == id) {
            self.store = None;
        }
        let guest = self.guests.iter().find(|(_, channel)| channel.info().id == id);
        if let Some(domid) = guest.map(|(&domid, _)| domid) {
            self.guests.remove(&domid);
            self.toolstack.guest_detached(domid);
        }
    }

    /// Takes everything that arrived. A guest's last words are heard before its channel goes, and before
    /// the builder says what became of it.
    fn receive(&mut self) {
        self.receive_guests();
        while let Some(request) = self.supervisor.next() {
            match request {
                supervise::Request::Attach(info) => match self.attach(&info) {
                    Ok(()) => self.supervisor.attached(info.id),
                    Err(error) => self.supervisor.refused(info.id, &format!("{error}")),
                },
                supervise::Request::Detach { id } => {
                    self.detach(id);
                    self.supervisor.detached(id);
                }
                supervise::Request::Ping { .. } => {}
            }
        }
        while let Some(channel) = &mut self.builder {
            match channel.receive() {
                Ok(Some(response)) => self.toolstack.builder_message(response),
                Ok(None) => break,
                Err(error) => drop_broken(&mut self.builder, "the builder", error),
            }
        }
        while let Some(channel) = &mut self.store {
            match channel.receive() {
                Ok(Some(message)) => self.toolstack.store_message(&message),
                Ok(None) => break,
                Err(error) => drop_broken(&mut self.store, "xenstore", error),
            }
        }
        while let Some(channel) = &mut self.operator {
            match channel.receive() {
                Ok(Some(request)) => self.toolstack.operator_message(&request),
                Ok(None) => break,
                Err(error) => drop_broken(&mut self.operator, "the console", error),
            }
        }
    }

    fn receive_guests(&mut self) {
        let toolstack = &mut self.toolstack;
        self.guests.retain(|&domid, channel| {
            loop {
                match channel.receive() {
                    Ok(Some(response)) => toolstack.guest_message(domid, response),
                    Ok(None) => return true,
                    Err(error) => {
                        log::error!("the channel to domain {domid} is dropped: {error}");
                        toolstack.guest_detached(domid);
                        return false;
                    }
                }
            }
        });
    }

    /// Sends what there is room for, and wakes who sleeps.
    fn send(&mut self) {
        if let Some(channel) = &mut self.builder {
            while let Some(request) = self.toolstack.builder_out().front() {
                if channel.send(request).is_err() {
                    break;
                }
                self.toolstack.builder_out().pop_front();
            }
            channel.flush();
        }
        if let Some(channel) = &mut self.store {
            while let Some(message) = self.toolstack.store_out() {
                if channel.send(&message).is_err() {
                    break;
                }
                self.toolstack.store_sent();
            }
            channel.flush();
        }
        if let Some(channel) = &mut self.operator {
            while let Some(response) = self.toolstack.operator_out().front() {
                if channel.send(response).is_err() {
                    break;
                }
                self.toolstack.operator_out().pop_front();
            }
            channel.flush();
        }
        self.send_guests();
        self.supervisor.flush();
    }

    fn send_guests(&mut self) {
        // A guest whose ring is full does not hold up the others.
        let mut kept = alloc::collections::VecDeque::new();
        while let Some((domid, request)) = self.toolstack.guest_out().pop_front() {
            let Some(channel) = self.guests.get_mut(&domid) else { continue };
            if channel.send(&request) == Err(SendError::Full) {
                kept.push_back((domid, request));
            }
        }
        *self.toolstack.guest_out() = kept;
        for channel in self.guests.values_mut() {
            channel.flush();
        }
    }

    /// `true` when nothing is left to receive. A channel that is broken is found so by the next receive.
    fn prepare_sleep(&mut self) -> bool {
        let mut may_sleep = self.supervisor.prepare_sleep();
        if let Some(channel) = &mut self.builder {
            may_sleep &= channel.prepare_sleep().unwrap_or(false);
        }
        if let Some(channel) = &mut self.store {
            may_sleep &= channel.prepare_sleep().unwrap_or(false);
        }
        if let Some(channel) = &mut self.operator {
            may_sleep &= channel.prepare_sleep().unwrap_or(false);
        }
        for channel in self.guests.values_mut() {
            may_sleep &= channel.prepare_sleep().unwrap_or(false);
        }
        may_sleep
    }
}
