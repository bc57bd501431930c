//! The bridge with fake links and a fake uplink: forwarding, limits, fairness, hostile clients.

use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;

use proptest::prelude::*;
use proto::net::{BUFFER_SIZE, BUFFERS, POOL_SIZE, Request, Response};

use crate::bridge::{Attachment, Bridge, Gone, Link, Uplink};
use crate::buffers::HALF;
use crate::queue::PER_PORT;
use crate::table::Mac;

const A: Mac = [2, 0, 0, 0, 0, 0xa];
const B: Mac = [2, 0, 0, 0, 0, 0xb];
const OUTSIDE: Mac = [4, 0, 0, 0, 0, 1];
const ALL: Mac = [0xff; 6];

#[derive(Debug)]
struct State {
    pool: Vec<u8>,
    requests: VecDeque<Request>,
    responses: Vec<Response>,
    /// Buffers of the receiving half that the client has.
    held: Vec<u32>,
    is_broken: bool,
}

#[derive(Debug, Clone)]
struct FakeLink(Rc<RefCell<State>>);

impl FakeLink {
    fn new() -> Self {
        Self(Rc::new(RefCell::new(State {
            pool: alloc::vec![0; POOL_SIZE as usize],
            requests: VecDeque::new(),
            responses: Vec::new(),
            held: Vec::new(),
            is_broken: false,
        })))
    }

    fn ask(&self, request: Request) {
        self.0.borrow_mut().requests.push_back(request);
    }

    fn send(&self, buffer: u32, frame: &[u8], needs_checksum: bool) {
        let offset = buffer * BUFFER_SIZE;
        let at = offset as usize;
        self.0.borrow_mut().pool[at..at + frame.len()].copy_from_slice(frame);
        self.ask(Request::Send { offset, len: frame.len() as u16, needs_checksum });
    }

    fn answers(&self) -> Vec<Response> {
        core::mem::take(&mut self.0.borrow_mut().responses)
    }

    /// The frames among the answers since the last call.
    fn frames(&self) -> Vec<(Vec<u8>, bool)> {
        let answers = self.answers();
        let state = self.0.borrow();
        let frame = |response: &Response| match *response {
            Response::Receive { offset, len, needs_checksum } => {
                let at = offset as usize;
                Some((state.pool[at..at + usize::from(len)].to_vec(), needs_checksum))
            }
            _ => None,
        };
        answers.iter().filter_map(frame).collect()
    }
}

