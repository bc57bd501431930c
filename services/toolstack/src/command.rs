//! The operator's command lines: xl's commands and options, and the prompt's own `help` and `quit`.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

use crate::arguments::Arguments;
use crate::nearest::nearest;
use crate::trace::{KIB_DEFAULT, TraceOrder};

/// Longest time between two tables of `xl top` in seconds.
const DELAY_MAX: u32 = 86_400;

/// What the operator wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// An empty line.
    Nothing,
    /// A text that is already known.
    Print(String),
    /// `xl list`.
    List {
        /// Only this domain.
        only: Option<String>,
        /// In which form.
        form: ListForm,
    },
    /// `xl info`.
    Info,
    /// `xl top`.
    Top {
        /// Tables one after the other instead of pages.
        is_batch: bool,
        /// Seconds between two samples.
        delay_s: u32,
        /// Tables, or none: until a key is pressed.
        iterations: Option<u32>,
    },
    /// `xl counters`.
    Counters {
        /// Only this domain.
        only: Option<String>,
        /// In which form: the table or JSON.
        form: ListForm,
    },
    /// `xl trace`.
    Trace(TraceOrder),
    /// `xl console`.
    Console(String),
    /// `xl dmesg`.
    Dmesg,
    /// `xl shutdown` and `xl reboot`.
    Stop {
        /// Which of the two.
        kind: StopKind,
        /// The guests, or none for all of them.
        guests: Option<Vec<String>>,
        /// Wait until they have ended.
        waits: bool,
    },
    /// `xl destroy`.
    Destroy(String),
    /// `xl create`.
    Create {
        /// A guest's or a file's name.
        name: String,
        /// Attach to its console afterwards.
        attaches: bool,
    },
    /// `xl pause`.
    Pause(String),
    /// `xl unpause`.
    Unpause(String),
    /// `xl domid`.
    DomId(String),
    /// `xl domname`.
    DomName(String),
    /// `xl uptime`.
    Uptime {
        /// One line with the time of day's place left out (`-s`).
        is_short: bool,
        /// Only these.
        guests: Vec<String>,
    },
    /// `quit`.
    Quit {
        /// Without shutting guests down.
        is_now: bool,
        /// Exit status for whoever started the machine.
        status: u8,
    },
}

/// How `xl list` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListForm {
    /// The table.
    Table,
    /// With UUIDs (`-v`).
    Verbose,
    /// JSON (`-l`).
    Long,
}

/// How a guest is asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopKind {
    /// To power itself off.
    Poweroff,
    /// To restart.
    Reboot,
}

impl StopKind {
    /// What is written to control/shutdown.
    pub const fn request(self) -> &'static str {
        match self {
            Self::Poweroff => "poweroff",
            Self::Reboot => "reboot",
        }
    }
}

/// A command line that is none: what to print; the status is 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misuse(pub String);

/// Name, arguments, description, options.
pub(crate) type Usage = (&'static str, &'static str, &'static str, &'static str);

