//! The shared ring: a single-producer single-consumer queue of fixed-size slots in shared frames.
//!
//! Both ends may be hostile to each other. Each end keeps its own index in private memory and reads
//! only the other's; a distance that cannot be is [`RingError::Index`]. Slots are copied out word by
//! word (relaxed atomics, so that a peer's concurrent write is a garbled message and not undefined
//! behaviour) before anything is decoded. A slot begins with its message's length, read once and checked,
//! so that only the message is copied and not the room for the longest one.
//!
//! Notification suppression: a consumer that finds the ring empty sets `sleeping`, looks again, and
//! only then waits. A producer publishes, then takes `sleeping`: if it was set, it must signal. The
//! sequentially consistent fences between store and load on both sides make one of the two see the
//! other (model-checked in `tests/ring_model.rs`).

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A shared 32-bit index; `core`'s atomics in a domain, loom's in the model.
pub trait Index {
    /// Reads it.
    fn load(&self, order: Ordering) -> u32;
    /// Writes it.
    fn store(&self, value: u32, order: Ordering);
    /// Replaces it.
    fn swap(&self, value: u32, order: Ordering) -> u32;
    /// A sequentially consistent fence of the same memory model.
    fn fence();
}

impl Index for AtomicU32 {
    #[inline]
    fn load(&self, order: Ordering) -> u32 {
        self.load(order)
    }
    #[inline]
    fn store(&self, value: u32, order: Ordering) {
        self.store(value, order);
    }
    #[inline]
    fn swap(&self, value: u32, order: Ordering) -> u32 {
        self.swap(value, order)
    }
    #[inline]
    fn fence() {
        core::sync::atomic::fence(Ordering::SeqCst);
    }
}

/// A shared 64-bit word of a slot.
pub trait Word {
    /// Reads it, relaxed.
    fn get(&self) -> u64;
    /// Writes it, relaxed.
    fn set(&self, value: u64);
}

impl Word for AtomicU64 {
    #[inline]
    fn get(&self) -> u64 {
        self.load(Ordering::Relaxed)
    }
    #[inline]
    fn set(&self, value: u64) {
        self.store(value, Ordering::Relaxed);
    }
}

/// The shared indices of one ring, each on a cache line of its own.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct RingHeader<I = AtomicU32> {
    /// Slots ever produced, modulo 2^32; written by the producer.
    pub produced: CacheLine<I>,
    /// Slots ever consumed, modulo 2^32; written by the consumer.
    pub consumed: CacheLine<I>,
    /// Non-zero while the consumer sleeps and wants a signal.
    pub consumer_sleeping: CacheLine<I>,
    /// Non-zero while the producer waits for room and wants a signal.
    pub producer_sleeping: CacheLine<I>,
}

/// A value alone on its cache line.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct CacheLine<T>(pub T);

/// What a ring's peer did that no correct peer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RingError {
    /// Its index ran ahead of or behind what is possible.
    Index,
    /// A slot does not hold a message of the protocol.
    Message,
}

/// Bytes of the length in front of a slot's message.
pub const LENGTH: usize = 2;

/// Whether the peer has to be signalled, asked for both rings of a channel with one fence: the consumer
/// of `producer` sleeps although something was published, or the producer of `consumer` waits for room
/// and there is some. Claims the duty, so ask once per batch.
#[inline]
pub fn must_notify<I: Index, W: Word>(
    producer: &mut Producer<'_, I, W>,
    consumer: &mut Consumer<'_, I, W>,
) -> bool {
    let has_published = core::mem::take(&mut producer.has_published);
    let has_freed = core::mem::take(&mut consumer.has_freed);
    if !has_published && !has_freed {
        return false;
    }
    I::fence();
    // Both are asked: each claims a duty.
    let sleeps = has_published && claim(&producer.header.consumer_sleeping);
    let waits = has_freed && claim(&consumer.header.producer_sleeping);
    sleeps | waits
}

