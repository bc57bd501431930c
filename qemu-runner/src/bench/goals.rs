//! The one table of what is measured: what each figure is, what the best peer needs, the goal, the promise.
//!
//! A *goal* is what the design aims at. A *promise* is what holds now and is held by a test
//! (`tests/tests/promises.rs`): a limit, not a measurement. To tighten one, change its number here and in the
//! README's section "Specification"; a test compares the two. Peers, counted the same way (QEMU TCG,
//! `-icount shift=0,sleep=off`): NOVA release-24.08, seL4 16.0 (lean), Xen 4.17 with a Debian dom0, KVM of Linux
//! 6.1 with QEMU 7.2; of each the best configuration.

use serde::Serialize;

/// What belongs together: one machine measures it, or none is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Group {
    /// The kernel's paths, ring-0 instructions alone.
    Paths,
    /// Instructions of those paths that cost much more than their number says.
    Expensive,
    /// Exits as a guest sees them.
    Exits,
    /// What a guest does without a device.
    Cpu,
    /// A guest's disk.
    Blk,
    /// A guest's network.
    Net,
    /// Starting.
    Boot,
    /// Memory that is not a guest's own.
    Memory,
    /// Programs.
    Sizes,
    /// Source code.
    Lines,
    /// The same figures in a fuller system.
    Growth,
}

impl Group {
    /// All, in the order of the table.
    pub const ALL: [Self; 11] = [
        Self::Paths,
        Self::Expensive,
        Self::Exits,
        Self::Cpu,
        Self::Blk,
        Self::Net,
        Self::Boot,
        Self::Memory,
        Self::Sizes,
        Self::Lines,
        Self::Growth,
    ];

    /// As it is written on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Paths => "paths",
            Self::Expensive => "expensive",
            Self::Exits => "exits",
            Self::Cpu => "cpu",
            Self::Blk => "blk",
            Self::Net => "net",
            Self::Boot => "boot",
            Self::Memory => "memory",
            Self::Growth => "growth",
            Self::Sizes => "sizes",
            Self::Lines => "lines",
        }
    }
}

/// What is known about a figure before it is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Unique; what is written on the command line and in files.
    pub name: &'static str,
    /// Its group.
    pub group: Group,
    /// What is measured, for people.
    pub what: &'static str,
    /// Of what.
    pub unit: &'static str,
    /// Throughput and the like; costs are better when they are lower.
    pub higher_is_better: bool,
    /// What the best peer needs, and which one that is.
    pub peer: Option<(u64, &'static str)>,
    /// What the design aims at.
    pub goal: Option<u64>,
    /// What holds: the test of the promises fails beyond it.
    pub promise: Option<u64>,
}

impl Entry {
    const fn new(group: Group, unit: &'static str, name: &'static str, what: &'static str) -> Self {
        Self { name, group, what, unit, higher_is_better: false, peer: None, goal: None, promise: None }
    }

    const fn more(mut self) -> Self {
        self.higher_is_better = true;
        self
    }

    const fn peer(mut self, value: u64, name: &'static str) -> Self {
        self.peer = Some((value, name));
        self
    }

    const fn goal(mut self, goal: u64) -> Self {
        self.goal = Some(goal);
        self
    }

    const fn promise(mut self, promise: u64) -> Self {
        self.promise = Some(promise);
        self
    }

    /// Whether `value` is within `limit`.
    pub fn is_within(&self, value: u64, limit: u64) -> bool {
        if self.higher_is_better { value >= limit } else { value <= limit }
    }
}

const INSTRUCTIONS: &str = "instructions";
const NANOSECONDS: &str = "ns";
const KIB: &str = "KiB";
const BYTES: &str = "bytes";
const LINES: &str = "lines";
/// Throughput per 1e9 instructions.
const MIB_PER: &str = "MiB per 1e9";
const MBIT_PER: &str = "Mbit per 1e9";

