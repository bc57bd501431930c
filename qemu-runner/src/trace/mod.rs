//! The kernel's trace: what `xl trace dump` prints, read back, and where it goes.
//!
//! [`chrome`] turns it into the trace event format that Perfetto and chrome://tracing load.

pub mod chrome;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crate::machine::Machine;
use crate::{Error, Progress};

/// A thread that records name; there is one per domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thread {
    /// Domain ID.
    pub domid: u32,
    /// A guest's VMM, and the guest in it.
    pub is_guest: bool,
    /// The domain's name.
    pub name: String,
}

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The record's thread (0: none, the CPU is idle) runs from now on.
    Switch,
    /// An event was signalled; `b` is the thread that this made ready.
    Signal,
    /// A device's interrupt; `a` is the line, `b` the thread that this made ready.
    Interrupt,
    /// The guest is entered.
    Entry,
    /// The guest was left; `a` is the exit code, `b` EXITINFO1.
    Exit,
    /// The thread waits.
    Wait,
    /// The timer's interrupt.
    Timer,
    /// One that this program does not know.
    Unknown,
}

/// A record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Time stamp counter.
    pub tsc: u64,
    /// What happened.
    pub kind: Kind,
    /// On which CPU.
    pub cpu: u16,
    /// The thread that ran; 0: none.
    pub thread: u32,
    /// By kind.
    pub a: u64,
    /// By kind.
    pub b: u64,
}

/// A trace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trace {
    /// TSC ticks per millisecond.
    pub tsc_khz: u64,
    /// By number.
    pub threads: BTreeMap<u32, Thread>,
    /// In the order in which they were written.
    pub records: Vec<Record>,
    /// Records that were overwritten before they could be read.
    pub overwritten: u64,
}

impl Trace {
    /// Reads what `xl trace dump` printed.
    ///
    /// # Errors
    /// A line that is none of a dump's, or the end is missing: names it.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut trace = Self::default();
        let mut is_complete = false;
        for line in text.lines() {
            let bad = || Error::Died(format!("`xl trace dump` printed a line that cannot be read: {line}"));
            match line.strip_prefix("# ") {
                Some(head) => is_complete |= trace.head(head).ok_or_else(bad)?,
                None => trace.records.push(record(line).ok_or_else(bad)?),
            }
        }
        if is_complete { Ok(trace) } else { Err(Error::Died("`xl trace dump` broke off".to_owned())) }
    }

    /// Takes a line of the head; `true`: it was the last line.
    fn head(&mut self, line: &str) -> Option<bool> {
        let words: Vec<&str> = line.splitn(6, ' ').collect();
        match words.as_slice() {
            ["tsc_khz", khz] => self.tsc_khz = khz.parse().ok()?,
            ["thread", number, "domain", domid, kind, name] => {
                let is_guest = *kind == "guest";
                let thread = Thread { domid: domid.parse().ok()?, is_guest, name: (*name).to_owned() };
                self.threads.insert(number.parse().ok()?, thread);
            }
            ["end:", _, "records,", overwritten, "overwritten"] => {
                self.overwritten = overwritten.parse().ok()?;
                return Some(true);
            }
            _ => return None,
        }
        Some(false)
    }

    /// The number of a domain's thread.
    pub fn thread(&self, name: &str) -> Option<u32> {
        self.threads.iter().find(|(_, thread)| thread.name == name).map(|(number, _)| *number)
    }

    /// Nanoseconds since the TSC was 0.
    pub fn ns(&self, tsc: u64) -> u64 {
        (u128::from(tsc) * 1_000_000 / u128::from(self.tsc_khz.max(1))) as u64
    }
}

