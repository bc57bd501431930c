//! Disk specifications (xl-disk-configuration(5)).
//!
//! Parameters are separated by commas: `key=value`, flags, and positional ones in the order target,
//! format, vdev, access. `target=` takes the rest of the text. Prefixes such as `phy:` and `file:` are the
//! old syntax: then no format stands before the vdev. Follows Xen's tools/libs/util/libxlu_disk_l.l.
//! Beyond xl: `ram:SIZE` is a volume in memory, written like the old prefixes: 'ram:64M,xvda,w'.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;

use super::number;
use super::report::Report;
use super::source::{Span, Spanned};
use super::syntax::Atom;
use super::vdev;
use crate::nearest::nearest;

/// A disk of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Image on the host, as the configuration writes it; of a volume in memory the size.
    pub target: Spanned<String>,
    /// Bytes of a volume in memory, a multiple of 4 KiB; 0: the disk is an image.
    pub memory: u64,
    /// Name in the guest, as the configuration writes it.
    pub vdev: Spanned<String>,
    /// Xen virtual device number.
    pub device: u32,
    /// Writes are refused.
    pub is_read_only: bool,
    /// The guest need not protect itself against its backend.
    pub is_trusted: bool,
}

/// Least bytes of a volume in memory.
const MEMORY_MIN: u64 = 1 << 20;
/// Most bytes of a volume in memory.
const MEMORY_MAX: u64 = 1 << 40;
/// Such a volume consists of whole pages.
const MEMORY_UNIT: u64 = 4096;
/// What a disk without a target lacks.
const NO_TARGET: &str = "target; give the path of a raw image file first";

const KEYS: [&str; 20] = [
    "target",
    "format",
    "vdev",
    "access",
    "cdrom",
    "devtype",
    "backend",
    "backendtype",
    "specification",
    "script",
    "direct-io-safe",
    "discard",
    "no-discard",
    "colo",
    "no-colo",
    "colo-host",
    "colo-port",
    "colo-export",
    "trusted",
    "untrusted",
];

/// What was read so far; an empty value counts as none.
#[derive(Default)]
struct Draft<'a> {
    target: Option<&'a str>,
    format: Option<&'a str>,
    vdev: Option<&'a str>,
    access: Option<&'a str>,
    has_old_prefix: bool,
    is_in_memory: bool,
    is_untrusted: bool,
}

/// Reads one specification. Mistakes are reported; then there is no disk.
pub(super) fn parse(spec: &Atom, report: &mut Report<'_>) -> Option<Disk> {
    let errors_before = report.errors();
    let mut draft = Draft::default();
    let mut rest = spec.text.as_str();
    loop {
        rest = rest.trim_start_matches([' ', '\t', '\n']);
        if rest.is_empty() {
            break;
        }
        if let Some(target) = rest.strip_prefix("target=") {
            let target = target.strip_suffix(',').unwrap_or(target);
            set(&mut draft.target, target, "target", spec, report);
            break;
        }
        if draft.target.is_none()
            && let Some((prefix, after)) = rest.split_once(':')
            && old_prefix(prefix, spec, report)
        {
            draft.has_old_prefix = true;
            draft.is_in_memory = prefix == "ram";
            rest = after;
        }
        let (parameter, after) = rest.split_once(',').unwrap_or((rest, ""));
        rest = after;
        match parameter.split_once('=') {
            Some((key, value)) => named(&mut draft, parameter, key, value, spec, report),
            None => bare(&mut draft, parameter, spec, report),
        }
    }
    finish(&draft, spec, report).filter(|_| report.errors() == errors_before)
}

/// The old syntax's `prefix:`; `false` if it is none, and the colon part of a path.
fn old_prefix(prefix: &str, spec: &Atom, report: &mut Report<'_>) -> bool {
    match prefix {
        "raw" | "phy" | "file" | "tap" | "tap2" | "tapdisk" | "aio" | "ioemu" | "ram" => {}
        "qcow" | "qcow2" | "vhd" => unsupported_format(spec.place(prefix), prefix, report),
        "iscsi" | "nbd" | "enbd" | "drbd" => report.error(
            spec.place(prefix),
            format!("disks on `{prefix}:` are not supported; give the path of a raw image file"),
        ),
        _ => return false,
    }
    true
}

fn unsupported_format(span: Span, format: &str, report: &mut Report<'_>) {
    report.error(
        span,
        format!("disk format `{format}` is not supported; convert the image: qemu-img convert -O raw IN OUT"),
    );
}

fn set<'a>(slot: &mut Option<&'a str>, value: &'a str, key: &str, spec: &Atom, report: &mut Report<'_>) {
    match *slot {
        Some(old) if !old.is_empty() && old != value => {
            let message = format!("this disk has a second {key}; `{old}` was given before: keep one of them");
            report.error(spec.place(value), message);
        }
        _ => *slot = Some(value),
    }
}

fn named<'a>(
    draft: &mut Draft<'a>,
    parameter: &str,
    key: &str,
    value: &'a str,
    spec: &Atom,
    report: &mut Report<'_>,
) {
    let place = spec.place(parameter);
    match key {
        "format" => set(&mut draft.format, value, "format", spec, report),
        "vdev" => set(&mut draft.vdev, value, "vdev", spec, report),
        "access" => set(&mut draft.access, value, "access", spec, report),
        "devtype" if value == "disk" => {}
        "devtype" if value == "cdrom" => cdrom(place, report),
        "devtype" => report.error(place, format!("`{value}` is no disk type; leave devtype out")),
        "specification" if value == "xen" => {}
        "backend" | "backendtype" | "specification" | "script" | "colo-host" | "colo-port"
        | "colo-export" | "active-disk" | "hidden-disk" | "grant_usage" => {
            report.error(place, format!("disk parameter `{key}` is not supported; remove `{parameter}`"));
        }
        _ => unknown(place, key, report),
    }
}

