//! Hypercalls as a guest without paging makes them, in 64-bit mode and in 32-bit mode.

use proto::toolstack::EndReason;

use super::*;
use crate::entry::blank;
use crate::events::Port;
use crate::loader::place::special;
use crate::machine::{Start, Wait};
use crate::memory::{Gfn, GuestPhys};
use crate::testing::{FakePlatform, machine, machine_of};

pub(super) const ARGUMENT: u64 = 0x8000;
const VMMCALL: u64 = 0x81;

/// Makes a hypercall whose structure argument is `words` (32-bit) at [`ARGUMENT`].
pub(super) fn call(
    machine: &mut Machine<FakePlatform>,
    vcpu: &mut Vcpu,
    number: u64,
    args: [u64; 3],
    words: &[u32],
) -> (i64, Outcome) {
    call_as(Width::Bits64, machine, vcpu, number, args, words)
}

/// [`call`] in 32-bit mode.
pub(super) fn call32(
    machine: &mut Machine<FakePlatform>,
    vcpu: &mut Vcpu,
    number: u64,
    args: [u64; 3],
    words: &[u32],
) -> (i64, Outcome) {
    call_as(Width::Bits32, machine, vcpu, number, args, words)
}

fn call_as(
    width: Width,
    machine: &mut Machine<FakePlatform>,
    vcpu: &mut Vcpu,
    number: u64,
    args: [u64; 3],
    words: &[u32],
) -> (i64, Outcome) {
    for (n, word) in words.iter().enumerate() {
        machine.guest.memory.write(GuestPhys(ARGUMENT + 4 * n as u64), &word.to_le_bytes()).unwrap();
    }
    // What 32-bit code cannot see must not count, and must stay.
    const UPPER: u64 = 0xdead_beef << 32;
    let is_wide = width == Width::Bits64;
    let mut state = blank();
    state.exit_code = VMMCALL;
    let (registers, upper) = if is_wide {
        state.efer = EFER_LMA;
        state.cs_attributes = CODE_64;
        ([gpr::RDI, gpr::RSI, gpr::RDX], 0)
    } else {
        ([gpr::RBX, gpr::RCX, gpr::RDX], UPPER)
    };
    state.gprs[gpr::RAX] = number | upper;
    for (register, arg) in registers.into_iter().zip(args) {
        state.gprs[register] = arg | upper;
    }
    let mut outcome = machine.handle_exit(vcpu, &mut state);
    for _ in 0..10_000 {
        if state.rip != 0 {
            let rax = state.gprs[gpr::RAX];
            if is_wide {
                return (rax as i64, outcome);
            }
            assert_eq!(rax & !LOW, UPPER);
            return (i64::from(rax as i32), outcome);
        }
        outcome = machine.handle_exit(vcpu, &mut state);
    }
    panic!("the hypercall never ends");
}

pub(super) fn word(machine: &Machine<FakePlatform>, offset: u64) -> u32 {
    let mut bytes = [0; 4];
    machine.guest.memory.read(GuestPhys(ARGUMENT + offset), &mut bytes).unwrap();
    u32::from_le_bytes(bytes)
}

#[test]
fn callers_outside_of_ring_0_are_refused() {
    let (mut machine, mut vcpu) = machine();
    let mut state = blank();
    state.gprs[gpr::RAX] = 1 << 40 | XEN_VERSION;
    assert!(matches!(dispatch(&mut machine, &mut vcpu, &mut state), Done::Answer(Ok(0x4_0011))));
    assert_eq!(state.gprs[gpr::RAX], 1 << 40 | 0x4_0011);
    state.cpl = 3;
    assert!(matches!(dispatch(&mut machine, &mut vcpu, &mut state), Done::Answer(Err(Errno::Perm))));
    assert_eq!(state.gprs[gpr::RAX] as i64, -1);
    // The same number from 64-bit code is another one.
    (state.cpl, state.efer, state.cs_attributes) = (0, EFER_LMA, CODE_64);
    state.gprs[gpr::RAX] = 1 << 40 | XEN_VERSION;
    assert!(matches!(dispatch(&mut machine, &mut vcpu, &mut state), Done::Answer(Err(Errno::NoSys))));
    // A 32-bit segment in long mode is 32-bit code.
    state.cs_attributes = 1 << 10;
    state.gprs[gpr::RAX] = XEN_VERSION;
    state.gprs[gpr::RDI] = 6;
    assert!(matches!(dispatch(&mut machine, &mut vcpu, &mut state), Done::Answer(Ok(0x4_0011))));
}

