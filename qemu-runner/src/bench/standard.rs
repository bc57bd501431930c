//! The standard guest under `-icount`: what a guest sees of exits, processor, disk and network, and its start.
//!
//! The guest measures itself with the probe (`tests/probe`), as the peers' guests did. A figure is the median of
//! the repetitions in one machine. There are up to two machines: the system as it is shipped, with an image on the
//! host as the guest's disk; and with a disk in memory and a station on the switch, as the peers had RAM disks and a
//! server in their hosts.

pub mod readings;
pub mod split;
pub mod work;

use std::time::Duration;

use image_builder::machine::workspace_root;

use crate::Error;
use crate::bench::plots::Moment;
use crate::bench::report::Figure;
use crate::bench::select::Selection;
use crate::bench::{Setting, boot};
use crate::guest::standard::{self, NAME};
use crate::machine::{Guest, Machine};
use crate::session::{Request, Session};
use readings::Readings;
use split::Cost;
use work::{Source, Work};

/// How often the guest measures everything.
const REPEAT: u32 = 3;
/// Size of the disk.
const DISK_MIB: u64 = 64;
/// That disk, in memory.
pub const MEMORY_DISK: &str = "ram:64M,xvda,w";
/// Adds the station to the system; below the workspace's root.
const STATION: &str = "tests/peer/manifest.toml";
/// How long the end of a machine may take.
const END: Duration = Duration::from_secs(60);
/// Linux has a disk when its handshake is through.
const DISK_UP: &str = "until [ -e /dev/xvda ]; do sleep 0.1; done";
/// The address that the station's network has for guests, and time for what Linux sends when an interface comes up.
const NET_UP: &str =
    "until ip addr add 10.77.0.2/24 dev eth0; do sleep 0.1; done; ip link set eth0 up; sleep 1";

/// What was found out.
#[derive(Debug, Clone, Default)]
pub struct Measured {
    /// Figures.
    pub figures: Vec<Figure>,
    /// What happened when in the shipped system, from its reset on, if it was booted.
    pub boot: Vec<Moment>,
    /// What each request costs.
    pub costs: Vec<Cost>,
}

/// Boots and measures what is selected of the figures of [`work`] and [`boot`].
///
/// # Errors
/// The machine or its guest does not come up, or not in time, or a measurement fails.
pub fn measure(selection: &Selection, setting: Setting<'_>) -> Result<Measured, Error> {
    let wanted = |sources: &[Source]| -> Vec<Source> {
        sources.iter().copied().filter(|source| selection.has(source.figure)).collect()
    };
    let mut measured = Measured::default();
    let (own, image) = (wanted(&[&work::EXITS[..], &work::CPU].concat()), wanted(&work::IMAGE));
    if !own.is_empty() || !image.is_empty() || boot::FIGURES.iter().any(|name| selection.has(name)) {
        shipped(&own, &image, setting, &mut measured)?;
    }
    let (blk, net) = (wanted(&work::BLK), wanted(&work::NET));
    if !blk.is_empty() || !net.is_empty() {
        in_memory(&blk, &net, setting, &mut measured)?;
    }
    Ok(measured)
}

/// The system as it is shipped, and a guest with an image on the host as its disk.
fn shipped(
    own: &[Source],
    image: &[Source],
    setting: Setting<'_>,
    measured: &mut Measured,
) -> Result<(), Error> {
    let file = tempfile::NamedTempFile::new().map_err(Error::io("a temporary file"))?;
    // Written in full, so that the host has nothing to allocate.
    std::io::Write::write_all(&mut file.as_file(), &vec![0x5a; (DISK_MIB as usize) << 20])
        .map_err(Error::path(file.path()))?;
    let disk = format!("vdev=xvda,format=raw,access=rw,target={}", file.path().display());
    let bench = Bench::start(&disk, None, setting)?;
    let mut shell = bench.shell()?;
    let (figures, moments) = boot::measure(&bench.machine, &Readings::parse(&shell.text()), setting.timeout)?;
    measured.figures.extend(figures);
    measured.boot = moments;
    measured.figures.extend(run(&mut shell, own, setting.timeout)?);
    if !image.is_empty() {
        command(&mut shell, DISK_UP, setting.timeout)?;
    }
    for source in image {
        let cost = split::measure(&bench.machine, &mut shell, source, setting.timeout)?;
        measured.figures.push(Figure::new(source.figure, cost.total()));
        measured.costs.push(cost);
    }
    bench.end()
}

