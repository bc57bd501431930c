//! hvm_op: parameters, and what else a guest without emulated devices may ask for.
//! Sources: Xen public/hvm/hvm_op.h; do_hvm_op in arch/x86/hvm/hvm.c.

pub(super) mod param;

pub use param::Params;

use super::{Call, Done, Field};
use crate::errno::{Answer, Errno};
use crate::machine::Platform;
use crate::memory::Gfn;

operations! {
    "hvm_op": u64 {
        SET_PARAM = 0,
        GET_PARAM = 1,
        SET_PCI_INTX_LEVEL = 2,
        SET_ISA_IRQ_LEVEL = 3,
        SET_PCI_LINK_ROUTE = 4,
        FLUSH_TLBS = 5,
        TRACK_DIRTY_VRAM = 6,
        MODIFIED_MEMORY = 7,
        SET_MEM_TYPE = 8,
        PAGETABLE_DYING = 9,
        GET_TIME = 10,
        XENTRACE = 11,
        SET_MEM_ACCESS = 12,
        GET_MEM_ACCESS = 13,
        INJECT_TRAP = 14,
        GET_MEM_TYPE = 15,
        INJECT_MSI = 16,
        CREATE_IOREQ_SERVER = 17,
        GET_IOREQ_SERVER_INFO = 18,
        MAP_IO_RANGE_TO_IOREQ_SERVER = 19,
        UNMAP_IO_RANGE_FROM_IOREQ_SERVER = 20,
        DESTROY_IOREQ_SERVER = 21,
        SET_IOREQ_SERVER_STATE = 22,
        SET_EVTCHN_UPCALL_VECTOR = 23,
        GUEST_REQUEST_VM_EVENT = 24,
        ALTP2M = 25,
    }
}

/// What get_mem_type answers for memory and for none.
const MEMORY: u16 = 0;
const NO_MEMORY: u16 = 2;
/// First vector that is none of the processor's exceptions'.
const FIRST_VECTOR: u8 = 16;

pub(super) fn call<P: Platform>(call: &mut Call<'_, P>) -> Done {
    let [operation, argument, ..] = call.args;
    let answer = match operation {
        SET_PARAM => return param::set(call, argument).unwrap_or_else(|errno| Done::Answer(Err(errno))),
        GET_PARAM => param::get(call, argument),
        SET_EVTCHN_UPCALL_VECTOR => set_upcall_vector(call, argument),
        // Whatever tables the processor keeps of this VM.
        FLUSH_TLBS if argument == 0 => {
            call.machine.flush_tlbs();
            Ok(0)
        }
        // Nobody watches.
        GUEST_REQUEST_VM_EVENT if argument == 0 => Ok(0),
        FLUSH_TLBS | GUEST_REQUEST_VM_EVENT => Err(Errno::Invalid),
        GET_MEM_TYPE => get_mem_type(call, argument),
        PAGETABLE_DYING => pagetable_dying(call, argument),
        GET_TIME => {
            let now = call.machine.now_ns();
            call.write(argument, &now.to_le_bytes()).map(|()| 0)
        }
        XENTRACE => trace(call, argument),
        ALTP2M => Err(Errno::NotSupported),
        // For who emulates devices, by dm_op now.
        _ => Err(Errno::NoSys),
    };
    Done::Answer(answer)
}

/// `{u16 domid, u16 type, u32 0, u64 gfn}`.
fn get_mem_type<P: Platform>(call: &Call<'_, P>, argument: u64) -> Answer {
    let request: [u8; 16] = call.read(argument)?;
    call.only_self(request.u16_at(0))?;
    let is_there = call.machine.guest.memory.page(Gfn(request.u64_at(8))).is_some();
    let kind = if is_there { MEMORY } else { NO_MEMORY };
    call.write(argument.wrapping_add(2), &kind.to_le_bytes())?;
    Ok(0)
}

/// `{u16 domid, u64 address}`: a hint for who shadows page tables, which nobody does.
fn pagetable_dying<P: Platform>(call: &Call<'_, P>, argument: u64) -> Answer {
    let request: [u8; 16] = call.read(argument)?;
    Err(match call.only_self(request.u16_at(0)) {
        Ok(()) => Errno::Invalid,
        Err(Errno::Perm) => Errno::NotSupported,
        Err(errno) => errno,
    })
}

/// `{u16 event, u16 length, 28 bytes}`: there is no trace buffer, so all of it is dropped.
fn trace<P: Platform>(call: &Call<'_, P>, argument: u64) -> Answer {
    const EVENTS_END: u16 = 1 << 12;
    const LEN_MAX: u16 = 28;
    let request: [u8; 32] = call.read(argument)?;
    let is_legal = request.u16_at(0) < EVENTS_END && request.u16_at(2) <= LEN_MAX;
    if is_legal { Ok(0) } else { Err(Errno::Invalid) }
}

/// `{u32 vcpu, u8 vector}`: the upcall by the local APIC. CPUID does not offer it, and it is not there.
fn set_upcall_vector<P: Platform>(call: &Call<'_, P>, argument: u64) -> Answer {
    let request: [u8; 8] = call.read(argument)?;
    let [.., vector, _, _, _] = request;
    if vector < FIRST_VECTOR {
        return Err(Errno::Invalid);
    }
    if call.machine.guest.events.time_info(request.u32_at(0) as usize).is_none() {
        return Err(Errno::NoEntry);
    }
    Err(Errno::NoSys)
}

#[cfg(test)]
mod tests;
