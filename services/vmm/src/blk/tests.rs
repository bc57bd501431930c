//! A disk between a fake blkfront and a fake blkback.

use alloc::vec::Vec;
use proptest::prelude::*;
use rt::channel::Server;

use super::request::tests::{entry, indirect, narrow, segment_bytes};
use super::*;
use crate::grants::tests::{flags, permit};
use crate::memory::{Gfn, Page};
use crate::testing::{channel_with_pool, guest, server_and_info};

const RING_GRANT: u32 = 8;
const RING_GFN: u32 = 2;
const SECTORS: u64 = 4096;

struct Setup {
    guest: Guest,
    disk: Disk,
    server: Server<Blk>,
    pool: Pool,
    ring: Page,
    port: Port,
    produced: u32,
    layout: Layout,
}

fn setup(is_read_only: bool, has_cache: bool) -> Setup {
    setup_layout(Layout::Wide, is_read_only, has_cache)
}

fn setup_layout(layout: Layout, is_read_only: bool, has_cache: bool) -> Setup {
    let mut guest = guest();
    permit(&guest.memory, RING_GRANT, RING_GFN, false);
    // Grants 16.. are pages 16.. .
    for page in 16..60 {
        permit(&guest.memory, page, page, false);
    }
    let port = guest.events.allocate_unbound(0).unwrap();
    let mut disk = Disk::new(2);
    let (client, mut server) = channel_with_pool::<Blk>(blk::POOL_SIZE);
    let pool = Pool::from_region(server.info().pool);
    disk.set_link(Some(client));
    assert_eq!(server.receive(), Ok(Some(Request::Open)));
    server.send(&Response::Opened { sectors: SECTORS, sector_size: 512, is_read_only, has_cache }).unwrap();
    disk.service(&mut guest);
    let protocol = if layout == Layout::Wide { "x86_64-abi" } else { "x86_32-abi" };
    disk.connect(&mut guest, "8", &alloc::format!("{}", port.0), protocol).unwrap();
    let ring = guest.memory.page(Gfn(u64::from(RING_GFN))).unwrap();
    ring.set_u32(12, 1);
    Setup { guest, disk, server, pool, ring, port, produced: 0, layout }
}

/// A channel whose volume of `bytes` is in the client's memory.
fn memory_channel(bytes: u64) -> (Client<Blk>, Server<Blk>) {
    let (server, info) = server_and_info::<Blk>(bytes);
    let info = proto::channel::ChannelInfo { memory: bytes, ..info };
    (Client::connect(&info).unwrap(), server)
}

impl Setup {
    fn put(&mut self, entry: [u8; 112]) {
        let slot = (self.produced % 32) as usize;
        match self.layout {
            Layout::Wide => self.ring.write(64 + slot * 112, &entry),
            Layout::Narrow => self.ring.write(64 + slot * 108, &narrow(&entry)),
        }
        self.produced += 1;
        self.ring.set_u32(0, self.produced);
    }

    fn service(&mut self) {
        self.disk.service(&mut self.guest);
    }

    /// Answers everything that reached blkback, reads with bytes made of the sector number.
    fn serve(&mut self) -> Vec<Request> {
        let mut all = Vec::new();
        while let Ok(Some(request)) = self.server.receive() {
            all.push(request);
            let id = match request {
                Request::Transfer { id, direction, sector, pool_offset, len } => {
                    if direction == Direction::Read {
                        self.pool.fill(pool_offset as usize, len as usize, sector as u8).unwrap();
                    }
                    id
                }
                Request::Flush { id } => id,
                Request::Open => continue,
            };
            self.server.send(&Response::Done { id, status: blk::Status::Ok }).unwrap();
        }
        all
    }

    /// Answers everything that reached blkback with `status`.
    fn serve_memory(&mut self, status: blk::Status) -> Vec<Request> {
        let requests: Vec<_> = core::iter::from_fn(|| self.server.receive().unwrap()).collect();
        for request in &requests {
            let Request::Transfer { id, .. } = *request else { continue };
            self.server.send(&Response::Done { id, status }).unwrap();
        }
        requests
    }

