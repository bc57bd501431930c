//! A CD image that GRUB boots: the kernel through multiboot2, the boot bundle as its module.
//!
//! GRUB's tools are taken where they are installed; else they come out of Debian packages that are unpacked
//! below the build directory, not installed.

use std::path::{Path, PathBuf};
use std::process::Command;

use qemu_runner::Progress;
use qemu_runner::host::debian::{Apt, unpack};
use qemu_runner::host::{Lock, cache_dir};

/// grub-mkrescue, GRUB for BIOS machines, the image writer, and the libraries that these need beyond a
/// minimal installation.
const PACKAGES: [&str; 12] = [
    "grub-common",
    "grub-pc-bin",
    "xorriso",
    "mtools",
    "libisoburn1",
    "libisofs6",
    "libburn4",
    "libjte2",
    "libdevmapper1.02.1",
    "libefiboot1",
    "libefivar1",
    "libreadline8",
];
/// What is needed of them, or of an installation.
const PARTS: [&str; 4] =
    ["usr/bin/grub-mkrescue", "usr/lib/grub/i386-pc", "usr/bin/xorriso", "usr/bin/mformat"];
/// What to type where the packages cannot be downloaded.
const BY_HAND: &str = "sudo apt-get install grub-common grub-pc-bin xorriso mtools";
/// Only one line reaches the serial port, so that the machine's own output starts on a fresh one.
const MENU: &str = "set timeout=0\nserial --unit=0 --speed=115200\nterminal_input serial\nterminal_output serial\n\
                    multiboot2 /boot/kernel debug-exit\nmodule2 /boot/bundle\necho 'GRUB starts the kernel.'\nboot\n";

/// Makes the image; returns its path, in `dir`.
pub fn image(kernel: &Path, bundle: &Path, dir: &Path) -> PathBuf {
    let root = tools();
    let tree = dir.join("tree");
    crate::io(std::fs::create_dir_all(tree.join("boot/grub")));
    crate::io(std::fs::copy(kernel, tree.join("boot/kernel")));
    crate::io(std::fs::copy(bundle, tree.join("boot/bundle")));
    crate::io(std::fs::write(tree.join("boot/grub/grub.cfg"), MENU));
    let image = dir.join("boot.iso");
    let libraries = format!("{0}/usr/lib/x86_64-linux-gnu:{0}/lib/x86_64-linux-gnu", root.display());
    let path = format!("{}/usr/bin:{}", root.display(), std::env::var("PATH").unwrap_or_default());
    let output = Command::new(root.join("usr/bin/grub-mkrescue"))
        .env("LD_LIBRARY_PATH", libraries)
        .env("PATH", path)
        .arg(format!("--directory={}/usr/lib/grub/i386-pc", root.display()))
        // Nothing but the menu: no fonts, languages and pictures.
        .args(["--fonts=", "--locales=", "--themes=", "-o"])
        .args([&image, &tree])
        .output();
    let output = crate::io(output);
    assert!(output.status.success(), "grub-mkrescue: {}", String::from_utf8_lossy(&output.stderr));
    image
}

/// The folder that holds [`PARTS`]: the host's root, or one with the unpacked packages.
fn tools() -> PathBuf {
    let host = PathBuf::from("/");
    if PARTS.iter().all(|part| host.join(part).exists()) {
        return host;
    }
    let cache = cache_dir();
    let _lock = crate::must(Lock::take(&cache.join("grub.lock")));
    let root = cache.join("grub");
    if !root.exists() {
        let mut apt = crate::must(Apt::new(&cache.join("packages")));
        // Whole or not at all.
        let part = crate::io(tempfile::tempdir_in(&cache));
        for name in PACKAGES {
            // Debian 13 renamed libraries when time became 64 bits long.
            let package = apt
                .download(name, Progress::Silent)
                .or_else(|_| apt.download(&format!("{name}t64"), Progress::Silent))
                .unwrap_or_else(|error| panic!("{error}\nOr type: {BY_HAND}"));
            crate::must(unpack(&package, part.path()));
        }
        crate::io(std::fs::rename(part.keep(), &root));
    }
    root
}
