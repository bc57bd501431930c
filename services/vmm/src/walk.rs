//! The guest's own paging, in software: guest-linear addresses to guest-physical ones, and copies.
//!
//! Hypercall arguments are linear addresses of the calling vCPU, in whatever paging mode it is: none, two
//! levels of 32-bit entries (with 4 MiB pages), PAE, or four levels. The walk honours present, writable and
//! user bits, CR0.WP and CR4.SMAP as the processor would for the caller; it sets no accessed or dirty bits.
//! Each table entry is read once. Reserved bits are not looked at: QEMU sets the accessed bit in PAE's
//! top-level entries, where it is reserved, and a processor that minds has raised the fault before.
//! Sources: AMD64 APM vol. 2 (24593), 5.2 legacy-mode and 5.3 long-mode page translation; Xen's copies for
//! hypercalls obey SMAP too (arch/x86/mm/guest_walk.c).

use proto::abi::VcpuState;

use crate::memory::{GuestMemory, GuestPhys, PAGE};

/// CR0 and CR4 bits, EFER bits.
const CR0_WP: u64 = 1 << 16;
/// CR0.PG.
pub const CR0_PG: u64 = 1 << 31;
const CR4_PSE: u64 = 1 << 4;
const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;
const CR4_SMAP: u64 = 1 << 21;
/// EFER.LMA.
pub const EFER_LMA: u64 = 1 << 10;
/// RFLAGS.AC: the supervisor may touch the user's pages although SMAP is on.
const RFLAGS_AC: u64 = 1 << 18;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Legacy paging: linear addresses, and tables of 32-bit entries, are below 4 GiB.
const LOW: u64 = 0xffff_ffff;
const LOW_TABLE: u64 = 0xffff_f000;
/// CR3 with PAE: the four top-level entries are 32-byte aligned.
const PAE_TABLE: u64 = 0xffff_ffe0;

/// What an access is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading data.
    Read,
    /// Writing.
    Write,
    /// Reading the instruction at hand, which the processor itself was allowed to fetch.
    Fetch,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paging {
    cr0: u64,
    cr3: u64,
    cr4: u64,
    efer: u64,
    rflags: u64,
    is_user: bool,
}

impl Paging {
    /// The vCPU's paging as of its last exit.
    #[inline]
    pub fn of(state: &VcpuState) -> Self {
        Self {
            cr0: state.cr0,
            cr3: state.cr3,
            cr4: state.cr4,
            efer: state.efer,
            rflags: state.rflags,
            is_user: state.cpl == 3,
        }
    }

    /// Whether another address space, or another way of paging, was in use then.
    #[inline]
    pub fn differs(&self, then: &Self) -> bool {
        // Flags and privilege change all the time.
        (self.cr3, self.cr0, self.cr4, self.efer) != (then.cr3, then.cr0, then.cr4, then.efer)
    }

    /// Where `linear` is in guest-physical memory.
    ///
    /// # Errors
    /// [`Fault`].
    #[inline]
    pub fn translate(&self, memory: &GuestMemory, linear: u64, access: Access) -> Result<GuestPhys, Fault> {
        if self.cr0 & CR0_PG == 0 || self.efer & EFER_LMA == 0 {
            return self.translate_low(memory, linear & LOW, access);
        }
        let is_canonical = (linear as i64) << 16 >> 16 == linear as i64;
        if self.cr4 & CR4_LA57 != 0 || !is_canonical {
            return Err(self.fault(linear, access, false));
        }
        self.walk(memory, linear, access, self.cr3 & ADDRESS, 4)
    }

    /// [`Self::translate`] outside of long mode.
    #[cold]
    #[inline(never)]
    fn translate_low(&self, memory: &GuestMemory, linear: u64, access: Access) -> Result<GuestPhys, Fault> {
        if self.cr0 & CR0_PG == 0 {
            return Ok(GuestPhys(linear));
        }
        if self.cr4 & CR4_PAE == 0 {
            return self.walk_two_levels(memory, linear, access);
        }
        // The four top-level entries have no permissions.
        let at = (self.cr3 & PAE_TABLE) + (linear >> 30) * 8;
        match memory.word(GuestPhys(at)) {
            Some(entry) if entry & PRESENT != 0 => self.walk(memory, linear, access, entry & ADDRESS, 2),
            _ => Err(self.fault(linear, access, false)),
        }
    }

