//! What a CPU has of its own, and how it decides what runs.
//!
//! The kernel is never preempted: interrupts are off but for the idle loop and one window after a guest
//! was left. So the code here owns its CPU's data while it runs, and every path out of the kernel is
//! one of: back to the caller, or [`switch_to`] some thread, which never returns.

use core::cell::Cell;

use proto::abi::{Error, ThreadState};

use crate::arch::{self, ArchCpu, Counts};
use crate::object::event::Event;
#[cfg(target_os = "none")]
use crate::object::thread::count;
use crate::object::thread::{Resume, Thread, reg};
use crate::schedule::{Place, RunQueue};
use crate::timer::TimerQueue;
use crate::trace::{Kind, Trace};

/// Length of the time slice of a thread of weight [`WEIGHT_DEFAULT`], in milliseconds.
const SLICE_MS: u64 = 10;
/// What is left to a thread of its share that it did not use while it slept: this part of a millisecond, 250 us.
const CREDIT_PER_MS: u64 = 4;
/// The usual weight.
const WEIGHT_DEFAULT: u64 = 256;

/// What becomes of the running thread's turn at the next chance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Turn {
    /// It goes on until somebody more important is ready.
    #[default]
    Lasts,
    /// A peer that woke up goes first; then it goes on.
    Lent,
    /// It used its slice, or gave it up: its peers are next.
    Over,
}

/// Per-CPU data. Entry code knows the offsets of the first five fields.
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
    /// Counts of expensive instructions, in a kernel built to count.
    pub counts: Counts,
    /// Threads that are ready.
    pub queue: RunQueue,
    /// Armed timers.
    pub timers: TimerQueue,
    /// TSC ticks without a thread; kept like a thread's (`Thread::time`), the time before the first one included.
    pub idle_time: Cell<u64>,
    /// Threads put on this CPU.
    pub switches: Cell<u64>,
    /// Interrupts.
    pub interrupts: Cell<u64>,
    /// Records of what happens, while somebody wants them.
    pub trace: Trace,
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
            counts: arch::no_counts(),
            queue: RunQueue::new(),
            timers: TimerQueue::new(),
            idle_time: Cell::new(0),
            switches: Cell::new(0),
            interrupts: Cell::new(0),
            trace: Trace::new(),
            slice_end: Cell::new(0),
            programmed: Cell::new(0),
            arch: ArchCpu::new(),
        }
    }

    /// Hands the CPU's time from one account to another.
    #[inline(always)]
    #[cfg(target_os = "none")]
    fn charge(from: &Cell<u64>, to: &Cell<u64>) {
        let now = arch::tsc();
        from.set(from.get().wrapping_add(now));
        to.set(to.get().wrapping_sub(now));
    }

    /// Records something about the running thread, if somebody wants to know.
    #[inline(always)]
    pub fn note(&self, kind: Kind, a: u64, b: u64) {
        if self.trace.is_on() {
            self.trace.record(kind, self.current.get().map_or(0, |thread| thread.id.get()), a, b);
        }
    }

    /// The account of what runs.
    #[cfg(target_os = "none")]
    fn account(&self) -> &Cell<u64> {
        self.current.get().map_or(&self.idle_time, |thread| &thread.time)
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

    /// Sets the timer hardware anew if it should have interrupted `slack` TSC ticks ago. QEMU's software emulation can
    /// lose an interrupt that comes while VMRUN offers the guest one: it changes the CPU's pending interrupts without a
    /// lock there (target/i386/tcg/sysemu/svm_helper.c), and the CPU would sleep until the next one of any kind.
    #[inline(always)]
    #[cfg(target_os = "none")]
    pub fn remind_timer(&self, slack: u64) {
        let (due, now) = (self.programmed.get(), arch::tsc());
        if due != 0 && now.wrapping_sub(due) as i64 >= slack as i64 {
            arch::set_timer(due);
            // Not again before it had time to come.
            self.programmed.set(now);
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
            let slice = Self::slice_of(thread);
            // What it used already counts: a thread that is displaced all the time, perhaps because it
            // signals more important ones all the time, would else never make room for its peers.
            let used = thread.cpu_time(true).wrapping_sub(thread.slice_start.get());
            self.slice_end.set(arch::tsc().wrapping_add(slice.saturating_sub(used)).max(1));
            self.program_timer();
        }
    }
}

