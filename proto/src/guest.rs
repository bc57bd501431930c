//! What init tells a VMM about its guest.

use postcard::experimental::max_size::MaxSize;
use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

use crate::abi::Slot;
use crate::channel::Region;
use crate::cpuid::Narrowing;
use crate::text::{List, Text};

/// Most virtual CPUs of a guest.
pub const VCPUS_MAX: usize = 32;
/// Where a VMM finds its guest's RAM: guest-physical address 0 is mapped here.
pub const RAM_BASE: u64 = 0x200_0000_0000;
/// Guest RAM below 4 GiB ends here; the rest of those 4 GiB is for devices and firmware tables.
pub const LOW_RAM_END: u64 = 3 << 30;
/// RAM that does not fit below [`LOW_RAM_END`] begins here.
pub const HIGH_RAM_START: u64 = 4 << 30;
/// Frames of the VMM's own that it may map into the guest (shared_info, grant table, rings, ACPI, ...).
pub const SPECIAL_FRAMES: u64 = 40;
/// Slots that a VMM may fill with capabilities that it derives: the first one; they reach to the end of its table.
pub const FREE_SLOTS: Slot = 64;
/// Slots of a VMM's capability table.
pub const VMM_SLOTS: u64 = 192;

/// A guest, as its VMM sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub struct GuestInfo {
    /// Domain ID.
    pub domid: u32,
    /// Name.
    pub name: Text<32>,
    /// UUID.
    pub uuid: [u8; 16],
    /// RAM. Init mapped every range into the VMM at [`RAM_BASE`] + `gpa` and into the VM at `gpa`, as zeros.
    pub ram: List<RamRange, 4>,
    /// [`SPECIAL_FRAMES`] zeroed frames, mapped here in the VMM and nowhere in the VM.
    pub special: Region,
    /// Capability of these frames (one run), to derive from and map into the VM.
    pub special_slot: Slot,
    /// The VM.
    pub vm: Slot,
    /// Virtual CPUs.
    pub vcpus: List<VcpuInfo, VCPUS_MAX>,
    /// The kernel file, read-only.
    pub kernel: Region,
    /// The initial RAM disk, read-only; length 0: none.
    pub ramdisk: Region,
    /// Kernel command line.
    pub cmdline: Text<2048>,
    /// What it does not see of the processor.
    pub cpuid: Narrowing,
    /// Nanoseconds since 1970 when the TSC was 0.
    pub wall_clock_base_ns: u64,
    /// Disks: device number and channel (in `DomainInfo::channels`).
    pub disks: List<DeviceChannel, { crate::builder::DISKS_MAX }>,
    /// Network interfaces: number and channel.
    pub vifs: List<DeviceChannel, { crate::builder::VIFS_MAX }>,
}

/// Contiguous guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub struct RamRange {
    /// First guest-physical address.
    pub gpa: u64,
    /// Bytes.
    pub len: u64,
    /// Capability of the frames.
    pub slot: Slot,
}

/// One virtual CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub struct VcpuInfo {
    /// The vCPU.
    pub slot: Slot,
    /// Address of its [`crate::abi::VcpuState`] in the VMM.
    pub state: u64,
}

/// A device and the channel to its backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub struct DeviceChannel {
    /// Xen device number (disks) or index (network interfaces).
    pub device: u32,
    /// [`crate::channel::ChannelInfo::id`].
    pub channel: u32,
}
