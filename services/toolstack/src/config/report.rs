//! The messages of one configuration, while it is being read.

use alloc::string::String;
use alloc::vec::Vec;

use super::source::{Diagnostic, Severity, Source, Span};

/// Collects messages.
pub(super) struct Report<'a> {
    pub(super) source: Source<'a>,
    pub(super) diagnostics: Vec<Diagnostic>,
}

impl Report<'_> {
    pub(super) fn error(&mut self, span: Span, message: impl Into<String>) {
        self.diagnostics.push(self.source.error(span, message));
    }

    pub(super) fn warning(&mut self, span: Span, message: impl Into<String>) {
        self.diagnostics.push(self.source.warning(span, message));
    }

    /// How many errors there are.
    pub(super) fn errors(&self) -> usize {
        self.diagnostics.iter().filter(|d| d.severity == Severity::Error).count()
    }
}
