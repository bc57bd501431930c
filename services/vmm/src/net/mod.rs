//! netfront served by netback: ring packets become frames in the channel's pool and back.
//!
//! A packet that the guest sends is gathered from its slots into one run of the pool and answered at once; a
//! frame for the guest waits here, in the pool, until the guest has pages for it. When netback or the guest
//! is slow the other waits; nothing is dropped but packets that break a rule, and frames for a guest that
//! has no interface up. Invariant: received frames go back to netback in the order in which they came.
//!
//! Notifications. netback is signalled for frames at once, for memory that it gets back only when that is
//! much (`URGENT`): before it runs out, it is told. The guest is notified of frames at once. That its packets
//! were sent is not urgent: that notice goes with the next frame's, or alone when it is about much, when the
//! guest sleeps and has sent a large packet that it may wait for, or after `HOLD_NS`.

pub mod packet;

use heapless::Deque;
use proto::counters;
use proto::net::{FRAMES_MAX, Frame, Net, Offloads, RECEIVE_BASE, Refusal, Request, Response, Runs};
use rt::channel::{Client, SendError};
use rt::counters::{add, inc};
use rt::pool::Pool;

use crate::blk::Unusable;
use crate::devices::{Sleep, sleep};
use crate::events::Port;
use crate::front_ring::{BrokenRing, FrontRing};
use crate::grants::{BadGrant, GrantRef, Want};
use crate::machine::Guest;
use crate::memory::PAGE;
use packet::{Packet, RX_LEN, RxRequest, TX_LEN, TxRequest};

/// Entries of either ring.
const ENTRIES: u32 = 256;
/// Packets that one round takes.
const PACKETS_PER_ROUND: usize = 128;
/// Rounds before the guest goes on: netback may answer while it is being told.
const ROUNDS: usize = 4;
/// Bytes given back that netback is told of at once.
const URGENT: u32 = RECEIVE_BASE / 8;

/// What a small frame counts as towards it.
const WEIGHT_MIN: u32 = RECEIVE_BASE / FRAMES_MAX as u32;
/// How long the notice that packets were sent may be held back.
const HOLD_NS: u64 = 1_000_000;
/// Packets, or bytes, that are much: half of what TCP leaves on its way to a device at least.
const MUCH_PACKETS: u32 = 32;
const MUCH_BYTES: u32 = 128 * 1024;
/// Bytes that the guest may wait for when it sleeps.
const SOME_BYTES: u32 = 4096;

/// Whether the backend can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backing {
    /// Not known yet.
    Opening,
    /// It can.
    Open,
    /// It cannot, for a reason.
    Refused(Refusal),
}

/// What a frontend wrote to the store.
#[derive(Debug, Clone, Copy, Default)]
pub struct Nodes<'a> {
    /// Grant of the ring of packets that the guest sends.
    pub tx_ring_ref: &'a str,
    /// Grant of the ring of frames for it.
    pub rx_ring_ref: &'a str,
    /// Its port.
    pub event_channel: &'a str,
    /// What it can be given.
    pub offloads: Offloads,
}

#[derive(Debug)]
struct Front {
    tx: FrontRing,
    rx: FrontRing,
    port: Port,
    /// The guest was not notified of answers to its packets since this one.
    unannounced: Option<u32>,
    /// Bytes of those packets.
    unannounced_bytes: u32,
}

