//! The local APIC: registers by its page and by MSRs, interrupts by priority, errors, the timer in its modes, and
//! the steps between the modes of APIC_BASE.
//!
//! Sources: AMD64 APM vol. 2, chapter 16; Intel SDM vol. 3, chapter 10; Xen arch/x86/hvm/vlapic.c.
#![expect(unsafe_code, reason = "registers are memory of this guest's own")]

use core::sync::atomic::{AtomicU64, Ordering};

use crate::check::Check;
use crate::machine::{cpuid, idle_once, interrupts_off, interrupts_on, read_msr, tsc, write_msr};
use crate::numbers::Random;
use crate::traps::{self, Frame, GP, instructions};

const PAGE: u64 = 0xfee0_0000;
const APIC_BASE: u32 = 0x1b;
const TSC_DEADLINE: u32 = 0x6e0;

const ID: u64 = 0x20;
const VERSION: u64 = 0x30;
const TPR: u64 = 0x80;
const PPR: u64 = 0xa0;
const EOI: u64 = 0xb0;
const LDR: u64 = 0xd0;
const DFR: u64 = 0xe0;
const SVR: u64 = 0xf0;
const ISR: u64 = 0x100;
const IRR: u64 = 0x200;
const ESR: u64 = 0x280;
const ICR: u64 = 0x300;
const ICR_HIGH: u64 = 0x310;
const LVT_TIMER: u64 = 0x320;
const LVT_ERROR: u64 = 0x370;
const INITIAL: u64 = 0x380;
const CURRENT: u64 = 0x390;
const DIVIDE: u64 = 0x3e0;
const SELF_IPI: u64 = 0x3f0;

const ENABLED: u64 = 0x1ff;
const MASKED: u64 = 1 << 16;
const TO_SELF: u64 = 1 << 18;
/// Counts of 10 ns.
const MS: u64 = 100_000;

/// Vectors in the order of their handlers' calls, eight bits each.
static ORDER: AtomicU64 = AtomicU64::new(0);

/// Whether registers are MSRs now.
static BY_MSR: AtomicU64 = AtomicU64::new(0);

fn is_by_msr() -> bool {
    BY_MSR.load(Ordering::Relaxed) != 0
}

fn read(register: u64) -> u64 {
    if is_by_msr() {
        return read_msr(0x800 + (register >> 4) as u32).unwrap_or(u64::MAX);
    }
    read_page(register)
}

fn read_page(register: u64) -> u64 {
    let value: u64;
    let _fault = instructions!("mov {v:e}, [{a}]"; a = in(reg) PAGE + register, v = inout(reg) 0u64 => value);
    value
}

fn write(register: u64, value: u64) {
    if is_by_msr() {
        let _fault = write_msr(0x800 + (register >> 4) as u32, value);
    } else {
        let _fault = instructions!("mov [{a}], {v:e}"; a = in(reg) PAGE + register, v = in(reg) value);
    }
}

/// The APIC's bit of CPUID leaves 1 and 0x80000001.
fn shown() -> [u32; 2] {
    [1, 0x8000_0001].map(|leaf| cpuid(leaf, 0)[3] >> 9 & 1)
}

fn on_interrupt(frame: &mut Frame) {
    let order = ORDER.load(Ordering::Relaxed);
    ORDER.store(order << 8 | frame.vector & 0xff, Ordering::Relaxed);
    write(EOI, 0);
}

/// What came, oldest first, since the last call.
fn order() -> u64 {
    ORDER.swap(0, Ordering::Relaxed)
}

fn let_interrupts_in() {
    interrupts_on();
    interrupts_off();
}

pub fn run(check: &mut Check, _: &mut Random) {
    for vector in [0x31, 0x41, 0x44, 0x50, 0x61, 0x62] {
        traps::on(vector, on_interrupt);
    }
    reset_state(check);
    write(SVR, ENABLED);
    priorities(check);
    errors(check);
    timer(check);
    modes(check);
}

