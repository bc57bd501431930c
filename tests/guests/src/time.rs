//! Time as a guest sees it: the clock, the wall clock, timers that are neither lost nor early, polls, runstates.
//!
//! Sources: Xen public/xen.h (vcpu_time_info, shared_info), public/vcpu.h; the formula is that of Linux's pvclock.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::check::Check;
use crate::machine::{self, hypercall, peek, poke, poke8, poke32};
use crate::numbers::Random;
use crate::paging;
use crate::traps;
use crate::xen::errno::{EINVAL, ENOSYS};
use crate::xen::{self, EVENT_CHANNEL_OP, SCHED_OP, VCPU_OP};

const SET_TIMER_OP: u64 = 15;
const ETIME: i64 = -62;
const UPCALL: u8 = 0xf3;
const MS: u64 = 1_000_000;
/// How late a timer may be on a machine that is busy with other guests and is itself emulated.
const LATE: u64 = 3_000 * MS;

/// Offsets in vcpu_info and shared_info, 64-bit layout.
const PENDING_SEL: u64 = 8;
const TIME: u64 = 32;
const PENDING: u64 = 0x800;
const MASK: u64 = 0xa00;
const WALL_CLOCK: u64 = 0xc00;

static SHARED_INFO: AtomicU64 = AtomicU64::new(0);
static ARRIVED_NS: AtomicU64 = AtomicU64::new(0);

/// shared_info, the upcall, and a port for the timer.
struct Timer {
    shared_info: u64,
    port: u64,
}

/// System time by the guest's formula.
fn now() -> u64 {
    let time = SHARED_INFO.load(Ordering::Relaxed) + TIME;
    loop {
        let version = peek(time) as u32;
        let (stamp, system, scale) = (peek(time + 8), peek(time + 16), peek(time + 24));
        let delta = machine::tsc().wrapping_sub(stamp);
        let (mul, shift) = (scale as u32, (scale >> 32) as i8);
        let scaled = if shift < 0 { delta >> -shift } else { delta << shift };
        if version.is_multiple_of(2) && peek(time) as u32 == version {
            return system + ((u128::from(scaled) * u128::from(mul)) >> 32) as u64;
        }
    }
}

/// The upcall: takes everything that is pending.
fn upcall(_: &mut traps::Frame) {
    ARRIVED_NS.store(now(), Ordering::Relaxed);
    let shared_info = SHARED_INFO.load(Ordering::Relaxed);
    poke8(shared_info, 0);
    poke(shared_info + PENDING_SEL, 0);
    poke(shared_info + PENDING, 0);
}

fn upcalls() -> u64 {
    traps::count(UPCALL)
}

impl Timer {
    fn set_up(check: &mut Check) -> Self {
        let shared_info = paging::frame();
        check.equal("shared_info", 0, xen::map_frame(0, 0, shared_info >> 12));
        SHARED_INFO.store(shared_info, Ordering::Relaxed);
        traps::on(UPCALL, upcall);
        check.equal("callback", 0, xen::set_parameter(0, 2 << 56 | u64::from(UPCALL)));
        // VIRQ_TIMER of vCPU 0.
        let at = crate::SCRATCH + 0x1000;
        poke(at, 0);
        check.equal("bind_virq", 0, hypercall(EVENT_CHANNEL_OP, [1, at, 0, 0, 0]));
        let port = peek(at + 8) & 0xffff_ffff;
        Self { shared_info, port }
    }

    fn set(&self, at_ns: u64) -> i64 {
        hypercall(SET_TIMER_OP, [at_ns, 0, 0, 0, 0])
    }

    fn set_masked(&self, is_masked: bool) {
        poke(self.shared_info + MASK, if is_masked { 1 << self.port } else { 0 });
    }

    fn is_pending(&self) -> bool {
        peek(self.shared_info + PENDING) & 1 << self.port != 0
    }
}

/// SCHEDOP_poll of a port (0: none) until a time.
fn poll(port: u64, until_ns: u64) -> i64 {
    let at = crate::SCRATCH + 0x1100;
    poke32(at + 64, port as u32);
    for (n, word) in (0..).zip([at + 64, u64::from(port != 0), until_ns]) {
        poke(at + 8 * n, word);
    }
    hypercall(SCHED_OP, [3, at, 0, 0, 0])
}

/// Runstate as VCPUOP_get_runstate_info gives it: state, since, four times.
fn runstate() -> [u64; 6] {
    let at = crate::SCRATCH + 0x1200;
    hypercall(VCPU_OP, [4, 0, at, 0, 0]);
    area(at)
}

fn area(at: u64) -> [u64; 6] {
    let mut info = [0; 6];
    for (word, n) in info.iter_mut().zip(0..) {
        *word = peek(at + 8 * n);
    }
    info
}

/// The mode.
pub fn run(check: &mut Check, _: &mut Random) {
    let timer = Timer::set_up(check);
    clock(check);
    wall_clock(check, &timer);
    timers(check, &timer);
    vcpu_timers(check, &timer);
    own_tsc(check, &timer);
    polls(check, &timer);
    runstates(check, &timer);
    traps::off(UPCALL);
}

