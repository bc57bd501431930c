//! Places in a configuration file, and messages that point at them.
//!
//! A message is one sentence that says what is wrong and how to mend it, with file, line and column in
//! the form that editors understand, the line itself and a caret.

use alloc::borrow::ToOwned;
use alloc::string::String;
use core::fmt;

/// A range of bytes of the file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: usize,
    /// Byte after the last one.
    pub end: usize,
}

/// A value and where it stands. Two are equal when their values are.
#[derive(Debug, Clone, Default)]
pub struct Spanned<T> {
    /// The value.
    pub value: T,
    /// Where it stands.
    pub span: Span,
}

impl<T: PartialEq> PartialEq for Spanned<T> {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl<T: Eq> Eq for Spanned<T> {}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The guest cannot be created.
    Error,
    /// The guest can be created; something in its file has no effect or another one than it seems.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

/// A message about a place in a file. `Display` prints it with the line and a caret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Error or warning.
    pub severity: Severity,
    /// The file's name.
    pub file: String,
    /// Line, 1 for the first.
    pub line: usize,
    /// Column in characters, 1 for the first.
    pub column: usize,
    /// Characters that the caret marks, at least 1.
    pub width: usize,
    /// The line, control characters replaced.
    pub source: String,
    /// The sentence.
    pub message: String,
}

impl Diagnostic {
    /// The message on one line, `file:line:column: error: sentence`.
    pub fn sentence(&self) -> impl fmt::Display + '_ {
        struct Sentence<'a>(&'a Diagnostic);
        impl fmt::Display for Sentence<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let Diagnostic { severity, file, line, column, message, .. } = self.0;
                write!(f, "{file}:{line}:{column}: {severity}: {message}")
            }
        }
        Sentence(self)
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.sentence())?;
        writeln!(f, "{:>5} | {}", self.line, self.source)?;
        write!(f, "      | ")?;
        for c in self.source.chars().chain(core::iter::repeat(' ')).take(self.column.saturating_sub(1)) {
            // A tab stays a tab so that the caret stands below what it marks.
            write!(f, "{}", if c == '\t' { '\t' } else { ' ' })?;
        }
        for _ in 0..self.width {
            f.write_str("^")?;
        }
        Ok(())
    }
}

/// A configuration file: its name and its text.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// Name, for messages.
    pub file: &'a str,
    /// Text.
    pub text: &'a str,
}

impl<'a> Source<'a> {
    /// An error at a place.
    pub fn error(&self, span: Span, message: impl Into<String>) -> Diagnostic {
        self.diagnostic(Severity::Error, span, message.into())
    }

    /// A warning at a place.
    pub fn warning(&self, span: Span, message: impl Into<String>) -> Diagnostic {
        self.diagnostic(Severity::Warning, span, message.into())
    }

    /// The line number of a place, 1 for the first.
    pub fn line_of(&self, span: Span) -> usize {
        self.before(span.start).matches('\n').count() + 1
    }

    /// The text before a position, which is moved back to a character's first byte.
    fn before(&self, position: usize) -> &'a str {
        let mut end = position.min(self.text.len());
        while !self.text.is_char_boundary(end) {
            end -= 1;
        }
        self.text.get(..end).unwrap_or("")
    }

    fn diagnostic(&self, severity: Severity, span: Span, message: String) -> Diagnostic {
        let before = self.before(span.start);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = self.text.get(line_start..).unwrap_or("").split('\n').next().unwrap_or("");
        let line_end = line_start + line.len();
        let marked = self.before(span.end.min(line_end)).get(before.len()..).unwrap_or("");
        Diagnostic {
            severity,
            file: self.file.to_owned(),
            line: self.line_of(span),
            column: before.get(line_start..).unwrap_or("").chars().count() + 1,
            width: marked.chars().count().max(1),
            source: line
                .trim_end_matches('\r')
                .chars()
                .map(|c| if c.is_control() && c != '\t' { '?' } else { c })
                .collect(),
            message,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn the_caret_stands_below_what_it_marks() {
        let source = Source { file: "web.cfg", text: "name = 'é'\n\tmemory = lots\n" };
        let start = source.text.find("lots").unwrap();
        let message = source.error(Span { start, end: start + 4 }, "put a number here").to_string();
        assert_eq!(
            message,
            "web.cfg:2:11: error: put a number here\n    2 | \tmemory = lots\n      | \t         ^^^^"
        );
    }

    #[test]
    fn columns_count_characters() {
        let source = Source { file: "f", text: "a = 'éé' x" };
        let start = source.text.find('x').unwrap();
        assert_eq!(source.error(Span { start, end: start + 1 }, "m").column, 10);
    }

    #[test]
    fn a_place_past_the_end_is_the_end() {
        let source = Source { file: "f", text: "a = 1" };
        let message = source.warning(Span { start: 99, end: 100 }, "m");
        assert_eq!((message.line, message.column, message.width), (1, 6, 1));
    }
}
