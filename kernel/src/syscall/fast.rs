//! The calls on which messages and guests rest, in the case for which they exist: somebody waits and runs next,
//! a guest is to be entered.
//!
//! Each looks first, without effects, whether its case applies; if not, the caller takes the general way
//! ([`super::event_signal`] and so on), which decides everything anew. The thread that waits gets the signals
//! directly, not by way of the event: whatever is pending there besides stays for its next wait. Signals take
//! the general way while a trace is taken.

use crate::cap::{Cap, MAY_RUN, MAY_SIGNAL, MAY_WAIT};
use crate::cpu::Cpu;
use crate::object::event::Event;
use crate::object::from_address;
use crate::object::thread::{Resume, Thread, count, reg};
use crate::object::vcpu::Vcpu;
use crate::object::vm::Vm;
use crate::schedule::Place;

/// What a fast path found.
#[derive(Debug, Clone, Copy)]
pub enum Decision {
    /// This thread runs now and gets these signals; the caller is waiting or queued.
    HandOver(&'static Thread, u64),
    /// The call is done, with value 0.
    Done,
    /// Nothing happened yet: the general way.
    General,
    /// The thread has its signals pending and is to be made ready; the caller has still to wait for its event.
    Signalled(&'static Thread, &'static Event),
}

#[inline(always)]
fn usable(caller: &Thread, number: u64, what: u8) -> Option<&'static Cap> {
    caller.slot(number).ok().filter(|cap| cap.may(what))
}

/// `EventSignalAndWait`, when somebody waits for the signal who is to run next.
#[inline(always)]
pub fn signal_and_wait(cpu: &Cpu, caller: &'static Thread, signal: u64, wait: u64) -> Decision {
    let Some(cap) = usable(caller, signal, MAY_SIGNAL) else { return Decision::General };
    let Some(own) = usable(caller, wait, MAY_WAIT) else { return Decision::General };
    let target: &'static Event = from_address(cap.base.get());
    let own: &'static Event = from_address(own.base.get());
    let Some(woken) = target.waiter() else { return Decision::General };
    if !cpu.queue.is_clear_from(woken.priority.get()) || !target.take_this_waiter(woken) {
        return Decision::General;
    }
    count(&caller.counters.signals_sent);
    count(&caller.counters.wake_ups);
    let signals = cap.aux.get();
    if !own.begin_wait(caller) {
        target.add(signals);
        return Decision::Signalled(woken, own);
    }
    caller.waiting.set(Some(own));
    Decision::HandOver(woken, signals)
}

/// `EventSignal`, when nobody waits, or somebody who is more important than everything that is ready.
#[inline(always)]
pub fn signal(cpu: &Cpu, caller: &'static Thread, number: u64) -> Decision {
    let Some(cap) = usable(caller, number, MAY_SIGNAL) else { return Decision::General };
    let target: &'static Event = from_address(cap.base.get());
    let Some(woken) = target.waiter() else {
        target.add(cap.aux.get());
        // Who began to wait meanwhile did not see the signals.
        if target.waiter().is_some() {
            return Decision::General;
        }
        count(&caller.counters.signals_sent);
        return Decision::Done;
    };
    let priority = woken.priority.get();
    if priority <= caller.priority.get()
        || !cpu.queue.is_clear_from(priority)
        || !target.take_this_waiter(woken)
    {
        return Decision::General;
    }
    count(&caller.counters.signals_sent);
    count(&caller.counters.wake_ups);
    caller.regs[reg::RAX].set(0);
    caller.regs[reg::RDX].set(0);
    caller.resume.set(Resume::Syscall);
    cpu.queue.push(caller, Place::Front);
    Decision::HandOver(woken, cap.aux.get())
}

