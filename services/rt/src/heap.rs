//! The heap: talc over the memory that init mapped for it.
//!
//! A domain has one thread, so the allocator needs no lock. When the heap is used up, allocation fails
//! and the domain's panic handler reports it; no other domain notices.
#![expect(unsafe_code, reason = "a global allocator")]

use core::alloc::{GlobalAlloc, Layout};

use proto::channel::Region;
use talc::TalcCell;
use talc::source::Manual;

/// The domain's heap.
struct Heap(TalcCell<Manual>);

// SAFETY: a domain has a single thread and no signal handlers, so nothing runs concurrently.
unsafe impl Sync for Heap {}

#[global_allocator]
static HEAP: Heap = Heap(TalcCell::new(Manual));

// SAFETY: forwards every call unchanged to talc, which fulfils the contract.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are passed on.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { self.0.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's promises are passed on.
        unsafe { self.0.realloc(ptr, layout, new_size) }
    }
}

/// Gives the region to the allocator; once, at start-up.
///
/// # Safety
/// The region is mapped writable, private to this domain, and used by nothing else.
pub unsafe fn init(region: Region) {
    // SAFETY: the caller's promises.
    unsafe { self::HEAP.0.claim(region.addr as *mut u8, region.len as usize) };
}
