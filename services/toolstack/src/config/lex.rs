//! The words of an xl.cfg file.
//!
//! Follows Xen's scanner (tools/libs/util/libxlu_cfg_l.l): keys in lower case, strings in single or
//! double quotes on one line, numbers, comments from `#` to the end of the line. Its escapes `\x41` and
//! `\101` are read as their names say (Xen's own reading of them is off by one digit).

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::source::{Diagnostic, Source, Span};

/// What a word is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// A key.
    Ident,
    /// A quoted string, without its quotes.
    Text(String),
    /// A number, as written.
    Number,
    Comma,
    Open,
    Close,
    Equals,
    PlusEquals,
    Semicolon,
    Newline,
    End,
    /// Not a word; a message about it exists.
    Bad,
}

/// A word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) span: Span,
}

/// Cuts a file into words.
pub(super) struct Lexer<'a> {
    source: Source<'a>,
    position: usize,
    pub(super) diagnostics: Vec<Diagnostic>,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(source: Source<'a>) -> Self {
        Self { source, position: 0, diagnostics: Vec::new() }
    }

    fn rest(&self) -> &'a str {
        self.source.text.get(self.position..).unwrap_or("")
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn bump(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.position += c.len_utf8();
        Some(c)
    }

    fn take_while(&mut self, mut accept: impl FnMut(char) -> bool) {
        while self.peek().is_some_and(&mut accept) {
            self.bump();
        }
    }

    /// The next word; [`Kind::End`] for ever at the end.
    pub(super) fn next(&mut self) -> Token {
        self.take_while(|c| c == ' ' || c == '\t');
        let start = self.position;
        let kind = match self.bump() {
            None => Kind::End,
            Some('\n') => Kind::Newline,
            Some('#') => {
                self.take_while(|c| c != '\n');
                if self.bump().is_some() { Kind::Newline } else { Kind::End }
            }
            Some(',') => Kind::Comma,
            Some('[') => Kind::Open,
            Some(']') => Kind::Close,
            Some('=') => Kind::Equals,
            Some(';') => Kind::Semicolon,
            Some('+') if self.peek() == Some('=') => {
                self.bump();
                Kind::PlusEquals
            }
            Some('a'..='z') => {
                self.take_while(|c| matches!(c, 'a'..='z' | '0'..='9' | '_' | '.'));
                Kind::Ident
            }
            Some('0'..='9') => {
                self.take_while(|c| matches!(c, '0'..='9' | 'a'..='f' | 'x'));
                Kind::Number
            }
            Some(quote @ ('\'' | '"')) => self.text(start, quote),
            Some(c) => self.bad(start, c),
        };
        Token { kind, span: Span { start, end: self.position } }
    }

    /// The rest of a string after its opening quote.
    fn text(&mut self, start: usize, quote: char) -> Kind {
        let mut bytes = Vec::new();
        let mut is_good = true;
        loop {
            let at = self.position;
            match self.peek() {
                None | Some('\n') => {
                    let span = Span { start, end: self.position };
                    let message = format!("this string is not closed; end it with {quote} on the same line");
                    self.diagnostics.push(self.source.error(span, message));
                    return Kind::Bad;
                }
                Some('\\') => {
                    self.bump();
                    if matches!(self.peek(), None | Some('\n')) {
                        continue;
                    }
                    match self.escape() {
                        Some(byte) => bytes.push(byte),
                        None => {
                            let span = Span { start: at, end: self.position };
                            self.diagnostics.push(self.source.error(
                                span,
                                "this escape is not one of \\\\ \\' \\\" \\a \\b \\f \\n \\r \\t \\v \\xNN \\NNN (octal); \
                                 write \\\\ for a backslash",
                            ));
                            is_good = false;
                        }
                    }
                }
                Some(c) => {
                    self.bump();
                    if c == quote {
                        break;
                    }
                    let mut buffer = [0; 4];
                    bytes.extend_from_slice(c.encode_utf8(&mut buffer).as_bytes());
                }
            }
        }
        let span = Span { start, end: self.position };
        if is_good && bytes.contains(&0) {
            self.diagnostics.push(self.source.error(span, "this string contains a NUL character; remove it"));
            return Kind::Bad;
        }
        match String::from_utf8(bytes) {
            Ok(text) if is_good => Kind::Text(text),
            Ok(_) => Kind::Bad,
            Err(_) => {
                let message = "the escapes in this string do not make valid UTF-8; mend or remove them";
                self.diagnostics.push(self.source.error(span, message));
                Kind::Bad
            }
        }
    }

    /// What follows a backslash.
    fn escape(&mut self) -> Option<u8> {
        let c = self.bump()?;
        Some(match c {
            '\\' | '\'' | '"' => u8::try_from(c).ok()?,
            'a' => 7,
            'b' => 8,
            'f' => 12,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'v' => 11,
            'x' => {
                let digits = self.rest().get(..2)?;
                let byte = digits.bytes().all(|b| b.is_ascii_hexdigit()).then_some(digits)?;
                self.position += 2;
                u8::from_str_radix(byte, 16).ok()?
            }
            '0'..='7' => {
                let mut value = c.to_digit(8)?;
                for _ in 0..2 {
                    let Some(digit) = self.peek().and_then(|c| c.to_digit(8)) else { break };
                    self.bump();
                    value = value * 8 + digit;
                }
                u8::try_from(value).ok()?
            }
            _ => return None,
        })
    }

    /// A character that starts no word: skips what belongs to it and says so.
    fn bad(&mut self, start: usize, c: char) -> Kind {
        if c != '\r' {
            self.take_while(|c| {
                !matches!(c, ' ' | '\t' | '\n' | ',' | ';' | '[' | ']' | '=' | '#' | '\'' | '"')
            });
        }
        let span = Span { start, end: self.position };
        let word = self.source.text.get(start..self.position).unwrap_or("");
        let message = match c {
            '\r' => {
                "this line ends in CR LF; xl.cfg files have plain LF line ends (dos2unix mends it)".into()
            }
            'A'..='Z' => format!(
                "`{word}` is no word of an xl.cfg file: keys are in lower case, text stands in quotes, \
                 true and false are 1 and 0"
            ),
            '/' | '~' => format!("`{word}` looks like a path; put it in quotes: \"{word}\""),
            '-' => format!("`{word}` is not possible here: numbers have no sign, text stands in quotes"),
            '+' | '.' | '(' | ')' | ':' => format!(
                "`{word}` is not possible here: xl.cfg files are not Python, only KEY = VALUE with numbers, \
                 quoted text and [ lists ]"
            ),
            _ => format!("`{}` is not possible here; text stands in quotes", word.escape_debug()),
        };
        self.diagnostics.push(self.source.error(span, message));
        Kind::Bad
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn kinds(text: &str) -> (Vec<Kind>, Vec<Diagnostic>) {
        let mut lexer = Lexer::new(Source { file: "f", text });
        let mut kinds = Vec::new();
        loop {
            let token = lexer.next();
            let is_end = token.kind == Kind::End;
            kinds.push(token.kind);
            if is_end {
                return (kinds, lexer.diagnostics);
            }
        }
    }

    fn text(s: &str) -> Kind {
        Kind::Text(s.into())
    }

    #[test]
    fn cuts_words() {
        use Kind::*;
        let (words, messages) = kinds("a.b_1 = 0x1f;b+=[ 'x', \"y\", ] # note\n\n#last");
        assert!(messages.is_empty(), "{messages:?}");
        assert_eq!(
            words,
            vec![
                Ident,
                Equals,
                Number,
                Semicolon,
                Ident,
                PlusEquals,
                Open,
                text("x"),
                Comma,
                text("y"),
                Comma,
                Close,
                Newline,
                Newline,
                End
            ]
        );
    }

    #[test]
    fn reads_escapes() {
        let (words, messages) = kinds(r#"'\\ \' \" \n\t \x41 \101 \xc3\xa9' "it's" '"'"#);
        assert!(messages.is_empty(), "{messages:?}");
        assert_eq!(words[0], text("\\ ' \" \n\t A A é"));
        assert_eq!(words[1], text("it's"));
        assert_eq!(words[2], text("\""));
    }

    #[test]
    fn refuses_what_is_no_word() {
        for (input, part) in [
            ("'open", "not closed"),
            ("'open\n'", "not closed"),
            ("'open\\", "not closed"),
            (r"'\q'", "escape"),
            (r"'\xg0'", "escape"),
            (r"'\x4'", "escape"),
            (r"'\777'", "escape"),
            (r"'\0'", "NUL"),
            (r"'\xff'", "UTF-8"),
            ("\r\n", "CR LF"),
            ("True", "lower case"),
            ("/boot/vmlinuz", "looks like a path"),
            ("-1", "no sign"),
            ("(1)", "Python"),
            ("é", "quotes"),
            ("$", "quotes"),
        ] {
            let (words, messages) = kinds(input);
            assert_eq!(words[0], Kind::Bad, "{input}");
            assert!(messages[0].message.contains(part), "{input}: {}", messages[0].message);
        }
    }
}