/// `VcpuRun`, unless it has to be refused: the vCPU, its VM and the event that ends the run.
#[inline(always)]
pub fn vcpu_run(
    caller: &'static Thread,
    vcpu: u64,
    event: u64,
) -> Option<(&'static Vcpu, &'static Vm, &'static Event)> {
    let vcpu: &'static Vcpu = from_address(usable(caller, vcpu, MAY_RUN)?.base.get());
    let event: &'static Event = from_address(usable(caller, event, MAY_WAIT)?.base.get());
    if vcpu.runner.get().is_some() {
        return None;
    }
    Some((vcpu, vcpu.vm.get()?, event))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu;
    use crate::syscall::{self, Outcome};
    use crate::testing::World;
    use proptest::prelude::*;
    use proto::abi::{Error, rights};

    const TARGET: u64 = 20;
    const OWN: u64 = 21;
    const NO_SIGNAL: u64 = 22;

    /// A caller of priority 10 with two events, and a thread of another domain that may wait on the first.
    fn world(priority: u8) -> (World, &'static Thread, &'static Event, &'static Event) {
        let other = Thread::leak_for_test();
        other.priority.set(priority);
        let w = World::new();
        w.take(1, 30);
        w.take(1, 31);
        syscall::event_create(w.thread, 30, TARGET).unwrap();
        syscall::event_create(w.thread, 31, OWN).unwrap();
        syscall::cap_derive(w.thread, [TARGET, 0, NO_SIGNAL, 5, 0, rights::WAIT]).unwrap();
        let [target, own] = [TARGET, OWN].map(|slot| w.cap(slot as u32).object::<Event>(0).unwrap());
        (w, other, target, own)
    }

    #[test]
    fn a_waiter_gets_the_signals_directly_and_the_caller_waits() {
        let (w, other, target, own) = world(10);
        assert!(target.begin_wait(other));
        let decision = signal_and_wait(cpu::this(), w.thread, TARGET, OWN);
        assert!(matches!(decision, Decision::HandOver(woken, u64::MAX) if core::ptr::eq(woken, other)));
        assert!(target.waiter().is_none() && !target.is_pending());
        assert!(own.waiter().is_some_and(|waiter| core::ptr::eq(waiter, w.thread)));
        assert_eq!(w.thread.counters.signals_sent.get(), 1);
        assert_eq!(w.thread.counters.wake_ups.get(), 1);
    }

    #[test]
    fn a_more_important_waiter_displaces_the_signaller() {
        let (w, other, target, _) = world(11);
        assert!(target.begin_wait(other));
        assert!(matches!(signal(cpu::this(), w.thread, TARGET), Decision::HandOver(_, u64::MAX)));
        assert!(core::ptr::eq(cpu::this().queue.pop().unwrap(), w.thread));
    }

    #[test]
    fn a_signal_without_a_waiter_stays_pending() {
        let (w, _, target, _) = world(10);
        assert!(matches!(signal(cpu::this(), w.thread, TARGET), Decision::Done));
        assert_eq!(target.take(), u64::MAX);
        assert_eq!(w.thread.counters.wake_ups.get(), 0);
    }

    #[test]
    fn what_the_caller_may_not_do_is_left_to_the_general_way() {
        let (w, other, target, _) = world(11);
        assert!(target.begin_wait(other));
        for (signal_slot, wait_slot) in
            [(0, OWN), (NO_SIGNAL, OWN), (99, OWN), (1 << 32 | TARGET, OWN), (TARGET, 0), (TARGET, 30)]
        {
            let decision = signal_and_wait(cpu::this(), w.thread, signal_slot, wait_slot);
            assert!(matches!(decision, Decision::General), "{signal_slot} {wait_slot}");
        }
        assert!(matches!(signal(cpu::this(), w.thread, NO_SIGNAL), Decision::General));
        assert!(vcpu_run(w.thread, TARGET, OWN).is_none());
        assert_eq!(w.thread.counters.signals_sent.get(), 0);
    }

    #[test]
    fn signals_that_came_meanwhile_end_the_wait() {
        let (w, other, target, own) = world(10);
        assert!(target.begin_wait(other));
        own.add(2);
        let Decision::Signalled(woken, waits_for) = signal_and_wait(cpu::this(), w.thread, TARGET, OWN)
        else {
            panic!("it did not look at its own event")
        };
        assert!(core::ptr::eq(woken, other) && core::ptr::eq(waits_for, own) && target.is_pending());
        let answer = syscall::wait_after_signal(w.thread, own, Some(woken));
        assert!(matches!(answer, Ok(Outcome::Value(2))));
        assert!(other.is_queued.get());
        cpu::this().queue.remove(other);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        /// Whatever stands in the queue: both ways leave events and counters alike, and who runs is alike.
        #[test]
        fn both_ways_end_alike(priority in 8u8..13, queued in proptest::option::of(8u8..13), waits: bool, both: bool) {
            let run = |is_fast: bool| {
                let (w, other, target, own) = world(priority);
                let third = Thread::leak_for_test();
                if waits {
                    assert!(target.begin_wait(other));
                    other.waiting.set(Some(target));
                }
                if let Some(priority) = queued.filter(|priority| both || *priority <= 10) {
                    third.priority.set(priority);
                    cpu::this().queue.push(third, Place::Back);
                }
                let decision = match (is_fast, both) {
                    (false, _) => Decision::General,
                    (true, true) => signal_and_wait(cpu::this(), w.thread, TARGET, OWN),
                    (true, false) => signal(cpu::this(), w.thread, TARGET),
                };
                let next = match decision {
                    Decision::HandOver(next, signals) => { target.add(signals); Some(next) }
                    Decision::Done => None,
                    Decision::Signalled(..) => panic!("nothing was pending"),
                    Decision::General => {
                        let answer = if both {
                            syscall::event_signal_and_wait(w.thread, TARGET, OWN)
                        } else {
                            syscall::event_signal(w.thread, TARGET)
                        };
                        match answer.unwrap() {
                            Outcome::Handover(next) => Some(next),
                            Outcome::Displaced(next) => { cpu::this().queue.push(w.thread, Place::Front); Some(next) }
                            Outcome::Blocked => cpu::this().queue.pop(),
                            Outcome::Value(0) => None,
                            other => panic!("{other:?}"),
                        }
                    }
                };
                let name = |thread: &Thread| {
                    [w.thread, other, third].iter().position(|known| core::ptr::eq(*known, thread))
                };
                let mut left = Vec::new();
                while let Some(thread) = cpu::this().queue.pop() {
                    left.push(name(thread));
                }
                (
                    next.and_then(name),
                    left,
                    target.take(),
                    own.waiter().is_some(),
                    w.thread.waiting.get().is_some(),
                    w.thread.counters.signals_sent.get(),
                    w.thread.counters.wake_ups.get(),
                )
            };
            prop_assert_eq!(run(true), run(false));
        }
    }

    #[test]
    fn a_destroyed_event_cannot_be_named() {
        let (w, ..) = world(10);
        syscall::cap_delete(w.thread, 0, TARGET).unwrap();
        assert!(matches!(signal(cpu::this(), w.thread, TARGET), Decision::General));
        assert_eq!(syscall::event_signal(w.thread, TARGET).err(), Some(Error::BadSlot));
    }
}
