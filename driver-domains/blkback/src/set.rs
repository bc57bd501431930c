//! Sets of channels, by number: what is in one is found without looking at what is not.

/// Numbers that a set may hold: those below this.
pub(crate) const MEMBERS: usize = WORDS * 64;
const WORDS: usize = 4;

/// A set of numbers below [`MEMBERS`]; others are never in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Set([u64; WORDS]);

impl Set {
    /// Nothing.
    pub(crate) const EMPTY: Self = Self([0; WORDS]);

    pub(crate) fn insert(&mut self, member: usize) {
        if let Some(word) = self.0.get_mut(member / 64) {
            *word |= 1 << (member % 64);
        }
    }

    pub(crate) fn insert_all(&mut self, others: &Self) {
        for (word, other) in self.0.iter_mut().zip(others.0) {
            *word |= other;
        }
    }

    pub(crate) fn remove(&mut self, member: usize) {
        if let Some(word) = self.0.get_mut(member / 64) {
            *word &= !(1 << (member % 64));
        }
    }

    pub(crate) fn contains(&self, member: usize) -> bool {
        self.0.get(member / 64).is_some_and(|word| word >> (member % 64) & 1 == 1)
    }

    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::EMPTY
    }

    /// The first member from `start` on, or else the first of all.
    pub(crate) fn next(&self, start: usize) -> Option<usize> {
        self.first(start).or_else(|| self.first(0))
    }

    fn first(&self, start: usize) -> Option<usize> {
        let from = self.0.iter().enumerate().skip(start / 64);
        from.map(|(n, word)| (n, if n == start / 64 { word >> (start % 64) << (start % 64) } else { *word }))
            .find(|(_, word)| *word != 0)
            .map(|(n, word)| n * 64 + word.trailing_zeros() as usize)
    }

    /// The members that are in it now, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = usize> + use<> {
        let mut rest = *self;
        core::iter::from_fn(move || {
            let (n, word) = rest.0.iter_mut().enumerate().find(|(_, word)| **word != 0)?;
            let bit = word.trailing_zeros() as usize;
            *word &= *word - 1;
            Some(n * 64 + bit)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_behaves_like_a_set(steps in prop::collection::vec((any::<bool>(), 0usize..300), 0..200)) {
            let (mut set, mut model) = (Set::EMPTY, BTreeSet::new());
            for (insert, member) in steps {
                if insert {
                    set.insert(member);
                    model.extend((member < MEMBERS).then_some(member));
                } else {
                    set.remove(member);
                    model.remove(&member);
                }
                prop_assert_eq!(set.contains(member), model.contains(&member));
                let next = model.range(member..).chain(model.iter()).next().copied();
                prop_assert_eq!(set.next(member), next);
            }
            prop_assert_eq!(set.is_empty(), model.is_empty());
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
            let mut more = Set::EMPTY;
            more.insert(255);
            more.insert_all(&set);
            model.insert(255);
            prop_assert_eq!(more.iter().collect::<Vec<_>>(), model.into_iter().collect::<Vec<_>>());
        }
    }
}
