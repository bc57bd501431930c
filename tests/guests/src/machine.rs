//! The instructions of a kernel. What may fault says so, and goes on.
//!
//! Nothing here is safe in any usual sense. This program owns its whole guest, and harm to itself is often the
//! point; what must hold is that nobody else is harmed. Source: AMD64 APM vol. 3.
#![expect(unsafe_code, reason = "this is a guest's kernel")]

use core::arch::{asm, global_asm};

use crate::traps::{Fault, instructions, load_table};

global_asm!(include_str!("entry.s"), options(att_syntax));

/// RDMSR.
pub fn read_msr(msr: u32) -> Result<u64, Fault> {
    let (low, high): (u64, u64);
    instructions!("rdmsr"; in("ecx") msr, inout("rax") 0u64 => low, inout("rdx") 0u64 => high)?;
    Ok(high << 32 | low & 0xffff_ffff)
}

/// WRMSR.
pub fn write_msr(msr: u32, value: u64) -> Result<(), Fault> {
    instructions!("wrmsr"; in("ecx") msr, in("rax") value, in("rdx") value >> 32)
}

/// CPUID: eax, ebx, ecx, edx.
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let (a, b, c, d): (u32, u64, u32, u32);
    let _never = instructions!("xchg rbx, {b}", "cpuid", "xchg rbx, {b}";
        b = out(reg) b, inout("eax") leaf => a, inout("ecx") subleaf => c, out("edx") d);
    [a, b as u32, c, d]
}

