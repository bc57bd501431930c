//! Debian packages: downloaded and unpacked into a folder, not installed.
//!
//! Works without root: where apt has no package lists, private ones are fetched into the cache.

use std::path::{Path, PathBuf};
use std::process::Command;

use image_builder::Progress;
use image_builder::toolchain::find_program;

use crate::Error;

/// apt with a cache of its own.
#[derive(Debug)]
pub struct Apt {
    dir: PathBuf,
    has_own_lists: bool,
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
        Ok(Self { dir: dir.to_path_buf(), has_own_lists: false })
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
        self.has_own_lists = true;
        let output = self.command("apt-get").arg("update").output().map_err(Error::io("apt-get"))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(Error::Usage(format!("apt-get update failed:\n{}", said.trim())))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C");
        if self.has_own_lists {
            let lists = self.dir.join("lists");
            command.arg("-o").arg(format!("Dir::State::lists={}", lists.display()));
            command.arg("-o").arg(format!("Dir::Cache={}", self.dir.display()));
        }
        command
    }
}

/// The first dependency of the prefix in apt-cache's answer.
fn dependency(answer: &str, prefix: &str) -> Option<String> {
    let mut names = answer.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    names.find(|name| name.starts_with(prefix)).map(str::to_owned)
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
}