fn bare<'a>(draft: &mut Draft<'a>, parameter: &'a str, spec: &Atom, report: &mut Report<'_>) {
    let place = spec.place(parameter);
    match parameter {
        "cdrom" => cdrom(place, report),
        "direct-io-safe" => {
            report.warning(place, "`direct-io-safe` has no effect: writes never go through a page cache")
        }
        "discard" => {
            report.warning(place, "`discard` has no effect: discarding blocks is not offered to guests")
        }
        "no-discard" | "no-colo" => {}
        "colo" => report.error(place, "disk parameter `colo` is not supported; remove it"),
        "trusted" => draft.is_untrusted = false,
        "untrusted" => draft.is_untrusted = true,
        "raw" if draft.is_in_memory && draft.vdev.is_none() => draft.format = Some(parameter),
        _ if draft.target.is_none() => draft.target = Some(parameter),
        _ if !draft.has_old_prefix && draft.format.is_none() => draft.format = Some(parameter),
        _ if draft.vdev.is_none() => match parameter.split_once(':') {
            Some((vdev, "disk")) => draft.vdev = Some(vdev),
            Some((vdev, "cdrom")) => {
                draft.vdev = Some(vdev);
                cdrom(place, report);
            }
            _ => draft.vdev = Some(parameter),
        },
        _ if draft.access.is_none() => draft.access = Some(parameter),
        _ => unknown(place, parameter, report),
    }
}

fn cdrom(place: Span, report: &mut Report<'_>) {
    report.error(place, "CD-ROM drives are not supported; attach the image as a read-only disk (access=ro)");
}

fn unknown(place: Span, word: &str, report: &mut Report<'_>) {
    let message = match nearest(word, KEYS) {
        Some(key) => format!("`{word}` is no disk parameter; did you mean `{key}`?"),
        None => format!(
            "`{word}` is no disk parameter; a disk is 'TARGET,raw,xvda,rw' or 'vdev=xvda,target=TARGET'"
        ),
    };
    report.error(place, message);
}

/// Bytes of a volume in memory.
fn size(text: &str, spec: &Atom, report: &mut Report<'_>) -> Option<u64> {
    let place = spec.place(text);
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let Some(number) = number::parse(digits) else {
        report.error(
            place,
            format!("`{text}` is no size; write a number of KiB, MiB or GiB: ram:512K, ram:64M, ram:1G"),
        );
        return None;
    };
    if shift == 0 {
        report.error(place, format!("the size `{text}` has no unit; write ram:{text}M for {text} MiB"));
        return None;
    }
    match number.checked_mul(1 << shift).filter(|bytes| *bytes <= MEMORY_MAX) {
        None => report.error(place, format!("a volume of {text} is too large; at most 1024G are possible")),
        Some(bytes) if bytes < MEMORY_MIN => {
            report.error(place, format!("a volume of {text} is too small; at least 1M is needed"));
        }
        Some(bytes) if !bytes.is_multiple_of(MEMORY_UNIT) => {
            report.error(place, format!("the size {text} is no multiple of 4K; round it"));
        }
        Some(bytes) => return Some(bytes),
    }
    None
}

fn finish(draft: &Draft<'_>, spec: &Atom, report: &mut Report<'_>) -> Option<Disk> {
    let format = draft.format.unwrap_or("");
    match format {
        "" | "raw" => {}
        "qcow" | "qcow2" | "vhd" | "qed" | "empty" => unsupported_format(spec.place(format), format, report),
        _ if vdev::number(format).is_some() => {
            let message =
                format!("the format stands between target and vdev: write 'TARGET,raw,{format},rw'");
            report.error(spec.place(format), message);
            return None;
        }
        _ => report.error(spec.place(format), format!("`{format}` is no disk format; write raw or nothing")),
    }
    let access = draft.access.unwrap_or("");
    let is_read_only = match access {
        "r" | "ro" => true,
        "w" | "rw" | "" => false,
        _ => {
            report.error(spec.place(access), format!("`{access}` is no kind of access; write ro or rw"));
            false
        }
    };
    let Some(vdev) = draft.vdev.filter(|vdev| !vdev.is_empty()) else {
        report.error(
            spec.span,
            "this disk has no vdev, its name in the guest; for example 'TARGET,raw,xvda,rw'",
        );
        return None;
    };
    let Some(target) = draft.target.filter(|target| !target.is_empty()) else {
        let what = if draft.is_in_memory { "size; write for example 'ram:64M,xvda,rw'" } else { NO_TARGET };
        report.error(spec.span, format!("this disk has no {what}"));
        return None;
    };
    let memory = if draft.is_in_memory { size(target, spec, report)? } else { 0 };
    let vdev_span = spec.place(vdev);
    let Some(device) = vdev::number(vdev) else {
        report.error(
            vdev_span,
            format!("`{vdev}` is no disk's name; write xvda, xvdb, ... (or xvda1 for a partition)"),
        );
        return None;
    };
    Some(Disk {
        target: Spanned { value: target.to_owned(), span: spec.place(target) },
        memory,
        vdev: Spanned { value: vdev.to_owned(), span: vdev_span },
        device,
        is_read_only,
        is_trusted: !draft.is_untrusted,
    })
}
