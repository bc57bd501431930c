//! The station: its interface, its sockets, and what they serve.
//!
//! smoltcp looks at every socket of its set for every frame, so the set has no more than the connections that
//! there are and one socket per port that waits for the next one; the others lie aside.

use alloc::vec;
use alloc::vec::Vec;

use smoltcp::iface::{Config, Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet};
use smoltcp::socket::Socket as AnySocket;
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{EthernetAddress, IpCidr, Ipv4Cidr};

use crate::port::{Link, Port};
use crate::session::Session;

/// Connections that the server serves at once.
const CONNECTIONS: usize = 6;
/// Connections that the closing port handles at once.
const CLOSING: usize = 2;
/// Bytes of a connection's buffer, each way.
const BUFFER: usize = 256 * 1024;
/// Bytes after which a client's congestion window is open.
const FULL_FLOW: u64 = BUFFER as u64;
/// Bytes of a buffer that holds nothing.
const SMALL: usize = 64;
/// A client that answers nothing for so long is gone.
const TIMEOUT: Duration = Duration::from_secs(75);
/// An idle client is asked for a sign of life so often.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// Where the station is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// Of its interface.
    pub mac: [u8; 6],
    /// Its IP address and network.
    pub ip: Ipv4Cidr,
    /// TCP port of the server.
    pub port: u16,
    /// TCP port that accepts and closes.
    pub closing_port: u16,
}

/// What is done at a TCP port.
#[derive(Debug)]
struct Service {
    port: u16,
    is_closing: bool,
    /// The socket that waits for the next client.
    waiting: Option<SocketHandle>,
    spare: Vec<Socket<'static>>,
}

/// A client.
#[derive(Debug)]
struct Connection {
    socket: SocketHandle,
    /// Index of its service.
    service: usize,
    session: Session,
}

/// What was found out about the connections.
#[derive(Debug)]
struct Served {
    /// Some are over, but for their last segment.
    has_ended: bool,
    /// What all of them send may have any content.
    is_filler: bool,
}

/// The station.
pub struct Station<L: Link> {
    port: Port<L>,
    interface: Interface,
    sockets: SocketSet<'static>,
    services: [Service; 2],
    connections: Vec<Connection>,
    /// The last poll found a frame.
    has_received: bool,
}

fn instant(now_ns: u64) -> Instant {
    Instant::from_micros(i64::try_from(now_ns / 1000).unwrap_or(i64::MAX))
}

fn socket(buffer: usize) -> Socket<'static> {
    let buffer = || SocketBuffer::new(vec![0; buffer]);
    let mut socket = Socket::new(buffer(), buffer());
    // The sessions answer between receiving and sending, so there is nothing to wait for.
    socket.set_ack_delay(None);
    socket.set_nagle_enabled(false);
    socket.set_timeout(Some(TIMEOUT));
    socket.set_keep_alive(Some(KEEP_ALIVE));
    socket
}

/// Whether a connection in this state needs no more from the station. Clients do not use a port again at
/// once, so none is kept to wait for stray segments; and a client that broke off before it was connected
/// leaves a socket that listens.
fn is_over(state: State) -> bool {
    matches!(state, State::Closed | State::TimeWait | State::Listen)
}

