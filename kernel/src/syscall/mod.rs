//! System calls: decoding, checking, effects.
//!
//! Each call first looks up and checks everything it names, then has its effects. Nothing here blocks:
//! a call either answers, or says which thread runs instead ([`Outcome`]). Calls that change the tree of
//! capabilities take the tree lock; the fast ones (signal, wait, run) only read slots.

mod caps;
pub mod fast;
mod objects;

use proto::abi::{Error, ObjectType, SystemField, rights};
use spin::Mutex;

use crate::cap::Cap;
use crate::cpu;
use crate::object::domain::Domain;
use crate::object::event::Event;
use crate::object::space::Space;
use crate::object::thread::{Resume, Thread, count, reg};
use crate::object::vcpu::Vcpu;
use crate::object::vm::Vm;
use crate::trace::Kind;

pub use caps::*;
pub use objects::*;

/// What becomes of the caller.
#[derive(Debug, Clone, Copy)]
pub enum Outcome {
    /// It gets this value.
    Value(u64),
    /// It blocked or was stopped: somebody else runs.
    Blocked,
    /// It blocked, and this thread, which is not queued, runs next.
    Handover(&'static Thread),
    /// It goes on with value 0 when it is its turn: this thread, which is not queued and more important
    /// than every queued one, runs next.
    Displaced(&'static Thread),
    /// It goes on with this value when it is its turn: somebody more important became ready.
    Preempted(u64),
}

/// Answer of a call.
pub type Answer = Result<Outcome, Error>;

/// Serialises changes of the capability tree, of page tables and of object lists.
static TREE: Mutex<()> = Mutex::new(());

const DONE: Answer = Ok(Outcome::Value(0));

#[inline(always)]
fn slot(caller: &Thread, slot: u64) -> Result<&'static Cap, Error> {
    caller.slot(slot)
}

/// The domain named by a slot, 0 meaning the caller's own.
fn domain(caller: &Thread, number: u64) -> Result<&'static Domain, Error> {
    if number == 0 { Ok(caller.domain) } else { slot(caller, number)?.object(rights::CONTROL) }
}

/// An empty slot of a domain.
fn empty(domain: &Domain, number: u64) -> Result<&'static Cap, Error> {
    if number == 0 {
        return Err(Error::BadSlot);
    }
    let cap = domain.slot(number)?;
    if cap.is_empty() { Ok(cap) } else { Err(Error::SlotInUse) }
}

/// `EventSignal`.
#[inline(always)]
pub fn event_signal(caller: &'static Thread, event: u64) -> Answer {
    let cap = slot(caller, event)?;
    let event: &Event = cap.object(rights::SIGNAL)?;
    let Some(woken) = send(caller, event, cap.aux.get()) else { return DONE };
    if woken.priority.get() > caller.priority.get() {
        return Ok(Outcome::Displaced(woken));
    }
    cpu::wake(woken);
    DONE
}

