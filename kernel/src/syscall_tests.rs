//! Every system call's refusals, and what the calls promise about frames, capabilities and destruction.

use proptest::prelude::*;
use proto::abi::{Error, Field, PAGE_SIZE, ThreadState, map, rights};

use crate::cap::{DONATED, PINNED};
use crate::memory::Pfn;
use crate::object::Object;
use crate::object::domain::Domain;
use crate::object::event::Event;
use crate::object::thread::{Thread, reg};
use crate::syscall::*;
use crate::testing::{RAM_FRAMES, World, done};

const EVENT: u64 = 20;
const DOMAIN: u64 = 21;
const THREAD: u64 = 22;
const VM: u64 = 23;
const VCPU: u64 = 24;

fn refused(answer: Answer) -> Error {
    match answer {
        Err(error) => error,
        Ok(other) => panic!("not refused: {other:?}"),
    }
}

/// Repeats a call that asks for it.
fn repeat(call: impl Fn() -> Answer) {
    loop {
        match call() {
            Err(Error::Restart) => {}
            answer => {
                done(answer);
                return;
            }
        }
    }
}

/// A world with an event, a domain with a thread, a VM and a vCPU.
fn populated() -> World {
    let w = World::new();
    for (frames, slot) in [(1, 30), (3, 31), (1, 32), (2, 33), (3, 34), (1, 35), (4, 36), (16, 37)] {
        w.take(frames, slot);
    }
    done(event_create(w.thread, 30, EVENT));
    done(domain_create(w.thread, 31, DOMAIN, 64));
    done(thread_create(w.thread, 32, DOMAIN, THREAD, EVENT));
    done(vm_create(w.thread, 33, VM));
    done(vcpu_create(w.thread, 34, VM, 35, VCPU));
    done(space_donate(w.thread, DOMAIN, 36));
    done(space_donate(w.thread, VM, 37));
    w
}

#[test]
fn slots_that_are_empty_out_of_range_or_of_another_type_are_refused() {
    let w = populated();
    let t = w.thread;
    assert_eq!(refused(event_signal(t, 0)), Error::BadSlot);
    assert_eq!(refused(event_signal(t, 99)), Error::BadSlot);
    // The upper half of a number counts too.
    assert_eq!(refused(event_signal(t, 1 << 32 | EVENT)), Error::BadSlot);
    assert_eq!(refused(event_signal(t, 1 << 20)), Error::BadSlot);
    assert_eq!(refused(event_signal(t, DOMAIN)), Error::WrongType);
    assert_eq!(refused(event_wait(t, THREAD)), Error::WrongType);
    assert_eq!(refused(event_poll(t, VM)), Error::WrongType);
    assert_eq!(refused(vcpu_run(t, EVENT, EVENT).map(|_| Outcome::Blocked)), Error::WrongType);
    assert_eq!(refused(thread_start(t, DOMAIN, 0, 0, 0)), Error::WrongType);
    assert_eq!(refused(space_donate(t, EVENT, 16)), Error::WrongType);
    assert_eq!(refused(irq_bind(t, EVENT, EVENT, 0)), Error::WrongType);
    assert_eq!(refused(log_write(t, EVENT, 0, 0)), Error::WrongType);
    assert_eq!(refused(machine_reset(t, EVENT)), Error::WrongType);
    assert_eq!(refused(cap_read(t, EVENT, Field::CpuTime as u64)), Error::WrongType);
    assert_eq!(refused(cap_read(t, EVENT, 999)), Error::BadArgument);
    assert_eq!(refused(cap_read(t, 0, Field::Rip as u64)), Error::BadSlot);
    assert_eq!(refused(system_info(999)), Error::BadArgument);
}

#[test]
fn a_thread_may_read_how_long_it_ran() {
    let w = populated();
    let first = done(cap_read(w.thread, 0, Field::CpuTime as u64));
    assert!(done(cap_read(w.thread, 0, Field::CpuTime as u64)) > first);
}

