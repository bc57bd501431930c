//! The operator's line: editing keys, history, and what the terminal has to show.
//!
//! ASCII only. Keys: printable characters, backspace, delete, left, right, home, end, up, down, Ctrl-A/B/
//! E/F/K/U/W, Ctrl-L, Ctrl-C, Enter. Escape sequences are those of ECMA-48 as terminals send them.

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;

/// Longest line, that of `OperatorRequest::line`.
pub const LINE_MAX: usize = 512;
/// Lines that history keeps.
const HISTORY_MAX: usize = 32;
/// Longest parameter part of an escape sequence that is looked at.
const SEQUENCE_MAX: usize = 8;

/// What a key led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edited {
    /// The line goes on.
    Going,
    /// Enter.
    Line(String),
    /// Ctrl-C: the line was given up.
    Cancelled,
}

/// Where in an escape sequence the input is.
#[derive(Debug, Default)]
enum Sequence {
    #[default]
    None,
    Escape,
    Control(Vec<u8>),
    Single,
}

/// The editor.
#[derive(Debug)]
pub struct Editor {
    prompt: &'static str,
    line: Vec<u8>,
    cursor: usize,
    history: VecDeque<Vec<u8>>,
    /// How many lines back history is shown; 0: the line being typed, kept in `typed` meanwhile.
    back: usize,
    typed: Vec<u8>,
    sequence: Sequence,
    was_return: bool,
}

impl Editor {
    /// An empty line after a prompt.
    pub fn new(prompt: &'static str) -> Self {
        Self {
            prompt,
            line: Vec::new(),
            cursor: 0,
            history: VecDeque::new(),
            back: 0,
            typed: Vec::new(),
            sequence: Sequence::None,
            was_return: false,
        }
    }

    /// Whether nothing is typed.
    pub fn is_empty(&self) -> bool {
        self.line.is_empty()
    }

