//! A trace as trace events (JSON array form; "Trace Event Format", Google, 2016).
//!
//! One track per domain, and one for the idle CPU. A slice is a stretch on the CPU; in a guest's stretches there
//! are slices for the guest itself and for its VMM, which are called by the exit that the VMM serves. An arrow
//! leads from a signal or interrupt to where the thread that it woke runs.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Kind, Record, Trace};

/// Track group: the machine.
const MACHINE: u32 = 1;
/// Track of the idle CPU, where interrupts wake somebody.
const IDLE: u32 = 0;
/// SVM's exit code of an interrupt, which the kernel serves alone.
const EXIT_INTR: u64 = 0x60;

/// The name of an exit (AMD64 APM vol. 2, appendix C), with what it was about.
pub fn exit_name(code: u64, info: u64) -> String {
    match code {
        0x40..=0x5f => format!("exception {}", code - 0x40),
        EXIT_INTR => "interrupt".to_owned(),
        0x61 => "nmi".to_owned(),
        0x64 => "vintr".to_owned(),
        0x6e => "rdtsc".to_owned(),
        0x72 => "cpuid".to_owned(),
        0x77 => "pause".to_owned(),
        0x78 => "hlt".to_owned(),
        0x79 => "invlpg".to_owned(),
        0x7b => format!("{} {:#x}", if info & 1 == 0 { "out" } else { "in" }, info >> 16 & 0xffff),
        0x7c => if info & 1 == 0 { "rdmsr" } else { "wrmsr" }.to_owned(),
        0x7f => "shutdown".to_owned(),
        0x81 => "vmmcall".to_owned(),
        0x89 => "wbinvd".to_owned(),
        0x8a => "monitor".to_owned(),
        0x8b => "mwait".to_owned(),
        0x8d => "xsetbv".to_owned(),
        0x400 => "npf".to_owned(),
        _ => format!("exit {code:#x}"),
    }
}

/// The inner slice of a thread that runs a guest.
#[derive(Debug, Clone)]
struct Part {
    name: String,
    /// When it began; nothing while the thread is not on the CPU.
    since: Option<u64>,
}

/// What is known while the records are read.
struct Converter<'a> {
    trace: &'a Trace,
    /// With what orders them: begin, length, depth. A slice comes before what it holds.
    events: Vec<(u64, Reverse<u64>, u8, Value)>,
    /// Thread on the CPU and since when, by CPU.
    running: BTreeMap<u16, (u32, u64)>,
    parts: BTreeMap<u32, Part>,
    /// Arrow that ends where the thread runs next.
    arrows: BTreeMap<u32, u64>,
    last_arrow: u64,
}

