//! The toolstack (A) and init (B): building and destroying guests, and facts about all domains.

use postcard::experimental::max_size::MaxSize;
use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

use crate::channel::{ChannelKind, Protocol};
use crate::counters;
use crate::cpuid::Narrowing;
use crate::text::{List, Text};

/// The protocol.
#[derive(Debug)]
pub enum Builder {}

impl Protocol for Builder {
    type Request = Request;
    type Response = Response;
    const KIND: ChannelKind = ChannelKind::Builder;
    const VERSION: u16 = 2;
    const SLOTS: usize = 8;
}

/// Most disks of a guest.
pub const DISKS_MAX: usize = 16;
/// Most network interfaces of a guest.
pub const VIFS_MAX: usize = 8;

/// From the toolstack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub enum Request {
    /// Builds a guest's VMM domain with its memory and channels. The toolstack's own channel to it
    /// ([`ChannelKind::Guest`]) is attached before [`Response::Built`]; the guest does not run until it
    /// is told to there.
    Build(GuestSpec),
    /// Ends a guest's VMM domain and takes back all that it had.
    Destroy {
        /// Which.
        domid: u32,
    },
    /// Asks for [`Response::Domain`], one per domain from the given index on, or [`Response::NoDomain`].
    Stat {
        /// 0 for the first; then the last answer's index + 1.
        index: u32,
    },
    /// Asks for [`Response::Machine`].
    Machine,
    /// Asks for [`Response::Counters`].
    Counters {
        /// Which domain.
        domid: u32,
    },
    /// Starts the kernel's trace in a ring of its own; one that exists is replaced. Answered by
    /// [`Response::Trace`].
    TraceStart {
        /// Size of the ring.
        kib: u32,
    },
    /// Stops the trace; what was recorded can still be read. Answered by [`Response::Trace`].
    TraceStop,
    /// Gives the trace's memory back. Answered by [`Response::Trace`].
    TraceDrop,
    /// Asks for [`Response::Records`].
    TraceRead {
        /// Number of the first record; those overwritten are left out.
        from: u64,
    },
    /// Ends the machine's run (`quit` at the prompt).
    PowerOff {
        /// Exit status for whoever started the machine; 0: all went well.
        status: u8,
    },
}

/// What a guest is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub struct GuestSpec {
    /// Name, unique among running guests.
    pub name: Text<32>,
    /// UUID.
    pub uuid: [u8; 16],
    /// Memory in KiB, a multiple of 4.
    pub memory_kib: u64,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// File of the bundle that holds the kernel.
    pub kernel: Text<64>,
    /// File of the bundle that holds the initial RAM disk, or empty.
    pub ramdisk: Text<64>,
    /// Kernel command line.
    pub cmdline: Text<2048>,
    /// What it does not see of the processor.
    pub cpuid: Narrowing,
    /// Disks.
    pub disks: List<DiskSpec, DISKS_MAX>,
    /// Network interfaces.
    pub vifs: List<VifSpec, VIFS_MAX>,
}

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub struct DiskSpec {
    /// Xen virtual device number: 51712 for xvda, 51728 for xvdb, ...
    pub device: u32,
    /// Volume that blkback offers; of a volume in memory a name for people.
    pub volume: Text<64>,
    /// Bytes of a volume in memory, which is made with the guest and ends with it: a multiple of the page
    /// size. 0: blkback has the volume.
    pub memory: u64,
    /// Writes are refused.
    pub is_read_only: bool,
}

/// One network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub struct VifSpec {
    /// Number: 0 for the first.
    pub index: u32,
    /// MAC address.
    pub mac: [u8; 6],
    /// Bridge.
    pub bridge: Text<64>,
}

