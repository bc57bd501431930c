//! Several processors: start-up interrupts into real mode, interprocessor interrupts, turns, and state of one's own.
//!
//! Sources: Intel SDM vol. 3, 9.4 (INIT and SIPI) and 10.6 (interrupt command register); AMD64 APM vol. 2, 14.1.3
//! (state after INIT); Xen public/vcpu.h and public/event_channel.h for events of another vCPU.
#![expect(unsafe_code, reason = "this is a guest's kernel")]

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use crate::check::Check;
use crate::machine::{self, hypercall, peek, poke, poke8};
use crate::numbers::Random;
use crate::traps::{self, Frame};
use crate::xen::{EVENT_CHANNEL_OP, VCPU_OP, notify, set_parameter};
use crate::{SCRATCH, paging};

global_asm!(include_str!("processors.s"), options(att_syntax));

unsafe extern "C" {
    static processor_start: u8;
    static processor_end: u8;
    static processor_entry: u8;
    static mut gdt: [u64; 10];
    fn keep_registers(pattern: u64, until: *const AtomicU64) -> u64;
}

/// Processors besides this one; `vcpus` of the guest's configuration is one more.
const OTHERS: usize = 2;
/// Pages that they start at.
const PAGES: [u8; 3] = [0x08, 0x09, 0x0a];
const STACK: u64 = 0x4000;
const VECTOR: u8 = 0x60;
const UPCALL: u8 = 0xf3;
const NMI: u8 = 2;

const APIC_BASE: u32 = 0x1b;
const APIC_ID: u32 = 0x802;
const EOI: u32 = 0x80b;
const SPURIOUS: u32 = 0x80f;
const COMMAND: u32 = 0x830;

/// Delivery modes and shorthands of the command register.
const LOWEST: u64 = 1 << 8;
const TO_NMI: u64 = 4 << 8;
const INIT: u64 = 5 << 8 | 1 << 14 | 1 << 15;
const STARTUP: u64 = 6 << 8;
const LOGICAL: u64 = 1 << 11;
const OTHERS_ONLY: u64 = 3 << 18;

/// What another processor is to do.
const SPIN: u64 = 0;
const SLEEP: u64 = 1;
const TELL_TIME: u64 = 2;
const KEEP: u64 = 3;
const STOP: u64 = 4;

/// What the processors share about each.
struct Processor {
    /// How often it came out of a start-up.
    starts: AtomicU64,
    /// Rounds of its loop.
    rounds: AtomicU64,
    /// What it is to do; it goes back to [`SPIN`] when that is done.
    order: AtomicU64,
    answer: AtomicU64,
    interrupts: AtomicU64,
    nmis: AtomicU64,
    upcalls: AtomicU64,
}

impl Processor {
    const fn new() -> Self {
        Self {
            starts: AtomicU64::new(0),
            rounds: AtomicU64::new(0),
            order: AtomicU64::new(SPIN),
            answer: AtomicU64::new(0),
            interrupts: AtomicU64::new(0),
            nmis: AtomicU64::new(0),
            upcalls: AtomicU64::new(0),
        }
    }
}

static PROCESSORS: [Processor; OTHERS + 1] = [const { Processor::new() }; OTHERS + 1];
/// Ends [`KEEP`].
static RELEASE: AtomicU64 = AtomicU64::new(0);

/// The processor that executes this. Its APIC's number is twice its own.
fn own() -> &'static Processor {
    let number = machine::read_msr(APIC_ID).unwrap_or(0) as usize / 2;
    &PROCESSORS[number.min(OTHERS)]
}

/// TSC ticks in a millisecond, from Xen's time leaf.
fn millisecond() -> u64 {
    let [_, _, khz, _] = machine::cpuid(0x4000_0003, 0);
    u64::from(khz)
}

/// Waits until the condition holds, for a while; whether it does.
fn wait_for(condition: impl Fn() -> bool) -> bool {
    let end = machine::tsc() + 5000 * millisecond();
    while machine::tsc() < end {
        if condition() {
            return true;
        }
        core::hint::spin_loop();
    }
    false
}

fn use_x2apic() {
    let base = machine::read_msr(APIC_BASE).unwrap_or(0);
    let _fault = machine::write_msr(APIC_BASE, base | 0xc00);
    let _fault = machine::write_msr(SPURIOUS, 0x1ff);
}

/// Sends an interprocessor interrupt to an APIC.
fn send(apic: u64, command: u64) {
    let _fault = machine::write_msr(COMMAND, apic << 32 | command);
}

