//! The ports, and the 2-level ABI.

use super::*;
use crate::memory::{Gfn, GuestMemory, tests::fake};
use proptest::prelude::*;

const MASK: usize = 0xa00;
const PENDING_SEL: usize = 8;

fn events() -> (GuestMemory, Events) {
    events_of(1)
}

fn events_of(vcpus: usize) -> (GuestMemory, Events) {
    let memory = fake(2);
    let events = Events::new(memory.special(0).unwrap(), vcpus);
    (memory, events)
}

#[test]
fn a_raised_port_is_pending_selected_and_announced() {
    let (memory, mut events) = events();
    let page = memory.special(0).unwrap();
    let port = events.bind_ipi(0).unwrap();
    events.send(port).unwrap();
    assert!(events.is_pending(port) && events.has_upcall(0));
    assert_eq!((page.u64(PENDING), page.u64(PENDING_SEL)), (1 << port.0, 1));
}

#[test]
fn a_masked_port_waits_for_unmask() {
    let (memory, mut events) = events();
    let page = memory.special(0).unwrap();
    let port = events.bind_virq(VIRQ_TIMER, 0).unwrap();
    page.set_u64(MASK, u64::MAX);
    events.raise_virq(VIRQ_TIMER, 0);
    assert!(events.is_pending(port) && !events.has_upcall(0));
    events.unmask(port).unwrap();
    assert!(events.has_upcall(0));
    assert_eq!(page.u64(MASK), !(1 << port.0));
}

#[test]
fn registering_vcpu_info_loses_nothing_and_works_once() {
    let (memory, mut events) = events();
    let port = events.bind_ipi(0).unwrap();
    let page = memory.page(Gfn(1)).unwrap();
    events.send(port).unwrap();
    assert_eq!(events.register_vcpu_info(0, page, 4096 - 56), Err(Errno::NoDevice));
    assert_eq!(events.register_vcpu_info(0, page, 68), Err(Errno::NoDevice));
    assert_eq!(events.register_vcpu_info(1, page, 64), Err(Errno::NoEntry));
    events.register_vcpu_info(0, page, 64).unwrap();
    assert_eq!((page.u8(64), page.u64(72)), (1, u64::MAX));
    assert_eq!(events.register_vcpu_info(0, page, 128), Err(Errno::Invalid));
    page.set_u8(64, 0);
    page.set_u64(72, 0);
    let other = events.bind_ipi(0).unwrap();
    events.send(other).unwrap();
    assert_eq!((page.u8(64), page.u64(72)), (1, 1));
}

#[test]
fn device_ports_kick_the_device_and_only_when_bound() {
    let (_memory, mut events) = events();
    let port = events.allocate_unbound(0).unwrap();
    events.send(port).unwrap();
    assert_eq!(events.kicks, 0);
    events.bind_device(port, 5).unwrap();
    assert_eq!(events.kicks, 1 << 5);
    assert_eq!(events.bind_device(port, 6), Err(Errno::Invalid));
    events.kicks = 0;
    events.send(port).unwrap();
    assert_eq!(events.kicks, 1 << 5);
    events.close(port).unwrap();
    assert_eq!(events.send(port), Err(Errno::Invalid));
    events.unbind_device(port, 5);
    assert_eq!(events.status(port), Ok((Status::Closed, 0)));
}

#[test]
fn what_the_guest_notifies_is_counted_by_the_kind_of_device() {
    use counters::{BLK_NOTIFICATIONS, NET_NOTIFICATIONS};
    let (_memory, mut events) = events();
    for (number, counter) in [(device::FIRST_DISK, BLK_NOTIFICATIONS), (device::FIRST_VIF, NET_NOTIFICATIONS)]
    {
        let port = events.allocate_unbound(0).unwrap();
        events.bind_device(port, number).unwrap();
        let before = rt::counters::get(counter);
        events.send(port).unwrap();
        // Other tests count into the same page.
        assert!(rt::counters::get(counter) > before);
    }
}

