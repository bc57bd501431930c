//! I/O ports: which ranges a domain's threads may use.

use core::cell::Cell;

use proto::abi::Error;

use crate::cap::Cap;

/// Most ranges enabled in one domain.
pub const RANGES_MAX: usize = 4;

/// The enabled ranges of a domain.
#[derive(Debug, Default)]
pub struct EnabledPorts {
    count: Cell<u8>,
    ranges: [Cell<Option<&'static Cap>>; RANGES_MAX],
}

impl EnabledPorts {
    /// Enables the capability's range.
    ///
    /// # Errors
    /// `NoMemory` when the domain has [`RANGES_MAX`] already.
    pub fn enable(&self, cap: &'static Cap) -> Result<(), Error> {
        let free = self.ranges.iter().find(|range| range.get().is_none()).ok_or(Error::NoMemory)?;
        free.set(Some(cap));
        self.count.set(self.count.get() + 1);
        Ok(())
    }

    /// Disables the capability's range.
    pub fn disable(&self, cap: &Cap) {
        for range in &self.ranges {
            if range.get().is_some_and(|enabled| core::ptr::eq(enabled, cap)) {
                range.set(None);
                self.count.set(self.count.get() - 1);
            }
        }
    }

    /// No range is enabled.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.count.get() == 0
    }

    /// First port and count of each enabled range.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.ranges
            .iter()
            .filter_map(|range| range.get().map(|cap| (cap.base.get(), u64::from(cap.count.get()))))
    }
}
