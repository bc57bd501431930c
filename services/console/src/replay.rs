//! What of a guest's old output may be shown again: everything but questions to the terminal.
//!
//! A shell asks where the cursor is (`ESC [ 6 n`, busybox's does with every prompt), and the terminal
//! types the answer. Asked again when the scrollback is replayed, the answer would be typed at whatever
//! the guest runs now. Source: ECMA-48, DSR (8.3.35) and DA (8.3.24).

use alloc::vec::Vec;

/// Longest sequence that is looked at; questions are shorter.
const SEQUENCE_MAX: usize = 16;
const ESCAPE: u8 = 0x1b;

/// Takes old output piece by piece; a sequence may be cut anywhere.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    /// Start of a sequence whose end is still to come.
    sequence: Vec<u8>,
}

impl Replay {
    /// The piece without questions.
    pub fn filter(&mut self, piece: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(piece.len());
        for &byte in piece {
            if byte == ESCAPE || self.sequence.len() >= SEQUENCE_MAX {
                out.append(&mut self.sequence);
            }
            if self.sequence.is_empty() && byte != ESCAPE {
                out.push(byte);
                continue;
            }
            self.sequence.push(byte);
            let is_complete = match self.sequence.as_slice() {
                [ESCAPE] | [ESCAPE, b'['] => false,
                [ESCAPE, b'[', .., last] => !(0x20..=0x3f).contains(last),
                _ => true,
            };
            if is_complete {
                let is_question = matches!(self.sequence.as_slice(), [ESCAPE, b'[', .., b'n' | b'c']);
                if !is_question {
                    out.extend_from_slice(&self.sequence);
                }
                self.sequence.clear();
            }
        }
        out
    }

    /// What was held back, when no more is replayed.
    pub fn finish(&mut self) -> Vec<u8> {
        core::mem::take(&mut self.sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn replayed(pieces: &[&[u8]]) -> Vec<u8> {
        let mut replay = Replay::default();
        let mut out: Vec<u8> = pieces.iter().flat_map(|piece| replay.filter(piece)).collect();
        out.extend(replay.finish());
        out
    }

    #[test]
    fn questions_are_left_out_wherever_they_are_cut() {
        assert_eq!(
            replayed(&[b"# \x1b[6nls\r\n\x1b[1;31mred\x1b[0m\x1b[c\x1b[?6n."]),
            b"# ls\r\n\x1b[1;31mred\x1b[0m."
        );
        assert_eq!(replayed(&[b"a\x1b", b"[", b"6", b"nb\x1b[3", b"1mc"]), b"ab\x1b[31mc");
        assert_eq!(replayed(&[b"\x1bM\x1b\x1b[6nx\x1b["]), b"\x1bM\x1bx\x1b[");
    }

    proptest! {
        #[test]
        fn nothing_else_is_lost(text in "[a-z0-9;\\[?\r\n]{0,60}", cut in 0usize..60) {
            let bytes = text.as_bytes();
            let (one, two) = bytes.split_at(cut.min(bytes.len()));
            prop_assert_eq!(replayed(&[one, two]), bytes);
        }

        #[test]
        fn any_bytes_are_no_panic_and_grow_no_larger(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(replayed(&[&bytes]).len() <= bytes.len());
        }
    }
}
