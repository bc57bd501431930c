//! Memory that others write too: checked copies and atomic words.
//!
//! Nothing here ever makes a reference to the memory's bytes. Bulk copies are `rep movs` (8 bytes at a
//! time), which the compiler cannot split, repeat or assume anything about; single words are atomics.
//! A copy that races with the other side's write gives garbled bytes, never undefined behaviour, and
//! callers check what they copied out, not what is still shared.
#![expect(unsafe_code, reason = "access to memory outside of the language's model")]

use core::arch::asm;
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use proto::channel::Region;

/// The access reaches outside of the memory, or a word is misaligned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfBounds;

impl core::fmt::Display for OutOfBounds {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("access out of bounds")
    }
}

/// A mapped range that another domain, a device or a guest may write at any time.
#[derive(Debug, Clone, Copy)]
pub struct Shared {
    base: usize,
    len: usize,
}

/// Copies `len` bytes; the ranges do not overlap.
///
/// # Safety
/// Both ranges are mapped and may be accessed so.
#[inline]
unsafe fn copy(dst: usize, src: usize, len: usize) {
    // SAFETY: the caller's promises; the direction flag is clear by the calling convention.
    unsafe {
        asm!(
            "rep movsq",
            "mov rcx, {tail}",
            "rep movsb",
            tail = in(reg) len & 7,
            inout("rcx") len >> 3 => _,
            inout("rdi") dst => _,
            inout("rsi") src => _,
            options(nostack, preserves_flags),
        );
    }
}

macro_rules! words {
    ($($read:ident $write:ident $type:ty, $atomic:ty;)*) => {
        $(
            /// Reads a word (acquire).
            ///
            /// # Errors
            /// [`OutOfBounds`], also for a misaligned offset.
            #[inline]
            pub fn $read(&self, offset: usize) -> Result<$type, OutOfBounds> {
                Ok(self.word::<$atomic>(offset)?.load(Ordering::Acquire))
            }

            /// Writes a word (release).
            ///
            /// # Errors
            /// [`OutOfBounds`], also for a misaligned offset.
            #[inline]
            pub fn $write(&self, offset: usize, value: $type) -> Result<(), OutOfBounds> {
                self.word::<$atomic>(offset)?.store(value, Ordering::Release);
                Ok(())
            }
        )*
    };
}

macro_rules! atomics {
    ($($and:ident $or:ident $xor:ident $swap:ident $add:ident $compare_exchange:ident $type:ty, $atomic:ty;)*) => {
        $(
            /// Clears the bits that are not in `value`; the previous word (sequentially consistent).
            ///
            /// # Errors
            /// [`OutOfBounds`], also for a misaligned offset.
            #[inline]
            pub fn $and(&self, offset: usize, value: $type) -> Result<$type, OutOfBounds> {
                Ok(self.word::<$atomic>(offset)?.fetch_and(value, Ordering::SeqCst))
            }

            /// Sets the bits in `value`; the previous word.
            ///
            /// # Errors
            /// [`OutOfBounds`], also for a misaligned offset.
            #[inline]
            pub fn $or(&self, offset: usize, value: $type) -> Result<$type, OutOfBounds> {
                Ok(self.word::<$atomic>(offset)?.fetch_or(value, Ordering::SeqCst))
            }

            /// Inverts the bits in `value`; the previous word.
            ///
            /// # Errors
            /// [`OutOfBounds`], also for a misaligned offset.
            #[inline]
            pub fn $xor(&self, offset: usize, value: $type) -> Result<$type, OutOfBounds> {
                Ok(self.word::<$atomic>(offset)?.fetch_xor(value, Ordering::SeqCst))
            }

            /// Replaces the word; the previous one.
            ///
            /// # Errors
            /// [`OutOfBounds`], also for a misaligned offset.
            #[inline]
            pub fn $swap(&self, offset: usize, value: $type) -> Result<$type, OutOfBounds> {
                Ok(self.word::<$atomic>(offset)?.swap(value, Ordering::SeqCst))
            }

            /// Adds to the word, wrapping; the previous one.
            ///
            /// # Errors
            /// [`OutOfBounds`], also for a misaligned offset.
            #[inline]
            pub fn $add(&self, offset: usize, value: $type) -> Result<$type, OutOfBounds> {
                Ok(self.word::<$atomic>(offset)?.fetch_add(value, Ordering::SeqCst))
            }

            /// Replaces the word if it is `current`. `Ok(Err(actual))`: it was not.
            ///
            /// # Errors
            /// [`OutOfBounds`], also for a misaligned offset.
            #[inline]
            pub fn $compare_exchange(&self, offset: usize, current: $type, new: $type)
                -> Result<Result<$type, $type>, OutOfBounds> {
                let word = self.word::<$atomic>(offset)?;
                Ok(word.compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst))
            }
        )*
    };
}

