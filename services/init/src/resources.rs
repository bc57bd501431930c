//! What init itself holds: its capability table, free memory, its own address space.
//!
//! Memory is zeroed here before anybody gets it: piece by piece through two windows of init's address
//! space, one for whole 2 MiB pieces and one for the rest, so that the number of page tables that the
//! windows take is fixed.

use alloc::collections::BTreeSet;
use alloc::format;

use proto::abi::{PAGE_SIZE, Slot, init_slots, map, rights};
use proto::boot::{ARENA_BASE, INFO_BASE, INIT_SLOTS};
use proto::counters::COUNTERS_BASE;

use crate::domain::Arena;
use crate::error::{BuildError, Step};
use crate::frames::{FreeFrames, Run, TakeError};
use crate::kernel::Kernel;
use crate::slots::Slots;
use crate::space::Space;

/// Window for 2 MiB pieces; beyond anything else in init's address space.
const WINDOW_LARGE: u64 = 0x200_0000_0000;
/// Window for smaller pieces.
const WINDOW_SMALL: u64 = WINDOW_LARGE + 0x4000_0000;
/// Frames of a large piece.
const LARGE: u64 = 512;
/// Large pieces that are kept full of zeros, so that a guest of up to 256 MiB need not wait for it.
const AHEAD: u64 = 128;

/// What init holds.
#[derive(Debug)]
pub struct Resources<K> {
    /// The system calls.
    pub kernel: K,
    /// Free slots of init's table.
    pub slots: Slots,
    /// Free memory.
    pub free: FreeFrames,
    /// Init's own address space.
    pub own: Space,
    /// Free addresses in it.
    pub arena: Arena,
    /// Large pieces that are full of zeros, by number. None of them was written since: giving memory back takes
    /// it out, and so does filling it, which is what comes before anybody gets it.
    clean: BTreeSet<u64>,
}

impl<K: Kernel> Resources<K> {
    /// Init's holdings: slots from `first_slot` on are free, and no memory is known yet.
    pub fn new(kernel: K, first_slot: Slot) -> Self {
        Self {
            kernel,
            slots: Slots::new(first_slot, INIT_SLOTS as Slot),
            free: FreeFrames::new(),
            own: Space::new(init_slots::DOMAIN),
            arena: Arena::new(ARENA_BASE),
            clean: BTreeSet::new(),
        }
    }

    /// A free slot of init's table.
    ///
    /// # Errors
    /// [`BuildError::Slots`].
    pub fn slot(&mut self) -> Result<Slot, BuildError> {
        self.slots.take().ok_or(BuildError::Slots("init"))
    }

    /// Takes memory of undefined content.
    ///
    /// # Errors
    /// [`BuildError::Memory`], [`BuildError::Slots`].
    pub fn take(&mut self, count: u64, align: u64) -> Result<Run, BuildError> {
        self.free.take(&mut self.kernel, &mut self.slots, count, align).map_err(|error| match error {
            TakeError::Memory => BuildError::Memory { wanted: count, free: self.free.free() },
            TakeError::Slots => BuildError::Slots("init"),
            TakeError::Kernel(error) => BuildError::Kernel("split memory", error),
        })
    }

    /// Gives memory back that is idle: neither mapped nor shared nor donated.
    pub fn give(&mut self, run: Run) {
        let pieces = run.first / LARGE..(run.first + run.count).div_ceil(LARGE);
        while let Some(&piece) = self.clean.range(pieces.clone()).next() {
            self.clean.remove(&piece);
        }
        self.free.give(&mut self.kernel, &mut self.slots, run);
    }

    /// Takes memory away from everybody who was given a part of it, and gives it back.
    pub fn release(&mut self, run: Run) {
        let revoked = self.kernel.cap_revoke(run.slot);
        // Not mapped any more when its space is gone.
        let _unmapped = self.kernel.cap_unmap(run.slot);
        if let Err(error) = revoked {
            // Without a revocation the memory is still shared: it is lost rather than handed out again.
            log::error!("{} KiB of memory are lost: revocation failed with {error:?}", run.count * 4);
            return;
        }
        self.give(run);
    }

    /// Derives a capability into init's own table.
    ///
    /// # Errors
    /// [`BuildError::Slots`], or the kernel's.
    pub fn derive(&mut self, src: Slot, offset: u64, count: u64, rights: u64) -> Result<Slot, BuildError> {
        let dst = self.slot()?;
        match self.kernel.cap_derive(src, 0, dst, offset, count, rights) {
            Ok(()) => Ok(dst),
            Err(error) => {
                self.slots.give(dst);
                Err(BuildError::Kernel("derive a capability", error))
            }
        }
    }

    /// Deletes a capability of init's own table, if it is still there, and frees the slot.
    pub fn delete(&mut self, slot: Slot) {
        // Gone already when what it was derived from was revoked.
        let _gone = self.kernel.cap_delete(0, slot);
        self.slots.give(slot);
    }

    /// Donates `count` frames to a space for page tables.
    ///
    /// # Errors
    /// No memory, or the kernel's.
    pub fn donate(&mut self, space: &mut Space, count: u64) -> Result<(), BuildError> {
        if count == 0 {
            return Ok(());
        }
        let run = self.take(count, 1)?;
        if let Err(error) = self.kernel.space_donate(space.slot, run.slot) {
            self.give(run);
            return Err(BuildError::Kernel("donate page tables", error));
        }
        space.donated.push(run);
        Ok(())
    }

    /// Maps a capability of `count` frames from `first` into a space, with the page tables that it takes.
    ///
    /// # Errors
    /// No memory for page tables, or the kernel's.
    pub fn map(
        &mut self,
        space: &mut Space,
        cap: Slot,
        (first, count): (u64, u64),
        address: u64,
        flags: u64,
    ) -> Result<(), BuildError> {
        let tables = space.tables.map(address, first, count);
        self.donate(space, tables)?;
        self.kernel.cap_map(cap, space.slot, address, flags).step("map memory")
    }

