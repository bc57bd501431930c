//! System calls, one function each, in the order of [`proto::abi::Syscall`]; those that count wake-ups last.
//!
//! Every wrapper repeats a call that answers [`Error::Restart`]. No system call takes a pointer, so none
//! can harm the caller's memory through an argument; what may is taking frames away that are in use
//! ([`cap_unmap`], [`cap_revoke`], [`cap_delete`]): whoever maps frames also keeps track of them.
#![cfg_attr(target_os = "none", expect(unsafe_code, reason = "the system call instruction"))]

use proto::abi::{Error, Field, Slot, Syscall, SystemField};
use proto::counters::WAKE_UPS;

use crate::counters;

/// Arguments of a call, from `rdi` on.
type Arguments = [u64; 6];

#[cfg(target_os = "none")]
#[inline(always)]
fn raw(call: Syscall, arguments: Arguments) -> (u64, u64) {
    let [a, b, c, d, e, f] = arguments;
    let (error, value);
    // SAFETY: the kernel preserves every register that is not named here, and touches no memory of this
    // domain but pages that were given to it (calls that unmap are the caller's responsibility, see above).
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") call as u64 => error,
            inlateout("rdi") a => _,
            inlateout("rsi") b => _,
            inlateout("rdx") c => value,
            inlateout("r10") d => _,
            inlateout("r8") e => _,
            inlateout("r9") f => _,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    (error, value)
}

/// On the host there is no Ailurus kernel to ask.
#[cfg(not(target_os = "none"))]
fn raw(_: Syscall, _: Arguments) -> (u64, u64) {
    (Error::NotSupported as u64, 0)
}

/// Calls until the answer is not [`Error::Restart`].
#[inline(always)]
fn call(call: Syscall, arguments: Arguments) -> Result<u64, Error> {
    loop {
        let (error, value) = raw(call, arguments);
        if error == 0 {
            return Ok(value);
        }
        match Error::try_from(error) {
            Ok(Error::Restart) => {}
            Ok(error) => return Err(error),
            Err(_) => return Err(Error::BadSyscall),
        }
    }
}

