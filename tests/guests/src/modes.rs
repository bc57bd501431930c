//! Hypercalls from everything but 64-bit code, and a mode that makes the same ones from each.
//!
//! The 32-bit modes that have paging see the program where it is and, at [`AREA`], four pages: two that lie apart
//! in guest-physical memory, a read-only one, and one that is absent. Sources: AMD64 APM vol. 2, 14.6 to 14.8 (leaving and
//! entering long mode), 5.2 (legacy paging); Xen public/arch-x86/xen-x86_32.h for the convention.
#![expect(unsafe_code, reason = "this is a guest's kernel")]

use core::arch::{asm, global_asm};

use crate::NOWHERE;
use crate::check::Check;
use crate::machine::{self, peek, poke, poke32};
use crate::numbers::Random;
use crate::paging::{self, LARGE, PRESENT, USER, WRITE};
use crate::traps;
use crate::xen::errno::{EFAULT, EINVAL, ENOENT, ENOSYS, EPERM};
use crate::xen::{DOMID_SELF, EVENT_CHANNEL_OP, HVM_OP, MEMORY_OP, SCHED_OP, VCPU_OP, XEN_VERSION};

global_asm!(include_str!("modes.s"), options(att_syntax));

/// What modes.s takes and leaves, at the offsets that it uses.
#[repr(C)]
struct Narrow {
    registers: [u32; 6],
    /// CR0, CR3, CR4 of the mode.
    control: [u32; 3],
    /// Those of 64-bit mode, and EFER.
    saved: [u32; 4],
    stack: u64,
}

const _: () = assert!(core::mem::offset_of!(Narrow, stack) == 56);

#[unsafe(no_mangle)]
static mut narrow: Narrow = Narrow { registers: [0; 6], control: [0; 3], saved: [0; 4], stack: 0 };

unsafe extern "C" {
    fn narrow_compat(selector: u64) -> u32;
    fn narrow_switch(is_real: u32) -> u32;
}

const CODE_32: u64 = 0x18;
const USER_CODE_32: u64 = 0x2b;
const CR0_PE: u32 = 1;
const CR0_ET: u32 = 1 << 4;
const CR0_WP: u32 = 1 << 16;
const CR0_PG: u32 = 1 << 31;
const CR4_PSE: u32 = 1 << 4;
const CR4_PAE: u32 = 1 << 5;

/// A mode that is no 64-bit mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// A 32-bit code segment in long mode, with the page tables of 64-bit mode.
    Compat,
    /// Protected mode without paging.
    Unpaged,
    /// Two levels of page tables, with 4 MiB pages: their address.
    TwoLevel(u32),
    /// Three levels: their address.
    Pae(u32),
    /// Real mode.
    Real,
}

/// Makes a hypercall in the mode; the arguments are for ebx, ecx, edx, esi and edi.
pub fn hypercall(mode: Mode, number: u32, args: [u32; 5]) -> i32 {
    let paged = CR0_PG | CR0_WP | CR0_ET | CR0_PE;
    let control = match mode {
        Mode::Compat | Mode::Real => [0; 3],
        Mode::Unpaged => [CR0_ET | CR0_PE, 0, 0],
        Mode::TwoLevel(tables) => [paged, tables, CR4_PSE],
        Mode::Pae(tables) => [paged, tables, CR4_PAE],
    };
    let [ebx, ecx, edx, esi, edi] = args;
    // SAFETY: one CPU; modes.s keeps what the compiler relies on.
    unsafe {
        (&raw mut narrow.registers).write_volatile([number, ebx, ecx, edx, esi, edi]);
        (&raw mut narrow.control).write_volatile(control);
        let answer = match mode {
            Mode::Compat => narrow_compat(CODE_32),
            mode => narrow_switch(u32::from(mode == Mode::Real)),
        };
        answer as i32
    }
}

