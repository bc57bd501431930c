//! A guest's disk request in the kernel's trace, followed from the guest to the device and back.
#![allow(clippy::panic, reason = "a panic is a failed test")]

use qemu_runner::session::Request;
use qemu_runner::trace::{self, Kind, Record, Trace, chrome};
use system_tests::{LONG, SHORT, files, io, linux, must, root_disk, sh, start};

/// SVM's exit code of VMMCALL, by which a guest notifies its backend.
const VMMCALL: u64 = 0x81;

/// Steps of a request, in their order.
const STEPS: [&str; 9] = [
    "the guest notifies its VMM",
    "the VMM signals blkback",
    "blkback runs",
    "blkback waits for the device",
    "the device's interrupt wakes blkback",
    "blkback runs again",
    "blkback signals the VMM",
    "the VMM runs",
    "the guest goes on",
];

/// Whether a record is this step of a request.
fn is_step(step: usize, record: &Record, vmm: u32, blkback: u32) -> bool {
    let Record { kind, thread, a, b, .. } = *record;
    match step {
        0 => kind == Kind::Exit && thread == vmm && a == VMMCALL,
        1 => kind == Kind::Signal && thread == vmm && b == u64::from(blkback),
        2 | 5 => kind == Kind::Switch && thread == blkback,
        3 => kind == Kind::Wait && thread == blkback,
        4 => kind == Kind::Interrupt && b == u64::from(blkback),
        6 => kind == Kind::Signal && thread == blkback,
        7 => kind == Kind::Switch && thread == vmm,
        _ => kind == Kind::Entry && thread == vmm,
    }
}

/// Requests that went the whole way, and the furthest step that was reached.
fn requests(trace: &Trace) -> (usize, usize) {
    let number =
        |name: &str| trace.thread(name).unwrap_or_else(|| panic!("no thread of {name}: {:?}", trace.threads));
    let (vmm, blkback) = (number("web"), number("blkback"));
    let (mut complete, mut step, mut furthest) = (0, 0, 0);
    for record in &trace.records {
        // The signal follows the last of several exits.
        if is_step(step, record, vmm, blkback) {
            step += 1;
            furthest = furthest.max(step);
        }
        if step == STEPS.len() {
            complete += 1;
            step = 0;
        }
    }
    (complete, furthest)
}

#[test]
fn a_guests_disk_request_can_be_followed_to_the_device_and_back() {
    let dir = io(tempfile::tempdir());
    let files = files();
    let config = linux(&files, "web", &root_disk(&files, dir.path(), "web"), dir.path(), "");
    let mut request = Request::new(vec![config]);
    request.has_icount = true;
    let running = start("trace", &request);
    let mut web = running.shell("web");
    let read = "echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/xvda of=/dev/null bs=64k count=16 skip=100 2>&1";
    must(trace::start(&running.machine, 4096, SHORT));
    sh(&mut web, read, LONG);
    let trace = must(trace::take(&running.machine, LONG));
    assert_eq!(trace.overwritten, 0, "{} records", trace.records.len());
    assert!(trace.records.windows(2).all(|pair| pair[0].tsc <= pair[1].tsc), "the records are out of order");

    let (complete, furthest) = requests(&trace);
    let missing = STEPS.get(furthest).unwrap_or(&"nothing");
    assert!(complete > 0, "missing after {furthest} steps: {missing}; {} records", trace.records.len());

    // As the viewers see it: on one track both the guest and its VMM, arrows that all end, and named exits.
    let events = chrome::events(&trace);
    let of = |phase: &str| events.iter().filter(move |event| event["ph"] == phase).collect::<Vec<_>>();
    let track = trace.thread("web");
    let own = |name: &str| {
        of("X").into_iter().filter(|e| e["tid"].as_u64() == track.map(u64::from) && e["name"] == name).count()
    };
    assert!(
        own("guest") > 10 && own("vmmcall") > 10 && own("web") > 1,
        "{} {} {}",
        own("guest"),
        own("vmmcall"),
        own("web")
    );
    let (begun, ended) = (of("s").len(), of("f").len());
    assert!(ended > 3 && begun - ended < 10, "{begun} arrows begin and {ended} end");

    // The counters tell the same story, and the machine goes on without a trace.
    let counters = running.xl("xl counters -l web");
    assert!(counters.contains("\"exit_vmmcall\": ") && counters.contains("\"vcpu_exits\": "), "{counters}");
    let top = running.xl("xl top -b -i 1");
    assert!(top.lines().any(|line| line.starts_with("web ")), "{top}");
    let (text, status) = must(running.machine.exec("xl trace dump", SHORT));
    assert!(status == 1 && text.contains("`xl trace start`"), "{text}");
    sh(&mut web, read, LONG);
    running.quit();
}
