//! The standard guest under `-icount`: what a guest sees of exits, processor, disk and network, and its start.
//!
//! The guest measures itself with the probe (`tests/probe`), as the peers' guests did. A figure is the median of
//! the repetitions in one machine. There are up to two machines: the system as it is shipped, with an image on the
//! host as the guest's disk; and with a disk in memory and a station on the switch, as the peers had RAM disks and a
//! server in their hosts.

pub mod readings;

use std::time::Duration;

use image_builder::machine::workspace_root;

use crate::Error;
use crate::bench::report::Figure;
use crate::bench::select::Selection;
use crate::bench::{Setting, boot};
use crate::guest::standard::{self, DONE, FAILED, NAME, Plan};
use crate::machine::Machine;
use crate::session::{Request, Session};
use readings::{Reading, Readings};

/// How often the guest measures everything.
const REPEAT: u32 = 3;
/// MiB of each block and each network measurement, as in the peers' runs.
const AMOUNT_MIB: u32 = 8;
/// Size of the disk.
const DISK_MIB: u64 = 64;
/// Adds the station to the system; below the workspace's root.
const STATION: &str = "tests/peer/manifest.toml";
/// How long the end of a machine may take.
const END: Duration = Duration::from_secs(60);

/// Where a figure comes from: its name, the probe's line, and the value in that line.
type Source = (&'static str, &'static str, fn(&Reading) -> Option<u64>);

const EXITS: [Source; 6] = [
    ("guest-cpuid", "cpuid", median),
    ("guest-vmmcall", "vmmcall", median),
    ("guest-alternating", "alternating", median),
    ("guest-in", "in-unclaimed", median),
    ("guest-rdtsc", "rdtsc", median),
    ("guest-syscall", "syscall", median),
];

const CPU: [Source; 5] = [
    ("page-fault", "page-fault", each),
    ("alu-loop", "alu", total),
    ("fork-wait", "fork-wait", each),
    ("pipe-ping-pong", "pipe-ping-pong", each),
    ("sleep-overshoot", "sleep-overshoot", median),
];

const BLK: [Source; 6] = [
    ("blk-randread-4k-qd1", "xvda-randread-4k-qd1", each),
    ("blk-randread-4k-qd32", "xvda-randread-4k-qd32", each),
    ("blk-randwrite-4k-qd1", "xvda-randwrite-4k-qd1", each),
    ("blk-randwrite-4k-qd32", "xvda-randwrite-4k-qd32", each),
    ("blk-read-1m-qd1", "xvda-read-1024k-qd1", mebibytes),
    ("blk-read-128k-qd8", "xvda-read-128k-qd8", mebibytes),
];

/// The same on an image of the host: QEMU answers when the host's kernel does, so the time that a guest waits with
/// nothing else to do is not counted but the host's.
const VIRTIO: [Source; 6] = [
    ("virtio-randread-4k-qd1", "xvda-randread-4k-qd1", each),
    ("virtio-randread-4k-qd32", "xvda-randread-4k-qd32", each),
    ("virtio-randwrite-4k-qd1", "xvda-randwrite-4k-qd1", each),
    ("virtio-randwrite-4k-qd32", "xvda-randwrite-4k-qd32", each),
    ("virtio-read-1m-qd1", "xvda-read-1024k-qd1", mebibytes),
    ("virtio-read-128k-qd8", "xvda-read-128k-qd8", mebibytes),
];

const NET: [Source; 3] =
    [("tcp-rr", "tcp-rr", mean), ("tcp-out", "tcp-tx", megabits), ("tcp-in", "tcp-rx", megabits)];

fn median(reading: &Reading) -> Option<u64> {
    reading.get("median").copied()
}

fn mean(reading: &Reading) -> Option<u64> {
    reading.get("mean-ns").copied()
}

fn each(reading: &Reading) -> Option<u64> {
    reading.get("each-ns").copied()
}

fn total(reading: &Reading) -> Option<u64> {
    reading.get("total-ns").copied()
}

/// Per 1e9 instructions, each of which takes 1 ns.
fn rate(reading: &Reading, unit: u64) -> Option<u64> {
    let amount = u128::from(*reading.get("bytes")?) * 1_000_000_000 / u128::from(unit);
    u64::try_from(amount.checked_div(u128::from(total(reading)?))?).ok()
}

fn mebibytes(reading: &Reading) -> Option<u64> {
    rate(reading, 1 << 20)
}

fn megabits(reading: &Reading) -> Option<u64> {
    rate(reading, 1_000_000 / 8)
}

