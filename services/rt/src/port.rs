//! Port input and output, for domains that were given ports. Any other port is a fault of the thread.
#![expect(unsafe_code, reason = "port instructions")]

use core::arch::asm;

macro_rules! ports {
    ($($(#[$doc:meta])* $input:ident $output:ident $type:ty, $register:tt;)*) => {
        $(
            $(#[$doc])*
            #[inline]
            pub fn $input(port: u16) -> $type {
                let value;
                // SAFETY: reaches a device, not memory; the kernel faults the thread for a foreign port.
                unsafe {
                    asm!(concat!("in ", $register, ", dx"), in("dx") port, out($register) value,
                        options(nomem, nostack, preserves_flags));
                }
                value
            }

            /// The same, to the port.
            #[inline]
            pub fn $output(port: u16, value: $type) {
                // SAFETY: as above. A device that does DMA is only told addresses of its own memory: its
                // ports are held by its driver domain alone.
                unsafe {
                    asm!(concat!("out dx, ", $register), in("dx") port, in($register) value,
                        options(nomem, nostack, preserves_flags));
                }
            }
        )*
    };
}

ports! {
    /// Moves a byte from the port.
    inb outb u8, "al";
    /// Moves 16 bits from the port.
    inw outw u16, "ax";
    /// Moves 32 bits from the port.
    inl outl u32, "eax";
}
