//! The VMM as backend in the store: the handshake with each frontend, and when a device connects.
//!
//! One state machine per device follows the frontend's `state` node. Requests are queued and answered
//! asynchronously; at most one reading of a state node is under way per device, however often it changes,
//! so a guest cannot make the queue grow. Source: Xen public/io/xenbus.h, blkif.h, netif.h.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use proto::net::Offloads;
use proto::text::Bytes;
use proto::xenstore::{Message, Role};

use crate::net;

const READ: u32 = 2;
const WATCH: u32 = 4;
const WRITE: u32 = 11;
const WATCH_EVENT: u32 = 15;
const ERROR: u32 = 16;

/// XenbusState values.
mod state {
    pub const INITIALISING: u32 = 1;
    pub const INIT_WAIT: u32 = 2;
    pub const INITIALISED: u32 = 3;
    pub const CONNECTED: u32 = 4;
    pub const CLOSING: u32 = 5;
    pub const CLOSED: u32 = 6;
}

/// Kind of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Disk.
    Vbd,
    /// Network interface.
    Vif,
}

impl Class {
    fn name(self) -> &'static str {
        match self {
            Self::Vbd => "vbd",
            Self::Vif => "vif",
        }
    }

    /// Nodes of the frontend that are read before connecting.
    fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Vbd => &["ring-ref", "event-channel", "protocol"],
            Self::Vif => &[
                "tx-ring-ref",
                "rx-ring-ref",
                "event-channel",
                "feature-sg",
                "feature-gso-tcpv4",
                "feature-gso-tcpv6",
                "feature-no-csum-offload",
                "feature-ipv6-csum-offload",
            ],
        }
    }

    /// Nodes of the backend that exist before the frontend starts.
    fn features(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Vbd => &[],
            Self::Vif => &[
                ("feature-rx-copy", "1"),
                ("feature-sg", "1"),
                ("feature-gso-tcpv4", "1"),
                ("feature-gso-tcpv6", "1"),
                ("feature-ipv6-csum-offload", "1"),
            ],
        }
    }

    /// Whether a frontend in this state has written all that it has to.
    fn is_ready(self, state: u32) -> bool {
        match self {
            Self::Vbd => state == state::INITIALISED || state == state::CONNECTED,
            Self::Vif => state == state::CONNECTED,
        }
    }
}

/// Most nodes that a device reads.
const KEYS_MAX: usize = 8;

/// What a frontend wrote, in the order of the class's keys; absent nodes are empty.
pub type Values = [String; KEYS_MAX];

/// What a network interface's frontend wrote: its [`Values`], in parts.
pub fn vif_nodes<'a>(tx: &'a str, rx: &'a str, port: &'a str, rest: &[String]) -> net::Nodes<'a> {
    let is_set = |n: usize| rest.get(n).is_some_and(|value| value.trim() == "1");
    let [has_sg, has_v4, has_v6, has_no_checksum, has_v6_checksum] = [0, 1, 2, 3, 4].map(is_set);
    let offloads = Offloads {
        has_partial_checksum: !has_no_checksum && has_v6_checksum,
        has_tcp_v4: has_sg && has_v4 && !has_no_checksum,
        has_tcp_v6: has_sg && has_v6 && has_v6_checksum,
    };
    net::Nodes { tx_ring_ref: tx, rx_ring_ref: rx, event_channel: port, offloads }
}

/// What the owner of the devices is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Connect the device's rings, then call [`Backend::connected`] or [`Backend::refused`].
    Connect {
        /// Index of the device.
        device: usize,
        /// What the frontend wrote.
        values: Values,
    },
    /// Stop using the device's rings.
    Disconnect {
        /// Index of the device.
        device: usize,
    },
}

/// Where the backend is in the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Waits for the frontend.
    Waiting,
    /// Reads the frontend's nodes; how many answers are missing.
    Reading(usize),
    /// The owner connects.
    Connecting,
    Connected,
    Closed,
}

#[derive(Debug)]
struct Device {
    class: Class,
    front: String,
    back: String,
    phase: Phase,
    /// The state node is being read.
    is_reading_state: bool,
    /// It changed meanwhile.
    must_read_again: bool,
    values: Values,
}

/// What an answer is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Topic {
    State(usize),
    Value(usize, usize),
    Nothing,
}

#[derive(Debug)]
struct Operation {
    op: u32,
    payload: Vec<u8>,
    topic: Topic,
}

/// All handshakes of a guest.
#[derive(Debug)]
pub struct Backend {
    domid: u32,
    devices: Vec<Device>,
    queue: VecDeque<Operation>,
    in_flight: VecDeque<(u32, Topic)>,
    next_id: u32,
    /// What the owner has to do, in order.
    pub actions: VecDeque<Action>,
}