/// The system with a station, and a guest with a disk in memory.
fn in_memory(
    blk: &[Source],
    net: &[Source],
    setting: Setting<'_>,
    measured: &mut Measured,
) -> Result<(), Error> {
    let bench = Bench::start(MEMORY_DISK, Some((STATION.to_owned(), station()?)), setting)?;
    let mut shell = bench.shell()?;
    for (up, sources) in [(DISK_UP, blk), (NET_UP, net)] {
        if sources.is_empty() {
            continue;
        }
        command(&mut shell, up, setting.timeout)?;
        measured.figures.extend(run(&mut shell, sources, setting.timeout)?);
        for source in sources {
            measured.costs.push(split::measure(&bench.machine, &mut shell, source, setting.timeout)?);
        }
    }
    bench.end()
}

/// The manifest's addition with the station.
///
/// # Errors
/// It cannot be read.
pub fn station() -> Result<String, Error> {
    let path = workspace_root().join(STATION);
    std::fs::read_to_string(&path).map_err(Error::path(&path))
}

/// Waits until a guest with a disk in memory, in a system with the station, can use disk and network.
///
/// # Errors
/// They do not come up in time.
pub fn await_devices(shell: &mut Guest<'_>, timeout: Duration) -> Result<(), Error> {
    for up in [DISK_UP, NET_UP] {
        command(shell, up, timeout)?;
    }
    Ok(())
}

/// A machine with the guest.
struct Bench {
    machine: Machine,
    timeout: Duration,
    /// Holds the bundle.
    _session: Session,
}

impl Bench {
    fn start(disk: &str, manifest: Option<(String, String)>, setting: Setting<'_>) -> Result<Self, Error> {
        let mut request = Request::new(vec![standard::config(Some(disk), setting.progress)?]);
        request.manifest = manifest;
        request.has_icount = true;
        request.progress = setting.progress;
        let session = Session::prepare(&request)?;
        let machine = session.start(setting.log)?;
        machine.wait_up(setting.timeout)?;
        Ok(Self { machine, timeout: setting.timeout, _session: session })
    }

    fn shell(&self) -> Result<Guest<'_>, Error> {
        let mut shell = self.machine.guest(NAME).from_start();
        shell.wait_shell(self.timeout)?;
        Ok(shell)
    }

    fn end(&self) -> Result<(), Error> {
        // Its init then powers it off.
        self.machine.guest(NAME).send(b"exit\n")?;
        self.machine.quit(END)
    }
}

/// Measures these figures in a guest that has the probe, at its shell.
///
/// # Errors
/// The probe fails, or not all came in time.
pub fn run(shell: &mut Guest<'_>, sources: &[Source], timeout: Duration) -> Result<Vec<Figure>, Error> {
    let mut works: Vec<Work> = sources.iter().map(|source| source.work).collect();
    works.dedup();
    let mut readings = Readings::default();
    for _ in 0..REPEAT {
        for work in &works {
            readings.extend(Readings::parse(&command(shell, &work.command(1), timeout)?));
        }
    }
    sources.iter().map(|source| source.figure(&readings)).collect()
}

/// Runs a command at the guest's shell, which must succeed; its output.
fn command(shell: &mut Guest<'_>, command: &str, timeout: Duration) -> Result<String, Error> {
    match shell.shell(command, timeout)? {
        (output, 0) => Ok(output),
        (output, status) => Err(Error::Died(format!(
            "`{command}` in the standard guest ended with status {status}: {output}"
        ))),
    }
}