/// Who sleeps most of the time must not wait for the whole slice of who never sleeps. So a thread that wakes up and
/// had less than its peers goes before them, and who had more waits until they have caught up, not for the end of their
/// slice. What a thread did not use while it slept is gone, but for [`CREDIT_PER_MS`]: who slept for an hour, or is new,
/// keeps the others waiting for no longer. Each priority has a time for that, the share of who had least when
/// somebody last woke up; it never goes back.
impl Cpu {
    /// Somebody of a woken thread's priority runs or is ready.
    #[inline(always)]
    fn has_peer(&self, woken: &Thread) -> bool {
        let priority = woken.priority.get();
        self.queue.has_level(priority) || self.priority() == Some(priority)
    }

    /// Queues a thread that woke up.
    #[inline(always)]
    fn enqueue(&self, woken: &'static Thread) {
        if self.has_peer(woken) {
            self.enqueue_among_peers(woken);
            return;
        }
        // Nobody waits, so its time is everybody's.
        let time = self.queue.time_of(woken.priority.get());
        let own = Self::forget_sleep(woken, time.get());
        if own.wrapping_sub(time.get()) as i64 > 0 {
            time.set(own);
        }
        self.queue.push(woken, Place::Back);
    }

    /// What a thread used of its share, which is [`CREDIT_PER_MS`] less than its priority's time at least.
    #[inline(always)]
    fn forget_sleep(woken: &Thread, time: u64) -> u64 {
        let own = woken.share_used(false);
        let gone = time.wrapping_sub(own).wrapping_sub(arch::tsc_khz() / CREDIT_PER_MS) as i64;
        if gone <= 0 {
            return own;
        }
        woken.share_offset.set(woken.share_offset.get().wrapping_add_signed(gone));
        own.wrapping_add_signed(gone)
    }

    /// [`Cpu::enqueue`] of a thread that has peers.
    #[cold]
    #[inline(never)]
    fn enqueue_among_peers(&self, woken: &'static Thread) {
        let priority = woken.priority.get();
        let running = self.current.get().filter(|current| current.priority.get() == priority);
        let first = self.queue.first_of(priority);
        let time = self.queue.time_of(priority);
        let shares = [running.map(|peer| peer.share_used(true)), first.map(|peer| peer.share_used(false))];
        // Whoever had least is one of the two, or nearly so. How much longer than time stood still they had it.
        let later = shares.into_iter().flatten().map(|share| share.wrapping_sub(time.get()) as i64).min();
        time.set(time.get().wrapping_add_signed(later.unwrap_or(0).max(0)));
        let mut own = Self::forget_sleep(woken, time.get());
        // Nobody waits for more than a slice on account of what was.
        let slice = (arch::tsc_khz() * SLICE_MS) as i64;
        let forgiven = (own.wrapping_sub(time.get()) as i64 - slice).max(0);
        woken.share_offset.set(woken.share_offset.get().wrapping_sub(forgiven as u64));
        own = own.wrapping_sub(forgiven as u64);

        woken.slice_start.set(woken.cpu_time(false));
        let behind = self.queue.push_by_share(woken, own);
        // Who runs before it makes room when it has caught up.
        match (running, behind) {
            (Some(peer), None) => {
                let lead = own.wrapping_sub(peer.share_used(true)) as i64;
                if lead >= 0 {
                    self.slice_end.set(0);
                    Self::shorten_turn(peer, true, lead as u64);
                } else if self.arch.turn.get() == Turn::Lasts {
                    self.arch.turn.set(Turn::Lent);
                }
            }
            (None, Some(peer)) if first.is_some_and(|first| core::ptr::eq(first, peer)) => {
                Self::shorten_turn(peer, false, own.wrapping_sub(peer.share_used(false)));
            }
            _ => {}
        }
    }

    /// Leaves a thread no more of its slice than this share.
    fn shorten_turn(peer: &Thread, is_running: bool, share: u64) {
        let weight = u64::from(peer.weight.get());
        let (time, left) = (peer.cpu_time(is_running), share / WEIGHT_DEFAULT * weight);
        let used = time.wrapping_sub(peer.slice_start.get());
        peer.slice_start.set(time.wrapping_sub(used.max(Self::slice_of(peer).saturating_sub(left))));
    }

