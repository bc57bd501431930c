//! Which figures are wanted.

use std::collections::BTreeSet;

use crate::Error;
use crate::bench::goals::{self, Entry, Group, table};

/// Everything that has a promise and does not take long: what the test of the promises runs.
pub const QUICK: &str = "quick";

/// The rows that were asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    names: BTreeSet<&'static str>,
}

impl Selection {
    /// Names of groups, of rows, or [`QUICK`]; none: all groups but `growth`, which takes many machines.
    ///
    /// # Errors
    /// A name that is none of them; the message lists them all.
    pub fn parse<S: AsRef<str>>(words: &[S]) -> Result<Self, Error> {
        let mut names = BTreeSet::new();
        let mut add = |wanted: &dyn Fn(&Entry) -> bool| {
            let before = names.len();
            names.extend(table().filter(|entry| wanted(entry)).map(|entry| entry.name));
            names.len() > before || table().any(wanted)
        };
        if words.is_empty() {
            add(&|entry| entry.group != Group::Growth);
        }
        for word in words.iter().map(AsRef::as_ref) {
            let is_known = match word {
                QUICK => add(&|entry| entry.promise.is_some()),
                _ => add(&|entry| entry.name == word || entry.group.name() == word),
            };
            if !is_known {
                return Err(Error::Usage(unknown(word)));
            }
        }
        Ok(Self { names })
    }

    /// The rows.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.names.iter().copied()
    }

    /// Whether this row is wanted.
    pub fn has(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// Whether any row of the group is.
    pub fn has_group(&self, group: Group) -> bool {
        self.names.iter().any(|name| goals::entry(name).is_some_and(|entry| entry.group == group))
    }

    /// Whether any row whose name ends so is.
    pub fn has_end(&self, end: &str) -> bool {
        self.names.iter().any(|name| name.ends_with(end))
    }

    /// Whether any of the groups is.
    pub fn has_any(&self, groups: &[Group]) -> bool {
        groups.iter().any(|group| self.has_group(*group))
    }
}

fn unknown(word: &str) -> String {
    let mut text = format!(
        "`{word}` is neither a group nor a figure of the bench. Groups and their figures (`{QUICK}`: those with a \
         promise; nothing: all but growth):"
    );
    for group in Group::ALL {
        let names: Vec<&str> = table().filter(|e| e.group == group).map(|e| e.name).collect();
        text.push_str(&format!("\n  {:<8}{}", group.name(), names.join(" ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_rows_and_quick_are_understood() {
        let all = Selection::parse::<&str>(&[]).unwrap();
        assert!(all.has("round-trip") && all.has("lines-vmm") && !all.has_group(Group::Growth));
        let some = Selection::parse(&["paths", "guest-cpuid"]).unwrap();
        assert!(some.has("null-call") && some.has("guest-cpuid") && !some.has("guest-vmmcall"));
        assert!(some.has_any(&[Group::Exits, Group::Blk]) && !some.has_group(Group::Memory));
        let quick = Selection::parse(&[QUICK]).unwrap();
        assert!(quick.has("memory-system") && !quick.has("lines-vmm"));
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_names() {
        let Err(Error::Usage(text)) = Selection::parse(&["paths", "pats"]) else { panic!("accepted") };
        assert!(text.contains("`pats`") && text.contains("  blk ") && text.contains("round-trip"), "{text}");
    }
}
