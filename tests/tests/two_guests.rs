//! Two guests on one switch, and one of them destroyed in the middle of its traffic.

use qemu_runner::session::Request;
use system_tests::{
    LONG, SHORT, address, files, http::Server, io, linux, noise, root_disk, sh, sha256, start,
};

/// MiB that the guests fetch from each other.
const FETCHED_MIB: usize = 4;

#[test]
fn guests_fetch_from_each_other_and_one_survives_the_others_end() {
    let dir = io(tempfile::tempdir());
    let files = files();
    let config = |name: &str| linux(&files, name, &root_disk(&files, dir.path(), name), dir.path(), "");
    let running = start("two-guests", &Request::new(vec![config("web"), config("db")]));
    let (mut web, mut db) = (running.shell("web"), running.shell("db"));

    let (web_address, db_address) = (address(&mut web), address(&mut db));
    assert_ne!(web_address, db_address);

    // Each serves a file of its own; each fetches the other's.
    let mut sums = Vec::new();
    for guest in [&mut web, &mut db] {
        let make = format!(
            "mkdir -p /tmp/www && dd if=/dev/urandom of=/tmp/www/file bs=1M count={FETCHED_MIB} 2>/dev/null && \
             httpd -h /tmp/www && sha256sum </tmp/www/file"
        );
        sums.push(sh(guest, &make, LONG));
    }
    assert_ne!(sums[0], sums[1]);
    let fetch = |address: &str| format!("wget -q -O - http://{address}/file | sha256sum");
    assert_eq!(sh(&mut db, &fetch(&web_address), LONG), sums[0]);
    assert_eq!(sh(&mut web, &fetch(&db_address), LONG), sums[1]);

    // The one that will be destroyed writes its disk, fetches and is fetched from without a pause.
    let busy = format!(
        "(while :; do dd if=/dev/zero of=/root/busy bs=64k count=64 conv=fsync; done) >/dev/null 2>&1 & \
         (while :; do wget -q -O /dev/null http://{web_address}/file; done) >/dev/null 2>&1 & true"
    );
    sh(&mut db, &busy, SHORT);
    // The other one downloads and writes at the same time.
    let content = noise(8 << 20);
    let server = Server::start(content.clone());
    let work = format!(
        "(wget -q -O - {url} | sha256sum >/tmp/sum) & (dd if=/dev/zero of=/root/out bs=64k count=256 conv=fsync \
         2>/dev/null; sha256sum </root/out >/tmp/disk) & true",
        url = server.url()
    );
    sh(&mut web, &work, SHORT);
    running.xl("xl destroy db");
    assert!(!running.is_listed("db"));

    let sum = sh(&mut web, "wait; cat /tmp/sum", LONG);
    assert_eq!(sum.split_whitespace().next(), Some(sha256(&content).as_str()));
    let disk = sh(&mut web, "cat /tmp/disk", SHORT);
    assert_eq!(disk.split_whitespace().next(), Some(sha256(&vec![0; 16 << 20]).as_str()));
    // And it goes on afterwards, on the disk and on the network.
    let again = sh(&mut web, &format!("wget -q -O - {} | sha256sum", server.url()), LONG);
    assert_eq!(again.split_whitespace().next(), Some(sha256(&content).as_str()));
    assert_eq!(sh(&mut web, "rm /root/out && sync && dmesg | grep -ci 'i/o error' || true", SHORT), "0");
    running.quit();
}
