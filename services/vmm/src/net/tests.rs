//! An interface between a fake netfront and a fake netback.

use alloc::vec::Vec;
use proptest::prelude::*;
use proto::net::{Checksum, POOL_SIZE, Segments};
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

fn nodes(port: &str) -> Nodes<'_> {
    Nodes { tx_ring_ref: "8", rx_ring_ref: "9", event_channel: port, offloads: Offloads::ALL }
}

fn setup() -> Setup {
    let mut guest = guest();
    for page in 8..60 {
        permit(&guest.memory, page, page, false);
    }
    let port = guest.events.allocate_unbound(0).unwrap();
    let mut vif = Vif::new(32);
    let (client, mut server) = channel_with_pool::<Net>(POOL_SIZE);
    let pool = Pool::from_region(server.info().pool);
    vif.set_link(Some(client));
    assert_eq!(server.receive(), Ok(Some(Request::Open)));
    server.send(&Response::Opened).unwrap();
    vif.service(&mut guest);
    vif.connect(&mut guest, &nodes(&alloc::format!("{}", port.0))).unwrap();
    vif.service(&mut guest);
    assert_eq!(server.receive(), Ok(Some(Request::Accept(Offloads::ALL))));
    let (tx, rx) = (guest.memory.page(Gfn(8)).unwrap(), guest.memory.page(Gfn(9)).unwrap());
    tx.set_u32(12, 1);
    rx.set_u32(12, 1);
    Setup { guest, vif, server, pool, tx, rx, port, tx_prod: 0, rx_prod: 0 }
}

/// A short frame.
fn plain(offset: u32, len: u32, checksum: Checksum) -> Frame {
    Frame { offset, len, checksum, segments: Segments::One }
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
    let [Request::Send(frame)] = s.received()[..] else { panic!() };
    assert_eq!(frame, plain(frame.offset, 500, Checksum::Partial));
    let mut bytes = [0; 500];
    s.pool.read(frame.offset as usize, &mut bytes).unwrap();
    assert!(bytes[..80].iter().all(|&b| b == 1));
    assert!(bytes[80..380].iter().all(|&b| b == 2));
    assert!(bytes[380..].iter().all(|&b| b == 3));
    assert_eq!(s.tx_status(), [(70, 0), (71, 0), (72, 0)]);
    assert_eq!(flags(&s.guest.memory, 16), 1);
}

#[test]
fn a_large_packet_is_one_frame_and_its_extra_slot_is_answered_with_null() {
    let mut s = setup();
    s.put_tx(16, 0, 1 | 4 | 8, 70, 8292);
    // An extra slot: type GSO, size 1448, TCP over IPv4.
    s.put_tx(1 | 1448 << 16, 1, 0, 0, 0);
    s.put_tx(17, 0, 4, 71, 4096);
    s.put_tx(18, 0, 0, 72, 4096);
    s.service();
    let [Request::Send(frame)] = s.received()[..] else { panic!() };
    assert_eq!((frame.len, frame.segments), (8292, Segments::TcpV4 { size: 1448 }));
    let status: Vec<i16> = s.tx_status().iter().map(|(_, status)| *status).collect();
    assert_eq!(status, [0, 1, 0, 0]);
}

#[test]
fn a_large_frame_fills_several_pages_and_tells_how_to_cut_it() {
    let mut s = setup();
    let segments = Segments::TcpV6 { size: 1428 };
    s.pool.fill(RECEIVE_BASE as usize, 5000, 7).unwrap();
    let frame = Frame { offset: RECEIVE_BASE, len: 5000, checksum: Checksum::Partial, segments };
    s.server.send(&Response::Receive(frame)).unwrap();
    for n in 0..2 {
        s.put_rx(5 + n, 20 + u32::from(n));
    }
    s.service();
    assert!(s.rx_status().is_empty(), "waits for three slots");
    assert_eq!(s.rx.u32(4), 3);
    s.put_rx(7, 22);
    s.service();
    // Blank, validated, more data, extra info; then the extra slot; then the rest.
    let [first, _, last] = s.rx_status()[..] else { panic!() };
    assert_eq!((first, last), ((5, 1 | 2 | 4 | 8, 4096), (7, 0, 904)));
    let mut extra = [0; 8];
    s.rx.read(64 + 8, &mut extra);
    assert_eq!(extra, [1, 0, 0x94, 5, 2, 0, 0, 0]);
    assert_eq!(s.guest.memory.page(Gfn(22)).unwrap().u8(903), 7);
    assert_eq!(s.guest.memory.page(Gfn(22)).unwrap().u8(904), 0);
}

/// Whether the guest was notified since the last call.
fn is_notified(s: &mut Setup) -> bool {
    let was_pending = s.guest.events.is_pending(s.port);
    s.guest.memory.special(0).unwrap().set_u64(0x800, 0);
    was_pending
}