    /// A thread's slice, in TSC ticks.
    #[inline(always)]
    fn slice_of(thread: &Thread) -> u64 {
        u64::from(thread.weight.get()) * (arch::tsc_khz() * SLICE_MS / WEIGHT_DEFAULT)
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
        cpu.enqueue(thread);
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
    let mut due = 0;
    while let Some(event) = cpu.timers.pop_due(now) {
        due += 1;
        if let Some(thread) = event.signal(event.timer.signals()) {
            wake(thread);
        }
    }
    cpu.note(Kind::Timer, due, 0);
    let slice = cpu.slice_end.get();
    if slice != 0 && slice <= now {
        // The running thread goes to the back of its level; `reschedule` then finds a peer first.
        cpu.slice_end.set(0);
        cpu.arch.turn.set(Turn::Over);
    }
    cpu.program_timer();
}

/// After an interrupt: whether the running thread has to make room.
#[inline]
pub fn needs_reschedule() -> bool {
    let cpu = this();
    cpu.must_switch() || cpu.arch.turn.get() != Turn::Lasts
}

/// Puts the running thread, which goes on as its `resume` says, back into the queue.
pub fn requeue_current() {
    let cpu = this();
    let place = match cpu.arch.turn.take() {
        Turn::Lasts => Place::Front,
        Turn::Lent => Place::ByShare,
        Turn::Over => Place::Back,
    };
    if let Some(thread) = cpu.current.get()
        && !thread.is_queued.get()
    {
        cpu.queue.push(thread, place);
        if place == Place::Back {
            // All until now belongs to the slice that ends here.
            thread.slice_start.set(thread.cpu_time(true));
        }
    }
}

/// Runs the most important ready thread, or idles until there is one.
#[cfg(target_os = "none")]
pub fn reschedule() -> ! {
    let cpu = this();
    cpu.arch.turn.set(Turn::Lasts);
    match cpu.queue.pop() {
        Some(thread) => switch(cpu, cpu.account(), thread),
        None => idle(cpu),
    }
}

#[cfg(target_os = "none")]
#[cold]
#[inline(never)]
fn idle(cpu: &'static Cpu) -> ! {
    if let Some(thread) = cpu.current.take() {
        Cpu::charge(&thread.time, &cpu.idle_time);
        cpu.note(Kind::Switch, thread.id.get(), 0);
    }
    cpu.slice_end.set(0);
    loop {
        cpu.program_timer();
        cpu.remind_timer(0);
        arch::idle_once();
        if let Some(thread) = cpu.queue.pop() {
            cpu.arch.turn.set(Turn::Lasts);
            switch(cpu, &cpu.idle_time, thread);
        }
    }
}

/// Stops running `from` and runs `to`, which is not queued, now.
#[cfg(target_os = "none")]
#[inline(always)]
pub fn switch_to(from: &'static Thread, to: &'static Thread) -> ! {
    switch(this(), &from.time, to)
}

/// [`switch_to`] a thread that waited and gets these signals, when nobody of its priority or above is ready
/// and no trace is taken.
#[cfg(target_os = "none")]
#[inline(always)]
pub fn hand_over(cpu: &'static Cpu, from: &'static Thread, to: &'static Thread, signals: u64) -> ! {
    to.waiting.set(None);
    Cpu::charge(&from.time, &to.time);
    put_on(cpu, to);
    arch::activate_and_return(cpu, to, signals)
}

/// Makes a thread the one that runs, without peers.
#[cfg(target_os = "none")]
#[inline(always)]
fn put_on(cpu: &'static Cpu, thread: &'static Thread) {
    cpu.current.set(Some(thread));
    cpu.slice_end.set(0);
    count(&cpu.switches);
    count(&thread.counters.dispatches);
}

#[cfg(target_os = "none")]
#[inline(always)]
fn switch(cpu: &'static Cpu, account: &Cell<u64>, to: &'static Thread) -> ! {
    Cpu::charge(account, &to.time);
    if cpu.trace.is_on() {
        let from = cpu.current.get().map_or(0, |thread| thread.id.get());
        cpu.trace.record(Kind::Switch, to.id.get(), from, 0);
    }
    put_on(cpu, to);
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
    requeue_current();
    switch(this(), &current.time, woken)
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
        thread.time.set(slice - 1000);
        // It was displaced and comes back.
        requeue_current();
        assert!(core::ptr::eq(cpu.queue.pop().unwrap(), thread));
        assert!(left() < 1000);
        // Its slice is over: the peer is next, and it has a whole slice before it again.
        cpu.arch.turn.set(Turn::Over);
        requeue_current();
        assert!(core::ptr::eq(cpu.queue.pop().unwrap(), peer));
        cpu.queue.remove(thread);
        cpu.queue.push(peer, Place::Back);
        assert!(left() > slice / 2);
    }

