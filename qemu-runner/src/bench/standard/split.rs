//! What a request costs each domain, in instructions and in crossings: the difference of two runs of the probe with
//! different amounts, so that what both have in common (the start of the probe, the look at the counters) is not in
//! it. Everything comes from the counters that are always on (`xl counters`).

use std::collections::BTreeMap;
use std::time::Duration;

use crate::Error;
use crate::bench::boot::{is_guest, list};
use crate::bench::plots::Split;
use crate::bench::report::grouped;
use crate::bench::standard::work::Source;
use crate::machine::{Guest, Machine};

/// Amounts of the two runs, as multiples of the figure's own.
const FEW: u64 = 1;
const MANY: u64 = 5;
/// The guest and its VMM are one domain, whose time is both's.
const GUEST: &str = "guest and VMM";
/// Domains that are named; the others' counters are added up.
const NAMED: [&str; 3] = ["blkback", "netback", "peer"];
const OTHERS: &str = "others";
/// The counter of nanoseconds, which are instructions.
const TIME: &str = "kernel.cpu_time_ns";
/// Width of the table.
const COLUMNS: usize = 150;
/// What is counted less often than once in so many requests belongs to something else.
const RARE: u64 = 50;

/// Each domain's counters.
type Counters = BTreeMap<&'static str, BTreeMap<String, u64>>;

/// What one request costs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cost {
    /// The figure whose work it is.
    pub figure: &'static str,
    /// By domain.
    pub parts: Vec<Part>,
}

/// What one request costs a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its name.
    pub domain: &'static str,
    /// Instructions.
    pub instructions: u64,
    /// Other counters, in hundredths; without those of rare things.
    pub hundredths: Vec<(String, u64)>,
}

impl Cost {
    /// Instructions of all domains.
    pub fn total(&self) -> u64 {
        self.parts.iter().map(|part| part.instructions).sum()
    }

    /// For the picture.
    pub fn split(&self) -> Split {
        let parts = self.parts.iter().map(|part| (part.domain, part.instructions)).collect();
        Split { name: self.figure.to_owned(), parts }
    }
}

/// Measures the work of a figure.
///
/// # Errors
/// The probe fails, or something does not come in time.
pub fn measure(
    machine: &Machine,
    shell: &mut Guest<'_>,
    source: &Source,
    timeout: Duration,
) -> Result<Cost, Error> {
    let mut run = |amount| -> Result<Counters, Error> {
        let before = read(&machine.exec("xl counters -l", timeout)?.0)?;
        super::command(shell, &source.work.command(amount), timeout)?;
        Ok(minus(read(&machine.exec("xl counters -l", timeout)?.0)?, &before))
    };
    let (few, many) = (run(FEW)?, run(MANY)?);
    let parts = parts(minus(many, &few), source.work.requests() * (MANY - FEW));
    Ok(Cost { figure: source.figure, parts })
}

/// The costs for people.
pub fn table(costs: &[Cost]) -> String {
    let mut text = String::new();
    if !costs.is_empty() {
        text.push_str(
            "\nwhere it goes, per request (64 KiB of a TCP stream): instructions, then crossings\n",
        );
    }
    for cost in costs {
        let mut name = cost.figure;
        for part in &cost.parts {
            let mut line = format!("  {name:<24} {:<13} {:>9}", part.domain, grouped(part.instructions));
            let indent = line.len();
            for (counter, hundredths) in &part.hundredths {
                let counter = counter.trim_start_matches("kernel.");
                let word = format!("  {counter} {}.{:02}", hundredths / 100, hundredths % 100);
                if line.len() + word.len() > COLUMNS {
                    text.push_str(&line);
                    line = format!("\n{:indent$}", "");
                }
                line.push_str(&word);
            }
            text.push_str(&line);
            text.push('\n');
            name = "";
        }
    }
    text
}

fn parts(counted: Counters, requests: u64) -> Vec<Part> {
    let part = |domain: &'static str| {
        let counters = counted.get(domain)?;
        let instructions = counters.get(TIME).copied().unwrap_or(0) / requests;
        // What the domain says of itself and the kernel says, too, stands once.
        let is_told = |name: &str| name != TIME && !counters.contains_key(&format!("kernel.{name}"));
        let told = counters.iter().filter(|(name, count)| is_told(name) && **count * RARE >= requests);
        let hundredths = told.map(|(name, count)| (name.clone(), count * 100 / requests)).collect();
        (instructions > 0).then_some(Part { domain, instructions, hundredths })
    };
    let mut parts: Vec<Part> = [GUEST].into_iter().chain(NAMED).chain([OTHERS]).filter_map(part).collect();
    // What unrelated domains do is a matter of chance; their time shows how much it was.
    for part in parts.iter_mut().filter(|part| part.domain == OTHERS) {
        part.hundredths.clear();
    }
    parts
}

fn minus(mut later: Counters, earlier: &Counters) -> Counters {
    for (domain, counters) in &mut later {
        for (name, count) in counters {
            let before = earlier.get(domain).and_then(|counters| counters.get(name));
            *count = count.saturating_sub(before.copied().unwrap_or(0));
        }
    }
    later
}

fn read(text: &str) -> Result<Counters, Error> {
    let mut counters = Counters::new();
    for domain in list(text)? {
        let name = domain.get("name").and_then(serde_json::Value::as_str).unwrap_or_default();
        let named = NAMED.into_iter().find(|named| *named == name).unwrap_or(OTHERS);
        let of = counters.entry(if is_guest(&domain) { GUEST } else { named }).or_default();
        for (key, prefix) in [("kernel", "kernel."), ("counters", "")] {
            let values = domain.get(key).and_then(serde_json::Value::as_object);
            for (name, value) in values.into_iter().flatten() {
                *of.entry(format!("{prefix}{name}")).or_default() += value.as_u64().unwrap_or(0);
            }
        }
    }
    Ok(counters)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(guest_ns: u64, exits: u64, others_ns: u64) -> Counters {
        let text = format!(
            r#"[ {{"domid": 6, "name": "standard", "is_guest": true, "kernel": {{"cpu_time_ns": {guest_ns}, "wake_ups": 1}},
                 "counters": {{"exit_hlt": {exits}, "wake_ups": 1, "exit_msr": 1}}}},
                {{"domid": 1, "name": "init", "is_guest": false, "kernel": {{"cpu_time_ns": {others_ns}}}}},
                {{"domid": 2, "name": "console", "kernel": {{"cpu_time_ns": 7}}}} ]"#
        );
        read(&text).unwrap()
    }

    #[test]
    fn what_both_runs_have_in_common_is_left_out() {
        let counted = minus(told(6_000_000, 1_400, 690_000), &told(2_000_000, 800, 700_000));
        let parts = parts(counted, 400);
        let guest = Part { domain: GUEST, instructions: 10_000, hundredths: vec![("exit_hlt".into(), 150)] };
        assert_eq!(parts, [guest]);
        let cost = Cost { figure: "blk-randread-4k-qd1", parts };
        assert_eq!((cost.total(), cost.split().parts), (10_000, vec![(GUEST, 10_000)]));
        assert!(table(&[cost]).contains("guest and VMM    10 000  exit_hlt 1.50\n"));
        assert!(table(&[]).is_empty() && read("no").is_err());
    }
}
