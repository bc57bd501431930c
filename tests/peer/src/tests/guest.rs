//! A model of netback with one guest behind it.

use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::RefCell;

use proto::net::{
    Checksum as Sum, Frame, PLAIN_MAX, POOL_SIZE, RECEIVE_BASE, Request, Response, Runs, Segments,
};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr};

use crate::port::{Gone, Link, Port};
use crate::station::{Address, Station};

/// The station's addresses.
pub const STATION: Address = Address {
    mac: [2, 0, 0, 0, 0x77, 1],
    ip: smoltcp::wire::Ipv4Cidr::new(smoltcp::wire::Ipv4Address::new(10, 77, 0, 1), 24),
    port: 5001,
    closing_port: 5003,
};
/// The guest's.
pub const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0x77, 2];

/// A frame that the station sent, what was said of it, and its bytes.
pub type Sent = (Frame, Vec<u8>);

/// Netback and the pool.
#[derive(Debug)]
pub struct Netback {
    pub pool: Vec<u8>,
    /// For the station.
    pub messages: VecDeque<Response>,
    /// For the guest.
    pub frames: VecDeque<Sent>,
    /// The receiving half.
    runs: Runs,
    /// Every so manieth frame of either direction is lost.
    pub loses: Option<u32>,
    moved: u32,
    /// The ring is broken.
    pub is_broken: bool,
}

impl Netback {
    fn is_lost(&mut self) -> bool {
        self.moved += 1;
        self.loses.is_some_and(|n| self.moved.is_multiple_of(n))
    }

    /// A frame for the station; without a buffer it is dropped.
    pub fn deliver(&mut self, frame: &[u8]) {
        if self.is_lost() {
            return;
        }
        let Some(offset) = self.runs.take(frame.len() as u32) else { return };
        self.pool[offset as usize..][..frame.len()].copy_from_slice(frame);
        let segments =
            if frame.len() > PLAIN_MAX as usize { Segments::TcpV4 { size: 1460 } } else { Segments::One };
        let (len, checksum) = (frame.len() as u32, Sum::Partial);
        self.messages.push_back(Response::Receive(Frame { offset, len, checksum, segments }));
    }
}

/// The station's end of the channel.
#[derive(Debug, Clone)]
pub struct FakeLink(pub Rc<RefCell<Netback>>);

impl Link for FakeLink {
    fn receive(&mut self) -> Result<Option<Response>, Gone> {
        let mut netback = self.0.borrow_mut();
        if netback.is_broken { Err(Gone) } else { Ok(netback.messages.pop_front()) }
    }

    fn send(&mut self, request: &Request) -> Result<(), Gone> {
        let mut netback = self.0.borrow_mut();
        match *request {
            Request::Open => netback.messages.push_back(Response::Opened),
            Request::Accept(offloads) => assert!(offloads.has_partial_checksum && offloads.has_tcp_v4),
            Request::Send(frame) => {
                assert!(frame.is_within(0));
                let bytes = netback.pool[frame.offset as usize..][..frame.len as usize].to_vec();
                if !netback.is_lost() {
                    netback.frames.push_back((frame, bytes));
                }
                netback.messages.push_back(Response::Sent { count: 1 });
            }
            Request::Release { count } => assert_eq!(netback.runs.release(count), Ok(())),
        }
        Ok(())
    }

    fn read(&self, offset: u32, out: &mut [u8]) -> bool {
        let netback = self.0.borrow();
        let Some(bytes) = netback.pool.get(offset as usize..offset as usize + out.len()) else {
            return false;
        };
        out.copy_from_slice(bytes);
        true
    }

    fn write(&self, offset: u32, frame: &[u8]) -> bool {
        let mut netback = self.0.borrow_mut();
        let Some(bytes) = netback.pool.get_mut(offset as usize..offset as usize + frame.len()) else {
            return false;
        };
        bytes.copy_from_slice(frame);
        true
    }
}

/// The guest's interface.
struct Card(Rc<RefCell<Netback>>, bool);
struct CardRx(Vec<u8>);
struct CardTx(Rc<RefCell<Netback>>);

impl RxToken for CardRx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for CardTx {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.borrow_mut().deliver(&frame);
        result
    }
}

impl Device for Card {
    type RxToken<'a> = CardRx;
    type TxToken<'a> = CardTx;

    fn receive(&mut self, _: Instant) -> Option<(CardRx, CardTx)> {
        let (_, frame) = self.0.borrow_mut().frames.pop_front()?;
        Some((CardRx(frame), CardTx(self.0.clone())))
    }

