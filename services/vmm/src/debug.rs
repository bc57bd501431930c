//! Debug registers: the guest's writes of DR0 to DR3 and DR7, which are exits.
//!
//! Breakpoints live in the VMCB and in DR0 to DR3, which the kernel exchanges; they act only while their guest runs.
//! Under QEMU they do not act at all: it arms a breakpoint when an instruction writes it, and would keep it armed for
//! the host and the other guests. Source: AMD64 APM vol. 2, 13.1; vol. 3, MOV DRn.

use proto::abi::{VcpuState, groups};

use crate::exit::CODE_64;
use crate::inject;
use crate::machine::{Machine, Platform, Vcpu};

const CR4_DE: u64 = 1 << 3;
/// DR7: the bits that can be written, and the one that is always set.
const DR7_WRITABLE: u64 = 0xffff_23ff;
const DR7_SET: u64 = 1 << 10;
const LOCK: u8 = 0xf0;

impl<P: Platform> Machine<P> {
    /// MOV to a debug register.
    pub(crate) fn write_debug_register(&mut self, vcpu: &mut Vcpu, state: &mut VcpuState) {
        let (bytes, prefixes) = self.instruction(state);
        let (before, rest) = bytes.split_at(usize::from(prefixes));
        let is_long = state.cs_attributes & CODE_64 != 0;
        let rex = before.last().filter(|byte| is_long && matches!(byte, 0x40..=0x4f)).map_or(0, |&byte| byte);
        // Anything else has come there since the exit; executed again, it will do what it does.
        let &[0x0f, 0x23, operands, ..] = rest else { return };
        let register = usize::from(operands >> 3 & 7 | (rex & 4) << 1);
        let source = usize::from(operands & 7 | (rex & 1) << 3);
        let value =
            state.gprs.get(source).map_or(0, |&value| if is_long { value } else { value & 0xffff_ffff });
        if before.contains(&LOCK) || (matches!(register, 4 | 5) && state.cr4 & CR4_DE != 0) {
            return inject::invalid_opcode(state);
        }
        match register {
            0..=3 => {
                if let Some(to) = state.debug.get_mut(register) {
                    *to = value;
                }
            }
            5 | 7 if value >> 32 != 0 => return inject::general_protection(state),
            5 | 7 => state.dr7 = value & DR7_WRITABLE | DR7_SET,
            _ => return inject::invalid_opcode(state),
        }
        state.load |= groups::DEBUG;
        self.skip(vcpu, state, 3);
    }
}

#[cfg(test)]
mod tests {
    use proto::abi::gpr;

    use super::*;
    use crate::entry::blank;
    use crate::memory::GuestPhys;
    use crate::testing::machine;

    const LONG: u32 = CODE_64;

    /// What a write gives: the state after the exit.
    fn write(code: &[u8], attributes: u32, set: impl Fn(&mut VcpuState)) -> VcpuState {
        let (mut machine, mut vcpu) = machine();
        machine.guest.memory.write(GuestPhys(0x5000), code).unwrap();
        let mut state = blank();
        (state.exit_code, state.rip, state.cs_attributes) = (0x30, 0x5000, attributes);
        set(&mut state);
        for _ in 0..2 {
            if state.rip == 0x5000 {
                machine.handle_exit(&mut vcpu, &mut state);
            }
        }
        state
    }

    #[test]
    fn breakpoints_are_taken_from_the_register_that_the_instruction_names() {
        let state = write(&[0x0f, 0x23, 0xd9], LONG, |state| state.gprs[gpr::RCX] = 0xffff_8000_0000_1234);
        assert_eq!((state.debug[3], state.rip, state.load), (0xffff_8000_0000_1234, 0x5003, groups::DEBUG));
        let state = write(&[0x66, 0x41, 0x0f, 0x23, 0xc7], LONG, |state| state.gprs[15] = 7);
        assert_eq!((state.debug[0], state.rip), (7, 0x5005));
        let state = write(&[0x0f, 0x23, 0xf8], LONG, |state| state.gprs[0] = 0xffff_ffff);
        assert_eq!((state.dr7, state.rip), (0xffff_27ff, 0x5003));
        let state = write(&[0x0f, 0x23, 0xe8], 0, |state| state.gprs[0] = 1 << 40 | 3);
        assert_eq!((state.dr7, state.rip), (0x403, 0x5003), "DR5 is DR7, and 32-bit code has 32 bits");
    }

    #[test]
    fn what_is_no_write_is_an_exception() {
        let vector = |state: VcpuState| (state.inject as u8, state.rip, state.load);
        assert_eq!(vector(write(&[0x0f, 0x23, 0xf8], LONG, |s| s.gprs[0] = 1 << 32)), (13, 0x5000, 0));
        assert_eq!(vector(write(&[0x0f, 0x23, 0xe8], LONG, |s| s.cr4 = CR4_DE)), (6, 0x5000, 0));
        assert_eq!(vector(write(&[0xf0, 0x0f, 0x23, 0xf8], LONG, |_| ())), (6, 0x5000, 0));
        assert_eq!(vector(write(&[0x44, 0x0f, 0x23, 0xc0], LONG, |_| ())), (6, 0x5000, 0), "DR8");
        assert_eq!(vector(write(&[0x90, 0x90, 0x90], LONG, |_| ())), (0, 0x5000, 0), "other code by now");
    }

    /// Code in a segment that does not start at 0 was looked for at the wrong place.
    #[test]
    fn code_outside_of_long_mode_is_found_through_its_segment() {
        let (mut machine, mut vcpu) = machine();
        machine.guest.memory.write(GuestPhys(0x5ffe), &[0x66, 0x66, 0x0f, 0x23, 0xf8]).unwrap();
        let mut state = blank();
        (state.exit_code, state.rip, state.cs_attributes, state.store) = (0x37, 0x4ffe, 0, 0);
        state.segments[proto::abi::seg::CS].base = 0x1000;
        state.gprs[gpr::RAX] = 1;
        machine.handle_exit(&mut vcpu, &mut state);
        assert_eq!(
            (state.store, state.rip),
            (groups::SEGMENTS, 0x4ffe),
            "the kernel is asked for the segments"
        );
        state.exit_code = 0x60;
        machine.handle_exit(&mut vcpu, &mut state);
        assert_eq!(state.store, groups::SEGMENTS, "an exit for something else takes nothing back");
        state.exit_code = 0x37;
        machine.handle_exit(&mut vcpu, &mut state);
        assert_eq!((state.store, state.rip, state.dr7), (0, 0x5003, 0x401), "across two pages");
    }
}
