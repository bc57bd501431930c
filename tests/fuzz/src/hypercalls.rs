//! Hypercalls and other exits of a guest in any mode, over its own memory and page tables.
//!
//! Input: steps, each of which writes memory, sets registers, or exits. What must hold: an end is one of those that
//! a guest can cause, and a call that goes on for ever makes progress in between.

use proto::abi::gpr;
use vmm::entry::blank;
use vmm::machine::Outcome;
use vmm::memory::GuestPhys;
use vmm::testing::{machine, recycle};

use crate::Input;

const R10: usize = 10;
const VMMCALL: u64 = 0x81;
const EXITS: [u64; 12] = [0x72, 0x78, 0x7b, 0x7c, 0x77, 0x64, 0x60, 0x400, 0x7f, 0x8d, 0x76, 0xffff_ffff];
const ARGUMENT: u64 = 0x8000;
/// Entries that one call may take.
const ENTRIES_MAX: u32 = 100_000;

/// Runs one input, and panics where something does not hold.
pub fn run(bytes: &[u8]) {
    steps(&mut Input::new(bytes));
    recycle();
}

fn steps(input: &mut Input<'_>) {
    let (mut machine, mut vcpu) = machine();
    let mut state = blank();
    set_mode(&mut state, 0);
    while !input.is_empty() {
        match input.u8() {
            0..0x60 => {
                let at = ARGUMENT + u64::from(input.u8()) * 8;
                let len = usize::from(input.u8() % 64);
                let _ = machine.guest.memory.write(GuestPhys(at), input.bytes(len));
                continue;
            }
            0x60..0x70 => {
                let at = u64::from(input.u16()) << 2;
                let _ = machine.guest.memory.write(GuestPhys(at), &input.u64().to_le_bytes());
                continue;
            }
            0x70..0x78 => {
                set_mode(&mut state, input.u8());
                state.cr3 = u64::from(input.u8()) << 12;
                continue;
            }
            0x78..0x80 => {
                let now = machine.platform.tsc.get();
                machine.platform.tsc.set(now + u64::from(input.u32()));
                if machine.wakes(&mut vcpu) {
                    machine.prepare_entry(&mut vcpu, &mut state);
                }
                continue;
            }
            0x80..0xe8 => {
                state.exit_code = VMMCALL;
                state.gprs[gpr::RAX] = u64::from(input.u8() % 64);
                let registers = match state.cs_attributes {
                    CODE_64 => [gpr::RDI, gpr::RSI, gpr::RDX, R10, gpr::R8],
                    _ => [gpr::RBX, gpr::RCX, gpr::RDX, gpr::RSI, gpr::RDI],
                };
                for register in registers {
                    state.gprs[register] = argument(input);
                }
            }
            _ => {
                state.exit_code = EXITS[usize::from(input.u8()) % EXITS.len()];
                state.exit_info1 = input.u32().into();
                state.exit_info2 = input.u32().into();
                state.gprs[gpr::RAX] = argument(input);
                state.gprs[gpr::RCX] = argument(input);
            }
        }
        let mut entries = 0;
        loop {
            let (rip, code) = (state.rip, state.exit_code);
            match machine.handle_exit(&mut vcpu, &mut state) {
                Outcome::End(..) => return,
                // The call is made again; the number of the others is bounded by the input.
                Outcome::Run if state.rip == rip && code == VMMCALL && state.inject == 0 => entries += 1,
                _ => break,
            }
            assert!(entries < ENTRIES_MAX, "call {:#x} never ends", state.gprs[gpr::RAX]);
        }
        machine.prepare_entry(&mut vcpu, &mut state);
        (state.inject, state.rip, state.store) = (0, 0x1000, 0);
    }
}

fn argument(input: &mut Input<'_>) -> u64 {
    match input.u8() {
        small @ 0..0x40 => small.into(),
        0x40..0xa0 => ARGUMENT + u64::from(input.u8()) * 8,
        0xa0..0xc0 => input.u32().into(),
        0xc0..0xd0 => ARGUMENT | 1 << 47,
        0xd0..0xe0 => (64 << 12) - 8,
        0xe0..0xf0 => u64::MAX << (input.u8() & 63),
        _ => input.u64(),
    }
}

const CODE_64: u32 = 1 << 9;
const CODE_32: u32 = 1 << 10;

/// Registers that say which mode the guest is in.
fn set_mode(state: &mut proto::abi::VcpuState, mode: u8) {
    const PE_PG: u64 = 1 << 31 | 1;
    const PAE: u64 = 1 << 5;
    const PSE: u64 = 1 << 4;
    const LONG: u64 = 1 << 8 | 1 << 10;
    let (cr0, cr4, efer, cs) = match mode % 8 {
        0 => (1, 0, LONG, CODE_64),
        1 => (PE_PG, PAE, LONG, CODE_64),
        2 => (PE_PG, PAE, LONG, CODE_32),
        3 => (1, 0, 0, CODE_32),
        4 => (PE_PG, 0, 0, CODE_32),
        5 => (PE_PG, PSE, 0, CODE_32),
        6 => (PE_PG, PAE, 0, CODE_32),
        _ => (0, 0, 0, 0),
    };
    (state.cr0, state.cr4, state.efer, state.cs_attributes) = (cr0, cr4, efer, cs);
    state.cpl = if mode & 0x80 == 0 { 0 } else { 3 };
    state.rip = 0x1000;
}
