//! The backend with a fake disk: answers, order, fairness, writers, detaching, hostile clients.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use proptest::prelude::*;
use proto::blk::{Direction, POOL_SIZE, Request, Response, Status};
use proto::channel::Region;

use crate::backend::{Attachment, Backend};
use crate::disk::{Geometry, Operation, Outcome};
use crate::fake::{DEVICE_SIGNAL, FakeClient, FakeDisk, GEOMETRY};

const POOL: Region = Region { addr: 0x10_0000, len: POOL_SIZE };

/// As at the start, when everything may have something to say.
const ALL: u64 = u64::MAX;

type Fake = Backend<FakeClient, FakeDisk>;

fn backend(geometry: Geometry, capacity: usize) -> (Fake, FakeDisk) {
    let disk = FakeDisk::new("vol0", geometry, capacity);
    let mut backend = Fake::default();
    backend.add_volume(disk.clone()).unwrap();
    (backend, disk)
}

fn attach(backend: &mut Fake, id: u32, volume: &str, is_read_only: bool) -> FakeClient {
    let client = FakeClient::default();
    let attachment = Attachment { id, signals: 1 << (id % 4), volume, is_read_only, pool: POOL, memory: 0 };
    backend.attach(&attachment, client.clone()).unwrap();
    client
}

fn open(backend: &mut Fake, id: u32) -> FakeClient {
    let client = attach(backend, id, "vol0", false);
    client.ask(Request::Open);
    backend.poll(ALL);
    assert!(matches!(client.answers()[..], [Response::Opened { .. }]));
    client
}

fn transfer(id: u16, direction: Direction, sector: u64, len: u32) -> Request {
    Request::Transfer { id, direction, sector, pool_offset: 0, len }
}

fn done(id: u16, status: Status) -> Response {
    Response::Done { id, status }
}

fn is_refused(answers: &[Response], part: &str) -> bool {
    matches!(answers, [Response::Refused { reason }] if alloc::format!("{reason}").contains(part))
}

#[test]
fn a_long_transfer_is_divided_and_answered_once() {
    let (mut backend, disk) = backend(GEOMETRY, 16);
    let client = open(&mut backend, 1);
    client.ask(transfer(3, Direction::Read, 10, 128 * 1024));
    backend.poll(ALL);
    let queued = disk.queued();
    assert_eq!(queued.len(), 2);
    let second = Operation::Transfer {
        direction: Direction::Read,
        sector: 10 + 128,
        addr: POOL.addr + 64 * 1024,
        len: 64 * 1024,
    };
    assert_eq!(queued[1].1, second);
    disk.end(1, Outcome::Ok);
    backend.poll(ALL);
    assert!(client.answers().is_empty());
    disk.end(0, Outcome::Ok);
    backend.poll(ALL);
    assert_eq!(client.answers(), [done(3, Status::Ok)]);
}

#[test]
fn completions_out_of_order_answer_the_right_requests() {
    let (mut backend, disk) = backend(GEOMETRY, 16);
    let client = open(&mut backend, 1);
    for id in 0..4 {
        client.ask(transfer(id, Direction::Write, u64::from(id), 512));
    }
    backend.poll(ALL);
    for index in [2, 0, 1, 0] {
        disk.end(index, if index == 1 { Outcome::Error } else { Outcome::Ok });
    }
    backend.poll(ALL);
    let expected = [done(2, Status::Ok), done(0, Status::Ok), done(3, Status::IoError), done(1, Status::Ok)];
    assert_eq!(client.answers(), expected);
}

#[test]
fn a_failed_operation_fails_the_request_after_its_last_one() {
    let geometry = Geometry { operation_max: 512, ..GEOMETRY };
    let (mut backend, disk) = backend(geometry, 2);
    let client = open(&mut backend, 1);
    client.ask(transfer(0, Direction::Write, 0, 512 * 5));
    backend.poll(ALL);
    disk.end(0, Outcome::Error);
    backend.poll(ALL);
    // The rest is not tried, but the operation still at the device is waited for.
    assert_eq!(disk.queued().len(), 1);
    assert!(client.answers().is_empty());
    disk.end(0, Outcome::Ok);
    backend.poll(ALL);
    assert_eq!(client.answers(), [done(0, Status::IoError)]);
    client.ask(transfer(0, Direction::Write, 0, 512));
    backend.poll(ALL);
    assert_eq!(disk.queued().len(), 1);
}

