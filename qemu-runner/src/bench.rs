//! `bench`: the figures that the design is held to, counted under `-icount`.
//!
//! One instruction is one tick of the TSC then, so domains and guests count for themselves; see
//! `tests/bench` for what is subtracted. Anchors: NOVA release-24.08 and seL4 16.0 (lean), Xen 4.17 and KVM,
//! measured the same way.

mod boot;
mod lines;
mod paths;
mod report;

use std::time::Duration;

use image_builder::Progress;

use crate::Error;
use crate::cli::BenchArgs;
use report::Row;

/// What the bench domains call a path, what people do, and what others need for it.
const PATHS: [(&str, &str, &str); 9] = [
    ("null-call", "cheapest system call (no such number)", "NOVA 51"),
    ("poll", "EventPoll, no signal", "seL4 240"),
    ("round-trip", "event round trip, two domains, signal_and_wait both ways", "NOVA 275, seL4 412"),
    ("signal-to-waiter", "signal, to a higher-priority waiter running", "NOVA 705, seL4 532"),
    ("waiter-to-signaller", "that waiter waits again, to the signaller running", "NOVA 805, seL4 407"),
    ("interrupt-to-driver", "device interrupt, to its driver running", "NOVA 616, seL4 371"),
    (
        "driver-to-interrupted",
        "that driver waits again, to the interrupted thread",
        "NOVA 822, seL4 479 + 418",
    ),
    ("exit-vmmcall", "guest VMMCALL, to the VMM and back into the guest, kernel alone", "NOVA 454"),
    ("exit-cpuid", "guest CPUID, to the VMM and back into the guest, kernel alone", "NOVA 486"),
];

/// Measures everything and prints it.
///
/// # Errors
/// See [`Error::exit_status`].
pub fn bench(args: &BenchArgs) -> Result<(), Error> {
    let timeout = Duration::from_secs(args.timeout);
    let progress = Progress::Shown;
    let figures = paths::measure(timeout, progress)?;
    if figures.get("calibration").map(|figure| figure.value) != Some(0) {
        return Err(Error::Died("an instruction does not take one tick of the TSC".into()));
    }
    let mut rows = Vec::new();
    for (key, name, peer) in PATHS {
        let figure = figures.get(key).ok_or_else(|| Error::Died(format!("no domain measured {key}")))?;
        if figure.times < paths::SAMPLES / 2 {
            progress.say(format!("{key}: only {} of {} samples agree", figure.times, paths::SAMPLES));
        }
        rows.push(Row::new(name, figure.value, "instructions").beside(peer));
    }
    rows.extend(boot::measure(timeout, args.log.as_deref(), progress)?);
    rows.extend(lines::rows()?);
    print!("{}", report::table(&rows));
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&rows).map_err(|e| Error::Died(e.to_string()))?;
        std::fs::write(path, text + "\n").map_err(Error::path(path))?;
    }
    Ok(())
}