/// Has another processor do something, and waits for that.
fn order(number: usize, what: u64) -> u64 {
    let other = &PROCESSORS[number];
    other.order.store(what, SeqCst);
    wait_for(|| other.order.load(SeqCst) == SPIN);
    other.answer.load(SeqCst)
}

/// The callee of the start-up code, on every processor but the first.
#[unsafe(no_mangle)]
extern "C" fn processor_main(_page: u64) -> ! {
    traps::load_table(0xfff);
    use_x2apic();
    let own = own();
    own.starts.fetch_add(1, SeqCst);
    loop {
        own.rounds.fetch_add(1, SeqCst);
        match own.order.load(SeqCst) {
            SPIN => continue,
            SLEEP => {
                // What the boot processor waits for before it wakes this one.
                own.answer.store(1, SeqCst);
                machine::idle_once();
            }
            TELL_TIME => own.answer.store(machine::tsc(), SeqCst),
            KEEP => {
                // SAFETY: changes registers that a call may change.
                own.answer.store(unsafe { keep_registers(0x2222_3333_4444_5555, &RELEASE) }, SeqCst);
            }
            _ => machine::halt(),
        }
        own.order.store(SPIN, SeqCst);
    }
}

fn on_interrupt(_: &mut Frame) {
    own().interrupts.fetch_add(1, SeqCst);
    let _fault = machine::write_msr(EOI, 0);
}

fn on_nmi(_: &mut Frame) {
    own().nmis.fetch_add(1, SeqCst);
}

/// Address of processor 1's vcpu_info, as it registers it.
const VCPU_INFO: u64 = SCRATCH + 0x1000;

fn on_upcall(_: &mut Frame) {
    poke8(VCPU_INFO, 0);
    poke(VCPU_INFO + 8, 0);
    own().upcalls.fetch_add(1, SeqCst);
}

/// Puts the start-up code into a page, with what it needs.
fn prepare(page: u8, stack: u64) {
    let at = u64::from(page) << 12;
    let (first, last) = (&raw const processor_start, &raw const processor_end);
    let (entry, table) = (&raw const processor_entry, &raw const gdt);
    for word in 0..512 {
        poke(at + 8 * word, 0);
    }
    for offset in 0..last as u64 - first as u64 {
        // SAFETY: it lies between the two symbols.
        poke8(at + offset, unsafe { *first.wrapping_add(offset as usize) });
    }
    poke(at + 0xe80, 79 | (table as u64) << 16);
    poke(at + 0xe88, paging::root());
    poke(at + 0xe90, entry as u64 & 0xffff_ffff | 8 << 32);
    poke(at + 0xe98, stack);
}

/// The mode.
pub fn run(check: &mut Check, _: &mut Random) {
    use_x2apic();
    traps::on(VECTOR, on_interrupt);
    traps::on(NMI, on_nmi);
    traps::on(UPCALL, on_upcall);
    start(check);
    fresh_state(check);
    interrupts(check);
    turns(check);
    events(check);
    own_state(check);
    again(check);
    for other in PROCESSORS.iter().skip(1) {
        other.order.store(STOP, SeqCst);
    }
    let rounds = || PROCESSORS[1].rounds.load(SeqCst) + PROCESSORS[2].rounds.load(SeqCst);
    let stand_still = || {
        let before = rounds();
        let end = machine::tsc() + 20 * millisecond();
        while machine::tsc() < end {}
        rounds() == before
    };
    check.is_true("halted processors do nothing", wait_for(stand_still));
}

fn start(check: &mut Check) {
    for number in 1..=OTHERS {
        let (page, apic) = (PAGES[number - 1], 2 * number as u64);
        prepare(page, SCRATCH + 0x10_0000 + STACK * number as u64);
        send(apic, INIT);
        send(apic, STARTUP | u64::from(page));
        // The second one, as every kernel sends it.
        send(apic, STARTUP | u64::from(page));
        let starts = &PROCESSORS[number].starts;
        check.is_true(format_args!("processor {number} starts"), wait_for(|| starts.load(SeqCst) > 0));
        send(apic, STARTUP | u64::from(PAGES[2]));
        let end = machine::tsc() + 10 * millisecond();
        while machine::tsc() < end {}
        check.equal("starts after three start-up interrupts", 1, starts.load(SeqCst));
    }
}

