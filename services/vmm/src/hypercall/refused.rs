//! Hypercalls that are for others: who administers the machine, who emulates devices, paravirtualised guests. Each
//! has its refusal, found in the order of Xen's checks.
//!
//! Sources: include/hypercall-defs.c for what an HVM guest has at all; common/{sysctl,domctl,dm,hypfs,domain}.c,
//! arch/x86/{platform_hypercall,mm}.c, arch/x86/cpu/vpmu.c, include/xsm/dummy.h.

use super::domid::{BACKEND, SELF};
use super::{Call, Field, number};
use crate::errno::{Answer, Errno};
use crate::machine::Platform;

/// Versions of the interfaces that Xen 4.17's tools use.
const PLATFORM_VERSION: u32 = 0x0300_0001;
const SYSCTL_VERSION: u32 = 0x15;
const DOMCTL_VERSION: u32 = 0x15;
/// Domain IDs from here on are names.
const FIRST_RESERVED: u16 = 0x7ff0;
/// The names of the domains that have the machine's devices and Xen's own memory.
const IO: u16 = 0x7ff1;
/// Sub-operations of domctl that do not need a domain.
const CREATE_DOMAIN: u32 = 1;
const GET_DOMAIN_INFO: u32 = 5;
/// Buffers of a dm_op.
const BUFFERS_MAX: u32 = 3;

#[cold]
pub(super) fn call<P: Platform>(call: &mut Call<'_, P>, number: u64) -> Answer {
    let [first, _, third, fourth, _] = call.args;
    match number {
        number::PLATFORM_OP => administer(call, first, PLATFORM_VERSION),
        number::SYSCTL => administer(call, first, SYSCTL_VERSION),
        number::DOMCTL | number::PAGING_DOMCTL_CONT => domctl(call, first),
        number::MMUEXT_OP => mmuext(fourth as u16),
        number::XENPMU_OP => Err(Errno::NotSupported),
        number::DM_OP => emulate_devices(call, first as u16, third),
        number::HYPFS_OP => Err(Errno::Perm),
        _ => Err(Errno::NoSys),
    }
}

/// `{u32 operation, u32 version, 128 bytes}`.
fn administer<P: Platform>(call: &Call<'_, P>, argument: u64, version: u32) -> Answer {
    let request: [u8; 136] = call.read(argument)?;
    Err(if request.u32_at(4) == version { Errno::Perm } else { Errno::Access })
}

/// `{u32 operation, u32 version, u16 domid, 128 bytes}`.
fn domctl<P: Platform>(call: &Call<'_, P>, argument: u64) -> Answer {
    let request: [u8; 144] = call.read(argument)?;
    if request.u32_at(4) != DOMCTL_VERSION {
        return Err(Errno::Access);
    }
    let (operation, domid) = (request.u32_at(0), request.u16_at(8));
    Err(match call.refuse_remote(domid, Errno::Perm) {
        _ if operation == CREATE_DOMAIN => Errno::Perm,
        Errno::Search if operation == GET_DOMAIN_INFO => {
            if domid >= FIRST_RESERVED {
                Errno::Invalid
            } else {
                Errno::Perm
            }
        }
        errno => errno,
    })
}

/// Page tables of paravirtualised guests; its own number does not name the caller here.
fn mmuext(domid: u16) -> Answer {
    Err(match domid {
        SELF => Errno::Invalid,
        BACKEND | IO => Errno::Perm,
        _ => Errno::Search,
    })
}

/// dm_op: domid, count, `{handle, ulong len}` of each buffer.
fn emulate_devices<P: Platform>(call: &Call<'_, P>, domid: u16, buffers: u64) -> Answer {
    let count = call.word(1);
    if count == 0 {
        return Err(Errno::NoData);
    }
    if count > BUFFERS_MAX {
        return Err(Errno::TooBig);
    }
    let mut descriptions = [0; 16 * BUFFERS_MAX as usize];
    let len = count as usize * call.by_width(16, 8);
    let descriptions = descriptions.get_mut(..len).unwrap_or(&mut []);
    call.paging.read(&call.machine.guest.memory, buffers, descriptions)?;
    Err(call.refuse_remote(domid, Errno::Invalid))
}