#[test]
fn a_broken_disk_fails_requests_at_once() {
    let (mut backend, disk) = backend(GEOMETRY, 2);
    let client = open(&mut backend, 1);
    disk.0.borrow_mut().is_broken = true;
    client.ask(transfer(0, Direction::Read, 0, 128 * 1024));
    client.ask(Request::Flush { id: 1 });
    backend.poll(ALL);
    assert_eq!(client.answers(), [done(0, Status::IoError), done(1, Status::IoError)]);
}

#[test]
fn a_flush_reaches_a_device_with_a_cache_only() {
    let (mut with_cache, disk) = backend(GEOMETRY, 2);
    let client = open(&mut with_cache, 1);
    client.ask(Request::Flush { id: 5 });
    with_cache.poll(ALL);
    assert_eq!(disk.queued()[0].1, Operation::Flush);
    assert!(client.answers().is_empty());
    disk.end(0, Outcome::Ok);
    with_cache.poll(ALL);
    assert_eq!(client.answers(), [done(5, Status::Ok)]);

    let (mut without, disk) = backend(Geometry { has_flush: false, ..GEOMETRY }, 2);
    let client = open(&mut without, 1);
    client.ask(Request::Flush { id: 5 });
    without.poll(ALL);
    assert!(disk.queued().is_empty());
    assert_eq!(client.answers(), [done(5, Status::Ok)]);
}

#[test]
fn channels_take_turns_at_a_busy_device() {
    let (mut backend, disk) = backend(GEOMETRY, 1);
    let clients: Vec<FakeClient> = (0..3)
        .map(|id| {
            let client = attach(&mut backend, id, "vol0", true);
            client.ask(Request::Open);
            client
        })
        .collect();
    for id in 0..20 {
        clients[0].ask(transfer(id, Direction::Read, 0, 512));
    }
    for client in &clients[1..] {
        for id in 0..2 {
            client.ask(transfer(id, Direction::Read, 0, 512));
        }
    }
    let mut order = Vec::new();
    for _ in 0..6 {
        backend.poll(DEVICE_SIGNAL);
        order.push(disk.queued()[0].0.channel);
        disk.end(0, Outcome::Ok);
    }
    assert_eq!(order, [0, 1, 2, 0, 1, 2]);
}

#[test]
fn only_what_signalled_is_served() {
    let (mut backend, disk) = backend(GEOMETRY, 16);
    let (first, second) = (open(&mut backend, 1), attach(&mut backend, 2, "vol0", true));
    let third = attach(&mut backend, 5, "vol0", true);
    second.ask(Request::Open);
    third.ask(Request::Open);
    backend.poll(0);
    assert_eq!((second.answers().len(), third.answers().len()), (1, 1), "new channels need no signal");
    for client in [&first, &second, &third] {
        client.ask(transfer(0, Direction::Read, 0, 512));
    }
    // The first and the third share a signal.
    backend.poll(1 << 1);
    assert_eq!(disk.queued().iter().map(|(tag, _)| tag.channel).collect::<Vec<_>>(), [0, 2]);
    disk.end(0, Outcome::Ok);
    backend.poll(1 << 2);
    assert_eq!(disk.queued().iter().map(|(tag, _)| tag.channel).collect::<Vec<_>>(), [2, 1]);
    assert!(first.answers().is_empty());
    backend.poll(DEVICE_SIGNAL);
    assert_eq!(first.answers(), [done(0, Status::Ok)]);
}