    /// Responses that the ring holds from number `from` on: id, op, status.
    fn responses(&self, from: u32) -> Vec<(u64, u8, i16)> {
        (from..self.ring.u32(8))
            .map(|n| {
                let at = 64 + (n % 32) as usize * self.layout.stride();
                let mut id = [0; 8];
                self.ring.read(at, &mut id);
                (u64::from_le_bytes(id), self.ring.u8(at + 8), self.ring.u16(at + 10) as i16)
            })
            .collect()
    }
}

#[test]
fn a_read_scatters_one_transfer_into_the_guests_pages() {
    let mut s = setup(false, false);
    s.put(entry(0, 99, 7, &[(16, 4, 7), (17, 0, 1)]));
    s.service();
    let requests = s.serve();
    assert!(matches!(requests[..], [Request::Transfer { sector: 7, len: 3072, .. }]));
    assert_eq!(s.responses(0), []);
    s.service();
    assert_eq!(s.responses(0), [(99, 0, 0)]);
    assert!(s.guest.events.is_pending(s.port));
    let (first, second) = (s.guest.memory.page(Gfn(16)).unwrap(), s.guest.memory.page(Gfn(17)).unwrap());
    assert_eq!((first.u8(2047), first.u8(2048), first.u8(4095)), (0, 7, 7));
    assert_eq!((second.u8(0), second.u8(1023), second.u8(1024)), (7, 7, 0));
    assert_eq!(flags(&s.guest.memory, 16), 1);
}

#[test]
fn a_write_gathers_the_guests_pages_into_the_pool() {
    let mut s = setup(false, false);
    s.guest.memory.page(Gfn(16)).unwrap().memory().fill(0, 4096, 0x61).unwrap();
    s.guest.memory.page(Gfn(17)).unwrap().memory().fill(0, 4096, 0x62).unwrap();
    s.put(entry(1, 5, 0, &[(16, 7, 7), (17, 0, 0)]));
    s.service();
    let Ok(Some(Request::Transfer { id, direction: Direction::Write, pool_offset, len: 1024, .. })) =
        s.server.receive()
    else {
        panic!()
    };
    let mut bytes = [0; 1024];
    s.pool.read(pool_offset as usize, &mut bytes).unwrap();
    assert!(bytes[..512].iter().all(|&b| b == 0x61) && bytes[512..].iter().all(|&b| b == 0x62));
    s.server.send(&Response::Done { id, status: blk::Status::IoError }).unwrap();
    s.service();
    assert_eq!(s.responses(0), [(5, 1, -1)]);
}

#[test]
fn pages_in_any_order_and_under_special_frames_keep_their_bytes() {
    let mut s = setup(false, false);
    // Grants 40.. are pages 20, 21, 22, 19 and 23; page 21 is hidden by a special frame.
    let gfns = [20, 21, 22, 19, 23];
    s.guest.memory.set_overlay(1, Some(Gfn(21)));
    for (n, gfn) in gfns.into_iter().enumerate() {
        permit(&s.guest.memory, 40 + n as u32, gfn, false);
        s.guest.memory.page(Gfn(u64::from(gfn))).unwrap().memory().fill(0, 4096, gfn as u8).unwrap();
    }
    let segments = [(40, 0, 7), (41, 0, 7), (42, 0, 3), (42, 4, 6), (43, 0, 7), (44, 1, 7)];
    s.put(entry(1, 5, 0, &segments));
    s.service();
    let Ok(Some(Request::Transfer { pool_offset, len, .. })) = s.server.receive() else { panic!() };
    let lens = [8u8, 8, 7, 8, 7].map(|sectors| usize::from(sectors) * 512);
    let expected: Vec<u8> =
        gfns.iter().zip(lens).flat_map(|(gfn, len)| core::iter::repeat_n(*gfn as u8, len)).collect();
    let mut bytes = alloc::vec![0; len as usize];
    s.pool.read(pool_offset as usize, &mut bytes).unwrap();
    assert!(bytes == expected);
    // The RAM under the special frame has nothing of it.
    s.guest.memory.set_overlay(1, None);
    assert_eq!(s.guest.memory.page(Gfn(21)).unwrap().u8(0), 0);
}

