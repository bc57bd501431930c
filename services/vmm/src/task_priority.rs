//! CR8: the class of the local APIC's task priority.
//!
//! It is intercepted because the model of the local APIC decides what is delivered, and both have to be one
//! register. Whoever uses CR8 much pays an exit each time; Linux uses it when it suspends.
//! Source: AMD64 APM vol. 2, 16.7.4 and 3.1.5.

use proto::abi::VcpuState;

use crate::exit::CODE_64;
use crate::inject;
use crate::machine::{Machine, Platform, Vcpu};

/// Priority classes.
const CLASSES: u64 = 16;

impl<P: Platform> Machine<P> {
    /// MOV to or from CR8, as the exit says; outside of 64-bit code it is LOCK MOV CR0.
    pub(crate) fn access_task_priority(&mut self, vcpu: &mut Vcpu, state: &mut VcpuState) {
        let (bytes, prefixes) = self.instruction(state);
        let (before, rest) = bytes.split_at(usize::from(prefixes));
        let is_long = state.cs_attributes & CODE_64 != 0;
        let rex = before.last().filter(|byte| is_long && matches!(byte, 0x40..=0x4f)).map_or(0, |&byte| byte);
        // Anything else has come there since the exit; executed again, it will do what it does.
        let &[0x0f, opcode @ (0x20 | 0x22), operands, ..] = rest else { return };
        let Some(register) = state.gprs.get_mut(usize::from(operands & 7 | (rex & 1) << 3)) else { return };
        if opcode == 0x20 {
            *register = u64::from(vcpu.apic.task_class());
        } else {
            let value = if is_long { *register } else { *register & 0xffff_ffff };
            if value >= CLASSES {
                return inject::general_protection(state);
            }
            vcpu.apic.set_task_class(value as u8);
        }
        self.skip(vcpu, state, 3);
    }
}

#[cfg(test)]
mod tests {
    use proto::abi::gpr;

    use super::*;
    use crate::entry::blank;
    use crate::machine::Outcome;
    use crate::memory::GuestPhys;
    use crate::testing::machine;

    #[test]
    fn cr8_and_the_task_priority_register_are_one() {
        let (mut machine, mut vcpu) = machine();
        machine
            .guest
            .memory
            .write(GuestPhys(0x5000), &[0x44, 0x0f, 0x22, 0xc1, 0x45, 0x0f, 0x20, 0xc1])
            .unwrap();
        let mut state = blank();
        (state.cs_attributes, state.efer, state.rip) = (CODE_64, 0x500, 0x5000);
        let now = machine.now();
        (state.exit_code, state.gprs[gpr::RCX]) = (0x18, 5);
        assert_eq!(machine.handle_exit(&mut vcpu, &mut state), Outcome::Run);
        assert_eq!((state.rip, vcpu.apic.read_page(0x80, 4, &now)), (0x5004, 0x50));
        vcpu.apic.write_page(0x80, 4, 0x73, &now);
        state.exit_code = 0x08;
        assert_eq!(machine.handle_exit(&mut vcpu, &mut state), Outcome::Run);
        assert_eq!((state.rip, state.gprs[9], state.inject), (0x5008, 7, 0));
        (state.rip, state.exit_code, state.gprs[gpr::RCX]) = (0x5000, 0x18, 16);
        assert_eq!(machine.handle_exit(&mut vcpu, &mut state), Outcome::Run);
        assert_eq!((state.rip, state.inject as u8, vcpu.apic.read_page(0x80, 4, &now)), (0x5000, 13, 0x73));
    }
}