#[test]
fn narrow_callers_have_narrow_layouts() {
    let (mut machine, mut vcpu) = machine();
    let (m, v) = (&mut machine, &mut vcpu);
    // add_to_physmap: domain and size, space, index, frame.
    assert_eq!(call32(m, v, 12, [7, ARGUMENT, 0], &[0x7ff0, 0, 0, 5]).0, 0);
    assert_eq!(m.guest.memory.special_at(Gfn(5)), Some(special::SHARED_INFO));
    assert_eq!(call32(m, v, 12, [15, ARGUMENT, 0], &[0x7ff0, 5]).0, 0);
    assert_eq!(m.guest.memory.special_at(Gfn(5)), None);
    assert_eq!(call32(m, v, 12, [9, ARGUMENT, 0], &[2, 0x9000]).0, 0);
    assert_eq!(word(m, 0), 2);
    for n in 0..20u32 {
        m.guest.memory.write(GuestPhys(0x1_0000 + 4 * u64::from(n)), &(n + 0x20).to_le_bytes()).unwrap();
    }
    assert_eq!(call32(m, v, 12, [1, ARGUMENT, 0], &[0x1_0000, 20, 0, 0, 0x7ff0]).0, 20);
    assert_eq!(call32(m, v, 12, [1, ARGUMENT, 0], &[0x1_0000, 1 << 26, 0, 0, 0x7ff0]).0, 0);
    // A timer's time is in two registers.
    assert_eq!(call32(m, v, 15, [5000, 1, 0], &[]).0, 0);
    let due = m.guest.clock.ns(v.timer);
    assert!((5000..5100).contains(&(due - (1 << 32))), "{due}");
    // The runstate area has its words 4-byte aligned, and 44 bytes.
    m.guest.memory.write(GuestPhys(0x902c), &[0xee; 4]).unwrap();
    m.platform.tsc.set(77);
    assert_eq!(call32(m, v, 24, [4, 0, 0x9000], &[]).0, 0);
    let page = m.guest.memory.page(Gfn(9)).unwrap();
    assert_eq!(page.u32(44), 0xeeee_eeee);
}

