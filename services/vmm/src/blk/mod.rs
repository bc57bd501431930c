//! blkfront served by blkback: ring requests become transfers between pool and volume.
//!
//! A request is checked, given an extent of the pool and sent; pages are touched only while bytes are
//! copied (before a write is sent, after a read is done). Requests are kept until they are answered, so
//! that they can be sent again to a blkback that was restarted. Invariant: an extent is free, or belongs
//! to exactly one request that blkback has not answered. A volume in memory is the pool itself: there bytes
//! move between guest and volume directly, and blkback only says whether they may.

pub mod extents;
pub mod request;

use proto::blk::{self, Blk, Direction, IN_FLIGHT_MAX, Request, Response};
use proto::text::Text;
use rt::channel::{Client, SendError};
use rt::pool::Pool;

use crate::devices::{Sleep, sleep};
use crate::events::Port;
use crate::front_ring::{BrokenRing, FrontRing};
use crate::grants::{BadGrant, GrantRef, Want};
use crate::machine::Guest;
use extents::{Extent, Extents};
use request::{Operation, Status, Tag, Transfer};

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
    Refused(Text<160>),
}

/// A request of the guest that has no answer yet.
#[derive(Debug)]
struct Flight {
    tag: Tag,
    operation: Operation,
    /// Held while blkback works on it.
    extent: Option<Extent>,
    is_sent: bool,
    /// The frontend that asked is gone: nobody wants the answer.
    is_orphan: bool,
}

#[derive(Debug)]
struct Front {
    ring: FrontRing,
    port: Port,
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
    extents: Extents,
    backing: Backing,
    front: Option<Front>,
    flights: [Option<Flight>; IN_FLIGHT_MAX],
    /// Some request could not be sent yet.
    has_unsent: bool,
    /// The pool is the volume.
    is_in_memory: bool,
}

impl Disk {
    /// A disk whose event channel leads to device number `device`.
    pub fn new(device: u8) -> Self {
        Self {
            device,
            link: None,
            pool: Pool::from_region(proto::channel::Region::default()),
            extents: Extents::default(),
            backing: Backing::Opening,
            front: None,
            flights: [const { None }; IN_FLIGHT_MAX],
            has_unsent: false,
            is_in_memory: false,
        }
    }

    /// Uses this channel from now on, or none. What blkback had not answered is sent again.
    pub fn set_link(&mut self, link: Option<Client<Blk>>) {
        self.extents = Extents::default();
        for slot in &mut self.flights {
            if slot.as_ref().is_some_and(|flight| flight.is_orphan) {
                *slot = None;
            }
            if let Some(flight) = slot {
                (flight.extent, flight.is_sent) = (None, false);
                self.has_unsent = true;
            }
        }
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
        if !matches!(protocol, "" | "x86_64-abi") {
            return Err(Unusable("its ring layout is not x86_64-abi"));
        }
        let grant = ring_ref.trim().parse().map_err(|_| Unusable("ring-ref is not a number"))?;
        let port = event_channel.trim().parse().map_err(|_| Unusable("event-channel is not a number"))?;
        let page = guest.grants.acquire(&guest.memory, GrantRef(grant), Want::Write);
        let page = page.map_err(|BadGrant| Unusable("the ring's page is not granted"))?;
        if guest.events.bind_device(Port(port), self.device).is_err() {
            guest.grants.release(page);
            return Err(Unusable("event-channel is not a free port for the backend"));
        }
        let ring = FrontRing::new(page, request::ENTRIES, request::LEN);
        self.front = Some(Front { ring, port: Port(port) });
        Ok(())
    }

    /// Lets go of the frontend. What is under way goes on and is answered to nobody.
    pub fn disconnect(&mut self, guest: &mut Guest) {
        let Some(front) = self.front.take() else { return };
        guest.events.unbind_device(front.port, self.device);
        front.ring.close(&guest.grants);
        for slot in &mut self.flights {
            match slot {
                Some(flight) if flight.is_sent => flight.is_orphan = true,
                other => *other = None,
            }
        }
    }

