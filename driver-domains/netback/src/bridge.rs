//! The bridge: moves frames between vifs and the uplink as the switch says.
//!
//! A frame is copied out of the sender's pool once; the copy is checked and sent on. A vif whose peer
//! breaks the rules is dropped, nothing else happens. Vifs take turns frame by frame.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt::Write;

use proto::net::{FRAME_MAX, Request, Response};
use proto::text::Text;

use crate::buffers::{Buffers, is_sending};
use crate::checksum;
use crate::queue::FairQueue;
use crate::switch::{PORTS_MAX, Port, PortSet, Switch, UPLINK};
use crate::table::Mac;

/// Requests of one vif in one round of [`Bridge::poll`].
const BATCH: usize = 64;
/// Frames from the uplink in one round.
const UPLINK_BATCH: usize = 64;

/// The peer broke the rules of the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

/// A vif's channel.
pub trait Link {
    /// The next request.
    ///
    /// # Errors
    /// [`Gone`].
    fn receive(&mut self) -> Result<Option<Request>, Gone>;
    /// Sends a response.
    ///
    /// # Errors
    /// [`Gone`]: the ring is broken, or full, which no client that keeps to the protocol brings about.
    fn send(&mut self, response: &Response) -> Result<(), Gone>;
    /// Copies out of the pool; `false`: outside of it.
    fn read(&self, offset: u32, out: &mut [u8]) -> bool;
    /// Copies into the pool; `false`: outside of it.
    fn write(&self, offset: u32, frame: &[u8]) -> bool;
}

/// The NIC.
pub trait Uplink {
    /// Takes a frame to send; `false`: no room now.
    fn transmit(&mut self, frame: &[u8]) -> bool;
    /// Copies the next received frame out: its length.
    fn receive(&mut self, out: &mut [u8]) -> Option<usize>;
    /// Tells the device about frames to send and free buffers.
    fn kick(&mut self);
}

/// A new vif.
#[derive(Debug, Clone, Copy)]
pub struct Attachment<'a> {
    /// Number of the channel.
    pub id: u32,
    /// Name of the bridge; empty: the default one.
    pub bridge: &'a str,
    /// The vif's address.
    pub mac: Mac,
}

/// What happened to a vif's frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Frames from the guest that were taken.
    pub sent: u64,
    /// Frames from the guest that broke a rule.
    pub refused: u64,
    /// Frames for the guest that it was given.
    pub received: u64,
    /// Frames for the guest that were dropped because it held all buffers.
    pub dropped: u64,
    /// Frames from the guest that were dropped because the uplink was busy.
    pub dropped_at_uplink: u64,
}

#[derive(Debug)]
struct Vif<L> {
    link: L,
    id: u32,
    mac: Mac,
    is_of_this_bridge: bool,
    /// Set while it is open.
    port: Option<Port>,
    buffers: Buffers,
    counters: Counters,
    is_broken: bool,
}

impl<L: Link> Vif<L> {
    fn send(&mut self, response: &Response) {
        if !self.is_broken && self.link.send(response).is_err() {
            self.break_off();
        }
    }

    fn break_off(&mut self) {
        if !self.is_broken {
            log::warn!("channel {}: the peer broke the ring's rules and is not served any more", self.id);
        }
        self.is_broken = true;
    }

    /// Gives the guest a frame, or drops it when the guest holds all buffers.
    fn deliver(&mut self, frame: &[u8], needs_checksum: bool) {
        if self.is_broken {
            return;
        }
        let Some(offset) = self.buffers.take() else {
            self.counters.dropped += 1;
            return;
        };
        let len = u16::try_from(frame.len()).unwrap_or(FRAME_MAX);
        if !self.link.write(offset, frame) {
            self.break_off();
            return;
        }
        self.counters.received += 1;
        self.send(&Response::Receive { offset, len, needs_checksum });
    }
}

