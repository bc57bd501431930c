//! `xl trace`: starting and stopping the kernel's trace, and printing it.
//!
//! A dump is one line per record, with a head that names threads and the clock, so that whoever reads it
//! (`qemu-runner run --trace`) needs nothing else. It goes as fast as the console takes it, and says how many
//! records were overwritten before they could be read.

use alloc::format;
use alloc::string::String;
use core::fmt::Write;

use proto::abi::trace::Kind as Event;
use proto::builder::{Request, Response, TraceRecord, TraceStat};

use crate::jobs::{Job, Kind};
use crate::sample::Sample;
use crate::toolstack::{Call, Toolstack};

/// KiB of the ring when the operator names none: 16,256 records.
pub const KIB_DEFAULT: u32 = 512;
/// Messages that wait for the console while further records are read.
pub(crate) const PENDING_MAX: usize = 32;

/// What the operator wants of the trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TraceOrder {
    /// Starts it, in a ring of so many KiB.
    Start(u32),
    /// Stops it; it can be dumped then.
    Stop,
    /// Prints it.
    Dump,
    /// Gives its memory back.
    Free,
}

/// A dump at work.
#[derive(Debug, Default)]
pub(crate) struct Dump {
    /// Names and clock, until they are printed before the first record.
    head: Option<String>,
    /// Number of the next record.
    next: u64,
    /// Number behind the last one: what was written when the dump began.
    end: Option<u64>,
    /// Records that were overwritten.
    lost: u64,
    /// The builder was asked.
    is_waiting: bool,
}

/// The name of a kind of record; its number where there is none.
fn kind_name(kind: u16) -> Option<&'static str> {
    Some(match Event::try_from(u64::from(kind)).ok()? {
        Event::Switch => "switch",
        Event::Signal => "signal",
        Event::Interrupt => "interrupt",
        Event::VmEntry => "entry",
        Event::VmExit => "exit",
        Event::Wait => "wait",
        Event::Timer => "timer",
    })
}

/// One line: time stamp, kind, CPU, thread, and the two words in hexadecimal.
fn line(record: &TraceRecord) -> String {
    let TraceRecord { tsc, kind, cpu, thread, a, b } = record;
    match kind_name(*kind) {
        Some(name) => format!("{tsc} {name} {cpu} {thread} {a:x} {b:x}\n"),
        None => format!("{tsc} kind-{kind} {cpu} {thread} {a:x} {b:x}\n"),
    }
}

fn state(stat: &TraceStat) -> String {
    let TraceStat { is_running, capacity, written } = stat;
    let overwritten = written.saturating_sub(*capacity);
    let state = if *is_running { "running" } else { "stopped" };
    format!("trace {state}: {written} records written, {overwritten} overwritten, room for {capacity}\n")
}

/// The head of a dump.
fn head(sample: &Sample) -> String {
    let tsc_khz = sample.machine.as_ref().map_or(0, |machine| machine.tsc_khz);
    let mut text = format!("# tsc_khz {tsc_khz}\n");
    for domain in &sample.domains {
        let stat = &domain.stat;
        let kind = if stat.is_guest { "guest" } else { "service" };
        let (thread, name) = (stat.activity.thread, stat.name.escape_default());
        // Writing to a string cannot fail.
        let _ok = writeln!(text, "# thread {thread} domain {} {kind} {name}", stat.domid);
    }
    text
}

impl Toolstack {
    pub(crate) fn trace(&mut self, id: u32, order: TraceOrder) {
        let (request, kind) = match order {
            TraceOrder::Start(kib) => (Request::TraceStart { kib }, Kind::Trace),
            TraceOrder::Stop => (Request::TraceStop, Kind::Trace),
            TraceOrder::Free => (Request::TraceDrop, Kind::Trace),
            TraceOrder::Dump => {
                let serial = self.job(id, Kind::Dump(Dump { is_waiting: true, ..Dump::default() }));
                self.call(Call::Sample(serial, Sample::default()));
                return;
            }
        };
        let serial = self.job(id, kind);
        self.call(Call::Trace(serial, request));
    }

    /// The names are known: reads from the oldest record on.
    pub(crate) fn begin_dump(&mut self, serial: u32, sample: &Sample) {
        let Some(job) = self.jobs.iter_mut().find(|job| job.serial == serial) else { return };
        let Kind::Dump(dump) = &mut job.kind else { return };
        dump.head = Some(head(sample));
        self.call(Call::Trace(serial, Request::TraceRead { from: 0 }));
    }

    /// The builder's answer about the trace.
    pub(crate) fn on_trace(&mut self, serial: u32, response: Response) {
        // A dump that was given up meanwhile.
        let Some(Job { id, kind, .. }) = self.take_job(serial) else { return };
        match (kind, response) {
            (_, Response::Refused { reason }) => self.refuse(id, &format!("{reason}\n")),
            (Kind::Dump(mut dump), Response::Records { first, written, records }) => {
                let end = *dump.end.get_or_insert(written);
                let mut text = dump.head.take().unwrap_or_default();
                dump.lost += first.min(end).saturating_sub(dump.next);
                dump.next = first.saturating_add(records.len() as u64);
                for (_, record) in (first..end).zip(records.iter()) {
                    text.push_str(&line(record));
                }
                self.output(id, &text);
                dump.is_waiting = false;
                if dump.next < end && !records.is_empty() {
                    self.jobs.push(Job { serial, id, kind: Kind::Dump(dump) });
                    return;
                }
                let lost = dump.lost;
                self.output(
                    id,
                    &format!("# end: {} records, {lost} overwritten\n", end.saturating_sub(lost)),
                );
                self.done(id, 0);
            }
            (_, Response::Trace(stat)) => {
                self.output(id, &state(&stat));
                self.done(id, 0);
            }
            _ => self.refuse(id, "the builder's answer does not fit the question\n"),
        }
    }

    /// Whether a dump may read on at once.
    pub(crate) fn may_read_on(&self) -> bool {
        let has_room = self.pending_output() < PENDING_MAX;
        let is_ready = |job: &Job| matches!(&job.kind, Kind::Dump(dump) if !dump.is_waiting);
        has_room && self.jobs.iter().any(is_ready)
    }

    /// Reads on, where the console has taken enough.
    pub(crate) fn read_on(&mut self, serial: u32, dump: &mut Dump) {
        if !dump.is_waiting && self.pending_output() < PENDING_MAX {
            dump.is_waiting = true;
            self.call(Call::Trace(serial, Request::TraceRead { from: dump.next }));
        }
    }
}
