//! What a domain finds when it starts: [`InitInfo`] for init (from the kernel), [`DomainInfo`] for every
//! other one (from init, postcard-encoded).

use postcard::experimental::max_size::MaxSize;
use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

use crate::abi::Slot;
use crate::channel::{ChannelInfo, Region};
use crate::guest::GuestInfo;
use crate::text::{List, Text};

/// Where every domain's program is linked.
pub const IMAGE_BASE: u64 = 0x20_0000;
/// Where a domain's start information is mapped, read-only; also the argument of its entry point.
pub const INFO_BASE: u64 = 0x1000_0000;
/// Most bytes of start information.
pub const INFO_MAX: u64 = 64 * 1024;
/// Top of a domain's stack; the page below the stack is not mapped.
pub const STACK_TOP: u64 = 0x1800_0000;
/// Where a domain's heap is mapped.
pub const HEAP_BASE: u64 = 0x4000_0000;
/// From here on init places channels, pools, devices and files.
pub const ARENA_BASE: u64 = 0x10_0000_0000;
/// Where init finds the boot bundle, read-only.
pub const BUNDLE_BASE: u64 = 0x100_0000_0000;

/// First 8 bytes of [`InitInfo`].
pub const INIT_MAGIC: u64 = u64::from_le_bytes(*b"AILURUS1");
/// Most frame runs in [`InitInfo`].
pub const RUNS_MAX: usize = 96;

/// From the kernel to init, in the page at [`INFO_BASE`].
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct InitInfo {
    /// [`INIT_MAGIC`].
    pub magic: u64,
    /// TSC ticks per millisecond.
    pub tsc_khz: u64,
    /// TSC at the kernel's first instruction.
    pub boot_tsc: u64,
    /// Physical address of the ACPI RSDP, or 0.
    pub rsdp: u64,
    /// Bytes of the boot bundle at [`BUNDLE_BASE`].
    pub bundle_len: u64,
    /// Frames that the kernel keeps (its image, per-CPU data, init's own memory and tables).
    pub kernel_frames: u64,
    /// Bytes of `cmdline` in use.
    pub cmdline_len: u64,
    /// Command line of the boot loader.
    pub cmdline: [u8; 1024],
    /// How many of `runs` are valid. Run `i` is in slot `init_slots::FIRST_FRAMES + i`.
    pub run_count: u64,
    /// Frame runs that init owns.
    pub runs: [Run; RUNS_MAX],
}

const _: () = assert!(size_of::<InitInfo>() <= 4096);

/// A run of frames.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct Run {
    /// First frame number.
    pub first: u64,
    /// How many.
    pub count: u64,
    /// [`run_kind`].
    pub kind: u64,
}

/// Values of [`Run::kind`].
pub mod run_kind {
    /// Free RAM, content undefined.
    pub const RAM: u64 = 1;
    /// The boot bundle (mapped at `BUNDLE_BASE` through a capability derived from this one).
    pub const BUNDLE: u64 = 2;
    /// Not RAM: device registers, firmware tables.
    pub const DEVICE: u64 = 3;
}

/// From init to a domain, at [`INFO_BASE`]: `u32` length, then postcard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub struct DomainInfo {
    /// Domain ID.
    pub domid: u32,
    /// Name.
    pub name: Text<32>,
    /// The domain's own event.
    pub event: Slot,
    /// Signals of that event that the domain's own timer uses.
    pub timer_signals: u64,
    /// Heap.
    pub heap: Region,
    /// TSC ticks per millisecond.
    pub tsc_khz: u64,
    /// Nanoseconds since 1970 when the TSC was 0.
    pub wall_clock_base_ns: u64,
    /// Channels that exist from the start; more come by [`crate::supervise::Request::Attach`].
    pub channels: List<ChannelInfo, 28>,
    /// Devices.
    pub devices: List<DeviceInfo, 32>,
    /// I/O port ranges that are enabled: first, count.
    pub ports: List<(u16, u16), 4>,
    /// Interrupt lines that are not a PCI device's: capability, line, signals.
    pub lines: List<LineInfo, 4>,
    /// Service-specific setting from the manifest, for example `mode=mux`.
    pub options: Text<256>,
    /// File of the bundle, read-only (the toolstack's guest configurations), or length 0.
    pub file: Region,
    /// For a VMM: its guest.
    pub guest: Option<GuestInfo>,
}

/// A PCI function that the domain drives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub struct DeviceInfo {
    /// Bus, device, function: `bus << 8 | device << 3 | function`.
    pub address: u16,
    /// A copy of its first 256 bytes of configuration space, read-only.
    pub config: Region,
    /// Memory BARs: address in configuration space is the physical one. The MSI-X table is not among them
    /// unless it shares pages with other registers.
    pub bars: List<BarInfo, 6>,
    /// Interrupt vectors: entry `i` of the MSI-X table sets `signals[i]` of the domain's event.
    pub vectors: List<u64, 8>,
    /// Memory for DMA: where it is mapped.
    pub dma: Region,
    /// Memory for DMA: physical address.
    pub dma_phys: u64,
}

/// A memory BAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub struct BarInfo {
    /// Number, 0 to 5.
    pub index: u8,
    /// Physical address.
    pub phys: u64,
    /// Size in bytes.
    pub size: u64,
    /// Where it is mapped, or 0: guarded by init.
    pub addr: u64,
}

/// An interrupt line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub struct LineInfo {
    /// Interrupt capability, for `IrqAck`.
    pub slot: Slot,
    /// Global system interrupt.
    pub line: u32,
    /// Signals of the domain's event that it sets.
    pub signals: u64,
}

/// Bytes of init's heap at [`HEAP_BASE`].
pub const INIT_HEAP: u64 = 4 << 20;
/// Bytes of init's stack below [`STACK_TOP`].
pub const INIT_STACK: u64 = 256 << 10;
/// Slots of init's capability table.
pub const INIT_SLOTS: u64 = 4096;
