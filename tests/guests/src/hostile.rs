//! Modes that try everything that a guest must not be able to do.
//!
//! A mode that comes to its end prints `MODE done:` with its figures; some are meant to end otherwise. Sources: Xen
//! public/xen.h (hypercalls), AMD64 APM vol. 2.

use crate::machine::{self, hypercall, poke};
use crate::numbers::Random;
use crate::out::{self, say};
use crate::traps::{fault_count, last_fault};
use crate::xen::{
    CONSOLE_IO, GRANT_TABLE_OP, HVM_OP, MEMORY_OP, MULTICALL, SCHED_OP, VCPU_OP, notify, parameter,
};
use crate::{NOWHERE, SCRATCH, paging};

/// A mode: attempts made.
pub type Mode = fn(&mut Random) -> u64;

/// The modes by name.
pub const MODES: &[(&str, Mode)] = &[
    ("hypercalls", hypercalls),
    ("overlays", overlays),
    ("scheduling", scheduling),
    ("msrs", msrs),
    ("ports", ports),
    ("cpuid", cpuid),
    ("svm", svm),
    ("registers", registers),
    ("console-ring", |random| ring(random, 17, 18, 0xc00, 0xc10)),
    ("store-ring", |random| ring(random, 1, 2, 0x800, 0x818)),
    ("devices", crate::devices::run),
    ("triple-fault", |_| machine::triple_fault()),
    // What is fetched there is #UD, which cannot be delivered.
    ("jump", |_| {
        crate::traps::load_table(0);
        machine::jump(NOWHERE)
    }),
    ("write", |_| {
        poke(NOWHERE, 1);
        1
    }),
    ("page-tables", |_| {
        paging::set_root(NOWHERE);
        1
    }),
    ("spin", |_| machine::spin()),
    // For the bench: takes memory and a VMM, and does nothing.
    ("idle", |_| machine::idle()),
];

/// Runs a mode and prints its end.
pub fn run(name: &str, mode: Mode, random: &mut Random) {
    say!("hostile guest: {name}");
    let count = mode(random);
    say!("{name} done: {count} attempts, {} exceptions, last vector {}", fault_count(), last_fault().vector);
}

/// Fresh content for whatever a hypercall's pointer points to.
fn refill(random: &mut Random) {
    machine::fill(SCRATCH, 64, || random.argument());
}

/// All hypercalls but those that stop the vCPU, with all kinds of arguments.
fn hypercalls(random: &mut Random) -> u64 {
    const CALLS: u64 = 20_000;
    for n in 0..CALLS {
        if n % 8 == 0 {
            refill(random);
        }
        let number = if n % 64 == 0 { random.next() } else { random.below(64) };
        let mut args = [(); 5].map(|()| random.argument());
        match number {
            // VCPUOP_down would be the end.
            VCPU_OP if args[0] as u32 == 2 => args[0] = 3,
            // Text costs the time of the rest, and a long list's answers would be written all over this program.
            CONSOLE_IO => args[1] %= 256,
            GRANT_TABLE_OP => args[2] %= 64,
            _ => {}
        }
        // MEMORY_OP's mapping of frames has its own mode: it may take this program's pages away, and so may
        // a list of calls with one of it.
        let number = if matches!(number, SCHED_OP | MEMORY_OP | MULTICALL) { HVM_OP } else { number };
        hypercall(number, args);
    }
    CALLS
}

/// Memory operations: frames mapped anywhere, and ranges taken out.
fn overlays(random: &mut Random) -> u64 {
    const CALLS: u64 = 3000;
    for _ in 0..CALLS {
        refill(random);
        // add_to_physmap: domain, space, index, frame number.
        poke(SCRATCH, 0x7ff0 | random.below(3) << 32);
        poke(SCRATCH + 8, random.below(40));
        let frame = match random.below(3) {
            0 => (SCRATCH >> 12) + 16 + random.below(64),
            1 => (NOWHERE >> 12) + random.below(64),
            _ => random.next() >> random.below(40),
        };
        // Not over this program itself: then the rest would not be tried.
        let frame = if (0x1..(SCRATCH >> 12) + 16).contains(&frame) { frame + 0x2000 } else { frame };
        poke(SCRATCH + 16, frame);
        let operation = if random.below(2) == 0 { 7 } else { random.below(32) };
        hypercall(MEMORY_OP, [operation, SCRATCH, 0, 0, 0]);
    }
    CALLS
}

/// sched_op: polls with absurd lists and times that have passed, yields, what is refused and operations that are
/// none; then an end without a reason, and one with a reason that is none, which ends it.
fn scheduling(random: &mut Random) -> u64 {
    const CALLS: u64 = 2000;
    for _ in 0..CALLS {
        refill(random);
        // A poll whose time has passed comes back.
        poke(SCRATCH + 0x100, random.argument());
        poke(SCRATCH + 0x108, random.below(20));
        poke(SCRATCH + 0x110, 1);
        match random.below(4) {
            0 => hypercall(SCHED_OP, [3, SCRATCH + 0x100, 0, 0, 0]),
            1 => hypercall(SCHED_OP, [0, random.argument(), 0, 0, 0]),
            2 => hypercall(SCHED_OP, [4, random.argument(), 0, 0, 0]),
            // Not a shutdown code or a watchdog, which would end it early.
            _ => hypercall(SCHED_OP, [7 + random.argument() % 1000, random.argument(), 0, 0, 0]),
        };
    }
    hypercall(SCHED_OP, [2, NOWHERE, 0, 0, 0]);
    poke(SCRATCH, 77);
    hypercall(SCHED_OP, [2, SCRATCH, 0, 0, 0]);
    CALLS
}