/// One network interface.
#[derive(Debug)]
pub struct Vif {
    device: u8,
    link: Option<Client<Net>>,
    pool: Pool,
    backing: Backing,
    front: Option<Front>,
    /// Frames on their way to netback.
    sending: Runs,
    /// Frames for the guest.
    waiting: Deque<Frame, FRAMES_MAX>,
    /// Received frames that are done with, and that netback does not know of.
    released: u16,
    /// Bytes that netback was not signalled about.
    released_bytes: u32,
    /// There is something that netback has to know now.
    is_urgent: bool,
    /// What the frontend can be given, and what netback was told.
    offloads: Offloads,
    told: Offloads,
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
            sending: Runs::new(0),
            waiting: Deque::new(),
            released: 0,
            released_bytes: 0,
            is_urgent: false,
            offloads: Offloads::default(),
            told: Offloads::default(),
        }
    }

    /// Uses this channel from now on, or none. Frames under way are lost, as Ethernet allows.
    pub fn set_link(&mut self, link: Option<Client<Net>>) {
        self.sending = Runs::new(0);
        self.waiting.clear();
        self.released = 0;
        self.told = Offloads::default();
        self.backing = Backing::Opening;
        self.link = link;
        if let Some(link) = &self.link {
            self.pool = Pool::from_region(link.info().pool);
        }
        if self.send(&Request::Open)
            && let Some(link) = &mut self.link
        {
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
    pub fn connect(&mut self, guest: &mut Guest, nodes: &Nodes<'_>) -> Result<(), Unusable> {
        self.disconnect(guest);
        let number = |text: &str| text.trim().parse().ok();
        let tx = number(nodes.tx_ring_ref).ok_or(Unusable("tx-ring-ref is not a number"))?;
        let rx = number(nodes.rx_ring_ref).ok_or(Unusable("rx-ring-ref is not a number"))?;
        let port = number(nodes.event_channel).ok_or(Unusable("event-channel is not a number"))?;
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
        self.front = Some(Front { tx, rx, port: Port(port), unannounced: None, unannounced_bytes: 0 });
        self.offloads = nodes.offloads;
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
        for _ in 0..ROUNDS {
            self.take_messages();
            self.tell_offloads();
            if self.transmit(guest).and_then(|()| self.receive(guest)).is_err() {
                if guest.odd.allows() {
                    log::warn!("a network interface's ring is inconsistent; the interface is disconnected");
                }
                self.disconnect(guest);
            }
            if self.front.is_none() {
                while let Some(frame) = self.waiting.pop_front() {
                    inc(counters::NET_DROPPED);
                    self.done_with(&frame);
                }
            }
            if self.released > 0 && self.send(&Request::Release { count: self.released }) {
                self.released = 0;
            }
            if !self.flush() {
                break;
            }
        }
        self.notify(guest);
    }

    /// Asks for a signal when the backend sends something.
    pub fn prepare_sleep(&mut self) -> Sleep {
        sleep(self.link.as_mut().map(Client::prepare_sleep))
    }

    fn take_messages(&mut self) {
        while let Some(link) = &mut self.link {
            match link.receive() {
                Ok(Some(Response::Opened)) => self.backing = Backing::Open,
                Ok(Some(Response::Refused(reason))) => self.backing = Backing::Refused(reason),
                Ok(Some(Response::Sent { count })) => {
                    // More than were sent is netback's mistake, and changes nothing.
                    let _mistake = self.sending.release(count);
                }
                Ok(Some(Response::Receive(frame))) => {
                    // One more than there may be is netback's mistake: its order is broken from now on.
                    if self.waiting.push_back(frame).is_err() {
                        log::warn!("net channel: netback sent more frames than may be under way");
                        self.link = None;
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    log::warn!("net channel: {error}");
                    self.link = None;
                }
            }
        }
    }

    /// The oldest received frame is done with.
    fn done_with(&mut self, frame: &Frame) {
        self.released = self.released.saturating_add(1);
        // A small frame counts too: there may not be many.
        self.released_bytes = self.released_bytes.saturating_add(frame.len.max(WEIGHT_MIN));
        self.is_urgent |= self.released_bytes >= URGENT;
    }

    /// Sends; `false`: there is no channel, or no room in it, which a correct netback never lets happen.
    fn send(&mut self, message: &Request) -> bool {
        let Some(link) = &mut self.link else { return false };
        match link.send(message) {
            Ok(()) => true,
            Err(SendError::Full) => false,
            Err(error) => {
                log::warn!("net channel: {error}");
                self.link = None;
                false
            }
        }
    }

    fn tell_offloads(&mut self) {
        if self.told != self.offloads
            && self.backing == Backing::Open
            && self.send(&Request::Accept(self.offloads))
        {
            self.told = self.offloads;
            self.is_urgent = true;
        }
    }

    /// Signals netback if there is need; whether it has answered meanwhile.
    fn flush(&mut self) -> bool {
        let Some(link) = &mut self.link else { return false };
        if !core::mem::take(&mut self.is_urgent) {
            return false;
        }
        self.released_bytes = 0;
        link.flush();
        link.has_messages()
    }

    /// Makes answers visible to the guest, and tells it where it has to be told now.
    fn notify(&mut self, guest: &mut Guest) {
        let Some(front) = &mut self.front else { return };
        let old = front.tx.published();
        let (tx, rx) = (front.tx.publish(), front.rx.publish());
        if tx {
            front.unannounced = front.unannounced.or(Some(old));
        }
        let mut is_due = rx;
        if let Some(since) = front.unannounced {
            let packets = front.tx.published().wrapping_sub(since);
            let is_much = packets >= MUCH_PACKETS || front.unannounced_bytes >= MUCH_BYTES;
            // Held back no longer: its time has come.
            let has_waited = !tx && !guest.events.holds(self.device);
            if is_due || is_much || has_waited {
                is_due |= front.tx.is_unseen(since);
                front.unannounced = None;
            }
        }
        if is_due {
            guest.events.raise(front.port);
        }
        if front.unannounced.is_none() {
            front.unannounced_bytes = 0;
            guest.events.unhold(self.device);
        } else if tx {
            guest.hold(self.device, HOLD_NS, front.unannounced_bytes >= SOME_BYTES);
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
            let packet = Packet::parse(available, |ahead| front.tx.peek(ahead))?;
            // Without a backend the cable is unplugged: packets vanish.
            let is_open = self.backing == Backing::Open && self.link.is_some();
            let mut is_sent = packet.is_sound;
            if is_sent && is_open {
                // Without memory the packet stays where it is until netback gives some back.
                let Some(offset) = self.sending.take(packet.len) else { return Ok(()) };
                is_sent = gather(guest, &self.pool, offset, &packet).is_ok();
                let Packet { len, checksum, segments, .. } = packet;
                // A packet that could not be read leaves a frame without bytes, which netback drops: memory
                // is given back in order.
                let len = if is_sent { len } else { 0 };
                self.is_urgent = true;
                inc(counters::NET_FRAMES_OUT);
                add(counters::NET_BYTES_OUT, u64::from(len));
                add(counters::BYTES_COPIED, u64::from(len));
                if !self.send(&Request::Send(Frame { offset, len, checksum, segments })) {
                    self.link = None;
                }
            }
            if !(is_sent && is_open) {
                inc(counters::NET_DROPPED);
            }
            let Some(front) = &mut self.front else { return Ok(()) };
            front.unannounced_bytes = front.unannounced_bytes.saturating_add(packet.len);
            for n in 0..packet.entries {
                let id = TxRequest::decode(front.tx.peek(0)).id;
                front.tx.take(1);
                front.tx.respond(&packet.response(n, id, is_sent));
            }
        }
        guest.events.kicks |= 1 << self.device;
        Ok(())
    }

    /// From netback to the guest.
    fn receive(&mut self, guest: &mut Guest) -> Result<(), BrokenRing> {
        while let Some(&frame) = self.waiting.front() {
            let Some(front) = &mut self.front else { return Ok(()) };
            // What netback may not send is dropped, in its turn.
            if frame.is_within(RECEIVE_BASE) && self.offloads.allow(&frame) {
                let entries = packet::rx_entries(frame.len, frame.segments);
                if front.rx.available()? < entries && !front.rx.arm_for(entries)? {
                    return Ok(());
                }
                scatter(guest, &mut front.rx, &self.pool, &frame);
                inc(counters::NET_FRAMES_IN);
                add(counters::NET_BYTES_IN, u64::from(frame.len));
                add(counters::BYTES_COPIED, u64::from(frame.len));
            } else {
                inc(counters::NET_DROPPED);
            }
            self.waiting.pop_front();
            self.done_with(&frame);
        }
        Ok(())
    }
}

/// Copies a packet's pieces into the pool, one behind the other.
fn gather(guest: &Guest, pool: &Pool, offset: u32, packet: &Packet) -> Result<(), BadGrant> {
    let mut at = offset as usize;
    for slot in &packet.slots {
        let granted = guest.grants.acquire(&guest.memory, slot.grant, Want::Read)?;
        let copied = granted.page.memory().copy_to(slot.offset, pool, at, usize::from(slot.size));
        guest.grants.release(granted);
        copied.map_err(|_| BadGrant)?;
        at += usize::from(slot.size);
    }
    Ok(())
}

/// Copies a frame into the guest's pages, from the start of each; the ring has entries enough.
fn scatter(guest: &Guest, rx: &mut FrontRing, pool: &Pool, frame: &Frame) {
    let mut flags = packet::rx_flags(frame.checksum, frame.segments);
    let mut extra = packet::rx_extra(frame.segments);
    let (mut at, mut rest) = (frame.offset as usize, frame.len as usize);
    while rest > 0 {
        let len = rest.min(PAGE);
        rest -= len;
        let request = RxRequest::decode(rx.peek(0));
        rx.take(1);
        let copied = guest.grants.acquire(&guest.memory, request.grant, Want::Write).and_then(|granted| {
            let copied = pool.copy_to(at, granted.page.memory(), 0, len);
            guest.grants.release(granted);
            copied.map_err(|_| BadGrant)
        });
        at += len;
        let len = copied.is_ok().then_some(len as u16);
        rx.respond(&packet::rx_response(request.id, flags | packet::rx_more(rest > 0), len));
        flags = 0;
        if let Some(extra) = extra.take() {
            rx.take(1);
            rx.respond(&extra);
        }
    }
}

#[cfg(test)]
mod tests;