/// The bridge.
#[derive(Debug)]
pub struct Bridge<L, U> {
    name: &'static str,
    switch: Switch,
    vifs: Vec<Vif<L>>,
    uplink: Option<U>,
    queue: FairQueue,
    frame: Box<[u8]>,
    turn: usize,
}

impl<L: Link, U: Uplink> Bridge<L, U> {
    /// A bridge, with or without an uplink.
    pub fn new(name: &'static str, uplink: Option<U>) -> Self {
        let mut switch = Switch::default();
        if uplink.is_some() {
            switch.add_uplink();
        }
        let frame = alloc::vec![0; usize::from(FRAME_MAX)].into_boxed_slice();
        Self { name, switch, vifs: Vec::new(), uplink, queue: FairQueue::default(), frame, turn: 0 }
    }

    /// Takes a channel. What does not fit the bridge is refused when the client opens it.
    ///
    /// # Errors
    /// A sentence for people.
    pub fn attach(&mut self, attachment: &Attachment<'_>, link: L) -> Result<(), &'static str> {
        let Attachment { id, bridge, mac } = *attachment;
        if self.vifs.iter().any(|vif| vif.id == id) {
            return Err("The channel is attached already.");
        }
        // Open vifs are bounded by the switch's ports; this bounds the ones that are not open.
        if self.vifs.len() >= 4 * PORTS_MAX {
            return Err("There are too many channels.");
        }
        self.vifs.push(Vif {
            link,
            id,
            mac,
            is_of_this_bridge: bridge.is_empty() || bridge == self.name,
            port: None,
            buffers: Buffers::default(),
            counters: Counters::default(),
            is_broken: false,
        });
        Ok(())
    }

    /// Lets go of a channel: its client and what happened to its frames.
    pub fn detach(&mut self, id: u32) -> Option<(L, Counters)> {
        let index = self.vifs.iter().position(|vif| vif.id == id)?;
        let vif = self.vifs.remove(index);
        if let Some(port) = vif.port {
            self.queue.clear(port);
            self.switch.remove(port);
        }
        Some((vif.link, vif.counters))
    }

    /// The links that are alive, for flushing and for going to sleep.
    pub fn links(&mut self) -> impl Iterator<Item = &mut L> {
        self.vifs.iter_mut().filter(|vif| !vif.is_broken).map(|vif| &mut vif.link)
    }

    /// The NIC.
    pub fn uplink(&mut self) -> Option<&mut U> {
        self.uplink.as_mut()
    }

    /// What happened to a vif's frames so far.
    pub fn counters(&self, id: u32) -> Option<Counters> {
        self.vifs.iter().find(|vif| vif.id == id).map(|vif| vif.counters)
    }

    /// Drops a channel whose peer broke the rules.
    pub fn drop_channel(&mut self, id: u32) {
        if let Some(vif) = self.vifs.iter_mut().find(|vif| vif.id == id) {
            vif.break_off();
        }
    }

    /// Does what can be done now; `true`: a batch was cut short, so call it again before sleeping.
    pub fn poll(&mut self, now_ns: u64) -> bool {
        self.drain_queue();
        // The vifs first: they give buffers back, which the frames from the uplink need.
        let mut has_more = self.receive_from_vifs(now_ns);
        has_more |= self.receive_from_uplink(now_ns);
        self.drain_queue();
        if let Some(uplink) = &mut self.uplink {
            uplink.kick();
        }
        has_more
    }

    fn receive_from_uplink(&mut self, now_ns: u64) -> bool {
        for _ in 0..UPLINK_BATCH {
            let Some(uplink) = &mut self.uplink else { return false };
            let Some(len) = uplink.receive(&mut self.frame) else { return false };
            let Some(frame) = self.frame.get(..len) else { continue };
            // What the switch refuses is dropped without a word: there is no one to tell.
            let Ok(targets) = self.switch.forward(UPLINK, frame, now_ns) else { continue };
            deliver(&mut self.vifs, targets, frame, false);
        }
        true
    }

    /// One request of each vif in turn, until none has any or the batch is used up.
    fn receive_from_vifs(&mut self, now_ns: u64) -> bool {
        let count = self.vifs.len();
        for _ in 0..BATCH {
            let mut is_quiet = true;
            for step in 0..count {
                is_quiet &= !self.receive_from_vif((self.turn + step) % count, now_ns);
            }
            self.turn = (self.turn + 1) % count.max(1);
            if is_quiet {
                return false;
            }
        }
        count > 0
    }

    /// Handles one request; `false`: there is none.
    fn receive_from_vif(&mut self, index: usize, now_ns: u64) -> bool {
        let Some(vif) = self.vifs.get_mut(index).filter(|vif| !vif.is_broken) else { return false };
        match vif.link.receive() {
            Ok(Some(Request::Open)) => self.open(index),
            Ok(Some(Request::Send { offset, len, needs_checksum })) => {
                self.send(index, offset, len, needs_checksum, now_ns);
            }
            Ok(Some(Request::Release { offset })) => {
                if vif.buffers.release(offset).is_err() {
                    vif.break_off();
                }
            }
            Ok(None) => return false,
            Err(Gone) => {
                vif.break_off();
                return false;
            }
        }
        true
    }

    fn open(&mut self, index: usize) {
        let Some(vif) = self.vifs.get_mut(index) else { return };
        let mut reason = Text::new();
        // A sentence that does not fit is cut.
        if vif.port.is_some() {
            let _cut = reason.write_str("The channel was opened before.");
        } else if !vif.is_of_this_bridge {
            let _cut = write!(reason, "The only bridge is {}.", self.name);
        } else {
            match self.switch.add_vif(vif.mac) {
                Ok(port) => {
                    vif.port = Some(port);
                    vif.send(&Response::Opened);
                    return;
                }
                Err(sentence) => {
                    let _cut = reason.write_str(sentence);
                }
            }
        }
        vif.send(&Response::Refused { reason });
    }

    fn send(&mut self, index: usize, offset: u32, len: u16, needs_checksum: bool, now_ns: u64) {
        let is_accepted = self.try_send(index, offset, len, needs_checksum, now_ns);
        let Some(vif) = self.vifs.get_mut(index) else { return };
        if is_accepted {
            vif.counters.sent += 1;
        } else {
            vif.counters.refused += 1;
        }
        vif.send(&Response::Sent { offset, is_accepted });
    }

    /// `false`: the frame breaks a rule.
    fn try_send(&mut self, index: usize, offset: u32, len: u16, needs_checksum: bool, now_ns: u64) -> bool {
        let Some(vif) = self.vifs.get(index) else { return false };
        let Some(port) = vif.port.filter(|_| is_sending(offset)) else { return false };
        let Some(frame) = self.frame.get_mut(..usize::from(len)) else { return false };
        if !vif.link.read(offset, frame) {
            return false;
        }
        let Ok(targets) = self.switch.forward(port, frame, now_ns) else { return false };
        deliver(&mut self.vifs, targets, frame, needs_checksum);
        if !targets.contains(UPLINK) {
            return true;
        }
        if needs_checksum {
            // What is malformed goes out as the guest made it.
            let _unchanged = checksum::complete(frame);
        }
        // Behind frames that wait already, so that none overtakes another.
        let has_room =
            self.queue.is_empty() && self.uplink.as_mut().is_some_and(|uplink| uplink.transmit(frame));
        if !has_room
            && !self.queue.push(port, frame)
            && let Some(vif) = self.vifs.get_mut(index)
        {
            vif.counters.dropped_at_uplink += 1;
        }
        true
    }

    fn drain_queue(&mut self) {
        if let Some(uplink) = &mut self.uplink {
            self.queue.drain(|frame| uplink.transmit(frame));
        }
    }
}

fn deliver<L: Link>(vifs: &mut [Vif<L>], targets: PortSet, frame: &[u8], needs_checksum: bool) {
    for vif in vifs {
        if vif.port.is_some_and(|port| targets.contains(port)) {
            vif.deliver(frame, needs_checksum);
        }
    }
}
