//! Vm: a guest-physical address space.

use core::cell::Cell;

use proto::abi::{Error, ObjectType};

use super::space::{Space, SpaceKind};
use super::vcpu::Vcpu;
use super::{Header, Object};
use crate::memory::{Pfn, zero};

/// The object. Its frames: this structure, the level-4 nested table.
#[derive(Debug)]
#[repr(C)]
pub struct Vm {
    header: Header,
    /// Nested page tables.
    pub space: Space,
    /// First of its vCPUs.
    pub vcpus: Cell<Option<&'static Vcpu>>,
}

impl Object for Vm {
    const KIND: ObjectType = ObjectType::Vm;
    fn header(&self) -> &Header {
        &self.header
    }
}

impl Vm {
    /// Frames of a VM.
    pub const FRAMES: u64 = 2;

    /// Makes a VM in [`Self::FRAMES`] frames.
    ///
    /// # Errors
    /// `NoMemory` when there are too many spaces.
    pub fn create(first: Pfn) -> Result<&'static Self, Error> {
        zero(first, Self::FRAMES);
        let vm = super::place(
            first,
            Self {
                header: Header::default(),
                space: Space::new(first.offset(1), SpaceKind::Vm),
                vcpus: Cell::new(None),
            },
        );
        vm.space.register()?;
        Ok(vm)
    }
}
