//! What the entry code calls: the system call table, interrupts and exceptions.

use core::arch::asm;

use proto::abi::{Error, Syscall, SystemField, ThreadState};
use x86_64::VirtAddr;
use x86_64::registers::model_specific::{LStar, SFMask, Star};
use x86_64::registers::rflags::RFlags;

use super::counting::{self, counted};
use super::{apic, guest, halt, tables, this_cpu};
use crate::cpu::{self, Cpu};
use crate::object::event::Event;
use crate::object::irq;
use crate::object::thread::{Resume, Thread, count, reg};
use crate::schedule::Place;
use crate::syscall::fast::{self, Decision};
use crate::syscall::{self, Answer, Outcome};
use crate::trace::Kind;

counted!("entry.s");

const _: () = {
    assert!(core::mem::offset_of!(Cpu, current) == 8);
    assert!(core::mem::offset_of!(Cpu, stack_top) == 16);
    assert!(core::mem::offset_of!(Cpu, user_rsp) == 24);
    assert!(core::mem::offset_of!(Thread, regs) == 0);
    assert!(reg::VECTOR * 8 == 136 && reg::RIP * 8 == 152 && reg::RFLAGS * 8 == 168 && reg::RSP * 8 == 176);
};

unsafe extern "C" {
    fn syscall_entry();
    fn syscall_entry_traced();
    fn interrupt_stubs();
    #[link_name = "return_from_syscall"]
    fn asm_return_from_syscall();
    #[link_name = "return_from_interrupt"]
    fn asm_return_from_interrupt(thread: *const ()) -> !;
    #[link_name = "continue_vcpu"]
    fn asm_continue_vcpu() -> !;
}

/// Address of the stub of a vector.
pub fn stub(vector: u64) -> VirtAddr {
    VirtAddr::new(interrupt_stubs as *const () as u64 + vector * 16)
}

/// Leaves the kernel for a thread that made a system call.
#[inline(always)]
pub fn return_from_syscall(thread: &'static Thread, status: u64, value: u64) -> ! {
    // SAFETY: the thread is current, its context is loaded, its saved registers are of a system call.
    unsafe {
        asm!(
            "jmp {}",
            sym asm_return_from_syscall,
            in("rdi") core::ptr::from_ref(thread),
            in("rax") status,
            in("rdx") value,
            options(noreturn, nostack),
        )
    }
}

/// Leaves the kernel for a thread that was interrupted.
#[inline(always)]
pub fn return_from_interrupt(thread: &'static Thread) -> ! {
    // SAFETY: the thread is current, its context is loaded, all of its registers are saved.
    unsafe { asm_return_from_interrupt(core::ptr::from_ref(thread).cast()) }
}

/// Goes on with the `vcpu_run` of a thread that was put off.
pub fn continue_vcpu(_thread: &'static Thread) -> ! {
    // SAFETY: the thread is current; the stack is this CPU's and nothing on it is needed any more.
    unsafe { asm_continue_vcpu() }
}

/// From now on system calls look for a trace to write to, or none does.
pub fn set_traced(is_traced: bool) {
    let entry = if is_traced { syscall_entry_traced as *const () } else { syscall_entry as *const () };
    counting::count(SystemField::MsrWrites);
    LStar::write(VirtAddr::new(entry as u64));
    guest::save_host(this_cpu());
}

/// Sets up `syscall` and `sysret`.
pub fn init_syscall() {
    set_traced(false);
    SFMask::write(
        RFlags::INTERRUPT_FLAG
            | RFlags::DIRECTION_FLAG
            | RFlags::TRAP_FLAG
            | RFlags::ALIGNMENT_CHECK
            | RFlags::NESTED_TASK,
    );
    let (kernel, user) = tables::syscall_selectors();
    // SAFETY: the selectors are laid out in the GDT as STAR wants them.
    unsafe { Star::write_raw(user, kernel) };
}

/// Status and value of a system call, in `rax` and `rdx`.
#[repr(C)]
pub struct Returned {
    status: u64,
    value: u64,
}

#[inline(always)]
fn caller() -> &'static Thread {
    // SAFETY: ring 3 was left, or a guest, and only a current thread is ever in either; the entry code has
    // stored registers in it already.
    unsafe { this_cpu().current.get().unwrap_unchecked() }
}

