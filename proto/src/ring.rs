//! The shared ring: a single-producer single-consumer queue of fixed-size slots in shared frames.
//!
//! Both ends may be hostile to each other. Each end keeps its own index in private memory and reads
//! only the other's; a distance that cannot be is [`RingError::Index`]. Slots are copied out word by
//! word (relaxed atomics, so that a peer's concurrent write is a garbled message and not undefined
//! behaviour) before anything is decoded.
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

    /// Writes one slot (at most a slot's bytes are taken) and publishes it. Call [`Self::must_notify`]
    /// after the last of a batch.
    ///
    /// # Errors
    /// `Ok(Err(Full))` without room; [`RingError::Index`] from a broken consumer.
    #[inline]
    pub fn push(&mut self, bytes: &[u8]) -> Result<Result<(), Full>, RingError> {
        if self.free()? == 0 {
            return Ok(Err(Full));
        }
        let slot = (self.produced & (self.slots - 1)) as usize * self.words_per_slot;
        let words = self.words.get(slot..slot + self.words_per_slot).unwrap_or(&[]);
        for (word, chunk) in words.iter().zip(bytes.chunks(8)) {
            let mut raw = [0; 8];
            raw[..chunk.len()].copy_from_slice(chunk);
            word.set(u64::from_le_bytes(raw));
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
        self.header.consumer_sleeping.0.load(Ordering::Relaxed) != 0
            && self.header.consumer_sleeping.0.swap(0, Ordering::Relaxed) != 0
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

    /// Copies the next slot into `out` (at most a slot's bytes) and frees it; `false`: the ring is empty.
    ///
    /// # Errors
    /// [`RingError::Index`] from a broken producer.
    #[inline]
    pub fn pop(&mut self, out: &mut [u8]) -> Result<bool, RingError> {
        if self.available()? == 0 {
            return Ok(false);
        }
        let slot = (self.consumed & (self.slots - 1)) as usize * self.words_per_slot;
        let words = self.words.get(slot..slot + self.words_per_slot).unwrap_or(&[]);
        for (word, chunk) in words.iter().zip(out.chunks_mut(8)) {
            let len = chunk.len();
            chunk.copy_from_slice(&word.get().to_le_bytes()[..len]);
        }
        self.consumed = self.consumed.wrapping_add(1);
        self.header.consumed.0.store(self.consumed, Ordering::Release);
        self.has_freed = true;
        Ok(true)
    }

    /// Whether the producer waits for room, and there is some, so that it has to be signalled; ask once per
    /// batch. Without the second condition two ends with a full ring between them signal each other for ever.
    #[inline]
    pub fn must_notify(&mut self) -> bool {
        if !core::mem::take(&mut self.has_freed) {
            return false;
        }
        I::fence();
        self.header.producer_sleeping.0.load(Ordering::Relaxed) != 0
            && self.header.producer_sleeping.0.swap(0, Ordering::Relaxed) != 0
    }

    /// Takes an announcement back: the consumer will look again by itself before it waits.
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
        self.header.consumer_sleeping.0.store(1, Ordering::Relaxed);
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
            assert_eq!(producer.push(&[n; 16]), Ok(Ok(())));
        }
        assert_eq!(producer.push(&[9; 16]), Ok(Err(Full)));
        let mut out = [0; 16];
        for n in 0..4u8 {
            assert_eq!(consumer.pop(&mut out), Ok(true));
            assert_eq!(out, [n; 16]);
        }
        assert_eq!(consumer.pop(&mut out), Ok(false));
    }

    #[test]
    fn an_impossible_index_is_an_error_on_either_side() {
        let (header, words) = memory();
        let producer = Producer::new(&header, &words, 2);
        let mut consumer = Consumer::new(&header, &words, 2);
        header.produced.0.store(5, Ordering::Relaxed);
        assert_eq!(consumer.pop(&mut [0; 16]), Err(RingError::Index));
        header.consumed.0.store(1, Ordering::Relaxed);
        assert_eq!(producer.free(), Err(RingError::Index));
    }
}
