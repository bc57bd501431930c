//! grant_table_op as guests call it.
use super::super::tests::{ARGUMENT, call, call32, word};
use crate::grants::tests::permit;
use crate::loader::place::special;
use crate::machine::{Machine, Vcpu};
use crate::memory::{Gfn, GuestPhys};
use crate::testing::{FakePlatform, machine};

const SELF: u32 = 0x7ff0;

fn op(guest: &mut (Machine<FakePlatform>, Vcpu), operation: u64, count: u64, words: &[u32]) -> i64 {
    call(&mut guest.0, &mut guest.1, 20, [operation, ARGUMENT, count], words).0
}

fn status(guest: &(Machine<FakePlatform>, Vcpu), at: u64) -> i16 {
    (word(&guest.0, at & !3) >> (at % 4 * 8)) as i16
}

#[test]
fn the_tables_size_and_version() {
    let mut guest = machine();
    assert_eq!(op(&mut guest, 6, 1, &[SELF, 9, 9, 0xffff]), 0);
    assert_eq!([word(&guest.0, 4), word(&guest.0, 8), word(&guest.0, 12)], [1, 32, 0]);
    assert_eq!((op(&mut guest, 6, 1, &[0, 9, 9, 0]), word(&guest.0, 4), status(&guest, 12)), (0, 9, -8));
    assert_eq!((op(&mut guest, 6, 1, &[3, 9, 9, 0]), status(&guest, 12)), (0, -2));
    assert_eq!([op(&mut guest, 6, 0, &[SELF]), op(&mut guest, 6, 2, &[SELF])], [-22, -22]);
    assert_eq!(op(&mut guest, 6, 1 << 31, &[SELF]), -22, "a negative count");
    assert_eq!((op(&mut guest, 8, 1, &[1]), word(&guest.0, 0)), (0, 1));
    assert_eq!((op(&mut guest, 8, 1, &[2]), word(&guest.0, 0)), (-38, 1));
    assert_eq!((op(&mut guest, 8, 1, &[3]), word(&guest.0, 0)), (-22, 1));
    assert_eq!((op(&mut guest, 10, 1, &[SELF, 9]), word(&guest.0, 4)), (0, 1));
    assert_eq!([op(&mut guest, 10, 1, &[0, 9]), op(&mut guest, 10, 1, &[3, 9])], [-1, -3]);
    assert_eq!(call(&mut guest.0, &mut guest.1, 20, [6, 0x7fff_0000, 1], &[]).0, -14);
}

#[test]
fn setup_table_grows_the_table_and_says_where_it_is() {
    let mut guest = machine();
    guest.0.place_special(special::GRANTS, Gfn(0x777)).unwrap();
    assert_eq!(op(&mut guest, 2, 1, &[SELF, 2, 0xffff, 0, 0x9000, 0]), 0);
    assert_eq!((status(&guest, 8), guest.0.guest.grants.frames()), (0, 2));
    let page = guest.0.guest.memory.page(Gfn(9)).unwrap();
    assert_eq!([page.u64(0), page.u64(8), page.u64(16)], [0x777, u64::MAX, 0]);
    let mut status_of = |words: &[u32]| (op(&mut guest, 2, 1, words), status(&guest, 8));
    assert_eq!(status_of(&[SELF, 33, 9, 0, 0x9000, 0]), (0, -1));
    assert_eq!(status_of(&[SELF, 1, 9, 0, 0x7fff_0000, 0]), (0, -5));
    assert_eq!((status_of(&[0, 1, 9, 0, 0, 0]), status_of(&[3, 1, 9, 0, 0, 0])), ((0, -8), (0, -2)));
    assert_eq!([op(&mut guest, 2, 0, &[]), op(&mut guest, 2, 2, &[])], [-22, -22]);
    let narrow = [SELF, 1, 0xffff, 0x9100];
    let op32 = |guest: &mut (Machine<FakePlatform>, Vcpu), count, words: &[u32]| {
        call32(&mut guest.0, &mut guest.1, 20, [2, ARGUMENT, count], words).0
    };
    assert_eq!((op32(&mut guest, 1, &narrow), status(&guest, 8)), (0, 0));
    assert_eq!(guest.0.guest.memory.page(Gfn(9)).unwrap().u64(0x100), 0x777, "and nothing behind it");
    assert_eq!((op32(&mut guest, 0, &[]), op32(&mut guest, 2, &[])), (0, -22));
}

/// A copy of `len` bytes: source and target as number, domid and offset.
fn copy(source: (u32, u32, u32), target: (u32, u32, u32), len: u32, flags: u32) -> [u32; 10] {
    let side = |(number, domid, offset)| [number, 0, domid | offset << 16, 0];
    let ([a, b, c, d], [e, f, g, h]) = (side(source), side(target));
    [a, b, c, d, e, f, g, h, len | flags << 16, 0xffff]
}