/// Takes the peer's wish for a signal.
#[inline]
fn claim<I: Index>(flag: &CacheLine<I>) -> bool {
    flag.0.load(Ordering::Relaxed) != 0 && flag.0.swap(0, Ordering::Relaxed) != 0
}

/// The ring has no free slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// The producing end.
#[derive(Debug)]
pub struct Producer<'a, I = AtomicU32, W = AtomicU64> {
    header: &'a RingHeader<I>,
    words: &'a [W],
    words_per_slot: usize,
    slots: u32,
    produced: u32,
    /// Slots were published since the consumer was last asked about.
    has_published: bool,
}

/// The consuming end.
#[derive(Debug)]
pub struct Consumer<'a, I = AtomicU32, W = AtomicU64> {
    header: &'a RingHeader<I>,
    words: &'a [W],
    words_per_slot: usize,
    slots: u32,
    consumed: u32,
    /// Slots were freed since the producer was last asked about.
    has_freed: bool,
}

/// Slots that `words` hold; a power of two, so that the indices may wrap.
fn capacity(words: usize, words_per_slot: usize) -> u32 {
    let slots = words.checked_div(words_per_slot).unwrap_or(0);
    debug_assert!(slots.is_power_of_two());
    u32::try_from(slots).unwrap_or(0)
}

impl<'a, I: Index, W: Word> Producer<'a, I, W> {
    /// The producing end of a ring; goes on where `header` says, so a restarted producer may attach.
    pub fn new(header: &'a RingHeader<I>, words: &'a [W], words_per_slot: usize) -> Self {
        let produced = header.produced.0.load(Ordering::Relaxed);
        let slots = capacity(words.len(), words_per_slot);
        Self { header, words, words_per_slot, slots, produced, has_published: true }
    }

    /// Free slots now.
    ///
    /// # Errors
    /// [`RingError::Index`] when the consumer's index is impossible.
    #[inline]
    pub fn free(&self) -> Result<u32, RingError> {
        let consumed = self.header.consumed.0.load(Ordering::Acquire);
        let used = self.produced.wrapping_sub(consumed);
        self.slots.checked_sub(used).ok_or(RingError::Index)
    }

    /// Writes one slot and publishes it: the `len` bytes that stand behind [`LENGTH`] bytes at the front of
    /// `slot`, a private buffer of a slot's size. Call [`Self::must_notify`] after the last of a batch.
    ///
    /// # Errors
    /// `Ok(Err(Full))` without room; [`RingError::Index`] from a broken consumer; [`RingError::Message`]
    /// when it is longer than a slot.
    #[inline]
    pub fn push(&mut self, slot: &mut [[u8; 8]], len: usize) -> Result<Result<(), Full>, RingError> {
        if self.free()? == 0 {
            return Ok(Err(Full));
        }
        let at = (self.produced & (self.slots - 1)) as usize * self.words_per_slot;
        let used = (LENGTH + len).div_ceil(8);
        if used > self.words_per_slot || len > usize::from(u16::MAX) {
            return Err(RingError::Message);
        }
        if let Some([low, high, ..]) = slot.first_mut() {
            [*low, *high] = (len as u16).to_le_bytes();
        }
        let words = self.words.get(at..at + used).unwrap_or(&[]);
        for (word, bytes) in words.iter().zip(slot.iter()) {
            word.set(u64::from_le_bytes(*bytes));
        }
        self.produced = self.produced.wrapping_add(1);
        self.header.produced.0.store(self.produced, Ordering::Release);
        self.has_published = true;
        Ok(Ok(()))
    }

    /// Whether something was published since the last [`Self::must_notify`].
    #[inline]
    pub fn has_published(&self) -> bool {
        self.has_published
    }

    /// Whether the consumer sleeps although something was published, and has to be signalled; claims the duty,
    /// so ask once per batch.
    #[inline]
    pub fn must_notify(&mut self) -> bool {
        if !core::mem::take(&mut self.has_published) {
            return false;
        }
        I::fence();
        claim(&self.header.consumer_sleeping)
    }

