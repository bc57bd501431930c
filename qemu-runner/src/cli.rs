//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::accel::Accel;
use crate::guest::package::Name;
use crate::qemu::Net;

/// Builds Ailurus, starts it in QEMU with guests, and attaches to the first guest's console.
///
/// Without a command: everything by default, with Debian's stock kernel as the guest. Ctrl+] goes to the
/// operator's prompt, Ctrl-A x ends QEMU.
///
/// Exit status: 0 success; 1 a command or guest failed; 2 an option, configuration or file is wrong, or
/// something is missing; 3 timeout; 4 the machine died; 5 a figure is worse than the baseline's.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Action>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Run guests: at the terminal, or scripted with --exec and --until.
    Run(Box<RunArgs>),
    /// Measure under -icount and print the figures.
    Bench(BenchArgs),
    /// Make a disk image with a whole operating system, which GRUB boots.
    #[command(subcommand)]
    MakeGuest(System),
}

/// Operating systems.
#[derive(Debug, Subcommand)]
pub enum System {
    /// Debian, by debootstrap. Needs root.
    Debian(DebianArgs),
}

/// Options of `make-guest debian`.
#[derive(Debug, Args)]
pub struct DebianArgs {
    /// The image; GRUB and the guest's configuration are written beside it. By default target/guest/whole/debian.img.
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Replace an image that exists.
    #[arg(long)]
    pub force: bool,
    /// Size of the disk, with M or G.
    #[arg(long, value_name = "SIZE", default_value = "4G", value_parser = size)]
    pub size: u64,
    /// Debian's release.
    #[arg(long, value_name = "NAME", default_value = "bookworm")]
    pub suite: String,
    /// Where the packages come from.
    #[arg(long, value_name = "URL", default_value = "http://deb.debian.org/debian")]
    pub mirror: String,
    /// A further package to install. May be repeated.
    #[arg(long = "package", value_name = "NAME")]
    pub packages: Vec<String>,
    /// Name of the system.
    #[arg(long, value_name = "NAME", default_value = "debian")]
    pub hostname: String,
    /// Root's password, for the console; without it one is made up and shown.
    #[arg(long, value_name = "PASSWORD")]
    pub root_password: Option<String>,
    /// A public key with which root may log in by ssh. May be repeated.
    #[arg(long, value_name = "FILE")]
    pub ssh_key: Vec<PathBuf>,
}

/// Bytes of a size such as 4G.
fn size(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.strip_suffix(['M', 'G']) {
        Some(digits) if text.ends_with('M') => (digits, 1u64 << 20),
        Some(digits) => (digits, 1 << 30),
        None => return Err("a number and M or G, as 4G".to_owned()),
    };
    let number: u64 = digits.parse().map_err(|_| "a number and M or G, as 4G".to_owned())?;
    number.checked_mul(unit).ok_or_else(|| "too much".to_owned())
}

/// Size of a trace's ring if none is given, as `xl trace start` has it.
const TRACE_KIB: u32 = 512;

/// Options of `run`.
#[derive(Debug, Args, Default)]
pub struct RunArgs {
    /// An xl.cfg file; paths in it are host paths, absolute or relative to the file. May be repeated; none:
    /// the default guest.
    #[arg(long = "guest", value_name = "FILE.cfg", conflicts_with_all = ["kernel", "kernel_package", "initrd", "disk"])]
    pub guests: Vec<PathBuf>,
    /// Run a command at the operator's prompt once the guests are up, its output to stdout. May be repeated;
    /// then the guests are shut down.
    #[arg(long = "exec", value_name = "CMD")]
    pub exec: Vec<String>,
    /// Succeed when a line of any guest's console matches.
    #[arg(long, value_name = "REGEX")]
    pub until: Option<String>,
    /// Give up after this time, counted from the machine's start.
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<u64>,
    /// Write one file per domain's console and log to this folder.
    #[arg(long, value_name = "DIR")]
    pub log: Option<PathBuf>,
    /// Record what kernel and guests do while the commands of --exec run (without any: until the line of
    /// --until), and write it to this file, for ui.perfetto.dev and chrome://tracing.
    #[arg(long, value_name = "FILE.json")]
    pub trace: Option<PathBuf>,
    /// Size of the trace's ring: 32 bytes a record, the oldest are overwritten.
    #[arg(long, value_name = "KIB", default_value_t = TRACE_KIB, requires = "trace")]
    pub trace_kib: u32,
    /// Memory of the machine.
    #[arg(long, value_name = "MIB")]
    pub memory: Option<u64>,
    /// CPUs of the machine.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub smp: u32,
    /// Accelerator; by default KVM where nested SVM works, else software emulation.
    #[arg(long, value_enum)]
    pub accel: Option<Accel>,
    /// Deterministic: virtual time is the count of instructions.
    #[arg(long)]
    pub icount: bool,
    /// A further argument for QEMU. May be repeated.
    #[arg(long = "qemu-arg", value_name = "ARG", allow_hyphen_values = true)]
    pub qemu_args: Vec<String>,
    /// The network outside.
    #[arg(long, value_enum, default_value = "user")]
    pub net: Net,
    /// Forward a host port to a guest, as QEMU writes it: tcp::8080-:80. May be repeated.
    #[arg(long, value_name = "RULE")]
    pub hostfwd: Vec<String>,
    /// A kernel in place of the default guest's.
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// The default guest with the kernel of another Debian package: linux-image-cloud-amd64,
    /// linux-image-amd64/trixie, or linux-image-amd64/newest for the newest in Debian's archive.
    #[arg(long, value_name = "NAME[/SUITE]", conflicts_with = "kernel")]
    pub kernel_package: Option<Name>,
    /// An initial RAM disk in place of the default guest's.
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// A disk image in place of the default guest's root disk.
    #[arg(long, value_name = "FILE")]
    pub disk: Option<PathBuf>,
    /// Pack guests' kernels as they are: their VMM unpacks them (slow under emulation).
    #[arg(long)]
    pub keep_compressed: bool,
    /// A system manifest in place of image-builder/system.toml, or, without [vmm], in addition to it.
    #[arg(long, value_name = "FILE")]
    pub manifest: Option<PathBuf>,
}