#[test]
fn bytes_are_copied_between_own_pages_and_grants() {
    let mut guest = machine();
    let memory = &guest.0.guest.memory;
    memory.write(GuestPhys(0x1_0ffc), b"abcd").unwrap();
    permit(memory, 8, 0x11, false);
    memory.special(special::GRANTS).unwrap().set_u16(8 * 8 + 2, 5);
    let mut one = |words: [u32; 10]| (op(&mut guest, 5, 1, &words), status(&guest, 36));
    assert_eq!(one(copy((0x10, SELF, 0xffc), (0x12, SELF, 0), 4, 0)), (0, 0));
    assert_eq!(one(copy((0x12, SELF, 0), (8, SELF, 8), 4, 2)), (0, 0), "to a grant");
    assert_eq!(one(copy((8, 5, 8), (0x13, SELF, 0), 4, 1)), (0, 0), "from a grant, by its own number");
    let page = guest.0.guest.memory.page(Gfn(0x13)).unwrap();
    assert_eq!(
        (page.u64(0), guest.0.guest.memory.page(Gfn(0x11)).unwrap().u32(8)),
        (0x6463_6261, 0x6463_6261)
    );
}

#[test]
fn copies_that_cannot_be_have_their_status() {
    let mut guest = machine();
    let memory = &guest.0.guest.memory;
    permit(memory, 8, 0x11, true);
    permit(memory, 9, 0x11, false);
    permit(memory, 10, 0x9999, false);
    for grant in [8, 10] {
        memory.special(special::GRANTS).unwrap().set_u16(grant * 8 + 2, 5);
    }
    let here = (0x10, SELF, 0);
    let cases = [
        (copy(here, (0x11, SELF, 0xffd), 4, 0), -10),
        (copy((0x10, SELF, 0xffff), here, 1, 0), -10),
        (copy((0x9999, SELF, 0), here, 4, 0), -9),
        (copy(here, (0x9999, SELF, 0), 4, 0), -9),
        (copy((0x10, 0, 0), here, 4, 0), -8),
        (copy((0x10, 5, 0), here, 4, 0), -8),
        (copy((8, 3, 0), here, 4, 1), -2),
        (copy((8, 0, 0), here, 4, 1), -1),
        (copy((512, 0, 0), here, 4, 1), -3),
        (copy((512, SELF, 0), here, 4, 1), -3),
        (copy((u32::MAX, SELF, 0), here, 4, 1), -3),
        (copy(here, (8, SELF, 0), 4, 2), -1),
        (copy(here, (9, SELF, 0), 4, 2), -1),
        (copy((10, SELF, 0), here, 4, 1), -9),
        (copy(here, here, 0, 0), 0),
    ];
    let mut all = alloc::vec::Vec::new();
    for (n, (words, expected)) in cases.iter().enumerate() {
        assert_eq!((op(&mut guest, 5, 1, words), status(&guest, 36)), (0, *expected), "copy {n}");
        all.extend(words);
    }
    assert_eq!(op(&mut guest, 5, cases.len() as u64, &all), 0);
    for (n, (_, expected)) in cases.iter().enumerate() {
        assert_eq!(status(&guest, 40 * n as u64 + 36), *expected, "copy {n} of a list");
    }
    assert_eq!([op(&mut guest, 5, 0, &[]), op(&mut guest, 5, u64::from(u32::MAX), &[])], [0, -22]);
    assert_eq!(op(&mut guest, 5, 0x7fff_ffff, &all), -14, "a list that leaves memory, continued until there");
    let narrow = [0x10, SELF, 0x11, SELF | 0xfff << 16, 2, 0xffff];
    assert_eq!(call32(&mut guest.0, &mut guest.1, 20, [5, ARGUMENT, 1], &narrow).0, 0);
    assert_eq!(status(&guest, 20), -10);
}

#[test]
fn mapping_is_refused_for_each_element() {
    let mut guest = machine();
    let map = |flags: u32, domid: u32| [0, 0, flags, 8, domid | 0x7777 << 16, 9, 9, 9];
    let cases =
        [(0, 0, -3), (1, 0, -1), (2 | 8, 0, -1), (2 | 16, 0, -1), (2, 3, -2), (2, SELF, -2), (2, 0, -13)];
    for (flags, domid, expected) in cases.into_iter().chain([(2 | 4, 5, -13)]) {
        assert_eq!((op(&mut guest, 0, 1, &map(flags, domid)), status(&guest, 18)), (0, expected));
    }
    assert_eq!(word(&guest.0, 20), 9, "the handle is untouched");
    let two = [map(0, 0), map(2, 3)].concat();
    assert_eq!((op(&mut guest, 0, 2, &two), status(&guest, 18), status(&guest, 50)), (0, -3, -2));
    assert_eq!((op(&mut guest, 1, 1, &[0, 0, 0, 0, 0, 9]), status(&guest, 20)), (0, -4));
    assert_eq!(op(&mut guest, 1, 0x7fff_ffff, &[]), -14);
    for operation in [3, 4, 7, 9, 12, 13, 1 << 20, u64::from(u32::MAX)] {
        assert_eq!(op(&mut guest, operation, 1, &[]), -38);
    }
}

#[test]
fn entries_are_swapped_unless_in_use() {
    let mut guest = machine();
    permit(&guest.0.guest.memory, 8, 0x11, false);
    let mut swap = |a: u32, b: u32| (op(&mut guest, 11, 1, &[a, b, 0xffff]), status(&guest, 8));
    assert_eq!([swap(8, 20), swap(8, 8), swap(8, 512), swap(512, 8)], [(0, 0), (0, 0), (0, -3), (0, -3)]);
    let table = guest.0.guest.memory.special(special::GRANTS).unwrap();
    assert_eq!((table.u64(8 * 8), table.u32(20 * 8 + 4)), (0, 0x11));
    table.set_u16(20 * 8, 1 | 8);
    assert_eq!((op(&mut guest, 11, 1, &[8, 20, 0]), status(&guest, 8)), (0, -12));
}
