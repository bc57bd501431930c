//! Exceptions and interrupts: every exception is caught and told to whoever tried what raised it.
//!
//! An instruction that [`instructions!`] wraps is left behind by its fault; a closure that [`attempt`] or [`user`]
//! calls ends with it. Interrupts are counted by vector and may have a handler. An exception anywhere else is
//! this program's bug: it is printed, and the guest ends. Source: AMD64 APM vol. 2, chapter 8.
#![expect(unsafe_code, reason = "this is a guest's kernel")]

use core::arch::{asm, global_asm};
use core::fmt;
use core::mem::MaybeUninit;

use crate::out::say;
use crate::paging;

global_asm!(include_str!("traps.s"), options(att_syntax));

/// #UD.
pub const UD: u8 = 6;
/// #DF.
pub const DF: u8 = 8;
/// #GP.
pub const GP: u8 = 13;
/// #PF.
pub const PF: u8 = 14;
/// Software interrupt that ends what runs at CPL 3.
const USER_END: usize = 0x81;
/// First vector that is no exception.
const INTERRUPTS: usize = 32;
/// Selectors of the entry code's descriptor table.
const CODE: u64 = 0x08;
const DATA: u64 = 0x10;
const TASK: u16 = 0x40;

/// What a trap interrupted, as the stubs save it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Frame {
    /// r15 to r8, rbp, rdi, rsi, rdx, rcx, rbx, rax.
    pub registers: [u64; 15],
    /// Vector.
    pub vector: u64,
    /// Error code; 0 where the vector has none.
    pub error: u64,
    /// Where it happened.
    pub rip: u64,
    /// Code segment's selector.
    pub cs: u64,
    /// Flags.
    pub rflags: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Stack segment's selector.
    pub ss: u64,
}

/// An exception.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Vector.
    pub vector: u8,
    /// Error code; 0 where the vector has none.
    pub error: u32,
    /// CR2, for a page fault.
    pub address: u64,
    /// The instruction.
    pub rip: u64,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vector {} error {:#x} address {:#x}", self.vector, self.error, self.address)
    }
}

/// A gate of the interrupt descriptor table.
type Gate = [u64; 2];
static mut GATES: [Gate; 256] = [[0; 2]; 256];
static mut HANDLERS: [Option<fn(&mut Frame)>; 256] = [None; 256];
static mut COUNTS: [u64; 256] = [0; 256];
static mut FAULTS: u64 = 0;
static mut LAST: Fault = Fault { vector: 0, error: 0, address: 0, rip: 0 };

unsafe extern "C" {
    static mut gdt: [u64; 10];
    static stubs: [[u8; 16]; 256];
    static task_state: u8;
    static rescue: u64;
    static rescued: u8;
    static finished: u8;
    /// First and last address of the instructions whose faults [`instructions!`] leaves behind.
    static __start_fixups: [u64; 2];
    static __stop_fixups: [u64; 2];
    fn call_guarded(call: extern "C" fn(*mut u8), data: *mut u8) -> u64;
    fn call_guarded_user(call: extern "C" fn(*mut u8), data: *mut u8) -> u64;
}

/// Points every vector to its stub.
pub fn set_up() {
    let task = &raw const task_state as u64;
    // SAFETY: one CPU with interrupts off; the tables live for ever.
    unsafe {
        for vector in 0..256 {
            let stub = (&raw const stubs[vector]) as u64;
            // Interrupt gates; that of USER_END for CPL 3; #DF on a stack of its own.
            let kind = if vector == USER_END { 0xee } else { 0x8e };
            let stack = u64::from(vector == usize::from(DF));
            GATES[vector] = [
                stub & 0xffff | CODE << 16 | stack << 32 | kind << 40 | (stub >> 16 & 0xffff) << 48,
                stub >> 32,
            ];
        }
        gdt[usize::from(TASK / 8)] = 103 | (task & 0xff_ffff) << 16 | 0x89 << 40 | (task >> 24 & 0xff) << 56;
        gdt[usize::from(TASK / 8) + 1] = task >> 32;
        asm!("ltr {:x}", in(reg) TASK);
    }
    load_table(size_of::<[Gate; 256]>() as u16 - 1);
}

/// Loads the interrupt table's register, with this limit.
pub fn load_table(limit: u16) {
    let base = &raw const GATES as u64;
    let pointer = [limit, base as u16, (base >> 16) as u16, (base >> 32) as u16, (base >> 48) as u16];
    // SAFETY: the table lives for ever.
    unsafe { asm!("lidt [{}]", in(reg) &pointer) }
}

/// Has a function called for each trap of a vector, which then is neither a fault nor ends anything.
pub fn on(vector: u8, handler: fn(&mut Frame)) {
    // SAFETY: one CPU; a word's write is not torn by an interrupt.
    unsafe { (&raw mut HANDLERS[usize::from(vector)]).write_volatile(Some(handler)) }
}

/// Takes a vector's handler away.
pub fn off(vector: u8) {
    // SAFETY: as above.
    unsafe { (&raw mut HANDLERS[usize::from(vector)]).write_volatile(None) }
}

