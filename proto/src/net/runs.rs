//! Allocation of frames in one half of a pool, in a circle.
//!
//! Frames are given back in the order in which they were taken, so the free memory is one run (two where it
//! wraps) and both operations are a few additions. A frame that does not fit before the half's end starts
//! at its beginning; what it skips counts as its own. Invariant: frames that are taken do not overlap.

use super::{FRAMES_MAX, RECEIVE_BASE};

/// What frames are aligned to.
const ALIGN: u32 = 64;

/// Frames were given back that were never taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotTaken;

/// The frames of one half, oldest first.
#[derive(Debug)]
pub struct Runs {
    base: u32,
    /// Where the next frame may start, from `base`.
    next: u32,
    /// Bytes that frames take.
    used: u32,
    /// What each frame takes, in a circle.
    sizes: [u32; FRAMES_MAX],
    oldest: usize,
    count: usize,
}

impl Runs {
    /// The half that begins at `base`; nothing is taken.
    pub const fn new(base: u32) -> Self {
        Self { base, next: 0, used: 0, sizes: [0; FRAMES_MAX], oldest: 0, count: 0 }
    }

    /// Takes memory for a frame of `len` bytes: its offset in the pool.
    #[inline]
    pub fn take(&mut self, len: u32) -> Option<u32> {
        if self.count == FRAMES_MAX || len > RECEIVE_BASE {
            return None;
        }
        let size = len.next_multiple_of(ALIGN);
        if self.used == 0 {
            self.next = 0;
        }
        let (start, skipped) =
            if size > RECEIVE_BASE - self.next { (0, RECEIVE_BASE - self.next) } else { (self.next, 0) };
        let taken = size + skipped;
        if taken > RECEIVE_BASE - self.used {
            return None;
        }
        let newest = (self.oldest + self.count) % FRAMES_MAX;
        *self.sizes.get_mut(newest)? = taken;
        self.count += 1;
        self.used += taken;
        self.next = start + size;
        Some(self.base + start)
    }

    /// Gives the `count` oldest frames back.
    ///
    /// # Errors
    /// [`NotTaken`]; nothing has changed then.
    #[inline]
    pub fn release(&mut self, count: u16) -> Result<(), NotTaken> {
        if usize::from(count) > self.count {
            return Err(NotTaken);
        }
        for _ in 0..count {
            self.used -= self.sizes.get(self.oldest).copied().unwrap_or(0);
            self.oldest = (self.oldest + 1) % FRAMES_MAX;
        }
        self.count -= usize::from(count);
        Ok(())
    }

    /// Frames that are taken.
    #[inline]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Bytes that they take.
    #[inline]
    pub fn used(&self) -> u32 {
        self.used
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    #[test]
    fn a_long_frame_skips_the_end_and_pays_for_it() {
        let mut runs = Runs::new(RECEIVE_BASE);
        let half = RECEIVE_BASE;
        assert_eq!(runs.take(half / 2 - 1), Some(half));
        assert_eq!(runs.take(half / 4), Some(half + half / 2));
        assert_eq!(runs.release(1), Ok(()));
        assert_eq!(runs.take(half / 2), Some(half));
        assert_eq!(runs.take(1), None);
        assert_eq!(runs.release(2), Ok(()));
        assert_eq!((runs.count(), runs.used()), (0, 0));
        assert_eq!(runs.release(1), Err(NotTaken));
        assert_eq!(runs.take(half), Some(half));
        assert_eq!(runs.take(half + 1), None);
    }

    proptest! {
        #[test]
        fn frames_lie_in_the_half_and_never_overlap(
            steps in prop::collection::vec((1u32..66_000, 0u16..4), 1..400),
        ) {
            let mut runs = Runs::new(RECEIVE_BASE);
            let mut taken = VecDeque::new();
            for (len, released) in steps {
                if runs.release(released).is_ok() {
                    taken.drain(..usize::from(released));
                }
                let Some(offset) = runs.take(len) else {
                    prop_assert!(!taken.is_empty(), "an empty half takes any frame");
                    continue;
                };
                prop_assert!(offset >= RECEIVE_BASE && offset + len <= 2 * RECEIVE_BASE);
                for &(other, size) in &taken {
                    prop_assert!(offset + len <= other || other + size <= offset);
                }
                taken.push_back((offset, len));
                prop_assert_eq!(runs.count(), taken.len());
            }
        }
    }
}
