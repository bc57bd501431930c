//! The default guest: Debian's stock kernel, an initial RAM disk and a root disk, made once and cached.

pub mod cpio;
pub mod initrd;
pub mod kernel;
pub mod modules;
pub mod package;
pub mod probe;
pub mod root;
pub mod standard;

use std::path::{Path, PathBuf};

use image_builder::Progress;

use crate::Error;
use crate::host::debian::{Apt, unpack};
use crate::host::{Lock, cache_dir, sha256, tools, write_whole};

/// Name of the default guest.
pub const NAME: &str = "debian";
/// Its kernel command line: the console is Xen's, and probing for serial ports that it lacks is skipped.
pub const CMDLINE: &str = "console=hvc0 8250.nr_uarts=0 quiet root=/dev/xvda";
/// Its memory in MiB.
pub const MEMORY_MIB: u32 = 256;

/// The default guest's files on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// Kernel, as the package has it.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    pub initrd: PathBuf,
    /// A fresh root disk; copy it, do not boot from it.
    pub root: PathBuf,
}

/// Stock kernel and busybox, taken out of their packages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// Folder with `vmlinuz` and `lib/modules/VERSION`'s needed part.
    pub kernel: PathBuf,
    /// busybox, statically linked.
    pub busybox: PathBuf,
}

/// Finds the default guest's files, making what is missing.
///
/// # Errors
/// A tool or package that cannot be had; the message says what to do.
pub fn prepare(progress: Progress) -> Result<Files, Error> {
    prepare_with(None, progress)
}

/// [`prepare`] with the kernel of another package, and its modules.
///
/// # Errors
/// As [`prepare`].
pub fn prepare_with(kernel: Option<&package::Name>, progress: Progress) -> Result<Files, Error> {
    let cache = cache_dir();
    let _lock = Lock::take(&cache.join("lock"))?;
    let parts = match kernel {
        None => parts(&cache, progress)?,
        Some(name) => {
            Parts { kernel: package::kernel(name, &cache, progress)?, busybox: busybox(&cache, progress)? }
        }
    };
    let modules = modules_of(&parts.kernel)?;
    let busybox = std::fs::read(&parts.busybox).map_err(Error::path(&parts.busybox))?;
    let archive = initrd::build(&busybox, &modules);
    let initrd = cache.join(format!("initrd-{}.cpio", &sha256(&[&archive])[..16]));
    if !initrd.exists() {
        write_whole(&initrd, &archive)?;
    }
    let root = cache.join(format!("root-{}.img", &sha256(&[&busybox, root::recipe().as_bytes()])[..16]));
    if !root.exists() {
        let mke2fs = tools::ensure(tools::MKE2FS, progress)?;
        let step = progress.step("default guest's root disk");
        root::build(&parts.busybox, &mke2fs, &root)?;
        step.done(format!("ext4, {} MiB", root::SIZE_MIB));
    }
    Ok(Files { kernel: parts.kernel.join("vmlinuz"), initrd, root })
}

/// The default guest's own root disk, which keeps what it writes; made from the fresh one at first.
///
/// # Errors
/// I/O.
pub fn own_root(files: &Files) -> Result<PathBuf, Error> {
    let own = cache_dir().join(format!("{NAME}-root.img"));
    if !own.exists() {
        let part = own.with_extension("part");
        std::fs::copy(&files.root, &part).map_err(Error::path(&part))?;
        std::fs::rename(&part, &own).map_err(Error::path(&own))?;
    }
    Ok(own)
}

/// Text of an xl.cfg file for one guest.
pub fn xl_cfg(
    name: &str,
    kernel: &Path,
    initrd: Option<&Path>,
    disk: Option<&Path>,
    cmdline: &str,
) -> String {
    let mut text = format!("name = \"{name}\"\ntype = \"pvh\"\nkernel = \"{}\"\n", kernel.display());
    if let Some(initrd) = initrd {
        text.push_str(&format!("ramdisk = \"{}\"\n", initrd.display()));
    }
    text.push_str(&format!("cmdline = \"{cmdline}\"\nmemory = {MEMORY_MIB}\nvcpus = 1\n"));
    if let Some(disk) = disk {
        text.push_str(&format!("disk = [\"vdev=xvda,format=raw,access=rw,target={}\"]\n", disk.display()));
    }
    text.push_str("vif = [\"bridge=xenbr0\"]\n");
    text
}

fn parts(cache: &Path, progress: Progress) -> Result<Parts, Error> {
    let parts = Parts { kernel: cache.join("linux"), busybox: busybox(cache, progress)? };
    if !parts.kernel.exists() {
        let mut apt = Apt::new(&cache.join("packages"))?;
        let name = apt.resolve("linux-image-amd64", "linux-image-", progress)?;
        let package = apt.download(&name, progress)?;
        package::unpack_kernel(&name, &[package], cache, &parts.kernel, progress)?;
    }
    Ok(parts)
}

fn busybox(cache: &Path, progress: Progress) -> Result<PathBuf, Error> {
    let path = cache.join("busybox");
    if path.exists() {
        return Ok(path);
    }
    progress.say("The default guest is made of Debian packages, downloaded and unpacked below target/guest.");
    let package = Apt::new(&cache.join("packages"))?.download("busybox-static", progress)?;
    let tree = tempfile::tempdir_in(cache).map_err(Error::path(cache))?;
    unpack(&package, tree.path())?;
    let inside = ["bin/busybox", "usr/bin/busybox"].map(|p| tree.path().join(p));
    let busybox = inside
        .iter()
        .find(|p| p.is_file())
        .ok_or_else(|| Error::Usage(format!("{} has no busybox in it", package.display())))?;
    std::fs::rename(busybox, &path).map_err(Error::path(&path))?;
    Ok(path)
}

fn modules_of(kernel: &Path) -> Result<Vec<modules::Module>, Error> {
    let order = kernel.join("order");
    let names = std::fs::read_to_string(&order).map_err(Error::path(&order))?;
    let read = |name: &str| {
        let path = kernel.join(name);
        let content = std::fs::read(&path).map_err(Error::path(&path))?;
        Ok(modules::Module { name: name.to_owned(), content })
    };
    names.lines().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generated_configuration_is_accepted() {
        let text = xl_cfg(NAME, Path::new("/k"), Some(Path::new("/i")), Some(Path::new("/d,1.img")), CMDLINE);
        let parsed = toolstack::config::parse("debian.cfg", &text);
        assert_eq!(parsed.diagnostics, []);
        let config = parsed.config.unwrap();
        assert_eq!(config.disks[0].target.value, "/d,1.img");
        assert_eq!(config.disks[0].device, 51712);
        assert_eq!(config.cmdline.value, CMDLINE);
        assert_eq!(config.vifs.len(), 1);
    }
}
