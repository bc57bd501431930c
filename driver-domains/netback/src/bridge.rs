//! The bridge: moves frames between vifs and the uplink as the switch says.
//!
//! Only vifs that signalled, or whose frames wait, are served; they take turns. A frame that cannot go on now
//! stays in its sender's pool, with those behind it, until there is room: the sender's frontend waits then.
//! The wait is bounded: a receiver that does not empty half of its pool within [`PATIENCE_NS`] loses the
//! frames for it until it has, and so does a NIC that takes nothing for that long. A vif whose peer breaks
//! the rules is dropped, nothing else happens.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

use proto::net::{Checksum, FRAMES_MAX, Frame, PLAIN_MAX, Refusal, Request, Response, Segments};

use crate::header::Header;
use crate::link::{Gone, Link, Uplink};
use crate::segment::Plan;
use crate::switch::{PORTS_MAX, Port, Switch, UPLINK};
use crate::table::Mac;
use crate::vif::{Counters, Delivery, PATIENCE_NS, Patience, Pending, Vif};

/// Requests of one vif in its turn.
const TURN: usize = 16;
/// Turns in one round of [`Bridge::poll`].
const TURNS: usize = 64;
/// Frames from the uplink in one round.
const UPLINK_BATCH: usize = 64;

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

/// The bridge.
#[derive(Debug)]
pub struct Bridge<L, U> {
    name: &'static str,
    switch: Switch,
    vifs: Vec<Vif<L>>,
    /// Vifs to serve, by index.
    ready: VecDeque<usize>,
    /// Vifs to flush, by index.
    touched: Vec<usize>,
    /// Vifs whose oldest frame waits.
    waiting: usize,
    /// Which of them was tried first the last time.
    turn: usize,
    uplink: Option<U>,
    uplink_patience: Patience,
    /// The NIC signalled, or has frames that were not taken yet.
    is_uplink_ready: bool,
    /// The NIC was given frames or buffers that it was not told of.
    is_uplink_touched: bool,
    frame: Box<[u8]>,
}

impl<L: Link, U: Uplink> Bridge<L, U> {
    /// A bridge, with or without an uplink.
    pub fn new(name: &'static str, uplink: Option<U>) -> Self {
        let mut switch = Switch::default();
        if uplink.is_some() {
            switch.add_uplink();
        }
        Self {
            name,
            switch,
            vifs: Vec::new(),
            ready: VecDeque::new(),
            touched: Vec::new(),
            waiting: 0,
            turn: 0,
            uplink,
            uplink_patience: Patience::default(),
            is_uplink_ready: true,
            is_uplink_touched: true,
            frame: alloc::vec![0; PLAIN_MAX as usize].into_boxed_slice(),
        }
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
        self.vifs.push(Vif::new(link, id, mac, bridge.is_empty() || bridge == self.name));
        self.make_ready(self.vifs.len() - 1);
        Ok(())
    }

    /// Lets go of a channel: its client and what happened to its frames.
    pub fn detach(&mut self, id: u32) -> Option<(L, Counters)> {
        let index = self.vifs.iter().position(|vif| vif.id == id)?;
        self.waiting -= usize::from(self.vifs.get(index)?.pending.is_some());
        let vif = self.vifs.remove(index);
        if let Some(port) = vif.port {
            self.switch.remove(port);
        }
        // Indices have changed: everyone is looked at once.
        self.ready.clear();
        self.touched.clear();
        for index in 0..self.vifs.len() {
            self.touched.push(index);
            self.ready.push_back(index);
        }
        for vif in &mut self.vifs {
            vif.is_ready = true;
        }
        Some((vif.link, vif.counters))
    }

    /// What happened to a vif's frames so far.
    pub fn counters(&self, id: u32) -> Option<Counters> {
        self.vifs.iter().find(|vif| vif.id == id).map(|vif| vif.counters)
    }

    /// Whether a frame waits for room, so that it has to be looked at again after [`PATIENCE_NS`].
    pub fn is_waiting(&self) -> bool {
        self.waiting > 0
    }

    /// These signals came: the vifs that they may be from are served next.
    #[inline]
    pub fn signalled(&mut self, signals: u64) {
        self.is_uplink_ready |= self.uplink.as_ref().is_some_and(|uplink| uplink.signals() & signals != 0);
        for index in 0..self.vifs.len() {
            if self.vifs.get(index).is_some_and(|vif| vif.link.signals() & signals != 0) {
                self.make_ready(index);
            }
        }
    }

    #[inline]
    fn make_ready(&mut self, index: usize) {
        if let Some(vif) = self.vifs.get_mut(index).filter(|vif| !vif.is_ready && !vif.is_broken) {
            vif.is_ready = true;
            self.ready.push_back(index);
        }
    }

