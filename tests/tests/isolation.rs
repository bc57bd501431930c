//! Isolation, tried: hostile domains and hostile guest kernels, with a Linux guest beside them that must
//! not notice.
//!
//! What is tried stands in `tests/domains` (ring 3, against the kernel and the services) and in
//! `tests/guests` (against the VMM and the kernel). Every attempt must end alone, for its own reason, or
//! get nothing but errors; the machine must end in good order afterwards. A fault of the kernel ends QEMU
//! with another status, and every wait here notices that.
#![allow(clippy::panic, reason = "a panic is a failed test")]

use std::path::Path;
use std::time::Duration;

use image_builder::manifest::DEFAULT;
use qemu_runner::Guest;
use qemu_runner::plan::ConfigFile;
use qemu_runner::session::Request;
use regex::Regex;
use system_tests::programs::{hostile_domain, test_guest};
use system_tests::{Running, SHORT, files, io, linux, must, root_disk, sh, start};

/// How long an attempt may take.
const ATTEMPT: Duration = Duration::from_secs(60);
/// Every part of the system that must still be there.
const SERVICES: [&str; 6] = ["init", "console", "xenstore", "blkback", "netback", "toolstack"];

/// Modes of the hostile domain that fault, and the vectors that are right for them. (SVM instructions: #GP
/// in ring 3, #UD where SVM is off. Vector and x87 registers belong to guests: #UD or #NM.)
const FAULTS: [(&str, &[u64]); 19] = [
    ("cli", &[13]),
    ("hlt", &[13]),
    ("mov-cr3", &[13]),
    ("wrmsr", &[13]),
    ("lgdt", &[13]),
    ("in", &[13]),
    ("out", &[13]),
    ("vmrun", &[6, 13]),
    ("clgi", &[6, 13]),
    ("sse", &[6, 7]),
    ("x87", &[6, 7]),
    ("flags", &[1]),
    ("read-kernel", &[14]),
    ("read-unmapped", &[14]),
    ("read-not-canonical", &[13]),
    ("read-init", &[14]),
    ("write-code", &[14]),
    ("write-info", &[14]),
    ("run-stack", &[14]),
];

/// Modes of the hostile domain that run at the lowest priority: two that never end, and two that end only
/// if those leave them their share.
const LEAST: [&str; 4] = ["spin", "signals", "read-guest", "software-nmi"];

/// What becomes of a hostile guest.
enum End {
    /// It comes to its end and powers off.
    Done,
    /// It is ended, with this in the sentence that says why.
    Crash(&'static str),
    /// The same, as a reboot.
    Reset(&'static str),
    /// It would run for ever.
    Runs,
}

/// Modes of the hostile guest.
const GUESTS: [(&str, End); 16] = [
    ("hypercalls", End::Done),
    ("overlays", End::Done),
    ("scheduling", End::Crash("for reason 77, which is none")),
    ("msrs", End::Done),
    ("ports", End::Done),
    ("cpuid", End::Done),
    ("svm", End::Done),
    ("registers", End::Done),
    ("console-ring", End::Done),
    ("store-ring", End::Done),
    ("devices", End::Done),
    ("triple-fault", End::Reset("triple fault")),
    ("jump", End::Reset("triple fault")),
    ("write", End::Done),
    ("page-tables", End::Reset("triple fault: guest-physical address 0xc0000")),
    ("spin", End::Runs),
];

/// The devices of the hostile guest that uses some.
const DEVICES: &str = "disk = [\"ram:8M,xvda,w\"]\nvif = [\"mac=00:16:3e:00:00:77,bridge=xenbr0\", \"mac=00:16:3e:00:00:78,bridge=xenbr0\"]\n";

/// The seed of everything random: the same in every run, unless the environment's `SEED` names another.
fn seed() -> u32 {
    std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0)
}

fn name(mode: &str) -> String {
    format!("hostile-{mode}")
}

/// The system's manifest with a hostile domain per mode; those about the store have a channel to it.
fn manifest<'a>(modes: impl Iterator<Item = &'a str>) -> (String, String) {
    let mut text = DEFAULT.to_owned();
    for mode in modes {
        let name = name(mode);
        let priority = u8::from(!LEAST.contains(&mode));
        text.push_str(&format!(
            "\n[[service]]\nname = \"{name}\"\nprogram = \"hostile-domain\"\npriority = {priority}\nheap-kib = 128\n\
             after = [\"toolstack\"]\noptions = \"mode={mode} seed={}\"\n",
            seed()
        ));
        if mode.starts_with("store-") {
            text.push_str(&format!(
                "[[channel]]\nkind = \"xenstore\"\nclient = \"{name}\"\nserver = \"xenstore\"\n"
            ));
        }
    }
    ("isolation.toml".to_owned(), text)
}

