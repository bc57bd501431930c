//! The modes that check what a guest may rely on. One line each.

use crate::check::Check;
use crate::numbers::Random;

/// A mode.
pub type Mode = fn(&mut Check, &mut Random);

/// All of them, by name.
pub const MODES: &[(&str, Mode)] = &[("callers", crate::modes::run), ("selftest", crate::selftest::run)];
