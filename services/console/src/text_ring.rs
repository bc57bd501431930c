//! The last bytes of an endless text. A position counts all bytes ever written, so that a reader who
//! fell behind finds out what is left.

use alloc::collections::VecDeque;

/// The ring.
#[derive(Debug)]
pub struct TextRing {
    bytes: VecDeque<u8>,
    capacity: usize,
    /// Position after the last byte.
    end: u64,
}

impl TextRing {
    /// Keeps the last `capacity` bytes. Memory is taken as text arrives.
    pub fn new(capacity: usize) -> Self {
        Self { bytes: VecDeque::new(), capacity, end: 0 }
    }

    /// Appends text; the oldest gives way.
    pub fn push(&mut self, text: &[u8]) {
        self.end += text.len() as u64;
        let skipped = text.len().saturating_sub(self.capacity);
        let text = text.get(skipped..).unwrap_or_default();
        let excess = (self.bytes.len() + text.len()).saturating_sub(self.capacity);
        self.bytes.drain(..excess);
        self.bytes.extend(text);
    }

    /// Position of the oldest byte that is left.
    pub fn start(&self) -> u64 {
        self.end - self.bytes.len() as u64
    }

    /// Position after the last byte.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Where whole lines begin: the start, or after the first line end if older text was lost.
    pub fn first_line(&self) -> u64 {
        if self.start() == 0 {
            return 0;
        }
        let line_end = self.bytes.iter().position(|&byte| byte == b'\n');
        self.start() + line_end.map_or(0, |index| index as u64 + 1)
    }

    /// At most `max` bytes from a position on (from the oldest, where it was lost), and the position
    /// after them.
    pub fn read(&self, from: u64, max: usize) -> (alloc::vec::Vec<u8>, u64) {
        let from = from.clamp(self.start(), self.end);
        let skip = usize::try_from(from - self.start()).unwrap_or(usize::MAX);
        let text: alloc::vec::Vec<u8> = self.bytes.iter().skip(skip).take(max).copied().collect();
        let next = from + text.len() as u64;
        (text, next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    #[test]
    fn replay_starts_with_a_whole_line() {
        let mut ring = TextRing::new(8);
        ring.push(b"ab\ncd\n");
        assert_eq!(ring.first_line(), 0);
        ring.push(b"ef\ngh\n");
        assert_eq!(ring.read(ring.first_line(), 99).0, b"ef\ngh\n");
    }

    proptest! {
        #[test]
        fn it_is_the_tail_of_all_text(
            capacity in 0usize..20,
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..30), 0..10),
            from in 0u64..300, max in 0usize..40,
        ) {
            let mut ring = TextRing::new(capacity);
            for piece in &pieces {
                ring.push(piece);
            }
            let all: Vec<u8> = pieces.concat();
            let oldest = all.len().saturating_sub(capacity);
            prop_assert_eq!((ring.start(), ring.end()), (oldest as u64, all.len() as u64));
            let begin = (from as usize).clamp(oldest, all.len());
            let end = (begin + max).min(all.len());
            prop_assert_eq!(ring.read(from, max), (all[begin..end].to_vec(), end as u64));
        }
    }
}
