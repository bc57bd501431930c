//! The known word that is nearest to a misspelt one (edit distance).

use alloc::vec::Vec;

/// The candidate that needs the fewest single-character edits to become `word`, if it is near enough to
/// be what was meant: at most a third of the word's letters differ, at least one may.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > 64 {
        return None;
    }
    let word: Vec<char> = word.chars().collect();
    let allowed = if word.len() < 4 { 1 } else { (word.len() / 3).max(2) };
    candidates
        .into_iter()
        .map(|candidate| (distance(&word, candidate), candidate))
        .filter(|&(edits, _)| edits <= allowed)
        .min_by_key(|&(edits, _)| edits)
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions, replacements and swaps of neighbours between two words (optimal string alignment).
fn distance(a: &[char], b: &str) -> usize {
    let at = |row: &[usize], index: usize| row.get(index).copied().unwrap_or(usize::MAX / 2);
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=a.len()).collect();
    let mut last_b = None;
    for b in b.chars() {
        let mut row = alloc::vec![at(&above, 0) + 1];
        let mut last_a = None;
        for (i, &a) in a.iter().enumerate() {
            let mut best =
                (at(&above, i) + usize::from(a != b)).min(at(&above, i + 1) + 1).min(at(&row, i) + 1);
            if last_a == Some(b) && last_b == Some(a) {
                best = best.min(at(&before, i.saturating_sub(1)) + 1);
            }
            row.push(best);
            last_a = Some(a);
        }
        last_b = Some(b);
        before = core::mem::replace(&mut above, row);
    }
    at(&above, a.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_edits() {
        let edits = |a: &str, b: &str| distance(&a.chars().collect::<Vec<_>>(), b);
        assert_eq!(edits("kitten", "sitting"), 3);
        assert_eq!(edits("", "abc"), 3);
        assert_eq!(edits("abc", ""), 3);
        assert_eq!(edits("same", "same"), 0);
        assert_eq!(edits("wbe", "web"), 1);
        assert_eq!(edits("memroy", "memory"), 1);
        assert_eq!(edits("ba", "abc"), 2);
    }

    #[test]
    fn suggests_only_what_is_near() {
        let keys = ["memory", "kernel", "vcpus"];
        assert_eq!(nearest("memroy", keys), Some("memory"));
        assert_eq!(nearest("vcpu", keys), Some("vcpus"));
        assert_eq!(nearest("firewall", keys), None);
    }
}
