//! netfront served by netback: ring packets become buffers of the channel's pool and back.
//!
//! A packet that the guest sends is gathered from its slots into one buffer and answered at once; a frame
//! for the guest waits here, in its buffer, until the guest has a page for it. When netback or the guest
//! is slow the other waits; nothing is dropped but frames that break a rule, and frames for a guest that
//! has no interface up. Invariant: a receive buffer belongs to netback, or waits here, or is on its way
//! back, and never to two of them.

pub mod packet;

use heapless::Deque;
use proto::net::{BUFFER_SIZE, BUFFERS, FRAME_MAX, Net, POOL_SIZE, Request, Response};
use proto::text::Text;
use rt::channel::{Client, SendError};
use rt::pool::Pool;

use crate::blk::Unusable;
use crate::devices::{Sleep, sleep};
use crate::events::Port;
use crate::front_ring::{BrokenRing, FrontRing};
use crate::grants::{BadGrant, GrantRef, Want};
use crate::machine::Guest;
use packet::{RX_LEN, RxRequest, TX_LEN, TX_SLOTS_MAX, TxRequest};

/// Entries of either ring.
const ENTRIES: u32 = 256;
/// First receive buffer in the pool.
const RECEIVE_BASE: u32 = (POOL_SIZE / 2) as u32;
/// Shortest frame that makes sense: an Ethernet header.
const FRAME_MIN: usize = 14;
/// Packets that one round takes.
const PACKETS_PER_ROUND: usize = 128;

const _: () = assert!(BUFFERS == u128::BITS as usize);

/// Whether the backend can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backing {
    /// Not known yet.
    Opening,
    /// It can.
    Open,
    /// It cannot, for a reason.
    Refused(Text<160>),
}

/// A frame for the guest, in its buffer.
#[derive(Debug, Clone, Copy)]
struct Frame {
    offset: u32,
    len: u16,
    needs_checksum: bool,
}

#[derive(Debug)]
struct Front {
    tx: FrontRing,
    rx: FrontRing,
    port: Port,
}

/// One network interface.
#[derive(Debug)]
pub struct Vif {
    device: u8,
    link: Option<Client<Net>>,
    pool: Pool,
    backing: Backing,
    front: Option<Front>,
    /// Send buffers that are free, by number.
    free: u128,
    /// Receive buffers that netback handed over and has not got back.
    held: u128,
    waiting: Deque<Frame, BUFFERS>,
    /// Messages that the channel had no room for.
    unsent: Deque<Request, { BUFFERS + 1 }>,
}

impl Vif {
    /// An interface whose event channel leads to device number `device`.
    pub fn new(device: u8) -> Self {
        Self {
            device,
            link: None,
            pool: Pool::from_region(proto::channel::Region::default()),
            backing: Backing::Opening,
            front: None,
            free: u128::MAX,
            held: 0,
            waiting: Deque::new(),
            unsent: Deque::new(),
        }
    }

    /// Uses this channel from now on, or none. Frames under way are lost, as Ethernet allows.
    pub fn set_link(&mut self, link: Option<Client<Net>>) {
        (self.free, self.held) = (u128::MAX, 0);
        self.waiting.clear();
        self.unsent.clear();
        self.backing = Backing::Opening;
        self.link = link;
        if let Some(link) = &mut self.link {
            self.pool = Pool::from_region(link.info().pool);
            if link.send(&Request::Open).is_err() {
                self.link = None;
            }
        }
        if let Some(link) = &mut self.link {
            link.flush();
        }
    }

    /// The channel.
    pub fn link(&self) -> Option<&Client<Net>> {
        self.link.as_ref()
    }

    /// Whether the interface can be used.
    pub fn backing(&self) -> &Backing {
        &self.backing
    }

    /// The number that event channels know the interface by.
    pub fn device(&self) -> u8 {
        self.device
    }

