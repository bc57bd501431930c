//! One vif: its channel, the frames that it was given, and the frame of its own that waits.
//!
//! Nothing that a client does not give back, or sends too much of, takes memory of anyone else: frames for
//! it lie in its own pool, frames from it stay in its own pool until they have gone on.

use alloc::collections::VecDeque;

use proto::net::{Checksum, FRAMES_MAX, Frame, Offloads, PLAIN_MAX, RECEIVE_BASE, Response, Runs, Segments};

use crate::checksum;
use crate::header::Header;
use crate::link::Link;
use crate::segment::Plan;
use crate::switch::{Port, PortSet};
use crate::table::Mac;

/// How long a vif whose pool is full is waited for. It has to empty half of its pool in that time, or
/// frames for it are dropped until it has.
pub const PATIENCE_NS: u64 = 10_000_000;
/// Bytes given back that the client is signalled about at once.
const URGENT: u32 = RECEIVE_BASE / 8;
/// What a small frame counts as towards it.
const WEIGHT_MIN: u32 = RECEIVE_BASE / FRAMES_MAX as u32;

/// What happened to a vif's frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Frames from the guest that were taken.
    pub sent: u64,
    /// Frames from the guest that broke a rule.
    pub refused: u64,
    /// Frames for the guest that it was given.
    pub received: u64,
    /// Frames for the guest that were dropped because it did not take them.
    pub dropped: u64,
    /// Frames from the guest that were dropped because the uplink did not take them.
    pub dropped_at_uplink: u64,
}

/// A frame that was checked and is on its way.
#[derive(Debug)]
pub struct Pending {
    /// Where it is, and what it is.
    pub frame: Frame,
    /// Its first bytes.
    pub header: Header,
    /// How to cut it, if it stands for several.
    pub plan: Option<Plan>,
    /// Where it still has to go.
    pub targets: PortSet,
    /// Segments that the uplink has.
    pub segment: usize,
}

/// Whether a frame was delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// It was delivered, or dropped.
    Done,
    /// There is no room now, and it is worth waiting.
    Wait,
}

/// Since when a target has had no room.
#[derive(Debug, Clone, Copy, Default)]
pub struct Patience {
    since_ns: Option<u64>,
}

impl Patience {
    /// Whether a frame waits, when there is no room now.
    pub fn wait(&mut self, now_ns: u64) -> Delivery {
        let since_ns = *self.since_ns.get_or_insert(now_ns);
        if now_ns.saturating_sub(since_ns) < PATIENCE_NS { Delivery::Wait } else { Delivery::Done }
    }

    /// There is room enough again.
    #[inline]
    pub fn renew(&mut self) {
        self.since_ns = None;
    }
}

/// A vif.
#[derive(Debug)]
pub struct Vif<L> {
    /// Its channel.
    pub link: L,
    /// Number of the channel.
    pub id: u32,
    /// Its address.
    pub mac: Mac,
    /// Whether it names this bridge.
    pub is_of_this_bridge: bool,
    /// Set while it is open.
    pub port: Option<Port>,
    /// What it can be given.
    pub offloads: Offloads,
    /// What happened to its frames.
    pub counters: Counters,
    /// Its client broke the rules and is not served any more.
    pub is_broken: bool,
    /// It is in the bridge's list of vifs to serve.
    pub is_ready: bool,
    /// Its oldest frame that has not gone on, and the ones behind it.
    pub pending: Option<Pending>,
    /// The frames behind it.
    pub behind: VecDeque<Frame>,
    receiving: Runs,
    patience: Patience,
    /// Sent frames that are done with, and that the client does not know of.
    done: u16,
    done_weight: u32,
    is_urgent: bool,
}

impl<L: Link> Vif<L> {
    /// A vif that is not open.
    pub fn new(link: L, id: u32, mac: Mac, is_of_this_bridge: bool) -> Self {
        Self {
            link,
            id,
            mac,
            is_of_this_bridge,
            port: None,
            offloads: Offloads::default(),
            counters: Counters::default(),
            is_broken: false,
            is_ready: false,
            pending: None,
            behind: VecDeque::new(),
            receiving: Runs::new(RECEIVE_BASE),
            patience: Patience::default(),
            done: 0,
            done_weight: 0,
            is_urgent: false,
        }
    }

    /// Stops serving a client that broke the rules.
    pub fn break_off(&mut self) {
        if !self.is_broken {
            log::warn!("channel {}: the peer broke the ring's rules and is not served any more", self.id);
        }
        self.is_broken = true;
        self.pending = None;
        self.behind.clear();
    }

    /// Sends an answer; the client is signalled by [`Self::flush`].
    pub fn send(&mut self, response: &Response) {
        self.is_urgent = true;
        if !self.is_broken && self.link.send(response).is_err() {
            self.break_off();
        }
    }

