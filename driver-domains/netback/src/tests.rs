//! The bridge with fake links and a fake uplink: forwarding, limits, waiting, hostile clients.

use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;

use proptest::prelude::*;
use proto::net::{
    Checksum, FRAMES_MAX, Frame, Offloads, PLAIN_MAX, POOL_SIZE, RECEIVE_BASE, Refusal, Request, Response,
    Segments,
};

use crate::bridge::{Attachment, Bridge};
use crate::link::{Gone, Link, Uplink};
use crate::segment::tests::large;
use crate::table::Mac;
use crate::vif::PATIENCE_NS;

const A: Mac = [2, 0, 0, 0, 0, 0xa];
const B: Mac = [2, 0, 0, 0, 0, 0xb];
const OUTSIDE: Mac = [4, 0, 0, 0, 0, 1];
const ALL: Mac = [0xff; 6];

#[derive(Debug)]
struct State {
    pool: Vec<u8>,
    requests: VecDeque<Request>,
    responses: Vec<Response>,
    /// Frames of the receiving half that the client has, oldest first.
    held: VecDeque<Frame>,
    is_broken: bool,
    is_hostile: bool,
    signals: usize,
    dropped: u64,
}

#[derive(Debug, Clone)]
struct FakeLink(Rc<RefCell<State>>);

impl FakeLink {
    fn new() -> Self {
        Self(Rc::new(RefCell::new(State {
            pool: alloc::vec![0; POOL_SIZE as usize],
            requests: VecDeque::new(),
            responses: Vec::new(),
            held: VecDeque::new(),
            is_broken: false,
            is_hostile: false,
            signals: 0,
            dropped: 0,
        })))
    }

    fn ask(&self, request: Request) {
        self.0.borrow_mut().requests.push_back(request);
    }

    fn send(&self, slot: u32, bytes: &[u8], checksum: Checksum) {
        self.send_large(slot * 2048, bytes, checksum, Segments::One);
    }

    fn send_large(&self, offset: u32, bytes: &[u8], checksum: Checksum, segments: Segments) {
        let at = offset as usize;
        self.0.borrow_mut().pool[at..at + bytes.len()].copy_from_slice(bytes);
        self.ask(Request::Send(Frame { offset, len: bytes.len() as u32, checksum, segments }));
    }

    fn answers(&self) -> Vec<Response> {
        core::mem::take(&mut self.0.borrow_mut().responses)
    }

    /// How many of its frames are done with, by the answers since the last call.
    fn done(&self) -> usize {
        let count = |answer: &Response| match answer {
            Response::Sent { count } => usize::from(*count),
            _ => 0,
        };
        self.answers().iter().map(count).sum()
    }

    /// The frames among the answers since the last call; they stay the client's.
    fn frames(&self) -> Vec<(Vec<u8>, Checksum)> {
        let answers = self.answers();
        let state = self.0.borrow();
        let frame = |response: &Response| match *response {
            Response::Receive(Frame { offset, len, checksum, .. }) => {
                let at = offset as usize;
                Some((state.pool[at..at + len as usize].to_vec(), checksum))
            }
            _ => None,
        };
        answers.iter().filter_map(frame).collect()
    }

    fn release(&self, count: usize) {
        self.0.borrow_mut().held.drain(..count);
        self.ask(Request::Release { count: count as u16 });
    }
}

