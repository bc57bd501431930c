//! Nested page faults: accesses to guest-physical addresses without memory behind them.
//!
//! The instruction is fetched through the guest's page tables, decoded ([`decode`]) and performed
//! ([`execute`]) on what is there ([`bus`]): the local APIC's registers, RAM for its other operands, or
//! nothing, which reads as ones and ignores writes. What cannot be performed raises #UD in the guest, as on
//! Xen, with a line in the log that shows the bytes; a fault while an event is delivered raises #DF, and one
//! while that is delivered ends the guest. So every nested fault makes progress or ends.
//!
//! The decoder is a table of our own: what a kernel uses on such addresses are some hundred opcodes, which
//! the match in `decode.rs` has with operands and widths just as `execute.rs` needs them. iced-x86 (without
//! VEX, EVEX, XOP) would be 22 KiB of code and tables plus the tables that it builds on the heap of each VMM,
//! and its operations would still have to be mapped one by one. It is the judge in this module's tests.
//!
//! Not done: segment limits, which the processor has checked for the access that faulted; accessed and dirty
//! bits of pages that only the emulation touches; loads of vector registers and x87, whose registers the
//! VMM cannot reach. Sources: AMD64 APM vol. 2, 15.25.6 (nested faults); vol. 3.

mod alu;
mod bus;
pub mod decode;
mod execute;
pub mod instruction;
#[cfg(test)]
mod tests;

use proto::abi::{VcpuState, groups, seg};

use crate::inject;
use crate::machine::{Machine, Outcome, Platform, Vcpu};
use crate::walk::{Access, EFER_LMA, Fault, Paging};
use bus::Bus;
use decode::{INSTRUCTION_MAX, Undecoded, decode};
use execute::{Execution, Progress, Stop};
use instruction::{CodeSize, Instruction, Operand};

/// EXITINFO1: a write, an instruction fetch, in the middle of the guest's page tables.
const WRITE: u64 = 1 << 1;
const FETCH: u64 = 1 << 4;
const IN_TABLES: u64 = 1 << 33;
/// Page fault error code: present, and a reserved bit is set. Tables that are nowhere read as ones.
const ALL_ONES: u32 = 1 | 1 << 3;
const PAGE_FETCH: u32 = 1 << 4;

const RFLAGS_RF: u64 = 1 << 16;
/// CS attributes L and D.
const CODE_64: u32 = 1 << 9;
const CODE_32: u32 = 1 << 10;
const DOUBLE_FAULT: u8 = 8;

/// The bytes at RIP, as many as can be fetched.
struct Fetched {
    bytes: [u8; INSTRUCTION_MAX],
    len: usize,
    /// Why there are no more.
    end: Option<Fault>,
}

impl Fetched {
    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }
}

impl<P: Platform> Machine<P> {
    /// Handles the nested page fault in `state`.
    pub(crate) fn nested_fault(&mut self, vcpu: &mut Vcpu, state: &mut VcpuState) -> Outcome {
        if inject::is_valid(state.exit_int_info) {
            return self.fault_in_delivery(state);
        }
        let size = code_size(state);
        // In 64-bit code few instructions need a segment; what they are is known only afterwards.
        let is_flat = size == CodeSize::Bits64;
        if !is_flat && !has_stored(state, groups::SEGMENTS) {
            return Outcome::Run;
        }
        let now = self.now();
        let mut bus = Bus {
            memory: &self.guest.memory,
            apic: &mut vcpu.apic,
            paging: Paging::of(state),
            now,
            commands: heapless::Vec::new(),
        };
        let start = if is_flat { 0 } else { state.segments[seg::CS].base };
        let fetched = fetch(&mut bus, start.wrapping_add(state.rip), size);
        let result = if state.exit_info1 & (FETCH | IN_TABLES) == FETCH {
            Err(Stop::Unsupported)
        } else {
            match decode(fetched.bytes(), size) {
                Ok(instruction) if is_flat && uses_fs_or_gs(&instruction) => {
                    if !has_stored(state, groups::SEGMENTS) {
                        return Outcome::Run;
                    }
                    Execution { state, bus: &mut bus, size, instruction }.run()
                }
                Ok(instruction) => Execution { state, bus: &mut bus, size, instruction }.run(),
                Err(Undecoded::Truncated) => Err(fetched.end.map_or(Stop::Unsupported, |fault| {
                    Stop::Fault(Fault { code: fault.code | PAGE_FETCH, ..fault })
                })),
                Err(Undecoded::Unknown) => Err(Stop::Unsupported),
            }
        };
        let commands = bus.commands;
        for command in commands {
            self.send_command(vcpu, command);
        }
        match result {
            Ok(Progress::Next(rip)) => finish(state, rip),
            Ok(Progress::Again) => return Outcome::Run,
            Err(Stop::Fault(fault)) => {
                let in_tables = if state.exit_info1 & IN_TABLES != 0 { ALL_ONES } else { 0 };
                inject::page_fault(state, Fault { code: fault.code | in_tables, ..fault });
            }
            Err(Stop::Protection { is_stack: false }) => inject::general_protection(state),
            Err(Stop::Protection { is_stack: true }) => inject::stack_fault(state),
            Err(Stop::Divide) => inject::divide_error(state),
            Err(Stop::Unsupported) => {
                self.report(state, &fetched);
                inject::invalid_opcode(state);
            }
        }
        state.store &= !groups::SEGMENTS;
        Outcome::Run
    }