    /// Does what can be done now; `true`: a batch was cut short, so call it again before sleeping. Else every
    /// client signals its next request.
    pub fn poll(&mut self, now_ns: u64) -> bool {
        self.retry(now_ns);
        let mut has_more = false;
        for turn in 0.. {
            let Some(index) = self.ready.pop_front() else { break };
            self.serve(index, now_ns);
            if turn == TURNS {
                has_more = true;
                break;
            }
        }
        if self.is_uplink_ready {
            self.is_uplink_ready = self.receive_from_uplink(now_ns);
            has_more |= self.is_uplink_ready;
        }
        if core::mem::take(&mut self.is_uplink_touched)
            && let Some(uplink) = &mut self.uplink
        {
            uplink.kick();
        }
        for index in self.touched.drain(..) {
            if let Some(vif) = self.vifs.get_mut(index) {
                vif.flush();
            }
        }
        has_more || !self.ready.is_empty()
    }

    fn receive_from_uplink(&mut self, now_ns: u64) -> bool {
        self.is_uplink_touched = true;
        for _ in 0..UPLINK_BATCH {
            let Some(uplink) = &mut self.uplink else { return false };
            let Some(len) = uplink.receive(&mut self.frame) else { return false };
            let Some(frame) = self.frame.get(..len) else { continue };
            // What the switch refuses is dropped without a word: there is no one to tell.
            let Ok(targets) = self.switch.forward(UPLINK, frame, now_ns) else { continue };
            for (index, vif) in self.vifs.iter_mut().enumerate() {
                if vif.port.is_some_and(|port| targets.contains(port)) {
                    vif.give(frame, Checksum::Unknown);
                    self.touched.push(index);
                }
            }
        }
        true
    }

    /// A vif's turn.
    fn serve(&mut self, index: usize, now_ns: u64) {
        self.touched.push(index);
        for _ in 0..TURN {
            if !self.receive_from_vif(index, now_ns) {
                let Some(vif) = self.vifs.get_mut(index) else { return };
                vif.is_ready = false;
                match vif.link.prepare_sleep() {
                    _ if vif.is_broken => {}
                    Ok(true) => {}
                    Ok(false) => self.make_ready(index),
                    Err(Gone) => self.break_off(index),
                }
                return;
            }
        }
        self.ready.push_back(index);
    }

    fn break_off(&mut self, index: usize) {
        let Some(vif) = self.vifs.get_mut(index) else { return };
        self.waiting -= usize::from(vif.pending.is_some());
        vif.break_off();
    }

    /// Handles one request; `false`: there is none.
    fn receive_from_vif(&mut self, index: usize, now_ns: u64) -> bool {
        let Some(vif) = self.vifs.get_mut(index).filter(|vif| !vif.is_broken) else { return false };
        match vif.link.receive() {
            Ok(Some(Request::Send(frame))) => {
                if vif.pending.is_none() {
                    self.send(index, &frame, now_ns);
                } else if vif.behind.len() < FRAMES_MAX {
                    vif.behind.push_back(frame);
                } else {
                    self.break_off(index);
                }
            }
            Ok(Some(Request::Release { count })) => {
                vif.release(count);
                if vif.is_broken {
                    self.break_off(index);
                }
                self.retry(now_ns);
            }
            Ok(Some(Request::Open)) => self.open(index),
            Ok(Some(Request::Accept(offloads))) => vif.offloads = offloads,
            Ok(None) => return false,
            Err(Gone) => {
                self.break_off(index);
                return false;
            }
        }
        true
    }

    fn open(&mut self, index: usize) {
        let Some(vif) = self.vifs.get_mut(index) else { return };
        let opened = if vif.port.is_some() {
            Err(Refusal::OpenedBefore)
        } else if !vif.is_of_this_bridge {
            Err(Refusal::Bridge)
        } else {
            self.switch.add_vif(vif.mac)
        };
        match opened {
            Ok(port) => {
                vif.port = Some(port);
                vif.send(&Response::Opened);
            }
            Err(refusal) => vif.send(&Response::Refused(refusal)),
        }
    }

    /// A frame from a vif that has none waiting.
    fn send(&mut self, index: usize, frame: &Frame, now_ns: u64) {
        let checked = self.check(index, frame, now_ns);
        let Some(vif) = self.vifs.get_mut(index) else { return };
        let Some(mut pending) = checked else {
            vif.counters.refused += 1;
            vif.link.note_dropped();
            vif.done_with(frame.len);
            return;
        };
        vif.counters.sent += 1;
        if self.go_on(index, &mut pending, now_ns) == Delivery::Wait {
            self.waiting += 1;
            if let Some(vif) = self.vifs.get_mut(index) {
                vif.pending = Some(pending);
            }
        }
    }

