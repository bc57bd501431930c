//! `bench`: the figures that the design is held to, counted under `-icount`.
//!
//! One instruction is one tick of the TSC then, so domains and guests count for themselves; see
//! `tests/bench` for what is subtracted. What is measured, and what it is held against, stands in [`goals`].

mod baseline;
mod boot;
pub mod goals;
mod growth;
mod lines;
mod paths;
pub mod plots;
pub mod report;
pub mod select;
mod sizes;
pub mod standard;

use std::path::Path;
use std::time::Duration;

use image_builder::Progress;

use crate::Error;
use crate::cli::BenchArgs;
use crate::session::{Request, Session};
use goals::Group;
use plots::{Moment, Split};
use report::{Figure, Row};
use select::Selection;
use standard::split::{self, Cost};

/// What every measurement needs to know.
#[derive(Debug, Clone, Copy)]
pub struct Setting<'a> {
    /// For each machine.
    pub timeout: Duration,
    /// Where the streams of the guest's machine go.
    pub log: Option<&'a Path>,
    /// What the user sees.
    pub progress: Progress,
}

/// Measures what was asked for, prints it, writes it, and compares it.
///
/// # Errors
/// See [`Error::exit_status`]; a figure that is worse than the baseline's is [`Error::Worse`].
pub fn bench(args: &BenchArgs) -> Result<(), Error> {
    let selection = Selection::parse(&args.names)?;
    // Before anything is measured: a wrong file is found at once.
    let before = args.baseline.as_deref().map(baseline::read).transpose()?;
    let setting = Setting {
        timeout: Duration::from_secs(args.timeout),
        log: args.log.as_deref(),
        progress: Progress::Shown,
    };
    let Measured { rows, boot, requests } = measure(&selection, setting)?;
    print!("{}{}", report::table(&rows), split::table(&requests));
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&rows).map_err(|e| Error::Died(e.to_string()))?;
        std::fs::write(path, text + "\n").map_err(Error::path(path))?;
    }
    if let Some(dir) = &args.plots {
        let pictured = requests.iter().map(Cost::split).collect();
        plots::write(dir, &rows, &[splits(&rows), pictured].concat(), &boot)?;
    }
    let Some(before) = before else { return Ok(()) };
    let changes = baseline::compare(&before, &rows);
    print!("{}", baseline::table(&changes));
    baseline::judge(&changes)
}

/// What a run found out.
#[derive(Debug, Clone, Default)]
pub struct Measured {
    /// The figures, in the table's order.
    pub rows: Vec<Row>,
    /// How the machine with the guest came up, if there was one.
    pub boot: Vec<Moment>,
    /// What requests of a guest cost.
    pub requests: Vec<Cost>,
}

/// Measures what was asked for, in the table's order.
///
/// # Errors
/// A machine does not come up, or not in time, or what it says makes no sense.
pub fn measure(selection: &Selection, setting: Setting<'_>) -> Result<Measured, Error> {
    let mut figures: Vec<Figure> = Vec::new();
    if selection.has_group(Group::Paths) {
        figures.extend(paths::measure(setting)?);
    }
    if selection.has_group(Group::Expensive) {
        figures.extend(paths::expensive(setting)?);
    }
    let guest = standard::measure(selection, setting)?;
    figures.extend(guest.figures);
    if selection.has_group(Group::Sizes) {
        let mut request = Request::new(Vec::new());
        request.has_icount = true;
        figures.extend(sizes::measure(&Session::prepare(&request)?)?);
    }
    if selection.has_group(Group::Lines) {
        figures.extend(lines::measure()?);
    }
    if selection.has_group(Group::Growth) {
        figures.extend(growth::measure(selection, setting)?);
    }
    let wanted = figures.into_iter().filter(|figure| selection.has(figure.name));
    let mut rows = wanted.map(Row::of).collect::<Result<Vec<Row>, Error>>()?;
    report::sort(&mut rows);
    Ok(Measured { rows, boot: guest.boot, requests: guest.costs })
}

/// What each crossing costs, by part: what the kernel takes stands in the group `paths`, the rest of what the
/// guest sees is the VMM's.
fn splits(rows: &[Row]) -> Vec<Split> {
    let value = |name: &str| rows.iter().find(|row| row.name == name).map(|row| row.value);
    let mut splits = Vec::new();
    for row in rows.iter().filter(|row| row.group == Group::Paths.name()) {
        let whole = match row.name.as_str() {
            "exit-cpuid" => value("guest-cpuid"),
            "exit-vmmcall" => value("guest-vmmcall"),
            _ => None,
        };
        let mut parts = vec![("kernel", row.value)];
        parts.extend(whole.map(|whole| ("VMM", whole.saturating_sub(row.value))));
        splits.push(Split { name: row.name.clone(), parts });
    }
    splits
}