    fn transmit(&mut self, _: Instant) -> Option<CardTx> {
        Some(CardTx(self.0.clone()))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        // What is not TCP must be right as it comes.
        let mut checksum = ChecksumCapabilities::default();
        checksum.tcp = Checksum::None;
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = PLAIN_MAX as usize;
        capabilities.segmentation.tcpv4 = core::num::NonZeroUsize::new(if self.1 { 65_535 } else { 1514 });
        capabilities.checksum = checksum;
        capabilities
    }
}

/// The station with netback and a guest.
pub struct Bench {
    pub station: Station<FakeLink>,
    pub netback: Rc<RefCell<Netback>>,
    card: Card,
    interface: Interface,
    pub sockets: SocketSet<'static>,
    pub now_ns: u64,
    next_port: u16,
}

impl Bench {
    /// A guest that sends large segments as they are, or not.
    pub fn new(has_offload: bool) -> Self {
        let netback = Rc::new(RefCell::new(Netback {
            pool: vec![0; POOL_SIZE as usize],
            messages: VecDeque::new(),
            frames: VecDeque::new(),
            runs: Runs::new(RECEIVE_BASE),
            loses: None,
            moved: 0,
            is_broken: false,
        }));
        let station = Station::new(Port::new(FakeLink(netback.clone())), &STATION, 1, 0);
        let mut card = Card(netback.clone(), has_offload);
        let mut interface =
            Interface::new(Config::new(EthernetAddress(GUEST_MAC).into()), &mut card, Instant::ZERO);
        interface.update_ip_addrs(|ips| ips.push(IpCidr::new(IpAddress::v4(10, 77, 0, 2), 24)).unwrap());
        let sockets = SocketSet::new(vec![]);
        Self { station, netback, card, interface, sockets, now_ns: 1_000_000, next_port: 40000 }
    }

    /// A connection on its way.
    pub fn connect(&mut self, port: u16) -> SocketHandle {
        let buffer = || SocketBuffer::new(vec![0; 1 << 17]);
        let mut socket = Socket::new(buffer(), buffer());
        self.next_port += 1;
        let to = (IpAddress::v4(10, 77, 0, 1), port);
        socket.connect(self.interface.context(), to, self.next_port).unwrap();
        self.sockets.add(socket)
    }

    pub fn socket(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Whether both sides have closed it.
    pub fn is_over(&mut self, handle: SocketHandle) -> bool {
        matches!(self.socket(handle).state(), State::TimeWait | State::Closed)
    }

    /// The guest does what it can.
    pub fn poll_guest(&mut self) {
        let now = Instant::from_micros((self.now_ns / 1000) as i64);
        self.interface.poll(now, &mut self.card, &mut self.sockets);
    }

    /// Both do what they can, until nothing happens any more; then time goes on to the next deadline.
    pub fn run(&mut self) {
        for _ in 0..1000 {
            self.poll_guest();
            self.station.poll(self.now_ns);
            let netback = self.netback.borrow();
            if netback.frames.is_empty() && netback.messages.is_empty() {
                break;
            }
        }
        let now = Instant::from_micros((self.now_ns / 1000) as i64);
        let guest = self.interface.poll_at(now, &self.sockets).map(|at| at.total_micros() as u64 * 1000);
        let deadline = [guest, self.station.deadline_ns(self.now_ns)].into_iter().flatten().min();
        self.now_ns = deadline.unwrap_or(0).clamp(self.now_ns + 1000, self.now_ns + 10_000_000_000);
    }

    /// Sends bytes and runs until they are out.
    pub fn write(&mut self, handle: SocketHandle, mut bytes: &[u8]) {
        for _ in 0..100_000 {
            if bytes.is_empty() {
                return;
            }
            let socket = self.socket(handle);
            if socket.may_send() {
                let sent = socket.send_slice(bytes).unwrap();
                bytes = &bytes[sent..];
            }
            self.run();
        }
        panic!("{} bytes are left", bytes.len());
    }

    /// Runs until so many bytes came.
    pub fn read(&mut self, handle: SocketHandle, len: usize) -> Vec<u8> {
        let mut bytes = vec![];
        for _ in 0..100_000 {
            let socket = self.socket(handle);
            if socket.can_recv() {
                let mut part = vec![0; len - bytes.len()];
                let received = socket.recv_slice(&mut part).unwrap();
                bytes.extend(&part[..received]);
            }
            if bytes.len() == len {
                return bytes;
            }
            self.run();
        }
        panic!("{} of {len} bytes came", bytes.len());
    }
}
