//! The ring's notification protocol under every interleaving and reordering that the memory model allows.
//!
//! Each side does what a domain does: work until there is none, announce sleep, look again, sleep until
//! signalled. A lost wake-up is a deadlock, which loom reports; a lost, doubled or reordered message fails
//! an assertion.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use loom::sync::atomic::{AtomicU32, AtomicU64};
use loom::sync::{Condvar, Mutex};
use loom::thread;
use proto::ring::{Consumer, Index, LENGTH, Producer, RingHeader, Word};

#[derive(Debug)]
struct LoomIndex(AtomicU32);
impl Index for LoomIndex {
    fn load(&self, order: Ordering) -> u32 {
        self.0.load(order)
    }
    fn store(&self, value: u32, order: Ordering) {
        self.0.store(value, order);
    }
    fn swap(&self, value: u32, order: Ordering) -> u32 {
        self.0.swap(value, order)
    }
    fn fence() {
        loom::sync::atomic::fence(Ordering::SeqCst);
    }
}
impl Default for LoomIndex {
    fn default() -> Self {
        Self(AtomicU32::new(0))
    }
}

#[derive(Debug)]
struct LoomWord(AtomicU64);
impl Word for LoomWord {
    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
    fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }
}

/// An event as the kernel has it: signals stay until they are taken.
struct Event {
    is_set: Mutex<bool>,
    changed: Condvar,
}

impl Event {
    fn new() -> Self {
        Self { is_set: Mutex::new(false), changed: Condvar::new() }
    }
    fn signal(&self) {
        *self.is_set.lock().unwrap() = true;
        self.changed.notify_one();
    }
    fn wait(&self) {
        let mut is_set = self.is_set.lock().unwrap();
        while !*is_set {
            is_set = self.changed.wait(is_set).unwrap();
        }
        *is_set = false;
    }
}

struct Shared {
    header: RingHeader<LoomIndex>,
    words: Vec<LoomWord>,
    consumer: Event,
    producer: Event,
}

/// Words of a slot: the length with the first bytes of the message, and the rest.
const WORDS: usize = 2;

fn message(n: u64) -> [[u8; 8]; WORDS] {
    let mut slot = [[0; 8]; WORDS];
    slot.as_flattened_mut()[LENGTH..LENGTH + 8].copy_from_slice(&n.to_le_bytes());
    slot
}

/// What the consumer does after it has announced its sleep.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    /// It sleeps.
    Sleeps,
    /// Something else wakes it once: it takes the announcement back and looks again.
    StaysAwake,
}

fn exchange(messages: u64, slots: usize, then: Then) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(move || {
        let shared = Arc::new(Shared {
            header: RingHeader::default(),
            words: (0..slots * WORDS).map(|_| LoomWord(AtomicU64::new(0))).collect(),
            consumer: Event::new(),
            producer: Event::new(),
        });
        let other = shared.clone();
        let producer = thread::spawn(move || {
            let mut ring = Producer::new(&other.header, &other.words, WORDS);
            for n in 1..=messages {
                while ring.push(&mut message(n), 8).unwrap().is_err() {
                    if ring.prepare_sleep().unwrap() {
                        other.producer.wait();
                    }
                }
                if ring.must_notify() {
                    other.consumer.signal();
                }
            }
        });
        let mut ring = Consumer::new(&shared.header, &shared.words, WORDS);
        let mut expected = 1;
        let mut then = then;
        while expected <= messages {
            let mut slot = [[0; 8]; WORDS];
            if let Some(len) = ring.pop(&mut slot).unwrap() {
                assert_eq!(
                    (len, slot.as_flattened()[LENGTH..].first_chunk()),
                    (8, Some(&expected.to_le_bytes()))
                );
                expected += 1;
                if ring.must_notify() {
                    shared.producer.signal();
                }
            } else if ring.prepare_sleep().unwrap() {
                match std::mem::replace(&mut then, Then::Sleeps) {
                    Then::Sleeps => shared.consumer.wait(),
                    Then::StaysAwake => ring.stay_awake(),
                }
            }
        }
        producer.join().unwrap();
    });
}

#[test]
fn no_wake_up_is_lost_while_the_ring_runs_empty() {
    exchange(2, 2, Then::Sleeps);
}

#[test]
fn no_wake_up_is_lost_while_the_ring_runs_full() {
    exchange(3, 1, Then::Sleeps);
}

#[test]
fn no_wake_up_is_lost_when_the_announcement_is_taken_back() {
    exchange(2, 2, Then::StaysAwake);
}
