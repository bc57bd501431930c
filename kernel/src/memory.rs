//! Physical memory: frame numbers, addresses, and the direct map through which the kernel sees RAM.
//!
//! All RAM is mapped once, at [`DIRECT_BASE`]. On the host, where the logic is tested, a "physical"
//! address is the address of test memory and the base is 0.

use proto::abi::{PAGE_SHIFT, PAGE_SIZE};

/// Where physical address 0 appears in the kernel's address space.
pub const DIRECT_BASE: u64 = if cfg!(target_os = "none") { 0xffff_8000_0000_0000 } else { 0 };

/// Bytes of a large page.
pub const LARGE_PAGE: u64 = 2 << 20;
/// Frames of a large page.
pub const LARGE_FRAMES: u64 = LARGE_PAGE / PAGE_SIZE;

/// A physical address of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPhys(pub u64);

/// A physical frame number of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pfn(pub u64);

impl HostPhys {
    /// Where the kernel sees it.
    pub const fn direct(self) -> u64 {
        DIRECT_BASE + self.0
    }
}

impl Pfn {
    /// The frame that holds the address.
    pub const fn containing(phys: HostPhys) -> Self {
        Self(phys.0 >> PAGE_SHIFT)
    }

    /// First address of the frame.
    pub const fn phys(self) -> HostPhys {
        HostPhys(self.0 << PAGE_SHIFT)
    }

    /// The frame `n` further on.
    pub const fn offset(self, n: u64) -> Self {
        Self(self.0 + n)
    }

    /// Where the kernel sees the frame.
    pub const fn direct(self) -> u64 {
        self.phys().direct()
    }
}

/// The physical address of something in the direct map.
pub fn phys_of<T>(object: &T) -> HostPhys {
    HostPhys(core::ptr::from_ref(object) as u64 - DIRECT_BASE)
}

/// Fills frames with zeros.
#[expect(unsafe_code, reason = "kernel memory is reached through the direct map")]
pub fn zero(first: Pfn, count: u64) {
    // SAFETY: only frames that a capability (or the boot allocator) gives exclusively to the kernel are
    // passed, and all RAM is in the direct map.
    unsafe { core::ptr::write_bytes(first.direct() as *mut u64, 0, (count * PAGE_SIZE / 8) as usize) }
}

/// A static that several CPUs may name; what protects its content is said where it is declared.
#[derive(Debug)]
pub struct Shared<T>(pub T);

// SAFETY: every static of this type states its discipline (a lock, one CPU, or atomics) at its declaration.
#[expect(unsafe_code, reason = "statics of kernel state")]
unsafe impl<T> Sync for Shared<T> {}