#[test]
fn a_volume_in_memory_is_read_and_written_in_place() {
    let (client, mut server) = memory_channel(64 * 4096);
    let mut s = setup(false, false);
    let volume = Pool::from_region(client.info().pool);
    s.disk.set_link(Some(client));
    assert_eq!(server.receive(), Ok(Some(Request::Open)));
    let opened = Response::Opened { sectors: 512, sector_size: 512, is_read_only: false, has_cache: false };
    server.send(&opened).unwrap();
    s.server = server;
    s.guest.memory.page(Gfn(16)).unwrap().memory().fill(0, 4096, 0x61).unwrap();
    s.put(entry(1, 1, 504, &[(16, 0, 7)]));
    s.put(entry(0, 2, 504, &[(17, 0, 3), (18, 4, 7)]));
    s.service();
    let requests = s.serve_memory(blk::Status::Ok);
    assert!(matches!(
        requests[..],
        [
            Request::Transfer { direction: Direction::Write, sector: 504, pool_offset: 0, len: 4096, .. },
            Request::Transfer { direction: Direction::Read, sector: 504, pool_offset: 0, len: 4096, .. }
        ]
    ));
    s.service();
    assert_eq!(s.responses(0), [(1, 1, 0), (2, 0, 0)]);
    assert_eq!((volume.read_u8(503 * 512 + 511), volume.read_u8(511 * 512 + 511)), (Ok(0), Ok(0x61)));
    let (first, second) = (s.guest.memory.page(Gfn(17)).unwrap(), s.guest.memory.page(Gfn(18)).unwrap());
    assert_eq!((first.u8(2047), first.u8(2048), second.u8(2047), second.u8(2048)), (0x61, 0, 0, 0x61));
    // A backend that says no: nothing is read.
    s.put(entry(0, 3, 504, &[(19, 0, 7)]));
    s.service();
    s.serve_memory(blk::Status::BadRequest);
    s.service();
    assert_eq!(s.responses(2), [(3, 0, -1)]);
    assert_eq!(s.guest.memory.page(Gfn(19)).unwrap().u8(0), 0);
}

#[test]
fn more_requests_than_the_pool_holds_are_all_served() {
    let mut s = setup(false, false);
    let full: Vec<(u32, u8, u8)> = (16..27).map(|g| (g, 0, 7)).collect();
    for id in 0..32 {
        s.put(entry(0, id, id, &full));
    }
    let mut ids = Vec::new();
    for _ in 0..20 {
        s.service();
        for request in s.serve() {
            let Request::Transfer { sector, .. } = request else { panic!() };
            ids.push(sector);
        }
    }
    assert_eq!(ids, (0..32).collect::<Vec<_>>());
    assert_eq!(s.responses(0).len(), 32);
    assert!(s.responses(0).iter().all(|(_, _, status)| *status == 0));
}

#[test]
fn an_indirect_request_moves_all_of_its_pages_in_one_transfer() {
    let mut s = setup(false, false);
    let table = s.guest.memory.page(Gfn(3)).unwrap();
    permit(&s.guest.memory, 9, 3, true);
    for n in 0..32 {
        table.write(n * 8, &segment_bytes((16 + n as u32, 0, 7)));
    }
    s.put(indirect(0, 7, 8, 32, 9));
    s.service();
    assert!(matches!(s.serve()[..], [Request::Transfer { sector: 8, len: 0x20000, .. }]));
    s.service();
    assert_eq!(s.responses(0), [(7, 0, 0)]);
    for gfn in 16..48 {
        assert_eq!(s.guest.memory.page(Gfn(gfn)).unwrap().u8(4095), 8);
    }
    // Without the grant of the page, or with one that makes no sense in it.
    s.put(indirect(0, 8, 8, 32, 500));
    table.write(31 * 8, &segment_bytes((47, 3, 2)));
    s.put(indirect(0, 9, 8, 32, 9));
    s.service();
    assert!(s.serve().is_empty());
    assert_eq!(s.responses(1), [(8, 0, -1), (9, 0, -1)]);
    assert_eq!(s.disk.free, ALL);
}

