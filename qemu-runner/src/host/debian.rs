//! Debian packages: downloaded and unpacked into a folder, not installed.
//!
//! Works without root: where apt has no package lists, private ones are fetched into the cache. Packages of another
//! release than the host's come by apt, too, with a configuration of its own in the cache, so that nothing of the
//! host's changes and apt checks the archive's signatures and hashes as always.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use image_builder::Progress;
use image_builder::toolchain::find_program;

use crate::Error;

/// Debian's archive, and the keys that it is signed with.
const ARCHIVE: &str = "http://deb.debian.org/debian";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// How old the lists of another release may be before apt asks again.
const LISTS_AGE: Duration = Duration::from_secs(24 * 3600);

/// Where apt knows packages from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lists {
    /// The host's own lists.
    Host,
    /// The host's sources, lists in the cache.
    OfHostSources,
    /// Sources and lists in the cache.
    Own,
}

/// apt with a cache of its own.
#[derive(Debug)]
pub struct Apt {
    dir: PathBuf,
    lists: Lists,
}

impl Apt {
    /// Checks that this is a Debian-like host.
    ///
    /// # Errors
    /// It is not; the message says what to give by hand.
    pub fn new(dir: &Path) -> Result<Self, Error> {
        for tool in ["apt-get", "apt-cache", "dpkg-deb"] {
            if find_program(tool).is_none() {
                return Err(Error::Usage(format!(
                    "The default guest is made of Debian packages, and `{tool}` is not here. Give a guest by hand:\n    \
                     cargo run -p qemu-runner -- run --kernel VMLINUZ --initrd INITRD --disk IMAGE\n(a Linux kernel \
                     with Xen PVH support; qemu-system-x86_64 is needed, too)"
                )));
            }
        }
        std::fs::create_dir_all(dir).map_err(Error::path(dir))?;
        Ok(Self { dir: dir.to_path_buf(), lists: Lists::Host })
    }

    /// apt for some releases of Debian, whatever the host's own is: of a package that several of them have, the newest
    /// counts. Their lists are fetched if the last time was a day ago.
    ///
    /// # Errors
    /// As [`Self::new`]; the archive cannot be reached and never was, or has no such release.
    pub fn of_suites(dir: &Path, suites: &[&str], progress: Progress) -> Result<Self, Error> {
        let mut apt = Self::new(dir)?;
        if !Path::new(KEYRING).exists() {
            return Err(Error::Usage(format!(
                "{KEYRING} is missing, without which Debian's archive cannot be trusted. Type:\n    sudo apt-get \
                 install debian-archive-keyring"
            )));
        }
        apt.lists = Lists::Own;
        let source = |suite: &&str| {
            format!("deb [arch=amd64 target=Packages signed-by={KEYRING}] {ARCHIVE} {suite} main\n")
        };
        let put = |name: &str, text: &str| {
            let path = dir.join(name);
            std::fs::write(&path, text).map_err(Error::path(&path))
        };
        put("sources.list", &suites.iter().map(source).collect::<String>())?;
        // Packages of experimental would not be candidates otherwise.
        put("preferences", "Package: *\nPin: release *\nPin-Priority: 500\n")?;
        put("status", "")?;
        let stamp = dir.join("updated");
        let age = std::fs::metadata(&stamp).and_then(|data| data.modified()).ok();
        if age.is_some_and(|time| time.elapsed().is_ok_and(|age| age < LISTS_AGE)) {
            return Ok(apt);
        }
        match apt.fetch_lists(progress) {
            Ok(()) => std::fs::write(&stamp, "").map_err(Error::path(&stamp))?,
            Err(error) if age.is_none() => return Err(error),
            Err(error) => {
                progress.say(format!("Debian's archive cannot be asked, so older lists are used: {error}"));
            }
        }
        Ok(apt)
    }

    /// The version that there is of a package, and the packages that it depends on.
    ///
    /// # Errors
    /// apt does not know it.
    pub fn describe(&self, name: &str) -> Result<(String, Vec<String>), Error> {
        let output = self.command("apt-cache").args(["--no-all-versions", "show", name]).output();
        let shown = output.map_err(Error::io("apt-cache"))?.stdout;
        described(&String::from_utf8_lossy(&shown))
            .ok_or_else(|| Error::Usage(format!("apt knows no package `{name}`")))
    }

    /// Name of the real package that a metapackage stands for.
    ///
    /// # Errors
    /// apt does not know it.
    pub fn resolve(&mut self, name: &str, prefix: &str, progress: Progress) -> Result<String, Error> {
        let mut answer = self.depends(name, prefix);
        if answer.is_none() {
            self.fetch_lists(progress)?;
            answer = self.depends(name, prefix);
        }
        answer.ok_or_else(|| {
            Error::Usage(format!(
                "apt knows no package `{name}`. On another distribution than Debian, give a guest by hand: --kernel, \
                 --initrd, --disk."
            ))
        })
    }

    fn depends(&self, name: &str, prefix: &str) -> Option<String> {
        let output = self.command("apt-cache").args(["depends", name]).output().ok()?;
        dependency(&String::from_utf8_lossy(&output.stdout), prefix)
    }

