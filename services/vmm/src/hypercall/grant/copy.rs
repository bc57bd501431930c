//! GNTTABOP_copy: bytes from one page to another; pages of the guest's own, by number or by a grant that it gave
//! itself. The backends' domain grants nobody anything.

use super::super::domid::{BACKEND, SELF};
use super::super::{Call, Field};
use super::Status;
use crate::errno::Errno;
use crate::grants::{GrantRef, OwnGrant, Want};
use crate::machine::Platform;
use crate::memory::{Gfn, PAGE, Page};

const SOURCE_BY_GRANT: u16 = 1;
const TARGET_BY_GRANT: u16 = 2;
/// Entries of the one frame that the table of the backends' domain has.
const BACKEND_GRANTS: u64 = (PAGE / 8) as u64;

/// One side of a copy.
struct Side {
    /// Frame number or grant.
    number: u64,
    domid: u16,
    offset: usize,
    is_grant: bool,
    want: Want,
}

/// Makes the copy that the structure at `at` describes: `{{ulong number, u16 domid, u16 offset} source, target,
/// u16 len, u16 flags, i16 status}`.
pub fn one<P: Platform>(call: &Call<'_, P>, at: u64) -> Result<Status, Errno> {
    let request: [u8; 40] = call.read_sized(at, 24)?;
    let (side_len, domid, rest) = call.by_width((16, 8, 32), (8, 4, 16));
    let (len, flags) = (usize::from(request.u16_at(rest)), request.u16_at(rest + 2));
    let side = |at: usize, by_grant, want| Side {
        number: call.handle_at(&request, at, at),
        domid: request.u16_at(at + domid),
        offset: usize::from(request.u16_at(at + domid + 2)),
        is_grant: flags & by_grant != 0,
        want,
    };
    let source = side(0, SOURCE_BY_GRANT, Want::Read);
    let target = side(side_len, TARGET_BY_GRANT, Want::Write);
    Ok(copy(call, &source, &target, len).err().unwrap_or(Status::Okay))
}

fn copy<P: Platform>(call: &Call<'_, P>, source: &Side, target: &Side, len: usize) -> Result<(), Status> {
    permit(call, source)?;
    permit(call, target)?;
    let (from, to) = (page(call, source)?, page(call, target)?);
    if source.offset + len > PAGE || target.offset + len > PAGE {
        return Err(Status::BadCopyArgument);
    }
    let mut bytes = [0; 256];
    for done in (0..len).step_by(bytes.len()) {
        let part = bytes.get_mut(..(len - done).min(256)).unwrap_or(&mut []);
        from.read(source.offset + done, part);
        to.write(target.offset + done, part);
    }
    Ok(())
}

/// Only the caller's own pages go by number, and only by that name.
fn permit<P: Platform>(call: &Call<'_, P>, side: &Side) -> Result<(), Status> {
    if side.domid != SELF && !side.is_grant {
        return Err(Status::PermissionDenied);
    }
    if side.domid == BACKEND || call.is_self(side.domid) { Ok(()) } else { Err(Status::BadDomain) }
}

fn page<P: Platform>(call: &Call<'_, P>, side: &Side) -> Result<Page, Status> {
    let guest = &call.machine.guest;
    if !side.is_grant {
        return guest.memory.page(Gfn(side.number)).ok_or(Status::BadPage);
    }
    let number = side.number & u64::from(u32::MAX);
    if !call.is_self(side.domid) {
        return Err(if number < BACKEND_GRANTS { Status::GeneralError } else { Status::BadGrant });
    }
    let own = guest.grants.own(&guest.memory, GrantRef(number as u32), guest.domid as u16, side.want);
    own.map_err(|error| match error {
        OwnGrant::NoEntry => Status::BadGrant,
        OwnGrant::Refused => Status::GeneralError,
        OwnGrant::NoPage => Status::BadPage,
    })
}
