//! Run queue of a CPU: fixed priorities; within one, round robin with slices as long as the weight says.
//!
//! A bitmap finds the highest priority in constant time. The running thread is not queued. Touched only
//! by its own CPU.

use core::cell::Cell;

use crate::object::thread::Thread;

/// Where in its priority's queue a thread is put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// First: it was preempted, and goes on with what is left of its slice.
    Front,
    /// It ran until now; before the first who had more of its share.
    ByShare,
    /// Last: it used its slice, or has no peers; a new slice begins.
    Back,
}

#[derive(Debug)]
struct Level {
    first: Cell<Option<&'static Thread>>,
    last: Cell<Option<&'static Thread>>,
    time: Cell<u64>,
}

/// The queue.
#[derive(Debug)]
pub struct RunQueue {
    occupied: Cell<u64>,
    levels: [Level; 64],
}

impl Default for RunQueue {
    fn default() -> Self {
        Self::new()
    }
}

impl RunQueue {
    /// An empty queue.
    pub const fn new() -> Self {
        Self {
            occupied: Cell::new(0),
            levels: [const { Level { first: Cell::new(None), last: Cell::new(None), time: Cell::new(0) } };
                64],
        }
    }

    /// Priority of the first thread, if any.
    #[inline(always)]
    pub fn highest(&self) -> Option<u8> {
        let occupied = self.occupied.get();
        if occupied == 0 { None } else { Some(63 - occupied.leading_zeros() as u8) }
    }

    /// A thread of this priority waits.
    #[inline(always)]
    pub fn has_level(&self, priority: u8) -> bool {
        self.occupied.get() & 1 << (priority & 63) != 0
    }

    /// Who of this priority is next.
    pub fn first_of(&self, priority: u8) -> Option<&'static Thread> {
        self.levels[(priority & 63) as usize].first.get()
    }

    /// The time of a priority (`Thread::share_used` of who had least), which belongs to who places woken threads.
    #[inline(always)]
    pub fn time_of(&self, priority: u8) -> &Cell<u64> {
        &self.levels[(priority & 63) as usize].time
    }

    /// Nobody of this priority or above waits.
    #[inline(always)]
    pub fn is_clear_from(&self, priority: u8) -> bool {
        self.occupied.get() >> (priority & 63) == 0
    }

    /// Queues a thread; who queues the running one at the back sets its `slice_start`.
    #[inline]
    pub fn push(&self, thread: &'static Thread, place: Place) {
        let level = self.level(thread);
        match place {
            Place::Back => {
                thread.slice_start.set(thread.time.get());
                self.insert(thread, level.last.get(), None);
            }
            Place::Front => self.insert(thread, None, level.first.get()),
            Place::ByShare => {
                let _behind = self.push_by_share(thread, thread.share_used(true));
            }
        }
    }

    /// Queues a thread that used this much of its share before the first who had more; answers whom it is behind. Looks
    /// at those who had less, and one more.
    pub fn push_by_share(&self, thread: &'static Thread, share: u64) -> Option<&'static Thread> {
        let (mut prev, mut next) = (None, self.level(thread).first.get());
        while let Some(peer) = next
            && peer.share_used(false).wrapping_sub(share) as i64 <= 0
        {
            (prev, next) = (next, peer.queue_next.get());
        }
        self.insert(thread, prev, next);
        prev
    }

    #[inline(always)]
    fn level(&self, thread: &Thread) -> &Level {
        &self.levels[(thread.priority.get() & 63) as usize]
    }

    #[inline(always)]
    fn insert(&self, thread: &'static Thread, prev: Option<&'static Thread>, next: Option<&'static Thread>) {
        debug_assert!(!thread.is_queued.get());
        let level = self.level(thread);
        thread.is_queued.set(true);
        thread.queue_prev.set(prev);
        thread.queue_next.set(next);
        match prev {
            Some(prev) => prev.queue_next.set(Some(thread)),
            None => level.first.set(Some(thread)),
        }
        match next {
            Some(next) => next.queue_prev.set(Some(thread)),
            None => level.last.set(Some(thread)),
        }
        self.occupied.set(self.occupied.get() | 1 << (thread.priority.get() & 63));
    }

    /// Takes the first thread of the highest priority.
    #[inline]
    pub fn pop(&self) -> Option<&'static Thread> {
        let priority = self.highest()?;
        let thread = self.levels[(priority & 63) as usize].first.get()?;
        self.remove(thread);
        Some(thread)
    }

    /// Takes a queued thread out; nothing happens when it is not queued.
    #[inline]
    pub fn remove(&self, thread: &'static Thread) {
        if !thread.is_queued.replace(false) {
            return;
        }
        let priority = thread.priority.get() & 63;
        let level = &self.levels[priority as usize];
        let (prev, next) = (thread.queue_prev.take(), thread.queue_next.take());
        match prev {
            Some(prev) => prev.queue_next.set(next),
            None => level.first.set(next),
        }
        match next {
            Some(next) => next.queue_prev.set(prev),
            None => level.last.set(prev),
        }
        if level.first.get().is_none() {
            self.occupied.set(self.occupied.get() & !(1 << priority));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn thread(priority: u8) -> &'static Thread {
        let thread = Thread::leak_for_test();
        thread.priority.set(priority);
        thread
    }

    #[test]
    fn a_preempted_thread_goes_on_before_its_peers() {
        let queue = RunQueue::new();
        let (a, b) = (thread(5), thread(5));
        queue.push(a, Place::Back);
        queue.push(b, Place::Front);
        assert!(core::ptr::eq(queue.pop().unwrap(), b));
        assert!(core::ptr::eq(queue.pop().unwrap(), a));
        assert!(queue.pop().is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn the_queue_agrees_with_a_sorted_model(
            steps in prop::collection::vec((0usize..12, 0u8..4), 1..80)
        ) {
            let queue = RunQueue::new();
            let threads: Vec<_> = (0..12).map(|n| thread([0, 7, 63][n % 3])).collect();
            // Each had another amount of its share, in no order.
            for (n, thread) in threads.iter().enumerate() {
                thread.time.set(n as u64 * 7 % 12 * 1024);
            }
            let mut model: Vec<usize> = Vec::new();
            for (which, action) in steps {
                let is_in = model.contains(&which);
                match action {
                    0 if !is_in => { queue.push(threads[which], Place::Back); model.push(which); }
                    1 if !is_in => { queue.push(threads[which], Place::Front); model.insert(0, which); }
                    3 if !is_in => {
                        let share = |n: usize| threads[n].time.get();
                        let is_peer = |n: usize| n % 3 == which % 3;
                        let behind = queue.push_by_share(threads[which], share(which));
                        let more = model.iter().position(|&n| is_peer(n) && share(n) > share(which));
                        let at = more.unwrap_or(model.len());
                        let expected = model[..at].iter().rev().find(|&&n| is_peer(n)).map(|&n| threads[n].time.get());
                        prop_assert_eq!(behind.map(|peer| peer.time.get()), expected);
                        model.insert(at, which);
                    }
                    2 => { queue.remove(threads[which]); model.retain(|&n| n != which); }
                    _ => {
                        let best = model.iter().map(|&n| threads[n].priority.get()).max();
                        prop_assert_eq!(queue.highest(), best);
                        let expected = best.and_then(|best| {
                            let at = model.iter().position(|&n| threads[n].priority.get() == best)?;
                            Some(model.remove(at))
                        });
                        let got = queue.pop().map(|t| threads.iter().position(|&o| core::ptr::eq(o, t)).unwrap());
                        prop_assert_eq!(got, expected);
                    }
                }
            }
        }
    }
}
