//! Timer queue of a CPU: deadlines in TSC ticks, the earliest at hand.
//!
//! A leftist heap whose nodes are parts of the events: the earliest deadline is at the root, a node's right
//! spine is its shortest, of at most log2(n + 1) nodes. Arming, disarming and firing take two walks along such
//! spines at most, whatever the order in which somebody arms: with a thousand domains about ten steps each. (A
//! sorted list took a step per armed timer; a pairing heap does its work late, all at once in an interrupt.)
//! Touched only by its own CPU.

use core::cell::Cell;

use crate::object::event::Event;

type Link = Option<&'static Event>;

/// A timer's place in the queue; part of an event.
#[derive(Debug)]
pub struct TimerNode {
    /// 0: not in the queue.
    deadline: Cell<u64>,
    signals: Cell<u64>,
    parent: Cell<Link>,
    left: Cell<Link>,
    right: Cell<Link>,
    /// Nodes of the right spine from here on, this one included.
    rank: Cell<u32>,
}

impl Default for TimerNode {
    fn default() -> Self {
        Self::new()
    }
}

impl TimerNode {
    /// Not armed.
    pub const fn new() -> Self {
        Self {
            deadline: Cell::new(0),
            signals: Cell::new(0),
            parent: Cell::new(None),
            left: Cell::new(None),
            right: Cell::new(None),
            rank: Cell::new(1),
        }
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

fn rank(link: Link) -> u32 {
    link.map_or(0, |event| event.timer.rank.get())
}

/// Puts the child with the longer right spine on the left; answers whether the node's rank changed.
fn balance(event: &'static Event) -> bool {
    let timer = &event.timer;
    let (left, right) = (timer.left.get(), timer.right.get());
    if rank(left) < rank(right) {
        timer.left.set(right);
        timer.right.set(left);
    }
    let now = rank(timer.right.get()) + 1;
    timer.rank.replace(now) != now
}

/// Joins two heaps into one, whose root has no parent.
fn join(a: Link, b: Link) -> Link {
    // Down the two right spines, earliest first: the list of what was taken is threaded through `parent`.
    let (mut a, mut b) = (a, b);
    let mut above: Link = None;
    let mut joined = loop {
        let (Some(x), Some(y)) = (a, b) else { break a.or(b) };
        let (first, other) = if y.timer.deadline.get() < x.timer.deadline.get() { (y, x) } else { (x, y) };
        first.timer.parent.set(above);
        above = Some(first);
        (a, b) = (first.timer.right.get(), Some(other));
    };
    // And up again, with the rest as the lowest one's right child.
    while let Some(node) = above {
        above = node.timer.parent.get();
        node.timer.right.set(joined);
        if let Some(child) = joined {
            child.timer.parent.set(Some(node));
        }
        balance(node);
        joined = Some(node);
    }
    if let Some(root) = joined {
        root.timer.parent.set(None);
    }
    joined
}

/// The queue.
#[derive(Debug, Default)]
pub struct TimerQueue {
    first: Cell<Link>,
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
        event.timer.rank.set(1);
        self.first.set(join(self.first.get(), Some(event)));
    }

    /// Disarms the event's timer, if it is armed.
    pub fn cancel(&self, event: &Event) {
        let timer = &event.timer;
        if !timer.is_armed() {
            return;
        }
        timer.deadline.set(0);
        let parent = timer.parent.take();
        let rest = join(timer.left.take(), timer.right.take());
        let Some(mut node) = parent else {
            self.first.set(rest);
            return;
        };
        if let Some(root) = rest {
            root.timer.parent.set(parent);
        }
        let is_left = node.timer.left.get().is_some_and(|left| core::ptr::eq(left, event));
        let side = if is_left { &node.timer.left } else { &node.timer.right };
        side.set(rest);
        // A rank that changed may change the one above; there are at most as many as a spine has nodes.
        while balance(node) {
            match node.timer.parent.get() {
                Some(parent) => node = parent,
                None => break,
            }
        }
    }

    /// The earliest deadline.
    #[inline(always)]
    pub fn next_deadline(&self) -> Option<u64> {
        self.first.get().map(|event| event.timer.deadline.get())
    }

    /// Takes the first timer if it is due.
    pub fn pop_due(&self, now: u64) -> Link {
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

    /// Nodes, after looking at what has to hold everywhere: heap order, parents, ranks, the short right spine.
    fn check(link: Link, parent: Link) -> usize {
        let Some(event) = link else { return 0 };
        let timer = &event.timer;
        assert!(timer.is_armed());
        assert_eq!(timer.parent.get().map(core::ptr::from_ref), parent.map(core::ptr::from_ref));
        let (left, right) = (timer.left.get(), timer.right.get());
        for child in [left, right].into_iter().flatten() {
            assert!(child.timer.deadline.get() >= timer.deadline.get());
        }
        assert!(rank(left) >= rank(right));
        assert_eq!(timer.rank.get(), rank(right) + 1);
        let nodes = 1 + check(left, link) + check(right, link);
        assert!(timer.rank.get() <= (nodes + 1).ilog2());
        nodes
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn a_thousand_timers_stay_a_leftist_heap(
            steps in prop::collection::vec((0usize..1000, 0u64..4, any::<u32>()), 1..3000),
            order in 0u8..3,
        ) {
            let queue = TimerQueue::new();
            let events: Vec<_> = (0..1000).map(|_| event()).collect();
            let mut model = std::collections::BTreeMap::new();
            for (n, (which, action, deadline)) in steps.into_iter().enumerate() {
                // Rising, falling or any order: none of them may degenerate.
                let deadline = match order {
                    0 => 1 + n as u64,
                    1 => 1_000_000 - n as u64,
                    _ => 1 + u64::from(deadline % 500),
                };
                if action == 0 {
                    queue.cancel(events[which]);
                    model.remove(&which);
                } else {
                    queue.arm(events[which], deadline, which as u64);
                    model.insert(which, deadline);
                }
                if n % 64 == 0 {
                    prop_assert_eq!(check(queue.first.get(), None), model.len());
                    prop_assert_eq!(queue.next_deadline(), model.values().min().copied());
                }
            }
            let mut last = 0;
            while let Some(event) = queue.pop_due(u64::MAX) {
                let deadline = model.remove(&(event.timer.signals() as usize)).unwrap();
                prop_assert!(deadline >= last && !event.timer.is_armed());
                last = deadline;
            }
            prop_assert!(model.is_empty());
        }
    }
}
