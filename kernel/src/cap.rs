//! Capabilities: what a domain may name, and the tree that says from what each one was derived.
//!
//! A slot is 64 bytes in a table of donated frames. Lookup is one bounds check and one load. The tree of
//! derivations is a doubly linked list in preorder, with each node's depth: a node's descendants are the
//! nodes after it that lie deeper. So moving is O(1), and revoking is deleting the next node until it
//! is no deeper.
//!
//! Invariants: an *owned* `Frames` node has depth 0 and overlaps no other owned node; an object's owned
//! node is the only child of the frames that it lives in; deleting a node first deletes its descendants.
//! Changes happen with the tree lock held (see `syscall`); a lookup only reads.

use core::cell::Cell;

use proto::abi::{Error, ObjectType, rights};

use crate::object::Object;

/// `Cap::flags`: frames not shared with anybody, or the capability whose deletion destroys the object.
pub const OWNED: u8 = 1;
/// Frames: an object or page tables live in them.
pub const DONATED: u8 = 2;
/// The kernel holds a pointer to this slot: it can be neither moved nor deleted before its dependant is.
pub const PINNED: u8 = 4;
/// Frames: not RAM.
pub const DEVICE: u8 = 8;

/// `Cap::may`: an event that may be signalled.
pub const MAY_SIGNAL: u8 = 2;
/// `Cap::may`: an event that may be waited on.
pub const MAY_WAIT: u8 = 4;
/// `Cap::may`: a vCPU that may be run.
pub const MAY_RUN: u8 = 8;

/// A slot of a capability table.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Cap {
    kind: Cell<u8>,
    /// Kind and rights in the form that the fast system calls test: [`MAY_SIGNAL`], [`MAY_WAIT`], [`MAY_RUN`].
    may: Cell<u8>,
    /// [`OWNED`], [`DONATED`], [`PINNED`], [`DEVICE`].
    pub flags: Cell<u8>,
    /// `abi::rights`.
    rights: Cell<u8>,
    depth: Cell<u8>,
    /// Frames, ports, interrupt lines: how many.
    pub count: Cell<u32>,
    prev: Cell<Option<&'static Cap>>,
    next: Cell<Option<&'static Cap>>,
    /// Frames, ports, interrupt lines: the first one. Objects: the address.
    pub base: Cell<u64>,
    /// Events: signals that the capability sets. Mapped frames: the address.
    pub aux: Cell<u64>,
    /// Mapped or donated: the space (see `space::SpaceRef`); 0: none.
    pub space: Cell<u64>,
    /// Donated to a space: the next such capability.
    pub link: Cell<Option<&'static Cap>>,
}

const _: () = assert!(size_of::<Cap>() == 64);

impl Cap {
    /// What it names.
    #[inline(always)]
    pub fn kind(&self) -> u8 {
        self.kind.get()
    }

