//! memory_op: special frames in the guest's address space, the memory map, and ballooning.
//!
//! Sources: Xen public/memory.h; common/memory.c, common/compat/memory.c and arch/x86/mm.c for what is checked
//! in which order, arch/x86/hvm/hypercall.c for what an HVM guest may not call.

mod exchange;
mod map;
mod physmap;
mod reservation;

use super::{Call, Done, Field};
use crate::errno::{Answer, Errno};
use crate::machine::Platform;

operations! {
    "memory_op": u64 {
        INCREASE_RESERVATION = 0,
        DECREASE_RESERVATION = 1,
        MAXIMUM_RAM_PAGE = 2,
        CURRENT_RESERVATION = 3,
        MAXIMUM_RESERVATION = 4,
        MACHPHYS_MFN_LIST = 5,
        POPULATE_PHYSMAP = 6,
        ADD_TO_PHYSMAP = 7,
        TRANSLATE_GPFN_LIST = 8,
        MEMORY_MAP = 9,
        MACHINE_MEMORY_MAP = 10,
        EXCHANGE = 11,
        MACHPHYS_MAPPING = 12,
        SET_MEMORY_MAP = 13,
        MAXIMUM_GPFN = 14,
        REMOVE_FROM_PHYSMAP = 15,
        SET_POD_TARGET = 16,
        GET_POD_TARGET = 17,
        GET_SHARING_FREED_PAGES = 18,
        GET_SHARING_SHARED_PAGES = 19,
        PAGING_OP = 20,
        ACCESS_OP = 21,
        SHARING_OP = 22,
        ADD_TO_PHYSMAP_BATCH = 23,
        CLAIM_PAGES = 24,
        MACHPHYS_COMPAT_MFN_LIST = 25,
        GET_VNUMAINFO = 26,
        RESERVED_DEVICE_MEMORY_MAP = 27,
        ACQUIRE_RESOURCE = 28,
    }
}

/// The operation is in the low bits; a continued call has its progress above.
const OPERATION_BITS: u32 = 6;
/// Largest extent: 2 MiB.
const ORDER_MAX: u32 = 9;
/// mem_flags: a node was named (bits 8 to 15, plus one), and no other will do.
const EXACT_NODE: u32 = 1 << 17;
/// mem_flags: the node is a virtual one, of which there are none.
const VIRTUAL_NODE: u32 = 1 << 18;

pub(super) fn call<P: Platform>(call: &mut Call<'_, P>) -> Done {
    let [first, argument, ..] = call.args;
    let (operation, progress) = (first & ((1 << OPERATION_BITS) - 1), first >> OPERATION_BITS);
    let answer = match operation {
        DECREASE_RESERVATION | POPULATE_PHYSMAP | INCREASE_RESERVATION => {
            let (done, is_end) = reservation::change(call, operation, argument, progress);
            return if is_end { Done::Answer(Ok(done)) } else { again(operation, done) };
        }
        ADD_TO_PHYSMAP | ADD_TO_PHYSMAP_BATCH => {
            let place = if operation == ADD_TO_PHYSMAP { physmap::add } else { physmap::add_batch };
            return match place(call, argument, progress) {
                Ok(0) => Done::Answer(Ok(0)),
                Ok(done) => again(operation, done),
                Err(errno) => Done::Answer(Err(errno)),
            };
        }
        ACCESS_OP => access_op(call, argument),
        ACQUIRE_RESOURCE => acquire_resource(call, argument),
        _ if progress != 0 => return Done::Answer(Err(continued(operation))),
        CURRENT_RESERVATION | MAXIMUM_RESERVATION | MAXIMUM_GPFN => counts(call, operation, argument),
        MAXIMUM_RAM_PAGE => Ok(call.guest().memory.last_gfn().0 + 1),
        EXCHANGE => exchange::call(call, argument),
        REMOVE_FROM_PHYSMAP => physmap::remove(call, argument),
        MEMORY_MAP => map::read(call, argument),
        SET_MEMORY_MAP => map::write(call, argument),
        GET_POD_TARGET | SET_POD_TARGET => pod_target(call, argument),
        GET_SHARING_FREED_PAGES | GET_SHARING_SHARED_PAGES => Ok(0),
        CLAIM_PAGES => claim_pages(call, argument),
        GET_VNUMAINFO => virtual_nodes(call, argument),
        RESERVED_DEVICE_MEMORY_MAP => reserved_device_memory(call, argument),
        MACHPHYS_COMPAT_MFN_LIST => Err(Errno::NotSupported),
        // Not for guests without a view of the machine's memory, not built in, or gone.
        _ => Err(Errno::NoSys),
    };
    Done::Answer(answer)
}

fn again(operation: u64, done: u64) -> Done {
    Done::Again(operation | done << OPERATION_BITS)
}

