//! exchange: pages given for pages elsewhere. Two memory_reservations and a count of what was done.

use alloc::vec::Vec;

use super::super::{Call, Field};
use super::{ORDER_MAX, Reservation, frame_at};
use crate::errno::{Answer, Errno};
use crate::machine::Platform;
use crate::memory::Gfn;

/// Pages that one call exchanges: whoever needs more calls again, as after any failure.
const PAGES_MAX: u64 = 1024;

pub fn call<P: Platform>(call: &mut Call<'_, P>, argument: u64) -> Answer {
    let (wide, narrow) = Reservation::LEN;
    let len = call.by_width(wide, narrow) as u64;
    let given = Reservation::read(call, argument)?;
    let taken = Reservation::read(call, argument.wrapping_add(len))?;
    let at = argument.wrapping_add(2 * len);
    let done: [u8; 8] = call.read_sized(at, 4)?;
    let done = done.u64_at(0);
    match exchange(call, given, taken, done) {
        Ok(done) => call.write_long(at, done).map(|()| 0),
        Err((errno, done)) => {
            call.write_long(at, done)?;
            Err(errno)
        }
    }
}

/// How many of the given extents were exchanged, those before included.
fn exchange<P: Platform>(
    call: &mut Call<'_, P>,
    given: Reservation,
    taken: Reservation,
    done: u64,
) -> Result<u64, (Errno, u64)> {
    if given.order.max(taken.order) > ORDER_MAX {
        return Err((Errno::Perm, done));
    }
    let pages = |list: Reservation| {
        let fits = u64::MAX >> list.order >= list.count;
        if fits { Some(list.count << list.order) } else { None }
    };
    let is_legal = done <= given.count
        && given.domid == taken.domid
        && pages(given).is_some()
        && pages(given) == pages(taken);
    if !is_legal {
        return Err((Errno::Invalid, done));
    }
    if done == given.count {
        return Ok(done);
    }
    if !taken.has_legal_node() {
        return Err((Errno::Invalid, done));
    }
    call.only_self(given.domid).map_err(|errno| (errno, done))?;
    // A chunk is what has whole extents on both sides.
    let order = given.order.max(taken.order);
    let (given_per_chunk, taken_per_chunk) = (1 << (order - given.order), 1 << (order - taken.order));
    let mut done = done - done % given_per_chunk;
    for _ in 0..PAGES_MAX >> order {
        if done == given.count {
            break;
        }
        let chunk = done / given_per_chunk;
        let from = frames(call, given, done, given_per_chunk).map_err(|errno| (errno, done))?;
        let to =
            frames(call, taken, chunk * taken_per_chunk, taken_per_chunk).map_err(|errno| (errno, done))?;
        let memory = &call.guest().memory;
        let is_there = |gfn: &Gfn| memory.special_at(*gfn).is_none() && memory.page(*gfn).is_some();
        if !from.iter().all(is_there) {
            return Err((Errno::Invalid, done));
        }
        if !to.iter().all(|&gfn| memory.is_ram(gfn)) {
            return Err((Errno::NoMemory, done));
        }
        for &gfn in &from {
            call.machine.give_away(gfn);
        }
        call.machine.take_back(&to).map_err(|_| (Errno::NoMemory, done))?;
        done += given_per_chunk;
    }
    if done == given.count { Ok(done) } else { Err((Errno::NoMemory, done)) }
}

/// The frame numbers of `count` extents from number `first` on.
fn frames<P: Platform>(
    call: &Call<'_, P>,
    list: Reservation,
    first: u64,
    count: u64,
) -> Result<Vec<Gfn>, Errno> {
    let mut gfns = Vec::new();
    for index in first..first + count {
        let start = frame_at(call, list.list, index)?;
        let end = start.checked_add(1 << list.order).ok_or(Errno::Invalid)?;
        gfns.extend((start..end).map(Gfn));
    }
    Ok(gfns)
}
