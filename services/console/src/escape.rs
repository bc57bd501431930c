//! Bytes as printable ASCII: `\\`, `\n`, `\r`, `\t`, and `\xNN` for whatever else is not printable.
//!
//! Used on the multiplexed line, and wherever a domain's text reaches a terminal that it must not drive.

use alloc::string::String;
use alloc::vec::Vec;

/// Longest escape of one byte.
pub const LONGEST: usize = 4;

/// Appends the escaped form of a byte.
fn push(out: &mut String, byte: u8) {
    match byte {
        b'\\' => out.push_str("\\\\"),
        b'\n' => out.push_str("\\n"),
        b'\r' => out.push_str("\\r"),
        b'\t' => out.push_str("\\t"),
        0x20..=0x7e => out.push(char::from(byte)),
        _ => {
            out.push_str("\\x");
            for digit in [byte >> 4, byte & 15] {
                out.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
            }
        }
    }
}

/// Escapes bytes; the result is one line of printable ASCII.
pub fn escape(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for &byte in bytes {
        push(&mut out, byte);
    }
    out
}

/// Escapes a name so that it is one word: spaces too.
pub fn escape_word(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte == b' ' {
            out.push_str("\\x20");
        } else {
            push(&mut out, byte);
        }
    }
    out
}

/// A domain's text for a terminal: lines stay lines (ended by CR LF), everything else that a terminal
/// could take for a command is escaped. Text beyond ASCII stays.
pub fn for_terminal(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\r\n"),
            '\t' => out.push('\t'),
            c if c.is_ascii_control() => push(&mut out, c as u8),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// The bytes that an escaped text stands for; `None` when it is malformed.
pub fn unescape(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.iter().copied();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        out.push(match rest.next()? {
            b'\\' => b'\\',
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'x' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                let (high, low) = (digit()?, digit()?);
                u8::try_from(high << 4 | low).ok()?
            }
            _ => return None,
        });
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_forms() {
        assert_eq!(escape(b"a\\b\n\r\t\x1b\xff "), "a\\\\b\\n\\r\\t\\x1b\\xff ");
        assert_eq!(escape_word("a b"), "a\\x20b");
        assert_eq!(for_terminal("a\nb\x1b[2J\u{9b}\u{e4}"), "a\r\nb\\x1b[2J\u{fffd}\u{e4}");
        for bad in [&b"\\"[..], b"\\q", b"\\x", b"\\x1", b"\\xg0"] {
            assert_eq!(unescape(bad), None);
        }
    }

    proptest! {
        #[test]
        fn what_is_escaped_reads_back(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let text = escape(&bytes);
            prop_assert!(text.bytes().all(|b| (0x20..0x7f).contains(&b)));
            prop_assert!(text.len() <= bytes.len() * LONGEST);
            prop_assert_eq!(unescape(text.as_bytes()), Some(bytes));
        }

        #[test]
        fn hostile_text_is_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = unescape(&bytes);
        }

        #[test]
        fn a_terminal_gets_no_control_characters(text in any::<String>()) {
            let shown = for_terminal(&text);
            prop_assert!(shown.chars().all(|c| !c.is_control() || matches!(c, '\r' | '\n' | '\t')));
        }
    }
}
