//! Grant table, version 1, as the VMM's backends see it.
//!
//! The guest writes the entries at any time: an entry is read and marked in one atomic exchange of its
//! flags and domain ID, and the frame number is read after that. A grant is in use only while a
//! [`Granted`] value exists; the holder gives it back with [`GrantTable::release`]. For a copy that ends
//! before the guest learns of its end, [`GrantTable::view`] reads the entry once and marks nothing.
//! Source: Xen public/grant_table.h.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::loader::place::special;
use crate::memory::{Gfn, GuestMemory, Lookup, PAGE, Page};

/// Frames that the table may have.
pub const FRAMES_MAX: u32 = 32;
/// Entries per frame.
pub(crate) const PER_FRAME: u32 = (PAGE / 8) as u32;
/// Backends speak for this domain.
const BACKEND_DOMID: u16 = 0;

const TYPE_MASK: u16 = 3;
pub(crate) const PERMIT_ACCESS: u16 = 1;
pub(crate) const READ_ONLY: u16 = 4;
const READING: u16 = 8;
const WRITING: u16 = 16;

/// Number of a grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrantRef(pub u32);

/// What a backend wants to do with a granted page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Read it.
    Read,
    /// Read and write it.
    Write,
}

/// The grant does not exist or does not allow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadGrant;

/// Why a guest cannot use a grant of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnGrant {
    /// The table has no such entry.
    NoEntry,
    /// The entry does not allow it, or allows it to others.
    Refused,
    /// Nothing is at the frame number.
    NoPage,
}

/// An entry of the table.
#[derive(Debug)]
pub struct Entry {
    page: Page,
    offset: usize,
}

impl Entry {
    /// Whether a backend uses the grant.
    pub fn is_in_use(&self) -> bool {
        self.page.u16(self.offset) & (READING | WRITING) != 0
    }

    /// Swaps two entries.
    pub fn swap(&self, other: &Self) {
        let (a, b) = (self.page.u64(self.offset), other.page.u64(other.offset));
        self.page.set_u64(self.offset, b);
        other.page.set_u64(other.offset, a);
    }
}

/// A page that the guest granted, in use.
#[derive(Debug)]
pub struct Granted {
    /// The page.
    pub page: Page,
    entry: Page,
    offset: usize,
    marks: u16,
}

/// The table's size; its frames are special frames.
#[derive(Debug)]
pub struct GrantTable {
    frames: u32,
}

impl Default for GrantTable {
    fn default() -> Self {
        Self { frames: 1 }
    }
}

/// Whether an entry with these flags and this domain ID allows it.
#[inline]
fn allows(header: u32, want: Want) -> bool {
    header & decisive(want) == ALLOWED
}

/// What [`decisive`] leaves of the flags and the domain ID of a grant that allows something.
const ALLOWED: u32 = (BACKEND_DOMID as u32) << 16 | PERMIT_ACCESS as u32;

/// The bits of flags and domain ID that say whether an entry allows it.
#[inline]
fn decisive(want: Want) -> u32 {
    let flags = match want {
        Want::Read => TYPE_MASK,
        Want::Write => TYPE_MASK | READ_ONLY,
    };
    u32::MAX << 16 | u32::from(flags)
}

/// The table, ready for look-ups of one kind: what is the same for all of them is done.
#[derive(Debug)]
pub struct View<'a> {
    memory: Lookup<'a>,
    /// Of the frames in use.
    entries: &'a [AtomicU64],
    decisive: u32,
}

impl View<'_> {
    /// The page that a grant allows to use now. The entry is read in one access, so its parts belong together.
    ///
    /// # Errors
    /// [`BadGrant`].
    #[inline]
    pub fn page(&self, grant: GrantRef) -> Result<Page, BadGrant> {
        let entry = self.entries.get(grant.0 as usize).ok_or(BadGrant)?.load(Ordering::Acquire);
        if entry as u32 & self.decisive != ALLOWED {
            return Err(BadGrant);
        }
        self.memory.page(Gfn(entry >> 32)).ok_or(BadGrant)
    }
}

impl GrantTable {
    /// Frames in use.
    pub fn frames(&self) -> u32 {
        self.frames
    }

    /// Grows the table so that it has frame `index`; the special frame that it is.
    pub fn frame(&mut self, index: u64) -> Option<usize> {
        if index >= u64::from(FRAMES_MAX) {
            return None;
        }
        self.frames = self.frames.max(index as u32 + 1);
        Some(special::GRANTS + index as usize)
    }

    /// The entry of a grant.
    pub fn entry(&self, memory: &GuestMemory, grant: GrantRef) -> Option<Entry> {
        let frame = grant.0 / PER_FRAME;
        let page = memory.special(special::GRANTS + frame as usize).filter(|_| frame < self.frames)?;
        Some(Entry { page, offset: (grant.0 % PER_FRAME) as usize * 8 })
    }

