//! How the system and its first guest start, and the memory that both take.
//!
//! The guest is the standard one ([`super::standard`]). What is on the machine's clock counts from the reset: the
//! TSC, which no guest of ours has an offset to, and the stamps of the log, which are the TSC's too.

use std::time::Duration;

use crate::Error;
use crate::bench::plots::Moment;
use crate::bench::report::Figure;
use crate::bench::standard::readings::Readings;
use crate::machine::Machine;

/// Instructions per microsecond.
const PER_MICROSECOND: u64 = 1000;

/// What [`measure`] measures.
pub const FIGURES: [&str; 6] = [
    "reset-to-guest",
    "create-to-guest",
    "guest-kernel-to-init",
    "create-to-init",
    "memory-system",
    "memory-per-guest",
];

/// Figures, and what happened when: by the machine's log, its memory, and what the guest's init said first.
///
/// # Errors
/// Something is not as it is expected, or does not come in time.
pub fn measure(
    machine: &Machine,
    guest: &Readings,
    timeout: Duration,
) -> Result<(Vec<Figure>, Vec<Moment>), Error> {
    let log = machine.exec("xl dmesg", timeout)?.0;
    let stamps = Stamps::read(&log)?;
    let init = guest.first("now", "monotonic").zip(guest.first("now", "tsc"));
    let (monotonic, tsc) = init.ok_or_else(|| Error::Died("the guest's init did not say the time".into()))?;
    let mut moments = moments(&log);
    moments.push(Moment { micros: tsc / PER_MICROSECOND, what: "the guest's init".into() });
    let ordered = stamps.services * PER_MICROSECOND;
    let started = stamps.guest * PER_MICROSECOND;
    let mut figures = vec![
        Figure::new("reset-to-guest", started),
        Figure::new("create-to-guest", started.saturating_sub(ordered)),
        Figure::new("guest-kernel-to-init", monotonic),
        Figure::new("create-to-init", tsc.saturating_sub(ordered)),
    ];
    figures.extend(memory(machine, timeout)?);
    Ok((figures, moments))
}

/// Microseconds since the machine's reset, by the machine's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamps {
    /// All services were ready, which is when the toolstack orders the first guest.
    services: u64,
    /// The guest's first instruction.
    guest: u64,
}

impl Stamps {
    fn read(log: &str) -> Result<Self, Error> {
        let at =
            |what: &str| log.lines().find(|line| line.contains(what)).and_then(stamp).map(|found| found.0);
        let stamps = at("init: all services are ready").zip(at(": the guest starts at"));
        let (services, guest) = stamps.ok_or_else(|| {
            Error::Died(format!("the machine's log does not show the guest's start: {log}"))
        })?;
        Ok(Self { services, guest })
    }
}

/// Microseconds and text of a line of the machine's log.
fn stamp(line: &str) -> Option<(u64, &str)> {
    let (stamp, text) = line.trim_start_matches(['[', ' ']).split_once("] ")?;
    let (seconds, micros) = stamp.split_once('.')?;
    Some((seconds.parse::<u64>().ok()? * 1_000_000 + micros.parse::<u64>().ok()?, text))
}

/// What the log says about the way to the first guest's first instruction.
fn moments(log: &str) -> Vec<Moment> {
    let ends = [" is ready (domain", "all services are ready", " is domain ", "the guest starts at"];
    let told = |(micros, text): (u64, &str)| {
        let text = text.strip_prefix("init: ").unwrap_or(text);
        ends.iter().any(|end| text.contains(end)).then(|| {
            let what = text.split([';', ',', '(']).next().unwrap_or(text).split(" at 0x").next();
            Moment { micros, what: what.unwrap_or(text).trim().to_owned() }
        })
    };
    let mut moments = vec![Moment { micros: 0, what: "reset".into() }];
    moments.extend(log.lines().filter_map(stamp).filter_map(told));
    moments
}

/// The domains of `xl list -l`.
pub fn list(text: &str) -> Result<Vec<serde_json::Value>, Error> {
    serde_json::from_str(text).map_err(|e| Error::Died(format!("`xl list -l` is no JSON: {e}\n{text}")))
}

/// A number of a domain's.
pub fn number(domain: &serde_json::Value, key: &str) -> u64 {
    domain.get(key).and_then(serde_json::Value::as_u64).unwrap_or(0)
}

/// Whether it is a guest's.
pub fn is_guest(domain: &serde_json::Value) -> bool {
    domain.get("is_guest").and_then(serde_json::Value::as_bool).unwrap_or(false)
}

/// Memory of the system and of what each guest takes beside its own.
fn memory(machine: &Machine, timeout: Duration) -> Result<Vec<Figure>, Error> {
    let (info, _) = machine.exec("xl info", timeout)?;
    let value = |key: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim_start_matches([' ', ':']).trim().parse::<u64>().ok()
    };
    let system = value("system_memory_kib").unwrap_or(0);
    let (domains, _) = machine.exec("xl list -l", timeout)?;
    let guest = list(&domains)?.iter().filter(|d| is_guest(d)).map(|d| number(d, "overhead_kib")).sum();
    Ok(vec![Figure::new("memory-system", system), Figure::new("memory-per-guest", guest)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stamps_are_read_from_the_log_and_missing_stamps_are_an_error() {
        let log = "[    0.032866] init: all services are ready; x\n[    1.084956] debian: the guest starts at 0x1\n";
        assert_eq!(Stamps::read(log).unwrap(), Stamps { services: 32_866, guest: 1_084_956 });
        assert!(Stamps::read("[    0.032866] init: all services are ready").is_err());
    }

    #[test]
    fn the_moments_of_the_boot_are_read_from_the_log() {
        let log = "[    0.032342] init: blkback is ready (domain 3, 792 KiB)\n[    0.032337] blkback: volume vol0\n\
                   [    0.071148] init: guest debian is domain 6, 263840 KiB\n[    1.000001] debian: the guest starts at 0x1\n";
        let moments = moments(log);
        let moments: Vec<(u64, &str)> = moments.iter().map(|m| (m.micros, m.what.as_str())).collect();
        let expected = [
            (0, "reset"),
            (32_342, "blkback is ready"),
            (71_148, "guest debian is domain 6"),
            (1_000_001, "debian: the guest starts"),
        ];
        assert_eq!(moments, expected);
    }

    #[test]
    fn a_list_of_domains_is_read() {
        let text = r#"[ {"domid": 1, "is_guest": false, "cpu_time_us": 5}, {"domid": 2, "is_guest": true} ]"#;
        let domains = list(text).unwrap();
        assert_eq!(domains.iter().filter(|d| is_guest(d)).count(), 1);
        assert_eq!(domains.iter().map(|d| number(d, "cpu_time_us")).sum::<u64>(), 5);
        assert!(list("no").is_err());
    }
}
