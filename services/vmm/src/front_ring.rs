//! A shared ring of a split device, backend side: requests out, responses in, notification rules.
//!
//! The guest owns `req_prod` and `rsp_event`; the other indices are kept privately. A request is copied
//! once. Invariant: a response never overwrites a request that was not taken, because no more responses
//! than taken requests are written. Source: Xen public/io/ring.h.

use core::sync::atomic::{Ordering, fence};

use crate::grants::{GrantTable, Granted};

const REQ_PROD: usize = 0;
const REQ_EVENT: usize = 4;
const RSP_PROD: usize = 8;
const RSP_EVENT: usize = 12;
const ENTRIES: usize = 64;

/// The guest's index is impossible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BrokenRing;

/// One ring in use.
#[derive(Debug)]
pub struct FrontRing {
    page: Granted,
    entries: u32,
    stride: usize,
    req_cons: u32,
    rsp_prod: u32,
    rsp_published: u32,
}

impl FrontRing {
    /// A fresh ring of `entries` (a power of two) slots of `stride` bytes in a granted page.
    pub fn new(page: Granted, entries: u32, stride: usize) -> Self {
        Self { page, entries, stride, req_cons: 0, rsp_prod: 0, rsp_published: 0 }
    }

    /// Gives the page back.
    pub fn close(self, grants: &GrantTable) {
        grants.release(self.page);
    }

    /// Requests that wait.
    ///
    /// # Errors
    /// [`BrokenRing`].
    #[inline]
    pub fn available(&self) -> Result<u32, BrokenRing> {
        let produced = self.page.page.u32(REQ_PROD);
        // Requests and unwritten responses share the slots.
        if produced.wrapping_sub(self.rsp_prod) > self.entries {
            return Err(BrokenRing);
        }
        Ok(produced.wrapping_sub(self.req_cons))
    }

    fn slot(&self, index: u32) -> usize {
        ENTRIES + (index & (self.entries - 1)) as usize * self.stride
    }

    /// Copies the request `ahead` places behind the next one; it stays in the ring.
    #[inline]
    pub fn peek<const N: usize>(&self, ahead: u32) -> [u8; N] {
        let mut request = [0; N];
        self.page.page.read(self.slot(self.req_cons.wrapping_add(ahead)), &mut request);
        request
    }

    /// Takes `count` requests that were looked at.
    #[inline]
    pub fn take(&mut self, count: u32) {
        self.req_cons = self.req_cons.wrapping_add(count);
    }

    /// Asks for a notification of the next request; `true`: there is one already.
    ///
    /// # Errors
    /// [`BrokenRing`].
    pub fn arm(&mut self) -> Result<bool, BrokenRing> {
        self.page.page.set_u32(REQ_EVENT, self.req_cons.wrapping_add(1));
        fence(Ordering::SeqCst);
        Ok(self.available()? > 0)
    }

    /// Asks for a notification when `count` requests wait; `true`: they do already.
    ///
    /// # Errors
    /// [`BrokenRing`].
    pub fn arm_for(&mut self, count: u32) -> Result<bool, BrokenRing> {
        self.page.page.set_u32(REQ_EVENT, self.req_cons.wrapping_add(count));
        fence(Ordering::SeqCst);
        Ok(self.available()? >= count)
    }

    /// Number of the response that is the next to become visible.
    pub fn published(&self) -> u32 {
        self.rsp_published
    }

    /// Whether the guest wants to be notified of a response from number `since` on that is visible.
    pub fn is_unseen(&self, since: u32) -> bool {
        let event = self.page.page.u32(RSP_EVENT);
        self.rsp_published.wrapping_sub(event) < self.rsp_published.wrapping_sub(since)
    }

    /// Writes a response; [`Self::publish`] makes it visible.
    #[inline]
    pub fn respond(&mut self, response: &[u8]) {
        self.page.page.write(self.slot(self.rsp_prod), response);
        self.rsp_prod = self.rsp_prod.wrapping_add(1);
    }

    /// Makes responses visible; whether the guest wants to be notified.
    #[inline]
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.rsp_published, self.rsp_prod);
        if old == new {
            return false;
        }
        self.page.page.set_u32(RSP_PROD, new);
        self.rsp_published = new;
        fence(Ordering::SeqCst);
        let event = self.page.page.u32(RSP_EVENT);
        new.wrapping_sub(event) < new.wrapping_sub(old)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grants::{GrantRef, Want, tests::permit};
    use crate::memory::{Gfn, GuestMemory, Page, tests::fake};

    fn ring() -> (GuestMemory, FrontRing, Page) {
        let memory = fake(4);
        permit(&memory, 8, 2, false);
        let granted = GrantTable::default().acquire(&memory, GrantRef(8), Want::Write).unwrap();
        let page = memory.page(Gfn(2)).unwrap();
        (memory, FrontRing::new(granted, 32, 112), page)
    }

    #[test]
    fn the_guest_is_notified_exactly_when_it_asked_for() {
        let (_memory, mut ring, page) = ring();
        page.set_u32(REQ_PROD, 4);
        page.set_u32(RSP_EVENT, 2);
        ring.take(4);
        ring.respond(&[1; 12]);
        assert!(!ring.publish());
        ring.respond(&[2; 12]);
        assert!(ring.publish());
        assert!(!ring.publish(), "nothing new");
        ring.respond(&[3; 12]);
        assert!(!ring.publish());
        assert_eq!((page.u32(RSP_PROD), page.u8(64 + 2 * 112)), (3, 3));
    }

    #[test]
    fn arming_sees_a_request_that_came_meanwhile() {
        let (_memory, mut ring, page) = ring();
        assert_eq!(ring.arm(), Ok(false));
        assert_eq!(page.u32(REQ_EVENT), 1);
        page.set_u32(REQ_PROD, 1);
        assert_eq!(ring.arm(), Ok(true));
    }

    #[test]
    fn an_impossible_index_is_an_error_even_with_responses_owed() {
        let (_memory, mut ring, page) = ring();
        page.set_u32(REQ_PROD, 33);
        assert_eq!(ring.available(), Err(BrokenRing));
        page.set_u32(REQ_PROD, 32);
        assert_eq!(ring.available(), Ok(32));
        ring.take(1);
        page.set_u32(REQ_PROD, 33);
        assert_eq!(ring.available(), Err(BrokenRing), "a request is unanswered: its slot is not free");
        page.set_u32(REQ_PROD, u32::MAX);
        assert_eq!(ring.arm(), Err(BrokenRing));
    }
}
