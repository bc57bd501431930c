//! The domain's counters (see [`proto::counters`]): adding to one is a single instruction.
//!
//! Init maps the page at a fixed address before the domain's first instruction (its own before it opens a
//! channel), so nothing has to be looked up. A domain has one thread: load and store need no lock prefix.
#![cfg_attr(target_os = "none", expect(unsafe_code, reason = "the page is at an address that the ABI fixes"))]

use core::sync::atomic::{AtomicU64, Ordering};

use proto::counters::COUNT;

type Page = [AtomicU64; COUNT];

#[cfg(target_os = "none")]
#[inline(always)]
fn page() -> &'static Page {
    // SAFETY: init maps a page of zeros here, writable, for the life of the domain; atomics may be read by
    // init at any time.
    unsafe { &*(proto::counters::COUNTERS_BASE as *const Page) }
}

/// On the host there is one page for the process.
#[cfg(not(target_os = "none"))]
fn page() -> &'static Page {
    static PAGE: Page = [const { AtomicU64::new(0) }; COUNT];
    &PAGE
}

/// Adds `n` to a counter, wrapping; an index without a counter is ignored.
#[inline(always)]
pub fn add(index: usize, n: u64) {
    if let Some(counter) = page().get(index) {
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }
}

/// Adds one to a counter.
#[inline(always)]
pub fn inc(index: usize) {
    add(index, 1);
}

/// A counter's value.
pub fn get(index: usize) -> u64 {
    page().get(index).map_or(0, |counter| counter.load(Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_add_up_and_an_index_beyond_them_is_ignored() {
        let index = COUNT - 2;
        let before = get(index);
        add(index, 5);
        inc(index);
        assert_eq!(get(index), before + 6);
        add(COUNT, 1);
        assert_eq!(get(COUNT), 0);
    }
}
