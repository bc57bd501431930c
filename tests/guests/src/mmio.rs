//! Accesses to addresses without memory: each form of an instruction does there what it does on RAM full of
//! ones, but for what it writes; and on the local APIC's page.
//!
//! What the hypervisor does not perform, and instructions from nowhere, are #UD. Source: AMD64 APM vol. 3.
#![expect(unsafe_code, reason = "the instructions are what is tested")]

use crate::check::Check;
use crate::machine::{call, peek, poke, poke32, try_peek};
use crate::numbers::Random;
use crate::paging::{self, AREA, PRESENT, USER, WRITE};
use crate::traps::{Fault, PF, UD, attempt, instructions};
use crate::{NOWHERE, SCRATCH};

/// Where RAM of 16 MiB ends.
const END: u64 = 0x100_0000;
const APIC_VERSION: u64 = 0xfee0_0030;
const APIC_TPR: u64 = 0xfee0_0080;
/// RAM for the same, in the middle of a page.
const ONES: u64 = SCRATCH + 0x1800;
const OTHER: u64 = SCRATCH + 0x4800;

/// CF, PF, ZF, SF, OF: AF is undefined too often.
const FLAGS: u64 = 0x8c5;
const CF: u64 = 1;
const ZF: u64 = 0x40;

/// rax, rcx, rdx, rdi and rsi as far as they moved, flags.
type Registers = [u64; 6];

/// Runs instructions with `rdi` at RAM that is all ones, and at an address where nothing is; both have to leave
/// the same registers and flags.
macro_rules! both {
    ($check:expr, $flags:expr, $($line:literal),+) => {{
        let mut results = [[0u64; 6]; 2];
        for (address, result) in [ONES, NOWHERE + 0x1800].into_iter().zip(&mut results) {
            fill(ONES);
            let (mut rax, mut rcx, mut rdx) = (0x8123_4567_89ab_cdefu64, 5u64, 0x1111_2222_3333_4444u64);
            let (mut rdi, mut rsi, flags) = (address, address, 0u64);
            let mut flags = flags;
            let ended: Result<(), Fault> = instructions!("test rsp, rsp", $($line,)+ "pushfq", "pop r8", "cld";
                inout("rax") rax, inout("rcx") rcx, inout("rdx") rdx, inout("rdi") rdi, inout("rsi") rsi,
                inout("r8") flags, out("r9") _, out("r10") _);
            let moved = |register: u64| register.wrapping_sub(address);
            *result = [rax, rcx, rdx, moved(rdi), moved(rsi), flags & $flags];
            if let Err(fault) = ended {
                *result = [u64::from(fault.vector), fault.address, 0xbad, 0, 0, address];
            }
        }
        compare($check, concat!($($line, "; "),+), results);
    }};
}

fn fill(at: u64) {
    (0..64).for_each(|n| poke(at - 256 + 8 * n, u64::MAX));
}

fn compare(check: &mut Check, what: &str, [ram, nothing]: [Registers; 2]) {
    check.equal(what, ram, nothing);
}

pub fn run(check: &mut Check, _: &mut Random) {
    // Vector registers: CR4.OSFXSR, and neither CR0.EM nor TS.
    let on = instructions!("mov {v}, cr4", "or {v}, 0x600", "mov cr4, {v}", "mov {v}, cr0", "and {v}, ~12",
        "mov cr0, {v}", "xorps xmm0, xmm0"; v = out(reg) _);
    check.works("vector registers are on", on);
    check.equal_hex("nothing reads as ones", u64::MAX, peek(NOWHERE));
    poke(NOWHERE, 0);
    check.equal_hex("writes are ignored", u64::MAX, peek(NOWHERE));
    moves(check);
    arithmetic(check);
    bits(check);
    strings(check);
    stack(check);
    edges(check);
    registers(check);
    refused(check);
}

