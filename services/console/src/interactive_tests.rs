//! The interactive mode as a person at the terminal sees it.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use proptest::prelude::*;
use proto::console::{OperatorRequest, OperatorResponse, Order};
use proto::text::Text;

use crate::guests::{CHUNK, INPUT_MAX, SCROLLBACK};
use crate::state::{OUTPUT_MAX, Record};
use crate::{Console, Mode};

/// Channel of guest 5.
const WEB: u32 = 50;
/// Channel of guest 6.
const DB: u32 = 60;

fn boot_record(text: &str) -> Record<'_> {
    Record { domain: "init", level: 3, time_us: 12_345_678, lost: 0, text }
}

/// All that the console has for the line, taken as fast as it comes.
fn shown(console: &mut Console) -> String {
    let mut bytes = Vec::new();
    loop {
        console.pump();
        let some = console.take_output(16);
        if some.is_empty() {
            return String::from_utf8_lossy(&bytes).to_string();
        }
        bytes.extend(some);
    }
}

fn keys(console: &mut Console, keys: &[u8]) -> String {
    for &key in keys {
        assert!(console.wants_input());
        console.input(key);
    }
    shown(console)
}

fn order(request: &OperatorRequest) -> String {
    match &request.order {
        Order::Run(line) => line.to_string(),
        Order::Stop => "(stop)".into(),
    }
}

fn command(console: &mut Console) -> Option<(u32, String)> {
    let command = console.command().map(|c| (c.id, order(c)));
    console.command_sent();
    command
}

fn started(first: u32) -> OperatorResponse {
    OperatorResponse::GuestsStarted { first, failed: 0 }
}

/// A machine that booted with two guests, at the first one's console.
fn booted() -> Console {
    let mut console = Console::new(Mode::Interactive);
    console.attach_operator();
    console.attach_guest(WEB, 5, "web");
    console.attach_guest(DB, 6, "db");
    console.response(&started(5));
    console
}

#[test]
fn boot_shows_inits_lines_then_the_first_guest() {
    let mut console = Console::new(Mode::Interactive);
    console.log(&boot_record("xenstore is up"));
    console.log(&Record { level: 4, ..boot_record("detail") });
    console.log(&Record { domain: "netback", ..boot_record("link up") });
    assert_eq!(shown(&mut console), "xenstore is up\r\n");
    console.attach_operator();
    console.attach_guest(WEB, 5, "web");
    console.guest_output(WEB, b"early\r\n");
    console.response(&started(5));
    let screen = shown(&mut console);
    assert!(screen.contains("Ctrl+] for the operator's prompt, Ctrl-A x ends QEMU\r\nearly\r\n"), "{screen}");
    console.guest_output(WEB, b"login: ");
    console.log(&boot_record("later"));
    assert_eq!(shown(&mut console), "login: ");
}

/// A shell's old questions to the terminal were asked again with the scrollback, and the answers typed at
/// whatever the guest ran by then.
#[test]
fn old_questions_to_the_terminal_are_not_asked_again() {
    let mut console = booted();
    console.guest_output(WEB, b"");
    shown(&mut console);
    console.guest_output(WEB, b"# \x1b[6nls\r\n");
    // The first output after an empty scrollback is shown in the same turn, question and all.
    assert!(console.pump());
    assert_eq!(shown(&mut console), "# \x1b[6nls\r\n");
    keys(&mut console, b"\x1d");
    console.guest_output(WEB, b"bin \x1b[c");
    let id = {
        keys(&mut console, b"xl console web\r");
        command(&mut console).unwrap().0
    };
    console.response(&OperatorResponse::Attach { id, domid: 5 });
    console.guest_output(WEB, b"# \x1b[6n");
    let screen = shown(&mut console);
    assert!(screen.ends_with("# ls\r\nbin # \x1b[6n"), "{screen:?}");
}

#[test]
fn without_a_guest_there_is_the_prompt() {
    let mut console = Console::new(Mode::Interactive);
    console.attach_operator();
    console.response(&OperatorResponse::GuestsStarted { first: 0, failed: 2 });
    let screen = shown(&mut console);
    assert!(screen.contains("2 of the configured guests could not be started."), "{screen}");
    assert!(screen.ends_with("ailurus> "), "{screen}");
}

#[test]
fn a_first_guest_whose_console_comes_late_is_shown_when_it_comes() {
    let mut console = Console::new(Mode::Interactive);
    console.attach_operator();
    console.response(&started(5));
    console.attach_guest(WEB, 5, "web");
    console.guest_output(WEB, b"hello");
    assert!(shown(&mut console).ends_with("QEMU\r\nhello"));
}

