//! The system manifest as init reads it: image-builder checked it and compiled it from TOML.

use serde::{Deserialize, Serialize};

use crate::channel::ChannelKind;
use crate::text::{List, Text};

/// Name of the manifest's file in the bundle.
pub const FILE: &str = "manifest";

/// Every service domain and how they are wired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Services.
    pub services: List<Service, 24>,
    /// Channels between services that exist from the start. Each service's supervise channel and log
    /// channel are implied; guests' channels are made with the guest.
    pub channels: List<Wire, 48>,
    /// What every VMM gets.
    pub vmm: VmmTemplate,
}

/// One service domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Name.
    pub name: Text<32>,
    /// File of the bundle that holds its ELF program.
    pub program: Text<64>,
    /// Scheduling priority, 0 to 63.
    pub priority: u8,
    /// Share among threads of the same priority.
    pub weight: u16,
    /// Heap in KiB.
    pub heap_kib: u32,
    /// Stack in KiB.
    pub stack_kib: u32,
    /// Services that must be ready before this one starts.
    pub after: List<Text<32>, 8>,
    /// I/O ports: first, count.
    pub ports: List<(u16, u16), 4>,
    /// Global system interrupts.
    pub lines: List<u8, 4>,
    /// PCI functions: all that match.
    pub devices: List<DeviceMatch, 4>,
    /// Passed to the service.
    pub options: Text<256>,
    /// A file of the bundle that is mapped for the service, or empty.
    pub file: Text<64>,
    /// Serves these kinds of channels to guests.
    pub serves: List<ChannelKind, 4>,
}

/// Which PCI functions a service drives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceMatch {
    /// Vendor ID.
    pub vendor: u16,
    /// Device IDs.
    pub devices: List<u16, 4>,
    /// Memory for DMA per function, in KiB.
    pub dma_kib: u32,
    /// MSI-X vectors per function.
    pub vectors: u8,
}

/// A channel between two services.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wire {
    /// What for.
    pub kind: ChannelKind,
    /// Side A.
    pub client: Text<32>,
    /// Side B.
    pub server: Text<32>,
    /// `ChannelInfo::target`.
    pub target: Text<64>,
    /// `ChannelInfo::mac`: of a net channel's client; zero for the other kinds.
    pub mac: [u8; 6],
}

/// Whether `mac` can be the address of an interface: not a group's, and not zero.
pub fn is_station(mac: [u8; 6]) -> bool {
    mac[0] & 1 == 0 && mac != [0; 6]
}

/// What every VMM gets besides its guest's memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmmTemplate {
    /// File of the bundle that holds its ELF program.
    pub program: Text<64>,
    /// Scheduling priority.
    pub priority: u8,
    /// Heap in KiB.
    pub heap_kib: u32,
    /// Additional heap in KiB for a guest whose kernel has to be decompressed.
    pub decompression_kib: u32,
    /// Stack in KiB.
    pub stack_kib: u32,
}
