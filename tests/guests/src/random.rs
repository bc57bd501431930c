//! Everything that a guest can do, at random: a million steps, the same for the same seed.
//!
//! What is left out is only what would end this guest at once and for good reason: shutdown, INIT to itself, its own
//! program's frames. Each kind of step must have been made often, and nothing but the guest may suffer, which the test
//! on the host watches.

#![expect(unsafe_code, reason = "this is a guest's kernel")]

use core::ops::Range;

use crate::check::Check;
use crate::machine::{self, hypercall};
use crate::modes::{self, Frames, Mode};
use crate::numbers::Random;
use crate::out::say;
use crate::paging::{self, AREA, LARGE, NO_EXECUTE, PRESENT, USER, WRITE};
use crate::traps::{self, instructions};
use crate::xen::{
    CONSOLE_IO, DOMID_SELF, EVENT_CHANNEL_OP, GRANT_TABLE_OP, HVM_OP, MEMORY_OP, MULTICALL, SCHED_OP,
    VCPU_OP, XEN_VERSION,
};
use crate::{NOWHERE, SCRATCH};

const STEPS: u64 = 1_000_000;
/// Where the ACPI tables put the sleep registers.
const SLEEP_PORTS: u16 = 0xb000;
/// Steps between two lines of progress.
const PROGRESS: u64 = 10_000;
/// Frames that may be hidden, taken out and put back.
const FRAMES: Range<u64> = (SCRATCH >> 12) + 16..(SCRATCH >> 12) + 128;
/// Pages at [`AREA`] that are mapped in all ways.
const PAGES: u64 = 8;
const LARGE_AREA: u64 = AREA + (1 << 30);
const APIC_PAGE: u64 = 0xfee0_0000;
const APIC_BASE: u32 = 0x1b;
const TPR: u32 = 0x808;
const EOI: u32 = 0x80b;
const SPURIOUS: u32 = 0x80f;
const COMMAND: u32 = 0x830;
const TIMER: u32 = 0x832;
const TIMER_COUNT: u32 = 0x838;
const TIMER_DIVIDE: u32 = 0x83e;
const SELF: u32 = 0x83f;
const EFER: u32 = 0xc000_0080;
const HYPERCALL_PAGE: u32 = 0x4000_0000;

type Step = fn(&Tester, &mut Random);

/// Kinds of steps, and how many of a hundred are of each.
const KINDS: [(&str, u64, Step); 11] = [
    ("hypercalls", 30, Tester::hypercall),
    ("hypercalls of other modes", 8, Tester::narrow),
    ("pages", 16, Tester::pages),
    ("msrs", 10, |_, random| msr(random)),
    ("ports", 8, |_, random| port(random)),
    ("cpuid", 5, |_, random| {
        let base = [0, 0x4000_0000, 0x8000_0000, random.next()][random.below(4) as usize];
        machine::cpuid((base + random.below(0x40)) as u32, random.argument() as u32);
    }),
    ("absent memory", 8, |_, random| absent(random)),
    ("apic", 3, |_, random| apic(random)),
    ("svm", 4, |_, random| machine::svm(random.next(), random.argument())),
    ("registers", 3, |_, random| registers(random)),
    ("interrupts", 5, |_, random| interrupts(random)),
];

/// The mode.
pub fn run(check: &mut Check, random: &mut Random) {
    for vector in 32..=255 {
        if !matches!(vector, 0x80 | 0x81) {
            traps::on(vector, |_| on_interrupt());
        }
    }
    reset_apic();
    // It can be registered once, and is then where the handler looks for it.
    machine::poke(SCRATCH, VCPU_INFO);
    machine::poke(SCRATCH + 8, 0);
    check.equal("register_vcpu_info", 0, hypercall(VCPU_OP, [10, 0, SCRATCH, 0, 0]));
    let tester = Tester::new();
    let mut counts = [0u64; KINDS.len()];
    let mut ended = 0u64;
    for step in 0..STEPS {
        let mut point = random.below(100);
        let kind = KINDS.iter().position(|(_, share, _)| {
            let is_it = point < *share;
            point = point.wrapping_sub(*share);
            is_it
        });
        let kind = kind.unwrap_or(0);
        let (_, _, run) = KINDS[kind];
        counts[kind] += 1;
        ended += u64::from(traps::attempt(|| run(&tester, random)).is_err());
        machine::interrupts_off();
        if step % PROGRESS == 0 {
            say!("\nrandom: {step} steps");
        }
    }
    say!("");
    for ((kind, share, _), count) in KINDS.iter().zip(counts) {
        check.within(kind, STEPS / 110 * share..=STEPS / 90 * share, count);
    }
    check.equal("steps", STEPS, counts.iter().sum());
    check.at_least("exceptions", STEPS / 50, traps::fault_count());
    check.tell(format_args!("{ended} steps were ended by one"));
}

