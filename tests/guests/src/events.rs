//! Event channels: every operation of event_channel_op with its answers, and what the guest finds in its
//! memory, with the 2-level ABI, the FIFO ABI, and in the 32-bit layout of shared_info.
//!
//! The guest has two vCPUs; the second one only lends its number. Sources: Xen public/event_channel.h,
//! public/xen.h; common/event_channel.c for the errors and their order.

mod fifo;
mod narrow;

use crate::check::Check;
use crate::machine::{self, hypercall, peek, poke, poke8, poke32};
use crate::numbers::Random;
use crate::xen::errno::{
    EACCES, EBUSY, EEXIST, EFAULT, EINVAL, ENOENT, ENOSPC, ENOSYS, EOPNOTSUPP, EPERM, ESRCH,
};
use crate::xen::{self, EVENT_CHANNEL_OP};
use crate::{NOWHERE, paging, traps};

const BIND_INTERDOMAIN: u64 = 0;
const BIND_VIRQ: u64 = 1;
const BIND_PIRQ: u64 = 2;
const CLOSE: u64 = 3;
const SEND: u64 = 4;
const STATUS: u64 = 5;
const ALLOC_UNBOUND: u64 = 6;
const BIND_IPI: u64 = 7;
const BIND_VCPU: u64 = 8;
const UNMASK: u64 = 9;
const RESET: u64 = 10;
const INIT_CONTROL: u64 = 11;
const EXPAND_ARRAY: u64 = 12;
const SET_PRIORITY: u64 = 13;
const RESET_CONT: u64 = 14;

const SELF: u32 = 0x7ff0;
/// A domain that is not there.
const NOBODY: u32 = 0x1234;
/// What a structure's fields hold that no operation is to touch.
const UNTOUCHED: u32 = 0x5a5a_5a5a;

/// hvm_op parameters.
const CALLBACK_IRQ: u32 = 0;
const STORE_EVTCHN: u32 = 2;
const CONSOLE_EVTCHN: u32 = 18;
const BY_VECTOR: u64 = 2 << 56;
const VECTOR: u8 = 0xf3;

/// shared_info, 64-bit layout.
const PENDING: u64 = 0x800;
const MASK: u64 = 0xa00;
/// vcpu_info, 64-bit layout.
const SELECTOR: u64 = 8;

/// Where the handler finds shared_info's address.
const KEPT: u64 = crate::SCRATCH + 0x1000;

/// What the checks share: where the guest has its memory for this.
struct Events<'a> {
    check: &'a mut Check,
    /// A structure for the hypercall.
    arguments: u64,
    /// shared_info, whose first vcpu_info is this vCPU's.
    info: u64,
}

/// The mode.
pub fn run(check: &mut Check, _: &mut Random) {
    let mut events = Events { check, arguments: paging::frame(), info: paging::frame() };
    let placed = xen::map_frame(0, 0, events.info >> 12);
    events.check.equal("shared_info is mapped", 0, placed);
    poke(KEPT, events.info);
    traps::on(VECTOR, upcall);
    events.check.equal("callback", 0, xen::set_parameter(CALLBACK_IRQ, BY_VECTOR | u64::from(VECTOR)));
    events.domains();
    events.virqs_and_ipis();
    events.closed_and_absent();
    events.delivery();
    events.limits();
    fifo::run(&mut events);
    narrow::run(&mut events);
    events.pointers();
    traps::off(VECTOR);
}

/// The handler: takes the upcall back.
fn upcall(_: &mut traps::Frame) {
    poke8(peek(KEPT), 0);
}