    /// Maps a capability into init itself.
    ///
    /// # Errors
    /// As [`Self::map`].
    pub fn map_own(
        &mut self,
        cap: Slot,
        range: (u64, u64),
        address: u64,
        flags: u64,
    ) -> Result<(), BuildError> {
        let mut own = core::mem::replace(&mut self.own, Space::new(0));
        let result = self.map(&mut own, cap, range, address, flags);
        self.own = own;
        result
    }

    /// Makes init's own page of counters; before it opens a channel.
    ///
    /// # Errors
    /// No memory, no slot, or the kernel's.
    pub fn map_own_counters(&mut self) -> Result<Run, BuildError> {
        // The kernel made the tables there, for the start information beside it.
        let _made_by_the_kernel = self.own.tables.map(INFO_BASE, 1, 1);
        let run = self.take_filled(1, 1, &[])?;
        self.map_own(run.slot, (run.first, 1), COUNTERS_BASE, map::READ | map::WRITE)?;
        Ok(run)
    }

    /// Fills a run that nobody has yet with zeros, and with `pieces` (offset in bytes, content).
    ///
    /// # Errors
    /// No memory for page tables, no slot, or the kernel's.
    pub fn fill(&mut self, run: &Run, pieces: &[(u64, &[u8])]) -> Result<(), BuildError> {
        let mut done = 0;
        while done < run.count {
            let first = run.first + done;
            let is_large = first.is_multiple_of(LARGE) && run.count - done >= LARGE;
            let count = if is_large { LARGE } else { (LARGE - first % LARGE).min(run.count - done) };
            let here = |(offset, bytes): &(u64, &[u8])| {
                !overlap(done * PAGE_SIZE, count * PAGE_SIZE, *offset, bytes).1.is_empty()
            };
            let is_clean = is_large && self.clean.remove(&(first / LARGE));
            if is_clean && !pieces.iter().any(here) {
                done += count;
                continue;
            }
            let window = if is_large { WINDOW_LARGE } else { WINDOW_SMALL };
            let cap = self.derive(run.slot, done, count, rights::READ | rights::WRITE)?;
            let mapped = self.map_own(cap, (first, count), window, map::READ | map::WRITE);
            if mapped.is_ok() {
                if !is_clean {
                    self.kernel.zero(window, count * PAGE_SIZE);
                }
                for (offset, bytes) in pieces {
                    let (at, part) = overlap(done * PAGE_SIZE, count * PAGE_SIZE, *offset, bytes);
                    self.kernel.copy(window + at, part);
                }
            }
            self.delete(cap);
            mapped?;
            done += count;
        }
        Ok(())
    }

    /// Fills free memory with zeros for the next guest, where its RAM will be taken from; half of what is free at
    /// most. Done at the start and after each guest that ended, when nobody waits for init.
    ///
    /// # Errors
    /// As [`Self::fill`].
    pub fn zero_ahead(&mut self) -> Result<(), BuildError> {
        let longest = self.free.longest().saturating_sub(LARGE - 1) / LARGE;
        let count = AHEAD.min(self.free.free() / 2 / LARGE).min(longest);
        if count == 0 {
            return Ok(());
        }
        let run = self.take_filled(count * LARGE, LARGE, &[])?;
        let pieces = run.first / LARGE..run.first / LARGE + count;
        self.give(run);
        self.clean.extend(pieces);
        Ok(())
    }

    /// Takes memory and fills it as [`Self::fill`].
    ///
    /// # Errors
    /// As [`Self::take`] and [`Self::fill`].
    pub fn take_filled(
        &mut self,
        count: u64,
        align: u64,
        pieces: &[(u64, &[u8])],
    ) -> Result<Run, BuildError> {
        let run = self.take(count, align)?;
        match self.fill(&run, pieces) {
            Ok(()) => Ok(run),
            Err(error) => {
                self.give(run);
                Err(error)
            }
        }
    }

    /// Enables a port range in init itself, for ever.
    ///
    /// # Errors
    /// As [`Self::derive`], or the kernel's.
    pub fn enable_ports(&mut self, first: u16, count: u16) -> Result<(), BuildError> {
        let cap = self.derive(
            init_slots::IO_PORTS,
            u64::from(first),
            u64::from(count),
            rights::READ | rights::WRITE,
        )?;
        self.kernel
            .cap_map(cap, 0, 0, map::READ | map::WRITE)
            .map_err(|error| BuildError::Request(format!("the kernel refused ports {first:#x}: {error:?}")))
    }
}

/// The part of `bytes`, which begin at `offset`, that lies in the `len` bytes from `start`: where it goes,
/// counted from `start`, and what it is.
fn overlap(start: u64, len: u64, offset: u64, bytes: &[u8]) -> (u64, &[u8]) {
    let (from, to) = (offset.max(start), (offset + bytes.len() as u64).min(start + len));
    if from >= to {
        return (0, &[]);
    }
    (from - start, bytes.get((from - offset) as usize..(to - offset) as usize).unwrap_or(&[]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_cut_to_what_overlaps() {
        assert_eq!(overlap(10, 4, 8, &[1, 2, 3]), (0, &[3][..]));
        assert_eq!(overlap(10, 4, 13, &[7, 8, 9]), (3, &[7][..]));
        assert_eq!(overlap(10, 4, 11, &[7, 8]), (1, &[7, 8][..]));
        assert_eq!(overlap(10, 4, 20, &[5]), (0, &[][..]));
        assert_eq!(overlap(10, 4, 0, &[5; 10]), (0, &[][..]));
    }
}