    /// Announces that the producer will wait for room; `true` when it may, `false` when there is room.
    ///
    /// # Errors
    /// [`RingError::Index`] from a broken consumer.
    pub fn prepare_sleep(&self) -> Result<bool, RingError> {
        self.header.producer_sleeping.0.store(1, Ordering::Relaxed);
        I::fence();
        if self.free()? > 0 {
            self.header.producer_sleeping.0.store(0, Ordering::Relaxed);
            return Ok(false);
        }
        Ok(true)
    }
}

impl<'a, I: Index, W: Word> Consumer<'a, I, W> {
    /// The consuming end of a ring; goes on where `header` says.
    pub fn new(header: &'a RingHeader<I>, words: &'a [W], words_per_slot: usize) -> Self {
        let consumed = header.consumed.0.load(Ordering::Relaxed);
        let slots = capacity(words.len(), words_per_slot);
        Self { header, words, words_per_slot, slots, consumed, has_freed: true }
    }

    /// Slots that wait to be consumed.
    ///
    /// # Errors
    /// [`RingError::Index`] when the producer's index is impossible.
    #[inline]
    pub fn available(&self) -> Result<u32, RingError> {
        let produced = self.header.produced.0.load(Ordering::Acquire);
        let used = produced.wrapping_sub(self.consumed);
        if used > self.slots { Err(RingError::Index) } else { Ok(used) }
    }

    /// Copies the next message into `out`, behind [`LENGTH`] bytes, and frees its slot; its length, or
    /// `None`: the ring is empty.
    ///
    /// # Errors
    /// [`RingError`] from a broken producer.
    #[inline]
    pub fn pop(&mut self, out: &mut [[u8; 8]]) -> Result<Option<usize>, RingError> {
        if self.available()? == 0 {
            return Ok(None);
        }
        let at = (self.consumed & (self.slots - 1)) as usize * self.words_per_slot;
        let words = self.words.get(at..at + self.words_per_slot).unwrap_or(&[]);
        // The length is part of the first word, which is read once.
        let first = words.first().map_or(0, Word::get);
        let len = usize::from(first as u16);
        let used = (LENGTH + len).div_ceil(8);
        let (Some(words), Some([head, rest @ ..])) = (words.get(1..used), out.get_mut(..used)) else {
            return Err(RingError::Message);
        };
        *head = first.to_le_bytes();
        for (word, bytes) in words.iter().zip(rest) {
            *bytes = word.get().to_le_bytes();
        }
        self.consumed = self.consumed.wrapping_add(1);
        self.header.consumed.0.store(self.consumed, Ordering::Release);
        self.has_freed = true;
        Ok(Some(len))
    }

    /// Whether the producer waits for room, and there is some, so that it has to be signalled; ask once per
    /// batch. Without the second condition two ends with a full ring between them signal each other for ever.
    #[inline]
    pub fn must_notify(&mut self) -> bool {
        if !core::mem::take(&mut self.has_freed) {
            return false;
        }
        I::fence();
        claim(&self.header.producer_sleeping)
    }

    /// Takes the wish for a signal back, because this end is awake and will look again: the producer then
    /// saves the signal. [`Self::prepare_sleep`] has to follow before this end sleeps. A signal may come all
    /// the same.
    #[inline]
    pub fn stay_awake(&self) {
        self.header.consumer_sleeping.0.store(0, Ordering::Relaxed);
    }

