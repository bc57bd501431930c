//! The FIFO ABI with a guest that consumes as Linux does (drivers/xen/events/events_fifo.c), and with guests
//! that write what they like.

extern crate std;

use super::*;
use crate::events::{Events, Port};
use crate::memory::{Gfn, GuestMemory, tests::fake};
use alloc::vec;
use proptest::prelude::*;

const VCPUS: usize = 2;
/// Frames: the array's first page, and the page with the control blocks.
const ARRAY: Gfn = Gfn(1);
const CONTROL: Gfn = Gfn(2);
/// Ports that lead to devices, so that they can be raised and moved.
const PORTS: u32 = 12;

/// A guest that keeps the rules.
struct Guest {
    memory: GuestMemory,
    events: Events,
    /// For each vCPU: the queues that it found ready, and how far it is in each.
    ready: [u32; VCPUS],
    heads: [[u32; PRIORITIES]; VCPUS],
}

fn control_at(vcpu: usize) -> usize {
    128 * vcpu
}

impl Guest {
    fn new() -> Self {
        let memory = fake(4);
        let mut events = Events::new(memory.special(0).unwrap(), VCPUS);
        for vcpu in 0..VCPUS {
            let page = memory.page(CONTROL);
            events.init_control(vcpu as u32, page, control_at(vcpu) as u32).unwrap();
        }
        events.expand_array(memory.page(ARRAY)).unwrap();
        for device in 1..=PORTS {
            let port = events.allocate_unbound(0).unwrap();
            events.bind_device(port, device as u8).unwrap();
        }
        Self { memory, events, ready: [0; VCPUS], heads: [[0; PRIORITIES]; VCPUS] }
    }

    fn word(&self, port: u32) -> Word {
        Word { page: self.memory.page(ARRAY).unwrap(), offset: port as usize * 4 }
    }

    /// Takes the upcall if it is due; whether there is something to consume.
    fn take(&mut self, vcpu: usize) -> bool {
        if self.events.has_upcall(vcpu) {
            self.memory.special(0).unwrap().set_u8(vcpu * 64, 0);
            let control = self.memory.page(CONTROL).unwrap();
            self.ready[vcpu] |= control.and_u32(control_at(vcpu) + READY, 0);
        }
        self.ready[vcpu] != 0
    }

    /// Consumes one event of the most important queue; its port, if it was pending and not masked.
    fn consume(&mut self, vcpu: usize) -> Option<u32> {
        if !self.take(vcpu) {
            return None;
        }
        let priority = self.ready[vcpu].trailing_zeros() as usize;
        let head = &mut self.heads[vcpu][priority];
        if *head == 0 {
            *head = self.memory.page(CONTROL).unwrap().u32(control_at(vcpu) + HEADS + 4 * priority);
        }
        let port = *head;
        let page = self.memory.page(ARRAY).unwrap();
        let old = page.and_u32(port as usize * 4, !(LINKED | LINK));
        *head = old & LINK;
        if *head == 0 {
            self.ready[vcpu] &= !(1 << priority);
        }
        let is_due = port != 0 && old & PENDING != 0 && old & MASKED == 0;
        is_due.then(|| {
            self.word(port).clear(PENDING);
            port
        })
    }

    fn drain(&mut self, vcpu: usize) -> alloc::vec::Vec<u32> {
        let mut ports = vec![];
        for _ in 0..1000 {
            if !self.take(vcpu) {
                return ports;
            }
            ports.extend(self.consume(vcpu));
        }
        panic!("a queue without an end");
    }
}

#[test]
fn events_arrive_in_the_order_of_their_priority_and_of_their_raising() {
    let mut guest = Guest::new();
    guest.events.set_priority(Port(5), 0).unwrap();
    guest.events.set_priority(Port(6), 15).unwrap();
    for port in [6, 3, 1, 5, 2, 1, 3] {
        guest.events.raise(Port(port));
    }
    assert_eq!(guest.events.news(), 1);
    assert_eq!(guest.drain(0), [5, 3, 1, 2, 6]);
    assert!(!guest.events.has_upcall(0) && !guest.events.has_news());
    guest.events.raise(Port(3));
    assert_eq!(guest.drain(0), [3]);
}

