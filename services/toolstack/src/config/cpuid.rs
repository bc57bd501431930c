//! What a guest sees of the processor (`cpuid`), in both of xl's styles.
//!
//! libxl's: `"host,rdrand=0,sse4_2=x"`, a feature by its name and `0`, `1`, `x`, `k` or `s`. xend's: a list of
//! `"1:ecx=xxxxxxxx0xxxxxxxxxxxxxxxxxxxxxxx"`, a leaf (and subleaf), registers, and a letter per bit from 31 down.
//! Only narrowing is possible: what [`proto::cpuid`] hides stays hidden, and asking for it is an error. What is built on
//! a hidden feature is hidden with it.
//! Sources: xl.cfg(5), Xen's tools/libs/light/libxl_cpuid.c and tools/xl/xl_parse.c.

use alloc::format;

use proto::cpuid::{FEATURES, Feature, Narrowing, Policy, Word, at, find, without_dependents};

use super::number;
use super::report::Report;
use super::syntax::{Atom, Value};
use crate::nearest::nearest;

/// Names of libxl for numbers of several bits.
const NUMBERS: [&str; 13] = [
    "maxleaf",
    "stepping",
    "model",
    "family",
    "brandid",
    "clflushsize",
    "proccount",
    "localapicid",
    "procpkg",
    "nc",
    "apicidsize",
    "maxhvleaf",
    "arat",
];

const EXAMPLE: &str = "for example: cpuid = \"host,rdrand=0\"";
const LETTERS: &str = "write 0 to hide the feature, 1 to need it, x to leave it";

/// Reads the value of `cpuid`.
pub(super) fn parse(value: &Value, report: &mut Report<'_>) -> Narrowing {
    let mut narrowing = Narrowing::default();
    match value {
        Value::Atom(atom) => named(atom, &mut narrowing, report),
        Value::List(values, _) => {
            for value in values {
                match value {
                    Value::Atom(atom) => leaf(atom, &mut narrowing, report),
                    Value::List(_, span) => {
                        report.error(*span, "an entry of `cpuid` is text in quotes, not a list")
                    }
                }
            }
        }
    }
    let left = without_dependents(narrowing.hidden.map(|word| !word));
    for feature in FEATURES.iter().filter(|feature| feature.is_in(&narrowing.required)) {
        if !feature.is_in(&left) {
            let name = feature.names.first().unwrap_or(&"");
            let message = format!(
                "`{name}` is built on a feature that this hides, so it is hidden, too; remove one of them"
            );
            report.error(value.span(), message);
        }
    }
    narrowing
}

/// libxl's style.
fn named(atom: &Atom, narrowing: &mut Narrowing, report: &mut Report<'_>) {
    let mut parts = atom.text.split(',');
    if parts.next().map(str::trim) != Some("host") {
        report.error(atom.span, format!("the first word of `cpuid` is host; {EXAMPLE}"));
        return;
    }
    for part in parts {
        let place = atom.place(part.trim());
        let Some((name, letter)) = part.split_once('=') else {
            if !part.trim().is_empty() {
                report.error(place, format!("`{}` has no value; {LETTERS}: {0}=0", part.trim()));
            }
            continue;
        };
        let (name, letter) = (name.trim(), letter.trim());
        if NUMBERS.contains(&name) {
            report.error(place, format!("`{name}` is a number; `cpuid` only hides features here: remove it"));
            continue;
        }
        let Some(feature) = find(name) else {
            let names = FEATURES.iter().flat_map(|feature| feature.names.iter().copied());
            let message = match nearest(name, names) {
                Some(known) => format!("`{name}` is no feature of CPUID; did you mean `{known}`?"),
                None => format!("`{name}` is no feature of CPUID that is known here; remove it"),
            };
            report.error(place, message);
            continue;
        };
        match letter {
            "0" | "1" | "x" | "k" | "s" => {
                let letter = letter.bytes().next().unwrap_or(b'x');
                if let Err(reason) = set(narrowing, feature, letter) {
                    report.error(
                        place,
                        format!(
                            "`{name}` cannot be shown to a guest: {reason}; remove `{name}={}`",
                            char::from(letter)
                        ),
                    );
                }
            }
            _ => report
                .error(place, format!("`{}` is no value for `{name}`; {LETTERS}", letter.escape_debug())),
        }
    }
}

