//! What else init maps: read-only files, a guest's RAM, a device's registers.
#![expect(unsafe_code, reason = "access to memory at addresses that init chose")]

use proto::channel::Region;
use proto::guest::{GuestInfo, RAM_BASE, RamRange};

pub use crate::shared::{OutOfBounds, Shared};

/// The bytes of a file that init mapped read-only (bundle files, configurations). The region has to come
/// from init: no domain can write what lies there.
pub fn bytes(region: Region) -> &'static [u8] {
    let (Ok(addr), Ok(len)) = (usize::try_from(region.addr), usize::try_from(region.len)) else {
        return &[];
    };
    if addr == 0 || len == 0 || addr.checked_add(len).is_none() || len > isize::MAX as usize {
        return &[];
    }
    // SAFETY: init maps files read-only, from frames that nobody has a writable mapping of, for as long as
    // the domain lives.
    unsafe { core::slice::from_raw_parts(addr as *const u8, len) }
}

/// Most ranges of a guest's RAM.
const RANGES_MAX: usize = 4;

/// A guest's RAM, addressed by guest-physical address. The guest writes it at any time.
#[derive(Debug, Clone, Copy)]
pub struct GuestRam {
    base: u64,
    ranges: [(u64, u64); RANGES_MAX],
}

macro_rules! guest_words {
    ($($name:ident($($argument:ident: $type:ty),*) -> $value:ty;)*) => {
        $(
            /// As the function of the same name of [`Shared`], at a guest-physical address.
            ///
            /// # Errors
            /// [`OutOfBounds`] outside of the RAM, across two ranges, or for a misaligned word.
            #[inline]
            pub fn $name(&self, gpa: u64, $($argument: $type),*) -> Result<$value, OutOfBounds> {
                let (memory, offset) = self.find(gpa, 1)?;
                memory.$name(offset, $($argument),*)
            }
        )*
    };
}

impl GuestRam {
    /// The RAM of `guest`, as init mapped it at [`RAM_BASE`].
    pub fn new(guest: &GuestInfo) -> Self {
        Self::at(RAM_BASE, &guest.ram)
    }

    /// RAM whose guest-physical address 0 is (or would be) mapped at `base`: for tests over memory of
    /// their own. The ranges have to be mapped.
    pub fn at(base: u64, ranges: &[RamRange]) -> Self {
        let mut own = [(0, 0); RANGES_MAX];
        for (slot, range) in own.iter_mut().zip(ranges) {
            *slot = (range.gpa, range.len);
        }
        Self { base, ranges: own }
    }

    /// The range that holds `gpa`, as memory, and the offset of `gpa` in it.
    #[inline]
    fn find(&self, gpa: u64, len: u64) -> Result<(Shared, usize), OutOfBounds> {
        for &(start, size) in &self.ranges {
            if let Some(offset) = gpa.checked_sub(start)
                && offset < size
                && len <= size - offset
            {
                let addr = self.base.checked_add(start).ok_or(OutOfBounds)?;
                return Ok((Shared::from_region(Region { addr, len: size }), offset as usize));
            }
        }
        Err(OutOfBounds)
    }

    /// Whether all of `len` bytes at `gpa` are RAM.
    #[inline]
    pub fn contains(&self, gpa: u64, len: u64) -> bool {
        self.find(gpa, len).is_ok()
    }

    /// `len` bytes at `gpa` as memory of their own.
    ///
    /// # Errors
    /// [`OutOfBounds`].
    #[inline]
    pub fn window(&self, gpa: u64, len: usize) -> Result<Shared, OutOfBounds> {
        let (memory, offset) = self.find(gpa, len as u64)?;
        memory.part(offset, len)
    }

    /// Copies out of the RAM.
    ///
    /// # Errors
    /// [`OutOfBounds`]; nothing is copied then.
    #[inline]
    pub fn read(&self, gpa: u64, out: &mut [u8]) -> Result<(), OutOfBounds> {
        let (memory, offset) = self.find(gpa, out.len() as u64)?;
        memory.read(offset, out)
    }

    /// Copies into the RAM.
    ///
    /// # Errors
    /// [`OutOfBounds`]; nothing is copied then.
    #[inline]
    pub fn write(&self, gpa: u64, bytes: &[u8]) -> Result<(), OutOfBounds> {
        let (memory, offset) = self.find(gpa, bytes.len() as u64)?;
        memory.write(offset, bytes)
    }

    /// Sets bytes of the RAM.
    ///
    /// # Errors
    /// [`OutOfBounds`]; nothing is written then.
    pub fn fill(&self, gpa: u64, len: usize, value: u8) -> Result<(), OutOfBounds> {
        let (memory, offset) = self.find(gpa, len as u64)?;
        memory.fill(offset, len, value)
    }

    /// Copies from the RAM to `to`.
    ///
    /// # Errors
    /// [`OutOfBounds`]; nothing is copied then.
    #[inline]
    pub fn copy_to(&self, gpa: u64, to: &Shared, to_offset: usize, len: usize) -> Result<(), OutOfBounds> {
        let (memory, offset) = self.find(gpa, len as u64)?;
        memory.copy_to(offset, to, to_offset, len)
    }