#[test]
fn a_channel_that_never_stops_lets_the_others_go_on() {
    let (mut backend, _disk) = backend(GEOMETRY, 16);
    let (busy, other) = (attach_memory(&mut backend, 1, false), attach_memory(&mut backend, 2, false));
    busy.answers();
    other.answers();
    for _ in 0..100 {
        busy.ask(transfer(0, Direction::Read, 0, 512));
    }
    other.ask(transfer(0, Direction::Read, 0, 512));
    assert!(backend.poll(1 << 1 | 1 << 2));
    assert_eq!((busy.answers().len(), other.answers().len()), (32, 1));
    assert!(backend.poll(0) && backend.poll(0));
    assert!(!backend.poll(0));
    assert_eq!(busy.answers().len(), 68);
}

#[test]
fn a_volume_has_one_writer_and_any_number_of_readers() {
    let (mut backend, disk) = backend(GEOMETRY, 4);
    let first = open(&mut backend, 1);
    let second = attach(&mut backend, 2, "vol0", false);
    second.ask(Request::Open);
    let reader = attach(&mut backend, 3, "vol0", true);
    reader.ask(Request::Open);
    reader.ask(transfer(0, Direction::Write, 0, 512));
    first.ask(transfer(0, Direction::Write, 0, 512));
    backend.poll(ALL);
    assert!(is_refused(&second.answers(), "Another guest"));
    let answers = reader.answers();
    assert!(matches!(answers[0], Response::Opened { is_read_only: true, .. }));
    assert_eq!(answers[1], done(0, Status::ReadOnly));
    // The writer's place is free only once its last operation has ended.
    assert!(backend.detach(1));
    second.ask(Request::Open);
    backend.poll(ALL);
    assert!(is_refused(&second.answers(), "Another guest"));
    assert!(backend.take_detached().is_none());
    disk.end(0, Outcome::Ok);
    backend.poll(ALL);
    assert!(matches!(backend.take_detached(), Some((1, POOL, _))));
    assert!(first.answers().is_empty());
    second.ask(Request::Open);
    backend.poll(ALL);
    assert!(matches!(second.answers()[..], [Response::Opened { is_read_only: false, .. }]));
}

fn attach_memory(backend: &mut Fake, id: u32, is_read_only: bool) -> FakeClient {
    let client = FakeClient::default();
    // The name of a real volume: it must not matter.
    let signals = 1 << (id % 4);
    let attachment =
        Attachment { id, signals, volume: "vol0", is_read_only, pool: Region::default(), memory: 1 << 20 };
    backend.attach(&attachment, client.clone()).unwrap();
    client.ask(Request::Open);
    backend.poll(ALL);
    client
}

#[test]
fn a_volume_in_memory_is_checked_and_answered_without_a_device() {
    let (mut backend, disk) = backend(GEOMETRY, 4);
    let client = attach_memory(&mut backend, 1, false);
    assert!(matches!(
        client.answers()[..],
        [Response::Opened { sectors: 2048, sector_size: 512, is_read_only: false, has_cache: false }]
    ));
    client.ask(transfer(0, Direction::Write, 2047, 512));
    client.ask(transfer(0, Direction::Read, 0, 128 * 1024));
    client.ask(transfer(1, Direction::Read, 2047, 1024));
    client.ask(Request::Transfer {
        id: 2,
        direction: Direction::Read,
        sector: 0,
        pool_offset: 512,
        len: 512,
    });
    client.ask(Request::Flush { id: 3 });
    client.ask(Request::Open);
    assert!(!backend.poll(ALL));
    let answers = client.answers();
    let ok = |id| done(id, Status::Ok);
    let bad = |id| done(id, Status::BadRequest);
    assert_eq!(answers[..5], [ok(0), ok(0), bad(1), bad(2), ok(3)]);
    assert!(is_refused(&answers[5..], "opened before"));
    assert!(disk.queued().is_empty());
    assert!(backend.detach(1));
    assert!(matches!(backend.take_detached(), Some((1, pool, _)) if pool.len == 0));
}