fn moves(check: &mut Check) {
    both!(check, FLAGS, "mov al, [rdi]");
    both!(check, FLAGS, "mov ah, [rdi + 3]");
    both!(check, FLAGS, "mov ax, [rdi]");
    both!(check, FLAGS, "mov eax, [rdi]");
    both!(check, FLAGS, "mov rax, [rdi + rcx * 8 - 8]");
    both!(check, FLAGS, "mov r9, [rdi]", "mov rax, r9");
    both!(check, FLAGS, "mov [rdi], al");
    both!(check, FLAGS, "mov [rdi], ah");
    both!(check, FLAGS, "mov [rdi], ax");
    both!(check, FLAGS, "mov [rdi], eax");
    both!(check, FLAGS, "mov [rdi], rax");
    both!(check, FLAGS, "mov byte ptr [rdi], 1");
    both!(check, FLAGS, "mov word ptr [rdi], 1");
    both!(check, FLAGS, "mov dword ptr [rdi], 1");
    both!(check, FLAGS, "mov qword ptr [rdi], -2");
    both!(check, FLAGS, "movnti [rdi], eax");
    both!(check, FLAGS, "movzx eax, byte ptr [rdi]");
    both!(check, FLAGS, "movzx rax, word ptr [rdi]");
    both!(check, FLAGS, "movsx eax, byte ptr [rdi]");
    both!(check, FLAGS, "movsx rax, word ptr [rdi]");
    both!(check, FLAGS, "movsxd rax, dword ptr [rdi]");
    both!(check, FLAGS, "movbe eax, [rdi]");
    both!(check, FLAGS, "movbe [rdi], eax");
    both!(check, FLAGS, "mov eax, [edi]");
    both!(check, FLAGS, "cmovz eax, [rdi]");
    both!(check, FLAGS, "cmovnz rax, [rdi]");
    both!(check, FLAGS, "sete byte ptr [rdi]");
    both!(check, FLAGS, "prefetcht0 [rdi]", "clflush [rdi]", "nop dword ptr [rdi]");
    let value: u64;
    let moffs = instructions!("movabs rax, [0xc0000010]"; inout("rax") 0u64 => value);
    check.works("movabs", moffs);
    check.equal_hex("what movabs reads", u64::MAX, value);
}

fn arithmetic(check: &mut Check) {
    both!(check, FLAGS, "add [rdi], eax");
    both!(check, FLAGS, "add rax, [rdi]");
    both!(check, FLAGS, "lock add qword ptr [rdi], 1");
    both!(check, FLAGS, "or [rdi], al");
    both!(check, FLAGS, "stc", "adc [rdi], rax");
    both!(check, FLAGS, "stc", "adc eax, [rdi]");
    both!(check, FLAGS, "stc", "sbb [rdi], ax");
    both!(check, FLAGS, "sbb rax, [rdi]");
    both!(check, FLAGS, "lock and dword ptr [rdi], 0x7f");
    both!(check, FLAGS, "and eax, [rdi]");
    both!(check, FLAGS, "sub [rdi], rax");
    both!(check, FLAGS, "sub al, [rdi]");
    both!(check, FLAGS, "xor [rdi], rax");
    both!(check, FLAGS, "xor eax, [rdi]");
    both!(check, FLAGS, "cmp [rdi], eax");
    both!(check, FLAGS, "cmp rax, [rdi]");
    both!(check, FLAGS, "cmp byte ptr [rdi], 0xff");
    both!(check, FLAGS, "cmp qword ptr [rdi], -1");
    both!(check, FLAGS, "test [rdi], eax");
    both!(check, FLAGS, "test byte ptr [rdi], 0x80");
    both!(check, FLAGS, "stc", "inc dword ptr [rdi]");
    both!(check, FLAGS, "stc", "dec byte ptr [rdi]");
    both!(check, FLAGS, "lock neg dword ptr [rdi]");
    both!(check, FLAGS, "not qword ptr [rdi]");
    both!(check, FLAGS, "xchg [rdi], eax");
    both!(check, FLAGS, "xchg [rdi], ah");
    both!(check, FLAGS, "lock xadd [rdi], rax");
    both!(check, FLAGS, "lock cmpxchg [rdi], ecx");
    both!(check, FLAGS, "mov rax, -1", "lock cmpxchg [rdi], rcx");
    both!(check, FLAGS, "cmpxchg8b [rdi]");
    both!(check, FLAGS, "lock cmpxchg16b [rdi]");
    both!(check, CF, "mul dword ptr [rdi]");
    both!(check, CF, "imul qword ptr [rdi]");
    both!(check, CF, "imul eax, [rdi]");
    both!(check, CF, "imul rax, [rdi], 77");
    both!(check, 0, "xor edx, edx", "div qword ptr [rdi]");
    both!(check, 0, "cqo", "idiv qword ptr [rdi]");
}