#[test]
fn nobody_fills_slot_0() {
    let w = populated();
    let t = w.thread;
    w.take(1, 38);
    assert_eq!(refused(event_create(t, 38, 0)), Error::BadSlot);
    assert_eq!(refused(cap_move(t, 38, 0, 0)), Error::BadSlot);
    assert_eq!(refused(cap_derive(t, [38, 0, 0, 0, 1, rights::READ])), Error::BadSlot);
    assert_eq!(refused(cap_derive(t, [38, DOMAIN, 0, 0, 1, rights::READ])), Error::BadSlot);
    assert_eq!(refused(frames_split(t, 36, 1, 0)), Error::BadSlot);
    for answer in [cap_delete(t, 0, 0), cap_revoke(t, 0), cap_unmap(t, 0), cap_move(t, 0, 0, 39)] {
        assert_eq!(refused(answer), Error::BadSlot);
    }
    assert!(w.cap(0).is_empty());
}

#[test]
fn a_derived_event_signals_only_its_own_signals_and_cannot_be_waited_on() {
    let w = populated();
    let t = w.thread;
    done(cap_derive(t, [EVENT, 0, 40, 0b100, 0, rights::SIGNAL]));
    done(event_signal(t, 40));
    assert_eq!(done(event_poll(t, EVENT)), 0b100);
    assert_eq!(refused(event_poll(t, 40)), Error::NoRight);
    assert_eq!(refused(event_wait(t, 40)), Error::NoRight);
    assert_eq!(refused(cap_derive(t, [40, 0, 41, 0b100, 0, rights::SIGNAL])), Error::NoRight);
    done(cap_derive(t, [EVENT, 0, 42, 0b11, 0, rights::SIGNAL | rights::CONTROL]));
    assert_eq!(refused(cap_derive(t, [42, 0, 43, 0b100, 0, rights::SIGNAL])), Error::BadArgument);
    assert_eq!(refused(cap_derive(t, [42, 0, 43, 0b1, 0, rights::WAIT])), Error::NoRight);
    assert_eq!(refused(cap_derive(t, [42, 0, EVENT, 0b1, 0, rights::SIGNAL])), Error::SlotInUse);
}

#[test]
fn waiting_blocks_once_and_a_signal_hands_over_to_a_more_important_thread() {
    let w = populated();
    let t = w.thread;
    let other: &'static Thread = w.cap(THREAD as u32).object(0).unwrap();
    other.priority.set(30);
    other.state.set(ThreadState::Running);
    let event: &'static Event = w.cap(EVENT as u32).object(0).unwrap();
    assert!(matches!(event.wait(other), Ok(0)));
    other.waiting.set(Some(event));
    assert_eq!(refused(event_wait(t, EVENT)), Error::Busy);
    assert!(matches!(event_signal(t, EVENT), Ok(Outcome::Displaced(next)) if core::ptr::eq(next, other)));
    assert!(matches!(event_wait(t, EVENT), Ok(Outcome::Value(u64::MAX))));
    assert!(matches!(event_wait(t, EVENT), Ok(Outcome::Blocked)));
    assert_eq!(t.state(), ThreadState::Waiting);
}

#[test]
fn frames_split_merge_and_refuse_when_shared_mapped_or_in_use() {
    let w = populated();
    let t = w.thread;
    let before = u64::from(w.cap(16).count.get());
    assert_eq!(refused(frames_split(t, 16, 0, 50)), Error::BadArgument);
    assert_eq!(refused(frames_split(t, 16, before, 50)), Error::BadArgument);
    done(frames_split(t, 16, 100, 50));
    assert_eq!(refused(frames_split(t, 16, 10, 50)), Error::SlotInUse);
    assert_eq!(refused(frames_merge(t, 50, 16)), Error::BadArgument);
    done(cap_derive(t, [50, 0, 51, 3, 5, rights::READ]));
    assert_eq!(refused(frames_merge(t, 16, 50)), Error::HasChildren);
    assert_eq!(refused(frames_split(t, 51, 1, 52)), Error::NotOwned);
    assert_eq!(refused(event_create(t, 51, 52)), Error::NotOwned);
    done(cap_delete(t, 0, 51));
    repeat(|| cap_map(t, 50, VM, 0x40_0000, map::READ));
    assert_eq!(refused(frames_merge(t, 16, 50)), Error::IsMapped);
    assert_eq!(refused(cap_map(t, 50, DOMAIN, 0, map::READ)), Error::IsMapped);
    repeat(|| cap_unmap(t, 50));
    assert_eq!(refused(cap_unmap(t, 50)), Error::NotMapped);
    done(frames_merge(t, 16, 50));
    assert_eq!(u64::from(w.cap(16).count.get()), before);
    assert_eq!(refused(frames_split(t, 30, 1, 52)), Error::Busy);
    assert_eq!(refused(cap_map(t, 30, DOMAIN, 0, map::READ)), Error::Busy);
}

