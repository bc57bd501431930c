//! `HYPERCALLS.md` against the code: every operation that the code knows has a line with the right number, and every
//! test that a line names exists.

extern crate std;

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use std::path::Path;

use super::{console, grant, hvm, memory, number, version};

/// Lines `| operation (number) | behaviour | tests |` below a heading `## call`.
struct Line {
    call: String,
    operation: String,
    tests: Vec<String>,
}

fn table() -> Vec<Line> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("HYPERCALLS.md")).unwrap();
    let mut call = String::new();
    let mut lines = Vec::new();
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            call = heading.split(" (").next().unwrap_or(heading).into();
        }
        let cells: Vec<&str> = line.split(" | ").collect();
        if let [operation, _, tests] = cells[..]
            && let Some(operation) = operation.strip_prefix("| ")
            && operation.contains('(')
        {
            let tests = tests.trim_end_matches([' ', '|']).split(", ").map(String::from).collect();
            lines.push(Line { call: call.clone(), operation: operation.into(), tests });
        }
    }
    lines
}

/// Sub-operations of the files that name them as plain constants: those that a `match` or a comparison tells apart.
fn named(text: &str) -> Vec<(String, u64)> {
    let mut operations = Vec::new();
    for line in text.lines() {
        let parts = line.strip_prefix("const ").and_then(|rest| rest.split_once(": u"));
        let Some((name, rest)) = parts else { continue };
        let value = rest.split_once(" = ").and_then(|(_, value)| value.trim_end_matches(';').parse().ok());
        let is_used =
            [format!(" {name} =>"), format!("== {name} "), format!("{name} | "), format!("| {name},")]
                .iter()
                .any(|form| text.contains(form.as_str()));
        if let Some(value) = value.filter(|_| is_used) {
            operations.push((name.to_lowercase(), value));
        }
    }
    operations
}

/// Names of all tests of this crate, and of the modes of the test guests as `mode NAME`.
fn tests() -> BTreeSet<String> {
    fn read(dir: &Path, names: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                read(&path, names);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let mut is_test = false;
                for line in text.lines().map(str::trim) {
                    if let Some(function) = line.strip_prefix("fn ").filter(|_| is_test) {
                        names.insert(function.split('(').next().unwrap().into());
                    }
                    is_test = line == "#[test]" || (is_test && line.starts_with("#["));
                }
            }
        }
    }
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut names = BTreeSet::new();
    read(&crate_dir.join("src"), &mut names);
    let modes = std::fs::read_to_string(crate_dir.join("../../tests/tests/guests.rs")).unwrap_or_default();
    names.extend(modes.split("mode(\"").skip(1).filter_map(|rest| {
        let name = rest.split('"').next()?;
        Some(format!("mode {name}"))
    }));
    names
}

#[test]
fn every_operation_stands_in_the_table() {
    let known = [
        number::OPERATIONS,
        memory::OPERATIONS,
        grant::OPERATIONS,
        hvm::OPERATIONS,
        hvm::param::OPERATIONS,
        version::OPERATIONS,
        console::OPERATIONS,
    ];
    let listed = known.map(|(call, operations)| {
        (call, operations.iter().map(|&(name, number)| (name.to_lowercase(), number)).collect())
    });
    let named = [
        ("event_channel_op", named(include_str!("evtchn.rs"))),
        ("sched_op", named(include_str!("sched.rs"))),
        ("vcpu_op", named(include_str!("vcpu.rs"))),
        ("vm_assist", named(include_str!("assist.rs"))),
    ];
    let lines = table();
    for (call, operations) in listed.into_iter().chain(named) {
        assert!(!operations.is_empty());
        for (name, number) in &operations {
            let operation = format!("{name} ({number})");
            let is_there = lines.iter().any(|line| line.call == call && line.operation == operation);
            assert!(is_there, "HYPERCALLS.md has no line `{operation}` below `## {call}`");
        }
        let listed = lines.iter().filter(|line| line.call == call).count();
        assert_eq!(listed, operations.len(), "lines below `## {call}` that the code does not know");
    }
}

#[test]
fn every_test_of_the_table_exists() {
    let tests = tests();
    let lines = table();
    assert!(lines.len() > 100);
    for line in lines {
        for test in line.tests {
            let test = test.trim_matches('`');
            assert!(tests.contains(test), "{} {}: there is no test `{test}`", line.call, line.operation);
        }
    }
}
