//! The loop: messages in, logic, messages out, sleep.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

use init::domain::{Kind, ServiceState};
use init::power;
use init::system::{BUILDER_SIGNAL, FAULT_SIGNAL, Output, System, TIMER_SIGNAL, supervise_signal};
use log::LevelFilter;
use proto::abi::init_slots;
use proto::builder::{self, Builder};
use proto::channel::ChannelKind;
use proto::supervise::{self, Supervise};
use rt::channel::{Client, SendError, Server};
use rt::sys;

use super::machine::{ConfigPorts, SystemCalls, end};

/// Messages that are taken from one channel before the others have their turn.
const TURN: usize = 16;
/// How long the console has to write out what was said last before the machine ends.
const LAST_WORDS_MS: u64 = 100;

/// Init's end of a supervise channel.
struct Link {
    channel: Client<Supervise>,
    queue: VecDeque<supervise::Request>,
}

/// Init's end of the builder channel.
struct Toolstack {
    channel: Server<Builder>,
    queue: VecDeque<builder::Response>,
}

/// Carries messages between the channels and the logic.
pub struct Carrier {
    system: System<SystemCalls, ConfigPorts>,
    command_line: &'static str,
    links: BTreeMap<u32, Link>,
    /// Domains by the signal that their supervise channels share.
    groups: BTreeMap<u64, Vec<u32>>,
    toolstack: Option<Toolstack>,
    /// Status of the machine's run, and when it ends.
    last: Option<(u8, u64)>,
    has_console: bool,
}

impl Carrier {
    /// A carrier for a system whose services are built.
    pub fn new(system: System<SystemCalls, ConfigPorts>, command_line: &'static str) -> Self {
        Self {
            system,
            command_line,
            links: BTreeMap::new(),
            groups: BTreeMap::new(),
            toolstack: None,
            last: None,
            has_console: false,
        }
    }

    /// Runs the system until the machine ends.
    pub fn run(mut self) -> ! {
        self.carry_out();
        let mut signals = u64::MAX;
        loop {
            self.work(signals);
            if self.may_sleep(signals) {
                self.system.zero_ahead();
                self.set_timer();
                // Only a destroyed event answers with an error, and nobody else holds init's.
                signals = sys::event_wait(init_slots::EVENT).unwrap_or(u64::MAX);
            } else {
                // Somebody sent meanwhile; what nobody signalled is looked at as well.
                signals |= sys::event_poll(init_slots::EVENT).unwrap_or(0);
            }
        }
    }

    fn work(&mut self, signals: u64) {
        if signals & FAULT_SIGNAL != 0 {
            self.system.on_fault();
            self.carry_out();
        }
        for domid in self.signalled(signals) {
            self.receive(domid);
        }
        let now = rt::time::tsc();
        self.system.on_time(now);
        self.carry_out();
        self.serve_toolstack();
        for link in self.signalled(signals) {
            if let Some(link) = self.links.get_mut(&link) {
                link.send();
                link.channel.flush();
            }
        }
        self.watch_console();
        if let Some((status, at)) = self.last
            && rt::time::tsc() >= at
        {
            end(power::end(self.command_line, status));
        }
    }

    /// Domains whose supervise channel one of the signals stands for.
    fn signalled(&self, signals: u64) -> Vec<u32> {
        let groups = self.groups.iter().filter(|(signal, _)| signals & **signal != 0);
        groups.flat_map(|(_, domids)| domids).copied().collect()
    }

    fn receive(&mut self, domid: u32) {
        for _ in 0..TURN {
            let Some(link) = self.links.get_mut(&domid) else { return };
            match link.channel.receive() {
                Ok(Some(response)) => {
                    self.system.on_supervise(domid, response);
                    self.carry_out();
                }
                Ok(None) => return,
                Err(error) => {
                    log::error!("domain {domid} broke its supervise channel: {error}");
                    self.drop_link(domid);
                }
            }
        }
    }

    /// Takes requests of the toolstack while none is under way.
    fn serve_toolstack(&mut self) {
        for _ in 0..TURN {
            if self.system.operation.is_some() {
                break;
            }
            let Some(toolstack) = &mut self.toolstack else { return };
            match toolstack.channel.receive() {
                Ok(Some(request)) => {
                    self.system.on_builder(request);
                    self.carry_out();
                }
                Ok(None) => break,
                Err(error) => {
                    log::error!("the toolstack broke its builder channel: {error}");
                    self.toolstack = None;
                    return;
                }
            }
        }
        if let Some(toolstack) = &mut self.toolstack {
            toolstack.send();
            toolstack.channel.flush();
        }
    }

