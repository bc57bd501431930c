//! Timer queue of a CPU: deadlines in TSC ticks, earliest first.
//!
//! A sorted intrusive list: the common cases (the next deadline is the earliest, or the only one) are
//! O(1); insertion is O(number of armed timers), of which a domain has one.
//! Touched only by its own CPU.

use core::cell::Cell;

use crate::object::event::Event;

/// A timer's place in the queue; part of an event.
#[derive(Debug)]
pub struct TimerNode {
    deadline: Cell<u64>,
    signals: Cell<u64>,
    prev: Cell<Option<&'static Event>>,
    next: Cell<Option<&'static Event>>,
}

impl Default for TimerNode {
    fn default() -> Self {
        Self::new()
    }
}

impl TimerNode {
    /// Not armed.
    pub const fn new() -> Self {
        Self { deadline: Cell::new(0), signals: Cell::new(0), prev: Cell::new(None), next: Cell::new(None) }
    }

    /// Signals to set when it fires.
    pub fn signals(&self) -> u64 {
        self.signals.get()
    }

    /// In the queue.
    pub fn is_armed(&self) -> bool {
        self.deadline.get() != 0
    }
}

/// The queue.
#[derive(Debug, Default)]
pub struct TimerQueue {
    first: Cell<Option<&'static Event>>,
}

impl TimerQueue {
    /// An empty queue.
    pub const fn new() -> Self {
        Self { first: Cell::new(None) }
    }

    /// Arms the event's timer for `deadline` (not 0), replacing an earlier one.
    pub fn arm(&self, event: &'static Event, deadline: u64, signals: u64) {
        self.cancel(event);
        event.timer.deadline.set(deadline);
        event.timer.signals.set(signals);
        let mut before: Option<&'static Event> = None;
        let mut after = self.first.get();
        while let Some(node) = after {
            if node.timer.deadline.get() > deadline {
                break;
            }
            before = after;
            after = node.timer.next.get();
        }
        event.timer.prev.set(before);
        event.timer.next.set(after);
        match before {
            Some(node) => node.timer.next.set(Some(event)),
            None => self.first.set(Some(event)),
        }
        if let Some(node) = after {
            node.timer.prev.set(Some(event));
        }
    }

    /// Disarms the event's timer, if it is armed.
    pub fn cancel(&self, event: &Event) {
        let timer = &event.timer;
        if !timer.is_armed() {
            return;
        }
        let (prev, next) = (timer.prev.take(), timer.next.take());
        match prev {
            Some(node) => node.timer.next.set(next),
            None => self.first.set(next),
        }
        if let Some(node) = next {
            node.timer.prev.set(prev);
        }
        timer.deadline.set(0);
    }

    /// The earliest deadline.
    #[inline]
    pub fn next_deadline(&self) -> Option<u64> {
        self.first.get().map(|event| event.timer.deadline.get())
    }

    /// Takes the earliest timer out if it is due.
    pub fn pop_due(&self, now: u64) -> Option<&'static Event> {
        let event = self.first.get().filter(|event| event.timer.deadline.get() <= now)?;
        self.cancel(event);
        Some(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event() -> &'static Event {
        Box::leak(Box::new(Event::new()))
    }

    #[test]
    fn rearming_replaces_and_cancelling_twice_is_harmless() {
        let queue = TimerQueue::new();
        let one = event();
        queue.arm(one, 10, 1);
        queue.arm(one, 20, 2);
        assert_eq!(queue.next_deadline(), Some(20));
        assert!(queue.pop_due(19).is_none());
        assert_eq!(queue.pop_due(20).map(|e| e.timer.signals()), Some(2));
        queue.cancel(one);
        assert_eq!(queue.next_deadline(), None);
    }

    proptest! {
        #[test]
        fn timers_fire_in_order_of_their_deadlines(
            steps in prop::collection::vec((0usize..8, 0u64..50), 1..60)
        ) {
            let queue = TimerQueue::new();
            let events: Vec<_> = (0..8).map(|_| event()).collect();
            let mut model = std::collections::BTreeMap::new();
            for (which, deadline) in steps {
                if deadline == 0 {
                    queue.cancel(events[which]);
                    model.remove(&which);
                } else {
                    queue.arm(events[which], deadline, which as u64);
                    model.insert(which, deadline);
                }
                prop_assert_eq!(queue.next_deadline(), model.values().min().copied());
            }
            let mut fired = Vec::new();
            while let Some(event) = queue.pop_due(u64::MAX) {
                fired.push(model[&(event.timer.signals() as usize)]);
            }
            prop_assert_eq!(fired.len(), model.len());
            prop_assert!(fired.is_sorted());
        }
    }
}