#[test]
fn multicalls_have_results_of_their_own() {
    let (mut machine, mut vcpu) = machine();
    let (m, v) = (&mut machine, &mut vcpu);
    let entry = |number, first, second| [number, 0, 99, 99, first, 0, second, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let list = [entry(17, 0, 0), entry(13, 0, 0), entry(29, 1, 0), entry(17, 7, 0), entry(99, 0, 0)];
    let (answer, _) = call(m, v, 13, [ARGUMENT, 5, 0], list.as_flattened());
    assert_eq!(answer, 0);
    let results = [0, 1, 2, 3, 4].map(|n| word(m, n * 64 + 8) as i32);
    assert_eq!(results, [0x4_0011, -22, 0, 4096, -38]);
    assert_eq!(v.wait, Wait::Interrupt, "the call in between blocked");
    let narrow = [[17, 99, 0, 0, 0, 0, 0, 0], [17, 99, 6, 0x7000_0000, 0, 0, 0, 0]];
    assert_eq!(call32(m, v, 13, [ARGUMENT, 2, 0], narrow.as_flattened()).0, 0);
    assert_eq!((word(m, 4), word(m, 32 + 4) as i32), (0x4_0011, -14));
    // A list that is long, and one that ends outside of memory.
    assert_eq!(call32(m, v, 13, [0x1_0000, 1000, 0], &[]).0, 0);
    assert_eq!(call(m, v, 13, [0x3_ffc0, 2, 0], &[]).0, -14);
    assert_eq!(call(m, v, 13, [0, u64::MAX, 0], &[]).0, -14);
}

#[test]
fn event_channels_by_hypercall() {
    let (mut machine, mut vcpu) = machine();
    assert_eq!(call(&mut machine, &mut vcpu, 32, [1, ARGUMENT, 0], &[0, 0, 0]).0, 0);
    let timer = word(&machine, 8);
    assert_eq!(call(&mut machine, &mut vcpu, 32, [1, ARGUMENT, 0], &[0, 0, 0]).0, -17);
    assert_eq!(call(&mut machine, &mut vcpu, 32, [6, ARGUMENT, 0], &[0x7ff0, 0]).0, 0);
    let port = word(&machine, 4);
    assert_eq!(call(&mut machine, &mut vcpu, 32, [5, ARGUMENT, 0], &[0x7ff0, timer, 0, 0, 0, 0]).0, 0);
    assert_eq!((word(&machine, 8), word(&machine, 16)), (4, 0));
    machine.guest.events.bind_device(Port(port), 7).unwrap();
    machine.guest.events.kicks = 0;
    assert_eq!(call(&mut machine, &mut vcpu, 32, [4, ARGUMENT, 0], &[port]).0, 0);
    assert_eq!(machine.guest.events.kicks, 1 << 7);
    let free = machine.guest.events.allocate_unbound(0).unwrap();
    machine.guest.events.close(free).unwrap();
    assert_eq!(call(&mut machine, &mut vcpu, 32, [7, 0x3_fffc, 0], &[]).0, -14, "no room for the answer");
    assert_eq!(machine.guest.events.allocate_unbound(0), Ok(free), "the port is not lost");
}

#[test]
fn event_channel_operations_refuse_with_xens_numbers() {
    let (mut machine, mut vcpu) = machine();
    let mut op = |operation, words: &[u32]| {
        let answer = call(&mut machine, &mut vcpu, 32, [operation, ARGUMENT, 0], words).0;
        (answer, [2, 3, 4, 5].map(|n| word(&machine, 4 * n)))
    };
    let domids = |dom: u32, remote: u32| dom | remote << 16;
    // The guest is domain 5; the backends' domain is 0, and no other one is there.
    for (dom, answer) in [(0x7ff0, 0), (5, 0), (0, -1), (6, -3), (0x7ff4, -3)] {
        assert_eq!(op(6, &[domids(dom, 0), 0]).0, answer, "alloc_unbound {dom:#x}");
        assert_eq!(op(5, &[dom, 1, 0, 0, 0, 0]).0, answer, "status {dom:#x}");
        let answer = if answer == 0 { -16 } else { answer };
        assert_eq!(op(14, &[dom]).0, answer, "reset_cont {dom:#x}");
    }
    assert_eq!(op(6, &[domids(0x7ff0, 9), 0]).0, 0, "for a domain that may come");
    assert_eq!(op(5, &[5, 5, 0, 0, 0, 0xaaaa]), (0, [1, 0, 9, 0xaaaa]));
    assert_eq!(op(6, &[domids(0x7ff0, 5), 0]).0, 0);
    assert_eq!(op(0, &[9, 6, 0]).0, -3);
    assert_eq!(op(0, &[0, 6, 0]).0, -22);
    assert_eq!(op(0, &[0x7ff0, 6, 0]), (0, [7, 0, 9, 0xaaaa]));
    assert_eq!(op(5, &[5, 7, 0, 0, 0, 0]), (0, [2, 0, 5, 6]));
    assert_eq!(op(5, &[5, 99, 0, 0, 0, 0]).0, -22);
    assert_eq!(op(2, &[0, 0, 0]).0, -22, "there are no physical interrupts");
    assert_eq!(op(15, &[0, 0, 0]).0, -38);
    assert_eq!(op(12, &[4, 0]).0, -95);
    assert_eq!(op(13, &[1, 0]).0, -38);
    assert_eq!(op(11, &[5, 0, 0, 1, 0, 0]).0, -2);
    assert_eq!(op(11, &[0x5_0000, 0, 0, 0, 0, 0]).0, -22);
    assert_eq!(op(11, &[5, 0, 64, 0, 0xff00, 7]), (0, [64, 0, 0xff11, 7]));
    assert_eq!(op(12, &[6, 0]).0, 0);
    assert_eq!(op(13, &[1, 0]).0, 0);
    assert_eq!(op(10, &[0]).0, -1);
    assert_eq!(op(10, &[0x7ff0]).0, 0);
    assert_eq!(op(13, &[1, 0]).0, -38);
    for operation in 0..=14 {
        let answer = call(&mut machine, &mut vcpu, 32, [operation, 0x7000_0000, 0], &[]).0;
        assert_eq!(answer, -14, "{operation}");
    }
}

#[test]
fn vcpu_areas_and_the_timer() {
    let (mut machine, mut vcpu) = machine();
    assert_eq!(call(&mut machine, &mut vcpu, 24, [10, 0, ARGUMENT], &[5, 0, 64, 0]).0, 0);
    let page = machine.guest.memory.page(Gfn(5)).unwrap();
    assert_eq!((page.u8(64), page.u32(64 + 32), page.u8(64 + 61)), (1, 4, 1), "pending and time are there");
    assert_eq!(call(&mut machine, &mut vcpu, 24, [10, 1, ARGUMENT], &[5, 0, 64, 0]).0, -2);
    assert_eq!(call(&mut machine, &mut vcpu, 24, [5, 0, ARGUMENT], &[0x9000, 0]).0, 0);
    assert_eq!(call(&mut machine, &mut vcpu, 24, [13, 0, ARGUMENT], &[0x9100, 0]).0, 0);
    assert_eq!((machine.guest.memory.page(Gfn(9)).unwrap().u32(0x100), vcpu.time_area), (2, Some(0x9100)));
    assert_eq!(call(&mut machine, &mut vcpu, 24, [7, 0, 0], &[]).0, -38);
    assert_eq!(call(&mut machine, &mut vcpu, 15, [5000, 0, 0], &[]).0, 0);
    assert!((5000..5100).contains(&machine.guest.clock.ns(vcpu.timer)));
    assert_eq!(call(&mut machine, &mut vcpu, 15, [0, 0, 0], &[]).0, 0);
    assert_eq!(vcpu.timer, 0);
    machine.platform.tsc.set(1_000_000);
    let port = machine.guest.events.bind_virq(0, 0).unwrap();
    assert_eq!(call(&mut machine, &mut vcpu, 24, [8, 0, ARGUMENT], &[7, 0, 0, 0]).0, 0);
    assert!(machine.guest.events.is_pending(port), "a time in the past fires at once");
}

#[test]
fn poll_waits_until_a_port_or_its_time() {
    let (mut machine, mut vcpu) = machine();
    let port = machine.guest.events.bind_ipi(0).unwrap();
    machine.guest.memory.write(GuestPhys(0x9000), &port.0.to_le_bytes()).unwrap();
    machine.guest.special(0).unwrap().set_u64(0xa00, u64::MAX);
    let poll = [0x9000, 0, 1, 0, 1000, 0];
    let (answer, outcome) = call(&mut machine, &mut vcpu, 29, [3, ARGUMENT, 0], &poll);
    assert_eq!((answer, outcome), (0, Outcome::Wait));
    assert!(!machine.wakes(&mut vcpu));
    assert_ne!(machine.deadline(&vcpu), 0);
    machine.guest.events.send(port).unwrap();
    assert!(machine.wakes(&mut vcpu), "pending counts although it is masked");
    assert_eq!(vcpu.wait, Wait::None);
    machine.guest.special(0).unwrap().set_u64(0x800, 0);
    call(&mut machine, &mut vcpu, 29, [3, ARGUMENT, 0], &poll);
    assert!(!machine.wakes(&mut vcpu));
    machine.platform.tsc.set(2000);
    assert!(machine.wakes(&mut vcpu));
    let (m, v) = (&mut machine, &mut vcpu);
    assert_eq!(call(m, v, 29, [3, ARGUMENT, 0], &[0, 0, 129, 0, 0, 0]).0, -22, "too many ports");
    assert_eq!(call(m, v, 29, [3, ARGUMENT, 0], &[0x4_0000, 0, 1, 0, 0, 0]).0, -14);
    m.guest.memory.write(GuestPhys(0x9000), &100_000u32.to_le_bytes()).unwrap();
    assert_eq!(call(m, v, 29, [3, ARGUMENT, 0], &poll).0, -22, "no such port");
    // No ports: until a time, which is in the past if it is negative.
    assert_eq!(call(m, v, 29, [3, ARGUMENT, 0], &[0, 0, 0, 0, 9000, 0]), (0, Outcome::Wait));
    assert!(!m.wakes(v));
    assert_eq!(m.deadline(v), m.guest.clock.tsc(9000));
    assert_eq!(call(m, v, 29, [3, ARGUMENT, 0], &[0, 0, 0, 0, 0, 1 << 31]), (0, Outcome::Wait));
    assert!(m.wakes(v));
}

#[test]
fn a_poll_without_interrupts_is_not_ended_by_one_that_waits_already() {
    let (mut machine, mut vcpu) = machine();
    let (m, v) = (&mut machine, &mut vcpu);
    m.guest.callback = Some(0xf3);
    let port = m.guest.events.bind_ipi(0).unwrap();
    let other = m.guest.events.bind_ipi(0).unwrap();
    m.guest.memory.write(GuestPhys(0x9000), &port.0.to_le_bytes()).unwrap();
    let poll = [0x9000, 0, 1, 0, 0, 0];
    assert_eq!(call(m, v, 29, [3, ARGUMENT, 0], &poll), (0, Outcome::Wait));
    assert!(!m.wakes(v));
    m.guest.events.send(other).unwrap();
    assert!(m.wakes(v), "one that comes ends it");
    // The guest of these tests has its interrupts off.
    assert_eq!(call(m, v, 29, [3, ARGUMENT, 0], &poll), (0, Outcome::Wait));
    assert!(!m.wakes(v));
    m.guest.events.send(port).unwrap();
    assert!(m.wakes(v));
}

#[test]
fn shutdown_reasons() {
    let reasons = [
        EndReason::PowerOff,
        EndReason::Reboot,
        EndReason::Suspend,
        EndReason::Crash,
        EndReason::Watchdog,
        EndReason::SoftReset,
        EndReason::Crash,
    ];
    for (n, reason) in reasons.into_iter().enumerate() {
        let (mut machine, mut vcpu) = machine();
        let (_, outcome) = call(&mut machine, &mut vcpu, 29, [2, ARGUMENT, 0], &[0xabc00 | n as u32]);
        assert!(matches!(outcome, Outcome::End(r, _) if r == reason));
    }
    let (mut machine, mut vcpu) = machine();
    let (m, v) = (&mut machine, &mut vcpu);
    assert_eq!(call(m, v, 29, [2, 0x4_0000, 0], &[]).0, -14);
    assert_eq!(call(m, v, 29, [5, 0x4_0000, 0], &[]).0, -14);
    // The first code that was given counts.
    assert_eq!(call(m, v, 29, [5, ARGUMENT, 0], &[1]).0, 0);
    assert_eq!(call(m, v, 29, [5, ARGUMENT, 0], &[3]).0, 0);
    assert!(matches!(call(m, v, 29, [2, ARGUMENT, 0], &[0]).1, Outcome::End(EndReason::Reboot, _)));
}

#[test]
fn what_a_guest_may_not_do_to_domains_and_processors() {
    let (mut machine, mut vcpu) = machine();
    let (m, v) = (&mut machine, &mut vcpu);
    for (domid, answer) in [(0, -1), (5, -1), (6, -3), (0x7ff0, -3)] {
        assert_eq!(call(m, v, 29, [4, ARGUMENT, 0], &[domid, 0]).0, answer, "{domid}");
    }
    assert_eq!(call(m, v, 29, [4, 0x4_0000, 0], &[]).0, -14);
    assert_eq!(call(m, v, 29, [7, 0x4_0000, 0], &[]).0, -1);
    assert_eq!(call(m, v, 29, [8, ARGUMENT, 0], &[]).0, -38);
    // Numbers of operations have 32 bits, also for 64-bit callers.
    assert_eq!(call(m, v, 29, [1 << 32 | 7, 0, 0], &[]).0, -1);
    assert_eq!(call(m, v, 24, [12, 0, 0], &[]).0, -22);
    let assist = [([0, 5], 0), ([1, 5], 0), ([2, 5], -38), ([0, 4], -22), ([0, 64], -22), ([9, 9], -22)];
    for ([command, kind], answer) in assist {
        assert_eq!(call(m, v, 21, [command, kind, 0], &[]).0, answer, "{command} {kind}");
    }
}

#[test]
fn a_watchdog_that_is_not_set_again_ends_the_guest() {
    let (mut machine, mut vcpu) = machine();
    let (m, v) = (&mut machine, &mut vcpu);
    let second = 1_000_000_000;
    assert_eq!(call(m, v, 29, [6, ARGUMENT, 0], &[1, 5]).0, -22, "not in use");
    assert_eq!(call(m, v, 29, [6, ARGUMENT, 0], &[3, 5]).0, -22);
    assert_eq!(call(m, v, 29, [6, ARGUMENT, 0], &[0, 5]).0, 1);
    assert_eq!(call32(m, v, 29, [6, ARGUMENT, 0], &[0, 7]).0, 2);
    assert_eq!(call(m, v, 29, [6, ARGUMENT, 0], &[0, 5]).0, -28);
    assert!((5 * second..5 * second + 100).contains(&m.deadline(v)));
    m.platform.tsc.set(4 * second);
    assert_eq!(call(m, v, 29, [6, ARGUMENT, 0], &[1, 5]).0, 0);
    m.platform.tsc.set(6 * second);
    assert_eq!(m.watchdog_end(), None);
    assert_eq!(call(m, v, 29, [6, ARGUMENT, 0], &[2, 0]).0, 0);
    m.platform.tsc.set(8 * second);
    assert_eq!(m.watchdog_end(), None, "the second one was stopped");
    m.platform.tsc.set(9 * second + 100);
    assert!(matches!(m.watchdog_end(), Some(Outcome::End(EndReason::Watchdog, _))));
}

#[test]
fn vcpus_are_initialised_go_up_and_down() {
    let (mut machine, mut vcpu) = machine_of(2);
    let (m, v) = (&mut machine, &mut vcpu);
    let mut op = |operation, id, words: &[u32]| call(m, v, 24, [operation, id, ARGUMENT], words);
    assert_eq!((op(3, 0, &[]).0, op(3, 1, &[]).0, op(3, 2, &[]).0), (1, 0, -2));
    assert_eq!(op(1, 1, &[]).0, -22, "nobody said how");
    let mut context = [0; 32];
    context[0] = 1;
    assert_eq!(op(0, 1, &context).0, -22);
    // 64-bit mode: rip, cr0, cr4, efer.
    for (n, word) in [(8, 0x1234), (10, 1 << 31 | 1), (12, 0x20), (13, 0x100)] {
        context[2 + 2 * n] = word;
    }
    assert_eq!(op(0, 0, &context).0, -17);
    assert_eq!(op(0, 1, &context).0, 0);
    assert_eq!((op(0, 1, &context).0, op(3, 1, &[]).0), (-17, 0));
    assert_eq!((op(1, 1, &[]).0, op(3, 1, &[]).0), (0, 1));
    assert_eq!((op(2, 1, &[]).0, op(3, 1, &[]).0), (0, 0));
    assert_eq!((op(1, 1, &[]).0, op(3, 1, &[]).0), (0, 1));
    assert_eq!(op(6, 1, &[1_000_000, 0]).0, 0, "another one's periodic timer");
    assert_eq!((op(8, 1, &[9, 0, 0, 0]).0, op(9, 1, &[]).0), (-22, -22), "another one's timer");
    assert_eq!(op(2, 0, &[]), (0, Outcome::Wait));
    let other = machine.parked.get_mut(1).unwrap();
    assert!(matches!(&other.start, Some(Start::State(state)) if state.rip == 0x1234));
    other.start = None;
    other.wait = Wait::None;
    let (_, outcome) = call(&mut machine, &mut vcpu, 24, [2, 1, 0], &[]);
    assert!(matches!(outcome, Outcome::End(EndReason::PowerOff, _)), "the last one");
}

#[test]
fn an_nmi_ends_another_vcpus_wait() {
    let (mut machine, mut vcpu) = machine_of(2);
    let (m, v) = (&mut machine, &mut vcpu);
    m.parked.get_mut(1).unwrap().wait = Wait::Interrupt;
    assert_eq!(call(m, v, 24, [11, 1, 1], &[]).0, -22, "it has no argument");
    assert_eq!(call(m, v, 24, [11, 2, 0], &[]).0, -2);
    assert!(!m.is_parked_ready());
    assert_eq!(call(m, v, 24, [11, 1, 0], &[]).0, 0);
    assert!(m.is_parked_ready() && m.parked.get_mut(1).unwrap().apic.take_nmi());
}

#[test]
fn timers_of_all_kinds() {
    let (mut machine, mut vcpu) = machine();
    let (m, v) = (&mut machine, &mut vcpu);
    m.platform.tsc.set(1_000_000);
    let port = m.guest.events.bind_virq(0, 0).unwrap();
    let pending = |m: &mut Machine<FakePlatform>| {
        let is_pending = m.guest.events.is_pending(port);
        m.guest.special(0).unwrap().set_u64(0x800, 0);
        is_pending
    };
    // One that must be in the future, and is not.
    assert_eq!(call(m, v, 24, [8, 0, ARGUMENT], &[7, 0, 1, 0]).0, -62);
    assert!(!pending(m));
    assert_eq!(call32(m, v, 24, [8, 0, ARGUMENT], &[7, 0, 0, 9]).0, 0);
    assert!(pending(m) && v.timer == 0);
    // Far away, or negative: a mistake, which 100 ms make up for.
    for far in [1 << 60, u64::MAX] {
        assert_eq!(call(m, v, 15, [far, 0, 0], &[]).0, 0);
        assert!((101_000_000..101_000_200).contains(&m.deadline(v)), "{}", m.deadline(v));
    }
    assert_eq!(call(m, v, 24, [9, 0, 0], &[]).0, 0);
    assert_eq!((m.deadline(v), pending(m)), (0, false));
    // Periodic.
    assert_eq!(call(m, v, 24, [7, 0, 0], &[]).0, -38, "as Linux is to find it");
    assert_eq!(call(m, v, 24, [6, 0, ARGUMENT], &[999_999, 0]).0, -22);
    assert_eq!(call(m, v, 24, [6, 0, ARGUMENT], &[0, 1 << 30]).0, -22);
    assert_eq!(call(m, v, 24, [6, 0, ARGUMENT], &[2_000_000, 0]).0, 0);
    m.tick(v);
    assert!(pending(m), "the first one at once");
    for now in [2_999_000, 3_100_000, 3_200_000, 9_000_000] {
        m.platform.tsc.set(now);
        m.tick(v);
        assert_eq!(pending(m), now == 3_100_000 || now == 9_000_000, "{now}");
    }
    assert!(m.deadline(v) >= 11_000_000);
    assert_eq!(call(m, v, 24, [7, 0, 0], &[]).0, 0);
    assert_eq!(m.deadline(v), 0);
}

#[test]
fn early_console_output_is_kept_for_the_console() {
    let (mut machine, mut vcpu) = machine();
    machine.guest.memory.write(GuestPhys(0x9000), b"hello").unwrap();
    assert_eq!(call(&mut machine, &mut vcpu, 18, [0, 5, 0x9000], &[]).0, 0);
    let text: alloc::vec::Vec<u8> = machine.guest.early_output.iter().copied().collect();
    assert_eq!(text, b"hello");
}

fn bytes<const N: usize>(machine: &Machine<FakePlatform>) -> [u8; N] {
    let mut bytes = [0; N];
    machine.guest.memory.read(GuestPhys(ARGUMENT), &mut bytes).unwrap();
    bytes
}

#[test]
fn each_version_query_fills_its_buffer_and_no_more() {
    let (mut machine, mut vcpu) = machine();
    assert_eq!(call(&mut machine, &mut vcpu, 17, [0, 0, 0], &[]).0, 0x4_0011);
    let lens = [(1, 16), (2, 144), (3, 1024), (4, 64), (5, 8), (8, 16), (9, 9)];
    for (query, len) in lens {
        let dirty = [u32::MAX; 260];
        assert_eq!(call(&mut machine, &mut vcpu, 17, [query, ARGUMENT, 0], &dirty).0, 0);
        let bytes: [u8; 1040] = bytes(&machine);
        assert!(
            bytes[..len].iter().all(|&byte| byte != 0xff || query == 5),
            "query {query} leaves old bytes"
        );
        assert!(bytes[len..].iter().all(|&byte| byte == 0xff), "query {query} writes too much");
        assert_eq!(call(&mut machine, &mut vcpu, 17, [query, 0x3_fffc, 0], &[]).0, -14, "query {query}");
    }
    assert_eq!(&bytes::<9>(&machine), b"<denied>\0");
    assert_eq!(call(&mut machine, &mut vcpu, 17, [7, 0, 0], &[]).0, 4096);
    assert_eq!(call(&mut machine, &mut vcpu, 17, [7, ARGUMENT, 0], &[]).0, -22);
    assert_eq!(call(&mut machine, &mut vcpu, 17, [10, 0, 0], &[]).0, -1);
    assert_eq!(call(&mut machine, &mut vcpu, 17, [11, 0, 0], &[]).0, -38);
    assert_eq!(call32(&mut machine, &mut vcpu, 17, [5, ARGUMENT, 0], &[9, 9]).0, 0);
    assert_eq!((word(&machine, 0), word(&machine, 4)), (0, 9));
}

#[test]
fn features_are_in_one_word() {
    let (mut machine, mut vcpu) = machine();
    assert_eq!(call(&mut machine, &mut vcpu, 17, [6, ARGUMENT, 0], &[0, 9]).0, 0);
    assert_eq!(word(&machine, 4), 0x1_2305);
    assert_eq!(call(&mut machine, &mut vcpu, 17, [6, ARGUMENT, 0], &[1, 9]).0, -22);
    assert_eq!(word(&machine, 4), 9);
    assert_eq!(call(&mut machine, &mut vcpu, 17, [6, 0x7000_0000, 0], &[]).0, -14);
}

#[test]
fn console_output_of_any_length_ends_with_the_memory_that_holds_it() {
    let (mut machine, mut vcpu) = machine();
    for count in [u64::from(u32::MAX), 1 << 31] {
        assert_eq!(call(&mut machine, &mut vcpu, 18, [0, count, 0x3_0000], &[]).0, -14);
    }
    assert_eq!(call(&mut machine, &mut vcpu, 18, [0, 0x1_0000, 0x3_0000], &[]).0, 0);
    assert_eq!(
        call(&mut machine, &mut vcpu, 18, [0, 5 << 32, 0x7fff_0000], &[]).0,
        0,
        "32 bits of the length count"
    );
    assert_eq!(call(&mut machine, &mut vcpu, 18, [0, 1, 0x7fff_0000], &[]).0, -14);
    assert_eq!(call32(&mut machine, &mut vcpu, 18, [0, 0x800, 0x3_0000], &[]).0, 0);
    for operation in [1, 2, u64::from(u32::MAX)] {
        assert_eq!(call(&mut machine, &mut vcpu, 18, [operation, 8, ARGUMENT], &[]).0, -1);
    }
}

#[test]
fn calls_for_others_are_refused_in_xens_order() {
    let (mut machine, mut vcpu) = machine();
    let mut answer = |number, args, words: &[u32]| call(&mut machine, &mut vcpu, number, args, words).0;
    for (number, version) in [(7, 0x0300_0001), (35, 0x15), (36, 0x15), (49, 0x15)] {
        assert_eq!(answer(number, [0x7fff_0000, 0, 0], &[]), -14);
        assert_eq!(answer(number, [ARGUMENT, 0, 0], &[2, version + 1]), -13);
        assert_eq!(answer(number, [ARGUMENT, 0, 0], &[2, version, 0]), -1);
    }
    assert_eq!(answer(36, [ARGUMENT, 0, 0], &[2, 0x15, 0x7ff0]), -3);
    assert_eq!(answer(36, [ARGUMENT, 0, 0], &[1, 0x15, 0x7ff0]), -1, "a new domain");
    assert_eq!(answer(36, [ARGUMENT, 0, 0], &[5, 0x15, 9]), -1, "looking for the next domain");
    assert_eq!(answer(36, [ARGUMENT, 0, 0], &[5, 0x15, 0x7ff0]), -22);
    assert_eq!(
        [answer(40, [0, 0, 0], &[]), answer(42, [0, 0, 0], &[]), answer(27, [0, 0, 0], &[])],
        [-95, -1, -38]
    );
    let device_model = |domid: u64, count: u64| [domid, count, ARGUMENT];
    assert_eq!([answer(41, device_model(0, 0), &[]), answer(41, device_model(0, 4), &[])], [-61, -7]);
    assert_eq!([answer(41, device_model(0, 1), &[]), answer(41, device_model(9, 1), &[])], [-22, -3]);
    assert_eq!([answer(41, device_model(5, 1), &[]), answer(41, [5, 1, 0x7fff_0000], &[])], [-1, -14]);
    for number in (0..7).chain([
        8,
        9,
        10,
        11,
        14,
        16,
        19,
        22,
        23,
        25,
        28,
        30,
        31,
        33,
        37,
        38,
        39,
        43,
        48,
        55,
        99,
        1 << 40,
    ]) {
        assert_eq!(answer(number, [ARGUMENT; 3], &[]), -38, "hypercall {number}");
    }
}

#[test]
fn page_tables_of_others_are_not_for_this_guest() {
    let (mut machine, mut vcpu) = machine();
    for (domid, expected) in [(0x7ff0, -22), (0, -1), (0x7ff1, -1), (5, -3), (9, -3)] {
        let mut state = blank();
        state.efer = EFER_LMA;
        state.cs_attributes = CODE_64;
        state.gprs[gpr::RAX] = 26;
        state.gprs[R10] = domid;
        dispatch(&mut machine, &mut vcpu, &mut state);
        assert_eq!(state.gprs[gpr::RAX] as i64, expected);
    }
}