impl Link for FakeLink {
    fn receive(&mut self) -> Result<Option<Request>, Gone> {
        let mut state = self.0.borrow_mut();
        if state.is_broken { Err(Gone) } else { Ok(state.requests.pop_front()) }
    }
    fn send(&mut self, response: &Response) -> Result<(), Gone> {
        let mut state = self.0.borrow_mut();
        if let Response::Receive(frame) = response {
            assert!(frame.is_within(RECEIVE_BASE) && state.held.len() < FRAMES_MAX);
            state.held.push_back(*frame);
        }
        state.responses.push(*response);
        Ok(())
    }
    fn flush(&mut self) {
        self.0.borrow_mut().signals += 1;
    }
    fn prepare_sleep(&mut self) -> Result<bool, Gone> {
        let state = self.0.borrow();
        if state.is_broken { Err(Gone) } else { Ok(state.requests.is_empty()) }
    }
    fn signals(&self) -> u64 {
        1
    }
    fn read(&self, offset: u32, out: &mut [u8]) -> bool {
        let at = offset as usize;
        self.0.borrow().pool.get(at..at + out.len()).map(|bytes| out.copy_from_slice(bytes)).is_some()
    }
    fn write(&self, offset: u32, bytes: &[u8]) -> bool {
        let (start, end) = (offset, offset + bytes.len() as u32);
        let mut state = self.0.borrow_mut();
        let is_free = |frame: &Frame| end <= frame.offset || frame.offset + frame.len <= start;
        assert!(start >= RECEIVE_BASE);
        assert!(state.is_hostile || state.held.iter().all(is_free), "a frame of the client is overwritten");
        let range = state.pool.get_mut(start as usize..end as usize);
        range.map(|range| range.copy_from_slice(bytes)).is_some()
    }
    fn note_dropped(&self) {
        self.0.borrow_mut().dropped += 1;
    }
    fn copy(&self, offset: u32, to: &Self, to_offset: u32, len: u32) -> bool {
        let mut bytes = alloc::vec![0; len as usize];
        self.read(offset, &mut bytes) && to.write(to_offset, &bytes)
    }
}

#[derive(Debug, Default)]
struct Wire {
    sent: Vec<Vec<u8>>,
    room: usize,
    incoming: VecDeque<Vec<u8>>,
}

#[derive(Debug, Clone, Default)]
struct FakeUplink(Rc<RefCell<Wire>>);

impl Uplink for FakeUplink {
    fn transmit(&mut self, frame: &[u8]) -> bool {
        let mut wire = self.0.borrow_mut();
        let has_room = wire.sent.len() < wire.room;
        if has_room {
            wire.sent.push(frame.to_vec());
        }
        has_room
    }
    fn receive(&mut self, out: &mut [u8]) -> Option<usize> {
        let frame = self.0.borrow_mut().incoming.pop_front()?;
        let len = frame.len().min(out.len());
        out[..len].copy_from_slice(&frame[..len]);
        Some(frame.len())
    }
    fn signals(&self) -> u64 {
        1
    }
    fn kick(&mut self) {}
}

type Fake = Bridge<FakeLink, FakeUplink>;

fn bridge(room: usize) -> (Fake, FakeUplink) {
    let uplink = FakeUplink::default();
    uplink.0.borrow_mut().room = room;
    (Fake::new("xenbr0", Some(uplink.clone())), uplink)
}

fn attach(bridge: &mut Fake, id: u32, mac: Mac) -> FakeLink {
    let link = FakeLink::new();
    bridge.attach(&Attachment { id, bridge: "xenbr0", mac }, link.clone()).unwrap();
    link
}

/// All that can be done now.
fn poll(bridge: &mut Fake, now_ns: u64) {
    bridge.signalled(1);
    while bridge.poll(now_ns) {}
}

fn open(bridge: &mut Fake, id: u32, mac: Mac) -> FakeLink {
    let link = attach(bridge, id, mac);
    link.ask(Request::Open);
    link.ask(Request::Accept(Offloads::ALL));
    poll(bridge, 0);
    assert_eq!(link.answers(), [Response::Opened]);
    link
}

fn frame(destination: Mac, source: Mac, tail: u8) -> Vec<u8> {
    let mut frame = alloc::vec![tail; 60];
    frame[..6].copy_from_slice(&destination);
    frame[6..12].copy_from_slice(&source);
    frame
}

/// A UDP packet whose checksum, once complete, is 0x796c.
fn udp(destination: Mac, source: Mac) -> Vec<u8> {
    let mut bytes = frame(destination, source, 0);
    let packet = [
        0x08, 0x00, 0x45, 0, 0, 30, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0x10, 0x00, 0, 9, 0,
        10, 0, 0, 0x62, 0x62,
    ];
    bytes[12..44].copy_from_slice(&packet);
    bytes
}

const TCP: Segments = Segments::TcpV4 { size: 1448 };