    /// Shows prompt and line anew, in place of whatever the terminal's line holds.
    pub fn redraw(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"\r\x1b[K");
        out.extend_from_slice(self.prompt.as_bytes());
        out.extend_from_slice(&self.line);
        let behind = self.line.len() - self.cursor;
        if behind > 0 {
            out.extend_from_slice(alloc::format!("\x1b[{behind}D").as_bytes());
        }
    }

    /// Takes a byte that the terminal sent; appends what it has to show.
    pub fn key(&mut self, byte: u8, out: &mut Vec<u8>) -> Edited {
        let after_return = core::mem::replace(&mut self.was_return, byte == b'\r');
        match core::mem::take(&mut self.sequence) {
            Sequence::None => {}
            Sequence::Escape => {
                self.sequence = match byte {
                    b'[' => Sequence::Control(Vec::new()),
                    b'O' => Sequence::Single,
                    _ => Sequence::None,
                };
                return Edited::Going;
            }
            Sequence::Control(mut parameters) => {
                match byte {
                    0x20..=0x3f => {
                        if parameters.len() < SEQUENCE_MAX {
                            parameters.push(byte);
                        }
                        self.sequence = Sequence::Control(parameters);
                    }
                    0x40..=0x7e => self.special(byte, &parameters, out),
                    _ => {}
                }
                return Edited::Going;
            }
            Sequence::Single => {
                self.special(byte, &[], out);
                return Edited::Going;
            }
        }
        match byte {
            0x1b => self.sequence = Sequence::Escape,
            b'\n' if after_return => {}
            b'\r' | b'\n' => return self.enter(out),
            0x03 => {
                self.clear();
                out.extend_from_slice(b"^C\r\n");
                return Edited::Cancelled;
            }
            0x08 | 0x7f if self.cursor > 0 => {
                self.cursor -= 1;
                self.delete(self.cursor..self.cursor + 1, out);
            }
            0x01 => self.go(0, out),
            0x02 => self.go(self.cursor.saturating_sub(1), out),
            0x05 => self.go(self.line.len(), out),
            0x06 => self.go(self.cursor + 1, out),
            0x0b => self.delete(self.cursor..self.line.len(), out),
            0x0c => {
                out.extend_from_slice(b"\x1b[H\x1b[2J");
                self.redraw(out);
            }
            0x15 => {
                let end = core::mem::take(&mut self.cursor);
                self.delete(0..end, out);
            }
            0x17 => self.delete_word(out),
            0x20..=0x7e => self.insert(byte, out),
            _ => {}
        }
        Edited::Going
    }

    fn special(&mut self, last: u8, parameters: &[u8], out: &mut Vec<u8>) {
        match (last, parameters) {
            (b'A', _) => self.recall(self.back + 1, out),
            (b'B', _) if self.back > 0 => self.recall(self.back - 1, out),
            (b'C', _) => self.go(self.cursor + 1, out),
            (b'D', _) => self.go(self.cursor.saturating_sub(1), out),
            (b'H', _) | (b'~', b"1" | b"7") => self.go(0, out),
            (b'F', _) | (b'~', b"4" | b"8") => self.go(self.line.len(), out),
            (b'~', b"3") if self.cursor < self.line.len() => {
                self.delete(self.cursor..self.cursor + 1, out);
            }
            _ => {}
        }
    }

    fn go(&mut self, cursor: usize, out: &mut Vec<u8>) {
        self.cursor = cursor.min(self.line.len());
        self.redraw(out);
    }

    fn insert(&mut self, byte: u8, out: &mut Vec<u8>) {
        if self.line.len() >= LINE_MAX {
            out.push(0x07);
            return;
        }
        self.line.insert(self.cursor, byte);
        self.cursor += 1;
        if self.cursor == self.line.len() {
            out.push(byte);
        } else {
            self.redraw(out);
        }
    }

    fn delete(&mut self, range: core::ops::Range<usize>, out: &mut Vec<u8>) {
        let end = range.end.min(self.line.len());
        self.line.drain(range.start.min(end)..end);
        self.redraw(out);
    }

    fn delete_word(&mut self, out: &mut Vec<u8>) {
        let before = self.line.get(..self.cursor).unwrap_or_default();
        let is_space = |byte: &u8| *byte == b' ';
        let word_end = before.iter().rposition(|byte| !is_space(byte)).map_or(0, |last| last + 1);
        let start = before
            .get(..word_end)
            .and_then(|word| word.iter().rposition(is_space))
            .map_or(0, |space| space + 1);
        let end = core::mem::replace(&mut self.cursor, start);
        self.delete(start..end, out);
    }

    fn recall(&mut self, back: usize, out: &mut Vec<u8>) {
        if back > self.history.len() {
            return;
        }
        if self.back == 0 {
            self.typed = core::mem::take(&mut self.line);
        }
        self.back = back;
        self.line = match self.history.len().checked_sub(back).and_then(|index| self.history.get(index)) {
            Some(line) => line.clone(),
            None => core::mem::take(&mut self.typed),
        };
        self.go(self.line.len(), out);
    }

    fn clear(&mut self) {
        self.line.clear();
        self.typed.clear();
        self.cursor = 0;
        self.back = 0;
    }

    fn enter(&mut self, out: &mut Vec<u8>) -> Edited {
        out.extend_from_slice(b"\r\n");
        let line = core::mem::take(&mut self.line);
        self.clear();
        if !line.trim_ascii().is_empty() && self.history.back() != Some(&line) {
            if self.history.len() >= HISTORY_MAX {
                self.history.pop_front();
            }
            self.history.push_back(line.clone());
        }
        // Only printable ASCII was let in.
        Edited::Line(String::from_utf8(line).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines(keys: &[u8]) -> Vec<String> {
        let mut editor = Editor::new("> ");
        let mut out = Vec::new();
        keys.iter()
            .filter_map(|&key| match editor.key(key, &mut out) {
                Edited::Line(line) => Some(line),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn keys_edit_the_line() {
        assert_eq!(lines(b"xl lisst\x08\x08t\r"), ["xl list"]);
        assert_eq!(lines(b"abc\x1b[D\x1b[D\x7fX\r"), ["Xbc"]);
        assert_eq!(lines(b"abc\x01X\x05Y\r"), ["XabcY"]);
        assert_eq!(lines(b"abc\x15x\r"), ["x"]);
        assert_eq!(lines(b"one two \x17x\r"), ["one x"]);
        assert_eq!(lines(b"abc\x1b[D\x0b\r"), ["ab"]);
        assert_eq!(lines(b"abc\x1b[H\x1b[3~\x1b[4~d\r"), ["bcd"]);
        assert_eq!(lines(b"abc\x03x\r"), ["x"]);
        assert_eq!(lines(b"a\r\nb\n\n"), ["a", "b", ""]);
    }

    #[test]
    fn history_goes_back_and_returns_to_what_was_typed() {
        assert_eq!(lines(b"one\rtwo\r\x1b[A\x1b[A\r"), ["one", "two", "one"]);
        assert_eq!(lines(b"one\r\x1bOA\x1bOA\x1bOA\r"), ["one", "one"]);
        assert_eq!(lines(b"one\rty\x1b[A\x1b[Bx\r"), ["one", "tyx"]);
        assert_eq!(lines(b"one\r\x1b[A!\r\x1b[A\x1b[A\r"), ["one", "one!", "one"]);
    }

    #[test]
    fn a_line_does_not_outgrow_its_message() {
        let keys = [&[b'x'; LINE_MAX + 50][..], b"\r"].concat();
        assert_eq!(lines(&keys)[0].len(), LINE_MAX);
    }

    proptest! {
        #[test]
        fn any_bytes_give_printable_lines(keys in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut editor = Editor::new("> ");
            for key in keys {
                let mut out = Vec::new();
                if let Edited::Line(line) = editor.key(key, &mut out) {
                    prop_assert!(line.len() <= LINE_MAX && line.bytes().all(|b| (0x20..0x7f).contains(&b)));
                }
                prop_assert!(out.len() <= LINE_MAX + 64);
                prop_assert!(editor.cursor <= editor.line.len());
            }
        }
    }
}
