//! xen_version and console_io. Source: Xen public/version.h, common/kernel.c, drivers/char/console.c.

use super::{ARGUMENT, EFAULT, EINVAL, ENOSYS, EPERM, NOBODY, UNMAPPED, call, word};
use crate::check::Check;
use crate::machine::{hypercall, peek, poke};
use crate::numbers::Random;
use crate::paging::{self, AREA, NO_EXECUTE, PRESENT, WRITE};
use crate::xen::{CONSOLE_IO, XEN_VERSION};

fn op(query: u64, words: &[u64]) -> i64 {
    call(XEN_VERSION, query, words, 0)
}

/// Writes to the console from an address.
fn write(len: u64, from: u64) -> i64 {
    hypercall(CONSOLE_IO, [0, len, from, 0, 0])
}

/// The mode.
pub fn run(check: &mut Check, _: &mut Random) {
    queries(check);
    console(check);
}

fn queries(check: &mut Check) {
    check.equal_hex("version", 4u64 << 16 | 17, op(0, &[]) as u64);
    // Lengths in words; nothing old is left in them, nothing behind them is written.
    for (query, words) in [(1, 2), (2, 18), (3, 128), (4, 8), (8, 2)] {
        check.equal(format_args!("query {query}"), 0, op(query, &[u64::MAX; 130]));
        let at = |n: u64| peek(ARGUMENT + 8 * n);
        check.is_true(format_args!("query {query} fills its buffer"), (0..words).all(|n| at(n) != u64::MAX));
        check.is_true(format_args!("query {query} ends there"), (words..130).all(|n| at(n) == u64::MAX));
        let unmapped = hypercall(XEN_VERSION, [query, UNMAPPED, 0, 0, 0]);
        check.equal(format_args!("query {query}, unmapped"), EFAULT, unmapped);
    }
    check.equal("platform_parameters", 0, op(5, &[0]));
    check.equal_hex("are", 0xffff_8000_0000_0000u64, peek(ARGUMENT));
    check.equal("get_features", 0, op(6, &[0]));
    check.equal_hex("are", 0x1_2305u64, u64::from(word(4)));
    check.equal("get_features of word 1", EINVAL, op(6, &[1]));
    check.equal("pagesize", (4096, EINVAL), (hypercall(XEN_VERSION, [7, 0, 0, 0, 0]), op(7, &[])));
    check.equal("commandline", 0, op(9, &[u64::MAX; 2]));
    check.equal_hex("is", u64::from_le_bytes(*b"<denied>"), peek(ARGUMENT));
    check.equal_hex("with its end", !0xffu64, peek(ARGUMENT + 8));
    check.equal("build_id", EPERM, op(10, &[]));
    check.equal("query 11", ENOSYS, op(11, &[]));
}

fn console(check: &mut Check) {
    check.equal("no bytes", 0, write(0, UNMAPPED));
    check.equal("a byte, unmapped", EFAULT, write(1, UNMAPPED));
    let frame = paging::frame();
    for n in 0..512 {
        poke(frame + 8 * n, 0x2020_2020_2020_2020);
    }
    poke(frame + 0xff8, 0x0a20_2020_2020_2020);
    paging::map(AREA, frame | PRESENT | WRITE | NO_EXECUTE);
    check.equal("up to the end of a page", 0, write(8, AREA + 0xff8));
    check.equal("beyond its end", EFAULT, write(9, AREA + 0xff8));
    check.equal("as many bytes as there can be", EFAULT, write(0xffff_ffff, AREA));
    check.equal("a negative length", EFAULT, write(0x8000_0000, AREA));
    check.equal("32 bits of the length count", 0, write(8 | 1 << 40, AREA + 0xff8));
    paging::unmap(AREA);
    check.equal("reading", EPERM, hypercall(CONSOLE_IO, [1, 8, ARGUMENT, 0, 0]));
    check.equal(
        "reading as much as there can be",
        EPERM,
        hypercall(CONSOLE_IO, [1, 0xffff_ffff, ARGUMENT, 0, 0]),
    );
    check.equal("another operation", EPERM, hypercall(CONSOLE_IO, [NOBODY, 0, 0, 0, 0]));
}
