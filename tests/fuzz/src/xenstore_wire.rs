//! Messages of three clients to the store: the toolstack, and the guests 5 and 6 with their VMMs.
//!
//! Input: for each message a byte for channel and role, the operation, the transaction, the payload's length,
//! the payload. Whatever they are, each is answered once, answers fit the wire, quotas hold, and the guests'
//! end leaves nothing of them.

use proto::text::Bytes;
use proto::xenstore::{Message, PAYLOAD_MAX, Role};
use xenstore::Store;
use xenstore::quota::Limits;
use xenstore::wire::Request;

use crate::Input;

const TOOLS: u32 = 1;
const GUESTS: [u32; 2] = [2, 3];
/// Operation of a watch's event.
const WATCH_EVENT: u32 = 15;

/// Runs one input, and panics where something does not hold.
pub fn run(bytes: &[u8]) {
    let mut store = Store::new(Limits { nodes: 40, watches: 8, transactions: 3, ..Limits::default() });
    store.attach(TOOLS, 4, true).unwrap();
    for channel in GUESTS {
        store.attach(channel, channel + 3, false).unwrap();
    }
    for domid in [5, 6] {
        for (op, payload) in [
            (11, format!("/local/domain/{domid}/data\0")),
            (14, format!("/local/domain/{domid}/data\0n{domid}\0")),
            (11, format!("/local/domain/0/backend/vbd/{domid}/1/state\x002")),
        ] {
            ask(&mut store, TOOLS, message(Role::Toolstack, op, 0, payload.as_bytes()));
        }
    }
    let mut input = Input::new(bytes);
    while !input.is_empty() {
        let (who, op, tx, len) = (input.u8(), input.u8(), input.u8(), input.u8());
        let channel = u32::from(who & 3).clamp(TOOLS, 3);
        let role = [Role::Guest, Role::Backend, Role::Toolstack][usize::from(who >> 2) % 3];
        // Long payloads are made of repetitions, or the fuzzer would hardly ever reach the limits.
        let times = if who & 0x80 == 0 { 1 } else { 40 };
        let payload = input.bytes(len.into()).repeat(times);
        let _ = Request::parse(op.into(), &payload);
        ask(&mut store, channel, message(role, op.into(), tx.into(), &payload));
        if who & 0x40 != 0 {
            drain(&mut store);
        }
    }
    drain(&mut store);
    for channel in GUESTS {
        store.detach(channel);
    }
    drain(&mut store);
    for channel in GUESTS {
        store.attach(channel, channel + 3, false).unwrap();
    }
    // The store still works.
    let write = message(Role::Toolstack, 11, 0, b"/after\0fine");
    ask(&mut store, TOOLS, write);
    drain(&mut store);
    ask(&mut store, TOOLS, message(Role::Toolstack, 2, 0, b"/after\0"));
    let mut answers = Vec::new();
    while let Some(answer) = store.peek(TOOLS) {
        store.pop(TOOLS);
        answers.push(answer);
    }
    assert!(answers.iter().any(|answer| &answer.payload[..] == b"fine"), "{answers:?}");
    let _ = store.take_violations();
}

fn message(role: Role, op: u32, tx: u32, payload: &[u8]) -> Message {
    Message { role, op, id: 9, tx, payload: Bytes::truncated(payload) }
}

/// A request, if the store takes any now, as its main loop does it.
fn ask(store: &mut Store, channel: u32, message: Message) {
    if !store.accepts(channel) {
        drain(store);
    }
    assert!(store.accepts(channel));
    store.request(channel, &message);
}

fn drain(store: &mut Store) {
    for channel in store.take_ready() {
        while let Some(message) = store.peek(channel) {
            assert!(message.payload.len() <= PAYLOAD_MAX);
            assert!(message.op != WATCH_EVENT || message.id == 0);
            store.pop(channel);
        }
    }
}
