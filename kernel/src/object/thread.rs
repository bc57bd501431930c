//! Thread: a ring-3 execution context.
//!
//! Its saved registers stand at the start of the object: entry code stores them there directly, the
//! processor's own interrupt frame included, because `TSS.RSP0` of the CPU that runs the thread points to
//! their end.

use core::cell::Cell;

use proto::abi::{Error, NO_FAULT, ObjectType, PRIORITY_MAX, ThreadState};

use super::domain::Domain;
use super::event::Event;
use super::vcpu::Vcpu;
use super::{Header, Object};
use crate::cap::{self, Cap, Table};
use crate::memory::Shared;

/// Index into [`Thread::regs`]; 0 to 15 are the general registers in encoding order (4 is unused).
pub mod reg {
    #![allow(missing_docs, reason = "the names of the architecture's registers")]
    pub const RAX: usize = 0;
    pub const RDX: usize = 2;
    pub const RDI: usize = 7;
    pub const VECTOR: usize = 17;
    pub const ERROR: usize = 18;
    pub const RIP: usize = 19;
    pub const CS: usize = 20;
    pub const RFLAGS: usize = 21;
    pub const RSP: usize = 22;
    pub const SS: usize = 23;
    pub const COUNT: usize = 24;
}

/// Flags of a fresh thread: interrupts on.
pub const RFLAGS_USER: u64 = 0x202;

/// How a thread that does not run goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Resume {
    /// Return from a system call: the callee-saved registers, `rax` and `rdx` are valid.
    Syscall,
    /// Return from an interrupt: all registers are valid.
    Interrupt,
    /// Go on with `vcpu_run`.
    Vcpu,
}

/// The number given last. Changed only with the tree lock held.
static LAST_ID: Shared<Cell<u64>> = Shared(Cell::new(0));

/// What a thread did since it was made; see the fields of `abi::Field` with the same names.
#[derive(Debug, Default)]
pub struct Counters {
    /// Times that it was put on a CPU.
    pub dispatches: Cell<u64>,
    /// Signals that it sent.
    pub signals_sent: Cell<u64>,
    /// Those that made another thread ready or run.
    pub wake_ups: Cell<u64>,
    /// Interrupts that came while it was on the CPU.
    pub interrupts: Cell<u64>,
    /// Guest exits that were handed to it.
    pub vcpu_exits: Cell<u64>,
    /// Guest exits that the kernel served alone.
    pub vcpu_kernel_exits: Cell<u64>,
}

/// Raises a counter.
#[inline(always)]
pub fn count(counter: &Cell<u64>) {
    counter.set(counter.get().wrapping_add(1));
}

/// The object.
#[derive(Debug)]
#[repr(C)]
pub struct Thread {
    /// Saved registers.
    pub regs: [Cell<u64>; reg::COUNT],
    /// How it goes on, unless it waits: then with the signals of its event.
    pub resume: Cell<Resume>,
    /// What it does, but for waiting: see [`Thread::state`].
    pub state: Cell<ThreadState>,
    /// It is in its CPU's run queue.
    pub is_queued: Cell<bool>,
    /// 0 to 63.
    pub priority: Cell<u8>,
    /// Share among threads of its priority: its time slice is as long.
    pub weight: Cell<u16>,
    /// Where it runs.
    pub domain: &'static Domain,
    /// The domain's capability table.
    table: &'static Table,
    /// Physical address of the domain's level-4 table.
    pub root: u64,
    /// Its number: unique since boot, 0 before it is registered.
    pub id: Cell<u64>,
    /// What it did.
    pub counters: Counters,
    /// The event that it blocks on; its signals are taken when it runs again.
    pub waiting: Cell<Option<&'static Event>>,
    /// Put off in the middle of `vcpu_run`: the vCPU.
    pub vcpu: Cell<Option<&'static Vcpu>>,
    /// Slot of the event that ends the latest `vcpu_run`; looked up again whenever the guest is entered again.
    pub vcpu_event: Cell<u64>,
    /// TSC ticks on a CPU; while it is on one, less the TSC of when it came there. See [`Thread::cpu_time`].
    pub time: Cell<u64>,
    /// What [`Thread::cpu_time`] was when its time slice began: when it last went behind its peers.
    pub slice_start: Cell<u64>,
    /// Added to what it used of its share ([`Thread::share_used`]), so that it can be compared with its peers'.
    pub share_offset: Cell<u64>,
    /// Neighbours in the run queue.
    pub queue_prev: Cell<Option<&'static Thread>>,
    /// Neighbours in the run queue.
    pub queue_next: Cell<Option<&'static Thread>>,
    /// Last fault: vector, error code, address.
    pub fault: [Cell<u64>; 3],
    /// Signalled by its fault, with these signals.
    fault_event: Cell<Option<&'static Event>>,
    fault_signals: Cell<u64>,
    next_fault_source: Cell<Option<&'static Thread>>,
    next_in_domain: Cell<Option<&'static Thread>>,
    /// Restartable call that it is in the middle of: number, slot, progress.
    pub progress: [Cell<u64>; 3],
    header: Header,
}

impl Object for Thread {
    const KIND: ObjectType = ObjectType::Thread;
    fn header(&self) -> &Header {
        &self.header
    }
}

