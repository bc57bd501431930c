//! vcpu_op and set_timer_op: starting and stopping vCPUs, areas that they share, and their timers.
//!
//! VCPUOP_stop_periodic_timer is refused on purpose, unless there is one to stop: Linux then sets its timer by
//! set_timer_op, one call where the vcpu_op timer takes three. Not offered, as before Xen 4.18: areas
//! by physical address. Sources: Xen public/vcpu.h, common/domain.c (common_vcpu_op), arch/x86/domain.c (do_vcpu_op),
//! common/sched/core.c (do_set_timer_op).

use alloc::boxed::Box;

use proto::toolstack::EndReason;

use super::target::is_up;
use super::{Call, Done, Field, context};
use crate::apic::Delivery;
use crate::errno::{Answer, Errno};
use crate::events::VIRQ_TIMER;
use crate::machine::{Outcome, Platform, Start, Wait, sentence};
use crate::memory::Gfn;
use crate::runstate::Area;

const INITIALISE: u32 = 0;
const UP: u32 = 1;
const DOWN: u32 = 2;
const IS_UP: u32 = 3;
const GET_RUNSTATE: u32 = 4;
const REGISTER_RUNSTATE: u32 = 5;
const SET_PERIODIC: u32 = 6;
const STOP_PERIODIC: u32 = 7;
const SET_SINGLESHOT: u32 = 8;
const STOP_SINGLESHOT: u32 = 9;
const REGISTER_VCPU_INFO: u32 = 10;
const SEND_NMI: u32 = 11;
const GET_PHYSID: u32 = 12;
const REGISTER_TIME: u32 = 13;

/// VCPU_SSHOTTMR_future: refuse a time that has passed.
const FUTURE: u32 = 1;
/// Shortest and longest period.
const PERIOD_NS: core::ops::RangeInclusive<u64> = 1_000_000..=u64::MAX >> 2;
/// set_timer_op takes a time that is further away than this, or negative, for a mistake.
const HUGE_NS: u64 = 1 << 50;
/// When the timer fires then.
const HUGE_FIRES_NS: u64 = 100_000_000;

pub(super) fn call<P: Platform>(call: &mut Call<'_, P>) -> Done {
    let [_, _, argument, ..] = call.args;
    let (operation, id) = (call.word(0), call.word(1));
    let answer = match call.target(id) {
        Err(errno) => Err(errno),
        Ok(_) if operation == DOWN => return down(call, id),
        Ok(_) => serve(call, operation, id, argument),
    };
    Done::Answer(answer)
}

fn serve<P: Platform>(call: &mut Call<'_, P>, operation: u32, id: u32, argument: u64) -> Answer {
    match operation {
        INITIALISE => initialise(call, id, argument)?,
        UP => up(call, id)?,
        IS_UP => return Ok(is_up(call.target(id)?).into()),
        GET_RUNSTATE => write_runstate(call, id, argument)?,
        REGISTER_RUNSTATE => {
            let linear = handle(call, argument)?;
            let area = Area { linear, width: call.width };
            call.target(id)?.runstate.register(area);
            // Whether it can be written now is not the caller's error.
            let _ = write_runstate(call, id, linear);
        }
        SET_PERIODIC => {
            let period_ns = u64::from_le_bytes(call.read(argument)?);
            if !PERIOD_NS.contains(&period_ns) {
                return Err(Errno::Invalid);
            }
            let now_ns = call.machine.now_ns();
            let vcpu = call.target(id)?;
            (vcpu.periodic_ns, vcpu.has_news) = ((period_ns, now_ns), true);
        }
        STOP_PERIODIC => {
            let vcpu = call.target(id)?;
            if vcpu.periodic_ns.0 == 0 {
                return Err(Errno::NoSys);
            }
            vcpu.periodic_ns = (0, 0);
        }
        SET_SINGLESHOT => {
            is_caller(call, id)?;
            set_singleshot(call, argument)?;
        }
        STOP_SINGLESHOT => {
            is_caller(call, id)?;
            call.vcpu.timer = 0;
        }
        REGISTER_VCPU_INFO => register_vcpu_info(call, id, argument)?,
        SEND_NMI if argument != 0 => return Err(Errno::Invalid),
        SEND_NMI => {
            let vcpu = call.target(id)?;
            vcpu.apic.receive(Delivery::Nmi);
            vcpu.has_news = true;
            call.vcpu.has_news = true;
        }
        // Only vCPUs that are pinned for good have one.
        GET_PHYSID => return Err(Errno::Invalid),
        REGISTER_TIME => {
            let area = handle(call, argument)?;
            let tsc = call.machine.tsc_of(call.vcpu, id);
            let info = call.guest().clock.time_info(2, tsc);
            let _ = call.write(area, &info);
            call.target(id)?.time_area = Some(area);
        }
        _ => return Err(Errno::NoSys),
    }
    Ok(0)
}

