//! Pages that come and go: the guest's RAM out of the VM and back into it.
//!
//! [`GuestMemory`](crate::memory::GuestMemory) says what is absent; the VM's tables follow as far as the platform
//! can. Mapping RAM maps a whole region, so what is absent or hidden in that region is made so again.

use alloc::vec::Vec;
use core::ops::Range;

use crate::errno::Errno;
use crate::machine::{Machine, MapFailed, Platform};
use crate::memory::{Gfn, SPECIALS};

impl<P: Platform> Machine<P> {
    /// Makes RAM absent: what was in it is gone. Whether there was any.
    pub fn give_away(&mut self, gfn: Gfn) -> bool {
        let memory = &mut self.guest.memory;
        let is_there = memory.is_ram(gfn) && !memory.is_absent(gfn);
        if is_there {
            memory.give_away(gfn);
            self.platform.unmap_ram(gfn, 1);
        }
        is_there
    }

    /// Puts zeroed RAM at each of `gfns`, in place of what is there. All of them once were RAM, and
    /// there are fewer than 2^16. A page that was
    /// there still counts as the guest's: with Xen it is another frame, and lost.
    ///
    /// # Errors
    /// How many are there now; the others are absent.
    pub fn take_back(&mut self, gfns: &[Gfn]) -> Result<(), usize> {
        let mut stale = Vec::new();
        let mut done = gfns.len();
        for (n, &gfn) in gfns.iter().enumerate() {
            let was_absent = self.guest.memory.is_absent(gfn);
            if self.remove_special_at(gfn).is_err() || self.guest.memory.take_back(gfn).is_err() {
                done = n;
                break;
            }
            if was_absent {
                stale.push(n as u16);
            } else {
                self.guest.memory.reservation_mut().lose(1);
            }
        }
        let mut fresh: Vec<Range<u64>> = Vec::new();
        for n in stale.into_iter().map(usize::from) {
            let Some(&gfn) = gfns.get(n) else { continue };
            if n > done {
                self.guest.memory.give_away(gfn);
            } else if fresh.iter().all(|region| !region.contains(&gfn.0)) {
                match self.platform.map_ram(gfn) {
                    Ok(region) => {
                        self.hide(region.clone());
                        fresh.push(region);
                    }
                    Err(MapFailed) => {
                        self.guest.memory.give_away(gfn);
                        done = n;
                    }
                }
            }
        }
        if done == gfns.len() { Ok(()) } else { Err(done) }
    }

    /// Takes whatever special frame is at `gfn` out of the guest's address space.
    ///
    /// # Errors
    /// [`Errno::NoMemory`].
    pub fn remove_special_at(&mut self, gfn: Gfn) -> Result<(), Errno> {
        self.guest.memory.special_at(gfn).map_or(Ok(()), |index| self.remove_special(index))
    }

    /// Makes the processor forget all translations of this VM: the kernel sees to that when a mapping changes.
    pub fn flush_tlbs(&mut self) {
        let mut mapped = (0..SPECIALS).filter_map(|index| Some((index, self.guest.memory.where_is(index)?)));
        if let Some((index, gfn)) = mapped.next() {
            let _ = self.platform.unmap_special(index);
            let _ = self.platform.map_special(index, gfn);
        }
    }

    /// Takes out of the VM what must not be seen in a region that was just mapped.
    fn hide(&mut self, region: Range<u64>) {
        let memory = &self.guest.memory;
        let mut start = None;
        for at in region.clone() {
            let gfn = Gfn(at);
            let is_absent = memory.is_ram(gfn) && memory.is_absent(gfn);
            match start {
                None if is_absent => start = Some(at),
                Some(first) if !is_absent => {
                    self.platform.unmap_ram(Gfn(first), at - first);
                    start = None;
                }
                _ => {}
            }
        }
        if let Some(first) = start {
            self.platform.unmap_ram(Gfn(first), region.end - first);
        }
        for index in 0..SPECIALS {
            let Some(gfn) = memory.where_is(index).filter(|gfn| region.contains(&gfn.0)) else { continue };
            // It was mapped there before, so nothing can be missing.
            let _ = self.platform.unmap_special(index);
            let _ = self.platform.map_special(index, gfn);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::machine;

    #[test]
    fn what_comes_back_leaves_its_neighbours_as_they_are() {
        let (mut machine, _) = machine();
        for gfn in [2, 3, 9] {
            assert!(machine.give_away(Gfn(gfn)));
        }
        assert!(!machine.give_away(Gfn(3)) && !machine.give_away(Gfn(999)));
        machine.place_special(0, Gfn(5)).unwrap();
        assert_eq!(machine.take_back(&[Gfn(3)]), Ok(()));
        assert_eq!(machine.platform.unmapped, [2, 5, 9]);
        assert_eq!(machine.platform.mapped, [(0, Gfn(5))]);
        assert_eq!(machine.guest.memory.reservation().current(), 61);
        assert_eq!(machine.take_back(&[Gfn(2), Gfn(5)]), Ok(()), "special frames give way");
        assert_eq!((machine.platform.mapped.len(), &machine.platform.unmapped[..]), (0, &[9][..]));
        assert_eq!(machine.take_back(&[Gfn(9), Gfn(999)]), Err(1));
    }
}
