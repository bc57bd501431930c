//! The test guest: a small kernel with a mode for each behaviour of the guest interface.
//!
//! The command line's `mode=` says what it does, `seed=` what "random" means: every run with the same does the
//! same. A mode of [`registry::MODES`] checks what a guest may rely on and ends with a line
//! `MODE passed: N checks` or `MODE failed: M of N checks`; one of [`hostile::MODES`] tries what a guest must not be
//! able to do. Either way the guest then powers off.
//!
//! # To add a mode
//! 1. A file `src/NAME.rs` with `pub fn run(check: &mut Check, random: &mut Random)`, documented with the behaviour
//!    and its source; `mod NAME;` here and a line in `registry.rs`.
//! 2. A line in the table of `tests/tests/guests.rs`, which boots it.
//!
//! What is there for it: [`check`] compares and prints; [`traps`] runs closures whose exceptions come back as values
//! (`attempt`), at CPL 3 too (`user`), counts interrupts and calls handlers; [`machine`] has the instructions;
//! [`paging`] maps pages and gives frames; [`xen`] has the hypercalls. Memory from [`SCRATCH`] on for 2 MiB is a mode's to use.
//! `MODES=NAME cargo test --package system-tests --test guests` runs those whose names contain it.
//!
//! Source of the entry: Xen docs/misc/pvh.pandoc.
#![no_std]
#![no_main]
#![allow(dead_code, reason = "what modes have at hand is not always in use")]

mod apic;
mod check;
mod cpu_state;
mod cpu_tables;
mod devices;
mod events;
mod exits;
mod hostile;
mod hypercalls;
mod machine;
mod mmio;
mod modes;
mod numbers;
mod out;
mod paging;
mod processors;
mod random;
mod registry;
mod selftest;
mod store;
mod time;
mod traps;
mod xen;

use check::Check;
use machine::peek;
use numbers::Random;
use out::say;

/// Guest-physical memory that modes may use: above this program, inside of 16 MiB.
const SCRATCH: u64 = 0xc0_0000;
/// Guest-physical address behind the RAM, where nothing is.
const NOWHERE: u64 = 0xc000_0000;
/// Page of the start information where its address field for the command line is (pvh.pandoc).
const CMDLINE_FIELD: u64 = 24;

/// The entry point's callee.
#[expect(unsafe_code, reason = "called by the entry code by name")]
#[unsafe(no_mangle)]
extern "C" fn main(start_info: u64) -> ! {
    traps::set_up();
    let cmdline = peek(start_info + CMDLINE_FIELD);
    let mut text = [0; 64];
    for (n, byte) in text.iter_mut().enumerate() {
        *byte = peek(cmdline + n as u64) as u8;
    }
    let end = text.iter().position(|b| *b == 0).unwrap_or(text.len());
    let line = core::str::from_utf8(text.get(..end).unwrap_or_default()).unwrap_or_default();
    let option = |key| line.split_ascii_whitespace().find_map(|word| word.strip_prefix(key));
    let mode = option("mode=").unwrap_or("");
    let seed: u64 = option("seed=").and_then(|seed| seed.parse().ok()).unwrap_or(0);
    run(mode, &mut Random::new(seed));
    machine::halt()
}

fn run(name: &str, random: &mut Random) {
    if let Some((name, mode)) = registry::MODES.iter().find(|(known, _)| *known == name) {
        let mut check = Check::new(name);
        mode(&mut check, random);
        check.end();
    } else if let Some((name, mode)) = hostile::MODES.iter().find(|(known, _)| *known == name) {
        hostile::run(name, *mode, random);
    } else {
        say!("{name} failed: there is no such mode");
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    say!("FAIL no panic: expected none, got {info}");
    machine::halt()
}
