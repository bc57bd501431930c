//! System calls: decoding, checking, effects.
//!
//! Each call first looks up and checks everything it names, then has its effects. Nothing here blocks:
//! a call either answers, or says which thread runs instead ([`Outcome`]). Calls that change the tree of
//! capabilities take the tree lock; the fast ones (signal, wait, run) only read slots.

use proto::abi::{Error, Field, ObjectType, SystemField, ThreadState, USER_END, rights};
use spin::Mutex;

use crate::cap::{Cap, DEVICE, DONATED, OWNED, PINNED};
use crate::cpu;
use crate::destroy;
use crate::frames;
use crate::memory::Pfn;
use crate::object::domain::Domain;
use crate::object::event::Event;
use crate::object::irq;
use crate::object::thread::{Resume, Thread, reg};
use crate::object::vcpu::Vcpu;
use crate::object::vm::Vm;
use crate::object::{Object, place};

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
    caller.domain.slot(slot)
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
    let Some(woken) = event.signal(cap.aux.get()) else { return DONE };
    if woken.priority.get() > caller.priority.get() {
        return Ok(Outcome::Displaced(woken));
    }
    cpu::wake(woken);
    DONE
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
    let woken = target.signal(cap.aux.get());
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

/// `VcpuRun`: checks, and says what to run.
///
/// # Errors
/// `Dead` without a VM; `Busy` when another thread runs it.
#[inline(always)]
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
    vcpu.runner.set(Some(caller));
    caller.vcpu.set(Some(vcpu));
    caller.vcpu_event.set(Some(event));
    Ok((vcpu, event))
}

/// `ThreadYield`.
pub fn thread_yield(caller: &'static Thread) -> Answer {
    let cpu = cpu::this();
    if cpu.queue.highest() >= Some(caller.priority.get()) {
        cpu.arch.slice_is_over.set(true);
        return Ok(Outcome::Preempted(0));
    }
    DONE
}

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

fn space_of(cap: &Cap) -> Result<&'static crate::object::space::Space, Error> {
    match cap.object::<Domain>(rights::CONTROL) {
        Ok(domain) => Ok(&domain.space),
        Err(Error::WrongType) => Ok(&cap.object::<Vm>(rights::CONTROL)?.space),
        Err(error) => Err(error),
    }
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

/// `CapRead`.
pub fn cap_read(caller: &'static Thread, number: u64, field: u64) -> Answer {
    let cap = slot(caller, number)?;
    let field = Field::try_from(field).map_err(|_| Error::BadArgument)?;
    let value = match field {
        Field::Type => u64::from(cap.kind()),
        Field::Rights => u64::from(cap.rights.get()),
        Field::Base => match ObjectType::try_from(u64::from(cap.kind())) {
            Ok(ObjectType::Frames) => {
                cap.expect(ObjectType::Frames, rights::PHYS)?;
                cap.base.get()
            }
            Ok(ObjectType::IoPorts | ObjectType::Irq) => cap.base.get(),
            Ok(ObjectType::Event) => cap.aux.get(),
            _ => return Err(Error::WrongType),
        },
        Field::Count => u64::from(cap.count.get()),
        Field::FreeFrames => space_of(cap)?.pool.count(),
        _ => thread_field(cap.object(rights::CONTROL)?, field),
    };
    Ok(Outcome::Value(value))
}

fn thread_field(thread: &Thread, field: Field) -> u64 {
    let number = field as u64;
    match field {
        Field::CpuTime => thread.cpu_time.get(),
        Field::ThreadState => thread.state() as u64,
        Field::FaultVector => thread.fault[0].get(),
        Field::FaultCode => thread.fault[1].get(),
        Field::FaultAddress => thread.fault[2].get(),
        Field::Rip => thread.regs[reg::RIP].get(),
        Field::Rsp => thread.regs[reg::RSP].get(),
        Field::Rflags => thread.regs[reg::RFLAGS].get(),
        _ => thread.regs.get((number - Field::Rax as u64) as usize).map_or(0, core::cell::Cell::get),
    }
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
    state.expect(ObjectType::Frames, rights::READ | rights::WRITE)?;
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
    let held = u64::from(src.rights.get());
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
    cap.expect(ObjectType::Frames, 0)?;
    let done = frames::unmap(cap, progress(caller, CALL_UNMAP, number))?;
    keep_progress(caller, CALL_UNMAP, number, done)
}

fn line(cap: &Cap, offset: u64) -> Result<u64, Error> {
    cap.expect(ObjectType::Irq, 0)?;
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
    }))
}

/// `LogWrite`.
pub fn log_write(caller: &'static Thread, log: u64, bytes: u64, len: u64) -> Answer {
    slot(caller, log)?.expect(ObjectType::Log, 0)?;
    for byte in bytes.to_le_bytes().iter().take(len.min(8) as usize) {
        crate::arch::early_log(*byte);
    }
    DONE
}

/// `MachineReset`.
pub fn machine_reset(caller: &'static Thread, log: u64) -> Answer {
    slot(caller, log)?.expect(ObjectType::Log, rights::CONTROL)?;
    crate::arch::reset_machine()
}

/// Fills a slot with a run of frames that nobody else names; only while the system starts.
pub fn boot_frames(cap: &'static Cap, first: Pfn, count: u32, is_device: bool) {
    cap.fill_root(ObjectType::Frames, first.0, count, rights::ALL);
    cap.set(OWNED | if is_device { DEVICE } else { 0 });
}

/// How a thread that made a system call goes on later.
#[inline(always)]
pub fn park(caller: &'static Thread, status: u64, value: u64) {
    caller.regs[reg::RAX].set(status);
    caller.regs[reg::RDX].set(value);
    caller.resume.set(Resume::Syscall);
}