impl Backend {
    /// No devices yet.
    pub fn new(domid: u32) -> Self {
        Self {
            domid,
            devices: Vec::new(),
            queue: VecDeque::new(),
            in_flight: VecDeque::new(),
            next_id: 1,
            actions: VecDeque::new(),
        }
    }

    /// Adds a device and starts its handshake; its index.
    pub fn add(&mut self, class: Class, number: u32) -> usize {
        let (domid, name) = (self.domid, class.name());
        let device = self.devices.len();
        let front = format!("/local/domain/{domid}/device/{name}/{number}");
        self.devices.push(Device {
            class,
            back: format!("/local/domain/0/backend/{name}/{domid}/{number}"),
            phase: Phase::Waiting,
            is_reading_state: false,
            must_read_again: false,
            values: Values::default(),
            front: front.clone(),
        });
        self.offer(device);
        // The watch fires once at once, which is when the state is read first.
        self.push(WATCH, &[&front, "/state\0", &format!("{device}"), "\0"], Topic::Nothing);
        device
    }

    fn push(&mut self, op: u32, payload: &[&str], topic: Topic) {
        let payload = payload.concat().into_bytes();
        self.queue.push_back(Operation { op, payload, topic });
    }

    fn write(&mut self, device: usize, key: &str, value: &str) {
        if let Some(back) = self.devices.get(device).map(|device| device.back.clone()) {
            self.push(WRITE, &[&back, "/", key, "\0", value], Topic::Nothing);
        }
    }

    fn write_state(&mut self, device: usize, state: u32) {
        self.write(device, "state", &format!("{state}"));
    }

    /// Announces what the backend can do, and that it waits.
    fn offer(&mut self, device: usize) {
        let Some(class) = self.devices.get(device).map(|device| device.class) else { return };
        for (key, value) in class.features() {
            self.write(device, key, value);
        }
        self.write_state(device, state::INIT_WAIT);
        self.set_phase(device, Phase::Waiting);
    }

    fn set_phase(&mut self, device: usize, phase: Phase) {
        if let Some(device) = self.devices.get_mut(device) {
            device.phase = phase;
        }
    }

    /// The next request to send, if any; [`Self::was_sent`] follows when it was.
    pub fn next_request(&self) -> Option<Message> {
        let operation = self.queue.front()?;
        Some(Message {
            role: Role::Backend,
            op: operation.op,
            id: self.next_id,
            tx: 0,
            payload: Bytes::truncated(&operation.payload),
        })
    }

    /// The request of [`Self::next_request`] is on its way.
    pub fn was_sent(&mut self) {
        if let Some(operation) = self.queue.pop_front() {
            self.in_flight.push_back((self.next_id, operation.topic));
            self.next_id = self.next_id.wrapping_add(1);
        }
    }

    /// Takes an answer or a watch event from the store.
    pub fn answered(&mut self, message: &Message) {
        if message.op == WATCH_EVENT {
            let mut parts = message.payload.split(|&byte| byte == 0);
            let token = parts.nth(1).and_then(|token| core::str::from_utf8(token).ok());
            if let Some(device) = token.and_then(|token| token.parse().ok()) {
                self.state_changed(device);
            }
            return;
        }
        let Some(at) = self.in_flight.iter().position(|(id, _)| *id == message.id) else { return };
        let Some((_, topic)) = self.in_flight.remove(at) else { return };
        let is_error = message.op == ERROR;
        let text = if is_error { "" } else { core::str::from_utf8(&message.payload).unwrap_or("") };
        match topic {
            Topic::State(device) => self.state_read(device, text),
            Topic::Value(device, key) => self.value_read(device, key, text),
            Topic::Nothing if is_error => {
                log::warn!("the store refused a backend's request: {}", message.payload.escape_ascii());
            }
            Topic::Nothing => {}
        }
    }

    fn state_changed(&mut self, device: usize) {
        let Some(this) = self.devices.get_mut(device) else { return };
        if this.is_reading_state {
            this.must_read_again = true;
            return;
        }
        this.is_reading_state = true;
        let path = format!("{}/state\0", this.front);
        self.push(READ, &[&path], Topic::State(device));
    }

