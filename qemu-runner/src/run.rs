//! `run`: interactive at a terminal, scripted otherwise.

use std::io::{IsTerminal as _, Write as _};
use std::process::Stdio;
use std::time::{Duration, Instant};

use image_builder::Progress;
use regex::Regex;

use crate::Error;
use crate::cli::RunArgs;
use crate::machine::Machine;
use crate::plan::{ConfigFile, Kernels, default_config};
use crate::qemu::{Exit, Serial};
use crate::session::{Request, Session};
use crate::trace;

/// How long a scripted run may take when no time is given: for ever, in seconds.
const NO_LIMIT: u64 = 10 * 365 * 24 * 3600;
/// How long the end of the machine may take; the toolstack itself gives guests 30 s of the machine's time.
const SHUTDOWN: Duration = Duration::from_secs(120);

/// Runs guests.
///
/// # Errors
/// See [`Error::exit_status`].
pub fn run(args: &RunArgs) -> Result<(), Error> {
    let until = args.until.as_deref().map(Regex::new).transpose();
    let until = until.map_err(|e| Error::Usage(format!("--until: {e}")))?;
    let is_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    if args.trace.is_some() && args.exec.is_empty() && until.is_none() {
        return Err(Error::Usage("--trace needs an end: give --exec or --until".to_owned()));
    }
    let is_interactive = args.exec.is_empty() && until.is_none() && is_terminal && args.log.is_none();
    let request = request(args, is_interactive)?;
    let session = Session::prepare(&request)?;
    if is_interactive {
        interactive(&session, args.timeout)
    } else {
        scripted(&session, args, until.as_ref())
    }
}

fn request(args: &RunArgs, is_interactive: bool) -> Result<Request, Error> {
    let progress = Progress::Shown;
    let guests = if args.guests.is_empty() {
        vec![default_config(
            args.kernel.as_deref(),
            args.kernel_package.as_ref(),
            args.initrd.as_deref(),
            args.disk.as_deref(),
            progress,
        )?]
    } else {
        args.guests.iter().map(|path| ConfigFile::read(path)).collect::<Result<_, _>>()?
    };
    let read = |path: &std::path::PathBuf| {
        let text = std::fs::read_to_string(path).map_err(Error::path(path))?;
        Ok::<_, Error>((path.display().to_string(), text))
    };
    let mut request = Request::new(guests);
    request.kernels = if args.keep_compressed { Kernels::AsTheyAre } else { Kernels::Unpack };
    request.manifest = args.manifest.as_ref().map(read).transpose()?;
    request.memory_mib = args.memory;
    request.smp = args.smp;
    request.accel = args.accel;
    request.has_icount = args.icount;
    request.net = args.net;
    request.hostfwd.clone_from(&args.hostfwd);
    request.qemu_args.clone_from(&args.qemu_args);
    request.serial = if is_interactive { Serial::Terminal } else { Serial::Pipe };
    request.progress = progress;
    Ok(request)
}

/// The user's terminal is the machine's serial port until one of them ends.
fn interactive(session: &Session, timeout: Option<u64>) -> Result<(), Error> {
    eprintln!("Ctrl+] goes to the operator's prompt, Ctrl-A x ends QEMU.");
    // QEMU makes the terminal raw and puts it back, unless it is killed.
    let before = rustix::termios::tcgetattr(std::io::stdin()).ok();
    let mut command = session.config.command();
    command.stderr(Stdio::piped());
    let mut child = command.spawn().map_err(Error::path(&session.config.program))?;
    if let Some(stderr) = child.stderr.take() {
        std::thread::spawn(move || {
            use std::io::BufRead as _;
            let lines = std::io::BufReader::new(stderr).lines().map_while(Result::ok);
            for line in lines.filter(|line| !line.contains("TCG doesn't support requested feature")) {
                eprint!("{line}\r\n");
            }
        });
    }
    let deadline = timeout.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let status = loop {
        match child.try_wait().map_err(Error::io("QEMU"))? {
            Some(status) => break Some(status),
            None if deadline.is_some_and(|d| Instant::now() > d) => {
                // It may have ended in this moment.
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    if let Some(before) = before {
        // The terminal may be gone.
        let _ =
            rustix::termios::tcsetattr(std::io::stdin(), rustix::termios::OptionalActions::Flush, &before);
    }
    eprintln!();
    let status = status.ok_or_else(|| Error::Timeout("the time given with --timeout is over".to_owned()))?;
    judge(Exit::of_code(status.code()))
}

/// Ended by the system or by the user is well; everything else is not.
fn judge(exit: Exit) -> Result<(), Error> {
    match exit {
        Exit::Status(0) | Exit::Ended => Ok(()),
        other => Err(Error::Died(other.to_string())),
    }
}

fn scripted(session: &Session, args: &RunArgs, until: Option<&Regex>) -> Result<(), Error> {
    let deadline = Instant::now() + Duration::from_secs(args.timeout.unwrap_or(NO_LIMIT));
    let left = || deadline.saturating_duration_since(Instant::now());
    let machine = session.start(args.log.as_deref())?;
    if args.exec.is_empty() && until.is_none() {
        return show(&machine, deadline);
    }
    machine.wait_up(left())?;
    let start = || args.trace.as_ref().map_or(Ok(()), |_| trace::start(&machine, args.trace_kib, left()));
    if args.exec.is_empty() {
        start()?;
    }
    let mut failed = Vec::new();
    if let Some(until) = until {
        let line = machine.wait(&format!("line that matches `{until}`"), left(), |state| {
            let consoles = state.guests.iter();
            consoles
                .flat_map(|(name, c)| c.text.lines().map(move |l| (name, l)))
                .find_map(|(name, line)| until.is_match(line).then(|| format!("{name}: {line}")))
        })?;
        println!("{line}");
    }
    if !args.exec.is_empty() {
        start()?;
    }
    for command in &args.exec {
        let (output, status) = machine.exec(command, left())?;
        print!("{output}");
        if status != 0 {
            failed.push(format!("`{command}` failed with status {status}"));
        }
    }
    if let Some(path) = &args.trace {
        trace::write(&trace::take(&machine, left())?, path, Progress::Shown)?;
    }
    // A broken pipe at the other end of stdout is not the machine's fault.
    let _ = std::io::stdout().flush();
    // Guests shut down first, so what they wrote is in their images.
    machine.quit(left().clamp(Duration::from_secs(5), SHUTDOWN))?;
    if failed.is_empty() { Ok(()) } else { Err(Error::CommandFailed(failed.join("\n"))) }
}

/// Guests' consoles to stdout until the machine ends.
fn show(machine: &Machine, deadline: Instant) -> Result<(), Error> {
    let mut shown: std::collections::BTreeMap<String, usize> = std::collections::BTreeMap::new();
    loop {
        let (news, exit) = machine.with_state(|state| {
            let mut news = String::new();
            for (name, console) in &state.guests {
                let from = shown.entry(name.clone()).or_default();
                news.push_str(console.text.get(*from..).unwrap_or_default());
                *from = console.text.len();
            }
            (news, state.exit)
        });
        print!("{news}");
        // As above.
        let _ = std::io::stdout().flush();
        match exit {
            Some(exit) => return judge(exit),
            None if Instant::now() > deadline => {
                return Err(Error::Timeout("the time given with --timeout is over".to_owned()));
            }
            None => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}
