//! Free memory: owned runs of frames, joined with their neighbours, found by best fit.
//!
//! Runs are kept by address and by size; taking and giving back cost the logarithm of the number of free
//! runs and at most two splits or joins in the kernel, whatever the number of domains. Large aligned runs
//! are cut from the upper end of the run that fits best, small ones from the lower end of the smallest:
//! so kernel objects and page tables do not break up the space for guests' RAM.
//!
//! Invariant: every run here is owned, unmapped, childless and in exactly one slot of init's table.

use alloc::collections::{BTreeMap, BTreeSet};

use proto::abi::{Error, Slot};

use crate::kernel::Kernel;
use crate::slots::Slots;

/// An owned run. Not to be copied: it names its memory once.
#[derive(Debug, PartialEq, Eq)]
pub struct Run {
    /// Its capability in init's table.
    pub slot: Slot,
    /// First frame number.
    pub first: u64,
    /// Frames.
    pub count: u64,
}

/// Why no run was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TakeError {
    /// No free run is large enough.
    Memory,
    /// Init's capability table is full.
    Slots,
    /// The kernel refused to split a run.
    Kernel(Error),
}

/// Runs that are looked at, beyond the smallest that is long enough, for one in which alignment happens
/// to work out; after that only such as fit in any case.
const TRIES: usize = 8;
/// From this alignment on (2 MiB) a run is cut from the upper end.
const LARGE: u64 = 512;

/// The free runs.
#[derive(Debug, Default)]
pub struct FreeFrames {
    by_address: BTreeMap<u64, (u64, Slot)>,
    by_size: BTreeSet<(u64, u64)>,
    free: u64,
}

impl FreeFrames {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// Frames that are free altogether.
    pub fn free(&self) -> u64 {
        self.free
    }

    /// Frames of the longest free run.
    pub fn longest(&self) -> u64 {
        self.by_size.last().map_or(0, |&(count, _)| count)
    }

    fn insert(&mut self, run: &Run) {
        self.by_address.insert(run.first, (run.count, run.slot));
        self.by_size.insert((run.count, run.first));
        self.free += run.count;
    }

    fn remove(&mut self, first: u64) -> Option<Run> {
        let (count, slot) = self.by_address.remove(&first)?;
        self.by_size.remove(&(count, first));
        self.free -= count;
        Some(Run { slot, first, count })
    }

    /// Where `count` frames aligned to `align` frames begin in the run, if they fit.
    fn place(first: u64, len: u64, count: u64, align: u64) -> Option<u64> {
        let start = if align >= LARGE {
            // The last aligned frame from which `count` frames remain.
            let last = (first + len).checked_sub(count)?;
            last - last % align
        } else {
            first.next_multiple_of(align)
        };
        (start >= first && start + count <= first + len).then_some(start)
    }

    fn find(&self, count: u64, align: u64) -> Option<(u64, u64)> {
        let fit = |&(len, first): &(u64, u64)| Some((first, Self::place(first, len, count, align)?));
        let near = self.by_size.range((count, 0)..).take(TRIES).find_map(fit);
        near.or_else(|| self.by_size.range((count.checked_add(align - 1)?, 0)..).next().and_then(fit))
    }

    /// Takes `count` frames whose first number is a multiple of `align` (a power of two).
    ///
    /// # Errors
    /// [`TakeError`]; nothing is changed then.
    pub fn take<K: Kernel>(
        &mut self,
        kernel: &mut K,
        slots: &mut Slots,
        count: u64,
        align: u64,
    ) -> Result<Run, TakeError> {
        if count == 0 {
            return Err(TakeError::Memory);
        }
        let (first, start) = self.find(count, align.max(1)).ok_or(TakeError::Memory)?;
        let Some(run) = self.remove(first) else { return Err(TakeError::Memory) };
        let (front, rest) = match self.cut(kernel, slots, run, start - first) {
            Ok(cut) => cut,
            Err((run, error)) => {
                self.insert(&run);
                return Err(error);
            }
        };
        // `front` is what lies before the wanted run; nothing when the cut was at 0.
        match self.cut(kernel, slots, rest, count) {
            Ok((Some(taken), back)) => {
                if let Some(front) = front {
                    self.insert(&front);
                }
                if back.count > 0 {
                    self.insert(&back);
                }
                Ok(taken)
            }
            Ok((None, run)) | Err((run, TakeError::Memory)) => {
                self.undo(kernel, slots, front, run);
                Err(TakeError::Memory)
            }
            Err((run, error)) => {
                self.undo(kernel, slots, front, run);
                Err(error)
            }
        }
    }

    fn undo<K: Kernel>(&mut self, kernel: &mut K, slots: &mut Slots, front: Option<Run>, run: Run) {
        if let Some(front) = front {
            self.insert(&front);
        }
        self.give(kernel, slots, run);
    }

    /// Cuts a run at `at`: the part before (none when `at` is 0) and the part from there on (possibly of
    /// no frames when `at` is the run's end, and then without a slot of its own).
    fn cut<K: Kernel>(
        &mut self,
        kernel: &mut K,
        slots: &mut Slots,
        run: Run,
        at: u64,
    ) -> Result<(Option<Run>, Run), (Run, TakeError)> {
        if at == 0 {
            return Ok((None, run));
        }
        if at >= run.count {
            let end = run.first + run.count;
            return Ok((Some(run), Run { slot: 0, first: end, count: 0 }));
        }
        let Some(slot) = slots.take() else { return Err((run, TakeError::Slots)) };
        if let Err(error) = kernel.frames_split(run.slot, at, slot) {
            slots.give(slot);
            return Err((run, TakeError::Kernel(error)));
        }
        let rest = Run { slot, first: run.first + at, count: run.count - at };
        Ok((Some(Run { count: at, ..run }), rest))
    }

