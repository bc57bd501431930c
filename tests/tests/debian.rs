//! A whole Debian on a disk of its own: GRUB is the guest's kernel, loads Linux from the disk, and the system is
//! used and shut down as a person would.
#![allow(clippy::panic, reason = "a panic is a failed test")]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use qemu_runner::host::{cache_dir, tools};
use qemu_runner::make_guest::personal::{Login, Personal};
use qemu_runner::make_guest::tree::Recipe;
use qemu_runner::make_guest::{self, Order, disk};
use qemu_runner::plan::ConfigFile;
use qemu_runner::session::Request;
use qemu_runner::{Guest, Progress};
use regex::Regex;
use system_tests::{LONG, SHORT, http, io, must, repository, sh, start};

/// From the guest's start to the login prompt: GRUB's menu, Linux unpacking itself, systemd.
const BOOT: Duration = Duration::from_secs(480);
const HOSTNAME: &str = "ailurus-test";
const PASSWORD: &str = "only for this test";

#[test]
fn grub_boots_a_whole_debian_that_is_used_and_shut_down() {
    if !rustix::process::geteuid().is_root() {
        // Past the capturing of a test's output: nobody shall think that it ran.
        let _ = std::io::stderr()
            .write_all(b"SKIPPED: tests/debian.rs: a whole Debian can only be installed by root\n");
        return;
    }
    let began = Instant::now();
    let time = |what: &str| println!("{:6.1} s: {what}", began.elapsed().as_secs_f64());
    let runs = cache_dir().join("runs");
    io(std::fs::create_dir_all(&runs));
    let dir = io(tempfile::tempdir_in(&runs));
    let ssh = Ssh::new(dir.path());
    let made = must(make_guest::debian(&dir.path().join("debian.img"), &order(&ssh), Progress::Silent));
    time("the image is made");
    let server = http::Server::start_files(repository::files(dir.path()));
    let config = must(ConfigFile::read(&made.config));
    let mut request = Request::new(vec![config]);
    request.hostfwd.push(format!("tcp:127.0.0.1:{}-:22", ssh.port));
    let running = start("debian", &request);

    let mut guest = running.machine.guest(HOSTNAME).from_start();
    grub_has_a_command_line(&mut guest);
    log_in(&mut guest);
    time("logged in");
    the_system_is_whole(&mut guest);
    time("all units are up");
    assert_eq!(ssh.run("cat /proc/sys/kernel/hostname"), HOSTNAME);
    time("ssh");
    apt_installs_from_the_host(&mut guest, &server);
    time("apt");
    // What a kernel's installation in the guest runs: the next boot is by the menu that it writes.
    sh(
        &mut guest,
        "update-grub 2>/dev/null && grep -q \"menuentry 'Debian GNU/Linux'\" /boot/grub/grub.cfg",
        LONG,
    );
    sh(&mut guest, "echo kept >/root/note", SHORT);
    time("update-grub");

    running.xl(&format!("xl shutdown -w {HOSTNAME}"));
    running.wait_gone(HOSTNAME);
    the_file_system_is_clean(&made.image);
    time("shut down by the toolstack");

    running.xl(&format!("xl create {HOSTNAME}"));
    let mut guest = running.machine.guest(HOSTNAME);
    log_in(&mut guest);
    time("logged in again");
    assert_eq!(sh(&mut guest, "cat /root/note", SHORT), "kept");
    must(guest.send(b"poweroff\n"));
    running.wait_gone(HOSTNAME);
    the_file_system_is_clean(&made.image);
    time("powered off by itself");
    running.quit();
}

fn order(ssh: &Ssh) -> Order {
    let login = Login { root_password: PASSWORD.to_owned(), ssh_keys: vec![ssh.public_key.clone()] };
    Order {
        recipe: Recipe::new("bookworm", "http://deb.debian.org/debian", &[]),
        personal: Personal { hostname: HOSTNAME.to_owned(), login },
        size: 3 << 30,
    }
}

fn expect(guest: &mut Guest<'_>, pattern: &str, timeout: Duration) -> String {
    match Regex::new(pattern) {
        Ok(regex) => must(guest.expect(&regex, timeout)),
        Err(error) => panic!("{error}"),
    }
}