#[test]
fn volumes_in_memory_are_each_clients_own() {
    let (mut backend, disk) = backend(GEOMETRY, 4);
    let device = open(&mut backend, 1);
    // Two more that write, beside the writer of the device of the same name.
    let (first, second) = (attach_memory(&mut backend, 2, false), attach_memory(&mut backend, 3, false));
    let reader = attach_memory(&mut backend, 4, true);
    for client in [&first, &second, &reader] {
        assert!(matches!(client.answers()[..], [Response::Opened { .. }]));
        client.ask(transfer(5, Direction::Write, 0, 512));
    }
    device.ask(transfer(5, Direction::Write, 0, 512));
    backend.poll(ALL);
    assert_eq!(first.answers(), [done(5, Status::Ok)]);
    assert_eq!(second.answers(), [done(5, Status::Ok)]);
    assert_eq!(reader.answers(), [done(5, Status::ReadOnly)]);
    assert_eq!((device.answers().len(), disk.queued().len()), (0, 1));
}

#[test]
fn what_cannot_be_opened_is_refused_with_a_sentence() {
    let (mut flawed, _disk) = backend(Geometry { sectors: 7, sector_size: 4096, ..GEOMETRY }, 4);
    let client = attach(&mut flawed, 1, "vol0", false);
    client.ask(Request::Open);
    flawed.poll(ALL);
    assert!(is_refused(&client.answers(), "smaller than one sector"));
    let client = attach(&mut flawed, 2, "vol9", false);
    client.ask(Request::Open);
    client.ask(Request::Flush { id: 0 });
    flawed.poll(ALL);
    let answers = client.answers();
    assert!(is_refused(&answers[..1], "no volume"));
    assert_eq!(answers[1..], [done(0, Status::BadRequest)]);

    let (mut good, _disk) = backend(GEOMETRY, 4);
    let client = open(&mut good, 1);
    client.ask(Request::Open);
    good.poll(ALL);
    assert!(is_refused(&client.answers(), "opened before"));
    let small_pool = Region { len: 4096, ..POOL };
    let small =
        Attachment { id: 9, signals: 1, volume: "vol0", is_read_only: true, pool: small_pool, memory: 0 };
    assert!(good.attach(&small, FakeClient::default()).is_err());
    let twice = Attachment { id: 1, signals: 1, volume: "vol0", is_read_only: true, pool: POOL, memory: 0 };
    assert!(good.attach(&twice, FakeClient::default()).is_err());
    assert!(good.add_volume(FakeDisk::new("vol0", GEOMETRY, 1)).is_err());
}

#[test]
fn an_id_in_flight_is_refused_and_the_first_request_goes_on() {
    let (mut backend, disk) = backend(GEOMETRY, 4);
    let client = open(&mut backend, 1);
    client.ask(transfer(7, Direction::Read, 0, 512));
    client.ask(transfer(7, Direction::Read, 0, 512));
    client.ask(transfer(32, Direction::Read, 0, 512));
    backend.poll(ALL);
    assert_eq!(client.answers(), [done(7, Status::BadRequest), done(32, Status::BadRequest)]);
    disk.end(0, Outcome::Ok);
    backend.poll(ALL);
    assert_eq!(client.answers(), [done(7, Status::Ok)]);
}

#[test]
fn a_broken_ring_costs_only_its_own_channel() {
    let (mut backend, disk) = backend(GEOMETRY, 4);
    let hostile = open(&mut backend, 1);
    let client = attach(&mut backend, 2, "vol0", true);
    client.ask(Request::Open);
    hostile.ask(transfer(0, Direction::Write, 0, 512));
    client.ask(transfer(0, Direction::Read, 0, 512));
    backend.poll(ALL);
    hostile.0.borrow_mut().is_broken = true;
    client.answers();
    backend.poll(ALL);
    disk.end(0, Outcome::Ok);
    disk.end(0, Outcome::Ok);
    backend.poll(ALL);
    assert_eq!(client.answers(), [done(0, Status::Ok)]);
    hostile.0.borrow_mut().is_broken = false;
    hostile.ask(transfer(1, Direction::Write, 0, 512));
    backend.poll(ALL);
    assert!(hostile.answers().is_empty() && disk.queued().is_empty());
    assert!(backend.detach(1) && !backend.detach(77));
    assert!(backend.take_detached().is_some());
}

