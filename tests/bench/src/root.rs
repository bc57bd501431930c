//! A root domain in init's place: fills the machine with idle domains and measures what events and timers
//! cost among them.
//!
//! It holds all memory, so it can make 1,000 domains, which no manifest can. Each idle domain has a thread of a
//! higher priority that waits for the domain's event, and that event's timer is armed. One more domain, of the
//! root's own priority, answers signals.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "writes the other domains' program into a page that it mapped itself")]

extern crate alloc;

#[expect(dead_code, reason = "the other bench domain uses the rest of it")]
mod stamps;

use alloc::vec::Vec;

use bench::{SAMPLES, mode};
use log::LevelFilter;
use proto::abi::{Error, Slot, Syscall, init_slots, map, rights};
use proto::boot::{ARENA_BASE, IMAGE_BASE, INIT_MAGIC, InitInfo, run_kind};
use rt::sys;

rt::root_entry!(main);

/// How many idle domains there are when samples are taken.
const POPULATIONS: [u64; 3] = [10, 100, 1000];
/// Priority of the root and of the domain that answers, and of the idle ones.
const PRIORITY: u64 = 20;
const IDLE_PRIORITY: u64 = 30;
const WEIGHT: u64 = 256;
/// Slots of a domain, all in one frame.
const SLOTS: u64 = proto::abi::SLOTS_PER_FRAME;
/// Frames of a domain's page tables for its one page of code.
const TABLES: u64 = 3;
/// Slots of a domain: its event, that of the root, and from which on the root leaves what it needs no more.
const OWN: Slot = 1;
const PARTNER: Slot = 2;
const KEPT: Slot = 8;
/// No timer is due before this.
const FAR: u64 = 1 << 50;

/// `1: mov eax, CALL; mov edi, FIRST; mov esi, SECOND; syscall; jmp 1b`.
const fn program(call: Syscall, first: Slot, second: Slot) -> [u8; 19] {
    let (call, first, second) = (call as u8, first as u8, second as u8);
    [0xb8, call, 0, 0, 0, 0xbf, first, 0, 0, 0, 0xbe, second, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xed]
}

/// Instructions of [`ANSWER`] from its wake-up until it waits again.
const ANSWER_OWN: u64 = 5;
const ANSWER: [u8; 19] = program(Syscall::EventSignalAndWait, PARTNER, OWN);
const WAIT: [u8; 19] = program(Syscall::EventWait, OWN, 0);
/// Where in the page the idle domains' program is.
const WAIT_AT: u64 = 64;

fn main(info: &'static InitInfo) -> ! {
    rt::logger::to_serial(init_slots::LOG, LevelFilter::Info, LevelFilter::Info);
    if info.magic != INIT_MAGIC {
        log::error!("the kernel's start information is not init's");
    } else if let Err(error) = Root::new(info).and_then(|mut root| root.measure()) {
        log::error!("the idle domains cannot be made: {error:?}");
    }
    log::info!("figures done");
    loop {
        // Nothing is ever signalled.
        let _signals = sys::event_wait(init_slots::EVENT);
    }
}

/// What the root holds.
struct Root {
    /// Free memory.
    memory: Slot,
    /// Empty slots; when there is none, the next one.
    empty: Vec<Slot>,
    next: Slot,
    /// The page with the programs.
    code: Slot,
}

impl Root {
    fn new(info: &InitInfo) -> Result<Self, Error> {
        let runs = info.runs.iter().take(info.run_count as usize).zip(init_slots::FIRST_FRAMES..);
        let largest = runs.filter(|(run, _)| run.kind == run_kind::RAM).max_by_key(|(run, _)| run.count);
        let (_, memory) = largest.ok_or(Error::NoMemory)?;
        let next = init_slots::FIRST_FRAMES + info.run_count as Slot;
        let mut root = Self { memory, empty: Vec::new(), next, code: 0 };
        sys::thread_schedule(init_slots::THREAD, PRIORITY, WEIGHT, 0)?;
        let tables = root.frames(TABLES)?;
        sys::space_donate(init_slots::DOMAIN, tables)?;
        root.code = root.frames(1)?;
        let writable = root.slot();
        sys::cap_derive(root.code, 0, writable, 0, 1, rights::READ | rights::WRITE)?;
        sys::cap_map(writable, 0, ARENA_BASE, map::READ | map::WRITE)?;
        for (at, program) in [(0, ANSWER), (WAIT_AT, WAIT)] {
            // SAFETY: the page was mapped just now and is nobody else's; the programs fit in it.
            unsafe { ((ARENA_BASE + at) as *mut [u8; 19]).write(program) };
        }
        Ok(root)
    }