#[test]
fn keys_go_to_the_guest_until_it_is_left() {
    let mut console = booted();
    shown(&mut console);
    keys(&mut console, b"ls\r\x1b[A");
    assert_eq!(console.guest_input(WEB), b"ls\r\x1b[A");
    assert_eq!(console.guests_with_input(), [WEB]);
    console.guest_input_sent(WEB, 6);
    assert_eq!(console.guests_with_input(), []);
    assert!(keys(&mut console, b"\x1d").ends_with("ailurus> "));
    console.guest_output(WEB, b"unseen");
    assert_eq!(keys(&mut console, b"xl list\r"), "xl list\r\n");
    let (id, line) = command(&mut console).unwrap();
    assert_eq!(line, "xl list");
    console.response(&OperatorResponse::Output { id, text: Text::truncated("a\nb\x1b[2J\n") });
    console.response(&OperatorResponse::Output { id: id + 1, text: Text::truncated("foreign") });
    assert_eq!(shown(&mut console), "a\r\nb\\x1b[2J\r\n");
    console.response(&OperatorResponse::Done { id, status: 0 });
    assert_eq!(shown(&mut console), "\r\x1b[Kailurus> ");
    assert!(console.guest_input(WEB).is_empty());
}

#[test]
fn attaching_replays_what_the_guest_wrote() {
    let mut console = booted();
    shown(&mut console);
    let line = b"0123456789abcde\n";
    for _ in 0..2 * SCROLLBACK / line.len() {
        console.guest_output(DB, line);
        assert!(console.wants_guest_output(DB));
    }
    assert_eq!(shown(&mut console), "");
    keys(&mut console, b"\x1dxl console db\r");
    let (id, _) = command(&mut console).unwrap();
    console.response(&OperatorResponse::Attach { id, domid: 6 });
    let screen = shown(&mut console);
    let (title, replay) = screen.split_once("QEMU\r\n").unwrap();
    assert!(title.contains("Console of db"));
    assert!(replay.len() > SCROLLBACK - 32 && replay.starts_with("0123"), "{}", replay.len());
    console.response(&OperatorResponse::Done { id, status: 0 });
    assert_eq!(shown(&mut console), "");
}

#[test]
fn a_slow_line_throttles_the_guest_that_is_shown_and_loses_nothing() {
    let mut console = booted();
    shown(&mut console);
    let (mut sent, mut seen) = (Vec::new(), Vec::new());
    let mut has_throttled = false;
    for n in 0..2000u32 {
        if console.wants_guest_output(WEB) {
            let text = alloc::format!("{n:0>CHUNK$}");
            console.guest_output(WEB, text.as_bytes());
            sent.extend_from_slice(text.as_bytes());
        } else {
            has_throttled = true;
            assert!(console.wants_input(), "Ctrl+] must still work");
        }
        console.pump();
        seen.extend(console.take_output(50));
    }
    seen.extend(shown(&mut console).into_bytes());
    assert!(has_throttled && seen == sent);
}

#[test]
fn a_guest_that_does_not_read_can_be_left() {
    let mut console = booted();
    shown(&mut console);
    let screen = keys(&mut console, &[b'x'; INPUT_MAX + 10]);
    assert_eq!(screen, "\u{7}".repeat(10));
    assert!(keys(&mut console, b"\x1d").ends_with("ailurus> "));
}

#[test]
fn notices_wait_while_a_guest_is_shown_and_do_not_disturb_typing() {
    let mut console = booted();
    shown(&mut console);
    let notice = |text| OperatorResponse::Notice { text: Text::truncated(text) };
    console.response(&notice("db crashed"));
    assert_eq!(shown(&mut console), "");
    assert_eq!(keys(&mut console, b"\x1d"), "\r\ndb crashed\r\n\r\x1b[Kailurus> ");
    keys(&mut console, b"xl li");
    console.response(&notice("db \x1b]0;evil\n started"));
    let screen = shown(&mut console);
    assert_eq!(screen, "\r\x1b[Kdb \\x1b]0;evil  started\r\n\r\x1b[Kailurus> xl li");
}

#[test]
fn the_end_of_the_shown_guest_leads_to_the_prompt_and_its_restart_back() {
    let mut console = booted();
    shown(&mut console);
    console.guest_output(WEB, b"last words");
    console.detach_guest(WEB);
    let screen = shown(&mut console);
    assert!(screen.starts_with("last words\r\nThe console of web has ended.\r\n"), "{screen}");
    assert!(screen.ends_with("ailurus> "));
    console.attach_guest(70, 7, "web");
    assert!(shown(&mut console).contains("Console of web"));
    console.detach_guest(70);
    shown(&mut console);
    keys(&mut console, b"\x15");
    console.attach_guest(80, 8, "web");
    assert!(!shown(&mut console).contains("Console of web"), "a key was pressed");
}

