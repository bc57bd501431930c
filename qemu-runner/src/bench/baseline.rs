//! Comparison with an earlier run.

use std::path::Path;

use crate::Error;
use crate::bench::report::{Row, grouped};

/// Per cent that a figure may be worse.
pub const TOLERANCE: u64 = 3;

/// How a figure changed.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// The figure's name.
    pub name: String,
    /// Then, if it was measured then.
    pub before: Option<u64>,
    /// Now.
    pub now: u64,
    /// Per cent by which the value grew.
    pub percent: f64,
    /// Worse by more than [`TOLERANCE`].
    pub is_worse: bool,
}

/// Reads the rows of an earlier run.
///
/// # Errors
/// The file cannot be read or was not written by the bench.
pub fn read(path: &Path) -> Result<Vec<Row>, Error> {
    let text = std::fs::read_to_string(path).map_err(Error::path(path))?;
    serde_json::from_str(&text)
        .map_err(|e| Error::Usage(format!("{}: no figures of `bench --json`: {e}", path.display())))
}

/// Compares row by row; what was not measured now is left out.
pub fn compare(before: &[Row], now: &[Row]) -> Vec<Change> {
    now.iter().map(|row| change(before.iter().find(|other| other.name == row.name), row)).collect()
}

fn change(before: Option<&Row>, row: &Row) -> Change {
    let (before, now) = (before.map(|row| row.value), row.value);
    let grown = before.map_or(0.0, |before| match (before, now) {
        (0, 0) => 0.0,
        (0, _) => f64::INFINITY,
        _ => (now as f64 / before as f64 - 1.0) * 100.0,
    });
    let is_worse = before.is_some_and(|before| match row.higher_is_better {
        true => u128::from(now) * 100 < u128::from(before) * u128::from(100 - TOLERANCE),
        false => u128::from(now) * 100 > u128::from(before) * u128::from(100 + TOLERANCE),
    });
    // More code is no regression by itself, and a disk on the host answers at the host's time.
    let is_worse = is_worse && row.group != "lines" && !row.name.starts_with("virtio-");
    Change { name: row.name.clone(), before, now, percent: grown, is_worse }
}

/// The changes for people.
pub fn table(changes: &[Change]) -> String {
    let mut text = format!("\n{:<26}{:>15}{:>15}{:>9}\n", "against the baseline", "before", "now", "change");
    for change in changes {
        let before = change.before.map_or("-".to_owned(), grouped);
        let percent = change.before.map_or("new".to_owned(), |_| format!("{:+.1} %", change.percent));
        let mark = if change.is_worse { "  WORSE" } else { "" };
        text.push_str(&format!(
            "  {:<24}{before:>15}{:>15}{percent:>9}{mark}\n",
            change.name,
            grouped(change.now)
        ));
    }
    text
}

/// Fails if a figure is worse.
///
/// # Errors
/// [`Error::Worse`] with the names.
pub fn judge(changes: &[Change]) -> Result<(), Error> {
    let worse: Vec<String> = changes
        .iter()
        .filter(|change| change.is_worse)
        .map(|change| format!("{} ({:+.1} %)", change.name, change.percent))
        .collect();
    if worse.is_empty() {
        return Ok(());
    }
    Err(Error::Worse(format!("worse than the baseline by more than {TOLERANCE} %: {}", worse.join(", "))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::Figure;

    fn row(name: &'static str, value: u64) -> Row {
        Row::of(Figure::new(name, value)).unwrap()
    }

    #[test]
    fn worse_depends_on_the_direction_and_the_tolerance() {
        let before = [
            row("round-trip", 1000),
            row("tcp-in", 1000),
            row("lines-vmm", 1000),
            row("virtio-read-1m-qd1", 9),
        ];
        let is_worse = |now: &[Row]| -> Vec<bool> {
            compare(&before, now).iter().map(|change| change.is_worse).collect()
        };
        assert_eq!(is_worse(&[row("round-trip", 1030), row("tcp-in", 970)]), [false, false]);
        assert_eq!(is_worse(&[row("round-trip", 1031), row("tcp-in", 969)]), [true, true]);
        assert_eq!(is_worse(&[row("round-trip", 500), row("tcp-in", 2000)]), [false, false]);
        assert_eq!(
            is_worse(&[row("lines-vmm", 2000), row("virtio-read-1m-qd1", 10), row("poll", 5)]),
            [false; 3]
        );
    }

    #[test]
    fn the_failure_names_the_rows() {
        let changes =
            compare(&[row("round-trip", 100), row("poll", 10)], &[row("round-trip", 150), row("poll", 10)]);
        let Err(Error::Worse(text)) = judge(&changes) else { panic!("accepted") };
        assert!(text.contains("round-trip (+50.0 %)") && !text.contains("poll"), "{text}");
        assert!(table(&changes).contains("WORSE"));
        assert!(judge(&compare(&[], &[row("poll", 7)])).is_ok());
    }

    #[test]
    fn a_zero_that_grows_is_worse() {
        assert!(compare(&[row("poll", 0)], &[row("poll", 1)])[0].is_worse);
        assert!(!compare(&[row("poll", 0)], &[row("poll", 0)])[0].is_worse);
    }

    #[test]
    fn a_file_that_is_no_baseline_is_refused_by_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "{}").unwrap();
        assert!(read(file.path()).unwrap_err().to_string().contains("no figures"));
    }
}