#[test]
fn frames_go_between_vifs_and_out_and_in() {
    let (mut bridge, uplink) = bridge(99);
    let (a, b) = (open(&mut bridge, 1, A), open(&mut bridge, 2, B));
    uplink.0.borrow_mut().incoming.push_back(frame(B, OUTSIDE, 3));
    poll(&mut bridge, 0);
    a.send(0, &frame(B, A, 1), Checksum::Valid);
    a.send(1, &frame(OUTSIDE, A, 2), Checksum::Unknown);
    poll(&mut bridge, 0);
    let received = [(frame(B, OUTSIDE, 3), Checksum::Unknown), (frame(B, A, 1), Checksum::Valid)];
    assert_eq!(b.frames(), received);
    // The outside was learned from the frame that came in.
    assert_eq!(uplink.0.borrow().sent, [frame(OUTSIDE, A, 2)]);
    assert_eq!(a.answers(), [Response::Sent { count: 2 }]);
}

#[test]
fn a_large_packet_goes_whole_to_a_vif_and_in_segments_to_a_wire_and_to_who_cannot_take_it() {
    let (mut bridge, uplink) = bridge(99);
    let (a, b) = (open(&mut bridge, 1, A), open(&mut bridge, 2, B));
    let bytes = large(B, A, true, 60_000);
    a.send_large(64, &bytes, Checksum::Partial, TCP);
    poll(&mut bridge, 0);
    let Response::Receive(frame) = b.answers()[0] else { panic!() };
    assert_eq!((frame.len as usize, frame.checksum, frame.segments), (bytes.len(), Checksum::Partial, TCP));
    let at = frame.offset as usize;
    assert!(b.0.borrow().pool[at..at + bytes.len()] == bytes);

    b.ask(Request::Accept(Offloads::default()));
    poll(&mut bridge, 0);
    a.send_large(64, &large(B, A, true, 3000), Checksum::Partial, TCP);
    a.send_large(8192, &large(OUTSIDE, A, true, 3000), Checksum::Partial, TCP);
    poll(&mut bridge, 0);
    // The outside is not known: b gets those segments too.
    let frames = b.frames();
    assert_eq!(
        frames.iter().map(|(bytes, _)| bytes.len()).collect::<Vec<_>>(),
        [1514, 1514, 170, 1514, 1514, 170]
    );
    assert_eq!(uplink.0.borrow().sent.len(), 3);
    assert!(frames[3..].iter().map(|(bytes, _)| bytes).eq(uplink.0.borrow().sent.iter()));
    assert_eq!(bridge.counters(1).unwrap().sent, 3);
}

#[test]
fn a_checksum_is_completed_on_the_way_out_only() {
    let (mut bridge, uplink) = bridge(99);
    let (a, b) = (open(&mut bridge, 1, A), open(&mut bridge, 2, B));
    a.send(0, &udp(ALL, A), Checksum::Partial);
    poll(&mut bridge, 0);
    assert_eq!(b.frames(), [(udp(ALL, A), Checksum::Partial)]);
    let mut complete = udp(ALL, A);
    complete[40..42].copy_from_slice(&[0x79, 0x6c]);
    assert_eq!(uplink.0.borrow().sent, [complete.clone()]);
    a.send(0, &frame(OUTSIDE, A, 7), Checksum::Partial);
    poll(&mut bridge, 0);
    assert_eq!(uplink.0.borrow().sent[1], frame(OUTSIDE, A, 7));
    b.answers();
    b.ask(Request::Accept(Offloads::default()));
    poll(&mut bridge, 0);
    a.send(0, &udp(B, A), Checksum::Partial);
    poll(&mut bridge, 0);
    let [(bytes, Checksum::Unknown)] = &b.frames()[..] else { panic!() };
    assert_eq!(bytes[12..], complete[12..]);
}

#[test]
fn a_stolen_address_and_bad_frames_are_refused() {
    let (mut bridge, uplink) = bridge(99);
    let (a, b) = (open(&mut bridge, 1, A), open(&mut bridge, 2, B));
    b.send(0, &frame(ALL, A, 0), Checksum::Unknown);
    for (offset, len, segments) in [
        (RECEIVE_BASE, 60, Segments::One),
        (RECEIVE_BASE - 59, 60, Segments::One),
        (u32::MAX, 60, Segments::One),
        (0, u32::MAX, Segments::One),
        (0, PLAIN_MAX + 1, Segments::One),
        (0, 0, Segments::One),
        (0, 3000, TCP),
    ] {
        b.ask(Request::Send(Frame { offset, len, checksum: Checksum::Partial, segments }));
    }
    b.send_large(8192, &large(ALL, B, true, 3000), Checksum::Valid, TCP);
    b.send_large(16384, &large(ALL, B, true, 3000), Checksum::Partial, Segments::TcpV4 { size: 9000 });
    poll(&mut bridge, 0);
    assert_eq!(b.answers(), [Response::Sent { count: 10 }]);
    assert!(a.answers().is_empty() && uplink.0.borrow().sent.is_empty());
    assert_eq!(bridge.counters(2).unwrap().refused, 10);
}