    /// Gives a run back and joins it with its free neighbours.
    pub fn give<K: Kernel>(&mut self, kernel: &mut K, slots: &mut Slots, mut run: Run) {
        let before = self.by_address.range(..run.first).next_back();
        if let Some((&first, &(count, slot))) = before
            && first + count == run.first
            // Runs of different kinds do not join: they stay two.
            && kernel.frames_merge(slot, run.slot).is_ok()
        {
            self.remove(first);
            slots.give(run.slot);
            run = Run { slot, first, count: count + run.count };
        }
        let end = run.first + run.count;
        if let Some(&(count, slot)) = self.by_address.get(&end)
            && kernel.frames_merge(run.slot, slot).is_ok()
        {
            self.remove(end);
            slots.give(slot);
            run.count += count;
        }
        self.insert(&run);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeKernel;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn memory(runs: &[(u64, u64)]) -> (FakeKernel, Slots, FreeFrames) {
        let mut kernel = FakeKernel::new();
        let mut slots = Slots::new(100, 4000);
        let mut free = FreeFrames::new();
        for &(first, count) in runs {
            let slot = slots.take().unwrap();
            kernel.give_run(slot, first, count, false);
            free.give(&mut kernel, &mut slots, Run { slot, first, count });
        }
        (kernel, slots, free)
    }

    #[test]
    fn everything_given_back_is_one_run_again() {
        let (mut kernel, mut slots, mut free) = memory(&[(100, 5000)]);
        let a = free.take(&mut kernel, &mut slots, 1, 1).unwrap();
        let b = free.take(&mut kernel, &mut slots, 1024, 512).unwrap();
        let c = free.take(&mut kernel, &mut slots, 7, 1).unwrap();
        assert!(b.first.is_multiple_of(512));
        assert_eq!(free.free(), 5000 - 1032);
        for run in [b, a, c] {
            free.give(&mut kernel, &mut slots, run);
        }
        assert_eq!((free.free(), free.longest(), slots.used(100)), (5000, 5000, 1));
    }

    #[test]
    fn a_full_capability_table_changes_nothing() {
        let (mut kernel, _, mut free) = memory(&[(100, 5000)]);
        let mut slots = Slots::new(0, 0);
        assert_eq!(free.take(&mut kernel, &mut slots, 512, 512), Err(TakeError::Slots));
        let mut slots = Slots::new(3000, 3001);
        assert_eq!(free.take(&mut kernel, &mut slots, 512, 512), Err(TakeError::Slots));
        assert_eq!((free.free(), free.longest()), (5000, 5000));
    }

    #[test]
    fn too_much_is_refused() {
        let (mut kernel, mut slots, mut free) = memory(&[(100, 50), (200, 60)]);
        assert_eq!(free.take(&mut kernel, &mut slots, 61, 1), Err(TakeError::Memory));
        assert_eq!(free.take(&mut kernel, &mut slots, u64::MAX, 512), Err(TakeError::Memory));
        assert_eq!(free.take(&mut kernel, &mut slots, 0, 1), Err(TakeError::Memory));
        assert_eq!(free.take(&mut kernel, &mut slots, 60, 1).unwrap().first, 200);
    }

    proptest! {
        #[test]
        fn runs_never_overlap_and_no_frame_is_lost(
            steps in prop::collection::vec((any::<bool>(), 1u64..700, 0u32..10, any::<prop::sample::Index>()), 1..60)
        ) {
            let runs = [(3, 157), (256, 4001), (9000, 1500)];
            let total: u64 = runs.iter().map(|run| run.1).sum();
            let (mut kernel, mut slots, mut free) = memory(&runs);
            let mut taken: Vec<Run> = Vec::new();
            for (is_take, count, align, which) in steps {
                if is_take {
                    if let Ok(run) = free.take(&mut kernel, &mut slots, count, 1 << align) {
                        prop_assert_eq!(run.count, count);
                        prop_assert_eq!(run.first % (1 << align), 0);
                        prop_assert!(runs.iter().any(|r| run.first >= r.0 && run.first + count <= r.0 + r.1));
                        for other in &taken {
                            prop_assert!(run.first + count <= other.first || other.first + other.count <= run.first);
                        }
                        prop_assert_eq!(kernel.run(run.slot), Some((run.first, count)));
                        taken.push(run);
                    }
                } else if !taken.is_empty() {
                    let run = taken.swap_remove(which.index(taken.len()));
                    free.give(&mut kernel, &mut slots, run);
                }
                prop_assert_eq!(free.free() + taken.iter().map(|run| run.count).sum::<u64>(), total);
            }
            for run in taken.drain(..) {
                free.give(&mut kernel, &mut slots, run);
            }
            prop_assert_eq!(free.by_address.len(), 3);
            prop_assert_eq!(free.free(), total);
            prop_assert_eq!(slots.used(100), 3);
        }
    }
}