macro_rules! syscalls {
    ($($(#[$doc:meta])* $name:ident($($argument:ident: $type:ty),*) -> $value:ty = $call:ident;)*) => {
        $(
            $(#[$doc])*
            ///
            /// # Errors
            /// What the kernel answers; see [`Error`].
            #[inline]
            pub fn $name($($argument: $type),*) -> Result<$value, Error> {
                let mut arguments = [0; 6];
                let given: &[u64] = &[$($argument as u64),*];
                for (slot, value) in arguments.iter_mut().zip(given) {
                    *slot = *value;
                }
                call(Syscall::$call, arguments).map(|value| <$value as Answer>::from(value))
            }
        )*
    };
}

/// What a wrapper makes of the value in `rdx`.
trait Answer {
    /// Takes it.
    fn from(value: u64) -> Self;
}

impl Answer for () {
    #[inline]
    fn from(_: u64) {}
}

impl Answer for u64 {
    #[inline]
    fn from(value: u64) -> u64 {
        value
    }
}

syscalls! {
    /// Gives up the rest of the time slice.
    thread_yield() -> () = ThreadYield;
    /// Sets the signals that the capability carries.
    event_signal(event: Slot) -> () = EventSignal;
    /// Takes the signals that are set, perhaps none.
    event_poll(event: Slot) -> u64 = EventPoll;
    /// [`event_signal`] and [`event_wait`] in one, with a direct switch.
    event_signal_and_wait(signal: Slot, wait: Slot) -> u64 = EventSignalAndWait;
    /// Sets `signals` once the TSC reaches `deadline_tsc`; 0 cancels.
    event_timer(event: Slot, deadline_tsc: u64, signals: u64) -> () = EventTimer;
    /// Makes an event out of one donated frame.
    event_create(frames: Slot, dst: Slot) -> () = EventCreate;
    /// Makes a domain with `slots` capability slots.
    domain_create(frames: Slot, dst: Slot, slots: u64) -> () = DomainCreate;
    /// Gives a domain or VM frames for its page tables.
    space_donate(space: Slot, frames: Slot) -> () = SpaceDonate;
    /// Makes a thread whose fault signals `fault_event` (0: none).
    thread_create(frames: Slot, domain: Slot, dst: Slot, fault_event: Slot) -> () = ThreadCreate;
    /// Starts a thread at `entry` with `argument` in `rdi`.
    thread_start(thread: Slot, entry: u64, stack: u64, argument: u64) -> () = ThreadStart;
    /// Stops a thread wherever it is.
    thread_suspend(thread: Slot) -> () = ThreadSuspend;
    /// Sets scheduling parameters.
    thread_schedule(thread: Slot, priority: u64, weight: u64, cap_permille: u64) -> () = ThreadSchedule;
    /// Reads a fact about the object.
    cap_read(slot: Slot, field: Field) -> u64 = CapRead;
    /// Makes a VM.
    vm_create(frames: Slot, dst: Slot) -> () = VmCreate;
    /// Makes a vCPU whose state page is the given frame.
    vcpu_create(frames: Slot, vm: Slot, state: Slot, dst: Slot) -> () = VcpuCreate;
    /// Cuts an owned run in two; `frames` keeps the first `at` frames.
    frames_split(frames: Slot, at: u64, dst: Slot) -> () = FramesSplit;
    /// Joins two adjacent owned runs into `low`.
    frames_merge(low: Slot, high: Slot) -> () = FramesMerge;
    /// Derives a capability into `dst` of `domain` (0: the own one).
    cap_derive(src: Slot, domain: Slot, dst: Slot, offset: u64, count: u64, rights: u64) -> () = CapDerive;
    /// Moves a capability to `dst` of `domain`.
    cap_move(src: Slot, domain: Slot, dst: Slot) -> () = CapMove;
    /// Deletes a capability of `domain` (0: the own one).
    cap_delete(domain: Slot, slot: Slot) -> () = CapDelete;
    /// Deletes everything derived from the capability.
    cap_revoke(slot: Slot) -> () = CapRevoke;
    /// Maps frames into a domain (0: the own one) or VM; enables ports in a domain.
    cap_map(src: Slot, space: Slot, address: u64, flags: u64) -> () = CapMap;
    /// Undoes [`cap_map`].
    cap_unmap(src: Slot) -> () = CapUnmap;
    /// Line `offset` of the range signals the event from now on (event 0: stops).
    irq_bind(irq: Slot, event: Slot, offset: u64) -> () = IrqBind;
    /// Unmasks a level-triggered line after its cause was removed.
    irq_ack(irq: Slot, offset: u64) -> () = IrqAck;
    /// Reads a fact about the machine.
    system_info(field: SystemField) -> u64 = SystemInfo;
    /// Writes up to eight bytes of text to the early serial log.
    log_write(log: Slot, bytes: u64, len: u64) -> () = LogWrite;
    /// Resets the machine.
    machine_reset(log: Slot) -> () = MachineReset;
}

/// Blocks until a signal is set, then takes all of them.
///
/// # Errors
/// What the kernel answers; see [`Error`].
#[inline]
pub fn event_wait(event: Slot) -> Result<u64, Error> {
    let signals = call(Syscall::EventWait, [event as u64, 0, 0, 0, 0, 0])?;
    counters::inc(WAKE_UPS);
    Ok(signals)
}

/// Runs the guest until it exits (0) or the event is signalled (the signals).
///
/// # Errors
/// What the kernel answers; see [`Error`].
#[inline]
pub fn vcpu_run(vcpu: Slot, event: Slot) -> Result<u64, Error> {
    let signals = call(Syscall::VcpuRun, [vcpu as u64, event as u64, 0, 0, 0, 0])?;
    if signals != 0 {
        counters::inc(WAKE_UPS);
    }
    Ok(signals)
}
