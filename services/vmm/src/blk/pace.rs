//! When a disk serves a guest that notified it: at once, or when the guest has nothing else to do.
//!
//! A request that is answered before the guest runs again costs it the least time. But a guest that has
//! many requests in mind then pays an exit and an interrupt for each. Whether it has is found out by trying:
//! now and then a notification is put off until the guest waits (or a short time has passed). If more
//! requests have come until then, that goes on; if not, the disk serves at once for a while.

/// Notifications that are served at once between two attempts.
const BETWEEN_ATTEMPTS: u32 = 32;

/// How a disk serves its guest.
#[derive(Debug)]
pub struct Pace {
    /// Notifications until the next one that is put off.
    until_attempt: u32,
    /// Requests have been put off.
    is_waiting: bool,
    /// Requests that were served meanwhile for another reason.
    found: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self { until_attempt: BETWEEN_ATTEMPTS, is_waiting: false, found: 0 }
    }
}

impl Pace {
    /// Whether a notification that finds `requests` in the ring is put off until [`Self::caught_up`].
    #[inline]
    pub fn puts_off(&mut self, requests: u32) -> bool {
        // Several at once: the guest has collected them already.
        if requests != 1 && !self.is_waiting {
            return false;
        }
        if self.is_waiting {
            return true;
        }
        if self.until_attempt > 0 {
            self.until_attempt -= 1;
            return false;
        }
        (self.is_waiting, self.found) = (true, 0);
        true
    }

    /// A request is taken from the ring.
    #[inline]
    pub fn took(&mut self) {
        self.found = self.found.saturating_add(1);
    }

    /// Nothing is held back any more: `requests` are in the ring. Whether something was.
    #[inline]
    pub fn caught_up(&mut self, requests: u32) -> bool {
        let was_waiting = core::mem::take(&mut self.is_waiting);
        if was_waiting {
            let found = requests.saturating_add(self.found);
            self.until_attempt = if found > 1 { 0 } else { BETWEEN_ATTEMPTS };
        }
        was_waiting
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Requests that were served at once, of `count` that come one by one.
    fn served_at_once(pace: &mut Pace, count: u32, found: u32) -> u32 {
        let mut served = 0;
        for _ in 0..count {
            if pace.puts_off(1) {
                assert!(pace.caught_up(found));
            } else {
                served += 1;
            }
        }
        served
    }

    #[test]
    fn one_request_at_a_time_is_served_at_once_but_for_rare_attempts() {
        let mut pace = Pace::default();
        assert_eq!(served_at_once(&mut pace, 330, 1), 320);
    }

    #[test]
    fn a_guest_that_goes_on_asking_is_let_until_it_stops() {
        let mut pace = Pace::default();
        assert_eq!(served_at_once(&mut pace, BETWEEN_ATTEMPTS, 1), BETWEEN_ATTEMPTS);
        assert_eq!(served_at_once(&mut pace, 100, 8), 0);
        assert_eq!(served_at_once(&mut pace, 1, 1), 0);
        assert_eq!(served_at_once(&mut pace, BETWEEN_ATTEMPTS, 1), BETWEEN_ATTEMPTS);
    }

    #[test]
    fn what_a_completion_brought_along_counts() {
        let mut pace = Pace::default();
        assert_eq!(served_at_once(&mut pace, BETWEEN_ATTEMPTS, 1), BETWEEN_ATTEMPTS);
        assert!(pace.puts_off(1) && pace.puts_off(1));
        pace.took();
        pace.took();
        assert!(pace.caught_up(0));
        assert!(pace.puts_off(1), "the guest goes on asking");
        assert!(pace.caught_up(1));
        assert!(!pace.puts_off(1), "what was found before does not count again");
    }

    #[test]
    fn requests_that_come_together_are_served_together() {
        let mut pace = Pace::default();
        for _ in 0..100 {
            assert!(!pace.puts_off(3) && !pace.puts_off(0));
        }
        assert!(!pace.caught_up(5));
        assert!(!pace.puts_off(1), "nothing was put off");
    }
}
