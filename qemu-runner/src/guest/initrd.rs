//! The default guest's initial RAM disk: busybox, the modules, and a script that finds the root disk.

use super::cpio::Archive;
use super::modules::Module;

/// Programs of busybox that the script and an emergency shell use.
const APPLETS: [&str; 24] = [
    "cat",
    "cp",
    "cttyhack",
    "dd",
    "dmesg",
    "echo",
    "grep",
    "head",
    "insmod",
    "ip",
    "ls",
    "mkdir",
    "mount",
    "poweroff",
    "ps",
    "reboot",
    "sed",
    "setsid",
    "sh",
    "sha256sum",
    "sleep",
    "switch_root",
    "sync",
    "udhcpc",
];

/// Without `root=` on the command line, or when the disk does not come, there is a shell in RAM.
const INIT: &str = r#"#!/bin/sh
export PATH=/bin HOME=/ TERM=vt100
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do
    insmod "/modules/$module" || echo "initrd: $module cannot be loaded"
done
root=
for word in $(cat /proc/cmdline); do
    case "$word" in root=*) root=${word#root=} ;; esac
done
if [ -n "$root" ]; then
    tries=0
    while [ ! -b "$root" ] && [ "$tries" -lt 100 ]; do
        sleep 0.1
        tries=$((tries + 1))
    done
    if mount -t ext4 "$root" /root; then
        mount -o move /proc /root/proc
        mount -o move /sys /root/sys
        mount -o move /dev /root/dev
        exec switch_root /root /sbin/init
    fi
    echo "initrd: $root is no ext4 file system or did not appear; this is a shell in RAM"
fi
echo "initrd: ready"
setsid cttyhack sh -l
poweroff -f
"#;

/// Builds the archive.
pub fn build(busybox: &[u8], modules: &[Module]) -> Vec<u8> {
    let mut archive = Archive::default();
    for dir in ["bin", "dev", "modules", "proc", "root", "sys", "tmp"] {
        archive.directory(dir);
    }
    archive.program("bin/busybox", busybox);
    for applet in APPLETS {
        archive.link(&format!("bin/{applet}"), "busybox");
    }
    let order: String = modules.iter().map(|m| format!("{}\n", m.name)).collect();
    archive.file("modules/order", order.as_bytes());
    for module in modules {
        archive.file(&format!("modules/{}", module.name), &module.content);
    }
    archive.program("init", INIT.as_bytes());
    archive.finish()
}