const fn path(name: &'static str, what: &'static str) -> Entry {
    Entry::new(Group::Paths, INSTRUCTIONS, name, what)
}
const fn exit(name: &'static str, what: &'static str) -> Entry {
    Entry::new(Group::Exits, INSTRUCTIONS, name, what)
}
const fn cpu(name: &'static str, what: &'static str) -> Entry {
    Entry::new(Group::Cpu, INSTRUCTIONS, name, what)
}
const fn blk(name: &'static str, what: &'static str) -> Entry {
    Entry::new(Group::Blk, INSTRUCTIONS, name, what)
}
const fn net(name: &'static str, what: &'static str) -> Entry {
    Entry::new(Group::Net, INSTRUCTIONS, name, what)
}
const fn boot(name: &'static str, what: &'static str) -> Entry {
    Entry::new(Group::Boot, INSTRUCTIONS, name, what)
}
const fn memory(name: &'static str, what: &'static str) -> Entry {
    Entry::new(Group::Memory, KIB, name, what)
}
const fn size(name: &'static str, what: &'static str) -> Entry {
    Entry::new(Group::Sizes, BYTES, name, what)
}
const fn lines(name: &'static str, what: &'static str) -> Entry {
    Entry::new(Group::Lines, LINES, name, what)
}

/// Every figure that does not depend on how full the system is, in the order of the table.
const TABLE: &[Entry] = &[
    path("null-call", "cheapest system call (no such number)").peer(51, "NOVA").goal(45).promise(45),
    path("poll", "EventPoll, no signal").peer(240, "seL4").promise(60),
    path("round-trip", "event round trip of two domains, signal_and_wait both ways")
        .peer(275, "NOVA")
        .goal(220)
        .promise(220),
    path("signal-to-waiter", "signal, to a higher-priority waiter running")
        .peer(532, "seL4")
        .goal(220)
        .promise(220),
    path("waiter-to-signaller", "that waiter waits again, to the signaller running")
        .peer(407, "seL4")
        .promise(220),
    path("interrupt-to-driver", "device interrupt, to its driver running")
        .peer(371, "seL4")
        .goal(220)
        .promise(220),
    path("driver-to-interrupted", "that driver waits again, to the interrupted thread")
        .peer(822, "NOVA")
        .promise(220),
    path("exit-cpuid", "guest CPUID, to the VMM and back into the guest, kernel alone")
        .peer(486, "NOVA")
        .goal(240)
        .promise(240),
    path("exit-vmmcall", "guest VMMCALL, to the VMM and back into the guest, kernel alone")
        .peer(454, "NOVA")
        .goal(240)
        .promise(240),
    exit("guest-cpuid", "guest CPUID as the guest sees it, kernel and VMM")
        .peer(3278, "KVM")
        .goal(600)
        .promise(600),
    exit("guest-vmmcall", "guest VMMCALL as the guest sees it, kernel and VMM")
        .peer(3514, "KVM")
        .goal(600)
        .promise(600),
    exit("guest-alternating", "CPUID and VMMCALL in turn, as the guest sees them").goal(600),
    exit("guest-in", "guest IN from a port with nothing behind it").peer(1174, "Xen").goal(500).promise(500),
    exit("guest-rdtsc", "guest RDTSC").peer(4, "KVM"),
    exit("guest-syscall", "system call in the guest").peer(437, "KVM"),
    cpu("page-fault", "guest page fault, demand zero, 4 KiB").peer(3678, "Xen"),
    cpu("alu-loop", "20 million turns of 5 instructions").peer(100_400_000, "KVM"),
    cpu("fork-wait", "fork of a small process that ends, and the wait for it"),
    cpu("pipe-ping-pong", "a byte to another process and back through pipes"),
    Entry::new(Group::Cpu, NANOSECONDS, "sleep-overshoot", "a 1 ms sleep ends late by")
        .peer(65_444, "KVM")
        .goal(58_000)
        .promise(58_000),
    blk("blk-randread-4k-qd1", "4 KiB random read, one in flight")
        .peer(73_017, "KVM")
        .goal(36_000)
        .promise(36_000),
    blk("blk-randread-4k-qd32", "4 KiB random read, 32 in flight")
        .peer(22_725, "Xen")
        .goal(11_000)
        .promise(20_500),
    blk("blk-randwrite-4k-qd1", "4 KiB random write, one in flight")
        .peer(67_260, "KVM")
        .goal(33_000)
        .promise(33_000),
    blk("blk-randwrite-4k-qd32", "4 KiB random write, 32 in flight")
        .peer(16_430, "Xen")
        .goal(8_000)
        .promise(13_500),
    Entry::new(Group::Blk, MIB_PER, "blk-read-1m-qd1", "1 MiB sequential read")
        .more()
        .peer(1968, "KVM")
        .goal(4000)
        .promise(1750),
    Entry::new(Group::Blk, MIB_PER, "blk-read-128k-qd8", "128 KiB sequential read, 8 in flight")
        .more()
        .peer(1125, "Xen"),
    blk("virtio-randread-4k-qd1", "the same on an image of the host: CPU time of all domains"),
    blk("virtio-randread-4k-qd32", "the same on an image of the host: CPU time of all domains"),
    blk("virtio-randwrite-4k-qd1", "the same on an image of the host: CPU time of all domains"),
    blk("virtio-randwrite-4k-qd32", "the same on an image of the host: CPU time of all domains"),
    blk("virtio-read-1m-qd1", "1 MiB sequential read, image of the host: CPU time of all domains"),
    net("tcp-rr", "TCP request and response of one byte").peer(73_464, "KVM").goal(37_000).promise(37_000),
    Entry::new(Group::Net, MBIT_PER, "tcp-out", "TCP from the guest")
        .more()
        .peer(3096, "Xen")
        .goal(6000)
        .promise(6000),
    Entry::new(Group::Net, MBIT_PER, "tcp-in", "TCP to the guest")
        .more()
        .peer(3773, "KVM")
        .goal(7000)
        .promise(4500),
    boot("reset-to-guest", "machine's reset (firmware included), to the guest's first instruction")
        .goal(100_000_000)
        .promise(100_000_000),
    boot("create-to-guest", "order to create the guest, to its kernel's first instruction")
        .promise(20_000_000),
    boot("guest-kernel-to-init", "guest kernel's start to its init, guest's clock")
        .peer(1_444_000_000, "KVM")
        .goal(1_425_000_000)
        .promise(1_425_000_000),
    boot("create-to-init", "order to create the guest, to its init, machine's clock")
        .peer(1_690_000_000, "KVM")
        .goal(1_470_000_000)
        .promise(1_470_000_000),
    memory("memory-system", "memory of the system without guests")
        .peer(1_616_896, "Xen with dom0")
        .goal(16 * 1024)
        .promise(16 * 1024),
    memory("memory-per-guest", "memory per guest beside its own 256 MiB")
        .peer(2048, "Xen")
        .goal(2048)
        .promise(2048),
    size("size-kernel", "kernel, stripped").peer(90_000, "NOVA").promise(160 * 1024),
    size("size-init", "init"),
    size("size-blkback", "blkback"),
    size("size-console", "console"),
    size("size-netback", "netback"),
    size("size-toolstack", "toolstack"),
    size("size-vmm", "vmm"),
    size("size-xenstore", "xenstore"),
    lines("lines-kernel", "kernel").goal(8000).promise(8000),
    lines("lines-proto", "proto (interfaces)"),
    lines("lines-rt", "rt (runtime of the domains)"),
    lines("lines-init", "init"),
    lines("lines-console", "console"),
    lines("lines-xenstore", "xenstore"),
    lines("lines-toolstack", "toolstack"),
    lines("lines-vmm", "vmm"),
    lines("lines-blkback", "blkback"),
    lines("lines-netback", "netback"),
    lines("lines-virtio", "virtio"),
    lines("lines-image-builder", "image-builder (host)"),
    lines("lines-qemu-runner", "qemu-runner (host)"),
];