/// Interrupts of a vector so far, and exceptions that went to a handler.
pub fn count(vector: u8) -> u64 {
    // SAFETY: written on this CPU alone.
    unsafe { (&raw const COUNTS[usize::from(vector)]).read_volatile() }
}

/// Exceptions so far.
pub fn fault_count() -> u64 {
    // SAFETY: as above.
    unsafe { (&raw const FAULTS).read_volatile() }
}

/// The last exception.
pub fn last_fault() -> Fault {
    // SAFETY: as above.
    unsafe { (&raw const LAST).read_volatile() }
}

/// The exception that happened since there were `before` of them.
pub fn since(before: u64) -> Result<(), Fault> {
    if fault_count() == before { Ok(()) } else { Err(last_fault()) }
}

/// Calls a closure; an exception in it ends it (what it owned is lost).
pub fn attempt<T>(call: impl FnOnce() -> T) -> Result<T, Fault> {
    guarded(call_guarded, call)
}

/// [`attempt`] at CPL 3, on a small stack. All memory that [`crate::paging`] did not map is accessible meanwhile.
pub fn user<T>(call: impl FnOnce() -> T) -> Result<T, Fault> {
    paging::open_identity_map(true);
    let result = guarded(call_guarded_user, call);
    paging::open_identity_map(false);
    result
}

type Caller = unsafe extern "C" fn(extern "C" fn(*mut u8), *mut u8) -> u64;

fn guarded<T, F: FnOnce() -> T>(caller: Caller, call: F) -> Result<T, Fault> {
    struct Data<F, T> {
        call: Option<F>,
        result: MaybeUninit<T>,
    }
    extern "C" fn run<T, F: FnOnce() -> T>(data: *mut u8) {
        // SAFETY: `guarded` passes this type, and waits.
        let data = unsafe { &mut *data.cast::<Data<F, T>>() };
        if let Some(call) = data.call.take() {
            data.result.write(call());
        }
    }
    let mut data = Data { call: Some(call), result: MaybeUninit::uninit() };
    // SAFETY: `run` takes what it is given; a fault unwinds nothing, which leaks at worst.
    unsafe {
        if caller(run::<T, F>, (&raw mut data).cast()) == 0 {
            Ok(data.result.assume_init())
        } else {
            Err(last_fault())
        }
    }
}

/// Runs instructions; a fault goes on behind them with all registers as they were. What they do with registers
/// is named by the operands. The value is `Result<(), Fault>`.
macro_rules! instructions {
    ($($line:literal),+ ; $($operands:tt)*) => {{
        let before = $crate::traps::fault_count();
        // SAFETY: a fault continues behind the instructions; the rest is this guest's own business.
        unsafe {
            core::arch::asm!(
                "76:",
                $($line,)+
                "77:",
                ".pushsection fixups, \"aR\", @progbits",
                ".quad 76b, 77b",
                ".popsection",
                $($operands)*
            )
        }
        $crate::traps::since(before)
    }};
}
pub(crate) use instructions;

/// Where a fault at an address goes on.
fn fixup(rip: u64) -> Option<u64> {
    let mut entry = &raw const __start_fixups;
    let end = &raw const __stop_fixups;
    while entry < end {
        // SAFETY: the linker put the table there.
        let [first, last] = unsafe { *entry };
        if (first..=last).contains(&rip) {
            return Some(last);
        }
        entry = entry.wrapping_add(1);
    }
    None
}

#[unsafe(no_mangle)]
extern "C" fn on_trap(frame: &mut Frame) {
    let vector = frame.vector as usize & 0xff;
    // SAFETY: one CPU, and traps do not nest but by faults in here.
    let handler = unsafe {
        let handler = (&raw const HANDLERS[vector]).read_volatile();
        if handler.is_some() || vector >= INTERRUPTS {
            COUNTS[vector] += 1;
        }
        handler
    };
    if let Some(handler) = handler {
        return handler(frame);
    }
    if vector == USER_END {
        return leave(frame, &raw const finished as u64);
    }
    if vector >= INTERRUPTS {
        return;
    }
    let mut fault = Fault { vector: vector as u8, error: frame.error as u32, address: 0, rip: frame.rip };
    // SAFETY: CR2 may always be read; the rest as above.
    unsafe {
        if fault.vector == PF {
            asm!("mov {}, cr2", out(reg) fault.address);
        }
        FAULTS += 1;
        LAST = fault;
    }
    if let Some(next) = fixup(frame.rip) {
        frame.rip = next;
    } else if is_guarded() {
        leave(frame, &raw const rescued as u64);
    } else {
        say!("FAIL no exception: expected none, got {fault} at {:#x}, stack {:#x}", frame.rip, frame.rsp);
        crate::machine::halt();
    }
}

fn is_guarded() -> bool {
    // SAFETY: written by `call_guarded` on this CPU.
    unsafe { (&raw const rescue).read_volatile() != 0 }
}

/// Goes on at one of the ends of the guarded call.
fn leave(frame: &mut Frame, rip: u64) {
    // SAFETY: as above.
    frame.rsp = unsafe { (&raw const rescue).read_volatile() };
    (frame.rip, frame.cs, frame.ss, frame.rflags) = (rip, CODE, DATA, 2);
}
