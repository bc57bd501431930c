//! Vcpu: a virtual CPU of a VM, with a state page that it shares with its VMM.
//!
//! The VMCB stays the kernel's; what the VMM may decide is copied from the state page field by field.

use core::cell::Cell;

use proto::abi::{Error, ObjectType};

use super::thread::Thread;
use super::vm::Vm;
use super::{Header, Object};
use crate::arch::guest::GuestContext;
use crate::cap::{Cap, PINNED};
use crate::memory::{Pfn, zero};

/// The object. Its frames: this structure, then those of [`GuestContext`].
#[derive(Debug)]
#[repr(C)]
pub struct Vcpu {
    header: Header,
    /// Its VM, unless that was destroyed.
    pub vm: Cell<Option<&'static Vm>>,
    /// Next vCPU of the VM.
    pub next: Cell<Option<&'static Vcpu>>,
    /// The thread that is in `vcpu_run` with it.
    pub runner: Cell<Option<&'static Thread>>,
    /// Capability of the state page, pinned.
    state_cap: Cell<Option<&'static Cap>>,
    /// What the processor needs.
    pub context: GuestContext,
}

impl Object for Vcpu {
    const KIND: ObjectType = ObjectType::Vcpu;
    fn header(&self) -> &Header {
        &self.header
    }
}

impl Vcpu {
    /// Frames of a vCPU.
    pub const FRAMES: u64 = proto::abi::VCPU_FRAMES;

    /// Makes a vCPU in [`Self::FRAMES`] frames; `state` is the owned frame of its state page.
    ///
    /// # Errors
    /// `NotSupported` when the machine has no hardware virtualisation.
    pub fn create(first: Pfn, vm: &'static Vm, state: &'static Cap) -> Result<&'static Self, Error> {
        zero(first, Self::FRAMES);
        let context = GuestContext::new(first.offset(1), Pfn(state.base.get()), vm)?;
        let vcpu = super::place(
            first,
            Self {
                header: Header::default(),
                vm: Cell::new(Some(vm)),
                next: Cell::new(vm.vcpus.get()),
                runner: Cell::new(None),
                state_cap: Cell::new(Some(state)),
                context,
            },
        );
        vm.vcpus.set(Some(vcpu));
        state.set(PINNED);
        state.link.set(None);
        Ok(vcpu)
    }

    /// Before destruction: its VM, its runner and the state page forget it.
    pub fn dissolve(&'static self) {
        if let Some(vm) = self.vm.take() {
            let mut link = &vm.vcpus;
            while let Some(node) = link.get() {
                if core::ptr::eq(node, self) {
                    link.set(self.next.take());
                    break;
                }
                link = &node.next;
            }
        }
        if let Some(cap) = self.state_cap.take() {
            cap.clear(PINNED);
        }
        self.context.forget();
    }
}
