//! Pictures of the figures, as SVG: against goal and peers, split by part, and the boot as a line of time.

use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::Error;
use crate::bench::report::{Row, grouped};

const WIDTH: u32 = 1000;
/// Left edge of the bars; the labels are left of it.
const LEFT: i32 = 230;
/// Right edge of the bars; the numbers are right of it.
const RIGHT: i32 = 830;
/// Top of the first row.
const TOP: i32 = 80;
/// Height of a row.
const ROW: i32 = 24;
/// A peer's cost on the scale of [`figures`] ends here, so that what is worse has room.
const PEER_END: f64 = 0.8;

const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);
const PEER: RGBColor = RGBColor(0xd8, 0xd8, 0xd8);
const GOAL: RGBColor = RGBColor(0xc0, 0x39, 0x2b);
/// Parts, in the order in which they are named.
const PARTS: [RGBColor; 6] = [
    RGBColor(0x1f, 0x6f, 0x8b),
    RGBColor(0xe0, 0x9f, 0x3e),
    RGBColor(0x6a, 0x99, 0x4e),
    RGBColor(0x7b, 0x5e, 0xa7),
    RGBColor(0xb5, 0x65, 0x76),
    RGBColor(0x8d, 0x99, 0xae),
];

type Drawing<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

/// What one crossing or request costs, by part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// Of what.
    pub name: String,
    /// Part and instructions.
    pub parts: Vec<(&'static str, u64)>,
}

/// Something that happened while the machine booted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    /// Microseconds since the machine's reset.
    pub micros: u64,
    /// What.
    pub what: String,
}

/// Writes every picture for which there are figures.
///
/// # Errors
/// The folder or a file cannot be written.
pub fn write(dir: &Path, rows: &[Row], splits: &[Split], boot: &[Moment]) -> Result<(), Error> {
    std::fs::create_dir_all(dir).map_err(Error::path(dir))?;
    let mut pictures = Vec::new();
    // Counts of single instructions are too small to be compared by length.
    let compared: Vec<&Row> = rows.iter().filter(|row| row.peer.is_some() && row.unit != "times").collect();
    if !compared.is_empty() {
        pictures.push(("figures.svg", figures(&compared)));
    }
    // One scale for what costs hundreds of instructions, one for what costs thousands.
    let is_small = |split: &&Split| split.parts.iter().map(|part| part.1).sum::<u64>() < 2000;
    let (small, large): (Vec<&Split>, Vec<&Split>) = splits.iter().partition(is_small);
    for (name, title, splits) in [
        ("paths.svg", "Instructions per crossing, by part", small),
        ("requests.svg", "Instructions per request, by part", large),
    ] {
        if !splits.is_empty() {
            pictures.push((name, split(title, &splits)));
        }
    }
    let growth: Vec<&Row> = rows.iter().filter(|row| row.group == "growth").collect();
    if !growth.is_empty() {
        pictures.push(("growth.svg", population(&growth)));
    }
    if !boot.is_empty() {
        pictures.push(("boot.svg", timeline(boot)));
    }
    for (name, picture) in pictures {
        let path = dir.join(name);
        let svg = picture.map_err(|e| Error::Died(format!("{name} cannot be drawn: {e}")))?;
        std::fs::write(&path, svg).map_err(Error::path(&path))?;
    }
    Ok(())
}

type Picture = Result<String, DrawingAreaErrorKind<std::io::Error>>;

/// Draws on a white page with a title.
fn picture(title: &str, height: i32, draw: impl FnOnce(&Drawing<'_>) -> Drawn) -> Picture {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height.unsigned_abs())).into_drawing_area();
        area.fill(&WHITE)?;
        text(&area, title, (20, 24), 20, HPos::Left)?;
        draw(&area)?;
        area.present()?;
    }
    Ok(svg)
}

fn text(area: &Drawing<'_>, words: &str, at: (i32, i32), size: i32, anchor: HPos) -> Drawn {
    let style = ("sans-serif", size).into_font().color(&INK).pos(Pos::new(anchor, VPos::Center));
    area.draw(&Text::new(words.to_owned(), at, style))
}

/// A bar from the left edge's `from` to `to`, both as parts of the width.
fn bar(area: &Drawing<'_>, y: i32, height: i32, (from, to): (f64, f64), colour: RGBColor) -> Drawn {
    let corners = [(x(from), y - height / 2), (x(to), y + height / 2)];
    area.draw(&Rectangle::new(corners, colour.filled()))
}