    fn state_read(&mut self, index: usize, text: &str) {
        let Some(device) = self.devices.get_mut(index) else { return };
        device.is_reading_state = false;
        let must_read_again = core::mem::take(&mut device.must_read_again);
        let (class, phase) = (device.class, device.phase);
        // A frontend whose node is gone is closed.
        let front = text.trim().parse().unwrap_or(state::CLOSED);
        let is_active = matches!(phase, Phase::Connected | Phase::Connecting | Phase::Reading(_));
        match front {
            _ if class.is_ready(front) && phase == Phase::Waiting => self.read_values(index),
            state::CLOSING | state::CLOSED => {
                if is_active {
                    self.actions.push_back(Action::Disconnect { device: index });
                }
                if phase != Phase::Closed || front == state::CLOSED {
                    self.write_state(index, front);
                }
                self.set_phase(index, Phase::Closed);
            }
            state::INITIALISING => {
                if is_active {
                    self.actions.push_back(Action::Disconnect { device: index });
                }
                if is_active || phase == Phase::Closed {
                    self.offer(index);
                }
            }
            _ => {}
        }
        if must_read_again {
            self.state_changed(index);
        }
    }

    fn read_values(&mut self, index: usize) {
        let Some(device) = self.devices.get_mut(index) else { return };
        let keys = device.class.keys();
        device.phase = Phase::Reading(keys.len());
        device.values = Values::default();
        let front = device.front.clone();
        for (n, key) in keys.iter().enumerate() {
            self.push(READ, &[&front, "/", key, "\0"], Topic::Value(index, n));
        }
    }

    fn value_read(&mut self, index: usize, key: usize, text: &str) {
        let Some(device) = self.devices.get_mut(index) else { return };
        // Answers to a reading that the frontend's closing has overtaken are of no interest.
        let Phase::Reading(missing) = device.phase else { return };
        if let Some(value) = device.values.get_mut(key) {
            *value = String::from(text);
        }
        if missing > 1 {
            device.phase = Phase::Reading(missing - 1);
            return;
        }
        device.phase = Phase::Connecting;
        let values = core::mem::take(&mut device.values);
        self.actions.push_back(Action::Connect { device: index, values });
    }

    /// The device's rings are connected: writes `nodes`, then the state.
    pub fn connected(&mut self, device: usize, nodes: &[(&str, &str)]) {
        if self.devices.get(device).is_none_or(|device| device.phase != Phase::Connecting) {
            return;
        }
        for (key, value) in nodes {
            self.write(device, key, value);
        }
        self.write_state(device, state::CONNECTED);
        self.set_phase(device, Phase::Connected);
    }