    /// The page that a guest granted itself, for a copy that is made at once.
    ///
    /// # Errors
    /// [`OwnGrant`].
    pub fn own(
        &self,
        memory: &GuestMemory,
        grant: GrantRef,
        domid: u16,
        want: Want,
    ) -> Result<Page, OwnGrant> {
        let entry = self.entry(memory, grant).ok_or(OwnGrant::NoEntry)?;
        let entry = entry.page.u64(entry.offset);
        let allowed = u32::from(domid) << 16 | u32::from(PERMIT_ACCESS);
        if entry as u32 & decisive(want) != allowed {
            return Err(OwnGrant::Refused);
        }
        memory.page(Gfn(entry >> 32)).ok_or(OwnGrant::NoPage)
    }

    /// Takes a granted page into use.
    ///
    /// # Errors
    /// [`BadGrant`].
    #[inline]
    pub fn acquire(&self, memory: &GuestMemory, grant: GrantRef, want: Want) -> Result<Granted, BadGrant> {
        if grant.0 / PER_FRAME >= self.frames {
            return Err(BadGrant);
        }
        let entry = memory.special(special::GRANTS + (grant.0 / PER_FRAME) as usize).ok_or(BadGrant)?;
        let offset = (grant.0 % PER_FRAME) as usize * 8;
        let marks = if want == Want::Write { READING | WRITING } else { READING };
        // The guest may change the entry meanwhile; a bounded number of attempts is plenty for an honest one.
        for _ in 0..4 {
            let header = entry.u32(offset);
            if !allows(header, want) {
                return Err(BadGrant);
            }
            if entry.replace_u32(offset, header, header | u32::from(marks)) {
                let gfn = Gfn(u64::from(entry.u32(offset + 4)));
                let granted = memory.page(gfn).map(|page| Granted { page, entry, offset, marks });
                if granted.is_none() {
                    entry.and_u16(offset, !marks);
                }
                return granted.ok_or(BadGrant);
            }
        }
        Err(BadGrant)
    }

    /// The table for look-ups of grants for copies that are made before the guest gets the answer that ends the
    /// grants' use.
    #[inline]
    pub fn view<'a>(&self, memory: &'a GuestMemory, want: Want) -> View<'a> {
        let entries = memory.special_words(special::GRANTS, self.frames as usize);
        View { memory: memory.lookup(), entries, decisive: decisive(want) }
    }

    /// Ends the use of a granted page.
    #[inline]
    pub fn release(&self, granted: Granted) {
        granted.entry.and_u16(granted.offset, !granted.marks);
    }
}

#[cfg(test)]
pub mod tests {
    //! Helpers for the devices' tests, and the table's own.
    use super::*;
    use crate::memory::tests::fake;
    pub use crate::testing::{flags, permit};

    #[test]
    fn a_grant_is_marked_while_in_use() {
        let memory = fake(4);
        let table = GrantTable::default();
        permit(&memory, 8, 2, false);
        let granted = table.acquire(&memory, GrantRef(8), Want::Write).unwrap();
        assert_eq!(flags(&memory, 8), 1 | 8 | 16);
        granted.page.set_u64(0, 5);
        assert_eq!(memory.page(Gfn(2)).unwrap().u64(0), 5);
        table.release(granted);
        assert_eq!(flags(&memory, 8), 1);
    }

    #[test]
    fn what_was_not_granted_is_refused() {
        let memory = fake(4);
        let table = GrantTable::default();
        let acquire = |grant, want| {
            let for_copy = table.view(&memory, want).page(GrantRef(grant)).map(|_| ());
            assert_eq!(for_copy, table.acquire(&memory, GrantRef(grant), want).map(|_| ()));
            for_copy
        };
        assert_eq!(acquire(8, Want::Read), Err(BadGrant));
        permit(&memory, 8, 2, true);
        assert_eq!(acquire(8, Want::Read), Ok(()));
        assert_eq!(acquire(8, Want::Write), Err(BadGrant));
        permit(&memory, 9, 0x7fff_ffff, false);
        assert_eq!(acquire(9, Want::Read), Err(BadGrant));
        assert_eq!(flags(&memory, 9), 1, "the mark of a failed acquisition is taken back");
        permit(&memory, 10, 2, false);
        memory.special(special::GRANTS).unwrap().set_u16(10 * 8 + 2, 7);
        assert_eq!(acquire(10, Want::Read), Err(BadGrant), "granted to another domain");
        assert_eq!(acquire(512, Want::Read), Err(BadGrant), "beyond the table's only frame");
        assert_eq!(acquire(u32::MAX, Want::Read), Err(BadGrant));
    }

    #[test]
    fn a_grant_for_a_copy_leaves_no_mark() {
        let memory = fake(4);
        let table = GrantTable::default();
        permit(&memory, 8, 2, false);
        table.view(&memory, Want::Write).page(GrantRef(8)).unwrap().set_u64(8, 7);
        assert_eq!((memory.page(Gfn(2)).unwrap().u64(8), flags(&memory, 8)), (7, 1));
    }

    #[test]
    fn the_table_grows_to_its_limit() {
        let mut table = GrantTable::default();
        assert_eq!(table.frame(3), Some(special::GRANTS + 3));
        assert_eq!(table.frames(), 4);
        assert_eq!(table.frame(u64::from(FRAMES_MAX)), None);
        assert!(special::GRANTS + FRAMES_MAX as usize <= crate::memory::SPECIALS);
    }
}