#[test]
fn commands_typed_before_the_toolstack_wait_and_can_be_given_up() {
    let mut console = Console::new(Mode::Interactive);
    assert_eq!(keys(&mut console, b"xl info"), "");
    assert!(keys(&mut console, b"\r").contains("waits for the toolstack"));
    assert!(console.command().is_none());
    assert!(keys(&mut console, b"\x03").ends_with("ailurus> "));
    keys(&mut console, b"xl list\r");
    console.attach_operator();
    assert_eq!(command(&mut console).unwrap().1, "xl list");
    assert!(console.command().is_none());
    console.response(&started(0));
    console.detach_operator();
    assert!(shown(&mut console).contains("The toolstack is gone"));
}

#[test]
fn the_log_is_printed_with_time_and_domain_and_cannot_drive_the_terminal() {
    let mut console = booted();
    keys(&mut console, b"\x1dxl dmesg\r");
    console.log(&boot_record("one"));
    console.log(&Record { lost: 3, domain: "vm m", ..boot_record("two\x1b[2J\nthree") });
    let (id, _) = command(&mut console).unwrap();
    console.response(&OperatorResponse::ShowLog { id });
    assert!(!console.wants_response());
    let screen = shown(&mut console);
    assert_eq!(
        screen,
        "[   12.345678] init: one\r\n[   12.345678] vm\\x20m: (3 records lost)\r\n\
         [   12.345678] vm\\x20m: two\\x1b[2J three\r\n\r\x1b[Kailurus> "
    );
    assert!(console.wants_response());
}

#[test]
fn a_long_log_is_printed_whole_over_a_slow_line() {
    let mut console = booted();
    keys(&mut console, b"\x1dxl dmesg\r");
    for n in 0..1000 {
        console.log(&boot_record(&alloc::format!("record {n}")));
    }
    let (id, _) = command(&mut console).unwrap();
    console.response(&OperatorResponse::ShowLog { id });
    let screen = shown(&mut console);
    assert!(screen.len() > OUTPUT_MAX);
    assert_eq!(screen.matches("record ").count(), 1000);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn any_input_in_any_order_is_no_panic(
        events in prop::collection::vec((0u8..9, any::<u8>(), prop::collection::vec(any::<u8>(), 0..20)), 0..100)
    ) {
        let mut console = Console::new(Mode::Interactive);
        for (kind, number, bytes) in events {
            let id = u32::from(number % 4);
            let text = String::from_utf8_lossy(&bytes).to_string();
            match kind {
                0 => console.attach_guest(id, id, &text),
                1 => console.detach_guest(id),
                2 => console.guest_output(id, &bytes),
                3 => console.log(&Record { lost: id, ..boot_record(&text) }),
                4 => console.response(&OperatorResponse::Attach { id, domid: id }),
                5 => console.response(&started(id)),
                6 => console.response(&OperatorResponse::ShowLog { id }),
                7 => { console.detach_operator(); console.attach_operator(); }
                _ => for byte in bytes.into_iter().chain([number]) {
                    if console.wants_input() { console.input(byte); }
                },
            }
            console.pump();
            prop_assert!(console.take_output(usize::from(number)).len() <= usize::from(number));
        }
        shown(&mut console);
        prop_assert!(!console.has_output());
    }
}

#[test]
fn a_key_ends_a_command_that_shows_pages_and_nothing_else() {
    let mut console = booted();
    keys(&mut console, b"\x1d");
    keys(&mut console, b"xl top\r");
    let (id, _) = command(&mut console).unwrap();
    // Before its first page a key is only a key.
    keys(&mut console, b"x");
    assert!(console.command().is_none());
    for text in ["one\n", "two\n"] {
        console.response(&OperatorResponse::Page { id });
        console.response(&OperatorResponse::Output { id, text: Text::truncated(text) });
    }
    assert_eq!(shown(&mut console), "\x1b[H\x1b[Jone\r\n\x1b[H\x1b[Jtwo\r\n");
    keys(&mut console, b"qq");
    assert_eq!(command(&mut console), Some((id, "(stop)".into())));
    assert!(console.command().is_none());
    console.response(&OperatorResponse::Done { id, status: 0 });
    assert!(shown(&mut console).ends_with("ailurus> "));
    // Pages of a command that was given up are not shown, and it is told.
    keys(&mut console, b"xl top\r");
    let (id, _) = command(&mut console).unwrap();
    console.response(&OperatorResponse::Page { id });
    keys(&mut console, b"\x03");
    console.response(&OperatorResponse::Page { id });
    assert_eq!(shown(&mut console), "");
    // A toolstack that is gone has nothing to stop.
    console.detach_operator();
    console.attach_operator();
    assert!(console.command().is_none());
}
