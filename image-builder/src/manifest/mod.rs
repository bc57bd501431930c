//! The system manifest: read from TOML, checked, compiled to what init reads.
//!
//! Every problem is reported with file, line and column, all of them at once; a manifest with a problem
//! never becomes an image.

mod check;
mod compile;
mod source;

use std::path::Path;

use crate::Error;
use crate::programs::{INIT, Program, VMM};

pub use check::check;
pub use compile::compile;
pub use source::{Channel, Device, Manifest, Ports, Service, Vmm, kind_name, parse_kind, parse_mac};

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

impl Manifest {
    /// Those of `programs` that a system of this manifest runs.
    pub fn programs(&self, mut programs: Vec<Program>) -> Vec<Program> {
        let is_run =
            |name: &str| [INIT, VMM].contains(&name) || self.services.iter().any(|s| s.program() == name);
        programs.retain(|program| is_run(&program.name));
        programs
    }
}

/// Reads and checks a manifest. One without `[vmm]` is no system of its own: it adds its services and channels
/// to the shipped one.
///
/// # Errors
/// All its problems, with places, in one message.
pub fn load(name: &str, text: &str, programs: &[Program]) -> Result<Manifest, Error> {
    let is_whole = source::has_vmm(text).map_err(|p| Error::Manifest(render(name, text, &[p])))?;
    let base = if is_whole { "" } else { DEFAULT };
    let whole = format!("{base}{text}");
    let refuse = |problems: Vec<Problem>| {
        let (shipped, own): (Vec<_>, Vec<_>) =
            problems.into_iter().partition(|problem| problem.span.start < base.len());
        let own = own.into_iter().map(|Problem { message, span }| {
            let span = span.start - base.len()..span.end.saturating_sub(base.len());
            Problem { message, span }
        });
        let parts = [render(DEFAULT_NAME, base, &shipped), render(name, text, &own.collect::<Vec<_>>())];
        Error::Manifest(parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n"))
    };
    let manifest = source::parse(&whole).map_err(|problem| refuse(vec![problem]))?;
    let problems = check(&manifest, programs);
    if problems.is_empty() { Ok(manifest) } else { Err(refuse(problems)) }
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
