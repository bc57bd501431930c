//! What a CPU has of its own, and how it decides what runs.
//!
//! The kernel is never preempted: interrupts are off but for the idle loop and one window after a guest
//! was left. So the code here owns its CPU's data while it runs, and every path out of the kernel is
//! one of: back to the caller, or [`switch_to`] some thread, which never returns.

use core::cell::Cell;

use proto::abi::{Error, ThreadState};

use crate::arch::{self, ArchCpu};
use crate::object::event::Event;
use crate::object::thread::{Resume, Thread, reg};
use crate::schedule::{Place, RunQueue};
use crate::timer::TimerQueue;

/// Length of the time slice of a thread of weight [`WEIGHT_DEFAULT`], in milliseconds.
const SLICE_MS: u64 = 10;
/// The usual weight.
const WEIGHT_DEFAULT: u64 = 256;

/// Per-CPU data. Entry code knows the offsets of the first four fields.
#[derive(Debug)]
#[repr(C)]
pub struct Cpu {
    /// Address of this structure.
    pub this: Cell<u64>,
    /// The thread that runs, or `None` while idle.
    pub current: Cell<Option<&'static Thread>>,
    /// Top of the kernel stack.
    pub stack_top: Cell<u64>,
    /// Scratch of the system call entry: the caller's stack pointer.
    pub user_rsp: Cell<u64>,
    /// Threads that are ready.
    pub queue: RunQueue,
    /// Armed timers.
    pub timers: TimerQueue,
    /// TSC when the running thread was last charged.
    last_charge: Cell<u64>,
    /// TSC ticks without a thread.
    pub idle_time: Cell<u64>,
    /// End of the running thread's slice, or 0 when nobody shares its priority.
    slice_end: Cell<u64>,
    /// What the timer hardware is set to, or 0.
    programmed: Cell<u64>,
    /// What the architecture needs.
    pub arch: ArchCpu,
}

impl Cpu {
    /// A CPU that runs nothing.
    pub const fn new() -> Self {
        Self {
            this: Cell::new(0),
            current: Cell::new(None),
            stack_top: Cell::new(0),
            user_rsp: Cell::new(0),
            queue: RunQueue::new(),
            timers: TimerQueue::new(),
            last_charge: Cell::new(0),
            idle_time: Cell::new(0),
            slice_end: Cell::new(0),
            programmed: Cell::new(0),
            arch: ArchCpu::new(),
        }
    }

    /// Charges the time since the last call to whoever had it.
    #[inline(always)]
    fn charge(&self, account: &Cell<u64>) {
        let now = arch::tsc();
        let spent = now.wrapping_sub(self.last_charge.replace(now));
        account.set(account.get().wrapping_add(spent));
    }

    /// The account of what runs.
    #[cfg(target_os = "none")]
    fn account(&self) -> &Cell<u64> {
        self.current.get().map_or(&self.idle_time, |thread| &thread.cpu_time)
    }

    /// Priority of what runs; `None` while idle.
    #[inline(always)]
    fn priority(&self) -> Option<u8> {
        self.current.get().map(|thread| thread.priority.get())
    }

    /// Somebody ready is more important than what runs.
    #[inline(always)]
    pub fn must_switch(&self) -> bool {
        self.queue.highest() > self.priority()
    }

    /// Sets the timer hardware to the next deadline or end of slice.
    #[inline]
    fn program_timer(&self) {
        let slice = self.slice_end.get();
        let deadline = match self.timers.next_deadline() {
            Some(deadline) if slice == 0 || deadline < slice => deadline,
            _ => slice,
        };
        if deadline != self.programmed.get() {
            self.programmed.set(deadline);
            arch::set_timer(deadline);
        }
    }

    /// Arms or disarms the slice of the thread that runs from now on.
    #[inline(always)]
    fn update_slice(&self, thread: &Thread) {
        if self.queue.has_level(thread.priority.get()) {
            self.arm_slice(thread);
        } else {
            self.slice_end.set(0);
        }
    }

    /// Arms the slice of a thread that shares its priority, unless it is armed.
    #[cold]
    #[inline(never)]
    fn arm_slice(&self, thread: &Thread) {
        if self.slice_end.get() == 0 {
            let slice = u64::from(thread.weight.get()) * (arch::tsc_khz() * SLICE_MS / WEIGHT_DEFAULT);
            // What it used already counts: a thread that is displaced all the time, perhaps because it
            // signals more important ones all the time, would else never make room for its peers.
            let used = thread.cpu_time.get().wrapping_sub(thread.slice_start.get());
            self.slice_end.set(arch::tsc().wrapping_add(slice.saturating_sub(used)).max(1));
            self.program_timer();
        }
    }
}

impl Default for Cpu {
    fn default() -> Self {
        Self::new()
    }
}

/// The CPU that executes this.
#[inline(always)]
pub fn this() -> &'static Cpu {
    arch::this_cpu()
}

/// Makes a thread ready; the caller checks [`Cpu::must_switch`] afterwards.
#[inline]
pub fn wake(thread: &'static Thread) {
    let cpu = this();
    if !thread.is_queued.get() && !cpu.current.get().is_some_and(|current| core::ptr::eq(current, thread)) {
        cpu.queue.push(thread, Place::Back);
        if let Some(current) = cpu.current.get() {
            cpu.update_slice(current);
        }
    }
}

/// Makes a started thread ready.
pub fn start(thread: &'static Thread) {
    thread.state.set(ThreadState::Running);
    wake(thread);
}

/// Ends a thread's wait with an error, because its event is being destroyed.
pub fn fail_wait(thread: &'static Thread) {
    if thread.vcpu.get().is_some() {
        fail_vcpu_run(thread);
        return;
    }
    thread.waiting.set(None);
    thread.regs[reg::RAX].set(Error::Dead as u64);
    thread.regs[reg::RDX].set(0);
    wake(thread);
}