#[test]
fn held_work_is_due_in_time_or_when_the_guest_waits() {
    let (_memory, mut events) = events();
    events.hold(33, 500, false);
    events.hold(34, 400, true);
    events.expire(false, || 399);
    assert!(events.kicks == 0 && events.holds(33) && events.holds(34) && events.holds_while_awake());
    events.expire(true, || 399);
    assert!(events.kicks == 1 << 34 && !events.holds(34) && events.held_until == 400);
    assert!(!events.holds_while_awake());
    events.expire(false, || 400);
    assert_eq!((events.kicks, events.held_until), (3 << 33, 0));
    events.hold(33, 500, true);
    events.unhold(33);
    assert_eq!(events.held_until, 0);
}

#[test]
fn refusals_have_the_numbers_that_linux_tells_apart() {
    let (_memory, mut events) = events();
    let first = events.bind_virq(1, 0).unwrap();
    assert_eq!(events.bind_virq(1, 0), Err(Errno::Exists));
    assert_eq!(events.status(first), Ok((Status::Virq(1), 0)));
    assert_eq!(events.bind_virq(VIRQS, 0), Err(Errno::Invalid));
    assert_eq!(events.bind_virq(0, 1), Err(Errno::NoEntry));
    assert_eq!(events.bind_ipi(9), Err(Errno::NoEntry));
    assert_eq!(events.close(Port(0)), Err(Errno::Invalid));
    assert_eq!(events.close(Port(u32::MAX)), Err(Errno::Invalid));
    assert_eq!(events.send(first), Err(Errno::Invalid));
    assert_eq!(events.bind_vcpu(first, 0), Err(Errno::Invalid));
    while events.allocate_unbound(0).is_ok() {}
    assert_eq!(events.bind_ipi(0), Err(Errno::NoSpace));
    assert_eq!(events.ports.len(), 4096);
}

#[test]
fn latching_converts_masks_pending_ports_and_the_wall_clock() {
    let (memory, mut events) = events();
    let page = memory.special(0).unwrap();
    for _ in 1..2000 {
        events.bind_ipi(0).unwrap();
    }
    for (at, value) in [(0xc00, 2), (0xc04, 1_700_000_000), (0xc08, 5), (0xc0c, 1)] {
        page.set_u32(at, value);
    }
    page.set_u64(MASK + 8, 1 << 6);
    for port in [70, 71, 1030, 1999] {
        events.send(Port(port)).unwrap();
    }
    page.set_u64(PENDING_SEL, 0);
    page.set_u8(0, 0);
    // Port 1023 is masked by the new layout already.
    page.set_u32(0x8fc, 1 << 31);
    events.latch(Layout::BITS_32);
    assert_eq!((page.u8(0), page.u32(4), page.u64(8)), (1, u32::MAX, 0), "everything counts as pending once");
    assert_eq!((page.u32(0x888), page.u32(0x8fc)), (1 << 6, 1 << 31));
    let rest = (0x88c..0x8fc).step_by(4).all(|at| page.u32(at) == 0);
    assert!(rest, "what was pending there is no mask");
    assert!(events.is_pending(Port(70)) && events.is_pending(Port(71)) && !events.is_pending(Port(1030)));
    let wall_clock = [0x900, 0x904, 0x908, 0x924].map(|at| page.u32(at));
    assert_eq!(wall_clock, [2, 1_700_000_000, 5, 1]);
    page.set_u32(4, 0);
    events.send(Port(37)).unwrap();
    assert_eq!(page.u32(4), 2, "words have 32 bits");
    events.send(Port(1500)).unwrap();
    assert_eq!((page.u32(4), page.u32(PENDING + 1500 / 32 * 4)), (2, 0), "it has no bit");
    assert_eq!(events.bind_ipi(0), Err(Errno::NoSpace));
    page.set_u32(0x900, 9);
    events.latch(Layout::BITS_64);
    assert_eq!(
        (page.u64(MASK + 8), page.u64(MASK + 120), page.u64(PENDING_SEL)),
        (1 << 6, 1 << 63, u64::MAX)
    );
    assert!([37, 70, 71, 1030, 1500, 1999].iter().all(|&port| events.is_pending(Port(port))));
    let pending: u32 = (PENDING..MASK).step_by(8).map(|at| page.u64(at).count_ones()).sum();
    assert_eq!(pending, 6);
    assert_eq!((page.u32(0xc00), page.u32(0xc0c)), (9, 1));
    assert!(events.bind_ipi(0).is_ok());
}

