//! The kernel's ABI: system calls, errors, rights, and the vCPU state page.
//!
//! Calling convention (x86_64): `syscall` with the number in `rax` and up to six arguments in `rdi`,
//! `rsi`, `rdx`, `r10`, `r8`, `r9`. On return `rax` is an [`Error`] code (0: success) and `rdx` a value.
//! `rbx`, `rbp`, `rsp` and `r12`-`r15` are preserved; every other register is clobbered.
//! No system call takes a pointer: the kernel never reads or writes a caller's memory except through
//! pages that the caller donated for that purpose.

/// Index into the calling domain's capability table. Slot 0 is never valid and stands for "none", or,
/// where a domain is expected, for the calling domain itself.
pub type Slot = u32;

/// Bytes in a page and in a frame.
pub const PAGE_SIZE: u64 = 4096;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// Capability slots that one 4 KiB frame holds.
pub const SLOTS_PER_FRAME: u64 = 64;
/// Frames that a vCPU lives in, beside its state page: object, VMCB, FPU.
pub const VCPU_FRAMES: u64 = 3;
/// First address that no domain may map (end of the lower canonical half).
pub const USER_END: u64 = 0x0000_8000_0000_0000;
/// Highest scheduling priority; 0 is the lowest.
pub const PRIORITY_MAX: u64 = 63;

