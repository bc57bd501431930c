//! Whom a hypercall is about. A guest has no power over others, so all that it learns is whether they exist,
//! and that it may know of the one that has its backends only.

use super::Call;
use crate::errno::Errno;
use crate::machine::Platform;

/// The caller itself.
pub(super) const SELF: u16 = 0x7ff0;
/// The domain that has the backends.
pub(super) const BACKEND: u16 = 0;

impl<P: Platform> Call<'_, P> {
    /// Whether `domid` is the caller.
    pub(super) fn is_self(&self, domid: u16) -> bool {
        domid == SELF || u32::from(domid) == self.machine.guest.domid
    }

    /// Checks that an operation is about the caller.
    ///
    /// # Errors
    /// [`Errno::Search`], or [`Errno::Perm`] for the backends' domain.
    pub(super) fn only_self(&self, domid: u16) -> Result<(), Errno> {
        match domid {
            _ if self.is_self(domid) => Ok(()),
            BACKEND => Err(Errno::Perm),
            _ => Err(Errno::Search),
        }
    }

    /// The refusal of an operation that is for other domains than the caller's, as Xen looks them up:
    /// [`SELF`] is not the name of any.
    pub(super) fn refuse_remote(&self, domid: u16, for_backend: Errno) -> Errno {
        match domid {
            BACKEND => for_backend,
            SELF => Errno::Search,
            _ if self.is_self(domid) => Errno::Perm,
            _ => Errno::Search,
        }
    }
}
