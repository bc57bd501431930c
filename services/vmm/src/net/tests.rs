//! An interface between a fake netfront and a fake netback.

use alloc::vec::Vec;
use proptest::prelude::*;
use rt::channel::Server;

use super::*;
use crate::grants::tests::{flags, permit};
use crate::memory::{Gfn, Page};
use crate::testing::{channel_with_pool, guest};

struct Setup {
    guest: Guest,
    vif: Vif,
    server: Server<Net>,
    pool: Pool,
    tx: Page,
    rx: Page,
    port: Port,
    tx_prod: u32,
    rx_prod: u32,
}

fn setup() -> Setup {
    let mut guest = guest();
    for page in 8..60 {
        permit(&guest.memory, page, page, false);
    }
    let port = guest.events.allocate_unbound().unwrap();
    let mut vif = Vif::new(32);
    let (client, mut server) = channel_with_pool::<Net>(POOL_SIZE);
    let pool = Pool::from_region(server.info().pool);
    vif.set_link(Some(client));
    assert_eq!(server.receive(), Ok(Some(Request::Open)));
    server.send(&Response::Opened).unwrap();
    vif.service(&mut guest);
    vif.connect(&mut guest, "8", "9", &alloc::format!("{}", port.0)).unwrap();
    let (tx, rx) = (guest.memory.page(Gfn(8)).unwrap(), guest.memory.page(Gfn(9)).unwrap());
    tx.set_u32(12, 1);
    rx.set_u32(12, 1);
    Setup { guest, vif, server, pool, tx, rx, port, tx_prod: 0, rx_prod: 0 }
}

impl Setup {
    fn put_tx(&mut self, grant: u32, offset: u16, flags: u16, id: u16, size: u16) {
        let mut entry = grant.to_le_bytes().to_vec();
        for half in [offset, flags, id, size] {
            entry.extend(half.to_le_bytes());
        }
        self.tx.write(64 + (self.tx_prod % 256) as usize * 12, &entry);
        self.tx_prod += 1;
        self.tx.set_u32(0, self.tx_prod);
    }

    fn put_rx(&mut self, id: u16, grant: u32) {
        let [a, b] = id.to_le_bytes();
        let [c, d, e, f] = grant.to_le_bytes();
        self.rx.write(64 + (self.rx_prod % 256) as usize * 8, &[a, b, 0, 0, c, d, e, f]);
        self.rx_prod += 1;
        self.rx.set_u32(0, self.rx_prod);
    }

    fn service(&mut self) {
        self.vif.service(&mut self.guest);
    }

    fn received(&mut self) -> Vec<Request> {
        core::iter::from_fn(|| self.server.receive().unwrap()).collect()
    }

    fn tx_status(&self) -> Vec<(u16, i16)> {
        (0..self.tx.u32(8))
            .map(|n| {
                let at = 64 + (n % 256) as usize * 12;
                (self.tx.u16(at), self.tx.u16(at + 2) as i16)
            })
            .collect()
    }

    fn rx_status(&self) -> Vec<(u16, u16, i16)> {
        (0..self.rx.u32(8))
            .map(|n| {
                let at = 64 + (n % 256) as usize * 8;
                (self.rx.u16(at), self.rx.u16(at + 4), self.rx.u16(at + 6) as i16)
            })
            .collect()
    }
}

#[test]
fn a_packet_in_pieces_becomes_one_frame() {
    let mut s = setup();
    for (page, value) in [(16, 1), (17, 2), (18, 3)] {
        s.guest.memory.page(Gfn(page)).unwrap().memory().fill(0, 4096, value).unwrap();
    }
    s.put_tx(16, 4000, 1 | 4, 70, 500);
    s.put_tx(17, 0, 4, 71, 300);
    s.put_tx(18, 100, 0, 72, 120);
    s.service();
    let [Request::Send { offset, len: 500, needs_checksum: true }] = s.received()[..] else { panic!() };
    let mut frame = [0; 500];
    s.pool.read(offset as usize, &mut frame).unwrap();
    assert!(frame[..80].iter().all(|&b| b == 1));
    assert!(frame[80..380].iter().all(|&b| b == 2));
    assert!(frame[380..].iter().all(|&b| b == 3));
    assert_eq!(s.tx_status(), [(70, 0), (71, 0), (72, 0)]);
    assert!(s.guest.events.is_pending(s.port));
    assert_eq!(flags(&s.guest.memory, 16), 1);
}

#[test]
fn packets_that_break_a_rule_are_answered_with_an_error_and_not_sent() {
    let mut s = setup();
    s.put_tx(16, 0, 0, 1, 1515);
    s.put_tx(16, 0, 0, 2, 13);
    s.put_tx(16, 4090, 0, 3, 60);
    s.put_tx(500, 0, 0, 4, 60);
    s.put_tx(16, 0, 4, 5, 60);
    s.put_tx(16, 0, 0, 6, 61);
    for n in 0..19 {
        s.put_tx(16, 0, if n < 18 { 4 } else { 0 }, 10 + n, if n == 0 { 1000 } else { 10 });
    }
    s.put_tx(16, 0, 0, 40, 60);
    s.service();
    assert!(matches!(s.received()[..], [Request::Send { len: 60, .. }]));
    let status = s.tx_status();
    assert_eq!(status.len(), 26);
    assert!(status[..25].iter().all(|(_, status)| *status == -1));
    assert_eq!(status[25], (40, 0));
}

