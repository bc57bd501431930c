//! The fuzz targets: each is a function over bytes, so that libFuzzer and the usual tests run the same.
//!
//! `libfuzzer/` gives them to libFuzzer, `tests/corpus.rs` the committed inputs. What they share is reading choices
//! and numbers out of the bytes.
#![allow(clippy::unwrap_used, reason = "test code; a panic is a finding")]

pub mod blkif_ring;
pub mod emulator;
pub mod hypercalls;
pub mod loader_bzimage;
pub mod loader_elf;
pub mod netif_ring;
pub mod xenstore_wire;

/// A target's name, and what runs one input.
pub type Target = (&'static str, fn(&[u8]));

/// Every target. The name is also that of its program and of its folders of inputs.
pub const TARGETS: [Target; 7] = [
    ("loader_elf", loader_elf::run),
    ("loader_bzimage", loader_bzimage::run),
    ("xenstore_wire", xenstore_wire::run),
    ("blkif_ring", blkif_ring::run),
    ("netif_ring", netif_ring::run),
    ("emulator", emulator::run),
    ("hypercalls", hypercalls::run),
];

/// The fuzzer's bytes, taken from the front; at their end everything is 0.
#[derive(Debug)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// All of them.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Up to `len` bytes.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        self.bytes(usize::MAX)
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let bytes = self.bytes(N);
        array[..bytes.len()].copy_from_slice(bytes);
        array
    }

    /// A byte.
    pub fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// Two bytes.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// Four bytes.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }
}
