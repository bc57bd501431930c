//! Interrupt lines: which event each one signals.
//!
//! Lines 0 to 23 are the I/O APIC's, the following ones MSI vectors. A level-triggered line is masked when
//! it fires and unmasked by `IrqAck`.

use core::cell::Cell;

use super::event::Event;
use super::thread::Thread;
use crate::memory::Shared;

/// Lines of the I/O APIC.
pub const GSI_LINES: u64 = 24;
/// MSI vectors.
pub const MSI_LINES: u64 = 160;
/// All lines.
pub const LINES: u64 = GSI_LINES + MSI_LINES;

#[derive(Debug)]
struct Line {
    event: Cell<Option<&'static Event>>,
    signals: Cell<u64>,
}

/// Changed with the tree lock held and interrupts off.
static TABLE: Shared<[Line; LINES as usize]> =
    Shared([const { Line { event: Cell::new(None), signals: Cell::new(0) } }; LINES as usize]);

/// From now on the line signals the event; `None`: nobody.
pub fn bind(line: u64, target: Option<(&'static Event, u64)>) {
    let Some(entry) = TABLE.0.get(line as usize) else { return };
    entry.signals.set(target.map_or(0, |(_, signals)| signals));
    entry.event.set(target.map(|(event, _)| event));
    if line < GSI_LINES {
        crate::arch::set_line_masked(line, target.is_none());
    }
}

/// Before an event is destroyed: no line signals it any more.
pub fn forget(event: &Event) {
    for (line, entry) in TABLE.0.iter().enumerate() {
        if entry.event.get().is_some_and(|bound| core::ptr::eq(bound, event)) {
            bind(line as u64, None);
        }
    }
}

/// The line fired: signals its event and answers the thread that has to be made ready.
#[inline(always)]
pub fn fire(line: u64) -> Option<&'static Thread> {
    let entry = TABLE.0.get(line as usize)?;
    entry.event.get()?.signal(entry.signals.get())
}