fn bits(check: &mut Check) {
    both!(check, CF, "bt [rdi], ecx");
    both!(check, CF, "mov rcx, -700", "bt [rdi], rcx");
    both!(check, CF, "mov ecx, 1000", "lock bts [rdi], ecx");
    both!(check, CF, "lock btr qword ptr [rdi], 63");
    both!(check, CF, "btc word ptr [rdi], 3");
    both!(check, ZF, "bsf rax, [rdi]");
    both!(check, ZF, "bsr eax, [rdi]");
    both!(check, FLAGS, "popcnt rax, [rdi]");
    both!(check, FLAGS, "shl dword ptr [rdi], 1");
    both!(check, CF, "shr qword ptr [rdi], 5");
    both!(check, CF, "sar byte ptr [rdi], cl");
    both!(check, CF, "rol word ptr [rdi], cl");
    both!(check, CF, "rcr dword ptr [rdi], 3");
    both!(check, CF, "shld [rdi], eax, 7");
    both!(check, CF, "shrd [rdi], rax, cl");
}

fn strings(check: &mut Check) {
    both!(check, FLAGS, "lodsb");
    both!(check, FLAGS, "std", "lodsq");
    both!(check, FLAGS, "rep stosq");
    both!(check, FLAGS, "std", "rep stosb");
    both!(check, FLAGS, "repe scasb");
    both!(check, FLAGS, "mov eax, -1", "repe scasd");
    both!(check, FLAGS, "repne scasw");
    both!(check, FLAGS, "repe cmpsb");
    both!(check, FLAGS, "mov rsi, rdi", "rep movsd");
    both!(check, FLAGS, "xor ecx, ecx", "rep movsb");
    // From nothing to RAM, and more than fits into one go.
    let (mut rcx, mut rdi) = (1000u64, OTHER);
    (0..1004).for_each(|n| poke(OTHER + 8 * n, 0));
    let copied = instructions!("rep movsq"; inout("rcx") rcx, inout("rdi") rdi, inout("rsi") NOWHERE => _);
    check.works("rep movsq of 1000 words", copied);
    check.equal("rcx after it", 0, rcx);
    check.equal_hex("rdi after it", OTHER + 8000, rdi);
    check.is_true("the words", (0..1000).all(|n| peek(OTHER + 8 * n) == u64::MAX));
    check.equal_hex("the word behind", 0u64, peek(OTHER + 8000));
    // From RAM to nothing.
    let _fault = instructions!("rep movsb"; inout("rcx") 3000u64 => _, inout("rdi") NOWHERE => rdi, inout("rsi") OTHER => _);
    check.equal_hex("rdi of 3000 bytes to nothing", NOWHERE + 3000, rdi);
}

fn stack(check: &mut Check) {
    both!(check, FLAGS, "mov r9, rsp", "push qword ptr [rdi]", "pop rax", "sub r9, rsp", "mov rcx, r9");
    both!(check, FLAGS, "push rcx", "pop qword ptr [rdi]");
    both!(check, FLAGS, "mov r9, rsp", "mov rsp, rdi", "push rcx", "mov rsi, rsp", "mov rsp, r9");
    both!(check, FLAGS, "mov r9, rsp", "mov rsp, rdi", "pop rax", "mov rsi, rsp", "mov rsp, r9");
    both!(check, FLAGS, "mov r9, rsp", "mov rsp, rdi", "call 55f", "55:", "mov rsi, rsp", "mov rsp, r9");
    let jump = || instructions!("jmp qword ptr [{a}]"; a = in(reg) NOWHERE);
    check.faults("a jump to what is read there", PF, attempt(jump));
}