fn x(part: f64) -> i32 {
    LEFT + (part.clamp(0.0, 1.0) * f64::from(RIGHT - LEFT)) as i32
}

fn mark(area: &Drawing<'_>, y: i32, at: f64, colour: RGBColor) -> Drawn {
    let points = [(x(at), y - ROW / 2 + 2), (x(at), y + ROW / 2 - 2)];
    area.draw(&PathElement::new(points.to_vec(), colour.stroke_width(3)))
}

fn legend(area: &Drawing<'_>, entries: &[(&str, RGBColor)]) -> Drawn {
    let mut left = LEFT;
    for (name, colour) in entries {
        area.draw(&Rectangle::new([(left, 46), (left + 12, 58)], colour.filled()))?;
        text(area, name, (left + 18, 52), 13, HPos::Left)?;
        left += 40 + 7 * i32::try_from(name.len()).unwrap_or(0);
    }
    Ok(())
}

fn row_y(index: usize) -> i32 {
    TOP + ROW / 2 + ROW * i32::try_from(index).unwrap_or(0)
}

/// Each figure's cost as a part of the best peer's; for throughput the cost is its inverse.
fn figures(rows: &[&Row]) -> Picture {
    let rows: Vec<(&Row, u64)> = rows.iter().filter_map(|row| Some((*row, row.peer?))).collect();
    let height = row_y(rows.len()) + 10;
    let cost = |row: &Row, value: u64, peer: u64| {
        let (value, peer) = (value.max(1) as f64, peer.max(1) as f64);
        (if row.higher_is_better { peer / value } else { value / peer }) * PEER_END
    };
    picture("Cost against the best peer's (shorter is better)", height, |area| {
        legend(area, &[("ours", PARTS[0]), ("best peer", PEER), ("goal", GOAL)])?;
        for (index, (row, peer)) in rows.iter().enumerate() {
            let y = row_y(index);
            text(area, &row.name, (LEFT - 10, y), 13, HPos::Right)?;
            bar(area, y, 18, (0.0, PEER_END), PEER)?;
            bar(area, y, 10, (0.0, cost(row, row.value, *peer)), PARTS[0])?;
            if let Some(goal) = row.goal {
                mark(area, y, cost(row, goal, *peer), GOAL)?;
            }
            let name = row.peer_name.as_deref().unwrap_or("peer");
            let words = format!("{} : {name} {}", short(row.value), short(*peer));
            text(area, &words, (RIGHT + 8, y), 12, HPos::Left)?;
        }
        Ok(())
    })
}

/// A number in few characters.
fn short(value: u64) -> String {
    match value {
        0..10_000 => grouped(value),
        10_000..10_000_000 => format!("{:.1}k", value as f64 / 1e3),
        10_000_000..1_000_000_000 => format!("{:.1}M", value as f64 / 1e6),
        _ => format!("{:.3}G", value as f64 / 1e9),
    }
}

fn split(title: &str, splits: &[&Split]) -> Picture {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in splits.iter().flat_map(|split| &split.parts) {
        if !names.contains(name) {
            names.push(name);
        }
    }
    let colour = |name: &str| {
        let place = names.iter().position(|other| *other == name).unwrap_or(0);
        PARTS.get(place % PARTS.len()).copied().unwrap_or(INK)
    };
    let total = |split: &Split| split.parts.iter().map(|part| part.1).sum::<u64>();
    let largest = splits.iter().map(|split| total(split)).max().unwrap_or(1).max(1) as f64;
    picture(title, row_y(splits.len()) + 10, |area| {
        legend(area, &names.iter().map(|name| (*name, colour(name))).collect::<Vec<_>>())?;
        for (index, split) in splits.iter().enumerate() {
            let y = row_y(index);
            text(area, &split.name, (LEFT - 10, y), 13, HPos::Right)?;
            let mut from = 0.0;
            for (name, value) in &split.parts {
                let to = from + *value as f64 / largest;
                bar(area, y, 16, (from, to), colour(name))?;
                from = to;
            }
            let parts: Vec<String> = split.parts.iter().map(|part| short(part.1)).collect();
            let sum = if parts.len() > 1 { format!(" = {}", parts.join(" + ")) } else { String::new() };
            let words = format!("{}{sum}", short(total(split)));
            text(area, &words, (x(from) + 8, y), 12, HPos::Left)?;
        }
        Ok(())
    })
}

