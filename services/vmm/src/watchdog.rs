//! The guest's watchdogs: timers that end the guest unless it sets them again in time.
//!
//! Source: Xen public/sched.h (SCHEDOP_watchdog), common/sched/core.c (domain_watchdog).

use crate::errno::Errno;

/// How many a guest has.
const WATCHDOGS: usize = 2;

/// All watchdogs of a guest.
#[derive(Debug, Default)]
pub struct Watchdogs([Option<u64>; WATCHDOGS]);

impl Watchdogs {
    /// SCHEDOP_watchdog: number 0 takes a free one and answers its number, which is above 0; `until_tsc` is when
    /// it ends the guest, `None` stops and frees it.
    ///
    /// # Errors
    /// [`Errno::Invalid`] for one that is not in use, [`Errno::NoSpace`].
    pub fn set(&mut self, number: u32, until_tsc: u64, is_stopped: bool) -> Result<u64, Errno> {
        if let Some(index) = (number as usize).checked_sub(1) {
            let watchdog = self.0.get_mut(index).filter(|watchdog| watchdog.is_some());
            *watchdog.ok_or(Errno::Invalid)? = (!is_stopped).then_some(until_tsc);
            return Ok(0);
        }
        // A new one is set even if its time is 0: then it ends the guest at once.
        let free = self.0.iter_mut().zip(1..).find(|(watchdog, _)| watchdog.is_none());
        let (watchdog, number) = free.ok_or(Errno::NoSpace)?;
        *watchdog = Some(until_tsc);
        Ok(number)
    }

    /// When the next one ends the guest; 0: none does.
    #[inline]
    pub fn due(&self) -> u64 {
        self.0.iter().flatten().fold(0, |due, &at| if due == 0 { at.max(1) } else { due.min(at.max(1)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_watchdogs_are_taken_patted_and_freed() {
        let mut watchdogs = Watchdogs::default();
        assert_eq!(watchdogs.due(), 0);
        assert_eq!(watchdogs.set(1, 5, false), Err(Errno::Invalid), "not taken");
        assert_eq!((watchdogs.set(0, 50, false), watchdogs.set(0, 30, true)), (Ok(1), Ok(2)));
        assert_eq!(watchdogs.set(0, 40, false), Err(Errno::NoSpace));
        assert_eq!(watchdogs.due(), 30);
        assert_eq!(watchdogs.set(2, 70, false), Ok(0));
        assert_eq!(watchdogs.due(), 50);
        assert_eq!(watchdogs.set(1, 0, true), Ok(0));
        assert_eq!(watchdogs.due(), 70);
        assert_eq!(watchdogs.set(3, 1, false), Err(Errno::Invalid));
        assert_eq!(watchdogs.set(u32::MAX, 1, false), Err(Errno::Invalid));
        assert_eq!(watchdogs.set(0, 10, false), Ok(1));
    }
}