impl Converter<'_> {
    /// Microseconds, as the format has it.
    fn at(&self, tsc: u64) -> Value {
        json!(self.trace.ns(tsc) as f64 / 1000.0)
    }

    fn name(&self, thread: u32) -> String {
        match self.trace.threads.get(&thread) {
            Some(known) => known.name.clone(),
            None if thread == IDLE => "idle".to_owned(),
            None => format!("thread {thread}"),
        }
    }

    fn slice(&mut self, thread: u32, depth: u8, name: &str, (from, to): (u64, u64)) {
        let length = self.trace.ns(to).saturating_sub(self.trace.ns(from));
        let event = json!({
            "ph": "X", "pid": MACHINE, "tid": thread, "name": name, "ts": self.at(from),
            "dur": length as f64 / 1000.0,
        });
        if length > 0 {
            self.events.push((from, Reverse(length), depth, event));
        }
    }

    fn instant(&mut self, record: &Record, name: &str, args: &Value) {
        let event = json!({
            "ph": "i", "s": "t", "pid": MACHINE, "tid": record.thread, "name": name, "ts": self.at(record.tsc),
            "args": args,
        });
        self.events.push((record.tsc, Reverse(0), 2, event));
    }

    /// An arrow from here to where `woken` runs next. A second waker adds nothing to the first.
    fn arrow(&mut self, record: &Record, woken: u32) {
        if woken == 0 || self.arrows.contains_key(&woken) {
            return;
        }
        self.last_arrow += 1;
        self.arrows.insert(woken, self.last_arrow);
        self.flow("s", self.last_arrow, record.thread, record.tsc);
    }

    fn flow(&mut self, phase: &str, id: u64, thread: u32, tsc: u64) {
        let event = json!({
            "ph": phase, "bp": "e", "cat": "wake", "name": "wake", "id": id, "pid": MACHINE, "tid": thread,
            "ts": self.at(tsc),
        });
        self.events.push((tsc, Reverse(0), 2, event));
    }

    /// Ends a thread's inner slice; which part it is in stays known.
    fn end_part(&mut self, thread: u32, now: u64) {
        let part = self.parts.get_mut(&thread).and_then(|part| Some((part.name.clone(), part.since.take()?)));
        if let Some((name, since)) = part {
            self.slice(thread, 1, &name, (since, now));
        }
    }

    fn begin_part(&mut self, thread: u32, now: u64, name: &str) {
        self.end_part(thread, now);
        self.parts.insert(thread, Part { name: name.to_owned(), since: Some(now) });
    }

    /// Takes a thread off its CPU.
    fn leave(&mut self, cpu: u16, now: u64) {
        if let Some((thread, since)) = self.running.remove(&cpu) {
            let name = self.name(thread);
            self.slice(thread, 0, &name, (since, now));
            self.end_part(thread, now);
        }
    }

    fn enter(&mut self, cpu: u16, thread: u32, now: u64) {
        self.running.insert(cpu, (thread, now));
        if let Some(part) = self.parts.get_mut(&thread) {
            part.since = Some(now);
        }
        if let Some(arrow) = self.arrows.remove(&thread) {
            self.flow("f", arrow, thread, now);
        }
    }

    fn take(&mut self, record: &Record) {
        let Record { tsc, cpu, thread, a, b, .. } = *record;
        if record.kind != Kind::Switch && !self.running.contains_key(&cpu) {
            // The trace begins within a stretch.
            self.enter(cpu, thread, tsc);
        }
        match record.kind {
            Kind::Switch => {
                self.leave(cpu, tsc);
                self.enter(cpu, thread, tsc);
            }
            Kind::Entry => self.begin_part(thread, tsc, "guest"),
            Kind::Exit => self.begin_part(thread, tsc, &exit_name(a, b)),
            Kind::Signal => {
                let woken = b as u32;
                let name =
                    if woken == 0 { "signal".to_owned() } else { format!("signal {}", self.name(woken)) };
                self.instant(record, &name, &json!({ "signals": format!("{a:#x}") }));
                self.arrow(record, woken);
            }
            Kind::Interrupt => {
                self.instant(record, &format!("interrupt {a}"), &json!({ "line": a }));
                self.arrow(record, b as u32);
            }
            Kind::Timer => self.instant(record, "timer", &json!({ "due": a })),
            Kind::Wait => self.instant(record, "wait", &json!({})),
            Kind::Unknown => self.instant(record, "?", &json!({ "a": a, "b": b })),
        }
    }
}

/// The trace events of a trace.
pub fn events(trace: &Trace) -> Vec<Value> {
    let mut converter = Converter {
        trace,
        events: Vec::new(),
        running: BTreeMap::new(),
        parts: BTreeMap::new(),
        arrows: BTreeMap::new(),
        last_arrow: 0,
    };
    for record in &trace.records {
        converter.take(record);
    }
    if let Some(last) = trace.records.last() {
        let cpus: Vec<u16> = converter.running.keys().copied().collect();
        cpus.into_iter().for_each(|cpu| converter.leave(cpu, last.tsc));
    }
    let mut timed = converter.events;
    timed.sort_by_key(|(at, length, depth, _)| (*at, *length, *depth));
    let mut events = vec![name("process_name", IDLE, "Ailurus"), name("thread_name", IDLE, "idle")];
    for (number, thread) in &trace.threads {
        events.push(name("thread_name", *number, &format!("{} ({})", thread.name, thread.domid)));
        events.push(json!({
            "ph": "M", "pid": MACHINE, "tid": number, "name": "thread_sort_index",
            "args": { "sort_index": thread.domid },
        }));
    }
    events.extend(timed.into_iter().map(|(.., event)| event));
    events
}

fn name(what: &str, tid: u32, name: &str) -> Value {
    json!({ "ph": "M", "pid": MACHINE, "tid": tid, "name": what, "args": { "name": name } })
}