#[test]
fn mapping_checks_rights_alignment_and_range() {
    let w = populated();
    let t = w.thread;
    w.take(4, 50);
    done(cap_derive(t, [50, 0, 51, 0, 4, rights::READ]));
    assert_eq!(refused(cap_map(t, 51, DOMAIN, 0, map::READ | map::WRITE)), Error::NoRight);
    assert_eq!(refused(cap_map(t, 51, DOMAIN, 0x123, map::READ)), Error::BadArgument);
    assert_eq!(refused(cap_map(t, 51, DOMAIN, 0x7fff_ffff_f000, map::READ)), Error::BadArgument);
    assert_eq!(refused(cap_map(t, 51, DOMAIN, u64::MAX - 4095, map::READ)), Error::BadArgument);
    assert_eq!(refused(cap_map(t, 51, VM, 1 << 40, map::READ)), Error::BadArgument);
    assert_eq!(refused(cap_map(t, 51, DOMAIN, 0, map::WRITE)), Error::NoRight);
    assert_eq!(refused(cap_map(t, 50, DOMAIN, 0, map::WRITE)), Error::BadArgument);
    done(cap_map(t, 51, DOMAIN, 0, map::READ));
    assert_eq!(refused(cap_map(t, 50, DOMAIN, 0x3000, map::READ)), Error::AddressInUse);
    // The refused one left nothing behind.
    done(cap_map(t, 50, DOMAIN, 0x8000, map::READ));
}

#[test]
fn running_out_of_table_frames_undoes_the_mapping() {
    let w = World::new();
    let t = w.thread;
    w.take(3, 30);
    done(domain_create(t, 30, DOMAIN, 64));
    w.take(1, 31);
    assert_eq!(refused(cap_map(t, 31, DOMAIN, 0, map::READ)), Error::NoMemory);
    assert_eq!(refused(cap_unmap(t, 31)), Error::NotMapped);
}

/// It once looped for ever: the undoing of a long mapping began anew in every step.
#[test]
fn a_long_mapping_that_fails_is_undone_in_several_calls() {
    let w = populated();
    let t = w.thread;
    w.take(3001, 50);
    let answer = loop {
        match cap_map(t, 50, DOMAIN, 0x1000, map::READ) {
            Err(Error::Restart) => {}
            other => break other,
        }
    };
    assert_eq!(refused(answer), Error::NoMemory);
    assert_eq!(refused(cap_unmap(t, 50)), Error::NotMapped);
}

#[test]
fn a_long_mapping_is_done_in_several_calls() {
    let w = populated();
    let t = w.thread;
    w.take(1025, 50);
    let mut calls = 0;
    loop {
        calls += 1;
        // A frame number that is not congruent to the address: 1025 single pages.
        match cap_map(t, 50, VM, 0x1000, map::READ) {
            Err(Error::Restart) => {}
            Ok(_) => break,
            Err(error) => panic!("{error:?}"),
        }
    }
    assert!((3..=6).contains(&calls), "{calls}");
    let vm: &crate::object::vm::Vm = w.cap(VM as u32).object(0).unwrap();
    let first = w.cap(50).base.get();
    assert_eq!(vm.space.tables().lookup(1025 * PAGE_SIZE).unwrap().0.0, first + 1024);
    while cap_unmap(t, 50).is_err_and(|error| error == Error::Restart) {}
    assert!(vm.space.tables().lookup(1025 * PAGE_SIZE).is_none());
}

