//! System calls that make objects out of donated frames, and those on threads.
//!
//! Everything is checked before the frames are touched; an object's owned capability is the only child of
//! the frames that it lives in.

use proto::abi::{Error, ObjectType, ThreadState, USER_END, rights};

use super::{Answer, DONE, Outcome, TREE, empty, slot, space_of};
use crate::cap::{Cap, DEVICE, DONATED, OWNED, PINNED};
use crate::object::domain::Domain;
use crate::object::event::Event;
use crate::object::thread::Thread;
use crate::object::vcpu::Vcpu;
use crate::object::vm::Vm;
use crate::object::{Object, place};
use crate::{cpu, destroy, frames};

/// Donated frames become an object whose owned capability goes to `dst`.
fn install<T: Object>(frames: &'static Cap, dst: &'static Cap, object: &'static T) -> Result<(), Error> {
    let address = core::ptr::from_ref(object) as u64;
    dst.fill_child(frames, T::KIND, address, 0, rights::ALL)?;
    dst.set(OWNED);
    frames.set(DONATED);
    object.header().cap.set(Some(dst));
    Ok(())
}

/// `EventCreate`.
pub fn event_create(caller: &'static Thread, frames: u64, dst: u64) -> Answer {
    let _tree = TREE.lock();
    let (cap, dst) = (slot(caller, frames)?, empty(caller.domain, dst)?);
    let frame = frames::expect_donation(cap, 1)?;
    crate::memory::zero(frame, 1);
    install(cap, dst, place(frame, Event::new()))?;
    dst.aux.set(u64::MAX);
    DONE
}

/// `DomainCreate`.
pub fn domain_create(caller: &'static Thread, frames: u64, dst: u64, slots: u64) -> Answer {
    let _tree = TREE.lock();
    let (cap, dst) = (slot(caller, frames)?, empty(caller.domain, dst)?);
    if slots == 0 || !slots.is_multiple_of(proto::abi::SLOTS_PER_FRAME) || slots > 1 << 20 {
        return Err(Error::BadArgument);
    }
    let first = frames::expect_donation(cap, Domain::frames(slots))?;
    install(cap, dst, Domain::create(first, slots)?)?;
    DONE
}

/// `SpaceDonate`.
pub fn space_donate(caller: &'static Thread, space: u64, frames: u64) -> Answer {
    let _tree = TREE.lock();
    let (target, cap) = (slot(caller, space)?, slot(caller, frames)?);
    let space = space_of(target)?;
    frames::expect_donation(cap, u64::from(cap.count.get()))?;
    if cap.count.get() > 4096 {
        return Err(Error::BadArgument);
    }
    space.donate(cap);
    DONE
}

/// `ThreadCreate`.
pub fn thread_create(caller: &'static Thread, frames: u64, domain_slot: u64, dst: u64, fault: u64) -> Answer {
    let _tree = TREE.lock();
    let (cap, dst) = (slot(caller, frames)?, empty(caller.domain, dst)?);
    let domain: &'static Domain = slot(caller, domain_slot)?.object(rights::CONTROL)?;
    let fault = match fault {
        0 => None,
        number => {
            let cap = slot(caller, number)?;
            Some((cap.object::<Event>(rights::SIGNAL)?, cap.aux.get()))
        }
    };
    let frame = frames::expect_donation(cap, 1)?;
    crate::memory::zero(frame, 1);
    let thread = place(frame, Thread::new(domain));
    install(cap, dst, thread)?;
    thread.register(fault);
    DONE
}

/// `ThreadStart`.
pub fn thread_start(caller: &'static Thread, thread: u64, entry: u64, stack: u64, argument: u64) -> Answer {
    let _tree = TREE.lock();
    let thread: &'static Thread = slot(caller, thread)?.object(rights::CONTROL)?;
    if entry >= USER_END || stack >= USER_END {
        return Err(Error::BadArgument);
    }
    if !matches!(thread.state.get(), ThreadState::Stopped | ThreadState::Faulted) {
        return Err(Error::Busy);
    }
    thread.set_start(entry, stack, argument);
    cpu::start(thread);
    Ok(if cpu::this().must_switch() { Outcome::Preempted(0) } else { Outcome::Value(0) })
}

/// `ThreadSuspend`.
pub fn thread_suspend(caller: &'static Thread, thread: u64) -> Answer {
    let _tree = TREE.lock();
    let thread: &'static Thread = slot(caller, thread)?.object(rights::CONTROL)?;
    destroy::stop(thread);
    if core::ptr::eq(thread, caller) { Ok(Outcome::Blocked) } else { DONE }
}

/// `ThreadSchedule`.
pub fn thread_schedule(caller: &'static Thread, thread: u64, priority: u64, weight: u64, cap: u64) -> Answer {
    let thread: &'static Thread = slot(caller, thread)?.object(rights::CONTROL)?;
    let queue = &cpu::this().queue;
    let was_queued = thread.is_queued.get();
    queue.remove(thread);
    let result = thread.set_schedule(priority, weight, cap);
    if was_queued {
        queue.push(thread, crate::schedule::Place::Back);
    }
    result?;
    Ok(if cpu::this().must_switch() { Outcome::Preempted(0) } else { Outcome::Value(0) })
}

/// `VmCreate`.
pub fn vm_create(caller: &'static Thread, frames: u64, dst: u64) -> Answer {
    let _tree = TREE.lock();
    let (cap, dst) = (slot(caller, frames)?, empty(caller.domain, dst)?);
    if !crate::arch::has_virtualisation() {
        return Err(Error::NotSupported);
    }
    let first = frames::expect_donation(cap, Vm::FRAMES)?;
    install(cap, dst, Vm::create(first)?)?;
    DONE
}

/// `VcpuCreate`.
pub fn vcpu_create(caller: &'static Thread, frames: u64, vm: u64, state: u64, dst: u64) -> Answer {
    let _tree = TREE.lock();
    let (cap, state, dst) = (slot(caller, frames)?, slot(caller, state)?, empty(caller.domain, dst)?);
    let vm: &'static Vm = slot(caller, vm)?.object(rights::CONTROL)?;
    state.require(ObjectType::Frames, rights::READ | rights::WRITE)?;
    if !state.has(OWNED) || state.flags.get() & (DONATED | PINNED | DEVICE) != 0 {
        return Err(Error::NotOwned);
    }
    if state.count.get() != 1 || core::ptr::eq(state, cap) {
        return Err(Error::BadArgument);
    }
    let first = frames::expect_donation(cap, Vcpu::FRAMES)?;
    install(cap, dst, Vcpu::create(first, vm, state)?)?;
    DONE
}
