//! A domain that tries everything that a domain must not be able to do; its option `mode` says what.
//!
//! A mode either faults, or comes to its end and says `done` in the log, or runs for ever (`spin`,
//! `signals`). All is seeded (option `seed`): every run does the same.
#![no_std]
#![no_main]

extern crate alloc;

mod attack;

use proto::abi::{Error, Field, ObjectType, Syscall};
use proto::channel::{ChannelInfo, ChannelKind};
use proto::text::Bytes;
use proto::xenstore::{Message, PAYLOAD_MAX, Role, Xenstore};
use rt::channel::Client;
use rt::supervise::Supervisor;

rt::entry!(main);

/// Addresses where other domains and the kernel have their memory.
const KERNEL: u64 = 0xffff_8000_0000_0000;
const UNMAPPED: u64 = 0x10;
const NOT_CANONICAL: u64 = 0x0000_8000_0000_0000;
/// Slots that are tried: more than the domain's table has.
const SLOTS: u64 = 160;
/// Bytes of a channel's header page, where its indices are.
const HEADER: u64 = 4096;

/// A xorshift generator.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// A number as attackers like them.
    fn argument(&mut self) -> u64 {
        match self.below(8) {
            0 | 1 => self.below(SLOTS),
            2 | 3 => self.below(4),
            4 => u64::MAX << self.below(64),
            5 => 1 << self.below(64),
            6 => proto::boot::IMAGE_BASE + (self.below(64) << 12),
            _ => self.next(),
        }
    }
}

fn main(env: rt::Env) -> ! {
    let mut supervisor = Supervisor::new(&env);
    supervisor.ready();
    supervisor.flush();
    let mode = env.option("mode").unwrap_or("");
    log::info!("hostile domain: {mode}");
    let seed: u64 = env.option("seed").and_then(|seed| seed.parse().ok()).unwrap_or(0);
    let random = &mut Random(0x0d0a_0123_5eed_0001 ^ seed << 20);
    match mode {
        "read-kernel" => drop_byte(attack::read(KERNEL)),
        "read-unmapped" => drop_byte(attack::read(UNMAPPED)),
        "read-not-canonical" => drop_byte(attack::read(NOT_CANONICAL)),
        // Where init has all of its memory mapped, and a VMM its guest's.
        "read-init" => drop_byte(attack::read(proto::boot::BUNDLE_BASE)),
        "read-guest" => drop_byte(attack::read(proto::guest::RAM_BASE)),
        "write-code" => attack::write(proto::boot::IMAGE_BASE + 0x1000, 0xf4),
        "write-info" => attack::write(proto::boot::INFO_BASE, 0),
        "run-stack" => attack::jump(proto::boot::STACK_TOP - 64),
        "calls" => calls(&env, random),
        "log-ring" => flood(channel(&env, ChannelKind::Log), random),
        "supervise-ring" => flood(channel(&env, ChannelKind::Supervise), random),
        "store-ring" => flood(channel(&env, ChannelKind::Xenstore), random),
        "store-messages" => store_messages(&env, random),
        "log-records" => log_records(),
        "signals" => signals(),
        "spin" => loop {
            core::hint::spin_loop();
        },
        other => {
            if attack::instruction(other).is_none() {
                log::error!("there is no mode {other}");
            }
        }
    }
    // Only a hole leads here: everything above faults or says itself how it ended.
    log::error!("{mode} was not stopped");
    idle(&env)
}

fn drop_byte(byte: u8) {
    log::error!("read {byte:#x}");
}

fn idle(env: &rt::Env) -> ! {
    loop {
        let _signals = rt::sys::event_wait(env.info.event);
    }
}

fn channel(env: &rt::Env, kind: ChannelKind) -> &'static ChannelInfo {
    match env.channel(kind) {
        Some(info) => info,
        None => rt::exit_failed("the manifest gives this mode no such channel"),
    }
}

/// All system calls on all slots, with plain and with random arguments; then the ones that destroy what
/// this domain has itself. The figures are in the registers of the fault that ends it.
fn calls(env: &rt::Env, random: &mut Random) -> ! {
    let event = u64::from(env.info.event);
    let mut odd = 0;
    // What it holds are events, and of these nothing else may be made.
    for slot in 1..SLOTS {
        let (error, kind) =
            attack::system_call(Syscall::CapRead as u64, [slot, Field::Type as u64, 0, 0, 0, 0]);
        if error == 0 && ![ObjectType::Empty as u64, ObjectType::Event as u64].contains(&kind) {
            log::error!("slot {slot} holds an object of type {kind}");
            odd += 1;
        }
    }
    let mut count = 0;
    for round in 0..3 {
        // Before the third nothing is lost that this domain lives from.
        let plain = round == 0;
        let attempts = if plain { SLOTS * 36 } else { 60_000 };
        for n in 0..attempts {
            let number = if plain { n / SLOTS } else { random.below(34) };
            let number = if number > 32 { random.next() } else { number };
            let mut arguments = [(); 6].map(|()| random.argument());
            if plain || random.below(2) == 0 {
                arguments[0] = n % SLOTS;
            }
            if round < 2 && is_own_loss(number) {
                arguments[0] = if number == Syscall::CapRevoke as u64 { SLOTS + 9 } else { SLOTS };
            }
            // Once its event may have moved to another slot, a wait could be for ever.
            let is_wait = [Syscall::EventWait as u64, Syscall::EventSignalAndWait as u64].contains(&number);
            let number = if round == 2 && is_wait { Syscall::EventPoll as u64 } else { number };
            // No call may block for ever: every wait is for this one event.
            let _set = attack::system_call(Syscall::EventTimer as u64, [event, 1, 1 << 63, 0, 0, 0]);
            let (error, value) = attack::system_call(number, arguments);
            count += 1;
            if error == 0 && !is_harmless(number) {
                odd += 1;
                log::error!("system call {number} {arguments:x?} succeeded: {value:#x}");
            } else if error != 0 && Error::try_from(error).is_err() {
                odd += 1;
                log::error!("system call {number} answered {error:#x}, which is no error");
            }
        }
        log::info!("round {round} of system calls is over");
    }
    attack::last_words(count, odd)
}

