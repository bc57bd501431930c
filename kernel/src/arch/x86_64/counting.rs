//! Counts of instructions that cost more than others, in a kernel built to count (feature
//! `count-instructions`); else nothing of this is in the image.
//!
//! The counters stand in the CPU's data, where entry code reaches them by the numbers of
//! `abi::SystemField`.

use core::cell::Cell;

use proto::abi::{Error, SystemField};

use crate::cpu::Cpu;

/// Number of the first counter.
const FIRST: u64 = SystemField::Cr3Writes as u64;
const ALL: usize = (SystemField::Invlpg as u64 - FIRST + 1) as usize;

/// Counters; none in a kernel that does not count.
const COUNT: usize = if cfg!(feature = "count-instructions") { ALL } else { 0 };

/// The counters of a CPU.
pub type Counts = [Cell<u64>; COUNT];

/// Counters at 0.
pub const fn no_counts() -> Counts {
    [const { Cell::new(0) }; COUNT]
}

/// What entry code needs to count: `counted NAME`, with GS the kernel's.
#[cfg(feature = "count-instructions")]
macro_rules! counted {
    ($file:literal) => {
        core::arch::global_asm!(
            ".set VMSAVE_LOAD, 2\n.set IRET, 4\n.set SYSRET, 5\n.set SWAPGS, 6\n.set VMRUN, 7",
            ".macro counted name\nincq %gs:32 + 8 * \\name\n.endm",
            include_str!($file),
            ".purgem counted",
            options(att_syntax, raw)
        );
    };
}
/// What entry code needs not to count.
#[cfg(not(feature = "count-instructions"))]
macro_rules! counted {
    ($file:literal) => {
        core::arch::global_asm!(
            ".macro counted name\n.endm",
            include_str!($file),
            ".purgem counted",
            options(att_syntax, raw)
        );
    };
}
pub(super) use counted;

const _: () = {
    assert!(SystemField::VmSaveLoads as u64 - FIRST == 2 && SystemField::Irets as u64 - FIRST == 4);
    assert!(SystemField::Sysrets as u64 - FIRST == 5 && SystemField::Swapgs as u64 - FIRST == 6);
    assert!(SystemField::Vmruns as u64 - FIRST == 7);
    assert!(core::mem::offset_of!(Cpu, counts) == 32);
};

/// Counts one instruction.
#[inline(always)]
pub fn count(what: SystemField) {
    if let Some(counter) = counter(what) {
        crate::object::thread::count(counter);
    }
}

#[inline(always)]
fn counter(what: SystemField) -> Option<&'static Cell<u64>> {
    if COUNT == 0 {
        return None;
    }
    super::this_cpu().counts.get((what as u64).wrapping_sub(FIRST) as usize)
}

/// The count.
///
/// # Errors
/// `NotSupported` in a kernel that does not count.
pub fn instructions(what: SystemField) -> Result<u64, Error> {
    counter(what).map(Cell::get).ok_or(Error::NotSupported)
}
