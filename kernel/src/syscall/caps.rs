//! System calls on capabilities: reading, deriving, moving, deleting, mapping; frames and interrupt lines.
//!
//! Long work stops after a bounded number of steps and answers `Restart`; the thread keeps the progress and
//! repeats the call.

use proto::abi::{Error, Field, ObjectType, ThreadState, rights};

use super::{Answer, DONE, Outcome, TREE, domain, empty, slot, space_of};
use crate::cap::{Cap, DEVICE, DONATED, OWNED, PINNED};
use crate::memory::Pfn;
use crate::object::Object;
use crate::object::domain::Domain;
use crate::object::event::Event;
use crate::object::irq;
use crate::object::thread::{Thread, reg};
use crate::object::vcpu::Vcpu;
use crate::object::vm::Vm;
use crate::{cpu, destroy, frames};

/// `CapRead`.
pub fn cap_read(caller: &'static Thread, number: u64, field: u64) -> Answer {
    if number == 0 && field == Field::CpuTime as u64 {
        return Ok(Outcome::Value(caller.cpu_time(true)));
    }
    let cap = slot(caller, number)?;
    let field = Field::try_from(field).map_err(|_| Error::BadArgument)?;
    let value = match field {
        Field::Type => u64::from(cap.kind()),
        Field::Rights => cap.rights(),
        Field::Base => match ObjectType::try_from(u64::from(cap.kind())) {
            Ok(ObjectType::Frames) => {
                cap.require(ObjectType::Frames, rights::PHYS)?;
                cap.base.get()
            }
            Ok(ObjectType::IoPorts | ObjectType::Irq) => cap.base.get(),
            Ok(ObjectType::Event) => cap.aux.get(),
            _ => return Err(Error::WrongType),
        },
        Field::Count => u64::from(cap.count.get()),
        Field::FreeFrames => space_of(cap)?.pool.count(),
        _ => thread_field(caller, cap.object(rights::CONTROL)?, field),
    };
    Ok(Outcome::Value(value))
}

fn thread_field(caller: &Thread, thread: &Thread, field: Field) -> u64 {
    let number = field as u64;
    match field {
        Field::CpuTime => thread.cpu_time(core::ptr::eq(caller, thread)),
        Field::ThreadState => thread.state() as u64,
        Field::FaultVector => thread.fault[0].get(),
        Field::FaultCode => thread.fault[1].get(),
        Field::FaultAddress => thread.fault[2].get(),
        Field::Rip => thread.regs[reg::RIP].get(),
        Field::Rsp => thread.regs[reg::RSP].get(),
        Field::Rflags => thread.regs[reg::RFLAGS].get(),
        Field::Dispatches => thread.counters.dispatches.get(),
        Field::SignalsSent => thread.counters.signals_sent.get(),
        Field::WakeUps => thread.counters.wake_ups.get(),
        Field::Interrupts => thread.counters.interrupts.get(),
        Field::VcpuExits => thread.counters.vcpu_exits.get(),
        Field::VcpuKernelExits => thread.counters.vcpu_kernel_exits.get(),
        Field::ThreadId => thread.id.get(),
        _ => thread.regs.get((number - Field::Rax as u64) as usize).map_or(0, core::cell::Cell::get),
    }
}

/// `FramesSplit`.
pub fn frames_split(caller: &'static Thread, frames: u64, at: u64, dst: u64) -> Answer {
    let _tree = TREE.lock();
    frames::split(slot(caller, frames)?, at, empty(caller.domain, dst)?)?;
    DONE
}

/// `FramesMerge`.
pub fn frames_merge(caller: &'static Thread, low: u64, high: u64) -> Answer {
    let _tree = TREE.lock();
    frames::merge(slot(caller, low)?, slot(caller, high)?)?;
    DONE
}

