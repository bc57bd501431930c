//! The rest of the system, played by the tests: a builder, a store, guests and an operator.

use alloc::borrow::ToOwned;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use proto::builder::{self, Activity, DomainStat, DomainState, MachineStat, TraceRecord, TraceStat};
use proto::console::{OperatorRequest, OperatorResponse, Order};
use proto::text::{Bytes, Text};
use proto::toolstack::{
    EndReason, GuestConfig as BootGuest, Request as GuestRequest, Resource, Response as FromGuest,
};
use proto::xenstore::{Message, Role};

use crate::boot::BootConfig;
use crate::toolstack::Toolstack;

mod commands;
mod life;

const SECOND: u64 = 1_000_000_000;

/// The rest of the system.
struct World {
    toolstack: Toolstack,
    now: u64,
    next_domid: u32,
    domains: BTreeMap<u32, String>,
    store: BTreeMap<String, String>,
    watches: BTreeSet<(String, String)>,
    events: VecDeque<(String, String)>,
    started: Vec<u32>,
    told: Vec<(u32, GuestRequest)>,
    operator: Vec<OperatorResponse>,
    power_off: Option<u8>,
    /// Guests that read control/shutdown and end.
    obedient: bool,
    /// The builder refuses to build.
    refusal: Option<&'static str>,
    /// VMMs say `Started` as soon as they are told to start.
    starts: bool,
    /// Writes to paths with this in them are refused.
    store_refuses: Option<&'static str>,
    next_id: u32,
    trace: TraceStat,
}

fn config(name: &str, more: &str, is_autostart: bool) -> BootConfig {
    let text = format!("name='{name}'\ntype='pvh'\nkernel='k'\nmemory=64\n{more}");
    let file = format!("{name}.cfg");
    let resources = [("k", "guest/0/kernel"), ("d", "vol0"), ("e", "vol1")];
    let resources = resources.into_iter().map(|(path, name)| Resource { path, name }).collect();
    BootConfig::new(&BootGuest { file: &file, text: &text, is_autostart, resources })
}

impl World {
    fn new(configs: Vec<BootConfig>) -> Self {
        let mut world = Self::idle(configs);
        world.run();
        world
    }

    /// Nothing has been answered yet.
    fn idle(configs: Vec<BootConfig>) -> Self {
        Self {
            toolstack: Toolstack::new(configs),
            now: 0,
            next_domid: 10,
            domains: BTreeMap::new(),
            store: BTreeMap::new(),
            watches: BTreeSet::new(),
            events: VecDeque::new(),
            started: Vec::new(),
            told: Vec::new(),
            operator: Vec::new(),
            power_off: None,
            obedient: true,
            refusal: None,
            starts: true,
            store_refuses: None,
            next_id: 0,
            trace: TraceStat::default(),
        }
    }

    /// Answers everything until nobody has anything to say.
    fn run(&mut self) {
        for _ in 0..100_000 {
            if !self.step() {
                return;
            }
        }
        panic!("the system does not come to rest");
    }

    fn step(&mut self) -> bool {
        self.operator.extend(self.toolstack.operator_out().drain(..));
        if let Some(request) = self.toolstack.builder_out().pop_front() {
            self.build(request);
            return true;
        }
        if let Some(message) = self.toolstack.store_out() {
            self.toolstack.store_sent();
            let reply = self.store(&message);
            self.toolstack.store_message(&reply);
            return true;
        }
        if let Some((path, token)) = self.events.pop_front() {
            let payload = Bytes::truncated(format!("{path}\0{token}\0").as_bytes());
            self.toolstack.store_message(&Message { role: Role::Toolstack, op: 15, id: 0, tx: 0, payload });
            return true;
        }
        if let Some((domid, request)) = self.toolstack.guest_out().pop_front() {
            self.told.push((domid, request));
            if request == GuestRequest::Start {
                assert!(self.store.contains_key(&format!("/local/domain/{domid}/domid")));
                self.started.push(domid);
                if self.starts {
                    self.toolstack.guest_message(domid, FromGuest::Started);
                }
            }
            return true;
        }
        let asked = self.started.iter().copied().find(|domid| {
            let value = self.store.get(&format!("/local/domain/{domid}/control/shutdown"));
            self.obedient && self.domains.contains_key(domid) && value.is_some_and(|value| !value.is_empty())
        });
        if let Some(domid) = asked {
            let path = format!("/local/domain/{domid}/control/shutdown");
            let value = self.write(&path, "");
            let reason = if value == "reboot" { EndReason::Reboot } else { EndReason::PowerOff };
            self.end(domid, reason);
            return true;
        }
        false
    }

