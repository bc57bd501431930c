//! Test guests: each boots one mode of `tests/guests`, which checks a behaviour of the guest interface and says
//! what it expected and what it got.
//!
//! Many guests share a machine, because each needs only some MiB and a moment. Beside them runs a guest that does
//! nothing and must still be there at the end. `MODES=part,part` in the environment chooses modes by a part of
//! their names.
#![allow(clippy::panic, reason = "a panic is a failed test")]

use std::path::Path;
use std::time::Duration;

use qemu_runner::plan::ConfigFile;
use qemu_runner::session::Request;
use system_tests::programs::test_guest;
use system_tests::{Running, io, start};

/// How long all guests of a machine may take.
const ALL: Duration = Duration::from_secs(180);
/// Guests of one machine, beside the idle one.
const PER_MACHINE: usize = 12;

/// A mode and what its guest needs.
struct Mode {
    name: &'static str,
    memory_mib: u32,
    /// Lines added to its configuration.
    more: &'static str,
}

/// A mode that needs nothing in particular.
const fn mode(name: &'static str) -> Mode {
    Mode { name, memory_mib: 16, more: "" }
}

/// All modes. A new one is a line here.
const MODES: &[Mode] = &[
    mode("apic"),
    mode("callers"),
    mode("cpu-hostile"),
    mode("cpu-neighbour"),
    mode("cpu-state"),
    Mode {
        name: "cpuid-narrow",
        memory_mib: 16,
        more: "cpuid = \"host,sse3=0,invtsc=0,fpu=0,avx=0,sse2=1\"\n",
    },
    mode("cpuid-table"),
    mode("exits"),
    mode("hypercalls-grants"),
    mode("hypercalls-hvm"),
    mode("hypercalls-memory"),
    mode("hypercalls-refused"),
    mode("hypercalls-version"),
    Mode { more: "vcpus = 2\n", ..mode("events") },
    mode("mmio"),
    mode("msr-table"),
    Mode { more: "vcpus = 3\n", ..mode("processors") },
    mode("selftest"),
    mode("time"),
];

fn config(mode: &Mode, dir: &Path) -> ConfigFile {
    let Mode { name, memory_mib, more } = mode;
    let text = format!(
        "name = \"{name}\"\ntype = \"pvh\"\nkernel = \"{}\"\ncmdline = \"mode={name}\"\nmemory = {memory_mib}\n\
         on_crash = \"destroy\"\non_reboot = \"destroy\"\n{more}",
        test_guest().display(),
    );
    ConfigFile { name: format!("{name}.cfg"), text, dir: dir.to_path_buf() }
}

/// What a guest said that matters: everything but the checks that went well, if it did not end well.
fn verdict(running: &Running, name: &str) -> Result<(), String> {
    let text = running.machine.guest(name).from_start().text();
    let is_good = text.lines().any(|line| line.starts_with(&format!("{name} passed: ")));
    if is_good && !text.lines().any(|line| line.starts_with("FAIL ")) {
        return Ok(());
    }
    let records = running.machine.with_state(|state| {
        let records = state.log.iter().filter(|record| record.domain == name || record.text.contains(name));
        records.map(|record| format!("    log: {}: {}\n", record.domain, record.text)).collect::<String>()
    });
    let lines = text.lines().map(|line| format!("    {line}\n")).collect::<String>();
    Err(format!("{name}:\n{lines}{records}"))
}

/// Boots guests on one machine, beside one that does not end; the verdicts of those that did not do well, and of
/// a log without these words.
fn boot(log: &str, modes: &[&Mode], beside: &'static str, words: &[&str]) -> Vec<String> {
    let dir = io(tempfile::tempdir());
    let companion = mode(beside);
    let guests = modes.iter().copied().chain([&companion]).map(|mode| config(mode, dir.path())).collect();
    let running = start(log, &Request::new(guests));
    let is_over = |mode: &&Mode| !running.is_listed(mode.name);
    let deadline = std::time::Instant::now() + ALL;
    while !modes.iter().all(is_over) && std::time::Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(300));
    }
    let late =
        modes.iter().filter(|mode| !is_over(mode)).map(|mode| format!("{} has not ended\n", mode.name));
    let mut bad: Vec<String> = late.collect();
    bad.extend(modes.iter().filter_map(|mode| verdict(&running, mode.name).err()));
    if !running.is_listed(beside) {
        bad.push(format!("the guest beside them ({beside}) is gone\n"));
    }
    for words in words {
        let is_said =
            running.machine.with_state(|state| state.log.iter().any(|record| record.text.contains(words)));
        if !is_said {
            bad.push(format!("the log does not say `{words}`\n"));
        }
    }
    bad.extend(running.harm());
    running.quit();
    bad
}

#[test]
fn every_mode_gets_what_it_expects() {
    let chosen = std::env::var("MODES").unwrap_or_default();
    let is_chosen =
        |mode: &&Mode| chosen.is_empty() || chosen.split(',').any(|part| mode.name.contains(part));
    let modes: Vec<&Mode> = MODES.iter().filter(is_chosen).collect();
    assert!(!modes.is_empty(), "no mode is called like `{chosen}`");
    let mut bad = Vec::new();
    for (number, part) in modes.chunks(PER_MACHINE).enumerate() {
        bad.extend(boot(&format!("guests-{number}"), part, "idle", &[]));
    }
    assert!(bad.is_empty(), "\n{}", bad.join("\n"));
}

/// A guest beside one that never gives the processor away finds its time stolen; one that does not set its
/// watchdog again in time is ended.
#[test]
fn stolen_time_is_told_and_a_watchdog_ends_its_guest() {
    let words = "did not set its watchdog again in time";
    let bad = boot("guests-steal", &[&mode("steal"), &mode("watchdog")], "spin", &[words]);
    assert!(bad.is_empty(), "\n{}", bad.join("\n"));
}

/// A triple fault is a reboot, `reboot=triple` being one way to ask for it. One at once is not restarted for ever,
/// and the guest beside it does not notice.
#[test]
fn a_triple_fault_is_a_reboot_and_not_for_ever() {
    let dir = io(tempfile::tempdir());
    let guests = [Mode { more: "on_reboot = \"restart\"\n", ..mode("triple-fault") }, mode("idle")];
    let configs = guests.iter().map(|mode| config(mode, dir.path())).collect();
    let running = start("guests-reset", &Request::new(configs));
    let resets = |running: &Running, words: &str| {
        running.machine.with_state(|state| {
            let is_reset = |text: &str| text.contains("(triple fault, rip 0x") && text.contains(words);
            state.log.iter().filter(|record| is_reset(&record.text)).count()
        })
    };
    let deadline = std::time::Instant::now() + ALL;
    while resets(&running, "is not restarted") == 0 {
        assert!(std::time::Instant::now() < deadline, "it is restarted for ever");
        std::thread::sleep(Duration::from_millis(300));
    }
    assert_eq!(resets(&running, "it is restarted"), 5);
    running.wait_gone("triple-fault");
    assert!(running.is_listed("idle"));
    assert!(running.harm().is_empty(), "{:?}", running.harm());
    running.quit();
}