#[test]
fn a_slow_netback_stops_the_guest_and_loses_nothing() {
    let mut s = setup();
    let mut sent = 0u16;
    let mut seen = 0;
    for _ in 0..10 {
        while s.tx_prod - s.tx.u32(8) < 256 && sent < 900 {
            s.put_tx(16, 0, 0, sent, 60);
            sent += 1;
        }
        for _ in 0..3 {
            s.service();
        }
        for request in s.received() {
            let Request::Send { offset, .. } = request else { panic!() };
            seen += 1;
            s.server.send(&Response::Sent { offset, is_accepted: true }).unwrap();
        }
    }
    s.service();
    assert_eq!((sent, seen), (900, 900));
}

#[test]
fn frames_wait_for_the_guests_pages() {
    let mut s = setup();
    for n in 0..3u32 {
        let offset = RECEIVE_BASE + n * BUFFER_SIZE;
        s.pool.fill(offset as usize, 100, n as u8 + 1).unwrap();
        s.server.send(&Response::Receive { offset, len: 100, needs_checksum: n == 1 }).unwrap();
    }
    s.put_rx(5, 20);
    s.service();
    assert_eq!(s.rx_status(), [(5, 0, 100)]);
    assert_eq!(s.received(), [Request::Release { offset: RECEIVE_BASE }]);
    assert_eq!(s.rx.u32(4), 2, "asks to be told of the next page");
    s.put_rx(6, 21);
    s.put_rx(7, 500);
    s.service();
    assert_eq!(s.rx_status(), [(5, 0, 100), (6, 3, 100), (7, 0, -1)]);
    assert_eq!(s.received().len(), 2);
    assert_eq!(s.guest.memory.page(Gfn(21)).unwrap().u8(99), 2);
    assert_eq!(s.guest.memory.page(Gfn(21)).unwrap().u8(100), 0);
}

#[test]
fn without_a_frontend_frames_are_given_back() {
    let mut s = setup();
    s.vif.disconnect(&mut s.guest);
    assert_eq!((flags(&s.guest.memory, 8), flags(&s.guest.memory, 9)), (1, 1));
    s.server.send(&Response::Receive { offset: RECEIVE_BASE, len: 60, needs_checksum: false }).unwrap();
    s.service();
    assert_eq!(s.received(), [Request::Release { offset: RECEIVE_BASE }]);
}

#[test]
fn netbacks_mistakes_have_no_effect() {
    let mut s = setup();
    s.put_rx(5, 20);
    for (offset, len) in [(0, 60), (RECEIVE_BASE + 1, 60), (POOL_SIZE as u32, 60), (u32::MAX, 60)] {
        s.server.send(&Response::Receive { offset, len, needs_checksum: false }).unwrap();
    }
    s.server.send(&Response::Receive { offset: RECEIVE_BASE, len: 9999, needs_checksum: false }).unwrap();
    s.server.send(&Response::Sent { offset: 7, is_accepted: true }).unwrap();
    s.service();
    assert_eq!(s.rx_status(), []);
    assert_eq!(s.received(), [Request::Release { offset: RECEIVE_BASE }]);
}

#[test]
fn a_part_of_a_packet_or_an_extra_slot_ends_the_connection() {
    for flag in [4, 8] {
        let mut s = setup();
        s.put_tx(16, 0, flag, 1, 60);
        s.service();
        assert!(s.vif.front.is_none());
        assert_eq!(flags(&s.guest.memory, 8), 1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn random_rings_and_messages_are_survived(
        words in prop::collection::vec((0usize..1024, any::<u32>(), 0u32..300, any::<bool>()), 1..60)
    ) {
        let mut s = setup();
        let port = alloc::format!("{}", s.port.0);
        for (index, value, ahead, is_tx) in words {
            let page = if is_tx { s.tx } else { s.rx };
            page.set_u32(index * 4, value);
            if index % 3 == 0 {
                page.set_u32(0, ahead);
            }
            let offset = if is_tx { value } else { RECEIVE_BASE + (value % 130) * BUFFER_SIZE };
            s.server.send(&Response::Receive { offset, len: ahead as u16, needs_checksum: is_tx }).ok();
            s.service();
            for request in s.received() {
                if let Request::Send { offset, len, .. } = request {
                    prop_assert!(offset + u32::from(len) <= RECEIVE_BASE);
                    s.server.send(&Response::Sent { offset, is_accepted: true }).ok();
                }
            }
            if s.vif.front.is_none() {
                let _ = s.vif.connect(&mut s.guest, "8", "9", &port);
            }
        }
    }
}