/// Reads and writes of all ranges where processors have MSRs, and of random ones.
fn msrs(random: &mut Random) -> u64 {
    const RANGES: [(u32, u32); 6] = [
        (0, 0x1000),
        (0x4000_0000, 0x4000_0200),
        (0xc000_0000, 0xc000_0400),
        (0xc001_0000, 0xc001_0400),
        (0xc001_1000, 0xc001_1100),
        (0xffff_ff00, 0xffff_ffff),
    ];
    let mut count = 0;
    for (first, end) in RANGES {
        for msr in first..end {
            count += 2;
            let value = machine::read_msr(msr).unwrap_or(0);
            // Segment bases are what this program's own addresses do not depend on; EFER is flipped bit
            // by bit and set back, because without long mode nothing more would be tried.
            let wild = if msr == 0xc000_0080 { value ^ 1 << random.below(64) } else { random.argument() };
            let _fault = machine::write_msr(msr, wild);
            if msr == 0xc000_0080 {
                let _fault = machine::write_msr(msr, value);
            }
        }
    }
    for _ in 0..4000 {
        let msr = random.next() as u32;
        let _fault = machine::read_msr(msr);
        let _fault = machine::write_msr(msr, random.argument());
        count += 2;
    }
    count
}

/// All widths and directions on random ports.
fn ports(random: &mut Random) -> u64 {
    const ACCESSES: u64 = 20_000;
    for n in 0..ACCESSES {
        let port = if n % 4 == 0 { random.below(0x500) } else { random.below(0x1_0000) } as u16;
        // The debug console would fill the log with noise, and is not forbidden.
        if port != out::PORT {
            machine::port(port, random.next(), random.next() as u8);
        }
    }
    ACCESSES
}

/// Leaves of all ranges, and random ones.
fn cpuid(random: &mut Random) -> u64 {
    const LEAVES: u64 = 20_000;
    let mut sum = 0u64;
    for _ in 0..LEAVES {
        let base = [0, 0x4000_0000, 0x8000_0000, random.next()][random.below(4) as usize];
        let [eax, ..] = machine::cpuid((base + random.below(0x40)) as u32, random.argument() as u32);
        sum = sum.wrapping_add(eax.into());
    }
    poke(SCRATCH, sum);
    LEAVES
}

/// Virtualization inside of the guest: EFER.SVME, then all instructions with all kinds of addresses.
fn svm(random: &mut Random) -> u64 {
    const ATTEMPTS: u64 = 3000;
    let _fault =
        machine::read_msr(0xc000_0080).and_then(|efer| machine::write_msr(0xc000_0080, efer | 1 << 12));
    let _fault = machine::write_msr(0xc001_0117, SCRATCH + 0x4000);
    let _fault = machine::write_msr(0xc001_0114, 0);
    for n in 0..ATTEMPTS {
        let address = random.argument();
        machine::svm(n, if n % 24 < 12 { address & !0xfff } else { address });
    }
    ATTEMPTS
}

/// XSETBV and every bit of the control and debug registers.
fn registers(random: &mut Random) -> u64 {
    const ATTEMPTS: u64 = 4000;
    for n in 0..ATTEMPTS {
        machine::set_xcr(random.below(3) as u32, random.argument());
        // Emulators answer a reserved bit with an invalid state instead of #GP; the VMM makes the #GP, unless
        // nothing else happened since the last one.
        machine::cpuid(0, 0);
        // Paging and protection stay, or this program would be gone at once.
        let bits = match n % 6 {
            0 => 1 << random.below(64) & !0x8000_0001,
            1 => 1 << random.below(64) & !0x20,
            _ => random.argument(),
        };
        machine::flip_register(n, bits);
    }
    ATTEMPTS * 2
}

/// Garbage in a ring that the VMM serves, above all in its indices (`first..end`); parameters of HVM_OP
/// name its frame and its event channel.
fn ring(random: &mut Random, frame: u32, port: u32, first: u64, end: u64) -> u64 {
    const ROUNDS: u64 = 2000;
    let (frame, port) = (parameter(frame), parameter(port));
    if frame == 0 || port == 0 {
        return 0;
    }
    for n in 0..ROUNDS {
        for at in (0..first).step_by(256).chain((first..end).step_by(8)) {
            // Indices that are possible are tried as well: then the content is read.
            let word = random.next();
            poke((frame << 12) + at, if n % 2 == 0 { word & 0xff_0000_00ff } else { word });
        }
        notify(port);
    }
    ROUNDS
}