/// Boots and measures what is selected of these figures and those of [`boot`].
///
/// # Errors
/// The machine or its guest does not come up, or not in time, or a measurement fails.
pub fn measure(selection: &Selection, setting: Setting<'_>) -> Result<Vec<Figure>, Error> {
    let is_wanted = |sources: &[Source]| sources.iter().any(|(name, ..)| selection.has(name));
    let wanted = |all: &[(&'static str, &'static [Source])]| {
        all.iter().copied().filter(|(_, sources)| is_wanted(sources)).collect::<Vec<_>>()
    };
    let mut figures = Vec::new();
    let tests = wanted(&[("exits", &EXITS), ("cpu", &CPU), ("blk", &VIRTIO)]);
    if !tests.is_empty() || boot::FIGURES.iter().any(|name| selection.has(name)) {
        let image = tempfile::NamedTempFile::new().map_err(Error::io("a temporary file"))?;
        image.as_file().set_len(DISK_MIB << 20).map_err(Error::path(image.path()))?;
        let disk = format!("vdev=xvda,format=raw,access=rw,target={}", image.path().display());
        figures.extend(run(&tests, disk, None, setting)?);
    }
    let tests = wanted(&[("blk", &BLK), ("net", &NET)]);
    if !tests.is_empty() {
        let path = workspace_root().join(STATION);
        let text = std::fs::read_to_string(&path).map_err(Error::path(&path))?;
        let manifest = (STATION.to_owned(), text);
        figures.extend(run(&tests, format!("ram:{DISK_MIB}M,xvda,w"), Some(manifest), setting)?);
    }
    Ok(figures)
}

/// One machine with the guest. The figures of [`boot`] are those of the system as it is shipped.
fn run(
    tests: &[(&'static str, &'static [Source])],
    disk: String,
    manifest: Option<(String, String)>,
    setting: Setting<'_>,
) -> Result<Vec<Figure>, Error> {
    let Setting { timeout, log, progress } = setting;
    let plan = Plan {
        tests: tests.iter().map(|(test, _)| *test).collect(),
        repeat: REPEAT,
        blk_mib: AMOUNT_MIB,
        net_mib: AMOUNT_MIB,
        disk: Some(disk),
    };
    let is_shipped = manifest.is_none();
    let mut request = Request::new(vec![standard::config(&plan, progress)?]);
    request.manifest = manifest;
    request.has_icount = true;
    request.progress = progress;
    let session = Session::prepare(&request)?;
    let machine = session.start(log)?;
    machine.wait_up(timeout)?;
    let readings = read(&machine, timeout)?;
    let mut figures = Vec::new();
    for (_, sources) in tests {
        figures.extend(derive(sources, &readings)?);
    }
    if is_shipped {
        figures.extend(boot::measure(&machine, &readings, timeout)?);
    }
    machine.guest(NAME).send(b"\n")?;
    machine.quit(END)?;
    Ok(figures)
}

/// Waits until the guest has measured everything.
fn read(machine: &Machine, timeout: Duration) -> Result<Readings, Error> {
    let console = machine.wait("figures of the standard guest", timeout, |state| {
        let text = &state.guests.get(NAME)?.text;
        text.lines().any(|line| line == DONE || line.starts_with(FAILED)).then(|| text.clone())
    })?;
    match console.lines().find(|line| line.starts_with(FAILED)) {
        Some(line) => Err(Error::Died(format!("{line}. The guest's console:\n{console}"))),
        None => Ok(Readings::parse(&console)),
    }
}

fn derive(sources: &[Source], readings: &Readings) -> Result<Vec<Figure>, Error> {
    let figure = |(name, line, value): &Source| {
        let value = readings.median(line, value).ok_or_else(|| {
            Error::Died(format!("the standard guest did not say `{line}`, which {name} comes from"))
        })?;
        Ok(Figure::new(name, value))
    };
    sources.iter().map(figure).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::goals;

    #[test]
    fn every_figure_is_in_the_table() {
        let all = [&EXITS[..], &CPU, &BLK, &VIRTIO, &NET].concat();
        let names = all.iter().map(|(name, ..)| *name).chain(boot::FIGURES);
        for name in names {
            assert!(goals::entry(name).is_some(), "{name}");
        }
    }

    #[test]
    fn figures_are_medians_and_rates() {
        let line = |ns: u64| format!("probe: xvda-read-1024k-qd1 requests=8 bytes=8388608 total-ns={ns}\n");
        let readings = Readings::parse(&[2_000_000, 9_000_000, 1_000_000].map(line).concat());
        let figures = derive(&[("blk-read-1m-qd1", "xvda-read-1024k-qd1", mebibytes)], &readings).unwrap();
        assert_eq!(figures, [Figure::new("blk-read-1m-qd1", 4000)]);
        assert!(derive(&NET, &readings).is_err());
        assert_eq!(
            megabits(&Reading::from([("bytes".into(), 1_000_000), ("total-ns".into(), 1_000_000)])),
            Some(8000)
        );
    }
}
