//! grant_table_op: the table's size, version and place, copies between pages, and swapping entries.
//!
//! A guest maps nobody's grants: this is a Xen whose guests have version 1 of the table and no frames for handles
//! of mappings (`max_grant_version=1`, `max_maptrack_frames=0`), so each attempt is answered with the status for
//! that. Sources: Xen public/grant_table.h, common/grant_table.c, common/compat/grant_table.c; arch/x86/hvm/hypercall.c
//! for what an HVM guest may not call.

mod copy;

use super::domid::{BACKEND, SELF};
use super::{Call, Done, Field};
use crate::errno::{Answer, Errno};
use crate::grants::{FRAMES_MAX, GrantRef};
use crate::loader::place::special;
use crate::machine::Platform;

operations! {
    "grant_table_op": u32 {
        MAP_GRANT_REF = 0,
        UNMAP_GRANT_REF = 1,
        SETUP_TABLE = 2,
        DUMP_TABLE = 3,
        TRANSFER = 4,
        COPY = 5,
        QUERY_SIZE = 6,
        UNMAP_AND_REPLACE = 7,
        SET_VERSION = 8,
        GET_STATUS_FRAMES = 9,
        GET_VERSION = 10,
        SWAP_GRANT_REF = 11,
        CACHE_FLUSH = 12,
    }
}

/// Elements that one pass handles.
const PER_PASS: u64 = 64;
/// Version of the table.
const VERSION: u32 = 1;
/// Flags of a mapping: for a device, for the processor, by other ways than frame numbers.
const DEVICE_MAP: u32 = 1;
const HOST_MAP: u32 = 2;
const OTHER_MAPS: u32 = 8 | 16;

/// How one element of a list ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i16)]
enum Status {
    Okay = 0,
    GeneralError = -1,
    BadDomain = -2,
    BadGrant = -3,
    BadHandle = -4,
    BadVirtualAddress = -5,
    PermissionDenied = -8,
    BadPage = -9,
    BadCopyArgument = -10,
    Again = -12,
    NoSpace = -13,
}

impl From<Errno> for Status {
    /// Of the answers to whose domain it is.
    fn from(errno: Errno) -> Self {
        if errno == Errno::Perm { Self::PermissionDenied } else { Self::BadDomain }
    }
}

pub(super) fn call<P: Platform>(call: &mut Call<'_, P>) -> Done {
    let [_, argument, ..] = call.args;
    let (operation, count) = (call.word(0), call.word(2));
    let is_list = matches!(operation, MAP_GRANT_REF | UNMAP_GRANT_REF | COPY | SWAP_GRANT_REF);
    let is_single = matches!(operation, SETUP_TABLE | QUERY_SIZE | SET_VERSION | GET_VERSION);
    if !is_list && !is_single {
        return Done::Answer(Err(Errno::NoSys));
    }
    if (count as i32) < 0 {
        return Done::Answer(Err(Errno::Invalid));
    }
    if is_list {
        return list(call, operation, argument, u64::from(count));
    }
    Done::Answer(match operation {
        SETUP_TABLE => setup_table(call, argument, count),
        QUERY_SIZE => query_size(call, argument, count),
        SET_VERSION => set_version(call, argument),
        _ => get_version(call, argument),
    })
}

/// Operations on lists of structures: each element gets its status.
fn list<P: Platform>(call: &mut Call<'_, P>, operation: u32, argument: u64, count: u64) -> Done {
    let (len, status_at) = match operation {
        MAP_GRANT_REF => (32, 18),
        UNMAP_GRANT_REF => (24, 20),
        SWAP_GRANT_REF => (12, 8),
        _ => call.by_width((40, 36), (24, 20)),
    };
    let now = count.min(PER_PASS);
    for n in 0..now {
        let at = argument.wrapping_add(n * len);
        let done = match operation {
            MAP_GRANT_REF => map(call, at),
            UNMAP_GRANT_REF => call.read::<24>(at).map(|_| Status::BadHandle),
            SWAP_GRANT_REF => swap(call, at),
            _ => copy::one(call, at),
        };
        let written =
            done.and_then(|status| call.write(at.wrapping_add(status_at), &(status as i16).to_le_bytes()));
        if let Err(errno) = written {
            return Done::Answer(Err(errno));
        }
    }
    if now == count {
        return Done::Answer(Ok(0));
    }
    Done::AgainFrom([u64::from(operation), argument.wrapping_add(now * len), count - now])
}

