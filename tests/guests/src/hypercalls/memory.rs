//! memory_op: ballooning, special frames, the memory map. Source: Xen public/memory.h, common/memory.c.

use super::{ARGUMENT, BACKEND, LIST, NOBODY, PAGES, SELF, UNMAPPED, call, word};
use super::{EACCES, EDOM, EFAULT, EILSEQ, EINVAL, ENOENT, ENOSYS, EOPNOTSUPP, EPERM, ESRCH};
use crate::NOWHERE;
use crate::check::Check;
use crate::machine::{hypercall, peek, poke, try_peek, try_poke};
use crate::numbers::Random;
use crate::xen::MEMORY_OP;

fn op(operation: u64, words: &[u64]) -> i64 {
    call(MEMORY_OP, operation, words, 0)
}

fn add(domid: u64, space: u64, index: u64, frame: u64) -> i64 {
    op(7, &[domid | space << 32, index, frame])
}

/// Changes the reservation by the extents in [`LIST`].
fn reserve(operation: u64, count: u64, order: u64) -> i64 {
    op(operation, &[LIST, count, order, SELF])
}

fn list(frames: &[u64]) {
    for (n, frame) in frames.iter().enumerate() {
        poke(LIST + 8 * n as u64, *frame);
    }
}

/// The mode.
pub fn run(check: &mut Check, _: &mut Random) {
    balloon(check);
    reservations(check);
    placing(check);
    batches(check);
    maps(check);
    refused(check);
}

fn balloon(check: &mut Check) {
    let first = PAGES >> 12;
    let before = op(3, &[SELF]);
    check.equal("maximum_reservation", before, op(4, &[SELF]));
    poke(PAGES, 0x5ec2e7);
    poke(PAGES + 0x2000, 0x5ec2e7);
    list(&[first, first + 2]);
    check.equal("decrease_reservation", 2, reserve(1, 2, 0));
    check.equal("current_reservation without two pages", before - 2, op(3, &[SELF]));
    check.equal("a page given away reads as", Ok(u64::MAX), try_peek(PAGES));
    check.equal("a write to it", Ok(()), try_poke(PAGES, 7));
    check.equal("which is ignored", Ok(u64::MAX), try_peek(PAGES));
    poke(PAGES + 0x1000, 77);
    check.equal("a structure in it", EFAULT, hypercall(MEMORY_OP, [3, PAGES, 0, 0, 0]));
    check.equal("giving it away again", 0, reserve(1, 1, 0));
    check.equal("populate_physmap", 2, reserve(6, 2, 0));
    check.equal("the page is back as", Ok(0), try_peek(PAGES));
    check.equal("the second page is back as", Ok(0), try_peek(PAGES + 0x2000));
    check.equal("its neighbour is", Ok(77), try_peek(PAGES + 0x1000));
    poke(PAGES, 9);
    check.equal("and writable", 9, peek(PAGES));
    check.equal("populate_physmap beyond the maximum", 0, reserve(6, 1, 0));
    list(&[first]);
    check.equal("decrease_reservation of 1 MiB", 1, reserve(1, 1, 8));
    check.equal("current_reservation without 1 MiB", before - 256, op(3, &[SELF]));
    check.equal("its last page reads as", Ok(u64::MAX), try_peek(PAGES + 0xf_f000));
    check.equal("populate_physmap of 1 MiB", 1, reserve(6, 1, 8));
    check.equal("its last page is back as", Ok(0), try_peek(PAGES + 0xf_f000));
    check.equal("current_reservation", before, op(3, &[SELF]));
}

