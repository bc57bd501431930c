//! The backend: volumes, channels, and the turns that the channels take at a device.
//!
//! Invariants: each request is answered exactly once while its channel lives; a channel is only let go
//! when no device accesses its pool; a volume has at most one writer. A peer that breaks the rules loses
//! its own channel and nothing else.

use alloc::vec::Vec;
use core::fmt::Write;

use proto::blk::{POOL_SIZE, Request, Response};
use proto::channel::Region;
use proto::text::Text;

use crate::channel::{Channel, Source, State};
use crate::disk::{Disk, Geometry, Outcome, Tag};

/// Requests taken from one channel before the others get their turn.
const BATCH: usize = 32;
/// Channels at a time.
const CHANNELS_MAX: usize = 256;

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
}

/// A new channel.
#[derive(Debug, Clone, Copy)]
pub struct Attachment<'a> {
    /// Number of the channel.
    pub id: u32,
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
    /// Channel whose turn is next.
    turn: usize,
}

/// The backend.
#[derive(Debug)]
pub struct Backend<C, D> {
    volumes: Vec<Volume<D>>,
    channels: Vec<Option<Channel<C>>>,
}

impl<C, D> Default for Backend<C, D> {
    fn default() -> Self {
        Self { volumes: Vec::new(), channels: Vec::new() }
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
        self.volumes.push(Volume { disk, geometry, writer: None, turn: 0 });
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
        let Attachment { id, volume, is_read_only, pool, memory } = *attachment;
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
        if let Some(free) = self.channels.iter_mut().find(|slot| slot.is_none()) {
            *free = Some(channel);
        } else if self.channels.len() < CHANNELS_MAX {
            self.channels.push(Some(channel));
        } else {
            return Err("There are too many channels.");
        }
        Ok(())
    }

    /// Lets go of a channel as soon as no device accesses its pool; [`Self::take_detached`] has it then.
    /// `false`: there is no such channel.
    pub fn detach(&mut self, id: u32) -> bool {
        let Some(channel) = self.channels.iter_mut().flatten().find(|channel| channel.id == id) else {
            return false;
        };
        channel.is_detaching = true;
        channel.abandon();
        true
    }

    /// A channel that was detached and is idle: its number, pool and client.
    pub fn take_detached(&mut self) -> Option<(u32, Region, C)> {
        let is_done = |slot: &Option<Channel<C>>| {
            slot.as_ref().is_some_and(|channel| channel.is_detaching && channel.is_idle())
        };
        let index = self.channels.iter().position(is_done)?;
        let channel = self.channels.get_mut(index)?.take()?;
        for volume in &mut self.volumes {
            if volume.writer == Some(index) {
                volume.writer = None;
            }
        }
        Some((channel.id, channel.pool, channel.client))
    }

    /// The channels' clients that are alive, for flushing and for going to sleep.
    pub fn clients(&mut self) -> impl Iterator<Item = &mut C> {
        self.channels.iter_mut().flatten().filter(|channel| channel.is_alive()).map(|c| &mut c.client)
    }

    /// Does what can be done now; `true`: a batch was cut short, so call it again before sleeping.
    pub fn poll(&mut self) -> bool {
        self.complete();
        let mut has_more = false;
        for index in 0..self.channels.len() {
            has_more |= self.receive(index);
        }
        for volume in 0..self.volumes.len() {
            self.schedule(volume);
        }
        has_more
    }

    /// Drops a channel whose peer broke the rules.
    pub fn drop_channel(&mut self, id: u32) {
        if let Some(channel) = self.channels.iter_mut().flatten().find(|channel| channel.id == id) {
            Self::drop_broken(channel);
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
            if let Err((id, status)) = channel.accept(&request, geometry.as_ref()) {
                Self::answer(channel, &Response::Done { id, status });
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
            Err(sentence) => {
                let mut reason = Text::new();
                // A sentence that does not fit is cut.
                let _ = reason.write_str(sentence);
                Response::Refused { reason }
            }
        };
        Self::answer(channel, &response);
    }

    /// The answer for a volume that the channel may use.
    fn opened(
        state: State,
        is_read_only: bool,
        geometry: &Geometry,
    ) -> Result<(Response, bool), &'static str> {
        if state != State::Closed {
            return Err("The channel was opened before.");
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
    ) -> Result<(Response, bool), &'static str> {
        let volume = volume.ok_or("There is no volume of this name.")?;
        let (opened, is_read_only) = Self::opened(state, is_read_only, &volume.geometry)?;
        if !is_read_only {
            if volume.writer.is_some_and(|writer| writer != index) {
                return Err("Another guest has the volume open for writing.");
            }
            volume.writer = Some(index);
        }
        Ok((opened, is_read_only))
    }

    /// Takes the ended operations of all devices.
    fn complete(&mut self) {
        for volume in &mut self.volumes {
            while let Some((tag, outcome)) = volume.disk.complete() {
                Self::ended(&mut self.channels, &volume.geometry, tag, outcome);
            }
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
        let count = self.channels.len();
        let mut idle_turns = 0;
        while idle_turns < count && volume.disk.room() > 0 {
            let turn = volume.turn % count;
            volume.turn = (turn + 1) % count;
            let channel = self.channels.get_mut(turn).and_then(Option::as_mut);
            let channel =
                channel.filter(|channel| channel.volume == Source::Volume(index) && channel.is_waiting());
            let next = channel.and_then(|channel| channel.next_operation(&volume.geometry));
            let Some((id, operation)) = next else {
                idle_turns += 1;
                continue;
            };
            idle_turns = 0;
            let tag = Tag { channel: u16::try_from(turn).unwrap_or(u16::MAX), id };
            if let Some(outcome) = volume.disk.submit(tag, operation) {
                Self::ended(&mut self.channels, &volume.geometry, tag, outcome);
            }
        }
        volume.disk.kick();
    }
}
