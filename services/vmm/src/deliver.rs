//! What is delivered to a vCPU: offered or injected before it is entered, and what became of it by the next exit.
//!
//! External interrupts are virtual interrupts, which the processor takes when the guest lets them in; exceptions and
//! NMIs ([`crate::nmi`]) are injected. One that the exit broke off is due again.
//! Sources: AMD64 APM vol. 2, 15.20 and 15.21.

use proto::abi::{INTERRUPT_PENDING, VcpuState};
use proto::counters as count;
use rt::counters;

use crate::inject;
use crate::machine::{Machine, Platform, Vcpu};
use crate::walk::Paging;

const HLT_OPCODE: u8 = 0xf4;

impl<P: Platform> Machine<P> {
    /// The local APIC's vector that was offered is in service if the guest took it.
    fn take_offered(vcpu: &mut Vcpu, state: &VcpuState) {
        if let Some(vector) = vcpu.offered.take()
            && state.interrupt & INTERRUPT_PENDING == 0
        {
            vcpu.apic.accept(vector);
        }
    }

    /// What is to be done with the events that were on their way when the exit came.
    #[inline(never)]
    pub(crate) fn take_events(&mut self, vcpu: &mut Vcpu, state: &mut VcpuState) {
        Self::take_offered(vcpu, state);
        let event = state.exit_int_info;
        if !inject::is_valid(event) {
            return;
        }
        let vector = event as u8;
        match event & inject::TYPE_MASK {
            // The upcall stays due by itself while it is pending; only the local APIC's have to be kept.
            inject::TYPE_INTERRUPT if self.guest.callback == Some(vector) => {}
            inject::TYPE_INTERRUPT => vcpu.apic.retract(vector),
            // The instruction raises it again.
            inject::TYPE_SOFTWARE => {}
            _ => state.inject = event,
        }
    }

    /// Offers the vCPU the interrupt that is due, before it is entered; needed again only when the machine
    /// [is not settled](Self::is_settled).
    pub fn prepare_entry(&mut self, vcpu: &mut Vcpu, state: &mut VcpuState) {
        self.tick(vcpu);
        self.account_entry(vcpu, || Paging::of(state));
        if vcpu.has_new_time {
            self.publish_time(vcpu, &Paging::of(state));
        }
        // The guest may have taken it and been left for a signal, without an exit.
        Self::take_offered(vcpu, state);
        // One after the other: whatever else is to be injected goes first.
        if vcpu.apic.has_command() && state.inject == 0 {
            self.offer_nmi(vcpu, state);
        }
        let upcall = self.guest.callback.filter(|_| self.guest.events.has_upcall(vcpu.id as usize));
        vcpu.offered = vcpu.apic.next();
        vcpu.has_news = vcpu.offered.is_some() || vcpu.nmi.look_at() != 0;
        let Some(vector) = vcpu.offered.or(upcall) else {
            state.interrupt = 0;
            return;
        };
        if state.interrupt & INTERRUPT_PENDING == 0 {
            counters::inc(count::INTERRUPTS_INJECTED);
        }
        state.interrupt = u32::from(vector) | INTERRUPT_PENDING;
        // Between STI and HLT: some processors (QEMU's) would deliver here, and the HLT would then sleep
        // through what it was to wait for. The HLT counts as done.
        if state.interrupt_shadow != 0 {
            let mut opcode = [0];
            let is_read = Paging::of(state).read(&self.guest.memory, state.rip, &mut opcode);
            if is_read.is_ok() && opcode == [HLT_OPCODE] {
                inject::finish_at(state, state.rip.wrapping_add(1));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::blank;
    use crate::memory::GuestPhys;
    use crate::testing::machine;

    const INTR: u32 = 0x60;
    const VINTR: u32 = 0x64;

    fn exit(code: u32) -> VcpuState {
        let mut state = blank();
        state.exit_code = u64::from(code);
        state.rip = 0x5000;
        state
    }

    #[test]
    fn an_interrupt_due_between_sti_and_hlt_ends_the_hlt() {
        let (mut machine, mut vcpu) = machine();
        machine.guest.memory.write(GuestPhys(0x5000), &[0xf4]).unwrap();
        let mut state = exit(INTR);
        state.interrupt_shadow = 1;
        machine.prepare_entry(&mut vcpu, &mut state);
        assert_eq!((state.rip, state.interrupt), (0x5000, 0));
        machine.guest.callback = Some(0xf3);
        let port = machine.guest.events.bind_ipi(0).unwrap();
        machine.guest.events.send(port).unwrap();
        machine.prepare_entry(&mut vcpu, &mut state);
        assert_eq!((state.rip, state.interrupt_shadow), (0x5001, 0));
    }

    #[test]
    fn a_local_apic_interrupt_is_accepted_when_the_guest_took_it_and_kept_when_delivery_broke() {
        let (mut machine, mut vcpu) = machine();
        let mut state = exit(INTR);
        for (msr, value) in [(0x1b, 0xfee0_0d00), (0x80f, 0x1ff), (0x83f, 0xf6)] {
            machine.write_msr(&mut vcpu, &mut state, msr, value).unwrap();
        }
        machine.prepare_entry(&mut vcpu, &mut state);
        assert_eq!(state.interrupt, 0xf6 | INTERRUPT_PENDING);
        machine.handle_exit(&mut vcpu, &mut state);
        assert_eq!(vcpu.apic.next(), Some(0xf6), "still pending: not taken");
        machine.prepare_entry(&mut vcpu, &mut state);
        state.interrupt = 0xf6;
        state.exit_int_info = 0x8000_00f6;
        machine.handle_exit(&mut vcpu, &mut state);
        assert_eq!(vcpu.apic.next(), Some(0xf6), "delivery was interrupted");
        machine.prepare_entry(&mut vcpu, &mut state);
        (state.interrupt, state.exit_int_info) = (0xf6, 0);
        machine.handle_exit(&mut vcpu, &mut state);
        assert_eq!(vcpu.apic.next(), None);
    }

    #[test]
    fn interrupted_exceptions_are_injected_again() {
        let (mut machine, mut vcpu) = machine();
        let mut state = exit(VINTR);
        state.exit_int_info = 0x5_8000_0b0e;
        machine.handle_exit(&mut vcpu, &mut state);
        assert_eq!(state.inject, 0x5_8000_0b0e);
        state.inject = 0;
        state.exit_int_info = 0x8000_0480;
        machine.handle_exit(&mut vcpu, &mut state);
        assert_eq!(state.inject, 0, "INT n is executed again");
    }

    /// The interrupt was offered twice when the guest had taken it and a signal ended its turn.
    #[test]
    fn an_interrupt_taken_before_a_signal_is_not_offered_again() {
        let (mut machine, mut vcpu) = machine();
        let mut state = exit(INTR);
        for (msr, value) in [(0x1b, 0xfee0_0d00), (0x80f, 0x1ff), (0x83f, 0xf6)] {
            machine.write_msr(&mut vcpu, &mut state, msr, value).unwrap();
        }
        machine.prepare_entry(&mut vcpu, &mut state);
        assert_eq!(state.interrupt, 0xf6 | INTERRUPT_PENDING);
        state.interrupt = 0xf6;
        machine.prepare_entry(&mut vcpu, &mut state);
        assert_eq!((state.interrupt, vcpu.apic.next()), (0, None));
    }
}
