//! The instructions of a kernel, each of which may fault: the exception handler goes on behind it.
//!
//! Nothing here is safe in any usual sense. This program owns its whole guest, and harm to itself is the
//! point; what must hold is that nobody else is harmed. Source: AMD64 APM vol. 3.
#![expect(unsafe_code, reason = "this is a guest's kernel")]

use core::arch::{asm, global_asm};

global_asm!(include_str!("entry.s"), options(att_syntax));

unsafe extern "C" {
    static mut recovery: u64;
    static faults: u64;
    static last_vector: u64;
    static stubs: [[u8; 32]; 32];
}

/// A gate of the interrupt descriptor table.
type Gate = [u64; 2];
static mut GATES: [Gate; 32] = [[0; 2]; 32];

/// Points every exception to its stub.
pub fn catch_exceptions() {
    let pointer = table_pointer(size_of::<[Gate; 32]>() as u16 - 1);
    // SAFETY: one CPU with interrupts off; the table lives for ever.
    unsafe {
        for vector in 0..32 {
            let stub = (&raw const stubs[vector]) as u64;
            GATES[vector] = [stub & 0xffff | 8 << 16 | 0x8e << 40 | (stub >> 16 & 0xffff) << 48, stub >> 32];
        }
        asm!("lidt [{}]", in(reg) &pointer);
    }
}

/// The operand of LIDT.
fn table_pointer(limit: u16) -> [u16; 5] {
    let base = &raw const GATES as u64;
    [limit, base as u16, (base >> 16) as u16, (base >> 32) as u16, (base >> 48) as u16]
}

/// Exceptions so far.
pub fn fault_count() -> u64 {
    // SAFETY: written by the exception handler on this CPU alone.
    unsafe { (&raw const faults).read_volatile() }
}

/// Vector of the last exception.
pub fn last_fault() -> u64 {
    // SAFETY: as above.
    unsafe { (&raw const last_vector).read_volatile() }
}

/// Runs instructions; a fault goes on behind them. What they do with registers is named by the operands.
macro_rules! attempt {
    ($($line:literal),+ ; $($operands:tt)*) => {
        // SAFETY: a fault continues behind the instructions with all registers as they were; the rest is
        // this guest's own business.
        unsafe {
            asm!(
                "lea {scratch}, [rip + 77f]",
                "mov [{recovery}], {scratch}",
                $($line,)+
                "77:",
                recovery = in(reg) &raw mut recovery,
                scratch = out(reg) _,
                $($operands)*
            )
        }
    };
}

/// RDMSR.
pub fn read_msr(msr: u32) -> u64 {
    let (low, high): (u64, u64);
    attempt!("rdmsr"; in("ecx") msr, inout("rax") 0u64 => low, inout("rdx") 0u64 => high);
    high << 32 | low & 0xffff_ffff
}

/// WRMSR.
pub fn write_msr(msr: u32, value: u64) {
    attempt!("wrmsr"; in("ecx") msr, in("rax") value, in("rdx") value >> 32);
}

/// CPUID.
pub fn cpuid(leaf: u32, subleaf: u32) -> u64 {
    let out: u64;
    attempt!("mov rdi, rbx", "cpuid", "mov rbx, rdi";
        inout("rax") u64::from(leaf) => out, inout("rcx") u64::from(subleaf) => _, out("rdx") _, out("rdi") _);
    out
}

/// IN and OUT of every width, and the string forms.
pub fn port(port: u16, value: u64, kind: u8) {
    let buffer = [0u64; 64];
    let at = &raw const buffer as u64;
    match kind % 8 {
        0 => attempt!("in al, dx"; in("dx") port, inout("rax") value => _),
        1 => attempt!("in ax, dx"; in("dx") port, inout("rax") value => _),
        2 => attempt!("in eax, dx"; in("dx") port, inout("rax") value => _),
        3 => attempt!("out dx, al"; in("dx") port, in("rax") value),
        4 => attempt!("out dx, ax"; in("dx") port, in("rax") value),
        5 => attempt!("out dx, eax"; in("dx") port, in("rax") value),
        6 => attempt!("rep insd"; in("dx") port, inout("rcx") value % 129 => _, inout("rdi") at => _),
        // Anywhere, and for as long as it pleases.
        _ => attempt!("rep outsb"; in("dx") port, inout("rcx") value >> 40 => _, inout("rsi") value => _),
    }
}

/// VMMCALL with a number and five arguments.
pub fn hypercall(number: u64, args: [u64; 5]) -> u64 {
    let result: u64;
    attempt!("vmmcall"; inout("rax") number => result, inout("rdi") args[0] => _, inout("rsi") args[1] => _,
        inout("rdx") args[2] => _, inout("r10") args[3] => _, inout("r8") args[4] => _);
    result
}

