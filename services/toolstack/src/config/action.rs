//! What happens to a guest that ended (`on_poweroff` and the like).

use core::fmt;

/// An action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The domain is removed.
    Destroy,
    /// The domain is removed and built again from the same configuration.
    Restart,
    /// The domain stays, stopped, for somebody to look at, until `xl destroy`.
    Preserve,
}

impl Action {
    /// Every action.
    pub const ALL: [Self; 3] = [Self::Destroy, Self::Restart, Self::Preserve];

    /// The name in configurations.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Destroy => "destroy",
            Self::Restart => "restart",
            Self::Preserve => "preserve",
        }
    }

    /// Actions of xl that are not supported.
    pub(super) const UNSUPPORTED: [&'static str; 4] =
        ["rename-restart", "coredump-destroy", "coredump-restart", "soft-reset"];
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
