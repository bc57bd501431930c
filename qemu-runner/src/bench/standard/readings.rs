//! What the probe printed, by name.

use std::collections::BTreeMap;

/// What the probe printed: for each name the readings, one per repetition.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Readings(BTreeMap<String, Vec<Reading>>);

/// The values of one line.
pub type Reading = BTreeMap<String, u64>;

impl Readings {
    /// Of a guest's console: lines `probe: NAME key=value ...` count, in any order and with others between them.
    pub fn parse(console: &str) -> Self {
        let mut readings = Self::default();
        for line in console.lines() {
            let Some(rest) = line.trim().strip_prefix("probe: ") else { continue };
            let mut words = rest.split(' ');
            let Some(name) = words.next() else { continue };
            let values = words.map(|word| {
                let (key, value) = word.split_once('=')?;
                Some((key.to_owned(), value.parse().ok()?))
            });
            // A line that another message cut in two is none.
            if let Some(reading) = values.collect::<Option<Reading>>() {
                readings.0.entry(name.to_owned()).or_default().push(reading);
            }
        }
        readings
    }

    /// Adds later readings.
    pub fn extend(&mut self, more: Self) {
        for (name, readings) in more.0 {
            self.0.entry(name).or_default().extend(readings);
        }
    }

    /// The median of a value of a name, as `figure` derives it; `None`: a repetition lacks it, or there is none.
    pub fn median(&self, name: &str, figure: impl Fn(&Reading) -> Option<u64>) -> Option<u64> {
        let mut values = self.0.get(name)?.iter().map(figure).collect::<Option<Vec<u64>>>()?;
        values.sort_unstable();
        values.get(values.len() / 2).copied()
    }

    /// A value of the first line of this name.
    pub fn first(&self, name: &str, key: &str) -> Option<u64> {
        self.0.get(name)?.first()?.get(key).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = "[    0.1] x\nprobe: now monotonic=7 tsc=9\nprobe: cpuid n=3 median=476\r\n\
        probe: cpuid n=3 median=999\nprobe: cpuid n=3 median=4[  1.0] oops\nprobe: cpuid n=3 median=480\n";

    #[test]
    fn the_median_is_over_the_repetitions_that_can_be_read() {
        let readings = Readings::parse(CONSOLE);
        let median = |key: &'static str| readings.median("cpuid", move |reading| reading.get(key).copied());
        assert_eq!(median("median"), Some(480));
        assert_eq!(median("mean"), None);
        assert_eq!(readings.median("vmmcall", |_| Some(1)), None);
        assert_eq!(readings.first("now", "tsc"), Some(9));
        let mut more = readings.clone();
        more.extend(Readings::parse("probe: cpuid median=999"));
        assert_eq!(more.median("cpuid", |reading| reading.get("median").copied()), Some(999));
    }
}
