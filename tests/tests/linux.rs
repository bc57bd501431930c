//! Debian's stock kernel with console, disk and network, each through its own service domain.
#![allow(clippy::panic, reason = "a panic is a failed test")]

use qemu_runner::session::Request;
use system_tests::{
    LONG, SHORT, address, files, http::Server, io, linux, noise, root_disk, sh, sha256, start,
};

/// Bytes of the download.
const DOWNLOAD: usize = 8 << 20;
/// MiB that are written to the disk.
const WRITTEN_MIB: usize = 32;

#[test]
fn a_stock_kernel_boots_downloads_writes_shuts_down_and_finds_its_data_again() {
    let dir = io(tempfile::tempdir());
    let files = files();
    let root = root_disk(&files, dir.path(), "root");
    let data = dir.path().join("data.img");
    io(io(std::fs::File::create(&data)).set_len((WRITTEN_MIB as u64 + 8) << 20));
    let disks = format!("disk = [\"{},raw,xvda,rw\", \"{},raw,xvdb,rw\"]\n", root.display(), data.display());
    let mut config = linux(&files, "debian", &root, dir.path(), "");
    config.text = config.text.lines().filter(|l| !l.starts_with("disk")).map(|l| format!("{l}\n")).collect();
    config.text.push_str(&disks);
    let running = start("linux", &Request::new(vec![config]));

    let mut guest = running.shell("debian");
    assert_eq!(sh(&mut guest, "cat /sys/hypervisor/type", SHORT), "xen");
    assert_eq!(sh(&mut guest, "tty", SHORT), "/dev/hvc0");
    assert_eq!(sh(&mut guest, "ls /dev/xvda /dev/xvdb | wc -l", SHORT), "2");
    assert!(sh(&mut guest, "cat /proc/version", SHORT).contains("Debian"));

    // The timer wakes an idle guest when it should: neither early nor (much) late.
    let slept = sh(
        &mut guest,
        "a=$(cut -d. -f1 /proc/uptime); sleep 5; b=$(cut -d. -f1 /proc/uptime); echo $((b-a))",
        SHORT,
    );
    let slept: u32 = slept.parse().unwrap_or_else(|_| panic!("{slept}"));
    assert!((4..=15).contains(&slept), "a sleep of 5 s took {slept} s");

    // DHCP comes from outside of the machine, through the switch.
    let address = address(&mut guest);
    assert!(address.starts_with("10.0.2."), "{address}");

    let content = noise(DOWNLOAD);
    let server = Server::start(content.clone());
    let sum = sh(&mut guest, &format!("wget -q -O - {} | sha256sum", server.url()), LONG);
    assert_eq!(sum.split_whitespace().next(), Some(sha256(&content).as_str()));

    the_list_shows_every_domain(&running.xl("xl list"));

    let write = format!(
        "dd if=/dev/urandom of=/dev/xvdb bs=1M count={WRITTEN_MIB} 2>/dev/null && echo kept >/root/note && sync"
    );
    sh(&mut guest, &write, LONG);
    let read = format!("dd if=/dev/xvdb bs=1M count={WRITTEN_MIB} 2>/dev/null | sha256sum");
    let written = sh(&mut guest, &read, LONG);

    running.xl("xl shutdown -w debian");
    running.wait_gone("debian");
    running.xl("xl create debian");
    let mut guest = running.machine.guest("debian");
    system_tests::must(guest.wait_shell(system_tests::SHELL));
    assert_eq!(sh(&mut guest, &read, LONG), written, "another content after the restart");
    assert_eq!(sh(&mut guest, "cat /root/note", SHORT), "kept");

    running.quit();
    let image = io(std::fs::read(&data));
    let on_host = sha256(image.get(..WRITTEN_MIB << 20).unwrap_or_default());
    assert_eq!(written.split_whitespace().next(), Some(on_host.as_str()), "the host finds other bytes");
}

/// Every service domain and guest with ID, memory, vCPUs, state and time.
fn the_list_shows_every_domain(list: &str) {
    let header: Vec<&str> = list.lines().next().unwrap_or_default().split_whitespace().collect();
    assert_eq!(header, ["Name", "ID", "Mem", "VCPUs", "State", "Time(s)"], "{list}");
    for name in ["init", "console", "xenstore", "blkback", "netback", "toolstack", "debian"] {
        let row = list.lines().find(|line| line.split_whitespace().next() == Some(name));
        let row = row.unwrap_or_else(|| panic!("{name} is not listed:\n{list}"));
        let columns: Vec<&str> = row.split_whitespace().collect();
        let [_, id, memory, vcpus, state, time] = columns[..] else { panic!("{row}") };
        assert!(id.parse::<u32>().is_ok() && memory.parse::<u32>().is_ok(), "{row}");
        assert_eq!(vcpus, "1", "{row}");
        assert!(state.len() == 6 && state.chars().all(|c| "rbpscd-".contains(c)), "{row}");
        assert!(time.parse::<f64>().is_ok(), "{row}");
    }
    let memory = list.lines().find(|l| l.starts_with("debian")).and_then(|l| l.split_whitespace().nth(2));
    assert_eq!(memory, Some("256"), "{list}");
}
