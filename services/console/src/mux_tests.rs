//! The multiplexed mode as the host's program sees it.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use proptest::prelude::*;
use proto::console::{OperatorRequest, OperatorResponse, Order};
use proto::text::Text;

use crate::escape::{escape, unescape};
use crate::guests::CHUNK;
use crate::state::Record;
use crate::{Console, Mode};

/// All that the console has for the line.
fn shown(console: &mut Console) -> String {
    let mut bytes = Vec::new();
    loop {
        console.pump();
        let some = console.take_output(16);
        if some.is_empty() {
            return String::from_utf8(bytes).unwrap();
        }
        bytes.extend(some);
    }
}

fn line(console: &mut Console, text: &str) -> String {
    for byte in text.bytes().chain([b'\n']) {
        console.input(byte);
    }
    shown(console)
}

fn text(request: &OperatorRequest) -> String {
    match &request.order {
        Order::Run(line) => line.to_string(),
        Order::Stop => "(stop)".into(),
    }
}

fn machine() -> Console {
    let mut console = Console::new(Mode::Mux);
    console.attach_operator();
    console.attach_guest(50, 5, "web server");
    console.attach_guest(60, 6, "db");
    console
}

#[test]
fn every_source_has_its_tag() {
    let mut c = machine();
    c.log(&Record { domain: "init", level: 3, time_us: 0, lost: 2, text: "up\x1b" });
    c.guest_output(50, b"login: \r\n");
    c.response(&OperatorResponse::Notice { text: Text::truncated("db\nstarted") });
    c.response(&OperatorResponse::GuestsStarted { first: 5, failed: 1 });
    assert_eq!(
        shown(&mut c),
        "@log init 2 (2 records lost)\n@log init 3 up\\x1b\n@notice db\\nstarted\n@up 5 1\n\
         @guest web\\x20server login: \\r\\n\n"
    );
}

#[test]
fn commands_run_side_by_side_and_end_once() {
    let mut c = machine();
    assert_eq!(line(&mut c, "@exec 7 xl list"), "");
    assert_eq!(line(&mut c, "@exec 8 xl info\r"), "");
    assert_eq!(line(&mut c, "@exec 8 again"), "@notice command 8 runs already\n");
    let ids: Vec<(u32, String)> = core::iter::from_fn(|| {
        let next = c.command().map(|command| (command.id, text(command)));
        c.command_sent();
        next
    })
    .collect();
    assert_eq!(ids, [(7, "xl list".into()), (8, "xl info".into())]);
    c.response(&OperatorResponse::Output { id: 8, text: Text::truncated("x\ty\n") });
    c.response(&OperatorResponse::Output { id: 9, text: Text::truncated("nobody asked") });
    c.response(&OperatorResponse::Done { id: 8, status: 3 });
    c.response(&OperatorResponse::Done { id: 8, status: 0 });
    c.response(&OperatorResponse::Attach { id: 7, domid: 6 });
    assert_eq!(shown(&mut c), "@out 8 x\\ty\\n\n@done 8 3\n@done 7 0\n");
}

#[test]
fn the_log_is_a_commands_output() {
    let mut c = machine();
    line(&mut c, "@exec 1 xl dmesg");
    let text = "x".repeat(200);
    for _ in 0..400 {
        c.log(&Record { domain: "init", level: 3, time_us: 0, lost: 0, text: &text });
        shown(&mut c);
    }
    c.response(&OperatorResponse::ShowLog { id: 1 });
    let out = shown(&mut c);
    let chunks: Vec<u8> = out
        .lines()
        .filter_map(|line| line.strip_prefix("@out 1 "))
        .flat_map(|chunk| unescape(chunk.as_bytes()).unwrap())
        .collect();
    assert!(chunks.len() > 60_000 && chunks.starts_with(b"[") && chunks.ends_with(b"x\n"));
    assert!(out.ends_with("@done 1 0\n"));
}

#[test]
fn input_reaches_the_guest_by_name() {
    let mut c = machine();
    assert_eq!(line(&mut c, "@input web\\x20server root\\r\\x03 @x"), "");
    assert_eq!(c.guest_input(50), b"root\r\x03 @x");
    assert_eq!(line(&mut c, "@input nobody x"), "@notice no guest has the name nobody\n");
}

