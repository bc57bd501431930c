//! The modes that check what a guest may rely on. One line each.

use crate::check::Check;
use crate::numbers::Random;

/// A mode.
pub type Mode = fn(&mut Check, &mut Random);

/// All of them, by name.
pub const MODES: &[(&str, Mode)] = &[
    ("selftest", crate::selftest::run),
    ("cpu-state", crate::cpu_state::run),
    ("cpu-neighbour", crate::cpu_state::neighbour),
    ("cpu-hostile", crate::cpu_state::hostile),
    ("msr-table", crate::cpu_tables::msrs),
    ("cpuid-table", crate::cpu_tables::cpuid),
    ("cpuid-narrow", crate::cpu_tables::narrow),
    ("exits", crate::exits::run),
    ("apic", crate::apic::run),
    ("callers", crate::modes::run),
    ("hypercalls-grants", crate::hypercalls::grants),
    ("hypercalls-hvm", crate::hypercalls::hvm),
    ("hypercalls-memory", crate::hypercalls::memory),
    ("hypercalls-refused", crate::hypercalls::refused),
    ("hypercalls-version", crate::hypercalls::version),
    ("mmio", crate::mmio::run),
    ("processors", crate::processors::run),
    ("steal", crate::time::steal),
    ("time", crate::time::run),
    ("watchdog", crate::time::watchdog),
];
