//! What domains and VMs have in common: page tables, the frames for them, and an identity that
//! capabilities can hold without a dangling pointer.
//!
//! A mapped or donated frames capability refers to its space by index and generation in a fixed table.
//! When the space is destroyed the generation changes, and every reference to it reads as "none".

use core::cell::Cell;

use proto::abi::Error;

use crate::cap::{Cap, DONATED, PINNED};
use crate::memory::{Pfn, Shared};
use crate::page_table::{Conflict, FramePool, PageTable};

/// Most spaces that exist at a time.
const SPACES_MAX: usize = 4096;

#[derive(Debug)]
struct Entry {
    space: Cell<Option<&'static Space>>,
    generation: Cell<u32>,
    next_free: Cell<u32>,
}

/// Changed only with the tree lock held.
static SPACES: Shared<[Entry; SPACES_MAX]> = Shared(
    [const { Entry { space: Cell::new(None), generation: Cell::new(0), next_free: Cell::new(0) } };
        SPACES_MAX],
);
/// First free entry + 1 of those given back, and how many were ever used. Tree lock.
static FREE: Shared<(Cell<u32>, Cell<u32>)> = Shared((Cell::new(0), Cell::new(0)));

/// A space's identity, as a capability stores it: generation and index + 1; 0 is "none".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpaceRef(u64);

impl SpaceRef {
    /// As stored in `Cap::space`.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The space that a capability's `space` field names, unless it was destroyed.
    pub fn find(raw: u64) -> Option<&'static Space> {
        let index = (raw as u32).checked_sub(1)?;
        let entry = SPACES.0.get(index as usize)?;
        if u64::from(entry.generation.get()) == raw >> 32 { entry.space.get() } else { None }
    }
}

/// Whose tables these are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpaceKind {
    /// A domain's virtual addresses.
    Domain,
    /// A VM's guest-physical addresses.
    Vm,
}

/// The part that a domain and a VM share.
#[derive(Debug)]
#[repr(C)]
pub struct Space {
    /// Level-4 table.
    pub root: Pfn,
    /// Whose.
    pub kind: SpaceKind,
    /// Frames for page tables.
    pub pool: FramePool,
    donations: Cell<Option<&'static Cap>>,
    identity: Cell<u64>,
    /// Raised when something was unmapped or replaced: a CPU that ran with an older number flushes.
    pub unmap_count: Cell<u64>,
}

impl Space {
    /// A space with an empty root.
    pub const fn new(root: Pfn, kind: SpaceKind) -> Self {
        Self {
            root,
            kind,
            pool: FramePool::new(),
            donations: Cell::new(None),
            identity: Cell::new(0),
            unmap_count: Cell::new(0),
        }
    }

    /// Enters the space into the table of identities.
    ///
    /// # Errors
    /// `NoMemory` when there are too many spaces.
    pub fn register(&'static self) -> Result<(), Error> {
        let (free, used) = (&FREE.0.0, &FREE.0.1);
        let index = if free.get() != 0 {
            let index = free.get() - 1;
            free.set(SPACES.0[index as usize].next_free.get());
            index
        } else if (used.get() as usize) < SPACES_MAX {
            used.set(used.get() + 1);
            used.get() - 1
        } else {
            return Err(Error::NoMemory);
        };
        let entry = &SPACES.0[index as usize];
        entry.space.set(Some(self));
        self.identity.set(u64::from(entry.generation.get()) << 32 | u64::from(index + 1));
        Ok(())
    }

    /// Its identity.
    pub fn reference(&self) -> SpaceRef {
        SpaceRef(self.identity.get())
    }

    /// Takes an owned run as frames for tables; the capability is pinned until the space is destroyed.
    pub fn donate(&self, cap: &'static Cap) {
        for n in 0..u64::from(cap.count.get()) {
            self.pool.give(Pfn(cap.base.get()).offset(n));
        }
        cap.set(DONATED | PINNED);
        cap.space.set(self.identity.get());
        cap.link.set(self.donations.replace(Some(cap)));
    }

    /// Gives the frames for tables back to their capabilities and makes every reference stale.
    pub fn dissolve(&self) {
        let mut next = self.donations.take();
        while let Some(cap) = next {
            next = cap.link.take();
            cap.clear(DONATED | PINNED);
            cap.space.set(0);
        }
        let Some(index) = (self.identity.get() as u32).checked_sub(1) else { return };
        let entry = &SPACES.0[index as usize];
        entry.space.set(None);
        entry.generation.set(entry.generation.get().wrapping_add(1));
        entry.next_free.set(FREE.0.0.replace(index + 1));
        self.identity.set(0);
    }

    /// Its page tables.
    pub fn tables(&self) -> PageTable<'_> {
        let conflict = match self.kind {
            SpaceKind::Domain => Conflict::Refuse,
            SpaceKind::Vm => Conflict::Replace,
        };
        PageTable { root: self.root, pool: &self.pool, conflict, largest_leaf: crate::arch::largest_leaf() }
    }
}