/// A machine with hostile domains, the Linux guest `witness`, and guests that can be created.
fn machine(log: &str, dir: &Path, modes: &[&str], further_guests: Vec<ConfigFile>) -> Running {
    let files = files();
    let root = root_disk(&files, dir, log);
    let mut request = Request::new(vec![linux(&files, "witness", &root, dir, "")]);
    request.programs = vec![hostile_domain()];
    request.manifest = Some(manifest(modes.iter().copied()));
    request.further_guests = further_guests;
    start(log, &request)
}

/// Waits for a record of a domain's log that contains a text; the record.
fn wait_log(running: &Running, domain: &str, text: &str) -> String {
    let what = format!("`{text}` in the log of {domain}");
    must(running.machine.wait(&what, ATTEMPT, |state| {
        let mut records = state.log.iter().filter(|record| record.domain == domain);
        records.find(|record| record.text.contains(text)).map(|record| record.text.clone())
    }))
}

/// Waits until init reports a domain's fault; its vector and registers.
fn wait_fault(running: &Running, domain: &str) -> (u64, String) {
    wait_log(running, "init", &format!("{domain} (domain "));
    let (first, rest) = (format!("{domain}: "), format!("{domain}: r"));
    running.machine.with_state(|state| {
        let records = state.log.iter().filter(|r| r.domain == "init").map(|r| r.text.as_str());
        let sentence = records.clone().find(|text| text.starts_with(&first) && text.contains("(vector "));
        let vector = sentence.and_then(|text| text.split_once("(vector ")?.1.split(',').next()?.parse().ok());
        let registers = records.filter(|text| text.starts_with(&rest)).collect::<Vec<_>>().join(" ");
        (vector.unwrap_or_else(|| panic!("no vector for {domain}:\n{}", state.tail())), registers)
    })
}

/// The guest and every service answer.
fn all_is_well(running: &Running, witness: &mut Guest<'_>, after: &str) {
    let answer = sh(witness, &format!("echo fine after {after}; sync"), SHORT);
    assert_eq!(answer, format!("fine after {after}"));
    let list = running.xl("xl list");
    for service in SERVICES.iter().chain(&["witness"]) {
        let is_there = list.lines().any(|line| line.split_whitespace().next() == Some(service));
        assert!(is_there, "{service} is gone after {after}:\n{list}");
    }
}

/// No service died: of all dead domains init's log names only hostile ones.
fn only_the_hostile_died(running: &Running) {
    let dead = running.machine.with_state(|state| {
        let records = state.log.iter().filter(|r| r.domain == "init" && r.text.contains(" is dead: "));
        records.map(|record| record.text.clone()).collect::<Vec<_>>()
    });
    assert!(dead.iter().all(|text| text.starts_with("hostile-")), "{dead:#?}");
}

#[test]
fn a_domain_that_does_what_it_must_not_ends_alone() {
    let dir = io(tempfile::tempdir());
    let modes = FAULTS.map(|(mode, _)| mode);
    let running = machine("isolation-faults", dir.path(), &modes, Vec::new());
    let mut witness = running.shell("witness");
    for (mode, vectors) in FAULTS {
        let (vector, registers) = wait_fault(&running, &name(mode));
        assert!(vectors.contains(&vector), "{mode} ended with vector {vector}");
        assert!(registers.contains("rax=0x") && registers.contains("r15=0x"), "{mode}: {registers}");
    }
    all_is_well(&running, &mut witness, "all faults");
    only_the_hostile_died(&running);
    let stopped = running.machine.with_state(|state| {
        let said =
            state.log.iter().filter(|record| record.domain.starts_with("hostile-") && record.level == 1);
        said.map(|record| format!("{}: {}", record.domain, record.text)).collect::<Vec<_>>()
    });
    assert!(stopped.is_empty(), "something went through: {stopped:#?}");
    running.quit();
}

