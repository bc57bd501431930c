//! Event: an asynchronous notification, a mask of 64 signals with at most one thread that waits.
//!
//! Signalling and waiting take no lock: the pending mask and the waiter are atomics. A waiter publishes
//! itself, then looks at the mask again; a signaller sets the mask, then takes the waiter. Whoever takes
//! the waiter out of the cell makes it run, and nobody else does.

use core::cell::Cell;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use proto::abi::{Error, ObjectType};

use super::thread::Thread;
use super::{Header, Object};
use crate::timer::TimerNode;

/// The object.
#[derive(Debug)]
#[repr(C)]
pub struct Event {
    header: Header,
    pending: AtomicU64,
    waiter: AtomicPtr<Thread>,
    /// Its one timer.
    pub timer: TimerNode,
    /// First of the threads whose faults signal this event.
    pub fault_sources: Cell<Option<&'static Thread>>,
}

impl Object for Event {
    const KIND: ObjectType = ObjectType::Event;
    fn header(&self) -> &Header {
        &self.header
    }
}

impl Default for Event {
    fn default() -> Self {
        Self::new()
    }
}

impl Event {
    /// An event without signals.
    pub const fn new() -> Self {
        Self {
            header: Header { cap: Cell::new(None) },
            pending: AtomicU64::new(0),
            waiter: AtomicPtr::new(core::ptr::null_mut()),
            timer: TimerNode::new(),
            fault_sources: Cell::new(None),
        }
    }

    /// Sets signals; answers the thread that must now run, which the caller has to make ready.
    #[inline(always)]
    pub fn signal(&self, signals: u64) -> Option<&'static Thread> {
        self.pending.fetch_or(signals, Ordering::SeqCst);
        self.take_waiter()
    }

    /// Takes all signals.
    #[inline(always)]
    pub fn take(&self) -> u64 {
        if self.pending.load(Ordering::Relaxed) == 0 { 0 } else { self.pending.swap(0, Ordering::SeqCst) }
    }

    /// Takes all signals, of which there is at least one unless somebody was faster.
    #[inline(always)]
    pub fn collect(&self) -> u64 {
        self.pending.swap(0, Ordering::SeqCst)
    }

    /// Makes `thread` the waiter. `Ok(0)`: it has to block; otherwise the signals that were there.
    ///
    /// # Errors
    /// `Busy` when another thread waits.
    #[inline(always)]
    pub fn wait(&self, thread: &'static Thread) -> Result<u64, Error> {
        let signals = self.take();
        if signals != 0 {
            return Ok(signals);
        }
        let me = core::ptr::from_ref(thread).cast_mut();
        if self
            .waiter
            .compare_exchange(core::ptr::null_mut(), me, Ordering::SeqCst, Ordering::Relaxed)
            .is_err()
        {
            return Err(Error::Busy);
        }
        // A signal between `take` and the exchange did not see the waiter: take it back. If somebody else
        // already took it, that one makes the thread ready and the signals are read when it runs.
        if self.pending.load(Ordering::SeqCst) != 0 && self.cancel_wait(thread) {
            return Ok(self.take());
        }
        Ok(0)
    }

    /// Stops waiting; `false`: a signaller was faster.
    #[inline(always)]
    pub fn cancel_wait(&self, thread: &'static Thread) -> bool {
        let me = core::ptr::from_ref(thread).cast_mut();
        self.waiter.compare_exchange(me, core::ptr::null_mut(), Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }

    /// Sets signals without waking anybody: the caller took the waiter before.
    pub fn add(&self, signals: u64) {
        self.pending.fetch_or(signals, Ordering::SeqCst);
    }

    /// Signals are pending.
    #[inline(always)]
    pub fn is_pending(&self) -> bool {
        self.pending.load(Ordering::SeqCst) != 0
    }

    /// Who waits now, if anybody does.
    #[inline(always)]
    #[expect(unsafe_code, reason = "the waiter is an atomic pointer to a thread object")]
    pub fn waiter(&self) -> Option<&'static Thread> {
        // SAFETY: a thread leaves the cell before it is destroyed (`Thread::leave_objects`).
        unsafe { self.waiter.load(Ordering::Relaxed).as_ref() }
    }

    /// Takes exactly this waiter, whom the caller then gives its signals directly; `false`: somebody was
    /// faster. Signals that are pending stay for the thread's next wait.
    #[inline(always)]
    pub fn take_this_waiter(&self, thread: &'static Thread) -> bool {
        let waiter = core::ptr::from_ref(thread).cast_mut();
        self.waiter
            .compare_exchange(waiter, core::ptr::null_mut(), Ordering::SeqCst, Ordering::Relaxed)
            .is_ok()
    }

    /// Makes `thread` the waiter, if nobody waits and nothing is pending. `false`: it does not wait.
    #[inline(always)]
    pub fn begin_wait(&self, thread: &'static Thread) -> bool {
        let me = core::ptr::from_ref(thread).cast_mut();
        if self
            .waiter
            .compare_exchange(core::ptr::null_mut(), me, Ordering::SeqCst, Ordering::Relaxed)
            .is_err()
        {
            return false;
        }
        // As in `wait`: whoever signalled before the exchange did not see the waiter.
        !(self.is_pending() && self.cancel_wait(thread))
    }

    #[inline(always)]
    #[expect(unsafe_code, reason = "the waiter is an atomic pointer to a thread object")]
    fn take_waiter(&self) -> Option<&'static Thread> {
        if self.waiter.load(Ordering::Relaxed).is_null() {
            return None;
        }
        let waiter = self.waiter.swap(core::ptr::null_mut(), Ordering::SeqCst);
        // SAFETY: a thread leaves the cell before it is destroyed (`Thread::leave_objects`).
        unsafe { waiter.as_ref() }
    }

    /// Before destruction: the waiter, whose wait has to fail.
    pub fn dissolve(&self) -> Option<&'static Thread> {
        self.take_waiter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_takes_what_was_signalled_before_it() {
        let event = Event::new();
        assert!(event.signal(5).is_none());
        assert!(event.signal(2).is_none());
        assert_eq!(event.take(), 7);
        assert_eq!(event.take(), 0);
    }

    #[test]
    fn the_second_waiter_is_refused_and_the_first_is_handed_to_the_signaller_once() {
        let event = Event::new();
        let (first, second) = (Thread::leak_for_test(), Thread::leak_for_test());
        assert_eq!(event.wait(first), Ok(0));
        assert_eq!(event.wait(second), Err(Error::Busy));
        assert!(core::ptr::eq(event.signal(1).unwrap(), first));
        assert!(event.signal(2).is_none());
        assert_eq!(event.wait(second), Ok(3));
    }

    #[test]
    fn a_cancelled_wait_is_not_woken() {
        let event = Event::new();
        let thread = Thread::leak_for_test();
        assert_eq!(event.wait(thread), Ok(0));
        assert!(event.cancel_wait(thread));
        assert!(!event.cancel_wait(thread));
        assert!(event.signal(1).is_none());
    }
}
