//! Why a domain could not be built, as a sentence for people.

use alloc::string::String;
use core::fmt;

use proto::abi::Error;

/// Why a domain could not be built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BuildError {
    /// The kernel refused a step; names the step.
    Kernel(&'static str, Error),
    /// Not enough memory in one piece.
    Memory {
        /// Asked for, in frames.
        wanted: u64,
        /// Free altogether, in frames.
        free: u64,
    },
    /// A capability table is full; names whose.
    Slots(&'static str),
    /// What was asked for makes no sense; says what, why, and what to do.
    Request(String),
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel(step, error) => write!(f, "the kernel refused to {step}: {error:?}"),
            Self::Memory { wanted, free } => write!(
                f,
                "{} KiB of memory in one piece are needed, {} KiB are free altogether: end another guest or ask for less",
                wanted * 4,
                free * 4
            ),
            Self::Slots(table) => {
                write!(f, "the capability table of {table} is full: end another guest first")
            }
            Self::Request(sentence) => f.write_str(sentence),
        }
    }
}

/// Names the step that the kernel refused.
pub trait Step<T> {
    /// As [`BuildError::Kernel`].
    ///
    /// # Errors
    /// The kernel's, with the step's name.
    fn step(self, name: &'static str) -> Result<T, BuildError>;
}

impl<T> Step<T> for Result<T, Error> {
    fn step(self, name: &'static str) -> Result<T, BuildError> {
        self.map_err(|error| BuildError::Kernel(name, error))
    }
}
