//! How the machine ends.

/// Port of QEMU's `isa-debug-exit` device.
pub const DEBUG_EXIT_PORT: u16 = 0xf4;

/// How the machine is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Write this byte to [`DEBUG_EXIT_PORT`]: QEMU exits with twice the value plus one.
    DebugExit(u8),
    /// Reset the machine.
    Reset,
}

/// Success as QEMU's exit status 33: odd like all of them, and none that QEMU uses itself.
const STATUS_BASE: u8 = 0x10;

/// Chooses by the boot command line, which contains the word `debug-exit` where the device is there.
pub fn end(command_line: &str, status: u8) -> End {
    if command_line.split_ascii_whitespace().any(|word| word == "debug-exit") {
        // More would collide with the kernel's panic status.
        End::DebugExit(STATUS_BASE + status.min(0x20))
    } else {
        End::Reset
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_device_is_used_only_where_the_command_line_says_it_is_there() {
        assert_eq!(end("console=com1 debug-exit", 0), End::DebugExit(0x10));
        assert_eq!(end("debug-exit", 255), End::DebugExit(0x30));
        assert_eq!(end("no-debug-exit", 1), End::Reset);
    }
}