const XL: [Usage; 16] = [
    (
        "create",
        "[options] <Guest|ConfigFile>",
        "Create a guest from a configuration of the boot bundle",
        "-c                      Connect to the console after the guest is created.\n",
    ),
    (
        "list",
        "[options] [Domain]",
        "List information about all/some domains",
        "-l, --long              Output all details as JSON\n-v, --verbose           Prints out UUIDs and reason codes\n",
    ),
    ("destroy", "<Domain>", "Terminate a domain immediately", ""),
    (
        "shutdown",
        "[options] <-a|Domain>",
        "Issue a shutdown signal to a domain",
        "-a, --all               Shutdown all guest domains.\n-w, --wait              Wait for guest(s) to shutdown.\n",
    ),
    (
        "reboot",
        "[options] <-a|Domain>",
        "Issue a reboot signal to a domain",
        "-a, --all               Reboot all guest domains.\n-w, --wait              Wait for guest(s) to reboot.\n",
    ),
    ("pause", "<Domain>", "Pause execution of a domain", ""),
    ("unpause", "<Domain>", "Unpause a paused domain", ""),
    ("console", "<Domain>", "Attach to domain's console (Ctrl+] leaves it)", ""),
    ("domid", "<DomainName>", "Convert a domain name to domain id", ""),
    ("domname", "<DomainId>", "Convert a domain id to domain name", ""),
    ("info", "", "Get information about the machine", ""),
    (
        "top",
        "[options]",
        "Monitor what all domains do, per second",
        "-b, --batch             Tables one after the other, for scripts; one unless -i says more.\n\
         -d, --delay=SECONDS     Seconds between two tables (default 1).\n\
         -i, --iterations=N      Tables before it ends; else it runs until a key is pressed.\n",
    ),
    (
        "counters",
        "[-l] [Domain]",
        "Print what kernel and domains counted since each domain's start",
        "-l, --long              As JSON\n",
    ),
    (
        "trace",
        "start [KiB]|stop|dump|free",
        "Record switches, signals, interrupts and guest exits",
        "start [KiB]             Start, in a ring of this size (default 512); the oldest records are overwritten.\n\
         stop                    Stop; what was recorded stays.\n\
         dump                    Print it: time stamp, kind, CPU, thread, two words by kind.\n\
         free                    Give the ring's memory back.\n",
    ),
    ("uptime", "[-s] [Domain]", "Print uptime for all/some domains", "-s                      Short form\n"),
    ("dmesg", "", "Read the log of all domains", ""),
];

/// Further commands of xl(1), which are refused by name.
const XL_UNSUPPORTED: [&str; 55] = [
    "block-attach",
    "block-detach",
    "block-list",
    "button-press",
    "cd-eject",
    "cd-insert",
    "channel-list",
    "claims",
    "config-update",
    "cpupool-create",
    "cpupool-destroy",
    "cpupool-list",
    "cpupool-migrate",
    "cpupool-numa-split",
    "cpupool-rename",
    "debug-keys",
    "devd",
    "dump-core",
    "getenforce",
    "loadpolicy",
    "mem-max",
    "mem-set",
    "migrate",
    "migrate-receive",
    "network-attach",
    "network-detach",
    "network-list",
    "pci-assignable-add",
    "pci-assignable-list",
    "pci-assignable-remove",
    "pci-attach",
    "pci-detach",
    "pci-list",
    "psr-cat-show",
    "qemu-monitor-command",
    "rename",
    "restore",
    "resume",
    "save",
    "sched-credit",
    "sched-credit2",
    "sched-rtds",
    "set-parameters",
    "setenforce",
    "sharing",
    "suspend",
    "sysrq",
    "tmem-list",
    "trigger",
    "usbdev-attach",
    "usbdev-list",
    "vcpu-list",
    "vcpu-pin",
    "vcpu-set",
    "vncviewer",
];

/// Reads a command line. `xl` may be left out.
///
/// # Errors
/// [`Misuse`] with what to print.
pub fn parse(line: &str) -> Result<Command, Misuse> {
    let mut words: Vec<&str> = line.split_whitespace().collect();
    let has_xl = words.first() == Some(&"xl");
    if has_xl {
        words.remove(0);
    }
    let Some((&name, arguments)) = words.split_first() else {
        return Ok(if has_xl { Command::Print(help()) } else { Command::Nothing });
    };
    match name {
        "help" | "-h" | "--help" | "?" => match arguments.first() {
            None => Ok(Command::Print(help())),
            Some(&command) => help_for(command).map(Command::Print).ok_or_else(|| unknown(command)),
        },
        "quit" | "exit" | "poweroff" if !has_xl => quit(arguments),
        _ => match XL.iter().find(|usage| usage.0 == name) {
            Some(usage) if arguments.iter().any(|a| matches!(*a, "-h" | "--help")) => {
                Ok(Command::Print(usage_text(usage)))
            }
            Some(usage) => xl(usage, arguments),
            None => Err(unknown(name)),
        },
    }
}

