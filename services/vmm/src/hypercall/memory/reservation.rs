//! increase_reservation, decrease_reservation and populate_physmap: ballooning.
//!
//! They answer how many extents they did, whatever was wrong with the next one.

use alloc::vec::Vec;

use super::super::Call;
use super::{DECREASE_RESERVATION, INCREASE_RESERVATION, OPERATION_BITS, ORDER_MAX, Reservation, frame_at};
use crate::machine::Platform;
use crate::memory::Gfn;

/// Extents of one call that can be continued.
const EXTENTS_MAX: u64 = (u32::MAX >> OPERATION_BITS) as u64;
/// Pages that one pass handles; an extent is done as a whole.
const PAGES_PER_PASS: u64 = 256;
/// mem_flags: memory comes when it is touched, which is for who builds a domain.
const ON_DEMAND: u32 = 1 << 16;
const PAGE_SHIFT: u32 = 12;

/// Goes through the extents from `progress` on: how many are done, and whether that is the end.
pub fn change<P: Platform>(
    call: &mut Call<'_, P>,
    operation: u64,
    argument: u64,
    progress: u64,
) -> (u64, bool) {
    let Ok(request) = Reservation::read(call, argument) else { return (progress, true) };
    let address_bits = request.flags & 0xff;
    let is_refused = request.count > EXTENTS_MAX
        || progress >= request.count
        || call.only_self(request.domid).is_err()
        || (1..=PAGE_SHIFT).contains(&address_bits)
        || !request.has_legal_node()
        || request.order > ORDER_MAX;
    if is_refused {
        return (progress, true);
    }
    if operation == INCREASE_RESERVATION {
        return (increase(call, request, progress), true);
    }
    let pass = if operation == DECREASE_RESERVATION { decrease } else { populate };
    pass(call, request, progress)
}

/// Pages without a place: they only count.
fn increase<P: Platform>(call: &mut Call<'_, P>, request: Reservation, progress: u64) -> u64 {
    let reservation = call.guest().memory.reservation_mut();
    let room = reservation.maximum().saturating_sub(reservation.current()) >> request.order;
    let count = room.min(request.count - progress);
    reservation.lose(count << request.order);
    progress + count
}

fn decrease<P: Platform>(call: &mut Call<'_, P>, request: Reservation, progress: u64) -> (u64, bool) {
    let mut pages = 0;
    for done in progress..request.count {
        if pages >= PAGES_PER_PASS {
            return (done, false);
        }
        let Ok(first) = frame_at(call, request.list, done) else { return (done, true) };
        let is_done = (0..1 << request.order).all(|n| {
            let Some(gfn) = first.checked_add(n).map(Gfn) else { return false };
            match call.guest().memory.special_at(gfn) {
                Some(frame) => call.machine.remove_special(frame).is_ok(),
                None => call.machine.give_away(gfn),
            }
        });
        if !is_done {
            return (done, true);
        }
        pages += 1 << request.order;
    }
    (request.count, true)
}

fn populate<P: Platform>(call: &mut Call<'_, P>, request: Reservation, progress: u64) -> (u64, bool) {
    let size = 1 << request.order;
    let mut gfns = Vec::new();
    let mut done = progress;
    let mut is_end = true;
    while done < request.count {
        if gfns.len() as u64 >= PAGES_PER_PASS {
            is_end = false;
            break;
        }
        let Ok(first) = frame_at(call, request.list, done) else { break };
        let memory = &call.guest().memory;
        let has_frames = request.flags & ON_DEMAND == 0
            && memory.reservation().has_room(gfns.len() as u64 + size)
            && first.checked_add(size).is_some_and(|end| (first..end).all(|gfn| memory.is_ram(Gfn(gfn))));
        if !has_frames {
            break;
        }
        gfns.extend((first..first + size).map(Gfn));
        done += 1;
    }
    match call.machine.take_back(&gfns) {
        Ok(()) => (done, is_end),
        Err(pages) => (progress + (pages as u64 >> request.order), true),
    }
}