/// A hypercall in a compatibility segment at CPL 3.
fn user_hypercall(number: u32) -> Result<i32, traps::Fault> {
    traps::user(|| {
        // SAFETY: as above.
        unsafe {
            (&raw mut narrow.registers).write_volatile([number, 0, 0, 0, 0, 0]);
            narrow_compat(USER_CODE_32) as i32
        }
    })
}

/// Linear address of the pages that the tables map specially; 4 GiB identity otherwise.
const AREA: u64 = 0x8000_0000;
const PAGE: u64 = 4096;
const READ_ONLY: u64 = AREA + 2 * PAGE;
const ABSENT: u64 = AREA + 3 * PAGE;

/// The frames behind the first three pages of [`AREA`].
pub struct Frames([u64; 3]);

impl Frames {
    /// Frames whose order is not that of the pages.
    pub fn new() -> Self {
        let [third, first, second] = [paging::frame(), paging::frame(), paging::frame()];
        // One behind the other they would hide a copy that does not look at the tables for each page.
        Self([second, first, third])
    }

    fn entries(&self) -> [u64; 3] {
        let [first, second, third] = self.0;
        [first | PRESENT | WRITE, second | PRESENT | WRITE, third | PRESENT]
    }

    /// Maps them in the tables of 64-bit mode.
    fn map(&self) {
        paging::map_at(AREA, 2, 0);
        for (page, entry) in (0..).zip(self.entries()) {
            paging::map(AREA + page * PAGE, entry);
        }
        paging::unmap(ABSENT);
    }

    /// Two levels: 4 MiB pages, and one table.
    pub fn two_levels(&self) -> Mode {
        let (directory, table) = (paging::frame(), paging::frame());
        for index in 0..1024u32 {
            poke32(directory + 4 * u64::from(index), index << 22 | (LARGE | WRITE | PRESENT) as u32);
        }
        poke32(directory + 4 * (AREA >> 22), table as u32 | (WRITE | PRESENT) as u32);
        for (page, entry) in (0..).zip(self.entries()) {
            poke32(table + 4 * page, entry as u32);
        }
        Mode::TwoLevel(directory as u32)
    }

    /// PAE: the directories of the first and the fourth GiB are those of the entry code, as they are identity.
    pub fn pae(&self) -> Mode {
        let (top, directory, table) = (paging::frame(), paging::frame(), paging::frame());
        // The top-level table of PAE has 32 bytes; this one is not at the start of its frame.
        let top = top + 0x7e0;
        for gib in 0..4 {
            let entry = peek(paging::entry(gib << 30, 3));
            poke(top + 8 * gib, entry & !(WRITE | USER | 0xff8) | PRESENT);
        }
        poke(top + 8 * (AREA >> 30), directory | PRESENT);
        for index in 0..512 {
            poke(directory + 8 * index, (AREA + (index << 21)) | LARGE | WRITE | PRESENT);
        }
        poke(directory, table | WRITE | PRESENT);
        for (page, entry) in (0..).zip(self.entries()) {
            poke(table + 8 * page, entry);
        }
        Mode::Pae(top as u32)
    }

    /// Writes bytes of the first two pages, as they follow one another in the linear address space.
    fn put(&self, offset: u64, words: &[u32]) {
        for (n, word) in (0..).zip(words) {
            poke32(self.physical(offset + 4 * n), *word);
        }
    }

    fn get(&self, offset: u64) -> u32 {
        peek(self.physical(offset)) as u32
    }

    fn physical(&self, offset: u64) -> u64 {
        let [first, second, _] = self.0;
        if offset < PAGE { first + offset } else { second + offset - PAGE }
    }
}

/// Who calls: 64-bit code, or a mode.
struct Caller<'a> {
    name: &'static str,
    mode: Option<Mode>,
    frames: &'a Frames,
    /// Where the first two pages are for the caller.
    area: u64,
    /// It has page tables of its own, with [`READ_ONLY`] and [`ABSENT`].
    is_paged: bool,
}