fn edges(check: &mut Check) {
    poke32(END - 4, 0x1234_5678);
    check.equal_hex("a word half in RAM", 0xffff_ffff_1234_5678u64, peek(END - 4));
    poke(END - 4, 0x1111_2222_3333_4444);
    check.equal_hex("after a write to it", 0xffff_ffff_3333_4444u64, peek(END - 4));
    both!(check, FLAGS, "mov byte ptr [rdi], 1", "movaps [rdi], xmm0", "movdqu [rdi + 1], xmm0");
}

/// The local APIC's page by more than plain moves.
fn registers(check: &mut Check) {
    check.equal_hex("the APIC's version and the zeros behind it", 0u64, peek(APIC_VERSION));
    let read = |at: u64| {
        let value: u64;
        let _fault = instructions!("mov {v:e}, [{a}]"; a = in(reg) at, v = inout(reg) 0u64 => value);
        value
    };
    check.equal_hex("its version", 0x5_0014u64, read(APIC_VERSION));
    let byte: u64;
    let _fault = instructions!("movzx {v:e}, byte ptr [{a}]"; a = in(reg) APIC_VERSION + 2, v = inout(reg) 0u64 => byte);
    check.equal_hex("a byte of it", 5u64, byte);
    let _fault = instructions!("or dword ptr [{a}], 0x30"; a = in(reg) APIC_TPR);
    check.equal_hex("or", 0x30u64, read(APIC_TPR));
    let _fault = instructions!("btr dword ptr [{a}], 5"; a = in(reg) APIC_TPR);
    check.equal_hex("btr", 0x10u64, read(APIC_TPR));
    let before: u64;
    let _fault = instructions!("xchg [{a}], {v:e}"; a = in(reg) APIC_TPR, v = inout(reg) 0x41u64 => before);
    check.equal_hex("xchg gives", 0x10u64, before);
    let _fault = instructions!("lock cmpxchg [{a}], {v:e}"; a = in(reg) APIC_TPR, v = in(reg) 0x22u64, inout("rax") 0x41u64 => _);
    check.equal_hex("cmpxchg", 0x22u64, read(APIC_TPR));
    let _fault = instructions!("inc byte ptr [{a}]"; a = in(reg) APIC_TPR);
    check.equal_hex("inc of a byte", 0x23u64, read(APIC_TPR));
    poke(OTHER, 0);
    let _fault = instructions!("rep movsd"; inout("rcx") 1u64 => _, inout("rdi") OTHER => _, inout("rsi") APIC_TPR => _);
    check.equal_hex("rep movsd", 0x23u64, peek(OTHER));
    let _fault = instructions!("and dword ptr [{a}], 0"; a = in(reg) APIC_TPR);
    check.equal_hex("and", 0u64, read(APIC_TPR));
}

fn refused(check: &mut Check) {
    check.faults("a load of a vector register", UD, instructions!("movaps xmm0, [{a}]"; a = in(reg) NOWHERE));
    check.faults("a load of an x87 register", UD, instructions!("fild dword ptr [{a}]"; a = in(reg) NOWHERE));
    check.faults("a descriptor table from there", UD, instructions!("lidt [{a}]"; a = in(reg) NOWHERE));
    check.faults("instructions from there", UD, attempt(|| call(NOWHERE)));
    paging::map(AREA, NOWHERE | PRESENT | WRITE | USER);
    check.equal_hex("through page tables", u64::MAX, peek(AREA + 8));
    paging::map_at(AREA, 2, NOWHERE | PRESENT | WRITE | USER);
    let got = try_peek(AREA);
    check.faults("page tables that are nowhere", PF, got);
    if let Err(Fault { error, address, .. }) = got {
        check.equal_hex("the error code: present, a reserved bit", 9u32, error);
        check.equal_hex("the address", AREA, address);
    }
}