    /// Announces that the consumer will wait; `true` when it may, `false` when there is work.
    ///
    /// # Errors
    /// [`RingError::Index`] from a broken producer.
    #[inline]
    pub fn prepare_sleep(&self) -> Result<bool, RingError> {
        // An exchange, not a store: it follows whatever claim the producer made of an earlier announcement.
        let _claimed = self.header.consumer_sleeping.0.swap(1, Ordering::Relaxed);
        I::fence();
        if self.available()? > 0 {
            self.header.consumer_sleeping.0.store(0, Ordering::Relaxed);
            return Ok(false);
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> (RingHeader, [AtomicU64; 8]) {
        (RingHeader::default(), Default::default())
    }

    #[test]
    fn slots_arrive_in_order_and_a_full_ring_refuses() {
        let (header, words) = memory();
        let mut producer = Producer::new(&header, &words, 2);
        let mut consumer = Consumer::new(&header, &words, 2);
        for n in 0..4u8 {
            assert_eq!(producer.push(&mut [[n; 8]; 2], 14), Ok(Ok(())));
        }
        assert_eq!(producer.push(&mut [[9; 8]; 2], 14), Ok(Err(Full)));
        let mut out = [[0; 8]; 2];
        for n in 0..4u8 {
            assert_eq!(consumer.pop(&mut out), Ok(Some(14)));
            assert_eq!(out.as_flattened()[LENGTH..], [n; 14]);
        }
        assert_eq!(consumer.pop(&mut out), Ok(None));
    }

    #[test]
    fn only_the_message_is_copied_and_a_length_beyond_the_slot_is_an_error() {
        let (header, words) = memory();
        let mut producer = Producer::new(&header, &words, 2);
        let mut consumer = Consumer::new(&header, &words, 2);
        assert_eq!(producer.push(&mut [[1; 8]; 2], 6), Ok(Ok(())));
        assert_eq!((words[1].load(Ordering::Relaxed), words[0].load(Ordering::Relaxed) as u16), (0, 6));
        let mut out = [[9; 8]; 2];
        assert_eq!(consumer.pop(&mut out), Ok(Some(6)));
        assert_eq!(out, [[6, 0, 1, 1, 1, 1, 1, 1], [9; 8]]);
        for len in [15, 0xffff, 0x1_0000, 0x1_0006] {
            assert_eq!(producer.push(&mut [[1; 8]; 2], len), Err(RingError::Message), "{len}");
        }
        for len in [15, 0xffff] {
            assert_eq!(producer.push(&mut [[1; 8]; 2], 0), Ok(Ok(())));
            words[2].store(len, Ordering::Relaxed);
            assert_eq!(consumer.pop(&mut out), Err(RingError::Message), "{len}");
        }
    }

    #[test]
    fn one_question_claims_the_duties_of_both_rings() {
        let ((to, words), (from, others)) = (memory(), memory());
        let mut producer = Producer::new(&to, &words, 2);
        let mut consumer = Consumer::new(&from, &others, 2);
        assert!(!must_notify(&mut producer, &mut consumer));
        let sleeps = |value| {
            to.consumer_sleeping.0.store(value, Ordering::Relaxed);
            from.producer_sleeping.0.store(value, Ordering::Relaxed);
        };
        sleeps(1);
        assert!(!must_notify(&mut producer, &mut consumer), "nothing was done");
        assert_eq!(producer.push(&mut [[0; 8]; 2], 1), Ok(Ok(())));
        assert!(must_notify(&mut producer, &mut consumer));
        assert_eq!(
            (
                to.consumer_sleeping.0.load(Ordering::Relaxed),
                from.producer_sleeping.0.load(Ordering::Relaxed)
            ),
            (0, 1)
        );
        assert_eq!(Producer::new(&from, &others, 2).push(&mut [[0; 8]; 2], 1), Ok(Ok(())));
        assert_eq!(consumer.pop(&mut [[0; 8]; 2]), Ok(Some(1)));
        assert!(must_notify(&mut producer, &mut consumer));
        assert!(!must_notify(&mut producer, &mut consumer));
    }

    #[test]
    fn an_impossible_index_is_an_error_on_either_side() {
        let (header, words) = memory();
        let producer = Producer::new(&header, &words, 2);
        let mut consumer = Consumer::new(&header, &words, 2);
        header.produced.0.store(5, Ordering::Relaxed);
        assert_eq!(consumer.pop(&mut [[0; 8]; 2]), Err(RingError::Index));
        header.consumed.0.store(1, Ordering::Relaxed);
        assert_eq!(producer.free(), Err(RingError::Index));
    }
}