#[test]
fn lines_that_are_no_request_are_answered_with_a_notice() {
    let mut c = machine();
    for bad in
        ["hello", "@exec", "@exec x y", "@exec -1 y", "@input db \\q", "@exec 4294967296 x", "@what 1 2"]
    {
        assert!(line(&mut c, bad).starts_with("@notice a line that is no request: "), "{bad}");
    }
    let long = "x".repeat(10_000);
    assert_eq!(line(&mut c, &long), "@notice a line of 10000 bytes is too long\n");
    assert_eq!(line(&mut c, ""), "");
    let answer = line(&mut c, &("@exec 5 ".to_string() + &"y".repeat(600)));
    assert_eq!(answer, "@out 5 the command is too long\\n\n@done 5 1\n");
}

#[test]
fn commands_that_the_toolstack_had_fail_with_it() {
    let mut c = machine();
    line(&mut c, "@exec 1 a");
    line(&mut c, "@exec 2 b");
    c.command_sent();
    c.detach_operator();
    assert!(shown(&mut c).ends_with("@done 1 1\n"));
    c.attach_operator();
    assert_eq!(c.command().map(|command| command.id), Some(2));
}

#[test]
fn a_slow_line_throttles_every_guest_fairly_and_loses_nothing() {
    let mut c = machine();
    let (mut sent, mut seen) = ([Vec::new(), Vec::new()], Vec::new());
    for n in 0..3000u32 {
        for (index, channel) in [50, 60].into_iter().enumerate() {
            if c.wants_guest_output(channel) {
                let text = alloc::format!("{n:0>CHUNK$}\x1b");
                c.guest_output(channel, &text.as_bytes()[1..]);
                sent[index].extend_from_slice(&text.as_bytes()[1..]);
            }
        }
        c.pump();
        seen.extend(c.take_output(100));
    }
    c.detach_guest(50);
    c.detach_guest(60);
    seen.extend(shown(&mut c).into_bytes());
    assert!(sent[0].len() < 3000 * CHUNK && sent[0].len().abs_diff(sent[1].len()) < 4096);
    let text = String::from_utf8(seen).unwrap();
    for (tag, sent) in ["@guest web\\x20server ", "@guest db "].iter().zip(&sent) {
        let chunks = text.lines().filter_map(|line| line.strip_prefix(tag));
        let got: Vec<u8> = chunks.flat_map(|chunk| unescape(chunk.as_bytes()).unwrap()).collect();
        assert!(got == *sent);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn hostile_lines_and_names_keep_the_line_well_formed(
        name in any::<String>(),
        input in prop::collection::vec(any::<u8>(), 0..300),
        output in prop::collection::vec(any::<u8>(), 0..600),
        text in any::<String>(),
    ) {
        let mut c = Console::new(Mode::Mux);
        c.attach_guest(1, 1, &name);
        c.guest_output(1, &output);
        c.log(&Record { domain: &name, level: 200, time_us: u64::MAX, lost: 1, text: &text[..text.floor_char_boundary(228)] });
        for byte in input {
            c.input(byte);
        }
        for line in shown(&mut c).lines() {
            prop_assert!(line.starts_with('@') && line.is_ascii(), "{line:?}");
        }
    }

    #[test]
    fn input_arrives_as_it_was_sent(bytes in prop::collection::vec(any::<u8>(), 0..CHUNK)) {
        let mut c = machine();
        let request = String::from("@input db ") + &escape(&bytes);
        prop_assert_eq!(line(&mut c, &request), "");
        prop_assert_eq!(c.guest_input(60), bytes);
    }
}

#[test]
fn a_command_that_shows_pages_is_refused_because_nobody_could_end_it() {
    let mut c = machine();
    line(&mut c, "@exec 7 xl top");
    c.command_sent();
    c.response(&OperatorResponse::Page { id: 7 });
    let answer = shown(&mut c);
    assert!(answer.contains("option -b\\n\n@done 7 1\n"), "{answer}");
    assert_eq!(c.command().map(text).as_deref(), Some("(stop)"));
    c.response(&OperatorResponse::Done { id: 7, status: 0 });
    assert_eq!(shown(&mut c), "");
}