fn reset_state(check: &mut Check) {
    check.equal("APIC_BASE", Ok(0xfee0_0900), read_msr(APIC_BASE));
    let expected = [
        ("ID", ID, 0),
        ("version", VERSION, 0x5_0014),
        ("TPR", TPR, 0),
        ("PPR", PPR, 0),
        ("LDR", LDR, 0),
        ("DFR", DFR, 0xffff_ffff),
        ("SVR", SVR, 0xff),
        ("ESR", ESR, 0),
        ("ICR", ICR, 0),
        ("timer's initial count", INITIAL, 0),
        ("timer's current count", CURRENT, 0),
        ("divide configuration", DIVIDE, 0),
    ];
    for (what, register, value) in expected {
        check.equal_hex(what, value, read(register));
    }
    let entries = (LVT_TIMER..=LVT_ERROR).step_by(16);
    check.is_true("all local vectors are masked", entries.map(read).all(|entry| entry == MASKED));
    check.is_true("nothing waits", (ISR..ESR).step_by(16).map(read).all(|word| word == 0));
    for msr in [0x802, 0x80f, 0x830] {
        check.faults(format_args!("reading MSR {msr:#x} in xAPIC mode"), GP, read_msr(msr));
    }
    check.faults("writing an x2APIC MSR in xAPIC mode", GP, write_msr(0x80b, 0));
    write(LVT_TIMER, 0x40);
    check.equal_hex("a vector cannot be unmasked while disabled", MASKED | 0x40, read(LVT_TIMER));
    write(ICR, TO_SELF | 0x41);
    write(SVR, ENABLED);
    let_interrupts_in();
    check.equal_hex("nothing is received while disabled", 0u64, order());
    write(LDR, 0x1234_5678);
    check.equal_hex("LDR has eight bits", 0x1200_0000u64, read(LDR));
    write(ICR_HIGH, 0x0123_4567);
    check.equal_hex("the destination has eight bits", 0x0100_0000u64, read(ICR_HIGH));
    write(VERSION, 0);
    check.equal_hex("the version cannot be written", 0x5_0014u64, read(VERSION));
    let narrow = instructions!("mov byte ptr [{a}], 0x10"; a = in(reg) PAGE + TPR);
    check.works("a byte is written", narrow);
    check.equal_hex("TPR after that", 0x10u64, read(TPR));
    write(TPR, 0);
}

/// Self-IPIs by shorthand and by destination, in the order of their priority.
fn priorities(check: &mut Check) {
    for vector in [0x41, 0x61, 0x62, 0x31] {
        write(ICR, TO_SELF | vector);
    }
    check.equal_hex("IRR of 0x60 to 0x7f", 6u64, read(IRR + 0x30));
    let_interrupts_in();
    check.equal_hex("the highest vectors come first", 0x6261_4131u64, order());
    check.equal_hex("IRR afterwards", 0u64, read(IRR + 0x30));
    write(ICR_HIGH, 0);
    write(ICR, 0x41);
    let_interrupts_in();
    check.equal_hex("an interrupt to its own number", 0x41u64, order());
    write(LDR, 4 << 24);
    write(ICR_HIGH, 6 << 24);
    write(ICR, 1 << 11 | 0x41);
    let_interrupts_in();
    check.equal_hex("an interrupt to its logical number", 0x41u64, order());
    write(ICR_HIGH, 3 << 24);
    write(ICR, 1 << 11 | 0x41);
    write(ICR_HIGH, 9 << 24);
    write(ICR, 0x41);
    write(ICR, 3 << 18 | 0x41);
    let_interrupts_in();
    check.equal_hex("interrupts to others", 0u64, order());
    write(TPR, 0x50);
    write(ICR, TO_SELF | 0x41);
    write(ICR, TO_SELF | 0x61);
    let_interrupts_in();
    check.equal_hex("only what is above TPR comes", 0x61u64, order());
    check.equal_hex("PPR", 0x50u64, read(PPR));
    write(TPR, 0);
    let_interrupts_in();
    check.equal_hex("the other one comes later", 0x41u64, order());
    let class: u64;
    write(TPR, 0x35);
    check.works("CR8 is read", instructions!("mov {v}, cr8"; v = inout(reg) 0u64 => class));
    check.equal_hex("CR8 is TPR's class", 3u64, class);
    check.works("CR8 is written", instructions!("mov cr8, {v}"; v = in(reg) 6u64));
    check.equal_hex("TPR after that", 0x60u64, read(TPR));
    check.faults("CR8 has four bits", GP, instructions!("mov cr8, {v}"; v = in(reg) 16u64));
    write(TPR, 0);
    let before = traps::count(2);
    traps::on(2, |_| ());
    write(ICR, TO_SELF | 0x400);
    let_interrupts_in();
    check.at_most("an NMI to oneself comes once", 1, traps::count(2) - before);
    nested_nmis(check);
    traps::off(2);
}