/// Frame of vcpu_info, outside of those that are hidden and given away.
const VCPU_INFO: u64 = (SCRATCH >> 12) + 200;

/// An upcall is due again as long as vcpu_info says so.
fn on_interrupt() {
    machine::poke(VCPU_INFO << 12, 0);
    machine::poke((VCPU_INFO << 12) + 8, 0);
    ignore(machine::write_msr(EOI, 0));
}

/// What the steps need.
struct Tester {
    modes: [Mode; 4],
    /// A frame behind [`AREA`].
    frame: u64,
}

impl Tester {
    fn new() -> Self {
        let frames = Frames::new();
        // The tables above the areas, made once.
        paging::entry(AREA, 1);
        paging::entry(LARGE_AREA, 2);
        Self {
            modes: [Mode::Compat, Mode::Unpaged, frames.two_levels(), frames.pae()],
            frame: paging::frame(),
        }
    }

    /// A call of any kind, with its argument in memory, mapped in any way.
    fn hypercall(&self, random: &mut Random) {
        let (number, mut args) = call(random);
        // A poll without a time, or for a long one, would never come back.
        if random.below(4) == 0 && number != SCHED_OP {
            for argument in &mut args[1..] {
                *argument = if *argument == SCRATCH { pointer(random) } else { *argument };
            }
        }
        hypercall(number, args);
    }

    fn narrow(&self, random: &mut Random) {
        let (number, mut args) = call(random);
        if number as u32 == SCHED_OP as u32 {
            // A poll's structure is another one here.
            args[0] = 0;
        }
        if number as u32 == VCPU_OP as u32 && args[0] as u32 == 11 {
            // An NMI would find no table in there.
            args[0] = 3;
        }
        let mode = self.modes[random.below(4) as usize];
        modes::hypercall(mode, number as u32, args.map(|argument| argument as u32));
    }

    /// Maps a page in some way, then reads, writes and calls through it.
    fn pages(&self, random: &mut Random) {
        let flags = [PRESENT, PRESENT | WRITE, PRESENT | WRITE | USER, 0][random.below(4) as usize]
            | (random.below(2) * NO_EXECUTE);
        let frame = match random.below(4) {
            0 => NOWHERE + (random.below(16) << 12),
            1 => SCRATCH + (random.below(16) << 12),
            _ => self.frame,
        };
        let odd = if random.below(8) == 0 { 1 << (40 + random.below(23)) } else { 0 };
        if random.below(4) == 0 {
            let base = SCRATCH & !0x1f_ffff | random.below(2) << 13;
            paging::map_at(LARGE_AREA, 2, base | flags | LARGE | odd);
        } else {
            paging::map(AREA + (random.below(PAGES) << 12), frame | flags | odd);
        }
        let at = pointer(random);
        match random.below(4) {
            0 => ignore(machine::try_peek(at)),
            1 => ignore(machine::try_poke(at, random.next())),
            2 => ignore(traps::user(|| machine::try_peek(at))),
            _ => ignore(hypercall(XEN_VERSION, [1 + random.below(10), at, 0, 0, 0])),
        }
    }
}

/// An address at the pages that are mapped in all ways, often next to a boundary.
fn pointer(random: &mut Random) -> u64 {
    match random.below(4) {
        0 => LARGE_AREA + random.below(1 << 21),
        1 => AREA + random.below(PAGES << 12),
        _ => (AREA + (random.below(PAGES) << 12)).wrapping_sub(random.below(24)),
    }
}