fn record(line: &str) -> Option<Record> {
    let mut words = line.split(' ');
    let mut next = || words.next();
    let tsc = next()?.parse().ok()?;
    let kind = match next()? {
        "switch" => Kind::Switch,
        "signal" => Kind::Signal,
        "interrupt" => Kind::Interrupt,
        "entry" => Kind::Entry,
        "exit" => Kind::Exit,
        "wait" => Kind::Wait,
        "timer" => Kind::Timer,
        other => other.strip_prefix("kind-").map(|_| Kind::Unknown)?,
    };
    let (cpu, thread) = (next()?.parse().ok()?, next()?.parse().ok()?);
    let mut word = || u64::from_str_radix(next()?, 16).ok();
    let (a, b) = (word()?, word()?);
    next().is_none().then_some(Record { tsc, kind, cpu, thread, a, b })
}

/// Starts the trace of a running machine.
///
/// # Errors
/// The machine refuses, or is gone.
pub fn start(machine: &Machine, kib: u32, timeout: Duration) -> Result<(), Error> {
    demand(machine, &format!("xl trace start {kib}"), timeout).map(drop)
}

/// Stops the trace of a running machine and reads it.
///
/// # Errors
/// The machine refuses, or is gone.
pub fn take(machine: &Machine, timeout: Duration) -> Result<Trace, Error> {
    demand(machine, "xl trace stop", timeout)?;
    let trace = Trace::parse(&demand(machine, "xl trace dump", timeout)?)?;
    demand(machine, "xl trace free", timeout)?;
    Ok(trace)
}

fn demand(machine: &Machine, command: &str, timeout: Duration) -> Result<String, Error> {
    match machine.exec(command, timeout)? {
        (output, 0) => Ok(output),
        (output, _) => Err(Error::CommandFailed(format!("`{command}` failed: {}", output.trim_end()))),
    }
}

/// Writes a trace to a file, and says how much of it there is.
///
/// # Errors
/// The file cannot be written.
pub fn write(trace: &Trace, path: &Path, progress: Progress) -> Result<(), Error> {
    std::fs::write(path, chrome::json(trace)).map_err(Error::path(path))?;
    let (records, overwritten) = (trace.records.len(), trace.overwritten);
    progress
        .say(format!("{}: {records} records; ui.perfetto.dev and chrome://tracing show it.", path.display()));
    if overwritten > 0 {
        progress.say(format!(
            "The ring was too small: {overwritten} older records were overwritten. A larger one: --trace-kib"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(super) const DUMP: &str = "# tsc_khz 2000000\n\
        # thread 3 domain 3 service blkback\n\
        # thread 9 domain 6 guest a guest\n\
        1000 switch 0 9 0 0\n\
        1001 kind-77 0 9 ff 0\n\
        1002 exit 0 9 81 12\n\
        # end: 3 records, 4 overwritten\n";

    #[test]
    fn a_dump_is_read() {
        let trace = Trace::parse(DUMP).unwrap();
        assert_eq!((trace.tsc_khz, trace.overwritten, trace.records.len()), (2_000_000, 4, 3));
        let guest = Thread { domid: 6, is_guest: true, name: "a guest".into() };
        assert_eq!((trace.thread("a guest"), &trace.threads[&9]), (Some(9), &guest));
        assert_eq!(trace.records[1].kind, Kind::Unknown);
        let exit = Record { tsc: 1002, kind: Kind::Exit, cpu: 0, thread: 9, a: 0x81, b: 0x12 };
        assert_eq!(trace.records[2], exit);
        assert_eq!((trace.ns(3), Trace::default().ns(3)), (1, 3_000_000));
    }

    #[test]
    fn a_dump_that_breaks_off_or_is_garbled_is_an_error() {
        let cut = &DUMP[..DUMP.len() - 40];
        for text in
            [cut, "", "x\n", "1 switch 0 9 0\n", "1 switch 0 9 0 0 0\n", "# what\n", "1 kind 0 0 0 0\n"]
        {
            assert!(Trace::parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_dump_is_too_strange(text in "(?s).{0,200}", line in "[0-9a-f ]{0,40}") {
            let _any = Trace::parse(&text);
            let _any = Trace::parse(&format!("1 switch {line}"));
        }
    }
}