/// NMIs that come in the handler of one wait for its end, and are one. Handlers that run, and the most of them at once.
fn nested_nmis(check: &mut Check) {
    static NOW: AtomicU64 = AtomicU64::new(0);
    static MOST: AtomicU64 = AtomicU64::new(0);
    let before = traps::count(2);
    traps::on(2, |_| {
        let depth = NOW.fetch_add(1, Ordering::Relaxed) + 1;
        MOST.fetch_max(depth, Ordering::Relaxed);
        if MOST.load(Ordering::Relaxed) == 1 && RUNS.fetch_add(1, Ordering::Relaxed) < 3 {
            for _ in 0..3 {
                write(ICR, TO_SELF | 0x400);
                cpuid(0, 0);
            }
        }
        NOW.fetch_sub(1, Ordering::Relaxed);
    });
    static RUNS: AtomicU64 = AtomicU64::new(0);
    write(ICR, TO_SELF | 0x400);
    // Without an exit: it comes by itself.
    let start = tsc();
    while traps::count(2) - before < 4 && tsc() - start < 1 << 33 {}
    for _ in 0..100 {
        cpuid(0, 0);
    }
    check.equal("NMIs, three of them sent from handlers", 4, traps::count(2) - before);
    check.equal("handlers at once", 1, MOST.load(Ordering::Relaxed));
}

fn errors(check: &mut Check) {
    let latch = || {
        write(ESR, 0);
        read(ESR)
    };
    // Twice: what was before is forgotten.
    latch();
    latch();
    write(LVT_ERROR, 0x44);
    write(ICR, TO_SELF | 0xf);
    check.equal_hex("ESR before it is written", 0u64, read(ESR));
    let_interrupts_in();
    check.equal_hex("the error interrupt", 0x44u64, order());
    check.equal_hex("sent illegal vector", 0x20u64, latch());
    check.equal_hex("ESR is empty afterwards", 0u64, latch());
    write(LVT_ERROR, MASKED);
    if !is_by_msr() {
        check.equal_hex("a register that does not exist reads", 0u64, read(0x40));
        check.equal_hex("illegal register address", 0x80u64, latch());
    }
    write(LVT_TIMER, 5);
    write(DIVIDE, 0xb);
    write(INITIAL, 1);
    let start = tsc();
    while latch() == 0 && tsc() - start < 1_000_000_000 {}
    write(LVT_TIMER, 5);
    write(INITIAL, 1);
    let start = tsc();
    while read(CURRENT) != 0 && tsc() - start < 1_000_000_000 {}
    check.equal_hex("received illegal vector", 0x40u64, latch() & 0x40);
    write(LVT_TIMER, MASKED);
}

/// Ticks of the TSC in a millisecond.
fn tsc_per_ms() -> u64 {
    u64::from(cpuid(0x4000_0003, 0)[2])
}

/// Sleeps until so many interrupts came; milliseconds times 10 since `start`.
fn tenths_until(vector: u8, count: u64, start: u64) -> u64 {
    while traps::count(vector) < count {
        idle_once();
    }
    (tsc() - start) * 10 / tsc_per_ms()
}

/// Never early; how late depends on who shares the machine and its host.
const LATE: u64 = 100_000;

