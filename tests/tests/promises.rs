//! The promises of the README's section "Specification": the quick part of the bench, counted.
#![allow(clippy::panic, reason = "a panic is a failed test")]

use std::time::Duration;

use qemu_runner::Progress;
use qemu_runner::bench::select::{QUICK, Selection};
use qemu_runner::bench::{Setting, measure, report};
use system_tests::{must, slot};

/// For each machine.
const TIMEOUT: Duration = Duration::from_secs(300);

#[test]
fn every_promise_of_the_specification_holds() {
    let selection = must(Selection::parse(&[QUICK]));
    let _slot = slot();
    let setting = Setting { timeout: TIMEOUT, log: None, progress: Progress::Silent };
    let rows = must(measure(&selection, setting)).rows;
    let missing: Vec<&str> = selection.names().filter(|name| rows.iter().all(|r| r.name != *name)).collect();
    let broken: Vec<String> = rows
        .iter()
        .filter(|row| row.breaks_promise())
        .map(|row| format!("{}: {} {}, promised {:?}", row.name, row.value, row.unit, row.promise))
        .collect();
    assert!(
        missing.is_empty() && broken.is_empty(),
        "promises that do not hold: {broken:#?}\nnot measured: {missing:?}\n{}",
        report::table(&rows)
    );
}
