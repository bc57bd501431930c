//! The FIFO ABI. Source: Xen public/event_channel.h.

use super::*;

/// Bits of a port's word.
const WORD_PENDING: u32 = 1 << 31;
const WORD_MASKED: u32 = 1 << 30;
const WORD_LINKED: u32 = 1 << 29;
/// Control block: ready bits, and the heads.
const HEADS: u64 = 8;
const LINK_BITS: u32 = 17;

/// The control blocks' page and the event array's first one.
struct Fifo<'a, 'b> {
    events: &'a mut Events<'b>,
    control: u64,
    array: u64,
}

pub(super) fn run(events: &mut Events<'_>) {
    let mut fifo = Fifo { events, control: paging::frame(), array: paging::frame() };
    let before = fifo.refusals();
    fifo.delivery(before);
    fifo.queues();
    fifo.priorities();
    fifo.end();
}

impl Fifo<'_, '_> {
    fn word(&self, port: u32) -> u32 {
        peek(self.array + 4 * u64::from(port)) as u32
    }

    fn set_word(&self, port: u32, word: u32) {
        poke32(self.array + 4 * u64::from(port), word);
    }

    fn head(&self, priority: u64) -> u32 {
        peek(self.control + HEADS + 4 * priority) as u32
    }

    fn take_ready(&self) -> u32 {
        let ready = peek(self.control) as u32;
        poke32(self.control, 0);
        ready
    }

    /// init_control and expand_array; a port that was pending before.
    fn refusals(&mut self) -> u32 {
        let frame = (self.control >> 12) as u32;
        let before = self.events.bind("IPI before FIFO", BIND_IPI, &[0]);
        self.events.set_bit(MASK, before);
        self.events.expect("send", 0, SEND, &[before]);
        self.events.expect("init_control of an absent vCPU", ENOENT, INIT_CONTROL, &[frame, 0, 0, 2]);
        self.events.expect("across a page's end", EINVAL, INIT_CONTROL, &[frame, 0, 4096 - 64, 0]);
        self.events.expect("misaligned", EINVAL, INIT_CONTROL, &[frame, 0, 4, 0]);
        self.events.expect("where nothing is", EINVAL, INIT_CONTROL, &[(NOWHERE >> 12) as u32, 0, 0, 0]);
        self.events.expect("far beyond", EINVAL, INIT_CONTROL, &[0, u32::MAX, 0, 0]);
        self.events.expect("expand_array before it", EOPNOTSUPP, EXPAND_ARRAY, &[frame, 0]);
        self.events.expect("init_control", 0, INIT_CONTROL, &[frame, 0, 0, 0]);
        let link_bits = self.events.word(4);
        self.events.check.equal_hex("link bits", LINK_BITS | UNTOUCHED & !0xff, link_bits);
        self.events.expect("init_control again", EINVAL, INIT_CONTROL, &[frame, 0, 128, 0]);
        self.events.expect("init_control of vCPU 1", 0, INIT_CONTROL, &[frame, 0, 4096 - 72, 1]);
        self.events.expect("expand_array by nothing", EINVAL, EXPAND_ARRAY, &[0, u32::MAX]);
        before
    }

    fn delivery(&mut self, before: u32) {
        let early = self.events.bind("IPI without a word", BIND_IPI, &[0]);
        self.events.expect("send", 0, SEND, &[early]);
        self.events.check.equal("no upcall", 0, self.events.upcalls());
        self.events.expect("expand_array", 0, EXPAND_ARRAY, &[(self.array >> 12) as u32, 0]);
        let words = [before, early].map(|port| self.word(port));
        let expected = [WORD_PENDING | WORD_LINKED | early, WORD_PENDING | WORD_LINKED];
        self.events.check.equal("both are pending and in the queue", expected, words);
        let found = (self.take_ready(), self.head(7), self.events.upcalls());
        self.events.check.equal("ready, head, upcalls", (1 << 7, before, 1), found);
        for port in [before, early] {
            self.set_word(port, 0);
            self.events.expect("close", 0, CLOSE, &[port]);
        }
    }

