//! Lines of code: what is neither blank nor comment nor test.

use std::path::Path;

use crate::Error;
use crate::bench::report::Figure;

/// The figures and their folders.
const PARTS: [(&str, &str); 13] = [
    ("lines-kernel", "kernel/src"),
    ("lines-proto", "proto/src"),
    ("lines-rt", "services/rt/src"),
    ("lines-init", "services/init/src"),
    ("lines-console", "services/console/src"),
    ("lines-xenstore", "services/xenstore/src"),
    ("lines-toolstack", "services/toolstack/src"),
    ("lines-vmm", "services/vmm/src"),
    ("lines-blkback", "driver-domains/blkback/src"),
    ("lines-netback", "driver-domains/netback/src"),
    ("lines-virtio", "driver-domains/virtio/src"),
    ("lines-image-builder", "image-builder/src"),
    ("lines-qemu-runner", "qemu-runner/src"),
];

/// Names of files that only tests use.
const TEST_FILES: [&str; 6] =
    ["tests.rs", "testing.rs", "fake.rs", "host.rs", "syscall_tests.rs", "ring_model.rs"];

/// A figure for each part.
///
/// # Errors
/// The sources cannot be read.
pub fn measure() -> Result<Vec<Figure>, Error> {
    let root = image_builder::machine::workspace_root();
    let part = |(name, folder)| Ok(Figure::new(name, count(&root.join(folder))?));
    PARTS.into_iter().map(part).collect()
}

fn count(folder: &Path) -> Result<u64, Error> {
    let mut lines = 0;
    for entry in std::fs::read_dir(folder).map_err(Error::path(folder))? {
        let path = entry.map_err(Error::path(folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            lines += if name == "tests" { 0 } else { count(&path)? };
        } else if (name.ends_with(".rs") || name.ends_with(".s")) && !TEST_FILES.contains(&name.as_str()) {
            lines += code(&std::fs::read_to_string(&path).map_err(Error::path(&path))?, name.ends_with(".s"));
        }
    }
    Ok(lines)
}

/// Lines of code of a file. Tests stand at its end, as everywhere in this workspace.
fn code(text: &str, is_assembly: bool) -> u64 {
    let mut lines = 0;
    let mut iterator = text.lines().map(str::trim).peekable();
    while let Some(line) = iterator.next() {
        let begins_module =
            iterator.peek().is_some_and(|next| next.starts_with("mod ") && next.ends_with('{'));
        if line == "#[cfg(test)]" && begins_module {
            break;
        }
        let is_comment = if is_assembly { line.starts_with('#') } else { line.starts_with("//") };
        lines += u64::from(!line.is_empty() && !is_comment);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_blanks_and_tests_do_not_count() {
        let text = "//! About.\n\nuse a;\n/// Doc.\nfn f() {\n    // Why.\n    g()\n}\n\n#[cfg(test)]\nmod tests {\n}\n";
        assert_eq!(code(text, false), 4);
        assert_eq!(code("# About.\n    nop\n\n1:  ret\n", true), 2);
        // An item of its own for tests is code like any other.
        assert_eq!(code("#[cfg(test)]\nfn f() {}\n", false), 2);
    }
}
