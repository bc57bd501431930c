//! The table of figures, and the same as JSON.

use serde::Serialize;

/// A figure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// How much.
    pub value: u64,
    /// Of what.
    pub unit: &'static str,
    /// What others need for it, measured the same way.
    pub peer: Option<String>,
}

impl Row {
    /// A figure without a peer.
    pub fn new(name: impl Into<String>, value: u64, unit: &'static str) -> Self {
        Self { name: name.into(), value, unit, peer: None }
    }

    /// With what others need.
    pub fn beside(mut self, peer: &str) -> Self {
        self.peer = Some(peer.to_owned()).filter(|peer| !peer.is_empty());
        self
    }
}

/// The table for people; rows whose unit changes begin a new block.
pub fn table(rows: &[Row]) -> String {
    let mut text = String::new();
    let mut unit = "";
    for row in rows {
        if row.unit != unit {
            unit = row.unit;
            text.push_str(&format!("\n{:>14}\n", unit));
        }
        let peer = row.peer.as_deref().map(|peer| format!("  [{peer}]")).unwrap_or_default();
        text.push_str(&format!("{:>14}  {}{peer}\n", row.value, row.name));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_a_unit_once() {
        let rows = [
            Row::new("a", 1, "bytes"),
            Row::new("b", 20, "bytes").beside("NOVA 30"),
            Row::new("c", 3, "lines").beside(""),
        ];
        let expected = "\n         bytes\n             1  a\n            20  b  [NOVA 30]\n\
                        \n         lines\n             3  c\n";
        assert_eq!(table(&rows), expected);
    }
}