/// Ends a thread's `vcpu_run` with an error, because an object is being destroyed.
pub fn fail_vcpu_run(thread: &'static Thread) {
    if let Some(vcpu) = thread.vcpu.take() {
        vcpu.runner.set(None);
    }
    thread.vcpu_event.set(None);
    thread.resume.set(Resume::Syscall);
    thread.regs[reg::RAX].set(Error::Dead as u64);
    thread.regs[reg::RDX].set(0);
}

/// Arms or, with deadline 0, cancels an event's timer.
pub fn set_event_timer(event: &'static Event, deadline: u64, signals: u64) {
    let cpu = this();
    if deadline == 0 {
        cpu.timers.cancel(event);
    } else {
        cpu.timers.arm(event, deadline, signals);
    }
    cpu.program_timer();
}

/// The timer interrupt: fires what is due, ends a slice that is over.
pub fn timer_interrupt() {
    let cpu = this();
    cpu.programmed.set(0);
    let now = arch::tsc();
    while let Some(event) = cpu.timers.pop_due(now) {
        if let Some(thread) = event.signal(event.timer.signals()) {
            wake(thread);
        }
    }
    let slice = cpu.slice_end.get();
    if slice != 0 && slice <= now {
        // The running thread goes to the back of its level; `reschedule` then finds a peer first.
        cpu.slice_end.set(0);
        cpu.arch.slice_is_over.set(true);
    }
    cpu.program_timer();
}

/// After an interrupt: whether the running thread has to make room.
#[inline]
pub fn needs_reschedule() -> bool {
    let cpu = this();
    cpu.must_switch() || cpu.arch.slice_is_over.get()
}

/// Puts the running thread, which goes on as its `resume` says, back into the queue.
pub fn requeue_current() {
    let cpu = this();
    let place = if cpu.arch.slice_is_over.take() { Place::Back } else { Place::Front };
    if let Some(thread) = cpu.current.get()
        && !thread.is_queued.get()
    {
        if place == Place::Back {
            // All of it belongs to the slice that ends here.
            cpu.charge(&thread.cpu_time);
        }
        cpu.queue.push(thread, place);
    }
}

/// Runs the most important ready thread, or idles until there is one.
#[cfg(target_os = "none")]
pub fn reschedule() -> ! {
    let cpu = this();
    cpu.arch.slice_is_over.set(false);
    loop {
        if let Some(thread) = cpu.queue.pop() {
            cpu.slice_end.set(0);
            switch(cpu, cpu.account(), thread);
        }
        cpu.charge(cpu.account());
        cpu.current.set(None);
        cpu.slice_end.set(0);
        cpu.program_timer();
        arch::idle_once();
        cpu.charge(&cpu.idle_time);
    }
}

/// Stops running `from` and runs `to`, which is not queued, now.
#[cfg(target_os = "none")]
#[inline(always)]
pub fn switch_to(from: &'static Thread, to: &'static Thread) -> ! {
    switch(this(), &from.cpu_time, to)
}

#[cfg(target_os = "none")]
#[inline(always)]
fn switch(cpu: &'static Cpu, account: &Cell<u64>, to: &'static Thread) -> ! {
    cpu.charge(account);
    cpu.current.set(Some(to));
    cpu.slice_end.set(0);
    if cpu.queue.has_level(to.priority.get()) {
        cpu.arm_slice(to);
    }
    arch::activate(cpu, to);
    resume(to)
}

/// Runs `woken`, whom an interrupt woke and who is more important than `current`, which goes on as its
/// `resume` says.
#[cfg(target_os = "none")]
#[inline(always)]
pub fn preempt(current: &'static Thread, woken: &'static Thread) -> ! {
    let cpu = this();
    cpu.queue.push(current, Place::Front);
    switch(cpu, &current.cpu_time, woken)
}

/// Leaves the kernel for a thread that is current and whose context is loaded.
#[cfg(target_os = "none")]
#[inline(always)]
pub fn resume(thread: &'static Thread) -> ! {
    if let Some(event) = thread.waiting.take() {
        arch::return_from_syscall(thread, 0, event.collect());
    }
    match thread.resume.get() {
        Resume::Syscall => {
            arch::return_from_syscall(thread, thread.regs[reg::RAX].get(), thread.regs[reg::RDX].get())
        }
        Resume::Interrupt => arch::return_from_interrupt(thread),
        Resume::Vcpu => arch::continue_vcpu(thread),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::World;

    /// A thread that signalled more important ones all the time got a new slice after each of them, and its
    /// peers never ran.
    #[test]
    fn a_thread_that_is_displaced_all_the_time_makes_room_for_its_peers() {
        let (thread, peer, cpu) = (World::new().thread, World::new().thread, this());
        let slice = arch::tsc_khz() * SLICE_MS;
        cpu.current.set(Some(thread));
        cpu.queue.push(peer, Place::Back);
        let left = || {
            cpu.slice_end.set(0);
            cpu.update_slice(thread);
            cpu.slice_end.get() - arch::tsc()
        };
        assert!(left() > slice / 2);
        thread.cpu_time.set(slice - 1000);
        // It was displaced and comes back.
        requeue_current();
        assert!(core::ptr::eq(cpu.queue.pop().unwrap(), thread));
        assert!(left() < 1000);
        // Its slice is over: the peer is next, and it has a whole slice before it again.
        cpu.arch.slice_is_over.set(true);
        requeue_current();
        assert!(core::ptr::eq(cpu.queue.pop().unwrap(), peer));
        cpu.queue.remove(thread);
        cpu.queue.push(peer, Place::Back);
        assert!(left() > slice / 2);
    }
}