fn reservations(check: &mut Check) {
    list(&[PAGES >> 12, NOWHERE >> 12]);
    check.equal("extents until the one that is not there", 1, reserve(1, 2, 0));
    check.equal("populating where there never was RAM", 1, reserve(6, 2, 0));
    check.equal("an order above 9", 0, reserve(1, 1, 10));
    check.equal("too many extents", 0, reserve(1, 1 << 26, 0));
    check.equal("progress at the end", 3, reserve(1 | 3 << 6, 3, 0));
    check.equal("another domain's pages", 0, op(1, &[LIST, 1, 0, BACKEND]));
    check.equal("no structure", 0, hypercall(MEMORY_OP, [1, UNMAPPED, 0, 0, 0]));
    check.equal("no list", 0, op(1, &[UNMAPPED, 1, 0, SELF]));
    check.equal("memory that comes when touched", 0, op(6, &[LIST, 1, 1 << 48, SELF]));
    check.equal("pages without a place", 0, op(0, &[0, 1, 0, SELF]));
    check.equal("current_reservation of domain 0", EPERM, op(3, &[BACKEND]));
    check.equal("current_reservation of nobody", ESRCH, op(3, &[NOBODY]));
    check.equal("current_reservation, unmapped", EFAULT, hypercall(MEMORY_OP, [3, UNMAPPED, 0, 0, 0]));
    check.equal("current_reservation with progress", EINVAL, op(3 | 1 << 6, &[SELF]));
    check.is_true("maximum_ram_page", op(2, &[]) > 0);
    check.is_true("maximum_gpfn", op(14, &[SELF]) > 0);
}

fn placing(check: &mut Check) {
    let free = NOWHERE >> 12;
    check.equal("shared_info outside of RAM", 0, add(SELF, 0, 0, free));
    let pending = peek(NOWHERE + 0x800);
    check.is_true("it is memory there", pending != u64::MAX);
    check.equal("it moves", 0, add(SELF, 0, 0, free + 1));
    check.equal("where it was is", Ok(u64::MAX), try_peek(NOWHERE + 0x800));
    check.equal("shared_info number 1", EINVAL, add(SELF, 0, 1, free));
    check.equal("a grant frame", 0, add(SELF, 1, 1, free));
    check.equal("grant frame 32", EINVAL, add(SELF, 1, 32, free));
    check.equal("a status frame", EINVAL, add(SELF, 1, 1 << 31, free));
    check.equal("a frame beyond the address space", EINVAL, add(SELF, 0, 0, 1 << 40));
    check.equal("no frame", EINVAL, add(SELF, 0, 0, u64::MAX));
    check.equal("foreign pages", ENOSYS, add(SELF, 4, 0, free));
    check.equal("device memory", EACCES, add(SELF, 5, 0, free));
    check.equal("space 6", EINVAL, add(SELF, 6, 0, free));
    check.equal("into domain 0", EPERM, add(BACKEND, 0, 0, free));
    check.equal("into nobody", ESRCH, add(NOBODY, 0, 0, free));
    check.equal("progress above 16 bits", EDOM, op(7 | 1 << 22, &[SELF, 0, free]));
    check.equal("unmapped", EFAULT, hypercall(MEMORY_OP, [7, UNMAPPED, 0, 0, 0]));
    let (from, to) = (PAGES + 0x5000, PAGES + 0x6000);
    poke(from + 8, 0x1234);
    check.equal("a page of its own", 0, add(SELF, 2, from >> 12, to >> 12));
    check.equal("is in the new place", 0x1234, peek(to + 8));
    check.equal("and not in the old one", Ok(u64::MAX), try_peek(from + 8));
    check.equal("which can be removed no more", ENOENT, op(15, &[SELF, from >> 12]));
    list(&[from >> 12]);
    check.equal("but populated", 1, reserve(6, 1, 0));
    check.equal("remove_from_physmap", 0, op(15, &[SELF, free]));
    check.equal("twice", ENOENT, op(15, &[SELF, free]));
    check.equal("of domain 0", EPERM, op(15, &[BACKEND, free]));
    check.equal("of nobody", ESRCH, op(15, &[NOBODY, free]));
}

