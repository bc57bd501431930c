//! A guest that tries everything at random, a million steps of it, beside a Linux guest that must not notice.
//!
//! What Linux must not notice is how long it waits for its timer and its disk while it sleeps most of the time, so that
//! it asks for far less than its share of the processor (`tests/probe/src/latency.rs`). All guests have the usual priority
//! and weight. Time is counted in instructions (`-icount`), so the figures do not depend on the host.
#![allow(clippy::panic, reason = "a panic is a failed test")]

use std::path::Path;
use std::time::Duration;

use qemu_runner::bench::standard::MEMORY_DISK;
use qemu_runner::plan::ConfigFile;
use qemu_runner::session::Request;
use qemu_runner::{Guest, Progress, guest};
use regex::Regex;
use system_tests::programs::test_guest;
use system_tests::{Running, SHELL, io, must, sh, start};

/// How long one measurement may take.
const MEASURE: Duration = Duration::from_secs(300);
/// How long the million steps may take.
const STEPS: Duration = Duration::from_secs(1500);
/// What latencies may be more beside another guest, in percent.
const MORE_PERCENT: u64 = 10;
/// What a single latency may be beside another guest: far less than a slice, which is 10 ms.
const MAX: u64 = 2_000_000;

fn tester(mode: &str, dir: &Path) -> ConfigFile {
    let seed = std::env::var("SEED").unwrap_or_default();
    let text = format!(
        "name = \"{mode}\"\ntype = \"pvh\"\nkernel = \"{}\"\ncmdline = \"mode={mode} seed={seed}\"\nmemory = 32\n\
         on_crash = \"destroy\"\non_reboot = \"destroy\"\n",
        test_guest().display()
    );
    ConfigFile { name: format!("{mode}.cfg"), text, dir: dir.to_path_buf() }
}

/// What Linux measured, in nanoseconds.
#[derive(Debug)]
struct Latency {
    what: &'static str,
    median: u64,
    mean: u64,
    max: u64,
}

/// How late a timer is, and how long a read takes.
fn latencies(shell: &mut Guest<'_>, beside: &str) -> [Latency; 2] {
    let output = sh(shell, "probe latency /dev/xvda", MEASURE);
    println!("beside {beside}:\n{output}");
    let value = |figure: &str, key: &str| {
        let line = output.lines().find(|line| line.contains(figure));
        let word = line.and_then(|line| line.split_whitespace().find_map(|word| word.strip_prefix(key)));
        word.and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("no {figure} in: {output}"))
    };
    ["timer", "read"].map(|what| {
        let value = |key| value(&format!("latency-{what}"), key);
        Latency { what, median: value("median="), mean: value("mean="), max: value("max=") }
    })
}

fn expect(running: &Running, guest: &str, text: &str, timeout: Duration) -> String {
    let pattern = Regex::new(text).unwrap_or_else(|error| panic!("{error}"));
    must(running.machine.guest(guest).from_start().expect(&pattern, timeout))
}

/// Measures Linux alone, beside a guest that never sleeps, and beside the random tester, which then goes on to its end.
#[test]
fn linux_does_not_wait_for_a_busy_guest_nor_for_a_million_random_steps() {
    let dir = io(tempfile::tempdir());
    let linux = must(guest::standard::config(Some(MEMORY_DISK), Progress::Silent));
    let mut request = Request::new(vec![linux]);
    request.further_guests = ["spin", "random"].map(|mode| tester(mode, dir.path())).to_vec();
    request.has_icount = true;
    let running = start("random", &request);
    let mut shell = running.machine.guest(guest::standard::NAME).from_start();
    must(shell.wait_shell(SHELL));
    sh(&mut shell, "until [ -e /dev/xvda ]; do sleep 0.1; done", MEASURE);
    let alone = latencies(&mut shell, "nobody");

    running.xl("xl create spin");
    let beside_spin = latencies(&mut shell, "a guest that never sleeps");
    running.xl("xl destroy spin");

    running.xl("xl create random");
    expect(&running, "random", "random: 0 steps", MEASURE);
    let beside_random = latencies(&mut shell, "the random tester");
    assert!(running.is_listed("random"), "the tester was through before the measurement was");
    let end = expect(&running, "random", "random (passed|failed): .*\n", STEPS);
    let said = running.machine.guest("random").from_start().text();
    let checks: Vec<&str> = said
        .lines()
        .filter(|line| ["ok ", "FAIL ", "-- "].iter().any(|start| line.starts_with(start)))
        .collect();
    println!("{}\n{end}", checks.join("\n"));
    assert!(end.contains("passed"), "{end}\n{}", checks.join("\n"));
    assert_eq!(sh(&mut shell, "echo fine", MEASURE), "fine");
    assert!(running.harm().is_empty(), "{:#?}", running.harm());
    running.quit();

    for (name, beside) in [("a guest that never sleeps", beside_spin), ("the random tester", beside_random)] {
        for (alone, beside) in alone.iter().zip(beside) {
            let what = beside.what;
            for (kind, alone, beside) in
                [("median", alone.median, beside.median), ("mean", alone.mean, beside.mean)]
            {
                assert!(
                    beside * 100 <= alone * (100 + MORE_PERCENT),
                    "beside {name} the {what}'s {kind} is {beside} ns, {alone} ns alone"
                );
            }
            assert!(beside.max <= MAX, "beside {name} a {what} took {} ns", beside.max);
        }
    }
}
