//! `cargo run -p qemu-runner` at a terminal, as its first user types it.
#![allow(clippy::panic, reason = "a panic is a failed test")]

use std::process::Command;
use std::time::Duration;

use qemu_runner::host::{Lock, cache_dir};
use system_tests::terminal::Terminal;
use system_tests::{LONG, SHELL, SHORT, UP, must, slot};

/// How long compiling the runner and the machine may take.
const BUILD: Duration = Duration::from_secs(900);
/// The default guest's shell. The user's own root disk may be older than what makes a fresh one.
const SHELL_PROMPT: &str = "ailurus-guest:/root# ";
/// Ctrl+].
const LEAVE: &[u8] = b"\x1d";
/// The operator's prompt, at the start of its line.
const PROMPT: &str = "\r\x1b\\[Kailurus> ";

/// The right to have a machine with the default guest's own disk, and the runner.
fn runner() -> ([Lock; 2], Terminal) {
    let locks = [must(Lock::take(&cache_dir().join("debian-root.lock"))), slot()];
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["run", "-p", "qemu-runner"]).current_dir(env!("CARGO_MANIFEST_DIR")).env("TERM", "xterm");
    // The build lock of this test run is free by now; what cargo told this test is not meant for another.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_PKG_")
            || name.to_string_lossy().starts_with("CARGO_MANIFEST")
        {
            command.env_remove(name);
        }
    }
    (locks, Terminal::start(command))
}

/// Types a command at the operator's prompt; what it prints.
fn command(terminal: &mut Terminal, line: &str) -> String {
    terminal.type_in(format!("{line}\r").as_bytes());
    terminal.expect(&format!("{}\r+\n", regex::escape(line)), SHORT);
    terminal.expect(PROMPT, SHORT)
}

#[test]
fn a_user_gets_from_one_command_to_a_shell_and_to_the_operators_prompt() {
    let (_locks, mut terminal) = runner();

    // One line per service, in whatever order they are ready, then the guest's console.
    terminal.expect("Starting the machine: ", BUILD);
    let boot = terminal.expect("Console of debian: Ctrl\\+\\] for the operator's prompt", UP);
    for service in ["console", "xenstore", "blkback", "netback", "toolstack"] {
        assert_eq!(boot.matches(&format!("{service} is ready (domain ")).count(), 1, "{service}:\n{boot}");
    }
    terminal.expect(SHELL_PROMPT, SHELL);

    // A command in the guest: Debian's kernel, on Xen's interface.
    terminal.type_in(b"cat /proc/version /sys/hypervisor/type; echo so\"\"far\r");
    let answer = terminal.expect("\nsofar", SHORT);
    assert!(answer.contains("Debian") && answer.contains("xen"), "{answer}");
    terminal.expect(SHELL_PROMPT, SHORT);

    // The operator's prompt.
    terminal.type_in(LEAVE);
    terminal.expect(PROMPT, SHORT);
    let list = command(&mut terminal, "xl list");
    for name in ["Name", "init", "console", "xenstore", "blkback", "netback", "toolstack", "debian"] {
        assert!(list.lines().any(|line| line.starts_with(name)), "{name}:\n{list}");
    }
    let info = command(&mut terminal, "xl info");
    assert!(info.contains("virt_caps") && info.contains("free_memory"), "{info}");
    assert!(command(&mut terminal, "xl dmesg").contains("init: toolstack is ready"));
    let help = command(&mut terminal, "help");
    assert!(help.contains(" list ") && help.contains(" quit "), "{help}");

    // Rates, page after page until a key is pressed.
    terminal.type_in(b"xl top\r");
    for _ in 0..2 {
        let page = terminal.expect("\x1b\\[H\x1b\\[Jxl top: [^\x1b]*exits by reason", SHORT);
        assert!(page.contains("debian") && page.contains("SWTCH/s"), "{page}");
    }
    terminal.type_in(b"q");
    terminal.expect(PROMPT, SHORT);

    // What is mistyped gets a sentence, and keys that edit do.
    assert!(command(&mut terminal, "xl lisst").contains("did you mean `list`?"));
    assert!(command(&mut terminal, "xl console debiann").contains("did you mean the guest `debian`?"));
    assert!(command(&mut terminal, "xl vcpu-pin").contains("not supported"));
    terminal.type_in(b"xl lixx\x7f\x7fst\r");
    terminal.expect("ailurus> xl list\r+\n", SHORT);
    assert!(terminal.expect(PROMPT, SHORT).contains("toolstack"));

    // Back to the guest, whose old output is shown again: without its old questions to the terminal, whose
    // answers would be typed at the shell.
    let questions = terminal.questions();
    terminal.type_in(b"xl console debian\r");
    terminal.expect("Console of debian", SHORT);
    terminal.expect("\nsofar", SHORT);
    terminal.expect(SHELL_PROMPT, SHORT);
    assert_eq!(terminal.questions(), questions, "the scrollback's questions were asked again");
    terminal.type_in(b"echo still\"\" here\r");
    terminal.expect("\nstill here", SHORT);

    // The guest goes by request; the machine goes on, and ends by request.
    terminal.type_in(LEAVE);
    terminal.expect(PROMPT, SHORT);
    assert!(command(&mut terminal, "xl shutdown debian").contains("Shutting down domain"));
    terminal.expect("guest `debian` \\(domain \\d+\\) powered off", LONG);
    terminal.expect(PROMPT, SHORT);
    assert!(!command(&mut terminal, "xl list").contains("debian"));
    terminal.type_in(b"quit\r");
    assert_eq!(terminal.wait(LONG), Some(0));
}

#[test]
fn ctrl_a_x_ends_the_machine_at_any_time() {
    let (_locks, mut terminal) = runner();
    terminal.expect("Ctrl-A x ends QEMU", BUILD);
    terminal.expect("console is ready", UP);
    terminal.type_in(b"\x01x");
    terminal.expect("QEMU: Terminated", SHORT);
    assert_eq!(terminal.wait(SHORT), Some(0));
}
