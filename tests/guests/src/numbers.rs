//! Numbers for modes that try things at random; the same for the same seed.

use crate::{NOWHERE, SCRATCH};

/// A xorshift generator.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// The generator for a seed.
    pub fn new(seed: u64) -> Self {
        Self(0x0a11_0123_5eed_0001 ^ seed << 20)
    }

    /// Any number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below this one, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// A number as attackers like them: small, a pointer, an edge, anything.
    pub fn argument(&mut self) -> u64 {
        match self.below(8) {
            0 | 1 => self.below(16),
            2 | 3 => SCRATCH + self.below(0x2000),
            4 => SCRATCH.wrapping_sub(self.below(16)),
            5 => NOWHERE + self.below(0x2000),
            6 => u64::MAX << self.below(64),
            _ => self.next(),
        }
    }
}
