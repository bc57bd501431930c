//! memory_op as guests call it.
use super::super::tests::{ARGUMENT, call, call32, word};
use crate::loader::place::special;
use crate::machine::{Machine, Vcpu};
use crate::memory::{Gfn, GuestPhys};
use crate::testing::{FakePlatform, RAM_PAGES, machine};

const SELF: u32 = 0x7ff0;
const LIST: u64 = 0x1_0000;

struct Guest {
    machine: Machine<FakePlatform>,
    vcpu: Vcpu,
}

impl Guest {
    fn new() -> Self {
        let (machine, vcpu) = machine();
        Self { machine, vcpu }
    }
    fn op(&mut self, operation: u64, words: &[u32]) -> i64 {
        call(&mut self.machine, &mut self.vcpu, 12, [operation, ARGUMENT, 0], words).0
    }
    fn op32(&mut self, operation: u64, words: &[u32]) -> i64 {
        call32(&mut self.machine, &mut self.vcpu, 12, [operation, ARGUMENT, 0], words).0
    }
    fn put(&self, at: u64, bytes: &[u8]) {
        self.machine.guest.memory.write(GuestPhys(at), bytes).unwrap();
    }
    fn list(&self, gfns: &[u64]) {
        for (n, gfn) in gfns.iter().enumerate() {
            self.put(LIST + 8 * n as u64, &gfn.to_le_bytes());
        }
    }
    fn count(&mut self) -> i64 {
        self.op(3, &[SELF])
    }
    fn is_there(&self, gfn: u64) -> bool {
        self.machine.guest.memory.page(Gfn(gfn)).is_some()
    }
    fn add(&mut self, space: u32, index: u64, gfn: u64) -> i64 {
        self.op(7, &add(SELF, space, index, gfn))
    }
    fn reserve(&mut self, operation: u64, count: u32, order: u32) -> i64 {
        self.op(operation, &reservation(count, order, 0, SELF))
    }
}

fn add(domid: u32, space: u32, index: u64, gfn: u64) -> [u32; 6] {
    [domid, space, index as u32, (index >> 32) as u32, gfn as u32, (gfn >> 32) as u32]
}

fn reservation(count: u32, order: u32, flags: u32, domid: u32) -> [u32; 8] {
    [LIST as u32, 0, count, 0, order, flags, domid, 0]
}

#[test]
fn special_frames_go_where_the_guest_wants_them_and_free_the_ram_there() {
    let mut guest = Guest::new();
    assert_eq!(guest.add(0, 0, 1), 0);
    assert_eq!(guest.add(1, 2, 0x18000), 0);
    assert_eq!(guest.add(1, 0, 1), 0, "the table's first frame takes shared_info's place");
    assert_eq!(guest.add(0, 0, 3), 0);
    assert_eq!(guest.add(0, 0, 4), 0);
    assert_eq!(guest.add(2, special::SHARED_INFO as u64, 0x30000), -12);
    assert_eq!(guest.add(2, 4, 0x30000), 0, "shared_info itself moves by its frame number");
    let memory = &guest.machine.guest.memory;
    assert_eq!(memory.special_at(Gfn(1)), Some(special::GRANTS));
    assert_eq!(memory.special_at(Gfn(0x30000)), Some(special::SHARED_INFO));
    assert!(!guest.is_there(3) && !guest.is_there(4));
    assert_eq!(guest.machine.guest.grants.frames(), 3);
    assert_eq!(guest.count(), RAM_PAGES as i64 - 3);
}

