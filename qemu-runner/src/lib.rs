//! qemu-runner: the system with its guests in QEMU, for users (interactive) and for scripts and tests.
//!
//! [`plan`] turns xl.cfg files into what is packed and attached, [`guest`] makes the default guest from
//! Debian's packages, [`host`] finds or installs what the host needs, [`qemu`] has the one command line,
//! [`machine::Machine`] drives a running machine through its serial port, and [`trace`] reads the kernel's trace. The
//! whole-system tests are written against [`session`] and [`machine`].

pub mod accel;
pub mod bench;
pub mod cli;
pub mod guest;
pub mod host;
pub mod machine;
pub mod make_guest;
pub mod plan;
pub mod qemu;
pub mod run;
pub mod session;
pub mod trace;

pub use image_builder::Progress;
pub use machine::{Guest, Machine};
pub use session::Session;

/// Why a run ended badly; each kind has its exit status.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A command at the operator's prompt failed.
    #[error("{0}")]
    CommandFailed(String),
    /// Something on the host is not as it must be: an option, a configuration, a file, a tool.
    #[error("{0}")]
    Usage(String),
    /// It took too long.
    #[error("{0}")]
    Timeout(String),
    /// The machine died.
    #[error("{0}")]
    Died(String),
    /// A figure is worse than it was.
    #[error("{0}")]
    Worse(String),
}

impl Error {
    /// The exit status of the runner.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::CommandFailed(_) => 1,
            Self::Usage(_) => 2,
            Self::Timeout(_) => 3,
            Self::Died(_) => 4,
            Self::Worse(_) => 5,
        }
    }

    /// Names what an I/O error is about.
    pub fn io(what: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> Self {
        move |error| Self::Usage(format!("{what}: {error}"))
    }

    /// [`Error::io`] with a path.
    pub fn path(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        Self::io(path.display())
    }
}

impl From<image_builder::Error> for Error {
    fn from(error: image_builder::Error) -> Self {
        Self::Usage(error.to_string())
    }
}
