//! The kernel's paths: a machine with the bench domains of `tests/bench`, which count and log.

use std::collections::BTreeMap;
use std::time::Duration;

use image_builder::programs::{Origin, Program, VMM};
use image_builder::{Progress, manifest};

use crate::Error;
use crate::bench::Setting;
use crate::bench::goals::{self, Group, table};
use crate::bench::report::Figure;
use crate::guest;
use crate::machine::Machine;
use crate::plan::ConfigFile;
use crate::session::{Request, Session};

/// The bench domains: `low` and `peer` share a priority, `high` is above both. `device` has the UART and
/// `driver`, above it, the UART's interrupt; `device` runs when `low` is done.
pub const SERVICES: &str = r#"
[[service]]
name = "bench-high"
program = "bench"
priority = 24
heap-kib = 64
options = "role=high"

[[service]]
name = "bench-driver"
program = "bench"
priority = 24
heap-kib = 64
lines = [3]
options = "role=high"

[[service]]
name = "bench-peer"
program = "bench"
priority = 5
heap-kib = 64
options = "role=peer"

[[service]]
name = "bench-low"
program = "bench"
priority = 5
heap-kib = 64
after = ["bench-high", "bench-peer"]
options = "role=low"

[[service]]
name = "bench-device"
program = "bench"
priority = 4
heap-kib = 64
after = ["bench-driver"]
ports = [{ first = 0x2f8, count = 8 }]
options = "role=device"

[[channel]]
kind = "xenstore"
client = "bench-low"
server = "bench-peer"

[[channel]]
kind = "xenstore"
client = "bench-low"
server = "bench-high"

[[channel]]
kind = "xenstore"
client = "bench-device"
server = "bench-driver"
"#;

/// Samples of each path.
const SAMPLES: u64 = 64;

/// A path and how often its value occurred among the samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    /// Kernel instructions.
    pub value: u64,
    /// Of [`SAMPLES`].
    pub times: u64,
}

/// Measures every path.
///
/// # Errors
/// The machine does not come up, or not in time, or an instruction does not take one tick.
pub fn measure(setting: Setting<'_>) -> Result<Vec<Figure>, Error> {
    let Setting { timeout, progress, .. } = setting;
    let lines = run(timeout, progress, false)?;
    let paths: BTreeMap<String, Path> = lines.iter().filter_map(|line| parse(line)).collect();
    if paths.get("calibration").map(|path| path.value) != Some(0) {
        return Err(Error::Died("an instruction does not take one tick of the TSC".into()));
    }
    let figure = |name: &'static str| {
        let path = paths.get(name).ok_or_else(|| Error::Died(format!("no domain measured {name}")))?;
        if path.times < SAMPLES / 2 {
            progress.say(format!("{name}: only {} of {SAMPLES} samples agree", path.times));
        }
        Ok(Figure::new(name, path.value))
    };
    table().filter(|entry| entry.group == Group::Paths).map(|entry| figure(entry.name)).collect()
}

/// Counts the expensive instructions of the paths, on a kernel that is built to count them: how many of a kind
/// one turn takes, rounded.
///
/// # Errors
/// As [`measure`].
pub fn expensive(setting: Setting<'_>) -> Result<Vec<Figure>, Error> {
    let lines = run(setting.timeout, setting.progress, true)?;
    let counts: Vec<(String, Vec<u64>)> = lines.iter().filter_map(|line| parse_counts(line)).collect();
    if counts.is_empty() {
        return Err(Error::Died("this kernel does not count expensive instructions".into()));
    }
    let of_path = |(path, counts): &(String, Vec<u64>)| -> Vec<Figure> {
        let of_kind = |(kind, count): (&&str, &u64)| {
            let entry = goals::entry(&format!("{path}-{kind}"))?;
            Some(Figure::new(entry.name, *count))
        };
        goals::KINDS.iter().zip(counts).filter_map(of_kind).collect()
    };
    Ok(counts.iter().flat_map(of_path).collect())
}

/// Reads a line `counts NAME TURNS N ...`: how many of each kind one turn took.
fn parse_counts(text: &str) -> Option<(String, Vec<u64>)> {
    let mut words = text.strip_prefix("counts ")?.split(' ');
    let name = words.next()?.to_owned();
    let turns: u64 = words.next()?.parse().ok()?;
    let each = |word: &str| (word.parse::<u64>().ok()? + turns / 2).checked_div(turns);
    Some((name, words.map(each).collect::<Option<_>>()?))
}

/// Boots the bench domains; what they logged.
fn run(timeout: Duration, progress: Progress, counts_expensive: bool) -> Result<Vec<String>, Error> {
    let files = guest::prepare(progress)?;
    let text =
        format!("name=\"bench-vmm\"\ntype=\"pvh\"\nkernel=\"{}\"\nmemory=64\n", files.kernel.display());
    let dir = std::env::temp_dir();
    let mut request = Request::new(vec![ConfigFile { name: "bench.cfg".into(), text, dir }]);
    request.manifest = Some(("bench.toml".into(), format!("{}\n{SERVICES}", manifest::DEFAULT)));
    request.programs = [VMM, "bench"].map(program).to_vec();
    if counts_expensive {
        request.kernel_features.push("count-instructions".into());
    }
    request.has_icount = true;
    request.qemu_args = ["-serial", "null"].map(str::to_owned).to_vec();
    request.progress = progress;
    let session = Session::prepare(&request)?;
    let machine = session.start(None)?;
    let lines = wait_figures(&machine, 3, timeout)?;
    machine.quit(Duration::from_secs(60))?;
    Ok(lines)
}

/// Waits until this many bench domains are through; all log lines.
///
/// # Errors
/// Time is up, or the machine ended.
pub fn wait_figures(machine: &Machine, domains: usize, timeout: Duration) -> Result<Vec<String>, Error> {
    machine.wait("the figures of the bench domains", timeout, |state| {
        let done = state.log.iter().filter(|record| record.text == "figures done").count();
        (done == domains).then(|| state.log.iter().map(|record| record.text.clone()).collect())
    })
}

/// The bench domain under this name.
pub fn program(name: &str) -> Program {
    let origin = Origin::Workspace { package: "bench".into(), binary: "bench-domain".into() };
    Program { name: name.into(), origin, uses: None }
}

/// Reads a line `figure NAME VALUE TIMES`, whatever stands before it.
pub fn parse(text: &str) -> Option<(String, Path)> {
    let (_, words) = text.split_once("figure ")?;
    let mut words = words.split(' ');
    let name = words.next()?.to_owned();
    let value = words.next()?.parse().ok()?;
    Some((name, Path { value, times: words.next()?.parse().ok()? }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bench_manifest_is_one() {
        let mut programs = image_builder::programs::of_workspace();
        programs.push(program("bench"));
        let text = format!("{}\n{SERVICES}", manifest::DEFAULT);
        assert!(manifest::load("bench.toml", &text, &programs).is_ok());
    }

    #[test]
    fn counts_are_per_turn() {
        let parsed = parse_counts("counts round-trip 64 128 0 3 60");
        assert_eq!(parsed, Some(("round-trip".into(), vec![2, 0, 0, 1])));
        assert_eq!(parse_counts("counts round-trip 64 x"), None);
    }

    #[test]
    fn a_figure_is_a_name_a_value_and_a_count() {
        let parsed = parse("figure null-call 31 64");
        assert_eq!(parsed, Some(("null-call".into(), Path { value: 31, times: 64 })));
        assert_eq!(parse("figure null-call"), None);
        assert_eq!(parse("figures done"), None);
    }
}