#[test]
fn add_to_physmap_refuses_in_xens_order() {
    let mut guest = Guest::new();
    assert_eq!(guest.add(0, 1, 5), -22);
    assert_eq!(guest.add(1, 32, 5), -22);
    assert_eq!(guest.add(1, 1 << 31, 5), -22, "version 1 has no status frames");
    assert_eq!(guest.add(1, 1 << 32, 5), 0, "32 bits of the index count");
    assert_eq!((guest.add(2, 5, 6), guest.add(2, 0x40000, 6)), (0, -22));
    assert_eq!((guest.add(4, 0, 5), guest.add(5, 0, 5), guest.add(6, 0, 5)), (-38, -13, -22));
    assert_eq!((guest.add(0, 0, 1 << 40), guest.add(0, 0, u64::MAX)), (-22, -22));
    assert_eq!(guest.op(7, &add(3, 0, 0, 7)), -3);
    assert_eq!(guest.op(7, &add(0, 0, 0, 7)), -1);
    assert_eq!((guest.op(7, &add(0, 5, 0, 7)), guest.op(7, &add(3, 5, 0, 7))), (-13, -3));
    assert_eq!(guest.op(7, &add(5, 0, 0, 7)), 0, "its own number");
    assert_eq!(guest.op(7 | 0x1_0000 << 6, &add(SELF, 0, 0, 7)), -33);
    assert_eq!(call(&mut guest.machine, &mut guest.vcpu, 12, [7, 0x7fff_0000, 0], &[]).0, -14);
    assert_eq!(guest.op32(7, &[SELF, 0, 0, 9]), 0, "four words from 32-bit code");
    assert_eq!(guest.machine.guest.memory.special_at(Gfn(9)), Some(special::SHARED_INFO));
}

#[test]
fn a_page_of_the_guests_own_moves_with_what_is_in_it() {
    let mut guest = Guest::new();
    guest.put(0x6ff8, b"moved...");
    assert_eq!(guest.add(2, 6, 7), 0);
    assert!(!guest.is_there(6));
    assert_eq!(guest.machine.guest.memory.page(Gfn(7)).unwrap().u64(0xff8), u64::from_le_bytes(*b"moved..."));
    assert_eq!(guest.count(), RAM_PAGES as i64 - 1, "the page that was at 7 is gone");
    assert_eq!(guest.add(2, 7, 7), 0);
    assert!(guest.is_there(7));
    assert_eq!(guest.add(2, 7, 0x50000), -12, "there is no frame for it");
    // 70 pages from 0x20 on to themselves: the last ones are none.
    let range = |size: u32| [SELF | size << 16, 3, 0x20, 0, 0x20, 0];
    assert_eq!(guest.op(7, &range(70)), -22);
    assert_eq!(guest.op(7, &range(0x20)), 0);
    assert_eq!(guest.op(7 | 33 << 6, &range(0x20)), -84);
    assert_eq!(guest.op(7, &[SELF | 2 << 16, 3, u32::MAX, u32::MAX, 5, 0]), -75);
}

#[test]
fn a_batch_has_an_error_for_each_page() {
    let mut guest = Guest::new();
    for (n, (index, gfn)) in [(0u64, 0x9_0000u64), (40, 0x9_0001), (1, 0x9_0002)].iter().enumerate() {
        guest.put(LIST + 8 * n as u64, &index.to_le_bytes());
        guest.put(LIST + 0x100 + 8 * n as u64, &gfn.to_le_bytes());
    }
    guest.put(LIST + 0x200, &[0xff; 16]);
    let batch = |space: u32, size: u32| {
        [SELF | space << 16, size, LIST as u32, 0, LIST as u32 + 0x100, 0, LIST as u32 + 0x200, 0]
    };
    assert_eq!(guest.op(23, &batch(1, 3)), 0);
    let error = |n: u64| {
        let mut bytes = [0; 4];
        guest.machine.guest.memory.read(GuestPhys(LIST + 0x200 + 4 * n), &mut bytes).unwrap();
        i32::from_le_bytes(bytes)
    };
    assert_eq!([error(0), error(1), error(2), error(3)], [0, -22, 0, -1]);
    assert_eq!(guest.op(23, &batch(1, 0)), 0);
    assert_eq!((guest.op(23, &batch(3, 1)), guest.op(23, &batch(5, 1))), (-95, -13));
    assert_eq!(guest.op(23 | 3 << 6, &batch(1, 3)), -84);
    assert_eq!(guest.op(23 | 0x1_0000 << 6, &batch(1, 3)), -33);
    assert_eq!(guest.op(23, &batch(4, 1)), 0);
    assert_eq!(word32(&guest, LIST + 0x200), -1, "foreign pages");
    assert_eq!(guest.op(23, &[7 | 1 << 16, 1, 0, 0, 0, 0, 0, 0]), -3);
    let nowhere = [SELF | 1 << 16, 1, LIST as u32, 0, LIST as u32 + 0x100, 0, 0x7fff_0000, 0];
    assert_eq!(guest.op(23, &nowhere), -14);
}

fn word32(guest: &Guest, at: u64) -> i32 {
    let mut bytes = [0; 4];
    guest.machine.guest.memory.read(GuestPhys(at), &mut bytes).unwrap();
    i32::from_le_bytes(bytes)
}