fn unknown(name: &str) -> Misuse {
    if XL_UNSUPPORTED.contains(&name) {
        return Misuse(format!("xl knows the command `{name}`, but it is not supported here\n"));
    }
    let names = XL.iter().map(|usage| usage.0).chain(["help", "quit"]);
    Misuse(match nearest(name, names) {
        Some(near) => format!("`{name}` is no command; did you mean `{near}`?\n"),
        None => format!("`{name}` is no command; `help` lists them\n"),
    })
}

pub(crate) fn misuse(usage: &Usage, message: &str) -> Misuse {
    Misuse(format!("xl {}: {message}\n\n{}", usage.0, usage_text(usage)))
}

fn xl(usage: &Usage, words: &[&str]) -> Result<Command, Misuse> {
    let arguments = |allowed| Arguments::new(usage, words, allowed);
    let one = || arguments("")?.one(usage);
    Ok(match usage.0 {
        "list" => {
            let arguments = arguments("lv")?;
            let form = match (arguments.has('l'), arguments.has('v')) {
                (true, _) => ListForm::Long,
                (false, true) => ListForm::Verbose,
                (false, false) => ListForm::Table,
            };
            Command::List { only: arguments.at_most_one(usage)?, form }
        }
        "top" => {
            let arguments = arguments("bd:i:")?;
            arguments.none(usage)?;
            let is_batch = arguments.has('b');
            let iterations = arguments.number(usage, 'i', u32::MAX)?.or(is_batch.then_some(1));
            let delay_s = arguments.number(usage, 'd', DELAY_MAX)?.unwrap_or(1);
            Command::Top { is_batch, delay_s, iterations }
        }
        "counters" => {
            let arguments = arguments("l")?;
            let form = if arguments.has('l') { ListForm::Long } else { ListForm::Table };
            Command::Counters { only: arguments.at_most_one(usage)?, form }
        }
        "trace" => trace(usage, &arguments("")?.names)?,
        "info" => arguments("")?.none(usage).map(|()| Command::Info)?,
        "dmesg" => arguments("")?.none(usage).map(|()| Command::Dmesg)?,
        "console" => Command::Console(one()?),
        "destroy" => Command::Destroy(one()?),
        "pause" => Command::Pause(one()?),
        "unpause" => Command::Unpause(one()?),
        "domid" => Command::DomId(one()?),
        "domname" => Command::DomName(one()?),
        "create" => {
            let arguments = arguments("c")?;
            Command::Create { name: arguments.one(usage)?, attaches: arguments.has('c') }
        }
        "uptime" => {
            let arguments = arguments("s")?;
            let guests = arguments.names.iter().map(|&name| name.to_owned()).collect();
            Command::Uptime { is_short: arguments.has('s'), guests }
        }
        name => {
            let arguments = arguments("aw")?;
            let kind = if name == "reboot" { StopKind::Reboot } else { StopKind::Poweroff };
            let guests = match (arguments.has('a'), arguments.names.is_empty()) {
                (true, true) => None,
                (false, false) => Some(arguments.names.iter().map(|&name| name.to_owned()).collect()),
                (true, false) => return Err(misuse(usage, "give -a or a domain, not both")),
                (false, true) => return Err(misuse(usage, "an argument is missing")),
            };
            Command::Stop { kind, guests, waits: arguments.has('w') }
        }
    })
}

fn trace(usage: &Usage, words: &[&str]) -> Result<Command, Misuse> {
    let order = match words {
        ["start"] => TraceOrder::Start(KIB_DEFAULT),
        ["start", kib] => match kib.parse() {
            Ok(kib) => TraceOrder::Start(kib),
            Err(_) => return Err(misuse(usage, &format!("`{kib}` is no number of KiB"))),
        },
        ["stop"] => TraceOrder::Stop,
        ["dump"] => TraceOrder::Dump,
        ["free"] => TraceOrder::Free,
        [] => return Err(misuse(usage, "an argument is missing")),
        ["stop" | "dump" | "free" | "start", ..] => {
            return Err(misuse(usage, "there are too many arguments"));
        }
        [other, ..] => return Err(misuse(usage, &format!("there is no `xl trace {other}`"))),
    };
    Ok(Command::Trace(order))
}

