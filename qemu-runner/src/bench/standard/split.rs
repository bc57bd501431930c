//! What a request costs each domain: the difference of two runs of the probe with different amounts, so that what
//! both have in common (the start of the probe, the look at the domains' times) is not in it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::Error;
use crate::bench::boot::{is_guest, list, number};
use crate::bench::plots::Split;
use crate::bench::standard::work::Source;
use crate::machine::{Guest, Machine};

/// Amounts of the two runs, as multiples of the figure's own.
const FEW: u64 = 1;
const MANY: u64 = 5;
/// The guest and its VMM are one domain, whose time is both's.
const GUEST: &str = "guest and VMM";
/// Domains that are named; the others' times are added up.
const NAMED: [&str; 3] = ["blkback", "netback", "peer"];
const OTHERS: &str = "others";

/// Instructions of each domain since its start.
type Times = BTreeMap<&'static str, u64>;

/// Measures the work of a figure.
///
/// # Errors
/// The probe fails, or something does not come in time.
pub fn measure(
    machine: &Machine,
    shell: &mut Guest<'_>,
    source: &Source,
    timeout: Duration,
) -> Result<Split, Error> {
    let mut run = |amount| -> Result<Times, Error> {
        let before = times(machine, timeout)?;
        super::command(shell, &source.work.command(amount), timeout)?;
        let after = times(machine, timeout)?;
        Ok(after
            .into_iter()
            .map(|(name, time)| (name, time.saturating_sub(*before.get(name).unwrap_or(&0))))
            .collect())
    };
    let (few, many) = (run(FEW)?, run(MANY)?);
    let requests = source.work.requests() * (MANY - FEW);
    Ok(Split { name: source.figure.to_owned(), parts: parts(&few, &many, requests) })
}

fn parts(few: &Times, many: &Times, requests: u64) -> Vec<(&'static str, u64)> {
    let part = |name: &'static str| {
        let time = many.get(name)?.saturating_sub(*few.get(name).unwrap_or(&0)) / requests;
        (time > 0).then_some((name, time))
    };
    [GUEST].into_iter().chain(NAMED).chain([OTHERS]).filter_map(part).collect()
}

fn times(machine: &Machine, timeout: Duration) -> Result<Times, Error> {
    let mut times = Times::new();
    for domain in list(&machine.exec("xl list -l", timeout)?.0)? {
        let name = domain.get("name").and_then(serde_json::Value::as_str).unwrap_or_default();
        let named = NAMED.into_iter().find(|named| *named == name).unwrap_or(OTHERS);
        let name = if is_guest(&domain) { GUEST } else { named };
        *times.entry(name).or_default() += number(&domain, "cpu_time_us") * 1000;
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_both_runs_have_in_common_is_left_out() {
        let few = Times::from([(GUEST, 2_000_000), ("blkback", 100_000), (OTHERS, 700_000)]);
        let many = Times::from([(GUEST, 6_000_000), ("blkback", 500_000), (OTHERS, 690_000)]);
        assert_eq!(parts(&few, &many, 400), [(GUEST, 10_000), ("blkback", 1_000)]);
    }
}