#[test]
fn what_is_removed_is_absent_and_still_counts() {
    let mut guest = Guest::new();
    let remove = |gfn: u32| [SELF, 0, gfn, 0];
    assert_eq!(guest.op(15, &remove(9)), 0);
    assert!(!guest.is_there(9));
    assert_eq!((guest.op(15, &remove(9)), guest.op(15, &remove(0x99999))), (-2, -2));
    assert_eq!(guest.count(), RAM_PAGES as i64);
    guest.list(&[9]);
    assert_eq!(guest.reserve(6, 1, 0), 0, "no room for another page");
    assert_eq!(guest.add(0, 0, 0x99999), 0);
    assert_eq!(guest.op(15, &remove(0x99999)), 0);
    assert_eq!(guest.machine.guest.memory.where_is(special::SHARED_INFO), None);
    assert_eq!((guest.op(15, &[0, 0, 8, 0]), guest.op(15, &[9, 0, 8, 0])), (-1, -3));
    assert_eq!((guest.op(15 | 1 << 6, &remove(8)), guest.op32(15, &[SELF, 8])), (-22, 0));
}

#[test]
fn pages_that_were_given_away_come_back_as_zeros() {
    let mut guest = Guest::new();
    guest.put(0x2_0000, b"secret");
    guest.list(&[0x20, 0x21, 0x20]);
    assert_eq!(guest.reserve(1, 3, 0), 2, "the third was given away already");
    assert_eq!((guest.count(), guest.machine.platform.unmapped.len()), (RAM_PAGES as i64 - 2, 2));
    assert!(!guest.is_there(0x20) && !guest.is_there(0x21));
    assert_eq!(guest.reserve(6, 3, 0), 2, "no room for a third page");
    assert!(guest.machine.platform.unmapped.is_empty());
    let page = guest.machine.guest.memory.page(Gfn(0x20)).unwrap();
    assert_eq!((page.u64(0), guest.count()), (0, RAM_PAGES as i64));
    // An extent of four pages, of which one is absent.
    guest.list(&[0x22]);
    assert_eq!(guest.reserve(1, 1, 0), 1);
    guest.list(&[0x20]);
    assert_eq!(guest.reserve(1, 1, 2), 0);
    assert_eq!(guest.count(), RAM_PAGES as i64 - 3, "the two before it are gone, as with Xen");
    assert_eq!(guest.reserve(6, 1, 1), 1);
    guest.list(&[0x99999]);
    assert_eq!((guest.reserve(1, 1, 0), guest.reserve(6, 1, 0)), (0, 0), "never was RAM");
    guest.list(&[u64::MAX]);
    assert_eq!((guest.reserve(1, 1, 1), guest.reserve(6, 1, 0)), (0, 0));
}

#[test]
fn a_special_frame_gives_way_to_populated_ram() {
    let mut guest = Guest::new();
    assert_eq!(guest.add(0, 0, 0x11), 0);
    guest.list(&[0x11]);
    assert_eq!(guest.reserve(6, 1, 0), 1);
    assert_eq!(guest.machine.guest.memory.where_is(special::SHARED_INFO), None);
    assert!(guest.is_there(0x11));
    assert_eq!(guest.add(0, 0, 0x12), 0);
    guest.list(&[0x12]);
    assert_eq!(guest.reserve(1, 1, 0), 1);
    assert!(!guest.is_there(0x12));
}

