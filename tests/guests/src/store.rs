//! A client of the store by the guest's own ring, for modes that need devices: one request at a time.
//! Source: Xen public/io/xs_wire.h.

use crate::machine::{peek, poke8, poke32};
use crate::xen::{give_way, notify, parameter};

const READ: u32 = 2;
const WRITE: u32 = 11;
const SIZE: u32 = 1024;
const RESPONSES: u64 = 1024;
const REQ_PROD: u64 = 2052;
const RSP_CONS: u64 = 2056;
const RSP_PROD: u64 = 2060;
const HEADER: u32 = 16;
/// Times that an answer is looked for.
const PATIENCE: u32 = 20_000;

/// The ring.
pub struct Store {
    page: u64,
    port: u64,
    /// What the last answer had in it, from its start.
    pub answer: [u8; 128],
    len: usize,
}

impl Store {
    /// Takes the ring that the VMM set up.
    pub fn new() -> Self {
        Self { page: parameter(1) << 12, port: parameter(2), answer: [0; 128], len: 0 }
    }

    fn word(&self, at: u64) -> u32 {
        peek(self.page + at) as u32
    }

    /// Writes a node of this guest; `false`: the store does not want it, or does not answer.
    pub fn write(&mut self, parts: &[&[u8]], value: u32) -> bool {
        let mut digits = [0; 10];
        let mut rest = value;
        let mut start = digits.len();
        while let Some(digit) = start.checked_sub(1).and_then(|at| digits.get_mut(at)) {
            *digit = b'0' + (rest % 10) as u8;
            start -= 1;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        self.request(WRITE, parts, &[b"\0", digits.get(start..).unwrap_or_default()])
    }

    /// Reads a node: its value.
    pub fn read(&mut self, parts: &[&[u8]]) -> &[u8] {
        let is_there = self.request(READ, parts, &[b"\0"]);
        self.answer.get(..if is_there { self.len } else { 0 }).unwrap_or_default()
    }

    fn request(&mut self, op: u32, path: &[&[u8]], rest: &[&[u8]]) -> bool {
        let bytes = || path.iter().chain(rest).flat_map(|part| part.iter().copied());
        let head = [op, 1, 0, bytes().count() as u32];
        let mut at = self.word(REQ_PROD);
        for byte in head.iter().flat_map(|word| word.to_le_bytes()).chain(bytes()) {
            poke8(self.page + u64::from(at % SIZE), byte);
            at = at.wrapping_add(1);
        }
        poke32(self.page + REQ_PROD, at);
        notify(self.port);
        let mut head = [0; HEADER as usize];
        if !self.take(&mut head) {
            return false;
        }
        let [kind, _, _, len] = [0, 4, 8, 12].map(|at| {
            head.get(at..at + 4)
                .and_then(|word| word.first_chunk())
                .map_or(0, |word| u32::from_le_bytes(*word))
        });
        self.len = (len as usize).min(self.answer.len());
        let mut answer = self.answer;
        let is_whole = self.take(answer.get_mut(..self.len).unwrap_or_default());
        self.answer = answer;
        is_whole && kind == op
    }

    /// Takes bytes of the answer; `false`: there are none for a long time.
    fn take(&mut self, out: &mut [u8]) -> bool {
        for byte in out {
            let at = self.word(RSP_CONS);
            let mut patience = PATIENCE;
            while self.word(RSP_PROD) == at {
                if patience == 0 {
                    return false;
                }
                patience -= 1;
                give_way();
            }
            *byte = peek(self.page + RESPONSES + u64::from(at % SIZE)) as u8;
            poke32(self.page + RSP_CONS, at.wrapping_add(1));
        }
        true
    }
}
