//! blkfront served by blkback: ring requests become transfers between pool and volume.
//!
//! A request is checked, given an extent of the pool and sent; pages are touched only while bytes are
//! copied (before a write is sent, after a read is done). Requests are kept until they are answered, so
//! that they can be sent again to a blkback that was restarted. Invariant: an extent is free, or belongs
//! to exactly one request that blkback has not answered. A volume in memory is the pool itself: there bytes
//! move between guest and volume directly, and blkback only says whether they may.

pub mod extents;
pub mod pace;
pub mod request;

use alloc::vec::Vec;

use proto::bits::bits;
use proto::blk::{self, Blk, Direction, IN_FLIGHT_MAX, Request, Response};
use proto::counters;
use rt::channel::{Client, SendError};
use rt::counters::{add, inc};
use rt::pool::Pool;

use crate::devices::{Sleep, sleep};
use crate::events::Port;
use crate::front_ring::{BrokenRing, FrontRing};
use crate::grants::{BadGrant, GrantRef, Want};
use crate::machine::Guest;
use extents::{Extent, Extents};
use pace::Pace;
use request::{Layout, Operation, SEGMENTS_MAX, Segment, Status, Tag};

/// What blkback said about the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Volume {
    /// In units of 512 bytes.
    pub sectors: u64,
    /// The device's own sector size.
    pub sector_size: u32,
    /// Writes are refused.
    pub is_read_only: bool,
    /// It caches writes.
    pub has_cache: bool,
}

/// Whether the backend can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backing {
    /// Not known yet.
    Opening,
    /// It can.
    Open(Volume),
    /// It cannot, for a reason.
    Refused(blk::Refusal),
}

/// A request of the guest that has no answer yet.
#[derive(Debug, Clone, Copy)]
struct Flight {
    tag: Tag,
    operation: Operation,
    sector: u64,
    /// Bytes.
    len: u32,
    /// Segments in use.
    count: usize,
    /// Held while blkback works on it.
    extent: Option<Extent>,
    /// The frontend that asked is gone: nobody wants the answer.
    is_orphan: bool,
    segments: [Segment; SEGMENTS_MAX],
}

impl Flight {
    const NONE: Self = Self {
        tag: Tag { id: 0, op: 0 },
        operation: Operation::Flush,
        sector: 0,
        len: 0,
        count: 0,
        extent: None,
        is_orphan: false,
        segments: [Segment::NONE; SEGMENTS_MAX],
    };
}

/// How long requests may be held back for more to come.
const HOLD_NS: u64 = 50_000;
/// All flights, one bit each.
const ALL: u32 = u32::MAX;
const _: () = assert!(IN_FLIGHT_MAX == u32::BITS as usize);

#[derive(Debug)]
struct Front {
    ring: FrontRing,
    layout: Layout,
    port: Port,
}

impl Front {
    /// Copies the next request.
    #[inline]
    fn entry(&self) -> [u8; request::LEN] {
        match self.layout {
            Layout::Wide => self.ring.peek(0),
            Layout::Narrow => request::widen(&self.ring.peek(0)),
        }
    }
}

/// Why a frontend cannot be connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unusable(pub &'static str);

/// One disk.
#[derive(Debug)]
pub struct Disk {
    device: u8,
    link: Option<Client<Blk>>,
    pool: Pool,
    /// The pool is the volume.
    is_in_memory: bool,
    extents: Extents,
    backing: Backing,
    front: Option<Front>,
    /// [`IN_FLIGHT_MAX`] of them; what is in those that `free` names has no meaning.
    flights: Vec<Flight>,
    free: u32,
    /// Flights that blkback was not told of yet.
    unsent: u32,
    pace: Pace,
}

impl Disk {
    /// A disk whose event channel leads to device number `device`.
    pub fn new(device: u8) -> Self {
        Self {
            device,
            link: None,
            pool: Pool::from_region(proto::channel::Region::default()),
            is_in_memory: false,
            extents: Extents::default(),
            backing: Backing::Opening,
            front: None,
            flights: alloc::vec![Flight::NONE; IN_FLIGHT_MAX],
            free: ALL,
            unsent: 0,
            pace: Pace::default(),
        }
    }

