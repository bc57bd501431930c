//! Non-maskable interrupts, one at a time: from one to the IRET of its handler, the next one is held pending.
//!
//! The processor does not count those that are injected, so IRET is intercepted meanwhile. That exit comes in front of
//! the instruction; an NMI that waits by then may come behind it only. Nothing says when it is done, and stepping over
//! it would show in the flags and in DR6. So the guest goes on, and whatever it does next is looked at, at the latest
//! after [`LOOK_US`]: if it is elsewhere then, the NMI is delivered. An IRET that faults ends the time, too, as on the
//! processor. Several that come meanwhile are one. Sources: AMD64 APM vol. 2, 8.2.3, 15.13.3 and appendix C; Xen's
//! svm_inject_nmi and its VMEXIT_IRET (arch/x86/hvm/svm).

use proto::abi::{VcpuState, groups};

use crate::inject;
use crate::machine::{Machine, Platform, Vcpu};

/// How long an NMI may be late that waits for the end of another one's IRET, in microseconds.
const LOOK_US: u64 = 50;

/// Where a vCPU is with its NMI.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Nmi {
    /// The next one may come.
    #[default]
    None,
    /// Its handler runs.
    InService,
    /// Its handler is at its IRET.
    Returning {
        /// Where that is.
        rip: u64,
        /// TSC at which to look whether it is done, for an NMI that waits; or 0.
        look_at: u64,
    },
}

impl Nmi {
    /// TSC at which to look whether the next one may come, or 0.
    #[inline]
    pub fn look_at(self) -> u64 {
        if let Self::Returning { look_at, .. } = self { look_at } else { 0 }
    }
}

impl Vcpu {
    /// IRET, which is not executed yet.
    pub(crate) fn leave_nmi(&mut self, state: &mut VcpuState) {
        if self.nmi == Nmi::InService {
            self.nmi = Nmi::Returning { rip: state.rip, look_at: 0 };
        }
        state.intercept_iret = 0;
        state.load |= groups::IRET;
    }
}

impl<P: Platform> Machine<P> {
    /// Injects an NMI that waits if it may come now, before the vCPU is entered.
    #[cold]
    pub(crate) fn offer_nmi(&self, vcpu: &mut Vcpu, state: &mut VcpuState) {
        match &mut vcpu.nmi {
            Nmi::InService => {}
            Nmi::Returning { rip, look_at } if *rip == state.rip => {
                *look_at = self.platform.tsc().saturating_add(self.guest.clock.khz() * LOOK_US / 1000).max(1);
            }
            nmi if vcpu.apic.take_nmi() => {
                *nmi = Nmi::InService;
                inject::nmi(state);
                state.intercept_iret = 1;
                state.load |= groups::IRET;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apic::Delivery;
    use crate::entry::blank;
    use crate::machine::{Outcome, Wait};
    use crate::testing::{FakePlatform, machine};

    const IRET: u64 = 0x74;
    const CPUID: u64 = 0x72;

    /// Enters the vCPU; whether an NMI is injected.
    fn enter(machine: &mut Machine<FakePlatform>, vcpu: &mut Vcpu, state: &mut VcpuState) -> bool {
        machine.prepare_entry(vcpu, state);
        core::mem::take(&mut state.inject) == 0x8000_0202
    }

    fn exit(machine: &mut Machine<FakePlatform>, vcpu: &mut Vcpu, state: &mut VcpuState, code: u64) {
        state.exit_code = code;
        assert_eq!(machine.handle_exit(vcpu, state), Outcome::Run);
    }

    /// A second NMI came while the first one's handler ran.
    #[test]
    fn an_nmi_waits_for_the_iret_of_the_one_before() {
        let (mut machine, mut vcpu) = machine();
        let mut state = blank();
        (state.rip, state.load) = (0x5000, 0);
        vcpu.apic.receive(Delivery::Nmi);
        assert!(enter(&mut machine, &mut vcpu, &mut state));
        assert_eq!((state.intercept_iret, state.load), (1, groups::IRET));
        for _ in 0..2 {
            vcpu.apic.receive(Delivery::Nmi);
            exit(&mut machine, &mut vcpu, &mut state, CPUID);
            assert!(!enter(&mut machine, &mut vcpu, &mut state));
        }
        assert_eq!(machine.deadline(&vcpu), 0);
        // It does not end a HLT either.
        vcpu.wait = Wait::Interrupt;
        assert!(!machine.wakes(&mut vcpu));
        vcpu.wait = Wait::None;
        (state.rip, state.load) = (0x6000, 0);
        exit(&mut machine, &mut vcpu, &mut state, IRET);
        assert_eq!((state.intercept_iret, state.load, state.rip), (0, groups::IRET, 0x6000));
        machine.platform.tsc.set(1000);
        assert!(!machine.is_settled(&vcpu) && !enter(&mut machine, &mut vcpu, &mut state));
        // The look at it comes too early, and again.
        assert_eq!((machine.deadline(&vcpu), machine.is_settled(&vcpu)), (51_000, false));
        machine.platform.tsc.set(51_000);
        assert!(!enter(&mut machine, &mut vcpu, &mut state));
        assert_eq!(machine.deadline(&vcpu), 101_000);
        // Stopped meanwhile by another vCPU, nothing is to be looked at.
        vcpu.wait = Wait::Start;
        assert_eq!(machine.deadline(&vcpu), 0);
        vcpu.wait = Wait::None;
        state.rip = 0x5002;
        assert!(enter(&mut machine, &mut vcpu, &mut state));
        assert_eq!((vcpu.nmi, state.intercept_iret, machine.deadline(&vcpu)), (Nmi::InService, 1, 0));
        exit(&mut machine, &mut vcpu, &mut state, IRET);
        assert!(!enter(&mut machine, &mut vcpu, &mut state), "two that came meanwhile are one");
        assert!(machine.is_settled(&vcpu));
    }

    #[test]
    fn an_nmi_whose_delivery_broke_off_is_delivered_and_an_init_forgets_it() {
        let (mut machine, mut vcpu) = machine();
        let mut state = blank();
        vcpu.apic.receive(Delivery::Nmi);
        assert!(enter(&mut machine, &mut vcpu, &mut state));
        state.exit_int_info = 0x8000_0202;
        exit(&mut machine, &mut vcpu, &mut state, 0x60);
        assert!(enter(&mut machine, &mut vcpu, &mut state) && vcpu.nmi == Nmi::InService);
        state.exit_int_info = 0;
        // IRET's exit of a vCPU that was reset meanwhile.
        vcpu.nmi = Nmi::None;
        exit(&mut machine, &mut vcpu, &mut state, IRET);
        assert_eq!((vcpu.nmi, state.intercept_iret), (Nmi::None, 0));
    }
}