    /// `None`: the frame breaks a rule.
    fn check(&mut self, index: usize, frame: &Frame, now_ns: u64) -> Option<Pending> {
        let vif = self.vifs.get(index)?;
        let port = vif.port?;
        if !frame.is_within(0) {
            return None;
        }
        let header = Header::read(frame.len, |out| vif.link.read(frame.offset, out))?;
        let plan = match frame.segments {
            Segments::One => None,
            _ if frame.checksum != Checksum::Partial => return None,
            segments => Some(Plan::of(&header, frame.len, segments)?),
        };
        let targets = self.switch.forward(port, header.bytes(), now_ns).ok()?;
        Some(Pending { frame: *frame, header, plan, targets, segment: 0 })
    }

    /// Brings a frame to where it still has to go.
    fn go_on(&mut self, index: usize, pending: &mut Pending, now_ns: u64) -> Delivery {
        // Nobody waits for one of many receivers.
        let may_wait = pending.targets.is_single();
        for port in pending.targets.iter() {
            let delivery = if port == UPLINK {
                self.send_out(index, pending, now_ns)
            } else {
                self.deliver(index, port, pending, now_ns, may_wait)
            };
            if delivery == Delivery::Done {
                pending.targets = pending.targets.without(port);
            }
        }
        if !pending.targets.is_empty() {
            return Delivery::Wait;
        }
        if let Some(vif) = self.vifs.get_mut(index) {
            vif.done_with(pending.frame.len);
        }
        Delivery::Done
    }

    fn deliver(&mut self, from: usize, to: Port, pending: &Pending, now_ns: u64, may_wait: bool) -> Delivery {
        let Some(target) = self.vifs.iter().position(|vif| vif.port == Some(to)) else {
            return Delivery::Done;
        };
        // A frame never goes back to where it came from.
        let Ok([from, vif]) = self.vifs.get_disjoint_mut([from, target]) else { return Delivery::Done };
        let delivery = vif.forward(&from.link, pending, now_ns, may_wait, &mut self.frame);
        if delivery == Delivery::Wait {
            // It may have given memory back without a signal.
            self.make_ready(target);
        }
        if self.touched.last() != Some(&target) {
            self.touched.push(target);
        }
        delivery
    }

    /// Sends a frame, or what is left of its segments, by the uplink.
    fn send_out(&mut self, index: usize, pending: &mut Pending, now_ns: u64) -> Delivery {
        let (Some(uplink), Some(vif)) = (&mut self.uplink, self.vifs.get_mut(index)) else {
            return Delivery::Done;
        };
        self.is_uplink_touched = true;
        while pending.segment < pending.plain_count() {
            let len = pending.plain(pending.segment, &vif.link, &mut self.frame);
            let frame = len.and_then(|len| self.frame.get(..len)).unwrap_or(&[]);
            if !frame.is_empty() && !uplink.transmit(frame) {
                // Perhaps it only has to be told.
                uplink.kick();
                if !uplink.transmit(frame) {
                    let delivery = self.uplink_patience.wait(now_ns);
                    if delivery == Delivery::Done {
                        vif.counters.dropped_at_uplink += 1;
                        vif.link.note_dropped();
                    }
                    return delivery;
                }
            }
            self.uplink_patience.renew();
            pending.segment += 1;
        }
        Delivery::Done
    }

    /// Tries the frames that wait, and sends the ones behind those that could go.
    fn retry(&mut self, now_ns: u64) {
        if self.waiting == 0 {
            return;
        }
        let count = self.vifs.len();
        self.turn = (self.turn + 1) % count.max(1);
        for step in 0..count {
            let index = (self.turn + step) % count;
            let Some(mut pending) = self.vifs.get_mut(index).and_then(|vif| vif.pending.take()) else {
                continue;
            };
            self.waiting -= 1;
            self.touched.push(index);
            if self.go_on(index, &mut pending, now_ns) == Delivery::Wait {
                self.waiting += 1;
                if let Some(vif) = self.vifs.get_mut(index) {
                    vif.pending = Some(pending);
                }
            }
            while let Some(frame) = self.next_behind(index) {
                self.send(index, &frame, now_ns);
            }
        }
    }

    /// The next frame of a vif that has none waiting any more.
    fn next_behind(&mut self, index: usize) -> Option<Frame> {
        let vif = self.vifs.get_mut(index).filter(|vif| vif.pending.is_none())?;
        vif.behind.pop_front()
    }
}

/// How long a waiting frame may be left alone.
pub const RETRY_NS: u64 = PATIENCE_NS;
