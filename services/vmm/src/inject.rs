//! Exceptions for the guest, and what follows an emulated instruction.
//!
//! Source: AMD64 APM vol. 2, 15.20 (event injection).

use proto::abi::{VcpuState, groups};

use crate::walk::Fault;

const VALID: u64 = 1 << 31;
const HAS_CODE: u64 = 1 << 11;
/// Event types in EXITINTINFO and EVENTINJ.
pub const TYPE_MASK: u64 = 7 << 8;
/// Exception.
pub const TYPE_EXCEPTION: u64 = 3 << 8;
/// External interrupt.
pub const TYPE_INTERRUPT: u64 = 0;
/// Software interrupt.
pub const TYPE_SOFTWARE: u64 = 4 << 8;

const TYPE_NMI: u64 = 2 << 8;

const DIVIDE_ERROR: u64 = 0;
const DEBUG: u64 = 1;
const NMI: u64 = 2;
const INVALID_OPCODE: u64 = 6;
const DOUBLE_FAULT: u64 = 8;
const STACK_FAULT: u64 = 12;
const GENERAL_PROTECTION: u64 = 13;
const PAGE_FAULT: u64 = 14;
const ALIGNMENT_CHECK: u64 = 17;

const RFLAGS_TF: u64 = 1 << 8;
/// DR6 after a single step (BS).
const DR6_STEP: u64 = 0xffff_4ff0;

/// #DB; what it is about stands in DR6 already.
pub fn debug(state: &mut VcpuState) {
    state.inject = VALID | TYPE_EXCEPTION | DEBUG;
}

/// #AC(0).
pub fn alignment_check(state: &mut VcpuState) {
    state.inject = VALID | HAS_CODE | TYPE_EXCEPTION | ALIGNMENT_CHECK;
}

/// #UD.
pub fn invalid_opcode(state: &mut VcpuState) {
    state.inject = VALID | TYPE_EXCEPTION | INVALID_OPCODE;
}

/// #DE.
pub fn divide_error(state: &mut VcpuState) {
    state.inject = VALID | TYPE_EXCEPTION | DIVIDE_ERROR;
}

/// #DF.
pub fn double_fault(state: &mut VcpuState) {
    state.inject = VALID | HAS_CODE | TYPE_EXCEPTION | DOUBLE_FAULT;
}

/// #SS(0).
pub fn stack_fault(state: &mut VcpuState) {
    state.inject = VALID | HAS_CODE | TYPE_EXCEPTION | STACK_FAULT;
}

/// A non-maskable interrupt; [`crate::nmi`] says when.
pub fn nmi(state: &mut VcpuState) {
    state.inject = VALID | TYPE_NMI | NMI;
}

/// #GP(0).
pub fn general_protection(state: &mut VcpuState) {
    state.inject = VALID | HAS_CODE | TYPE_EXCEPTION | GENERAL_PROTECTION;
}

/// #PF.
pub fn page_fault(state: &mut VcpuState, fault: Fault) {
    state.cr2 = fault.address;
    state.load |= groups::CONTROL;
    state.inject = VALID | HAS_CODE | TYPE_EXCEPTION | PAGE_FAULT | u64::from(fault.code) << 32;
}

/// The instruction at hand is done; the next one is at `rip`. Its interrupt shadow is over.
#[inline]
pub fn finish_at(state: &mut VcpuState, rip: u64) {
    state.rip = rip;
    state.interrupt_shadow = 0;
    if state.rflags & RFLAGS_TF != 0 {
        step(state);
    }
}

/// The trap behind an instruction that the guest steps over.
#[cold]
fn step(state: &mut VcpuState) {
    if !is_valid(state.inject) {
        state.dr6 = DR6_STEP;
        state.load |= groups::DR6;
        debug(state);
    }
}

/// Whether an event word holds an event.
#[inline]
pub fn is_valid(event: u64) -> bool {
    event & VALID != 0
}
