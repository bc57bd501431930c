//! The toolstack (A) and a guest's VMM (B): start it, hear how it ended.

use postcard::experimental::max_size::MaxSize;
use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

use crate::channel::{ChannelKind, Protocol};
use crate::text::Text;

/// The protocol.
#[derive(Debug)]
pub enum Guest {}

impl Protocol for Guest {
    type Request = Request;
    type Response = Response;
    const KIND: ChannelKind = ChannelKind::Guest;
    const VERSION: u16 = 1;
    const SLOTS: usize = 4;
}

/// From the toolstack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub enum Request {
    /// The guest's xenstore nodes exist: load the kernel and run.
    Start,
    /// Stop running the guest's vCPUs.
    Pause,
    /// Go on.
    Unpause,
}

/// From the VMM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub enum Response {
    /// The kernel is loaded and runs.
    Started,
    /// The guest cannot be started.
    Failed {
        /// A sentence for people.
        reason: Text<240>,
    },
    /// The guest ended and runs no more.
    Ended {
        /// How.
        reason: EndReason,
        /// What happened, for people.
        detail: Text<200>,
    },
}

/// How a guest ended: SCHEDOP_shutdown's reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub enum EndReason {
    /// Powered off.
    PowerOff,
    /// Wants to be restarted; a triple fault is that, too.
    Reboot,
    /// Suspended.
    Suspend,
    /// Crashed.
    Crash,
    /// Its watchdog fired.
    Watchdog,
    /// Soft reset.
    SoftReset,
}

/// Name of the file of the bundle that holds [`GuestConfigs`].
pub const CONFIGS_FILE: &str = "guests";
/// Most guest configurations of one bundle.
pub const CONFIGS_MAX: usize = 32;

/// The guests that start with the machine, as whoever made the bundle wrote it (postcard).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestConfigs<'a> {
    /// The configurations, in order.
    #[serde(borrow)]
    pub configs: heapless::Vec<GuestConfig<'a>, CONFIGS_MAX>,
}

/// One xl.cfg file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestConfig<'a> {
    /// The file's name, for messages.
    pub file: &'a str,
    /// Its text, unchanged.
    pub text: &'a str,
    /// Start it with the machine; else `xl create <name>` does.
    pub is_autostart: bool,
    /// Where the host paths in the text are found in the system.
    #[serde(borrow)]
    pub resources: heapless::Vec<Resource<'a>, 40>,
}

/// A host path of a configuration, and what stands for it in the system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resource<'a> {
    /// The path exactly as the configuration writes it.
    pub path: &'a str,
    /// File of the bundle (kernel, ramdisk) or volume of blkback (disk).
    pub name: &'a str,
}
