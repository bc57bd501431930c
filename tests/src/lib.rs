//! What the whole-system tests share: machines with guests, an HTTP server of the host, checksums.
//!
//! Every helper panics with a message that has the machine's last lines: a test's failure must say what
//! the system said. At most two machines run at once, whatever the number of test threads.
#![allow(clippy::panic, clippy::missing_panics_doc, reason = "this is test code; a panic is a failed test")]

pub mod grub;
pub mod http;
pub mod minimal;
pub mod programs;
pub mod repository;
pub mod terminal;

use std::path::{Path, PathBuf};
use std::time::Duration;

use qemu_runner::guest::{self, Files};
use qemu_runner::host::{Lock, cache_dir};
use qemu_runner::machine::Machine;
use qemu_runner::plan::ConfigFile;
use qemu_runner::session::{Request, Session};
use qemu_runner::{Error, Guest, Progress};
use sha2::{Digest as _, Sha256};

/// How long the system may take from QEMU's start until all guests were started.
pub const UP: Duration = Duration::from_secs(120);
/// How long a guest may take from its start to its shell.
pub const SHELL: Duration = Duration::from_secs(240);
/// How long a command may take that moves no bulk data.
pub const SHORT: Duration = Duration::from_secs(60);
/// How long a command may take that moves megabytes.
pub const LONG: Duration = Duration::from_secs(240);
/// Machines that run at once.
const MACHINES: usize = 2;

/// The value, or the error's text as the test's failure.
pub fn must<T>(result: Result<T, Error>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{error}"),
    }
}

/// The value of an I/O operation that has no reason to fail.
pub fn io<T>(result: std::io::Result<T>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{error}"),
    }
}

/// A machine with what it needs while it runs.
#[derive(Debug)]
pub struct Running {
    /// The machine; it goes first.
    pub machine: Machine,
    /// What it was started with.
    pub session: Session,
    _slot: Lock,
}

/// Builds and starts a machine and waits until its guests were started. Its streams are kept below
/// `target/guest/logs/NAME`.
pub fn start(name: &str, request: &Request) -> Running {
    let running = launch(name, request);
    must(running.machine.wait_up(UP));
    running
}

/// [`start`] without the wait.
pub fn launch(name: &str, request: &Request) -> Running {
    launch_with(name, request, |_| {})
}

/// [`launch`] after a change to what was prepared.
pub fn launch_with(name: &str, request: &Request, change: impl FnOnce(&mut Session)) -> Running {
    let mut session = must(Session::prepare(request));
    change(&mut session);
    let slot = slot();
    let machine = must(session.start(Some(&cache_dir().join("logs").join(name))));
    Running { machine, session, _slot: slot }
}

/// Waits until one machine more may run; it counts while the lock lives.
pub fn slot() -> Lock {
    loop {
        for number in 0..MACHINES {
            if let Some(lock) = must(Lock::try_take(&cache_dir().join(format!("machine-{number}.lock")))) {
                return lock;
            }
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

impl Running {
    /// Runs a command at the operator's prompt that must succeed.
    pub fn xl(&self, command: &str) -> String {
        let (output, status) = must(self.machine.exec(command, LONG));
        assert_eq!(status, 0, "`{command}` failed: {output}");
        output
    }

    /// A guest's console with its shell ready.
    pub fn shell(&self, name: &str) -> Guest<'_> {
        let mut guest = self.machine.guest(name).from_start();
        must(guest.wait_shell(SHELL));
        guest
    }

    /// Whether `xl list` shows a domain of this name.
    pub fn is_listed(&self, name: &str) -> bool {
        self.xl("xl list").lines().any(|line| line.split_whitespace().next() == Some(name))
    }

    /// Waits until a domain is gone.
    pub fn wait_gone(&self, name: &str) {
        for _ in 0..240 {
            if !self.is_listed(name) {
                return;
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        panic!("{name} is still there:\n{}", self.machine.with_state(|s| s.tail()));
    }

    /// Domains that died, and panics that were reported: sentences of the log. None are expected where guests
    /// alone misbehave.
    pub fn harm(&self) -> Vec<String> {
        let is_harm = |text: &str| text.contains(" is dead: ") || text.contains("panic");
        self.machine.with_state(|state| {
            let records = state.log.iter().filter(|record| is_harm(&record.text));
            records.map(|record| format!("{}: {}", record.domain, record.text)).collect()
        })
    }

    /// Ends the machine, which must go well.
    pub fn quit(self) {
        must(self.machine.quit(LONG));
    }
}

/// Runs a command in a guest's shell that must succeed; its output without white space around it. Of one that does not
/// end it says what the domains did meanwhile.
pub fn sh(guest: &mut Guest<'_>, command: &str, timeout: Duration) -> String {
    let (output, status) = match guest.shell(command, timeout) {
        Ok(ended) => ended,
        Err(error) => panic!("{error}{}", activity(guest)),
    };
    assert_eq!(status, 0, "`{command}` in the guest: {output}");
    output.trim().to_owned()
}

/// What all domains do, twice, and what the guest says after Ctrl-C.
fn activity(guest: &mut Guest<'_>) -> String {
    let mut text = String::new();
    let mut say = |what: &str, said: Result<(String, u8), Error>| {
        let said = said.map_or_else(|error| error.to_string(), |(output, _)| output);
        text.push_str(&format!("\n== {what}\n{said}"));
    };
    for command in ["xl top -b -i 1", "xl counters -l", "xl counters -l"] {
        say(command, guest.machine().exec(command, SHORT));
    }
    let _gone = guest.send(b"\x03");
    for command in ["ps", "cat /proc/interrupts /proc/net/tcp /proc/net/snmp /proc/net/dev"] {
        say(command, guest.shell(command, SHORT).map(|(output, _)| (output, 0)));
    }
    text
}

/// Waits for the guest's DHCP lease and returns its address.
pub fn address(guest: &mut Guest<'_>) -> String {
    sh(
        guest,
        "n=0; while [ ! -s /run/address ] && [ $n -lt 60 ]; do sleep 1; n=$((n+1)); done; cat /run/address",
        LONG,
    )
}

/// The default guest's files.
pub fn files() -> Files {
    must(guest::prepare(Progress::Silent))
}

/// A copy of the default guest's fresh root disk.
pub fn root_disk(files: &Files, dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(format!("{name}.img"));
    io(std::fs::copy(&files.root, &path));
    path
}

/// A configuration for one Linux guest; further lines are added to it.
pub fn linux(files: &Files, name: &str, root: &Path, dir: &Path, further: &str) -> ConfigFile {
    let mut text = guest::xl_cfg(name, &files.kernel, Some(&files.initrd), Some(root), guest::CMDLINE);
    text.push_str(further);
    ConfigFile { name: format!("{name}.cfg"), text, dir: dir.to_path_buf() }
}

/// SHA-256 in hexadecimal, as `sha256sum` prints it.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes that do not compress and are the same in every run (xorshift).
pub fn noise(len: usize) -> Vec<u8> {
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