impl Thread {
    /// A stopped thread of a domain, in one donated frame.
    pub fn new(domain: &'static Domain) -> Self {
        Self {
            regs: [const { Cell::new(0) }; reg::COUNT],
            resume: Cell::new(Resume::Interrupt),
            state: Cell::new(ThreadState::Stopped),
            is_queued: Cell::new(false),
            priority: Cell::new(0),
            weight: Cell::new(256),
            domain,
            table: domain.slots(),
            root: domain.space.root.phys().0,
            id: Cell::new(0),
            counters: Counters::default(),
            waiting: Cell::new(None),
            vcpu: Cell::new(None),
            vcpu_event: Cell::new(0),
            time: Cell::new(0),
            slice_start: Cell::new(0),
            share_offset: Cell::new(0),
            queue_prev: Cell::new(None),
            queue_next: Cell::new(None),
            fault: [Cell::new(NO_FAULT), Cell::new(0), Cell::new(0)],
            fault_event: Cell::new(None),
            fault_signals: Cell::new(0),
            next_fault_source: Cell::new(None),
            next_in_domain: Cell::new(None),
            progress: [const { Cell::new(0) }; 3],
            header: Header::default(),
        }
    }

    /// What it does.
    pub fn state(&self) -> ThreadState {
        let is_ready = self.waiting.get().is_none() || self.is_queued.get();
        if is_ready { self.state.get() } else { ThreadState::Waiting }
    }

    /// The slot of its domain's table.
    ///
    /// # Errors
    /// `BadSlot`.
    #[inline(always)]
    pub fn slot(&self, number: u64) -> Result<&'static Cap, Error> {
        cap::slot(self.table, number)
    }

    /// TSC ticks on a CPU so far; `is_running`: it is on this one.
    pub fn cpu_time(&self, is_running: bool) -> u64 {
        let since = if is_running { crate::arch::tsc() } else { 0 };
        self.time.get().wrapping_add(since)
    }

    /// Its CPU time as if its weight were the usual one, from a beginning of its own: whoever of its priority has the
    /// smallest one had least of what is due to it. Wraps.
    pub fn share_used(&self, is_running: bool) -> u64 {
        let time = self.cpu_time(is_running) / u64::from(self.weight.get()).max(1) * 256;
        time.wrapping_add(self.share_offset.get())
    }

    /// Enters a new thread into its domain's list, and its fault event's, and numbers it.
    pub fn register(&'static self, fault: Option<(&'static Event, u64)>) {
        self.id.set(LAST_ID.0.get() + 1);
        LAST_ID.0.set(self.id.get());
        self.next_in_domain.set(self.domain.threads.replace(Some(self)));
        if let Some((event, signals)) = fault {
            self.fault_event.set(Some(event));
            self.fault_signals.set(signals);
            self.next_fault_source.set(event.fault_sources.replace(Some(self)));
        }
    }

    /// Takes a stopped thread out of its domain's list and its fault event's.
    pub fn unregister(&self) {
        unlink(&self.domain.threads, self, |thread| &thread.next_in_domain);
        if let Some(event) = self.fault_event.take() {
            unlink(&event.fault_sources, self, |thread| &thread.next_fault_source);
        }
    }

    /// Before an event is destroyed: no thread's fault signals it any more.
    pub fn forget_fault_event(event: &Event) {
        let mut next = event.fault_sources.take();
        while let Some(thread) = next {
            thread.fault_event.set(None);
            next = thread.next_fault_source.take();
        }
    }

    /// The next thread of its domain.
    pub fn following(&self) -> Option<&'static Self> {
        self.next_in_domain.get()
    }

    /// Who hears of its fault.
    pub fn fault_target(&self) -> Option<(&'static Event, u64)> {
        self.fault_event.get().map(|event| (event, self.fault_signals.get()))
    }

    /// Sets its registers for a start at `entry`.
    pub fn set_start(&self, entry: u64, stack: u64, argument: u64) {
        for register in &self.regs {
            register.set(0);
        }
        self.regs[reg::RIP].set(entry);
        self.regs[reg::RSP].set(stack);
        self.regs[reg::RDI].set(argument);
        self.regs[reg::RFLAGS].set(RFLAGS_USER);
        self.regs[reg::CS].set(crate::arch::USER_CODE);
        self.regs[reg::SS].set(crate::arch::USER_DATA);
        self.resume.set(Resume::Interrupt);
        self.fault[0].set(NO_FAULT);
    }

    /// Sets its scheduling parameters; it is not queued.
    ///
    /// # Errors
    /// `BadArgument` out of range; `NotSupported` for a cap.
    pub fn set_schedule(&self, priority: u64, weight: u64, cap_permille: u64) -> Result<(), Error> {
        if priority > PRIORITY_MAX || weight == 0 || weight > 4096 || cap_permille > 1000 {
            return Err(Error::BadArgument);
        }
        if cap_permille != 0 {
            return Err(Error::NotSupported);
        }
        self.priority.set(priority as u8);
        self.weight.set(weight as u16);
        Ok(())
    }

    /// Stops waiting or running a vCPU; it is not queued afterwards only if the scheduler removes it.
    pub fn leave_objects(&'static self) {
        if let Some(event) = self.waiting.take() {
            event.cancel_wait(self);
        }
        if let Some(vcpu) = self.vcpu.take() {
            vcpu.runner.set(None);
        }
    }

    /// A thread of a leaked domain, for tests.
    #[cfg(test)]
    pub fn leak_for_test() -> &'static Self {
        let domain = Domain::create(crate::testing::frames(3, 1), 64).unwrap();
        Box::leak(Box::new(Self::new(domain)))
    }
}

/// Removes `thread` from a singly linked list.
fn unlink(
    head: &Cell<Option<&'static Thread>>,
    thread: &Thread,
    next: impl Fn(&'static Thread) -> &'static Cell<Option<&'static Thread>>,
) {
    let mut link: &Cell<Option<&'static Thread>> = head;
    while let Some(node) = link.get() {
        if core::ptr::eq(node, thread) {
            link.set(next(node).take());
            return;
        }
        link = next(node);
    }
}
