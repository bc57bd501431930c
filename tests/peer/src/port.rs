//! The port on the bridge: netback's client, as the interface that smoltcp drives.
//!
//! A frame is copied out of the pool once, into a private buffer, and a frame to send is written to a private
//! buffer and copied into the pool. Of data that are thrown away and of data of any content only the headers are
//! copied so, which leaves smoltcp's own copy between socket and frame. Segments are large where the other end takes them so, and checksums of TCP
//! are left to whoever needs them: memory does not garble frames. Netback gets the received frames back
//! together, after all of them were handled.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use core::num::NonZeroUsize;

use proto::channel::Protocol;
use proto::net::{
    Checksum, FRAME_MAX, FRAMES_MAX, Frame, Net, Offloads, PLAIN_MAX, RECEIVE_BASE, Refusal, Request,
    Response, Runs, Segments,
};
use smoltcp::phy::{self, ChecksumCapabilities, Device, DeviceCapabilities, Medium, PacketMeta};
use smoltcp::phy::{RxToken, TxToken};
use smoltcp::time::Instant;

/// What the port can be given; it has no IPv6.
const OFFLOADS: Offloads = Offloads { has_partial_checksum: true, has_tcp_v4: true, has_tcp_v6: false };
/// Bytes of the pool's sending half that may be taken when a frame of any length is still to fit, wherever
/// the half's end comes.
const USED_MAX: u32 = RECEIVE_BASE - 2 * (FRAME_MAX + 1);
/// Bytes of the Ethernet, IPv4 and TCP headers that smoltcp writes, options left out.
const HEADERS: usize = 14 + 20 + 20;
/// Where the TCP checksum stands in them.
const TCP_CHECKSUM: usize = 14 + 20 + 16;
/// Bytes that hold all headers of a TCP segment, the longest options included: 14 + 60 + 60.
const HEAD: usize = 134;
/// TCP's number in an IPv4 header.
const TCP: u8 = 6;

/// The channel is of no more use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

/// The channel to netback.
pub trait Link {
    /// The next message.
    ///
    /// # Errors
    /// [`Gone`].
    fn receive(&mut self) -> Result<Option<Response>, Gone>;
    /// Sends a message.
    ///
    /// # Errors
    /// [`Gone`]: the ring is broken, or full, which no netback that keeps to the protocol brings about.
    fn send(&mut self, request: &Request) -> Result<(), Gone>;
    /// Copies out of the pool; `false`: outside of it.
    fn read(&self, offset: u32, out: &mut [u8]) -> bool;
    /// Copies into the pool; `false`: outside of it.
    fn write(&self, offset: u32, frame: &[u8]) -> bool;
}

/// Whether frames can be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Netback was asked.
    Opening,
    /// They can.
    Open,
    /// They cannot, for a reason that people can read.
    Closed(Refusal),
}

/// What is sent.
#[derive(Debug)]
struct Outward<L> {
    link: L,
    is_gone: bool,
    /// The pool's sending half.
    runs: Runs,
    frame: Box<[u8]>,
    /// A frame as long as frames get was sent since this was asked for.
    is_bulk: bool,
    /// The data of the frames to send may have any content.
    is_filler: bool,
}

/// The port.
#[derive(Debug)]
pub struct Port<L> {
    outward: Outward<L>,
    state: State,
    /// Frames that arrived.
    waiting: VecDeque<Frame>,
    /// Frames that were copied and not given back yet.
    done: u16,
    frame: Box<[u8]>,
    /// The data of the TCP segments that wait are thrown away.
    is_discarding: bool,
}

impl<L: Link> Outward<L> {
    fn send(&mut self, request: &Request) {
        if !self.is_gone && self.link.send(request).is_err() {
            self.is_gone = true;
        }
    }
}

impl<L: Link> Port<L> {
    /// A port that asks netback to open it.
    pub fn new(link: L) -> Self {
        let buffer = || alloc::vec![0; FRAME_MAX as usize].into_boxed_slice();
        let (runs, frame) = (Runs::new(0), buffer());
        let outward = Outward { link, is_gone: false, runs, frame, is_bulk: false, is_filler: false };
        let waiting = VecDeque::with_capacity(FRAMES_MAX);
        let mut port =
            Self { outward, state: State::Opening, waiting, done: 0, frame: buffer(), is_discarding: false };
        port.outward.send(&Request::Open);
        port.outward.send(&Request::Accept(OFFLOADS));
        port
    }

    /// The channel, for flushing and for going to sleep.
    pub fn link(&mut self) -> &mut L {
        &mut self.outward.link
    }

    /// Whether frames can be sent.
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether netback broke the rules.
    pub fn is_gone(&self) -> bool {
        self.outward.is_gone
    }

    /// Takes what netback sent; not more than a ring full.
    pub fn take_messages(&mut self) {
        if self.outward.is_gone {
            return;
        }
        for _ in 0..Net::SLOTS {
            let is_right = match self.outward.link.receive() {
                Ok(None) => return,
                Ok(Some(Response::Opened)) => {
                    self.state = State::Open;
                    true
                }
                Ok(Some(Response::Refused(reason))) => {
                    self.state = State::Closed(reason);
                    true
                }
                Ok(Some(Response::Sent { count })) => self.outward.runs.release(count).is_ok(),
                Ok(Some(Response::Receive(frame))) => {
                    self.waiting.push_back(frame);
                    self.waiting.len() <= FRAMES_MAX && frame.is_within(RECEIVE_BASE)
                }
                Err(Gone) => false,
            };
            if !is_right {
                self.outward.is_gone = true;
                return;
            }
        }
    }

