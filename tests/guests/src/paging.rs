//! Further linear addresses: pages of every size, with any bits, in a part that the identity map leaves alone.
//!
//! The entry code's tables map 0 to 4 GiB to itself, at CPL 3 only while [`crate::traps::user`] runs. From [`AREA`] on there is nothing until
//! a mode maps it; what it maps is only what its entry says. Source: AMD64 APM vol. 2, 5.3.
#![expect(unsafe_code, reason = "this is a guest's kernel")]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::machine::{peek, poke};

/// First linear address that modes may map.
pub const AREA: u64 = 1 << 39;
/// Present.
pub const PRESENT: u64 = 1;
/// Writable.
pub const WRITE: u64 = 1 << 1;
/// Accessible at CPL 3.
pub const USER: u64 = 1 << 2;
/// A large page, in an entry of level 2 or 3.
pub const LARGE: u64 = 1 << 7;
/// No fetches.
pub const NO_EXECUTE: u64 = 1 << 63;
/// Where frames for modes are, in guest-physical memory.
const FRAMES: core::ops::Range<u64> = 0xe0_0000..0xf8_0000;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

static NEXT: AtomicU64 = AtomicU64::new(FRAMES.start);

/// A frame of RAM, zeroed, that nobody else uses: its address. There are 384.
#[expect(clippy::panic, reason = "a mode that wants more is wrong")]
pub fn frame() -> u64 {
    let at = NEXT.fetch_add(4096, Ordering::Relaxed);
    if !FRAMES.contains(&at) {
        panic!("no frame left");
    }
    crate::machine::fill(at, 512, || 0);
    at
}

/// Address of the entry for a linear address at a level (1: 4 KiB, 2: 2 MiB, 3: 1 GiB, 4), with the tables above it
/// made where they are missing.
pub fn entry(linear: u64, level: u32) -> u64 {
    let mut table = root();
    for above in (level + 1..=4).rev() {
        let at = slot(table, linear, above);
        if peek(at) & PRESENT == 0 {
            poke(at, frame() | PRESENT | WRITE | USER);
        }
        table = peek(at) & ADDRESS;
    }
    slot(table, linear, level)
}

fn slot(table: u64, linear: u64, level: u32) -> u64 {
    table + 8 * (linear >> (3 + 9 * level) & 511)
}

/// Maps a 4 KiB page by its whole entry (address and bits).
pub fn map(linear: u64, content: u64) {
    map_at(linear, 1, content);
}

/// Sets the entry of a level, which for 2 and 3 may be a large page.
pub fn map_at(linear: u64, level: u32, content: u64) {
    poke(entry(linear, level), content);
    flush(linear);
}

/// Takes a 4 KiB page away.
pub fn unmap(linear: u64) {
    map(linear, 0);
}

/// INVLPG.
pub fn flush(linear: u64) {
    // SAFETY: drops a translation, which is made again.
    unsafe { asm!("invlpg [{}]", in(reg) linear) }
}

/// Gives CPL 3 the identity map, or takes it away. (With it SMEP and SMAP would end this program.)
pub fn open_identity_map(is_open: bool) {
    let at = slot(root(), 0, 4);
    poke(at, if is_open { peek(at) | USER } else { peek(at) & !USER });
    set_root(root());
}

/// Address of the tables in use.
pub fn root() -> u64 {
    let root: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr3", out(reg) root) }
    root & ADDRESS
}

/// Loads CR3.
pub fn set_root(root: u64) {
    let _fault = crate::traps::instructions!("mov cr3, {root}"; root = in(reg) root);
}
