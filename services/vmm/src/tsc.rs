//! The time stamp counter where a guest sets it: what its vCPUs read is the machine's and an offset of their own.
//!
//! A guest's clock goes on all the same, since its parameters are told in the TSC that the vCPU reads; they are told
//! again after each write. The flag that says "the same on all vCPUs" is taken back while offsets differ. A vCPU that
//! starts has the first one's TSC. TSC_ADJUST is not offered.
//! Sources: Xen's hvm_set_guest_tsc, hvm_vcpu_reset_state (arch/x86/hvm/hvm.c), __update_vcpu_system_time
//! (arch/x86/time.c); Intel SDM vol. 3, 10.5.4.1 for a deadline, which is a value of that TSC.

use proto::abi::{VcpuState, groups};

use crate::clock::Tsc;
use crate::machine::{Machine, Platform, Vcpu};
use crate::walk::Paging;

impl<P: Platform> Machine<P> {
    /// WRMSR of the TSC.
    pub(crate) fn write_tsc(&mut self, vcpu: &mut Vcpu, state: &mut VcpuState, value: u64) {
        let offset = value.wrapping_sub(self.platform.tsc());
        match vcpu.apic.deadline() {
            0 => {}
            deadline => {
                let in_guest = deadline.wrapping_add(vcpu.tsc_offset);
                vcpu.apic.set_deadline(in_guest.wrapping_sub(offset).max(1));
            }
        }
        self.set_tsc_offset(vcpu, state, offset);
    }

    /// The vCPU starts: its TSC is the first one's.
    pub fn start_tsc(&mut self, vcpu: &mut Vcpu, state: &mut VcpuState) {
        let first = self.vcpu_mut(vcpu, 0).map_or(0, |first| first.tsc_offset);
        self.set_tsc_offset(vcpu, state, first);
    }

    fn set_tsc_offset(&mut self, vcpu: &mut Vcpu, state: &mut VcpuState, offset: u64) {
        state.tsc_offset = offset;
        state.load |= groups::TSC;
        if vcpu.tsc_offset == offset {
            return;
        }
        vcpu.tsc_offset = offset;
        let is_stable = self.has_one_tsc(vcpu);
        // The others' flag may be another one now.
        for vcpu in self.parked.iter_mut().chain(core::iter::once(vcpu)) {
            vcpu.has_new_time = vcpu.time_area.is_some();
            if let Some((page, offset)) = self.guest.events.time_info(vcpu.id as usize) {
                self.guest.clock.write_time(&page, offset, Tsc { offset: vcpu.tsc_offset, is_stable });
            }
        }
    }

    /// Whether all vCPUs read the same.
    fn has_one_tsc(&self, running: &Vcpu) -> bool {
        self.parked.iter().all(|vcpu| vcpu.tsc_offset == running.tsc_offset)
    }

    /// The TSC as a vCPU reads it.
    pub(crate) fn tsc_of(&mut self, running: &mut Vcpu, id: u32) -> Tsc {
        let is_stable = self.has_one_tsc(running);
        Tsc { offset: self.vcpu_mut(running, id).map_or(0, |vcpu| vcpu.tsc_offset), is_stable }
    }