    /// A guest that mostly slept waited for the whole slice of one that never does, 10 ms each time.
    #[test]
    fn who_had_less_than_its_share_goes_first_when_it_wakes_up() {
        let [busy, sleeper, service] = [(); 3].map(|()| World::new().thread);
        let (cpu, slice) = (this(), arch::tsc_khz() * SLICE_MS);
        cpu.current.set(Some(busy));
        busy.time.set(1000 * slice);
        wake(sleeper);
        assert!(needs_reschedule());
        requeue_current();
        assert!(!needs_reschedule());
        let order = [cpu.queue.pop().unwrap(), cpu.queue.pop().unwrap()];
        assert!(core::ptr::eq(order[0], sleeper) && core::ptr::eq(order[1], busy));
        // It used what it had saved, which was not a thousand slices.
        sleeper.time.set(sleeper.time.get() + slice + slice / 8);
        wake(sleeper);
        assert!(!needs_reschedule());
        cpu.queue.remove(sleeper);
        // A more important thread needs no credit, and does not end anybody's turn.
        service.priority.set(busy.priority.get() + 1);
        wake(service);
        assert!(cpu.must_switch() && cpu.arch.turn.get() == Turn::Lasts);
        cpu.queue.remove(service);
    }

    /// A new guest kept a sleeping one waiting for a whole slice, as if it had waited since the machine's start.
    #[test]
    fn who_is_new_or_slept_for_long_is_ahead_by_the_credit_at_most() {
        let [old, new] = [(); 2].map(|()| World::new().thread);
        let (cpu, slice, credit) = (this(), arch::tsc_khz() * SLICE_MS, arch::tsc_khz() / CREDIT_PER_MS);
        for thread in [old, new] {
            thread.priority.set(9);
        }
        old.time.set(1000 * slice);
        cpu.current.set(None);
        // Alone.
        wake(old);
        assert!(core::ptr::eq(cpu.queue.pop().unwrap(), old));
        for _ in 0..2 {
            wake(new);
            assert!(core::ptr::eq(cpu.queue.pop().unwrap(), new));
            assert_eq!(old.share_used(false) - new.share_used(false), credit);
            cpu.current.set(Some(new));
            new.time.set(new.time.get().wrapping_sub(arch::tsc()));
            // It may go on until both had the same.
            wake(old);
            assert!(!needs_reschedule() && cpu.queue.has_level(9));
            let left = cpu.slice_end.get() - arch::tsc();
            assert!((credit - 1000..=credit).contains(&left), "{left}");
            cpu.queue.remove(old);
            cpu.current.set(None);
            new.time.set(new.time.get().wrapping_add(arch::tsc()));
            old.time.set(old.time.get() + 100 * slice);
            wake(old);
            cpu.queue.remove(old);
        }
    }

    /// The second of two that woke up waited behind the one that was to make room for both.
    #[test]
    fn who_makes_room_makes_it_for_all_who_had_less() {
        let [busy, a, b] = [(); 3].map(|()| World::new().thread);
        let (cpu, slice) = (this(), arch::tsc_khz() * SLICE_MS);
        cpu.current.set(Some(busy));
        busy.time.set(1000 * slice);
        wake(a);
        wake(b);
        requeue_current();
        let order = [(); 3].map(|()| cpu.queue.pop().unwrap());
        assert!(core::ptr::eq(order[2], busy));
    }

    /// Sleeping an instant before the end of each slice gains nothing.
    #[test]
    fn credit_gives_nobody_more_than_a_share() {
        let (busy, other, clever, cpu) =
            (World::new().thread, World::new().thread, World::new().thread, this());
        let slice = arch::tsc_khz() * SLICE_MS;
        cpu.current.set(None);
        for thread in [busy, other] {
            cpu.queue.push(thread, Place::Back);
        }
        for _ in 0..300 {
            wake(clever);
            loop {
                let next = cpu.queue.pop().unwrap();
                let is_clever = core::ptr::eq(next, clever);
                next.time.set(next.time.get() + if is_clever { slice * 9 / 10 } else { slice });
                if is_clever {
                    break;
                }
                cpu.queue.push(next, Place::Back);
            }
        }
        let share = |thread: &Thread| thread.time.get() / slice;
        assert!(share(clever) <= share(busy) + 2 && share(clever) <= share(other) + 2);
        assert!(share(clever) + 40 >= share(busy), "{} of {}", share(clever), share(busy));
        for thread in [busy, other] {
            cpu.queue.remove(thread);
        }
    }
}
