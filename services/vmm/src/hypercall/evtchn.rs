//! event_channel_op. FIFO event channels (init_control and later) are refused: Linux then uses the 2-level
//! ABI. Source: Xen public/event_channel.h.

use super::{Call, Field};
use crate::errno::{Answer, Errno};
use crate::events::Port;
use crate::machine::Platform;

const BIND_VIRQ: u64 = 1;
const CLOSE: u64 = 3;
const SEND: u64 = 4;
const STATUS: u64 = 5;
const ALLOC_UNBOUND: u64 = 6;
const BIND_IPI: u64 = 7;
const BIND_VCPU: u64 = 8;
const UNMASK: u64 = 9;

/// The caller itself.
const DOMID_SELF: u16 = 0x7ff0;
/// The domain that the VMM's backends stand for.
const BACKEND: u16 = 0;

pub(super) fn call<P: Platform>(call: &mut Call<'_, P>) -> Answer {
    let [operation, argument, ..] = call.args;
    match operation {
        SEND => {
            let port = port(call, argument)?;
            call.guest().events.send(port)?;
        }
        UNMASK => {
            let port = port(call, argument)?;
            call.guest().events.unmask(port)?;
        }
        CLOSE => {
            let port = port(call, argument)?;
            call.guest().events.close(port)?;
        }
        BIND_VIRQ => {
            let request: [u8; 12] = call.read(argument)?;
            let port = call.guest().events.bind_virq(request.u32_at(0), request.u32_at(4))?;
            answer_port(call, argument.wrapping_add(8), port)?;
        }
        BIND_IPI => {
            let request: [u8; 8] = call.read(argument)?;
            let port = call.guest().events.bind_ipi(request.u32_at(0))?;
            answer_port(call, argument.wrapping_add(4), port)?;
        }
        BIND_VCPU => {
            let request: [u8; 8] = call.read(argument)?;
            call.guest().events.bind_vcpu(Port(request.u32_at(0)), request.u32_at(4))?;
        }
        ALLOC_UNBOUND => {
            let request: [u8; 8] = call.read(argument)?;
            is_own(call, request.u16_at(0))?;
            if request.u16_at(2) != BACKEND {
                return Err(Errno::Invalid);
            }
            let port = call.guest().events.allocate_unbound()?;
            answer_port(call, argument.wrapping_add(4), port)?;
        }
        STATUS => {
            let request: [u8; 24] = call.read(argument)?;
            is_own(call, request.u16_at(0))?;
            let status = call.guest().events.status(Port(request.u32_at(4)))?;
            // The detail is a domain and a port, or a VIRQ, after status and vCPU.
            let detail = if status.status == 2 { [0, status.detail] } else { [status.detail, 0] };
            let words = [status.status, status.vcpu, detail[0], detail[1]];
            for (n, word) in words.iter().enumerate() {
                call.write(argument.wrapping_add(8 + 4 * n as u64), &word.to_le_bytes())?;
            }
        }
        _ => return Err(Errno::NoSys),
    }
    Ok(0)
}

/// The port that `close`, `send` and `unmask` name.
fn port<P: Platform>(call: &Call<'_, P>, argument: u64) -> Result<Port, Errno> {
    Ok(Port(u32::from_le_bytes(call.read(argument)?)))
}

/// Writes a new port's number; where that fails, the port is closed again.
fn answer_port<P: Platform>(call: &mut Call<'_, P>, at: u64, port: Port) -> Result<(), Errno> {
    let written = call.write(at, &port.0.to_le_bytes());
    if written.is_err() {
        call.guest().events.close(port)?;
    }
    written
}

fn is_own<P: Platform>(call: &Call<'_, P>, domid: u16) -> Result<(), Errno> {
    if domid == DOMID_SELF || u32::from(domid) == call.machine.guest.domid {
        Ok(())
    } else {
        Err(Errno::Perm)
    }
}