#[test]
fn pinned_and_donated_capabilities_stay_until_their_dependant_goes() {
    let w = populated();
    let t = w.thread;
    assert!(w.cap(35).has(PINNED) && w.cap(36).has(DONATED));
    for slot in [35, 36, 37] {
        assert_eq!(refused(cap_move(t, slot, 0, 60)), Error::Busy);
        assert_eq!(refused(cap_delete(t, 0, slot)), Error::Busy);
        assert_eq!(refused(event_create(t, slot, 60)), Error::Busy);
    }
    done(cap_delete(t, 0, VCPU));
    done(event_create(t, 35, 60));
    done(cap_delete(t, 0, VM));
    assert!(!w.cap(37).has(DONATED));
    done(cap_delete(t, 0, 37));
    done(cap_delete(t, 0, DOMAIN));
    assert!(w.cap(THREAD as u32).is_empty(), "its thread went with the domain");
    assert!(!w.cap(32).has(DONATED) && !w.cap(36).has(DONATED));
}

#[test]
fn destroying_an_event_ends_the_wait_on_it() {
    let w = populated();
    let other: &'static Thread = w.cap(THREAD as u32).object(0).unwrap();
    let event: &'static Event = w.cap(EVENT as u32).object(0).unwrap();
    assert!(matches!(event.wait(other), Ok(0)));
    other.waiting.set(Some(event));
    let _ = cap_delete(w.thread, 0, EVENT).unwrap();
    assert_eq!(other.regs[reg::RAX].get(), Error::Dead as u64);
    assert!(other.waiting.get().is_none() && other.is_queued.get());
    assert!(other.fault_target().is_none(), "its fault event is forgotten");
}

#[test]
fn destroying_a_vm_ends_its_vcpus() {
    let w = populated();
    let t = w.thread;
    let (vcpu, _) = vcpu_run(t, VCPU, EVENT).unwrap();
    put_off(t, vcpu);
    assert_eq!(vcpu_run(t, VCPU, EVENT).err(), Some(Error::Busy));
    done(cap_delete(t, 0, VM));
    assert!(take_up(t).is_none());
    assert_eq!(vcpu_run(t, VCPU, EVENT).err(), Some(Error::Dead));
}

/// A guest's memory costs a table per 512 GiB, and one per GiB only where run and address do not fit together.
#[test]
fn a_vm_gets_the_largest_leaves_that_run_and_address_allow() {
    const GIB: u64 = 1 << 18;
    let w = populated();
    let t = w.thread;
    let map_run = |first: u64, count: u64, gpa: u64| {
        let before = done(cap_read(t, VM, Field::FreeFrames as u64));
        boot_frames(w.cap(60), Pfn(first), count as u32, true);
        repeat(|| cap_map(t, 60, VM, gpa * PAGE_SIZE, map::READ | map::WRITE));
        let taken = before - done(cap_read(t, VM, Field::FreeFrames as u64));
        repeat(|| cap_unmap(t, 60));
        w.cap(60).remove();
        taken
    };
    // Two leaves of 1 GiB in one table; then two and one of 2 MiB, which takes another one.
    assert_eq!(map_run(4 * GIB, 2 * GIB, 2 * GIB), 1);
    assert_eq!(map_run(4 * GIB, 2 * GIB + 512, 2 * GIB), 1);
    // Off by 2 MiB: 2 MiB leaves, in one table per GiB that is touched.
    assert_eq!(map_run(4 * GIB + 512, 2 * GIB, 8 * GIB), 2);
    // Off by a page: pages.
    assert_eq!(map_run(4 * GIB + 1, 512, 16 * GIB), 2);
}

