//! The grammar of an xl.cfg file: settings `KEY = VALUE` and `KEY += VALUE`.
//!
//! Follows Xen's grammar (tools/libs/util/libxlu_cfg_y.y): a value is a string, a number or a list of
//! values; new lines may stand inside of lists; settings end with a new line, `;` or the file. After a
//! mistake the parser goes on with the next setting, so that one run shows all of them.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::lex::{Kind, Lexer, Token};
use super::source::{Diagnostic, Source, Span, Spanned};

/// Lists inside of lists; deeper ones are refused, so that no file exhausts the stack.
const DEPTH_MAX: usize = 8;

/// A string or a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Atom {
    pub(super) text: String,
    pub(super) span: Span,
    /// Where `text` starts in the file, if it stands there letter by letter.
    verbatim_at: Option<usize>,
    /// Made with `+=`.
    pub(super) is_joined: bool,
}

impl Atom {
    /// The place of a part of `text` (given as a slice of it).
    pub(super) fn place(&self, part: &str) -> Span {
        let offset = (part.as_ptr() as usize).wrapping_sub(self.text.as_ptr() as usize);
        match self.verbatim_at {
            Some(at) if offset <= self.text.len() && part.len() <= self.text.len() - offset => {
                Span { start: at + offset, end: at + offset + part.len() }
            }
            _ => self.span,
        }
    }
}

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Atom(Atom),
    List(Vec<Value>, Span),
}

impl Value {
    pub(super) fn span(&self) -> Span {
        match self {
            Self::Atom(atom) => atom.span,
            Self::List(_, span) => *span,
        }
    }
}

/// A setting, after all of its assignments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) key: Spanned<String>,
    pub(super) value: Value,
}

/// Reads a file's settings, each key once, in the order of their first assignments.
pub(super) fn settings(source: Source<'_>) -> (Vec<Setting>, Vec<Diagnostic>) {
    let mut lexer = Lexer::new(source);
    let token = lexer.next();
    let mut parser = Parser { source, lexer, token, settings: Vec::new(), diagnostics: Vec::new() };
    parser.file();
    let mut diagnostics = parser.diagnostics;
    diagnostics.append(&mut parser.lexer.diagnostics);
    (parser.settings, diagnostics)
}

/// The message exists; go on with the next setting.
struct Failed;

struct Parser<'a> {
    source: Source<'a>,
    lexer: Lexer<'a>,
    token: Token,
    settings: Vec<Setting>,
    diagnostics: Vec<Diagnostic>,
}

