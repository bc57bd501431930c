//! Kernel modules: which files a guest needs, in the order of their dependencies.
//!
//! A downloaded kernel package has no modules.dep (depmod makes it at installation), so dependencies are
//! read from the modules themselves: the section `.modinfo` lists NUL-terminated `key=value` words.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use object::{Object as _, ObjectSection as _};

use crate::Error;

/// What the default guest's initial RAM disk loads.
pub const WANTED: [&str; 3] = ["ext4", "xen-blkfront", "xen-netfront"];
/// What it loads before, if the kernel has it: ext4 asked for crc32c by its algorithm's name only, until Linux 6.14
/// made that a part of the kernel.
pub const WANTED_IF_THERE: [&str; 1] = ["crc32c_generic"];

/// A module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// File name, without the folder and without compression: `ext4.ko`.
    pub name: String,
    /// Content, not compressed.
    pub content: Vec<u8>,
}

/// Finds modules and all that they depend on below `lib/modules/VERSION`, dependencies first.
///
/// # Errors
/// A module that is wanted, and not only if there is one, is missing, or a file is not a module.
pub fn collect(dir: &Path, if_there: &[&str], wanted: &[&str]) -> Result<Vec<Module>, Error> {
    let mut files = BTreeMap::new();
    index(&dir.join("kernel"), &mut files)?;
    let builtin = std::fs::read_to_string(dir.join("modules.builtin")).unwrap_or_default();
    let builtin: BTreeSet<String> = builtin.lines().map(|line| key_of(Path::new(line))).collect();
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    let key = |name: &str| name.replace('-', "_");
    for name in if_there.iter().filter(|name| files.contains_key(&key(name))).chain(wanted) {
        visit(&key(name), &files, &builtin, &mut seen, &mut found)?;
    }
    Ok(found)
}

/// Those of `all`, dependencies first, that are wanted or that one of these depends on.
pub fn needed(all: Vec<Module>, wanted: &[&str]) -> Vec<Module> {
    let mut keys: BTreeSet<String> = wanted.iter().map(|name| name.replace('-', "_")).collect();
    let mut found = Vec::new();
    for module in all.into_iter().rev() {
        if keys.contains(&key_of(Path::new(&module.name))) {
            keys.extend(dependencies(&module.content).iter().map(|name| name.replace('-', "_")));
            found.push(module);
        }
    }
    found.reverse();
    found
}

fn visit(
    key: &str,
    files: &BTreeMap<String, PathBuf>,
    builtin: &BTreeSet<String>,
    seen: &mut BTreeSet<String>,
    found: &mut Vec<Module>,
) -> Result<(), Error> {
    if builtin.contains(key) || !seen.insert(key.to_owned()) {
        return Ok(());
    }
    let path =
        files.get(key).ok_or_else(|| Error::Usage(format!("the kernel package has no module `{key}`")))?;
    let raw = std::fs::read(path).map_err(Error::path(path))?;
    let content = if path.extension().is_some_and(|e| e == "xz") { unxz(path, &raw)? } else { raw };
    for dependency in dependencies(&content) {
        visit(&dependency.replace('-', "_"), files, builtin, seen, found)?;
    }
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    found.push(Module { name: name.trim_end_matches(".xz").to_owned(), content });
    Ok(())
}

/// A module's name as the kernel knows it: no folder, no extension, `-` and `_` are the same.
fn key_of(path: &Path) -> String {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    name.split('.').next().unwrap_or_default().replace('-', "_")
}

fn index(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<(), Error> {
    for entry in std::fs::read_dir(dir).map_err(Error::path(dir))? {
        let path = entry.map_err(Error::path(dir))?.path();
        if path.is_dir() {
            index(&path, files)?;
        } else if path.extension().is_some_and(|e| e == "ko" || e == "xz") {
            files.insert(key_of(&path), path);
        }
    }
    Ok(())
}

fn unxz(path: &Path, bytes: &[u8]) -> Result<Vec<u8>, Error> {
    let mut content = Vec::new();
    let mut decoder = xz4rust::XzReader::new(std::io::Cursor::new(bytes.to_vec()));
    std::io::Read::read_to_end(&mut decoder, &mut content).map_err(Error::path(path))?;
    Ok(content)
}

/// What `.modinfo` says that the module depends on; nothing for what is not a module.
fn dependencies(module: &[u8]) -> Vec<String> {
    let Ok(file) = object::File::parse(module) else { return Vec::new() };
    let section = file.section_by_name(".modinfo").and_then(|s| s.data().ok());
    section.map(parse_modinfo).unwrap_or_default()
}

fn parse_modinfo(section: &[u8]) -> Vec<String> {
    let words = section.split(|byte| *byte == 0).filter_map(|word| word.strip_prefix(b"depends="));
    words
        .flat_map(|list| String::from_utf8_lossy(list).split(',').map(str::to_owned).collect::<Vec<_>>())
        .filter(|name| !name.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modinfo_names_dependencies() {
        let section = b"license=GPL\0\0depends=jbd2,mbcache\0depends=crc16\0name=ext4\0";
        assert_eq!(parse_modinfo(section), ["jbd2", "mbcache", "crc16"]);
        assert!(parse_modinfo(b"depends=\0").is_empty());
    }

    #[test]
    fn names_are_compared_as_the_kernel_does() {
        assert_eq!(key_of(Path::new("kernel/drivers/net/xen-netfront.ko.xz")), "xen_netfront");
    }

    #[test]
    fn only_what_is_needed_stays_and_in_its_order() {
        let module = |name: &str| Module { name: format!("{name}.ko"), content: Vec::new() };
        let all = ["jbd2", "xen-blkfront", "xen-netfront"].map(module).to_vec();
        let found = needed(all, &["xen_netfront", "xen-blkfront"]);
        assert_eq!(
            found.iter().map(|m| m.name.as_str()).collect::<Vec<_>>(),
            ["xen-blkfront.ko", "xen-netfront.ko"]
        );
    }

    #[test]
    fn a_missing_module_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("kernel/fs")).unwrap();
        std::fs::write(dir.path().join("kernel/fs/jbd2.ko"), b"not ELF, so no dependencies").unwrap();
        std::fs::write(dir.path().join("modules.builtin"), "kernel/lib/crc16.ko\n").unwrap();
        let found = collect(dir.path(), &["crc32c_generic"], &["jbd2", "crc16"]).unwrap();
        assert_eq!(found.iter().map(|m| m.name.as_str()).collect::<Vec<_>>(), ["jbd2.ko"]);
        let error = collect(dir.path(), &[], &["ext4"]).unwrap_err().to_string();
        assert_eq!(error, "the kernel package has no module `ext4`");
    }
}
