//! The domain's memory for `virtio-drivers`, and buffers in it.
//!
//! Invariant: no Rust reference to memory that a device or a peer may write lives longer than the call
//! that takes its address; contents go in and out through volatile copies only.
#![expect(unsafe_code, reason = "`Hal` is an unsafe trait, and DMA memory is outside of Rust's objects")]

use core::ptr::NonNull;

use proto::abi::PAGE_SIZE;
use proto::channel::Region;
use rt::memory::Shared;
use virtio_drivers::{BufferDirection, Hal, PhysAddr};

use crate::memory::{AreaError, Areas};

/// `Hal` has no `self`: one list for the domain.
static AREAS: spin::Mutex<Areas> = spin::Mutex::new(Areas::new());

/// What a device gets instead of an address that is not registered: outside of what any processor
/// addresses, so that the device reports an error and reaches nothing.
const NOWHERE: PhysAddr = 0xffff_ffff_ffff_f000;

/// Adds a function's DMA memory, before its set-up.
///
/// # Errors
/// See [`AreaError`].
pub fn add_dma(region: Region, phys: u64) -> Result<(), AreaError> {
    AREAS.lock().add_dma(region, phys)
}

/// Adds a channel's pool.
///
/// # Errors
/// See [`AreaError`].
pub fn add_pool(region: Region, phys: u64) -> Result<(), AreaError> {
    AREAS.lock().add_pool(region, phys)
}

/// Forgets a channel's pool.
///
/// # Errors
/// [`AreaError::InUse`] while a device has a buffer in it.
pub fn remove_pool(region: Region) -> Result<(), AreaError> {
    AREAS.lock().remove_pool(region.addr)
}

pub(crate) fn add_registers(region: Region, phys: u64) -> Result<(), AreaError> {
    AREAS.lock().add_registers(region, phys)
}

pub(crate) fn is_for_devices(part: Part) -> bool {
    AREAS.lock().is_for_devices(part.addr, u64::from(part.len))
}

pub(crate) fn unshare(part: Part) {
    AREAS.lock().unshare(part.addr, u64::from(part.len));
}

/// A range of registered memory for one descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Part {
    /// Where it is mapped.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
}

/// The domain's memory as `virtio-drivers` sees it.
#[derive(Debug)]
pub enum DomainHal {}

// SAFETY: pages come from `Areas`, which hands none out twice; they are mapped for the whole life of the
// domain, page-aligned, and zeroed here. Registers are only answered inside a BAR that init mapped.
unsafe impl Hal for DomainHal {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let found = AREAS.lock().allocate(pages);
        let pointer = found.and_then(|found| NonNull::new(found.addr as *mut u8));
        let (Some(found), Some(pointer)) = (found, pointer) else {
            // The crate takes physical address 0 for "no memory".
            return (0, NonNull::dangling());
        };
        // SAFETY: the pages are mapped, writable and belong to nobody else.
        unsafe { pointer.as_ptr().write_bytes(0, pages * PAGE_SIZE as usize) };
        (found.phys, pointer)
    }

    unsafe fn dma_dealloc(_paddr: PhysAddr, vaddr: NonNull<u8>, pages: usize) -> i32 {
        // The crate asserts on a failure; pages that cannot be given back are lost, not a fault.
        if !AREAS.lock().free(vaddr.as_ptr() as u64, pages) {
            log::error!("pages of DMA memory were given back that nobody had");
        }
        0
    }

    unsafe fn mmio_phys_to_virt(paddr: PhysAddr, size: usize) -> NonNull<u8> {
        // `PciTransport` refuses the dangling (misaligned) pointer; `transport` has checked the BARs before.
        let found = AREAS.lock().registers(paddr, size as u64);
        found.and_then(|addr| NonNull::new(addr as *mut u8)).unwrap_or(NonNull::dangling())
    }

    unsafe fn share(buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        let addr = buffer.cast::<u8>().as_ptr() as u64;
        AREAS.lock().share(addr, buffer.len() as u64).unwrap_or_else(|| {
            log::error!("a buffer outside of the memory for devices was to be shared");
            NOWHERE
        })
    }

    unsafe fn unshare(_paddr: PhysAddr, buffer: NonNull<[u8]>, _direction: BufferDirection) {
        AREAS.lock().unshare(buffer.cast::<u8>().as_ptr() as u64, buffer.len() as u64);
    }
}

/// DMA memory of a driver, kept for the life of the domain.
#[derive(Debug)]
pub struct Buffer {
    addr: u64,
    len: usize,
}

impl Buffer {
    /// At least `len` zeroed bytes out of the DMA memory that was added last; `None`: not enough.
    pub fn allocate(len: usize) -> Option<Self> {
        let pages = len.div_ceil(PAGE_SIZE as usize);
        let (phys, pointer) = DomainHal::dma_alloc(pages, BufferDirection::Both);
        (phys != 0).then(|| Self { addr: pointer.as_ptr() as u64, len: pages * PAGE_SIZE as usize })
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no byte; never so.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A range of it for a descriptor, or `None` outside.
    pub fn part(&self, offset: usize, len: usize) -> Option<Part> {
        let is_inside = offset.checked_add(len).is_some_and(|end| end <= self.len);
        let len = u32::try_from(len).ok().filter(|_| is_inside)?;
        Some(Part { addr: self.addr + offset as u64, len })
    }

    /// Copies bytes in; `false` and nothing outside of it.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) -> bool {
        self.memory().write(offset, bytes).is_ok()
    }

    /// Copies bytes out; `false` and nothing outside of it.
    pub fn read(&self, offset: usize, out: &mut [u8]) -> bool {
        self.memory().read(offset, out).is_ok()
    }

    fn memory(&self) -> Shared {
        Shared::from_region(Region { addr: self.addr, len: self.len as u64 })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use alloc::alloc::{Layout, alloc_zeroed};

    /// Host memory that stands for DMA memory or registers, never freed.
    pub(crate) fn host_memory(len: usize) -> Region {
        let layout = Layout::from_size_align(len, PAGE_SIZE as usize).unwrap();
        // SAFETY: the layout is not empty.
        let addr = unsafe { alloc_zeroed(layout) } as u64;
        Region { addr, len: len as u64 }
    }

    #[test]
    fn buffers_hold_what_was_written_at_any_alignment() {
        let _guard = crate::transport::tests::SERIAL.lock();
        let region = host_memory(0x2000);
        add_dma(region, region.addr).unwrap();
        let mut buffer = Buffer::allocate(0x1001).unwrap();
        assert_eq!(buffer.len(), 0x2000);
        let bytes: alloc::vec::Vec<u8> = (0..100u8).collect();
        for offset in 0..9 {
            assert!(buffer.write(offset, &bytes));
            let mut out = [0; 100];
            assert!(buffer.read(offset, &mut out));
            assert_eq!(out[..], bytes[..]);
        }
        assert!(!buffer.write(0x1fff, &[0; 2]));
        assert!(!buffer.read(usize::MAX, &mut [0; 2]));
        assert!(buffer.part(0x2000, 1).is_none());
        assert!(Buffer::allocate(1).is_none());
    }
}