/// Kinds of [`EXPENSIVE`], in the order in which the bench domains log them.
pub const KINDS: [&str; 10] = [
    "cr3-writes",
    "msr-writes",
    "vmsaves-vmloads",
    "xcr-writes",
    "irets",
    "sysrets",
    "swapgs",
    "vmruns",
    "apic-accesses",
    "invlpgs",
];

macro_rules! expensive {
    ($($path:literal, $what:literal: $($kind:literal $nova:tt $promise:tt),+;)*) => {
        &[$($(Entry {
            peer: nova(&$nova),
            promise: first(&$promise),
            ..Entry::new(Group::Expensive, "times", concat!($path, "-", $kind), concat!($what, ": ", $kind))
        },)+)*]
    };
}

const fn first(number: &[u64]) -> Option<u64> {
    if number.is_empty() { None } else { Some(number[0]) }
}

const fn nova(number: &[u64]) -> Option<(u64, &'static str)> {
    match first(number) {
        Some(number) => Some((number, "NOVA")),
        None => None,
    }
}

/// Expensive instructions of a path there and back: what is woken also waits again. After each kind, in brackets:
/// what NOVA needs, as far as it was counted, and what is promised.
#[rustfmt::skip]
const EXPENSIVE: &[Entry] = expensive! {
    "null-call", "cheapest system call":
        "cr3-writes" [] [], "msr-writes" [] [], "irets" [] [], "sysrets" [] [], "swapgs" [] [];
    "round-trip", "event round trip":
        "cr3-writes" [2] [2], "msr-writes" [0] [0], "irets" [0] [0], "sysrets" [2] [2], "swapgs" [] [],
        "apic-accesses" [] [];
    "signal-to-waiter", "signal, its waiter runs and waits again":
        "cr3-writes" [] [], "msr-writes" [] [], "irets" [] [], "sysrets" [] [], "swapgs" [] [],
        "apic-accesses" [] [];
    "interrupt-to-driver", "interrupt, its driver runs and waits again":
        "cr3-writes" [] [2], "msr-writes" [] [0], "irets" [] [], "sysrets" [] [], "swapgs" [] [],
        "apic-accesses" [] [];
    "exit-cpuid", "guest CPUID to the VMM and back":
        "cr3-writes" [2] [0], "msr-writes" [] [0], "vmsaves-vmloads" [3] [3], "xcr-writes" [2] [0],
        "irets" [0] [0], "sysrets" [1] [1], "swapgs" [] [], "vmruns" [1] [1], "apic-accesses" [] [];
    "exit-vmmcall", "guest VMMCALL to the VMM and back":
        "cr3-writes" [2] [], "msr-writes" [] [], "vmsaves-vmloads" [3] [], "xcr-writes" [2] [],
        "irets" [0] [], "sysrets" [1] [], "swapgs" [] [], "vmruns" [1] [], "apic-accesses" [] [];
};