impl Caller<'_> {
    fn call(&self, number: u64, args: [u64; 3]) -> i64 {
        let [first, second, third] = args;
        match self.mode {
            None => machine::hypercall(number, [first, second, third, 0, 0]),
            Some(mode) => {
                hypercall(mode, number as u32, [first as u32, second as u32, third as u32, 0, 0]).into()
            }
        }
    }

    /// One of two values by the width of the caller's layouts.
    fn by_width<T>(&self, wide: T, narrow_value: T) -> T {
        if self.mode.is_none() { wide } else { narrow_value }
    }

    /// A structure at an offset of the area, and its address for the caller.
    fn put(&self, offset: u64, words: &[u32]) -> u64 {
        self.frames.put(offset, words);
        self.area + offset
    }
}

/// The mode of the test.
pub fn run(check: &mut Check, _: &mut Random) {
    let frames = Frames::new();
    frames.map();
    write_protect();
    // Without paging the pages have to be one behind the other.
    let plain = Frames(core::array::from_fn(|_| paging::frame()));
    let paged = |name, mode| Caller { name, mode, frames: &frames, area: AREA, is_paged: true };
    let flat =
        |name, mode| Caller { name, mode: Some(mode), frames: &plain, area: plain.0[0], is_paged: false };
    let callers = [
        paged("64-bit", None),
        paged("compat", Some(Mode::Compat)),
        paged("two-level", Some(frames.two_levels())),
        paged("pae", Some(frames.pae())),
        flat("unpaged", Mode::Unpaged),
        flat("real", Mode::Real),
    ];
    for caller in &callers {
        plain_calls(check, caller);
        structures(check, caller);
        bad_buffers(check, caller);
    }
    check.equal("user compat", Ok(EPERM as i32), user_hypercall(XEN_VERSION as u32));
    let user = traps::user(|| machine::hypercall(XEN_VERSION, [0; 5]));
    check.equal("user 64-bit", Ok(EPERM), user);
}

/// CR0.WP, as the other modes have it.
fn write_protect() {
    // SAFETY: the program writes no read-only page.
    unsafe { asm!("mov {v}, cr0", "or {v}, {wp}", "mov cr0, {v}", v = out(reg) _, wp = const CR0_WP) }
}

/// Calls without a structure.
fn plain_calls(check: &mut Check, caller: &Caller<'_>) {
    let name = caller.name;
    check.equal(format_args!("{name} version"), 4 << 16 | 17, caller.call(XEN_VERSION, [0; 3]));
    check.equal(format_args!("{name} page size"), 4096, caller.call(XEN_VERSION, [7, 0, 0]));
    check.equal(format_args!("{name} no such call"), ENOSYS, caller.call(60, [0; 3]));
    check.equal(format_args!("{name} is up"), 1, caller.call(VCPU_OP, [3, 0, 0]));
    check.equal(format_args!("{name} no such vcpu"), ENOENT, caller.call(VCPU_OP, [3, 77, 0]));
    check.equal(format_args!("{name} yield"), 0, caller.call(SCHED_OP, [0; 3]));
}

