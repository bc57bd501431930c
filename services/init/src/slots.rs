//! Which slots of a capability table are free.

use alloc::vec::Vec;

use proto::abi::Slot;

/// The free slots of a table: those never used, and those given back.
#[derive(Debug)]
pub struct Slots {
    next: Slot,
    end: Slot,
    free: Vec<Slot>,
}

impl Slots {
    /// A table whose slots from `first` to `end` (exclusive) are free.
    pub fn new(first: Slot, end: Slot) -> Self {
        Self { next: first, end, free: Vec::new() }
    }

    /// Takes a slot; `None`: the table is full.
    pub fn take(&mut self) -> Option<Slot> {
        if let Some(slot) = self.free.pop() {
            return Some(slot);
        }
        if self.next >= self.end {
            return None;
        }
        self.next += 1;
        Some(self.next - 1)
    }

    /// Gives a slot back.
    pub fn give(&mut self, slot: Slot) {
        self.free.push(slot);
    }

    /// Slots in use.
    pub fn used(&self, first: Slot) -> usize {
        (self.next.saturating_sub(first) as usize).saturating_sub(self.free.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_table_says_so_and_a_slot_given_back_is_taken_again() {
        let mut slots = Slots::new(5, 7);
        assert_eq!((slots.take(), slots.take(), slots.take()), (Some(5), Some(6), None));
        slots.give(5);
        assert_eq!(slots.used(5), 1);
        assert_eq!((slots.take(), slots.take()), (Some(5), None));
    }
}
