//! The console's domain: moves bytes between the UART, the channels and the console's state machine.
//!
//! A channel from which nothing is wanted now is left alone: its ring fills and its peer waits (a guest)
//! or counts what it loses (a log).
#![no_std]
#![no_main]

extern crate alloc;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;

use console::state::Record;
use console::uart::{COM1, Ports, Uart};
use console::{Console, Mode};
use proto::boot::LineInfo;
use proto::channel::{ChannelInfo, ChannelKind};
use proto::console::{GuestConsole, GuestInput, Log, Operator};
use proto::text::Bytes;
use rt::channel::{ChannelError, Client, SendError, Server};
use rt::supervise::{Channels, Supervisor};
use rt::time::Clock;

/// Rounds before init's requests are looked at again.
const ROUNDS: usize = 64;
/// Most messages that are taken from a channel whose peer is gone: a ring full.
const LAST_WORDS: usize = 16;

rt::entry!(main);

/// The UART's registers.
struct Com1;

impl Ports for Com1 {
    fn read(&mut self, offset: u16) -> u8 {
        rt::port::inb(COM1 + offset)
    }
    fn write(&mut self, offset: u16, value: u8) {
        rt::port::outb(COM1 + offset, value);
    }
}

/// The other end of a channel.
enum Peer {
    Log(Server<Log>),
    Guest(Server<GuestConsole>),
    Operator(Client<Operator>),
}

/// Whether a channel may have more to do.
enum Turn {
    Again,
    Idle,
    /// It has, but nothing is wanted of it now.
    Held,
    Broken(String),
}

struct Service {
    console: Console,
    uart: Uart<Com1>,
    clock: Clock,
    peers: BTreeMap<u32, Peer>,
    /// Channels that may have something to do.
    active: BTreeSet<u32>,
    /// Channels to look at again after the next event.
    held: BTreeSet<u32>,
    /// Channels used since the last sleep.
    touched: BTreeSet<u32>,
}

fn main(env: rt::Env) -> ! {
    let mut supervisor = Supervisor::new(&env);
    let Some(uart) = Uart::new(Com1) else { rt::exit_failed("there is no UART at COM1") };
    let mode = env.option("mode").unwrap_or("interactive");
    let Some(mode) = Mode::parse(mode) else { rt::exit_failed("option mode: not interactive or mux") };
    let mut service = Service {
        console: Console::new(mode),
        uart,
        clock: Clock::new(env.info.tsc_khz),
        peers: BTreeMap::new(),
        active: BTreeSet::new(),
        held: BTreeSet::new(),
        touched: BTreeSet::new(),
    };
    for info in env.info.channels.iter().filter(|info| info.kind != ChannelKind::Supervise) {
        if let Err(reason) = service.attach(info) {
            service.note(&format!("channel {} of {}: {reason}", info.id, info.peer_name));
        }
    }
    supervisor.ready();
    acknowledge(&env.info.lines);
    loop {
        supervisor.serve(&mut service);
        let is_done = service.work();
        supervisor.flush();
        let is_idle = service.prepare_sleep() && is_done;
        if supervisor.prepare_sleep() && is_idle {
            service.uart.arm(service.console.wants_input(), service.console.has_output());
            match rt::sys::event_wait(env.info.event) {
                Ok(signals) => service.wake(signals),
                Err(_) => rt::exit_failed("the domain's event cannot be waited for"),
            }
            // Before the UART is looked at: what happens from here on interrupts again.
            acknowledge(&env.info.lines);
        }
    }
}

/// Lets the UART's line interrupt again.
fn acknowledge(lines: &[LineInfo]) {
    for line in lines {
        let _not_bound = rt::sys::irq_ack(line.slot, 0);
    }
}

/// A message that could not be received or sent, for people.
fn broken(error: &ChannelError) -> Turn {
    Turn::Broken(format!("{error}"))
}