    /// Gives the frames back that were received.
    pub fn give_back(&mut self) {
        if self.done > 0 {
            self.outward.send(&Request::Release { count: self.done });
            self.done = 0;
        }
    }

    /// Whether a frame as long as frames get was sent since the last question: there may be more where it
    /// came from.
    pub fn has_sent_bulk(&mut self) -> bool {
        core::mem::take(&mut self.outward.is_bulk)
    }

    /// Whether the data of the TCP segments that wait are thrown away, whatever they are.
    pub fn set_discarding(&mut self, is_discarding: bool) {
        self.is_discarding = is_discarding;
    }

    /// Whether the data of all frames that are sent from now on may have any content.
    pub fn set_filler(&mut self, is_filler: bool) {
        self.outward.is_filler = is_filler;
    }

    fn can_send(&self) -> bool {
        let runs = &self.outward.runs;
        let has_room = runs.used() <= USED_MAX && runs.count() < FRAMES_MAX;
        has_room && self.state == State::Open && !self.outward.is_gone
    }
}

impl<L: Link> Device for Port<L> {
    type RxToken<'a>
        = Arrived<'a>
    where
        L: 'a;
    type TxToken<'a>
        = Sending<'a, L>
    where
        L: 'a;

    fn receive(&mut self, _: Instant) -> Option<(Arrived<'_>, Sending<'_, L>)> {
        if !self.can_send() {
            return None;
        }
        let frame = self.waiting.pop_front()?;
        self.done += 1;
        // A frame of any length that passed the check fits, and lies in the pool.
        let copy = self.frame.get_mut(..frame.len as usize).unwrap_or_default();
        let (head, rest) = copy.split_at_mut(HEAD.min(frame.len as usize));
        let link = &self.outward.link;
        let mut is_copied = link.read(frame.offset, head);
        let is_enough = rest.is_empty() || self.is_discarding && is_tcp(head);
        if !is_enough {
            is_copied &= link.read(frame.offset + HEAD as u32, rest);
        }
        Some((Arrived(if is_copied { copy } else { &[] }), Sending::new(&mut self.outward)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_, L>> {
        self.can_send().then(|| Sending::new(&mut self.outward))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut checksum = ChecksumCapabilities::ignored();
        // Nobody offers to complete these for the receiver.
        checksum.ipv4 = phy::Checksum::Tx;
        checksum.icmpv4 = phy::Checksum::Tx;
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = PLAIN_MAX as usize;
        capabilities.segmentation.tcpv4 = NonZeroUsize::new(FRAME_MAX as usize);
        capabilities.checksum = checksum;
        capabilities
    }
}

/// A frame that arrived, in private memory.
#[derive(Debug)]
pub struct Arrived<'a>(&'a [u8]);

impl RxToken for Arrived<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

/// A frame that can be sent.
#[derive(Debug)]
pub struct Sending<'a, L> {
    outward: &'a mut Outward<L>,
    segments: Segments,
}

impl<'a, L> Sending<'a, L> {
    fn new(outward: &'a mut Outward<L>) -> Self {
        Self { outward, segments: Segments::One }
    }
}

impl<L: Link> TxToken for Sending<'_, L> {
    fn set_meta(&mut self, meta: PacketMeta) {
        if let Some(size) = meta.segmentation_offload_size {
            self.segments = Segments::TcpV4 { size: size.get() };
        }
    }

    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let Outward { link, runs, frame, is_bulk, is_filler, .. } = &mut *self.outward;
        *is_bulk |= len >= PLAIN_MAX as usize;
        // smoltcp keeps to what it was told of the device.
        let frame = frame.get_mut(..len).unwrap_or_default();
        let result = f(frame);
        let checksum = if seed_checksum(frame) { Checksum::Partial } else { Checksum::Valid };
        let len = u32::try_from(len).unwrap_or(FRAME_MAX);
        // There is room, else there would be no token.
        if let Some(offset) = runs.take(len) {
            let head = frame.get(..HEAD).filter(|_| *is_filler && checksum == Checksum::Partial);
            link.write(offset, head.unwrap_or(frame));
            let segments = self.segments;
            self.outward.send(&Request::Send(Frame { offset, len, checksum, segments }));
        }
        result
    }
}

/// Whether a frame is a TCP segment over IPv4.
fn is_tcp(frame: &[u8]) -> bool {
    matches!(frame, [_, _, _, _, _, _, _, _, _, _, _, _, 0x08, 0x00, _, _, _, _, _, _, _, _, _, TCP, ..])
}

/// Writes the pseudo-header's sum to a TCP segment; `false`: it is none.
fn seed_checksum(frame: &mut [u8]) -> bool {
    let Some((headers, data)) = frame.split_first_chunk_mut::<HEADERS>() else { return false };
    let [.., 0x08, 0x00, 0x45, _, _, _, _, _, _, _, _, TCP, _, _, a, b, c, d, e, f, g, h] = headers[..34]
    else {
        return false;
    };
    let word = |high, low| u32::from(u16::from_be_bytes([high, low]));
    let addresses = word(a, b) + word(c, d) + word(e, f) + word(g, h);
    let segment = headers[34..].len() + data.len();
    let sum = addresses + u32::from(TCP) + u32::try_from(segment).unwrap_or(0);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    headers[TCP_CHECKSUM..TCP_CHECKSUM + 2].copy_from_slice(&(sum as u16).to_be_bytes());
    true
}