#[test]
fn a_vif_that_cannot_be_a_port_is_told_why() {
    let (mut bridge, _uplink) = bridge(99);
    let first = open(&mut bridge, 1, A);
    let twice = attach(&mut bridge, 2, A);
    let other = FakeLink::new();
    bridge.attach(&Attachment { id: 3, bridge: "xenbr1", mac: B }, other.clone()).unwrap();
    assert!(bridge.attach(&Attachment { id: 3, bridge: "xenbr0", mac: B }, other.clone()).is_err());
    for (link, refusal) in [(&twice, Refusal::AddressTaken), (&other, Refusal::Bridge)] {
        link.ask(Request::Open);
        link.send(0, &frame(ALL, A, 0), Checksum::Unknown);
        poll(&mut bridge, 0);
        assert_eq!(link.answers(), [Response::Refused(refusal), Response::Sent { count: 1 }]);
    }
    first.ask(Request::Open);
    poll(&mut bridge, 0);
    assert_eq!(first.answers(), [Response::Refused(Refusal::OpenedBefore)]);
    // The address is free again with its vif.
    assert!(bridge.detach(1).is_some() && bridge.detach(1).is_none());
    twice.ask(Request::Open);
    poll(&mut bridge, 0);
    assert_eq!(twice.answers(), [Response::Opened]);
}

#[test]
fn a_guest_that_does_not_release_loses_only_its_own_frames() {
    let (mut bridge, uplink) = bridge(99);
    let (a, b) = (open(&mut bridge, 1, A), open(&mut bridge, 2, B));
    for n in 0..FRAMES_MAX + 10 {
        uplink.0.borrow_mut().incoming.push_back(frame(ALL, OUTSIDE, n as u8));
        poll(&mut bridge, 0);
        let held = b.0.borrow().held.len();
        b.release(held);
    }
    assert_eq!(a.frames().len(), FRAMES_MAX);
    assert_eq!(b.frames().len(), FRAMES_MAX + 10);
    assert_eq!((bridge.counters(1).unwrap().dropped, a.0.borrow().dropped), (10, 10));
    a.release(1);
    uplink.0.borrow_mut().incoming.push_back(frame(A, OUTSIDE, 5));
    poll(&mut bridge, 0);
    assert_eq!(a.frames(), [(frame(A, OUTSIDE, 5), Checksum::Unknown)]);
}

#[test]
fn a_frame_waits_for_its_receiver_in_order_and_not_for_ever() {
    let (mut bridge, uplink) = bridge(99);
    let (a, b) = (open(&mut bridge, 1, A), open(&mut bridge, 2, B));
    uplink.0.borrow_mut().incoming.push_back(frame(A, OUTSIDE, 0));
    poll(&mut bridge, 0);
    let bytes = large(B, A, true, 60_000);
    for _ in 0..5 {
        a.send_large(0, &bytes, Checksum::Partial, TCP);
    }
    a.send(100, &frame(OUTSIDE, A, 9), Checksum::Unknown);
    poll(&mut bridge, 0);
    assert!(bridge.is_waiting() && uplink.0.borrow().sent.is_empty());
    assert_eq!((a.done(), b.frames().len()), (4, 4));
    // Room for one: it goes, and the one behind the large ones with it.
    b.release(1);
    poll(&mut bridge, PATIENCE_NS - 1);
    assert!(!bridge.is_waiting());
    assert_eq!((a.done(), b.frames().len(), uplink.0.borrow().sent.len()), (2, 1, 1));
    // b never emptied half of its pool: it is waited for no more.
    a.send_large(0, &bytes, Checksum::Partial, TCP);
    a.send(100, &frame(OUTSIDE, A, 9), Checksum::Unknown);
    poll(&mut bridge, PATIENCE_NS);
    assert!(!bridge.is_waiting());
    assert_eq!((a.done(), bridge.counters(2).unwrap().dropped), (2, 1));
    let held = b.0.borrow().held.len();
    b.release(held);
    poll(&mut bridge, PATIENCE_NS);
    for _ in 0..5 {
        a.send_large(0, &bytes, Checksum::Partial, TCP);
    }
    poll(&mut bridge, 2 * PATIENCE_NS);
    assert!(bridge.is_waiting());
    assert!(bridge.detach(1).is_some() && !bridge.is_waiting());
}

