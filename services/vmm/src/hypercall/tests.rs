//! Hypercalls as a guest without paging makes them, in 64-bit mode and in 32-bit mode.

use proto::toolstack::EndReason;

use super::*;
use crate::entry::blank;
use crate::events::Port;
use crate::loader::place::special;
use crate::machine::Wait;
use crate::memory::{Gfn, GuestPhys};
use crate::testing::{FakePlatform, machine};

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

fn word(machine: &Machine<FakePlatform>, offset: u64) -> u32 {
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
    for n in 0..3000u32 {
        m.guest.memory.write(GuestPhys(0x1_0000 + 4 * u64::from(n)), &(n % 60).to_le_bytes()).unwrap();
    }
    assert_eq!(call32(m, v, 12, [1, ARGUMENT, 0], &[0x1_0000, 3000, 0, 0, 0x7ff0]).0, 3000);
    assert_eq!(call32(m, v, 12, [1, ARGUMENT, 0], &[0x1_0000, 1 << 26, 0, 0, 0x7ff0]).0, -22);
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
fn version_and_features() {
    let (mut machine, mut vcpu) = machine();
    assert_eq!(call(&mut machine, &mut vcpu, 17, [0, 0, 0], &[]).0, 0x4_0011);
    assert_eq!(call(&mut machine, &mut vcpu, 17, [6, ARGUMENT, 0], &[0, 9]).0, 0);
    assert_eq!(word(&machine, 4), 0x1_0305);
    assert_eq!(call(&mut machine, &mut vcpu, 17, [6, ARGUMENT, 0], &[1, 9]).0, 0);
    assert_eq!(word(&machine, 4), 0);
    assert_eq!(call(&mut machine, &mut vcpu, 17, [1, 0x7000_0000, 0], &[]).0, -14);
    assert_eq!(call(&mut machine, &mut vcpu, 99, [0, 0, 0], &[]).0, -38);
}

#[test]
fn shared_info_and_grant_frames_go_where_the_guest_wants_them() {
    let (mut machine, mut vcpu) = machine();
    let add = |space, index, gfn: u64| [0x7ff0, space, index, 0, gfn as u32, (gfn >> 32) as u32];
    let mut place = |words: &[u32]| call(&mut machine, &mut vcpu, 12, [7, ARGUMENT, 0], words).0;
    assert_eq!(place(&add(0, 0, 1)), 0);
    assert_eq!(place(&add(1, 2, 0x18000)), 0);
    assert_eq!(place(&add(1, 0, 1)), 0, "the table's first frame takes shared_info's place");
    assert_eq!(place(&add(0, 0, 3)), 0);
    assert_eq!(place(&add(0, 0, 4)), 0);
    assert_eq!(place(&add(1, 32, 5)), -22);
    assert_eq!(place(&add(2, 0, 5)), -22);
    assert_eq!(place(&add(0, 0, 1 << 40)), -22);
    let memory = &machine.guest.memory;
    assert_eq!(memory.special_at(Gfn(1)), Some(special::GRANTS));
    assert_eq!(memory.special_at(Gfn(4)), Some(special::SHARED_INFO));
    assert_eq!(memory.special_at(Gfn(3)), None);
    assert_eq!(machine.platform.restored, [Gfn(3)]);
    assert_eq!(machine.guest.grants.frames(), 3);
    assert_eq!(call(&mut machine, &mut vcpu, 20, [6, ARGUMENT, 1], &[0x7ff0]).0, 0);
    assert_eq!((word(&machine, 4), word(&machine, 8)), (3, 32));
}

#[test]
fn the_memory_map_is_the_one_of_the_start_information() {
    let (mut machine, mut vcpu) = machine();
    assert_eq!(call(&mut machine, &mut vcpu, 12, [9, ARGUMENT, 0], &[2, 0, 0x9000, 0]).0, 0);
    assert_eq!(word(&machine, 0), 2);
    let mut entry = [0; 20];
    machine.guest.memory.read(GuestPhys(0x9000 + 20), &mut entry).unwrap();
    assert_eq!((u64::from_le_bytes(entry[..8].try_into().unwrap()), entry[16]), (0xfc00_0000, 3));
}

#[test]
fn ballooning_counts_and_long_lists_are_continued() {
    let (mut machine, mut vcpu) = machine();
    for n in 0..3000u64 {
        machine.guest.memory.write(GuestPhys(0x1_0000 + 8 * n), &(n % 60).to_le_bytes()).unwrap();
    }
    let reservation = [0x1_0000, 0, 3000, 0, 0, 0, 0x7ff0, 0];
    assert_eq!(call(&mut machine, &mut vcpu, 12, [1, ARGUMENT, 0], &reservation).0, 3000);
    machine.guest.memory.write(GuestPhys(0x1_0000 + 8 * 2000), &0x9_9999u64.to_le_bytes()).unwrap();
    assert_eq!(call(&mut machine, &mut vcpu, 12, [6, ARGUMENT, 0], &reservation).0, 2000);
    let absurd = [0x1_0000, 0, u32::MAX, u32::MAX, 0, 0, 0x7ff0, 0];
    assert_eq!(call(&mut machine, &mut vcpu, 12, [6, ARGUMENT, 0], &absurd).0, -22);
}

#[test]
fn parameters_name_rings_and_ports() {
    let (mut machine, mut vcpu) = machine();
    let mut get = |index| {
        assert_eq!(call(&mut machine, &mut vcpu, 34, [1, ARGUMENT, 0], &[0x7ff0, index, 9, 9]).0, 0);
        word(&machine, 8)
    };
    assert_eq!((get(1), get(17)), (0xfeffd, 0xfeffc));
    let (store, console) = (get(2), get(18));
    assert!(store != 0 && console != 0 && store != console);
    assert_eq!(get(5), 0);
    assert_eq!(call(&mut machine, &mut vcpu, 34, [0, ARGUMENT, 0], &[0x7ff0, 0, 0xf3, 2 << 24]).0, 0);
    assert_eq!(machine.guest.callback, Some(0xf3));
    assert_eq!(call(&mut machine, &mut vcpu, 34, [0, ARGUMENT, 0], &[0x7ff0, 0, 3, 2 << 24]).0, -22);
    assert_eq!(call(&mut machine, &mut vcpu, 34, [9, ARGUMENT, 0], &[]).0, -38);
}

#[test]
fn event_channels_by_hypercall() {
    let (mut machine, mut vcpu) = machine();
    assert_eq!(call(&mut machine, &mut vcpu, 32, [11, ARGUMENT, 0], &[0; 8]).0, -38, "FIFO");
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
    let free = machine.guest.events.allocate_unbound().unwrap();
    machine.guest.events.close(free).unwrap();
    assert_eq!(call(&mut machine, &mut vcpu, 32, [7, 0x3_fffc, 0], &[]).0, -14, "no room for the answer");
    assert_eq!(machine.guest.events.allocate_unbound(), Ok(free), "the port is not lost");
}

#[test]
fn vcpu_areas_and_the_timer() {
    let (mut machine, mut vcpu) = machine();
    assert_eq!(call(&mut machine, &mut vcpu, 24, [10, 0, ARGUMENT], &[5, 0, 64, 0]).0, 0);
    let page = machine.guest.memory.page(Gfn(5)).unwrap();
    assert_eq!((page.u8(64), page.u32(64 + 32), page.u8(64 + 61)), (1, 2, 1), "pending and time are there");
    assert_eq!(call(&mut machine, &mut vcpu, 24, [10, 1, ARGUMENT], &[5, 0, 64, 0]).0, -2);
    assert_eq!(call(&mut machine, &mut vcpu, 24, [5, 0, ARGUMENT], &[0x9000, 0]).0, 0);
    assert_eq!(call(&mut machine, &mut vcpu, 24, [13, 0, ARGUMENT], &[0x9100, 0]).0, 0);
    assert_eq!(machine.guest.memory.page(Gfn(9)).unwrap().u32(0x100), 2);
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
    machine.guest.events.raise(port);
    assert!(machine.wakes(&mut vcpu), "pending counts although it is masked");
    assert_eq!(vcpu.wait, Wait::None);
    machine.guest.special(0).unwrap().set_u64(0x800, 0);
    call(&mut machine, &mut vcpu, 29, [3, ARGUMENT, 0], &poll);
    assert!(!machine.wakes(&mut vcpu));
    machine.platform.tsc.set(2000);
    assert!(machine.wakes(&mut vcpu));
    assert_eq!(call(&mut machine, &mut vcpu, 29, [3, ARGUMENT, 0], &[0, 0, 17, 0, 0, 0]).0, -22);
}

#[test]
fn shutdown_reasons() {
    let (mut machine, mut vcpu) = machine();
    let reasons = [EndReason::PowerOff, EndReason::Reboot, EndReason::Suspend, EndReason::Crash];
    for (n, reason) in reasons.into_iter().enumerate() {
        let (_, outcome) = call(&mut machine, &mut vcpu, 29, [2, ARGUMENT, 0], &[n as u32]);
        assert!(matches!(outcome, Outcome::End(r, _) if r == reason));
    }
    assert_eq!(call(&mut machine, &mut vcpu, 29, [2, ARGUMENT, 0], &[6]).0, -22);
}

#[test]
fn early_console_output_is_kept_for_the_console() {
    let (mut machine, mut vcpu) = machine();
    machine.guest.memory.write(GuestPhys(0x9000), b"hello").unwrap();
    assert_eq!(call(&mut machine, &mut vcpu, 18, [0, 5, 0x9000], &[]).0, 0);
    let text: alloc::vec::Vec<u8> = machine.guest.early_output.iter().copied().collect();
    assert_eq!(text, b"hello");
}