/// What an operation says that is never continued and yet has progress: those of common code know that this
/// cannot be, those of the architecture do not recognise themselves.
fn continued(operation: u64) -> Errno {
    match operation {
        EXCHANGE
        | MAXIMUM_RAM_PAGE
        | CURRENT_RESERVATION
        | MAXIMUM_RESERVATION
        | MAXIMUM_GPFN
        | REMOVE_FROM_PHYSMAP
        | CLAIM_PAGES
        | GET_VNUMAINFO
        | RESERVED_DEVICE_MEMORY_MAP => Errno::Invalid,
        _ => Errno::NoSys,
    }
}

fn counts<P: Platform>(call: &mut Call<'_, P>, operation: u64, argument: u64) -> Answer {
    let request: [u8; 2] = call.read(argument)?;
    call.only_self(request.u16_at(0))?;
    let memory = &call.guest().memory;
    Ok(match operation {
        CURRENT_RESERVATION => memory.reservation().current(),
        MAXIMUM_RESERVATION => memory.reservation().maximum(),
        _ => memory.last_gfn().0,
    })
}

/// Populate-on-demand is the toolstack's.
fn pod_target<P: Platform>(call: &Call<'_, P>, argument: u64) -> Answer {
    let request: [u8; 40] = call.read_sized(argument, 36)?;
    call.only_self(request.u16_at(32))?;
    Err(Errno::Perm)
}

/// Access rights of pages are for who watches the guest.
fn access_op<P: Platform>(call: &Call<'_, P>, argument: u64) -> Answer {
    let request: [u8; 40] = call.read_sized(argument, 24)?;
    Err(call.refuse_remote(request.u16_at(2), Errno::Invalid))
}

fn acquire_resource<P: Platform>(call: &Call<'_, P>, argument: u64) -> Answer {
    // For 32-bit callers Xen looks at the structure first.
    if call.by_width(false, true) {
        let _: [u8; 28] = call.read(argument)?;
    }
    Err(Errno::Access)
}

fn claim_pages<P: Platform>(call: &Call<'_, P>, argument: u64) -> Answer {
    let request = Reservation::read(call, argument)?;
    if request.list != 0 || request.order != 0 || request.flags != 0 {
        return Err(Errno::Invalid);
    }
    Err(match call.refuse_remote(request.domid, Errno::Perm) {
        Errno::Search => Errno::Invalid,
        errno => errno,
    })
}

/// There is no virtual NUMA topology.
fn virtual_nodes<P: Platform>(call: &Call<'_, P>, argument: u64) -> Answer {
    let request: [u8; 40] = call.read(argument)?;
    if request.u16_at(2) != 0 {
        return Err(Errno::Invalid);
    }
    call.only_self(request.u16_at(0))?;
    Err(Errno::NotSupported)
}

/// `{u32 flags, u32 count, handle buffer, u32 device}`: no device has memory that must be mapped for it.
fn reserved_device_memory<P: Platform>(call: &Call<'_, P>, argument: u64) -> Answer {
    const ALL_DEVICES: u32 = 1;
    let request: [u8; 24] = call.read_sized(argument, 16)?;
    if request.u32_at(0) & !ALL_DEVICES != 0 {
        return Err(Errno::Invalid);
    }
    call.write(argument.wrapping_add(4), &0u32.to_le_bytes())?;
    Ok(0)
}

/// A memory_reservation.
#[derive(Debug, Clone, Copy)]
struct Reservation {
    list: u64,
    count: u64,
    order: u32,
    flags: u32,
    domid: u16,
}

impl Reservation {
    /// Bytes, for 64-bit and 32-bit callers.
    const LEN: (usize, usize) = (32, 20);

    fn read<P: Platform>(call: &Call<'_, P>, argument: u64) -> Result<Self, Errno> {
        let (wide, narrow) = Self::LEN;
        let bytes: [u8; Self::LEN.0] = call.read_sized(argument, narrow)?;
        debug_assert_eq!(wide, bytes.len());
        let rest = call.by_width(16, 8);
        Ok(Self {
            list: call.handle_at(&bytes, 0, 0),
            count: call.handle_at(&bytes, 8, 4),
            order: bytes.u32_at(rest),
            flags: bytes.u32_at(rest + 4),
            domid: bytes.u16_at(rest + 8),
        })
    }

    /// Whether a guest may wish for what `flags` say.
    fn has_legal_node(&self) -> bool {
        let is_any = self.flags >> 8 & 0xff == 0;
        self.flags & VIRTUAL_NODE != 0 || is_any || self.flags & EXACT_NODE == 0
    }
}

/// A frame number of a list.
fn frame_at<P: Platform>(call: &Call<'_, P>, list: u64, index: u64) -> Result<u64, Errno> {
    let at = list.wrapping_add(index.wrapping_mul(call.by_width(8, 4)));
    let bytes: [u8; 8] = call.read_sized(at, 4)?;
    Ok(bytes.u64_at(0))
}

#[cfg(test)]
mod tests;
