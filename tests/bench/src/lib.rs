//! Evaluation of the samples that the bench domains take; host-tested.
//!
//! Under `-icount` a path takes the same number of instructions each time it is undisturbed, so the most
//! frequent value is the path, and how often it occurs says how trustworthy it is.
#![no_std]

/// Samples of a path.
pub const SAMPLES: usize = 64;

/// The most frequent sample, the smallest of several, and how often it occurs.
pub fn mode(samples: &[u64]) -> (u64, usize) {
    let count = |value: u64| samples.iter().filter(|other| **other == value).count();
    samples.iter().fold((0, 0), |(best, times), &value| {
        let here = count(value);
        if here > times || here == times && value < best { (value, here) } else { (best, times) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_frequent_sample_wins_and_the_smaller_of_two() {
        assert_eq!(mode(&[900, 5, 7, 5, 7, 5]), (5, 3));
        assert_eq!(mode(&[9, 4, 9, 4]), (4, 2));
        assert_eq!(mode(&[]), (0, 0));
    }
}