#[test]
fn only_the_first_event_of_a_queue_costs_an_upcall() {
    let mut guest = Guest::new();
    guest.events.raise(Port(1));
    guest.memory.special(0).unwrap().set_u8(0, 0);
    guest.events.raise(Port(2));
    assert!(!guest.events.has_upcall(0), "the guest will find it behind the first");
    guest.events.set_priority(Port(3), 2).unwrap();
    guest.events.raise(Port(3));
    assert!(guest.events.has_upcall(0), "that is another queue");
}

#[test]
fn a_masked_event_waits_for_unmask_and_a_moved_one_arrives_where_it_was_moved_to() {
    let mut guest = Guest::new();
    guest.word(4).set(MASKED);
    guest.events.raise(Port(4));
    assert!(guest.events.is_pending(Port(4)) && !guest.events.has_upcall(0));
    guest.events.bind_vcpu(Port(4), 1).unwrap();
    guest.events.unmask(Port(4)).unwrap();
    assert_eq!((guest.drain(0), guest.drain(1)), (vec![], vec![4]));
    guest.word(9).clear(MASKED);
    assert_eq!(guest.events.unmask(Port(9)), Ok(()));
    assert!(!guest.events.has_upcall(0), "it was not pending");
}

/// The queue's last event was moved while the guest had it; linking behind it would have put the next
/// event of the old queue where nobody looks.
#[test]
fn the_tail_of_a_queue_may_move_to_another_one() {
    let mut guest = Guest::new();
    guest.events.raise(Port(1));
    assert_eq!(guest.drain(0), [1]);
    guest.events.bind_vcpu(Port(1), 1).unwrap();
    guest.events.raise(Port(1));
    guest.events.raise(Port(2));
    assert_eq!((guest.drain(0), guest.drain(1)), (vec![2], vec![1]));
}

#[test]
fn what_is_raised_before_its_word_exists_is_raised_when_it_does() {
    let memory = fake(4);
    let mut events = Events::new(memory.special(0).unwrap(), 1);
    let shared_info = memory.special(0).unwrap();
    shared_info.set_u64(0xa00, u64::MAX);
    let before = events.bind_ipi(0).unwrap();
    events.send(before).unwrap();
    assert_eq!(events.expand_array(memory.page(ARRAY)), Err(Errno::NotSupported));
    assert_eq!(events.set_priority(before, 3), Err(Errno::NoSys));
    assert_eq!(events.init_control(0, memory.page(CONTROL), 0), Ok(()));
    let after = events.bind_ipi(0).unwrap();
    events.send(after).unwrap();
    assert!(!events.is_pending(before) && !events.has_upcall(0));
    assert_eq!(events.expand_array(memory.page(ARRAY)), Ok(()));
    assert!(events.is_pending(before) && events.is_pending(after) && events.has_upcall(0));
    let array = memory.page(ARRAY).unwrap();
    assert_eq!(array.u32(4), PENDING | LINKED | 2);
    assert_eq!((array.u32(8), memory.page(CONTROL).unwrap().u32(HEADS + 4 * 7)), (PENDING | LINKED, 1));
}

#[test]
fn a_port_that_is_still_in_a_queue_is_not_given_out_again() {
    let mut guest = Guest::new();
    guest.events.raise(Port(2));
    guest.events.close(Port(2)).unwrap();
    guest.events.close(Port(3)).unwrap();
    assert_eq!(guest.events.bind_ipi(0), Ok(Port(3)));
    assert_eq!(guest.drain(0), [], "a closed port is pending no more");
    assert_eq!(guest.events.bind_ipi(0), Ok(Port(2)));
}

