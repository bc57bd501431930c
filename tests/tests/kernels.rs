//! Kernels that nobody tuned the system for: Debian's flavours, an old one that calls through the hypercall page, the
//! newest that Debian's archive offers, a hand-written one; and guests of 32 MiB, of more than 4 GiB, and with a RAM
//! disk of 300 MiB.
//!
//! Which kernel is the newest is found by asking the archive. What cannot be fetched because there is no network is
//! skipped, and the test says so on the terminal, also when it passes.
#![allow(clippy::panic, reason = "a panic is a failed test")]

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{TcpStream, ToSocketAddrs as _};
use std::path::Path;
use std::time::Duration;

use qemu_runner::guest::cpio::Archive;
use qemu_runner::guest::{self, Files};
use qemu_runner::plan::ConfigFile;
use qemu_runner::session::Request;
use qemu_runner::{Guest, Progress};
use regex::Regex;
use system_tests::minimal::{self, Class};
use system_tests::{
    LONG, SHORT, address, files, http::Server, io, linux, must, noise, root_disk, sh, sha256, start,
};

/// A guest's name, the package of its kernel, and what `/proc/version` must have.
const KERNELS: [(&str, &str, &str); 4] = [
    ("cloud", "linux-image-cloud-amd64/bookworm", "-cloud-amd64"),
    ("rt", "linux-image-rt-amd64/bookworm", "PREEMPT_RT"),
    // The last release whose kernel calls through the hypercall page: later ones execute VMMCALL themselves.
    ("hypercall-page", "linux-image-amd64/bullseye", "5.10."),
    ("newest", "linux-image-amd64/newest", "Linux version"),
];
/// Guests with two virtual CPUs.
const TWO_CPUS: [&str; 2] = ["rt", "newest"];
/// How long all kernels together may take to their shells.
const BOOT: Duration = Duration::from_secs(420);
/// Bytes of the file that each guest fetches and writes.
const FETCHED: usize = 4 << 20;
/// Memory of the large guest in MiB: 2 GiB of it are above the hole.
const LARGE_MIB: u64 = 5 << 10;
/// Bytes of the large RAM disk's content.
const RAM_DISK: usize = 300 << 20;

/// Says something although the test may pass.
fn say(text: &str) {
    // The macros' output would be kept back; nobody needs this line more than the test's end.
    let _ = writeln!(std::io::stderr(), "kernels: {text}");
}

/// The default guest's files with another kernel; none where there is no network.
fn other_kernel(package: &str) -> Option<Files> {
    let name = package.parse().unwrap_or_else(|error| panic!("{error}"));
    match guest::prepare_with(Some(&name), Progress::Silent) {
        Ok(files) => Some(files),
        Err(error) if has_network() => panic!("{package}: {error}"),
        Err(error) => {
            say(&format!("SKIPPED, because there is no network: {package}: {error}"));
            None
        }
    }
}

fn has_network() -> bool {
    let addresses = "deb.debian.org:80".to_socket_addrs().into_iter().flatten();
    let can = |address| TcpStream::connect_timeout(&address, Duration::from_secs(5)).is_ok();
    addresses.take(3).any(can)
}

fn minimal_config(class: Class, dir: &Path) -> ConfigFile {
    let name = class.name();
    io(std::fs::write(dir.join(name), minimal::kernel(class)));
    let text = format!("name = \"{name}\"\ntype = \"pvh\"\nkernel = \"{name}\"\nmemory = 32\n");
    ConfigFile { name: format!("{name}.cfg"), text, dir: dir.to_path_buf() }
}

/// A text in the console, whatever comes before.
fn expect(guest: &mut Guest<'_>, text: &str) {
    let pattern = Regex::new(&regex::escape(text)).unwrap_or_else(|error| panic!("{error}"));
    // All guests boot at the same time, on one processor.
    must(guest.expect(&pattern, BOOT));
}

/// Console, disk and network of a guest whose shell is ready.
fn devices_work(guest: &mut Guest<'_>, server: &Server, sum: &str) {
    assert_eq!(sh(guest, "cat /sys/hypervisor/type; tty", SHORT), "xen\n/dev/hvc0");
    assert!(address(guest).starts_with("10.0.2."));
    // Through the page cache to the disk and back from there.
    let fetch = format!("wget -q -O /root/file {} && sync && echo 3 >/proc/sys/vm/drop_caches", server.url());
    sh(guest, &fetch, LONG);
    let read = sh(guest, "sha256sum </root/file", LONG);
    assert_eq!(read.split_whitespace().next(), Some(sum));
}

