//! grant_table_op. Source: Xen public/grant_table.h, common/grant_table.c.

use super::{ARGUMENT, BACKEND, EFAULT, EINVAL, ENOSYS, EPERM, ESRCH, LIST, NOBODY, PAGES, SELF, UNMAPPED};
use super::{call, half, word};
use crate::NOWHERE;
use crate::check::Check;
use crate::machine::{hypercall, peek, poke};
use crate::numbers::Random;
use crate::xen::{GRANT_TABLE_OP, map_frame};

/// Where the grant table is.
const TABLE: u64 = NOWHERE + 0x10_0000;
/// The entry's type "may be accessed", and "only read".
const PERMIT: u64 = 1;
const READ_ONLY: u64 = 4;

fn op(operation: u64, count: u64, words: &[u64]) -> i64 {
    call(GRANT_TABLE_OP, operation, words, count)
}

/// The mode.
pub fn run(check: &mut Check, _: &mut Random) {
    check.equal("the table's first frame", 0, map_frame(1, 0, TABLE >> 12));
    size(check);
    copies(check);
    lists(check);
}

fn size(check: &mut Check) {
    check.equal("query_size", 0, op(6, 1, &[SELF, u64::MAX]));
    check.equal("frames and most frames", (1, 32), (word(4), word(8)));
    check.equal("status", 0, half(12));
    check.equal("query_size of domain 0", (0, -8), (op(6, 1, &[BACKEND, 0]), half(12)));
    check.equal("query_size of nobody", (0, -2), (op(6, 1, &[NOBODY, 0]), half(12)));
    check.equal("query_size twice", EINVAL, op(6, 2, &[SELF]));
    check.equal("a negative count", EINVAL, op(6, 0xffff_ffff, &[SELF]));
    check.equal("query_size, unmapped", EFAULT, hypercall(GRANT_TABLE_OP, [6, UNMAPPED, 1, 0, 0]));
    check.equal("set_version 1", (0, 1), (op(8, 1, &[1]), word(0)));
    check.equal("set_version 2", (ENOSYS, 1), (op(8, 1, &[2]), word(0)));
    check.equal("set_version 3", (EINVAL, 1), (op(8, 1, &[3]), word(0)));
    check.equal("get_version", (0, 1), (op(10, 1, &[SELF]), word(4)));
    check.equal("get_version of domain 0", EPERM, op(10, 1, &[BACKEND]));
    check.equal("get_version of nobody", ESRCH, op(10, 1, &[NOBODY]));
    poke(LIST + 16, 7);
    check.equal("setup_table", (0, 0), (op(2, 1, &[SELF | 2 << 32, 0xffff, LIST]), half(8)));
    check.equal_hex("the first frame is at", TABLE >> 12, peek(LIST));
    check.equal_hex("the second is nowhere", u64::MAX, peek(LIST + 8));
    check.equal("behind the list", 7, peek(LIST + 16));
    check.equal("setup_table of 33", (0, -1), (op(2, 1, &[SELF | 33 << 32, 0, LIST]), half(8)));
    check.equal("setup_table without a list", (0, -5), (op(2, 1, &[SELF | 1 << 32, 0, UNMAPPED]), half(8)));
}

/// Copies `len` bytes between places (number, domain, offset).
fn copy(source: (u64, u64, u64), target: (u64, u64, u64), len: u64, flags: u64) -> (i64, i16) {
    let side = |(number, domid, offset): (u64, u64, u64)| [number, domid | offset << 16];
    let ([a, b], [c, d]) = (side(source), side(target));
    let answer = op(5, 1, &[a, b, c, d, len | flags << 16 | 0x7777 << 32]);
    (answer, half(36))
}

fn copies(check: &mut Check) {
    let (here, there) = ((PAGES >> 12, SELF, 8), ((PAGES >> 12) + 1, SELF, 0x100));
    poke(PAGES + 8, 0x1122_3344_5566_7788);
    poke(PAGES + 0x1100, 0);
    check.equal("a copy", (0, 0), copy(here, there, 6, 0));
    check.equal_hex("of six bytes", 0x3344_5566_7788u64, peek(PAGES + 0x1100));
    let frame = PAGES >> 12;
    check.equal("beyond the page", (0, -10), copy((frame, SELF, 0xfff), there, 2, 0));
    check.equal("to where nothing is", (0, -9), copy(here, (NOWHERE >> 12, SELF, 0), 1, 0));
    check.equal("from domain 0's frame", (0, -8), copy((frame, BACKEND, 0), there, 1, 0));
    check.equal("from domain 0's grant", (0, -1), copy((8, BACKEND, 0), there, 1, 1));
    check.equal("from nobody's grant", (0, -2), copy((8, NOBODY, 0), there, 1, 1));
    check.equal("from a grant that is none", (0, -1), copy((9, SELF, 0), there, 1, 1));
    check.equal("from a grant beyond the table", (0, -3), copy((1 << 20, SELF, 0), there, 1, 1));
    // A grant to itself, whose number it learns nowhere but by trying.
    let grant = |domid: u64, flags: u64| poke(TABLE + 8 * 8, flags | domid << 16 | frame << 32);
    let own = (1..64).find(|domid| {
        grant(*domid, PERMIT | READ_ONLY);
        copy((8, SELF, 8), there, 8, 1) == (0, 0)
    });
    check.is_true("a grant to itself", own.is_some());
    check.equal_hex("was read", peek(PAGES + 8), peek(PAGES + 0x1100));
    check.equal("writing to it", (0, -1), copy(there, (8, SELF, 0), 8, 2));
    grant(own.unwrap_or(0), PERMIT);
    check.equal("writing to one that may be", (0, 0), copy(there, (8, SELF, 0), 8, 2));
    check.equal_hex("did", peek(PAGES + 0x1100), peek(PAGES));
    check.equal("no copies", 0, op(5, 0, &[]));
    check.equal(
        "copies until memory ends",
        EFAULT,
        hypercall(GRANT_TABLE_OP, [5, UNMAPPED, 0x7fff_ffff, 0, 0]),
    );
}

fn lists(check: &mut Check) {
    let map = |flags: u64, domid: u64| {
        let answer = op(0, 1, &[0, flags | 8 << 32, domid | 0x7777 << 16, 0]);
        (answer, half(18))
    };
    check.equal("a mapping of no kind", (0, -3), map(0, BACKEND));
    check.equal("a mapping for a device", (0, -1), map(1, BACKEND));
    check.equal("a mapping of nobody's grant", (0, -2), map(2, NOBODY));
    check.equal("a mapping of domain 0's grant", (0, -13), map(2, BACKEND));
    check.equal("unmapping", (0, -4), (op(1, 1, &[0, 0, 9]), half(20)));
    poke(TABLE + 8 * 9, 0);
    let entry = peek(TABLE + 8 * 8);
    check.equal("a swap", (0, 0), (op(11, 1, &[8 | 9 << 32, 0xffff]), half(8)));
    check.equal_hex("of entries", entry, peek(TABLE + 8 * 9));
    check.equal("a swap beyond the table", (0, -3), (op(11, 1, &[8 | 1 << 52, 0]), half(8)));
    poke(ARGUMENT + 12, 8 | 8 << 32);
    check.equal("two swaps", 0, hypercall(GRANT_TABLE_OP, [11, ARGUMENT, 2, 0, 0]));
    for operation in [3, 4, 7, 9, 12, 13, 1 << 16] {
        check.equal(format_args!("grant_table_op {operation:#x}"), ENOSYS, op(operation, 1, &[0; 8]));
    }
}