    /// Uses this channel from now on, or none. What blkback had not answered is sent again.
    pub fn set_link(&mut self, link: Option<Client<Blk>>) {
        self.extents = Extents::default();
        for (id, flight) in self.flights.iter_mut().enumerate() {
            flight.extent = None;
            if flight.is_orphan {
                self.free |= 1 << id;
            }
        }
        self.unsent = !self.free;
        self.backing = Backing::Opening;
        self.link = link;
        if let Some(link) = &mut self.link {
            self.pool = Pool::from_region(link.info().pool);
            self.is_in_memory = link.info().memory > 0;
            if link.send(&Request::Open).is_err() {
                self.link = None;
            }
        }
        if let Some(link) = &mut self.link {
            link.flush();
        }
    }

    /// The channel.
    pub fn link(&self) -> Option<&Client<Blk>> {
        self.link.as_ref()
    }

    /// Whether the volume can be used.
    pub fn backing(&self) -> &Backing {
        &self.backing
    }

    /// The number that event channels know the disk by.
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
        ring_ref: &str,
        event_channel: &str,
        protocol: &str,
    ) -> Result<(), Unusable> {
        self.disconnect(guest);
        let layout =
            Layout::of(protocol).ok_or(Unusable("its ring layout is not x86_64-abi or x86_32-abi"))?;
        let grant = ring_ref.trim().parse().map_err(|_| Unusable("ring-ref is not a number"))?;
        let port = event_channel.trim().parse().map_err(|_| Unusable("event-channel is not a number"))?;
        let page = guest.grants.acquire(&guest.memory, GrantRef(grant), Want::Write);
        let page = page.map_err(|BadGrant| Unusable("the ring's page is not granted"))?;
        if guest.events.bind_device(Port(port), self.device).is_err() {
            guest.grants.release(page);
            return Err(Unusable("event-channel is not a free port for the backend"));
        }
        let ring = FrontRing::new(page, request::ENTRIES, layout.stride());
        self.front = Some(Front { ring, layout, port: Port(port) });
        Ok(())
    }

    /// Lets go of the frontend. What is under way goes on and is answered to nobody.
    pub fn disconnect(&mut self, guest: &mut Guest) {
        let Some(front) = self.front.take() else { return };
        guest.events.unbind_device(front.port, self.device);
        front.ring.close(&guest.grants);
        self.free |= self.unsent;
        self.unsent = 0;
        for id in bits(!self.free).map(|id| id as usize) {
            if let Some(flight) = self.flights.get_mut(id) {
                flight.is_orphan = true;
            }
        }
    }

    /// The guest notified the disk's port: serves it, or lets the guest go on to collect more requests,
    /// until it waits or a short time has passed.
    pub fn kicked(&mut self, guest: &mut Guest) {
        let waiting = self.front.as_ref().map_or(0, |front| front.ring.available().unwrap_or(0));
        let is_free = !guest.events.holds(self.device);
        if is_free && self.pace.caught_up(waiting) || !self.pace.puts_off(waiting) {
            self.service(guest);
        } else if is_free {
            guest.hold(self.device, HOLD_NS, true);
        }
    }

    /// Moves what can be moved in both directions.
    pub fn service(&mut self, guest: &mut Guest) {
        self.take_responses(guest);
        self.send_unsent(guest);
        if let Err(BrokenRing) = self.take_requests(guest) {
            if guest.odd.allows() {
                log::warn!("a disk's ring is inconsistent; the disk is disconnected");
            }
            self.disconnect(guest);
        }
        if let Some(front) = &mut self.front
            && front.ring.publish()
        {
            guest.events.raise(front.port);
        }
        if let Some(link) = &mut self.link {
            link.flush();
        }
    }

    /// Asks for a signal when the backend sends something.
    pub fn prepare_sleep(&mut self) -> Sleep {
        sleep(self.link.as_mut().map(Client::prepare_sleep))
    }

    fn take_responses(&mut self, guest: &mut Guest) {
        while let Some(link) = &mut self.link {
            match link.receive() {
                Ok(Some(Response::Done { id, status })) => self.done(guest, id, status),
                Ok(Some(Response::Opened { sectors, sector_size, is_read_only, has_cache })) => {
                    self.backing = Backing::Open(Volume { sectors, sector_size, is_read_only, has_cache });
                }
                Ok(Some(Response::Refused { reason })) => self.backing = Backing::Refused(reason),
                Ok(None) => return,
                Err(error) => {
                    log::warn!("blk channel: {error}");
                    self.link = None;
                }
            }
        }
    }

    fn done(&mut self, guest: &mut Guest, id: u16, status: blk::Status) {
        let bit = 1u32.checked_shl(u32::from(id)).unwrap_or(0);
        // An answer to nothing is blkback's mistake and changes nothing.
        if (self.free | self.unsent) & bit != 0 {
            return;
        }
        let Some(flight) = self.flights.get_mut(usize::from(id)).filter(|_| bit != 0) else { return };
        let mut status = if status == blk::Status::Ok { Status::Okay } else { Status::Error };
        if flight.operation == Operation::Read
            && status == Status::Okay
            && !flight.is_orphan
            && copy(guest, &self.pool, flight).is_err()
        {
            status = Status::Error;
        }
        if let Some(extent) = flight.extent.take() {
            self.extents.release(extent);
        }
        self.free |= bit;
        if let (false, Some(front)) = (flight.is_orphan, &mut self.front) {
            front.ring.respond(&flight.tag.response(status));
        }
    }

    fn take_requests(&mut self, guest: &mut Guest) -> Result<(), BrokenRing> {
        let Backing::Open(volume) = self.backing else { return Ok(()) };
        // One pass over a full ring at most: a guest that keeps producing is served in the next round.
        for _ in 0..request::ENTRIES {
            let Some(front) = &mut self.front else { return Ok(()) };
            if front.ring.available()? == 0 && !front.ring.arm()? {
                return Ok(());
            }
            if self.free == 0 || self.unsent != 0 {
                return Ok(());
            }
            let entry = front.entry();
            front.ring.take(1);
            self.pace.took();
            self.take_request(guest, &volume, &entry);
        }
        // There may be more: come back without being asked.
        guest.events.kicks |= 1 << self.device;
        Ok(())
    }

    /// Starts a request, or answers it at once.
    fn take_request(&mut self, guest: &mut Guest, volume: &Volume, entry: &[u8; request::LEN]) {
        let (tag, head) = request::parse(entry);
        let taken = head.and_then(|head| self.accept(guest, volume, entry, tag, &head));
        let status = match taken {
            Ok(Some(id)) => match self.submit(guest, id) {
                Ok(()) => return,
                Err(BadGrant) => Status::Error,
            },
            Ok(None) => Status::Okay,
            Err(status) => status,
        };
        if let Some(front) = &mut self.front {
            front.ring.respond(&tag.response(status));
        }
    }

    /// Takes a request over as a flight, which is still unsent; `None`: there is nothing to be done.
    fn accept(
        &mut self,
        guest: &Guest,
        volume: &Volume,
        entry: &[u8; request::LEN],
        tag: Tag,
        head: &request::Head,
    ) -> Result<Option<usize>, Status> {
        match head.operation {
            Operation::Write if volume.is_read_only => return Err(Status::Error),
            Operation::Flush if !volume.has_cache => return Ok(None),
            _ => {}
        }
        let page = match head.indirect {
            Some(grant) => {
                let page = guest.grants.view(&guest.memory, Want::Read).page(grant);
                Some(page.map_err(|BadGrant| Status::Error)?)
            }
            None => None,
        };
        let id = self.free.trailing_zeros() as usize;
        let flight = self.flights.get_mut(id).ok_or(Status::Error)?;
        let (count, len) = head.segments(entry, page.as_ref(), volume.sectors, &mut flight.segments)?;
        (flight.tag, flight.operation, flight.sector) = (tag, head.operation, head.sector);
        (flight.len, flight.count, flight.is_orphan) = (len, count, false);
        self.free &= !(1 << id);
        self.unsent |= 1 << id;
        let (requests, bytes) = match head.operation {
            Operation::Read => (counters::BLK_READS, counters::BLK_BYTES_READ),
            Operation::Write => (counters::BLK_WRITES, counters::BLK_BYTES_WRITTEN),
            Operation::Flush => (counters::BLK_FLUSHES, counters::BLK_BYTES_READ),
        };
        inc(requests);
        add(bytes, u64::from(len));
        Ok(Some(id))
    }

    /// Sends what could not be sent when it came, as far as that is possible now.
    fn send_unsent(&mut self, guest: &mut Guest) {
        if self.unsent == 0 || !matches!(self.backing, Backing::Open(_)) {
            return;
        }
        for id in bits(self.unsent).map(|id| id as usize) {
            if self.submit(guest, id).is_err() {
                let tag = self.flights.get(id).map_or_else(Tag::default, |flight| flight.tag);
                if let Some(front) = &mut self.front {
                    front.ring.respond(&tag.response(Status::Error));
                }
            }
            if self.unsent & 1 << id != 0 {
                return;
            }
        }
    }

    /// Sends flight `id` to blkback; where that is not possible now it stays unsent.
    ///
    /// # Errors
    /// The flight ended: a page is not granted.
    fn submit(&mut self, guest: &Guest, id: usize) -> Result<(), BadGrant> {
        let (Some(flight), Some(link)) = (self.flights.get_mut(id), &mut self.link) else { return Ok(()) };
        let message = match flight.operation {
            Operation::Flush => Request::Flush { id: id as u16 },
            operation => {
                if !self.is_in_memory {
                    let Some(extent) = self.extents.allocate(flight.len) else { return Ok(()) };
                    flight.extent = Some(extent);
                }
                let direction = if operation == Operation::Read { Direction::Read } else { Direction::Write };
                if direction == Direction::Write && copy(guest, &self.pool, flight).is_err() {
                    if let Some(extent) = flight.extent.take() {
                        self.extents.release(extent);
                    }
                    self.unsent &= !(1 << id);
                    self.free |= 1 << id;
                    return Err(BadGrant);
                }
                let pool_offset = flight.extent.map_or(0, |extent| extent.offset() as u32);
                let (sector, len) = (flight.sector, flight.len);
                Request::Transfer { id: id as u16, direction, sector, pool_offset, len }
            }
        };
        match link.send(&message) {
            Ok(()) => self.unsent &= !(1 << id),
            Err(error) => {
                if let Some(extent) = flight.extent.take() {
                    self.extents.release(extent);
                }
                if error != SendError::Full {
                    log::warn!("blk channel: {error}");
                    self.link = None;
                }
            }
        }
        Ok(())
    }
}