#[test]
fn stock_kernels_old_and_new_reach_their_init_with_console_disk_and_network() {
    let dir = io(tempfile::tempdir());
    let default = files();
    let others =
        KERNELS.iter().filter_map(|(name, package, version)| Some((*name, other_kernel(package)?, *version)));
    let guests: Vec<_> = std::iter::once(("default", default.clone(), "Debian")).chain(others).collect();
    let config = |(name, files, _): &(&str, Files, &str)| {
        let mut config = linux(files, name, &root_disk(files, dir.path(), name), dir.path(), "");
        if TWO_CPUS.contains(name) {
            config.text = config.text.replace("vcpus = 1", "vcpus = 2");
        }
        config
    };
    let mut configs: Vec<_> = guests.iter().map(config).collect();
    configs.extend([Class::Elf32, Class::Elf64].map(|class| minimal_config(class, dir.path())));
    // A kernel that does not fit is refused with what it needs.
    let mut tight = linux(&default, "tight", &root_disk(&default, dir.path(), "tight"), dir.path(), "");
    tight.text = tight.text.replace("memory = 256", "memory = 32");
    let mut request = Request::new(configs);
    request.further_guests = vec![tight];
    let running = start("kernels", &request);

    for class in [Class::Elf32, Class::Elf64] {
        expect(&mut running.machine.guest(class.name()).from_start(), &minimal::good(class));
        running.wait_gone(class.name());
    }
    let (refusal, status) = must(running.machine.exec("xl create tight", LONG));
    assert!(status != 0 && refusal.contains("MiB are needed; set memory= to that or more"), "{refusal}");

    let content = noise(FETCHED);
    let (server, sum) = (Server::start(content.clone()), sha256(&content));
    for (name, _, version) in &guests {
        let mut guest = running.machine.guest(*name).from_start();
        must(guest.wait_shell(BOOT));
        let said = sh(&mut guest, "cat /proc/version", SHORT);
        assert!(said.contains(version), "{name}: {said}");
        let cpus = if TWO_CPUS.contains(name) { "2" } else { "1" };
        assert_eq!(sh(&mut guest, "nproc", SHORT), cpus, "{name}");
        devices_work(&mut guest, &server, &sum);
        say(&format!("{name}: {said}"));
        running.xl(&format!("xl shutdown -w {name}"));
        running.wait_gone(name);
    }
    running.quit();
}

/// Pages that the kernel has free in its zone above 4 GiB, with nothing of the disk cached but `file`.
fn free_above_4_gib(guest: &mut Guest<'_>, file: &str) -> u64 {
    sh(guest, &format!("echo 3 >/proc/sys/vm/drop_caches; sleep 1; sha256sum <{file}"), LONG);
    let count = "awk '/^Node/{zone=$4} /pages free/ && zone==\"Normal\"{print $3}' /proc/zoneinfo";
    let pages = sh(guest, count, SHORT);
    pages.parse().unwrap_or_else(|_| panic!("{pages}"))
}

/// Two guests beside each other: one with RAM on both sides of the hole below 4 GiB, one with a large RAM disk.
#[test]
fn memory_above_4_gib_is_used_by_disk_and_network_and_large_ram_disks_arrive() {
    let dir = io(tempfile::tempdir());
    let files = files();
    let mut large = linux(&files, "large", &root_disk(&files, dir.path(), "large"), dir.path(), "");
    large.text = large.text.replace("memory = 256", &format!("memory = {LARGE_MIB}"));

    // Linux takes archives one behind the other.
    let noise = noise(RAM_DISK);
    let mut archive = Archive::default();
    archive.file("noise", &noise);
    let mut ram_disk = io(std::fs::read(&files.initrd));
    ram_disk.extend(archive.finish());
    let path = dir.path().join("large.cpio");
    io(std::fs::write(&path, ram_disk));
    let mut text =
        guest::xl_cfg("ram-disk", &files.kernel, Some(&path), None, "console=hvc0 8250.nr_uarts=0");
    text = text.replace("memory = 256", "memory = 1024");
    let ram_disk = ConfigFile { name: "ram-disk.cfg".to_owned(), text, dir: dir.path().to_path_buf() };
    let running = start("large-guests", &Request::new(vec![large, ram_disk]));

    let mut guest = running.shell("large");
    let total = sh(&mut guest, "awk '/^MemTotal/{print $2}' /proc/meminfo", SHORT);
    let total: u64 = total.parse().unwrap_or_else(|_| panic!("{total}"));
    assert!(total > (LARGE_MIB - 256) * 1024, "MemTotal is {total} KiB");
    let content = system_tests::noise(8 * FETCHED);
    let (server, sum) = (Server::start(content.clone()), sha256(&content));
    let before = free_above_4_gib(&mut guest, "/dev/null");
    devices_work(&mut guest, &server, &sum);
    let used = before.saturating_sub(free_above_4_gib(&mut guest, "/root/file"));
    assert!(used * 4096 >= content.len() as u64 / 2, "only {used} pages above 4 GiB were used");

    let mut guest = running.machine.guest("ram-disk").from_start();
    must(guest.wait_shell(BOOT));
    let read = sh(&mut guest, "sha256sum </noise", LONG);
    assert_eq!(read.split_whitespace().next(), Some(sha256(&noise).as_str()));
    let mut times = String::new();
    for line in running.machine.guest("ram-disk").from_start().text().lines() {
        if line.contains("initramfs") || line.contains("Freeing initrd") {
            let _ = writeln!(times, "{}", line.trim());
        }
    }
    say(&format!("a RAM disk of 300 MiB: {}", times.trim()));
    running.quit();
}
