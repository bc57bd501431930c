//! Frames: splitting, joining, mapping and unmapping runs.
//!
//! Mapping and unmapping go on in steps of one leaf and stop after [`STEPS_MAX`]; the caller's thread keeps
//! the progress and repeats the call. Both are idempotent, so lost progress costs time only.

use proto::abi::{Error, ObjectType, PAGE_SHIFT, PAGE_SIZE, USER_END, map, rights};

use crate::cap::{Cap, DEVICE, DONATED, OWNED, PINNED};
use crate::memory::Pfn;
use crate::object::space::{Space, SpaceKind, SpaceRef};
use crate::page_table::leaf_flags;

/// Leaves that one system call changes at most.
pub const STEPS_MAX: u64 = 256;

/// Checks that an owned run may become something else: it is not shared, mapped or in use.
///
/// # Errors
/// `WrongType`, `NotOwned`, `Busy`, `IsMapped`, `HasChildren`.
pub fn expect_idle(cap: &Cap) -> Result<(), Error> {
    cap.require(ObjectType::Frames, 0)?;
    if !cap.has(OWNED) {
        return Err(Error::NotOwned);
    }
    if cap.flags.get() & (DONATED | PINNED) != 0 {
        return Err(Error::Busy);
    }
    if is_mapped(cap) {
        return Err(Error::IsMapped);
    }
    if cap.has_children() {
        return Err(Error::HasChildren);
    }
    Ok(())
}

/// Checks that a run may be donated: `count` frames of RAM, idle.
///
/// # Errors
/// As [`expect_idle`]; `BadArgument` when the size differs or it is not RAM.
pub fn expect_donation(cap: &Cap, count: u64) -> Result<Pfn, Error> {
    expect_idle(cap)?;
    if cap.has(DEVICE) || u64::from(cap.count.get()) != count {
        return Err(Error::BadArgument);
    }
    Ok(Pfn(cap.base.get()))
}

/// It is mapped in a space that exists.
pub fn is_mapped(cap: &Cap) -> bool {
    !cap.has(DONATED) && SpaceRef::find(cap.space.get()).is_some()
}

/// Cuts a run in two.
///
/// # Errors
/// As [`expect_idle`]; `BadArgument` when `at` is not inside.
pub fn split(cap: &'static Cap, at: u64, to: &'static Cap) -> Result<(), Error> {
    expect_idle(cap)?;
    let count = u64::from(cap.count.get());
    if at == 0 || at >= count {
        return Err(Error::BadArgument);
    }
    to.fill_sibling(cap, cap.base.get() + at, (count - at) as u32);
    cap.count.set(at as u32);
    Ok(())
}

/// Joins two adjacent runs into the lower one.
///
/// # Errors
/// As [`expect_idle`]; `BadArgument` when they do not touch.
pub fn merge(low: &'static Cap, high: &'static Cap) -> Result<(), Error> {
    expect_idle(low)?;
    expect_idle(high)?;
    let count = low.count.get().checked_add(high.count.get()).ok_or(Error::BadArgument)?;
    if low.base.get() + u64::from(low.count.get()) != high.base.get()
        || low.has(DEVICE) != high.has(DEVICE)
        || low.rights() != high.rights()
    {
        return Err(Error::BadArgument);
    }
    high.remove();
    low.count.set(count);
    Ok(())
}

/// Checks a mapping of a run that begins.
///
/// # Errors
/// `Busy` (donated), `IsMapped`, `NoRight`, `BadArgument` (alignment, range).
pub fn expect_mappable(cap: &Cap, space: &Space, address: u64, flags: u64) -> Result<(), Error> {
    cap.require(ObjectType::Frames, flags & (rights::READ | rights::WRITE | rights::EXECUTE))?;
    if cap.has(DONATED) {
        return Err(Error::Busy);
    }
    let count = u64::from(cap.count.get());
    let end = (count << PAGE_SHIFT).checked_add(address).ok_or(Error::BadArgument)?;
    let limit = match space.kind {
        SpaceKind::Domain => USER_END - PAGE_SIZE,
        SpaceKind::Vm => 1 << crate::arch::guest_physical_bits(),
    };
    if !address.is_multiple_of(PAGE_SIZE) || end > limit || flags & map::READ == 0 || flags > 15 {
        return Err(Error::BadArgument);
    }
    if is_mapped(cap) { Err(Error::IsMapped) } else { Ok(()) }
}

/// It is mapped, perhaps in part, exactly there.
pub fn is_mapped_at(cap: &Cap, space: &Space, address: u64) -> bool {
    is_mapped(cap) && cap.space.get() == space.reference().raw() && cap.aux.get() == address
}

/// Maps a run that may be mapped, from frame `progress` on. Answers `Ok(None)` when done, else how far it got.
///
/// # Errors
/// `NoMemory`, `AddressInUse`: the caller has to unmap what was mapped so far.
pub fn map(
    cap: &'static Cap,
    space: &'static Space,
    address: u64,
    flags: u64,
    progress: u64,
) -> Result<Option<u64>, Error> {
    let count = u64::from(cap.count.get());
    let device = if cap.has(DEVICE) { map::UNCACHED } else { 0 };
    let bits = leaf_flags(flags | device);
    let tables = space.tables();
    cap.space.set(space.reference().raw());
    cap.aux.set(address);
    let mut done = progress.min(count);
    for _ in 0..STEPS_MAX {
        if done == count {
            break;
        }
        let at = address + (done << PAGE_SHIFT);
        done += tables.map_step(at, Pfn(cap.base.get()).offset(done), count - done, bits)?;
    }
    if space.kind == SpaceKind::Vm {
        // A leaf may have been replaced.
        space.unmap_count.set(space.unmap_count.get() + 1);
    }
    Ok(if done == count { None } else { Some(done) })
}

/// Unmaps a run, from frame `progress` on. Answers `Ok(None)` when done, else how far it got.
///
/// # Errors
/// `NotMapped`.
pub fn unmap(cap: &'static Cap, progress: u64) -> Result<Option<u64>, Error> {
    if cap.has(DONATED) {
        return Err(Error::NotMapped);
    }
    let Some(space) = SpaceRef::find(cap.space.get()) else { return Err(Error::NotMapped) };
    let tables = space.tables();
    let count = u64::from(cap.count.get());
    let mut done = progress.min(count);
    for _ in 0..STEPS_MAX {
        if done == count {
            break;
        }
        let at = cap.aux.get() + (done << PAGE_SHIFT);
        done += tables.unmap_step(at, Pfn(cap.base.get()).offset(done), count - done);
    }
    space.unmap_count.set(space.unmap_count.get() + 1);
    crate::arch::flush_if_active(space);
    if done == count {
        cap.space.set(0);
        return Ok(None);
    }
    Ok(Some(done))
}
