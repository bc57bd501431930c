//! Compiling the kernel and every domain.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::Error;
use crate::programs::{KERNEL, Origin, Program};
use crate::progress::Progress;
use crate::toolchain::{self, TARGET, Toolchain};

/// What to build.
#[derive(Debug, Clone)]
pub struct BuildRequest {
    /// Root of the workspace.
    pub workspace: PathBuf,
    /// Target directory; a separate one, so that a build inside of `cargo test` waits for nobody.
    pub target_dir: PathBuf,
    /// The programs.
    pub programs: Vec<Program>,
    /// Features of the kernel beside `bare`, for measuring: `count-instructions`. Such a kernel is built in a
    /// folder of its own.
    pub kernel_features: Vec<String>,
}

impl BuildRequest {
    /// These programs of this workspace, built under the workspace's own target directory.
    pub fn new(programs: Vec<Program>) -> Self {
        let target_dir = target_dir().join("machine");
        Self { workspace: workspace_root(), target_dir, programs, kernel_features: Vec::new() }
    }

    /// Where the kernel is built: one with further features must not take the place of the usual one.
    fn kernel_dir(&self) -> PathBuf {
        match self.kernel_features.join("-") {
            features if features.is_empty() => self.target_dir.clone(),
            features => self.target_dir.join(features),
        }
    }
}

/// What was built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// The kernel's ELF file.
    pub kernel: PathBuf,
    /// Each program's ELF file.
    pub programs: Vec<(Program, PathBuf)>,
}

/// Root of the workspace that this tool was built in.
pub fn workspace_root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_path_buf()
}

/// The workspace's target directory.
pub fn target_dir() -> PathBuf {
    let default = || workspace_root().join("target");
    let dir = std::env::var_os("CARGO_TARGET_DIR").map_or_else(default, PathBuf::from);
    if dir.is_absolute() { dir } else { workspace_root().join(dir) }
}

/// Compiles kernel and programs.
///
/// # Errors
/// No toolchain, or what the compiler says.
pub fn build(request: &BuildRequest, progress: Progress) -> Result<Machine, Error> {
    let toolchain = toolchain::find(progress)?;
    progress.say(format!("Building for {TARGET} with {}.", toolchain.description));
    let mut domains: Vec<(&str, &str)> = Vec::new();
    for program in &request.programs {
        if let Origin::Workspace { package, binary } = &program.origin {
            domains.push((package, binary));
        }
    }
    // Packages that are built together share the features of their dependencies, and what domains turn on
    // needs a heap, which the kernel has not: it is built alone.
    let kernel = BuildRequest { target_dir: request.kernel_dir(), ..request.clone() };
    compile(&toolchain, &kernel, "kernel", &[KERNEL], &request.kernel_features, progress)?;
    compile(&toolchain, request, "domains", &domains, &[], progress)?;
    let release = |dir: &Path| dir.join(TARGET).join("release");
    let out = release(&request.target_dir);
    let path = |program: &Program| match &program.origin {
        Origin::Workspace { binary, .. } => out.join(binary),
        Origin::Prebuilt(path) => path.clone(),
    };
    let programs = request.programs.iter().map(|p| (p.clone(), path(p))).collect();
    Ok(Machine { kernel: release(&kernel.target_dir).join(KERNEL.1), programs })
}

/// One run of cargo for these packages' binaries.
fn compile(
    toolchain: &Toolchain,
    request: &BuildRequest,
    what: &str,
    built: &[(&str, &str)],
    features: &[String],
    progress: Progress,
) -> Result<(), Error> {
    if built.is_empty() {
        return Ok(());
    }
    let mut command = toolchain.cargo_build();
    command.current_dir(&request.workspace).arg("--target-dir").arg(&request.target_dir);
    let features = [&["bare".to_owned()], features].concat().join(",");
    command.args(["--features", &features, "--message-format", "json-render-diagnostics"]);
    for (package, binary) in built {
        command.args(["--package", package, "--bin", binary]);
    }
    let step = progress.step(what);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(Error::io(&toolchain.cargo))?;
    let stderr = child.stderr.take();
    let messages = std::thread::spawn(move || {
        let mut text = String::new();
        // What is not UTF-8 is lost; the exit status still tells.
        if let Some(mut stderr) = stderr {
            let _ = stderr.read_to_string(&mut text);
        }
        text
    });
    let mut compiled = 0;
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if let Some((name, is_fresh)) = artifact(&line) {
                compiled += usize::from(!is_fresh);
                step.detail(name);
            }
        }
    }
    let status = child.wait().map_err(Error::io(&toolchain.cargo))?;
    let messages = messages.join().unwrap_or_default();
    if !status.success() {
        drop(step);
        return Err(Error::Compile(format!("{messages}\n{what}: it does not compile ({status})")));
    }
    step.done(if compiled == 0 { "up to date".to_owned() } else { format!("{compiled} crates compiled") });
    Ok(())
}

/// Name of the crate that a message of cargo is about, and whether it was up to date.
fn artifact(line: &str) -> Option<(String, bool)> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    if message.get("reason")?.as_str()? != "compiler-artifact" {
        return None;
    }
    let name = message.get("target")?.get("name")?.as_str()?.to_owned();
    Some((name, message.get("fresh")?.as_bool()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_messages_are_understood() {
        let line = r#"{"reason":"compiler-artifact","target":{"name":"proto"},"fresh":false}"#;
        assert_eq!(artifact(line), Some(("proto".into(), false)));
        assert_eq!(artifact(r#"{"reason":"build-finished","success":true}"#), None);
        assert_eq!(artifact("warning: text"), None);
    }

    #[test]
    fn the_workspace_is_found() {
        assert!(workspace_root().join("proto/Cargo.toml").exists());
        assert!(target_dir().is_absolute());
    }
}