/// What a figure costs beside more and more, each figure on its own scale: bars of one length are flat.
fn population(rows: &[&Row]) -> Picture {
    // `round-trip-beside-10-domains`: the figure, and the crowd without its number.
    let family = |row: &Row| -> String {
        row.name.split('-').filter(|word| word.parse::<u32>().is_err()).collect::<Vec<_>>().join("-")
    };
    picture("Cost in a fuller system (each figure on its own scale)", row_y(rows.len()) + 10, |area| {
        let mut family_before = String::new();
        let mut colour = 0;
        for (index, row) in rows.iter().enumerate() {
            let (y, own) = (row_y(index), family(row));
            if own != family_before {
                colour = (colour + 1) % 2;
                family_before = own.clone();
            }
            let largest = rows.iter().filter(|other| family(other) == own).map(|other| other.value).max();
            let part = row.value as f64 / largest.unwrap_or(1).max(1) as f64;
            text(area, &row.name, (LEFT - 10, y), 12, HPos::Right)?;
            bar(area, y, 14, (0.0, part), PARTS.get(colour).copied().unwrap_or(INK))?;
            text(area, &grouped(row.value), (x(part) + 8, y), 12, HPos::Left)?;
        }
        Ok(())
    })
}

/// What happened, in its order, each with its place on the common scale. A last step that takes longer than all
/// others, as a guest's own boot does, goes beyond the scale.
fn timeline(boot: &[Moment]) -> Picture {
    let mut moments: Vec<&Moment> = boot.iter().collect();
    moments.sort_by_key(|moment| moment.micros);
    let end = match moments[..] {
        [.., before, last] if last.micros > 2 * before.micros && before.micros > 0 => before.micros,
        _ => moments.last().map_or(1, |moment| moment.micros.max(1)),
    };
    let place = |micros: u64| micros as f64 / end as f64;
    let height = row_y(moments.len()) + 10;
    picture("From reset to the guest's init, ms (1 ms = 1 000 000 instructions)", height, |area| {
        let mut before = 0;
        for (index, moment) in moments.iter().enumerate() {
            let y = row_y(index);
            let (from, to) = (place(before), place(moment.micros));
            let took = format!("{} (+{:.2})", moment.what, (moment.micros - before) as f64 / 1000.0);
            text(area, &format!("{:.2}", moment.micros as f64 / 1000.0), (LEFT - 10, y), 13, HPos::Right)?;
            if to > 1.0 {
                bar(area, y, 14, (0.0, 1.0), PEER)?;
                text(area, &format!("{took}, beyond this scale"), (LEFT + 8, y), 12, HPos::Left)?;
            } else if from < 0.3 && to >= 0.7 {
                // There is room on neither side.
                bar(area, y, 14, (from, to), PEER)?;
                mark(area, y, to, INK)?;
                text(area, &took, (x(from) + 8, y), 12, HPos::Left)?;
            } else {
                bar(area, y, 14, (from, to), PARTS[0])?;
                mark(area, y, to, INK)?;
                // Beside the bar, on the side that has room.
                let (at, side) = if to < 0.7 { (x(to) + 8, HPos::Left) } else { (x(from) - 8, HPos::Right) };
                text(area, &took, (at, y), 12, side)?;
            }
            before = moment.micros;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::Figure;

    fn row(name: &'static str, value: u64) -> Row {
        Row::of(Figure::new(name, value)).unwrap()
    }

    #[test]
    fn only_pictures_with_something_in_them_are_written() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &[row("lines-vmm", 5)], &[], &[]).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let splits = [
            Split { name: "guest-cpuid".into(), parts: vec![("kernel", 240), ("VMM", 549)] },
            Split { name: "read".into(), parts: vec![("kernel", 9000), ("blkback", 4000)] },
        ];
        let boot = [
            Moment { micros: 84_000, what: "guest <starts>".into() },
            Moment { micros: 32_000, what: "services".into() },
        ];
        write(dir.path(), &[row("round-trip", 248)], &splits, &boot).unwrap();
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert!(read("figures.svg").contains("round-trip") && read("figures.svg").contains("NOVA 275"));
        assert!(read("paths.svg").contains("789 = 240 + 549") && read("requests.svg").contains("13.0k"));
        // In the order of time, and text cannot break out of its element.
        let boot = read("boot.svg");
        assert!(boot.find("services").unwrap() < boot.find("starts").unwrap());
        assert!(boot.contains("beyond this scale"));
        assert!(boot.contains("&lt;starts&gt;") && boot.contains("(+52.00)"), "{boot}");
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!([789, 73_017, 84_954_000, 1_425_000_000].map(short), ["789", "73.0k", "85.0M", "1.425G"]);
    }
}