#[test]
fn floods_random_system_calls_and_hostile_kernels_harm_only_themselves() {
    const MODES: [&str; 10] = [
        "calls",
        "log-ring",
        "log-records",
        "supervise-ring",
        "store-ring",
        "store-messages",
        "signals",
        "spin",
        "read-guest",
        "software-nmi",
    ];
    let dir = io(tempfile::tempdir());
    let kernel = test_guest();
    let guests = GUESTS.iter().map(|(mode, _)| {
        let text = format!(
            "name = \"guest-{mode}\"\ntype = \"pvh\"\nkernel = \"{}\"\ncmdline = \"mode={mode} seed={}\"\n\
             memory = 16\non_crash = \"destroy\"\non_reboot = \"destroy\"\n{}",
            kernel.display(),
            seed(),
            if *mode == "devices" { DEVICES } else { "" }
        );
        ConfigFile { name: format!("{mode}.cfg"), text, dir: dir.path().to_path_buf() }
    });
    let running = machine("isolation", dir.path(), &MODES, guests.collect());
    let mut witness = running.shell("witness");
    the_domains_end(&running);
    all_is_well(&running, &mut witness, "the hostile domains");
    for (mode, end) in &GUESTS {
        a_guest_ends(&running, mode, end);
        all_is_well(&running, &mut witness, mode);
    }
    only_the_hostile_died(&running);
    running.quit();
}

fn the_domains_end(running: &Running) {
    assert_eq!(wait_fault(running, "hostile-read-guest").0, 14);
    assert_eq!(wait_fault(running, "hostile-software-nmi").0, 13);
    for mode in ["calls", "log-ring", "log-records", "supervise-ring", "store-ring"] {
        let (vector, registers) = wait_fault(running, &name(mode));
        // Last words: how many attempts (r12), how many of them got what they must not (r13).
        assert_eq!(vector, 6, "{mode}: {registers}");
        assert!(registers.contains("r14=0x00000000600d600d"), "{mode} did not come to its end: {registers}");
        assert!(registers.contains("r13=0x0000000000000000"), "{mode}: {registers}");
    }
    wait_log(running, "console", "of hostile-log-ring is dropped");
    wait_log(running, "init", "broke its supervise channel");
    wait_log(running, "xenstore", "of hostile-store-ring is dropped");
    wait_log(running, "hostile-store-messages", "store-messages done: 3000 sent");
    // Those two go on for ever, when nobody else wants the processor.
    for mode in ["spin", "signals"] {
        assert!(running.is_listed(&name(mode)), "{mode} is gone");
    }
}

fn a_guest_ends(running: &Running, mode: &str, end: &End) {
    let name = format!("guest-{mode}");
    running.xl(&format!("xl create {name}"));
    let mut console = running.machine.guest(&name).from_start();
    let expect = |console: &mut Guest<'_>, text: &str| {
        let pattern = Regex::new(text).unwrap_or_else(|error| panic!("{error}"));
        must(console.expect(&pattern, ATTEMPT))
    };
    expect(&mut console, &format!("hostile guest: {mode}"));
    if *mode == *"devices" {
        // After every way of breaking the rings all connected again, and many requests were served.
        expect(&mut console, "devices: 40 rounds connected");
        for ring in ["disk", "tx", "rx"] {
            expect(&mut console, &format!(r"{ring} ring: \d+ answers, [1-9]\d\d+ of them good"));
        }
    }
    match end {
        End::Done => {
            let done = expect(&mut console, &format!("{mode} done: \\d+ attempts.*\n"));
            assert!(!done.contains(" 0 attempts"), "{done}");
            wait_log(running, &name, "(PowerOff)");
        }
        End::Crash(why) | End::Reset(why) => {
            let reason = if matches!(end, End::Crash(_)) { "(Crash)" } else { "(Reboot)" };
            let sentence = wait_log(running, &name, reason);
            assert!(sentence.contains(why), "{sentence}");
        }
        End::Runs => {
            assert!(running.is_listed(&name));
            running.xl(&format!("xl destroy {name}"));
        }
    }
    running.wait_gone(&name);
}