/// One feature; the last mention counts. The error says why a guest cannot have it.
fn set(narrowing: &mut Narrowing, feature: &Feature, letter: u8) -> Result<(), &'static str> {
    let (word, bit) = (feature.word as usize, 1 << feature.bit);
    let (Some(hidden), Some(required)) = (narrowing.hidden.get_mut(word), narrowing.required.get_mut(word))
    else {
        return Ok(());
    };
    (*hidden, *required) = (*hidden & !bit, *required & !bit);
    match (letter, feature.policy) {
        (b'0', _) => *hidden |= bit,
        (b'x', _) => {}
        (_, Policy::Never(reason)) => return Err(reason),
        (b'1', _) => *required |= bit,
        _ => {}
    }
    Ok(())
}

/// xend's style: one leaf.
fn leaf(atom: &Atom, narrowing: &mut Narrowing, report: &mut Report<'_>) {
    let Some((input, registers)) = atom.text.split_once(':') else {
        let message =
            "an entry of `cpuid` is a leaf and its registers, for example \"1:ecx=\" and 32 letters";
        report.error(atom.span, message);
        return;
    };
    let (leaf, subleaf) = input.split_once(',').unwrap_or((input, "0"));
    let (Some(leaf), Some(subleaf)) = (number::parse(leaf.trim()), number::parse(subleaf.trim())) else {
        report.error(
            atom.place(input),
            format!("`{}` is no leaf of CPUID; write a number", input.escape_debug()),
        );
        return;
    };
    for part in registers.split(',') {
        let part = part.trim();
        let place = atom.place(part);
        let (name, letters) = part.split_once('=').unwrap_or((part, ""));
        let register = ["eax", "ebx", "ecx", "edx"].iter().position(|register| *register == name);
        let is_mask = letters.len() == 32 && letters.bytes().all(|letter| b"01xks".contains(&letter));
        let (Some(register), true) = (register, is_mask) else {
            let message = "a register of `cpuid` is eax, ebx, ecx or edx, = and 32 of the letters 0 1 x k s";
            report.error(place, message);
            continue;
        };
        let word = Word::ALL.into_iter().find(|word| subleaf == 0 && word.place() == (leaf as u32, register));
        let word = word.filter(|_| leaf <= u64::from(u32::MAX));
        for (bit, letter) in (0..32).rev().zip(letters.bytes()) {
            if letter == b'x' {
                continue;
            }
            let feature = word.and_then(|word| at(word, bit));
            let result = match feature {
                Some(feature) => set(narrowing, feature, letter),
                // Hidden already.
                None if word.is_some() && letter == b'0' => Ok(()),
                None => Err("`cpuid` only hides features here"),
            };
            if let Err(reason) = result {
                let what = feature.and_then(|feature| feature.names.first()).copied().unwrap_or("no feature");
                report.error(
                    place,
                    format!(
                        "bit {bit} of leaf {leaf:#x} {name} ({what}) cannot be set: {reason}; write x there"
                    ),
                );
                break;
            }
        }
    }
}

/// The value of `cpuid` that reads as this.
pub(super) fn text(narrowing: &Narrowing) -> alloc::string::String {
    let mut text = alloc::string::String::from("host");
    for feature in FEATURES {
        let (word, bit) = (feature.word as usize, feature.bit);
        let has = |words: &[u32]| words.get(word).is_some_and(|word| word >> bit & 1 != 0);
        let letter = if has(&narrowing.hidden) {
            '0'
        } else if has(&narrowing.required) {
            '1'
        } else {
            continue;
        };
        text.push_str(&format!(",{}={letter}", feature.names.first().unwrap_or(&"")));
    }
    text
}
