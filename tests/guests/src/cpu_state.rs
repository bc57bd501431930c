//! The processor's state of a vCPU: what it begins with, and that nobody else changes it.
//!
//! `cpu-state` and `cpu-neighbour` fill every register that VMRUN does not switch with their own patterns and look at
//! them again and again while they give the processor to each other and to `cpu-hostile`, which sets all of them to
//! anything. Sources: Xen docs/misc/pvh.pandoc (entry); AMD64 APM vol. 2, 14.1.3 (reset), 11.4 (FXSAVE, XSAVE).
#![expect(unsafe_code, reason = "this is a guest's kernel")]

use core::arch::asm;

use crate::check::Check;
use crate::machine::{self, hypercall};
use crate::numbers::Random;
use crate::traps::instructions;
use crate::xen::SCHED_OP;

const CR4_OSFXSR: u64 = 3 << 9;
const CR4_OSXSAVE: u64 = 1 << 18;
const CR4_DE: u64 = 1 << 3;
/// Cycles for which the guests of these modes run, so that they do at the same time.
const CYCLES: u64 = 12_000_000_000;
/// Where the exit path of the host, or another kernel's code, may be.
const HOST_CODE: u64 = 0xffff_ffff_8010_0000;

unsafe extern "C" {
    static entry_state: [u32; 13];
}

/// What XSAVE writes, or FXSAVE, which is its start.
#[repr(C, align(64))]
#[derive(Clone, Copy, PartialEq, Eq)]
struct Area([u64; 128]);

/// Bytes of the area that hold registers: legacy part without what is the system's, and the upper halves of YMM.
const LEGACY: core::ops::Range<usize> = 0..52;
const YMM_HIGH: core::ops::Range<usize> = 72..104;

fn set_cr4(bits: u64) -> bool {
    instructions!("mov {v}, cr4", "or {v}, {bits}", "mov cr4, {v}"; bits = in(reg) bits, v = out(reg) _)
        .is_ok()
}

/// XSETBV; whether the processor took it.
fn set_xcr0(value: u64) -> bool {
    instructions!("xsetbv"; in("ecx") 0, in("rax") value, in("rdx") value >> 32).is_ok()
}

fn xcr0() -> u64 {
    let (mut low, mut high) = (0u64, 0u64);
    let _fault = instructions!("xgetbv"; in("ecx") 0, inout("rax") low, inout("rdx") high);
    high << 32 | low & 0xffff_ffff
}

/// The registers: with AVX where XCR0 could be set.
fn save(has_avx: bool) -> Area {
    let mut area = Area([0; 128]);
    let at = &raw mut area;
    let _fault = if has_avx {
        instructions!("xsave64 [{}]"; in(reg) at, in("eax") 7, in("edx") 0)
    } else {
        instructions!("fxsave64 [{}]"; in(reg) at)
    };
    area
}

fn restore(area: &Area, has_avx: bool) {
    let at = &raw const *area;
    let _fault = if has_avx {
        instructions!("xrstor64 [{}]"; in(reg) at, in("eax") 7, in("edx") 0)
    } else {
        instructions!("fxrstor64 [{}]"; in(reg) at)
    };
}

fn debug_registers() -> [u64; 5] {
    let [a, b, c, d, e]: [u64; 5];
    // SAFETY: reads registers.
    unsafe {
        asm!("mov {}, dr0", "mov {}, dr1", "mov {}, dr2", "mov {}, dr3", "mov {}, dr7",
            out(reg) a, out(reg) b, out(reg) c, out(reg) d, out(reg) e);
    }
    [a, b, c, d, e]
}

fn set_debug_registers([a, b, c, d, e]: [u64; 5]) {
    let _fault = instructions!("mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}", "mov dr7, {}";
        in(reg) a, in(reg) b, in(reg) c, in(reg) d, in(reg) e);
}

fn dr6() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, dr6", out(reg) value) };
    value
}

fn cr8() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr8", out(reg) value) };
    value
}

fn set_cr8(value: u64) {
    let _fault = instructions!("mov cr8, {}"; in(reg) value);
}

fn rdtscp_aux() -> Option<u64> {
    let mut aux = u64::MAX;
    instructions!("rdtscp"; inout("rcx") aux, out("rax") _, out("rdx") _).ok().map(|()| aux)
}

fn yield_once() {
    hypercall(SCHED_OP, [0; 5]);
}

