//! From the boot loader to the first instruction of init.

mod info;
#[cfg(target_os = "none")]
mod start;

use core::sync::atomic::{AtomicU64, Ordering};

pub use info::{BootInfo, Region, device_runs, parse_multiboot2, parse_pvh};

/// Frames of RAM, and how many of them the kernel keeps.
static TOTALS: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// Frames of RAM, and frames that the kernel keeps.
pub fn totals() -> (u64, u64) {
    let [total, kernel] = &TOTALS;
    (total.load(Ordering::Relaxed), kernel.load(Ordering::Relaxed))
}

/// Remembers them.
pub fn set_totals(total: u64, kernel: u64) {
    TOTALS[0].store(total, Ordering::Relaxed);
    TOTALS[1].store(kernel, Ordering::Relaxed);
}
