//! The guest's own paging, in software: guest-linear addresses to guest-physical ones, and copies.
//!
//! Hypercall arguments are linear addresses of the calling vCPU. The walk honours present, writable and
//! user bits as the processor would for the caller; it sets no accessed or dirty bits. Each table entry is
//! read once. 32-bit and PAE paging are refused for now (nothing that calls in those modes is served yet).
//! Source: AMD64 APM vol. 2 (24593), 5.3 long-mode page translation.

use proto::abi::VcpuState;

use crate::memory::{GuestMemory, GuestPhys, PAGE};

/// CR0 and CR4 bits, EFER bits.
const CR0_WP: u64 = 1 << 16;
/// CR0.PG.
pub const CR0_PG: u64 = 1 << 31;
const CR4_LA57: u64 = 1 << 12;
/// EFER.LMA.
pub const EFER_LMA: u64 = 1 << 10;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// What an access is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading (instruction fetch too).
    Read,
    /// Writing.
    Write,
}

/// A linear address cannot be accessed: the page fault that the processor would raise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// The address.
    pub address: u64,
    /// The page fault's error code.
    pub code: u32,
}

/// The paging state of a vCPU.
#[derive(Debug, Clone, Copy)]
pub struct Paging {
    cr0: u64,
    cr3: u64,
    cr4: u64,
    efer: u64,
    is_user: bool,
}

impl Paging {
    /// The vCPU's paging as of its last exit.
    #[inline]
    pub fn of(state: &VcpuState) -> Self {
        Self { cr0: state.cr0, cr3: state.cr3, cr4: state.cr4, efer: state.efer, is_user: state.cpl == 3 }
    }

    /// Where `linear` is in guest-physical memory.
    ///
    /// # Errors
    /// [`Fault`].
    #[inline]
    pub fn translate(&self, memory: &GuestMemory, linear: u64, access: Access) -> Result<GuestPhys, Fault> {
        if self.cr0 & CR0_PG == 0 {
            return Ok(GuestPhys(linear & 0xffff_ffff));
        }
        let write_bit = if access == Access::Write { 2 } else { 0 };
        let fault = |present| Fault {
            address: linear,
            code: u32::from(present) | write_bit | if self.is_user { 4 } else { 0 },
        };
        let is_canonical = (linear as i64) << 16 >> 16 == linear as i64;
        if self.efer & EFER_LMA == 0 || self.cr4 & CR4_LA57 != 0 || !is_canonical {
            return Err(fault(false));
        }
        let mut table = self.cr3 & ADDRESS;
        let mut allowed = WRITABLE | USER;
        for level in (0..4u32).rev() {
            let shift = 12 + 9 * level;
            let index = linear >> shift & 0x1ff;
            let entry = memory.word(GuestPhys(table | index << 3)).ok_or(fault(false))?;
            if entry & PRESENT == 0 {
                return Err(fault(false));
            }
            allowed &= entry;
            let is_leaf = level == 0 || (level < 3 && entry & LARGE != 0);
            if !is_leaf {
                table = entry & ADDRESS;
                continue;
            }
            let is_refused = (self.is_user && allowed & USER == 0)
                || (access == Access::Write
                    && allowed & WRITABLE == 0
                    && (self.is_user || self.cr0 & CR0_WP != 0));
            if is_refused {
                return Err(fault(true));
            }
            let inside = (1u64 << shift) - 1;
            return Ok(GuestPhys(entry & ADDRESS & !inside | linear & inside));
        }
        Err(fault(false))
    }

    /// Copies from the guest's linear address space.
    ///
    /// # Errors
    /// [`Fault`]; part may have been copied.
    pub fn read(&self, memory: &GuestMemory, linear: u64, out: &mut [u8]) -> Result<(), Fault> {
        let mut at = linear;
        let mut rest = out;
        while !rest.is_empty() {
            let gpa = self.translate(memory, at, Access::Read)?;
            let len = rest.len().min(PAGE - gpa.offset());
            let page = memory.page(gpa.gfn()).ok_or(Fault { address: at, code: 0 })?;
            let (chunk, tail) = rest.split_at_mut(len);
            page.read(gpa.offset(), chunk);
            rest = tail;
            at = at.wrapping_add(len as u64);
        }
        Ok(())
    }

    /// Copies into the guest's linear address space.
    ///
    /// # Errors
    /// [`Fault`]; part may have been copied.
    pub fn write(&self, memory: &GuestMemory, linear: u64, bytes: &[u8]) -> Result<(), Fault> {
        let mut at = linear;
        let mut rest = bytes;
        while !rest.is_empty() {
            let gpa = self.translate(memory, at, Access::Write)?;
            let len = rest.len().min(PAGE - gpa.offset());
            let page = memory.page(gpa.gfn()).ok_or(Fault { address: at, code: 2 })?;
            let (chunk, tail) = rest.split_at(len);
            page.write(gpa.offset(), chunk);
            rest = tail;
            at = at.wrapping_add(len as u64);
        }
        Ok(())
    }

