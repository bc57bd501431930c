//! A running machine, driven through its serial port.
//!
//! One thread starts QEMU, waits for its end and kills it when the [`Machine`] is dropped; another reads
//! the serial line into the [`State`]. Waiting is always for a condition on the state, with a deadline,
//! and ends early when the machine ends.

pub mod logs;
pub mod mux;
pub mod state;

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use regex::Regex;

use crate::Error;
use crate::qemu::{Config, Exit};
use logs::Logs;
use state::State;

/// Bytes of input in one line; the console's line buffer is small.
const INPUT_CHUNK: usize = 100;
/// Warnings of QEMU about processor features that emulation lacks; they mean nothing here.
const NOISE: &str = "TCG doesn't support requested feature";

/// A running machine.
#[derive(Debug)]
pub struct Machine {
    shared: Arc<Shared>,
    stdin: Mutex<Option<ChildStdin>>,
    threads: Vec<JoinHandle<()>>,
    next_id: AtomicU32,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    logs: Mutex<Logs>,
    is_ending: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn logs(&self) -> MutexGuard<'_, Logs> {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Machine {
    /// Starts QEMU; its serial port must be [`crate::qemu::Serial::Pipe`].
    ///
    /// # Errors
    /// QEMU does not start, or the log folder cannot be made.
    pub fn start(config: &Config, log_dir: Option<&Path>) -> Result<Self, Error> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            logs: Mutex::new(Logs::new(log_dir)?),
            is_ending: AtomicBool::new(false),
        });
        let mut command = config.command();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let (sender, receiver) = std::sync::mpsc::channel();
        // QEMU dies with the thread that started it, so that thread lives as long as QEMU.
        let owner = {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || match command.spawn() {
                Ok(mut child) => {
                    let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
                    if sender.send(Ok(pipes)).is_ok() {
                        own(&shared, &mut child);
                    } else {
                        end(&mut child);
                    }
                }
                Err(e) => drop(sender.send(Err(e))),
            })
        };
        let answer = receiver.recv().map_err(|_| Error::Usage("QEMU could not be started".to_owned()))?;
        let (stdin, stdout, stderr) = answer.map_err(Error::path(&config.program))?;
        let mut threads = vec![owner];
        if let Some(stdout) = stdout {
            let shared = Arc::clone(&shared);
            threads.push(std::thread::spawn(move || read_serial(&shared, stdout)));
        }
        if let Some(stderr) = stderr {
            let shared = Arc::clone(&shared);
            threads.push(std::thread::spawn(move || {
                for line in
                    BufReader::new(stderr).lines().map_while(Result::ok).filter(|l| !l.contains(NOISE))
                {
                    shared.logs().qemu(&line);
                    shared.lock().remember(line);
                }
            }));
        }
        Ok(Self { shared, stdin: Mutex::new(stdin), threads, next_id: AtomicU32::new(1) })
    }

    /// Reads the state.
    pub fn with_state<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.shared.lock())
    }

    /// Waits until `find` finds something in the state.
    ///
    /// # Errors
    /// Timeout, or the machine ended first; both with the last lines that it said.
    pub fn wait<T>(
        &self,
        what: &str,
        timeout: Duration,
        mut find: impl FnMut(&State) -> Option<T>,
    ) -> Result<T, Error> {
        let deadline = Instant::now() + timeout;
        let mut state = self.shared.lock();
        loop {
            if let Some(found) = find(&state) {
                return Ok(found);
            }
            if let Some(exit) = state.exit {
                return Err(Error::Died(format!(
                    "{exit} while waiting for {what}. The last lines:\n{}",
                    state.tail()
                )));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let seconds = timeout.as_secs();
                return Err(Error::Timeout(format!(
                    "no {what} within {seconds} s. The last lines:\n{}",
                    state.tail()
                )));
            }
            let wait = self.shared.changed.wait_timeout(state, left);
            state = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until all guests were started.
    ///
    /// # Errors
    /// As [`Machine::wait`]; a guest that could not be started is a failed command.
    pub fn wait_up(&self, timeout: Duration) -> Result<(), Error> {
        let (_, failed) = self.wait("guests", timeout, |state| state.up)?;
        if failed == 0 {
            return Ok(());
        }
        let notices = self.with_state(|state| state.notices.join("\n"));
        Err(Error::CommandFailed(format!("{failed} guests could not be started:\n{notices}")))
    }

    /// Runs a command at the operator's prompt: its output and status.
    ///
    /// # Errors
    /// As [`Machine::wait`].
    pub fn exec(&self, command: &str, timeout: Duration) -> Result<(String, u8), Error> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        self.send(&format!("@exec {id} {}\n", mux::escape(command.as_bytes())))?;
        let done = self.wait(&format!("end of `{command}`"), timeout, |state| {
            let command = state.commands.get(&id)?;
            Some((command.output.clone(), command.status?))
        })?;
        Ok((String::from_utf8_lossy(&done.0).into_owned(), done.1))
    }

    /// Starts a command that ends the machine, which therefore may never say that it is done.
    ///
    /// # Errors
    /// The machine is gone already.
    pub fn exec_and_forget(&self, command: &str) -> Result<(), Error> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        self.send(&format!("@exec {id} {}\n", mux::escape(command.as_bytes())))
    }

    /// A guest's console.
    pub fn guest(&self, name: impl Into<String>) -> Guest<'_> {
        let name = name.into();
        let from = self.with_state(|s| s.guests.get(&name).map_or(0, |g| g.text.len()));
        Guest { machine: self, name, seen: from }
    }

    /// Waits for the machine's end.
    ///
    /// # Errors
    /// Timeout.
    pub fn wait_exit(&self, timeout: Duration) -> Result<Exit, Error> {
        self.wait("end of the machine", timeout, |state| state.exit)
    }

    /// Ends the machine in an orderly way: the system writes its status and powers off.
    ///
    /// # Errors
    /// It does not end in time, or badly.
    pub fn quit(&self, timeout: Duration) -> Result<(), Error> {
        self.exec_and_forget("quit")?;
        match self.wait_exit(timeout)? {
            Exit::Status(0) => Ok(()),
            exit => Err(Error::Died(format!("{exit}. The last lines:\n{}", self.with_state(State::tail)))),
        }
    }

    fn send(&self, line: &str) -> Result<(), Error> {
        let mut stdin = self.stdin.lock().unwrap_or_else(PoisonError::into_inner);
        let pipe = stdin.as_mut().ok_or_else(|| Error::Died("the machine has no serial input".to_owned()))?;
        let written = pipe.write_all(line.as_bytes()).and_then(|()| pipe.flush());
        written.map_err(|e| Error::Died(format!("the machine does not listen any more: {e}")))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.shared.is_ending.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A reader that panicked has nothing more to say.
            let _ = thread.join();
        }
    }
}

