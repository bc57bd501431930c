//! What ring 3 must not do, as single instructions, and system calls as numbers.
//!
//! Most of these end the thread; that is what they are for. Source: AMD64 APM vol. 3.
#![expect(unsafe_code, reason = "does what a domain must not do")]

use core::arch::asm;

use proto::channel::Region;

/// The harm of one mode: `None` when there is no such mode.
pub fn instruction(mode: &str) -> Option<()> {
    // SAFETY: every one of these faults in ring 3. Where one did not, this domain's run would be void,
    // which its last words tell.
    unsafe {
        match mode {
            "cli" => asm!("cli"),
            "hlt" => asm!("hlt"),
            "mov-cr3" => asm!("mov rax, cr3", "mov cr3, rax", out("rax") _),
            "wrmsr" => asm!("wrmsr", in("ecx") 0xc000_0082u32, in("eax") 0, in("edx") 0),
            "lgdt" => asm!("lgdt [{}]", in(reg) &[0u64; 2]),
            "in" => asm!("in al, dx", in("dx") 0x3f8u16, out("al") _),
            "out" => asm!("out dx, al", in("dx") 0xf4u16, in("al") 0u8),
            "vmrun" => asm!("vmrun", in("rax") 0x20_0000u64),
            "clgi" => asm!("clgi"),
            "sse" => asm!("pxor xmm0, xmm0"),
            "x87" => asm!("fninit"),
            "software-nmi" => asm!("int 2"),
            "flags" => return flags(),
            _ => return None,
        }
    }
    Some(())
}

/// Flags that would harm a kernel which took them over, at system calls of every length; then selectors
/// that would, and a system call with a stack that is none.
fn flags() -> Option<()> {
    // SAFETY: system calls without effect; the flags are put back before anything else runs.
    unsafe {
        for flag in [1u64 << 10, 1 << 14, 1 << 18, 1 << 21, 3 << 12] {
            for call in [0u64, 14, 27, 99] {
                asm!(
                    "pushfq", "pushfq",
                    "or [rsp], {flag}",
                    "popfq",
                    "mov rax, {call}", "xor edi, edi", "xor esi, esi", "xor edx, edx",
                    "syscall",
                    // The interrupt of a time slice's end meets the flag, too.
                    "mov ecx, 20000", "22: dec ecx", "jnz 22b",
                    "popfq",
                    flag = in(reg) flag, call = in(reg) call,
                    out("rax") _, out("rcx") _, out("rdx") _, out("rsi") _, out("rdi") _, out("r8") _,
                    out("r9") _, out("r10") _, out("r11") _,
                );
            }
        }
        for selector in [0u16, 3, 0x1b] {
            asm!("mov ds, {0:x}", "mov es, {0:x}", "mov fs, {0:x}", "mov gs, {0:x}", "xor eax, eax", "syscall",
                in(reg) selector, out("rax") _, out("rcx") _, out("rdx") _, out("rsi") _, out("rdi") _,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _);
        }
        // The trap flag last: what it does to this thread is a fault of this thread.
        asm!("mov rsp, {nowhere}", "xor eax, eax", "syscall", "mov rsp, r12",
            "pushfq", "or qword ptr [rsp], 0x100", "popfq", "xor eax, eax", "syscall", "nop", "ud2",
            nowhere = in(reg) 0x8000_0000_0000_0000u64, in("r12") proto::boot::STACK_TOP - 4096,
            options(noreturn))
    }
}

/// A system call by numbers: error and value.
pub fn system_call(number: u64, arguments: [u64; 6]) -> (u64, u64) {
    let [a, b, c, d, e, f] = arguments;
    let (error, value);
    // SAFETY: the kernel touches no memory of this domain except by unmapping, and this domain holds no
    // memory by capability.
    unsafe {
        asm!("syscall",
            inlateout("rax") number => error, inlateout("rdi") a => _, inlateout("rsi") b => _,
            inlateout("rdx") c => value, inlateout("r10") d => _, inlateout("r8") e => _, inlateout("r9") f => _,
            lateout("rcx") _, lateout("r11") _);
    }
    (error, value)
}

/// Reads a byte at any address.
pub fn read(address: u64) -> u8 {
    // SAFETY: where this does not fault, it reads; both are what the caller asks for.
    unsafe { (address as *const u8).read_volatile() }
}

/// Writes a byte at any address.
pub fn write(address: u64, value: u8) {
    // SAFETY: where this does not fault, it writes memory of this domain, which expects anything.
    unsafe { (address as *mut u8).write_volatile(value) }
}

/// Goes on at any address.
pub fn jump(address: u64) -> ! {
    // SAFETY: this domain's end, whatever is there.
    unsafe { asm!("jmp {}", in(reg) address, options(noreturn)) }
}

/// Writes a word of a channel's memory behind the channel library's back.
pub fn scribble(region: Region, offset: u64, value: u32) {
    let offset = (offset % region.len) & !3;
    // SAFETY: inside of memory that init mapped for this domain; the library's view of it is atomics.
    unsafe { ((region.addr + offset) as *mut u32).write_volatile(value) }
}

/// An invalid instruction with figures in registers, which init writes to the log.
pub fn last_words(count: u64, odd: u64) -> ! {
    // SAFETY: ends this thread.
    unsafe { asm!("ud2", in("r12") count, in("r13") odd, in("r14") 0x600d_600du64, options(noreturn)) }
}