#[test]
fn refusals() {
    let memory = fake(4);
    let page = memory.page(CONTROL);
    let mut events = Events::new(memory.special(0).unwrap(), 2);
    assert_eq!(events.init_control(2, page, 0), Err(Errno::NoEntry));
    assert_eq!(events.init_control(0, page, 4096 - 64), Err(Errno::Invalid), "72 bytes");
    assert_eq!(events.init_control(0, page, 4), Err(Errno::Invalid));
    assert_eq!(events.init_control(0, None, 0), Err(Errno::Invalid));
    assert_eq!(events.expand_array(page), Err(Errno::NotSupported), "nothing of that was one");
    assert_eq!(events.init_control(1, page, 4096 - 72), Ok(()));
    assert_eq!(events.init_control(1, page, 0), Err(Errno::Invalid), "it has one");
    assert_eq!(events.expand_array(None), Err(Errno::Invalid));
    for _ in 0..128 {
        assert_eq!(events.expand_array(page), Ok(()));
    }
    assert_eq!(events.expand_array(page), Err(Errno::NoSpace));
    let port = events.bind_ipi(0).unwrap();
    assert_eq!(events.set_priority(port, 16), Err(Errno::Invalid));
    assert_eq!(events.set_priority(Port(9), 3), Err(Errno::Access));
    assert_eq!(events.set_priority(Port(4096), 3), Err(Errno::Invalid));
    assert_eq!(events.set_priority(port, 15), Ok(()));
    events.send(port).unwrap();
    assert!(events.is_pending(port) && !events.has_news(), "vCPU 0 has no control block");
    events.reset();
    assert_eq!(events.expand_array(page), Err(Errno::NotSupported));
    assert_eq!(events.bind_ipi(0), Ok(Port(1)));
    assert!(!events.is_pending(Port(1)));
}

#[test]
fn a_word_that_changes_all_the_time_is_given_up_and_left_alone() {
    use core::sync::atomic::{AtomicBool, Ordering};
    let memory = fake(2);
    let word = Word { page: memory.page(ARRAY).unwrap(), offset: 4 };
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                word.page.set_u32(4, LINKED);
                word.page.set_u32(4, LINKED | MASKED);
                word.page.set_u32(4, 7);
            }
        });
        for _ in 0..200_000 {
            word.link(3);
        }
        is_over.store(true, Ordering::Relaxed);
    });
}

proptest! {
    #[test]
    fn no_event_is_lost_whatever_the_order(
        steps in prop::collection::vec((0u8..8, 1..=PORTS, 0u32..16), 1..150)
    ) {
        let mut guest = Guest::new();
        // Raised, and not yet handled.
        let mut due = [false; PORTS as usize + 1];
        for (step, port, extra) in steps {
            let vcpu = (extra % 2) as usize;
            match step {
                0..=2 => {
                    guest.events.raise(Port(port));
                    due[port as usize] = true;
                }
                3 => { guest.word(port).set(MASKED); }
                4 => guest.events.unmask(Port(port)).unwrap(),
                5 => guest.events.bind_vcpu(Port(port), extra % 2).unwrap(),
                6 => guest.events.set_priority(Port(port), extra).unwrap(),
                _ => {
                    if let Some(port) = guest.consume(vcpu) {
                        prop_assert!(core::mem::take(&mut due[port as usize]), "an event that nobody raised");
                    }
                }
            }
        }
        for port in 1..=PORTS {
            guest.events.unmask(Port(port)).unwrap();
        }
        for vcpu in [0, 1, 0, 1] {
            for port in guest.drain(vcpu) {
                prop_assert!(core::mem::take(&mut due[port as usize]), "an event that nobody raised");
            }
        }
        prop_assert_eq!(due, [false; PORTS as usize + 1], "a lost event");
    }

    #[test]
    fn arrays_and_control_blocks_of_any_content_are_survived(
        steps in prop::collection::vec((0u8..10, 0u32..20, any::<u32>()), 1..200)
    ) {
        let mut guest = Guest::new();
        for (step, port, value) in steps {
            match step {
                0..=2 => guest.events.raise(Port(port)),
                3 => guest.memory.page(ARRAY).unwrap().set_u32(port as usize * 4, value),
                4 => guest.memory.page(CONTROL).unwrap().set_u32(value as usize % 256, value),
                5 => { let _ = guest.events.unmask(Port(port)); }
                6 => { let _ = guest.events.set_priority(Port(port), value % 20); }
                7 => { let _ = guest.events.bind_vcpu(Port(port), value % 3); }
                8 => { let _ = guest.events.close(Port(port)); }
                _ => { let _ = guest.events.bind_ipi(value % 2); }
            }
        }
        let _ = guest.events.has_upcall(0);
        // Whatever it was, another life begins cleanly.
        guest.events.reset();
        guest.memory.special(0).unwrap().clear();
        let port = guest.events.bind_ipi(0).unwrap();
        guest.events.send(port).unwrap();
        prop_assert!(guest.events.has_upcall(0));
    }
}