fn is_caller<P: Platform>(call: &Call<'_, P>, id: u32) -> Result<(), Errno> {
    if id == call.vcpu.id { Ok(()) } else { Err(Errno::Invalid) }
}

/// The address of an area to register.
fn handle<P: Platform>(call: &Call<'_, P>, argument: u64) -> Result<u64, Errno> {
    let area: [u8; 8] = call.read_sized(argument, 4)?;
    Ok(area.u64_at(0))
}

/// Says how a vCPU that never ran is to start.
fn initialise<P: Platform>(call: &mut Call<'_, P>, id: u32, argument: u64) -> Result<(), Errno> {
    let request: [u8; context::LEN] = call.read(argument)?;
    if call.target(id)?.is_initialised {
        return Err(Errno::Exists);
    }
    let state = Box::new(context::state(&request)?);
    let vcpu = call.target(id)?;
    (vcpu.prepared, vcpu.is_initialised) = (Some(state), true);
    Ok(())
}

/// Lets a vCPU that is down start, or go on where it stopped.
fn up<P: Platform>(call: &mut Call<'_, P>, id: u32) -> Result<(), Errno> {
    let vcpu = call.target(id)?;
    if !vcpu.is_initialised {
        return Err(Errno::Invalid);
    }
    if !is_up(vcpu) {
        match vcpu.prepared.take() {
            Some(state) => vcpu.start = Some(Start::State(state)),
            None => vcpu.wait = Wait::None,
        }
        call.vcpu.has_news = true;
    }
    Ok(())
}

/// Stops a vCPU; the guest is off when no other one is up.
fn down<P: Platform>(call: &mut Call<'_, P>, id: u32) -> Done {
    if !call.is_another_up(id) {
        let what = sentence(format_args!("the guest stopped all its CPUs"));
        return Done::Then(Outcome::End(EndReason::PowerOff, what));
    }
    match call.target(id) {
        Ok(vcpu) => {
            // What it was to start as it is to start as when it comes up again.
            if let Some(Start::State(state)) = vcpu.start.take() {
                vcpu.prepared = Some(state);
            }
            vcpu.wait = Wait::Start;
        }
        Err(errno) => return Done::Answer(Err(errno)),
    }
    if id == call.vcpu.id { Done::Then(Outcome::Wait) } else { Done::Answer(Ok(0)) }
}

fn write_runstate<P: Platform>(call: &mut Call<'_, P>, id: u32, linear: u64) -> Result<(), Errno> {
    if id == call.vcpu.id {
        call.machine.account_now(call.vcpu);
    }
    let now_ns = call.machine.now_ns();
    let runstate = call.target(id)?.runstate.at(now_ns);
    let area = Area { linear, width: call.width };
    Ok(runstate.write(&call.machine.guest.memory, &call.paging, area)?)
}

fn set_singleshot<P: Platform>(call: &mut Call<'_, P>, argument: u64) -> Result<(), Errno> {
    let request: [u8; 16] = call.read_sized(argument, 12)?;
    let (until_ns, flags) = (request.u64_at(0), request.u32_at(8));
    if until_ns >= call.machine.now_ns() {
        call.machine.set_timer(call.vcpu, until_ns);
        return Ok(());
    }
    if flags & FUTURE != 0 {
        return Err(Errno::Time);
    }
    call.vcpu.timer = 0;
    call.machine.guest.events.raise_virq(VIRQ_TIMER, call.vcpu.id as usize);
    Ok(())
}

fn register_vcpu_info<P: Platform>(call: &mut Call<'_, P>, id: u32, argument: u64) -> Result<(), Errno> {
    let request: [u8; 16] = call.read(argument)?;
    let (gfn, offset) = (Gfn(request.u64_at(0)), request.u32_at(8) as usize);
    let page = call.guest().memory.page(gfn).ok_or(Errno::Invalid)?;
    call.guest().events.register_vcpu_info(id as usize, page, offset)?;
    // Whatever this page held before, the time in it is the guest's.
    let tsc = call.machine.tsc_of(call.vcpu, id);
    if let Some((page, offset)) = call.guest().events.time_info(id as usize) {
        call.guest().clock.write_time(&page, offset, tsc);
    }
    Ok(())
}

/// set_timer_op: absolute system time, 0 cancels; 32-bit callers pass it in two halves.
pub(super) fn set_timer<P: Platform>(call: &mut Call<'_, P>) -> Answer {
    let [low, high, ..] = call.args;
    let mut until_ns = call.by_width(low, high << 32 | low);
    if until_ns == 0 {
        call.vcpu.timer = 0;
        return Ok(0);
    }
    if until_ns >= HUGE_NS {
        let now_ns = call.machine.now_ns();
        if (until_ns as i64) < 0 || until_ns.saturating_sub(now_ns) >= HUGE_NS {
            until_ns = now_ns + HUGE_FIRES_NS;
        }
    }
    // A time in the past fires at once.
    call.machine.set_timer(call.vcpu, until_ns);
    Ok(0)
}