fn timer(check: &mut Check) {
    let base = traps::count(0x50);
    write(LVT_TIMER, 0x50);
    write(DIVIDE, 0xb);
    let start = tsc();
    write(INITIAL, 10 * MS);
    check.within("the count goes down", 1..=10 * MS, read(CURRENT));
    check.equal("the initial count", 10 * MS, read(INITIAL));
    check.within("one shot after 10 ms, in tenths", 100..=LATE, tenths_until(0x50, base + 1, start));
    check.equal("its count afterwards", 0, read(CURRENT));
    let start = tsc();
    while tsc() - start < 3 * tsc_per_ms() {
        let_interrupts_in();
    }
    check.equal("it does not come again", base + 1, traps::count(0x50));
    write(DIVIDE, 3);
    let start = tsc();
    write(INITIAL, MS / 2);
    check.within("divided by 16, 8 ms", 80..=LATE, tenths_until(0x50, base + 2, start));
    write(DIVIDE, 0xb);
    write(LVT_TIMER, 1 << 17 | 0x50);
    let start = tsc();
    write(INITIAL, 2 * MS);
    check.within("five periods of 2 ms", 100..=LATE, tenths_until(0x50, base + 7, start));
    check.within("it counts again", 1..=2 * MS, read(CURRENT));
    write(LVT_TIMER, 1 << 17 | MASKED | 0x50);
    let (before, start) = (traps::count(0x50), tsc());
    while tsc() - start < 5 * tsc_per_ms() {
        let_interrupts_in();
    }
    check.at_most("masked it is silent", 1, traps::count(0x50) - before);
    write(INITIAL, 0);
    check.equal("stopped it counts nothing", 0, read(CURRENT));

    write(LVT_TIMER, 2 << 17 | 0x50);
    let (before, start) = (traps::count(0x50), tsc());
    check.works("TSC_DEADLINE is written", write_msr(TSC_DEADLINE, start + 5 * tsc_per_ms()));
    check.is_true("and reads back", read_msr(TSC_DEADLINE) == Ok(start + 5 * tsc_per_ms()));
    check.within("the deadline in 5 ms, in tenths", 50..=LATE, tenths_until(0x50, before + 1, start));
    check.equal("the deadline afterwards", Ok(0), read_msr(TSC_DEADLINE));
    let before = traps::count(0x50);
    check.works("a deadline in the past", write_msr(TSC_DEADLINE, 1));
    let_interrupts_in();
    check.equal("comes at once", before + 1, traps::count(0x50));
    write(LVT_TIMER, MASKED);
    order();
}

fn modes(check: &mut Check) {
    check.works("to x2APIC mode", write_msr(APIC_BASE, 0xfee0_0d00));
    BY_MSR.store(1, Ordering::Relaxed);
    check.equal_hex("ID in x2APIC mode", 0u64, read(ID));
    check.equal_hex("LDR in x2APIC mode", 1u64, read(LDR));
    check.equal_hex("SVR stays", ENABLED, read(SVR));
    check.equal_hex("there is no page", 0xffff_ffffu64, read_page(VERSION));
    write(SELF_IPI, 0x41);
    write(SELF_IPI, 0x62);
    let_interrupts_in();
    check.equal_hex("self-IPIs", 0x6241u64, order());
    write(ICR, 0x61);
    write(ICR, 1 << 32 | 1 << 11 | 0x31);
    write(ICR, 5 << 32 | 0x44);
    let_interrupts_in();
    check.equal_hex("by destination", 0x6131u64, order());
    errors(check);
    timer(check);
    for (what, register, value) in [
        ("ID is written", ID, 0),
        ("LDR is written", LDR, 1),
        ("EOI is not 0", EOI, 1),
        ("ESR is not 0", ESR, 1),
        ("TPR has nine bits", TPR, 0x100),
        ("DFR is written", DFR, 0),
        ("the high half of ICR is written", ICR_HIGH, 0),
        ("a reserved bit of SVR", SVR, 0x1000),
        ("a register that does not exist", 0x400, 0),
    ] {
        check.faults(what, GP, write_msr(0x800 + (register >> 4) as u32, value));
    }
    for register in [EOI, SELF_IPI, DFR, 0x400] {
        check.faults(format_args!("{register:#x} is read"), GP, read_msr(0x800 + (register >> 4) as u32));
    }
    check.faults("back to xAPIC mode", GP, write_msr(APIC_BASE, 0xfee0_0900));
    check.equal("APIC in CPUID", [1, 1], shown());
    check.works("to disabled", write_msr(APIC_BASE, 0xfee0_0100));
    check.equal("APIC in CPUID while it is disabled", [0, 0], shown());
    check.faults("from disabled to x2APIC mode", GP, write_msr(APIC_BASE, 0xfee0_0d00));
    check.faults("an MSR while disabled", GP, read_msr(0x803));
    check.equal_hex("no page while disabled", 0xffff_ffffu64, read_page(VERSION));
    BY_MSR.store(0, Ordering::Relaxed);
    check.faults("another address", GP, write_msr(APIC_BASE, 0xfed0_0900));
    check.works("to xAPIC mode", write_msr(APIC_BASE, 0xfee0_0900));
    check.equal("APIC in CPUID again", [1, 1], shown());
    check.equal_hex("it was reset", 0xffu64, read(SVR));
    check.faults("a reserved bit", GP, write_msr(APIC_BASE, 0xfee0_0901));
}