impl Channels for Service {
    fn attach(&mut self, info: &ChannelInfo) -> Result<(), String> {
        let say = |error: ChannelError| format!("{error}");
        let peer = match info.kind {
            ChannelKind::Log => Peer::Log(Server::connect(info).map_err(say)?),
            ChannelKind::GuestConsole => Peer::Guest(Server::connect(info).map_err(say)?),
            ChannelKind::Operator => Peer::Operator(Client::connect(info).map_err(say)?),
            kind => return Err(format!("the console has no use for a {kind:?} channel")),
        };
        match &peer {
            Peer::Log(_) => {}
            Peer::Guest(_) => self.console.attach_guest(info.id, info.peer, &info.peer_name),
            Peer::Operator(_) => self.console.attach_operator(),
        }
        self.peers.insert(info.id, peer);
        self.active.insert(info.id);
        Ok(())
    }

    /// Takes what a channel still holds (a domain's last words), then lets go of it.
    fn detach(&mut self, id: u32) {
        for _ in 0..LAST_WORDS {
            if !matches!(self.receive(id), Turn::Again) {
                break;
            }
        }
        self.drop_channel(id);
    }
}

impl Service {
    /// Writes to the log in the console's own name.
    fn note(&mut self, text: &str) {
        let time_us = self.clock.now_ns() / 1000;
        self.console.log(&Record { domain: "console", level: 2, time_us, lost: 0, text });
    }

    fn drop_channel(&mut self, id: u32) {
        self.active.remove(&id);
        self.held.remove(&id);
        self.touched.remove(&id);
        match self.peers.remove(&id) {
            Some(Peer::Guest(_)) => self.console.detach_guest(id),
            Some(Peer::Operator(_)) => self.console.detach_operator(),
            Some(Peer::Log(_)) | None => {}
        }
    }

    /// Marks the channels whose peers signalled.
    fn wake(&mut self, signals: u64) {
        let signalled = |peer: &Peer| peer.info().signals & signals != 0;
        let woken = self.peers.iter().filter(|(_, peer)| signalled(peer)).map(|(id, _)| *id);
        self.active.extend(woken);
    }

    /// Some rounds over the UART and the active channels; `true` when nothing is left to do.
    fn work(&mut self) -> bool {
        self.active.append(&mut self.held);
        let mut is_done = false;
        for _ in 0..ROUNDS {
            let has_moved = self.serve_uart();
            let round = core::mem::take(&mut self.active);
            is_done = round.is_empty() && !has_moved;
            if is_done {
                break;
            }
            // Room may have appeared for those that were held.
            if has_moved {
                self.active.append(&mut self.held);
            }
            for id in round {
                self.touched.insert(id);
                match self.turn(id) {
                    Turn::Again => {
                        self.active.insert(id);
                    }
                    Turn::Idle => {}
                    Turn::Held => {
                        self.held.insert(id);
                    }
                    Turn::Broken(reason) => {
                        let name = self.peers.get(&id).map_or_else(String::new, Peer::name);
                        self.drop_channel(id);
                        self.note(&format!("channel {id} of {name} is dropped: {reason}"));
                    }
                }
            }
        }
        for id in &self.touched {
            if let Some(peer) = self.peers.get_mut(id) {
                peer.flush();
            }
        }
        is_done
    }

    /// Takes what was typed and transmits what waits; `true` when anything moved.
    fn serve_uart(&mut self) -> bool {
        let mut has_moved = false;
        while self.console.wants_input() {
            let Some(byte) = self.uart.receive() else { break };
            self.console.input(byte);
            has_moved = true;
        }
        if has_moved {
            self.active.extend(self.console.guests_with_input());
            let operators = self.peers.iter().filter(|(_, peer)| matches!(peer, Peer::Operator(_)));
            self.active.extend(operators.map(|(id, _)| *id));
        }
        has_moved |= self.console.pump();
        while self.console.has_output() {
            let room = self.uart.room();
            if room == 0 {
                break;
            }
            let bytes = self.console.take_output(room);
            self.uart.transmit(&bytes);
            has_moved = true;
        }
        has_moved
    }