/// `CapDerive`.
pub fn cap_derive(caller: &'static Thread, args: [u64; 6]) -> Answer {
    let [src, to, dst, offset, count, wanted] = args;
    let _tree = TREE.lock();
    let src = slot(caller, src)?;
    let dst = empty(domain(caller, to)?, dst)?;
    if src.is_empty() {
        return Err(Error::BadSlot);
    }
    let held = src.rights();
    if held & rights::CONTROL == 0 || wanted & !held != 0 {
        return Err(Error::NoRight);
    }
    let kind = ObjectType::try_from(u64::from(src.kind())).map_err(|_| Error::WrongType)?;
    let (base, count) = match kind {
        ObjectType::Frames | ObjectType::IoPorts | ObjectType::Irq => {
            if src.has(DONATED) {
                return Err(Error::Busy);
            }
            let end = offset.checked_add(count).ok_or(Error::BadArgument)?;
            if count == 0 || end > u64::from(src.count.get()) {
                return Err(Error::BadArgument);
            }
            (src.base.get() + offset, count as u32)
        }
        _ => (src.base.get(), 0),
    };
    if kind == ObjectType::Event && (offset == 0 || offset & !src.aux.get() != 0) {
        return Err(Error::BadArgument);
    }
    dst.fill_child(src, kind, base, count, wanted)?;
    dst.set(src.flags.get() & DEVICE);
    if kind == ObjectType::Event {
        dst.aux.set(offset);
    }
    DONE
}

/// `CapMove`.
pub fn cap_move(caller: &'static Thread, src: u64, to: u64, dst: u64) -> Answer {
    let _tree = TREE.lock();
    let src = slot(caller, src)?;
    let dst = empty(domain(caller, to)?, dst)?;
    if src.is_empty() {
        return Err(Error::BadSlot);
    }
    if src.has(PINNED) {
        return Err(Error::Busy);
    }
    if src.kind() == ObjectType::IoPorts as u8 && src.space.get() != 0 {
        return Err(Error::IsMapped);
    }
    src.move_to(dst);
    if dst.has(OWNED) {
        relocate_owner(dst);
    }
    DONE
}

/// An object's owned capability moved: the object's header follows.
fn relocate_owner(cap: &'static Cap) {
    fn follow<T: Object>(cap: &'static Cap) {
        if let Ok(object) = cap.object::<T>(0) {
            object.header().cap.set(Some(cap));
        }
    }
    follow::<Event>(cap);
    follow::<Thread>(cap);
    follow::<Domain>(cap);
    follow::<Vm>(cap);
    follow::<Vcpu>(cap);
}

/// The caller must not saw off the branch on which it sits.
fn expect_not_self(caller: &'static Thread, cap: &Cap) -> Result<(), Error> {
    let is_self = cap.object::<Domain>(0).is_ok_and(|domain| core::ptr::eq(domain, caller.domain))
        || cap.object::<Thread>(0).is_ok_and(|thread| core::ptr::eq(thread, caller));
    if is_self && cap.has(OWNED) { Err(Error::Busy) } else { Ok(()) }
}

/// `CapDelete`.
pub fn cap_delete(caller: &'static Thread, of: u64, number: u64) -> Answer {
    let _tree = TREE.lock();
    let cap = domain(caller, of)?.slot(number)?;
    if cap.is_empty() {
        return Err(Error::BadSlot);
    }
    expect_not_self(caller, cap)?;
    let mut budget = destroy::DELETIONS_MAX;
    destroy::delete(cap, &mut budget)?;
    after_destruction(caller)
}

/// `CapRevoke`.
pub fn cap_revoke(caller: &'static Thread, number: u64) -> Answer {
    let _tree = TREE.lock();
    let cap = slot(caller, number)?;
    if cap.is_empty() {
        return Err(Error::BadSlot);
    }
    if let Some(child) = cap.first_child() {
        expect_not_self(caller, child)?;
    }
    let mut budget = destroy::DELETIONS_MAX;
    destroy::revoke(cap, &mut budget)?;
    after_destruction(caller)
}

fn after_destruction(caller: &'static Thread) -> Answer {
    if caller.state.get() == ThreadState::Stopped {
        return Ok(Outcome::Blocked);
    }
    Ok(if cpu::this().must_switch() { Outcome::Preempted(0) } else { Outcome::Value(0) })
}

/// How far the same call got before, if the caller repeats it at once.
fn progress(caller: &Thread, call: u64, number: u64) -> u64 {
    let is_same = caller.progress[0].get() == call && caller.progress[1].get() == number;
    if is_same { caller.progress[2].get() } else { 0 }
}

fn keep_progress(caller: &Thread, call: u64, number: u64, done: Option<u64>) -> Answer {
    caller.progress[0].set(0);
    match done {
        None => DONE,
        Some(done) => {
            caller.progress[0].set(call);
            caller.progress[1].set(number);
            caller.progress[2].set(done);
            Err(Error::Restart)
        }
    }
}