impl Shared {
    /// The memory at `region`, which init mapped and which stays mapped until its channel is detached.
    /// The region has to come from init (`DomainInfo`, `Attach`): addresses that it did not map fault.
    pub fn from_region(region: Region) -> Self {
        let base = usize::try_from(region.addr).unwrap_or(0);
        let len = usize::try_from(region.len).unwrap_or(0);
        // A region that wraps is no memory.
        if base == 0 || base.checked_add(len).is_none() {
            return Self { base: align_of::<u64>(), len: 0 };
        }
        Self { base, len }
    }

    /// Bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A part of it.
    ///
    /// # Errors
    /// [`OutOfBounds`].
    pub fn part(&self, offset: usize, len: usize) -> Result<Self, OutOfBounds> {
        Ok(Self { base: self.address(offset, len)?, len })
    }

    /// The whole words of it, for many accesses with one check each; none if it is misaligned.
    #[inline]
    pub fn words(&self) -> &[AtomicU64] {
        if !self.base.is_multiple_of(align_of::<AtomicU64>()) {
            return &[];
        }
        // SAFETY: mapped (`from_region`), in bounds and aligned; concurrent writes of atomic integers are
        // defined and every content is valid.
        unsafe {
            core::slice::from_raw_parts(self.base as *const AtomicU64, self.len / size_of::<AtomicU64>())
        }
    }

    /// Address of `len` bytes at `offset`.
    #[inline]
    fn address(&self, offset: usize, len: usize) -> Result<usize, OutOfBounds> {
        // In this form, of many accesses of one length only the offset's comparison is left.
        match self.len.checked_sub(len) {
            Some(last) if offset <= last => Ok(self.base + offset),
            _ => Err(OutOfBounds),
        }
    }

    /// The atomic word at `offset`.
    #[inline]
    fn word<A>(&self, offset: usize) -> Result<&A, OutOfBounds> {
        let address = self.address(offset, size_of::<A>())?;
        if !address.is_multiple_of(align_of::<A>()) {
            return Err(OutOfBounds);
        }
        // SAFETY: mapped (`from_region`), in bounds and aligned; `A` is an atomic integer (the callers are
        // the macros above), for which concurrent writes are defined and every content is valid.
        Ok(unsafe { &*(address as *const A) })
    }

    /// Copies out of the memory.
    ///
    /// # Errors
    /// [`OutOfBounds`]; nothing is copied then.
    #[inline]
    pub fn read(&self, offset: usize, out: &mut [u8]) -> Result<(), OutOfBounds> {
        let src = self.address(offset, out.len())?;
        // SAFETY: in bounds of mapped memory; `out` is private and writable.
        unsafe { copy(out.as_mut_ptr() as usize, src, out.len()) };
        Ok(())
    }