fn fresh_state(check: &mut Check) {
    let at = u64::from(PAGES[0]) << 12;
    let word = |offset| peek(at + offset) & 0xffff_ffff;
    for (name, offset) in [
        ("eax", 0xe00),
        ("ecx", 0xe04),
        ("ebx", 0xe0c),
        ("esp", 0xe10),
        ("ebp", 0xe14),
        ("esi", 0xe18),
        ("edi", 0xe1c),
    ] {
        check.equal_hex(name, 0u64, word(offset));
    }
    check.equal_hex("cr0", 0x6000_0010u64, word(0xe20));
    for (name, offset) in [("cr2", 0xe24), ("cr3", 0xe28), ("cr4", 0xe2c), ("efer", 0xe58)] {
        check.equal_hex(name, 0u64, word(offset));
    }
    check.equal_hex("dr6", 0xffff_0ff0u64, word(0xe30));
    check.equal_hex("dr7", 0x400u64, word(0xe34));
    check.equal_hex("cs, ds", u64::from(PAGES[0]) << 8, word(0xe38));
    check.equal_hex("es, ss", 0u64, word(0xe3c));
    check.equal_hex("fs, gs", 0u64, word(0xe40));
    check.equal_hex("flags", 2u64, word(0xe44));
    check.equal_hex("limit of the descriptor table", 0xffffu64, word(0xe48) & 0xffff);
    check.equal_hex("limit of the interrupt table", 0xffffu64, word(0xe50) & 0xffff);
}

/// Interrupts that processors 1 and 2 took since `before`.
fn taken(before: [u64; 2]) -> [u64; 2] {
    let now = [1, 2].map(|number| PROCESSORS[number].interrupts.load(SeqCst));
    [now[0] - before[0], now[1] - before[1]]
}

fn interrupts(check: &mut Check) {
    let asleep = || {
        for number in [1, 2] {
            PROCESSORS[number].answer.store(0, SeqCst);
            PROCESSORS[number].order.store(SLEEP, SeqCst);
            wait_for(|| PROCESSORS[number].answer.load(SeqCst) == 1);
        }
    };
    // Only those that sleep yet: others would keep it for later.
    let awake = || {
        for number in [1, 2] {
            let order = &PROCESSORS[number].order;
            if order.load(SeqCst) == SLEEP {
                send(2 * number as u64, VECTOR.into());
                wait_for(|| order.load(SeqCst) == SPIN);
            }
        }
    };
    let fixed = u64::from(VECTOR);
    let cases: [(&str, u64, u64, [u64; 2]); 5] = [
        ("to one", 4, fixed, [0, 1]),
        ("to another", 2, fixed, [1, 0]),
        ("to all others", 0, fixed | OTHERS_ONLY, [1, 1]),
        ("to all that exist", 0xffff_ffff, fixed, [1, 1]),
        ("to logical ones", 1 << 2 | 1 << 4, fixed | LOGICAL, [1, 1]),
    ];
    for (what, apic, command, expected) in cases {
        asleep();
        let before = taken([0, 0]);
        send(apic, command);
        wait_for(|| taken(before) == expected);
        check.equal(format_args!("interrupt {what} that sleep"), expected, taken(before));
        awake();
    }
    asleep();
    let before = taken([0, 0]);
    send(0, fixed | LOWEST | OTHERS_ONLY);
    wait_for(|| taken(before) != [0, 0]);
    let end = machine::tsc() + 10 * millisecond();
    while machine::tsc() < end {}
    check.equal("interrupt to the one of lowest priority", 1, taken(before).iter().sum());
    awake();
    // They spin with interrupts off now.
    send(2, TO_NMI);
    wait_for(|| PROCESSORS[1].nmis.load(SeqCst) > 0);
    check.equal(
        "NMI with interrupts off",
        (1, 0),
        (PROCESSORS[1].nmis.load(SeqCst), PROCESSORS[2].nmis.load(SeqCst)),
    );
}

fn turns(check: &mut Check) {
    let rounds = |number: usize| PROCESSORS[number].rounds.load(SeqCst);
    let before = [rounds(1), rounds(2)];
    let end = machine::tsc() + 50 * millisecond();
    while machine::tsc() < end {}
    check.is_true("processor 1 goes on while others spin", rounds(1) > before[0] + 100);
    check.is_true("processor 2 goes on while others spin", rounds(2) > before[1] + 100);
    let mut backwards = 0;
    for n in 0..30 {
        let before = machine::tsc();
        let there = order(1 + n % 2, TELL_TIME);
        backwards += u64::from(!(before..=machine::tsc()).contains(&there));
    }
    check.equal("time stamps out of order", 0, backwards);
}

