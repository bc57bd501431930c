//! The backend: volumes, channels, and the turns that the channels take at a device.
//!
//! Invariants: each request is answered exactly once while its channel lives; a channel is only let go
//! when no device accesses its pool; a volume has at most one writer. A peer that breaks the rules loses
//! its own channel and nothing else.
//!
//! A wake-up costs what signalled, not what is there: a channel that did not signal is not looked at. So
//! before the domain waits, each channel is either armed (its peer signals the next request) or in `ready`.

use alloc::boxed::Box;
use alloc::vec::Vec;

use proto::bits::bits;
use proto::blk::{POOL_SIZE, Refusal, Request, Response};
use proto::channel::Region;

use crate::channel::{Channel, Source, State};
use crate::disk::{Disk, Geometry, Outcome, Tag};
use crate::set::{MEMBERS, Set};

/// Requests taken from one channel before the others get their turn.
const BATCH: usize = 32;
/// Channels at a time.
const CHANNELS_MAX: usize = MEMBERS;
/// Bits of an event.
const SIGNALS: usize = u64::BITS as usize;

/// The peer broke the rules of the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

/// The other end of a channel.
pub trait Client {
    /// The next request.
    ///
    /// # Errors
    /// [`Gone`]: the ring is broken.
    fn receive(&mut self) -> Result<Option<Request>, Gone>;
    /// Answers.
    ///
    /// # Errors
    /// [`Gone`]: the ring is broken, or full, which no client that keeps to the protocol brings about.
    fn answer(&mut self, response: &Response) -> Result<(), Gone>;
    /// Tells the other end about the answers since the last call, if it wants to know.
    fn flush(&mut self);
    /// Asks for a signal when the next request comes; `false`: there is one.
    ///
    /// # Errors
    /// [`Gone`]: the ring is broken.
    fn prepare_sleep(&mut self) -> Result<bool, Gone>;
}

/// A new channel.
#[derive(Debug, Clone, Copy)]
pub struct Attachment<'a> {
    /// Number of the channel.
    pub id: u32,
    /// Signals that the other end sets.
    pub signals: u64,
    /// Name of the volume.
    pub volume: &'a str,
    /// Writes are to be refused.
    pub is_read_only: bool,
    /// The pool; with a volume in memory, nothing.
    pub pool: Region,
    /// Bytes of a volume in the client's memory, or 0.
    pub memory: u64,
}

#[derive(Debug)]
struct Volume<D> {
    disk: D,
    geometry: Geometry,
    /// Channel that may write.
    writer: Option<usize>,
    /// Channels with operations that wait for the device.
    waiting: Set,
    /// Channel whose turn is next.
    turn: usize,
    /// Something changed since the device was last filled.
    is_touched: bool,
}

/// The backend.
#[derive(Debug)]
pub struct Backend<C, D> {
    volumes: Vec<Volume<D>>,
    channels: Vec<Option<Channel<C>>>,
    /// The channels of each signal; channels may share one.
    by_signal: Box<[Set; SIGNALS]>,
    /// Channels that may have requests.
    ready: Set,
    /// Channels that are to be flushed and armed.
    touched: Set,
    /// Channels that wait to be let go.
    detaching: usize,
}

impl<C, D> Default for Backend<C, D> {
    fn default() -> Self {
        Self {
            volumes: Vec::new(),
            channels: Vec::new(),
            by_signal: Box::new([Set::EMPTY; SIGNALS]),
            ready: Set::EMPTY,
            touched: Set::EMPTY,
            detaching: 0,
        }
    }
}

impl<C: Client, D: Disk> Backend<C, D> {
    /// Adds a volume.
    ///
    /// # Errors
    /// The disk, when its name is taken or empty.
    pub fn add_volume(&mut self, disk: D) -> Result<(), D> {
        if disk.name().is_empty() || self.find_volume(disk.name()).is_some() {
            return Err(disk);
        }
        let geometry = disk.geometry();
        self.volumes.push(Volume {
            disk,
            geometry,
            writer: None,
            waiting: Set::EMPTY,
            turn: 0,
            is_touched: false,
        });
        Ok(())
    }

    fn find_volume(&self, name: &str) -> Option<usize> {
        self.volumes.iter().position(|volume| volume.disk.name() == name)
    }