    /// The oldest sent frame, of `len` bytes, is done with.
    #[inline]
    pub fn done_with(&mut self, len: u32) {
        self.done = self.done.saturating_add(1);
        self.done_weight = self.done_weight.saturating_add(len.max(WEIGHT_MIN));
    }

    /// Tells the client about frames that are done with, and signals it if there is need.
    pub fn flush(&mut self) {
        let is_urgent = self.is_urgent || self.done_weight >= URGENT;
        let count = core::mem::take(&mut self.done);
        if count > 0 {
            self.send(&Response::Sent { count });
        }
        self.is_urgent = false;
        if is_urgent && !self.is_broken {
            self.done_weight = 0;
            self.link.flush();
        }
    }

    /// Takes received frames back.
    pub fn release(&mut self, count: u16) {
        if self.receiving.release(count).is_err() {
            self.break_off();
        } else if self.receiving.used() <= RECEIVE_BASE / 2 {
            self.patience.renew();
        }
    }

    /// Room for a frame of `len` bytes in the client's pool.
    fn room(&mut self, len: u32) -> Option<u32> {
        self.receiving.take(len)
    }

    /// There was no room for a frame.
    fn no_room(&mut self, now_ns: u64, may_wait: bool) -> Delivery {
        if may_wait && self.patience.wait(now_ns) == Delivery::Wait {
            return Delivery::Wait;
        }
        self.counters.dropped += 1;
        self.link.note_dropped();
        Delivery::Done
    }

    fn hand_over(&mut self, frame: Frame, is_written: bool) {
        if !is_written {
            self.break_off();
            return;
        }
        self.counters.received += 1;
        self.send(&Response::Receive(frame));
    }

    /// Gives the client a frame that lies in private memory.
    pub fn give(&mut self, bytes: &[u8], checksum: Checksum) {
        if self.is_broken {
            return;
        }
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let Some(offset) = self.room(len) else {
            self.counters.dropped += 1;
            self.link.note_dropped();
            return;
        };
        let is_written = self.link.write(offset, bytes);
        self.hand_over(Frame { offset, len, checksum, segments: Segments::One }, is_written);
    }

    /// Gives the client a frame from another vif's pool. `scratch` holds one plain frame.
    pub fn forward(
        &mut self,
        from: &L,
        pending: &Pending,
        now_ns: u64,
        may_wait: bool,
        scratch: &mut [u8],
    ) -> Delivery {
        if self.is_broken {
            return Delivery::Done;
        }
        if !self.offloads.allow(&pending.frame) {
            self.give_plain(from, pending, scratch);
            return Delivery::Done;
        }
        let Frame { offset: source, len, checksum, segments } = pending.frame;
        let Some(offset) = self.room(len) else { return self.no_room(now_ns, may_wait) };
        let head = pending.header.bytes();
        let at = head.len() as u32;
        let is_written = self.link.write(offset, head)
            && (len == at || from.copy(source + at, &self.link, offset + at, len - at));
        self.hand_over(Frame { offset, len, checksum, segments }, is_written);
        Delivery::Done
    }

    /// The same for a client that has to do without checksums to complete, or without large packets.
    fn give_plain(&mut self, from: &L, pending: &Pending, scratch: &mut [u8]) {
        for n in 0..pending.plain_count() {
            if let Some(len) = pending.plain(n, from, scratch) {
                self.give(scratch.get(..len).unwrap_or(&[]), Checksum::Unknown);
            }
        }
    }
}

impl Pending {
    /// How many frames it is on a wire.
    pub fn plain_count(&self) -> usize {
        self.plan.map_or(1, |plan| plan.count())
    }

    /// Makes the `n`th of them, with its checksum, in `scratch`; its length. `None`: it cannot be read.
    pub fn plain<L: Link>(&self, n: usize, from: &L, scratch: &mut [u8]) -> Option<usize> {
        let Frame { offset, len, checksum, .. } = self.frame;
        if let Some(plan) = &self.plan {
            return plan.make(n, &self.header, scratch, |at, out| from.read(offset + at as u32, out));
        }
        let bytes = scratch.get_mut(..(len.min(PLAIN_MAX)) as usize)?;
        let head = self.header.bytes();
        let (first, rest) = bytes.split_at_mut_checked(head.len())?;
        first.copy_from_slice(head);
        if !rest.is_empty() && !from.read(offset + head.len() as u32, rest) {
            return None;
        }
        if checksum == Checksum::Partial {
            // What is malformed goes out as the guest made it.
            let _unchanged = checksum::complete(bytes);
        }
        Some(bytes.len())
    }
}
