//! memory_op: special frames in the guest's address space, the memory map, and ballooning.
//!
//! Ballooning keeps the frames for now: a page that the guest gives away stays its own, and populating
//! RAM that was there all along succeeds. Source: Xen public/memory.h.

use super::{Call, Done, Field};
use crate::errno::{Answer, Errno};
use crate::loader::place::{memory_map, special};
use crate::machine::Platform;
use crate::memory::{Gfn, PAGE};

const DECREASE_RESERVATION: u64 = 1;
const CURRENT_RESERVATION: u64 = 3;
const MAXIMUM_RESERVATION: u64 = 4;
const POPULATE_PHYSMAP: u64 = 6;
const ADD_TO_PHYSMAP: u64 = 7;
const MEMORY_MAP: u64 = 9;
const REMOVE_FROM_PHYSMAP: u64 = 15;
/// The operation is in the low bits; a continued call has its progress above.
const OPERATION_BITS: u32 = 6;

const SPACE_SHARED_INFO: u32 = 0;
const SPACE_GRANT_TABLE: u32 = 1;
/// Extents that one pass of a long call handles.
const EXTENTS_PER_PASS: u64 = 1024;
/// Largest extent: 2 MiB.
const ORDER_MAX: u32 = 9;
const MAP_ENTRY_LEN: u64 = 20;

pub(super) fn call<P: Platform>(call: &mut Call<'_, P>) -> Done {
    let [first, argument, ..] = call.args;
    let (operation, progress) = (first & ((1 << OPERATION_BITS) - 1), first >> OPERATION_BITS);
    let answer = match operation {
        ADD_TO_PHYSMAP => add_to_physmap(call, argument),
        REMOVE_FROM_PHYSMAP => remove_from_physmap(call, argument),
        MEMORY_MAP => write_memory_map(call, argument),
        CURRENT_RESERVATION | MAXIMUM_RESERVATION => {
            Ok(call.guest().memory.ram().map(|(_, len)| len / PAGE as u64).sum())
        }
        DECREASE_RESERVATION | POPULATE_PHYSMAP => {
            return match extents(call, argument, progress) {
                Ok((done, true)) => Done::Answer(Ok(done)),
                Ok((done, false)) => Done::Again(operation | done << OPERATION_BITS),
                Err(errno) => Done::Answer(Err(errno)),
            };
        }
        _ => Err(Errno::NoSys),
    };
    Done::Answer(answer)
}

fn add_to_physmap<P: Platform>(call: &mut Call<'_, P>, argument: u64) -> Answer {
    let request: [u8; 24] = call.read_sized(argument, 16)?;
    let space = request.u32_at(4);
    let (index, gfn) = (call.handle_at(&request, 8, 8), Gfn(call.handle_at(&request, 16, 12)));
    let frame = match space {
        SPACE_SHARED_INFO if index == 0 => special::SHARED_INFO,
        SPACE_GRANT_TABLE => call.guest().grants.frame(index).ok_or(Errno::Invalid)?,
        _ => return Err(Errno::Invalid),
    };
    call.machine.place_special(frame, gfn)?;
    Ok(0)
}

fn remove_from_physmap<P: Platform>(call: &mut Call<'_, P>, argument: u64) -> Answer {
    let request: [u8; 16] = call.read_sized(argument, 8)?;
    let gfn = Gfn(call.handle_at(&request, 8, 4));
    match call.guest().memory.special_at(gfn) {
        Some(frame) => call.machine.remove_special(frame)?,
        None if call.guest().memory.is_ram(gfn) => {}
        None => return Err(Errno::NoEntry),
    }
    Ok(0)
}

/// The map of the start information again: `{u32 count, handle buffer}`, entries without padding.
fn write_memory_map<P: Platform>(call: &mut Call<'_, P>, argument: u64) -> Answer {
    let request: [u8; 16] = call.read_sized(argument, 8)?;
    let (room, mut at) = (request.u32_at(0), call.handle_at(&request, 8, 4));
    let map = memory_map(&call.guest().memory);
    let count = map.len().min(room as usize);
    for entry in map.iter().take(count) {
        call.write(at, &entry.start.to_le_bytes())?;
        call.write(at.wrapping_add(8), &entry.len.to_le_bytes())?;
        call.write(at.wrapping_add(16), &entry.kind.to_le_bytes())?;
        at = at.wrapping_add(MAP_ENTRY_LEN);
    }
    call.write(argument, &(count as u32).to_le_bytes())?;
    Ok(0)
}

/// Goes through the extents of a memory_reservation from `progress` on; how many are done, and whether
/// that is the end.
fn extents<P: Platform>(call: &mut Call<'_, P>, argument: u64, progress: u64) -> Result<(u64, bool), Errno> {
    let request: [u8; 32] = call.read_sized(argument, 20)?;
    let (list, count) = (call.handle_at(&request, 0, 0), call.handle_at(&request, 8, 4));
    let order = request.u32_at(call.by_width(16, 8));
    let (gfn_len, argument_bits) = call.by_width((8, 64), (4, 32));
    // The progress has to fit above the operation.
    if order > ORDER_MAX || count >> (argument_bits - OPERATION_BITS) != 0 || progress > count {
        return Err(Errno::Invalid);
    }
    let end = count.min(progress + EXTENTS_PER_PASS);
    for index in progress..end {
        let gfn: [u8; 8] = call.read_sized(list.wrapping_add(index.wrapping_mul(gfn_len)), 4)?;
        let gfn = gfn.u64_at(0);
        let last = gfn.checked_add((1 << order) - 1);
        let is_ram = call.guest().memory.is_ram(Gfn(gfn))
            && last.is_some_and(|last| call.machine.guest.memory.is_ram(Gfn(last)));
        if !is_ram {
            return Ok((index, true));
        }
    }
    Ok((end, end == count))
}