    /// Moves what can be moved in both directions.
    pub fn service(&mut self, guest: &mut Guest) {
        self.take_responses(guest);
        if self.has_unsent {
            self.send_unsent(guest);
        }
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
                Ok(Some(Response::Opened { sectors, sector_size, is_read_only, has_cache })) => {
                    self.backing = Backing::Open(Volume { sectors, sector_size, is_read_only, has_cache });
                }
                Ok(Some(Response::Refused { reason })) => self.backing = Backing::Refused(reason),
                Ok(Some(Response::Done { id, status })) => self.done(guest, id, status),
                Ok(None) => return,
                Err(error) => {
                    log::warn!("blk channel: {error}");
                    self.link = None;
                }
            }
        }
    }

    fn done(&mut self, guest: &mut Guest, id: u16, status: blk::Status) {
        let Some(slot) = self.flights.get_mut(usize::from(id)) else { return };
        // An answer to nothing is blkback's mistake and changes nothing.
        let Some(flight) = slot.take_if(|flight| flight.is_sent) else { return };
        let mut status = if status == blk::Status::Ok { Status::Okay } else { Status::Error };
        if let Operation::Read(transfer) = &flight.operation
            && status == Status::Okay
            && !flight.is_orphan
            && copy(guest, &self.pool, place(flight.extent, transfer), transfer, Direction::Read).is_err()
        {
            status = Status::Error;
        }
        if let Some(extent) = flight.extent {
            self.extents.release(extent);
        }
        if !flight.is_orphan {
            self.respond(flight.tag, status);
        }
        // Room for a request that waited for it.
        self.has_unsent |= self.flights.iter().flatten().any(|flight| !flight.is_sent);
    }

    fn respond(&mut self, tag: Tag, status: Status) {
        if let Some(front) = &mut self.front {
            front.ring.respond(&tag.response(status));
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
            let Some(id) = self.flights.iter().position(Option::is_none) else { return Ok(()) };
            if self.has_unsent {
                return Ok(());
            }
            let entry = front.ring.peek(0);
            front.ring.take(1);
            let (tag, operation) = request::parse(&entry, volume.sectors);
            match operation {
                Err(status) => self.respond(tag, status),
                Ok(Operation::Write(_)) if volume.is_read_only => self.respond(tag, Status::Error),
                Ok(Operation::Flush) if !volume.has_cache => self.respond(tag, Status::Okay),
                Ok(operation) => {
                    let flight = Flight { tag, operation, extent: None, is_sent: false, is_orphan: false };
                    if let Some(slot) = self.flights.get_mut(id) {
                        *slot = Some(flight);
                    }
                    self.submit(guest, id);
                }
            }
        }
        // There may be more: come back without being asked.
        guest.events.kicks |= 1 << self.device;
        Ok(())
    }

    fn send_unsent(&mut self, guest: &mut Guest) {
        if !matches!(self.backing, Backing::Open(_)) {
            return;
        }
        self.has_unsent = false;
        for id in 0..IN_FLIGHT_MAX {
            if self.flights.get(id).is_some_and(|slot| slot.as_ref().is_some_and(|flight| !flight.is_sent)) {
                self.submit(guest, id);
                if self.has_unsent {
                    return;
                }
            }
        }
    }

    /// Sends request `id` to blkback; where that is not possible now it stays unsent.
    fn submit(&mut self, guest: &mut Guest, id: usize) {
        let Some(Some(flight)) = self.flights.get_mut(id) else { return };
        let Some(link) = &mut self.link else {
            self.has_unsent = true;
            return;
        };
        let message = match &flight.operation {
            Operation::Flush => Request::Flush { id: id as u16 },
            Operation::Read(transfer) | Operation::Write(transfer) => {
                let extent = if self.is_in_memory { None } else { self.extents.allocate(transfer.len) };
                if extent.is_none() && !self.is_in_memory {
                    self.has_unsent = true;
                    return;
                }
                let is_write = matches!(flight.operation, Operation::Write(_));
                let at = place(extent, transfer);
                if is_write && copy(guest, &self.pool, at, transfer, Direction::Write).is_err() {
                    if let Some(extent) = extent {
                        self.extents.release(extent);
                    }
                    let tag = flight.tag;
                    if let Some(slot) = self.flights.get_mut(id) {
                        *slot = None;
                    }
                    return self.respond(tag, Status::Error);
                }
                flight.extent = extent;
                Request::Transfer {
                    id: id as u16,
                    direction: if is_write { Direction::Write } else { Direction::Read },
                    sector: transfer.sector,
                    pool_offset: extent.map_or(0, |extent| extent.offset() as u32),
                    len: transfer.len,
                }
            }
        };
        match link.send(&message) {
            Ok(()) => flight.is_sent = true,
            Err(error) => {
                if let Some(extent) = flight.extent.take() {
                    self.extents.release(extent);
                }
                self.has_unsent = true;
                if error != SendError::Full {
                    log::warn!("blk channel: {error}");
                    self.link = None;
                }
            }
        }
    }
}

/// Where in the pool a transfer's bytes lie: in its extent, or in the volume.
fn place(extent: Option<Extent>, transfer: &Transfer) -> usize {
    // An offset outside of the pool is refused by the copy.
    let in_volume = || usize::try_from(transfer.sector.saturating_mul(blk::SECTOR)).unwrap_or(usize::MAX);
    extent.map_or_else(in_volume, Extent::offset)
}

/// Copies between the guest's pages and the pool from `at` on.
fn copy(
    guest: &Guest,
    pool: &Pool,
    mut at: usize,
    transfer: &Transfer,
    direction: Direction,
) -> Result<(), BadGrant> {
    let want = if direction == Direction::Read { Want::Write } else { Want::Read };
    for segment in &transfer.segments {
        let granted = guest.grants.acquire(&guest.memory, segment.grant, want)?;
        let page = granted.page.memory();
        let copied = match direction {
            Direction::Read => pool.copy_to(at, page, segment.offset, segment.len),
            Direction::Write => page.copy_to(segment.offset, pool, at, segment.len),
        };
        guest.grants.release(granted);
        copied.map_err(|_| BadGrant)?;
        at += segment.len;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
