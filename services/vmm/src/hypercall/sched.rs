//! sched_op: waiting, yielding and ending. Source: Xen public/sched.h.

use proto::toolstack::EndReason;

use super::{Call, Done, Field};
use crate::errno::Errno;
use crate::machine::{Outcome, POLL_PORTS_MAX, Platform, Wait, sentence};

const YIELD: u64 = 0;
const BLOCK: u64 = 1;
const SHUTDOWN: u64 = 2;
const POLL: u64 = 3;

pub(super) fn call<P: Platform>(call: &mut Call<'_, P>) -> Done {
    let [operation, argument, ..] = call.args;
    let outcome = match operation {
        YIELD => Ok(Outcome::Yield),
        BLOCK => {
            call.vcpu.wait = Wait::Interrupt;
            Ok(Outcome::Wait)
        }
        SHUTDOWN => shutdown(call, argument),
        POLL => poll(call, argument),
        _ => Err(Errno::NoSys),
    };
    match outcome {
        Ok(outcome) => Done::Then(outcome),
        Err(errno) => Done::Answer(Err(errno)),
    }
}

fn shutdown<P: Platform>(call: &Call<'_, P>, argument: u64) -> Result<Outcome, Errno> {
    let reason = u32::from_le_bytes(call.read(argument)?);
    let (reason, what) = match reason {
        0 => (EndReason::PowerOff, "powered off"),
        1 => (EndReason::Reboot, "asked for a reboot"),
        2 => (EndReason::Suspend, "suspended itself"),
        3 => (EndReason::Crash, "reported a crash of its kernel"),
        4 => (EndReason::Watchdog, "was ended by its watchdog"),
        5 => (EndReason::SoftReset, "asked for a soft reset"),
        _ => return Err(Errno::Invalid),
    };
    Ok(Outcome::End(reason, sentence(format_args!("the guest {what}"))))
}

fn poll<P: Platform>(call: &mut Call<'_, P>, argument: u64) -> Result<Outcome, Errno> {
    let request: [u8; 24] = call.read_sized(argument, 16)?;
    let list = call.handle_at(&request, 0, 0);
    let (count, until_ns) = call.by_width((8, 16), (4, 8));
    let (count, until_ns) = (request.u32_at(count) as usize, request.u64_at(until_ns));
    if count > POLL_PORTS_MAX {
        return Err(Errno::Invalid);
    }
    let mut ports = [0; POLL_PORTS_MAX];
    for (n, port) in ports.iter_mut().take(count).enumerate() {
        *port = u32::from_le_bytes(call.read(list.wrapping_add(4 * n as u64))?);
    }
    // Whether one is pending already is asked before the vCPU really waits, as for any other wait.
    call.vcpu.wait = Wait::Poll { ports, until_ns };
    Ok(Outcome::Wait)
}
