//! A ring whose other end writes whatever it likes: every answer is a message or an error, never a panic,
//! never more work than the ring has slots, and decoding arbitrary slots never goes wrong.

use core::sync::atomic::{AtomicU64, Ordering};

use postcard::take_from_bytes;
use proptest::prelude::*;
use proto::ring::{Consumer, Producer, RingHeader};

const SLOTS: usize = 8;
const WORDS: usize = 4;

#[derive(Debug, Clone)]
enum Act {
    Push,
    Pop,
    Sleep,
    Notify,
    WriteIndex(u8, u32),
    WriteWord(usize, u64),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => Just(Act::Push),
        3 => Just(Act::Pop),
        1 => Just(Act::Sleep),
        1 => Just(Act::Notify),
        1 => (0u8..4, prop_oneof![any::<u32>(), 0u32..20]).prop_map(|(which, value)| Act::WriteIndex(which, value)),
        2 => (0..SLOTS * WORDS, any::<u64>()).prop_map(|(at, value)| Act::WriteWord(at, value)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn both_ends_survive_any_shared_memory(acts in prop::collection::vec(act(), 1..60)) {
        let header: RingHeader = RingHeader::default();
        let words: [AtomicU64; SLOTS * WORDS] = Default::default();
        let mut producer = Producer::new(&header, &words, WORDS);
        let mut consumer = Consumer::new(&header, &words, WORDS);
        let mut out = [[0; 8]; WORDS];
        for act in acts {
            match act {
                Act::Push => {
                    let _ = producer.push(&mut [[7; 8]; WORDS], 29);
                }
                Act::Pop => {
                    let _ = consumer.pop(&mut out);
                }
                Act::Sleep => {
                    let _ = producer.prepare_sleep();
                    let _ = consumer.prepare_sleep();
                }
                Act::Notify => {
                    let _ = producer.must_notify();
                    let _ = consumer.must_notify();
                }
                Act::WriteIndex(which, value) => {
                    let index = match which {
                        0 => &header.produced.0,
                        1 => &header.consumed.0,
                        2 => &header.consumer_sleeping.0,
                        _ => &header.producer_sleeping.0,
                    };
                    index.store(value, Ordering::Relaxed);
                }
                Act::WriteWord(at, value) => words[at].store(value, Ordering::Relaxed),
            }
            // However the indices lie, a reader never gets more than a ring full before it is told off.
            if let Ok(available) = consumer.available() {
                prop_assert!(available <= SLOTS as u32);
            }
            if let Ok(free) = producer.free() {
                prop_assert!(free <= SLOTS as u32);
            }
        }
    }

    #[test]
    fn any_bytes_decode_to_a_message_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
        let _ = take_from_bytes::<proto::blk::Request>(&bytes);
        let _ = take_from_bytes::<proto::blk::Response>(&bytes);
        let _ = take_from_bytes::<proto::net::Request>(&bytes);
        let _ = take_from_bytes::<proto::net::Response>(&bytes);
        let _ = take_from_bytes::<proto::xenstore::Message>(&bytes);
        let _ = take_from_bytes::<proto::console::LogRecord>(&bytes);
        let _ = take_from_bytes::<proto::console::GuestOutput>(&bytes);
        let _ = take_from_bytes::<proto::console::OperatorRequest>(&bytes);
        let _ = take_from_bytes::<proto::console::OperatorResponse>(&bytes);
        let _ = take_from_bytes::<proto::supervise::Request>(&bytes);
        let _ = take_from_bytes::<proto::supervise::Response>(&bytes);
        let _ = take_from_bytes::<proto::builder::Request>(&bytes);
        let _ = take_from_bytes::<proto::builder::Response>(&bytes);
        let _ = take_from_bytes::<proto::toolstack::Request>(&bytes);
        let _ = take_from_bytes::<proto::toolstack::Response>(&bytes);
    }
}