/// Structures whose layouts differ between the widths, across the pages' border.
fn structures(check: &mut Check, caller: &Caller<'_>) {
    let name = caller.name;
    // get_param: domain, index, value. The value is behind the border.
    for index in [1, 17] {
        let at = PAGE - 8;
        let pointer = caller.put(at, &[DOMID_SELF as u32, index, 99, 99]);
        check.equal(format_args!("{name} get_param {index}"), 0, caller.call(HVM_OP, [1, pointer, 0]));
        let expected = crate::xen::parameter(index);
        check.equal_hex(format_args!("{name} param {index}"), expected, caller.frames.get(at + 8).into());
    }
    // memory_map: count and handle; two entries of 20 bytes, the second across the border.
    let buffer = caller.area + PAGE - 28;
    let words = caller.by_width([2, 0, buffer as u32, 0], [2, buffer as u32, 0, 0]);
    let pointer = caller.put(PAGE - 128, &words);
    check.equal(format_args!("{name} memory_map"), 0, caller.call(MEMORY_OP, [9, pointer, 0]));
    check.equal(format_args!("{name} map entries"), 2, caller.frames.get(PAGE - 128));
    check.equal_hex(format_args!("{name} first start"), 0, caller.frames.get(PAGE - 28));
    check.equal_hex(format_args!("{name} second start"), 0xfc00_0000, caller.frames.get(PAGE - 8));
    check.equal(format_args!("{name} second type"), 3, caller.frames.get(PAGE + 8));
    // poll of a port that is none: handle, count, time; the list of ports crosses the border.
    let list = caller.put(PAGE - 4, &[0, 100_000]);
    let words = caller.by_width([list as u32, 0, 2, 0, 1, 0], [list as u32, 2, 1, 0, 0, 0]);
    let pointer = caller.put(64, &words);
    check.equal(format_args!("{name} poll of a bad port"), EINVAL, caller.call(SCHED_OP, [3, pointer, 0]));
    // A poll of nothing whose time has passed.
    let words = caller.by_width([0, 0, 0, 0, 1, 0], [0, 0, 1, 0, 0, 0]);
    let pointer = caller.put(PAGE - 8, &words);
    check.equal(format_args!("{name} poll of the past"), 0, caller.call(SCHED_OP, [3, pointer, 0]));
    // An IPI's port: the answer is written behind the border. Closed again.
    let pointer = caller.put(PAGE - 4, &[0, 0]);
    check.equal(format_args!("{name} bind_ipi"), 0, caller.call(EVENT_CHANNEL_OP, [7, pointer, 0]));
    let port = caller.frames.get(PAGE);
    check.is_true(format_args!("{name} port"), port != 0);
    let pointer = caller.put(0, &[port]);
    check.equal(format_args!("{name} close"), 0, caller.call(EVENT_CHANNEL_OP, [3, pointer, 0]));
    // Runstate: 48 bytes, or 44 with its 64-bit words at 4-byte borders.
    let pointer = caller.put(PAGE - 16, &[0xee; 16]);
    check.equal(format_args!("{name} runstate"), 0, caller.call(VCPU_OP, [4, 0, pointer]));
    check.equal(format_args!("{name} running"), 0, caller.frames.get(PAGE - 16));
    let last = caller.frames.get(PAGE - 16 + 44);
    check.equal(format_args!("{name} length"), caller.by_width(0, 0xee), last);
}

/// Buffers that cannot be read or written.
fn bad_buffers(check: &mut Check, caller: &Caller<'_>) {
    let name = caller.name;
    let fault = |check: &mut Check, what, number, args| {
        check.equal(format_args!("{name} {what}"), EFAULT, caller.call(number, args));
    };
    let absent = if caller.is_paged { ABSENT } else { NOWHERE };
    fault(check, "absent page", HVM_OP, [1, absent, 0]);
    fault(check, "text to an absent page", XEN_VERSION, [1, absent, 0]);
    if caller.is_paged {
        let [.., third] = caller.frames.0;
        poke(third, DOMID_SELF | 1 << 32);
        poke(third + 8, 0x99);
        poke(third + PAGE - 8, DOMID_SELF | 1 << 32);
        fault(check, "half in an absent page", HVM_OP, [1, ABSENT - 8, 0]);
        fault(check, "answer to a read-only page", HVM_OP, [1, READ_ONLY, 0]);
        check.equal_hex(format_args!("{name} read-only page"), 0x99, peek(third + 8));
        let pointer = caller.put(PAGE - 4, &[0, 0]);
        check.equal(format_args!("{name} bind_ipi"), 0, caller.call(EVENT_CHANNEL_OP, [7, pointer, 0]));
        let port = caller.frames.get(PAGE);
        poke32(third, port);
        check.equal(format_args!("{name} reading it"), 0, caller.call(EVENT_CHANNEL_OP, [3, READ_ONLY, 0]));
    }
}