    /// Nothing is named.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.kind.get() == ObjectType::Empty as u8
    }

    /// Rights, see `abi::rights`.
    pub fn rights(&self) -> u64 {
        u64::from(self.rights.get())
    }

    /// It is of the kind and has the right that one of the `MAY_` constants stands for.
    #[inline(always)]
    pub fn may(&self, what: u8) -> bool {
        self.may.get() & what != 0
    }

    /// All of `flags` are set.
    pub fn has(&self, flags: u8) -> bool {
        self.flags.get() & flags == flags
    }

    /// Sets flags.
    pub fn set(&self, flags: u8) {
        self.flags.set(self.flags.get() | flags);
    }

    /// Clears flags.
    pub fn clear(&self, flags: u8) {
        self.flags.set(self.flags.get() & !flags);
    }

    /// Checks type and rights.
    ///
    /// # Errors
    /// `BadSlot` when empty, `WrongType`, `NoRight`.
    #[inline(always)]
    pub fn require(&self, kind: ObjectType, rights: u64) -> Result<(), Error> {
        if self.kind.get() != kind as u8 {
            return Err(if self.is_empty() { Error::BadSlot } else { Error::WrongType });
        }
        if u64::from(self.rights.get()) & rights != rights {
            return Err(Error::NoRight);
        }
        Ok(())
    }

    /// The object that it names.
    ///
    /// # Errors
    /// As [`Self::require`].
    #[inline(always)]
    pub fn object<T: Object>(&self, rights: u64) -> Result<&'static T, Error> {
        self.require(T::KIND, rights)?;
        Ok(crate::object::from_address(self.base.get()))
    }

    /// Something was derived from it, or lives in it.
    pub fn has_children(&self) -> bool {
        self.next.get().is_some_and(|next| next.depth.get() > self.depth.get())
    }

    /// The last-derived child, if any.
    pub fn first_child(&self) -> Option<&'static Cap> {
        self.next.get().filter(|next| next.depth.get() > self.depth.get())
    }

    /// The node whose direct child this is.
    pub fn parent(&self) -> Option<&'static Cap> {
        let mut node = self.prev.get();
        while let Some(previous) = node {
            if previous.depth.get() < self.depth.get() {
                return Some(previous);
            }
            node = previous.prev.get();
        }
        None
    }

    /// Fills an empty slot as a root of the tree.
    pub fn fill_root(&'static self, kind: ObjectType, base: u64, count: u32, rights: u64) {
        self.set_fields(kind, base, count, rights);
        self.depth.set(0);
        self.prev.set(None);
        self.next.set(None);
    }

    /// Fills an empty slot as a child of `parent`.
    ///
    /// # Errors
    /// `BadArgument` when the tree would get too deep.
    pub fn fill_child(
        &'static self,
        parent: &'static Cap,
        kind: ObjectType,
        base: u64,
        count: u32,
        rights: u64,
    ) -> Result<(), Error> {
        let depth = parent.depth.get().checked_add(1).ok_or(Error::BadArgument)?;
        self.set_fields(kind, base, count, rights);
        self.depth.set(depth);
        self.link_after(parent);
        Ok(())
    }

    /// Fills an empty slot as a sibling of `other`, which has no children.
    pub fn fill_sibling(&'static self, other: &'static Cap, base: u64, count: u32) {
        self.set_fields(ObjectType::Empty, base, count, u64::from(other.rights.get()));
        self.set_kind(other.kind.get());
        self.flags.set(other.flags.get());
        self.depth.set(other.depth.get());
        self.link_after(other);
    }

    fn set_fields(&self, kind: ObjectType, base: u64, count: u32, rights: u64) {
        self.flags.set(0);
        self.rights.set(rights as u8);
        self.count.set(count);
        self.base.set(base);
        self.aux.set(0);
        self.space.set(0);
        self.link.set(None);
        self.set_kind(kind as u8);
    }

    /// Sets the kind, and what follows from it and the rights.
    fn set_kind(&self, kind: u8) {
        let has = |right, what| if u64::from(self.rights.get()) & right != 0 { what } else { 0 };
        self.may.set(if kind == ObjectType::Event as u8 {
            has(rights::SIGNAL, MAY_SIGNAL) | has(rights::WAIT, MAY_WAIT)
        } else if kind == ObjectType::Vcpu as u8 {
            has(rights::CONTROL, MAY_RUN)
        } else {
            0
        });
        self.kind.set(kind);
    }

    fn link_after(&'static self, node: &'static Cap) {
        let next = node.next.replace(Some(self));
        self.prev.set(Some(node));
        self.next.set(next);
        if let Some(next) = next {
            next.prev.set(Some(self));
        }
    }

    /// Takes a node without descendants out of the tree and empties the slot.
    pub fn remove(&self) {
        if let Some(prev) = self.prev.get() {
            prev.next.set(self.next.get());
        }
        if let Some(next) = self.next.get() {
            next.prev.set(self.prev.get());
        }
        self.prev.set(None);
        self.next.set(None);
        self.set_kind(ObjectType::Empty as u8);
        self.flags.set(0);
        self.space.set(0);
        self.link.set(None);
    }

    /// Moves the node, its place in the tree included, to an empty slot.
    pub fn move_to(&'static self, to: &'static Cap) {
        to.set_fields(ObjectType::Empty, self.base.get(), self.count.get(), u64::from(self.rights.get()));
        to.flags.set(self.flags.get());
        to.aux.set(self.aux.get());
        to.space.set(self.space.get());
        to.depth.set(self.depth.get());
        to.prev.set(self.prev.get());
        to.next.set(self.next.get());
        to.set_kind(self.kind.get());
        if let Some(prev) = to.prev.get() {
            prev.next.set(Some(to));
        }
        if let Some(next) = to.next.get() {
            next.prev.set(Some(to));
        }
        self.prev.set(None);
        self.next.set(None);
        self.remove();
    }
}

/// A capability table: the slots that a domain's frames hold.
pub type Table = [Cap];

/// A slot of a table by its number as a caller gives it. Slot 0 is always empty: nobody may fill it, so
/// that only who fills slots has to look for it.
///
/// # Errors
/// `BadSlot`.
#[inline(always)]
pub fn slot(table: &'static Table, number: u64) -> Result<&'static Cap, Error> {
    table.get(number as usize).ok_or(Error::BadSlot)
}
