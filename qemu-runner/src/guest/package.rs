//! Stock kernels of Debian packages, of the host's release or of another one, unpacked into the cache.
//!
//! Since Linux 7 a kernel's package is empty and depends on one with the kernel, one with the modules and one with the
//! lists of what is built in.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use image_builder::Progress;

use super::modules;
use crate::Error;
use crate::host::debian::{Apt, unpack};
use crate::host::write_whole;

/// Stands for [`NEWEST_SUITES`].
const NEWEST: &str = "newest";
/// Where Debian's archive has its newest kernels.
const NEWEST_SUITES: [&str; 2] = ["sid", "experimental"];

/// A kernel package as apt writes it, `linux-image-cloud-amd64` or `linux-image-amd64/sid`; `/newest` takes the
/// newest that the archive has in any release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    package: String,
    /// None: the host's own release.
    suite: Option<String>,
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (package, suite) = text.split_once('/').map_or((text, None), |(name, suite)| (name, Some(suite)));
        // Nothing here can be taken for an option, a path or a second line by apt.
        let is_word = |word: &str| {
            let is_good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c);
            word.starts_with(|c: char| c.is_ascii_lowercase()) && word.chars().all(is_good)
        };
        if !package.starts_with("linux-image-") || !is_word(package) || !suite.is_none_or(is_word) {
            return Err(Error::Usage(format!(
                "`{text}` is no kernel package: write linux-image-amd64, linux-image-cloud-amd64/bookworm, \
                 linux-image-amd64/newest"
            )));
        }
        Ok(Self { package: package.to_owned(), suite: suite.map(str::to_owned) })
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.package)?;
        self.suite.iter().try_for_each(|suite| write!(f, "/{suite}"))
    }
}

/// The folder of a package's kernel, with `vmlinuz` and the modules that a guest needs; fetched if it is not there.
///
/// # Errors
/// What apt says; a package that is no kernel's.
pub fn kernel(name: &Name, cache: &Path, progress: Progress) -> Result<PathBuf, Error> {
    let packages = cache.join("packages");
    let mut apt = match name.suite.as_deref() {
        None => Apt::new(&packages)?,
        Some(suite) => {
            let suites = if suite == NEWEST { &NEWEST_SUITES[..] } else { &[suite] };
            Apt::of_suites(&packages.join(suite), suites, progress)?
        }
    };
    // A metapackage depends on the kernel of the day; the other packages are that kernel.
    let real = match apt.resolve(&name.package, "linux-image-", progress) {
        Ok(real) => real,
        Err(error) => {
            apt.describe(&name.package).map_err(|_| error)?;
            name.package.clone()
        }
    };
    let (version, dependencies) = apt.describe(&real)?;
    let kernels = cache.join("linux-packages");
    std::fs::create_dir_all(&kernels).map_err(Error::path(&kernels))?;
    let folder = kernels.join(format!("{real}_{version}"));
    if !folder.exists() {
        let flavour = real.trim_start_matches("linux-image-");
        let parts = ["base", "binary", "modules"].map(|part| format!("linux-{part}-{flavour}"));
        let needed = parts.into_iter().filter(|part| dependencies.contains(part));
        let needed = std::iter::once(real.clone()).chain(needed);
        let files = needed.map(|name| apt.download(&name, progress)).collect::<Result<Vec<_>, _>>()?;
        unpack_kernel(&real, &files, cache, &folder, progress)?;
        // They have 100 MiB and more, and nobody needs them again.
        files.iter().try_for_each(|file| std::fs::remove_file(file).map_err(Error::path(file)))?;
    }
    Ok(folder)
}

/// Unpacks the packages of one kernel and keeps what the guest needs of it.
pub(super) fn unpack_kernel(
    name: &str,
    packages: &[PathBuf],
    cache: &Path,
    to: &Path,
    progress: Progress,
) -> Result<(), Error> {
    let step = progress.step(format!("unpack {name}"));
    let tree = tempfile::tempdir_in(cache).map_err(Error::path(cache))?;
    packages.iter().try_for_each(|package| unpack(package, tree.path()))?;
    keep_kernel(tree.path(), to)?;
    step.done("done");
    Ok(())
}

