//! Early serial log: COM1, polled, write only. The console service drives the port once it runs.

use core::fmt;

use x86_64::instructions::port::Port;

const DATA: u16 = 0x3f8;
const LINE_STATUS: u16 = DATA + 5;
const TRANSMITTER_EMPTY: u8 = 1 << 5;

/// Writes to the log.
#[derive(Debug)]
pub struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        s.bytes().for_each(early_log);
        Ok(())
    }
}

/// Writes one byte; gives up when the port does not take it.
pub fn early_log(byte: u8) {
    // SAFETY: the ports of COM1; writing to them affects nothing but the line.
    unsafe {
        let mut patience = 10_000;
        while Port::<u8>::new(LINE_STATUS).read() & TRANSMITTER_EMPTY == 0 && patience > 0 {
            patience -= 1;
        }
        Port::new(DATA).write(byte);
    }
}