/// Signals on a thread's behalf; answers whom the signals woke.
#[inline(always)]
fn send(caller: &'static Thread, event: &Event, signals: u64) -> Option<&'static Thread> {
    let woken = event.signal(signals);
    count(&caller.counters.signals_sent);
    if woken.is_some() {
        count(&caller.counters.wake_ups);
    }
    cpu::this().note(Kind::Signal, signals, woken.map_or(0, |thread| thread.id.get()));
    woken
}

/// `EventWait`.
#[inline(always)]
pub fn event_wait(caller: &'static Thread, event: u64) -> Answer {
    let event: &'static Event = slot(caller, event)?.object(rights::WAIT)?;
    block_on(caller, event)
}

#[inline(always)]
fn block_on(caller: &'static Thread, event: &'static Event) -> Answer {
    match event.wait(caller)? {
        0 => {
            caller.waiting.set(Some(event));
            cpu::this().note(Kind::Wait, 0, 0);
            Ok(Outcome::Blocked)
        }
        signals => Ok(Outcome::Value(signals)),
    }
}

/// `EventPoll`.
#[inline(always)]
pub fn event_poll(caller: &'static Thread, event: u64) -> Answer {
    let event: &Event = slot(caller, event)?.object(rights::WAIT)?;
    Ok(Outcome::Value(event.take()))
}

/// `EventSignalAndWait`.
#[inline(always)]
pub fn event_signal_and_wait(caller: &'static Thread, signal: u64, wait: u64) -> Answer {
    let cap = slot(caller, signal)?;
    let target: &Event = cap.object(rights::SIGNAL)?;
    let own: &'static Event = slot(caller, wait)?.object(rights::WAIT)?;
    let woken = send(caller, target, cap.aux.get());
    wait_after_signal(caller, own, woken)
}

/// The second half of `EventSignalAndWait`: whom the signal woke is still to be made ready.
pub fn wait_after_signal(
    caller: &'static Thread,
    own: &'static Event,
    woken: Option<&'static Thread>,
) -> Answer {
    let outcome = match block_on(caller, own) {
        Ok(outcome) => outcome,
        Err(error) => {
            if let Some(woken) = woken {
                cpu::wake(woken);
            }
            return Err(error);
        }
    };
    let Some(woken) = woken else { return Ok(outcome) };
    if matches!(outcome, Outcome::Blocked) && cpu::this().queue.highest() <= Some(woken.priority.get()) {
        return Ok(Outcome::Handover(woken));
    }
    cpu::wake(woken);
    match outcome {
        Outcome::Value(value) if cpu::this().must_switch() => Ok(Outcome::Preempted(value)),
        other => Ok(other),
    }
}

/// `EventTimer`.
pub fn event_timer(caller: &'static Thread, event: u64, deadline: u64, signals: u64) -> Answer {
    let event: &'static Event = slot(caller, event)?.object(rights::WAIT)?;
    if deadline != 0 && deadline <= crate::arch::tsc() {
        cpu::set_event_timer(event, 0, 0);
        // The caller itself may wait on it only through a second thread: wake whoever does.
        if let Some(woken) = event.signal(signals) {
            cpu::wake(woken);
        }
        return Ok(if cpu::this().must_switch() { Outcome::Preempted(0) } else { Outcome::Value(0) });
    }
    cpu::set_event_timer(event, deadline, signals);
    DONE
}

/// `VcpuRun`: checks, and says what to run. Nobody can interfere while the guest runs; only a thread that is
/// put off in the middle is entered as the vCPU's runner ([`put_off`]).
///
/// # Errors
/// `Dead` without a VM; `Busy` when another thread is in the middle of running it.
pub fn vcpu_run(
    caller: &'static Thread,
    vcpu: u64,
    event: u64,
) -> Result<(&'static Vcpu, &'static Event), Error> {
    let vcpu: &'static Vcpu = slot(caller, vcpu)?.object(rights::CONTROL)?;
    let event: &'static Event = slot(caller, event)?.object(rights::WAIT)?;
    if vcpu.vm.get().is_none() {
        return Err(Error::Dead);
    }
    if vcpu.runner.get().is_some() {
        return Err(Error::Busy);
    }
    Ok((vcpu, event))
}

/// The thread goes on with the vCPU when it is its turn.
pub fn put_off(thread: &'static Thread, vcpu: &'static Vcpu) {
    vcpu.runner.set(Some(thread));
    thread.vcpu.set(Some(vcpu));
    thread.resume.set(Resume::Vcpu);
}

/// It is its turn: what it was put off from, unless that was destroyed meanwhile.
pub fn take_up(thread: &'static Thread) -> Option<(&'static Vcpu, &'static Vm, &'static Event)> {
    let vcpu = thread.vcpu.take()?;
    vcpu.runner.set(None);
    let event = slot(thread, thread.vcpu_event.get()).ok()?.object(rights::WAIT).ok()?;
    Some((vcpu, vcpu.vm.get()?, event))
}

/// `ThreadYield`.
pub fn thread_yield(caller: &'static Thread) -> Answer {
    let cpu = cpu::this();
    if cpu.queue.highest() >= Some(caller.priority.get()) {
        cpu.arch.turn.set(cpu::Turn::Over);
        return Ok(Outcome::Preempted(0));
    }
    DONE
}

/// The address space of a domain or a VM.
fn space_of(cap: &Cap) -> Result<&'static Space, Error> {
    match cap.object::<Domain>(rights::CONTROL) {
        Ok(domain) => Ok(&domain.space),
        Err(Error::WrongType) => Ok(&cap.object::<Vm>(rights::CONTROL)?.space),
        Err(error) => Err(error),
    }
}

/// `SystemInfo`.
pub fn system_info(field: u64) -> Answer {
    let field = SystemField::try_from(field).map_err(|_| Error::BadArgument)?;
    Ok(Outcome::Value(match field {
        SystemField::TscKhz => crate::arch::tsc_khz(),
        SystemField::TotalFrames => crate::boot::totals().0,
        SystemField::KernelFrames => crate::boot::totals().1,
        SystemField::IdleTime => cpu::this().idle_time.get(),
        SystemField::Cpus => 1,
        SystemField::FirstMsiVector => crate::arch::FIRST_MSI_VECTOR,
        SystemField::ContextSwitches => cpu::this().switches.get(),
        SystemField::Interrupts => cpu::this().interrupts.get(),
        counted => crate::arch::instructions(counted)?,
    }))
}

/// `LogWrite`.
pub fn log_write(caller: &'static Thread, log: u64, bytes: u64, len: u64) -> Answer {
    slot(caller, log)?.require(ObjectType::Log, 0)?;
    for byte in bytes.to_le_bytes().iter().take(len.min(8) as usize) {
        crate::arch::early_log(*byte);
    }
    DONE
}

/// `MachineReset`.
pub fn machine_reset(caller: &'static Thread, log: u64) -> Answer {
    slot(caller, log)?.require(ObjectType::Log, rights::CONTROL)?;
    crate::arch::reset_machine()
}

/// How a thread that made a system call goes on later.
#[inline(always)]
pub fn park(caller: &'static Thread, status: u64, value: u64) {
    caller.regs[reg::RAX].set(status);
    caller.regs[reg::RDX].set(value);
    caller.resume.set(Resume::Syscall);
}
