//! Text to the debug console: whole lines, because every string instruction is an exit.

use core::fmt::Write;

/// The customary debug console.
pub const PORT: u16 = 0xe9;
/// Bytes that go out at once; the VMM takes that many per exit.
const CHUNK: usize = 256;

/// One line (or text without an end), collected.
#[derive(Debug)]
pub struct Line {
    bytes: [u8; CHUNK],
    len: usize,
}

impl Line {
    /// An empty one.
    pub const fn new() -> Self {
        Self { bytes: [0; CHUNK], len: 0 }
    }

    /// Sends what there is.
    pub fn send(&mut self) {
        crate::machine::write_port(PORT, self.bytes.get(..self.len).unwrap_or_default());
        self.len = 0;
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for byte in text.bytes() {
            if self.len == CHUNK {
                self.send();
            }
            if let Some(place) = self.bytes.get_mut(self.len) {
                *place = byte;
                self.len += 1;
            }
        }
        Ok(())
    }
}

/// Prints a line.
pub fn line(text: core::fmt::Arguments<'_>) {
    let mut line = Line::new();
    // The collector takes everything.
    let _never = line.write_fmt(text);
    let _never = line.write_str("\n");
    line.send();
}

/// Prints a line, as `println!` does.
macro_rules! say {
    ($($text:tt)*) => { $crate::out::line(format_args!($($text)*)) };
}
pub(crate) use say;
