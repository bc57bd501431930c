//! Both ends in one process, over memory of the test.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use proto::channel::{ChannelKind, Region};
use proto::console::{GuestConsole, GuestInput, GuestOutput};
use proto::supervise::{self, Supervise};
use proto::text::{Bytes, Text};

use super::*;

#[repr(C, align(4096))]
struct Page([u64; 512]);

struct Memory(Vec<Page>);

impl Memory {
    fn new<P: Protocol>() -> Self {
        Self((0..P::CHANNEL_SIZE / 4096).map(|_| Page([0; 512])).collect())
    }

    fn info(&self, kind: ChannelKind, side: Side) -> ChannelInfo {
        ChannelInfo {
            id: 1,
            kind,
            side,
            peer: 2,
            peer_name: Text::truncated("peer"),
            rings: Region { addr: self.0.as_ptr() as u64, len: (self.0.len() * 4096) as u64 },
            pool: Region::default(),
            pool_phys: 0,
            signal: 7,
            signals: 1,
            target: Text::new(),
            is_read_only: false,
            memory: 0,
            mac: [0; 6],
        }
    }

    fn header(&self) -> &ChannelHeader {
        // SAFETY: page-aligned, large enough, alive as long as `self`; only atomics.
        unsafe { &*self.0.as_ptr().cast() }
    }
}

fn consoles(memory: &Memory) -> (Client<GuestConsole>, Server<GuestConsole>) {
    let client = Client::connect(&memory.info(ChannelKind::GuestConsole, Side::A)).unwrap();
    let server = Server::connect(&memory.info(ChannelKind::GuestConsole, Side::B)).unwrap();
    (client, server)
}

#[test]
fn messages_arrive_in_order_in_both_directions() {
    let memory = Memory::new::<GuestConsole>();
    let (mut client, mut server) = consoles(&memory);
    for round in 0..100u8 {
        for n in 0..3 {
            client.send(&GuestOutput(Bytes::truncated(&[round, n]))).unwrap();
        }
        server.send(&GuestInput(Bytes::truncated(&[round; 200]))).unwrap();
        for n in 0..3 {
            assert_eq!(server.receive().unwrap().unwrap().0[..], [round, n]);
        }
        assert_eq!(server.receive(), Ok(None));
        assert_eq!(client.receive().unwrap().unwrap().0[..], [round; 200]);
        assert_eq!(client.prepare_sleep(), Ok(true));
    }
}

#[test]
fn a_full_ring_refuses_and_asks_for_a_signal() {
    let memory = Memory::new::<GuestConsole>();
    let (mut client, mut server) = consoles(&memory);
    let message = GuestOutput(Bytes::new());
    for _ in 0..GuestConsole::SLOTS {
        client.send(&message).unwrap();
    }
    assert_eq!((client.room(), client.send(&message)), (0, Err(SendError::Full)));
    assert_ne!(memory.header().requests.producer_sleeping.0.load(Ordering::Relaxed), 0);
    server.receive().unwrap();
    server.flush();
    assert_eq!(memory.header().requests.producer_sleeping.0.load(Ordering::Relaxed), 0);
    client.send(&message).unwrap();
}

#[test]
fn nothing_is_accepted_before_the_greeting() {
    let memory = Memory::new::<GuestConsole>();
    let mut server: Server<GuestConsole> =
        Server::connect(&memory.info(ChannelKind::GuestConsole, Side::B)).unwrap();
    assert_eq!(server.receive(), Ok(None));
    assert_eq!(server.prepare_sleep(), Ok(true));
    memory.header().requests.produced.0.store(1, Ordering::Release);
    assert_eq!(server.prepare_sleep(), Err(ChannelError::NoGreeting));
    assert_eq!(server.receive(), Err(ChannelError::NoGreeting));
}

#[test]
fn another_protocol_or_schema_is_refused_by_name() {
    let memory = Memory::new::<GuestConsole>();
    let (mut client, mut server) = consoles(&memory);
    memory.header().greeting_b.write::<Supervise>();
    let mismatch = Mismatch::Kind(ChannelKind::Supervise as u16);
    assert_eq!(client.receive(), Err(ChannelError::Mismatch(mismatch)));
    assert_eq!(client.send(&GuestOutput(Bytes::new())), Err(SendError::Mismatch(mismatch)));
    memory.header().greeting_a.schema.0.store(99, Ordering::Relaxed);
    assert_eq!(server.receive(), Err(ChannelError::Mismatch(Mismatch::Schema(99))));
}

#[test]
fn garbage_in_a_slot_and_wild_indices_are_errors() {
    let memory = Memory::new::<Supervise>();
    let mut client: Client<Supervise> =
        Client::connect(&memory.info(ChannelKind::Supervise, Side::A)).unwrap();
    let mut server: Server<Supervise> =
        Server::connect(&memory.info(ChannelKind::Supervise, Side::B)).unwrap();
    server.send(&supervise::Response::Ready).unwrap();
    let responses = 4096 + Supervise::SLOTS * Supervise::SLOT_SIZE;
    let slots = Region { addr: memory.0.as_ptr() as u64 + responses as u64, len: 8 };
    crate::shared::Shared::from_region(slots).write_u64(0, u64::MAX).unwrap();
    assert_eq!(client.receive(), Err(ChannelError::Message), "no such length");
    crate::shared::Shared::from_region(slots).write_u64(0, u64::MAX << 16 | 6).unwrap();
    assert_eq!(client.receive(), Err(ChannelError::Message), "no such message");
    memory.header().responses.produced.0.store(1000, Ordering::Relaxed);
    assert_eq!(client.receive(), Err(ChannelError::Ring(RingError::Index)));
    assert_eq!(client.prepare_sleep(), Err(ChannelError::Ring(RingError::Index)));
    memory.header().responses.consumed.0.store(1000, Ordering::Relaxed);
    let error = server.send(&supervise::Response::Ready);
    assert_eq!(error, Err(SendError::Ring(RingError::Index)));
}

#[test]
fn a_wrong_description_is_refused() {
    let memory = Memory::new::<GuestConsole>();
    let good = memory.info(ChannelKind::GuestConsole, Side::A);
    let wiring = |info: ChannelInfo| match Client::<GuestConsole>::connect(&info) {
        Err(ChannelError::Wiring(field)) => field,
        other => panic!("{other:?}"),
    };
    assert_eq!(wiring(ChannelInfo { side: Side::B, ..good.clone() }), "side");
    assert_eq!(wiring(ChannelInfo { kind: ChannelKind::Blk, ..good.clone() }), "kind");
    assert_eq!(
        wiring(ChannelInfo { rings: Region { len: 4096, ..good.rings }, ..good.clone() }),
        "ring memory"
    );
    let rings = Region { addr: good.rings.addr + 8, ..good.rings };
    assert_eq!(wiring(ChannelInfo { rings, ..good }), "ring memory");
}