impl<L: Link> Station<L> {
    /// A station behind this port; `seed` makes its sequence numbers differ from those before.
    pub fn new(mut port: Port<L>, address: &Address, seed: u64, now_ns: u64) -> Self {
        let mut config = Config::new(EthernetAddress(address.mac).into());
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut port, instant(now_ns));
        interface.update_ip_addrs(|addresses| {
            // There is room for one.
            let _full = addresses.push(IpCidr::Ipv4(address.ip));
        });
        let service = |port, is_closing, count, buffer| {
            let spare = (0..count).map(|_| socket(buffer)).collect();
            Service { port, is_closing, waiting: None, spare }
        };
        let services = [
            service(address.port, false, CONNECTIONS, BUFFER),
            service(address.closing_port, true, CLOSING, SMALL),
        ];
        let sockets = SocketSet::new(Vec::with_capacity(CONNECTIONS + CLOSING));
        let connections = Vec::with_capacity(CONNECTIONS + CLOSING);
        let mut station = Self { port, interface, sockets, services, connections, has_received: false };
        station.listen();
        station
    }

    /// Its port.
    pub fn port(&mut self) -> &mut Port<L> {
        &mut self.port
    }

    /// Whether the last poll brought data of a client that goes on sending without an answer to each segment: a
    /// little later several can be handled at once, as a NIC moderates its interrupts.
    pub fn can_rest(&self) -> bool {
        self.has_received && self.connections.iter().any(|c| c.session.is_in_full_flow(FULL_FLOW))
    }

    /// Receives, serves and sends all that can be now.
    pub fn poll(&mut self, now_ns: u64) {
        let now = instant(now_ns);
        self.port.take_messages();
        // No more than a window full can be accepted.
        let mut connections = self.connections.iter();
        self.port.set_discarding(connections.all(|connection| connection.session.discards(BUFFER)));
        self.has_received = false;
        loop {
            let received = self.interface.poll_ingress_single(now, &mut self.port, &mut self.sockets);
            if received == PollIngressSingleResult::None {
                break;
            }
            self.has_received = true;
            self.accept();
        }
        self.port.give_back();
        let Served { has_ended, is_filler } = self.serve();
        self.port.set_filler(is_filler);
        loop {
            let sent = self.interface.poll_egress(now, &mut self.port, &mut self.sockets);
            // One frame of each connection is sent at a time; after a short one there is no other.
            if sent == PollResult::None || !self.port.has_sent_bulk() {
                break;
            }
        }
        // What answers a received frame at once is sent as it is.
        self.port.set_filler(false);
        if has_ended {
            self.clear();
            self.listen();
        }
    }

    /// When to poll although nothing arrives.
    pub fn deadline_ns(&mut self, now_ns: u64) -> Option<u64> {
        let at = self.interface.poll_at(instant(now_ns), &self.sockets)?;
        Some(u64::try_from(at.total_micros()).unwrap_or(0).saturating_mul(1000))
    }

    /// Waits for clients at every port that has a socket left.
    fn listen(&mut self) {
        for service in self.services.iter_mut().filter(|service| service.waiting.is_none()) {
            let Some(mut socket) = service.spare.pop() else { continue };
            // The port is not 0, and the socket is closed.
            let _listening = socket.listen(service.port);
            service.waiting = Some(self.sockets.add(socket));
        }
    }

    /// Takes the client that the last frame brought, if it did.
    fn accept(&mut self) {
        let mut is_new = false;
        for (index, service) in self.services.iter_mut().enumerate() {
            let Some(handle) = service.waiting else { continue };
            if self.sockets.get::<Socket<'_>>(handle).state() != State::Listen {
                let session = Session::default();
                self.connections.push(Connection { socket: handle, service: index, session });
                service.waiting = None;
                is_new = true;
            }
        }
        if is_new {
            self.listen();
        }
    }

    /// Answers on every connection.
    fn serve(&mut self) -> Served {
        let mut served = Served { has_ended: false, is_filler: true };
        for Connection { socket, service, session } in &mut self.connections {
            let socket = self.sockets.get_mut::<Socket<'_>>(*socket);
            if matches!(socket.state(), State::Established | State::CloseWait) {
                if self.services.get(*service).is_some_and(|service| service.is_closing) {
                    socket.close();
                } else {
                    session.advance(socket);
                }
            }
            served.has_ended |= is_over(socket.state());
            served.is_filler &= session.sends_filler(socket);
        }
        served
    }

    /// Lays the sockets of the connections that are over aside.
    fn clear(&mut self) {
        let (sockets, services) = (&mut self.sockets, &mut self.services);
        self.connections.retain(|connection| {
            if !is_over(sockets.get::<Socket<'_>>(connection.socket).state()) {
                return true;
            }
            #[allow(irrefutable_let_patterns, reason = "depends on what else smoltcp is built with")]
            if let AnySocket::Tcp(mut socket) = sockets.remove(connection.socket)
                && let Some(service) = services.get_mut(connection.service)
            {
                socket.abort();
                service.spare.push(socket);
            }
            false
        });
    }
}
