//! vcpu_op and set_timer_op: areas that a vCPU shares, and its timer.
//!
//! VCPUOP_stop_periodic_timer is refused on purpose: Linux then sets its timer by set_timer_op, one call
//! where the vcpu_op timer takes three. Source: Xen public/vcpu.h.

use super::{Call, Field};
use crate::errno::{Answer, Errno};
use crate::machine::Platform;
use crate::memory::Gfn;

const GET_RUNSTATE: u64 = 4;
const IS_UP: u64 = 3;
const REGISTER_RUNSTATE: u64 = 5;
const SET_SINGLESHOT: u64 = 8;
const STOP_SINGLESHOT: u64 = 9;
const REGISTER_VCPU_INFO: u64 = 10;
const REGISTER_TIME: u64 = 13;

pub(super) fn call<P: Platform>(call: &mut Call<'_, P>) -> Answer {
    let [operation, vcpu, argument, ..] = call.args;
    // There is one vCPU yet, and it is the caller.
    if vcpu != u64::from(call.vcpu.id) {
        return Err(Errno::NoEntry);
    }
    match operation {
        IS_UP => return Ok(1),
        SET_SINGLESHOT => {
            let request: [u8; 16] = call.read_sized(argument, 12)?;
            call.machine.set_timer(call.vcpu, request.u64_at(0));
        }
        STOP_SINGLESHOT => call.vcpu.timer = 0,
        REGISTER_VCPU_INFO => register_vcpu_info(call, argument)?,
        REGISTER_RUNSTATE => {
            let area: [u8; 8] = call.read_sized(argument, 4)?;
            write_runstate(call, area.u64_at(0))?;
        }
        GET_RUNSTATE => write_runstate(call, argument)?,
        REGISTER_TIME => {
            let area: [u8; 8] = call.read_sized(argument, 4)?;
            let area = area.u64_at(0);
            let info = call.guest().clock.time_info();
            call.write(area, &info)?;
        }
        _ => return Err(Errno::NoSys),
    }
    Ok(0)
}

fn register_vcpu_info<P: Platform>(call: &mut Call<'_, P>, argument: u64) -> Result<(), Errno> {
    let request: [u8; 16] = call.read(argument)?;
    let (gfn, offset) = (Gfn(request.u64_at(0)), request.u32_at(8) as usize);
    let page = call.guest().memory.page(gfn).ok_or(Errno::Invalid)?;
    let vcpu = call.vcpu.id as usize;
    call.guest().events.register_vcpu_info(vcpu, page, offset)
}

/// A runstate of "has been running ever since", which Linux reads as no stolen time.
fn write_runstate<P: Platform>(call: &Call<'_, P>, area: u64) -> Result<(), Errno> {
    let mut info = [0; 48];
    let now = call.machine.now_ns();
    // 64-bit words are 4-byte aligned in 32-bit layouts.
    let (first, len) = call.by_width((8, 48), (4, 44));
    for at in [first, first + 8] {
        if let Some(field) = info.get_mut(at..at + 8) {
            field.copy_from_slice(&now.to_le_bytes());
        }
    }
    call.write(area, info.get(..len).unwrap_or(&[]))
}

/// set_timer_op: absolute system time, 0 cancels.
pub(super) fn set_timer<P: Platform>(call: &mut Call<'_, P>) -> Answer {
    let [low, high, ..] = call.args;
    let until_ns = call.by_width(low, high << 32 | low);
    if until_ns == 0 {
        call.vcpu.timer = 0;
    } else {
        // A time in the past fires at once.
        call.machine.set_timer(call.vcpu, until_ns);
    }
    Ok(0)
}