    /// Does what the logic left to be done.
    fn carry_out(&mut self) {
        while let Some(output) = self.system.outputs.pop_front() {
            match output {
                Output::ConnectSupervise(info) => match Client::connect(&info) {
                    Ok(channel) => {
                        self.groups.entry(supervise_signal(info.peer)).or_default().push(info.peer);
                        self.links.insert(info.peer, Link { channel, queue: VecDeque::new() });
                    }
                    Err(error) => log::error!("{}: {error}", info.peer_name),
                },
                Output::ConnectLog(info) => {
                    if let Err(error) = rt::logger::to_channel(&info, LevelFilter::Info) {
                        log::error!("no log: {error}");
                    }
                }
                Output::ConnectBuilder(info) => match Server::connect(&info) {
                    Ok(channel) => self.toolstack = Some(Toolstack { channel, queue: VecDeque::new() }),
                    Err(error) => log::error!("{}: {error}", info.peer_name),
                },
                Output::Disconnect(domid) => self.drop_link(domid),
                Output::Supervise(domid, request) => {
                    if let Some(link) = self.links.get_mut(&domid) {
                        link.queue.push_back(request);
                        link.send();
                        link.channel.flush();
                    }
                }
                Output::Builder(response) => {
                    if let Some(toolstack) = &mut self.toolstack {
                        toolstack.queue.push_back(response);
                        toolstack.send();
                        toolstack.channel.flush();
                    }
                }
                Output::PowerOff(status) => {
                    let at = rt::time::tsc().saturating_add(self.system.ticks(LAST_WORDS_MS));
                    self.last = Some((status, at));
                }
            }
        }
    }

    fn drop_link(&mut self, domid: u32) {
        self.links.remove(&domid);
        if let Some(group) = self.groups.get_mut(&supervise_signal(domid)) {
            group.retain(|other| *other != domid);
        }
    }

    /// Announces the wait on every channel that was looked at; `false` when one has something.
    fn may_sleep(&mut self, signals: u64) -> bool {
        let mut is_idle = true;
        for domid in self.signalled(signals) {
            let Some(link) = self.links.get_mut(&domid) else { continue };
            // A broken ring is found by the next receive.
            is_idle &= link.channel.prepare_sleep().unwrap_or(false);
        }
        if self.system.operation.is_none()
            && let Some(toolstack) = &mut self.toolstack
        {
            is_idle &= toolstack.channel.prepare_sleep().unwrap_or(false);
        }
        is_idle
    }

    fn set_timer(&self) {
        let last = self.last.map(|(_, at)| at);
        let deadline = self.system.deadline().into_iter().chain(last).min().unwrap_or(0);
        // It fails for an event that is not init's own; this one is.
        let _set = sys::event_timer(init_slots::EVENT, deadline, TIMER_SIGNAL);
    }

    /// While the console runs, only it writes to the serial port.
    fn watch_console(&mut self) {
        let console = self.system.server_of(ChannelKind::Log).and_then(|id| self.system.domains.get(&id));
        let is_ready = console.is_some_and(|c| matches!(c.kind, Kind::Service(_, ServiceState::Ready)));
        if is_ready != self.has_console {
            self.has_console = is_ready;
            let also = if is_ready { LevelFilter::Off } else { LevelFilter::Info };
            rt::logger::to_serial(init_slots::LOG, also, LevelFilter::Info);
        }
    }
}

impl Link {
    fn send(&mut self) {
        while let Some(request) = self.queue.front() {
            match self.channel.send(request) {
                Ok(()) => drop(self.queue.pop_front()),
                Err(SendError::Full) => return,
                // The receiving side reports the broken channel.
                Err(_) => self.queue.clear(),
            }
        }
    }
}

impl Toolstack {
    fn send(&mut self) {
        while let Some(response) = self.queue.front() {
            match self.channel.send(response) {
                Ok(()) => drop(self.queue.pop_front()),
                Err(SendError::Full) => return,
                Err(_) => self.queue.clear(),
            }
        }
    }
}

// The builder channel's signal is looked at in every round, so its number is of no further interest.
const _: () = assert!(BUILDER_SIGNAL & (TIMER_SIGNAL | FAULT_SIGNAL) == 0);