fn clock(check: &mut Check) {
    let mut last = now();
    let mut backwards = 0;
    for n in 0..2000u64 {
        match n % 4 {
            0 => drop(machine::cpuid(0, 0)),
            1 => drop(hypercall(SCHED_OP, [0; 5])),
            2 => drop(machine::input(0xe0, 1)),
            _ => {}
        }
        let time = now();
        backwards += u32::from(time < last);
        last = time;
    }
    check.equal("steps backwards", 0, backwards);
    // The hypervisor's time is the guest's: the runstate's times are those of its whole life.
    let before = now();
    let [_, _, times @ ..] = runstate();
    check.within("the hypervisor's time", before..=now(), times.iter().sum());
}

/// The guest sets its TSC: it counts from there, and the clock goes on, in the area besides vcpu_info's, too.
fn own_tsc(check: &mut Check, timer: &Timer) {
    const TSC: u32 = 0x10;
    let (area, argument) = (paging::frame() + 0x40, crate::SCRATCH + 0x1600);
    poke(argument, area);
    check.equal("register_vcpu_time", 0, hypercall(VCPU_OP, [13, 0, argument, 0, 0]));
    let own = machine::tsc();
    for value in [0, 1 << 40, u64::MAX - 1000, 1 << 63] {
        let (before, version) = (now(), peek(timer.shared_info + TIME) as u32);
        check.works(format_args!("TSC {value:#x}"), machine::write_msr(TSC, value));
        check.at_most("ticks since it was set", 1 << 36, machine::tsc().wrapping_sub(value));
        let read = machine::read_msr(TSC).unwrap_or(0);
        check.at_most("the same by RDMSR", 1 << 36, read.wrapping_sub(value));
        check.within("the clock goes on", before..=before + LATE, now());
        check.equal("version", version.wrapping_add(2), peek(timer.shared_info + TIME) as u32);
        let both = [1, 2, 3].map(|n| (peek(timer.shared_info + TIME + 8 * n), peek(area + 8 * n)));
        check.is_true("both areas tell the same", both.iter().all(|(one, other)| one == other));
        let due = now() + 3 * MS;
        timer.set(due);
        comes(check, "a timer after it", due);
    }
    check.works("TSC as it was, but for what passed", machine::write_msr(TSC, own));
}

fn wall_clock(check: &mut Check, timer: &Timer) {
    let at = timer.shared_info + WALL_CLOCK;
    let [first, second] = [peek(at), peek(at + 8)];
    check.equal("wall clock version is even", 0, first & 1);
    check.at_most("nanoseconds", 999_999_999, second & 0xffff_ffff);
    let seconds = first >> 32 | second >> 32 << 32;
    // 2023 to 2100.
    check.within("seconds since 1970", 1_672_531_200..=4_102_444_800, seconds);
}

/// Waits for a timer that was set with `due`: it comes once and not early.
fn comes(check: &mut Check, what: &str, due: u64) {
    let before = upcalls();
    if ARRIVED_NS.load(Ordering::Relaxed) < due {
        machine::idle_once();
    }
    check.at_most(format_args!("{what}: upcalls"), 1, upcalls() - before);
    let arrived = ARRIVED_NS.load(Ordering::Relaxed);
    check.within(format_args!("{what}: late"), 0..=LATE as i64, arrived as i64 - due as i64);
}

fn timers(check: &mut Check, timer: &Timer) {
    let before = upcalls();
    for n in 0..20 {
        let due = now() + 500_000 * n;
        timer.set(due);
        machine::idle_once();
        let arrived = ARRIVED_NS.load(Ordering::Relaxed);
        if arrived < due || arrived > due + LATE {
            check.within("a timer", due..=due + LATE, arrived);
        }
    }
    check.equal("timers that came", 20, upcalls() - before);
    for past in [1, now() - 5 * MS] {
        let before = upcalls();
        check.equal("a time in the past", 0, timer.set(past));
        machine::interrupts_on();
        machine::interrupts_off();
        check.equal("fires at once", 1, upcalls() - before);
    }
    for far in [1 << 60, u64::MAX] {
        let start = now();
        check.equal("a time far away", 0, timer.set(far));
        comes(check, "a time far away", start + 100 * MS);
    }
    let before = upcalls();
    let due = now() + 5 * MS;
    timer.set(due);
    timer.set(0);
    // On a busy machine it may have come before that.
    let late = u64::from(now() >= due);
    check.equal("waiting", 0, poll(0, now() + 20 * MS));
    machine::interrupts_on();
    machine::interrupts_off();
    check.at_most("one that was cancelled", late, upcalls() - before);
}