    /// What the frontend wrote cannot be used: the device is closed until the frontend starts again.
    pub fn refused(&mut self, device: usize) {
        self.write_state(device, state::CLOSED);
        self.set_phase(device, Phase::Closed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeMap;
    use alloc::string::ToString;

    /// A store of exactly what the backend needs.
    #[derive(Default)]
    struct FakeStore {
        nodes: BTreeMap<String, String>,
        watches: Vec<(String, String)>,
    }

    impl FakeStore {
        fn fire(&self, backend: &mut Backend, path: &str) {
            for (watched, token) in &self.watches {
                if watched == path {
                    let payload = format!("{path}\0{token}\0");
                    backend.answered(&Message {
                        role: Role::Backend,
                        op: WATCH_EVENT,
                        id: 0,
                        tx: 0,
                        payload: Bytes::truncated(payload.as_bytes()),
                    });
                }
            }
        }

        fn write(&mut self, backend: &mut Backend, path: &str, value: &str) {
            self.nodes.insert(path.to_string(), value.to_string());
            self.fire(backend, path);
            self.run(backend);
        }

        fn run(&mut self, backend: &mut Backend) {
            while let Some(request) = backend.next_request() {
                backend.was_sent();
                let text = core::str::from_utf8(&request.payload).unwrap();
                let (path, rest) = text.split_once('\0').unwrap();
                let mut fired = None;
                let (op, payload) = match request.op {
                    READ => match self.nodes.get(path) {
                        Some(value) => (READ, value.clone()),
                        None => (ERROR, "ENOENT\0".to_string()),
                    },
                    WRITE => {
                        self.nodes.insert(path.to_string(), rest.to_string());
                        (WRITE, "OK\0".to_string())
                    }
                    WATCH => {
                        self.watches.push((path.to_string(), rest.trim_end_matches('\0').to_string()));
                        fired = Some(path.to_string());
                        (WATCH, "OK\0".to_string())
                    }
                    _ => panic!(),
                };
                let payload = Bytes::truncated(payload.as_bytes());
                backend.answered(&Message { role: Role::Backend, op, id: request.id, tx: 0, payload });
                if let Some(path) = fired {
                    self.fire(backend, &path);
                }
            }
        }
    }

    const VBD: &str = "/local/domain/5/device/vbd/51712";
    const VBD_BACK: &str = "/local/domain/0/backend/vbd/5/51712";

    fn started() -> (FakeStore, Backend) {
        let mut store = FakeStore::default();
        let mut backend = Backend::new(5);
        store.nodes.insert(format!("{VBD}/state"), "1".to_string());
        backend.add(Class::Vbd, 51712);
        store.run(&mut backend);
        (store, backend)
    }

    fn ready(store: &mut FakeStore, backend: &mut Backend) {
        for (key, value) in
            [("ring-ref", "8"), ("event-channel", "9"), ("protocol", "x86_64-abi"), ("state", "3")]
        {
            store.write(backend, &format!("{VBD}/{key}"), value);
        }
    }

    fn back_state(store: &FakeStore) -> &str {
        &store.nodes[&format!("{VBD_BACK}/state")]
    }

    #[test]
    fn a_disk_goes_from_waiting_to_connected_to_closed_and_around_again() {
        let (mut store, mut backend) = started();
        assert_eq!(back_state(&store), "2");
        for _ in 0..2 {
            ready(&mut store, &mut backend);
            let Some(Action::Connect { device: 0, values }) = backend.actions.pop_front() else { panic!() };
            assert_eq!(values[..3], ["8", "9", "x86_64-abi"].map(String::from));
            backend.connected(0, &[("sectors", "2048")]);
            store.run(&mut backend);
            assert_eq!(back_state(&store), "4");
            assert_eq!(store.nodes[&format!("{VBD_BACK}/sectors")], "2048");
            store.write(&mut backend, &format!("{VBD}/state"), "4");
            assert!(backend.actions.is_empty());
            store.write(&mut backend, &format!("{VBD}/state"), "5");
            assert_eq!(backend.actions.pop_front(), Some(Action::Disconnect { device: 0 }));
            assert_eq!(back_state(&store), "5");
            store.write(&mut backend, &format!("{VBD}/state"), "6");
            assert_eq!((back_state(&store), backend.actions.len()), ("6", 0));
            store.write(&mut backend, &format!("{VBD}/state"), "1");
            assert_eq!(back_state(&store), "2");
        }
    }

    #[test]
    fn a_network_interface_connects_when_its_frontend_says_connected() {
        let mut store = FakeStore::default();
        let mut backend = Backend::new(5);
        backend.add(Class::Vif, 0);
        store.run(&mut backend);
        assert_eq!(store.nodes["/local/domain/0/backend/vif/5/0/feature-rx-copy"], "1");
        let front = "/local/domain/5/device/vif/0";
        for (key, value) in [("tx-ring-ref", "10"), ("feature-sg", "1"), ("feature-gso-tcpv4", "1")] {
            store.nodes.insert(format!("{front}/{key}"), value.to_string());
        }
        store.write(&mut backend, &format!("{front}/state"), "1");
        store.write(&mut backend, &format!("{front}/state"), "4");
        let Some(Action::Connect { values, .. }) = backend.actions.pop_back() else { panic!() };
        assert_eq!(values[..4], ["10", "", "", "1"].map(String::from));
        backend.refused(0);
        store.run(&mut backend);
        assert_eq!(store.nodes["/local/domain/0/backend/vif/5/0/state"], "6");
    }

    #[test]
    fn a_storm_of_state_changes_does_not_grow_the_queue() {
        let (_store, mut backend) = started();
        for _ in 0..1000 {
            backend.state_changed(0);
        }
        assert_eq!(backend.queue.len(), 1);
        backend.state_changed(77);
        assert_eq!(backend.queue.len(), 1);
    }

    #[test]
    fn a_frontend_that_closes_while_its_nodes_are_read_is_not_connected() {
        let (mut store, mut backend) = started();
        store.nodes.insert(format!("{VBD}/state"), "3".to_string());
        backend.state_changed(0);
        let read = backend.next_request().unwrap();
        backend.was_sent();
        let answer = |id, text: &[u8]| Message {
            role: Role::Backend,
            op: READ,
            id,
            tx: 0,
            payload: Bytes::truncated(text),
        };
        backend.answered(&answer(read.id, b"3"));
        backend.state_changed(0);
        store.nodes.insert(format!("{VBD}/state"), "6".to_string());
        // The values are answered first, then the state.
        store.run(&mut backend);
        let last = backend.actions.pop_back();
        assert_eq!(last, Some(Action::Disconnect { device: 0 }));
        backend.connected(0, &[]);
        store.run(&mut backend);
        assert_eq!(back_state(&store), "6");
    }
}
