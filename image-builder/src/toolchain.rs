//! Finding a Rust toolchain that builds for `x86_64-unknown-none`.
//!
//! In this order: the active toolchain when it has the target; rustup adds the target; the active
//! toolchain's own sources of `core` and `alloc`; Debian's rustc-web, cargo-web and rust-web-src. Sources
//! are built with `-Zbuild-std`, which a stable compiler accepts when RUSTC_BOOTSTRAP is set.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Error;
use crate::progress::Progress;

/// The machine's target.
pub const TARGET: &str = "x86_64-unknown-none";
/// Packages of the last resort.
const DEBIAN_PACKAGES: [&str; 4] = ["rustc-web", "cargo-web", "rust-web-src", "lld"];
/// Where Debian's packages put the compiler and its sources.
const DEBIAN_SYSROOT: &str = "/usr";

/// A toolchain that builds for the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toolchain {
    /// The cargo to run.
    pub cargo: PathBuf,
    /// The compiler, when it is not the one that cargo finds by itself.
    pub rustc: Option<PathBuf>,
    /// `core` and `alloc` are built from source.
    pub is_from_source: bool,
    /// For people.
    pub description: String,
}

/// What is there to choose from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The active compiler's version; empty: there is none.
    pub version: String,
    /// The active toolchain has the target.
    pub has_target: bool,
    /// The active toolchain has the sources of the standard library.
    pub has_source: bool,
    /// rustup is there and manages the active toolchain.
    pub has_rustup: bool,
    /// Debian's compiler and its sources are installed: its version.
    pub debian: Option<String>,
    /// apt-get is there.
    pub has_apt: bool,
    /// Packages may be installed (root, or sudo that asks nothing).
    pub may_install: bool,
}

/// What to do next to get a toolchain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// The active one as it is.
    Active,
    /// `rustup target add`.
    RustupAdd,
    /// The active one, with `core` and `alloc` from source.
    ActiveSource,
    /// Debian's, with `core` and `alloc` from source.
    Debian,
    /// Install Debian's packages.
    DebianInstall,
    /// There is none, and none may be installed.
    Nothing,
}

/// Chooses; `rustup_failed` and `install_failed` say what was tried in vain.
pub fn choose(facts: &Facts, rustup_failed: bool, install_failed: bool) -> Choice {
    match facts {
        f if f.has_target => Choice::Active,
        f if f.has_rustup && !rustup_failed => Choice::RustupAdd,
        f if f.has_source => Choice::ActiveSource,
        f if f.debian.is_some() => Choice::Debian,
        f if f.has_apt && f.may_install && !install_failed => Choice::DebianInstall,
        _ => Choice::Nothing,
    }
}

/// Finds a toolchain, adding to it or installing one where that is possible, and says which one it took.
///
/// # Errors
/// There is none; the message has the commands to type.
pub fn find(progress: Progress) -> Result<Toolchain, Error> {
    let (mut rustup_failed, mut install_failed) = (false, false);
    loop {
        let facts = facts();
        let cargo = || std::env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from);
        match choose(&facts, rustup_failed, install_failed) {
            Choice::Active => {
                return Ok(Toolchain {
                    cargo: cargo(),
                    rustc: None,
                    is_from_source: false,
                    description: format!("{} with its {TARGET} target", facts.version),
                });
            }
            Choice::RustupAdd => {
                progress
                    .say(format!("The target {TARGET} is missing: running `rustup target add {TARGET}`."));
                rustup_failed = !run(Command::new("rustup").args(["target", "add", TARGET]));
                if rustup_failed {
                    progress.say("rustup could not add it; looking for another way.");
                }
            }
            Choice::ActiveSource => {
                return Ok(Toolchain {
                    cargo: cargo(),
                    rustc: None,
                    is_from_source: true,
                    description: format!("{}, core and alloc built from its sources", facts.version),
                });
            }
            Choice::Debian => {
                return Ok(Toolchain {
                    cargo: "/usr/bin/cargo".into(),
                    rustc: Some("/usr/bin/rustc".into()),
                    is_from_source: true,
                    description: format!(
                        "Debian's {}, core and alloc built from rust-web-src",
                        facts.debian.unwrap_or_default()
                    ),
                });
            }
            Choice::DebianInstall => {
                progress.say(format!(
                    "No toolchain builds for {TARGET}: installing {}.",
                    DEBIAN_PACKAGES.join(" ")
                ));
                install_failed = !run(as_root(&["apt-get", "install", "-y"]).args(DEBIAN_PACKAGES));
            }
            Choice::Nothing => return Err(Error::Toolchain(advice(&facts))),
        }
    }
}

/// What to type when nothing could be done.
fn advice(facts: &Facts) -> String {
    let mut text = format!("No Rust toolchain here builds for {TARGET}. One of these helps:\n");
    text.push_str(&format!("    rustup target add {TARGET}\n    rustup component add rust-src\n"));
    if facts.has_apt {
        text.push_str(&format!("    sudo apt-get install {}\n", DEBIAN_PACKAGES.join(" ")));
    }
    text
}