impl Events<'_> {
    /// One operation on a structure; the answer. The structure's words are read by [`Self::word`].
    fn op(&mut self, operation: u64, words: &[u32]) -> i64 {
        for at in 0..8 {
            let word = words.get(at as usize).copied().unwrap_or(UNTOUCHED);
            poke32(self.arguments + 4 * at, word);
        }
        hypercall(EVENT_CHANNEL_OP, [operation, self.arguments, 0, 0, 0])
    }

    fn word(&self, index: u64) -> u32 {
        peek(self.arguments + 4 * index) as u32
    }

    fn expect(&mut self, what: &str, answer: i64, operation: u64, words: &[u32]) -> bool {
        let got = self.op(operation, words);
        self.check.equal(what, answer, got)
    }

    /// As [`Self::expect`] for an operation that gives a port: the port.
    fn bind(&mut self, what: &str, operation: u64, words: &[u32]) -> u32 {
        self.expect(what, 0, operation, words);
        self.word(words.len() as u64)
    }

    /// EVTCHNOP_status: status, vCPU and the two words of the other end.
    fn status(&mut self, port: u32) -> [u32; 4] {
        let answer = self.op(STATUS, &[SELF, port]);
        if answer == 0 { [2, 3, 4, 5].map(|n| self.word(n)) } else { [answer as u32; 4] }
    }

    /// Runs with interrupts on for a moment; the upcalls that came.
    fn upcalls(&self) -> u64 {
        let before = traps::count(VECTOR);
        machine::interrupts_on();
        for _ in 0..100 {
            core::hint::spin_loop();
        }
        machine::interrupts_off();
        traps::count(VECTOR) - before
    }

    fn bit(&self, array: u64, port: u32) -> bool {
        peek(self.info + array + u64::from(port) / 64 * 8) >> (port % 64) & 1 != 0
    }

    fn set_bit(&self, array: u64, port: u32) {
        let at = self.info + array + u64::from(port) / 64 * 8;
        poke(at, peek(at) | 1 << (port % 64));
    }

    fn clear_bit(&self, array: u64, port: u32) {
        let at = self.info + array + u64::from(port) / 64 * 8;
        poke(at, peek(at) & !(1 << (port % 64)));
    }

    /// Who may be named, and the two ends of a channel.
    fn domains(&mut self) {
        let [features, _, own, _] = machine::cpuid(0x4000_0004, 0);
        self.check.equal("the domain ID is in CPUID", true, features & 1 << 4 != 0);
        for (name, parameter) in [("store", STORE_EVTCHN), ("console", CONSOLE_EVTCHN)] {
            let port = xen::parameter(parameter) as u32;
            let [status, vcpu, dom, _] = self.status(port);
            self.check.equal(name, [2, 0, 0], [status, vcpu, dom & 0xffff]);
        }
        let port = self.bind("alloc_unbound for the backends", ALLOC_UNBOUND, &[SELF]);
        let status = self.status(port);
        self.check.equal("unbound", [1, 0, UNTOUCHED & 0xffff_0000, UNTOUCHED], status);
        self.expect("bind_interdomain with it", EINVAL, BIND_INTERDOMAIN, &[SELF, port]);
        self.expect("send on an unbound port", 0, SEND, &[port]);
        self.check.equal("drops it", false, self.bit(PENDING, port));
        self.expect("close", 0, CLOSE, &[port]);
        self.expect("close again", EINVAL, CLOSE, &[port]);
        self.expect("alloc_unbound of domain 0", EPERM, ALLOC_UNBOUND, &[0]);
        self.expect("alloc_unbound of nobody", ESRCH, ALLOC_UNBOUND, &[NOBODY]);
        self.expect("status of domain 0", EPERM, STATUS, &[0, 1]);
        self.expect("status of nobody", ESRCH, STATUS, &[NOBODY, 1]);
        self.expect("reset of domain 0", EPERM, RESET, &[0]);
        self.expect("reset of nobody", ESRCH, RESET, &[NOBODY]);
        self.expect("reset_cont without a reset", EBUSY, RESET_CONT, &[SELF]);
        let port = self.bind("alloc_unbound for nobody, by number", ALLOC_UNBOUND, &[own | NOBODY << 16]);
        let [status, _, dom, _] = self.status(port);
        self.check.equal("is possible", [1, NOBODY], [status, dom & 0xffff]);
        self.expect("close", 0, CLOSE, &[port]);
        self.expect("bind_interdomain with nobody", ESRCH, BIND_INTERDOMAIN, &[NOBODY, 1]);
        self.expect("bind_interdomain with domain 0", EINVAL, BIND_INTERDOMAIN, &[0, 1]);
        let one = self.bind("alloc_unbound for itself", ALLOC_UNBOUND, &[SELF | SELF << 16]);
        let other = self.bind("bind_interdomain with itself", BIND_INTERDOMAIN, &[SELF, one]);
        self.check.equal("pending at once", [true, false], [other, one].map(|port| self.bit(PENDING, port)));
        self.expect("a second time", EINVAL, BIND_INTERDOMAIN, &[SELF, one]);
        let status = self.status(one);
        self.check.equal("its status", [2, 0, own | UNTOUCHED & 0xffff_0000, other], status);
        self.expect("send to the other end", 0, SEND, &[other]);
        self.check.equal("arrives", true, self.bit(PENDING, one));
        self.expect("bind_vcpu", 0, BIND_VCPU, &[one, 1]);
        self.expect("close of the other end", 0, CLOSE, &[other]);
        let [status, vcpu, dom, _] = self.status(one);
        self.check.equal("leaves it unbound", [1, 1, own], [status, vcpu, dom & 0xffff]);
        self.expect("close", 0, CLOSE, &[one]);
        self.check.equal("clears pending", false, self.bit(PENDING, one));
        self.expect("bind_pirq", EINVAL, BIND_PIRQ, &[0, 0]);
    }

    fn virqs_and_ipis(&mut self) {
        let timer = self.bind("VIRQ_TIMER", BIND_VIRQ, &[0, 1]);
        self.expect("a second time", EEXIST, BIND_VIRQ, &[0, 1]);
        let other = self.bind("on the other vCPU", BIND_VIRQ, &[0, 0]);
        let status = self.status(timer);
        self.check.equal("its status", [4, 1, 0, UNTOUCHED], status);
        self.expect("may not move", EINVAL, BIND_VCPU, &[timer, 0]);
        self.expect("send to a VIRQ", EINVAL, SEND, &[timer]);
        self.expect("VIRQ on an absent vCPU", ENOENT, BIND_VIRQ, &[0, 2]);
        self.expect("VIRQ 24", EINVAL, BIND_VIRQ, &[24, 2]);
        self.expect("VIRQ -1", EINVAL, BIND_VIRQ, &[u32::MAX, 0]);
        self.expect("the guest's VIRQ on vCPU 1", EINVAL, BIND_VIRQ, &[11, 1]);
        let argo = self.bind("the guest's VIRQ", BIND_VIRQ, &[11, 0]);
        self.expect("may move", 0, BIND_VCPU, &[argo, 1]);
        self.expect("and exists", EEXIST, BIND_VIRQ, &[11, 0]);
        let ipi = self.bind("IPI", BIND_IPI, &[1]);
        let status = self.status(ipi);
        self.check.equal("its status", [5, 1, UNTOUCHED, UNTOUCHED], status);
        self.expect("may not move", EINVAL, BIND_VCPU, &[ipi, 1]);
        self.expect("IPI to an absent vCPU", ENOENT, BIND_IPI, &[2]);
        self.expect("bind_vcpu to an absent vCPU", ENOENT, BIND_VCPU, &[4000, 2]);
        self.expect("bind_vcpu of a closed port", EINVAL, BIND_VCPU, &[63, 0]);
        self.expect("set_priority with the 2-level ABI", ENOSYS, SET_PRIORITY, &[ipi, 3]);
        self.expect("expand_array with the 2-level ABI", EOPNOTSUPP, EXPAND_ARRAY, &[0, 0]);
        for port in [timer, other, argo, ipi] {
            self.expect("close", 0, CLOSE, &[port]);
        }
    }

    fn closed_and_absent(&mut self) {
        let nothing = [0, 0, UNTOUCHED, UNTOUCHED];
        for port in [0, 63] {
            let status = self.status(port);
            self.check.equal("status of a closed port", nothing, status);
            self.expect("send to a closed port", EINVAL, SEND, &[port]);
            self.expect("close of a closed port", EINVAL, CLOSE, &[port]);
            self.expect("unmask of a closed port", 0, UNMASK, &[port]);
        }
        for port in [5000, u32::MAX] {
            self.expect("status of no port", EINVAL, STATUS, &[SELF, port]);
            self.expect("send to no port", EINVAL, SEND, &[port]);
            self.expect("close of no port", EINVAL, CLOSE, &[port]);
            self.expect("unmask of no port", EINVAL, UNMASK, &[port]);
            self.expect("bind_vcpu of no port", EINVAL, BIND_VCPU, &[port, 0]);
            self.expect("set_priority of no port", EINVAL, SET_PRIORITY, &[port, 0]);
        }
        self.expect("operation 15", ENOSYS, 15, &[]);
    }

    fn delivery(&mut self) {
        let port = self.bind("IPI to itself", BIND_IPI, &[0]);
        let word = self.info + PENDING + u64::from(port) / 64 * 8;
        poke(word, 0);
        poke(self.info + SELECTOR, 0);
        poke8(self.info, 0);
        // The processor may have been told of an upcall that was due; any exit takes that back.
        xen::give_way();
        self.check.equal("nothing is due", 0, self.upcalls());
        self.expect("send", 0, SEND, &[port]);
        self.check.equal_hex("pending", 1u64 << port, peek(word));
        self.check.equal_hex("selected", 1u64, peek(self.info + SELECTOR));
        self.check.equal("upcall pending", 1, peek(self.info) as u8);
        self.check.equal("upcalls", 1, self.upcalls());
        self.expect("send while pending", 0, SEND, &[port]);
        self.check.equal("upcalls for nothing new", 0, self.upcalls());
        self.clear_bit(PENDING, port);
        poke(self.info + SELECTOR, 0);
        self.set_bit(MASK, port);
        self.expect("send while masked", 0, SEND, &[port]);
        let found = (self.bit(PENDING, port), peek(self.info + SELECTOR), self.upcalls());
        self.check.equal("pending, not selected, no upcall", (true, 0, 0), found);
        self.expect("unmask", 0, UNMASK, &[port]);
        let found = (self.bit(MASK, port), peek(self.info + SELECTOR), self.upcalls());
        self.check.equal("unmasked, selected, upcall", (false, 1, 1), found);
        self.expect("unmask again", 0, UNMASK, &[port]);
        self.check.equal("no upcall", 0, self.upcalls());
        // The handler did not run: the upcall comes with interrupts on, as often as it is left pending.
        poke(self.info + SELECTOR, 0);
        self.clear_bit(PENDING, port);
        self.expect("send", 0, SEND, &[port]);
        machine::idle_once();
        self.check.equal("HLT ended", 0, peek(self.info) as u8);
        self.expect("close of a pending port", 0, CLOSE, &[port]);
        self.check.equal("is pending no more", false, self.bit(PENDING, port));
        poke(self.info + SELECTOR, 0);
    }

    /// Takes all ports there are, and resets.
    fn limits(&mut self) {
        let last = self.exhaust();
        self.check.equal("last port", 4095, last);
        let status = self.status(4095);
        self.check.equal("its status", [5, 0, UNTOUCHED, UNTOUCHED], status);
        self.expect("status of port 4096", EINVAL, STATUS, &[SELF, 4096]);
        self.expect("send to the last port", 0, SEND, &[4095]);
        let found = (self.bit(PENDING, 4095), peek(self.info + SELECTOR));
        self.check.equal_hex("selects the last word", 1u64 << 63, found.1);
        self.check.is_true("is pending", found.0);
        self.expect("reset", 0, RESET, &[SELF]);
        let store = xen::parameter(STORE_EVTCHN) as u32;
        let closed = [4095, 64, store].map(|port| self.status(port)[0]);
        self.check.equal("all are closed", [0; 3], closed);
        self.check.equal("none is pending", false, self.bit(PENDING, 4095));
        let port = self.bind("the first port", BIND_IPI, &[0]);
        self.check.equal("is", 1, port);
        self.expect("close", 0, CLOSE, &[port]);
        poke(self.info + SELECTOR, 0);
        poke8(self.info, 0);
    }

    /// Binds ports until there are none; the last one.
    fn exhaust(&mut self) -> u32 {
        let mut last = 0;
        for _ in 0..5000 {
            match self.op(BIND_IPI, &[0]) {
                0 => last = self.word(1),
                answer => {
                    self.check.equal("no port is left", ENOSPC, answer);
                    break;
                }
            }
        }
        last
    }

    /// Structures that are nowhere.
    fn pointers(&mut self) {
        for operation in 0..=RESET_CONT {
            let answer = hypercall(EVENT_CHANNEL_OP, [operation, NOWHERE, 0, 0, 0]);
            self.check.equal(format_args!("operation {operation} without a structure"), EFAULT, answer);
        }
    }
}