const CALL_MAP: u64 = 1;
const CALL_UNMAP: u64 = 2;
const CALL_UNDO_MAP: u64 = 3;

/// `CapMap`.
pub fn cap_map(caller: &'static Thread, number: u64, space: u64, address: u64, flags: u64) -> Answer {
    let _tree = TREE.lock();
    let cap = slot(caller, number)?;
    if space != 0 && slot(caller, space)?.kind() == ObjectType::Log as u8 {
        slot(caller, space)?.require(ObjectType::Log, rights::CONTROL)?;
        cpu::this().trace.start(cap, address, flags)?;
        return DONE;
    }
    if cpu::this().trace.is_ring(cap) {
        return Err(Error::IsMapped);
    }
    if cap.kind() == ObjectType::IoPorts as u8 {
        let domain = domain(caller, space)?;
        if cap.space.get() != 0 {
            return Err(Error::IsMapped);
        }
        domain.ports.enable(cap)?;
        cap.space.set(domain.space.reference().raw());
        cap.aux.set(core::ptr::from_ref(domain) as u64);
        crate::arch::ports_changed();
        return DONE;
    }
    let space = if space == 0 { &caller.domain.space } else { space_of(slot(caller, space)?)? };
    let [undo, at] = [CALL_UNDO_MAP, CALL_MAP].map(|call| progress(caller, call, number));
    let is_going_on = (undo > 0 || at > 0) && frames::is_mapped_at(cap, space, address);
    if !is_going_on {
        frames::expect_mappable(cap, space, address, flags)?;
    }
    let (error, undone) = if is_going_on && undo > 0 {
        (Error::try_from(undo >> 32).unwrap_or(Error::NoMemory), undo & 0xffff_ffff)
    } else {
        match frames::map(cap, space, address, flags, if is_going_on { at } else { 0 }) {
            Ok(done) => return keep_progress(caller, CALL_MAP, number, done),
            Err(error) => (error, 0),
        }
    };
    // It cannot be mapped: what was mapped goes again, in as many calls as it takes.
    match frames::unmap(cap, undone)? {
        None => Err(error),
        Some(done) => keep_progress(caller, CALL_UNDO_MAP, number, Some((error as u64) << 32 | done)),
    }
}

/// `CapUnmap`.
pub fn cap_unmap(caller: &'static Thread, number: u64) -> Answer {
    let _tree = TREE.lock();
    let cap = slot(caller, number)?;
    if cap.kind() == ObjectType::IoPorts as u8 {
        if cap.space.get() == 0 {
            return Err(Error::NotMapped);
        }
        destroy::disable_ports(cap);
        return DONE;
    }
    if cpu::this().trace.is_ring(cap) {
        cpu::this().trace.stop();
        return DONE;
    }
    cap.require(ObjectType::Frames, 0)?;
    let done = frames::unmap(cap, progress(caller, CALL_UNMAP, number))?;
    keep_progress(caller, CALL_UNMAP, number, done)
}

fn line(cap: &Cap, offset: u64) -> Result<u64, Error> {
    cap.require(ObjectType::Irq, 0)?;
    if offset < u64::from(cap.count.get()) { Ok(cap.base.get() + offset) } else { Err(Error::BadArgument) }
}

/// `IrqBind`.
pub fn irq_bind(caller: &'static Thread, number: u64, event: u64, offset: u64) -> Answer {
    let _tree = TREE.lock();
    let line = line(slot(caller, number)?, offset)?;
    let target = match event {
        0 => None,
        number => {
            let cap = slot(caller, number)?;
            Some((cap.object::<Event>(rights::SIGNAL)?, cap.aux.get()))
        }
    };
    irq::bind(line, target);
    DONE
}

/// `IrqAck`.
pub fn irq_ack(caller: &'static Thread, number: u64, offset: u64) -> Answer {
    let line = line(slot(caller, number)?, offset)?;
    if line < irq::GSI_LINES {
        crate::arch::set_line_masked(line, false);
    }
    DONE
}

/// Fills a slot with a run of frames that nobody else names; only while the system starts.
pub fn boot_frames(cap: &'static Cap, first: Pfn, count: u32, is_device: bool) {
    cap.fill_root(ObjectType::Frames, first.0, count, rights::ALL);
    cap.set(OWNED | if is_device { DEVICE } else { 0 });
}