/// Every instruction of SVM and some others that a guest has no use for.
pub fn svm(number: u64, rax: u64) {
    match number % 13 {
        0 => attempt!("vmrun"; in("rax") rax),
        1 => attempt!("vmload"; in("rax") rax),
        2 => attempt!("vmsave"; in("rax") rax),
        3 => attempt!("clgi"; in("rax") rax),
        4 => attempt!("stgi"; in("rax") rax),
        5 => attempt!("skinit"; in("rax") rax),
        6 => attempt!("invlpga rax, ecx"; in("rax") rax, in("ecx") rax as u32),
        7 => attempt!("monitor"; in("rax") rax, in("rcx") 0u64, in("rdx") 0u64),
        8 => attempt!("mwait"; in("rax") 0u64, in("rcx") 0u64),
        9 => attempt!("vmcall"; inout("rax") rax => _),
        10 => attempt!("rsm"; in("rax") rax),
        11 => attempt!("rdpmc"; inout("rax") rax => _, in("rcx") rax, out("rdx") _),
        _ => attempt!("wbinvd"; in("rax") rax),
    }
}

/// XSETBV.
pub fn set_xcr(number: u32, value: u64) {
    attempt!("xsetbv"; in("ecx") number, in("rax") value, in("rdx") value >> 32);
}

/// XORs a control or debug register, and takes it back.
pub fn flip_register(number: u64, bits: u64) {
    match number % 6 {
        0 => attempt!("mov {v}, cr0", "mov {w}, {v}", "xor {w}, {bits}", "mov cr0, {w}", "mov cr0, {v}";
            bits = in(reg) bits, v = out(reg) _, w = out(reg) _),
        1 => attempt!("mov {v}, cr4", "mov {w}, {v}", "xor {w}, {bits}", "mov cr4, {w}", "mov cr4, {v}";
            bits = in(reg) bits, v = out(reg) _, w = out(reg) _),
        2 => attempt!("mov {v}, cr8", "mov cr8, {bits}", "mov cr8, {v}"; bits = in(reg) bits, v = out(reg) _),
        3 => attempt!("mov {v}, dr6", "mov dr6, {bits}", "mov dr6, {v}"; bits = in(reg) bits, v = out(reg) _),
        // Breakpoints on what comes next, cleared again.
        4 => attempt!("lea {v}, [rip + 77f]", "mov dr0, {v}", "mov dr7, {bits}", "mov dr7, {zero}";
            bits = in(reg) bits, v = out(reg) _, zero = in(reg) 0x400u64),
        _ => attempt!("mov {v}, cr3", "mov {w}, {v}", "or {w}, {bits}", "mov cr3, {w}", "mov cr3, {v}";
            bits = in(reg) bits & 0xfff, v = out(reg) _, w = out(reg) _),
    }
}

/// Reads a word of memory; 0 after a fault.
pub fn peek(address: u64) -> u64 {
    let value;
    attempt!("mov {value}, [{address}]"; address = in(reg) address, value = inout(reg) 0u64 => value);
    value
}

/// Writes a word of memory.
pub fn poke(address: u64, value: u64) {
    attempt!("mov [{address}], {value}"; address = in(reg) address, value = in(reg) value);
}

/// Writes 32 bits of memory.
pub fn poke32(address: u64, value: u32) {
    attempt!("mov [{address}], {value:e}"; address = in(reg) address, value = in(reg) value);
}

/// Writes a byte of memory.
pub fn poke8(address: u64, value: u8) {
    attempt!("mov [{address}], {value}"; address = in(reg) address, value = in(reg_byte) value);
}

/// Fills a page's worth of memory.
pub fn fill(address: u64, words: usize, mut next: impl FnMut() -> u64) {
    for n in 0..words {
        poke(address + 8 * n as u64, next());
    }
}

/// Makes this the address of the page tables.
pub fn set_page_tables(address: u64) {
    attempt!("mov cr3, {address}"; address = in(reg) address);
}

/// Jumps there.
pub fn jump(address: u64) -> ! {
    // SAFETY: the jump ends this guest, which is what it is for.
    unsafe { asm!("jmp {}", in(reg) address, options(noreturn)) }
}

/// An exception with an empty interrupt table: a triple fault.
pub fn triple_fault() -> ! {
    let pointer = table_pointer(0);
    // SAFETY: this ends the guest, which is what it is for.
    unsafe { asm!("lidt [{}]", "ud2", in(reg) &pointer, options(noreturn)) }
}

/// Loops for ever with interrupts off.
pub fn spin() -> ! {
    // SAFETY: touches nothing.
    unsafe { asm!("cli", "22: jmp 22b", options(noreturn)) }
}

/// Sleeps for ever with interrupts on: an idle guest.
pub fn idle() -> ! {
    loop {
        // SAFETY: touches nothing; nothing was set up that could interrupt.
        unsafe { asm!("sti", "hlt") }
    }
}

/// Halts for good, which powers the guest off.
pub fn halt() -> ! {
    loop {
        // SAFETY: touches nothing.
        unsafe { asm!("cli", "hlt") }
    }
}