macro_rules! growth {
    ($($figure:literal, $what:literal, $limit:expr, $crowd:literal: $($count:literal)+;)*) => {
        &[$($(Entry {
            promise: $limit,
            ..Entry::new(
                Group::Growth,
                INSTRUCTIONS,
                concat!($figure, "-beside-", $count, "-", $crowd),
                concat!($what, " beside ", $count, " ", $crowd),
            )
        },)+)*]
    };
}

/// The figures that must not depend on how full the system is. What is beside: guests that sleep; domains each
/// with a thread that waits and a timer that is armed; nodes of the store each with a watch.
#[rustfmt::skip]
const GROWTH: &[Entry] = growth! {
    "null-call", "cheapest system call", None, "guests": 1 4 16;
    "round-trip", "event round trip", None, "guests": 1 4 16;
    "signal-to-waiter", "signal to a waiter running", None, "guests": 1 4 16;
    "interrupt-to-driver", "interrupt to its driver running", None, "guests": 1 4 16;
    "guest-cpuid", "guest CPUID", None, "guests": 1 4 16;
    "guest-vmmcall", "guest VMMCALL", None, "guests": 1 4 16;
    "blk-randread-4k-qd1", "4 KiB random read", None, "guests": 1 4 16;
    "tcp-rr", "TCP request and response", None, "guests": 1 4 16;
    "round-trip", "event round trip", None, "domains": 10 100;
    "round-trip", "event round trip", Some(220), "domains": 1000;
    "signal", "signal without a waiter", None, "domains": 10 100;
    "signal", "signal without a waiter", Some(100), "domains": 1000;
    "timer-next", "arming the timer that is due first", None, "domains": 10 100;
    "timer-next", "arming the timer that is due first", Some(200), "domains": 1000;
    "timer-last", "arming the timer that is due last", None, "domains": 10 100;
    "timer-last", "arming the timer that is due last", Some(600), "domains": 1000;
    "store-read", "reading a node, request to answer", None, "nodes": 10 100;
    "store-read", "reading a node, request to answer", Some(15_000), "nodes": 1000;
    "store-write", "writing a watched node, request to event", None, "nodes": 10 100;
    "store-write", "writing a watched node, request to event", Some(25_000), "nodes": 1000;
};

