//! xl.cfg files: Xen's own syntax, with messages that point at the place and say how to mend it.
//!
//! Used by the toolstack in the system and by the host tools, so that both understand a file in the
//! same way. Nothing in a file is silently ignored: what cannot be honoured is an error, what has no
//! effect is a warning. Arbitrary text gives messages, never a panic.
//! Sources: xl.cfg(5), xl-disk-configuration(5), xl-network-configuration(5), Xen's tools/libs/util.

mod action;
mod cpuid;
mod disk;
mod guest;
mod identity;
mod keys;
mod lex;
mod number;
mod print;
mod report;
mod source;
mod syntax;
#[cfg(test)]
mod tests;
mod vdev;
mod vif;

use alloc::vec::Vec;

pub use action::Action;
pub use disk::Disk;
pub use guest::{CMDLINE_MAX, GuestConfig, HostPathUse, MEMORY_MAX_MIB, MEMORY_MIN_MIB, NAME_MAX};
pub use print::{Mac, Uuid};
pub use source::{Diagnostic, Severity, Source, Span, Spanned};
pub use vdev::number as device_number;
pub use vif::{DEFAULT_BRIDGE, Vif};

/// Largest file in bytes.
pub const FILE_MAX: usize = 256 * 1024;

/// What reading a file gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// The guest; nothing if there is an error.
    pub config: Option<GuestConfig>,
    /// Errors and warnings in the file's order.
    pub diagnostics: Vec<Diagnostic>,
}

impl Parsed {
    /// The errors.
    pub fn errors(&self) -> impl Iterator<Item = &Diagnostic> {
        self.diagnostics.iter().filter(|d| d.severity == Severity::Error)
    }

    /// The warnings.
    pub fn warnings(&self) -> impl Iterator<Item = &Diagnostic> {
        self.diagnostics.iter().filter(|d| d.severity == Severity::Warning)
    }
}

/// Reads an xl.cfg file. `file` is its name for messages, `text` its content.
pub fn parse(file: &str, text: &str) -> Parsed {
    let source = Source { file, text };
    if text.len() > FILE_MAX {
        let message = alloc::format!("the file has {} bytes; at most {FILE_MAX} are possible", text.len());
        return Parsed { config: None, diagnostics: alloc::vec![source.error(Span::default(), message)] };
    }
    let (settings, diagnostics) = syntax::settings(source);
    let (config, report) = guest::interpret(settings, report::Report { source, diagnostics });
    let mut diagnostics = report.diagnostics;
    diagnostics.sort_by_key(|d| (d.line, d.column));
    Parsed { config, diagnostics }
}
