//! The table of figures, and the same as JSON.

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::bench::goals::{self, Entry};

/// A measurement: a name of [`goals::table`] and how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Figure {
    /// [`Entry::name`].
    pub name: &'static str,
    /// In [`Entry::unit`].
    pub value: u64,
}

impl Figure {
    /// This much of that.
    pub fn new(name: &'static str, value: u64) -> Self {
        Self { name, value }
    }
}

/// A figure with what it is held against, as it is written to a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Unique.
    pub name: String,
    /// How much.
    pub value: u64,
    /// Of what.
    pub unit: String,
    /// What the design aims at.
    pub goal: Option<u64>,
    /// What the best peer needs, counted the same way.
    pub peer: Option<u64>,
    /// Whether more is better.
    pub higher_is_better: bool,
    /// What the test of the promises accepts at worst.
    #[serde(default)]
    pub promise: Option<u64>,
    /// Who the best peer is.
    #[serde(default)]
    pub peer_name: Option<String>,
    /// Name of its group.
    #[serde(default)]
    pub group: String,
    /// What was measured.
    #[serde(default)]
    pub what: String,
}

impl Row {
    /// A measurement beside what is known about it.
    ///
    /// # Errors
    /// Nothing is known about it: a mistake in the bench.
    pub fn of(figure: Figure) -> Result<Self, Error> {
        let entry = goals::entry(figure.name)
            .ok_or_else(|| Error::Died(format!("{} was measured and is not in the table", figure.name)))?;
        Ok(Self {
            name: entry.name.into(),
            value: figure.value,
            unit: entry.unit.into(),
            goal: entry.goal,
            peer: entry.peer.map(|(value, _)| value),
            higher_is_better: entry.higher_is_better,
            promise: entry.promise,
            peer_name: entry.peer.map(|(_, name)| name.into()),
            group: entry.group.name().into(),
            what: entry.what.into(),
        })
    }

    /// Whether the goal is met, if there is one.
    pub fn meets_goal(&self) -> Option<bool> {
        self.goal.map(|goal| self.is_within(goal))
    }

    /// Whether the promise is broken.
    pub fn breaks_promise(&self) -> bool {
        self.promise.is_some_and(|limit| !self.is_within(limit))
    }

    fn is_within(&self, limit: u64) -> bool {
        if self.higher_is_better { self.value >= limit } else { self.value <= limit }
    }
}

/// Sorts rows as the table of figures has them.
pub fn sort(rows: &mut [Row]) {
    let place = |row: &Row| goals::table().position(|entry: &Entry| entry.name == row.name);
    rows.sort_by_key(place);
}

/// A number with a space between groups of three digits.
pub fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (index, digit) in digits.char_indices() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// The table for people.
pub fn table(rows: &[Row]) -> String {
    let mut text = String::new();
    let mut group = "";
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
    for row in rows {
        if row.group != group {
            group = &row.group;
            text.push_str(&format!(
                "\n{group:<width$}{:>17} {:<13}{:>27}{:>7}{:>15}\n",
                "ours", "", "best peer", "ratio", "goal"
            ));
        }
        let peer = match (row.peer, &row.peer_name) {
            (Some(peer), Some(name)) => format!("{name} {}", grouped(peer)),
            _ => String::new(),
        };
        let peer_value = row.peer.filter(|peer| *peer > 0);
        let ratio = peer_value.map_or(String::new(), |peer| format!("{:.2}", row.value as f64 / peer as f64));
        let goal = row.goal.map_or(String::new(), grouped);
        let met = match row.meets_goal() {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "",
        };
        let line = format!(
            "  {:<width$}{:>15} {:<13}{peer:>27}{ratio:>7}{goal:>15}  {met:<7} {}",
            row.name,
            grouped(row.value),
            row.unit,
            row.what
        );
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_whether_goal_and_promise_hold() {
        let row = Row::of(Figure::new("blk-randread-4k-qd32", 20_000)).unwrap();
        assert_eq!((row.goal, row.meets_goal()), (Some(11_000), Some(false)));
        assert!(!row.breaks_promise());
        assert!(Row::of(Figure::new("guest-cpuid", 3278)).unwrap().breaks_promise());
        let rate = Row::of(Figure::new("tcp-in", 8000)).unwrap();
        assert_eq!((rate.higher_is_better, rate.meets_goal()), (true, Some(true)));
        assert!(Row::of(Figure { name: "nothing", value: 1 }).is_err());
    }

    #[test]
    fn the_file_has_what_scripts_look_for() {
        let row = Row::of(Figure::new("tcp-in", 8000)).unwrap();
        let value = serde_json::to_value(&row).unwrap();
        for key in ["name", "value", "unit", "goal", "peer", "higher_is_better"] {
            assert!(value.get(key).is_some(), "{key}");
        }
        assert_eq!(serde_json::from_value::<Row>(value).unwrap(), row);
    }

    #[test]
    fn the_table_has_a_line_per_figure_below_its_group() {
        let rows = ["null-call", "guest-cpuid"].map(|name| Row::of(Figure::new(name, 1_040)).unwrap());
        let text = table(&rows);
        let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
        assert_eq!(lines.len(), 4);
        assert!(lines[1].contains("1 040") && lines[1].contains("NOVA 51") && lines[1].contains("MISSED"));
        assert!(lines[1].contains("20.39"), "{text}");
    }

    #[test]
    fn digits_are_grouped_by_three() {
        assert_eq!([0, 999, 1000, 1_425_000_000].map(grouped), ["0", "999", "1 000", "1 425 000 000"]);
    }

    #[test]
    fn rows_are_sorted_as_the_table_is() {
        let mut rows = ["lines-vmm", "poll", "null-call"].map(|n| Row::of(Figure::new(n, 1)).unwrap());
        sort(&mut rows);
        assert_eq!(rows.map(|row| row.name), ["null-call", "poll", "lines-vmm"]);
    }
}
