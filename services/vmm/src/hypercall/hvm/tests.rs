//! hvm_op as guests call it.
use proto::toolstack::EndReason;

use super::super::tests::{ARGUMENT, call, word};
use crate::machine::{Machine, Outcome, Vcpu};
use crate::memory::Gfn;
use crate::testing::{FakePlatform, machine};

const SELF: u32 = 0x7ff0;

type Guest = (Machine<FakePlatform>, Vcpu);

fn op(guest: &mut Guest, operation: u64, words: &[u32]) -> i64 {
    call(&mut guest.0, &mut guest.1, 34, [operation, ARGUMENT, 0], words).0
}

fn get(guest: &mut Guest, index: u32) -> (i64, u32, u32) {
    let answer = op(guest, 1, &[SELF, index, 0x99, 0x99]);
    (answer, word(&guest.0, 8), word(&guest.0, 12))
}

fn set(guest: &mut Guest, index: u32, low: u32, high: u32) -> i64 {
    op(guest, 0, &[SELF, index, low, high])
}

#[test]
fn parameters_name_rings_and_ports() {
    let mut guest = machine();
    assert_eq!((get(&mut guest, 1), get(&mut guest, 17)), ((0, 0xfeffd, 0), (0, 0xfeffc, 0)));
    let (store, console) = (get(&mut guest, 2).1, get(&mut guest, 18).1);
    assert!(store != 0 && console != 0 && store != console);
    assert_eq!(set(&mut guest, 2, 77, 0), 0);
    assert_eq!((get(&mut guest, 2).1, get(&mut guest, 18).1), (77, console), "kept, and without effect");
    assert_eq!([set(&mut guest, 1, 1, 0), set(&mut guest, 17, 1, 0)], [-1, -1]);
}

#[test]
fn each_parameter_has_its_answer() {
    let mut guest = machine();
    let readable = [0, 1, 2, 15, 17, 18, 19, 34, 35, 36, 37];
    let settable = [0, 2, 15, 18, 34, 36];
    let gone = [4, 13, 20, 21, 22, 23, 24, 25, 26, 30];
    for index in 0..39 {
        let expected = |good: bool| {
            if gone.contains(&index) {
                -22
            } else if good {
                0
            } else {
                -1
            }
        };
        assert_eq!(get(&mut guest, index).0, expected(readable.contains(&index)), "get {index}");
        let answer = set(&mut guest, index, 0, 0);
        match index {
            19 => assert_eq!(answer, -19),
            37 => assert_eq!(answer, 0, "the guest ends"),
            _ => assert_eq!(answer, expected(settable.contains(&index)), "set {index}"),
        }
    }
    assert_eq!([get(&mut guest, 39).0, set(&mut guest, 39, 0, 0), get(&mut guest, u32::MAX).0], [-22; 3]);
    for operation in [0, 1] {
        assert_eq!(
            [op(&mut guest, operation, &[0, 2, 0, 0]), op(&mut guest, operation, &[9, 2, 0, 0])],
            [-1, -3]
        );
        assert_eq!(op(&mut guest, operation, &[9, 39, 0, 0]), -22, "the index first");
        assert_eq!(call(&mut guest.0, &mut guest.1, 34, [operation, 0x7fff_0000, 0], &[]).0, -14);
    }
}

#[test]
fn the_upcall_comes_by_vector_or_as_it_did_before() {
    let mut guest = machine();
    assert_eq!(set(&mut guest, 0, 0xf3, 2 << 24), 0);
    assert_eq!(guest.0.guest.callback, Some(0xf3));
    for (low, high) in [(9, 0), (0x1234, 1 << 24), (7, 9 << 24), (0, 0)] {
        assert_eq!(set(&mut guest, 0, low, high), 0);
        assert_eq!((get(&mut guest, 0), guest.0.guest.callback), ((0, low, high), Some(0xf3)));
    }
    assert_eq!(op(&mut guest, 23, &[0, 15]), -22);
    assert_eq!(op(&mut guest, 23, &[1, 0xf3]), -2);
    assert_eq!(call(&mut guest.0, &mut guest.1, 34, [23, 0x7fff_0000, 0], &[]).0, -14);
}

#[test]
fn task_state_segments_and_other_values_are_checked() {
    let mut guest = machine();
    assert_eq!((set(&mut guest, 15, 0x1000, 0), get(&mut guest, 37)), (0, (0, 0x1000, 128)));
    assert_eq!((set(&mut guest, 37, 0x2000, u32::MAX), get(&mut guest, 37)), (0, (0, 0x2000, 0x2089)));
    assert_eq!(
        (get(&mut guest, 15), set(&mut guest, 15, 0, 0), get(&mut guest, 37)),
        ((0, 0x2000, 0), 0, (0, 0, 0))
    );
    assert_eq!(
        [set(&mut guest, 36, 4, 0), set(&mut guest, 36, 5, 0), set(&mut guest, 36, 0, 1)],
        [0, -22, -22]
    );
    assert_eq!(get(&mut guest, 36).1, 4);
    for words in [[SELF, 15, 0, 1], [SELF, 37, 0x1000, 0x67]] {
        let (_, outcome) = call(&mut guest.0, &mut guest.1, 34, [0, ARGUMENT, 0], &words);
        assert!(matches!(outcome, Outcome::End(EndReason::Crash, _)));
    }
}

#[test]
fn memory_types_and_time() {
    let mut guest = machine();
    guest.0.guest.memory.give_away(Gfn(7));
    let mut kind =
        |gfn: u32| (op(&mut guest, 15, &[SELF | 0x7777 << 16, 0, gfn, 0]), word(&guest.0, 0) >> 16);
    assert_eq!([kind(6), kind(7), kind(0xfee00)], [(0, 0), (0, 2), (0, 2)]);
    assert_eq!([op(&mut guest, 15, &[0]), op(&mut guest, 15, &[9])], [-1, -3]);
    guest.0.platform.tsc.set(5000);
    assert_eq!(op(&mut guest, 10, &[]), 0);
    assert!((4999..=5000).contains(&word(&guest.0, 0)));
}

#[test]
fn the_rest_is_refused_or_does_nothing() {
    let mut guest = machine();
    assert_eq!(
        [op(&mut guest, 9, &[SELF]), op(&mut guest, 9, &[0]), op(&mut guest, 9, &[9])],
        [-22, -95, -3]
    );
    assert_eq!(
        [
            op(&mut guest, 11, &[0xfff | 28 << 16]),
            op(&mut guest, 11, &[0x1000]),
            op(&mut guest, 11, &[29 << 16])
        ],
        [0, -22, -22]
    );
    for operation in [5, 24] {
        assert_eq!(op(&mut guest, operation, &[]), -22);
        assert_eq!(call(&mut guest.0, &mut guest.1, 34, [operation, 0, 0], &[]).0, 0);
    }
    assert_eq!(op(&mut guest, 25, &[]), -95);
    for operation in [2, 3, 4, 6, 7, 8, 12, 13, 14, 16, 17, 18, 19, 20, 21, 22, 26, u64::MAX] {
        assert_eq!(op(&mut guest, operation, &[]), -38);
    }
}