/// Carries out what a call decided.
#[inline(always)]
fn finish(caller: &'static Thread, answer: Answer) -> Returned {
    match answer {
        Ok(Outcome::Value(value)) => Returned { status: 0, value },
        Err(error) => Returned { status: error as u64, value: 0 },
        Ok(Outcome::Blocked) => cpu::reschedule(),
        Ok(Outcome::Handover(next)) => leave(caller, Some(next), 0),
        Ok(Outcome::Displaced(next)) => {
            syscall::park(caller, 0, 0);
            cpu::this().queue.push(caller, Place::Front);
            leave(caller, Some(next), 0)
        }
        Ok(Outcome::Preempted(value)) => leave(caller, None, value),
    }
}

/// Leaves the caller for this thread, or for whatever is most important; then it goes on with the value.
#[inline(never)]
fn leave(caller: &'static Thread, next: Option<&'static Thread>, value: u64) -> ! {
    if let Some(next) = next {
        cpu::switch_to(caller, next)
    }
    syscall::park(caller, 0, value);
    cpu::requeue_current();
    cpu::reschedule()
}

macro_rules! calls {
    ($($name:ident = |$caller:ident $(, $arg:ident)*| $call:expr;)*) => {
        $(
            #[inline(never)]
            extern "C" fn $name(a: u64, b: u64, c: u64, d: u64, e: u64, f: u64) -> Returned {
                let $caller = caller();
                let _ = (a, b, c, d, e, f);
                calls!(@bind [a b c d e f] $($arg)*);
                finish($caller, $call)
            }
        )*
    };
    (@bind [$($rest:ident)*]) => {};
    (@bind [$first:ident $($rest:ident)*] $arg:ident $($args:ident)*) => {
        let $arg = $first;
        calls!(@bind [$($rest)*] $($args)*);
    };
}

calls! {
    thread_yield = |caller| syscall::thread_yield(caller);
    event_signal = |caller, event| syscall::event_signal(caller, event);
    event_wait = |caller, event| syscall::event_wait(caller, event);
    event_poll = |caller, event| syscall::event_poll(caller, event);
    event_signal_and_wait = |caller, signal, wait| syscall::event_signal_and_wait(caller, signal, wait);
    event_timer = |caller, event, deadline, signals| syscall::event_timer(caller, event, deadline, signals);
    event_create = |caller, frames, dst| syscall::event_create(caller, frames, dst);
    domain_create = |caller, frames, dst, slots| syscall::domain_create(caller, frames, dst, slots);
    space_donate = |caller, space, frames| syscall::space_donate(caller, space, frames);
    thread_create = |caller, frames, domain, dst, fault| syscall::thread_create(caller, frames, domain, dst, fault);
    thread_start = |caller, thread, entry, stack, arg| syscall::thread_start(caller, thread, entry, stack, arg);
    thread_suspend = |caller, thread| syscall::thread_suspend(caller, thread);
    thread_schedule = |caller, thread, prio, weight, cap| syscall::thread_schedule(caller, thread, prio, weight, cap);
    cap_read = |caller, slot, field| syscall::cap_read(caller, slot, field);
    vm_create = |caller, frames, dst| syscall::vm_create(caller, frames, dst);
    vcpu_create = |caller, frames, vm, state, dst| syscall::vcpu_create(caller, frames, vm, state, dst);
    frames_split = |caller, frames, at, dst| syscall::frames_split(caller, frames, at, dst);
    frames_merge = |caller, low, high| syscall::frames_merge(caller, low, high);
    cap_derive = |caller, src, to, dst, offset, count, rights|
        syscall::cap_derive(caller, [src, to, dst, offset, count, rights]);
    cap_move = |caller, src, to, dst| syscall::cap_move(caller, src, to, dst);
    cap_delete = |caller, of, slot| syscall::cap_delete(caller, of, slot);
    cap_revoke = |caller, slot| syscall::cap_revoke(caller, slot);
    cap_map = |caller, src, space, address, flags| syscall::cap_map(caller, src, space, address, flags);
    cap_unmap = |caller, src| syscall::cap_unmap(caller, src);
    irq_bind = |caller, irq, event, offset| syscall::irq_bind(caller, irq, event, offset);
    irq_ack = |caller, irq, offset| syscall::irq_ack(caller, irq, offset);
    system_info = |_caller, field| syscall::system_info(field);
    log_write = |caller, log, bytes, len| syscall::log_write(caller, log, bytes, len);
    machine_reset = |caller, log| syscall::machine_reset(caller, log);
}

/// Answer of a fast path that came out otherwise: what remains goes the general way.
#[inline(always)]
fn carry_out(cpu: &'static Cpu, caller: &'static Thread, decision: Decision) -> Option<Returned> {
    match decision {
        Decision::HandOver(next, signals) => cpu::hand_over(cpu, caller, next, signals),
        Decision::Done => Some(Returned { status: 0, value: 0 }),
        Decision::General => None,
        Decision::Signalled(woken, own) => Some(wait_after_signal(caller, woken, own)),
    }
}