    /// Copies into the memory.
    ///
    /// # Errors
    /// [`OutOfBounds`]; nothing is copied then.
    #[inline]
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), OutOfBounds> {
        let dst = self.address(offset, bytes.len())?;
        // SAFETY: in bounds of mapped memory that nothing in this domain has a reference to.
        unsafe { copy(dst, bytes.as_ptr() as usize, bytes.len()) };
        Ok(())
    }

    /// Copies from this memory to another one. They must not overlap (else the copy is garbled).
    ///
    /// # Errors
    /// [`OutOfBounds`]; nothing is copied then.
    #[inline]
    pub fn copy_to(
        &self,
        offset: usize,
        to: &Shared,
        to_offset: usize,
        len: usize,
    ) -> Result<(), OutOfBounds> {
        let (src, dst) = (self.address(offset, len)?, to.address(to_offset, len)?);
        // SAFETY: both in bounds of mapped memory that nothing in this domain has a reference to.
        unsafe { copy(dst, src, len) };
        Ok(())
    }

    /// Sets `len` bytes to `value`.
    ///
    /// # Errors
    /// [`OutOfBounds`]; nothing is written then.
    pub fn fill(&self, offset: usize, len: usize, value: u8) -> Result<(), OutOfBounds> {
        let dst = self.address(offset, len)?;
        let pattern = u64::from_ne_bytes([value; 8]);
        // SAFETY: in bounds of mapped memory that nothing in this domain has a reference to.
        unsafe {
            asm!(
                "rep stosq",
                "mov rcx, {tail}",
                "rep stosb",
                tail = in(reg) len & 7,
                inout("rcx") len >> 3 => _,
                inout("rdi") dst => _,
                in("rax") pattern,
                options(nostack, preserves_flags),
            );
        }
        Ok(())
    }

    words! {
        read_u8 write_u8 u8, AtomicU8;
        read_u16 write_u16 u16, AtomicU16;
        read_u32 write_u32 u32, AtomicU32;
        read_u64 write_u64 u64, AtomicU64;
    }

    atomics! {
        and_u16 or_u16 xor_u16 swap_u16 add_u16 compare_exchange_u16 u16, AtomicU16;
        and_u32 or_u32 xor_u32 swap_u32 add_u32 compare_exchange_u32 u32, AtomicU32;
        and_u64 or_u64 xor_u64 swap_u64 add_u64 compare_exchange_u64 u64, AtomicU64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn over(words: &mut [u64]) -> Shared {
        Shared::from_region(Region { addr: words.as_mut_ptr() as u64, len: (words.len() * 8) as u64 })
    }

    #[test]
    fn copies_of_every_length_and_alignment_move_exactly_their_bytes() {
        let mut words = vec![0u64; 8];
        let shared = over(&mut words);
        for offset in 0..9 {
            for len in 0..40 {
                shared.fill(0, 64, 0xee).unwrap();
                let data: alloc::vec::Vec<u8> = (1..=len as u8).collect();
                shared.write(offset, &data).unwrap();
                let mut all = [0; 64];
                shared.read(0, &mut all).unwrap();
                assert_eq!(&all[offset..offset + len], &data[..]);
                assert!(all[..offset].iter().chain(&all[offset + len..]).all(|&b| b == 0xee));
            }
        }
    }

    #[test]
    fn accesses_out_of_bounds_or_misaligned_are_refused() {
        let mut words = vec![0u64; 2];
        let shared = over(&mut words);
        assert_eq!(shared.read(9, &mut [0; 8]), Err(OutOfBounds));
        assert_eq!(shared.write(usize::MAX, &[1]), Err(OutOfBounds));
        assert_eq!(shared.read(17, &mut []), Err(OutOfBounds));
        assert_eq!(shared.read_u64(16), Err(OutOfBounds));
        assert_eq!(shared.read_u32(2), Err(OutOfBounds));
        assert_eq!(shared.fill(8, 9, 0), Err(OutOfBounds));
        assert!(shared.part(8, 9).is_err());
        assert_eq!((shared.words().len(), shared.part(0, 15).unwrap().words().len()), (2, 1));
        assert!(shared.part(4, 8).unwrap().words().is_empty());
        assert_eq!(Shared::from_region(Region { addr: u64::MAX, len: 9 }).len(), 0);
        assert_eq!(Shared::from_region(Region { addr: 0, len: 9 }).read_u8(0), Err(OutOfBounds));
    }

    #[test]
    fn atomic_words_answer_the_previous_value() {
        let mut words = vec![0b0110u64; 1];
        let shared = over(&mut words);
        assert_eq!(shared.or_u64(0, 1), Ok(0b0110));
        assert_eq!(shared.and_u32(0, 0b0011), Ok(0b0111));
        assert_eq!(shared.swap_u16(0, 9), Ok(0b0011));
        assert_eq!(shared.compare_exchange_u32(0, 9, 4), Ok(Ok(9)));
        assert_eq!(shared.compare_exchange_u32(0, 9, 5), Ok(Err(4)));
        assert_eq!(shared.read_u64(0), Ok(4));
    }
}
