//! hvm_op: parameters and the rest. Source: Xen public/hvm, arch/x86/hvm/hvm.c.

use super::{ARGUMENT, PAGES, call, half};
use super::{
    BACKEND, EFAULT, EINVAL, ENODEV, ENOENT, ENOSYS, EOPNOTSUPP, EPERM, ESRCH, NOBODY, SELF, UNMAPPED,
};
use crate::NOWHERE;
use crate::check::Check;
use crate::machine::{hypercall, peek};
use crate::numbers::Random;
use crate::xen::HVM_OP;

const GET: u64 = 1;
const SET: u64 = 0;

fn op(operation: u64, words: &[u64]) -> i64 {
    call(HVM_OP, operation, words, 0)
}

fn get(index: u64) -> (i64, u64) {
    (op(GET, &[SELF | index << 32, 0x99]), peek(ARGUMENT + 8))
}

fn set(index: u64, value: u64) -> i64 {
    op(SET, &[SELF | index << 32, value])
}

/// The mode.
pub fn run(check: &mut Check, _: &mut Random) {
    parameters(check);
    others(check);
}

fn parameters(check: &mut Check) {
    check.equal("frames of the rings", ((0, 0xfeffd), (0, 0xfeffc)), (get(1), get(17)));
    check.is_true("their ports", get(2).1 != 0 && get(18).1 != 0);
    for index in [4, 13, 20, 21, 22, 23, 24, 25, 26, 30] {
        check.equal(
            format_args!("parameter {index} is gone"),
            (EINVAL, EINVAL),
            (get(index).0, set(index, 0)),
        );
    }
    for index in [3, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 27, 28, 29, 31, 32, 33, 38] {
        check.equal(format_args!("parameter {index}"), (EPERM, EPERM), (get(index).0, set(index, 0)));
    }
    for index in [1, 17, 35] {
        check.equal(format_args!("setting {index}"), EPERM, set(index, 0));
    }
    for index in [2, 18, 34] {
        let before = get(index).1;
        check.equal(format_args!("setting {index}"), (0, (0, 0x77)), (set(index, 0x77), get(index)));
        set(index, before);
    }
    check.equal("ports of power management", (ENODEV, (0, 0)), (set(19, 1), get(19)));
    check.equal("width of the FPU's pointer", (0, EINVAL, (0, 8)), (set(36, 8), set(36, 5), get(36)));
    check.equal("a task state segment", (0, (0, 128 << 32 | 0x1000)), (set(15, 0x1000), get(37)));
    let (line, function) = (9, 1 << 56 | 0x1234);
    check.equal("upcall by a line", (0, (0, line)), (set(0, line), get(0)));
    check.equal("upcall by a PCI function", (0, (0, function)), (set(0, function), get(0)));
    check.equal("upcall by a vector", 0, set(0, 2 << 56 | 0xf3));
    check.equal("parameter 39", (EINVAL, EINVAL), (get(39).0, set(39, 0)));
    check.equal("domain 0's parameter", EPERM, op(GET, &[BACKEND | 1 << 32, 0]));
    check.equal("nobody's parameter", ESRCH, op(SET, &[NOBODY, 0]));
    check.equal("a parameter, unmapped", EFAULT, hypercall(HVM_OP, [GET, UNMAPPED, 0, 0, 0]));
}

fn others(check: &mut Check) {
    check.equal("flush_tlbs", (0, EINVAL), (hypercall(HVM_OP, [5, 0, 0, 0, 0]), op(5, &[])));
    check.equal("guest_request_vm_event", (0, EINVAL), (hypercall(HVM_OP, [24, 0, 0, 0, 0]), op(24, &[])));
    check.equal("pagetable_dying", EINVAL, op(9, &[SELF, 0]));
    check.equal("pagetable_dying of domain 0", EOPNOTSUPP, op(9, &[BACKEND, 0]));
    check.equal("get_time", 0, op(10, &[]));
    let first = peek(ARGUMENT);
    check.equal("get_time again", 0, op(10, &[]));
    check.is_true("time goes on", peek(ARGUMENT) > first);
    check.equal("get_time, unmapped", EFAULT, hypercall(HVM_OP, [10, UNMAPPED, 0, 0, 0]));
    check.equal("xentrace", (0, EINVAL), (op(11, &[0xfff, 0, 0, 0]), op(11, &[29 << 16, 0, 0, 0])));
    let kind = |frame: u64| (op(15, &[SELF | 0x7777 << 16, frame]), half(2));
    check.equal("get_mem_type", ((0, 0), (0, 2)), (kind(PAGES >> 12), kind(NOWHERE >> 12)));
    check.equal("altp2m", EOPNOTSUPP, op(25, &[0; 4]));
    check.equal("upcall vector 15", EINVAL, op(23, &[15 << 32]));
    check.equal("upcall vector of vCPU 99", ENOENT, op(23, &[99 | 0xf3 << 32]));
    for operation in [2, 3, 4, 6, 7, 8, 12, 13, 14, 16, 17, 22, 26, 1 << 32] {
        check.equal(format_args!("hvm_op {operation:#x}"), ENOSYS, op(operation, &[0; 4]));
    }
}
