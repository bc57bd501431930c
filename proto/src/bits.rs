//! Sets that are kept as the bits of a word: signals, devices, requests.

/// The numbers of the bits that are set, the lowest first.
#[inline]
pub fn bits(word: impl Into<u64>) -> impl Iterator<Item = u32> {
    let mut rest: u64 = word.into();
    core::iter::from_fn(move || {
        let bit = rest.trailing_zeros();
        // Without a bit left there is nothing below the lowest one either.
        rest &= rest.checked_sub(1)?;
        Some(bit)
    })
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::bits;
    use std::vec::Vec;

    #[test]
    fn the_numbers_come_in_order_and_there_are_as_many_as_bits() {
        assert_eq!(bits(0u64).count(), 0);
        assert_eq!(bits(0b1010_0001u32).collect::<Vec<_>>(), [0, 5, 7]);
        assert_eq!(bits(1u64 << 63 | 1).collect::<Vec<_>>(), [0, 63]);
        assert_eq!(bits(u64::MAX).collect::<Vec<_>>(), (0..64).collect::<Vec<_>>());
    }
}
