//! hvm_op: parameters. Source: Xen public/hvm/hvm_op.h, public/hvm/params.h.

use super::{Call, Field};
use crate::errno::{Answer, Errno};
use crate::loader::place::{CONSOLE_GFN, XENSTORE_GFN};
use crate::machine::Platform;

const SET_PARAM: u64 = 0;
const GET_PARAM: u64 = 1;

const CALLBACK_IRQ: u32 = 0;
const STORE_PFN: u32 = 1;
const STORE_EVTCHN: u32 = 2;
const CONSOLE_PFN: u32 = 17;
const CONSOLE_EVTCHN: u32 = 18;
/// Parameters end here.
const PARAMS: u32 = 39;
/// CALLBACK_IRQ's type "vector", in its top byte.
const BY_VECTOR: u64 = 2;
const FIRST_VECTOR: u8 = 16;

pub(super) fn call<P: Platform>(call: &mut Call<'_, P>) -> Answer {
    let [operation, argument, ..] = call.args;
    if operation != SET_PARAM && operation != GET_PARAM {
        return Err(Errno::NoSys);
    }
    let request: [u8; 16] = call.read(argument)?;
    let (index, value) = (request.u32_at(4), request.u64_at(8));
    if index >= PARAMS {
        return Err(Errno::Invalid);
    }
    if operation == SET_PARAM {
        return set(call, index, value);
    }
    let value = match index {
        STORE_PFN => XENSTORE_GFN.0,
        STORE_EVTCHN => u64::from(call.guest().store_port.0),
        CONSOLE_PFN => CONSOLE_GFN.0,
        CONSOLE_EVTCHN => u64::from(call.guest().console_port.0),
        _ => 0,
    };
    call.write(argument.wrapping_add(8), &value.to_le_bytes())?;
    Ok(0)
}

fn set<P: Platform>(call: &mut Call<'_, P>, index: u32, value: u64) -> Answer {
    if index != CALLBACK_IRQ {
        return Err(Errno::Perm);
    }
    let vector = value as u8;
    call.guest().callback = match value >> 56 {
        BY_VECTOR if vector >= FIRST_VECTOR => Some(vector),
        // No line and no PCI interrupt exists that could carry the upcall.
        0 if value == 0 => None,
        _ => return Err(Errno::Invalid),
    };
    // The guest will look at shared_info as the code that does this would.
    let layout = call.width.layout();
    call.guest().events.latch(layout);
    // An upcall may have been due all along.
    call.vcpu.has_news = true;
    Ok(0)
}
