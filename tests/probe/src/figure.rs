//! The lines that the runner reads: `probe: NAME key=value ...`, whole numbers only.

/// Prints a figure. Standard output is flushed with each line, so a guest that dies has said what it knew.
pub fn print(name: &str, values: &[(&str, u64)]) {
    println!("{}", line(name, values));
}

fn line(name: &str, values: &[(&str, u64)]) -> String {
    let mut line = format!("probe: {name}");
    for (key, value) in values {
        line.push_str(&format!(" {key}={value}"));
    }
    line
}

/// Smallest, middle, 99th percentile and largest of the samples, which get sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spread {
    /// Smallest.
    pub min: u64,
    /// The one in the middle.
    pub median: u64,
    /// Of a hundred, all but one are smaller.
    pub p99: u64,
    /// Largest.
    pub max: u64,
}

impl Spread {
    /// Of these samples; all zero for none.
    pub fn of(samples: &mut [u64]) -> Self {
        samples.sort_unstable();
        let at = |index: usize| samples.get(index).copied().unwrap_or(0);
        let n = samples.len();
        Self { min: at(0), median: at(n / 2), p99: at(n * 99 / 100), max: at(n.saturating_sub(1)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_name_and_its_values() {
        assert_eq!(line("cpuid", &[("n", 3), ("median", 476)]), "probe: cpuid n=3 median=476");
        assert_eq!(line("x", &[]), "probe: x");
    }

    #[test]
    fn the_spread_of_samples_and_of_none() {
        let mut samples: Vec<u64> = (0..300).rev().collect();
        assert_eq!(Spread::of(&mut samples), Spread { min: 0, median: 150, p99: 297, max: 299 });
        assert_eq!(Spread::of(&mut []), Spread { min: 0, median: 0, p99: 0, max: 0 });
    }
}