#[test]
fn virqs_belong_to_vcpus_or_to_the_guest() {
    let (_memory, mut events) = events_of(3);
    for virq in [0, 1, 7, 13] {
        let port = events.bind_virq(virq, 2).unwrap();
        assert_eq!(events.bind_virq(virq, 2), Err(Errno::Exists));
        assert!(events.bind_virq(virq, 1).is_ok());
        assert_eq!(events.bind_vcpu(port, 1), Err(Errno::Invalid));
        assert_eq!(events.bind_virq(virq, 3), Err(Errno::NoEntry));
    }
    for virq in [2, 3, 8, 11, 16, 23] {
        assert_eq!(events.bind_virq(virq, 1), Err(Errno::Invalid));
        let port = events.bind_virq(virq, 0).unwrap();
        assert_eq!(events.bind_vcpu(port, 2), Ok(()));
        assert_eq!(events.status(port), Ok((Status::Virq(virq), 2)));
        assert_eq!(events.bind_virq(virq, 0), Err(Errno::Exists), "wherever it is now");
        events.raise_virq(virq, 0);
        assert!(events.is_pending(port) && events.has_upcall(2));
        events.close(port).unwrap();
        assert!(events.bind_virq(virq, 0).is_ok());
    }
    assert_eq!(events.bind_virq(24, 9), Err(Errno::Invalid));
}

#[test]
fn a_guest_may_connect_its_own_ports() {
    let (_memory, mut events) = events();
    assert_eq!(events.bind_interdomain(DOMID_SELF, Port(1)), Err(Errno::Invalid), "closed");
    assert_eq!(events.bind_interdomain(DOMID_SELF, Port(5000)), Err(Errno::Invalid));
    let foreign = events.allocate_unbound(BACKEND).unwrap();
    assert_eq!(events.bind_interdomain(DOMID_SELF, foreign), Err(Errno::Invalid), "for another domain");
    assert_eq!(events.bind_interdomain(BACKEND, foreign), Err(Errno::Invalid));
    let one = events.allocate_unbound(DOMID_SELF).unwrap();
    assert_eq!(events.bind_device(one, 3), Err(Errno::Invalid));
    let other = events.bind_interdomain(DOMID_SELF, one).unwrap();
    assert!(events.is_pending(other) && !events.is_pending(one));
    assert_eq!(events.bind_interdomain(DOMID_SELF, one), Err(Errno::Invalid), "bound");
    events.send(other).unwrap();
    assert!(events.is_pending(one));
    assert_eq!(events.status(one), Ok((Status::Interdomain(DOMID_SELF, other), 0)));
    events.close(other).unwrap();
    assert_eq!(events.status(one), Ok((Status::Unbound(DOMID_SELF), 0)));
    assert_eq!(events.send(one), Ok(()));
}

/// A device that had not noticed yet that the guest had closed its port raised whatever had the number next.
#[test]
fn a_device_raises_no_port_that_is_not_a_devices() {
    let (_memory, mut events) = events();
    let port = events.allocate_unbound(BACKEND).unwrap();
    events.bind_device(port, 5).unwrap();
    events.raise(port);
    assert!(events.is_pending(port));
    events.close(port).unwrap();
    assert_eq!(events.bind_ipi(0), Ok(port));
    events.raise(port);
    assert!(!events.is_pending(port));
}

