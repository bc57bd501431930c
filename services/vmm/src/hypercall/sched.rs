//! sched_op: waiting, yielding, ending, and watchdogs.
//!
//! Refused as for any guest that controls no other: ending another domain, and pinning to a CPU.
//! Sources: Xen public/sched.h, common/sched/core.c (do_sched_op).

use super::{Call, Done, Field};
use crate::errno::{Answer, Errno};
use crate::events::Port;
use crate::machine::{Outcome, Platform, Wait};

const YIELD: u32 = 0;
const BLOCK: u32 = 1;
const SHUTDOWN: u32 = 2;
const POLL: u32 = 3;
const REMOTE_SHUTDOWN: u32 = 4;
const SHUTDOWN_CODE: u32 = 5;
const WATCHDOG: u32 = 6;
const PIN_OVERRIDE: u32 = 7;

/// Most ports of a poll.
const POLL_PORTS_MAX: u32 = 128;
const SECOND_NS: u64 = 1_000_000_000;
/// Offset of evtchn_upcall_mask in vcpu_info, before its time.
const UPCALL_MASK_BEFORE_TIME: usize = crate::events::TIME - 1;

pub(super) fn call<P: Platform>(call: &mut Call<'_, P>) -> Done {
    let [_, argument, ..] = call.args;
    let outcome = match call.word(0) {
        YIELD => Ok(Outcome::Yield),
        BLOCK => Ok(block(call)),
        SHUTDOWN => shutdown(call, argument),
        POLL => poll(call, argument),
        REMOTE_SHUTDOWN => return Done::Answer(remote_shutdown(call, argument)),
        SHUTDOWN_CODE => return Done::Answer(shutdown_code(call, argument)),
        WATCHDOG => return Done::Answer(watchdog(call, argument)),
        PIN_OVERRIDE => Err(Errno::Perm),
        _ => Err(Errno::NoSys),
    };
    match outcome {
        Ok(outcome) => Done::Then(outcome),
        Err(errno) => Done::Answer(Err(errno)),
    }
}

/// Waits for an event, with upcalls enabled.
fn block<P: Platform>(call: &mut Call<'_, P>) -> Outcome {
    if let Some((page, time)) = call.machine.guest.events.time_info(call.vcpu.id as usize) {
        page.set_u8(time - UPCALL_MASK_BEFORE_TIME, 0);
    }
    call.vcpu.wait = Wait::Interrupt;
    Outcome::Wait
}

/// Ends the guest, for the reason that was given in advance if there is one. All numbers are accepted.
fn shutdown<P: Platform>(call: &mut Call<'_, P>, argument: u64) -> Result<Outcome, Errno> {
    let [reason, ..]: [u8; 4] = call.read(argument)?;
    Ok(call.guest().shut_down(reason, None))
}

/// Says in advance why the guest will end; the first reason counts.
fn shutdown_code<P: Platform>(call: &mut Call<'_, P>, argument: u64) -> Answer {
    let [reason, ..]: [u8; 4] = call.read(argument)?;
    call.guest().shutdown_code.get_or_insert(reason);
    Ok(0)
}

/// Ending another domain, or itself this way, takes a privilege. Which others exist is not told.
fn remote_shutdown<P: Platform>(call: &Call<'_, P>, argument: u64) -> Answer {
    let request: [u8; 8] = call.read(argument)?;
    let domid = u32::from(request.u16_at(0));
    if domid == 0 || domid == call.machine.guest.domid { Err(Errno::Perm) } else { Err(Errno::Search) }
}

fn watchdog<P: Platform>(call: &mut Call<'_, P>, argument: u64) -> Answer {
    let request: [u8; 8] = call.read(argument)?;
    let (number, seconds) = (request.u32_at(0), request.u32_at(4));
    let until_ns = call.machine.now_ns().saturating_add(u64::from(seconds) * SECOND_NS);
    let guest = call.guest();
    let answer = guest.watchdogs.set(number, guest.clock.tsc(until_ns), seconds == 0);
    // The timer is to be looked at again.
    call.vcpu.has_news = true;
    answer
}

fn poll<P: Platform>(call: &mut Call<'_, P>, argument: u64) -> Result<Outcome, Errno> {
    let request: [u8; 24] = call.read_sized(argument, 16)?;
    let list = call.handle_at(&request, 0, 0);
    let (count, until_ns) = call.by_width((8, 16), (4, 8));
    let (count, until_ns) = (request.u32_at(count), request.u64_at(until_ns));
    if count > POLL_PORTS_MAX {
        return Err(Errno::Invalid);
    }
    // Without interrupts, one that waits already would end every poll at once.
    let has_interrupt = call.machine.has_interrupt(call.vcpu);
    let is_deaf = has_interrupt && !call.is_interruptible;
    if has_interrupt && !is_deaf {
        return Ok(Outcome::Run);
    }
    call.vcpu.polled.clear();
    for n in 0..u64::from(count) {
        let port = Port(u32::from_le_bytes(call.read(list.wrapping_add(4 * n))?));
        if !call.machine.guest.events.is_port(port) {
            return Err(Errno::Invalid);
        }
        if call.machine.guest.events.is_pending(port) {
            return Ok(Outcome::Run);
        }
        call.vcpu.polled.push(port);
    }
    // Times are signed: one beyond the middle is in the past.
    let until_ns = if (until_ns as i64) < 0 { 1 } else { until_ns };
    call.vcpu.wait = Wait::Poll { until_ns, is_deaf };
    Ok(Outcome::Wait)
}