/// Waits for QEMU's end, or brings it about.
fn own(shared: &Shared, child: &mut Child) {
    let code = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status.code(),
            Ok(None) if shared.is_ending.load(Ordering::Relaxed) => {
                end(child);
                break None;
            }
            Ok(None) => std::thread::sleep(Duration::from_millis(20)),
            Err(_) => break None,
        }
    };
    // The last lines are still in the pipes; readers say when they are through, but not for ever.
    std::thread::sleep(Duration::from_millis(100));
    shared.lock().exit = Some(Exit::of_code(code));
    shared.changed.notify_all();
}

fn end(child: &mut Child) {
    // Both fail only if QEMU is gone already.
    let _ = child.kill();
    let _ = child.wait();
}

fn read_serial(shared: &Shared, mut stdout: impl Read) {
    let mut buffer = [0; 4096];
    let mut line = Vec::new();
    while let Ok(count @ 1..) = stdout.read(&mut buffer) {
        let bytes = buffer.get(..count).unwrap_or_default();
        shared.logs().raw(bytes);
        for &byte in bytes {
            if byte != b'\n' {
                line.push(byte);
                continue;
            }
            take_line(shared, &line);
            line.clear();
        }
        shared.changed.notify_all();
    }
    if !line.is_empty() {
        take_line(shared, &line);
        shared.changed.notify_all();
    }
}