    /// The processor was about to deliver an event, and found nothing where it looked for the descriptor or
    /// put the frame. There is no instruction to perform.
    fn fault_in_delivery(&mut self, state: &mut VcpuState) -> Outcome {
        let event = state.exit_int_info;
        let is_exception = event & inject::TYPE_MASK == inject::TYPE_EXCEPTION;
        if is_exception && event as u8 == DOUBLE_FAULT {
            let cause = format_args!(
                ": guest-physical address {:#x}, where nothing is (code {:#x})",
                state.exit_info2, state.exit_info1
            );
            return self.guest.triple_fault(state, cause);
        }
        if self.guest.odd.allows() {
            log::warn!(
                "event {event:#x} cannot be delivered: nothing is at {:#x} (rip {:#x}, cr3 {:#x}): #DF",
                state.exit_info2,
                state.rip,
                state.cr3
            );
        }
        inject::double_fault(state);
        Outcome::Run
    }

    /// Says which instruction is not performed.
    fn report(&mut self, state: &VcpuState, fetched: &Fetched) {
        if !self.guest.odd.allows() {
            return;
        }
        let access = match state.exit_info1 {
            code if code & FETCH != 0 => "fetches from",
            code if code & WRITE != 0 => "writes to",
            _ => "reads",
        };
        log::warn!(
            "the guest {access} guest-physical address {:#x}, where nothing is, with {:02x?} (rip {:#x}, cr3 {:#x}): #UD",
            state.exit_info2,
            fetched.bytes(),
            state.rip,
            state.cr3
        );
    }
}

/// The size of the code that runs.
fn code_size(state: &VcpuState) -> CodeSize {
    match state.cs_attributes {
        attributes if attributes & CODE_64 != 0 && state.efer & EFER_LMA != 0 => CodeSize::Bits64,
        attributes if attributes & CODE_32 != 0 => CodeSize::Bits32,
        _ => CodeSize::Bits16,
    }
}

/// Whether the kernel stored these groups at the exit. If not, it does at the next one: the access is made
/// again, and faults again.
fn has_stored(state: &mut VcpuState, wanted: u32) -> bool {
    let has = state.store & wanted == wanted;
    state.store |= wanted;
    has
}

fn uses_fs_or_gs(instruction: &Instruction) -> bool {
    let is_one = |segment: usize| matches!(segment, seg::FS | seg::GS);
    let operands = [instruction.to, instruction.from];
    is_one(instruction.segment)
        || operands
            .iter()
            .any(|operand| matches!(operand, Operand::Memory(address) if is_one(address.segment)))
}

fn fetch(bus: &mut Bus<'_>, linear: u64, size: CodeSize) -> Fetched {
    let mut fetched = Fetched { bytes: [0; INSTRUCTION_MAX], len: 0, end: None };
    for (n, byte) in fetched.bytes.iter_mut().enumerate() {
        let at = linear.wrapping_add(n as u64);
        let at = if size == CodeSize::Bits64 { at } else { at & 0xffff_ffff };
        match bus.read_bytes(at, core::slice::from_mut(byte), Access::Fetch) {
            Ok(()) => fetched.len = n + 1,
            Err(fault) => {
                fetched.end = Some(fault);
                break;
            }
        }
    }
    fetched
}

/// Goes on behind an instruction that was performed.
fn finish(state: &mut VcpuState, rip: u64) {
    inject::finish_at(state, rip);
    state.rflags &= !RFLAGS_RF;
}
