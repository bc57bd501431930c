//! The system manifest: read from TOML, checked, compiled to what init reads.
//!
//! Every problem is reported with file, line and column, all of them at once; a manifest with a problem
//! never becomes an image.

mod check;
mod compile;
mod source;

use std::path::Path;

use crate::Error;
use crate::programs::Program;

pub use check::check;
pub use compile::compile;
pub use source::{Channel, Device, Manifest, Ports, Service, Vmm, kind_name, parse_kind};

/// The manifest that the image has when no other is named.
pub const DEFAULT: &str = include_str!("../../system.toml");
/// Its name in messages.
pub const DEFAULT_NAME: &str = "image-builder/system.toml";

/// A problem and the bytes of the text that it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// A sentence.
    pub message: String,
    /// Where.
    pub span: core::ops::Range<usize>,
}

/// Reads and checks a manifest.
///
/// # Errors
/// All its problems, with places, in one message.
pub fn load(name: &str, text: &str, programs: &[Program]) -> Result<Manifest, Error> {
    let manifest = source::parse(text).map_err(|p| Error::Manifest(render(name, text, &[p])))?;
    let problems = check(&manifest, programs);
    if problems.is_empty() { Ok(manifest) } else { Err(Error::Manifest(render(name, text, &problems))) }
}

/// [`load`] from a file.
///
/// # Errors
/// As [`load`], or the file cannot be read.
pub fn load_file(path: &Path, programs: &[Program]) -> Result<Manifest, Error> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    load(&path.display().to_string(), &text, programs)
}

/// Problems as compilers print them: place, sentence, line, caret.
pub fn render(name: &str, text: &str, problems: &[Problem]) -> String {
    let mut out = String::new();
    for Problem { message, span } in problems {
        let start = span.start.min(text.len());
        let before = text.get(..start).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |i| i + 1);
        let line = text.get(line_start..).and_then(|rest| rest.lines().next()).unwrap_or_default();
        let row = before.matches('\n').count() + 1;
        let column = before.get(line_start..).unwrap_or_default().chars().count();
        let marked = span.end.min(line_start + line.len()).saturating_sub(start).max(1);
        if !out.is_empty() {
            out.push('\n');
        }
        out.push_str(&format!(
            "{name}:{row}:{}: error: {message}\n{row:4} | {line}\n     | {:column$}{}",
            column + 1,
            "",
            "^".repeat(marked)
        ));
    }
    out
}