/// The ring runs around once, so that every entry and every response has its place.
#[test]
fn a_32_bit_frontend_is_served_in_its_layout() {
    let mut s = setup_layout(Layout::Narrow, false, false);
    for id in 0..40 {
        let (gfn, sector) = (16 + id as u32 % 32, 100 + id);
        s.put(entry(0, id << 32 | 7, sector, &[(gfn, 2, 7)]));
        s.service();
        assert!(matches!(s.serve()[..], [Request::Transfer { sector: at, len: 3072, .. }] if at == sector));
        s.service();
        assert_eq!(s.responses(id as u32), [(id << 32 | 7, 0, 0)]);
        let page = s.guest.memory.page(Gfn(u64::from(gfn))).unwrap();
        assert_eq!(page.u8(4095), sector as u8);
    }
    let full: Vec<(u32, u8, u8)> = (16..27).map(|gfn| (gfn, 0, 7)).collect();
    s.put(entry(1, 5, 0, &full));
    s.put(entry(3, 6, 0, &[]));
    s.put(entry(9, 8, 0, &[]));
    s.service();
    assert!(matches!(s.serve()[..], [Request::Transfer { direction: Direction::Write, len: 0xb000, .. }]));
    s.service();
    let mut responses = s.responses(40);
    responses.sort_unstable();
    assert_eq!(responses, [(5, 1, 0), (6, 3, 0), (8, 9, -2)]);
}

/// GRUB hands its disk over to Linux: another layout in another page, and nothing of the old ring is looked at.
#[test]
fn a_32_bit_frontend_is_followed_by_a_64_bit_one() {
    let mut s = setup_layout(Layout::Narrow, false, false);
    s.put(entry(0, 1, 5, &[(16, 0, 0)]));
    s.service();
    s.serve();
    s.service();
    assert_eq!(s.responses(0), [(1, 0, 0)]);
    s.disk.disconnect(&mut s.guest);
    permit(&s.guest.memory, 9, 3, false);
    s.disk.connect(&mut s.guest, "9", &alloc::format!("{}", s.port.0), "x86_64-abi").unwrap();
    s.ring.set_u32(0, 0xffff);
    s.ring = s.guest.memory.page(Gfn(3)).unwrap();
    (s.layout, s.produced) = (Layout::Wide, 0);
    s.put(entry(0, 2, 6, &[(17, 0, 0)]));
    s.service();
    assert!(matches!(s.serve()[..], [Request::Transfer { sector: 6, len: 512, .. }]));
    s.service();
    assert_eq!(s.responses(0), [(2, 0, 0)]);
}

#[test]
fn a_pipelining_guest_is_served_when_it_waits() {
    let mut s = setup(false, false);
    let one = |id| entry(0, id, id, &[(16, 0, 0)]);
    let mut id = 0;
    let mut was_put_off = |s: &mut Setup| {
        s.put(one(id));
        id += 1;
        s.disk.kicked(&mut s.guest);
        let is_put_off = s.guest.events.held_until != 0;
        if !is_put_off {
            s.serve();
            s.service();
        }
        is_put_off
    };
    let wait = |s: &mut Setup| {
        s.guest.events.expire(true, || 0);
        assert_eq!(core::mem::take(&mut s.guest.events.kicks), 1 << 2);
        s.disk.kicked(&mut s.guest);
    };
    s.guest.events.kicks = 0;
    let at_once = (0..100).take_while(|_| !was_put_off(&mut s)).count();
    assert!(at_once > 20 && at_once < 100, "{at_once}");
    // Until it waits it may ask for more, without notifying.
    let event = s.ring.u32(4);
    for id in 200..204 {
        s.put(one(id));
    }
    assert!(s.produced > event, "no notification was asked for");
    s.guest.events.expire(false, || 0);
    assert_eq!((s.guest.events.kicks, s.serve().len()), (0, 0));
    wait(&mut s);
    assert_eq!(s.ring.u32(4), s.produced + 1, "the next one notifies again");
    assert_eq!(s.serve().len(), 5);
    s.service();
    // It had more to ask: so it is waited for again.
    assert!(was_put_off(&mut s));
    wait(&mut s);
    assert_eq!(s.serve().len(), 1);
    s.service();
    assert!(!was_put_off(&mut s));
    assert_eq!(s.responses(0).len(), s.responses(0).iter().filter(|(_, _, status)| *status == 0).count());
}

#[test]
fn flush_goes_to_a_backend_with_a_cache_only() {
    let mut s = setup(false, true);
    s.put(entry(3, 1, 0, &[]));
    s.service();
    assert!(matches!(s.serve()[..], [Request::Flush { .. }]));
    s.service();
    assert_eq!(s.responses(0), [(1, 3, 0)]);
    let mut s = setup(false, false);
    s.put(entry(3, 1, 0, &[]));
    s.service();
    assert_eq!((s.responses(0), s.serve()), (alloc::vec![(1, 3, 0)], Vec::new()));
}

