//! What a mode expected and what it got.
//!
//! Each check prints a line, `ok WHAT: GOT` or `FAIL WHAT: expected X, got Y`; the test on the host reads them.

use core::fmt::{Debug, Display};
use core::ops::RangeInclusive;

use crate::out::say;
use crate::traps::Fault;

/// The checks of one mode.
#[derive(Debug)]
pub struct Check {
    mode: &'static str,
    count: u32,
    failed: u32,
}

impl Check {
    /// None so far.
    pub fn new(mode: &'static str) -> Self {
        Self { mode, count: 0, failed: 0 }
    }

    /// Prints and counts; the outcome.
    fn note(&mut self, is_ok: bool, what: impl Display, expected: impl Display, got: impl Display) -> bool {
        self.count += 1;
        if is_ok {
            say!("ok {what}: {got}");
        } else {
            self.failed += 1;
            say!("FAIL {what}: expected {expected}, got {got}");
        }
        is_ok
    }

    /// The values are equal.
    pub fn equal<T: PartialEq + Debug>(&mut self, what: impl Display, expected: T, got: T) -> bool {
        self.note(expected == got, what, format_args!("{expected:?}"), format_args!("{got:?}"))
    }

    /// The numbers are equal; they are printed in hexadecimal.
    pub fn equal_hex<T: Into<u64>>(&mut self, what: impl Display, expected: T, got: T) -> bool {
        let (expected, got) = (expected.into(), got.into());
        self.note(expected == got, what, format_args!("{expected:#x}"), format_args!("{got:#x}"))
    }

    /// The condition holds.
    pub fn is_true(&mut self, what: impl Display, condition: bool) -> bool {
        self.note(condition, what, true, condition)
    }

    /// The value is not larger than this.
    pub fn at_most<T: PartialOrd + Debug>(&mut self, what: impl Display, most: T, got: T) -> bool {
        self.note(got <= most, what, format_args!("at most {most:?}"), format_args!("{got:?}"))
    }

    /// The value is not smaller than this.
    pub fn at_least<T: PartialOrd + Debug>(&mut self, what: impl Display, least: T, got: T) -> bool {
        self.note(got >= least, what, format_args!("at least {least:?}"), format_args!("{got:?}"))
    }

    /// The value is in the range.
    pub fn within<T: PartialOrd + Debug>(
        &mut self,
        what: impl Display,
        range: RangeInclusive<T>,
        got: T,
    ) -> bool {
        self.note(range.contains(&got), what, format_args!("{range:?}"), format_args!("{got:?}"))
    }

    /// The attempt ended with an exception of this vector.
    pub fn faults<T: Debug>(&mut self, what: impl Display, vector: u8, got: Result<T, Fault>) -> bool {
        let expected = format_args!("vector {vector}");
        match got {
            Err(fault) => self.note(fault.vector == vector, what, expected, fault),
            Ok(value) => self.note(false, what, expected, format_args!("{value:?}")),
        }
    }

    /// The attempt ended without an exception; its value.
    pub fn works<T>(&mut self, what: impl Display, got: Result<T, Fault>) -> Option<T> {
        match got {
            Ok(value) => {
                self.note(true, what, "", "no exception");
                Some(value)
            }
            Err(fault) => {
                self.note(false, what, "no exception", fault);
                None
            }
        }
    }

    /// Something to know that is neither right nor wrong.
    pub fn tell(&self, what: impl Display) {
        say!("-- {what}");
    }

    /// The last line.
    pub fn end(&self) {
        let Self { mode, count, failed } = self;
        match failed {
            // A mode without a check has shown nothing.
            0 if *count > 0 => say!("{mode} passed: {count} checks"),
            _ => say!("{mode} failed: {failed} of {count} checks"),
        }
    }
}
