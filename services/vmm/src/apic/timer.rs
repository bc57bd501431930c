//! The local APIC's timer: counts down bus cycles, or waits for a TSC value.
//!
//! A bus cycle is 10 ns, as Xen has it (`APIC_BUS_CYCLE_NS`); guests measure it. What is kept is when the
//! count was loaded, so that nothing has to be done while it runs. Invariant: [`Timer::due`] is never early.
//! Sources: AMD64 APM vol. 2, 16.4.1; Intel SDM vol. 3, 10.5.4.

use super::Now;

const BUS_CYCLE_NS: u64 = 10;
/// Bits of the divide configuration register.
pub(super) const DIVIDE_BITS: u32 = 0xb;
/// A periodic timer fires at most this often: a guest that asks for more asks for nothing but exits.
const PERIOD_MIN_NS: u64 = 20_000;

/// What the timer does, from its LVT entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TimerMode {
    OneShot,
    Periodic,
    Deadline,
    /// The reserved encoding: the timer stands still.
    Reserved,
}

#[derive(Debug, Default)]
pub(super) struct Timer {
    divide: u32,
    initial: u32,
    /// System time at which the count was `initial`.
    start_ns: u64,
    is_counting: bool,
    /// TSC that it waits for in deadline mode, or 0.
    deadline: u64,
    due: u64,
}

impl Timer {
    /// TSC at which it fires, or 0.
    #[inline]
    pub(super) fn due(&self) -> u64 {
        self.due
    }

    pub(super) fn divide(&self) -> u32 {
        self.divide
    }

    pub(super) fn initial(&self) -> u32 {
        self.initial
    }

    pub(super) fn deadline(&self) -> u64 {
        self.deadline
    }

    /// Nanoseconds of one count.
    fn count_ns(&self) -> u64 {
        let exponent = (self.divide & 3 | (self.divide & 8) >> 1).wrapping_add(1) & 7;
        BUS_CYCLE_NS << exponent
    }

    fn period_ns(&self) -> u64 {
        u64::from(self.initial) * self.count_ns()
    }

    /// The current count.
    pub(super) fn current(&self, mode: TimerMode, now: &Now) -> u32 {
        if !self.is_counting || self.initial == 0 {
            return 0;
        }
        let passed = now.ns().saturating_sub(self.start_ns) / self.count_ns();
        let initial = u64::from(self.initial);
        let left = match mode {
            TimerMode::OneShot => initial.saturating_sub(passed),
            TimerMode::Periodic => initial - passed % initial,
            TimerMode::Deadline | TimerMode::Reserved => 0,
        };
        left as u32
    }

    /// Loads the count and starts it; 0 stops.
    pub(super) fn load(&mut self, initial: u32, mode: TimerMode, now: &Now) {
        if matches!(mode, TimerMode::OneShot | TimerMode::Periodic) {
            self.initial = initial;
            self.start_ns = now.ns();
            self.is_counting = initial != 0;
            self.schedule(mode, now);
        }
    }

    /// Sets the divisor; the count goes on from where it is.
    pub(super) fn set_divide(&mut self, divide: u32, mode: TimerMode, now: &Now) {
        let counted = u64::from(self.initial.saturating_sub(self.current(mode, now)));
        self.divide = divide & DIVIDE_BITS;
        self.start_ns = now.ns().saturating_sub(counted * self.count_ns());
        self.schedule(mode, now);
    }

    /// The mode changes. Between one-shot and periodic the count goes on; deadline mode begins and ends
    /// with everything stopped.
    pub(super) fn change_mode(&mut self, from: TimerMode, to: TimerMode, now: &Now) {
        if (from == TimerMode::Deadline) != (to == TimerMode::Deadline) {
            *self = Self { divide: self.divide, ..Self::default() };
        }
        if from == TimerMode::Periodic && to == TimerMode::OneShot && self.is_counting {
            self.skip_periods(now);
        }
        self.schedule(to, now);
    }

    /// Sets the TSC value of deadline mode; 0 stops.
    pub(super) fn set_deadline(&mut self, tsc: u64) {
        (self.deadline, self.due) = (tsc, tsc);
    }

    /// Its time has come: one-shot and deadline stop, periodic waits for its next time.
    pub(super) fn fire(&mut self, mode: TimerMode, now: &Now) {
        match mode {
            TimerMode::Periodic => {
                self.skip_periods(now);
                self.schedule(mode, now);
            }
            _ => {
                self.is_counting = false;
                (self.deadline, self.due) = (0, 0);
            }
        }
    }

    fn skip_periods(&mut self, now: &Now) {
        let period = self.period_ns().max(1);
        let passed = now.ns().saturating_sub(self.start_ns) / period;
        self.start_ns = self.start_ns.saturating_add(passed * period);
    }

    fn schedule(&mut self, mode: TimerMode, now: &Now) {
        self.due = match mode {
            TimerMode::Deadline => self.deadline,
            TimerMode::OneShot if self.is_counting => {
                now.clock.tsc(self.start_ns.saturating_add(self.period_ns()))
            }
            TimerMode::Periodic if self.is_counting => {
                let next = self.start_ns.saturating_add(self.period_ns());
                let soonest = self.start_ns.saturating_add(PERIOD_MIN_NS);
                now.clock.tsc(next.max(soonest))
            }
            _ => 0,
        };
    }
}
