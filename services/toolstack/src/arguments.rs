//! A command's words: its options, their values, and names.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::command::{Misuse, Usage, misuse};

/// What an option stands for; the same letter means the same in every command.
fn letter(option: &str) -> Option<char> {
    match option {
        "--all" => Some('a'),
        "--wait" => Some('w'),
        "--long" => Some('l'),
        "--verbose" => Some('v'),
        "--batch" => Some('b'),
        "--delay" => Some('d'),
        "--iterations" => Some('i'),
        _ => {
            let mut letters = option.strip_prefix('-')?.chars();
            letters.next().filter(|_| letters.next().is_none())
        }
    }
}

/// Splits options from names and checks both against what the command takes.
pub(crate) struct Arguments<'a> {
    options: String,
    /// Of options that take one.
    values: Vec<(char, &'a str)>,
    pub(crate) names: Vec<&'a str>,
}

impl<'a> Arguments<'a> {
    /// A letter of `allowed` that is followed by a colon takes a value, as with getopt(3).
    pub(crate) fn new(usage: &Usage, words: &[&'a str], allowed: &str) -> Result<Self, Misuse> {
        let mut arguments = Self { options: String::new(), values: Vec::new(), names: Vec::new() };
        let mut words = words.iter().copied();
        while let Some(word) = words.next() {
            if !word.starts_with('-') {
                arguments.names.push(word);
                continue;
            }
            let refused = || misuse(usage, &format!("the option `{word}` is not supported"));
            // `-aw` is `-a -w`; `-d2` and `--delay=2` are `-d 2`.
            let is_group = !word.starts_with("--") && word.len() > 1;
            let (name, mut value) = match word.split_once('=') {
                Some((name, value)) if !is_group => (name, Some(value)),
                _ => (word, None),
            };
            let mut letters = word.char_indices().skip(1).filter(|_| is_group);
            let mut next = if is_group { letters.next() } else { letter(name).map(|letter| (0, letter)) };
            if next.is_none() {
                return Err(refused());
            }
            while let Some((at, letter)) = next {
                let place = allowed.find(letter).filter(|_| letter != ':').ok_or_else(refused)?;
                let takes_value = allowed.get(place + 1..).is_some_and(|rest| rest.starts_with(':'));
                if takes_value {
                    let rest = word.get(at + letter.len_utf8()..).filter(|rest| is_group && !rest.is_empty());
                    let given = value.take().or(rest).or_else(|| words.next());
                    let missing = || misuse(usage, &format!("the option `{word}` needs a value"));
                    arguments.values.push((letter, given.ok_or_else(missing)?));
                    break;
                }
                arguments.options.push(letter);
                next = letters.next();
            }
            if value.is_some() {
                return Err(misuse(usage, &format!("the option `{name}` takes no value")));
            }
        }
        Ok(arguments)
    }

    /// The number that an option was given last, from 1 to `most`.
    pub(crate) fn number(&self, usage: &Usage, option: char, most: u32) -> Result<Option<u32>, Misuse> {
        let Some((_, text)) = self.values.iter().rfind(|(letter, _)| *letter == option) else {
            return Ok(None);
        };
        match text.parse() {
            Ok(number) if (1..=most).contains(&number) => Ok(Some(number)),
            _ => Err(misuse(usage, &format!("-{option} takes a number from 1 to {most}, not `{text}`"))),
        }
    }

    pub(crate) fn has(&self, option: char) -> bool {
        self.options.contains(option)
    }

    /// The only name.
    pub(crate) fn one(&self, usage: &Usage) -> Result<String, Misuse> {
        match self.names.as_slice() {
            [name] => Ok((*name).to_owned()),
            [] => Err(misuse(usage, "an argument is missing")),
            _ => Err(misuse(usage, "there are too many arguments")),
        }
    }

    /// At most one name.
    pub(crate) fn at_most_one(&self, usage: &Usage) -> Result<Option<String>, Misuse> {
        if self.names.is_empty() { Ok(None) } else { self.one(usage).map(Some) }
    }

    pub(crate) fn none(&self, usage: &Usage) -> Result<(), Misuse> {
        if self.names.is_empty() { Ok(()) } else { Err(misuse(usage, "it takes no arguments")) }
    }
}
