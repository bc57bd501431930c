//! The port on the bridge: netback's client, as the interface that smoltcp drives.
//!
//! A frame is copied out of the pool once, into a private buffer, and its buffer goes back at once; a frame to
//! send is written to a private buffer and copied into the pool. Checksums of TCP are left to whoever needs
//! them: memory does not garble frames. Invariant: a send buffer is free here, or netback's.

use alloc::boxed::Box;
use alloc::collections::VecDeque;

use proto::channel::Protocol;
use proto::net::{BUFFER_SIZE, BUFFERS, FRAME_MAX, Net, POOL_SIZE, Request, Response};
use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium};
use smoltcp::phy::{RxToken, TxToken};
use smoltcp::time::Instant;

/// First receive buffer in the pool.
const RECEIVE_BASE: u32 = (POOL_SIZE / 2) as u32;
/// Bytes of the Ethernet, IPv4 and TCP headers that smoltcp writes, options left out.
const HEADERS: usize = 14 + 20 + 20;
/// Where the TCP checksum stands behind them.
const TCP_CHECKSUM: usize = 14 + 20 + 16;
/// TCP's number in an IPv4 header.
const TCP: u8 = 6;

const _: () = assert!(BUFFERS == u128::BITS as usize);

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
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Netback was asked.
    Opening,
    /// They can.
    Open,
    /// They cannot, for a reason that people can read.
    Closed(proto::text::Text<160>),
}

/// What is sent.
#[derive(Debug)]
struct Outward<L> {
    link: L,
    is_gone: bool,
    /// Send buffers that are free, by number.
    free: u128,
    frame: Box<[u8]>,
    /// A frame of the greatest length was sent since this was asked for: there may be more where it came from.
    is_bulk: bool,
}

/// The port.
#[derive(Debug)]
pub struct Port<L> {
    outward: Outward<L>,
    state: State,
    /// Frames that arrived: offset and length.
    waiting: VecDeque<(u32, u16)>,
    frame: Box<[u8]>,
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
        let buffer = || alloc::vec![0; usize::from(FRAME_MAX)].into_boxed_slice();
        let outward = Outward { link, is_gone: false, free: u128::MAX, frame: buffer(), is_bulk: false };
        let waiting = VecDeque::with_capacity(BUFFERS);
        let mut port = Self { outward, state: State::Opening, waiting, frame: buffer() };
        port.outward.send(&Request::Open);
        port
    }

    /// The channel, for flushing and for going to sleep.
    pub fn link(&mut self) -> &mut L {
        &mut self.outward.link
    }

    /// Whether frames can be sent.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Whether netback broke the ring's rules.
    pub fn is_gone(&self) -> bool {
        self.outward.is_gone
    }

    /// Takes what netback sent; not more than a ring full.
    pub fn take_messages(&mut self) {
        for _ in 0..Net::SLOTS {
            match self.outward.link.receive() {
                Ok(Some(Response::Opened)) => self.state = State::Open,
                Ok(Some(Response::Refused { reason })) => self.state = State::Closed(reason),
                Ok(Some(Response::Sent { offset, .. })) => {
                    if offset.is_multiple_of(BUFFER_SIZE) && offset < RECEIVE_BASE {
                        self.outward.free |= 1 << (offset / BUFFER_SIZE);
                    }
                }
                // More frames than there are buffers are netback's mistake.
                Ok(Some(Response::Receive { offset, len, .. })) if self.waiting.len() < BUFFERS => {
                    self.waiting.push_back((offset, len));
                }
                Ok(Some(Response::Receive { .. })) => {}
                Ok(None) => return,
                Err(Gone) => {
                    self.outward.is_gone = true;
                    return;
                }
            }
        }
    }

    /// Whether a frame of the greatest length was sent since the last question: there may be more where it
    /// came from.
    pub fn has_sent_bulk(&mut self) -> bool {
        core::mem::take(&mut self.outward.is_bulk)
    }

    fn can_send(&self) -> bool {
        self.state == State::Open && self.outward.free != 0 && !self.outward.is_gone
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
        loop {
            let (offset, len) = self.waiting.pop_front()?;
            let frame = self.frame.get_mut(..usize::from(len)).filter(|_| offset >= RECEIVE_BASE);
            let is_copied = frame.is_some_and(|frame| self.outward.link.read(offset, frame));
            self.outward.send(&Request::Release { offset });
            if is_copied {
                let frame = self.frame.get(..usize::from(len)).unwrap_or_default();
                return Some((Arrived(frame), Sending(&mut self.outward)));
            }
        }
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_, L>> {
        self.can_send().then_some(Sending(&mut self.outward))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut checksum = ChecksumCapabilities::ignored();
        // Nobody offers to complete these for the receiver.
        checksum.ipv4 = Checksum::Tx;
        checksum.icmpv4 = Checksum::Tx;
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = usize::from(FRAME_MAX);
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
pub struct Sending<'a, L>(&'a mut Outward<L>);

impl<L: Link> TxToken for Sending<'_, L> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let Outward { link, free, frame, is_bulk, .. } = self.0;
        *is_bulk |= len == usize::from(FRAME_MAX);
        // smoltcp keeps to the MTU.
        let frame = frame.get_mut(..len).unwrap_or_default();
        let result = f(frame);
        let needs_checksum = seed_checksum(frame);
        let number = free.trailing_zeros();
        let offset = number * BUFFER_SIZE;
        if link.write(offset, frame) {
            *free &= !(1 << number);
            let len = u16::try_from(len).unwrap_or(FRAME_MAX);
            self.0.send(&Request::Send { offset, len, needs_checksum });
        }
        result
    }
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