/// `{u64 address, u32 flags, u32 ref, u16 domid, i16 status, u32 handle, u64 device address}`.
fn map<P: Platform>(call: &Call<'_, P>, at: u64) -> Result<Status, Errno> {
    let request: [u8; 32] = call.read(at)?;
    let (flags, domid) = (request.u32_at(8), request.u16_at(16));
    // There, the caller is known by its number only.
    let exists = domid == BACKEND || (call.is_self(domid) && domid != SELF);
    Ok(match flags {
        _ if flags & (DEVICE_MAP | HOST_MAP) == 0 => Status::BadGrant,
        _ if flags & (DEVICE_MAP | OTHER_MAPS) != 0 => Status::GeneralError,
        _ if !exists => Status::BadDomain,
        _ => Status::NoSpace,
    })
}

/// `{u32 a, u32 b, i16 status}`.
fn swap<P: Platform>(call: &mut Call<'_, P>, at: u64) -> Result<Status, Errno> {
    let request: [u8; 12] = call.read(at)?;
    let [a, b] = [0, 4].map(|at| GrantRef(request.u32_at(at)));
    let guest = call.guest();
    let [Some(first), Some(second)] = [a, b].map(|grant| guest.grants.entry(&guest.memory, grant)) else {
        return Ok(Status::BadGrant);
    };
    if a == b {
        return Ok(Status::Okay);
    }
    if first.is_in_use() || second.is_in_use() {
        return Ok(Status::Again);
    }
    first.swap(&second);
    Ok(Status::Okay)
}

/// `{u16 domid, u32 frames, i16 status, handle list}`.
fn setup_table<P: Platform>(call: &mut Call<'_, P>, argument: u64, count: u32) -> Answer {
    if count == 0 && call.by_width(false, true) {
        return Ok(0);
    }
    if count != 1 {
        return Err(Errno::Invalid);
    }
    let request: [u8; 24] = call.read_sized(argument, 16)?;
    let (frames, list) = (request.u32_at(4), call.handle_at(&request, 16, 12));
    let mut status = match call.only_self(request.u16_at(0)) {
        Err(errno) => errno.into(),
        Ok(()) if frames > FRAMES_MAX => Status::GeneralError,
        Ok(()) => Status::Okay,
    };
    if status == Status::Okay {
        for n in 0..u64::from(frames) {
            let guest = call.guest();
            let index = guest.grants.frame(n).unwrap_or(special::GRANTS);
            let gfn = guest.memory.where_is(index).map_or(u64::MAX, |gfn| gfn.0);
            if call.write_long(list.wrapping_add(n * call.by_width(8, 4)), gfn).is_err() {
                status = Status::BadVirtualAddress;
            }
        }
    }
    call.write(argument.wrapping_add(8), &(status as i16).to_le_bytes())?;
    Ok(0)
}

/// `{u16 domid, u32 frames, u32 most frames, i16 status}`.
fn query_size<P: Platform>(call: &mut Call<'_, P>, argument: u64, count: u32) -> Answer {
    if count != 1 {
        return Err(Errno::Invalid);
    }
    let request: [u8; 16] = call.read(argument)?;
    let status = match call.only_self(request.u16_at(0)) {
        Err(errno) => errno.into(),
        Ok(()) => {
            let frames = call.guest().grants.frames();
            call.write(argument.wrapping_add(4), &frames.to_le_bytes())?;
            call.write(argument.wrapping_add(8), &FRAMES_MAX.to_le_bytes())?;
            Status::Okay
        }
    };
    call.write(argument.wrapping_add(12), &(status as i16).to_le_bytes())?;
    Ok(0)
}

/// `{u32 version}`, which is the version in force afterwards.
fn set_version<P: Platform>(call: &Call<'_, P>, argument: u64) -> Answer {
    let wanted = u32::from_le_bytes(call.read(argument)?);
    call.write(argument, &VERSION.to_le_bytes())?;
    match wanted {
        VERSION => Ok(0),
        2 => Err(Errno::NoSys),
        _ => Err(Errno::Invalid),
    }
}

/// `{u16 domid, u16 0, u32 version}`.
fn get_version<P: Platform>(call: &Call<'_, P>, argument: u64) -> Answer {
    let request: [u8; 8] = call.read(argument)?;
    call.only_self(request.u16_at(0))?;
    call.write(argument.wrapping_add(4), &VERSION.to_le_bytes())?;
    Ok(0)
}

#[cfg(test)]
mod tests;
