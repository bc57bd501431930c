//! Programs of the host, such as QEMU: found in the path, or installed from the distribution's packages.

use std::path::PathBuf;

use image_builder::Progress;
use image_builder::toolchain::{as_root, find_program, may_install};

use crate::Error;

/// A program and the Debian package that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tool {
    /// The program.
    pub program: &'static str,
    /// The package.
    pub package: &'static str,
    /// What it is for.
    pub purpose: &'static str,
}

/// The machine.
pub const QEMU: Tool =
    Tool { program: "qemu-system-x86_64", package: "qemu-system-x86", purpose: "runs the machine" };
/// Makes ext4 images.
pub const MKE2FS: Tool =
    Tool { program: "mke2fs", package: "e2fsprogs", purpose: "makes the default guest's root disk" };

/// Installs Debian into a folder.
pub const DEBOOTSTRAP: Tool =
    Tool { program: "debootstrap", package: "debootstrap", purpose: "installs Debian into a folder" };

/// Finds a tool, or installs it where that is allowed.
///
/// # Errors
/// It is missing and cannot be installed; the message has the command to type.
pub fn ensure(tool: Tool, progress: Progress) -> Result<PathBuf, Error> {
    if let Some(path) = find_program(tool.program) {
        return Ok(path);
    }
    let Tool { program, package, purpose } = tool;
    if find_program("apt-get").is_none() {
        return Err(Error::Usage(format!(
            "`{program}` is missing ({purpose}). Install it with this distribution's package manager; Debian \
             calls the package {package}."
        )));
    }
    if may_install() {
        progress.say(format!("`{program}` is missing ({purpose}): running apt-get install {package}."));
        let step = progress.step(format!("apt-get install {package}"));
        let install = ["apt-get", "install", "-y", "--no-install-recommends", package];
        let is_installed = |words: &[&str]| as_root(words).output().is_ok_and(|o| o.status.success());
        let done = is_installed(&install) || (is_installed(&["apt-get", "update"]) && is_installed(&install));
        if done && let Some(path) = find_program(program) {
            step.done("installed");
            return Ok(path);
        }
    }
    Err(Error::Usage(format!(
        "`{program}` is missing ({purpose}), and it could not be installed from here. Type:\n    sudo apt-get install \
         {package}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_found_and_nothing_is_installed() {
        let tool = Tool { program: "sh", package: "no-such-package", purpose: "test" };
        assert!(ensure(tool, Progress::Silent).unwrap().ends_with("sh"));
    }
}