    /// Walks `levels` levels of 64-bit entries, from `table` on.
    #[inline]
    fn walk(
        &self,
        memory: &GuestMemory,
        linear: u64,
        access: Access,
        mut table: u64,
        levels: u32,
    ) -> Result<GuestPhys, Fault> {
        let mut allowed = WRITABLE | USER;
        for level in (0..levels).rev() {
            let shift = 12 + 9 * level;
            let index = linear >> shift & 0x1ff;
            let entry = memory.word(GuestPhys(table | index << 3));
            let entry = entry.ok_or_else(|| self.fault(linear, access, false))?;
            if entry & PRESENT == 0 {
                break;
            }
            allowed &= entry;
            let is_leaf = level == 0 || (level < 3 && entry & LARGE != 0);
            if !is_leaf {
                table = entry & ADDRESS;
                continue;
            }
            self.check(linear, access, allowed)?;
            let inside = (1u64 << shift) - 1;
            return Ok(GuestPhys(entry & ADDRESS & !inside | linear & inside));
        }
        Err(self.fault(linear, access, false))
    }

    /// Two levels of 32-bit entries; pages of 4 MiB reach beyond 4 GiB (PSE-36).
    fn walk_two_levels(&self, memory: &GuestMemory, linear: u64, access: Access) -> Result<GuestPhys, Fault> {
        const LARGE_PAGE: u64 = 1 << 22;
        let entry_at = |table: u64, index: u64| {
            let at = table + index * 4;
            let pair = memory.word(GuestPhys(at & !7)).unwrap_or(0);
            let entry = pair >> (at % 8 * 8) & LOW;
            if entry & PRESENT != 0 { Ok(entry) } else { Err(self.fault(linear, access, false)) }
        };
        let directory = entry_at(self.cr3 & LOW_TABLE, linear >> 22)?;
        if directory & LARGE != 0 && self.cr4 & CR4_PSE != 0 {
            self.check(linear, access, directory)?;
            let high = (directory >> 13 & 0xff) << 32;
            return Ok(GuestPhys(high | directory & !(LARGE_PAGE - 1) | linear & (LARGE_PAGE - 1)));
        }
        let entry = entry_at(directory & LOW_TABLE, linear >> 12 & 0x3ff)?;
        self.check(linear, access, directory & entry)?;
        Ok(GuestPhys(entry & LOW_TABLE | linear & (PAGE as u64 - 1)))
    }

    /// Whether the caller may access a page whose entries allow what `allowed` has in common.
    #[inline]
    fn check(&self, linear: u64, access: Access, allowed: u64) -> Result<(), Fault> {
        let is_refused = if allowed & USER == 0 {
            self.is_user
        } else {
            self.cr4 & CR4_SMAP != 0
                && !self.is_user
                && access != Access::Fetch
                && self.rflags & RFLAGS_AC == 0
        };
        let is_read_only =
            access == Access::Write && allowed & WRITABLE == 0 && (self.is_user || self.cr0 & CR0_WP != 0);
        if is_refused || is_read_only { Err(self.fault(linear, access, true)) } else { Ok(()) }
    }

