//! Counters of a domain: one page of `u64`s that the domain adds to and init reads at any time.
//!
//! They say what crossed a domain's boundaries: signals, messages, wake-ups, bytes; of a VMM also its
//! guest's exits, hypercalls and requests. A domain writes its own page, so the numbers are what it says of
//! itself: init passes them on and decides nothing by them. What the kernel counts (`Field::Dispatches` and
//! the following) needs no trust.

use core::fmt;

use crate::abi::PAGE_SIZE;
use crate::boot::{INFO_BASE, INFO_MAX};

/// Where every domain's counters are mapped: behind the start information, so that they share its page table.
pub const COUNTERS_BASE: u64 = INFO_BASE + INFO_MAX + PAGE_SIZE;
/// Counters that have a meaning; the rest of the page is not used.
pub const COUNT: usize = 128;

const _: () = assert!(COUNT * size_of::<u64>() <= PAGE_SIZE as usize);

macro_rules! counters {
    ($($(#[$doc:meta])* $constant:ident = $index:literal, $name:literal;)*) => {
        $($(#[$doc])* pub const $constant: usize = $index;)*

        /// The name of a counter that is not a hypercall's.
        fn fixed_name(index: usize) -> Option<&'static str> {
            match index {
                $($index => Some($name),)*
                _ => None,
            }
        }
    };
}

counters! {
    /// Signals sent to the peers of channels.
    SIGNALS_SENT = 0, "signals_sent";
    /// Batches of messages for which no signal was needed, because the peer was awake.
    SIGNALS_SUPPRESSED = 1, "signals_suppressed";
    /// Messages put into rings.
    MESSAGES_SENT = 2, "messages_sent";
    /// Messages taken from rings.
    MESSAGES_RECEIVED = 3, "messages_received";
    /// Waits that returned with signals.
    WAKE_UPS = 4, "wake_ups";
    /// Bytes of bulk data copied (between guest pages, pools and buffers).
    BYTES_COPIED = 5, "bytes_copied";
    /// VMM: interrupts injected into the guest.
    INTERRUPTS_INJECTED = 8, "interrupts_injected";
    /// VMM: event channel ports raised for the guest.
    PORTS_RAISED = 9, "ports_raised";

    /// VMM: exits because of CPUID.
    EXIT_CPUID = 16, "exit_cpuid";
    /// VMM: exits because of HLT.
    EXIT_HLT = 17, "exit_hlt";
    /// VMM: exits because of an I/O port.
    EXIT_IOIO = 18, "exit_ioio";
    /// VMM: exits because of a model-specific register.
    EXIT_MSR = 19, "exit_msr";
    /// VMM: exits because of a hypercall.
    EXIT_VMMCALL = 20, "exit_vmmcall";
    /// VMM: exits because of a nested page fault.
    EXIT_NPF = 21, "exit_npf";
    /// VMM: exits because the guest can take an interrupt now.
    EXIT_VINTR = 22, "exit_vintr";
    /// VMM: exits for any other reason.
    EXIT_OTHER = 23, "exit_other";

    /// Block devices: reads.
    BLK_READS = 32, "blk_reads";
    /// Block devices: writes.
    BLK_WRITES = 33, "blk_writes";
    /// Block devices: flushes.
    BLK_FLUSHES = 34, "blk_flushes";
    /// Block devices: bytes read.
    BLK_BYTES_READ = 35, "blk_bytes_read";
    /// Block devices: bytes written.
    BLK_BYTES_WRITTEN = 36, "blk_bytes_written";
    /// Block devices: notifications (of a VMM by its guest; of a device by blkback).
    BLK_NOTIFICATIONS = 37, "blk_notifications";
    /// Network devices: frames that left the guest (netback: all its guests).
    NET_FRAMES_OUT = 40, "net_frames_out";
    /// Network devices: frames delivered to the guest (netback: to all its guests).
    NET_FRAMES_IN = 41, "net_frames_in";
    /// Network devices: bytes of the frames out.
    NET_BYTES_OUT = 42, "net_bytes_out";
    /// Network devices: bytes of the frames in.
    NET_BYTES_IN = 43, "net_bytes_in";
    /// Network devices: frames dropped (by netback: of and for all its guests; by a VMM: of and for its guest).
    NET_DROPPED = 44, "net_dropped";
    /// Network devices: notifications (of a VMM by its guest; of a device by netback).
    NET_NOTIFICATIONS = 45, "net_notifications";
    /// Netback: frames passed from one vif to another.
    NET_FORWARDED = 46, "net_forwarded";
    /// Console: bytes that the guest wrote.
    CONSOLE_BYTES_OUT = 48, "console_bytes_out";
    /// Console: bytes that the guest was given.
    CONSOLE_BYTES_IN = 49, "console_bytes_in";
    /// Store: requests of the guest passed on (xenstore: requests served).
    STORE_REQUESTS = 52, "store_requests";
}

/// VMM: hypercall `n` is counted at `HYPERCALLS + n`.
pub const HYPERCALLS: usize = 64;
/// Hypercall numbers that have a counter each.
pub const HYPERCALL_COUNT: usize = 64;
/// The exits by reason, all that reached the VMM.
pub const EXITS: core::ops::RangeInclusive<usize> = EXIT_CPUID..=EXIT_OTHER;

/// The counter of a hypercall; a number that no hypercall has is counted as the last one.
#[inline]
pub fn hypercall(number: u64) -> usize {
    HYPERCALLS + (number as usize).min(HYPERCALL_COUNT - 1)
}

/// A counter's name, as `xl counters` prints it; nothing for an index without a meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name(usize);

impl Name {
    /// The name of the counter at `index`, if it has a meaning.
    pub fn of(index: usize) -> Option<Self> {
        let is_hypercall = (HYPERCALLS..HYPERCALLS + HYPERCALL_COUNT).contains(&index);
        (is_hypercall || fixed_name(index).is_some()).then_some(Self(index))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = fixed_name(self.0) {
            return f.pad(name);
        }
        let number = self.0.saturating_sub(HYPERCALLS);
        // Names of Xen's public/xen.h, without `__HYPERVISOR_`.
        let name = match number {
            12 => "hypercall_memory_op",
            13 => "hypercall_multicall",
            15 => "hypercall_set_timer_op",
            17 => "hypercall_xen_version",
            18 => "hypercall_console_io",
            20 => "hypercall_grant_table_op",
            21 => "hypercall_vm_assist",
            24 => "hypercall_vcpu_op",
            29 => "hypercall_sched_op",
            32 => "hypercall_event_channel_op",
            33 => "hypercall_physdev_op",
            34 => "hypercall_hvm_op",
            40 => "hypercall_xenpmu_op",
            63 => "hypercall_other",
            _ => return write!(f, "hypercall_{number}"),
        };
        f.pad(name)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::collections::BTreeSet;
    use std::string::ToString;

    #[test]
    fn every_counter_has_a_name_of_its_own_within_the_page() {
        let named: std::vec::Vec<_> = (0..512).filter_map(Name::of).collect();
        let names: BTreeSet<_> = named.iter().map(ToString::to_string).collect();
        assert_eq!(names.len(), named.len());
        assert!(named.iter().all(|name| name.0 < COUNT));
        assert!(
            names
                .iter()
                .all(|name| name.chars().all(|c| c.is_ascii_lowercase() || "_0123456789".contains(c)))
        );
        assert_eq!(Name::of(EXIT_CPUID).map(|n| n.to_string()).as_deref(), Some("exit_cpuid"));
        assert_eq!(Name::of(15), None);
        assert_eq!(Name::of(COUNT), None);
    }

    #[test]
    fn a_hypercall_number_never_leaves_its_range() {
        assert_eq!(hypercall(0), HYPERCALLS);
        assert_eq!(hypercall(63), COUNT - 1);
        assert_eq!(hypercall(u64::MAX), COUNT - 1);
        assert_eq!(
            Name::of(hypercall(32)).map(|n| n.to_string()).as_deref(),
            Some("hypercall_event_channel_op")
        );
    }
}