/// The trace as a file's text, one event a line.
pub fn json(trace: &Trace) -> String {
    let lines: Vec<String> = events(trace).iter().map(Value::to_string).collect();
    format!("[\n{}\n]\n", lines.join(",\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::tests::DUMP;

    /// A guest asks for a block: its VMM signals blkback, which waits for the device; the interrupt wakes it
    /// while the CPU is idle, and it signals the VMM, which enters the guest again. One tick is 1 ns.
    const REQUEST: &str = "# tsc_khz 1000000\n\
        # thread 3 domain 3 service blkback\n\
        # thread 9 domain 6 guest web\n\
        1000 entry 0 9 0 0\n\
        2000 exit 0 9 81 0\n\
        2500 signal 0 9 8 3\n\
        2600 switch 0 3 9 0\n\
        3000 wait 0 3 0 0\n\
        3100 switch 0 9 3 0\n\
        3300 entry 0 9 0 0\n\
        3500 exit 0 9 78 0\n\
        3600 wait 0 9 0 0\n\
        3700 switch 0 0 9 0\n\
        5000 interrupt 0 0 19 3\n\
        5100 switch 0 3 0 0\n\
        5300 signal 0 3 4 9\n\
        5400 wait 0 3 0 0\n\
        5500 switch 0 9 3 0\n\
        6000 entry 0 9 0 0\n\
        # end: 16 records, 0 overwritten\n";

    /// Slices of a track: name, begin and length in ns.
    fn slices(events: &[Value], tid: u32) -> Vec<(String, u64, u64)> {
        let ns = |value: &Value| (value.as_f64().unwrap() * 1000.0).round() as u64;
        events
            .iter()
            .filter(|event| event["ph"] == "X" && event["tid"] == tid)
            .map(|event| (event["name"].as_str().unwrap().to_owned(), ns(&event["ts"]), ns(&event["dur"])))
            .collect()
    }

    #[test]
    fn a_request_can_be_followed_from_the_guest_to_the_device_and_back() {
        let events = events(&Trace::parse(REQUEST).unwrap());
        let own = |name: &str, from, length| (name.to_owned(), from, length);
        assert_eq!(
            slices(&events, 9),
            [
                own("web", 1000, 1600),
                own("guest", 1000, 1000),
                own("vmmcall", 2000, 600),
                own("web", 3100, 600),
                own("vmmcall", 3100, 200),
                own("guest", 3300, 200),
                own("hlt", 3500, 200),
                own("web", 5500, 500),
                own("hlt", 5500, 500),
            ]
        );
        assert_eq!(slices(&events, 3), [own("blkback", 2600, 500), own("blkback", 5100, 400)]);
        assert_eq!(slices(&events, 0), [own("idle", 3700, 1400)]);
        // Three arrows, each from its waker to whom it woke.
        let flow = |phase: &str| -> Vec<(u64, u64, f64)> {
            let flows = events.iter().filter(|event| event["ph"] == phase);
            let number = |value: &Value| value.as_u64().unwrap();
            flows.map(|f| (number(&f["id"]), number(&f["tid"]), f["ts"].as_f64().unwrap())).collect()
        };
        assert_eq!(flow("s"), [(1, 9, 2.5), (2, 0, 5.0), (3, 3, 5.3)]);
        assert_eq!(flow("f"), [(1, 3, 2.6), (2, 3, 5.1), (3, 9, 5.5)]);
        let names: Vec<&str> = events
            .iter()
            .filter(|event| event["ph"] == "i")
            .filter_map(|event| event["name"].as_str())
            .collect();
        assert_eq!(names, ["signal blkback", "wait", "wait", "interrupt 25", "signal web", "wait"]);
    }

    #[test]
    fn slices_of_a_track_nest() {
        let events = events(&Trace::parse(REQUEST).unwrap());
        for tid in [0, 3, 9] {
            let mut open: Vec<u64> = Vec::new();
            for (name, from, length) in slices(&events, tid) {
                open.retain(|end| *end > from);
                assert!(open.iter().all(|end| from + length <= *end), "{name} at {from}");
                open.push(from + length);
            }
        }
    }

    #[test]
    fn the_file_is_a_json_array_with_a_named_track_per_domain() {
        let text = json(&Trace::parse(DUMP).unwrap());
        let parsed: Vec<Value> = serde_json::from_str(&text).unwrap();
        let names: Vec<&str> = parsed
            .iter()
            .filter(|event| event["name"] == "thread_name")
            .filter_map(|event| event["args"]["name"].as_str())
            .collect();
        assert_eq!(names, ["idle", "blkback (3)", "a guest (6)"]);
        assert!(parsed.iter().all(|event| event["ph"].is_string() && event["pid"] == 1));
        assert_eq!(serde_json::from_str::<Vec<Value>>(&json(&Trace::default())).unwrap().len(), 2);
    }

    #[test]
    fn exits_are_named() {
        assert_eq!(exit_name(0x7b, 0x03f8_0001), "in 0x3f8");
        assert_eq!(exit_name(0x7b, 0x03f8_0010), "out 0x3f8");
        assert_eq!(exit_name(0x7c, 1), "wrmsr");
        assert_eq!(exit_name(0x4e, 0), "exception 14");
        assert_eq!(exit_name(u64::MAX, 0), "exit 0xffffffffffffffff");
    }
}
