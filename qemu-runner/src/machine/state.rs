//! What is known about a running machine: everything that it said so far.

use std::collections::{BTreeMap, VecDeque};

use super::mux::Line;
use crate::qemu::Exit;

/// Lines that are shown when a machine dies.
const TAIL: usize = 20;

/// A log record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRecord {
    /// Who.
    pub domain: String,
    /// 1 error to 5 trace.
    pub level: u8,
    /// What.
    pub text: String,
}

/// A command at the operator's prompt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Command {
    /// Its output so far.
    pub output: Vec<u8>,
    /// Its status when it has ended.
    pub status: Option<u8>,
}

/// A guest's console.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Console {
    /// All of its output, carriage returns left out.
    pub text: String,
    /// Bytes at the end that are not yet a whole character.
    partial: Vec<u8>,
}

impl Console {
    fn push(&mut self, bytes: &[u8]) {
        self.partial.extend(bytes.iter().filter(|b| **b != b'\r'));
        let valid = match std::str::from_utf8(&self.partial) {
            Ok(_) => self.partial.len(),
            // An incomplete character waits for its rest; a wrong one is replaced.
            Err(e) if e.error_len().is_none() => e.valid_up_to(),
            Err(_) => self.partial.len(),
        };
        let whole: Vec<u8> = self.partial.drain(..valid).collect();
        self.text.push_str(&String::from_utf8_lossy(&whole));
    }
}

/// Everything that the machine said.
#[derive(Debug, Default)]
pub struct State {
    /// Guests' consoles.
    pub guests: BTreeMap<String, Console>,
    /// Commands.
    pub commands: BTreeMap<u32, Command>,
    /// All domains' log.
    pub log: Vec<LogRecord>,
    /// Notices.
    pub notices: Vec<String>,
    /// The kernel's lines.
    pub kernel: Vec<String>,
    /// Domain ID of the first guest and how many could not be started.
    pub up: Option<(u32, u32)>,
    /// How it ended.
    pub exit: Option<Exit>,
    tail: VecDeque<String>,
    /// The guest whose line, the last one of the tail, has no end yet.
    unfinished: Option<String>,
}

impl State {
    /// Takes a line in.
    pub fn line(&mut self, line: Line) {
        match line {
            Line::Log { domain, level, text } => {
                self.remember(format!("{domain}: {text}"));
                self.log.push(LogRecord { domain, level, text });
            }
            Line::Guest { name, bytes } => {
                let console = self.guests.entry(name.clone()).or_default();
                let before = console.text.len();
                console.push(&bytes);
                let new = console.text.get(before..).unwrap_or_default().to_owned();
                self.remember_output(name, &new);
            }
            Line::Out { id, bytes } => self.commands.entry(id).or_default().output.extend(bytes),
            Line::Done { id, status } => self.commands.entry(id).or_default().status = Some(status),
            Line::Notice(text) => {
                self.remember(text.clone());
                self.notices.push(text);
            }
            Line::Up { first, failed } => self.up = Some((first, failed)),
            Line::Raw(text) => {
                if !text.trim().is_empty() {
                    self.remember(text.clone());
                }
                self.kernel.push(text);
            }
        }
    }

    /// One more line for [`State::tail`].
    pub fn remember(&mut self, line: String) {
        self.unfinished = None;
        if self.tail.len() == TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back(line);
    }

    /// A guest's output for [`State::tail`]; it comes in pieces of any size.
    fn remember_output(&mut self, name: String, text: &str) {
        for piece in text.split_inclusive('\n') {
            let line = piece.trim_end_matches('\n');
            match self.tail.back_mut().filter(|_| self.unfinished.as_ref() == Some(&name)) {
                Some(begun) => begun.push_str(line),
                None if !line.trim().is_empty() => self.remember(format!("[{name}] {line}")),
                None => {}
            }
            self.unfinished = (!piece.ends_with('\n')).then(|| name.clone());
        }
    }

    /// The last lines of all streams, for a message.
    pub fn tail(&self) -> String {
        self.tail.iter().map(|line| format!("    {line}\n")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_may_come_in_two_parts() {
        let mut console = Console::default();
        console.push(b"caf\xc3");
        assert_eq!(console.text, "caf");
        console.push(b"\xa9\r\n\xff.");
        assert_eq!(console.text, "café\n\u{fffd}.");
    }

    #[test]
    fn the_tail_has_the_last_lines_of_all_streams() {
        let mut state = State::default();
        for i in 0..30 {
            state.line(Line::Raw(format!("line {i}")));
        }
        for piece in ["o", "op", "s\nand", " again"] {
            state.line(Line::Guest { name: "web".into(), bytes: piece.into() });
        }
        state.line(Line::Guest { name: "db".into(), bytes: b"\n\nfine\n".to_vec() });
        state.line(Line::Guest { name: "web".into(), bytes: b"!\n".to_vec() });
        let tail = state.tail();
        assert_eq!(tail.lines().count(), 20);
        let end = "    line 29\n    [web] oops\n    [web] and again\n    [db] fine\n    [web] !\n";
        assert!(tail.ends_with(end), "{tail}");
    }
}