#[cold]
#[inline(never)]
fn wait_after_signal(caller: &'static Thread, woken: &'static Thread, own: &'static Event) -> Returned {
    finish(caller, syscall::wait_after_signal(caller, own, Some(woken)))
}

extern "C" fn event_signal_fast(event: u64, _: u64, _: u64, _: u64, _: u64, _: u64) -> Returned {
    let (cpu, caller) = (this_cpu(), caller());
    match carry_out(cpu, caller, fast::signal(cpu, caller, event)) {
        Some(returned) => returned,
        None => event_signal(event, 0, 0, 0, 0, 0),
    }
}

extern "C" fn event_signal_and_wait_fast(signal: u64, wait: u64, _: u64, _: u64, _: u64, _: u64) -> Returned {
    let (cpu, caller) = (this_cpu(), caller());
    match carry_out(cpu, caller, fast::signal_and_wait(cpu, caller, signal, wait)) {
        Some(returned) => returned,
        None => event_signal_and_wait(signal, wait, 0, 0, 0, 0),
    }
}

extern "C" fn vcpu_run(vcpu: u64, event: u64, _: u64, _: u64, _: u64, _: u64) -> Returned {
    run::<false>(vcpu, event)
}

extern "C" fn vcpu_run_traced(vcpu: u64, event: u64, _: u64, _: u64, _: u64, _: u64) -> Returned {
    run::<true>(vcpu, event)
}

#[inline(always)]
fn run<const MAY_BE_TRACED: bool>(vcpu: u64, event: u64) -> Returned {
    let caller = caller();
    let Some((vcpu, vm, target)) = fast::vcpu_run(caller, vcpu, event) else {
        return refuse_vcpu_run(vcpu, event);
    };
    caller.vcpu_event.set(event);
    if target.is_pending() {
        return Returned { status: 0, value: target.take() };
    }
    if MAY_BE_TRACED {
        this_cpu().note(Kind::VmEntry, vcpu.context.rip(), 0);
    }
    guest::enter(this_cpu(), vcpu, vm)
}

#[cold]
#[inline(never)]
fn refuse_vcpu_run(vcpu: u64, event: u64) -> Returned {
    let status = syscall::vcpu_run(caller(), vcpu, event).err().unwrap_or(Error::Busy);
    Returned { status: status as u64, value: 0 }
}

/// The rest of the `vcpu_run` of a thread that was put off.
#[unsafe(no_mangle)]
extern "C" fn vcpu_continued() -> ! {
    let (cpu, thread) = (this_cpu(), caller());
    let Some((vcpu, vm, event)) = syscall::take_up(thread) else {
        return_from_syscall(thread, Error::Dead as u64, 0)
    };
    if event.is_pending() {
        return_from_syscall(thread, 0, event.take())
    }
    cpu.note(Kind::VmEntry, vcpu.context.rip(), 0);
    guest::enter(cpu, vcpu, vm)
}

type Handler = extern "C" fn(u64, u64, u64, u64, u64, u64) -> Returned;

#[unsafe(no_mangle)]
static syscall_table: [Handler; 30] = {
    let mut table = handlers();
    table[Syscall::EventSignal as usize] = event_signal_fast;
    table[Syscall::EventSignalAndWait as usize] = event_signal_and_wait_fast;
    table
};

#[unsafe(no_mangle)]
static syscall_table_traced: [Handler; 30] = {
    let mut table = handlers();
    table[Syscall::VcpuRun as usize] = vcpu_run_traced;
    table
};

/// In order of `abi::Syscall`.
const fn handlers() -> [Handler; 30] {
    let mut table: [Handler; 30] = [thread_yield; 30];
    table[Syscall::EventSignal as usize] = event_signal;
    table[Syscall::EventWait as usize] = event_wait;
    table[Syscall::EventPoll as usize] = event_poll;
    table[Syscall::EventSignalAndWait as usize] = event_signal_and_wait;
    table[Syscall::EventTimer as usize] = event_timer;
    table[Syscall::VcpuRun as usize] = vcpu_run;
    table[Syscall::EventCreate as usize] = event_create;
    table[Syscall::DomainCreate as usize] = domain_create;
    table[Syscall::SpaceDonate as usize] = space_donate;
    table[Syscall::ThreadCreate as usize] = thread_create;
    table[Syscall::ThreadStart as usize] = thread_start;
    table[Syscall::ThreadSuspend as usize] = thread_suspend;
    table[Syscall::ThreadSchedule as usize] = thread_schedule;
    table[Syscall::CapRead as usize] = cap_read;
    table[Syscall::VmCreate as usize] = vm_create;
    table[Syscall::VcpuCreate as usize] = vcpu_create;
    table[Syscall::FramesSplit as usize] = frames_split;
    table[Syscall::FramesMerge as usize] = frames_merge;
    table[Syscall::CapDerive as usize] = cap_derive;
    table[Syscall::CapMove as usize] = cap_move;
    table[Syscall::CapDelete as usize] = cap_delete;
    table[Syscall::CapRevoke as usize] = cap_revoke;
    table[Syscall::CapMap as usize] = cap_map;
    table[Syscall::CapUnmap as usize] = cap_unmap;
    table[Syscall::IrqBind as usize] = irq_bind;
    table[Syscall::IrqAck as usize] = irq_ack;
    table[Syscall::SystemInfo as usize] = system_info;
    table[Syscall::LogWrite as usize] = log_write;
    table[Syscall::MachineReset as usize] = machine_reset;
    table
}

