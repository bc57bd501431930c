//! event_channel_op. The structures are the same for 32-bit and 64-bit callers.
//!
//! No other domain's existence shows: all but the caller and the backends' domain are not there, whatever
//! runs beside. Physical interrupts do not exist for a guest.
//! Sources: Xen public/event_channel.h; common/event_channel.c for the errors and their order.

use super::{Call, Field};
use crate::errno::{Answer, Errno};
use crate::events::{BACKEND, DOMID_SELF, Port, Status};
use crate::machine::Platform;
use crate::memory::{Gfn, Page};

const BIND_INTERDOMAIN: u64 = 0;
const BIND_VIRQ: u64 = 1;
const BIND_PIRQ: u64 = 2;
const CLOSE: u64 = 3;
const SEND: u64 = 4;
const STATUS: u64 = 5;
const ALLOC_UNBOUND: u64 = 6;
const BIND_IPI: u64 = 7;
const BIND_VCPU: u64 = 8;
const UNMASK: u64 = 9;
const RESET: u64 = 10;
const INIT_CONTROL: u64 = 11;
const EXPAND_ARRAY: u64 = 12;
const SET_PRIORITY: u64 = 13;
/// How Xen goes on with a long reset.
const RESET_CONT: u64 = 14;

pub(super) fn call<P: Platform>(call: &mut Call<'_, P>) -> Answer {
    let [_, argument, ..] = call.args;
    match u64::from(call.word(0)) {
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
        BIND_INTERDOMAIN => {
            let request: [u8; 12] = call.read(argument)?;
            let remote = domain(call, request.u16_at(0)).ok_or(Errno::Search)?;
            let port = call.guest().events.bind_interdomain(remote, Port(request.u32_at(4)))?;
            answer_port(call, argument.wrapping_add(8), port)?;
        }
        BIND_VIRQ => {
            let request: [u8; 12] = call.read(argument)?;
            let port = call.guest().events.bind_virq(request.u32_at(0), request.u32_at(4))?;
            answer_port(call, argument.wrapping_add(8), port)?;
        }
        BIND_PIRQ => {
            // Every number is beyond the last interrupt.
            let _request: [u8; 12] = call.read(argument)?;
            return Err(Errno::Invalid);
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
            call.only_self(request.u16_at(0))?;
            // Nobody asks whether that domain exists: it may come later.
            let remote = request.u16_at(2);
            let remote = domain(call, remote).unwrap_or(remote);
            let port = call.guest().events.allocate_unbound(remote)?;
            answer_port(call, argument.wrapping_add(4), port)?;
        }
        STATUS => status(call, argument)?,
        RESET => {
            let domid = u16::from_le_bytes(call.read(argument)?);
            call.only_self(domid)?;
            call.guest().events.reset();
        }
        RESET_CONT => {
            let domid = u16::from_le_bytes(call.read(argument)?);
            call.only_self(domid)?;
            // Xen goes on with a long reset so; here there is never one to go on with.
            return Err(Errno::Busy);
        }
        INIT_CONTROL => {
            let request: [u8; 24] = call.read(argument)?;
            let page = page(call, request.u64_at(0));
            call.guest().events.init_control(request.u32_at(12), page, request.u32_at(8))?;
            call.write(argument.wrapping_add(16), &[crate::events::LINK_BITS])?;
        }
        EXPAND_ARRAY => {
            let request: [u8; 8] = call.read(argument)?;
            let page = page(call, request.u64_at(0));
            call.guest().events.expand_array(page)?;
        }
        SET_PRIORITY => {
            let request: [u8; 8] = call.read(argument)?;
            call.guest().events.set_priority(Port(request.u32_at(0)), request.u32_at(4))?;
        }
        _ => return Err(Errno::NoSys),
    }
    Ok(0)
}

fn status<P: Platform>(call: &mut Call<'_, P>, argument: u64) -> Result<(), Errno> {
    let mut request: [u8; 24] = call.read(argument)?;
    call.only_self(request.u16_at(0))?;
    let (status, vcpu) = call.guest().events.status(Port(request.u32_at(4)))?;
    let own = call.machine.guest.domid as u16;
    let number = |domid| if domid == DOMID_SELF { own } else { domid };
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(field) = request.get_mut(at..at + bytes.len()) {
            field.copy_from_slice(bytes);
        }
    };
    let kind = match status {
        Status::Closed => 0u32,
        Status::Unbound(domid) => {
            put(16, &number(domid).to_le_bytes());
            1
        }
        Status::Interdomain(domid, Port(port)) => {
            put(16, &number(domid).to_le_bytes());
            put(20, &port.to_le_bytes());
            2
        }
        Status::Virq(virq) => {
            put(16, &virq.to_le_bytes());
            4
        }
        Status::Ipi => 5,
    };
    put(8, &kind.to_le_bytes());
    put(12, &vcpu.to_le_bytes());
    call.write(argument, &request)
}

/// The port that `close`, `send` and `unmask` name.
#[inline]
fn port<P: Platform>(call: &Call<'_, P>, argument: u64) -> Result<Port, Errno> {
    Ok(Port(u32::from_le_bytes(call.read(argument)?)))
}

/// Memory for the FIFO ABI.
fn page<P: Platform>(call: &Call<'_, P>, gfn: u64) -> Option<Page> {
    call.machine.guest.memory.page(Gfn(gfn))
}

/// Writes a new port's number; where that fails, the port is closed again.
fn answer_port<P: Platform>(call: &mut Call<'_, P>, at: u64, port: Port) -> Result<(), Errno> {
    let written = call.write(at, &port.0.to_le_bytes());
    if written.is_err() {
        call.guest().events.close(port)?;
    }
    written
}

/// A domain that exists for the caller, which itself is [`DOMID_SELF`] by either name.
fn domain<P: Platform>(call: &Call<'_, P>, domid: u16) -> Option<u16> {
    match domid {
        DOMID_SELF => Some(domid),
        _ if u32::from(domid) == call.machine.guest.domid => Some(DOMID_SELF),
        BACKEND => Some(domid),
        _ => None,
    }
}
