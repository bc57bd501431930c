//! The programs that run on the machine: which package builds them and what they have a use for.
//!
//! The manifest's check compares with this table, so that a domain is never given a device, a port or a
//! channel that its program would not even look at.

use std::path::PathBuf;

use proto::channel::ChannelKind;

/// Something that a domain can be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// I/O ports.
    Ports,
    /// Interrupt lines.
    Lines,
    /// PCI functions.
    Devices,
    /// A file of the bundle.
    File,
    /// Offers channels of this kind to guests and VMMs.
    Serves(ChannelKind),
    /// The client's end of a channel of this kind, without which it cannot work.
    Client(ChannelKind),
    /// The server's end of a channel of this kind.
    Server(ChannelKind),
}

/// Where a program comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Built from this package and binary of the workspace.
    Workspace {
        /// Package.
        package: String,
        /// Binary.
        binary: String,
    },
    /// A file that somebody else built.
    Prebuilt(PathBuf),
}

/// A program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Name in the manifest; its file in the bundle is `services/<name>`.
    pub name: String,
    /// Where it comes from.
    pub origin: Origin,
    /// What it has a use for; `None`: anything (a test's program).
    pub uses: Option<Vec<Use>>,
}

impl Program {
    fn of_workspace(name: &str, uses: &[Use]) -> Self {
        let origin = Origin::Workspace { package: name.to_owned(), binary: format!("{name}-domain") };
        Self { name: name.to_owned(), origin, uses: Some(uses.to_vec()) }
    }

    /// A program that is there already and may be given anything.
    pub fn prebuilt(name: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        Self { name: name.into(), origin: Origin::Prebuilt(path.into()), uses: None }
    }

    /// Whether it has a use for this.
    pub fn has_use_for(&self, what: Use) -> bool {
        self.uses.as_ref().is_none_or(|uses| uses.contains(&what))
    }

    /// Name of its file in the bundle.
    pub fn file(&self) -> String {
        format!("services/{}", self.name)
    }
}

/// Package and binary of the kernel.
pub const KERNEL: (&str, &str) = ("kernel", "kernel-image");
/// Name of the first domain, which no manifest lists.
pub const INIT: &str = "init";
/// Name of the program of every guest's VMM.
pub const VMM: &str = "vmm";

/// All programs of the workspace, init and the VMM included.
pub fn of_workspace() -> Vec<Program> {
    use ChannelKind::{Blk, Builder, GuestConsole, Log, Net, Operator, Xenstore};
    use Use::{Client, Devices, File, Lines, Ports, Server, Serves};
    vec![
        Program::of_workspace(INIT, &[]),
        Program::of_workspace(
            "console",
            &[Ports, Lines, Serves(Log), Serves(GuestConsole), Client(Operator)],
        ),
        Program::of_workspace("xenstore", &[Serves(Xenstore), Server(Xenstore)]),
        Program::of_workspace("toolstack", &[File, Server(Operator), Client(Xenstore), Client(Builder)]),
        Program::of_workspace("blkback", &[Devices, Serves(Blk)]),
        Program::of_workspace("netback", &[Devices, Serves(Net), Server(Net)]),
        Program::of_workspace(VMM, &[]),
        // A station for tests and the bench; the shipped manifest does not have it.
        Program::of_workspace("peer", &[Client(Net)]),
    ]
}
