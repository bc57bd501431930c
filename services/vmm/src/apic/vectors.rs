//! A set of interrupt vectors, as IRR and ISR are.

/// A set of 256 vectors.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Vectors([u32; 8]);

impl Vectors {
    pub(super) fn set(&mut self, vector: u8) {
        self.0[usize::from(vector >> 5)] |= 1 << (vector & 31);
    }

    pub(super) fn clear(&mut self, vector: u8) {
        self.0[usize::from(vector >> 5)] &= !(1 << (vector & 31));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0 == [0; 8]
    }

    pub(super) fn highest(&self) -> Option<u8> {
        let (index, word) = self.0.iter().enumerate().rev().find(|(_, word)| **word != 0)?;
        Some((index as u32 * 32 + 31 - word.leading_zeros()) as u8)
    }

    /// Vectors from 32 times `index % 8` on.
    pub(super) fn word(&self, index: u32) -> u32 {
        self.0[index as usize % 8]
    }
}
