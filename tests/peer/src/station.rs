//! The station: its interface and its sockets.

use alloc::vec;
use alloc::vec::Vec;

use smoltcp::iface::{Config, Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet};
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

/// A socket and what it is for.
#[derive(Debug)]
struct Connection {
    socket: SocketHandle,
    port: u16,
    /// `None`: at the closing port.
    session: Option<Session>,
}

/// The station.
pub struct Station<L: Link> {
    port: Port<L>,
    interface: Interface,
    sockets: SocketSet<'static>,
    connections: Vec<Connection>,
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
/// once, so none is kept to wait for stray segments.
fn is_over_in(state: State) -> bool {
    matches!(state, State::Closed | State::TimeWait)
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
        let mut sockets = SocketSet::new(Vec::with_capacity(CONNECTIONS + CLOSING));
        let mut connections = Vec::with_capacity(CONNECTIONS + CLOSING);
        for number in 0..CONNECTIONS + CLOSING {
            let is_served = number < CONNECTIONS;
            connections.push(Connection {
                socket: sockets.add(socket(if is_served { BUFFER } else { SMALL })),
                port: if is_served { address.port } else { address.closing_port },
                session: is_served.then(Session::default),
            });
        }
        let mut station = Self { port, interface, sockets, connections };
        station.renew();
        station
    }

    /// Its port.
    pub fn port(&mut self) -> &mut Port<L> {
        &mut self.port
    }

    /// Receives, serves and sends all that can be now.
    pub fn poll(&mut self, now_ns: u64) {
        let now = instant(now_ns);
        self.port.take_messages();
        loop {
            let received = self.interface.poll_ingress_single(now, &mut self.port, &mut self.sockets);
            if received == PollIngressSingleResult::None {
                break;
            }
        }
        let is_over = self.serve();
        loop {
            let sent = self.interface.poll_egress(now, &mut self.port, &mut self.sockets);
            if sent == PollResult::None {
                break;
            }
        }
        if is_over {
            self.renew();
        }
    }

    /// When to poll although nothing arrives.
    pub fn deadline_ns(&mut self, now_ns: u64) -> Option<u64> {
        let at = self.interface.poll_at(instant(now_ns), &self.sockets)?;
        Some(u64::try_from(at.total_micros()).unwrap_or(0).saturating_mul(1000))
    }

    /// Answers on every connection; `true`: some are over, but for their last segment.
    fn serve(&mut self) -> bool {
        let mut is_over = false;
        for connection in &mut self.connections {
            let socket = self.sockets.get_mut::<Socket<'_>>(connection.socket);
            match socket.state() {
                State::Established | State::CloseWait => match &mut connection.session {
                    Some(session) => session.advance(socket),
                    None => socket.close(),
                },
                _ => {}
            }
            is_over |= is_over_in(socket.state());
        }
        is_over
    }

    /// Waits for new clients on the sockets whose connections are over.
    fn renew(&mut self) {
        for connection in &mut self.connections {
            let socket = self.sockets.get_mut::<Socket<'_>>(connection.socket);
            if is_over_in(socket.state()) {
                socket.abort();
                // The port is not 0, and the socket is closed.
                let _listening = socket.listen(connection.port);
                connection.session = connection.session.take().map(|_| Session::default());
            }
        }
    }
}