#[test]
fn bad_requests_are_answered_with_errors() {
    let mut s = setup(true, false);
    s.put(entry(1, 1, 0, &[(16, 0, 0)]));
    s.put(entry(0, 2, SECTORS, &[(16, 0, 0)]));
    s.put(entry(5, 3, 0, &[]));
    s.put(entry(0, 4, 0, &[(500, 0, 0)]));
    s.service();
    s.serve();
    s.service();
    assert_eq!(s.responses(0), [(1, 1, -1), (2, 0, -1), (3, 5, -2), (4, 0, -1)]);
}

#[test]
fn a_disconnect_with_requests_under_way_leaves_no_trace_in_the_next_connection() {
    let mut s = setup(false, false);
    s.put(entry(0, 1, 9, &[(16, 0, 7)]));
    s.service();
    s.disk.disconnect(&mut s.guest);
    assert_eq!(flags(&s.guest.memory, RING_GRANT), 1, "the ring's page is free again");
    s.ring.clear();
    s.disk.connect(&mut s.guest, "8", &alloc::format!("{}", s.port.0), "").unwrap();
    s.serve();
    s.service();
    assert_eq!(s.responses(0), []);
    assert_eq!(s.guest.memory.page(Gfn(16)).unwrap().u8(0), 0);
    assert_eq!((s.disk.free, s.disk.unsent), (ALL, 0));
    assert_eq!(s.disk.extents.allocate(blk::POOL_SIZE as u32).map(Extent::offset), Some(0));
}

#[test]
fn a_new_blkback_gets_what_the_old_one_had_not_answered() {
    let mut s = setup(false, false);
    s.put(entry(0, 1, 3, &[(16, 0, 7)]));
    s.put(entry(0, 2, 4, &[(17, 0, 7)]));
    s.service();
    let (client, server) = channel_with_pool::<Blk>(blk::POOL_SIZE);
    s.disk.set_link(None);
    s.service();
    s.disk.set_link(Some(client));
    s.server = server;
    s.pool = Pool::from_region(s.server.info().pool);
    s.service();
    assert_eq!(s.serve(), [Request::Open]);
    s.server
        .send(&Response::Opened { sectors: SECTORS, sector_size: 512, is_read_only: false, has_cache: false })
        .unwrap();
    s.service();
    assert_eq!(s.serve().len(), 2);
    s.service();
    assert_eq!(s.responses(0), [(1, 0, 0), (2, 0, 0)]);
}

#[test]
fn frontends_that_name_nonsense_are_refused() {
    let mut s = setup(false, false);
    let port = alloc::format!("{}", s.port.0);
    s.disk.disconnect(&mut s.guest);
    for (ring, port, protocol) in [
        ("x", port.as_str(), ""),
        ("99", &port, ""),
        ("8", "9999", ""),
        ("8", "", ""),
        ("8", &port, "arm-abi"),
    ] {
        assert!(s.disk.connect(&mut s.guest, ring, port, protocol).is_err());
        assert_eq!(flags(&s.guest.memory, RING_GRANT), 1);
    }
    assert!(s.disk.connect(&mut s.guest, "8", &port, "").is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn random_rings_and_answers_are_survived(
        is_narrow: bool, words in prop::collection::vec((0usize..1024, any::<u32>(), 0u32..40), 1..100)
    ) {
        let layout = if is_narrow { Layout::Narrow } else { Layout::Wide };
        let mut s = setup_layout(layout, false, true);
        for (index, value, ahead) in words {
            s.ring.set_u32(index * 4, value);
            if index % 5 == 0 {
                s.ring.set_u32(0, s.disk.front.as_ref().map_or(0, |_| ahead));
            }
            s.service();
            s.server.send(&Response::Done { id: value as u16 % 40, status: blk::Status::Ok }).unwrap();
            while let Ok(Some(request)) = s.server.receive() {
                if let Request::Transfer { id, pool_offset, len, .. } = request {
                    prop_assert!(u64::from(pool_offset) + u64::from(len) <= blk::POOL_SIZE);
                    prop_assert!(usize::from(id) < IN_FLIGHT_MAX);
                    s.server.send(&Response::Done { id, status: blk::Status::Ok }).unwrap();
                }
            }
        }
    }
}