/// Events bound to another vCPU: its upcall comes there, whatever it does.
fn events(check: &mut Check) {
    poke(SCRATCH + 0x100, VCPU_INFO >> 12);
    poke(SCRATCH + 0x108, 0);
    check.equal("register_vcpu_info of vCPU 1", 0, hypercall(VCPU_OP, [10, 1, SCRATCH + 0x100, 0, 0]));
    check.equal("is_up of vCPU 1", 1, hypercall(VCPU_OP, [3, 1, 0, 0, 0]));
    check.equal("callback vector", 0, set_parameter(0, 2 << 56 | u64::from(UPCALL)));
    // bind_ipi to vCPU 1.
    poke(SCRATCH + 0x100, 1);
    check.equal("bind_ipi to vCPU 1", 0, hypercall(EVENT_CHANNEL_OP, [7, SCRATCH + 0x100, 0, 0, 0]));
    let port = peek(SCRATCH + 0x100) >> 32;
    let upcalls = |number: usize| PROCESSORS[number].upcalls.load(SeqCst);
    PROCESSORS[1].answer.store(0, SeqCst);
    PROCESSORS[1].order.store(SLEEP, SeqCst);
    wait_for(|| PROCESSORS[1].answer.load(SeqCst) == 1);
    // Registration makes everything pending once.
    wait_for(|| upcalls(1) > 0);
    order(1, SPIN);
    let before = upcalls(1);
    PROCESSORS[1].answer.store(0, SeqCst);
    PROCESSORS[1].order.store(SLEEP, SeqCst);
    wait_for(|| PROCESSORS[1].answer.load(SeqCst) == 1);
    notify(port);
    wait_for(|| upcalls(1) > before);
    check.equal("upcalls of vCPU 1 that slept", before + 1, upcalls(1));
    check.equal("upcalls of the others", (0, 0), (upcalls(0), upcalls(2)));
}

/// Vector registers and debug registers of two that run in turn.
fn own_state(check: &mut Check) {
    RELEASE.store(0, SeqCst);
    // SAFETY: sets CR4.OSFXSR, and a debug register that no breakpoint uses.
    unsafe {
        asm!("mov rax, cr4", "or rax, 0x200", "mov cr4, rax", "mov dr0, {}", in(reg) 0x1234_5678u64, out("rax") _)
    };
    PROCESSORS[1].order.store(KEEP, SeqCst);
    let deadline = machine::tsc() + 20 * millisecond();
    // This processor's own pattern, held for some turns of the other one.
    static DONE: AtomicU64 = AtomicU64::new(0);
    let mut others = 0;
    while machine::tsc() < deadline {
        DONE.store(1, SeqCst);
        // SAFETY: changes registers that a call may change.
        others += unsafe { keep_registers(0xaaaa_bbbb_cccc_dddd, &DONE) };
    }
    check.equal("vector registers of this processor that changed", 0, others);
    RELEASE.store(1, SeqCst);
    wait_for(|| PROCESSORS[1].order.load(SeqCst) == SPIN);
    check.equal("vector registers of processor 1 that changed", 0, PROCESSORS[1].answer.load(SeqCst));
    let debug: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, dr0", out(reg) debug) };
    check.equal_hex("dr0 of this processor", 0x1234_5678u64, debug);
}

/// INIT stops one that runs; a start-up interrupt to another page starts it there.
fn again(check: &mut Check) {
    send(2, INIT);
    let rounds = || PROCESSORS[1].rounds.load(SeqCst);
    let before = rounds();
    let end = machine::tsc() + 20 * millisecond();
    while machine::tsc() < end {}
    check.equal("rounds after INIT", before, rounds());
    prepare(PAGES[2], SCRATCH + 0x10_0000 + STACK);
    send(2, STARTUP | u64::from(PAGES[2]));
    check.is_true("starts again", wait_for(|| PROCESSORS[1].starts.load(SeqCst) == 2));
    let at = u64::from(PAGES[2]) << 12;
    check.equal_hex("cs, ds", u64::from(PAGES[2]) << 8, peek(at + 0xe38) & 0xffff_ffff);
    check.equal_hex("cr0", 0x6000_0010u64, peek(at + 0xe20) & 0xffff_ffff);
}
