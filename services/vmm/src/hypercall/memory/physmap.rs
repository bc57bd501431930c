//! add_to_physmap and its batch, remove_from_physmap: what is where in the guest's address space.
//!
//! A page of the guest's own that moves is copied: a guest cannot tell its frames apart.

use super::super::{Call, Field};
use crate::errno::{Answer, Errno};
use crate::loader::place::special;
use crate::machine::Platform;
use crate::memory::{GFN_END, Gfn, PAGE};

const SPACE_SHARED_INFO: u32 = 0;
const SPACE_GRANT_TABLE: u32 = 1;
const SPACE_GMFN: u32 = 2;
const SPACE_GMFN_RANGE: u32 = 3;
const SPACE_GMFN_FOREIGN: u32 = 4;
const SPACE_DEVICE: u32 = 5;

/// No frame.
const INVALID_GFN: u64 = u64::MAX;
/// Pages that one pass handles.
const PER_PASS: u64 = 64;

/// `{u16 domid, u16 size, u32 space, ulong index, ulong gfn}`. The progress, if there is more to do.
pub fn add<P: Platform>(call: &mut Call<'_, P>, argument: u64, progress: u64) -> Answer {
    let progress = u16::try_from(progress).map_err(|_| Errno::Domain)?;
    let request: [u8; 24] = call.read_sized(argument, 16)?;
    let space = request.u32_at(4);
    if space == SPACE_GMFN_FOREIGN {
        return Err(Errno::NoSys);
    }
    permit(call, request.u16_at(0), space)?;
    let (index, gfn) = (call.handle_at(&request, 8, 8), call.handle_at(&request, 16, 12));
    if gfn == INVALID_GFN {
        return Err(Errno::Invalid);
    }
    if space != SPACE_GMFN_RANGE {
        return add_one(call, space, index, gfn).map(|()| 0);
    }
    let size = request.u16_at(2);
    if size < progress {
        return Err(Errno::IllegalSequence);
    }
    let (size, progress) = (u64::from(size), u64::from(progress));
    if gfn.checked_add(size).is_none() || index.checked_add(size).is_none() {
        return Err(Errno::Overflow);
    }
    let end = size.min(progress + PER_PASS);
    for n in progress..end {
        add_one(call, SPACE_GMFN, index + n, gfn + n)?;
    }
    Ok(if end == size { 0 } else { end })
}

/// `{u16 domid, u16 space, u16 size, u16 extra, handle indices, handle gfns, handle errors}`. The progress, if
/// there is more to do.
pub fn add_batch<P: Platform>(call: &mut Call<'_, P>, argument: u64, progress: u64) -> Answer {
    let progress = u16::try_from(progress).map_err(|_| Errno::Domain)?;
    let request: [u8; 32] = call.read_sized(argument, 20)?;
    let (space, size) = (u32::from(request.u16_at(2)), request.u16_at(4));
    if space == SPACE_GMFN_RANGE {
        return Err(Errno::NotSupported);
    }
    permit(call, request.u16_at(0), space)?;
    if size < progress || (size == progress && progress != 0) {
        return Err(Errno::IllegalSequence);
    }
    let [indices, gfns, errors] =
        [(8, 8), (16, 12), (24, 16)].map(|(wide, narrow)| call.handle_at(&request, wide, narrow));
    let (size, progress) = (u64::from(size), u64::from(progress));
    let end = size.min(progress + PER_PASS);
    for n in progress..end {
        let (index, gfn) = (super::frame_at(call, indices, n)?, super::frame_at(call, gfns, n)?);
        if gfn == INVALID_GFN {
            return Err(Errno::Invalid);
        }
        let status = add_one(call, space, index, gfn).map_or_else(|errno| errno as i32, |()| 0);
        call.write(errors.wrapping_add(4 * n), &status.to_le_bytes())?;
    }
    Ok(if end == size { 0 } else { end })
}

/// `{u16 domid, ulong gfn}`. What was there counts as the guest's further on.
pub fn remove<P: Platform>(call: &mut Call<'_, P>, argument: u64) -> Answer {
    let request: [u8; 16] = call.read_sized(argument, 8)?;
    call.only_self(request.u16_at(0))?;
    let gfn = Gfn(call.handle_at(&request, 8, 4));
    if call.guest().memory.special_at(gfn).is_some() {
        call.machine.remove_special_at(gfn)?;
    } else if call.machine.give_away(gfn) {
        call.guest().memory.reservation_mut().lose(1);
    } else {
        return Err(Errno::NoEntry);
    }
    Ok(0)
}

fn permit<P: Platform>(call: &Call<'_, P>, domid: u16, space: u32) -> Result<(), Errno> {
    match call.only_self(domid) {
        Err(Errno::Search) => Err(Errno::Search),
        _ if space == SPACE_DEVICE => Err(Errno::Access),
        permission => permission,
    }
}

fn add_one<P: Platform>(call: &mut Call<'_, P>, space: u32, index: u64, gfn: u64) -> Result<(), Errno> {
    let frame = match space {
        SPACE_SHARED_INFO if index == 0 => special::SHARED_INFO,
        // Xen looks at 32 bits of it. The bit for status frames means nothing to version 1 of the table.
        SPACE_GRANT_TABLE => call.guest().grants.frame(u64::from(index as u32)).ok_or(Errno::Invalid)?,
        SPACE_GMFN => return move_page(call, Gfn(index), Gfn(gfn)),
        SPACE_GMFN_FOREIGN => return Err(Errno::Perm),
        _ => return Err(Errno::Invalid),
    };
    call.machine.place_special(frame, Gfn(gfn))
}

fn move_page<P: Platform>(call: &mut Call<'_, P>, from: Gfn, to: Gfn) -> Result<(), Errno> {
    if let Some(frame) = call.guest().memory.special_at(from) {
        return call.machine.place_special(frame, to);
    }
    let page = call.guest().memory.page(from).ok_or(Errno::Invalid)?;
    if to.0 >= GFN_END {
        return Err(Errno::Invalid);
    }
    if from == to {
        return Ok(());
    }
    // Where there never was RAM there is no frame for it here.
    if !call.guest().memory.is_ram(to) {
        return Err(Errno::NoMemory);
    }
    call.machine.give_away(to);
    call.machine.take_back(&[to]).map_err(|_| Errno::NoMemory)?;
    let target = call.guest().memory.page(to).ok_or(Errno::NoMemory)?;
    let mut bytes = [0; 256];
    for at in (0..PAGE).step_by(bytes.len()) {
        page.read(at, &mut bytes);
        target.write(at, &bytes);
    }
    call.machine.give_away(from);
    Ok(())
}
