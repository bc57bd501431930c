//! A 16550 UART, interrupt-driven in both directions.
//!
//! The line is an edge-triggered ISA interrupt: while one cause is pending no other makes an edge.
//! [`Uart::arm`] therefore switches all causes off and on again right before the domain sleeps, which
//! gives an edge for every cause that is pending by then; none can be lost.
//! Source: National Semiconductor PC16550D data sheet, section 8 (registers).

/// Register access. Offsets are 0 to 7.
pub trait Ports {
    /// Reads a register.
    fn read(&mut self, offset: u16) -> u8;
    /// Writes a register.
    fn write(&mut self, offset: u16, value: u8);
}

/// First port of COM1.
pub const COM1: u16 = 0x3f8;
/// Bytes that the transmitter's FIFO takes when it is empty.
pub const FIFO: usize = 16;

/// Receive and transmit buffer; low byte of the divisor.
const DATA: u16 = 0;
/// Interrupt enable; high byte of the divisor.
const INTERRUPT_ENABLE: u16 = 1;
/// FIFO control (write).
const FIFO_CONTROL: u16 = 2;
const LINE_CONTROL: u16 = 3;
const MODEM_CONTROL: u16 = 4;
const LINE_STATUS: u16 = 5;

const ON_RECEIVED: u8 = 1;
const ON_TRANSMITTER_EMPTY: u8 = 2;
/// Enabled, both directions emptied, an interrupt for each byte received.
const FIFO_RESET: u8 = 0x07;
const EIGHT_BITS: u8 = 0x03;
const DIVISOR_ACCESS: u8 = 0x80;
/// Data terminal ready, request to send, and OUT2, which on a PC lets the interrupt through.
const READY: u8 = 0x0b;
const HAS_DATA: u8 = 0x01;
const IS_EMPTY: u8 = 0x20;
/// What an absent device reads as.
const ABSENT: u8 = 0xff;

/// The device.
#[derive(Debug)]
pub struct Uart<P>(P);

impl<P: Ports> Uart<P> {
    /// Sets the line to 115200 baud, 8 bits, no parity; interrupts stay off. `None`: there is no UART.
    pub fn new(mut ports: P) -> Option<Self> {
        if ports.read(LINE_STATUS) == ABSENT {
            return None;
        }
        ports.write(INTERRUPT_ENABLE, 0);
        ports.write(LINE_CONTROL, DIVISOR_ACCESS | EIGHT_BITS);
        ports.write(DATA, 1);
        ports.write(INTERRUPT_ENABLE, 0);
        ports.write(LINE_CONTROL, EIGHT_BITS);
        ports.write(FIFO_CONTROL, FIFO_RESET);
        ports.write(MODEM_CONTROL, READY);
        Some(Self(ports))
    }

    /// A byte that was received.
    pub fn receive(&mut self) -> Option<u8> {
        (self.0.read(LINE_STATUS) & HAS_DATA != 0).then(|| self.0.read(DATA))
    }

    /// How many bytes [`Self::transmit`] takes now: a FIFO full or none.
    pub fn room(&mut self) -> usize {
        if self.0.read(LINE_STATUS) & IS_EMPTY != 0 { FIFO } else { 0 }
    }

    /// Hands bytes to the transmitter, not more than [`Self::room`] said.
    pub fn transmit(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0.write(DATA, byte);
        }
    }

    /// Asks for an interrupt when a byte arrives or, if `has_output`, when the transmitter is empty; also
    /// for what has happened already.
    pub fn arm(&mut self, wants_input: bool, has_output: bool) {
        let received = if wants_input { ON_RECEIVED } else { 0 };
        let empty = if has_output { ON_TRANSMITTER_EMPTY } else { 0 };
        self.0.write(INTERRUPT_ENABLE, 0);
        self.0.write(INTERRUPT_ENABLE, received | empty);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::VecDeque;
    use alloc::vec::Vec;

    /// The registers that matter, with a line that has edges.
    #[derive(Default)]
    struct Device {
        received: VecDeque<u8>,
        fifo: Vec<u8>,
        enable: u8,
        divisor_access: bool,
        divisor: u8,
        is_high: bool,
        edges: usize,
        is_absent: bool,
    }

    impl Device {
        fn update(&mut self) {
            let causes = self.enable & ON_RECEIVED != 0 && !self.received.is_empty()
                || self.enable & ON_TRANSMITTER_EMPTY != 0 && self.fifo.is_empty();
            self.edges += usize::from(causes && !self.is_high);
            self.is_high = causes;
        }
    }

    impl Ports for &mut Device {
        fn read(&mut self, offset: u16) -> u8 {
            let value = match offset {
                _ if self.is_absent => 0xff,
                DATA => self.received.pop_front().unwrap_or(0),
                LINE_STATUS => {
                    let empty = if self.fifo.is_empty() { 0x60 } else { 0 };
                    empty | u8::from(!self.received.is_empty())
                }
                _ => 0,
            };
            self.update();
            value
        }
        fn write(&mut self, offset: u16, value: u8) {
            match offset {
                DATA if self.divisor_access => self.divisor = value,
                DATA => self.fifo.push(value),
                INTERRUPT_ENABLE if !self.divisor_access => self.enable = value,
                LINE_CONTROL => self.divisor_access = value & DIVISOR_ACCESS != 0,
                _ => {}
            }
            self.update();
        }
    }

    #[test]
    fn bytes_pass_both_ways() {
        let mut device = Device::default();
        let mut uart = Uart::new(&mut device).unwrap();
        assert_eq!((uart.room(), uart.receive()), (FIFO, None));
        uart.transmit(b"hello");
        assert_eq!(uart.room(), 0);
        assert_eq!((device.divisor, device.fifo.as_slice()), (1, &b"hello"[..]));
        device.received.extend(b"ab");
        let mut uart = Uart(&mut device);
        assert_eq!((uart.receive(), uart.receive(), uart.receive()), (Some(b'a'), Some(b'b'), None));
    }

    #[test]
    fn arming_gives_an_edge_for_every_cause_that_is_pending() {
        let mut device = Device::default();
        Uart::new(&mut device).unwrap().arm(true, false);
        assert_eq!(device.edges, 0);
        device.received.push_back(b'a');
        device.update();
        assert_eq!(device.edges, 1);
        // Not read, because there is no room; the transmitter is to wake us nevertheless.
        Uart(&mut device).arm(false, true);
        assert_eq!(device.edges, 2);
        Uart(&mut device).arm(true, true);
        assert_eq!(device.edges, 3);
    }

    #[test]
    fn an_absent_device_is_noticed() {
        let mut device = Device { is_absent: true, ..Device::default() };
        assert!(Uart::new(&mut device).is_none());
    }
}
