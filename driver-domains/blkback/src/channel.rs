//! One channel: which requests it has in flight, and which of them still wait for the device.
//!
//! Invariant: an id is in `requests` from the request until its one answer.

use alloc::collections::VecDeque;
use core::array;

use proto::blk::{IN_FLIGHT_MAX, POOL_SIZE, Request, Status};
use proto::channel::Region;

use crate::disk::{Geometry, Operation, Outcome};
use crate::request::Transfer;

/// A request in flight.
#[derive(Debug, Clone, Copy)]
struct Active {
    /// `None`: a flush.
    transfer: Option<Transfer>,
    /// Bytes that operations were made of; for a flush 1 once it was submitted.
    done: u32,
    /// Operations at the device.
    outstanding: u16,
    has_failed: bool,
}

impl Active {
    /// The next operation and how far it brings the request; `None`: all were made.
    fn next(&self, volume: &Geometry, pool: u64) -> Option<(Operation, u32)> {
        if self.has_failed {
            return None;
        }
        match self.transfer {
            Some(transfer) => transfer.operation(volume, pool, self.done),
            None => (self.done == 0).then_some((Operation::Flush, 1)),
        }
    }
}

/// How far a channel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Not opened, or refused.
    Closed,
    /// In use.
    Open {
        /// Writes are refused.
        is_read_only: bool,
    },
    /// The peer broke the rules: nothing is taken from it or sent to it any more.
    Dropped,
}

/// What a channel's requests are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// There is no volume of the name.
    Nothing,
    /// The volume with this index.
    Volume(usize),
    /// Memory of the client's own: what is right is answered at once.
    Memory(Geometry),
}

/// A channel.
#[derive(Debug)]
pub(crate) struct Channel<C> {
    pub(crate) client: C,
    pub(crate) id: u32,
    pub(crate) pool: Region,
    pub(crate) volume: Source,
    pub(crate) is_read_only: bool,
    pub(crate) state: State,
    pub(crate) is_detaching: bool,
    requests: [Option<Active>; IN_FLIGHT_MAX],
    /// Ids with operations still to be made.
    waiting: VecDeque<u16>,
    /// Operations at the device.
    outstanding: usize,
}

impl<C> Channel<C> {
    pub(crate) fn new(client: C, id: u32, pool: Region, volume: Source, is_read_only: bool) -> Self {
        Self {
            client,
            id,
            pool,
            volume,
            is_read_only,
            state: State::Closed,
            is_detaching: false,
            requests: array::from_fn(|_| None),
            waiting: VecDeque::with_capacity(IN_FLIGHT_MAX),
            outstanding: 0,
        }
    }

    /// Whether answers may be sent.
    pub(crate) fn is_alive(&self) -> bool {
        self.state != State::Dropped && !self.is_detaching
    }

    /// Whether no device accesses the pool.
    pub(crate) fn is_idle(&self) -> bool {
        self.outstanding == 0
    }

    /// Forgets what was not submitted yet; the device finishes the rest.
    pub(crate) fn abandon(&mut self) {
        self.waiting.clear();
    }

    /// Takes a transfer or flush over, or says the answer at once.
    ///
    /// # Errors
    /// The answer, when nothing is to be done at the device.
    pub(crate) fn accept(
        &mut self,
        request: &Request,
        volume: Option<&Geometry>,
    ) -> Result<(), (u16, Status)> {
        let (id, transfer) = match *request {
            Request::Transfer { id, direction, sector, pool_offset, len } => {
                (id, Some(Transfer { direction, sector, pool_offset, len }))
            }
            Request::Flush { id } => (id, None),
            Request::Open => return Ok(()),
        };
        let bad = (id, Status::BadRequest);
        let (State::Open { is_read_only }, Some(volume)) = (self.state, volume) else { return Err(bad) };
        let slot = self.requests.get_mut(usize::from(id)).filter(|slot| slot.is_none()).ok_or(bad)?;
        match transfer {
            Some(transfer) => {
                let pool = if matches!(self.volume, Source::Memory(_)) { 0 } else { POOL_SIZE };
                transfer.check(volume, pool, is_read_only).map_err(|status| (id, status))?;
                if pool == 0 {
                    return Err((id, Status::Ok));
                }
            }
            // Without a cache, what was answered before is on stable storage already.
            None if !volume.has_flush => return Err((id, Status::Ok)),
            None => {}
        }
        *slot = Some(Active { transfer, done: 0, outstanding: 0, has_failed: false });
        self.waiting.push_back(id);
        Ok(())
    }

    /// The next operation for the device; the id stays in front until its last one.
    pub(crate) fn next_operation(&mut self, volume: &Geometry) -> Option<(u16, Operation)> {
        loop {
            let id = *self.waiting.front()?;
            let active = self.requests.get_mut(usize::from(id)).and_then(Option::as_mut);
            let next = active.and_then(|active| Some((active.next(volume, self.pool.addr)?, active)));
            let Some(((operation, step), active)) = next else {
                self.waiting.pop_front();
                continue;
            };
            active.done = active.done.saturating_add(step);
            active.outstanding += 1;
            self.outstanding += 1;
            if active.next(volume, self.pool.addr).is_none() {
                self.waiting.pop_front();
            }
            return Some((id, operation));
        }
    }

    /// An operation of request `id` ended; answers the request's status when that was its last one.
    pub(crate) fn ended(&mut self, id: u16, outcome: Outcome, volume: &Geometry) -> Option<Status> {
        let slot = self.requests.get_mut(usize::from(id))?;
        let active = slot.as_mut()?;
        active.outstanding = active.outstanding.checked_sub(1)?;
        self.outstanding = self.outstanding.saturating_sub(1);
        active.has_failed |= outcome == Outcome::Error;
        if active.outstanding > 0 || active.next(volume, self.pool.addr).is_some() {
            return None;
        }
        let status = if active.has_failed { Status::IoError } else { Status::Ok };
        *slot = None;
        // A request that failed halfway may still stand here; its id is free for the client again.
        self.waiting.retain(|waiting| *waiting != id);
        Some(status)
    }
}