#[test]
fn revoking_takes_back_every_descendant_and_its_mappings() {
    let w = populated();
    let t = w.thread;
    w.take(8, 50);
    let domain: &'static Domain = w.cap(DOMAIN as u32).object(0).unwrap();
    done(cap_derive(t, [50, DOMAIN, 5, 0, 8, rights::ALL]));
    done(cap_derive(t, [50, 0, 51, 0, 4, rights::ALL]));
    done(cap_derive(t, [51, 0, 52, 1, 2, rights::READ]));
    done(cap_map(t, 52, DOMAIN, 0x10_0000, map::READ));
    assert!(domain.space.tables().lookup(0x10_0000).is_some());
    done(cap_revoke(t, 50));
    for slot in [51, 52] {
        assert!(w.cap(slot).is_empty());
    }
    assert!(domain.slot(5).unwrap().is_empty());
    assert!(domain.space.tables().lookup(0x10_0000).is_none());
    assert!(!w.cap(50).has_children());
}

#[test]
fn nobody_saws_off_the_branch_it_sits_on() {
    let w = World::new();
    w.cap(1).set(crate::cap::OWNED);
    assert_eq!(refused(cap_delete(w.thread, 0, 1)), Error::Busy);
}

#[test]
fn a_moved_object_is_found_at_its_new_slot() {
    let w = populated();
    let t = w.thread;
    done(cap_move(t, EVENT, 0, 60));
    assert!(w.cap(EVENT as u32).is_empty());
    let event: &Event = w.cap(60).object(0).unwrap();
    assert!(core::ptr::eq(event.header().cap.get().unwrap(), w.cap(60)));
    done(cap_delete(t, 0, 60));
    assert!(!w.cap(30).has(DONATED));
    assert_eq!(refused(cap_move(t, 60, 0, 61)), Error::BadSlot);
}

#[test]
fn thread_calls_check_their_arguments() {
    let w = populated();
    let t = w.thread;
    assert_eq!(refused(thread_start(t, THREAD, 1 << 47, 0, 0)), Error::BadArgument);
    assert_eq!(refused(thread_schedule(t, THREAD, 64, 1, 0)), Error::BadArgument);
    assert_eq!(refused(thread_schedule(t, THREAD, 1, 0, 0)), Error::BadArgument);
    assert_eq!(refused(thread_schedule(t, THREAD, 1, 1, 500)), Error::NotSupported);
    done(thread_schedule(t, THREAD, 5, 10, 0));
    done(thread_start(t, THREAD, 0x20_0000, 0x1000, 7));
    assert_eq!(refused(thread_start(t, THREAD, 0x20_0000, 0x1000, 7)), Error::Busy);
    assert_eq!(done(cap_read(t, THREAD, Field::Rip as u64)), 0x20_0000);
    done(thread_suspend(t, THREAD));
    assert_eq!(done(cap_read(t, THREAD, Field::ThreadState as u64)), ThreadState::Stopped as u64);
}