    /// Tells the clock's parameters again in the area that the vCPU registered besides its vcpu_info.
    #[cold]
    pub(crate) fn publish_time(&mut self, vcpu: &mut Vcpu, paging: &Paging) {
        vcpu.has_new_time = false;
        let Some(area) = vcpu.time_area else { return };
        let tsc = Tsc { offset: vcpu.tsc_offset, is_stable: self.has_one_tsc(vcpu) };
        let Some((page, offset)) = self.guest.events.time_info(vcpu.id as usize) else { return };
        let info = self.guest.clock.time_info(page.u32(offset), tsc);
        // That it cannot be written is the guest's own matter.
        let _ = paging.write(&self.guest.memory, area, &info);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::blank;
    use crate::machine::Start;
    use crate::memory::Page;
    use crate::testing::{FakePlatform, machine_of};

    const TSC: u32 = 0x10;

    /// System time by the guest's formula, from a vcpu_time_info, and its flags.
    fn read(machine: &Machine<FakePlatform>, page: &Page, at: usize, offset: u64) -> (u64, u8) {
        let tsc = machine.platform.tsc().wrapping_add(offset);
        let delta = tsc.wrapping_sub(page.u64(at + 8));
        let (mul, shift) = (page.u32(at + 24), page.u8(at + 28) as i8);
        let scaled = if shift < 0 { delta >> -shift } else { delta << shift };
        assert_eq!(page.u32(at) % 2, 0);
        (page.u64(at + 16) + ((u128::from(scaled) * u128::from(mul)) >> 32) as u64, page.u8(at + 29))
    }

    #[test]
    fn the_clock_goes_on_when_the_guest_sets_its_tsc() {
        let (mut machine, mut vcpu) = machine_of(1);
        let mut state = blank();
        let (page, at) = machine.guest.events.time_info(0).unwrap();
        vcpu.time_area = Some(0x3000);
        let area = machine.guest.memory.page(crate::memory::Gfn(3)).unwrap();
        machine.platform.tsc.set(1_000_000);
        for value in [0, 5, 1 << 40, u64::MAX, 1 << 63] {
            let version = page.u32(at);
            let before = machine.now_ns();
            state.load = 0;
            machine.write_msr(&mut vcpu, &mut state, TSC, value).unwrap();
            assert_eq!(machine.read_msr(&vcpu, &state, TSC), Ok(value));
            assert_eq!((state.load, state.tsc_offset), (groups::TSC, vcpu.tsc_offset));
            machine.prepare_entry(&mut vcpu, &mut state);
            assert_eq!((page.u32(at), vcpu.has_new_time), (version + 2, false));
            for (page, at) in [(&page, at), (&area, 0)] {
                assert_eq!(read(&machine, page, at, state.tsc_offset), (before, 1), "{value:#x}");
            }
            machine.platform.tsc.set(machine.platform.tsc() + 777);
            assert_eq!(read(&machine, &page, at, state.tsc_offset), (machine.now_ns(), 1));
        }
    }

    #[test]
    fn the_flag_says_whether_all_vcpus_read_the_same() {
        let (mut machine, mut vcpu) = machine_of(3);
        let mut state = blank();
        let places = [0, 1, 2].map(|id| machine.guest.events.time_info(id).unwrap());
        let flags = || places.each_ref().map(|(page, at)| page.u8(at + 29));
        assert_eq!(flags(), [1; 3]);
        machine.platform.tsc.set(5000);
        machine.write_msr(&mut vcpu, &mut state, TSC, 0).unwrap();
        assert_eq!(flags(), [0; 3]);
        let offsets = [vcpu.tsc_offset, 0, 0];
        for ((page, at), offset) in places.iter().zip(offsets) {
            assert_eq!(read(&machine, page, *at, offset), (machine.now_ns(), 0));
        }
        // A vCPU that starts follows the first one.
        let mut running = alloc::boxed::Box::new(vcpu);
        for id in [1, 2] {
            machine.parked.get_mut(id).unwrap().start(Start::Sipi(1));
            assert!(machine.take_turn(&mut running) && running.id == id);
            machine.start_tsc(&mut running, &mut state);
            assert_eq!((state.tsc_offset, running.tsc_offset), (offsets[0], offsets[0]));
        }
        assert_eq!(flags(), [1; 3]);
    }

    #[test]
    fn a_deadline_is_a_value_of_the_tsc_that_was_set() {
        let (mut machine, mut vcpu) = machine_of(1);
        let mut state = blank();
        for (msr, value) in [(0x1b, 0xfee0_0d00), (0x80f, 0x1ff), (0x832, 0x4_0040), (0x6e0, 5000)] {
            machine.write_msr(&mut vcpu, &mut state, msr, value).unwrap();
        }
        machine.platform.tsc.set(1000);
        machine.write_msr(&mut vcpu, &mut state, TSC, 4900).unwrap();
        assert_eq!(machine.read_msr(&vcpu, &state, 0x6e0), Ok(5000));
        assert_eq!(machine.deadline(&vcpu), 1100);
        machine.write_msr(&mut vcpu, &mut state, TSC, 6000).unwrap();
        assert_eq!(machine.read_msr(&vcpu, &state, 0x6e0), Ok(5001), "in the past: due at once");
        machine.tick(&mut vcpu);
        assert_eq!((vcpu.apic.next(), machine.deadline(&vcpu)), (Some(0x40), 0));
    }
}