    fn fault(&self, address: u64, access: Access, present: bool) -> Fault {
        let write_bit = if access == Access::Write { 2 } else { 0 };
        let user_bit = if self.is_user { 4 } else { 0 };
        Fault { address, code: u32::from(present) | write_bit | user_bit }
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
        let paging = Paging {
            cr0: CR0_PG | CR0_WP | 1,
            cr3: 0x1000,
            cr4: CR4_PAE,
            efer: EFER_LMA,
            rflags: 2,
            is_user: false,
        };
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

    /// Two levels at 0x1000 and 0x2000: 0x40_0000 -> 0x8000, 0x40_1000 -> 0x5000 (user, writable), 0x40_2000
    /// -> 0x9000 (supervisor, read-only), 0x40_3000 absent; 4 MiB pages at 0x80_0000 -> 0 and, PSE-36, at
    /// 0xc0_0000 -> 0x12_0040_0000.
    fn two_levels() -> (GuestMemory, Paging) {
        let memory = fake(16);
        let put = |at: u64, entry: u32| memory.write(GuestPhys(at), &entry.to_le_bytes()).unwrap();
        put(0x1000 + 4, 0x2000 | 7);
        put(0x1000 + 8, 0x80 | 3);
        put(0x1000 + 12, 0x40_0000 | 0x12 << 13 | 0x80 | 7);
        put(0x2000, 0x8000 | 7);
        put(0x2004, 0x5000 | 7);
        put(0x2008, 0x9000 | 1);
        let (_, paging) = paged();
        (memory, Paging { cr4: CR4_PSE, efer: 0, ..paging })
    }

    /// PAE with its top level at 0xfe0, which is 32-byte aligned only: the four-level tables' lower two levels
    /// at 0 GiB, and at 3 GiB again through an entry whose accessed bit is set.
    fn pae() -> (GuestMemory, Paging) {
        let (memory, paging) = paged();
        memory.write(GuestPhys(0xfe0), &(0x3000u64 | 1).to_le_bytes()).unwrap();
        memory.write(GuestPhys(0xff8), &(0x3000u64 | 1 << 5 | 1).to_le_bytes()).unwrap();
        (memory, Paging { efer: 0, cr3: 0xfe0 | 8, ..paging })
    }

    #[test]
    fn two_level_tables_translate_with_their_large_pages() {
        let (memory, paging) = two_levels();
        let at = |linear| paging.translate(&memory, linear, Access::Write);
        assert_eq!(at(0x40_0123), Ok(GuestPhys(0x8123)));
        assert_eq!(at(0x40_1fff), Ok(GuestPhys(0x5fff)));
        assert_eq!(at(0x1_0040_0123), Ok(GuestPhys(0x8123)), "linear addresses have 32 bits");
        assert_eq!(at(0x83_4567), Ok(GuestPhys(0x3_4567)));
        assert_eq!(at(0xc3_4567), Ok(GuestPhys(0x12_0043_4567)));
        assert_eq!(at(0x40_2000), Err(Fault { address: 0x40_2000, code: 3 }));
        assert_eq!(at(0x40_3000), Err(Fault { address: 0x40_3000, code: 2 }));
        assert_eq!(at(0), Err(Fault { address: 0, code: 2 }));
        assert!(paging.translate(&memory, 0x40_2000, Access::Read).is_ok());
        let user = Paging { is_user: true, ..paging };
        assert_eq!(user.translate(&memory, 0x80_0000, Access::Read).map_err(|f| f.code), Err(5));
        // Without PSE the bit means nothing: the entry points to a table, at 0.
        let no_pse = Paging { cr4: 0, ..paging };
        memory.write(GuestPhys(0x34 * 4), &(0x7000u32 | 3).to_le_bytes()).unwrap();
        assert_eq!(no_pse.translate(&memory, 0x83_4567, Access::Write), Ok(GuestPhys(0x7567)));
    }

    #[test]
    fn pae_tables_translate_below_any_of_the_four_entries() {
        let (memory, paging) = pae();
        for base in [0u64, 0xc000_0000] {
            let at = |linear| paging.translate(&memory, base + linear, Access::Write);
            assert_eq!(at(0x40_0123), Ok(GuestPhys(0x8123)));
            assert_eq!(at(0x60_5432), Ok(GuestPhys(0x5432)));
            assert_eq!(at(0x40_1000).map_err(|fault| fault.code), Err(3));
        }
        assert_eq!(paging.translate(&memory, 0x4040_0123, Access::Read).map_err(|f| f.code), Err(0));
    }

    #[test]
    fn buffers_cross_pages_that_lie_apart() {
        let (memory, paging) = two_levels();
        let bytes: [u8; 16] = core::array::from_fn(|n| n as u8 + 1);
        paging.write(&memory, 0x40_0ff8, &bytes).unwrap();
        let mut halves = [[0; 8]; 2];
        memory.read(GuestPhys(0x8ff8), &mut halves[0]).unwrap();
        memory.read(GuestPhys(0x5000), &mut halves[1]).unwrap();
        assert_eq!(halves.as_flattened(), bytes);
        assert_eq!(paging.read_array(&memory, 0x40_0ff8), Ok(bytes));
        assert_eq!(paging.read_array::<8>(&memory, 0x40_2ffc).map_err(|f| f.address), Err(0x40_3000));
        // Without paging the last byte of the address space is followed by the first.
        let flat = Paging { cr0: 1, ..paging };
        assert!(flat.read_array::<4>(&memory, 0xffff_fffe).is_err());
        assert_eq!(flat.translate(&memory, 0x1_0000_0000, Access::Read), Ok(GuestPhys(0)));
    }

    #[test]
    fn smap_keeps_the_supervisor_out_of_user_pages_unless_it_says_otherwise() {
        for (memory, paging) in [paged(), two_levels(), pae()] {
            let smap = Paging { cr4: paging.cr4 | CR4_SMAP, ..paging };
            let at = |paging: Paging, access| paging.translate(&memory, 0x40_0000, access);
            assert_eq!(at(smap, Access::Read).map_err(|fault| fault.code), Err(1));
            assert!(at(smap, Access::Fetch).is_ok());
            assert!(at(Paging { is_user: true, ..smap }, Access::Read).is_ok());
            assert!(at(Paging { rflags: RFLAGS_AC, ..smap }, Access::Read).is_ok());
        }
    }

    /// A 32-bit walk written another way: one loop over (shift, bits, entry size) with the large-page rules as
    /// data. Present and reachable tables are the tests' only concern.
    fn reference(memory: &GuestMemory, cr3: u64, is_pae: bool, linear: u64) -> Option<u64> {
        let byte = |at: u64| {
            let mut byte = [0];
            memory.read(GuestPhys(at), &mut byte).ok().map(|()| u64::from(byte[0]))
        };
        let levels: &[(u32, u64, u64)] =
            if is_pae { &[(30, 4, 8), (21, 512, 8), (12, 512, 8)] } else { &[(22, 1024, 4), (12, 1024, 4)] };
        let mut table = if is_pae { cr3 & 0xffff_ffe0 } else { cr3 & 0xffff_f000 };
        for (n, &(shift, count, size)) in levels.iter().enumerate() {
            let at = table + (linear >> shift) % count * size;
            let entry = (0..size).try_fold(0, |sum, n| Some(sum | byte(at + n)? << (8 * n)))?;
            if entry % 2 == 0 {
                return None;
            }
            let may_be_large = n + 2 == levels.len();
            if n + 1 == levels.len() || may_be_large && entry & 0x80 != 0 {
                let frame = entry >> shift << shift & ADDRESS;
                let pse36 = if may_be_large && !is_pae { (entry & 0x1f_e000) << 19 } else { 0 };
                return Some(frame | pse36 | linear & ((1 << shift) - 1));
            }
            table = entry & ADDRESS & if is_pae { u64::MAX } else { 0xffff_ffff };
        }
        None
    }

    proptest! {
        #[test]
        fn legacy_walks_find_what_another_walk_finds(
            entries in prop::collection::vec((0u64..0x2000, any::<u64>()), 100..400),
            cr3 in 0u64..0x1_0000, linears in prop::collection::vec(any::<u32>(), 1..50), is_pae: bool
        ) {
            let memory = fake(16);
            for (index, entry) in entries {
                let entry = match index % 4 {
                    0 => entry,
                    // Pairs of present 32-bit entries, or a 64-bit one, that point back into the small RAM.
                    1 => entry & 0xf0ff_0000_f0ff | 0x7_0000_0007,
                    _ => entry & 0xf0ff | 7,
                };
                memory.write(GuestPhys(index * 8), &entry.to_le_bytes()).unwrap();
            }
            let cr4 = if is_pae { CR4_PAE } else { CR4_PSE };
            let (_, paging) = paged();
            let paging = Paging { cr0: CR0_PG | 1, cr3, cr4, efer: 0, ..paging };
            for linear in linears {
                // Often with small indices, where most tables are.
                let linear = u64::from(if linear % 2 == 0 { linear } else { linear & 0x01c3_ffff });
                let found = paging.translate(&memory, linear, Access::Read).ok().map(|gpa| gpa.0);
                prop_assert_eq!(found, reference(&memory, cr3, is_pae, linear));
            }
        }

        #[test]
        fn random_tables_end_in_an_address_or_a_fault(
            entries in prop::collection::vec((0usize..0x2000, any::<u64>()), 0..200),
            cr3: u64, linear: u64, low in 0u64..0x4000_0000, is_user: bool, is_write: bool,
            cr0: u64, cr4: u64, efer: u64
        ) {
            let (memory, paging) = paged();
            for (index, entry) in entries {
                // Mostly entries that point back into the small RAM, so that walks go deep.
                let entry = if index % 3 == 0 { entry } else { entry & 0xffff };
                memory.write(GuestPhys(index as u64 * 8), &entry.to_le_bytes()).unwrap();
            }
            let access = if is_write { Access::Write } else { Access::Read };
            let paging = Paging { is_user, cr3: if cr3 & 1 == 0 { cr3 } else { cr3 & 0xf000 }, ..paging };
            for paging in [paging, Paging { cr0: cr0 | CR0_PG, cr4, efer, ..paging }] {
                for linear in [linear, low] {
                    let _ = paging.translate(&memory, linear, access);
                    let mut out = [0; 64];
                    let _ = paging.read(&memory, linear, &mut out);
                }
            }
        }
    }
}