    /// Takes a channel. A volume that does not exist is refused when the client opens it.
    ///
    /// # Errors
    /// A sentence for people.
    pub fn attach(&mut self, attachment: &Attachment<'_>, client: C) -> Result<(), &'static str> {
        let Attachment { id, signals, volume, is_read_only, pool, memory } = *attachment;
        if self.channels.iter().flatten().any(|channel| channel.id == id) {
            return Err("The channel is attached already.");
        }
        if memory == 0 && (pool.len < POOL_SIZE || pool.addr.checked_add(POOL_SIZE).is_none()) {
            return Err("The channel's pool is too small.");
        }
        let source = match (memory, self.find_volume(volume)) {
            (0, Some(volume)) => Source::Volume(volume),
            (0, None) => Source::Nothing,
            (bytes, _) => Source::Memory(Geometry::of_memory(bytes)),
        };
        let channel = Channel::new(client, id, pool, source, is_read_only);
        let free = self.channels.iter().position(Option::is_none);
        let index = free.unwrap_or(self.channels.len());
        if index >= CHANNELS_MAX {
            return Err("There are too many channels.");
        }
        match self.channels.get_mut(index) {
            Some(slot) => *slot = Some(channel),
            None => self.channels.push(Some(channel)),
        }
        for bit in bits(signals).map(|bit| bit as usize) {
            if let Some(set) = self.by_signal.get_mut(bit) {
                set.insert(index);
            }
        }
        // The first request may be there already.
        self.ready.insert(index);
        Ok(())
    }

    /// Lets go of a channel as soon as no device accesses its pool; [`Self::take_detached`] has it then.
    /// `false`: there is no such channel.
    pub fn detach(&mut self, id: u32) -> bool {
        let Some(channel) = self.channels.iter_mut().flatten().find(|channel| channel.id == id) else {
            return false;
        };
        if !core::mem::replace(&mut channel.is_detaching, true) {
            self.detaching += 1;
        }
        channel.abandon();
        true
    }

    /// A channel that was detached and is idle: its number, pool and client.
    pub fn take_detached(&mut self) -> Option<(u32, Region, C)> {
        if self.detaching == 0 {
            return None;
        }
        let is_done = |slot: &Option<Channel<C>>| {
            slot.as_ref().is_some_and(|channel| channel.is_detaching && channel.is_idle())
        };
        let index = self.channels.iter().position(is_done)?;
        let channel = self.channels.get_mut(index)?.take()?;
        self.detaching = self.detaching.saturating_sub(1);
        let sets = self.by_signal.iter_mut().chain([&mut self.ready, &mut self.touched]);
        for set in sets.chain(self.volumes.iter_mut().map(|volume| &mut volume.waiting)) {
            set.remove(index);
        }
        for volume in &mut self.volumes {
            if volume.writer == Some(index) {
                volume.writer = None;
            }
        }
        Some((channel.id, channel.pool, channel.client))
    }

    /// Serves what has one of the signals, and what was left over from the last call; `true`: there is more,
    /// so call it again before waiting.
    pub fn poll(&mut self, signals: u64) -> bool {
        for volume in &mut self.volumes {
            if volume.disk.signals() & signals != 0 {
                Self::complete(&mut self.channels, &mut self.touched, volume);
            }
        }
        for bit in bits(signals).map(|bit| bit as usize) {
            if let Some(set) = self.by_signal.get(bit) {
                self.ready.insert_all(set);
            }
        }
        for index in self.ready.iter() {
            if !self.receive(index) {
                self.ready.remove(index);
            }
            self.touched.insert(index);
        }
        for index in 0..self.volumes.len() {
            if self.volumes.get_mut(index).is_some_and(|volume| core::mem::take(&mut volume.is_touched)) {
                self.schedule(index);
            }
        }
        for index in core::mem::take(&mut self.touched).iter() {
            self.settle(index);
        }
        !self.ready.is_empty()
    }

    /// Tells a channel's client about the answers, and arms the channel if it is not ready anyway.
    fn settle(&mut self, index: usize) {
        let Some(Some(channel)) = self.channels.get_mut(index) else { return };
        if !channel.is_alive() {
            return;
        }
        channel.client.flush();
        if self.ready.contains(index) {
            return;
        }
        match channel.client.prepare_sleep() {
            Ok(true) => {}
            Ok(false) => self.ready.insert(index),
            Err(Gone) => Self::drop_broken(channel),
        }
    }

    fn drop_broken(channel: &mut Channel<C>) {
        if channel.state != State::Dropped {
            log::warn!("channel {}: the peer broke the ring's rules and is not served any more", channel.id);
        }
        channel.state = State::Dropped;
        channel.abandon();
    }

    fn answer(channel: &mut Channel<C>, response: &Response) {
        if channel.is_alive() && channel.client.answer(response).is_err() {
            Self::drop_broken(channel);
        }
    }

    fn receive(&mut self, index: usize) -> bool {
        for _ in 0..BATCH {
            let Some(Some(channel)) = self.channels.get_mut(index) else { return false };
            if !channel.is_alive() {
                return false;
            }
            let request = match channel.client.receive() {
                Ok(Some(request)) => request,
                Ok(None) => return false,
                Err(Gone) => {
                    Self::drop_broken(channel);
                    return false;
                }
            };
            if request == Request::Open {
                self.open(index);
                continue;
            }
            let geometry = match channel.volume {
                Source::Volume(volume) => self.volumes.get(volume).map(|volume| volume.geometry),
                Source::Memory(geometry) => Some(geometry),
                Source::Nothing => None,
            };
            match (channel.accept(&request, geometry.as_ref()), channel.volume) {
                (Err((id, status)), _) => Self::answer(channel, &Response::Done { id, status }),
                (Ok(()), Source::Volume(volume)) => {
                    if let Some(volume) = self.volumes.get_mut(volume) {
                        volume.waiting.insert(index);
                        volume.is_touched = true;
                    }
                }
                (Ok(()), _) => {}
            }
        }
        true
    }

    fn open(&mut self, index: usize) {
        let Some(Some(channel)) = self.channels.get_mut(index) else { return };
        let opened = match channel.volume {
            Source::Memory(geometry) => Self::opened(channel.state, channel.is_read_only, &geometry),
            Source::Volume(volume) => {
                let volume = self.volumes.get_mut(volume);
                Self::try_open(channel.state, channel.is_read_only, index, volume)
            }
            Source::Nothing => Self::try_open(channel.state, channel.is_read_only, index, None),
        };
        let response = match opened {
            Ok((opened, is_read_only)) => {
                channel.state = State::Open { is_read_only };
                opened
            }
            Err(reason) => Response::Refused { reason },
        };
        Self::answer(channel, &response);
    }

    /// The answer for a volume that the channel may use.
    fn opened(state: State, is_read_only: bool, geometry: &Geometry) -> Result<(Response, bool), Refusal> {
        if state != State::Closed {
            return Err(Refusal::OpenedBefore);
        }
        if let Some(flaw) = geometry.flaw() {
            return Err(flaw);
        }
        let is_read_only = is_read_only || geometry.is_read_only;
        let opened = Response::Opened {
            sectors: geometry.sectors,
            sector_size: geometry.sector_size,
            is_read_only,
            has_cache: geometry.has_flush,
        };
        Ok((opened, is_read_only))
    }

    fn try_open(
        state: State,
        is_read_only: bool,
        index: usize,
        volume: Option<&mut Volume<D>>,
    ) -> Result<(Response, bool), Refusal> {
        let volume = volume.ok_or(Refusal::NoVolume)?;
        let (opened, is_read_only) = Self::opened(state, is_read_only, &volume.geometry)?;
        if !is_read_only {
            if volume.writer.is_some_and(|writer| writer != index) {
                return Err(Refusal::InUse);
            }
            volume.writer = Some(index);
        }
        Ok((opened, is_read_only))
    }

    /// Takes the ended operations of a device.
    fn complete(channels: &mut [Option<Channel<C>>], touched: &mut Set, volume: &mut Volume<D>) {
        while let Some((tag, outcome)) = volume.disk.complete() {
            volume.is_touched = true;
            touched.insert(usize::from(tag.channel));
            Self::ended(channels, &volume.geometry, tag, outcome);
        }
    }

    fn ended(channels: &mut [Option<Channel<C>>], geometry: &Geometry, tag: Tag, outcome: Outcome) {
        let Some(Some(channel)) = channels.get_mut(usize::from(tag.channel)) else { return };
        if let Some(status) = channel.ended(tag.id, outcome, geometry) {
            Self::answer(channel, &Response::Done { id: tag.id, status });
        }
    }

    /// Fills a device: one operation per channel and turn.
    fn schedule(&mut self, index: usize) {
        let Some(volume) = self.volumes.get_mut(index) else { return };
        while volume.disk.room() > 0 {
            let Some(turn) = volume.waiting.next(volume.turn) else { break };
            volume.turn = turn + 1;
            let channel = self.channels.get_mut(turn).and_then(Option::as_mut);
            let Some((id, operation)) = channel.and_then(|channel| channel.next_operation(&volume.geometry))
            else {
                volume.waiting.remove(turn);
                continue;
            };
            let tag = Tag { channel: u16::try_from(turn).unwrap_or(u16::MAX), id };
            if let Some(outcome) = volume.disk.submit(tag, operation) {
                self.touched.insert(turn);
                Self::ended(&mut self.channels, &volume.geometry, tag, outcome);
            }
        }
        volume.disk.kick();
    }
}
