//! Events and interrupts: three domains, two of one priority and one above.

use proto::abi::{Slot, Syscall};
use proto::channel::{ChannelInfo, ChannelKind};

use crate::stamps::{self, Board, CALL_OWN};
use crate::{delay, figure, finish, ready};

/// A system call number that does not exist.
const NO_CALL: u64 = 63;

/// The channel to another bench domain.
fn partner(env: &rt::Env, name: &str) -> &'static ChannelInfo {
    match env.channels(ChannelKind::Xenstore).find(|channel| &*channel.peer_name == name) {
        Some(channel) => channel,
        None => rt::exit_failed("a bench domain lacks its channel"),
    }
}

/// The channel to the one domain that asks this one.
fn client(env: &rt::Env) -> &'static ChannelInfo {
    match env.channel(ChannelKind::Xenstore) {
        Some(channel) => channel,
        None => rt::exit_failed("a bench domain lacks its channel"),
    }
}

fn board(channel: &ChannelInfo) -> Board {
    Board(channel.rings.addr)
}

/// Answers `low` for ever.
pub fn peer(env: &rt::Env) -> ! {
    let low = client(env);
    let _supervisor = ready(env);
    wait_for(env.info.event, low.signals);
    stamps::answer_for_ever(low.signal, env.info.event)
}

/// Notes when it runs, for ever.
pub fn high(env: &rt::Env) -> ! {
    let low = client(env);
    let _supervisor = ready(env);
    wait_for(env.info.event, low.signals);
    stamps::wake_for_ever(env.info.event, board(low))
}

/// Waits for the first of some signals.
pub fn wait_for(event: Slot, signals: u64) {
    while rt::sys::event_wait(event).is_ok_and(|taken| taken & signals == 0) {}
}

/// Takes the samples.
pub fn low(env: &rt::Env) -> ! {
    let supervisor = ready(env);
    delay(env);
    let event = env.info.event;
    let (peer, high) = (partner(env, "bench-peer"), partner(env, "bench-high"));
    let call = |number: Syscall, first: Slot, second: Slot| {
        let (before, after) = stamps::call(number as u64, u64::from(first), u64::from(second));
        after.wrapping_sub(before)
    };
    figure("calibration", CALL_OWN, stamps::nothing);
    figure("null-call", CALL_OWN, || {
        let (before, after) = stamps::call(NO_CALL, 0, 0);
        after.wrapping_sub(before)
    });
    figure("poll", CALL_OWN, || call(Syscall::EventPoll, event, 0));
    // The first signal starts the peer, and it answers.
    let _first = rt::sys::event_signal_and_wait(peer.signal, event);
    figure("round-trip", CALL_OWN + stamps::ANSWER_OWN, || {
        call(Syscall::EventSignalAndWait, peer.signal, event)
    });
    // The peer waits now; itself nobody waits for.
    let _started = rt::sys::event_signal(high.signal);
    let board = board(high);
    figure("signal-to-waiter", CALL_OWN, || {
        let runs = board.runs();
        let (before, _) = stamps::call(Syscall::EventSignal as u64, u64::from(high.signal), 0);
        once(board, runs, board.woken().wrapping_sub(before))
    });
    figure("waiter-to-signaller", stamps::WAIT_OWN, || {
        let runs = board.runs();
        let (_, after) = stamps::call(Syscall::EventSignal as u64, u64::from(high.signal), 0);
        once(board, runs, after.wrapping_sub(board.waits()))
    });
    finish(env, supervisor)
}

/// Lets the device interrupt.
pub fn device(env: &rt::Env) -> ! {
    let supervisor = ready(env);
    delay(env);
    let driver = partner(env, "bench-driver");
    let _started = rt::sys::event_signal(driver.signal);
    let board = board(driver);
    figure("interrupt-to-driver", stamps::INTERRUPT_OWN, || {
        let runs = board.runs();
        board.clear_mark();
        let (before, _) = stamps::interrupt(board);
        // The driver ran before anything else of this domain did.
        let at_once = if board.mark_seen() == 0 { board.woken().wrapping_sub(before) } else { 0 };
        once(board, runs, at_once)
    });
    figure("driver-to-interrupted", stamps::WAIT_OWN + 1, || {
        let runs = board.runs();
        board.clear_mark();
        let (_, after) = stamps::interrupt(board);
        once(board, runs, after.wrapping_sub(board.waits()))
    });
    finish(env, supervisor)
}

/// The sample, if the other domain ran exactly once since `runs`.
fn once(board: Board, runs: u64, sample: u64) -> u64 {
    if board.runs() == runs + 1 { sample } else { 0 }
}
