//! Kernel objects: what a capability can name.
//!
//! An object lives at the start of frames that its creator donated, is reached through the direct map,
//! and keeps its state in cells and atomics: the kernel only ever holds shared references to it. It
//! stays valid until its owned capability is deleted, which first empties every capability derived from
//! that one and every pointer that another object holds.

pub mod domain;
pub mod event;
pub mod irq;
pub mod ports;
pub mod space;
pub mod thread;
pub mod vcpu;
pub mod vm;

use core::cell::Cell;

use proto::abi::ObjectType;

use crate::cap::Cap;
use crate::memory::Pfn;

/// What every object starts with.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Header {
    /// The owned capability.
    pub cap: Cell<Option<&'static Cap>>,
}

/// A type of object.
pub trait Object: 'static {
    /// Its number.
    const KIND: ObjectType;
    /// Its header.
    fn header(&self) -> &Header;
}

/// The object at an address that an owned capability of its type named.
#[inline(always)]
#[expect(unsafe_code, reason = "objects live in donated frames, reached through the direct map")]
pub fn from_address<T: Object>(address: u64) -> &'static T {
    // SAFETY: only capabilities of T's kind carry such an address, `place` put a T there, and the object
    // is destroyed only after all of its capabilities.
    unsafe { &*(address as *const T) }
}

/// Puts an object into the first of its frames.
#[expect(unsafe_code, reason = "objects live in donated frames, reached through the direct map")]
pub fn place<T: Object>(frame: Pfn, object: T) -> &'static T {
    const { assert!(size_of::<T>() <= 4096) };
    let at = frame.direct() as *mut T;
    // SAFETY: the frame was owned, unmapped and without children, and is now the kernel's alone.
    unsafe {
        at.write(object);
        &*at
    }
}
