//! multicall: a list of hypercalls in one.
//!
//! Each entry's result goes back into the list. A call that waits, yields or has more to do is followed by
//! a new exit for the rest of the list, as is a long list. A multicall in a multicall is refused.
//! Sources: Xen public/xen.h (multicall_entry), common/multicall.c.

use super::{Call, Done, MULTICALL, serve};
use crate::errno::{Errno, to_rax};
use crate::machine::{Outcome, Platform};

/// Words of an entry: number, result, six arguments of which five are used.
const ENTRY_WORDS: usize = 8;
/// Calls of one pass.
const CALLS_PER_PASS: u64 = 32;

pub(super) fn call<P: Platform>(call: &mut Call<'_, P>) -> Done {
    let [list, ..] = call.args;
    let count = call.args.get(1).copied().unwrap_or(0);
    let outer = call.args;
    let done = run(call, list, count);
    call.args = outer;
    done
}

fn run<P: Platform>(call: &mut Call<'_, P>, list: u64, count: u64) -> Done {
    let word_len = call.by_width(8, 4);
    let entry_len = word_len * ENTRY_WORDS as u64;
    for index in 0..count.min(CALLS_PER_PASS) {
        let at = list.wrapping_add(index * entry_len);
        let rest = |done: u64| [list.wrapping_add(done * entry_len), count - done];
        let entry: [u8; 8 * ENTRY_WORDS] = match call.read_sized(at, 4 * ENTRY_WORDS) {
            Ok(entry) => entry,
            Err(errno) => return Done::Answer(Err(errno)),
        };
        let word = |n: usize| call.handle_at(&entry, 8 * n, 4 * n);
        let number = word(0);
        call.args = [word(2), word(3), word(4), word(5), word(6)];
        let done = if number == MULTICALL { Done::Answer(Err(Errno::Invalid)) } else { serve(call, number) };
        let (answer, outcome) = match done {
            Done::Answer(answer) => (answer, None),
            Done::Then(outcome) => (Ok(0), Some(outcome)),
            Done::Again(first) | Done::AgainAfter([first, _], _) => {
                return continued(call, at, &[first], rest(index));
            }
            Done::AgainFrom(args) => return continued(call, at, &args, rest(index)),
        };
        if let Err(errno) = call.write_long(at.wrapping_add(word_len), to_rax(answer)) {
            return Done::Answer(Err(errno));
        }
        match outcome {
            Some(outcome) if index + 1 == count => return Done::Then(outcome),
            Some(outcome) => return Done::AgainAfter(rest(index + 1), outcome),
            None => {}
        }
    }
    match count.checked_sub(CALLS_PER_PASS) {
        None | Some(0) => Done::Answer(Ok(0)),
        Some(left) => Done::AgainAfter([list.wrapping_add(CALLS_PER_PASS * entry_len), left], Outcome::Run),
    }
}

/// The call whose entry is at `at` is to be made again, with other first arguments, as are those behind it.
fn continued<P: Platform>(call: &Call<'_, P>, at: u64, args: &[u64], rest: [u64; 2]) -> Done {
    let word_len = call.by_width(8, 4);
    for (n, &arg) in args.iter().enumerate() {
        if let Err(errno) = call.write_long(at.wrapping_add((2 + n as u64) * word_len), arg) {
            return Done::Answer(Err(errno));
        }
    }
    Done::AgainAfter(rest, Outcome::Run)
}