#[test]
fn two_guests_that_wait_for_each_other_both_go_on() {
    let (mut bridge, _uplink) = bridge(99);
    let (a, b) = (open(&mut bridge, 1, A), open(&mut bridge, 2, B));
    for _ in 0..5 {
        a.send_large(0, &large(B, A, true, 60_000), Checksum::Partial, TCP);
        b.send_large(0, &large(A, B, true, 60_000), Checksum::Partial, TCP);
    }
    poll(&mut bridge, 0);
    // Behind the frames that wait.
    a.release(2);
    b.release(2);
    poll(&mut bridge, 1);
    assert!(!bridge.is_waiting());
    assert_eq!((a.done(), b.done()), (5, 5));
}

#[test]
fn a_busy_uplink_is_waited_for_in_turns_and_loses_nothing() {
    let (mut bridge, uplink) = bridge(0);
    let (a, b) = (open(&mut bridge, 1, A), open(&mut bridge, 2, B));
    uplink.0.borrow_mut().incoming.push_back(frame(A, OUTSIDE, 0));
    poll(&mut bridge, 0);
    a.send_large(0, &large(OUTSIDE, A, true, 3000), Checksum::Partial, TCP);
    for n in 40..50 {
        a.send(n, &frame(OUTSIDE, A, n as u8), Checksum::Unknown);
    }
    b.send(0, &frame(OUTSIDE, B, 0), Checksum::Unknown);
    poll(&mut bridge, 0);
    assert_eq!((a.done(), b.done()), (0, 0));
    for room in 1..4 {
        uplink.0.borrow_mut().room = room;
        poll(&mut bridge, 0);
    }
    let sources: Vec<u8> = uplink.0.borrow().sent.iter().map(|frame| frame[11]).collect();
    assert!(sources.contains(&0xa) && sources.contains(&0xb), "{sources:?}");
    uplink.0.borrow_mut().room = 99;
    poll(&mut bridge, 0);
    assert_eq!(uplink.0.borrow().sent.len(), 3 + 10 + 1);
    let wire = uplink.0.borrow();
    let plain: Vec<u8> = wire
        .sent
        .iter()
        .filter(|frame| frame.len() == 60 && frame[11] == 0xa)
        .map(|frame| frame[20])
        .collect();
    drop(wire);
    assert_eq!(plain, (40..50).collect::<Vec<u8>>());
    // A NIC that takes nothing any more is not waited for.
    uplink.0.borrow_mut().room = 0;
    a.send(0, &frame(OUTSIDE, A, 0), Checksum::Unknown);
    poll(&mut bridge, 0);
    assert!(bridge.is_waiting());
    poll(&mut bridge, PATIENCE_NS);
    assert!(!bridge.is_waiting());
    assert_eq!((bridge.counters(1).unwrap().dropped_at_uplink, a.0.borrow().dropped), (1, 1));
}

#[test]
fn a_client_is_signalled_for_frames_and_rarely_for_memory() {
    let (mut bridge, _uplink) = bridge(99);
    let (a, b) = (open(&mut bridge, 1, A), open(&mut bridge, 2, B));
    let before = (a.0.borrow().signals, b.0.borrow().signals);
    for n in 0..8 {
        a.send(n, &frame(B, A, 0), Checksum::Unknown);
        poll(&mut bridge, 0);
    }
    assert_eq!((a.0.borrow().signals, b.0.borrow().signals), (before.0, before.1 + 8));
    assert_eq!(a.done(), 8, "it finds the answers when it looks");
    for n in 0..8 {
        a.send(n, &frame(B, A, 0), Checksum::Unknown);
        poll(&mut bridge, 0);
    }
    assert_eq!(a.0.borrow().signals, before.0 + 1);
}