fn vcpu_timers(check: &mut Check, timer: &Timer) {
    let at = crate::SCRATCH + 0x1300;
    let op = |operation, words: [u64; 2]| {
        poke(at, words[0]);
        poke(at + 8, words[1]);
        hypercall(VCPU_OP, [operation, 0, at, 0, 0])
    };
    check.equal("singleshot in the past, refused", ETIME, op(8, [now() - MS, 1]));
    check.is_true("and not pending", !timer.is_pending());
    let due = now() + 3 * MS;
    check.equal("singleshot", 0, op(8, [due, 1]));
    comes(check, "singleshot", due);
    check.equal("singleshot in the past", 0, op(8, [1, 0]));
    check.is_true("pending", timer.is_pending());
    machine::idle_once();
    op(8, [now() + 5 * MS, 0]);
    check.equal("stop singleshot", 0, op(9, [0, 0]));
    check.equal("no periodic timer to stop", ENOSYS, op(7, [0, 0]));
    check.equal("a period that is too short", EINVAL, op(6, [MS - 1, 0]));
    let (start, before) = (now(), upcalls());
    check.equal("periodic", 0, op(6, [2 * MS, 0]));
    for _ in 0..5 {
        machine::idle_once();
    }
    check.equal("periods", 5, upcalls() - before);
    check.at_least("time for them", 8 * MS, now() - start);
    check.equal("stop periodic", 0, op(7, [0, 0]));
    let before = upcalls();
    machine::interrupts_on();
    poll(0, now() + 10 * MS);
    machine::interrupts_off();
    check.at_most("after it was stopped", 1, upcalls() - before);
}

fn polls(check: &mut Check, timer: &Timer) {
    timer.set_masked(true);
    for wait in [0, 3 * MS, 10 * MS] {
        let until = now() + wait;
        check.equal("poll of nothing", 0, poll(0, until));
        check.within("until", until..=until + LATE, now());
    }
    check.equal("poll of the past", 0, poll(timer.port, 1));
    // A port that is masked ends a poll all the same.
    let due = now() + 3 * MS;
    timer.set(due);
    check.equal("poll of the timer", 0, poll(timer.port, due + 1000 * MS));
    check.is_true("the timer is pending", timer.is_pending());
    check.at_least("when", due, now());
    check.equal("poll of what is pending", 0, poll(timer.port, 0));
    poke(timer.shared_info + PENDING, 0);
    timer.set_masked(false);
}

fn runstates(check: &mut Check, timer: &Timer) {
    let at = paging::frame() + 0x100;
    let argument = crate::SCRATCH + 0x1400;
    poke(argument, at);
    check.equal("register", 0, hypercall(VCPU_OP, [5, 0, argument, 0, 0]));
    let [state, _, _, runnable, blocked, offline] = area(at);
    check.equal("state", 0, state & 0xffff_ffff);
    check.equal("never offline", 0, offline);
    let due = now() + 20 * MS;
    timer.set(due);
    let start = now();
    machine::idle_once();
    let [state, since, times @ ..] = area(at);
    check.equal("state after a wait", 0, state & 0xffff_ffff);
    check.within("running since", due..=now(), since);
    check.equal("times add up to it", since, times.iter().sum());
    check.within("blocked", due - start - 2 * MS..=now() - start, times[2] - blocked);
    // Between the timer and the vCPU's turn it could have run.
    check.at_least("runnable", (since - due).saturating_sub(MS), times[1] - runnable);
}

/// What another guest takes: a busy loop beside a guest that never ends.
pub fn steal(check: &mut Check, _: &mut Random) {
    const BUSY: u64 = 2000 * MS;
    Timer::set_up(check);
    // Others may have their turn between any two of these.
    let before = now();
    let [_, _, running, stolen, blocked, offline] = runstate();
    let start = now();
    while now() < start + BUSY {}
    let after = runstate();
    let elapsed = now() - before;
    let [running, stolen] = [after[2] - running, after[3] - stolen];
    check.tell(format_args!("ran {} ms, stolen {} ms", running / MS, stolen / MS));
    check.equal("blocked and offline", [0, 0], [after[4] - blocked, after[5] - offline]);
    check.within("both together", BUSY..=elapsed + MS, running + stolen);
    // Two guests of equal weight, and some services.
    check.within("stolen, permille", 300..=800, stolen * 1000 / elapsed);
    traps::off(UPCALL);
}

/// A watchdog that is set again in time, and then is not: the last line must not be reached.
pub fn watchdog(check: &mut Check, _: &mut Random) {
    Timer::set_up(check);
    let at = crate::SCRATCH + 0x1500;
    let set = |number: u64, seconds: u64| {
        poke(at, number | seconds << 32);
        hypercall(SCHED_OP, [6, at, 0, 0, 0])
    };
    check.equal("one that was not taken", EINVAL, set(1, 1));
    check.equal("first", 1, set(0, 2));
    check.equal("second", 2, set(0, 1));
    check.equal("third", xen::errno::ENOSPC, set(0, 1));
    check.equal("no such one", EINVAL, set(3, 1));
    check.equal("stop the second", 0, set(2, 0));
    for _ in 0..4 {
        poll(0, now() + 700 * MS);
        check.equal("in time", 0, set(1, 2));
    }
    traps::off(UPCALL);
    check.end();
    poll(0, now() + 30_000 * MS);
    check.is_true("ended by the watchdog", false);
}