#[test]
fn that_packets_were_sent_is_told_with_a_frame_or_when_it_is_much_or_after_a_while() {
    let mut s = setup();
    s.put_tx(16, 0, 0, 1, 60);
    s.service();
    s.service();
    assert!(!is_notified(&mut s) && s.guest.events.holds(32) && !s.guest.events.holds_while_awake());
    s.guest.events.expire(false, || u64::MAX);
    s.service();
    assert!(is_notified(&mut s) && !s.guest.events.holds(32));
    // With a frame.
    s.tx.set_u32(12, 2);
    s.put_tx(16, 0, 0, 2, 60);
    s.put_rx(5, 20);
    s.service();
    assert!(!is_notified(&mut s));
    s.server.send(&Response::Receive(plain(RECEIVE_BASE, 60, Checksum::Valid))).unwrap();
    s.service();
    assert!(is_notified(&mut s) && !s.guest.events.holds(32));
    // Many packets, or a large one and the guest sleeps.
    s.tx.set_u32(12, 3);
    for n in 0..MUCH_PACKETS as u16 {
        s.put_tx(16, 0, 0, n, 60);
    }
    s.service();
    assert!(is_notified(&mut s) && !s.guest.events.holds(32));
    s.tx.set_u32(12, 3 + MUCH_PACKETS);
    s.put_tx(16, 0, 1 | 4 | 8, 70, 4196);
    s.put_tx(1 | 1448 << 16, 1, 0, 0, 0);
    s.put_tx(17, 0, 0, 71, 4096);
    s.service();
    assert!(!is_notified(&mut s) && s.guest.events.holds_while_awake());
    s.guest.events.expire(true, || 0);
    s.service();
    assert!(is_notified(&mut s));
    // The guest looked by itself.
    s.put_tx(16, 0, 0, 1, 60);
    s.service();
    s.tx.set_u32(12, s.tx.u32(8) + 1);
    s.guest.events.expire(false, || u64::MAX);
    s.service();
    assert!(!is_notified(&mut s) && !s.guest.events.holds(32));
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
    // The one whose page is not granted leaves an empty frame: memory is given back in order.
    let lens: Vec<u32> = s
        .received()
        .iter()
        .map(|request| match request {
            Request::Send(frame) => frame.len,
            _ => panic!(),
        })
        .collect();
    assert_eq!(lens, [0, 60]);
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
        let count = s.received().len();
        assert!(count <= FRAMES_MAX);
        seen += count;
        s.server.send(&Response::Sent { count: count as u16 }).unwrap();
    }
    s.service();
    assert_eq!((sent, seen), (900, 900));
}

#[test]
fn frames_wait_for_the_guests_pages() {
    let mut s = setup();
    for n in 0..3u32 {
        let offset = RECEIVE_BASE + n * 2048;
        s.pool.fill(offset as usize, 100, n as u8 + 1).unwrap();
        let checksum = if n == 1 { Checksum::Partial } else { Checksum::Unknown };
        s.server.send(&Response::Receive(plain(offset, 100, checksum))).unwrap();
    }
    s.put_rx(5, 20);
    s.service();
    assert_eq!(s.rx_status(), [(5, 0, 100)]);
    assert!(s.guest.events.is_pending(s.port));
    assert_eq!(s.received(), [Request::Release { count: 1 }]);
    assert_eq!(s.rx.u32(4), 2, "asks to be told of the next page");
    s.put_rx(6, 21);
    s.put_rx(7, 500);
    s.service();
    assert_eq!(s.rx_status(), [(5, 0, 100), (6, 3, 100), (7, 0, -1)]);
    assert_eq!(s.received(), [Request::Release { count: 2 }]);
    assert_eq!(s.guest.memory.page(Gfn(21)).unwrap().u8(99), 2);
    assert_eq!(s.guest.memory.page(Gfn(21)).unwrap().u8(100), 0);
}

#[test]
fn without_a_frontend_frames_are_given_back() {
    let mut s = setup();
    s.vif.disconnect(&mut s.guest);
    assert_eq!((flags(&s.guest.memory, 8), flags(&s.guest.memory, 9)), (1, 1));
    s.server.send(&Response::Receive(plain(RECEIVE_BASE, 60, Checksum::Unknown))).unwrap();
    s.service();
    assert_eq!(s.received(), [Request::Release { count: 1 }]);
}

#[test]
fn netbacks_mistakes_have_no_effect() {
    let mut s = setup();
    s.put_rx(5, 20);
    s.put_rx(6, 21);
    s.put_rx(7, 22);
    let frames = [
        plain(0, 60, Checksum::Unknown),
        plain(POOL_SIZE as u32, 60, Checksum::Unknown),
        plain(u32::MAX, 60, Checksum::Unknown),
        plain(RECEIVE_BASE, 9999, Checksum::Unknown),
        plain(RECEIVE_BASE, 0, Checksum::Unknown),
    ];
    for frame in frames {
        s.server.send(&Response::Receive(frame)).unwrap();
    }
    s.server.send(&Response::Sent { count: 7 }).unwrap();
    s.service();
    assert_eq!(s.rx_status(), []);
    assert_eq!(s.received(), [Request::Release { count: 5 }]);
    for _ in 0..FRAMES_MAX + 1 {
        s.server.send(&Response::Receive(plain(RECEIVE_BASE, 60, Checksum::Unknown))).unwrap();
    }
    s.service();
    assert!(s.vif.link().is_none(), "more frames than may be under way");
}

#[test]
fn a_part_of_a_packet_ends_the_connection() {
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
            let offset = if is_tx { value } else { RECEIVE_BASE + (value % 130) * 2048 };
            let segments = if index % 2 == 0 { Segments::One } else { Segments::TcpV4 { size: ahead as u16 } };
            let len = if index % 2 == 0 { ahead } else { ahead * 256 };
            let frame = Frame { offset, len, checksum: Checksum::Partial, segments };
            s.server.send(&Response::Receive(frame)).ok();
            s.service();
            for request in s.received() {
                if let Request::Send(frame) = request {
                    prop_assert!(frame.len == 0 || frame.is_within(0));
                    s.server.send(&Response::Sent { count: 1 }).ok();
                }
            }
            if s.vif.front.is_none() {
                let _ = s.vif.connect(&mut s.guest, &nodes(&port));
            }
        }
    }
}