/// A command that has root's rights, by sudo if need be.
pub fn as_root(words: &[&str]) -> Command {
    let mut all: Vec<&str> = Vec::new();
    if !is_root() {
        all.extend(["sudo", "-n"]);
    }
    all.extend(words);
    let mut command = Command::new(all[0]);
    command.args(&all[1..]);
    command.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
    command
}

/// Whether packages may be installed without asking anybody.
pub fn may_install() -> bool {
    is_root() || run(Command::new("sudo").args(["-n", "true"]).stderr(Stdio::null()))
}

fn is_root() -> bool {
    output(Command::new("id").arg("-u")).is_some_and(|id| id == "0")
}

/// Whether a program is in the search path.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    // Debian keeps mke2fs and friends out of an ordinary user's path.
    let extra = ["/usr/sbin".into(), "/sbin".into()];
    std::env::split_paths(&path).chain(extra).map(|dir| dir.join(name)).find(|file| file.is_file())
}

fn facts() -> Facts {
    let version = output(Command::new("rustc").arg("--version")).unwrap_or_default();
    let sysroot = output(Command::new("rustc").args(["--print", "sysroot"])).map(PathBuf::from);
    let has = |part: &str| sysroot.as_ref().is_some_and(|root| root.join("lib/rustlib").join(part).exists());
    let is_of_rustup =
        sysroot.as_ref().is_some_and(|root| root.components().any(|c| c.as_os_str() == "toolchains"));
    Facts {
        has_target: has(&format!("{TARGET}/lib")),
        has_source: has("src/rust/library/core/src/lib.rs"),
        has_rustup: is_of_rustup && find_program("rustup").is_some(),
        debian: debian_compiler(Path::new(DEBIAN_SYSROOT)),
        has_apt: find_program("apt-get").is_some(),
        may_install: may_install(),
        version,
    }
}

/// Debian's compiler, when its matching sources are there too.
fn debian_compiler(prefix: &Path) -> Option<String> {
    let rustc = prefix.join("bin/rustc");
    prefix.join("bin/cargo").exists().then_some(())?;
    let sysroot = PathBuf::from(output(Command::new(&rustc).args(["--print", "sysroot"]))?);
    sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").exists().then_some(())?;
    output(Command::new(&rustc).arg("--version"))
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.stderr(Stdio::null()).stdin(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn run(command: &mut Command) -> bool {
    command.status().is_ok_and(|status| status.success())
}

impl Toolchain {
    /// `cargo build` for the machine, set up for this toolchain.
    pub fn cargo_build(&self) -> Command {
        let mut command = Command::new(&self.cargo);
        command.args(["build", "--release", "--target", TARGET]);
        // The machine's link options stand in .cargo/config.toml; these would replace them.
        command.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
        if let Some(rustc) = &self.rustc {
            command.env("RUSTC", rustc).env("CARGO_TARGET_X86_64_UNKNOWN_NONE_LINKER", "ld.lld");
            command.env_remove("RUSTUP_TOOLCHAIN");
        }
        if self.is_from_source {
            command.env("RUSTC_BOOTSTRAP", "1");
            command.args(["-Zbuild-std=core,alloc", "-Zbuild-std-features=compiler-builtins-mem"]);
        }
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cheapest_way_is_taken_first() {
        let mut facts = Facts { has_apt: true, may_install: true, ..Facts::default() };
        assert_eq!(choose(&facts, false, false), Choice::DebianInstall);
        assert_eq!(choose(&facts, false, true), Choice::Nothing);
        facts.debian = Some("rustc 1".into());
        assert_eq!(choose(&facts, false, false), Choice::Debian);
        facts.has_source = true;
        assert_eq!(choose(&facts, false, false), Choice::ActiveSource);
        facts.has_rustup = true;
        assert_eq!(choose(&facts, false, false), Choice::RustupAdd);
        assert_eq!(choose(&facts, true, false), Choice::ActiveSource);
        facts.has_target = true;
        assert_eq!(choose(&facts, false, false), Choice::Active);
    }

    #[test]
    fn nothing_is_installed_without_the_right_to() {
        let facts = Facts { has_apt: true, ..Facts::default() };
        assert_eq!(choose(&facts, false, false), Choice::Nothing);
        assert!(advice(&facts).contains("sudo apt-get install rustc-web cargo-web rust-web-src"));
        assert!(advice(&facts).contains("rustup target add x86_64-unknown-none"));
        assert!(!advice(&Facts::default()).contains("apt-get"));
    }

    #[test]
    fn sources_are_built_with_the_memory_functions() {
        let toolchain = Toolchain {
            cargo: "cargo".into(),
            rustc: Some("/usr/bin/rustc".into()),
            is_from_source: true,
            description: String::new(),
        };
        let command = format!("{:?}", toolchain.cargo_build());
        assert!(
            command.contains("-Zbuild-std=core,alloc") && command.contains("compiler-builtins-mem"),
            "{command}"
        );
        assert!(command.contains("RUSTC_BOOTSTRAP=\"1\""), "{command}");
    }
}