    /// Connects a frontend by what it wrote to the store.
    ///
    /// # Errors
    /// [`Unusable`].
    pub fn connect(
        &mut self,
        guest: &mut Guest,
        tx_ref: &str,
        rx_ref: &str,
        event_channel: &str,
    ) -> Result<(), Unusable> {
        self.disconnect(guest);
        let tx = tx_ref.trim().parse().map_err(|_| Unusable("tx-ring-ref is not a number"))?;
        let rx = rx_ref.trim().parse().map_err(|_| Unusable("rx-ring-ref is not a number"))?;
        let port = event_channel.trim().parse().map_err(|_| Unusable("event-channel is not a number"))?;
        if tx == rx {
            return Err(Unusable("both rings are the same page"));
        }
        let acquire = |grant| guest.grants.acquire(&guest.memory, GrantRef(grant), Want::Write);
        let tx = acquire(tx).map_err(|BadGrant| Unusable("the tx ring's page is not granted"))?;
        let rx = match acquire(rx) {
            Ok(rx) => rx,
            Err(BadGrant) => {
                guest.grants.release(tx);
                return Err(Unusable("the rx ring's page is not granted"));
            }
        };
        if guest.events.bind_device(Port(port), self.device).is_err() {
            guest.grants.release(tx);
            guest.grants.release(rx);
            return Err(Unusable("event-channel is not a free port for the backend"));
        }
        let (tx, rx) = (FrontRing::new(tx, ENTRIES, TX_LEN), FrontRing::new(rx, ENTRIES, RX_LEN));
        self.front = Some(Front { tx, rx, port: Port(port) });
        Ok(())
    }

    /// Lets go of the frontend.
    pub fn disconnect(&mut self, guest: &mut Guest) {
        let Some(front) = self.front.take() else { return };
        guest.events.unbind_device(front.port, self.device);
        front.tx.close(&guest.grants);
        front.rx.close(&guest.grants);
    }

    /// Moves what can be moved in both directions.
    pub fn service(&mut self, guest: &mut Guest) {
        self.take_messages();
        self.send_unsent();
        if self.transmit(guest).and_then(|()| self.receive(guest)).is_err() {
            if guest.odd.allows() {
                log::warn!("a network interface's ring is inconsistent; the interface is disconnected");
            }
            self.disconnect(guest);
        }
        if self.front.is_none() {
            while let Some(frame) = self.waiting.pop_front() {
                self.give_back(frame.offset);
            }
        }
        if let Some(front) = &mut self.front {
            let (tx, rx) = (front.tx.publish(), front.rx.publish());
            if tx || rx {
                guest.events.raise(front.port);
            }
        }
        if let Some(link) = &mut self.link {
            link.flush();
        }
    }

    /// Asks for a signal when the backend sends something.
    pub fn prepare_sleep(&mut self) -> Sleep {
        sleep(self.link.as_mut().map(Client::prepare_sleep))
    }

    fn take_messages(&mut self) {
        while let Some(link) = &mut self.link {
            match link.receive() {
                Ok(Some(Response::Opened)) => self.backing = Backing::Open,
                Ok(Some(Response::Refused { reason })) => self.backing = Backing::Refused(reason),
                Ok(Some(Response::Sent { offset, .. })) => {
                    if let Some(bit) = buffer_bit(offset, 0) {
                        self.free |= bit;
                    }
                }
                Ok(Some(Response::Receive { offset, len, needs_checksum })) => {
                    self.arrived(Frame { offset, len, needs_checksum });
                }
                Ok(None) => return,
                Err(error) => {
                    log::warn!("net channel: {error}");
                    self.link = None;
                }
            }
        }
    }

    /// A frame from netback. One in a buffer that is no free receive buffer is netback's mistake and is
    /// not touched.
    fn arrived(&mut self, frame: Frame) {
        let Some(bit) = buffer_bit(frame.offset, RECEIVE_BASE).filter(|bit| self.held & bit == 0) else {
            return;
        };
        self.held |= bit;
        let is_sane = frame.len <= FRAME_MAX && usize::from(frame.len) >= FRAME_MIN;
        if !is_sane || self.waiting.push_back(frame).is_err() {
            self.give_back(frame.offset);
        }
    }

    fn give_back(&mut self, offset: u32) {
        if let Some(bit) = buffer_bit(offset, RECEIVE_BASE) {
            self.held &= !bit;
        }
        self.send(Request::Release { offset });
    }

    /// Sends, or keeps the message until there is room.
    fn send(&mut self, message: Request) {
        // There is room for one message per buffer; more cannot be waiting.
        let _ = self.unsent.push_back(message);
        self.send_unsent();
    }

    fn send_unsent(&mut self) {
        while let Some(message) = self.unsent.front() {
            let Some(link) = &mut self.link else {
                self.unsent.clear();
                return;
            };
            match link.send(message) {
                Ok(()) => {
                    self.unsent.pop_front();
                }
                Err(SendError::Full) => return,
                Err(error) => {
                    log::warn!("net channel: {error}");
                    self.link = None;
                }
            }
        }
    }

