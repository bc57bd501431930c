//! Every sub-operation of the hypercalls that a guest may call or is refused, with good and bad arguments.
//!
//! What is expected is what Xen 4.17 answers, or what `services/vmm/HYPERCALLS.md` names as different.

mod grants;
mod hvm;
mod memory;
mod refused;
mod version;

pub use grants::run as grants;
pub use hvm::run as hvm;
pub use memory::run as memory;
pub use refused::run as refused;
pub use version::run as version;

use crate::SCRATCH;
use crate::machine::{hypercall, peek, poke};

/// Where arguments are, lists behind them, and pages to play with.
const ARGUMENT: u64 = SCRATCH + 0x1000;
const LIST: u64 = SCRATCH + 0x2000;
const PAGES: u64 = SCRATCH + 0x10_0000;
/// A linear address that is mapped nowhere.
const UNMAPPED: u64 = 0x7fff_ffff_f000;
/// Domain IDs: the caller, the backends', and one that does not exist.
const SELF: u64 = 0x7ff0;
const BACKEND: u64 = 0;
const NOBODY: u64 = 0x7000;

const EPERM: i64 = -1;
const ENOENT: i64 = -2;
const ESRCH: i64 = -3;
const E2BIG: i64 = -7;
const EACCES: i64 = -13;
const EFAULT: i64 = -14;
const ENODEV: i64 = -19;
const EINVAL: i64 = -22;
const EDOM: i64 = -33;
const ENOSYS: i64 = -38;
const ENODATA: i64 = -61;
const EILSEQ: i64 = -84;
const EOPNOTSUPP: i64 = -95;

/// Calls with a structure of 64-bit words as the second argument, and a third one.
fn call(number: u64, operation: u64, words: &[u64], third: u64) -> i64 {
    for (n, word) in words.iter().enumerate() {
        poke(ARGUMENT + 8 * n as u64, *word);
    }
    hypercall(number, [operation, ARGUMENT, third, 0, 0])
}

/// A half-word of the structure.
fn half(at: u64) -> i16 {
    (peek((ARGUMENT + at) & !7) >> (at % 8 * 8)) as i16
}

/// A word of the structure.
fn word(at: u64) -> u32 {
    (peek((ARGUMENT + at) & !7) >> (at % 8 * 8)) as u32
}