    /// Returns the old value.
    fn write(&mut self, path: &str, value: &str) -> String {
        for (watched, token) in &self.watches {
            if watched == path {
                self.events.push_back((path.to_owned(), token.clone()));
            }
        }
        self.store.insert(path.to_owned(), value.to_owned()).unwrap_or_default()
    }

    fn build(&mut self, request: builder::Request) {
        use builder::{Request, Response};
        let response = match request {
            Request::Build(spec) => match self.refusal {
                Some(reason) => Response::Refused { reason: Text::truncated(reason) },
                None => {
                    let domid = self.next_domid;
                    self.next_domid += 1;
                    self.domains.insert(domid, spec.name.to_string());
                    self.toolstack.guest_attached(domid);
                    Response::Built { domid }
                }
            },
            Request::Destroy { domid } => {
                assert!(self.domains.remove(&domid).is_some(), "domain {domid} is destroyed twice");
                self.toolstack.guest_detached(domid);
                Response::Destroyed { domid }
            }
            Request::Stat { index } => {
                let services = [(1, "init".to_string()), (2, "console".to_string())];
                let guests = self.domains.iter().map(|(domid, name)| (*domid, name.clone()));
                match services.into_iter().chain(guests).nth(index as usize) {
                    None => Response::NoDomain,
                    Some((domid, name)) => Response::Domain {
                        index,
                        stat: DomainStat {
                            domid,
                            name: Text::truncated(&name),
                            is_guest: domid >= 10,
                            memory_kib: 65_536,
                            overhead_kib: 1,
                            vcpus: 1,
                            state: DomainState::Blocked,
                            time_us: 0,
                            activity: Activity { thread: domid * 10, ..Activity::default() },
                        },
                    },
                }
            }
            Request::Machine => Response::Machine(MachineStat {
                total_kib: 1 << 20,
                free_kib: 1 << 19,
                system_kib: 9000,
                bundle_kib: 1,
                cpus: 1,
                tsc_khz: 1_000_000,
                uptime_us: 61_000_000 + self.now / 1000,
                idle_us: 0,
                context_switches: 0,
                interrupts: 0,
            }),
            Request::Counters { domid } => {
                let known = domid < 10 || self.domains.contains_key(&domid);
                let mut values = proto::text::List::new();
                (0..proto::counters::COUNT).for_each(|_| values.push(self.now / SECOND).unwrap());
                let reason = Text::truncated("there is no such domain");
                if known { Response::Counters { domid, values } } else { Response::Refused { reason } }
            }
            Request::TraceStart { kib } => {
                self.trace = TraceStat { is_running: true, capacity: u64::from(kib), written: 0 };
                Response::Trace(self.trace)
            }
            Request::TraceStop => {
                self.trace.is_running = false;
                Response::Trace(self.trace)
            }
            Request::TraceDrop => {
                self.trace = TraceStat::default();
                Response::Trace(self.trace)
            }
            Request::TraceRead { from } => {
                let TraceStat { is_running, capacity, written } = self.trace;
                if capacity == 0 {
                    let reason = Text::truncated("there is no trace");
                    self.toolstack.builder_message(Response::Refused { reason });
                    return;
                }
                let first = from.max(written.saturating_sub(capacity));
                let mut records = proto::text::List::new();
                for tsc in (first..written).take(builder::RECORDS_MAX) {
                    records.push(TraceRecord { tsc, kind: 2, cpu: 0, thread: 10, a: 20, b: 100 }).unwrap();
                }
                // A trace that runs grows with every look at it.
                self.trace.written += if is_running { 50 } else { 0 };
                Response::Records { first, written, records }
            }
            Request::PowerOff { status } => {
                self.power_off = Some(status);
                return;
            }
        };
        self.toolstack.builder_message(response);
    }

