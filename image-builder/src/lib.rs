//! image-builder: from sources and a system manifest to what the machine boots.
//!
//! [`machine::build`] compiles the kernel and every domain with a toolchain that [`toolchain`] found;
//! [`manifest`] checks the system manifest and compiles it; [`bundle`] packs everything that is loaded
//! beside the kernel into one file. qemu-runner uses all of it as a library.

pub mod bundle;
pub mod elf;
pub mod graph;
pub mod image;
pub mod machine;
pub mod manifest;
pub mod programs;
pub mod progress;
pub mod toolchain;

pub use bundle::{Content, File};
pub use image::{BundleSpec, Image, pack_image};
pub use machine::{BuildRequest, Machine, build};
pub use progress::Progress;

/// What went wrong, as a message for people.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system manifest is not acceptable; every problem with its place.
    #[error("{0}")]
    Manifest(String),
    /// A program file is not what it must be.
    #[error("{0}")]
    Elf(#[from] elf::ElfError),
    /// The bundle cannot be packed or read.
    #[error("{0}")]
    Bundle(String),
    /// No toolchain builds for the machine.
    #[error("{0}")]
    Toolchain(String),
    /// The compiler refused; its messages.
    #[error("{0}")]
    Compile(String),
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
}

impl Error {
    /// Names the file that an I/O error is about.
    pub fn io(path: impl AsRef<std::path::Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().display().to_string();
        move |source| Self::Io { path, source }
    }
}
