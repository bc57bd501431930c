//! Interprocessor interrupts: what a write to the interrupt command register asks for.
//!
//! Source: AMD64 APM vol. 2, 16.5; Intel SDM vol. 3, 10.6.

use super::{FIRST_VECTOR, Mode};

const LOGICAL: u32 = 1 << 11;
const ASSERT: u32 = 1 << 14;
const LEVEL: u32 = 1 << 15;
/// A physical destination that means every processor.
pub const EVERYBODY: u32 = u32::MAX;

/// Whom a command goes to, besides by its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shorthand {
    /// The destination says.
    None,
    /// The sender.
    Oneself,
    /// All.
    All,
    /// All but the sender.
    Others,
}

/// What is delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// An interrupt, to each that is addressed.
    Fixed(u8),
    /// An interrupt, to the one of lowest priority among those addressed.
    Lowest(u8),
    /// A non-maskable interrupt.
    Nmi,
    /// Reset, and wait for [`Self::Startup`].
    Init,
    /// Start in real mode at this page.
    Startup(u8),
}

/// An interprocessor interrupt on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Command {
    /// Whom besides `destination`.
    pub shorthand: Shorthand,
    /// APIC number or [`EVERYBODY`]; or a logical destination.
    pub destination: u32,
    /// Whether `destination` is compared with logical destination registers.
    pub is_logical: bool,
    /// What.
    pub delivery: Delivery,
}

/// Why nothing is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unsent {
    /// A vector below 16.
    IllegalVector,
    /// INIT de-assert, or a delivery mode that does nothing here (SMI, reserved ones).
    Nothing,
}

impl Command {
    /// The command in the two halves of the register. In xAPIC mode the destination is the top byte.
    pub(super) fn decode(low: u32, high: u32, mode: Mode) -> Result<Self, Unsent> {
        let vector = low as u8;
        let checked = if vector < FIRST_VECTOR { Err(Unsent::IllegalVector) } else { Ok(vector) };
        let delivery = match low >> 8 & 7 {
            0 => Delivery::Fixed(checked?),
            1 => Delivery::Lowest(checked?),
            4 => Delivery::Nmi,
            // De-assert synchronised arbitration once; today's processors ignore it.
            5 if low & (LEVEL | ASSERT) == LEVEL => return Err(Unsent::Nothing),
            5 => Delivery::Init,
            6 => Delivery::Startup(vector),
            _ => return Err(Unsent::Nothing),
        };
        let is_logical = low & LOGICAL != 0;
        let destination = match mode {
            Mode::X2Apic => high,
            _ if !is_logical && high >> 24 == 0xff => EVERYBODY,
            _ => high >> 24,
        };
        let shorthand = match low >> 18 & 3 {
            0 => Shorthand::None,
            1 => Shorthand::Oneself,
            2 => Shorthand::All,
            _ => Shorthand::Others,
        };
        Ok(Self { shorthand, destination, is_logical, delivery })
    }
}