#[test]
fn long_lists_are_continued_and_illegal_ones_not_begun() {
    let mut guest = Guest::new();
    // 600 entries at the end of RAM, which is given away entirely but for the pages that the call needs.
    let gfns: alloc::vec::Vec<u64> = (0x20..0x40).collect();
    guest.list(&gfns);
    assert_eq!(guest.reserve(1, 32, 0), 32);
    assert_eq!(guest.reserve(6, 32, 0), 32);
    assert_eq!((guest.reserve(1, 0, 0), guest.reserve(1, 1, 10), guest.reserve(6, 1, 10)), (0, 0, 0));
    assert_eq!((guest.reserve(1, 0x400_0000, 0), guest.reserve(6, u32::MAX, 0)), (0, 0));
    assert_eq!(guest.op(1 | 7 << 6, &reservation(7, 0, 0, SELF)), 7, "progress at the end");
    assert_eq!(guest.op(1 | 30 << 6, &reservation(32, 0, 0, SELF)), 32, "the last two of the list");
    assert_eq!(guest.op(6 | 30 << 6, &reservation(32, 0, 0, SELF)), 32);
    let flags = |flags| reservation(1, 0, flags, SELF);
    assert_eq!((guest.op(1, &flags(12)), guest.op(1, &flags(13))), (0, 1), "address bits");
    assert_eq!((guest.op(6, &flags(1 << 16)), guest.op(6, &flags(1 << 17 | 1 << 8))), (0, 0));
    assert_eq!(guest.op(6, &flags(1 << 8)), 1, "a node as a wish");
    assert_eq!((guest.op(1, &reservation(1, 0, 0, 0)), guest.op(1, &reservation(1, 0, 0, 9))), (0, 0));
    assert_eq!(guest.op(1, &[0x7fff_0000, 0, 1, 0, 0, 0, SELF, 0]), 0, "no list");
    assert_eq!(call(&mut guest.machine, &mut guest.vcpu, 12, [1, 0x7fff_0000, 0], &[]).0, 0);
    guest.put(LIST, &0x21u32.to_le_bytes());
    assert_eq!(guest.op32(1, &[LIST as u32, 1, 0, 0, SELF]), 1);
    assert!(!guest.is_there(0x21));
}

#[test]
fn more_pages_than_the_maximum_are_not_to_be_had() {
    let mut guest = Guest::new();
    assert_eq!(guest.op(0, &[0, 0, 4, 0, 0, 0, SELF, 0]), 0);
    guest.list(&[0x30, 0x31, 0x32, 0x33]);
    assert_eq!(guest.reserve(1, 4, 0), 4);
    assert_eq!(guest.op(0, &[0, 0, 3, 0, 1, 0, SELF, 0]), 2, "pages without a place");
    assert_eq!((guest.count(), guest.op(4, &[SELF])), (RAM_PAGES as i64, RAM_PAGES as i64));
    assert_eq!(guest.reserve(6, 4, 0), 0);
    assert_eq!((guest.op(3, &[0]), guest.op(4, &[3]), guest.op(14, &[3])), (-1, -3, -3));
    assert_eq!(guest.op(14, &[SELF]), RAM_PAGES as i64 - 1);
    assert_eq!(guest.op(2, &[]), RAM_PAGES as i64);
    assert_eq!((guest.op(3 | 1 << 6, &[SELF]), guest.op(2 | 1 << 6, &[])), (-22, -22));
}

#[test]
fn exchanged_pages_are_new_ones() {
    let mut guest = Guest::new();
    guest.put(0x2_0000, b"old");
    guest.list(&[0x20, 0x21]);
    guest.put(LIST + 0x100, &0x20u64.to_le_bytes());
    let exchange = |orders: [u32; 2], counts: [u32; 2], done: u32| {
        let mut words = reservation(counts[0], orders[0], 0, SELF).to_vec();
        words.extend([LIST as u32 + 0x100, 0, counts[1], 0, orders[1], 0, SELF, 0, done, 0]);
        words
    };
    assert_eq!(guest.op(11, &exchange([0, 1], [2, 1], 0)), 0);
    assert_eq!(word(&guest.machine, 64), 2, "both were exchanged");
    assert_eq!(guest.machine.guest.memory.page(Gfn(0x20)).unwrap().u64(0), 0);
    assert_eq!(guest.count(), RAM_PAGES as i64);
    assert_eq!(guest.op(11, &exchange([0, 1], [2, 1], 2)), 0, "nothing left to do");
    assert_eq!(guest.op(11, &exchange([10, 0], [1, 1024], 0)), -1);
    assert_eq!(guest.op(11, &exchange([0, 0], [2, 1], 0)), -22);
    assert_eq!(guest.op(11, &exchange([0, 0], [1, 1], 2)), -22);
    assert_eq!(guest.op(11 | 1 << 6, &exchange([0, 0], [1, 1], 0)), -22);
    guest.list(&[0x9_9999]);
    assert_eq!(guest.op(11, &exchange([0, 0], [1, 1], 0)), -22);
    assert_eq!(word(&guest.machine, 64), 0);
    guest.list(&[0x20]);
    guest.put(LIST + 0x100, &0x9_9999u64.to_le_bytes());
    assert_eq!(guest.op(11, &exchange([0, 0], [1, 1], 0)), -12, "never was RAM");
    assert!(guest.is_there(0x20));
}

