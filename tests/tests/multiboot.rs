//! The other way to boot: firmware, GRUB, and the kernel through multiboot2 as on a board without QEMU's
//! direct boot.
#![allow(clippy::panic, reason = "a panic is a failed test")]

use qemu_runner::session::Request;
use system_tests::{SHORT, UP, files, grub, io, launch_with, linux, must, root_disk, sh};

#[test]
fn grub_boots_the_kernel_with_the_bundle_as_its_module() {
    let dir = io(tempfile::tempdir());
    let files = files();
    let config = linux(&files, "debian", &root_disk(&files, dir.path(), "root"), dir.path(), "");
    let running = launch_with("multiboot", &Request::new(vec![config]), |session| {
        session.config.cdrom = Some(grub::image(&session.config.kernel, &session.config.bundle, dir.path()));
    });
    must(running.machine.wait_up(UP));
    let log = running.machine.with_state(|state| state.tail());
    let list = running.xl("xl list");
    for name in ["init", "console", "xenstore", "blkback", "netback", "toolstack", "debian"] {
        let is_listed = list.lines().any(|line| line.split_whitespace().next() == Some(name));
        assert!(is_listed, "{name} is not listed:\n{list}\n{log}");
    }
    // Memory that GRUB had used is the guests' now, and disk and network are where they are otherwise.
    let mut guest = running.shell("debian");
    assert_eq!(sh(&mut guest, "ls -d /dev/xvda /sys/class/net/eth0 | wc -l", SHORT), "2");
    running.quit();
}