/// Handles a hardware interrupt. Answers the thread that a device's interrupt woke, which the caller has to
/// make ready; after any interrupt it looks whether to reschedule.
#[inline(always)]
fn interrupt(vector: u64) -> Option<&'static Thread> {
    let cpu = this_cpu();
    count(&cpu.interrupts);
    if let Some(thread) = cpu.current.get() {
        count(&thread.counters.interrupts);
    }
    let line = match vector {
        apic::TIMER_VECTOR => {
            apic::end_of_interrupt();
            cpu::timer_interrupt();
            return None;
        }
        apic::SPURIOUS_VECTOR => return None,
        apic::FIRST_MSI_VECTOR..apic::TIMER_VECTOR => vector - apic::FIRST_MSI_VECTOR + irq::GSI_LINES,
        _ => {
            let line = vector.wrapping_sub(apic::FIRST_LINE_VECTOR);
            if apic::is_level(line) {
                apic::set_line_masked(line, true);
            }
            line
        }
    };
    apic::end_of_interrupt();
    let woken = irq::fire(line);
    cpu.note(Kind::Interrupt, line, woken.map_or(0, |thread| thread.id.get()));
    woken
}

const NMI: u64 = 2;
const PAGE_FAULT: u64 = 14;
const FIRST_INTERRUPT: u64 = 32;

#[unsafe(no_mangle)]
extern "C" fn interrupt_from_user(vector: u64) -> ! {
    let thread = caller();
    if vector >= FIRST_INTERRUPT {
        thread.resume.set(Resume::Interrupt);
        match interrupt(vector) {
            Some(woken) if woken.priority.get() > thread.priority.get() => cpu::preempt(thread, woken),
            Some(woken) => cpu::wake(woken),
            None => {}
        }
        if cpu::needs_reschedule() {
            cpu::requeue_current();
            cpu::reschedule();
        }
    } else if vector != NMI {
        fault(thread, vector);
    }
    return_from_interrupt(thread)
}

/// An exception of a thread: it stops, and whoever supervises it is told.
fn fault(thread: &'static Thread, vector: u64) -> ! {
    let address = if vector == PAGE_FAULT { x86_64::registers::control::Cr2::read_raw() } else { 0 };
    thread.fault[0].set(vector);
    thread.fault[1].set(thread.regs[reg::ERROR].get());
    thread.fault[2].set(address);
    thread.state.set(ThreadState::Faulted);
    match thread.fault_target() {
        Some((event, signals)) => {
            if let Some(woken) = event.signal(signals) {
                cpu::wake(woken);
            }
        }
        // Only init has no supervisor.
        None => halt(format_args!(
            "init stopped: exception {vector}, error {:#x}, address {address:#x}, rip {:#x}, rsp {:#x}",
            thread.regs[reg::ERROR].get(),
            thread.regs[reg::RIP].get(),
            thread.regs[reg::RSP].get(),
        )),
    }
    cpu::reschedule()
}

/// What the stub and the processor pushed.
#[repr(C)]
struct Frame {
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

#[unsafe(no_mangle)]
extern "C" fn interrupt_from_kernel(vector: u64, frame: &Frame) {
    if vector >= FIRST_INTERRUPT {
        if let Some(woken) = interrupt(vector) {
            cpu::wake(woken);
        }
    } else if vector != NMI {
        halt(format_args!(
            "exception {vector} in ring 0: error {:#x}, address {:#x}, rip {:#x}, rsp {:#x}, cs {:#x}",
            frame.error,
            x86_64::registers::control::Cr2::read_raw(),
            frame.rip,
            frame.rsp,
            frame.cs,
        ));
    }
}
