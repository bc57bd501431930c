//! A whole Debian as a tree of files, made by debootstrap and kept: one per recipe.
//!
//! Invariant: a tree under its final name is complete. What is one system's own is not in the recipe; see
//! [`super::personal`].

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use image_builder::Progress;

use crate::Error;
use crate::host::{sha256, tools};

/// What a Debian that boots by itself has beyond debootstrap's standard installation.
const PACKAGES: [&str; 9] = [
    "ca-certificates",
    "dbus",
    // `update-grub`, which a new kernel's installation runs.
    "grub2-common",
    "libpam-systemd",
    "linux-image-amd64",
    "openssh-server",
    "systemd-sysv",
    "systemd-timesyncd",
    // How the initial RAM disk is compressed; without it gzip, which takes the guest longer to unpack.
    "zstd",
];
/// Lines of debootstrap's output that are shown when it fails.
const TAIL: usize = 15;

/// Which files a system consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// Debian's release.
    pub suite: String,
    /// Where its packages come from.
    pub mirror: String,
    packages: Vec<String>,
}

impl Recipe {
    /// A release with what every system needs, and `further` packages.
    pub fn new(suite: &str, mirror: &str, further: &[String]) -> Self {
        let mut packages: Vec<String> = PACKAGES.iter().map(|name| (*name).to_owned()).collect();
        packages.extend(further.iter().cloned());
        packages.sort();
        packages.dedup();
        Self { suite: suite.to_owned(), mirror: mirror.to_owned(), packages }
    }

    /// debootstrap takes names from here into scripts and paths.
    fn check(&self) -> Result<(), Error> {
        let is_name = |text: &str| {
            text.starts_with(|c: char| c.is_ascii_alphanumeric())
                && text.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
        };
        if !is_name(&self.suite) {
            return Err(Error::Usage(format!("--suite: `{}` is no name of a release", self.suite)));
        }
        let is_url = ["http://", "https://", "file:/"].iter().any(|scheme| self.mirror.starts_with(scheme));
        if !is_url || self.mirror.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(Error::Usage(format!("--mirror: `{}` is no URL of packages", self.mirror)));
        }
        match self.packages.iter().find(|name| !is_name(name)) {
            Some(name) => Err(Error::Usage(format!("--package: `{name}` is no name of a package"))),
            None => Ok(()),
        }
    }

    fn file_name(&self) -> String {
        let text = format!("{} {} {}", self.suite, self.mirror, self.packages.join(","));
        format!("{}-{}", self.suite, &sha256(&[text.as_bytes()])[..16])
    }
}

/// The recipe's tree below `dir`, made if it is not there. The caller holds the folder's lock.
///
/// # Errors
/// debootstrap cannot be had, or fails; its last lines.
pub fn get(recipe: &Recipe, dir: &Path, progress: Progress) -> Result<PathBuf, Error> {
    recipe.check()?;
    let tree = dir.join(recipe.file_name());
    if tree.exists() {
        return Ok(tree);
    }
    let debootstrap = tools::ensure(tools::DEBOOTSTRAP, progress)?;
    remove_others(recipe, dir)?;
    let part = tree.with_extension("part");
    let packages = dir.join("debs");
    std::fs::create_dir_all(&packages).map_err(Error::path(&packages))?;
    let step = progress.step(format!("Debian {} by debootstrap", recipe.suite));
    let mut command = Command::new(debootstrap);
    command.env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive").arg("--arch=amd64");
    command.arg(format!("--cache-dir={}", packages.display()));
    command.arg(format!("--include={}", recipe.packages.join(",")));
    command.arg(&recipe.suite).arg(&part).arg(&recipe.mirror);
    let log = run(command, |line| step.detail(line))?;
    let log_file = part.join("debootstrap/debootstrap.log");
    if let Err(lines) = log {
        // What went wrong inside of the new system stands there only.
        let inner = std::fs::read_to_string(&log_file).unwrap_or_default();
        let inner: Vec<String> = inner.lines().map(str::to_owned).collect();
        let text = [tail(&lines), tail(&inner)].concat().join("\n");
        return Err(Error::Usage(format!("debootstrap failed:\n{text}")));
    }
    std::fs::rename(&part, &tree).map_err(Error::path(&part))?;
    step.done("done");
    Ok(tree)
}

/// Trees of the same release by older recipes, and one that was not finished: a gigabyte each.
fn remove_others(recipe: &Recipe, dir: &Path) -> Result<(), Error> {
    let prefix = format!("{}-", recipe.suite);
    for entry in std::fs::read_dir(dir).map_err(Error::path(dir))?.filter_map(Result::ok) {
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            std::fs::remove_dir_all(entry.path()).map_err(Error::path(&entry.path()))?;
        }
    }
    Ok(())
}

/// Runs a command that says line by line what it does; all lines, as the error if it fails.
fn run(mut command: Command, say: impl Fn(&str)) -> Result<Result<Vec<String>, Vec<String>>, Error> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(Error::io("debootstrap"))?;
    let stderr = child.stderr.take();
    let errors = std::thread::spawn(move || {
        let mut text = String::new();
        if let Some(mut stderr) = stderr {
            // What is no text is not worth losing the rest for.
            let _ = stderr.read_to_string(&mut text);
        }
        text
    });
    let mut lines = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            say(line.trim_start_matches("I: ").trim_end_matches("..."));
            lines.push(line);
        }
    }
    let status = child.wait().map_err(Error::io("debootstrap"))?;
    lines.extend(errors.join().unwrap_or_default().lines().map(str::to_owned));
    Ok(if status.success() { Ok(lines) } else { Err(lines) })
}

fn tail(lines: &[String]) -> Vec<String> {
    lines.iter().skip(lines.len().saturating_sub(TAIL)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_be_options_or_paths_are_refused() {
        let check =
            |suite: &str, package: &str| Recipe::new(suite, "http://m/d", &[package.to_owned()]).check();
        assert!(check("bookworm", "libstdc++6").is_ok());
        for (suite, package) in [("../x", "a"), ("-x", "a"), ("", "a"), ("sid", "--foreign"), ("sid", "a,b")]
        {
            assert!(check(suite, package).is_err(), "{suite} {package}");
        }
        for mirror in ["", "/etc", "http://a b", "http://a\ndeb http://b"] {
            assert!(Recipe::new("sid", mirror, &[]).check().is_err(), "{mirror:?}");
        }
    }

    #[test]
    fn another_recipe_is_another_tree() {
        let name = |mirror: &str, further: &[&str]| {
            let further: Vec<String> = further.iter().map(|name| (*name).to_owned()).collect();
            Recipe::new("sid", mirror, &further).file_name()
        };
        assert_eq!(name("a", &["x", "y"]), name("a", &["y", "x", "dbus"]));
        assert_ne!(name("a", &["x"]), name("a", &[]));
        assert_ne!(name("a", &[]), name("b", &[]));
    }

    #[test]
    fn a_failed_command_ends_with_what_it_said() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo I: one...; echo two >&2; exit 1"]);
        let said = std::cell::RefCell::new(Vec::new());
        let lines = run(command, |line| said.borrow_mut().push(line.to_owned())).unwrap().unwrap_err();
        assert_eq!(lines, ["I: one...", "two"]);
        assert_eq!(*said.borrow(), ["one"]);
    }
}
