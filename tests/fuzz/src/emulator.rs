//! An access where nothing is, or to the local APIC's page: any instruction bytes, any registers, any mode.
//!
//! Input: the mode, whether it writes, which address, the registers, then up to 15 bytes of code. What must hold: the
//! guest goes on, gets a fault, or ends with a sentence.

use proto::abi::groups;
use vmm::entry::blank;
use vmm::machine::Outcome;
use vmm::memory::GuestPhys;
use vmm::testing::{machine, recycle};

use crate::Input;

const NESTED_FAULT: u64 = 0x400;
const CODE: u64 = 0x1000;
/// Exits of one instruction: what is not stored is asked for, and repetitions go element by element.
const EXITS_MAX: usize = 64;

/// Runs one input, and panics where something does not hold.
pub fn run(bytes: &[u8]) {
    steps(&mut Input::new(bytes));
    recycle();
}

fn steps(input: &mut Input<'_>) {
    let (mut machine, mut vcpu) = machine();
    let mut state = blank();
    let mode = input.u8();
    (state.cr0, state.efer, state.cs_attributes) = match mode & 3 {
        0 | 1 => (1, 1 << 8 | 1 << 10, 1 << 9),
        2 => (1, 0, 1 << 10),
        _ => (1, 0, 0),
    };
    let base = [0xfee0_0000, 0xfee0_0000, 0xc000_0000, 0x7fff_fff8][usize::from(mode >> 2 & 3)];
    let address = base + u64::from(input.u16() & 0xfff);
    state.exit_code = NESTED_FAULT;
    state.exit_info1 = 1 << 32 | 4 | u64::from(mode >> 4 & 3) << 1;
    state.exit_info2 = address;
    let kinds = input.u32();
    for (n, register) in state.gprs.iter_mut().enumerate() {
        *register = match kinds >> (2 * (n & 15)) & 3 {
            0 | 1 => address,
            2 => input.u8().into(),
            _ => input.u64(),
        };
    }
    let code = input.bytes(15);
    let _ = machine.guest.memory.write(GuestPhys(CODE), code);
    state.rip = CODE;
    for _ in 0..EXITS_MAX {
        state.store |= groups::SEGMENTS | groups::CONTROL;
        let outcome = machine.handle_exit(&mut vcpu, &mut state);
        machine.prepare_entry(&mut vcpu, &mut state);
        if !matches!(outcome, Outcome::Run) || state.rip != CODE || state.inject != 0 {
            return;
        }
    }
}