/// The menu counts down; a key stops it. GRUB reads partitions and ext4, and goes back to its menu.
fn grub_has_a_command_line(guest: &mut Guest<'_>) {
    expect(guest, "GNU GRUB +version", BOOT);
    expect(guest, r"executed automatically in \ds", SHORT);
    must(guest.send(b"c"));
    expect(guest, "grub> ", SHORT);
    must(guest.send(b"echo is $grub_cpu-$grub_platform\r"));
    expect(guest, "is i386-xen_pvh", SHORT);
    must(guest.send(b"ls (xen/xvda,gpt1)/etc/debian_version\r"));
    expect(guest, "\ndebian_version", SHORT);
    must(guest.send(b"\x1b"));
    expect(guest, "Debian GNU/Linux", SHORT);
    must(guest.send(b"\r"));
}

fn log_in(guest: &mut Guest<'_>) {
    expect(guest, &format!("{HOSTNAME} login: "), BOOT);
    must(guest.send(b"root\n"));
    expect(guest, "Password: ", SHORT);
    must(guest.send(format!("{PASSWORD}\n").as_bytes()));
    must(guest.wait_shell(SHORT));
}

fn the_system_is_whole(guest: &mut Guest<'_>) {
    // Started by GRUB it has no start information, and finds out by the hypervisor's leaves where it is.
    assert_eq!(sh(guest, "cat /sys/hypervisor/type", SHORT), "xen");
    assert_eq!(sh(guest, "systemd-detect-virt", SHORT), "xen");
    assert_eq!(sh(guest, "tty", SHORT), "/dev/hvc0");
    assert!(sh(guest, "findmnt -n -o SOURCE,FSTYPE /", SHORT).starts_with("/dev/xvda1 ext4"));
    let (state, _) = must(guest.shell("systemctl is-system-running --wait", BOOT));
    let (failed, _) = must(guest.shell("systemctl --failed --no-legend --plain --no-pager", SHORT));
    assert_eq!((state.trim(), failed.trim()), ("running", ""));
    let address = sh(guest, "ip -4 -o addr show scope global", SHORT);
    assert!(address.contains("inet 10.0.2.15/24"), "{address}");
    assert_ne!(sh(guest, "cat /etc/machine-id", SHORT), "");
}

fn apt_installs_from_the_host(guest: &mut Guest<'_>, server: &http::Server) {
    let list = format!("deb [trusted=yes] {} {}", server.base(), repository::SUITE);
    sh(guest, &format!("echo '{list}' >/etc/apt/sources.list"), SHORT);
    let said = sh(guest, "apt-get update 2>&1", LONG);
    assert!(!said.contains("E: ") && !said.contains("Err:"), "{said}");
    let package = repository::PACKAGE;
    let (path, text) = repository::NOTE;
    sh(guest, &format!("DEBIAN_FRONTEND=noninteractive apt-get install -y {package} >/dev/null 2>&1"), LONG);
    assert_eq!(sh(guest, &format!("cat /{path}"), SHORT), text);
    assert!(server.asked().iter().any(|path| path.ends_with("/Packages")), "{:?}", server.asked());
}

/// Checks the partition as `fsck` would after an unclean end, without changing anything.
fn the_file_system_is_clean(image: &Path) {
    let partition = format!("{}?offset={}", image.display(), disk::OFFSET);
    let output = io(Command::new("e2fsck").args(["-f", "-n", &partition]).output());
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(!said.contains("recover"), "the journal was not empty: {said}");
}

/// The host's way into the guest.
struct Ssh {
    program: PathBuf,
    key: PathBuf,
    public_key: String,
    port: u16,
}

impl Ssh {
    fn new(dir: &Path) -> Self {
        let tool = tools::Tool { program: "ssh", package: "openssh-client", purpose: "logs in to the guest" };
        let program = must(tools::ensure(tool, Progress::Silent));
        let key = dir.join("key");
        let output =
            Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).output();
        assert!(io(output).status.success(), "ssh-keygen");
        let public_key = io(std::fs::read_to_string(key.with_extension("pub"))).trim().to_owned();
        // Free now, and most likely still when QEMU takes it.
        let listener = io(std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)));
        Self { program, key, public_key, port: io(listener.local_addr()).port() }
    }

    /// Runs a command in the guest as root.
    fn run(&self, command: &str) -> String {
        let port = self.port.to_string();
        let output = Command::new(&self.program)
            .args([
                "-F",
                "none",
                "-o",
                "BatchMode=yes",
                "-o",
                "StrictHostKeyChecking=no",
                "-o",
                "ConnectTimeout=60",
            ])
            .args(["-o", "UserKnownHostsFile=/dev/null", "-p", &port, "-i"])
            .arg(&self.key)
            .args(["root@127.0.0.1", command])
            .output();
        let output = io(output);
        assert!(output.status.success(), "ssh: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}
