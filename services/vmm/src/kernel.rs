//! The kernel as the machine sees it: mapping of special frames, the TSC, the vCPU's state page, CPUID.
#![expect(unsafe_code, reason = "the state page is at an address that init chose")]

use proto::abi::{Field, Slot, VcpuState, map, rights};
use proto::guest::{FREE_SLOTS, GuestInfo, SPECIAL_FRAMES, VMM_SLOTS};
use vmm::cpuid::Leaf;
use vmm::machine::{MapFailed, Platform};
use vmm::memory::{Gfn, PAGE};

/// First slot for RAM that is put back; before it is one slot per special frame.
const RAM_SLOTS: Slot = FREE_SLOTS + SPECIAL_FRAMES as Slot;
const RAM_SLOT_COUNT: u64 = VMM_SLOTS - RAM_SLOTS as u64;

/// What may be done with special frames in the guest.
const SPECIAL_RIGHTS: u64 = rights::READ | rights::WRITE;
const RAM_RIGHTS: u64 = rights::READ | rights::WRITE | rights::EXECUTE;

/// Access to the kernel's objects of this guest.
#[derive(Debug)]
pub struct Kernel {
    info: &'static GuestInfo,
    /// Bit per special frame whose capability was derived.
    derived: u64,
    /// RAM pages put back so far.
    restored: u64,
}

impl Kernel {
    /// For this guest.
    pub fn new(info: &'static GuestInfo) -> Self {
        Self { info, derived: 0, restored: 0 }
    }
}

impl Platform for Kernel {
    #[inline]
    fn tsc(&self) -> u64 {
        rt::time::tsc()
    }

    fn cpu_time(&self) -> u64 {
        // Slot 0 is the calling thread, whose time may always be read.
        rt::sys::cap_read(0, Field::CpuTime).unwrap_or(0)
    }

    fn map_special(&mut self, index: usize, gfn: Gfn) -> Result<(), MapFailed> {
        let slot = FREE_SLOTS + index as Slot;
        let failed = |error| {
            log::error!("special frame {index} at {:#x}: {error:?}", gfn.0);
            MapFailed
        };
        if self.derived & 1 << index == 0 {
            rt::sys::cap_derive(self.info.special_slot, 0, slot, index as u64, 1, SPECIAL_RIGHTS)
                .map_err(failed)?;
            self.derived |= 1 << index;
        }
        rt::sys::cap_map(slot, self.info.vm, gfn.base().0, map::READ | map::WRITE).map_err(failed)
    }

    fn unmap_special(&mut self, index: usize) -> Result<(), MapFailed> {
        rt::sys::cap_unmap(FREE_SLOTS + index as Slot).map_err(|_| MapFailed)
    }

    fn restore_ram(&mut self, gfn: Gfn) -> Result<(), MapFailed> {
        if self.restored >= RAM_SLOT_COUNT {
            return Err(MapFailed);
        }
        let gpa = gfn.base().0;
        let range = self.info.ram.iter().find(|range| gpa >= range.gpa && gpa - range.gpa < range.len);
        let range = range.ok_or(MapFailed)?;
        let slot = RAM_SLOTS + self.restored as Slot;
        let offset = (gpa - range.gpa) / PAGE as u64;
        rt::sys::cap_derive(range.slot, 0, slot, offset, 1, RAM_RIGHTS).map_err(|_| MapFailed)?;
        self.restored += 1;
        let flags = map::READ | map::WRITE | map::EXECUTE;
        rt::sys::cap_map(slot, self.info.vm, gpa, flags).map_err(|_| MapFailed)
    }
}

/// A vCPU's state page. The kernel uses it only inside of `vcpu_run`.
#[derive(Debug)]
pub struct StatePage(*mut VcpuState);

impl StatePage {
    /// The page that init mapped at `address`.
    pub fn new(address: u64) -> Self {
        Self(address as *mut VcpuState)
    }

    /// The state, between two runs.
    #[inline]
    pub fn get(&mut self) -> &mut VcpuState {
        // SAFETY: init mapped the vCPU's state frame here for the domain's life. The kernel accesses it only
        // in `vcpu_run`, which nobody calls while this borrow lives; any content is a valid `VcpuState`.
        unsafe { &mut *self.0 }
    }
}

/// The processor's CPUID.
pub fn host_cpuid(leaf: u32, subleaf: u32) -> Leaf {
    let result = core::arch::x86_64::__cpuid_count(leaf, subleaf);
    [result.eax, result.ebx, result.ecx, result.edx]
}