/// What a vCPU begins with; everything but what the entry code needed is as it was.
fn fresh(check: &mut Check) {
    // SAFETY: the entry code wrote it before anything else.
    let entry = unsafe { (&raw const entry_state).read_volatile() };
    let names =
        ["EAX", "ECX", "EDX", "EBP", "ESI", "EDI", "ESP", "EFLAGS", "CR0", "CR2", "CR3", "CR4", "EFER"];
    for (name, got) in names.into_iter().zip(entry) {
        let expected = match name {
            "EFLAGS" => 2u32,
            "CR0" => 0x11,
            _ => 0,
        };
        check.equal_hex(format_args!("{name} at entry"), expected, got);
    }
    check.equal("DR0 to DR3 and DR7 at entry", [0, 0, 0, 0, 0x400], debug_registers());
    check.equal_hex("DR6 at entry", 0xffff_0ff0u64, dr6());
    check.equal_hex("CR8 at entry", 0u64, cr8());
    set_cr4(CR4_OSFXSR);
    let area = save(false);
    // FCW 0x40, FSW 0, all tags "zero", which FXSAVE shortens to "not empty".
    check.equal_hex("x87 control, status and tags", 0xff_0000_0040u64, area.0[0] & 0xff_ffff_ffff);
    check.equal_hex("MXCSR", 0x1f80u64, area.0[3] & 0xffff_ffff);
    check.is_true("x87 and SSE registers are zero", area.0[4..52].iter().all(|&word| word == 0));
    if set_cr4(CR4_OSXSAVE) {
        check.equal_hex("XCR0", 1u64, xcr0());
    }
    if let Some(aux) = rdtscp_aux() {
        check.equal_hex("TSC_AUX by RDTSCP, which CPUID hides", 0u64, aux);
    }
}

/// Registers full of a pattern.
fn pattern(seed: u64) -> Area {
    let mut area = Area([0; 128]);
    area.0[0] = 0xff << 32 | 0x37f;
    area.0[3] = 0xffff_0000_1f80 | (seed & 3) << 13;
    for n in 0..8 {
        // 80-bit registers.
        area.0[4 + 2 * n] = seed ^ n as u64;
        area.0[5 + 2 * n] = 0x3fff;
    }
    for n in (20..LEGACY.end).chain(YMM_HIGH) {
        area.0[n] = seed.rotate_left(n as u32);
    }
    // XSTATE_BV: x87, SSE, AVX.
    area.0[64] = 7;
    area
}

fn keep(check: &mut Check, seed: u64, cr8_value: u64) {
    let has_avx = set_xcr0(7);
    check.tell(format_args!("XCR0 could be set: {has_avx}"));
    let breakpoints = [seed, !seed, seed << 8, HOST_CODE, 0x400];
    set_debug_registers(breakpoints);
    set_cr8(cr8_value);
    restore(&pattern(seed), has_avx);
    let expected = save(has_avx);
    check.equal("the pattern is in the registers", pattern(seed).0[20], expected.0[20]);
    let mut lost = [0u64; 5];
    let mut rounds = 0;
    let start = machine::tsc();
    while machine::tsc() - start < CYCLES {
        rounds += 1;
        if rounds % 4 == 0 {
            yield_once();
        }
        let got = save(has_avx);
        let parts = [
            got.0[LEGACY] == expected.0[LEGACY],
            !has_avx || got.0[YMM_HIGH] == expected.0[YMM_HIGH],
            !has_avx || xcr0() == 7,
            debug_registers() == breakpoints,
            cr8() == cr8_value && rdtscp_aux().is_none_or(|aux| aux == 0),
        ];
        for (count, is_kept) in lost.iter_mut().zip(parts) {
            *count += u64::from(!is_kept);
        }
    }
    set_cr8(0);
    check.at_least("rounds", 1000, rounds);
    for (what, lost) in ["x87 and SSE", "AVX", "XCR0", "DR0 to DR7", "CR8 and TSC_AUX"].into_iter().zip(lost)
    {
        check.equal(format_args!("rounds in which {what} had changed"), 0, lost);
    }
}

/// The mode `cpu-state`.
pub fn run(check: &mut Check, _: &mut Random) {
    fresh(check);
    keep(check, 0x1234_5678_9abc_def1, 9);
}

/// The mode `cpu-neighbour`.
pub fn neighbour(check: &mut Check, _: &mut Random) {
    fresh(check);
    keep(check, 0xfedc_ba98_7654_3210, 3);
}

/// The mode `cpu-hostile`: everything is set to anything, breakpoints on the host's code above all.
pub fn hostile(check: &mut Check, random: &mut Random) {
    set_cr4(CR4_OSFXSR);
    set_cr4(CR4_OSXSAVE);
    let mut rounds = 0;
    let start = machine::tsc();
    while machine::tsc() - start < CYCLES {
        rounds += 1;
        set_xcr0(random.argument());
        set_xcr0(random.below(8));
        let mut breakpoints = [(); 5].map(|()| HOST_CODE + random.below(0x2_0000));
        // Enabled, on execution or on data, of any length.
        breakpoints[4] = 0x7ff | random.next() << 16 & 0xffff_0000;
        set_debug_registers(breakpoints);
        let _fault = instructions!("mov dr6, {}"; in(reg) random.next() & 0xffff_ffff);
        set_cr8(random.below(16));
        let mut area = pattern(random.next());
        area.0[0] = random.next() & 0xffff | 0xff << 32;
        restore(&area, rounds % 2 == 0);
        let _fault = instructions!("mov {v}, cr4", "xor {v}, {bits}", "mov cr4, {v}";
            bits = in(reg) CR4_DE, v = out(reg) _);
        machine::cpuid(0, 0);
        if rounds % 4 == 0 {
            yield_once();
        }
    }
    // Breakpoints that stay while the others run, as far as this guest's end.
    set_debug_registers([HOST_CODE, HOST_CODE + 1, HOST_CODE + 2, HOST_CODE + 3, 0x4ff]);
    check.at_least("rounds survived", 1000, rounds);
}