/// Every figure, in the order of the table.
pub fn table() -> impl Iterator<Item = &'static Entry> + Clone {
    let (paths, others) = TABLE.split_at(PATHS);
    paths.iter().chain(EXPENSIVE).chain(others).chain(GROWTH)
}

/// How many of [`TABLE`] are paths; what is expensive in them follows.
const PATHS: usize = {
    let mut count = 0;
    while count < TABLE.len() && matches!(TABLE[count].group, Group::Paths) {
        count += 1;
    }
    count
};

/// What is known about a figure.
pub fn entry(name: &str) -> Option<&'static Entry> {
    table().find(|entry| entry.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_no_group_is_a_name() {
        for (index, entry) in table().enumerate() {
            assert!(table().skip(index + 1).all(|other| other.name != entry.name), "{}", entry.name);
            assert!(Group::ALL.iter().all(|group| group.name() != entry.name), "{}", entry.name);
        }
    }

    #[test]
    fn rows_of_a_group_stand_together_in_its_order() {
        let groups: Vec<Group> = table().map(|entry| entry.group).collect();
        assert!(groups.is_sorted());
    }

    #[test]
    fn within_a_limit_depends_on_the_direction() {
        let (cost, rate) = (entry("round-trip").unwrap(), entry("tcp-in").unwrap());
        assert!(cost.is_within(220, 220) && !cost.is_within(221, 220));
        assert!(rate.is_within(7000, 7000) && !rate.is_within(6999, 7000));
    }

    /// A promise that is not in the README, or with another number, is not one.
    #[test]
    fn the_readme_states_every_promise_with_its_number() {
        let path = image_builder::machine::workspace_root().join("README.md");
        let readme = std::fs::read_to_string(path).unwrap();
        let section = readme.split("\n## ").find(|section| section.starts_with("Specification")).unwrap();
        for entry in table() {
            let row = section.lines().find(|line| line.contains(&format!("| `{}` |", entry.name)));
            let limit = entry.promise.map(crate::bench::report::grouped);
            match (row, limit) {
                (Some(row), Some(limit)) => {
                    assert!(row.contains(&format!(" {limit} ")), "{row}: not {limit}")
                }
                (None, None) => {}
                (row, limit) => panic!("{}: README {row:?}, promise {limit:?}", entry.name),
            }
        }
    }
}