/// Options of `bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// What to measure: groups (paths, expensive, exits, cpu, blk, net, boot, memory, sizes, lines, growth), single
    /// figures, or `quick`, which is what has a promise; nothing: all but growth.
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// Give up a machine after this time.
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    pub timeout: u64,
    /// Write the streams of the guest's machine to this folder.
    #[arg(long, value_name = "DIR")]
    pub log: Option<PathBuf>,
    /// Write the figures to this file, as a list of objects with name, value, unit, goal, peer,
    /// higher_is_better and more.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Compare with the figures that an earlier run wrote with --json; one that is worse by more than 3 %
    /// is exit status 5.
    #[arg(long, value_name = "FILE")]
    pub baseline: Option<PathBuf>,
    /// Write pictures of the figures to this folder, as SVG.
    #[arg(long, value_name = "DIR")]
    pub plots: Option<PathBuf>,
}

impl RunArgs {
    /// `run` with no options.
    pub fn by_default() -> Self {
        Self { smp: 1, trace_kib: TRACE_KIB, ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_documented_command_line_is_understood() {
        Cli::command().debug_assert();
        let words = "qemu-runner run --guest web.cfg --guest db.cfg --exec x --exec y --timeout 120 --log out/ \
                     --until z --memory 1024 --smp 2 --accel tcg --icount --qemu-arg -d --net none --hostfwd \
                     tcp::8080-:80 --trace t.json --trace-kib 64";
        let cli = Cli::try_parse_from(words.split_whitespace()).unwrap();
        let Some(Action::Run(run)) = cli.command else { panic!("not run") };
        assert_eq!((run.guests.len(), run.exec.len(), run.timeout, run.smp), (2, 2, Some(120), 2));
        assert_eq!((run.accel, run.icount, run.net), (Some(Accel::Tcg), true, Net::None));
        assert_eq!(run.qemu_args, ["-d"]);
        assert_eq!((run.trace, run.trace_kib), (Some("t.json".into()), 64));
        assert!(Cli::try_parse_from(["qemu-runner", "run", "--trace-kib", "64"]).is_err());
        let words = "qemu-runner bench paths round-trip --json new.json --baseline old.json";
        let Some(Action::Bench(bench)) = Cli::try_parse_from(words.split_whitespace()).unwrap().command
        else {
            panic!("not bench")
        };
        assert_eq!(bench.names, ["paths", "round-trip"]);
        assert!(bench.json.is_some() && bench.baseline.is_some());
        let words = "qemu-runner make-guest debian --output a.img --size 8G --suite trixie --ssh-key k.pub --package vim";
        let Some(Action::MakeGuest(System::Debian(debian))) =
            Cli::try_parse_from(words.split_whitespace()).unwrap().command
        else {
            panic!("not make-guest")
        };
        assert_eq!(
            (debian.size, debian.suite.as_str(), debian.hostname.as_str()),
            (8 << 30, "trixie", "debian")
        );
        assert!(debian.root_password.is_none() && !debian.force);
        assert_eq!((size("64M"), size("4096"), size("G")), (Ok(64 << 20), size("x"), size("")));
        assert!(size("99999999999G").is_err());
        assert!(Cli::try_parse_from(["qemu-runner"]).unwrap().command.is_none());
        assert!(Cli::try_parse_from(["qemu-runner", "run", "--guest", "a", "--kernel", "b"]).is_err());
        let package = |name| Cli::try_parse_from(["qemu-runner", "run", "--kernel-package", name]);
        assert!(package("linux-image-rt-amd64/trixie").is_ok());
        assert!(package("bash").unwrap_err().to_string().contains("is no kernel package"));
    }
}