fn take_line(shared: &Shared, line: &[u8]) {
    let line = mux::parse(line);
    shared.logs().line(&line);
    shared.lock().line(line);
}

/// A guest's console.
#[derive(Debug)]
pub struct Guest<'a> {
    machine: &'a Machine,
    name: String,
    /// Output before this byte was looked at already.
    seen: usize,
}

impl Guest<'_> {
    /// The machine that it runs on.
    pub fn machine(&self) -> &Machine {
        self.machine
    }

    /// Looks at the output from the guest's first byte on.
    pub fn from_start(mut self) -> Self {
        self.seen = 0;
        self
    }

    /// All output so far.
    pub fn text(&self) -> String {
        self.machine.with_state(|s| s.guests.get(&self.name).map(|g| g.text.clone()).unwrap_or_default())
    }

    /// Waits for output that matches; the next wait looks behind the match. Returns the match's text.
    ///
    /// # Errors
    /// As [`Machine::wait`].
    pub fn expect(&mut self, pattern: &Regex, timeout: Duration) -> Result<String, Error> {
        let (name, seen) = (&self.name, self.seen);
        let what = format!("`{pattern}` on {name}'s console");
        let (end, text) = self.machine.wait(&what, timeout, |state| {
            let found = pattern.find(state.guests.get(name)?.text.get(seen..)?)?;
            Some((seen + found.end(), found.as_str().to_owned()))
        })?;
        self.seen = end;
        Ok(text)
    }

    /// Types at the guest's console.
    ///
    /// # Errors
    /// The machine is gone.
    pub fn send(&self, bytes: &[u8]) -> Result<(), Error> {
        for chunk in bytes.chunks(INPUT_CHUNK) {
            self.machine.send(&format!(
                "@input {} {}\n",
                mux::escape_word(&self.name),
                mux::escape(chunk)
            ))?;
        }
        Ok(())
    }

    /// Waits for the shell's prompt, typing Enter now and then so that it shows up.
    ///
    /// # Errors
    /// As [`Machine::wait`].
    pub fn wait_shell(&mut self, timeout: Duration) -> Result<(), Error> {
        let prompt = Regex::new(r"(?m)[#$] (\x1b\[6n)?$").map_err(|e| Error::Usage(e.to_string()))?;
        self.expect(&prompt, timeout).map(drop)
    }

    /// Runs a command in the guest's shell: its output and exit status.
    ///
    /// # Errors
    /// As [`Machine::wait`].
    pub fn shell(&mut self, command: &str, timeout: Duration) -> Result<(String, i32), Error> {
        let id = self.machine.next_id.fetch_add(1, Ordering::Relaxed);
        // The quotes keep the markers out of the terminal's echo of the command line.
        self.send(format!("echo \"<B\"\"{id}>\"; {command}; echo \"<E\"\"{id}:$?>\"\n").as_bytes())?;
        let (begin, end) = (format!("<B{id}>"), format!("<E{id}:"));
        let (name, seen) = (&self.name, self.seen);
        let (next, output, status) =
            self.machine.wait(&format!("end of `{command}` in {name}"), timeout, |state| {
                let text = state.guests.get(name)?.text.get(seen..)?;
                let begin_at = text.find(&begin)? + begin.len();
                let rest = text.get(begin_at..)?;
                let end_at = rest.find(&end)?;
                let (status, _) = rest.get(end_at + end.len()..)?.split_once('>')?;
                let output = rest.get(..end_at)?.trim_start_matches('\n').to_owned();
                Some((seen + begin_at + end_at + end.len(), output, status.to_owned()))
            })?;
        self.seen = next;
        let status =
            status.parse().map_err(|_| Error::Died(format!("{name} answered with status `{status}`")))?;
        Ok((output, status))
    }
}
