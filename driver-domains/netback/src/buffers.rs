//! Who holds which buffer of the receiving half of a vif's pool.
//!
//! Invariant: a buffer is netback's or the VMM's, and only netback writes what is its own.

use proto::net::{BUFFER_SIZE, BUFFERS, POOL_SIZE};

/// First byte of the receiving half.
pub const HALF: u32 = (POOL_SIZE / 2) as u32;

const _: () = assert!(BUFFERS as u64 * BUFFER_SIZE as u64 == HALF as u64 && BUFFERS <= 128);

/// The VMM gave back a buffer that it did not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotHeld;

/// The buffers; a bit is set where the VMM has one.
#[derive(Debug, Default)]
pub struct Buffers {
    held: u128,
}

impl Buffers {
    /// Offset of a free buffer, which is the VMM's from now on.
    pub fn take(&mut self) -> Option<u32> {
        let index = (!self.held).trailing_zeros();
        if index >= BUFFERS as u32 {
            return None;
        }
        self.held |= 1 << index;
        Some(HALF + index * BUFFER_SIZE)
    }

    /// Takes a buffer back.
    ///
    /// # Errors
    /// [`NotHeld`].
    pub fn release(&mut self, offset: u32) -> Result<(), NotHeld> {
        let offset = offset.checked_sub(HALF).filter(|offset| offset.is_multiple_of(BUFFER_SIZE));
        let index = offset.map(|offset| offset / BUFFER_SIZE).filter(|index| *index < BUFFERS as u32);
        let bit = 1u128 << index.ok_or(NotHeld)?;
        if self.held & bit == 0 {
            return Err(NotHeld);
        }
        self.held &= !bit;
        Ok(())
    }
}

/// Whether `offset` is a buffer of the sending half.
pub fn is_sending(offset: u32) -> bool {
    offset < HALF && offset.is_multiple_of(BUFFER_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_buffer_is_handed_out_once() {
        let mut buffers = Buffers::default();
        for index in 0..BUFFERS as u32 {
            assert_eq!(buffers.take(), Some(HALF + index * BUFFER_SIZE));
        }
        assert_eq!(buffers.take(), None);
        assert_eq!(buffers.release(HALF + 5 * BUFFER_SIZE), Ok(()));
        assert_eq!(buffers.release(HALF + 5 * BUFFER_SIZE), Err(NotHeld));
        assert_eq!(buffers.take(), Some(HALF + 5 * BUFFER_SIZE));
    }

    #[test]
    fn what_is_no_held_buffer_is_not_taken_back() {
        let mut buffers = Buffers::default();
        buffers.take();
        for offset in [0, HALF - BUFFER_SIZE, HALF + 1, HALF + BUFFER_SIZE, 2 * HALF, u32::MAX] {
            assert_eq!(buffers.release(offset), Err(NotHeld));
        }
        assert!(is_sending(0) && is_sending(HALF - BUFFER_SIZE));
        assert!(!is_sending(HALF) && !is_sending(1) && !is_sending(u32::MAX));
    }
}
