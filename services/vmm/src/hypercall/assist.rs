//! vm_assist: how the hypervisor behaves towards the guest.
//!
//! The one type that an HVM guest may name is the flag in runstate areas that are being updated; what it is for
//! cannot be seen here, see [`crate::runstate`]. Source: Xen public/xen.h, common/domain.c (do_vm_assist).

use super::Call;
use crate::errno::{Answer, Errno};
use crate::machine::Platform;

const ENABLE: u32 = 0;
const DISABLE: u32 = 1;
const RUNSTATE_UPDATE_FLAG: u32 = 5;

pub(super) fn call<P: Platform>(call: &Call<'_, P>) -> Answer {
    match (call.word(0), call.word(1)) {
        (ENABLE | DISABLE, RUNSTATE_UPDATE_FLAG) => Ok(0),
        (_, RUNSTATE_UPDATE_FLAG) => Err(Errno::NoSys),
        _ => Err(Errno::Invalid),
    }
}
