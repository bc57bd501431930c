//! A guest and the station of `tests/peer` on a bridge without a NIC: ping, and bytes both ways.

use qemu_runner::qemu::Net;
use qemu_runner::session::Request;
use system_tests::{LONG, SHORT, files, io, linux, root_disk, sh, start};

/// MiB that are moved each way by each connection.
const MOVED_MIB: usize = 2;

/// A request to the server as busybox's printf takes it: what to do, and how many bytes of it.
fn request(operation: char, count: usize) -> String {
    let bytes = (count as u64).to_le_bytes();
    let bytes: String = bytes.iter().map(|byte| format!("\\{byte:03o}")).collect();
    format!("printf '{operation}{bytes}'")
}

#[test]
fn a_guest_talks_with_the_station_on_its_bridge() {
    let dir = io(tempfile::tempdir());
    let files = files();
    let config = linux(&files, "web", &root_disk(&files, dir.path(), "web"), dir.path(), "");
    let mut machine = Request::new(vec![config]);
    machine.manifest =
        Some(("tests/peer/manifest.toml".to_owned(), include_str!("../peer/manifest.toml").to_owned()));
    machine.net = Net::None;
    let running = start("peer", &machine);
    let mut guest = running.shell("web");
    sh(&mut guest, "ip addr add 10.77.0.2/24 dev eth0 && ip link set eth0 up", SHORT);
    let ping = sh(&mut guest, "ping -q -c 3 -w 10 10.77.0.1", SHORT);
    assert!(ping.contains(" 0% packet loss"), "{ping}");

    let bytes = MOVED_MIB << 20;
    let server = "nc 10.77.0.1 5001";
    let out =
        format!("({}; dd if=/dev/zero bs=1M count={MOVED_MIB} 2>/dev/null) | {server}", request('T', bytes));
    let back = format!("{} | {server} | wc -c", request('R', bytes));
    for _ in 0..2 {
        assert_eq!(sh(&mut guest, &out, LONG), "k");
        assert_eq!(sh(&mut guest, &back, LONG), bytes.to_string());
    }
    let echo = format!("({}; printf 'hello, station') | {server}", request('L', 14));
    assert_eq!(sh(&mut guest, &echo, SHORT), "hello, station");

    // Four at once, each in both directions.
    let both = format!(
        "for n in 1 2 3 4; do (({}; dd if=/dev/zero bs=1M count={MOVED_MIB} 2>/dev/null; {}) | {server} | wc -c \
         >/tmp/got$n) & done; wait; cat /tmp/got[1-4]",
        request('T', bytes),
        request('R', bytes)
    );
    let got = sh(&mut guest, &both, LONG);
    assert_eq!(got.split_whitespace().collect::<Vec<_>>(), vec![(bytes + 1).to_string(); 4]);

    // The closing port takes clients and closes; where nobody listens, none is taken.
    for _ in 0..5 {
        assert_eq!(sh(&mut guest, "nc 10.77.0.1 5003 </dev/null; echo $?", SHORT), "0");
    }
    assert_eq!(sh(&mut guest, "nc 10.77.0.1 5004 </dev/null >/dev/null 2>&1; echo $?", SHORT), "1");
    running.quit();
}