/// A call's number and arguments, and its structure at [`SCRATCH`].
fn call(random: &mut Random) -> (u64, [u64; 5]) {
    const KNOWN: [u64; 16] = [
        MEMORY_OP,
        MEMORY_OP,
        XEN_VERSION,
        CONSOLE_IO,
        GRANT_TABLE_OP,
        VCPU_OP,
        VCPU_OP,
        SCHED_OP,
        EVENT_CHANNEL_OP,
        EVENT_CHANNEL_OP,
        HVM_OP,
        HVM_OP,
        15,
        21,
        33,
        7,
    ];
    let number = match random.below(8) {
        0 => random.next(),
        1 => random.below(64),
        _ => KNOWN[random.below(KNOWN.len() as u64) as usize],
    };
    machine::fill(SCRATCH, 8, || random.argument());
    let mut args = [(); 5].map(|()| random.argument());
    args[0] = if random.below(16) == 0 { random.argument() } else { random.below(20) };
    if random.below(4) != 0 {
        args[1] = SCRATCH;
    }
    match number {
        MEMORY_OP => memory_operation(random, &mut args),
        SCHED_OP => {
            args[0] = match random.below(4) {
                0 => 0,
                1 => 3,
                _ => 7 + random.below(100),
            };
            if args[0] == 3 {
                // A poll whose time has passed, or comes soon.
                machine::poke(SCRATCH, SCRATCH + 64);
                machine::poke(SCRATCH + 8, random.argument());
                machine::poke(SCRATCH + 16, 1 + random.below(1 << 20));
                args[1] = SCRATCH;
            }
        }
        // Not down, which is the end with one vCPU.
        VCPU_OP if args[0] as u32 == 2 => args[0] = 3,
        // Few bytes, or far too many of memory that is not there: text takes the time of all else.
        CONSOLE_IO if random.below(2) == 0 => args[1] = random.below(3),
        CONSOLE_IO => (args[1], args[2]) = (u64::MAX >> random.below(33), NOWHERE + random.below(0x1000)),
        // The answers of a long list would be written all over this program.
        GRANT_TABLE_OP => args[2] = random.below(64),
        MULTICALL => args[1] = random.below(4),
        EVENT_CHANNEL_OP => machine::poke(SCRATCH, random.below(32) | DOMID_SELF << (16 * random.below(2))),
        HVM_OP => {
            let index = random.below(40);
            // A task state segment for virtual 8086 mode, if it is bad, is the guest's end.
            let index = if matches!(index, 15 | 37) { 0 } else { index };
            machine::poke(SCRATCH, DOMID_SELF | index << 32);
            if random.below(2) == 0 {
                machine::poke(SCRATCH + 8, 2 << 56 | (0x40 + random.below(0xb0)));
            }
        }
        _ => {}
    }
    (number, args)
}

/// Frames mapped, taken out, put back; and everything else that there is.
fn memory_operation(random: &mut Random, args: &mut [u64; 5]) {
    let frame = |random: &mut Random| {
        if random.below(4) == 0 {
            (NOWHERE >> 12) + random.below(64)
        } else {
            FRAMES.start + random.below(FRAMES.end - FRAMES.start)
        }
    };
    match random.below(4) {
        0 => {
            args[0] = 7;
            machine::poke(SCRATCH, DOMID_SELF | random.below(5) << 32);
            machine::poke(SCRATCH + 8, random.below(40));
            machine::poke(SCRATCH + 16, frame(random));
        }
        1 => {
            args[0] = [1, 6][random.below(2) as usize];
            let list = SCRATCH + 0x1000;
            machine::fill(list, 16, || frame(random));
            machine::poke(SCRATCH, list);
            machine::poke(SCRATCH + 8, random.below(17));
            machine::poke(SCRATCH + 16, 0);
            machine::poke(SCRATCH + 24, DOMID_SELF);
        }
        // What names frames in other ways would find this program's among random ones.
        _ if matches!(args[0] & 0x3f, 0 | 1 | 6 | 7 | 11 | 15 | 23) => args[0] = 9,
        _ => {}
    }
}

/// A read or a write; what would take this program's mode, its interrupts or its memory is only read.
fn msr(random: &mut Random) {
    const RANGES: [(u32, u64); 6] = [
        (0, 0x1000),
        (0x800, 0x100),
        (0x4000_0000, 0x100),
        (0xc000_0000, 0x400),
        (0xc001_0000, 0x400),
        (0, 1 << 32),
    ];
    let (first, count) = RANGES[random.below(6) as usize];
    let msr = first.wrapping_add(random.below(count) as u32);
    let value = match msr {
        HYPERCALL_PAGE => FRAMES.start << 12,
        _ => random.argument(),
    };
    if random.below(2) == 0 || matches!(msr, APIC_BASE | COMMAND | TIMER..=TIMER_DIVIDE | EFER) {
        ignore(machine::read_msr(msr));
    } else {
        ignore(machine::write_msr(msr, value));
    }
}

/// What an attempt gave: here nothing depends on it.
fn ignore<T>(_: T) {}

/// Any port but those that are heard.
fn port(random: &mut Random) {
    let port = if random.below(4) == 0 { random.below(0x500) } else { random.below(0x1_0000) } as u16;
    // The sleep register of the ACPI tables would be obeyed.
    if port != crate::out::PORT && port & 0xfff0 != SLEEP_PORTS {
        machine::port(port, random.next(), random.next() as u8);
    }
}

