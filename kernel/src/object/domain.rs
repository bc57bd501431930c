//! Domain: a ring-3 address space and a capability table.

use core::cell::Cell;

use proto::abi::{Error, ObjectType};

use super::ports::EnabledPorts;
use super::space::{Space, SpaceKind};
use super::thread::Thread;
use super::{Header, Object};
use crate::cap::{self, Cap};
use crate::memory::{Pfn, zero};

/// The object. Its frames: this structure, the level-4 table, the capability table.
#[derive(Debug)]
#[repr(C)]
pub struct Domain {
    header: Header,
    table: &'static [Cap],
    /// Page tables.
    pub space: Space,
    /// I/O ports that its threads may use.
    pub ports: EnabledPorts,
    /// First of its threads.
    pub threads: Cell<Option<&'static Thread>>,
}

impl Object for Domain {
    const KIND: ObjectType = ObjectType::Domain;
    fn header(&self) -> &Header {
        &self.header
    }
}

impl Domain {
    /// Frames that a domain with `slots` capability slots takes.
    pub const fn frames(slots: u64) -> u64 {
        2 + slots / proto::abi::SLOTS_PER_FRAME
    }

    /// Makes a domain in `frames(slots)` frames.
    ///
    /// # Errors
    /// `NoMemory` when there are too many spaces.
    #[expect(unsafe_code, reason = "the capability table lies in donated frames")]
    pub fn create(first: Pfn, slots: u64) -> Result<&'static Self, Error> {
        zero(first, Self::frames(slots));
        let root = first.offset(1);
        crate::arch::share_kernel_half(root);
        let table = first.offset(2).direct() as *const Cap;
        // SAFETY: the frames are the kernel's now and zero, which is an empty slot; nothing else refers to them.
        let table = unsafe { core::slice::from_raw_parts(table, slots as usize) };
        let domain = super::place(
            first,
            Self {
                header: Header::default(),
                table,
                space: Space::new(root, SpaceKind::Domain),
                ports: EnabledPorts::default(),
                threads: Cell::new(None),
            },
        );
        domain.space.register()?;
        Ok(domain)
    }

    /// The slot of its table.
    ///
    /// # Errors
    /// `BadSlot`.
    #[inline(always)]
    pub fn slot(&self, number: u64) -> Result<&'static Cap, Error> {
        cap::slot(self.table, number)
    }

    /// All of its slots.
    pub fn slots(&self) -> &'static [Cap] {
        self.table
    }
}