fn batches(check: &mut Check) {
    let free = NOWHERE >> 12;
    let batch = |space: u64, size: u64, errors: u64| {
        op(23, &[SELF | space << 16 | size << 32, LIST, LIST + 0x100, errors])
    };
    list(&[2, 99]);
    poke(LIST + 0x100, free + 2);
    poke(LIST + 0x108, free + 3);
    poke(LIST + 0x200, u64::MAX);
    check.equal("a batch of grant frames", 0, batch(1, 2, LIST + 0x200));
    check.equal_hex("with an error for each", 0xffff_ffea_0000_0000, peek(LIST + 0x200));
    check.equal("a batch of a range", EOPNOTSUPP, batch(3, 1, LIST + 0x200));
    check.equal("a batch of foreign pages", 0, batch(4, 1, LIST + 0x200));
    check.equal_hex("is refused page by page", 0xffff_ffffu64, peek(LIST + 0x200) & 0xffff_ffff);
    check.equal("a batch without room for errors", EFAULT, batch(1, 1, UNMAPPED));
    check.equal("an empty batch", 0, batch(1, 0, 0));
    let beyond = op(23 | 3 << 6, &[SELF | 1 << 16 | 2 << 32, LIST, LIST + 0x100, LIST + 0x200]);
    check.equal("a batch with progress beyond its end", EILSEQ, beyond);
}

fn maps(check: &mut Check) {
    check.equal("memory_map", 0, op(9, &[16, LIST]));
    check.is_true("it has entries", (2..=16).contains(&word(0)));
    check.equal("it begins at", 0, peek(LIST));
    check.equal("memory_map with room for one entry", 0, op(9, &[1, LIST]));
    check.equal("has", 1, word(0));
    check.equal("memory_map without a buffer", EFAULT, op(9, &[16, UNMAPPED]));
    check.equal("a map with too many entries", EINVAL, op(13, &[SELF, 1025, LIST]));
    check.equal("a map that is not there", EFAULT, op(13, &[SELF, 1, UNMAPPED]));
    check.equal("a map of its own", 0, op(13, &[SELF, 1, LIST]));
    check.equal("memory_map after it", 0, op(9, &[16, LIST + 0x100]));
    check.equal("has one entry", 1, word(0));
    check.equal("the same one", peek(LIST + 8), peek(LIST + 0x108));
}

fn refused(check: &mut Check) {
    let pod = |domid: u64| [0, 0, 0, 0, domid];
    check.equal("get_pod_target", EPERM, op(17, &pod(SELF)));
    check.equal("set_pod_target of nobody", ESRCH, op(16, &pod(NOBODY)));
    for (operation, expected) in [
        (5, ENOSYS),
        (8, ENOSYS),
        (10, ENOSYS),
        (12, ENOSYS),
        (20, ENOSYS),
        (22, ENOSYS),
        (29, ENOSYS),
        (63, ENOSYS),
    ] {
        check.equal(format_args!("memory_op {operation}"), expected, op(operation, &[0; 5]));
    }
    check.equal("shared pages", 0, op(18, &[]) | op(19, &[]));
    check.equal("access_op", ESRCH, op(21, &[SELF << 16, 0, 0, 0, 0]));
    check.equal("claim_pages", EINVAL, op(24, &[0, 1, 0, SELF]));
    check.equal("machphys_compat_mfn_list", EOPNOTSUPP, op(25, &[]));
    check.equal("get_vnumainfo", EOPNOTSUPP, op(26, &[SELF, 0, 0, 0, 0]));
    check.equal("reserved_device_memory_map", 0, op(27, &[1 | 9 << 32, 0, 0]));
    check.equal("is empty", 0, word(4));
    check.equal("acquire_resource", EACCES, op(28, &[0; 4]));
    check.equal("exchange of too large extents", EPERM, op(11, &[LIST, 1, 10, SELF, LIST, 1, 10, SELF, 0]));
    list(&[PAGES >> 12]);
    poke(PAGES, 5);
    check.equal("exchange", 0, op(11, &[LIST, 1, 0, SELF, LIST, 1, 0, SELF, 0]));
    check.equal("it counts", 1, peek(ARGUMENT + 64));
    check.equal("and the page is new", 0, peek(PAGES));
}