    fn slot(&mut self) -> Slot {
        self.empty.pop().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        })
    }

    /// Takes memory.
    fn frames(&mut self, count: u64) -> Result<Slot, Error> {
        let (taken, rest) = (self.memory, self.slot());
        sys::frames_split(taken, count, rest)?;
        self.memory = rest;
        Ok(taken)
    }

    /// Makes a domain whose thread begins at this offset of the page with the programs, and lets it run until
    /// it waits; its event.
    fn domain(&mut self, offset: u64, priority: u64, partner: Option<Slot>) -> Result<(Slot, Parts), Error> {
        let domain_frames = self.frames(2 + SLOTS / proto::abi::SLOTS_PER_FRAME)?;
        let domain = self.slot();
        sys::domain_create(domain_frames, domain, SLOTS)?;
        let tables = self.frames(TABLES)?;
        sys::space_donate(domain, tables)?;
        let code = self.slot();
        sys::cap_derive(self.code, 0, code, 0, 1, rights::READ | rights::EXECUTE)?;
        sys::cap_map(code, domain, IMAGE_BASE, map::READ | map::EXECUTE)?;
        let event_frames = self.frames(1)?;
        let event = self.slot();
        sys::event_create(event_frames, event)?;
        sys::cap_derive(event, domain, OWN, u64::MAX, 0, rights::SIGNAL | rights::WAIT)?;
        if let Some(partner) = partner {
            sys::cap_derive(partner, domain, PARTNER, 1, 0, rights::SIGNAL)?;
        }
        let thread_frames = self.frames(1)?;
        let thread = self.slot();
        sys::thread_create(thread_frames, domain, thread, 0)?;
        sys::thread_schedule(thread, priority, WEIGHT, 0)?;
        sys::thread_start(thread, IMAGE_BASE + offset, 0, 0)?;
        // The domain's own capability goes last: the others go there through it.
        Ok((event, [event_frames, event, thread_frames, thread, domain_frames, domain]))
    }

    /// Leaves a domain's capabilities with itself: a root has 4,096 slots.
    fn leave(&mut self, parts: Parts) -> Result<(), Error> {
        let [.., domain] = parts;
        for (slot, to) in parts.into_iter().zip(KEPT..) {
            sys::cap_move(slot, domain, to)?;
            self.empty.push(slot);
        }
        Ok(())
    }

    /// Takes the samples beside each number of idle domains.
    fn measure(&mut self) -> Result<(), Error> {
        let own = init_slots::EVENT;
        let (answering, _) = self.domain(0, PRIORITY, Some(own))?;
        let unheard_frames = self.frames(1)?;
        let unheard = self.slot();
        sys::event_create(unheard_frames, unheard)?;
        // The first signal starts it, and it answers.
        let _first = sys::event_signal_and_wait(answering, own)?;
        let mut domains = 0;
        for population in POPULATIONS {
            while domains < population {
                let (event, parts) = self.domain(WAIT_AT, IDLE_PRIORITY, None)?;
                domains += 1;
                sys::event_timer(event, FAR + domains * 1000, 1)?;
                self.leave(parts)?;
            }
            let call = |number: Syscall, first: u64, second: u64| {
                let (before, after) = stamps::call(number as u64, first, second);
                after.wrapping_sub(before)
            };
            figure("round-trip", population, stamps::CALL_OWN + ANSWER_OWN, || {
                call(Syscall::EventSignalAndWait, u64::from(answering), u64::from(own))
            });
            figure("signal", population, stamps::CALL_OWN, || {
                call(Syscall::EventSignal, u64::from(unheard), 0)
            });
            // A deadline before all others, and one behind them.
            figure("timer-next", population, stamps::CALL_OWN, || {
                call(Syscall::EventTimer, u64::from(unheard), FAR)
            });
            sys::event_timer(unheard, 0, 0)?;
            figure("timer-last", population, stamps::CALL_OWN, || {
                call(Syscall::EventTimer, u64::from(unheard), 2 * FAR)
            });
            sys::event_timer(unheard, 0, 0)?;
        }
        Ok(())
    }
}

/// A domain's capabilities in the root's table, in the order in which they are left with it.
type Parts = [Slot; 6];

/// Takes samples and logs the figure; `own` is what of each sample is not the kernel's.
fn figure(name: &str, population: u64, own: u64, mut sample: impl FnMut() -> u64) {
    let mut samples = [0; SAMPLES];
    for place in &mut samples {
        *place = sample().wrapping_sub(own);
    }
    let (value, times) = mode(&samples);
    log::info!("figure {name}-{population} {value} {times}");
}