/// Copies between the guest's pages and the flight's part of the pool, which is its extent or, in memory,
/// the volume's part itself. The grants are looked up for the copy and not used after it.
fn copy(guest: &Guest, pool: &Pool, flight: &Flight) -> Result<(), BadGrant> {
    // An offset outside of the pool is refused by the copy.
    let in_volume = || usize::try_from(flight.sector.saturating_mul(blk::SECTOR)).unwrap_or(usize::MAX);
    let mut at = flight.extent.map_or_else(in_volume, Extent::offset);
    let segments = flight.segments.iter().take(flight.count);
    if flight.operation == Operation::Read {
        let view = guest.grants.view(&guest.memory, Want::Write);
        for segment in segments {
            let (page, len) = (view.page(segment.grant())?, segment.bytes());
            pool.copy_to(at, page.memory(), segment.offset(), len).map_err(|_| BadGrant)?;
            at += len;
        }
    } else {
        let view = guest.grants.view(&guest.memory, Want::Read);
        for segment in segments {
            let (page, len) = (view.page(segment.grant())?, segment.bytes());
            page.memory().copy_to(segment.offset(), pool, at, len).map_err(|_| BadGrant)?;
            at += len;
        }
    }
    add(counters::BYTES_COPIED, u64::from(flight.len));
    Ok(())
}

#[cfg(test)]
mod tests;