    /// Copies from `from` to the RAM.
    ///
    /// # Errors
    /// [`OutOfBounds`]; nothing is copied then.
    #[inline]
    pub fn copy_from(
        &self,
        gpa: u64,
        from: &Shared,
        from_offset: usize,
        len: usize,
    ) -> Result<(), OutOfBounds> {
        let (memory, offset) = self.find(gpa, len as u64)?;
        from.copy_to(from_offset, &memory, offset, len)
    }

    guest_words! {
        read_u8() -> u8;
        read_u16() -> u16;
        read_u32() -> u32;
        read_u64() -> u64;
        write_u8(value: u8) -> ();
        write_u16(value: u16) -> ();
        write_u32(value: u32) -> ();
        write_u64(value: u64) -> ();
        and_u16(value: u16) -> u16;
        or_u16(value: u16) -> u16;
        swap_u16(value: u16) -> u16;
        compare_exchange_u16(current: u16, new: u16) -> Result<u16, u16>;
        and_u32(value: u32) -> u32;
        or_u32(value: u32) -> u32;
        swap_u32(value: u32) -> u32;
        compare_exchange_u32(current: u32, new: u32) -> Result<u32, u32>;
        and_u64(value: u64) -> u64;
        or_u64(value: u64) -> u64;
        swap_u64(value: u64) -> u64;
        compare_exchange_u64(current: u64, new: u64) -> Result<u64, u64>;
    }
}

/// A device's registers.
#[derive(Debug, Clone, Copy)]
pub struct MmioRegion {
    base: usize,
    len: usize,
}

macro_rules! registers {
    ($($read:ident $write:ident $type:ty;)*) => {
        $(
            /// Reads a register with one access of its width.
            ///
            /// # Errors
            /// [`OutOfBounds`], also for a misaligned offset.
            #[inline]
            pub fn $read(&self, offset: usize) -> Result<$type, OutOfBounds> {
                let register = self.register::<$type>(offset)?;
                // SAFETY: in bounds of a mapped BAR and aligned.
                Ok(unsafe { register.read_volatile() })
            }

            /// Writes a register with one access of its width.
            ///
            /// # Errors
            /// [`OutOfBounds`], also for a misaligned offset.
            #[inline]
            pub fn $write(&self, offset: usize, value: $type) -> Result<(), OutOfBounds> {
                let register = self.register::<$type>(offset)?;
                // SAFETY: in bounds of a mapped BAR and aligned.
                unsafe { register.write_volatile(value) };
                Ok(())
            }
        )*
    };
}

impl MmioRegion {
    /// Registers that init mapped at `region`.
    pub fn from_region(region: Region) -> Self {
        let (base, len) = (region.addr as usize, region.len as usize);
        if base == 0 || base.checked_add(len).is_none() {
            return Self { base: 0, len: 0 };
        }
        Self { base, len }
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[inline]
    fn register<T>(&self, offset: usize) -> Result<*mut T, OutOfBounds> {
        let end = offset.checked_add(size_of::<T>()).ok_or(OutOfBounds)?;
        if end > self.len || !(self.base + offset).is_multiple_of(align_of::<T>()) {
            return Err(OutOfBounds);
        }
        Ok((self.base + offset) as *mut T)
    }

    registers! {
        read_u8 write_u8 u8;
        read_u16 write_u16 u16;
        read_u32 write_u32 u32;
        read_u64 write_u64 u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn guest_ram_is_reached_only_inside_its_ranges() {
        let mut memory = vec![0u64; 1024];
        let base = memory.as_mut_ptr() as u64;
        let ranges = [RamRange { gpa: 0, len: 4096, slot: 0 }, RamRange { gpa: 6144, len: 2048, slot: 0 }];
        let ram = GuestRam::at(base, &ranges);
        ram.write(4088, &[7; 8]).unwrap();
        assert_eq!(ram.read_u64(4088), Ok(0x0707_0707_0707_0707));
        assert_eq!(ram.read_u64(4089), Err(OutOfBounds));
        assert_eq!(ram.read(4090, &mut [0; 8]), Err(OutOfBounds));
        assert_eq!(ram.read_u8(5000), Err(OutOfBounds));
        assert_eq!(ram.write_u32(8188, 3), Ok(()));
        assert_eq!(ram.write_u32(8192, 3), Err(OutOfBounds));
        assert_eq!(ram.compare_exchange_u32(8188, 3, 4), Ok(Ok(3)));
        assert!(!ram.contains(u64::MAX, 2));
        assert!(ram.contains(6144, 2048) && !ram.contains(6144, 2049));
    }

    #[test]
    fn registers_are_checked() {
        let mut memory = [0u64; 2];
        let mmio = MmioRegion::from_region(Region { addr: memory.as_mut_ptr() as u64, len: 16 });
        mmio.write_u32(12, 5).unwrap();
        assert_eq!(mmio.read_u32(12), Ok(5));
        assert_eq!(mmio.read_u64(12), Err(OutOfBounds));
        assert_eq!(mmio.read_u16(16), Err(OutOfBounds));
        assert_eq!(mmio.write_u8(usize::MAX, 0), Err(OutOfBounds));
    }

    #[test]
    fn a_file_region_that_cannot_be_is_empty() {
        assert!(bytes(Region { addr: 0, len: 5 }).is_empty());
        assert!(bytes(Region { addr: u64::MAX, len: 5 }).is_empty());
    }
}
