//! What a machine says, as files: one per domain's log, one per guest's console, and the raw stream.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::mux::Line;
use crate::Error;

/// Writes to a folder, or nowhere.
#[derive(Debug, Default)]
pub struct Logs {
    dir: Option<PathBuf>,
    files: BTreeMap<String, File>,
}

impl Logs {
    /// Logs to a folder, which is made; files of an earlier run are replaced.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn new(dir: Option<&Path>) -> Result<Self, Error> {
        if let Some(dir) = dir {
            std::fs::create_dir_all(dir).map_err(Error::path(dir))?;
        }
        Ok(Self { dir: dir.map(Path::to_path_buf), files: BTreeMap::new() })
    }

    /// What came over the serial line.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.write("serial.raw", bytes);
    }

    /// A decoded line.
    pub fn line(&mut self, line: &Line) {
        const LEVELS: [&str; 6] = ["?", "error", "warning", "info", "debug", "trace"];
        match line {
            Line::Log { domain, level, text } => {
                let level = LEVELS.get(usize::from(*level)).unwrap_or(&"?");
                self.write(&format!("{}.log", safe(domain)), format!("{level}: {text}\n").as_bytes());
            }
            Line::Guest { name, bytes } => self.write(&format!("{}.console", safe(name)), bytes),
            Line::Notice(text) => self.write("notices.log", format!("{text}\n").as_bytes()),
            Line::Raw(text) => self.write("kernel.log", format!("{text}\n").as_bytes()),
            Line::Out { .. } | Line::Done { .. } | Line::Up { .. } => {}
        }
    }

    /// What QEMU says on its standard error.
    pub fn qemu(&mut self, line: &str) {
        self.write("qemu.log", format!("{line}\n").as_bytes());
    }

    fn write(&mut self, name: &str, bytes: &[u8]) {
        let Some(dir) = &self.dir else { return };
        let file = match self.files.entry(name.to_owned()) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => match File::create(dir.join(name)) {
                Ok(file) => entry.insert(file),
                Err(_) => return,
            },
        };
        // A full disk must not end the run; the streams are also in memory.
        let _ = file.write_all(bytes);
    }
}

/// A name that is safe as a file's: it comes from inside of the machine.
fn safe(name: &str) -> String {
    let is_safe = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
    let text: String = name.chars().take(64).map(|c| if is_safe(c) { c } else { '_' }).collect();
    if text.starts_with('.') { format!("_{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stream_has_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let mut logs = Logs::new(Some(&out)).unwrap();
        logs.raw(b"@guest web a\\n\n");
        logs.line(&Line::Guest { name: "web".into(), bytes: b"a\n".to_vec() });
        logs.line(&Line::Guest { name: "web".into(), bytes: b"b".to_vec() });
        logs.line(&Line::Log { domain: "../init".into(), level: 2, text: "slow".into() });
        logs.line(&Line::Raw("panic".into()));
        let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
        assert_eq!(read("web.console"), "a\nb");
        assert_eq!(read("_.._init.log"), "warning: slow\n");
        assert_eq!(read("kernel.log"), "panic\n");
        assert_eq!(read("serial.raw"), "@guest web a\\n\n");
    }
}
