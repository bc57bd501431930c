//! The measuring sequences: the instructions between two time stamps are exactly those written here.
//!
//! A time stamp counts the instructions before it, so the distance of two stamps is the first RDTSC, what
//! follows it, and nothing of the second one.
#![expect(unsafe_code, reason = "the instructions that are counted are written out")]

use core::arch::asm;

use proto::abi::{Slot, Syscall};

/// What two domains share: a page of a channel that nobody uses as one.
#[derive(Debug, Clone, Copy)]
pub struct Board(pub u64);

impl Board {
    /// Stamp of the more important domain's first instruction.
    pub fn woken(self) -> u64 {
        self.read(0)
    }

    /// How often it ran.
    pub fn runs(self) -> u64 {
        self.read(8)
    }

    /// Its stamp before it waited again.
    pub fn waits(self) -> u64 {
        self.read(16)
    }

    /// What the less important domain had written to its mark when the other one ran.
    pub fn mark_seen(self) -> u64 {
        self.read(32)
    }

    /// Takes the mark back.
    pub fn clear_mark(self) {
        // SAFETY: as in `read`.
        unsafe { ((self.0 + 24) as *mut u64).write_volatile(0) }
    }

    fn read(self, offset: u64) -> u64 {
        // SAFETY: init maps the channel's pages writable for the life of the domain; the fields are aligned.
        unsafe { ((self.0 + offset) as *const u64).read_volatile() }
    }
}

/// Instructions of [`call`] that are not the kernel's.
pub const CALL_OWN: u64 = 8;

/// Stamps around a system call.
pub fn call(number: u64, first: u64, second: u64) -> (u64, u64) {
    let (before, after);
    // SAFETY: the calls made here change no memory of this domain but what is shared for the purpose.
    unsafe {
        asm!(
            "rdtsc", "shl rdx, 32", "or rax, rdx", "mov r12, rax",
            "mov rax, r13", "mov rdi, r14", "mov rsi, r15", "syscall",
            "rdtsc", "shl rdx, 32", "or rax, rdx",
            out("r12") before, in("r13") number, in("r14") first, in("r15") second,
            out("rax") after, out("rdx") _, out("rcx") _, out("rdi") _, out("rsi") _,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    (before, after)
}

/// The same number of instructions without a system call, to see that each one takes one tick.
pub fn nothing() -> u64 {
    let (before, after): (u64, u64);
    // SAFETY: registers alone.
    unsafe {
        asm!(
            "rdtsc", "shl rdx, 32", "or rax, rdx", "mov r12, rax",
            "mov rdi, rax", "mov rdi, rax", "mov rsi, rax", "nop",
            "rdtsc", "shl rdx, 32", "or rax, rdx",
            out("r12") before, out("rax") after, out("rdx") _, out("rdi") _, out("rsi") _,
            options(nomem, nostack),
        );
    }
    after.wrapping_sub(before)
}

/// Instructions of [`answer_for_ever`] from its wake-up until it waits again.
pub const ANSWER_OWN: u64 = 5;

/// Signals and waits in one call, for ever.
pub fn answer_for_ever(signal: Slot, event: Slot) -> ! {
    // SAFETY: system calls with registers alone.
    unsafe {
        asm!(
            "2:", "mov eax, {number}", "mov edi, r12d", "mov esi, r13d", "syscall", "jmp 2b",
            number = const Syscall::EventSignalAndWait as u64,
            in("r12") u64::from(signal), in("r13") u64::from(event),
            options(noreturn),
        );
    }
}

/// Instructions of [`wake_for_ever`] from its stamp before waiting on.
pub const WAIT_OWN: u64 = 8;

/// Waits for its event, and notes when it ran and when it waits again, for ever.
pub fn wake_for_ever(event: Slot, board: Board) -> ! {
    // SAFETY: the board is mapped writable; system calls with registers alone.
    unsafe {
        asm!(
            "2:", "mov eax, {number}", "mov edi, r12d", "syscall",
            "rdtsc", "shl rdx, 32", "or rax, rdx", "mov [r13], rax",
            "inc qword ptr [r13 + 8]", "mov rax, [r13 + 24]", "mov [r13 + 32], rax",
            "rdtsc", "shl rdx, 32", "or rax, rdx", "mov [r13 + 16], rax", "jmp 2b",
            number = const Syscall::EventWait as u64,
            in("r12") u64::from(event), in("r13") board.0,
            options(noreturn),
        );
    }
}

/// Instructions of [`interrupt`] up to the one that makes the device interrupt.
pub const INTERRUPT_OWN: u64 = 7;

/// The UART's first port (COM2).
pub const UART: u16 = 0x2f8;

/// Lets the UART interrupt because it has nothing to send; stamps before it and behind it. The mark on the
/// board is set by the instruction that follows.
pub fn interrupt(board: Board) -> (u64, u64) {
    let (before, after);
    // SAFETY: the ports of a UART that is this domain's; the board is mapped writable.
    unsafe {
        asm!(
            "rdtsc", "shl rdx, 32", "or rax, rdx", "mov r12, rax",
            "mov dx, {enable}", "mov al, 2", "out dx, al",
            "mov qword ptr [r13 + 24], 1",
            "rdtsc", "shl rdx, 32", "or rax, rdx",
            enable = const UART + 1,
            out("r12") before, in("r13") board.0, out("rax") after, out("rdx") _,
        );
    }
    // SAFETY: as above; switches the interrupt off and takes it back.
    unsafe {
        asm!("out dx, al", in("dx") UART + 1, in("al") 0u8, options(nostack, nomem));
        asm!("in al, dx", in("dx") UART + 2, out("al") _, options(nostack, nomem));
    }
    (before, after)
}