impl Link for FakeLink {
    fn receive(&mut self) -> Result<Option<Request>, Gone> {
        let mut state = self.0.borrow_mut();
        if state.is_broken { Err(Gone) } else { Ok(state.requests.pop_front()) }
    }
    fn send(&mut self, response: &Response) -> Result<(), Gone> {
        let mut state = self.0.borrow_mut();
        if let Response::Receive { offset, .. } = response {
            assert!(!state.held.contains(offset), "a buffer of the client is handed out again");
            state.held.push(*offset);
        }
        state.responses.push(response.clone());
        Ok(())
    }
    fn read(&self, offset: u32, out: &mut [u8]) -> bool {
        let at = offset as usize;
        self.0.borrow().pool.get(at..at + out.len()).map(|bytes| out.copy_from_slice(bytes)).is_some()
    }
    fn write(&self, offset: u32, frame: &[u8]) -> bool {
        assert!(offset >= HALF && !self.0.borrow().held.contains(&offset));
        let at = offset as usize;
        let mut state = self.0.borrow_mut();
        state.pool.get_mut(at..at + frame.len()).map(|bytes| bytes.copy_from_slice(frame)).is_some()
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

fn open(bridge: &mut Fake, id: u32, mac: Mac) -> FakeLink {
    let link = attach(bridge, id, mac);
    link.ask(Request::Open);
    bridge.poll(0);
    assert_eq!(link.answers(), [Response::Opened]);
    link
}

fn frame(destination: Mac, source: Mac, tail: u8) -> Vec<u8> {
    let mut frame = alloc::vec![tail; 60];
    frame[..6].copy_from_slice(&destination);
    frame[6..12].copy_from_slice(&source);
    frame
}

fn udp(destination: Mac, source: Mac) -> Vec<u8> {
    let mut bytes = frame(destination, source, 0);
    let packet = [
        0x08, 0x00, 0x45, 0, 0, 30, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0x10, 0x00, 0, 9, 0,
        10, 0, 0, 0x62, 0x62,
    ];
    bytes[12..44].copy_from_slice(&packet);
    bytes
}

#[test]
fn frames_go_between_vifs_and_out_and_in() {
    let (mut bridge, uplink) = bridge(99);
    let (a, b) = (open(&mut bridge, 1, A), open(&mut bridge, 2, B));
    uplink.0.borrow_mut().incoming.push_back(frame(B, OUTSIDE, 3));
    bridge.poll(0);
    a.send(0, &frame(B, A, 1), false);
    a.send(1, &frame(OUTSIDE, A, 2), false);
    bridge.poll(0);
    assert_eq!(b.frames(), [(frame(B, OUTSIDE, 3), false), (frame(B, A, 1), false)]);
    // The outside was learned from the frame that came in.
    assert_eq!(uplink.0.borrow().sent, [frame(OUTSIDE, A, 2)]);
    let sent = |offset| Response::Sent { offset, is_accepted: true };
    assert_eq!(a.answers(), [sent(0), sent(BUFFER_SIZE)]);
}

#[test]
fn a_checksum_is_completed_on_the_way_out_only() {
    let (mut bridge, uplink) = bridge(99);
    let (a, b) = (open(&mut bridge, 1, A), open(&mut bridge, 2, B));
    a.send(0, &udp(ALL, A), true);
    bridge.poll(0);
    assert_eq!(b.frames(), [(udp(ALL, A), true)]);
    let mut complete = udp(ALL, A);
    complete[40..42].copy_from_slice(&[0x79, 0x6c]);
    assert_eq!(uplink.0.borrow().sent, [complete]);
    a.send(0, &frame(OUTSIDE, A, 7), true);
    bridge.poll(0);
    assert_eq!(uplink.0.borrow().sent[1], frame(OUTSIDE, A, 7));
}

#[test]
fn a_stolen_address_and_bad_buffers_are_refused() {
    let (mut bridge, uplink) = bridge(99);
    let (a, b) = (open(&mut bridge, 1, A), open(&mut bridge, 2, B));
    b.send(0, &frame(ALL, A, 0), false);
    b.ask(Request::Send { offset: 1, len: 60, needs_checksum: false });
    b.ask(Request::Send { offset: HALF, len: 60, needs_checksum: false });
    b.ask(Request::Send { offset: 0, len: u16::MAX, needs_checksum: false });
    b.ask(Request::Send { offset: 0, len: 0, needs_checksum: false });
    bridge.poll(0);
    let answers = b.answers();
    assert_eq!(answers.len(), 5);
    assert!(answers.iter().all(|answer| matches!(answer, Response::Sent { is_accepted: false, .. })));
    assert!(a.answers().is_empty() && uplink.0.borrow().sent.is_empty());
    assert_eq!(bridge.counters(2).unwrap().refused, 5);
}

#[test]
fn a_vif_that_cannot_be_a_port_is_refused_with_a_sentence() {
    let (mut bridge, _uplink) = bridge(99);
    let _first = open(&mut bridge, 1, A);
    let twice = attach(&mut bridge, 2, A);
    let other = FakeLink::new();
    bridge.attach(&Attachment { id: 3, bridge: "xenbr1", mac: B }, other.clone()).unwrap();
    assert!(bridge.attach(&Attachment { id: 3, bridge: "xenbr0", mac: B }, other.clone()).is_err());
    for (link, part) in [(&twice, "Another guest"), (&other, "xenbr0")] {
        link.ask(Request::Open);
        link.ask(Request::Send { offset: 0, len: 60, needs_checksum: false });
        bridge.poll(0);
        let answers = link.answers();
        assert!(matches!(&answers[0], Response::Refused { reason } if reason.as_str().contains(part)));
        assert_eq!(answers[1], Response::Sent { offset: 0, is_accepted: false });
    }
    // The address is free again with its vif.
    assert!(bridge.detach(1).is_some() && bridge.detach(1).is_none());
    twice.ask(Request::Open);
    bridge.poll(0);
    assert_eq!(twice.answers(), [Response::Opened]);
}

#[test]
fn a_guest_that_does_not_release_loses_only_its_own_frames() {
    let (mut bridge, uplink) = bridge(99);
    let (a, b) = (open(&mut bridge, 1, A), open(&mut bridge, 2, B));
    for n in 0..BUFFERS + 10 {
        uplink.0.borrow_mut().incoming.push_back(frame(ALL, OUTSIDE, n as u8));
    }
    while bridge.poll(0) {
        let mut held = core::mem::take(&mut b.0.borrow_mut().held);
        held.drain(..).for_each(|offset| b.ask(Request::Release { offset }));
    }
    assert_eq!(a.frames().len(), BUFFERS);
    assert_eq!(b.frames().len(), BUFFERS + 10);
    assert_eq!(bridge.counters(1).unwrap().dropped, 10);
    a.0.borrow_mut().held.clear();
    a.ask(Request::Release { offset: HALF });
    bridge.poll(0);
    uplink.0.borrow_mut().incoming.push_back(frame(A, OUTSIDE, 5));
    bridge.poll(0);
    assert_eq!(a.frames(), [(frame(A, OUTSIDE, 5), false)]);
}

#[test]
fn a_busy_uplink_is_shared_and_drops_at_the_tail() {
    let (mut bridge, uplink) = bridge(0);
    let (a, b) = (open(&mut bridge, 1, A), open(&mut bridge, 2, B));
    uplink.0.borrow_mut().incoming.push_back(frame(A, OUTSIDE, 0));
    for n in 0..PER_PORT as u32 + 8 {
        a.send(n, &frame(OUTSIDE, A, n as u8), false);
    }
    b.send(0, &frame(OUTSIDE, B, 0), false);
    bridge.poll(0);
    assert_eq!(bridge.counters(1).unwrap().dropped_at_uplink, 8);
    assert_eq!(bridge.counters(2).unwrap().dropped_at_uplink, 0);
    uplink.0.borrow_mut().room = 3;
    bridge.poll(0);
    let sources: Vec<u8> = uplink.0.borrow().sent.iter().map(|frame| frame[11]).collect();
    assert_eq!(sources, [0xa, 0xb, 0xa]);
    uplink.0.borrow_mut().room = 99;
    bridge.poll(0);
    let tails: Vec<u8> =
        uplink.0.borrow().sent.iter().filter(|frame| frame[11] == 0xa).map(|frame| frame[20]).collect();
    assert_eq!(tails, (0..PER_PORT as u8).collect::<Vec<u8>>());
}

#[test]
fn a_bridge_without_an_uplink_connects_its_guests() {
    let mut bridge = Fake::new("xenbr0", None);
    let (a, b) = (open(&mut bridge, 1, A), open(&mut bridge, 2, B));
    a.send(0, &frame(ALL, A, 1), true);
    bridge.poll(0);
    assert_eq!(b.frames(), [(frame(ALL, A, 1), true)]);
}

#[test]
fn a_hostile_client_costs_only_its_own_channel() {
    let (mut bridge, _uplink) = bridge(99);
    let (a, b) = (open(&mut bridge, 1, A), open(&mut bridge, 2, B));
    a.ask(Request::Release { offset: HALF });
    a.send(0, &frame(B, A, 1), false);
    b.send(0, &frame(OUTSIDE, B, 1), false);
    bridge.poll(0);
    assert!(a.answers().is_empty());
    assert_eq!(b.answers(), [Response::Sent { offset: 0, is_accepted: true }]);
    b.0.borrow_mut().is_broken = true;
    assert!(!bridge.poll(0));
    assert_eq!(bridge.links().count(), 0);
    assert!(bridge.detach(1).is_some() && bridge.detach(2).is_some());
}

fn any_request() -> impl Strategy<Value = Request> {
    let offset = prop_oneof![(0u32..256).prop_map(|n| n * BUFFER_SIZE), any::<u32>()];
    let len = prop_oneof![Just(60u16), 0u16..1600, any::<u16>()];
    prop_oneof![
        1 => Just(Request::Open),
        8 => (offset.clone(), len, any::<bool>())
            .prop_map(|(offset, len, needs_checksum)| Request::Send { offset, len, needs_checksum }),
        1 => offset.prop_map(|offset| Request::Release { offset }),
    ]
}

proptest! {
    #[test]
    fn hostile_requests_are_answered_once_and_harm_nobody(
        requests in prop::collection::vec(any_request(), 1..80),
        pool in prop::collection::vec(any::<u8>(), 64),
        is_framed in any::<bool>(),
    ) {
        let (mut bridge, uplink) = bridge(20);
        let (hostile, b) = (open(&mut bridge, 1, A), open(&mut bridge, 2, B));
        for chunk in hostile.0.borrow_mut().pool.chunks_mut(BUFFER_SIZE as usize) {
            chunk[..64].copy_from_slice(&pool);
            if is_framed {
                chunk[..12].copy_from_slice(&frame(ALL, A, 0)[..12]);
            }
        }
        let mut sends = 0;
        let mut is_alive = true;
        for request in &requests {
            hostile.ask(*request);
            // The only breach of the rules among them: it never received a buffer.
            is_alive &= !matches!(request, Request::Release { .. });
            sends += usize::from(is_alive && matches!(request, Request::Send { .. }));
        }
        while bridge.poll(0) {}
        let answers = hostile.answers();
        let answered = answers.iter().filter(|answer| matches!(answer, Response::Sent { .. })).count();
        prop_assert_eq!(answered, sends);
        for bytes in &uplink.0.borrow().sent {
            prop_assert_eq!(&bytes[6..12], &A[..]);
        }
        for (bytes, _) in b.frames() {
            prop_assert_eq!(&bytes[6..12], &A[..]);
        }
        b.send(0, &frame(OUTSIDE, B, 1), false);
        bridge.poll(0);
        prop_assert_eq!(b.answers(), [Response::Sent { offset: 0, is_accepted: true }]);
    }
}