/// RDTSC.
pub fn tsc() -> u64 {
    // SAFETY: reads a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// IN of 1, 2 or 4 bytes.
pub fn input(port: u16, bytes: u8) -> Result<u32, Fault> {
    let value: u32;
    match bytes {
        1 => instructions!("in al, dx"; in("dx") port, inout("eax") 0u32 => value)?,
        2 => instructions!("in ax, dx"; in("dx") port, inout("eax") 0u32 => value)?,
        _ => instructions!("in eax, dx"; in("dx") port, inout("eax") 0u32 => value)?,
    }
    Ok(value)
}

/// OUT of 1, 2 or 4 bytes.
pub fn output(port: u16, bytes: u8, value: u32) -> Result<(), Fault> {
    match bytes {
        1 => instructions!("out dx, al"; in("dx") port, in("eax") value),
        2 => instructions!("out dx, ax"; in("dx") port, in("eax") value),
        _ => instructions!("out dx, eax"; in("dx") port, in("eax") value),
    }
}

/// REP OUTSB of some bytes.
pub fn write_port(port: u16, bytes: &[u8]) {
    let _never = instructions!("rep outsb";
        in("dx") port, inout("rcx") bytes.len() => _, inout("rsi") bytes.as_ptr() => _);
}

/// IN and OUT of every width, and the string forms.
pub fn port(port: u16, value: u64, kind: u8) {
    let buffer = [0u64; 64];
    let at = &raw const buffer as u64;
    let _fault = match kind % 8 {
        0 => input(port, 1).map(drop),
        1 => input(port, 2).map(drop),
        2 => input(port, 4).map(drop),
        3 => output(port, 1, value as u32),
        4 => output(port, 2, value as u32),
        5 => output(port, 4, value as u32),
        6 => instructions!("rep insd"; in("dx") port, inout("rcx") value % 129 => _, inout("rdi") at => _),
        // Anywhere, and for as long as it pleases.
        _ => {
            instructions!("rep outsb"; in("dx") port, inout("rcx") value >> 40 => _, inout("rsi") value => _)
        }
    };
}

/// VMMCALL with a number and five arguments.
pub fn try_hypercall(number: u64, args: [u64; 5]) -> Result<i64, Fault> {
    let result: u64;
    instructions!("vmmcall"; inout("rax") number => result, inout("rdi") args[0] => _, inout("rsi") args[1] => _,
        inout("rdx") args[2] => _, inout("r10") args[3] => _, inout("r8") args[4] => _)?;
    Ok(result as i64)
}

/// [`try_hypercall`] whose answer is what matters; an exception gives the smallest number.
pub fn hypercall(number: u64, args: [u64; 5]) -> i64 {
    try_hypercall(number, args).unwrap_or(i64::MIN)
}

/// Every instruction of SVM and some others that a guest has no use for.
pub fn svm(number: u64, rax: u64) {
    let _fault = match number % 13 {
        0 => instructions!("vmrun"; in("rax") rax),
        1 => instructions!("vmload"; in("rax") rax),
        2 => instructions!("vmsave"; in("rax") rax),
        3 => instructions!("clgi"; in("rax") rax),
        4 => instructions!("stgi"; in("rax") rax),
        5 => instructions!("skinit"; in("rax") rax),
        6 => instructions!("invlpga rax, ecx"; in("rax") rax, in("ecx") rax as u32),
        7 => instructions!("monitor"; in("rax") rax, in("rcx") 0u64, in("rdx") 0u64),
        8 => instructions!("mwait"; in("rax") 0u64, in("rcx") 0u64),
        9 => instructions!("vmcall"; inout("rax") rax => _),
        10 => instructions!("rsm"; in("rax") rax),
        11 => instructions!("rdpmc"; inout("rax") rax => _, in("rcx") rax, out("rdx") _),
        _ => instructions!("wbinvd"; in("rax") rax),
    };
}

/// XSETBV.
pub fn set_xcr(number: u32, value: u64) {
    let _fault = instructions!("xsetbv"; in("ecx") number, in("rax") value, in("rdx") value >> 32);
}

/// XORs a control or debug register, and takes it back.
pub fn flip_register(number: u64, bits: u64) {
    let _fault = match number % 6 {
        0 => instructions!("mov {v}, cr0", "mov {w}, {v}", "xor {w}, {bits}", "mov cr0, {w}", "mov cr0, {v}";
            bits = in(reg) bits, v = out(reg) _, w = out(reg) _),
        1 => instructions!("mov {v}, cr4", "mov {w}, {v}", "xor {w}, {bits}", "mov cr4, {w}", "mov cr4, {v}";
            bits = in(reg) bits, v = out(reg) _, w = out(reg) _),
        2 => {
            instructions!("mov {v}, cr8", "mov cr8, {bits}", "mov cr8, {v}"; bits = in(reg) bits, v = out(reg) _)
        }
        3 => {
            instructions!("mov {v}, dr6", "mov dr6, {bits}", "mov dr6, {v}"; bits = in(reg) bits, v = out(reg) _)
        }
        // Breakpoints on what comes next, cleared again.
        4 => instructions!("lea {v}, [rip + 77f]", "mov dr0, {v}", "mov dr7, {bits}", "mov dr7, {zero}";
            bits = in(reg) bits, v = out(reg) _, zero = in(reg) 0x400u64),
        _ => instructions!("mov {v}, cr3", "mov {w}, {v}", "or {w}, {bits}", "mov cr3, {w}", "mov cr3, {v}";
            bits = in(reg) bits & 0xfff, v = out(reg) _, w = out(reg) _),
    };
}

/// Reads a word of memory.
pub fn try_peek(address: u64) -> Result<u64, Fault> {
    let value;
    instructions!("mov {value}, [{address}]"; address = in(reg) address, value = inout(reg) 0u64 => value)?;
    Ok(value)
}

/// Writes a word of memory.
pub fn try_poke(address: u64, value: u64) -> Result<(), Fault> {
    instructions!("mov [{address}], {value}"; address = in(reg) address, value = in(reg) value)
}

/// [`try_peek`]; 0 after a fault.
pub fn peek(address: u64) -> u64 {
    try_peek(address).unwrap_or(0)
}

/// [`try_poke`] whose fault does not matter.
pub fn poke(address: u64, value: u64) {
    let _fault = try_poke(address, value);
}

/// Writes 32 bits of memory.
pub fn poke32(address: u64, value: u32) {
    let _fault =
        instructions!("mov [{address}], {value:e}"; address = in(reg) address, value = in(reg) value);
}

/// Writes a byte of memory.
pub fn poke8(address: u64, value: u8) {
    let _fault =
        instructions!("mov [{address}], {value}"; address = in(reg) address, value = in(reg_byte) value);
}

/// Fills a page's worth of memory.
pub fn fill(address: u64, words: usize, mut next: impl FnMut() -> u64) {
    for n in 0..words {
        poke(address + 8 * n as u64, next());
    }
}

/// UD2.
pub fn undefined() {
    // SAFETY: raises an exception, which is caught.
    unsafe { asm!("ud2") }
}

/// INT 0x80.
pub fn software_interrupt() {
    // SAFETY: calls the handler of that vector.
    unsafe { asm!("int 0x80") }
}

/// STI.
pub fn interrupts_on() {
    // SAFETY: handlers are set up.
    unsafe { asm!("sti", "nop") }
}

/// CLI.
pub fn interrupts_off() {
    // SAFETY: touches a flag.
    unsafe { asm!("cli") }
}

/// STI, HLT, CLI: sleeps until one interrupt came.
pub fn idle_once() {
    // SAFETY: handlers are set up.
    unsafe { asm!("sti", "hlt", "nop", "cli") }
}

/// Calls an address.
pub fn call(address: u64) {
    // SAFETY: what is there is the caller's own choice; the fault of nothing there is caught.
    unsafe { asm!("call {}", in(reg) address, clobber_abi("C")) }
}

/// Jumps there.
pub fn jump(address: u64) -> ! {
    // SAFETY: the jump ends this guest, which is what it is for.
    unsafe { asm!("jmp {}", in(reg) address, options(noreturn)) }
}

/// An exception with an empty interrupt table: a triple fault.
pub fn triple_fault() -> ! {
    load_table(0);
    // SAFETY: this ends the guest, which is what it is for.
    unsafe { asm!("ud2", options(noreturn)) }
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
