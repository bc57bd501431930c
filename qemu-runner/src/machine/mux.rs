//! The console's mux mode: everything that the system says and hears over one serial line, as text lines.
//!
//! Lines begin with `@` and a word; payload is escaped so that it has no line ends. Everything else is
//! the kernel's early log or a panic.

/// A line from the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// A log record.
    Log {
        /// Who.
        domain: String,
        /// 1 error to 5 trace.
        level: u8,
        /// What.
        text: String,
    },
    /// Part of a guest's console output.
    Guest {
        /// Which guest.
        name: String,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// Part of a command's output.
    Out {
        /// Which command.
        id: u32,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// A command ended.
    Done {
        /// Which command.
        id: u32,
        /// Its status.
        status: u8,
    },
    /// Something that the operator should know.
    Notice(String),
    /// All guests of the boot configuration were started or refused.
    Up {
        /// Domain ID of the first that runs, or 0.
        first: u32,
        /// How many could not be started.
        failed: u32,
    },
    /// The kernel's own output, or what is no line of this protocol.
    Raw(String),
}

/// Decodes a line, without its line end.
pub fn parse(line: &[u8]) -> Line {
    let text = String::from_utf8_lossy(line);
    let text = text.trim_end_matches('\r');
    decode(text).unwrap_or_else(|| Line::Raw(text.to_owned()))
}

fn decode(text: &str) -> Option<Line> {
    let (word, rest) = text.strip_prefix('@')?.split_once(' ')?;
    Some(match word {
        "log" => {
            let (domain, rest) = rest.split_once(' ')?;
            let (level, rest) = rest.split_once(' ').unwrap_or((rest, ""));
            Line::Log {
                domain: to_text(unescape(domain)),
                level: level.parse().ok()?,
                text: to_text(unescape(rest)),
            }
        }
        "guest" => {
            let (name, rest) = rest.split_once(' ')?;
            Line::Guest { name: to_text(unescape(name)), bytes: unescape(rest) }
        }
        "out" => {
            let (id, rest) = rest.split_once(' ')?;
            Line::Out { id: id.parse().ok()?, bytes: unescape(rest) }
        }
        "done" => {
            let (id, status) = rest.split_once(' ')?;
            Line::Done { id: id.parse().ok()?, status: status.trim().parse().ok()? }
        }
        "notice" => Line::Notice(to_text(unescape(rest))),
        "up" => {
            let (first, failed) = rest.split_once(' ')?;
            Line::Up { first: first.parse().ok()?, failed: failed.trim().parse().ok()? }
        }
        _ => return None,
    })
}

fn to_text(bytes: Vec<u8>) -> String {
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Takes escapes out; what is no escape stays as it is.
pub fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let (byte, used) = match (first, tail) {
            (b'\\', [b'\\', ..]) => (b'\\', 2),
            (b'\\', [b'n', ..]) => (b'\n', 2),
            (b'\\', [b'r', ..]) => (b'\r', 2),
            (b'\\', [b't', ..]) => (b'\t', 2),
            (b'\\', [b'x', high, low, ..]) => match (digit(*high), digit(*low)) {
                (Some(high), Some(low)) => (high << 4 | low, 4),
                _ => (first, 1),
            },
            _ => (first, 1),
        };
        bytes.push(byte);
        rest = rest.get(used..).unwrap_or_default();
    }
    bytes
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|d| u8::try_from(d).ok())
}

/// Escapes a name, which must stay one word.
pub fn escape_word(name: &str) -> String {
    escape(name.as_bytes()).replace(' ', "\\x20")
}

/// Escapes bytes for a line.
pub fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'\\' => text.push_str("\\\\"),
            b'\n' => text.push_str("\\n"),
            b'\r' => text.push_str("\\r"),
            b'\t' => text.push_str("\\t"),
            b' '..=b'~' => text.push(char::from(byte)),
            _ => text.push_str(&format!("\\x{byte:02x}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_are_told_apart() {
        let cases = [
            (
                "@log xenstore 3 up\\tand running\r",
                Line::Log { domain: "xenstore".into(), level: 3, text: "up\tand running".into() },
            ),
            ("@log init 1 ", Line::Log { domain: "init".into(), level: 1, text: String::new() }),
            ("@guest web \\x1b[0m / # ", Line::Guest { name: "web".into(), bytes: b"\x1b[0m / # ".to_vec() }),
            ("@guest a\\x20b c", Line::Guest { name: "a b".into(), bytes: b"c".to_vec() }),
            ("@out 7 a\\\\b\\n", Line::Out { id: 7, bytes: b"a\\b\n".to_vec() }),
            ("@done 7 1", Line::Done { id: 7, status: 1 }),
            ("@notice guest web started", Line::Notice("guest web started".into())),
            ("@up 8 0", Line::Up { first: 8, failed: 0 }),
        ];
        for (line, expected) in cases {
            assert_eq!(parse(line.as_bytes()), expected, "{line}");
        }
    }

    #[test]
    fn everything_else_is_kept_as_it_is() {
        for line in [
            "kernel: panic",
            "@",
            "@what 1",
            "@done x 1",
            "@up 1",
            "@log init high x",
            "",
            "@guest",
            "a @up 1 0",
        ] {
            assert_eq!(parse(line.as_bytes()), Line::Raw(line.into()), "{line}");
        }
        assert_eq!(parse(b"\xff"), Line::Raw("\u{fffd}".into()));
        assert_eq!(unescape("\\q \\x1 \\xzz \\"), b"\\q \\x1 \\xzz \\");
    }

    proptest! {
        #[test]
        fn escaping_is_undone(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let line = escape(&bytes);
            prop_assert!(line.bytes().all(|b| (b' '..=b'~').contains(&b)));
            prop_assert_eq!(unescape(&line), bytes);
        }

        #[test]
        fn no_line_is_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = parse(&bytes);
        }
    }
}