#[test]
fn a_client_that_never_takes_its_answers_is_dropped() {
    let (mut backend, disk) = backend(GEOMETRY, 4);
    let client = open(&mut backend, 1);
    client.0.borrow_mut().limit = 3;
    for _ in 0..5 {
        client.ask(transfer(99, Direction::Read, 0, 512));
    }
    client.ask(transfer(0, Direction::Read, 0, 512));
    backend.poll(ALL);
    assert_eq!(client.answers().len(), 3);
    assert!(disk.queued().is_empty());
}

fn any_request() -> impl Strategy<Value = Request> {
    let id = prop_oneof![0u16..4, 0u16..40, any::<u16>()];
    let direction = prop_oneof![Just(Direction::Read), Just(Direction::Write)];
    let sector = prop_oneof![0u64..10_100, any::<u64>()];
    let offset = prop_oneof![(0u32..1100).prop_map(|n| n * 512), any::<u32>()];
    let len = prop_oneof![(0u32..300).prop_map(|n| n * 512), any::<u32>()];
    prop_oneof![
        1 => Just(Request::Open),
        1 => id.clone().prop_map(|id| Request::Flush { id }),
        8 => (id, direction, sector, offset, len).prop_map(|(id, direction, sector, pool_offset, len)| {
            Request::Transfer { id, direction, sector, pool_offset, len }
        }),
    ]
}

proptest! {
    #[test]
    fn hostile_requests_are_each_answered_once_and_stay_inside(
        requests in prop::collection::vec(any_request(), 1..120),
        choices in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 120),
        capacity in 1usize..8,
        operation_max in prop_oneof![Just(512u32), Just(5000), Just(1 << 20)],
    ) {
        let geometry = Geometry { operation_max, ..GEOMETRY };
        let (mut backend, disk) = backend(geometry, capacity);
        let client = open(&mut backend, 1);
        let mut asked: BTreeMap<u16, usize> = BTreeMap::new();
        let mut answered: BTreeMap<u16, usize> = BTreeMap::new();
        let mut opens = 0usize;
        let mut choices = choices.into_iter().cycle();
        let mut pending = requests.into_iter();
        loop {
            let batch: Vec<Request> = pending.by_ref().take(3).collect();
            let is_last = batch.is_empty();
            for request in batch {
                match request {
                    Request::Open => opens += 1,
                    Request::Transfer { id, .. } | Request::Flush { id } => *asked.entry(id).or_insert(0) += 1,
                }
                client.ask(request);
            }
            backend.poll(ALL);
            for response in client.answers() {
                match response {
                    Response::Done { id, .. } => *answered.entry(id).or_insert(0) += 1,
                    Response::Refused { .. } => opens -= 1,
                    Response::Opened { .. } => prop_assert!(false, "opened twice"),
                }
            }
            let queued = disk.queued();
            for (_, operation) in &queued {
                if let Operation::Transfer { sector, addr, len, .. } = *operation {
                    prop_assert!(len > 0 && len <= operation_max && len % 512 == 0);
                    prop_assert!(sector + u64::from(len) / 512 <= GEOMETRY.sectors);
                    prop_assert!(addr >= POOL.addr && addr + u64::from(len) <= POOL.addr + POOL.len);
                }
            }
            if let (false, Some((index, is_ok))) = (queued.is_empty(), choices.next()) {
                let outcome = if is_ok { Outcome::Ok } else { Outcome::Error };
                disk.end(index.index(queued.len()), outcome);
            } else if is_last {
                break;
            }
        }
        prop_assert_eq!(opens, 0);
        prop_assert_eq!(asked, answered);
        prop_assert!(backend.detach(1));
        prop_assert!(backend.take_detached().is_some());
    }
}
