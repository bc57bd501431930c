//! The same figures in a fuller system: beside idle guests, beside many domains with armed timers, beside many
//! nodes and watches of the store.

use std::path::PathBuf;

use image_builder::programs::{INIT, Origin, Program, VMM, of_workspace};
use image_builder::{BuildRequest, Progress};

use crate::bench::report::Figure;
use crate::bench::select::Selection;
use crate::bench::standard::work::{BLK, EXITS, NET, Source};
use crate::bench::{Setting, goals, paths, standard};
use crate::host::{Lock, cache_dir};
use crate::plan::ConfigFile;
use crate::session::{Request, Session};
use crate::{Error, guest};

/// Idle guests beside the measured one.
const GUESTS: [usize; 3] = [1, 4, 16];
/// When the paths are measured: guests came up and sleep by then.
const GUESTS_IDLE_MS: u64 = 8000;
/// Memory of an idle guest in MiB.
const IDLE_MIB: u32 = 32;

/// Measures what is wanted.
///
/// # Errors
/// A machine does not come up, or not in time.
pub fn measure(selection: &Selection, setting: Setting<'_>) -> Result<Vec<Figure>, Error> {
    let mut figures = Vec::new();
    if selection.has_end("-domains") {
        figures.extend(domains(setting)?);
    }
    if selection.has_end("-nodes") {
        figures.extend(nodes(setting)?);
    }
    for count in GUESTS {
        if selection.has_end(&format!("-beside-{count}-guests")) {
            figures.extend(guests(count, setting)?);
        }
    }
    Ok(figures)
}

/// The bench's root domain in place of init.
fn domains(setting: Setting<'_>) -> Result<Vec<Figure>, Error> {
    let mut request = Request::new(Vec::new());
    let origin = Origin::Workspace { package: "bench".into(), binary: "bench-root".into() };
    // No guest: the VMM is replaced, too, so that cargo compiles what these share as it does for the paths.
    request.programs = vec![Program { name: INIT.into(), origin, uses: None }, paths::program(VMM)];
    request.has_icount = true;
    request.progress = setting.progress;
    let session = Session::prepare(&request)?;
    let machine = session.start(None)?;
    let lines = machine.wait("the figures of the bench's root", setting.timeout, |state| {
        let is_done = state.kernel.iter().any(|line| line.contains("figures done"));
        is_done.then(|| state.kernel.clone())
    })?;
    let figures: Vec<Figure> = lines.iter().filter_map(|line| of_crowd(line, "domains")).collect();
    if figures.is_empty() {
        return Err(Error::Died(format!("the bench's root says:\n{}", lines.join("\n"))));
    }
    Ok(figures)
}

/// A client of the store among the bench domains.
fn nodes(setting: Setting<'_>) -> Result<Vec<Figure>, Error> {
    let lines = paths::run(setting, false)?;
    Ok(lines.iter().filter_map(|line| of_crowd(line, "nodes")).collect())
}

/// The bench domains and the standard guest beside idle guests.
fn guests(count: usize, setting: Setting<'_>) -> Result<Vec<Figure>, Error> {
    let Setting { timeout, progress, .. } = setting;
    let kernel = idle_kernel(progress)?;
    let mut configs = vec![guest::standard::config(Some(standard::MEMORY_DISK), progress)?];
    configs.extend((0..count).map(|number| {
        let text = format!(
            "name=\"idle{number}\"\ntype=\"pvh\"\nkernel=\"{}\"\nextra=\"mode=idle\"\nmemory={IDLE_MIB}\n",
            kernel.display()
        );
        ConfigFile { name: format!("idle{number}.cfg"), text, dir: PathBuf::from("/") }
    }));
    let mut request = Request::new(configs);
    let late = |role| (format!("role={role}\""), format!("role={role} after-ms={GUESTS_IDLE_MS}\""));
    let services = [late("low"), late("device")]
        .iter()
        .fold(paths::SERVICES.to_owned(), |text, (from, to)| text.replace(from, to));
    request.manifest = Some(("bench.toml".into(), format!("{}\n{services}", standard::station()?)));
    request.programs = vec![paths::program("bench")];
    request.has_icount = true;
    request.qemu_args = ["-serial", "null"].map(str::to_owned).to_vec();
    request.progress = progress;
    let session = Session::prepare(&request)?;
    let machine = session.start(None)?;
    machine.wait_up(timeout)?;
    let mut shell = machine.guest(guest::standard::NAME).from_start();
    shell.wait_shell(timeout)?;
    let lines = paths::wait_figures(&machine, paths::THROUGH, timeout)?;
    let paths = lines.iter().filter_map(|line| paths::parse(line));
    let mut values: Vec<(String, u64)> = paths.map(|(name, path)| (name, path.value)).collect();
    standard::await_devices(&mut shell, timeout)?;
    let sources = [&EXITS[..], &BLK, &NET].concat();
    let sources: Vec<Source> =
        sources.into_iter().filter(|s| beside(s.figure, "16", "guests", 0).is_some()).collect();
    let seen = standard::run(&mut shell, &sources, timeout)?;
    values.extend(seen.into_iter().map(|figure| (figure.name.to_owned(), figure.value)));
    let values = values.iter();
    Ok(values.filter_map(|(name, value)| beside(name, &count.to_string(), "guests", *value)).collect())
}

/// The guest that sleeps, built for the machine.
fn idle_kernel(progress: Progress) -> Result<PathBuf, Error> {
    const NAME: &str = "test-guest";
    let origin = Origin::Workspace { package: NAME.into(), binary: NAME.into() };
    let mut programs = of_workspace();
    programs.push(Program { name: NAME.into(), origin, uses: None });
    let _lock = Lock::take(&cache_dir().join("build.lock"))?;
    let built = image_builder::build(&BuildRequest::new(programs), progress)?;
    let found = built.programs.into_iter().find(|(program, _)| program.name == NAME);
    found.map(|(_, path)| path).ok_or_else(|| Error::Died(format!("{NAME} was not built")))
}

/// The figure of a line `figure NAME-COUNT VALUE TIMES`, if it is one of the table.
fn of_crowd(line: &str, crowd: &str) -> Option<Figure> {
    let (name, path) = paths::parse(line)?;
    let (name, count) = name.rsplit_once('-')?;
    beside(name, count, crowd, path.value)
}

fn beside(name: &str, count: &str, crowd: &str, value: u64) -> Option<Figure> {
    let entry = goals::entry(&format!("{name}-beside-{count}-{crowd}"))?;
    Some(Figure::new(entry.name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_root_becomes_a_figure() {
        let figure = of_crowd("[    0.1] init: figure timer-last-1000 5000 64", "domains").unwrap();
        assert_eq!(figure, Figure::new("timer-last-beside-1000-domains", 5000));
        assert_eq!(of_crowd("figure timer-last-7 5000 64", "domains"), None);
        assert_eq!(of_crowd("figures done", "domains"), None);
    }
}