#[test]
fn a_bridge_without_an_uplink_connects_its_guests() {
    let mut bridge = Fake::new("xenbr0", None);
    let (a, b) = (open(&mut bridge, 1, A), open(&mut bridge, 2, B));
    a.send(0, &frame(ALL, A, 1), Checksum::Partial);
    poll(&mut bridge, 0);
    assert_eq!(b.frames(), [(frame(ALL, A, 1), Checksum::Partial)]);
}

#[test]
fn a_hostile_client_costs_only_its_own_channel() {
    let (mut bridge, _uplink) = bridge(99);
    let (a, b) = (open(&mut bridge, 1, A), open(&mut bridge, 2, B));
    a.ask(Request::Release { count: 1 });
    a.send(0, &frame(B, A, 1), Checksum::Unknown);
    b.send(0, &frame(OUTSIDE, B, 1), Checksum::Unknown);
    poll(&mut bridge, 0);
    assert!(a.answers().is_empty());
    assert_eq!(b.answers(), [Response::Sent { count: 1 }]);
    b.0.borrow_mut().is_broken = true;
    poll(&mut bridge, 0);
    assert!(bridge.detach(1).is_some() && bridge.detach(2).is_some());
}

fn any_segments() -> impl Strategy<Value = Segments> {
    let size = prop_oneof![Just(1448u16), any::<u16>()];
    prop_oneof![
        Just(Segments::One),
        size.clone().prop_map(|size| Segments::TcpV4 { size }),
        size.prop_map(|size| Segments::TcpV6 { size }),
    ]
}

fn any_request() -> impl Strategy<Value = Request> {
    let offset = prop_oneof![(0u32..256).prop_map(|n| n * 2048), any::<u32>()];
    let len = prop_oneof![Just(60u32), 0u32..1600, Just(3066), any::<u32>()];
    let checksum = prop_oneof![Just(Checksum::Unknown), Just(Checksum::Partial)];
    prop_oneof![
        1 => Just(Request::Open),
        8 => (offset, len, checksum, any_segments()).prop_map(|(offset, len, checksum, segments)| {
            Request::Send(Frame { offset, len, checksum, segments })
        }),
        1 => (0u16..3).prop_map(|count| Request::Release { count }),
    ]
}

proptest! {
    #[test]
    fn hostile_requests_are_answered_and_harm_nobody(
        requests in prop::collection::vec(any_request(), 1..120),
        pool in prop::collection::vec(any::<u8>(), 64),
        kind in 0u8..3,
    ) {
        let (mut bridge, uplink) = bridge(20);
        let (hostile, b) = (open(&mut bridge, 1, A), open(&mut bridge, 2, B));
        hostile.0.borrow_mut().is_hostile = true;
        for chunk in hostile.0.borrow_mut().pool.chunks_mut(2048) {
            match kind {
                0 => chunk[..64].copy_from_slice(&pool),
                1 => chunk[..60].copy_from_slice(&frame(ALL, A, 0)),
                _ => chunk.copy_from_slice(&large(B, A, true, 3000)[..2048]),
            }
        }
        let mut sends = 0;
        let mut is_alive = true;
        for request in &requests {
            hostile.ask(*request);
            // It never received a frame.
            is_alive &= !matches!(request, Request::Release { count: 1.. });
            sends += usize::from(is_alive && matches!(request, Request::Send(_)));
        }
        poll(&mut bridge, 0);
        poll(&mut bridge, PATIENCE_NS);
        prop_assert!(!bridge.is_waiting());
        if is_alive {
            prop_assert_eq!(hostile.done(), sends);
        }
        for bytes in &uplink.0.borrow().sent {
            prop_assert!(bytes[6..12] == A && bytes.len() <= PLAIN_MAX as usize);
        }
        for (bytes, _) in b.frames() {
            prop_assert_eq!(&bytes[6..12], &A[..]);
        }
        b.send(0, &frame(OUTSIDE, B, 1), Checksum::Unknown);
        poll(&mut bridge, 2 * PATIENCE_NS);
        poll(&mut bridge, 3 * PATIENCE_NS);
        prop_assert_eq!(b.done(), 1);
    }
}
