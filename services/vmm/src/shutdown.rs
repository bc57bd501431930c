//! How a guest ends: the reasons of SCHEDOP_shutdown, which other ways to end share.
//!
//! A reason that the guest gave in advance (SCHEDOP_shutdown_code) counts, whatever ends it then. A triple fault has
//! the reason of HVM_PARAM_TRIPLE_FAULT_REASON, which is a reboot and which no guest may change: as on a machine,
//! where it resets the processor; kernels rely on it (Linux's `reboot=triple`). That a guest which does so at
//! once is not started for ever is the toolstack's matter.
//! Sources: Xen public/sched.h, domain_shutdown in common/domain.c, hvm_triple_fault and hvm_domain_initialise in
//! arch/x86/hvm/hvm.c.

use proto::abi::{VcpuState, gpr};
use proto::text::Text;
use proto::toolstack::EndReason;

use crate::machine::{Guest, Outcome, sentence};

/// HVM_PARAM_TRIPLE_FAULT_REASON: SHUTDOWN_reboot.
const TRIPLE_FAULT_REASON: u8 = 1;

/// The end for a reason, and what the guest did, or `None` for a number that is no reason.
fn end_of(reason: u8) -> Option<(EndReason, &'static str)> {
    Some(match reason {
        0 => (EndReason::PowerOff, "powered off"),
        1 => (EndReason::Reboot, "asked for a reboot"),
        2 => (EndReason::Suspend, "suspended itself"),
        3 => (EndReason::Crash, "reported a crash of its kernel"),
        4 => (EndReason::Watchdog, "was ended by its watchdog"),
        5 => (EndReason::SoftReset, "asked for a soft reset"),
        _ => return None,
    })
}

impl Guest {
    /// Ends the guest for `reason` or the one given in advance. All numbers are accepted; `detail` says more than
    /// the reason does.
    pub fn shut_down(&mut self, reason: u8, detail: Option<Text<200>>) -> Outcome {
        let reason = *self.shutdown_code.get_or_insert(reason);
        let (end, what) = match end_of(reason) {
            Some((end, what)) => (end, sentence(format_args!("the guest {what}"))),
            None => (
                EndReason::Crash,
                sentence(format_args!("the guest ended itself for reason {reason}, which is none")),
            ),
        };
        Outcome::End(end, detail.unwrap_or(what))
    }

    /// A triple fault, with what else is known of its cause.
    pub fn triple_fault(&mut self, state: &VcpuState, cause: core::fmt::Arguments<'_>) -> Outcome {
        log::warn!(
            "triple fault: rflags {:#x}, rsp {:#x}, cr0 {:#x}, cr2 {:#x}, cr4 {:#x}, efer {:#x}",
            state.rflags,
            state.gprs[gpr::RSP],
            state.cr0,
            state.cr2,
            state.cr4,
            state.efer
        );
        let what = sentence(format_args!("triple fault{cause}, rip {:#x}, cr3 {:#x}", state.rip, state.cr3));
        self.shut_down(TRIPLE_FAULT_REASON, Some(what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::blank;
    use crate::testing::machine;

    #[test]
    fn a_triple_fault_is_a_reboot_unless_the_guest_said_otherwise() {
        for (given, expected) in [
            (None, EndReason::Reboot),
            (Some(0), EndReason::PowerOff),
            (Some(1), EndReason::Reboot),
            (Some(3), EndReason::Crash),
            (Some(200), EndReason::Crash),
        ] {
            let (mut machine, _) = machine();
            machine.guest.shutdown_code = given;
            let mut state = blank();
            (state.rip, state.cr3) = (0x5000, 0x7000);
            let Outcome::End(reason, detail) = machine.guest.triple_fault(&state, format_args!(": why"))
            else {
                panic!()
            };
            assert_eq!((reason, detail.as_str()), (expected, "triple fault: why, rip 0x5000, cr3 0x7000"));
        }
    }

    #[test]
    fn the_first_reason_counts_and_every_number_is_one() {
        for reason in 0..=255 {
            let (mut machine, _) = machine();
            let first = machine.guest.shut_down(reason, None);
            assert_eq!(machine.guest.shut_down(0, None), first);
            let Outcome::End(end, what) = first else { panic!() };
            assert_eq!(end == EndReason::Crash, reason == 3 || reason > 5, "{what}");
        }
    }
}