/// Loads, stores and what does both, where nothing is.
fn absent(random: &mut Random) {
    let at = match random.below(3) {
        // In x2APIC mode this is absent, too.
        0 => APIC_PAGE + random.below(0x1000),
        1 => NOWHERE + random.below(0x1_0000),
        _ => (NOWHERE + 0x1000).wrapping_sub(random.below(8)),
    };
    let value = random.next();
    let count = random.below(20);
    let _fault = match random.below(12) {
        0 => instructions!("mov al, [{at}]"; at = in(reg) at, out("rax") _),
        1 => instructions!("mov [{at}], ax"; at = in(reg) at, in("rax") value),
        2 => instructions!("movzx eax, word ptr [{at}]"; at = in(reg) at, out("rax") _),
        3 => instructions!("xchg [{at}], eax"; at = in(reg) at, inout("rax") value => _),
        4 => instructions!("lock or dword ptr [{at}], eax"; at = in(reg) at, in("rax") value),
        5 => instructions!("bts dword ptr [{at}], 5"; at = in(reg) at),
        6 => instructions!("cmpxchg [{at}], rdx"; at = in(reg) at, in("rdx") value, inout("rax") value => _),
        7 => instructions!("rep stosd"; inout("rdi") at => _, inout("rcx") count => _, in("rax") value),
        8 => {
            instructions!("rep movsb"; inout("rsi") at => _, inout("rdi") SCRATCH + 0x2000 => _, inout("rcx") count => _)
        }
        9 => instructions!("push qword ptr [{at}]", "pop rax"; at = in(reg) at, out("rax") _),
        10 => instructions!("test byte ptr [{at}], 7"; at = in(reg) at),
        _ => instructions!("call qword ptr [{at}]"; at = in(reg) at, clobber_abi("C")),
    };
}

/// The page of the local APIC, in the mode that has one; not its commands and its timer.
fn apic(random: &mut Random) {
    ignore(machine::write_msr(APIC_BASE, APIC_PAGE | 0x100));
    ignore(machine::write_msr(APIC_BASE, APIC_PAGE | 0x900));
    for _ in 0..4 {
        let at = APIC_PAGE + if random.below(4) == 0 { random.below(0x400) } else { random.below(0x40) << 4 };
        if random.below(2) == 0 || matches!(at & 0xff0, 0x300 | 0x320..=0x3f0) {
            ignore(machine::try_peek(at));
        } else {
            machine::poke32(at, random.argument() as u32);
        }
    }
    reset_apic();
}

/// x2APIC mode, enabled, everything let through. It is off in between: an interrupt whose handler an NMI ended would
/// stay in service, and keep those below it waiting for ever.
fn reset_apic() {
    for (msr, value) in [
        (APIC_BASE, APIC_PAGE | 0x100),
        (APIC_BASE, APIC_PAGE | 0x900),
        (APIC_BASE, APIC_PAGE | 0xd00),
        (SPURIOUS, 0x1ff),
        (TPR, 0),
        (TIMER, 1 << 16),
    ] {
        ignore(machine::write_msr(msr, value));
    }
}

/// Control and debug registers, XCR0.
fn registers(random: &mut Random) {
    let which = random.below(7);
    let bits = match which {
        // Paging and protection stay, or this program would be gone at once.
        0 => 1 << random.below(64) & !0x8000_0001,
        1 => 1 << random.below(64) & !0x20,
        _ => random.argument(),
    };
    // Emulators answer a reserved bit with an invalid state instead of #GP; the VMM makes the #GP, unless nothing else
    // happened since the last one.
    machine::cpuid(0, 0);
    if which == 6 {
        machine::set_xcr(random.below(3) as u32, bits);
    } else {
        machine::flip_register(which, bits);
    }
}

/// Interrupts from all sides, and sleep that is sure to end.
fn interrupts(random: &mut Random) {
    match random.below(8) {
        0 => machine::software_interrupt(),
        1 => ignore(machine::write_msr(SELF, 0x20 + random.below(0xe0))),
        // An NMI to itself, which ends the step.
        2 => ignore(machine::write_msr(COMMAND, 1 << 18 | 4 << 8)),
        3 => {
            // A period shorter than its handler would be the end of everything else.
            let (mode, count) = [(0, random.below(100_000)), (1, 100_000_000)][random.below(2) as usize];
            ignore(machine::write_msr(TIMER, 0xec | mode << 17));
            ignore(machine::write_msr(TIMER_COUNT, count));
        }
        4 => {
            machine::poke(SCRATCH, random.below(1 << 40));
            machine::poke(SCRATCH + 8, random.below(2));
            hypercall(VCPU_OP, [8, 0, SCRATCH, 0, 0]);
        }
        5 => {
            // An event channel to itself.
            machine::poke(SCRATCH, 0);
            hypercall(EVENT_CHANNEL_OP, [7, SCRATCH, 0, 0, 0]);
            let port = machine::peek(SCRATCH) >> 32;
            crate::xen::notify(port);
            machine::poke(SCRATCH, port);
            hypercall(EVENT_CHANNEL_OP, [3, SCRATCH, 0, 0, 0]);
        }
        6 => machine::interrupts_on(),
        _ => {
            reset_apic();
            ignore(machine::write_msr(SELF, 0xfd));
            machine::idle_once();
        }
    }
    machine::interrupts_on();
    machine::interrupts_off();
}