#[test]
fn domain_sizes_and_donations_are_checked() {
    let w = World::new();
    let t = w.thread;
    w.take(3, 30);
    assert_eq!(refused(domain_create(t, 30, DOMAIN, 0)), Error::BadArgument);
    assert_eq!(refused(domain_create(t, 30, DOMAIN, 65)), Error::BadArgument);
    assert_eq!(refused(domain_create(t, 30, DOMAIN, 128)), Error::BadArgument);
    assert_eq!(refused(vm_create(t, 30, VM)), Error::BadArgument);
    assert_eq!(refused(thread_create(t, 30, DOMAIN, THREAD, 0)), Error::BadSlot);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Whatever a domain asks for, owned runs never overlap, and all memory can be had back.
    #[test]
    fn random_calls_keep_the_tree_sound(
        calls in prop::collection::vec((0u8..12, 0u64..24, 0u64..24, 0u64..40), 1..120)
    ) {
        let w = World::new();
        let t = w.thread;
        for (call, a, b, n) in calls {
            let (a, b) = (a + 16, b + 16);
            let _ = match call {
                0 | 1 => frames_split(t, a, n, b),
                2 => frames_merge(t, a, b),
                3 => cap_derive(t, [a, 0, b, n % 4, n / 4, rights::ALL]),
                4 => cap_derive(t, [a, 0, b, n, 0, rights::ALL]),
                5 => cap_move(t, a, 0, b),
                6 => cap_delete(t, 0, a).and(Ok(Outcome::Blocked)).or_else(|e| if a == 16 { Ok(Outcome::Blocked) } else { Err(e) }),
                7 => cap_revoke(t, a),
                8 => event_create(t, a, b),
                9 => domain_create(t, a, b, 64),
                10 => cap_map(t, a, if n < 20 { 1 } else { b }, n * PAGE_SIZE, map::READ),
                _ => space_donate(t, a, b),
            };
            let owned: Vec<(u64, u64)> = (16..64)
                .map(|slot| w.cap(slot))
                .filter(|cap| cap.require(proto::abi::ObjectType::Frames, 0).is_ok() && cap.has(crate::cap::OWNED))
                .map(|cap| (cap.base.get(), u64::from(cap.count.get())))
                .collect();
            for (i, x) in owned.iter().enumerate() {
                for y in &owned[i + 1..] {
                    prop_assert!(x.0 + x.1 <= y.0 || y.0 + y.1 <= x.0, "{x:?} overlaps {y:?}");
                }
            }
            prop_assert!(owned.iter().map(|run| run.1).sum::<u64>() <= RAM_FRAMES);
        }
        // Objects go in any order, then nothing derived is left of any run.
        for _ in 0..4 {
            for slot in 16..64 {
                if !w.cap(slot as u32).is_empty() {
                    let _ = cap_revoke(t, slot);
                }
            }
        }
        for slot in 16..64u32 {
            let cap = w.cap(slot);
            prop_assert!(cap.is_empty() || !cap.has_children());
        }
    }
}

#[test]
fn a_thread_says_what_it_did() {
    let w = populated();
    let t = w.thread;
    let other: &'static Thread = w.cap(THREAD as u32).object(0).unwrap();
    let read = |field| done(cap_read(t, THREAD, field as u64));
    assert_ne!(read(Field::ThreadId), 0);
    assert_ne!(read(Field::ThreadId), t.id.get());
    assert_eq!((read(Field::SignalsSent), read(Field::WakeUps)), (0, 0));
    other.counters.dispatches.set(3);
    other.counters.interrupts.set(4);
    other.counters.vcpu_exits.set(5);
    other.counters.vcpu_kernel_exits.set(6);
    assert_eq!(read(Field::Dispatches), 3);
    assert_eq!(read(Field::Interrupts), 4);
    assert_eq!(read(Field::VcpuExits), 5);
    assert_eq!(read(Field::VcpuKernelExits), 6);
    assert_eq!(refused(cap_read(t, EVENT, Field::ThreadId as u64)), Error::WrongType);
    assert_eq!(refused(cap_read(t, THREAD, 35)), Error::BadArgument);
    done(event_signal(t, EVENT));
    assert_eq!(t.counters.signals_sent.get(), 1);
    assert_eq!(t.counters.wake_ups.get(), 0);
}

#[test]
fn a_kernel_that_does_not_count_instructions_says_so() {
    use proto::abi::SystemField;
    for field in 16..=25 {
        assert!(SystemField::try_from(field).is_ok());
        assert_eq!(refused(system_info(field)), Error::NotSupported);
    }
    let _w = World::new();
    assert!(system_info(SystemField::ContextSwitches as u64).is_ok());
    assert!(system_info(SystemField::Interrupts as u64).is_ok());
}

/// The event's capability went while a thread was put off in `vcpu_run`: the kernel kept a pointer to the event.
#[test]
fn a_vcpu_run_whose_event_is_gone_ends() {
    let w = populated();
    let t = w.thread;
    let (vcpu, _) = vcpu_run(t, VCPU, EVENT).unwrap();
    t.vcpu_event.set(EVENT);
    put_off(t, vcpu);
    done(cap_delete(t, 0, EVENT));
    assert!(take_up(t).is_none());
    assert!(vcpu.runner.get().is_none() && t.vcpu.get().is_none());
}
