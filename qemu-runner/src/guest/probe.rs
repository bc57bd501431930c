//! The probe for the standard guest: `tests/probe`, compiled for the host's own target and linked statically.
//!
//! The guest's initial RAM disk has no C library. Rust's host target can bring glibc's static one along, which Debian
//! has in libc6-dev; no Rust program can be linked without that package, so nothing further is needed.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use image_builder::Progress;
use image_builder::machine::{target_dir, workspace_root};

use crate::Error;

/// Rust's name of the guest's Linux.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Where cargo looks for compiler options of that target alone: build scripts are compiled without them.
const FLAGS: &str = "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS";
/// Static, at a fixed address so that nothing is relocated at start, and without symbols.
const OPTIONS: &str = "-Ctarget-feature=+crt-static -Crelocation-model=static -Cstrip=symbols";

/// Compiles the probe; its file.
///
/// # Errors
/// What the compiler says.
pub fn build(progress: Progress) -> Result<PathBuf, Error> {
    let folder = target_dir().join("static");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let step = progress.step("probe");
    let mut command = Command::new(&cargo);
    command.current_dir(workspace_root()).args([
        "build",
        "--release",
        "--package",
        "probe",
        "--target",
        TARGET,
    ]);
    command.arg("--target-dir").arg(&folder).env(FLAGS, OPTIONS);
    // These would replace the options.
    command.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    let output = command.stdin(Stdio::null()).output().map_err(Error::path(cargo.as_ref()))?;
    if !output.status.success() {
        drop(step);
        let messages = String::from_utf8_lossy(&output.stderr);
        return Err(image_builder::Error::Compile(format!(
            "{messages}\nprobe: it does not compile ({}); it needs Rust's target {TARGET} and glibc's static \
             library (Debian: sudo apt-get install libc6-dev)",
            output.status
        ))
        .into());
    }
    step.done("static");
    Ok(folder.join(TARGET).join("release/probe"))
}
