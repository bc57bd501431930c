//! Hypercalls: number and arguments in, answer out; one file per Xen hypercall with sub-operations.
//!
//! 64-bit convention: number in `rax`, arguments in `rdi`, `rsi`, `rdx`, `r10`, `r8`, answer in `rax`.
//! Callers in other modes get ENOSYS for now. Every structure is copied from the guest once, through its
//! own page tables. Source: Xen public/xen.h.

mod evtchn;
mod grant;
mod hvm;
mod memory;
mod sched;
mod vcpu;
mod version;

use proto::abi::{VcpuState, gpr};

use crate::errno::{Answer, Errno, to_rax};
use crate::machine::{Guest, Machine, Outcome, Platform, Vcpu};
use crate::walk::{EFER_LMA, Paging};

const MEMORY_OP: u64 = 12;
const SET_TIMER_OP: u64 = 15;
const XEN_VERSION: u64 = 17;
const CONSOLE_IO: u64 = 18;
const GRANT_TABLE_OP: u64 = 20;
const VCPU_OP: u64 = 24;
const SCHED_OP: u64 = 29;
const EVENT_CHANNEL_OP: u64 = 32;
const HVM_OP: u64 = 34;

/// Index of `r10` in the state's registers.
const R10: usize = 10;
/// CS attribute L.
const CODE_64: u32 = 1 << 9;
/// Most bytes that one CONSOLEIO_write takes.
const CONSOLE_WRITE_MAX: u64 = 512;

/// One hypercall being served.
pub(crate) struct Call<'a, P> {
    machine: &'a mut Machine<P>,
    vcpu: &'a mut Vcpu,
    paging: Paging,
    args: [u64; 5],
}

/// How a hypercall ends.
#[derive(Debug)]
pub enum Done {
    /// With an answer; the vCPU goes on behind the instruction.
    Answer(Answer),
    /// Part of the work is done: the instruction is executed again with this first argument.
    Again(u64),
    /// With answer 0, and something other than just going on.
    Then(Outcome),
}

impl<P: Platform> Call<'_, P> {
    #[inline]
    fn guest(&mut self) -> &mut Guest {
        &mut self.machine.guest
    }

    /// Copies a structure from the guest.
    #[inline]
    fn read<const N: usize>(&self, linear: u64) -> Result<[u8; N], Errno> {
        Ok(self.paging.read_array(&self.machine.guest.memory, linear)?)
    }

    /// Copies bytes to the guest.
    #[inline]
    fn write(&self, linear: u64, bytes: &[u8]) -> Result<(), Errno> {
        Ok(self.paging.write(&self.machine.guest.memory, linear, bytes)?)
    }
}

/// A little-endian field of a structure that was copied from the guest.
trait Field {
    fn u16_at(&self, at: usize) -> u16;
    fn u32_at(&self, at: usize) -> u32;
    fn u64_at(&self, at: usize) -> u64;
}

impl<const N: usize> Field for [u8; N] {
    fn u16_at(&self, at: usize) -> u16 {
        self.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |b| u16::from_le_bytes(*b))
    }
    fn u32_at(&self, at: usize) -> u32 {
        self.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b))
    }
    fn u64_at(&self, at: usize) -> u64 {
        self.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |b| u64::from_le_bytes(*b))
    }
}

/// Serves the hypercall in `state`. The answer is in `rax` afterwards, except for [`Done::Again`].
pub fn dispatch<P: Platform>(machine: &mut Machine<P>, vcpu: &mut Vcpu, state: &mut VcpuState) -> Done {
    let number = state.gprs[gpr::RAX];
    let done = if state.cpl != 0 {
        Done::Answer(Err(Errno::Perm))
    } else if state.efer & EFER_LMA == 0 || state.cs_attributes & CODE_64 == 0 {
        if machine.guest.odd.allows() {
            log::debug!("hypercall {number} from 32-bit code, which is not served yet");
        }
        Done::Answer(Err(Errno::NoSys))
    } else {
        let args = [gpr::RDI, gpr::RSI, gpr::RDX, R10, gpr::R8].map(|index| state.gprs[index]);
        rt::counters::inc(proto::counters::hypercall(number));
        let call = Call { machine, vcpu, paging: Paging::of(state), args };
        serve(call, number)
    };
    match &done {
        Done::Answer(answer) => state.gprs[gpr::RAX] = to_rax(*answer),
        Done::Again(first) => state.gprs[gpr::RDI] = *first,
        Done::Then(_) => state.gprs[gpr::RAX] = 0,
    }
    done
}

fn serve<P: Platform>(mut call: Call<'_, P>, number: u64) -> Done {
    let [first, second, ..] = call.args;
    let answer = match number {
        SET_TIMER_OP => vcpu::set_timer(&mut call),
        EVENT_CHANNEL_OP => evtchn::call(&mut call),
        SCHED_OP => return sched::call(&mut call),
        VCPU_OP => vcpu::call(&mut call),
        MEMORY_OP => return memory::call(&mut call),
        XEN_VERSION => {
            // Guests that changed their vcpu_info themselves call this to have it looked at.
            call.vcpu.has_news = true;
            version::call(&mut call)
        }
        CONSOLE_IO => console_io(&mut call),
        GRANT_TABLE_OP => grant::call(&mut call),
        HVM_OP => hvm::call(&mut call),
        _ => Err(Errno::NoSys),
    };
    if answer == Err(Errno::NoSys) && call.machine.guest.odd.allows() {
        log::debug!("hypercall {number} ({first:#x}, {second:#x}) is not implemented");
    }
    Done::Answer(answer)
}

/// CONSOLEIO_write (early printk); reading is not offered.
fn console_io<P: Platform>(call: &mut Call<'_, P>) -> Answer {
    let [operation, count, buffer, ..] = call.args;
    if operation != 0 {
        return Err(Errno::NoSys);
    }
    let mut rest = count.min(CONSOLE_WRITE_MAX);
    let mut at = buffer;
    while rest > 0 {
        let mut bytes = [0; 64];
        let len = rest.min(64);
        let chunk = bytes.get_mut(..len as usize).unwrap_or(&mut []);
        call.paging.read(&call.machine.guest.memory, at, chunk)?;
        let chunk = &*chunk;
        call.machine.guest.write_early(chunk.iter().copied());
        at = at.wrapping_add(len);
        rest -= len;
    }
    Ok(0)
}

#[cfg(test)]
mod tests;