fn quit(words: &[&str]) -> Result<Command, Misuse> {
    let (mut is_now, mut status) = (false, 0);
    for word in words {
        match (*word, word.parse::<u8>()) {
            ("--now", _) => is_now = true,
            // The machine's debug-exit device has room for small numbers only.
            (_, Ok(number @ 0..=15)) => status = number,
            _ => return Err(Misuse("usage: quit [--now] [STATUS]   (STATUS is 0 to 15)\n".into())),
        }
    }
    Ok(Command::Quit { is_now, status })
}

fn usage_text((name, arguments, description, options): &Usage) -> String {
    let mut text = format!("Usage: xl {name} {arguments}\n\n{description}.\n\n");
    if !options.is_empty() {
        text.push_str("Options:\n\n");
        text.push_str(options);
        text.push('\n');
    }
    text
}

fn help_for(command: &str) -> Option<String> {
    match command {
        "quit" => Some(
            "Usage: quit [--now] [STATUS]\n\nShut down all guests, then end the machine. --now does not wait for \
             guests.\n\n"
                .into(),
        ),
        "help" => Some("Usage: help [COMMAND]\n\n".into()),
        _ => XL.iter().find(|usage| usage.0 == command).map(usage_text),
    }
}

fn help() -> String {
    let mut text = String::from("xl full list of subcommands:\n\n");
    for (name, _, description, _) in XL {
        // Writing to a string cannot fail.
        let _ok = writeln!(text, " {name:<19} {description}");
    }
    text.push_str("\nat this prompt also:\n\n");
    for (name, description) in [
        ("help [COMMAND]", "Print this list, or how to use a command"),
        ("quit [--now]", "Shut down all guests and end the machine"),
    ] {
        let _ok = writeln!(text, " {name:<19} {description}");
    }
    text.push_str("\nCtrl+] leaves a guest's console.\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(name: &str) -> String {
        name.into()
    }

    #[test]
    fn every_command() {
        use Command::*;
        let list = |only, form| List { only, form };
        let stop = |kind, guests: Option<&[&str]>, waits| Stop {
            kind,
            guests: guests.map(|guests| guests.iter().map(|g| name(g)).collect()),
            waits,
        };
        for (line, expected) in [
            ("", Nothing),
            ("  \t", Nothing),
            ("xl list", list(None, ListForm::Table)),
            ("list", list(None, ListForm::Table)),
            ("xl list web", list(Some(name("web")), ListForm::Table)),
            ("xl list -v", list(None, ListForm::Verbose)),
            ("xl list --long 3", list(Some(name("3")), ListForm::Long)),
            ("xl info", Info),
            ("xl top", Top { is_batch: false, delay_s: 1, iterations: None }),
            ("xl top -b", Top { is_batch: true, delay_s: 1, iterations: Some(1) }),
            ("xl top -b -d 3 -i 5", Top { is_batch: true, delay_s: 3, iterations: Some(5) }),
            ("xl top -bd3 --iterations=7", Top { is_batch: true, delay_s: 3, iterations: Some(7) }),
            ("xl top --delay 2 -i 1 -i2", Top { is_batch: false, delay_s: 2, iterations: Some(2) }),
            ("xl counters", Counters { only: None, form: ListForm::Table }),
            ("xl counters -l web", Counters { only: Some(name("web")), form: ListForm::Long }),
            ("xl trace start", Trace(TraceOrder::Start(512))),
            ("xl trace start 4096", Trace(TraceOrder::Start(4096))),
            ("xl trace stop", Trace(TraceOrder::Stop)),
            ("xl trace dump", Trace(TraceOrder::Dump)),
            ("xl trace free", Trace(TraceOrder::Free)),
            ("xl console web", Console(name("web"))),
            ("xl dmesg", Dmesg),
            ("xl shutdown web", stop(StopKind::Poweroff, Some(&["web"]), false)),
            ("xl shutdown -w web db", stop(StopKind::Poweroff, Some(&["web", "db"]), true)),
            ("xl shutdown -aw", stop(StopKind::Poweroff, None, true)),
            ("xl reboot --all --wait", stop(StopKind::Reboot, None, true)),
            ("xl destroy 7", Destroy(name("7"))),
            ("xl create web.cfg", Create { name: name("web.cfg"), attaches: false }),
            ("xl create -c web", Create { name: name("web"), attaches: true }),
            ("xl pause web", Pause(name("web"))),
            ("xl unpause web", Unpause(name("web"))),
            ("xl domid web", DomId(name("web"))),
            ("xl domname 7", DomName(name("7"))),
            ("xl uptime", Uptime { is_short: false, guests: Vec::new() }),
            ("xl uptime -s web", Uptime { is_short: true, guests: [name("web")].into() }),
            ("quit", Quit { is_now: false, status: 0 }),
            ("poweroff --now 3", Quit { is_now: true, status: 3 }),
        ] {
            assert_eq!(parse(line), Ok(expected), "{line}");
        }
    }

    #[test]
    fn every_misuse() {
        for (line, part) in [
            ("xl lst", "did you mean `list`"),
            ("shutdwon web", "did you mean `shutdown`"),
            ("frobnicate", "`help` lists them"),
            ("xl pci-attach", "not supported here"),
            ("xl quit", "did you mean `quit`"),
            ("xl console", "an argument is missing"),
            ("xl console a b", "too many arguments"),
            ("xl shutdown", "an argument is missing"),
            ("xl shutdown -a web", "not both"),
            ("xl shutdown -F web", "`-F` is not supported"),
            ("xl list --numa", "`--numa` is not supported"),
            ("xl info x", "takes no arguments"),
            ("xl top x", "takes no arguments"),
            ("xl top -d", "needs a value"),
            ("xl top -d 0", "from 1 to 86400, not `0`"),
            ("xl top -bi x", "-i takes a number"),
            ("xl top --delay=", "not ``"),
            ("xl top --batch=1", "takes no value"),
            ("xl top -:", "not supported"),
            ("xl list -", "`-` is not supported"),
            ("xl counters -v", "`-v` is not supported"),
            ("xl trace", "an argument is missing"),
            ("xl trace start x", "no number of KiB"),
            ("xl trace stop 1", "too many arguments"),
            ("xl trace go", "there is no `xl trace go`"),
            ("xl create -p web", "`-p` is not supported"),
            ("quit 16", "usage: quit"),
            ("quit soon", "usage: quit"),
            ("help lst", "did you mean `list`"),
        ] {
            let Err(Misuse(text)) = parse(line) else { panic!("{line}") };
            assert!(text.contains(part) && text.ends_with('\n'), "{line}: {text}");
        }
    }

    #[test]
    fn help_names_every_command() {
        let Ok(Command::Print(text)) = parse("help") else { panic!() };
        for usage in XL {
            assert!(text.contains(usage.0));
            let line = format!("xl help {}", usage.0);
            assert!(matches!(parse(&line), Ok(Command::Print(text)) if text.starts_with("Usage: xl ")));
            let line = format!("xl {} --help", usage.0);
            assert!(matches!(parse(&line), Ok(Command::Print(text)) if text.starts_with("Usage: xl ")));
        }
        assert!(matches!(parse("xl"), Ok(Command::Print(_))));
        assert!(matches!(parse("help quit"), Ok(Command::Print(_))));
    }

    proptest! {
        #[test]
        fn arbitrary_lines_never_panic(line: String, tail in "[-a-z ]{0,20}") {
            let _any = parse(&line);
            let _any = parse(&format!("xl {tail}"));
        }
    }
}
