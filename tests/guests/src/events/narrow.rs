//! shared_info in the 32-bit layout, once a 32-bit caller has latched it, and back.
//!
//! Xen leaves what is in shared_info where it was; here it is converted, so that nothing pending is lost.
//! Sources: Xen public/xen.h; arch/x86/hvm/hvm.c (hvm_latch_shinfo_size).

use super::*;
use crate::modes::{self, Mode};
use crate::xen::HVM_OP;

/// The 32-bit layout.
const MASK_32: u64 = 0x880;
const SELECTOR_32: u64 = 4;
/// Seconds of the wall clock, in either.
const SECONDS: u64 = 0xc04;
const SECONDS_32: u64 = 0x904;

pub(super) fn run(events: &mut Events<'_>) {
    let ports: [u32; 40] = core::array::from_fn(|_| {
        // The first words stay free for other ports.
        events.op(BIND_IPI, &[0]);
        events.word(1)
    });
    let [masked, pending, .., high] = ports;
    let seconds = peek(events.info + SECONDS) as u32;
    events.set_bit(MASK, masked);
    events.set_bit(MASK, pending);
    events.expect("send while masked", 0, SEND, &[pending]);
    latch_32(events);
    let found = [masked, pending, high].map(|port| events.bit(MASK_32, port));
    events.check.equal("masked as before", [true, true, false], found);
    events.check.equal("pending as before", true, events.bit(PENDING, pending));
    let found = (peek(events.info) as u8, peek(events.info + SELECTOR_32) as u32);
    events.check.equal("everything counts as pending", (1, u32::MAX), found);
    events.check.equal("upcalls", 1, events.upcalls());
    events.check.equal("wall clock", seconds, peek(events.info + SECONDS_32) as u32);
    poke32(events.info + SELECTOR_32, 0);
    let send = |events: &Events<'_>, operation: u64, port: u32| {
        poke32(events.arguments, port);
        let args = [operation as u32, events.arguments as u32, 0, 0, 0];
        modes::hypercall(Mode::Compat, EVENT_CHANNEL_OP as u32, args)
    };
    events.check.equal("send", 0, send(events, SEND, high));
    let found = (events.bit(PENDING, high), peek(events.info + SELECTOR_32) as u32, events.upcalls());
    events.check.equal("pending, its word selected, upcall", (true, 1 << (high / 32), 1), found);
    events.check.is_true("that is not the first word", high >= 32);
    poke32(events.info + SELECTOR_32, 0);
    events.check.equal("unmask", 0, send(events, UNMASK, pending));
    let found = (events.bit(MASK_32, pending), peek(events.info + SELECTOR_32) as u32, events.upcalls());
    events.check.equal("unmasked, selected, upcall", (false, 1 << (pending / 32), 1), found);
    events.check.equal("close", 0, send(events, CLOSE, pending));
    events.check.equal("close again", EINVAL as i32, send(events, CLOSE, pending));
    let last = events.exhaust();
    events.check.equal("last port", 1023, last);
    back(events, masked, seconds);
}

/// Sets the upcall's vector from 32-bit code.
fn latch_32(events: &mut Events<'_>) {
    let at = events.arguments;
    poke(at, u64::from(SELF) | u64::from(CALLBACK_IRQ) << 32);
    poke(at + 8, BY_VECTOR | u64::from(VECTOR));
    let answer = modes::hypercall(Mode::Compat, HVM_OP as u32, [0, at as u32, 0, 0, 0]);
    events.check.equal("callback, by 32-bit code", 0, answer);
}

/// The 64-bit layout again, by either way of latching it.
fn back(events: &mut Events<'_>, masked: u32, seconds: u32) {
    poke(events.info + SELECTOR, 0);
    events.check.equal("callback", 0, xen::set_parameter(CALLBACK_IRQ, BY_VECTOR | u64::from(VECTOR)));
    events.check.equal_hex("everything counts as pending", u64::MAX, peek(events.info + SELECTOR));
    events.check.equal("masked as before", true, events.bit(MASK, masked));
    events.check.equal("wall clock", seconds, peek(events.info + SECONDS) as u32);
    let port = events.bind("there are more ports", BIND_IPI, &[0]);
    events.check.equal("the next", 1024, port);
    poke(events.info + SELECTOR, 0);
    events.expect("send", 0, SEND, &[port]);
    events.check.equal_hex("selected", 1u64 << 16, peek(events.info + SELECTOR));
    latch_32(events);
    poke(events.info + SELECTOR, 0);
    let [_, msr, ..] = machine::cpuid(0x4000_0002, 0);
    let page = paging::frame();
    events.check.works("hypercall page", machine::write_msr(msr, page));
    events.check.equal_hex("latches, too", u64::MAX, peek(events.info + SELECTOR));
    events.check.equal("what had no bit meanwhile is pending", true, events.bit(PENDING, port));
    events.expect("reset", 0, RESET, &[SELF]);
}