/// Moves what the guest needs out of an unpacked kernel package; all of it has 400 MiB.
fn keep_kernel(tree: &Path, to: &Path) -> Result<(), Error> {
    let missing = |what: &str| Error::Usage(format!("the kernel package has no {what}"));
    let modules = [tree.join("lib/modules"), tree.join("usr/lib/modules")];
    let modules = modules.iter().find_map(|dir| first(dir, "")).ok_or_else(|| missing("lib/modules"))?;
    let vmlinuz = first(&tree.join("boot"), "vmlinuz-").or_else(|| first(&modules, "vmlinuz"));
    let vmlinuz = vmlinuz.ok_or_else(|| missing("boot/vmlinuz-* and no lib/modules/*/vmlinuz"))?;
    let part = to.with_added_extension("part");
    // What a run left that was ended in the middle.
    let _ = std::fs::remove_dir_all(&part);
    std::fs::create_dir_all(&part).map_err(Error::path(&part))?;
    std::fs::rename(&vmlinuz, part.join("vmlinuz")).map_err(Error::path(&vmlinuz))?;
    let collected = modules::collect(&modules, &modules::WANTED_IF_THERE, &modules::WANTED)?;
    let mut order = String::new();
    for module in &collected {
        order.push_str(&format!("{}\n", module.name));
        write_whole(&part.join(&module.name), &module.content)?;
    }
    write_whole(&part.join("order"), order.as_bytes())?;
    std::fs::rename(&part, to).map_err(Error::path(to))
}

fn first(dir: &Path, prefix: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(dir).ok()?.filter_map(Result::ok);
    let mut named = entries.filter(|e| e.file_name().to_string_lossy().starts_with(prefix));
    named.next().map(|e| e.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_kernel_packages() {
        for text in ["linux-image-amd64", "linux-image-7.2.13+deb14-amd64/sid", "linux-image-rt-amd64/newest"]
        {
            assert_eq!(text.parse::<Name>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "bash",
            "linux-image-",
            "linux-image-amd64/",
            "linux-image-a/-o",
            "linux-image-a/b c",
            "linux-image-a/../b",
        ] {
            let is_short = text == "linux-image-";
            assert_eq!(text.parse::<Name>().is_ok(), is_short, "{text}");
        }
    }

    #[test]
    fn both_layouts_of_kernel_packages_are_understood() {
        let dir = tempfile::tempdir().unwrap();
        for (n, (kernel, modules)) in
            [("boot/vmlinuz-6.1", "lib/modules/6.1"), ("usr/lib/modules/7.3/vmlinuz", "usr/lib/modules/7.3")]
                .into_iter()
                .enumerate()
        {
            let tree = dir.path().join(format!("tree{n}"));
            for module in ["ext4", "xen-blkfront", "xen-netfront"] {
                write_whole(&tree.join(modules).join(format!("kernel/{module}.ko")), b"no dependencies")
                    .unwrap();
            }
            write_whole(&tree.join(kernel), b"kernel").unwrap();
            let to = dir.path().join(format!("linux-image-7.3-amd64_{n}"));
            keep_kernel(&tree, &to).unwrap();
            assert_eq!(std::fs::read(to.join("vmlinuz")).unwrap(), b"kernel");
            let order = std::fs::read_to_string(to.join("order")).unwrap();
            assert_eq!(order, "ext4.ko\nxen-blkfront.ko\nxen-netfront.ko\n");
        }
        let error = keep_kernel(&dir.path().join("none"), &dir.path().join("x")).unwrap_err().to_string();
        assert_eq!(error, "the kernel package has no lib/modules");
    }
}
