//! The kernel image: the library and what happens on a bug.
#![no_std]
#![no_main]

use core::panic::PanicInfo;

use kernel::arch::halt;

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    halt(format_args!("{info}"))
}
