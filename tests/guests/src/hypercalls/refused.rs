//! Hypercalls that are for others, each with its refusal; and all of them from user mode.
//! Source: Xen include/hypercall-defs.c and the files of each.

use super::{ARGUMENT, BACKEND, E2BIG, EACCES, EFAULT, EINVAL, ENODATA, ENOSYS, EOPNOTSUPP, EPERM, ESRCH};
use super::{NOBODY, SELF, UNMAPPED};
use crate::check::Check;
use crate::machine::{hypercall, poke};
use crate::numbers::Random;
use crate::traps;

const PLATFORM_OP: u64 = 7;
const MMUEXT_OP: u64 = 26;
const SYSCTL: u64 = 35;
const DOMCTL: u64 = 36;
const PAGING_DOMCTL_CONT: u64 = 49;
const DM_OP: u64 = 41;
/// Calls that a PVH guest does not have, and numbers that nobody has.
const ABSENT: [u64; 32] = [
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    8,
    9,
    10,
    11,
    14,
    16,
    19,
    22,
    23,
    25,
    27,
    28,
    30,
    31,
    33,
    37,
    38,
    39,
    43,
    47,
    48,
    55,
    64,
    1 << 31,
    u64::MAX,
];

/// The mode.
pub fn run(check: &mut Check, random: &mut Random) {
    for number in ABSENT {
        let args = [random.below(40), ARGUMENT, random.next(), random.next(), random.next()];
        check.equal(format_args!("hypercall {number:#x}"), ENOSYS, hypercall(number, args));
    }
    for (number, version) in
        [(PLATFORM_OP, 0x0300_0001), (SYSCTL, 0x15), (DOMCTL, 0x15), (PAGING_DOMCTL_CONT, 0x15)]
    {
        let versions = |version: u64| hypercall_with(number, 2 | version << 32, BACKEND);
        let answers = (versions(version), versions(version + 1), hypercall(number, [UNMAPPED, 0, 0, 0, 0]));
        check.equal(format_args!("hypercall {number}"), (EPERM, EACCES, EFAULT), answers);
    }
    check.equal("domctl about nobody", ESRCH, hypercall_with(DOMCTL, 2 | 0x15 << 32, NOBODY));
    check.equal("domctl about DOMID_SELF", ESRCH, hypercall_with(DOMCTL, 2 | 0x15 << 32, SELF));
    check.equal("a new domain", EPERM, hypercall_with(DOMCTL, 1 | 0x15 << 32, SELF));
    let tables = |domid: u64| hypercall(MMUEXT_OP, [ARGUMENT, 1, 0, domid, 0]);
    check.equal("mmuext_op", (EINVAL, EPERM, ESRCH), (tables(SELF), tables(BACKEND), tables(NOBODY)));
    check.equal("xenpmu_op", EOPNOTSUPP, hypercall(40, [0, ARGUMENT, 0, 0, 0]));
    check.equal("hypfs_op", EPERM, hypercall(42, [0; 5]));
    let device_model = |domid: u64, count: u64, buffers: u64| hypercall(DM_OP, [domid, count, buffers, 0, 0]);
    check.equal("dm_op without buffers", ENODATA, device_model(BACKEND, 0, ARGUMENT));
    check.equal("dm_op with four", E2BIG, device_model(BACKEND, 4, ARGUMENT));
    check.equal("dm_op, unmapped", EFAULT, device_model(BACKEND, 1, UNMAPPED));
    check.equal("dm_op of domain 0", EINVAL, device_model(BACKEND, 1, ARGUMENT));
    check.equal("dm_op of nobody", ESRCH, device_model(NOBODY, 1, ARGUMENT));
    for number in (0..56).chain([u64::MAX]) {
        let user = traps::user(|| hypercall(number, [0, ARGUMENT, 1, 0, 0]));
        check.equal(format_args!("hypercall {number} from user mode"), Ok(EPERM), user);
    }
}

/// A call whose structure begins with an operation and a version, and then names a domain.
fn hypercall_with(number: u64, first: u64, domid: u64) -> i64 {
    poke(ARGUMENT, first);
    poke(ARGUMENT + 8, domid);
    hypercall(number, [ARGUMENT, 0, 0, 0, 0])
}
