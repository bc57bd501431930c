//! What the user sees while things are built: one line per step, a moving one on a terminal.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Where progress goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// To standard error.
    Shown,
    /// Nowhere, for tests.
    Silent,
}

impl Progress {
    /// One line that stays.
    pub fn say(self, line: impl AsRef<str>) {
        if self == Self::Shown {
            eprintln!("{}", line.as_ref());
        }
    }

    /// Begins a step that takes a while.
    pub fn step(self, name: impl Into<String>) -> Step {
        let name = name.into();
        let is_moving = self == Self::Shown && std::io::stderr().is_terminal();
        let bar = is_moving.then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("  {spinner} {prefix} {msg} ({elapsed})") {
                bar.set_style(style);
            }
            bar.set_prefix(name.clone());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Step { progress: self, name, bar, begin: Instant::now() }
    }
}

/// A step under way; its line goes when it is dropped without [`Step::done`].
#[derive(Debug)]
pub struct Step {
    progress: Progress,
    name: String,
    bar: Option<ProgressBar>,
    begin: Instant,
}

impl Step {
    /// What it is busy with.
    pub fn detail(&self, detail: impl Into<String>) {
        if let Some(bar) = &self.bar {
            bar.set_message(detail.into());
        }
    }

    /// It is done; `result` stays on the screen.
    pub fn done(self, result: impl AsRef<str>) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let seconds = self.begin.elapsed().as_secs_f64();
        self.progress.say(format!("  {}: {} ({seconds:.1} s)", self.name, result.as_ref()));
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
