//! A disk and a client for tests: the disk ends operations when and how it is told to.

use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;

use proto::blk::{Request, Response};

use crate::backend::{Client, Gone};
use crate::disk::{Disk, Geometry, Operation, Outcome, Tag};

/// What the disk's device sets.
pub(crate) const DEVICE_SIGNAL: u64 = 1 << 63;

pub(crate) const GEOMETRY: Geometry = Geometry {
    sectors: 10_000,
    sector_size: 512,
    is_read_only: false,
    has_flush: true,
    operation_max: 64 * 1024,
};

#[derive(Debug)]
pub(crate) struct DiskState {
    pub(crate) name: &'static str,
    pub(crate) geometry: Geometry,
    pub(crate) capacity: usize,
    pub(crate) queued: Vec<(Tag, Operation)>,
    pub(crate) ended: VecDeque<(Tag, Outcome)>,
    pub(crate) is_broken: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct FakeDisk(pub(crate) Rc<RefCell<DiskState>>);

impl FakeDisk {
    pub(crate) fn new(name: &'static str, geometry: Geometry, capacity: usize) -> Self {
        let state = DiskState {
            name,
            geometry,
            capacity,
            queued: Vec::new(),
            ended: VecDeque::new(),
            is_broken: false,
        };
        Self(Rc::new(RefCell::new(state)))
    }

    /// Ends the queued operation at `index`.
    pub(crate) fn end(&self, index: usize, outcome: Outcome) {
        let mut state = self.0.borrow_mut();
        let (tag, _) = state.queued.remove(index);
        state.ended.push_back((tag, outcome));
    }

    pub(crate) fn queued(&self) -> Vec<(Tag, Operation)> {
        self.0.borrow().queued.clone()
    }
}

impl Disk for FakeDisk {
    fn name(&self) -> &str {
        self.0.borrow().name
    }
    fn geometry(&self) -> Geometry {
        self.0.borrow().geometry
    }
    fn signals(&self) -> u64 {
        DEVICE_SIGNAL
    }
    fn room(&self) -> usize {
        let state = self.0.borrow();
        state.capacity - state.queued.len() - state.ended.len()
    }
    fn submit(&mut self, tag: Tag, operation: Operation) -> Option<Outcome> {
        let mut state = self.0.borrow_mut();
        assert!(state.queued.len() + state.ended.len() < state.capacity);
        if state.is_broken {
            return Some(Outcome::Error);
        }
        state.queued.push((tag, operation));
        None
    }
    fn kick(&mut self) {}
    fn complete(&mut self) -> Option<(Tag, Outcome)> {
        self.0.borrow_mut().ended.pop_front()
    }
}

#[derive(Debug, Default)]
pub(crate) struct ClientState {
    pub(crate) requests: VecDeque<Request>,
    pub(crate) responses: Vec<Response>,
    /// Responses that the client was told of.
    pub(crate) flushed: usize,
    pub(crate) is_broken: bool,
    /// Answers that fit before the ring is full; 0: any number.
    pub(crate) limit: usize,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct FakeClient(pub(crate) Rc<RefCell<ClientState>>);

impl FakeClient {
    pub(crate) fn ask(&self, request: Request) {
        self.0.borrow_mut().requests.push_back(request);
    }
    /// The answers since the last call.
    pub(crate) fn answers(&self) -> Vec<Response> {
        let mut state = self.0.borrow_mut();
        // A client that does not take its answers is dropped, and is told nothing any more.
        assert!(state.limit > 0 || state.flushed == state.responses.len(), "an answer was not flushed");
        state.flushed = 0;
        core::mem::take(&mut state.responses)
    }
}

impl Client for FakeClient {
    fn receive(&mut self) -> Result<Option<Request>, Gone> {
        let mut state = self.0.borrow_mut();
        if state.is_broken { Err(Gone) } else { Ok(state.requests.pop_front()) }
    }
    fn answer(&mut self, response: &Response) -> Result<(), Gone> {
        let mut state = self.0.borrow_mut();
        if state.is_broken || (state.limit > 0 && state.responses.len() >= state.limit) {
            return Err(Gone);
        }
        state.responses.push(*response);
        Ok(())
    }
    fn flush(&mut self) {
        let mut state = self.0.borrow_mut();
        state.flushed = state.responses.len();
    }
    fn prepare_sleep(&mut self) -> Result<bool, Gone> {
        let state = self.0.borrow();
        if state.is_broken { Err(Gone) } else { Ok(state.requests.is_empty()) }
    }
}