    /// Copies a fixed number of bytes from the guest's linear address space.
    ///
    /// # Errors
    /// [`Fault`].
    #[inline]
    pub fn read_array<const N: usize>(&self, memory: &GuestMemory, linear: u64) -> Result<[u8; N], Fault> {
        let mut bytes = [0; N];
        self.read(memory, linear, &mut bytes)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::tests::fake;
    use proptest::prelude::*;

    /// Tables at 0x1000.. with: 0x40_0000 -> page 0x8000 (user, writable), 0x40_1000 -> 0x9000 (supervisor,
    /// read-only), 0x40_2000 absent, 2 MiB page at 0x60_0000 -> 0 (supervisor, writable).
    fn paged() -> (GuestMemory, Paging) {
        let memory = fake(16);
        let put = |at: u64, entry: u64| memory.write(GuestPhys(at), &entry.to_le_bytes()).unwrap();
        put(0x1000, 0x2000 | 7);
        put(0x2000, 0x3000 | 7);
        put(0x3000 + 2 * 8, 0x4000 | 7);
        put(0x3000 + 3 * 8, LARGE | 3);
        put(0x4000, 0x8000 | 7);
        put(0x4008, 0x9000 | 1);
        let paging =
            Paging { cr0: CR0_PG | CR0_WP | 1, cr3: 0x1000, cr4: 0x20, efer: EFER_LMA, is_user: false };
        (memory, paging)
    }

    #[test]
    fn small_and_large_pages_translate() {
        let (memory, paging) = paged();
        assert_eq!(paging.translate(&memory, 0x40_0123, Access::Write), Ok(GuestPhys(0x8123)));
        assert_eq!(paging.translate(&memory, 0x60_5432, Access::Write), Ok(GuestPhys(0x5432)));
        let flat = Paging { cr0: 1, ..paging };
        assert_eq!(flat.translate(&memory, 0x123, Access::Write), Ok(GuestPhys(0x123)));
    }

    #[test]
    fn permissions_are_those_of_the_caller() {
        let (memory, paging) = paged();
        let user = Paging { is_user: true, ..paging };
        let read_only = 0x40_1010;
        assert!(paging.translate(&memory, read_only, Access::Read).is_ok());
        assert_eq!(
            paging.translate(&memory, read_only, Access::Write),
            Err(Fault { address: read_only, code: 3 })
        );
        let no_wp = Paging { cr0: CR0_PG | 1, ..paging };
        assert!(no_wp.translate(&memory, read_only, Access::Write).is_ok());
        assert_eq!(
            user.translate(&memory, read_only, Access::Read),
            Err(Fault { address: read_only, code: 5 })
        );
        assert!(user.translate(&memory, 0x40_0000, Access::Write).is_ok());
        assert_eq!(
            user.translate(&memory, 0x60_0000, Access::Write),
            Err(Fault { address: 0x60_0000, code: 7 })
        );
    }

    #[test]
    fn a_buffer_that_crosses_into_an_absent_page_faults() {
        let (memory, paging) = paged();
        assert_eq!(paging.write(&memory, 0x40_0ffc, &[1; 8]), Err(Fault { address: 0x40_1000, code: 3 }));
        let mut out = [0; 8];
        assert_eq!(paging.read(&memory, 0x40_0ffc, &mut out), Ok(()));
        assert_eq!(paging.read(&memory, 0x40_1ffc, &mut out), Err(Fault { address: 0x40_2000, code: 0 }));
        assert!(paging.read(&memory, 0x8000_0000_0000, &mut out).is_err());
        assert!(paging.read(&memory, u64::MAX - 2, &mut out).is_err());
    }

    proptest! {
        #[test]
        fn random_tables_end_in_an_address_or_a_fault(
            entries in prop::collection::vec((0usize..0x2000, any::<u64>()), 0..200),
            cr3: u64, linear: u64, low in 0u64..0x4000_0000, is_user: bool, is_write: bool
        ) {
            let (memory, paging) = paged();
            for (index, entry) in entries {
                // Mostly entries that point back into the small RAM, so that walks go deep.
                let entry = if index % 3 == 0 { entry } else { entry & 0xffff };
                memory.write(GuestPhys(index as u64 * 8), &entry.to_le_bytes()).unwrap();
            }
            let access = if is_write { Access::Write } else { Access::Read };
            let paging = Paging { is_user, cr3: if cr3 & 1 == 0 { cr3 } else { cr3 & 0xf000 }, ..paging };
            for linear in [linear, low] {
                let _ = paging.translate(&memory, linear, access);
                let mut out = [0; 64];
                let _ = paging.read(&memory, linear, &mut out);
            }
        }
    }
}