macro_rules! numbered {
    ($(#[$outer:meta])* $name:ident : $repr:ty { $($(#[$doc:meta])* $variant:ident = $value:literal,)* }) => {
        $(#[$outer])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr($repr)]
        pub enum $name { $($(#[$doc])* $variant = $value,)* }
        impl TryFrom<u64> for $name {
            type Error = u64;
            fn try_from(value: u64) -> Result<Self, u64> {
                match value { $($value => Ok(Self::$variant),)* other => Err(other) }
            }
        }
    };
}

numbered! {
    /// System call numbers. Arguments in order; "-> x" is the value in `rdx`.
    Syscall: u64 {
        /// `()`: gives up the rest of the time slice.
        ThreadYield = 0,
        /// `(event)`: sets the signals that the capability carries.
        EventSignal = 1,
        /// `(event) -> signals`: blocks until a signal is set, then takes all of them.
        EventWait = 2,
        /// `(event) -> signals`: takes the signals that are set, perhaps none.
        EventPoll = 3,
        /// `(signal, wait) -> signals`: [`Syscall::EventSignal`] and [`Syscall::EventWait`] in one, with a direct switch.
        EventSignalAndWait = 4,
        /// `(event, deadline_tsc, signals)`: sets `signals` once the TSC reaches the deadline; 0 cancels.
        /// An event has one timer; a second call replaces it.
        EventTimer = 5,
        /// `(vcpu, event) -> signals`: runs the guest until it exits (value 0, see [`VcpuState`]) or the
        /// event is signalled (value: the signals, taken).
        VcpuRun = 6,
        /// `(frames[1], dst)`: makes an event out of one donated frame.
        EventCreate = 7,
        /// `(frames[2 + slots / 64], dst, slots)`: makes a domain.
        DomainCreate = 8,
        /// `(space, frames)`: gives a domain or VM frames for its page tables.
        SpaceDonate = 9,
        /// `(frames[1], domain, dst, fault_event)`: makes a thread; its fault signals `fault_event` (0: none).
        ThreadCreate = 10,
        /// `(thread, entry, stack, argument)`: starts a thread at `entry` with `argument` in `rdi`.
        ThreadStart = 11,
        /// `(thread)`: stops it wherever it is. It can be started again from an entry point.
        ThreadSuspend = 12,
        /// `(thread, priority, weight, cap_permille)`: scheduling parameters; cap 0 means none.
        ThreadSchedule = 13,
        /// `(slot, field) -> value`: reads a fact about the object, see [`Field`]. Slot 0 is the calling thread, of
        /// which it may read [`Field::CpuTime`].
        CapRead = 14,
        /// `(frames[2], dst)`: makes a VM with an empty guest-physical address space.
        VmCreate = 15,
        /// `(frames[3], vm, state_frames[1], dst)` ([`VCPU_FRAMES`]): makes a vCPU whose [`VcpuState`] is the given frame.
        VcpuCreate = 16,
        /// `(frames, at, dst)`: cuts an owned run in two; `slot` keeps the first `at` frames.
        FramesSplit = 17,
        /// `(low, high)`: joins two adjacent owned runs into `low`.
        FramesMerge = 18,
        /// `(src, domain, dst, offset, count, rights)`: derives a capability to a sub-range. Frames: frames
        /// `offset..offset + count`; ports and interrupts likewise; events: `offset` is the signal mask, `count` unused.
        CapDerive = 19,
        /// `(src, domain, dst)`: moves a capability to another table; children stay attached.
        CapMove = 20,
        /// `(domain, slot)`: deletes a capability; the last owned one of an object destroys it.
        CapDelete = 21,
        /// `(slot)`: deletes everything derived from the capability. May answer [`Error::Restart`].
        CapRevoke = 22,
        /// `(src, space, address, flags)`: maps frames into a domain or VM; enables ports in a domain
        /// (`address` unused); with the log as the space starts the trace, see [`trace`]. May answer
        /// [`Error::Restart`].
        CapMap = 23,
        /// `(src)`: undoes [`Syscall::CapMap`]. May answer [`Error::Restart`].
        CapUnmap = 24,
        /// `(irq, event, offset)`: line `offset` of the range signals the event from now on (event 0: stops).
        IrqBind = 25,
        /// `(irq, offset)`: unmasks a level-triggered line after its cause was removed.
        IrqAck = 26,
        /// `(field) -> value`: facts about the machine, see [`SystemField`].
        SystemInfo = 27,
        /// `(log, bytes, len)`: up to eight bytes of text for the early serial log.
        LogWrite = 28,
        /// `(log)`: resets the machine by a triple fault; the log capability stands for the machine.
        MachineReset = 29,
    }
}

numbered! {
    /// Why a system call failed.
    Error: u64 {
        /// Unknown system call number.
        BadSyscall = 1,
        /// A slot is out of range or empty.
        BadSlot = 2,
        /// The capability names an object of another type.
        WrongType = 3,
        /// The capability lacks a right that the operation needs.
        NoRight = 4,
        /// The destination slot is not empty.
        SlotInUse = 5,
        /// An argument is out of range, misaligned or of the wrong size.
        BadArgument = 6,
        /// The space has no donated frame left for a page table.
        NoMemory = 7,
        /// The capability has derived capabilities.
        HasChildren = 8,
        /// The capability is mapped.
        IsMapped = 9,
        /// The capability is not mapped.
        NotMapped = 10,
        /// The address range is already in use.
        AddressInUse = 11,
        /// The object is in use (a thread already waits, a vCPU already runs, a thread runs).
        Busy = 12,
        /// Preempted in the middle of long work: repeat the same call to go on.
        Restart = 13,
        /// The object was destroyed.
        Dead = 14,
        /// The run is derived, not owned: it cannot be split, merged or donated.
        NotOwned = 15,
        /// The machine lacks the feature.
        NotSupported = 16,
    }
}

numbered! {
    /// Fields of [`Syscall::CapRead`].
    Field: u64 {
        /// [`ObjectType`] as a number; 0 for an empty slot.
        Type = 0,
        /// Rights.
        Rights = 1,
        /// Frames, ports, interrupts: first one (frames: frame number, needs [`rights::PHYS`]). Events: the signal mask.
        Base = 2,
        /// Frames, ports, interrupts: how many.
        Count = 3,
        /// Threads: time on the CPU so far, in TSC ticks.
        CpuTime = 4,
        /// Threads: [`ThreadState`] as a number.
        ThreadState = 5,
        /// Threads: exception vector of the last fault, or [`NO_FAULT`].
        FaultVector = 6,
        /// Threads: error code of the last fault.
        FaultCode = 7,
        /// Threads: faulting address (CR2) of the last fault.
        FaultAddress = 8,
        /// Threads: instruction pointer when last in the kernel.
        Rip = 9,
        /// Threads: stack pointer.
        Rsp = 10,
        /// Threads: flags.
        Rflags = 11,
        /// Domains and VMs: donated frames not yet used for page tables.
        FreeFrames = 12,
        /// First general register (`rax`), the others follow in encoding order: 16 + n.
        Rax = 16,
        /// Register 1.
        Rcx = 17,
        /// Register 2.
        Rdx = 18,
        /// Register 3.
        Rbx = 19,
        /// Register 5.
        Rbp = 21,
        /// Register 6.
        Rsi = 22,
        /// Register 7.
        Rdi = 23,
        /// Register 8.
        R8 = 24,
        /// Register 9.
        R9 = 25,
        /// Register 10.
        R10 = 26,
        /// Register 11.
        R11 = 27,
        /// Register 12.
        R12 = 28,
        /// Register 13.
        R13 = 29,
        /// Register 14.
        R14 = 30,
        /// Register 15.
        R15 = 31,
        /// Threads: how often it was put on a CPU.
        Dispatches = 32,
        /// Threads: signals that it sent (`EventSignal`, `EventSignalAndWait`).
        SignalsSent = 33,
        /// Threads: those of its signals that made another thread ready or run.
        WakeUps = 34,
        /// Threads: interrupts (devices' and the timer's) that came while it, or its guest, was on the CPU.
        Interrupts = 36,
        /// Threads that run a vCPU: guest exits handed to the VMM.
        VcpuExits = 37,
        /// Threads that run a vCPU: guest exits that the kernel served alone.
        VcpuKernelExits = 38,
        /// Threads: its number, unique since boot and never 0. The trace names threads by it (its low 32 bits).
        ThreadId = 39,
    }
}

/// Value of [`Field::FaultVector`] when the thread has not faulted.
pub const NO_FAULT: u64 = u64::MAX;

numbered! {
    /// Fields of [`Syscall::SystemInfo`].
    SystemField: u64 {
        /// TSC ticks per millisecond.
        TscKhz = 0,
        /// Frames of RAM that the firmware reported.
        TotalFrames = 1,
        /// Frames that the kernel keeps for itself.
        KernelFrames = 2,
        /// TSC ticks that this CPU was idle.
        IdleTime = 3,
        /// CPUs in use.
        Cpus = 4,
        /// First vector number that an MSI may carry (see [`MSI_ADDRESS`]).
        FirstMsiVector = 5,
        /// How often a thread was put on the CPU (the sum of [`Field::Dispatches`] since boot).
        ContextSwitches = 6,
        /// Interrupts (devices' and the timer's) since boot.
        Interrupts = 7,
        /// Writes to CR3. This and what follows: only in a kernel built to count (feature
        /// `count-instructions`); else [`Error::NotSupported`]. They count from boot.
        Cr3Writes = 16,
        /// WRMSR.
        MsrWrites = 17,
        /// VMSAVE and VMLOAD.
        VmSaveLoads = 18,
        /// XSETBV.
        XcrWrites = 19,
        /// IRETQ.
        Irets = 20,
        /// SYSRETQ.
        Sysrets = 21,
        /// SWAPGS.
        Swapgs = 22,
        /// VMRUN.
        Vmruns = 23,
        /// Reads and writes of the local and the I/O APIC's registers.
        ApicAccesses = 24,
        /// INVLPG.
        Invlpg = 25,
    }
}

/// The kernel's trace: a ring of records in frames that the holder of the log capability gave.
///
/// [`Syscall::CapMap`] of a run of at least two frames with the log capability (with
/// [`rights::CONTROL`]) as the space, address 0 and flags READ | WRITE starts it; [`Syscall::CapUnmap`] of
/// the run stops it. The run has to be owned RAM that is not donated; it may be mapped elsewhere through
/// derived capabilities, so that somebody can read it meanwhile, and is pinned while it is in use.
/// There is one trace at a time ([`Error::Busy`]).
///
/// The first frame is the [`Header`]; records follow from the second on. The kernel writes the oldest over when
/// the ring is full, and reads nothing back: whatever a reader does to the pages hurts its own copy alone.
/// Record `n` (counted from 0) is at index `n % capacity`; `written` is raised after the record is
/// complete. A reader copies, then reads `written` again: records below `written - capacity` were overwritten
/// meanwhile.
pub mod trace {
    use super::PAGE_SIZE;

    /// [`Header::magic`]: "AILTRACE", little-endian.
    pub const MAGIC: u64 = u64::from_le_bytes(*b"AILTRACE");
    /// Offset of the first record.
    pub const RECORDS_AT: u64 = PAGE_SIZE;
    /// Frames that a trace takes at least.
    pub const FRAMES_MIN: u64 = 2;

    /// Start of the first frame.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    #[repr(C)]
    pub struct Header {
        /// [`MAGIC`] while the trace is used.
        pub magic: u64,
        /// Records that the ring holds.
        pub capacity: u64,
        /// Records ever written; the number of the next one.
        pub written: u64,
    }

    /// One record.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    #[repr(C)]
    pub struct Record {
        /// Time stamp counter.
        pub tsc: u64,
        /// [`Kind`] as a number.
        pub kind: u16,
        /// CPU.
        pub cpu: u16,
        /// The thread that ran, or that runs from now on ([`Kind::Switch`]); 0: none.
        pub thread: u32,
        /// See [`Kind`].
        pub a: u64,
        /// See [`Kind`].
        pub b: u64,
    }

    const _: () = assert!(size_of::<Record>() == 32 && PAGE_SIZE.is_multiple_of(32));

    numbered! {
        /// What a record says.
        Kind: u16 {
            /// A thread (or none: the CPU is idle) is on the CPU from now on; `a`: the one before, 0: idle.
            Switch = 1,
            /// An event was signalled; `a`: the signals, `b`: the thread that this made ready or run, 0: none.
            Signal = 2,
            /// A device's interrupt; `a`: the line (as `IrqBind` counts them), `b`: the thread that it made ready.
            Interrupt = 3,
            /// The guest is entered; `a`: its RIP.
            VmEntry = 4,
            /// The guest was left; `a`: exit code, `b`: EXITINFO1.
            VmExit = 5,
            /// The thread waits for its event.
            Wait = 6,
            /// The timer's interrupt; `a`: timers that were due.
            Timer = 7,
        }
    }
}

/// Address that a device writes an MSI to, for the boot CPU; the data is the vector number.
pub const MSI_ADDRESS: u64 = 0xfee0_0000;

numbered! {
    /// Kinds of objects that a capability can name.
    ObjectType: u64 {
        /// Nothing: an empty slot.
        Empty = 0,
        /// A run of physical frames.
        Frames = 1,
        /// An address space with a capability table.
        Domain = 2,
        /// A thread.
        Thread = 3,
        /// A guest-physical address space.
        Vm = 4,
        /// A virtual CPU.
        Vcpu = 5,
        /// An event.
        Event = 6,
        /// A range of interrupt lines (GSIs 0..24, then MSI vectors).
        Irq = 7,
        /// A range of I/O ports.
        IoPorts = 8,
        /// The early serial log.
        Log = 9,
    }
}

numbered! {
    /// What a thread is doing.
    ThreadState: u64 {
        /// Not started, or stopped by [`Syscall::ThreadSuspend`].
        Stopped = 0,
        /// Ready or running.
        Running = 1,
        /// Blocked on its event.
        Waiting = 2,
        /// Stopped by an exception; see the fault fields.
        Faulted = 3,
        /// Ready, but its budget for this period is used up.
        Throttled = 4,
    }
}

/// Rights of a capability, as bits.
pub mod rights {
    /// Frames: may be mapped readable. Events: may be signalled.
    pub const READ: u64 = 1;
    /// Frames: may be mapped writable. Events: may be waited on, polled and bound.
    pub const WRITE: u64 = 2;
    /// Frames: may be mapped executable.
    pub const EXECUTE: u64 = 4;
    /// The physical address may be read (for DMA).
    pub const PHYS: u64 = 8;
    /// May be derived from, and objects: may be controlled (start, install, map into, destroy).
    pub const CONTROL: u64 = 16;
    /// Events: may be signalled (same bit as [`READ`]).
    pub const SIGNAL: u64 = READ;
    /// Events: may be waited on (same bit as [`WRITE`]).
    pub const WAIT: u64 = WRITE;
    /// Every right.
    pub const ALL: u64 = 31;
}

/// Flags of [`Syscall::CapMap`]; the first three are the rights of the same value.
pub mod map {
    /// Readable.
    pub const READ: u64 = 1;
    /// Writable.
    pub const WRITE: u64 = 2;
    /// Executable.
    pub const EXECUTE: u64 = 4;
    /// Uncached, for device registers (always so for device frames).
    pub const UNCACHED: u64 = 8;
}

/// Slots that the kernel fills in init's table before it starts it.
pub mod init_slots {
    use super::Slot;
    /// Init's own domain.
    pub const DOMAIN: Slot = 1;
    /// Init's own thread.
    pub const THREAD: Slot = 2;
    /// Init's own event.
    pub const EVENT: Slot = 3;
    /// All I/O ports.
    pub const IO_PORTS: Slot = 4;
    /// All interrupt lines and MSI vectors.
    pub const IRQS: Slot = 5;
    /// The early serial log.
    pub const LOG: Slot = 6;
    /// First of the frame runs that `InitInfo` lists.
    pub const FIRST_FRAMES: Slot = 16;
}

/// Index into [`VcpuState::gprs`], in x86 encoding order.
pub mod gpr {
    #![allow(missing_docs, reason = "the names of the architecture's registers")]
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
    pub const R8: usize = 8;
    pub const R15: usize = 15;
}

/// Groups of [`VcpuState`] fields, for [`VcpuState::load`] and [`VcpuState::store`].
pub mod groups {
    /// `cr0`, `cr2`, `cr3`, `cr4`, `efer`, which the kernel stores at every exit.
    pub const CONTROL: u32 = 1;
    /// `segments`.
    pub const SEGMENTS: u32 = 2;
    /// `star` to `pat`.
    pub const MSRS: u32 = 4;
    /// `tsc_offset` (load only).
    pub const TSC: u32 = 8;
    /// `debug`, `dr7` (load only: the guest's writes are exits).
    pub const DEBUG: u32 = 16;
    /// `dr6`.
    pub const DR6: u32 = 32;
    /// `intercept_iret` (load only).
    pub const IRET: u32 = 64;
    /// Everything.
    pub const ALL: u32 = 127;
}

/// A segment register as SVM keeps it: `attributes` is the descriptor's bits 40-47 and 52-55 squeezed
/// into 12 bits (AMD64 APM vol. 2, 15.5.1 and appendix B).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Segment {
    /// Selector.
    pub selector: u16,
    /// Attributes.
    pub attributes: u16,
    /// Limit in bytes, after granularity.
    pub limit: u32,
    /// Base address.
    pub base: u64,
}

/// Index into [`VcpuState::segments`].
pub mod seg {
    #![allow(missing_docs, reason = "the names of the architecture's registers")]
    pub const ES: usize = 0;
    pub const CS: usize = 1;
    pub const SS: usize = 2;
    pub const DS: usize = 3;
    pub const FS: usize = 4;
    pub const GS: usize = 5;
    pub const GDTR: usize = 6;
    pub const LDTR: usize = 7;
    pub const IDTR: usize = 8;
    pub const TR: usize = 9;
}

/// `interrupt` bit: the vector in bits 0-7 is to be delivered as soon as the guest can take it.
pub const INTERRUPT_PENDING: u32 = 1 << 31;

/// The page that a vCPU's VMM and the kernel share. The kernel copies each field once and checks what
/// could harm anybody but the guest; exit codes are the processor's (SVM: APM vol. 2, appendix C).
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct VcpuState {
    /// General registers in encoding order; loaded and stored around every run.
    pub gprs: [u64; 16],
    /// Instruction pointer; loaded and stored around every run.
    pub rip: u64,
    /// Flags; loaded and stored around every run.
    pub rflags: u64,
    /// Exit code, the low 32 bits of the VMCB's; written at every exit.
    pub exit_code: u64,
    /// EXITINFO1.
    pub exit_info1: u64,
    /// EXITINFO2.
    pub exit_info2: u64,
    /// EXITINTINFO: the event whose delivery was interrupted, to be injected again.
    pub exit_int_info: u64,
    /// CR0; written at every exit, loaded with [`groups::CONTROL`].
    pub cr0: u64,
    /// CR2 likewise.
    pub cr2: u64,
    /// CR3 likewise.
    pub cr3: u64,
    /// CR4 likewise.
    pub cr4: u64,
    /// EFER as the guest sees it (without SVME) likewise.
    pub efer: u64,
    /// Current privilege level of the guest; written at every exit.
    pub cpl: u32,
    /// CS attributes (L is bit 9, D bit 10); written at every exit.
    pub cs_attributes: u32,
    /// Bit 0: the guest was in an interrupt shadow at the exit; loaded at every entry.
    pub interrupt_shadow: u32,
    /// Virtual interrupt: vector in bits 0-7, [`INTERRUPT_PENDING`]. The kernel offers it at entry and
    /// writes back at exit whether it is still pending.
    pub interrupt: u32,
    /// Exception or NMI to inject at the next entry, as EVENTINJ (external interrupts: use `interrupt`);
    /// the kernel clears it.
    pub inject: u64,
    /// Groups that the kernel is to load at the next entry; it clears them.
    pub load: u32,
    /// Groups that the kernel is to store at every exit.
    pub store: u32,
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,
    /// Segment and table registers, by [`seg`].
    pub segments: [Segment; 10],
    /// STAR.
    pub star: u64,
    /// LSTAR.
    pub lstar: u64,
    /// CSTAR.
    pub cstar: u64,
    /// SFMASK.
    pub sfmask: u64,
    /// KernelGsBase.
    pub kernel_gs_base: u64,
    /// SYSENTER_CS.
    pub sysenter_cs: u64,
    /// SYSENTER_ESP.
    pub sysenter_esp: u64,
    /// SYSENTER_EIP.
    pub sysenter_eip: u64,
    /// Guest PAT.
    pub pat: u64,
    /// Added to the TSC when the guest reads it.
    pub tsc_offset: u64,
    /// DR0 to DR3. The guest reads them from the processor; its writes, and those of DR7, are exits.
    pub debug: [u64; 4],
    /// Not 0: IRET is an exit, before it is executed.
    pub intercept_iret: u64,
}

const _: () = assert!(size_of::<VcpuState>() <= PAGE_SIZE as usize);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_decode_to_themselves_and_nothing_else_does() {
        for n in 0..64 {
            if let Ok(call) = Syscall::try_from(n) {
                assert_eq!(call as u64, n);
            }
        }
        assert_eq!(Syscall::try_from(30), Err(30));
        assert_eq!(Error::try_from(0), Err(0));
        assert_eq!(ObjectType::try_from(u64::MAX), Err(u64::MAX));
    }
}