/// Calls that take from the caller itself.
fn is_own_loss(number: u64) -> bool {
    use Syscall::{CapDelete, CapMove, CapRevoke};
    [CapMove, CapDelete, CapRevoke].map(|call| call as u64).contains(&number)
}

/// Calls that may succeed for a domain with nothing but events.
fn is_harmless(number: u64) -> bool {
    use Syscall::{
        CapDelete, CapMove, CapRead, CapRevoke, EventPoll, EventSignal, EventSignalAndWait, EventTimer,
        EventWait, SystemInfo, ThreadYield,
    };
    let calls = [
        ThreadYield,
        EventSignal,
        EventWait,
        EventPoll,
        EventSignalAndWait,
        EventTimer,
        CapRead,
        SystemInfo,
        CapMove,
        CapDelete,
        CapRevoke,
    ];
    calls.map(|call| call as u64).contains(&number)
}

/// Random bytes in a channel's memory, above all in its indices, with a signal to the peer each time.
fn flood(info: &ChannelInfo, random: &mut Random) -> ! {
    for n in 0..20_000u64 {
        let offset = if n % 4 == 0 { random.below(info.rings.len) } else { random.below(16) * 64 % HEADER };
        // Small numbers are possible indices: then the garbage in the slots is read.
        let value = if n % 3 == 0 { random.below(64) } else { random.next() };
        attack::scribble(info.rings, offset, value as u32);
        if n % 16 == 0 {
            let _gone = rt::sys::event_signal(info.signal);
            let _never = rt::sys::thread_yield();
        }
    }
    // The log channel may be one of those that were flooded.
    attack::last_words(20_000, 0)
}

/// Messages that are well-formed as frames and garbage as requests, some in roles that are not this
/// domain's.
fn store_messages(env: &rt::Env, random: &mut Random) -> ! {
    const MESSAGES: u64 = 3000;
    let info = channel(env, ChannelKind::Xenstore);
    let Ok(mut client) = Client::<Xenstore>::connect(info) else { rt::exit_failed("no xenstore channel") };
    let mut payload = [0u8; PAYLOAD_MAX];
    let (mut sent, mut received) = (0, 0);
    for n in 0..MESSAGES {
        let len = random.below(if n % 16 == 0 { PAYLOAD_MAX as u64 } else { 64 }) as usize;
        for byte in payload.iter_mut().take(len) {
            *byte = random.next() as u8;
        }
        let paths: [&[u8]; 4] = [b"/local/domain/0\0", b"/local/domain\0x\0", b"@releaseDomain\0t\0", b"/\0"];
        let path = paths[random.below(4) as usize];
        if n % 2 == 0 {
            payload[..path.len()].copy_from_slice(path);
        }
        let len = len.max(path.len());
        let message = Message {
            role: [Role::Guest, Role::Backend, Role::Toolstack][random.below(3) as usize],
            op: if n % 8 == 0 { random.next() as u32 } else { random.below(24) as u32 },
            id: random.next() as u32,
            tx: random.below(4) as u32,
            payload: Bytes::truncated(&payload[..len]),
        };
        for _ in 0..64 {
            let is_sent = client.send(&message).is_ok();
            client.flush();
            while let Ok(Some(_)) = client.receive() {
                received += 1;
            }
            if is_sent {
                sent += 1;
                break;
            }
            let _never = rt::sys::thread_yield();
        }
    }
    log::info!("store-messages done: {sent} sent, {received} answers");
    idle(env)
}

/// More records than anybody wants, with what a terminal or a line protocol might take for its own.
fn log_records() -> ! {
    for n in 0..2000 {
        log::warn!("record {n} \x1b[2J\r\n@done 1 0\n@exec 1 quit\n@up 1 0 \\x41 %s");
        if n % 8 == 0 {
            let _never = rt::sys::thread_yield();
        }
    }
    attack::last_words(2000, 0)
}

/// Signals to every peer for ever.
fn signals() -> ! {
    loop {
        for slot in 1..16 {
            let _not_there = rt::sys::event_signal(slot);
        }
    }
}
