//! Local APIC (xAPIC mode) and I/O APIC.
//!
//! Vectors: 0x30.. the I/O APIC's lines, 0x50.. MSIs, then the kernel's own. All go to the boot CPU.
//! Sources: AMD64 APM vol. 2, chapter 16; Intel 82093AA data sheet.

use core::ptr::NonNull;

use proto::abi::SystemField;
use volatile::VolatilePtr;

use super::counting;
use super::paging::{IO_APIC, LOCAL_APIC};
use crate::object::irq::{GSI_LINES, MSI_LINES};

/// Vector of the I/O APIC's line 0.
pub const FIRST_LINE_VECTOR: u64 = 0x30;
/// First vector of an MSI.
pub const FIRST_MSI_VECTOR: u64 = 0x50;
/// Vector of the timer.
pub const TIMER_VECTOR: u64 = 0xf0;
/// Vector of spurious interrupts.
pub const SPURIOUS_VECTOR: u64 = 0xff;

const _: () = assert!(FIRST_LINE_VECTOR + GSI_LINES <= FIRST_MSI_VECTOR);
const _: () = assert!(FIRST_MSI_VECTOR + MSI_LINES <= TIMER_VECTOR);

const EOI: u64 = 0xb0;
const SPURIOUS: u64 = 0xf0;
const LVT_TIMER: u64 = 0x320;
const LVT_LINT0: u64 = 0x350;
const LVT_LINT1: u64 = 0x360;
const LVT_ERROR: u64 = 0x370;
const TIMER_INITIAL: u64 = 0x380;
const TIMER_CURRENT: u64 = 0x390;
const TIMER_DIVIDE: u64 = 0x3e0;
const MASKED: u32 = 1 << 16;

/// For one access.
#[inline(always)]
fn register(address: u64) -> VolatilePtr<'static, u32> {
    counting::count(SystemField::ApicAccesses);
    let at = NonNull::new(address as *mut u32).unwrap_or(NonNull::dangling());
    // SAFETY: `paging` maps the APICs' pages at these addresses (never 0), uncached, for the kernel alone.
    unsafe { VolatilePtr::new(at) }
}

fn io_apic(index: u32) -> VolatilePtr<'static, u32> {
    register(IO_APIC).write(index);
    register(IO_APIC + 0x10)
}

/// Switches the legacy interrupt controllers off and the APICs on, with every line masked.
pub fn init() {
    use x86_64::instructions::port::Port;
    // SAFETY: masks every line of both legacy controllers.
    unsafe {
        Port::<u8>::new(0x21).write(0xff);
        Port::<u8>::new(0xa1).write(0xff);
    }
    for lvt in [LVT_LINT0, LVT_LINT1, LVT_ERROR] {
        register(LOCAL_APIC + lvt).write(MASKED);
    }
    register(LOCAL_APIC + TIMER_DIVIDE).write(0b1011);
    register(LOCAL_APIC + LVT_TIMER).write(TIMER_VECTOR as u32);
    register(LOCAL_APIC + SPURIOUS).write(0x100 | SPURIOUS_VECTOR as u32);
    let lines = (io_apic(1).read() >> 16 & 0xff) + 1;
    for line in 0..lines.min(GSI_LINES as u32) {
        io_apic(0x10 + 2 * line).write(MASKED | (FIRST_LINE_VECTOR as u32 + line));
        io_apic(0x11 + 2 * line).write(0);
    }
}

/// Masks or unmasks a line of the I/O APIC. ISA lines (0 to 15) are edge-triggered, active high; the others,
/// the PCI lines, level-triggered, active low.
pub fn set_line_masked(line: u64, is_masked: bool) {
    if line >= GSI_LINES {
        return;
    }
    let trigger = if line < 16 { 0 } else { 1 << 15 | 1 << 13 };
    let mask = if is_masked { MASKED } else { 0 };
    io_apic(0x10 + 2 * line as u32).write(mask | trigger | (FIRST_LINE_VECTOR + line) as u32);
}

/// The line fires until it is acknowledged.
pub fn is_level(line: u64) -> bool {
    (16..GSI_LINES).contains(&line)
}

/// Ends the interrupt in service.
#[inline(always)]
pub fn end_of_interrupt() {
    register(LOCAL_APIC + EOI).write(0);
}

/// Starts the one-shot timer; 0 stops it.
pub fn set_timer_count(count: u32) {
    register(LOCAL_APIC + TIMER_INITIAL).write(count);
}

/// What is left of the timer's count.
pub fn timer_count() -> u32 {
    register(LOCAL_APIC + TIMER_CURRENT).read()
}
