//! The modes that check what a guest may rely on. One line each.

use crate::check::Check;
use crate::numbers::Random;

/// A mode.
pub type Mode = fn(&mut Check, &mut Random);

/// All of them, by name.
pub const MODES: &[(&str, Mode)] = &[
    ("apic", crate::apic::run),
    ("callers", crate::modes::run),
    ("cpu-hostile", crate::cpu_state::hostile),
    ("cpu-neighbour", crate::cpu_state::neighbour),
    ("cpu-state", crate::cpu_state::run),
    ("cpuid-narrow", crate::cpu_tables::narrow),
    ("cpuid-table", crate::cpu_tables::cpuid),
    ("exits", crate::exits::run),
    ("hypercalls-grants", crate::hypercalls::grants),
    ("hypercalls-hvm", crate::hypercalls::hvm),
    ("hypercalls-memory", crate::hypercalls::memory),
    ("hypercalls-refused", crate::hypercalls::refused),
    ("hypercalls-version", crate::hypercalls::version),
    ("events", crate::events::run),
    ("mmio", crate::mmio::run),
    ("msr-table", crate::cpu_tables::msrs),
    ("processors", crate::processors::run),
    ("random", crate::random::run),
    ("selftest", crate::selftest::run),
    ("steal", crate::time::steal),
    ("time", crate::time::run),
    ("watchdog", crate::time::watchdog),
];