    fn queues(&mut self) {
        let [first, second] = [0; 2].map(|vcpu| self.events.bind("IPI", BIND_IPI, &[vcpu]));
        self.events.expect("send", 0, SEND, &[first]);
        self.events.expect("send the other", 0, SEND, &[second]);
        self.events.expect("send again", 0, SEND, &[first]);
        let words = [first, second].map(|port| self.word(port));
        let expected = [WORD_PENDING | WORD_LINKED | second, WORD_PENDING | WORD_LINKED];
        self.events.check.equal("a queue", expected, words);
        let found = (self.take_ready(), self.head(7), self.events.upcalls());
        self.events.check.equal("ready, head, upcalls", (1 << 7, first, 1), found);
        // The guest takes the first, and leaves the second.
        self.set_word(first, 0);
        self.events.expect("send behind a tail", 0, SEND, &[first]);
        let words = [first, second].map(|port| self.word(port));
        let expected = [WORD_PENDING | WORD_LINKED, WORD_PENDING | WORD_LINKED | first];
        self.events.check.equal("the queue goes on", expected, words);
        self.events.check.equal("ready, upcalls", (0, 0), (self.take_ready(), self.events.upcalls()));
        self.set_word(second, 0);
        self.set_word(first, WORD_MASKED);
        self.events.expect("send while masked", 0, SEND, &[first]);
        self.events.check.equal("pending only", WORD_PENDING | WORD_MASKED, self.word(first));
        self.events.expect("unmask", 0, UNMASK, &[first]);
        let found = (self.word(first), self.take_ready(), self.head(7), self.events.upcalls());
        let expected = (WORD_PENDING | WORD_LINKED, 1 << 7, first, 1);
        self.events.check.equal("unmasked, in the queue, an upcall", expected, found);
        self.events.expect("close while it is in a queue", 0, CLOSE, &[first]);
        self.events.check.equal("pending no more", WORD_LINKED, self.word(first));
        let other = self.events.bind("a new port", BIND_IPI, &[0]);
        self.events.check.is_true("is not that one", other != first);
        self.set_word(first, 0);
        let again = self.events.bind("once it is taken", BIND_IPI, &[0]);
        self.events.check.equal("it is", first, again);
        for port in [first, second, other] {
            self.events.expect("close", 0, CLOSE, &[port]);
        }
    }

    fn priorities(&mut self) {
        let port = self.events.bind("alloc_unbound for itself", ALLOC_UNBOUND, &[SELF | SELF << 16]);
        self.events.expect("priority 16", EINVAL, SET_PRIORITY, &[port, 16]);
        self.events.expect("priority of a closed port", EACCES, SET_PRIORITY, &[60, 16]);
        self.events.expect("priority of no port", EINVAL, SET_PRIORITY, &[5000, 3]);
        let other = self.events.bind("bind_interdomain", BIND_INTERDOMAIN, &[SELF, port]);
        self.set_word(other, 0);
        self.take_ready();
        self.events.upcalls();
        self.events.expect("priority 0", 0, SET_PRIORITY, &[port, 0]);
        self.events.expect("send", 0, SEND, &[other]);
        let found = (self.take_ready(), self.head(0), self.events.upcalls());
        self.events.check.equal("queue 0", (1, port, 1), found);
        self.set_word(port, 0);
        self.events.expect("priority 15", 0, SET_PRIORITY, &[port, 15]);
        self.events.expect("to vCPU 1", 0, BIND_VCPU, &[port, 1]);
        self.events.expect("send", 0, SEND, &[other]);
        let at = self.control + 4096 - 72;
        let found = (peek(at) as u32, peek(at + HEADS + 4 * 15) as u32, self.take_ready());
        self.events.check.equal("queue 15 of vCPU 1", (1 << 15, port, 0), found);
        self.events.check.equal("no upcall here", 0, self.events.upcalls());
        self.events.check.equal("upcall pending there", 1, peek(self.events.info + 64) as u8);
        poke8(self.events.info + 64, 0);
    }

    fn end(&mut self) {
        let frame = (paging::frame() >> 12) as u32;
        let added = (1..200).take_while(|_| self.events.op(EXPAND_ARRAY, &[frame, 0]) == 0).count();
        self.events.check.equal("pages beside the first", 127, added);
        self.events.expect("one more", ENOSPC, EXPAND_ARRAY, &[frame, 0]);
        let last = self.events.exhaust();
        self.events.check.equal("last port", 4095, last);
        self.events.expect("reset", 0, RESET, &[SELF]);
        self.events.expect("back at the 2-level ABI", EOPNOTSUPP, EXPAND_ARRAY, &[frame, 0]);
        poke(self.events.info + MASK, 0);
        poke(self.events.info + SELECTOR, 0);
        let port = self.events.bind("IPI", BIND_IPI, &[0]);
        self.events.expect("send", 0, SEND, &[port]);
        let found = (self.events.bit(PENDING, port), self.events.upcalls(), self.word(port) & WORD_PENDING);
        self.events.check.equal("by the 2-level ABI", (true, 1, 0), found);
        self.events.expect("close", 0, CLOSE, &[port]);
    }
}
