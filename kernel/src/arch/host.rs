//! Stand-in for the processor in host tests: no effects, one CPU per test thread.

use core::cell::Cell;

use proto::abi::Error;

use crate::cpu::{Cpu, Turn};
use crate::memory::Pfn;
use crate::object::space::Space;
use crate::object::vm::Vm;

/// Code segment of ring 3.
pub const USER_CODE: u64 = 0x23;
/// Data segment of ring 3.
pub const USER_DATA: u64 = 0x1b;
/// First vector of an MSI.
pub const FIRST_MSI_VECTOR: u64 = 0x50;

/// Per-CPU state.
#[derive(Debug, Default)]
pub struct ArchCpu {
    /// What becomes of the running thread.
    pub turn: Cell<Turn>,
}

impl ArchCpu {
    /// Fresh state.
    pub const fn new() -> Self {
        Self { turn: Cell::new(Turn::Lasts) }
    }
}

#[cfg(test)]
std::thread_local! {
    static CPU: &'static Cpu = std::boxed::Box::leak(std::boxed::Box::new(Cpu::new()));
    static CLOCK: Cell<u64> = const { Cell::new(1) };
}

/// The CPU of this test thread.
#[cfg(test)]
pub fn this_cpu() -> &'static Cpu {
    CPU.with(|cpu| *cpu)
}

/// There is no CPU outside tests on the host.
#[cfg(not(test))]
pub fn this_cpu() -> &'static Cpu {
    static CPU: crate::memory::Shared<Cpu> = crate::memory::Shared(Cpu::new());
    &CPU.0
}

/// A clock that advances with every look.
pub fn tsc() -> u64 {
    #[cfg(test)]
    return CLOCK.with(|clock| {
        clock.set(clock.get() + 1);
        clock.get()
    });
    #[cfg(not(test))]
    0
}

/// Ticks per millisecond.
pub fn tsc_khz() -> u64 {
    1_000_000
}

/// No entry code to exchange.
pub fn set_traced(_is_traced: bool) {}

/// No counters.
pub type Counts = [Cell<u64>; 0];
/// No counters.
pub const fn no_counts() -> Counts {
    []
}

/// Nothing is counted.
///
/// # Errors
/// `NotSupported`.
pub fn instructions(_field: proto::abi::SystemField) -> Result<u64, Error> {
    Err(Error::NotSupported)
}

/// Nothing to set.
pub fn set_timer(_deadline: u64) {}

/// Largest leaf of a page table: 1 GiB.
pub fn largest_leaf() -> u32 {
    3
}

/// Guest-physical address bits.
pub fn guest_physical_bits() -> u32 {
    40
}

/// Virtualisation is pretended.
pub fn has_virtualisation() -> bool {
    true
}

/// No kernel half.
pub fn share_kernel_half(_root: Pfn) {}

/// No TLB.
pub fn flush_if_active(_space: &Space) {}

/// No port bitmap.
pub fn ports_changed() {}

/// No I/O APIC.
pub fn set_line_masked(_line: u64, _is_masked: bool) {}

/// No log.
pub fn early_log(_byte: u8) {}

/// No machine.
///
/// # Errors
/// Always.
pub fn reset_machine() -> Result<crate::syscall::Outcome, Error> {
    Err(Error::NotSupported)
}

/// What a vCPU needs of the processor: nothing here.
pub mod guest {
    use super::{Error, Pfn, Vm};

    /// Nothing.
    #[derive(Debug)]
    pub struct GuestContext;

    impl GuestContext {
        /// Nothing.
        ///
        /// # Errors
        /// Never.
        pub fn new(_frames: Pfn, _state: Pfn, _vm: &'static Vm) -> Result<Self, Error> {
            Ok(Self)
        }

        /// Nothing.
        pub fn forget(&self) {}
    }
}