#[test]
fn the_memory_map_is_the_first_ones_until_the_guest_sets_another() {
    let mut guest = Guest::new();
    assert_eq!(guest.op(9, &[2, 0, 0x9000, 0]), 0);
    assert_eq!(word(&guest.machine, 0), 2);
    let entry = |guest: &Guest, n: u64| {
        let mut entry = [0; 20];
        guest.machine.guest.memory.read(GuestPhys(0x9000 + 20 * n), &mut entry).unwrap();
        (u64::from_le_bytes(entry[..8].try_into().unwrap()), entry[16])
    };
    assert_eq!(entry(&guest, 1), (0xfc00_0000, 3));
    assert_eq!(guest.op32(9, &[99, 0x9000]), 0);
    assert_eq!(word(&guest.machine, 0), 3);
    assert_eq!((guest.op(9, &[9, 0, 0x7fff_0000, 0]), guest.op(9 | 1 << 6, &[])), (-14, -38));
    guest.put(LIST, &[7; 40]);
    assert_eq!(guest.op(13, &[SELF, 0, 2, 0, LIST as u32, 0]), 0);
    assert_eq!(guest.op(9, &[9, 0, 0x9000, 0]), 0);
    assert_eq!((word(&guest.machine, 0), entry(&guest, 1)), (2, (0x0707_0707_0707_0707, 7)));
    assert_eq!(guest.op32(13, &[SELF, 1, LIST as u32]), 0);
    assert_eq!((guest.op(9, &[9, 0, 0x9000, 0]), word(&guest.machine, 0)), (0, 1));
    assert_eq!(guest.op(13, &[SELF, 0, 1025, 0, LIST as u32, 0]), -22);
    assert_eq!(guest.op(13, &[SELF, 0, 1024, 0, LIST as u32, 0]), -12, "more than is kept");
    assert_eq!(guest.op(13, &[SELF, 0, 2, 0, 0x7fff_0000, 0]), -14);
    assert_eq!((guest.op(13, &[0, 0, 1, 0, 0, 0]), guest.op(13, &[3, 0, 1, 0, 0, 0])), (-1, -3));
    assert_eq!(guest.op(13, &[SELF, 0, 0, 0, 0, 0]), 0);
    assert_eq!(guest.op(9, &[9, 0, 0x9000, 0]), -38, "an empty map is none");
}

#[test]
fn what_is_for_the_toolstack_is_refused() {
    let mut guest = Guest::new();
    let pod = |domid: u32| [0, 0, 0, 0, 0, 0, 0, 0, domid, 0];
    assert_eq!([guest.op(16, &pod(SELF)), guest.op(17, &pod(SELF)), guest.op(17, &pod(9))], [-1, -1, -3]);
    assert_eq!([guest.op(5, &[]), guest.op(8, &[]), guest.op(10, &[]), guest.op(12, &[])], [-38; 4]);
    assert_eq!(
        [guest.op(18, &[]), guest.op(19, &[]), guest.op(20, &[]), guest.op(22, &[])],
        [0, 0, -38, -38]
    );
    assert_eq!([guest.op(21, &[SELF << 16]), guest.op(21, &[5 << 16]), guest.op(21, &[0])], [-3, -1, -22]);
    let claim = |list: u32, order: u32, flags: u32, domid: u32| [list, 0, 9, 0, order, flags, domid, 0];
    assert_eq!([guest.op(24, &claim(0, 0, 0, SELF)), guest.op(24, &claim(0, 0, 0, 5))], [-22, -1]);
    assert_eq!([guest.op(24, &claim(1, 0, 0, 5)), guest.op(24, &claim(0, 1, 0, 5))], [-22, -22]);
    assert_eq!([guest.op(25, &[]), guest.op(26, &[SELF]), guest.op(26, &[SELF | 1 << 16])], [-95, -95, -22]);
    assert_eq!((guest.op(27, &[1, 9, 0, 0, 0, 0]), word(&guest.machine, 4)), (0, 0));
    assert_eq!([guest.op(27, &[2, 9, 0, 0, 0, 0]), guest.op(28, &[]), guest.op(29, &[])], [-22, -13, -38]);
    assert_eq!([guest.op(63, &[]), guest.op(28 | 1 << 6, &[])], [-38, -13]);
}