#[test]
fn what_is_no_port_what_is_closed_and_what_is_port_0() {
    let (_memory, mut events) = events();
    assert_eq!(events.unmask(Port(63)), Ok(()), "a closed one has no mask");
    assert_eq!(events.unmask(Port(64)), Err(Errno::Invalid));
    assert_eq!(events.status(Port(0)), Ok((Status::Closed, 0)));
    assert_eq!(events.status(Port(64)), Err(Errno::Invalid));
    for _ in 1..=64 {
        events.bind_ipi(0).unwrap();
    }
    assert_eq!(events.status(Port(65)), Ok((Status::Closed, 0)));
    assert_eq!(events.send(Port(0)), Err(Errno::Invalid));
    assert_eq!(events.close(Port(0)), Err(Errno::Invalid));
    assert_eq!(events.bind_vcpu(Port(0), 0), Err(Errno::Invalid));
    assert_eq!(events.set_priority(Port(1), 0), Err(Errno::NoSys));
    events.reset();
    assert!((0..128).all(|port| events.status(Port(port)) == Ok((Status::Closed, 0))));
    assert_eq!(events.bind_ipi(0), Ok(Port(1)));
}

#[test]
fn news_tell_which_vcpu_is_to_be_looked_at() {
    let (memory, mut events) = events_of(3);
    let page = memory.special(0).unwrap();
    let ports = [0, 1, 2].map(|vcpu| events.bind_ipi(vcpu).unwrap());
    events.send(ports[2]).unwrap();
    assert_eq!(events.news(), 4);
    assert!(!events.has_upcall(0) && events.has_upcall(2) && events.has_news());
    events.noticed(4);
    assert!(!events.has_news());
    events.send(ports[2]).unwrap();
    assert!(!events.has_news(), "it is pending already");
    page.set_u64(MASK, 1 << ports[0].0);
    events.set_polling(1, true);
    events.send(ports[0]).unwrap();
    assert_eq!(events.news(), 2, "a masked port wakes who polls it");
    events.set_polling(1, false);
    assert!(!events.has_upcall(1) && !events.has_news());
}

proptest! {
    #[test]
    fn no_wake_up_is_lost_whatever_the_order(steps in prop::collection::vec((0u8..6, 1u32..130), 1..80)) {
        let (memory, mut events) = events();
        let page = memory.special(0).unwrap();
        for _ in 1..130 {
            events.bind_ipi(0).unwrap();
        }
        for (step, port) in steps {
            let (word, bit) = (port as usize / 64 * 8, 1u64 << (port % 64));
            let is_64 = events.layout == Layout::BITS_64;
            let mask = if is_64 { MASK } else { 0x880 };
            match step {
                0..=1 => events.send(Port(port)).unwrap(),
                2 => { page.or_u64(mask + word, bit); }
                3 => events.unmask(Port(port)).unwrap(),
                4 => events.latch(if is_64 { Layout::BITS_32 } else { Layout::BITS_64 }),
                // The guest's handler: all that is selected, pending and not masked.
                _ => {
                    page.set_u8(0, 0);
                    let (selected, len) = match is_64 {
                        true => (page.and_u64(PENDING_SEL, 0), 8),
                        false => (page.and_u32(4, 0).into(), 4),
                    };
                    for index in (0..64).filter(|index| selected >> index & 1 != 0) {
                        for half in (index * len..index * len + len).step_by(4) {
                            let masked = page.u32(mask + half);
                            page.and_u32(PENDING + half, masked);
                        }
                    }
                }
            }
            let mask = events.layout.mask;
            let waiting = (0..3).any(|w| page.u64(PENDING + w * 8) & !page.u64(mask + w * 8) != 0);
            prop_assert!(!waiting || events.has_upcall(0), "a pending unmasked port without an upcall");
        }
    }
}
