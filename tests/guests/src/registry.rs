//! The modes that check what a guest may rely on. One line each.

use crate::check::Check;
use crate::numbers::Random;

/// A mode.
pub type Mode = fn(&mut Check, &mut Random);

/// All of them, by name.
pub const MODES: &[(&str, Mode)] = &[
    ("apic", crate::apic::run),
    ("callers", crate::modes::run),
    ("mmio", crate::mmio::run),
    ("processors", crate::processors::run),
    ("random", crate::random::run),
    ("selftest", crate::selftest::run),
];