/// From init.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub enum Response {
    /// The guest's domain exists.
    Built {
        /// Its number, never used before while the system runs.
        domid: u32,
    },
    /// The request cannot be fulfilled; nothing was changed.
    Refused {
        /// A sentence for people: what, why, what to do.
        reason: Text<240>,
    },
    /// The guest's domain is gone and its memory is free.
    Destroyed {
        /// Which.
        domid: u32,
    },
    /// A domain stopped by itself: its VMM faulted. (Not an answer.)
    Died {
        /// Which.
        domid: u32,
        /// What happened, with registers.
        reason: Text<240>,
    },
    /// Facts about a domain.
    Domain {
        /// Position in the list.
        index: u32,
        /// The facts.
        stat: DomainStat,
    },
    /// The list ends before the index asked for.
    NoDomain,
    /// Facts about the machine.
    Machine(MachineStat),
    /// A domain's counters.
    Counters {
        /// Which domain.
        domid: u32,
        /// By index, see [`counters`].
        values: List<u64, { counters::COUNT }>,
    },
    /// State of the trace.
    Trace(TraceStat),
    /// A part of the trace.
    Records {
        /// Number of the first of them; larger than asked for when older ones were overwritten.
        first: u64,
        /// Records ever written to the ring.
        written: u64,
        /// In order; none when the trace ends before the number asked for.
        records: List<TraceRecord, RECORDS_MAX>,
    },
}

/// Most records in [`Response::Records`].
pub const RECORDS_MAX: usize = 80;

/// State of the trace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub struct TraceStat {
    /// The kernel records.
    pub is_running: bool,
    /// Records that the ring holds; 0: there is none.
    pub capacity: u64,
    /// Records ever written to it.
    pub written: u64,
}

/// A record of the trace, as [`crate::abi::trace::Record`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub struct TraceRecord {
    /// Time stamp counter.
    pub tsc: u64,
    /// What happened.
    pub kind: u16,
    /// CPU.
    pub cpu: u16,
    /// The thread that ran.
    pub thread: u32,
    /// By kind.
    pub a: u64,
    /// By kind.
    pub b: u64,
}

/// Facts about a domain, service or guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub struct DomainStat {
    /// Domain ID: services have the first numbers, guests the following.
    pub domid: u32,
    /// Name.
    pub name: Text<32>,
    /// Guest or service.
    pub is_guest: bool,
    /// Memory in KiB: of a guest its RAM and its volumes in memory, of a service all that it has.
    pub memory_kib: u64,
    /// What a guest costs on top of that, in KiB (VMM, page tables, kernel objects, rings).
    pub overhead_kib: u64,
    /// Virtual CPUs, or threads of a service.
    pub vcpus: u32,
    /// State.
    pub state: DomainState,
    /// Time on the CPU in microseconds.
    pub time_us: u64,
    /// What the kernel counted.
    pub activity: Activity,
}

/// What the kernel counted of a domain's thread.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub struct Activity {
    /// Number of its thread, as in the trace.
    pub thread: u32,
    /// Time on the CPU in nanoseconds.
    pub time_ns: u64,
    /// Times that it was put on a CPU.
    pub dispatches: u64,
    /// Signals that it sent.
    pub signals_sent: u64,
    /// Signals of its that made another thread ready or run.
    pub wake_ups: u64,
    /// Interrupts that came while it ran.
    pub interrupts: u64,
    /// Exits of its guest that it was handed.
    pub vcpu_exits: u64,
    /// Exits of its guest that the kernel served alone.
    pub vcpu_kernel_exits: u64,
}

/// State of a domain, as `xl list` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub enum DomainState {
    /// `r`: on a CPU or ready.
    Running,
    /// `b`: waits for an event.
    Blocked,
    /// `p`: built but not started.
    Paused,
    /// `c`: stopped by a fault.
    Crashed,
}

/// Facts about the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub struct MachineStat {
    /// RAM in KiB.
    pub total_kib: u64,
    /// RAM in KiB that is free for guests.
    pub free_kib: u64,
    /// RAM in KiB that kernel and services had before the first guest (without the boot bundle).
    pub system_kib: u64,
    /// RAM in KiB of the boot bundle (guest kernels and the like).
    pub bundle_kib: u64,
    /// CPUs.
    pub cpus: u32,
    /// TSC frequency in kHz.
    pub tsc_khz: u64,
    /// Microseconds since the start.
    pub uptime_us: u64,
    /// Microseconds that no thread ran.
    pub idle_us: u64,
    /// Times that a thread was put on a CPU.
    pub context_switches: u64,
    /// Interrupts.
    pub interrupts: u64,
}

// Reports are no reason for a larger channel: a guest's description stays the longest message.
const _: () = assert!(Response::POSTCARD_MAX_SIZE <= GuestSpec::POSTCARD_MAX_SIZE);
