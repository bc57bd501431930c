//! A pseudo terminal with a program in it, used as a person would: look, type, look again.
//!
//! It answers the one question that programs ask a terminal here, where the cursor is (`ESC [ 6 n`).

use std::io::{Read as _, Write as _};
use std::process::{Child, Command};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pty_process::Size;
use pty_process::blocking::{Pty, open};
use regex::Regex;

/// Where is the cursor?
const QUESTION: &[u8] = b"\x1b[6n";

/// The terminal.
pub struct Terminal {
    child: Child,
    pty: Arc<Pty>,
    screen: Arc<Screen>,
    /// Output before this byte was looked at already.
    seen: usize,
}

#[derive(Debug, Default)]
struct Screen {
    output: Mutex<Output>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Output {
    bytes: Vec<u8>,
    questions: usize,
    has_ended: bool,
}

impl Screen {
    fn lock(&self) -> MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Terminal {
    /// Starts a program in a terminal of 24 lines and 80 columns.
    pub fn start(command: Command) -> Self {
        let (pty, pts) = must(open());
        must(pty.resize(Size::new(24, 80)));
        let child = must(pty_process::blocking::Command::from(command).spawn(pts));
        let (pty, screen) = (Arc::new(pty), Arc::new(Screen::default()));
        let (reader, shown) = (Arc::clone(&pty), Arc::clone(&screen));
        std::thread::spawn(move || {
            read(&reader, &shown);
            shown.lock().has_ended = true;
            shown.changed.notify_all();
        });
        Self { child, pty, screen, seen: 0 }
    }

    /// Types.
    pub fn type_in(&self, keys: &[u8]) {
        crate::io((&*self.pty).write_all(keys));
    }

    /// Waits for output that matches, behind what was matched before; returns what came up to its end.
    pub fn expect(&mut self, pattern: &str, timeout: Duration) -> String {
        let regex = match Regex::new(pattern) {
            Ok(regex) => regex,
            Err(error) => panic!("{error}"),
        };
        let deadline = Instant::now() + timeout;
        let screen = Arc::clone(&self.screen);
        let mut output = screen.lock();
        loop {
            let text =
                String::from_utf8_lossy(output.bytes.get(self.seen..).unwrap_or_default()).into_owned();
            if let Some(found) = regex.find(&text) {
                let upto = text.get(..found.end()).unwrap_or_default();
                // Lossy decoding may change lengths; the machine's own output is ASCII.
                self.seen += upto.len();
                return upto.to_owned();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || output.has_ended {
                let tail: String =
                    text.chars().rev().take(4000).collect::<Vec<_>>().into_iter().rev().collect();
                panic!("no `{pattern}` on the terminal within {timeout:?}; since the last match:\n{tail}");
            }
            output = screen.changed.wait_timeout(output, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// How often the terminal was asked where its cursor is.
    pub fn questions(&self) -> usize {
        self.screen.lock().questions
    }

    /// Everything so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().bytes).into_owned()
    }

    /// Waits for the program's end; its exit code.
    pub fn wait(mut self, timeout: Duration) -> Option<i32> {
        let deadline = Instant::now() + timeout;
        while Instant::now() < deadline {
            if let Some(status) = crate::io(self.child.try_wait()) {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("the program has not ended within {timeout:?}:\n{}", self.text());
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn must<T>(result: Result<T, pty_process::Error>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("pseudo terminal: {error}"),
    }
}

/// Reads until the program's end, which shows as an error.
fn read(pty: &Pty, screen: &Screen) {
    let (mut reader, mut writer) = (pty, pty);
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = reader.read(&mut buffer) {
        let piece = buffer.get(..count).unwrap_or_default();
        let mut output = screen.lock();
        // A question may be cut in two.
        let from = output.bytes.len().saturating_sub(QUESTION.len() - 1);
        output.bytes.extend_from_slice(piece);
        let fresh = output.bytes.get(from..).unwrap_or_default();
        let asked = fresh.windows(QUESTION.len()).filter(|window| *window == QUESTION).count();
        output.questions += asked;
        drop(output);
        screen.changed.notify_all();
        for _ in 0..asked {
            // The end of the program shows above.
            let _ = writer.write_all(b"\x1b[24;1R");
        }
    }
}