    fn store(&mut self, message: &Message) -> Message {
        let payload = message.payload.to_vec();
        let parts: Vec<String> =
            payload.split(|&b| b == 0).map(|part| String::from_utf8(part.to_vec()).unwrap()).collect();
        let path = parts[0].clone();
        let mut reply = Message { payload: Bytes::truncated(b"OK\0"), ..message.clone() };
        if self.store_refuses.is_some_and(|part| path.contains(part)) {
            return Message { op: 16, payload: Bytes::truncated(b"ENOSPC\0"), ..reply };
        }
        match message.op {
            2 => match self.store.get(&path) {
                Some(value) => reply.payload = Bytes::truncated(value.as_bytes()),
                None => (reply.op, reply.payload) = (16, Bytes::truncated(b"ENOENT\0")),
            },
            4 => {
                self.watches.insert((path.clone(), parts[1].clone()));
                self.events.push_back((path, parts[1].clone()));
            }
            5 => assert!(self.watches.remove(&(path, parts[1].clone()))),
            11 => {
                self.write(&path, &parts[1]);
            }
            13 => {
                let is_below = |node: &String| *node == path || node.starts_with(&format!("{path}/"));
                self.store.retain(|node, _| !is_below(node));
            }
            14 => {}
            op => panic!("operation {op}"),
        }
        reply
    }

    fn end(&mut self, domid: u32, reason: EndReason) {
        self.toolstack.guest_message(domid, FromGuest::Ended { reason, detail: Text::new() });
    }

    fn advance(&mut self, ns: u64) {
        self.now += ns;
        self.toolstack.tick(self.now);
        self.run();
    }

    /// Types a command; what follows until everybody is quiet is in `operator`.
    fn type_line(&mut self, line: &str) -> u32 {
        self.next_id += 1;
        let id = self.next_id;
        self.toolstack.operator_message(&OperatorRequest { id, order: Order::Run(Text::truncated(line)) });
        self.run();
        id
    }

    /// A command's output and, if it has ended, its status.
    fn result(&self, command: u32) -> (String, Option<u8>) {
        let (mut output, mut status) = (String::new(), None);
        for response in &self.operator {
            match response {
                OperatorResponse::Output { id, text } if *id == command => output.push_str(text),
                OperatorResponse::Done { id, status: s } if *id == command => {
                    assert_eq!(status.replace(*s), None, "a command ends once");
                }
                _ => {}
            }
        }
        (output, status)
    }

    fn command(&mut self, line: &str) -> (String, Option<u8>) {
        let id = self.type_line(line);
        self.result(id)
    }

    fn notices(&self) -> Vec<&str> {
        let notices = self.operator.iter().filter_map(|response| match response {
            OperatorResponse::Notice { text } => Some(text.as_str()),
            _ => None,
        });
        notices.collect()
    }

    fn has_notice(&self, part: &str) -> bool {
        self.notices().iter().any(|notice| notice.contains(part))
    }

    fn guests_started(&self) -> Option<(u32, u32)> {
        self.operator.iter().find_map(|response| match response {
            OperatorResponse::GuestsStarted { first, failed } => Some((*first, *failed)),
            _ => None,
        })
    }

    fn names(&self) -> Vec<&str> {
        self.domains.values().map(String::as_str).collect()
    }

    fn assert_no_traces(&self) {
        assert!(self.store.is_empty(), "{:?}", self.store);
        assert!(self.watches.is_empty(), "{:?}", self.watches);
    }
}

fn two() -> World {
    World::new(alloc::vec![config("web", "disk=['d,,xvda']", true), config("db", "disk=['e,,xvda']", true)])
}