    /// Sends what waits for a channel and takes one message from it, if that is wanted now.
    fn turn(&mut self, id: u32) -> Turn {
        let has_sent = match self.send(id) {
            Ok(has_sent) => has_sent,
            Err(error) => return Turn::Broken(format!("{error}")),
        };
        let wants = match self.peers.get(&id) {
            Some(Peer::Log(_)) => self.console.wants_log(),
            Some(Peer::Guest(_)) => self.console.wants_guest_output(id),
            Some(Peer::Operator(_)) => self.console.wants_response(),
            None => return Turn::Idle,
        };
        match if wants { self.receive(id) } else { Turn::Held } {
            Turn::Idle if has_sent => Turn::Again,
            turn => turn,
        }
    }

    /// Sends a guest's input or the operator's commands; `true`: something was sent.
    fn send(&mut self, id: u32) -> Result<bool, SendError> {
        let sent = match self.peers.get_mut(&id) {
            Some(Peer::Guest(channel)) => {
                let input = self.console.guest_input(id);
                if input.is_empty() {
                    return Ok(false);
                }
                channel.send(&GuestInput(Bytes::truncated(&input))).map(|()| input.len())
            }
            Some(Peer::Operator(channel)) => match self.console.command() {
                Some(command) => channel.send(command).map(|()| 0),
                None => return Ok(false),
            },
            Some(Peer::Log(_)) | None => return Ok(false),
        };
        match (sent, self.peers.get(&id)) {
            (Ok(count), Some(Peer::Guest(_))) => self.console.guest_input_sent(id, count),
            (Ok(_), _) => self.console.command_sent(),
            // The peer signals when there is room.
            (Err(SendError::Full), _) => return Ok(false),
            (Err(error), _) => return Err(error),
        }
        Ok(true)
    }

    /// Takes one message of a channel.
    fn receive(&mut self, id: u32) -> Turn {
        match self.peers.get_mut(&id) {
            Some(Peer::Log(channel)) => match channel.receive() {
                Ok(Some(record)) => {
                    self.console.log(&Record {
                        domain: &channel.info().peer_name,
                        level: record.level,
                        time_us: self.clock.tsc_to_ns(record.tsc) / 1000,
                        lost: record.lost,
                        text: &record.text,
                    });
                    Turn::Again
                }
                Ok(None) => Turn::Idle,
                Err(error) => broken(&error),
            },
            Some(Peer::Guest(channel)) => match channel.receive() {
                Ok(Some(output)) => {
                    self.console.guest_output(id, &output.0);
                    Turn::Again
                }
                Ok(None) => Turn::Idle,
                Err(error) => broken(&error),
            },
            Some(Peer::Operator(channel)) => match channel.receive() {
                Ok(Some(response)) => {
                    self.console.response(&response);
                    Turn::Again
                }
                Ok(None) => Turn::Idle,
                Err(error) => broken(&error),
            },
            None => Turn::Idle,
        }
    }

    /// Announces on every channel used that this domain will wait; `true` when it may.
    fn prepare_sleep(&mut self) -> bool {
        for id in core::mem::take(&mut self.touched) {
            // What a held channel has is looked at again after any event, the UART's above all.
            if self.held.contains(&id) {
                continue;
            }
            if self.peers.get_mut(&id).is_some_and(|peer| !peer.prepare_sleep()) {
                self.active.insert(id);
            }
        }
        self.active.is_empty()
    }
}

impl Peer {
    fn info(&self) -> &ChannelInfo {
        match self {
            Self::Log(channel) => channel.info(),
            Self::Guest(channel) => channel.info(),
            Self::Operator(channel) => channel.info(),
        }
    }

    fn name(&self) -> String {
        String::from(self.info().peer_name.as_str())
    }

    fn flush(&mut self) {
        match self {
            Self::Log(channel) => channel.flush(),
            Self::Guest(channel) => channel.flush(),
            Self::Operator(channel) => channel.flush(),
        }
    }

    /// `false`: there is something to receive, were it an error.
    fn prepare_sleep(&mut self) -> bool {
        let is_empty = match self {
            Self::Log(channel) => channel.prepare_sleep(),
            Self::Guest(channel) => channel.prepare_sleep(),
            Self::Operator(channel) => channel.prepare_sleep(),
        };
        is_empty.unwrap_or(false)
    }
}
