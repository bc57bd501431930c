//! The standard guest: what Xen, KVM and Ailurus are measured with.
//!
//! Debian's stock kernel, unpacked, with a small initial RAM disk: busybox, the drivers of Xen's disk and network,
//! and the [`probe`](super::probe). Its init prints the clock before it does anything else, measures what the kernel
//! command line names, says `standard: done`, and powers off when a line comes. The peers' guests had the same kernel and command
//! line, a RAM disk of the same parts (3.7 MB; this one has 3.5) and the same sizes and counts.

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
/// Last line of a guest that measured all it was asked for.
pub const DONE: &str = "standard: done";
/// Begins a line that says what went wrong.
pub const FAILED: &str = "standard: failed";

/// Drivers that it loads.
const MODULES: [&str; 2] = ["xen-blkfront", "xen-netfront"];
/// Programs of busybox that its init uses.
const APPLETS: [&str; 9] = ["cat", "cut", "insmod", "ip", "mount", "poweroff", "sh", "sleep", "sync"];
/// Address of the guest, and of the server that it measures its network with.
const ADDRESS: &str = "10.77.0.2/24";
const SERVER: &str = "10.77.0.1:5001";

/// What the guest is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan<'a> {
    /// Tests, in this order: `exits`, `cpu`, `blk`, `net`.
    pub tests: Vec<&'a str>,
    /// How often each.
    pub repeat: u32,
    /// MiB of each sequential block test; random ones are a 4th (32 in flight) and a 32nd (one) of it.
    pub blk_mib: u32,
    /// MiB of each network transfer.
    pub net_mib: u32,
    /// The disk, as xl.cfg has it; it must be `xvda`.
    pub disk: Option<String>,
}

/// The program of the guest; ADDRESS and SERVER are replaced. The clock is read as early as in the peers' guests:
/// their init had read the uptime with two programs before, so this one does.
const INIT: &str = r#"#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
echo "standard: init after $(cat /proc/uptime | cut -d ' ' -f 1) s"
probe now
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
value() {
    for word in $(cat /proc/cmdline); do
        case "$word" in "standard.$1="*) echo "${word#*=}" ;; esac
    done
}
run() { probe "$@" || echo "standard: failed: probe $*"; }
# Devices come up when their handshakes are through.
await() {
    tries=0
    while [ ! -e "$1" ] && [ "$tries" -lt 50 ]; do
        sleep 0.1
        tries=$((tries + 1))
    done
    [ -e "$1" ] || echo "standard: failed: there is no $1"
}
blk() {
    await /dev/xvda
    all=$(($(value blk-mib) << 20))
    for access in read write; do
        run blk /dev/xvda "$access" 4096 $((all / 8)) 1
        run blk /dev/xvda "$access" 131072 "$all" 1
        run blk /dev/xvda "$access" 1048576 "$all" 1
        run blk /dev/xvda "rand$access" 4096 $((all / 32)) 1
        run blk /dev/xvda "rand$access" 4096 $((all / 8)) 32
        run blk /dev/xvda "$access" 131072 "$all" 8
    done
}
net() {
    await /sys/class/net/eth0
    if [ ! -e /tmp/net ]; then
        ip addr add ADDRESS dev eth0
        ip link set eth0 up
        echo up >/tmp/net
        sleep 1
    fi
    run net SERVER rr 500
    run net SERVER tx $(($(value net-mib) << 20))
    run net SERVER rx $(($(value net-mib) << 20))
}
exits() { run exits; }
cpu() { run cpu; }
for module in $(cat /modules/order); do
    insmod "/modules/$module" || echo "standard: failed: $module cannot be loaded"
done
tests=$(value tests)
left=$(value repeat)
IFS=,
set -- $tests
unset IFS
while [ "$left" -gt 0 ]; do
    left=$((left - 1))
    for test in "$@"; do "$test"; done
done
echo "standard: done"
# The host looks at the machine while the guest is there, then sends a line.
read -r line
poweroff -f
"#;

/// The guest's configuration, with its files made.
///
/// # Errors
/// A package, a tool or the probe that cannot be had.
pub fn config(plan: &Plan<'_>, progress: Progress) -> Result<ConfigFile, Error> {
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
    let text = xl_cfg(plan, &parts.kernel.join("vmlinuz"), &initrd);
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
    let init = INIT.replace("ADDRESS", ADDRESS).replace("SERVER", SERVER);
    archive.program("init", init.as_bytes());
    archive.finish()
}

fn xl_cfg(plan: &Plan<'_>, kernel: &Path, initrd: &Path) -> String {
    let mut text = format!(
        "name = \"{NAME}\"\ntype = \"pvh\"\nkernel = \"{}\"\nramdisk = \"{}\"\nmemory = {MEMORY_MIB}\n",
        kernel.display(),
        initrd.display()
    );
    text.push_str(&format!(
        "cmdline = \"console=hvc0 quiet standard.tests={} standard.repeat={} standard.blk-mib={} standard.net-mib={}\"\n",
        plan.tests.join(","),
        plan.repeat,
        plan.blk_mib,
        plan.net_mib
    ));
    if let Some(disk) = &plan.disk {
        text.push_str(&format!("disk = [\"{disk}\"]\n"));
    }
    text.push_str("vif = [\"bridge=xenbr0\"]\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(disk: Option<&str>) -> Plan<'static> {
        Plan { tests: vec!["exits", "blk"], repeat: 3, blk_mib: 8, net_mib: 4, disk: disk.map(str::to_owned) }
    }

    #[test]
    fn the_configuration_is_accepted_and_names_the_tests() {
        let text = xl_cfg(&plan(Some("ram:64M,xvda,w")), Path::new("/k"), Path::new("/i"));
        let parsed = toolstack::config::parse("standard.cfg", &text);
        assert_eq!(parsed.diagnostics, []);
        let config = parsed.config.unwrap();
        assert_eq!(config.disks.len(), 1);
        assert!(
            config
                .cmdline
                .value
                .starts_with("console=hvc0 quiet standard.tests=exits,blk standard.repeat=3 ")
        );
        let bare = xl_cfg(&plan(None), Path::new("/k"), Path::new("/i"));
        assert!(toolstack::config::parse("standard.cfg", &bare).config.unwrap().disks.is_empty());
    }

    #[test]
    fn the_init_uses_no_program_that_the_disk_lacks() {
        let builtin = [
            "case", "do", "done", "echo", "esac", "export", "fi", "for", "if", "read", "run", "set", "unset",
            "while", "value",
        ];
        let own = ["await", "blk", "cpu", "exits", "net", "probe"];
        for line in INIT
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with(['#', '[', '}', '"']))
        {
            let word = line.split([' ', '(', '=']).next().unwrap();
            let is_assignment = line.starts_with(&format!("{word}="));
            let is_known = builtin.contains(&word) || own.contains(&word) || APPLETS.contains(&word);
            assert!(is_assignment || is_known, "{word} in `{line}`");
        }
    }
}