    /// Downloads a package, unless that very file is there already.
    ///
    /// # Errors
    /// apt's own message.
    pub fn download(&mut self, name: &str, progress: Progress) -> Result<PathBuf, Error> {
        if let Some(path) = self.find(name) {
            return Ok(path);
        }
        let step = progress.step(format!("download {name}"));
        let mut run = self.command("apt-get").args(["download", name]).current_dir(&self.dir).output();
        if !run.as_ref().is_ok_and(|o| o.status.success()) {
            self.fetch_lists(progress)?;
            run = self.command("apt-get").args(["download", name]).current_dir(&self.dir).output();
        }
        let output = run.map_err(Error::io("apt-get"))?;
        let path = self.find(name).ok_or_else(|| {
            let said = String::from_utf8_lossy(&output.stderr);
            Error::Usage(format!("the package {name} cannot be downloaded:\n{}", said.trim()))
        })?;
        step.done("done");
        Ok(path)
    }

    fn find(&self, name: &str) -> Option<PathBuf> {
        let prefix = format!("{name}_");
        let files = std::fs::read_dir(&self.dir).ok()?.filter_map(Result::ok).map(|entry| entry.path());
        let is_it = |path: &PathBuf| {
            let file = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            file.starts_with(&prefix) && file.ends_with(".deb")
        };
        files.filter(is_it).max()
    }

    fn fetch_lists(&mut self, progress: Progress) -> Result<(), Error> {
        progress.say("apt has no fresh package lists: fetching them (into the build directory).");
        let lists = self.dir.join("lists/partial");
        std::fs::create_dir_all(&lists).map_err(Error::path(&lists))?;
        if self.lists == Lists::Host {
            self.lists = Lists::OfHostSources;
        }
        let mut update = self.command("apt-get");
        // What cannot be fetched is otherwise a warning.
        update.args(["-o", "APT::Update::Error-Mode=any", "update"]);
        let output = update.output().map_err(Error::io("apt-get"))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(Error::Usage(format!("apt-get update failed:\n{}", said.trim())))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C");
        let mut option = |name: &str, file: &str| {
            command.arg("-o").arg(format!("{name}={}", self.dir.join(file).display()));
        };
        if self.lists != Lists::Host {
            option("Dir::State::lists", "lists");
            option("Dir::Cache", "");
        }
        if self.lists == Lists::Own {
            option("Dir::Etc::sourcelist", "sources.list");
            option("Dir::Etc::preferences", "preferences");
            option("Dir::State::status", "status");
            command.args(["-o", "Dir::Etc::sourceparts=-", "-o", "Dir::Etc::preferencesparts=-"]);
            command.args(["-o", "APT::Architecture=amd64", "-o", "APT::Architectures=amd64"]);
            command.args(["-o", "Acquire::Languages=none", "-o", "Acquire::http::Timeout=30"]);
        }
        command
    }
}

/// The first dependency of the prefix in apt-cache's answer.
fn dependency(answer: &str, prefix: &str) -> Option<String> {
    let mut names = answer.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    names.find(|name| name.starts_with(prefix)).map(str::to_owned)
}

/// Version and dependencies in a package's paragraph.
fn described(paragraph: &str) -> Option<(String, Vec<String>)> {
    let field = |name| paragraph.lines().find_map(|line| line.strip_prefix(name));
    let alternatives = field("Depends: ").unwrap_or_default().split([',', '|']);
    // What follows the name is a relation to a version.
    let names = alternatives.filter_map(|alternative| alternative.split_whitespace().next());
    Some((field("Version: ")?.to_owned(), names.map(str::to_owned).collect()))
}

/// Unpacks a package into a folder.
///
/// # Errors
/// dpkg-deb's own message.
pub fn unpack(package: &Path, to: &Path) -> Result<(), Error> {
    let output =
        Command::new("dpkg-deb").arg("-x").arg(package).arg(to).output().map_err(Error::io("dpkg-deb"))?;
    if output.status.success() {
        return Ok(());
    }
    // A download that broke off would be in the way for ever.
    let _ = std::fs::remove_file(package);
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::Usage(format!("{} cannot be unpacked: {}", package.display(), said.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_metapackage_is_resolved() {
        let answer =
            "linux-image-amd64\n  Depends: firmware\n  Depends: linux-image-6.1.0-56-amd64\n |Suggests: x\n";
        assert_eq!(dependency(answer, "linux-image-").as_deref(), Some("linux-image-6.1.0-56-amd64"));
        assert_eq!(dependency("N: Unable to locate package\n", "linux-image-"), None);
    }

    #[test]
    fn a_paragraph_has_version_and_dependencies() {
        let paragraph = "Package: linux-image-7.3-amd64\nVersion: 7.3~rc7-1~exp1\nDepends: dracut | \
                         initramfs-tools (>= 0.120+deb8u2), linux-base-7.3-amd64 (= 7.3~rc7-1~exp1)\nPre-Depends: x\n";
        let (version, dependencies) = described(paragraph).unwrap();
        assert_eq!(version, "7.3~rc7-1~exp1");
        assert_eq!(dependencies, ["dracut", "initramfs-tools", "linux-base-7.3-amd64"]);
        assert_eq!(described("N: Unable to locate package x\n"), None);
        assert_eq!(described("Version: 1\n"), Some(("1".to_owned(), Vec::new())));
    }
}
