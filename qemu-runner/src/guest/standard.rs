//! The standard guest: what Xen, KVM and Ailurus are measured with.
//!
//! Debian's stock kernel, unpacked, with a small initial RAM disk: busybox, the drivers of Xen's disk and network,
//! and the [`probe`](super::probe). Its init says the time before it does anything else, loads the drivers and is
//! a shell then, at which the bench starts the probe. The peers' guests had the same kernel, command line and memory,
//! and a RAM disk of the same parts (3.7 MB; this one has 3.5).

use std::path::Path;

use image_builder::Progress;

use super::cpio::Archive;
use super::modules::{Module, needed};
use super::{MEMORY_MIB, modules_of, parts, probe};
use crate::Error;
use crate::host::{Lock, cache_dir, sha256, write_whole};
use crate::plan::ConfigFile;

/// Name of the guest.
pub const NAME: &str = "standard";

/// Drivers that it loads.
const MODULES: [&str; 2] = ["xen-blkfront", "xen-netfront"];
/// Programs of busybox that its init uses.
const APPLETS: [&str; 10] =
    ["cat", "cttyhack", "cut", "insmod", "ip", "mount", "poweroff", "setsid", "sh", "sleep"];

/// Its init, and what it says first. The clock is read as early as in the peers' guests: their init had read the
/// uptime with two programs before, so this one does.
const INIT: &str = r#"#!/bin/sh
export PATH=/bin HOME=/ TERM=vt100
mount -t proc proc /proc
echo "standard: init after $(cat /proc/uptime | cut -d ' ' -f 1) s"
probe now
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do
    insmod "/modules/$module" || echo "standard: $module cannot be loaded"
done
setsid cttyhack sh -l
poweroff -f
"#;

/// The guest's configuration, with its files made. `disk` is as xl.cfg has it, and its `vdev` must be `xvda`.
///
/// # Errors
/// A package, a tool or the probe that cannot be had.
pub fn config(disk: Option<&str>, progress: Progress) -> Result<ConfigFile, Error> {
    let cache = cache_dir();
    let _lock = Lock::take(&cache.join("lock"))?;
    let parts = parts(&cache, progress)?;
    let busybox = std::fs::read(&parts.busybox).map_err(Error::path(&parts.busybox))?;
    let file = probe::build(progress)?;
    let probe = std::fs::read(&file).map_err(Error::path(&file))?;
    let archive = build(&busybox, &probe, &needed(modules_of(&parts.kernel)?, &MODULES));
    let initrd = cache.join(format!("standard-{}.cpio", &sha256(&[&archive])[..16]));
    if !initrd.exists() {
        write_whole(&initrd, &archive)?;
    }
    let text = xl_cfg(disk, &parts.kernel.join("vmlinuz"), &initrd);
    Ok(ConfigFile { name: "standard guest".to_owned(), text, dir: cache })
}

fn build(busybox: &[u8], probe: &[u8], modules: &[Module]) -> Vec<u8> {
    let mut archive = Archive::default();
    for dir in ["bin", "dev", "modules", "proc", "sys", "tmp"] {
        archive.directory(dir);
    }
    archive.program("bin/busybox", busybox);
    for applet in APPLETS {
        archive.link(&format!("bin/{applet}"), "busybox");
    }
    archive.program("bin/probe", probe);
    let order: String = modules.iter().map(|module| format!("{}\n", module.name)).collect();
    archive.file("modules/order", order.as_bytes());
    for module in modules {
        archive.file(&format!("modules/{}", module.name), &module.content);
    }
    archive.program("init", INIT.as_bytes());
    archive.finish()
}

fn xl_cfg(disk: Option<&str>, kernel: &Path, initrd: &Path) -> String {
    let (kernel, initrd) = (kernel.display(), initrd.display());
    let mut text = format!(
        "name = \"{NAME}\"\ntype = \"pvh\"\nkernel = \"{kernel}\"\nramdisk = \"{initrd}\"\n\
         cmdline = \"console=hvc0 quiet\"\nmemory = {MEMORY_MIB}\n"
    );
    if let Some(disk) = disk {
        text.push_str(&format!("disk = [\"{disk}\"]\n"));
    }
    text.push_str("vif = [\"bridge=xenbr0\"]\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_accepted() {
        for (disk, disks) in [(None, 0), (Some("ram:64M,xvda,w"), 1)] {
            let text = xl_cfg(disk, Path::new("/k"), Path::new("/i"));
            let parsed = toolstack::config::parse("standard.cfg", &text);
            assert_eq!(parsed.diagnostics, []);
            let config = parsed.config.unwrap();
            assert_eq!((config.disks.len(), config.vifs.len()), (disks, 1));
            assert_eq!(config.cmdline.value, "console=hvc0 quiet");
        }
    }
}