impl Parser<'_> {
    fn bump(&mut self) -> Token {
        let next = self.lexer.next();
        core::mem::replace(&mut self.token, next)
    }

    fn word(&self, span: Span) -> &str {
        self.source.text.get(span.start..span.end).unwrap_or("")
    }

    /// Reports the current word, unless the lexer has.
    fn fail<T>(&mut self, message: impl Into<String>) -> Result<T, Failed> {
        if self.token.kind != Kind::Bad {
            let message = self.source.error(self.token.span, message);
            self.diagnostics.push(message);
        }
        Err(Failed)
    }

    fn file(&mut self) {
        loop {
            let result = match self.token.kind {
                Kind::End => return,
                Kind::Newline | Kind::Semicolon => {
                    self.bump();
                    Ok(())
                }
                Kind::Ident => self.assignment(),
                _ => self.fail("a setting starts with its key, for example: memory = 512"),
            };
            if result.is_err() {
                self.recover();
            }
        }
    }

    /// Skips to a line that starts a setting.
    fn recover(&mut self) {
        loop {
            match self.token.kind {
                Kind::End => return,
                // Only `key =` starts a setting; another word may be text that lacks its quotes.
                Kind::Ident if self.is_line_start() => {
                    let after = self.source.text.get(self.token.span.end..).unwrap_or("");
                    let after = after.trim_start_matches([' ', '\t']);
                    if after.starts_with('=') || after.starts_with("+=") {
                        return;
                    }
                }
                _ => {}
            }
            self.bump();
        }
    }

    /// Nothing but blanks stands before the current word on its line.
    fn is_line_start(&self) -> bool {
        let before = self.source.text.get(..self.token.span.start).unwrap_or("");
        let before = before.trim_end_matches([' ', '\t']);
        before.is_empty() || before.ends_with('\n')
    }

    fn assignment(&mut self) -> Result<(), Failed> {
        let token = self.bump();
        let key = Spanned { value: self.word(token.span).to_owned(), span: token.span };
        let is_addition = match self.token.kind {
            Kind::Equals => false,
            Kind::PlusEquals => true,
            _ => return self.fail(format!("after the key `{0}` comes =, for example: {0} = 1", key.value)),
        };
        self.bump();
        let value = self.value(0)?;
        match self.token.kind {
            Kind::Newline | Kind::Semicolon | Kind::End => {}
            Kind::Text(_) | Kind::Number | Kind::Open => {
                return self.fail(format!(
                    "`{0}` has one value; for several write a list: {0} = [ 'one', 'two' ]",
                    key.value
                ));
            }
            _ => return self.fail("a setting ends here; put the next one on a new line or after ;"),
        }
        self.store(key, value, is_addition);
        Ok(())
    }

    fn value(&mut self, depth: usize) -> Result<Value, Failed> {
        match &self.token.kind {
            Kind::Text(text) => {
                let text = text.clone();
                let span = self.bump().span;
                let inner = Span { start: span.start + 1, end: span.end.saturating_sub(1) };
                let verbatim_at = (self.word(inner) == text).then_some(inner.start);
                Ok(Value::Atom(Atom { text, span, verbatim_at, is_joined: false }))
            }
            Kind::Number => {
                let span = self.bump().span;
                let text = self.word(span).to_owned();
                Ok(Value::Atom(Atom { text, span, verbatim_at: Some(span.start), is_joined: false }))
            }
            Kind::Open => self.list(depth),
            Kind::Ident => {
                let word = self.word(self.token.span).to_owned();
                self.fail(format!("text stands in quotes: \"{word}\""))
            }
            Kind::Newline | Kind::End => self.fail("the value is missing; it starts on the same line as ="),
            _ => self.fail("a value is a number, text in quotes, or a list in [ ]"),
        }
    }

    fn list(&mut self, depth: usize) -> Result<Value, Failed> {
        if depth >= DEPTH_MAX {
            return self.fail(format!("lists are nested at most {DEPTH_MAX} deep"));
        }
        let start = self.bump().span.start;
        let mut values = Vec::new();
        loop {
            self.skip_newlines();
            if self.token.kind == Kind::Close {
                break;
            }
            if self.token.kind == Kind::End || self.token.kind == Kind::Equals {
                return self.unclosed(start);
            }
            values.push(self.value(depth + 1)?);
            self.skip_newlines();
            match self.token.kind {
                Kind::Comma => {
                    self.bump();
                }
                Kind::Close => break,
                Kind::Text(_) | Kind::Number | Kind::Open => {
                    return self.fail("a comma is missing between this value and the one before it");
                }
                _ => return self.unclosed(start),
            }
        }
        let end = self.bump().span.end;
        Ok(Value::List(values, Span { start, end }))
    }

    fn unclosed<T>(&mut self, start: usize) -> Result<T, Failed> {
        let line = self.source.line_of(Span { start, end: start });
        self.fail(format!("the list that starts in line {line} is not closed; write ] here or before"))
    }

    fn skip_newlines(&mut self) {
        while self.token.kind == Kind::Newline {
            self.bump();
        }
    }

    /// Adds an assignment to the settings: `=` replaces, `+=` appends to a list or to text.
    fn store(&mut self, key: Spanned<String>, value: Value, is_addition: bool) {
        let Some(old) = self.settings.iter_mut().find(|old| old.key == key) else {
            self.settings.push(Setting { key, value });
            return;
        };
        if !is_addition {
            let line = self.source.line_of(old.key.span);
            let message = format!(
                "`{}` is set a second time; this value counts, not the one of line {line}",
                key.value
            );
            self.diagnostics.push(self.source.warning(key.span, message));
            *old = Setting { key, value };
            return;
        }
        match (&mut old.value, value) {
            (Value::List(values, _), Value::List(more, _)) => values.extend(more),
            (Value::Atom(atom), Value::Atom(more)) => {
                atom.text.push_str(&more.text);
                atom.span = more.span;
                atom.verbatim_at = None;
                atom.is_joined = true;
            }
            (_, value) => {
                let message = format!(
                    "+= cannot join a list and a single value; `{}` was another kind of value before",
                    key.value
                );
                self.diagnostics.push(self.source.error(value.span(), message));
            }
        }
    }
}