    /// From the guest to netback.
    fn transmit(&mut self, guest: &mut Guest) -> Result<(), BrokenRing> {
        for _ in 0..PACKETS_PER_ROUND {
            let Some(front) = &mut self.front else { return Ok(()) };
            let mut available = front.tx.available()?;
            if available == 0 {
                if !front.tx.arm()? {
                    return Ok(());
                }
                available = front.tx.available()?;
            }
            let is_open = self.backing == Backing::Open && self.link.is_some();
            // Without a backend the cable is unplugged: packets vanish.
            let buffer = if is_open {
                if self.free == 0 || !self.unsent.is_empty() {
                    return Ok(());
                }
                Some(self.free.trailing_zeros())
            } else {
                None
            };
            let mut slots = heapless::Vec::<TxRequest, TX_SLOTS_MAX>::new();
            let count = packet::collect(available, |ahead| front.tx.peek(ahead), &mut slots)?;
            let pool = self.pool;
            let sent = match (packet::pieces(&slots, count), buffer) {
                (Some(len), Some(buffer)) if len <= usize::from(FRAME_MAX) && len >= FRAME_MIN => {
                    gather(guest, &pool, buffer * BUFFER_SIZE, &slots, len).map(|()| Some((buffer, len)))
                }
                (Some(_), None) => Ok(None),
                _ => Err(BadGrant),
            };
            let answers: heapless::Vec<u16, { ENTRIES as usize }> =
                (0..count).map(|n| TxRequest::decode(front.tx.peek(n)).id).collect();
            front.tx.take(count);
            for id in answers {
                front.tx.respond(&packet::tx_response(id, sent.is_ok()));
            }
            if let Ok(Some((buffer, len))) = sent {
                self.free &= !(1 << buffer);
                let needs_checksum = slots.first().is_some_and(TxRequest::needs_checksum);
                self.send(Request::Send { offset: buffer * BUFFER_SIZE, len: len as u16, needs_checksum });
            }
        }
        guest.events.kicks |= 1 << self.device;
        Ok(())
    }

    /// From netback to the guest.
    fn receive(&mut self, guest: &mut Guest) -> Result<(), BrokenRing> {
        while let Some(&frame) = self.waiting.front() {
            let Some(front) = &mut self.front else { return Ok(()) };
            if front.rx.available()? == 0 && !front.rx.arm()? {
                return Ok(());
            }
            let request = RxRequest::decode(front.rx.peek(0));
            front.rx.take(1);
            let copied = scatter(guest, &self.pool, frame, request.grant);
            front.rx.respond(&packet::rx_response(
                request.id,
                copied.map(|()| (frame.len, frame.needs_checksum)),
            ));
            self.waiting.pop_front();
            self.give_back(frame.offset);
        }
        Ok(())
    }
}

/// Copies a packet's pieces into a buffer, one behind the other.
fn gather(guest: &Guest, pool: &Pool, offset: u32, slots: &[TxRequest], len: usize) -> Result<(), BadGrant> {
    let mut at = offset as usize;
    for (n, slot) in slots.iter().enumerate() {
        let piece = packet::piece(slots, n, len).ok_or(BadGrant)?;
        let granted = guest.grants.acquire(&guest.memory, slot.grant, Want::Read)?;
        let copied = granted.page.memory().copy_to(slot.offset, pool, at, piece);
        guest.grants.release(granted);
        copied.map_err(|_| BadGrant)?;
        at += piece;
    }
    Ok(())
}

/// Copies a frame to the start of a granted page.
fn scatter(guest: &Guest, pool: &Pool, frame: Frame, grant: GrantRef) -> Result<(), BadGrant> {
    let granted = guest.grants.acquire(&guest.memory, grant, Want::Write)?;
    let copied = pool.copy_to(frame.offset as usize, granted.page.memory(), 0, usize::from(frame.len));
    guest.grants.release(granted);
    copied.map_err(|_| BadGrant)
}

/// The bit of the buffer at `offset`, of those from `base` on.
fn buffer_bit(offset: u32, base: u32) -> Option<u128> {
    let relative = offset.checked_sub(base)?;
    let number = relative / BUFFER_SIZE;
    (relative.is_multiple_of(BUFFER_SIZE) && (number as usize) < BUFFERS).then(|| 1 << number)
}

#[cfg(test)]
mod tests;
