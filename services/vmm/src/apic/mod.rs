//! A vCPU's local APIC: a model of its registers, in xAPIC mode (a page) and x2APIC mode (MSRs).
//!
//! It starts in xAPIC mode, and changes modes by [`Apic::set_base`] only along the legal paths. Interrupts of
//! devices come as event channel upcalls and never pass through here; what does are interprocessor
//! interrupts, the timer's and errors'. There is no wire on LINT0 or LINT1. Where the manuals leave
//! room this does as Xen does (arch/x86/hvm/vlapic.c): version 0x14 with six local vectors, APR and remote
//! read 0, TMR always 0, the page cannot be moved, nothing is delivered while software-disabled.
//! Unlike Xen it reports accesses to registers that do not exist in ESR, as processors do.
//!
//! A write that asks for an interprocessor interrupt answers with the [`Command`]; who runs several vCPUs
//! brings it to each that it [reaches](Apic::is_reached) with [`Apic::receive`].
//! Sources: AMD64 APM vol. 2, chapter 16; Intel SDM vol. 3, chapter 10.

mod command;
#[cfg(test)]
mod tests;
mod timer;
mod vectors;

use crate::clock::Clock;
use command::Unsent;
pub use command::{Command, Delivery, EVERYBODY, Shorthand};
use timer::{DIVIDE_BITS, Timer, TimerMode};
use vectors::Vectors;

/// First and last MSR of the x2APIC range.
pub const MSR_FIRST: u32 = 0x800;
/// See [`MSR_FIRST`].
pub const MSR_LAST: u32 = 0x8ff;
/// Where the registers' page is in xAPIC mode.
pub const PAGE_BASE: u64 = 0xfee0_0000;

// Numbers of registers: offset in the page / 16, and MSR - 0x800.
const ID: u32 = 0x02;
const VERSION: u32 = 0x03;
const TPR: u32 = 0x08;
const APR: u32 = 0x09;
const PPR: u32 = 0x0a;
const EOI: u32 = 0x0b;
const REMOTE_READ: u32 = 0x0c;
const LDR: u32 = 0x0d;
const DFR: u32 = 0x0e;
const SVR: u32 = 0x0f;
const ISR: u32 = 0x10;
const TMR: u32 = 0x18;
const IRR: u32 = 0x20;
const ESR: u32 = 0x28;
const LVT_CMCI: u32 = 0x2f;
const ICR: u32 = 0x30;
const ICR_HIGH: u32 = 0x31;
const LVT_TIMER: u32 = 0x32;
const LVT_LAST: u32 = 0x37;
const TIMER_INITIAL: u32 = 0x38;
const TIMER_CURRENT: u32 = 0x39;
const TIMER_DIVIDE: u32 = 0x3e;
const SELF_IPI: u32 = 0x3f;

const LVTS: usize = (LVT_LAST - LVT_TIMER + 1) as usize;
/// Place of the error vector in the table.
const LVT_ERROR: usize = LVTS - 1;
/// Version 0x14 with five local vectors besides the timer.
const VERSION_VALUE: u32 = 0x0005_0014;
const LVT_MASKED: u32 = 1 << 16;
/// Bits of each entry: vector, mask; mode of the timer; delivery mode; trigger and polarity of LINT0 and 1.
const LVT_BITS: [u32; LVTS] = [0x7_00ff, 0x1_07ff, 0x1_07ff, 0x1_a7ff, 0x1_a7ff, 0x1_00ff];
/// Bits that are read-only but may be written: delivery status, and LINT's remote IRR.
const LVT_READ_ONLY: [u32; LVTS] = [0x1000, 0x1000, 0x1000, 0x5000, 0x5000, 0x1000];
/// Vectors below are reserved for exceptions.
pub const FIRST_VECTOR: u8 = 16;

const SVR_ENABLED: u32 = 1 << 8;
const SVR_BITS: u32 = 0x3ff;
const SVR_RESET: u32 = 0xff;
const DFR_FLAT: u32 = 0xffff_ffff;
/// Bits of DFR that are always 1.
const DFR_FIXED: u32 = 0x0fff_ffff;
/// Bits of the low half of ICR: vector, delivery and destination modes, level, trigger, shorthand.
const ICR_BITS: u32 = 0xc_cfff;

const ERROR_SEND_VECTOR: u32 = 1 << 5;
const ERROR_RECEIVE_VECTOR: u32 = 1 << 6;
const ERROR_REGISTER: u32 = 1 << 7;

const BASE_BSP: u64 = 1 << 8;
const BASE_X2APIC: u64 = 1 << 10;
const BASE_ENABLED: u64 = 1 << 11;
const BASE_ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The access is not allowed: #GP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused;

/// How the registers are reached, by APIC_BASE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Not at all, and nothing is received.
    Disabled,
    /// As a page at [`PAGE_BASE`].
    XApic,
    /// As MSRs.
    X2Apic,
}

/// The present, and what turns it into system time.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// The guest's TSC.
    pub tsc: u64,
    /// The guest's time.
    pub clock: Clock,
}

impl Now {
    fn ns(&self) -> u64 {
        self.clock.ns(self.tsc)
    }
}

/// One vCPU's local APIC.
#[derive(Debug)]
pub struct Apic {
    /// Initial number, and the one of x2APIC mode.
    id: u32,
    /// Number in xAPIC mode, which software may change.
    page_id: u8,
    base: u64,
    tpr: u8,
    svr: u32,
    ldr: u32,
    dfr: u32,
    icr: (u32, u32),
    esr: u32,
    /// Errors since ESR was last written.
    errors: u32,
    lvt: [u32; LVTS],
    irr: Vectors,
    isr: Vectors,
    timer: Timer,
    /// Whether any vector waits that may be delivered: the common answer is no.
    has_requests: bool,
    has_nmi: bool,
    has_init: bool,
    startup: Option<u8>,
}

impl Apic {
    /// The APIC with number `id` after reset. Number 0 is the boot processor's.
    pub fn new(id: u32) -> Self {
        Self {
            id,
            page_id: id as u8,
            base: PAGE_BASE | BASE_ENABLED | if id == 0 { BASE_BSP } else { 0 },
            tpr: 0,
            svr: SVR_RESET,
            ldr: 0,
            dfr: DFR_FLAT,
            icr: (0, 0),
            esr: 0,
            errors: 0,
            lvt: [LVT_MASKED; LVTS],
            irr: Vectors::default(),
            isr: Vectors::default(),
            timer: Timer::default(),
            has_requests: false,
            has_nmi: false,
            has_init: false,
            startup: None,
        }
    }

    /// INIT: as after reset, but mode and numbers stay. What is received and not yet taken is forgotten.
    pub fn reset(&mut self) {
        *self = Self { base: self.base, page_id: self.page_id, ..Self::new(self.id) };
    }

    /// Its initial number, which CPUID shows.
    #[inline]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The mode that it is in.
    #[inline]
    pub fn mode(&self) -> Mode {
        match (self.base & BASE_ENABLED != 0, self.base & BASE_X2APIC != 0) {
            (false, _) => Mode::Disabled,
            (true, false) => Mode::XApic,
            (true, true) => Mode::X2Apic,
        }
    }

    /// Whether it receives interrupts: neither APIC_BASE nor the spurious-interrupt register disable it.
    pub fn is_enabled(&self) -> bool {
        self.mode() != Mode::Disabled && self.svr & SVR_ENABLED != 0
    }

    /// MSR APIC_BASE.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Writes MSR APIC_BASE.
    ///
    /// # Errors
    /// [`Refused`]: a reserved bit, a step that does not exist between the modes, or the page would move.
    pub fn set_base(&mut self, value: u64) -> Result<(), Refused> {
        const MODE: u64 = BASE_ENABLED | BASE_X2APIC;
        if value & !(BASE_ADDRESS | BASE_BSP | MODE) != 0
            || (value & MODE == BASE_ENABLED && value & BASE_ADDRESS != PAGE_BASE)
        {
            return Err(Refused);
        }
        match (self.base & MODE, value & MODE) {
            (from, to) if from == to => {}
            (0, BASE_ENABLED) => *self = Self::new(self.id),
            (_, 0) | (BASE_ENABLED, MODE) => {}
            _ => return Err(Refused),
        }
        self.base = value;
        self.settle();
        Ok(())
    }

    /// RDMSR in the x2APIC range.
    ///
    /// # Errors
    /// [`Refused`]: another mode, or no register that can be read.
    pub fn read_msr(&self, msr: u32, now: &Now) -> Result<u64, Refused> {
        let register = msr.wrapping_sub(MSR_FIRST);
        if self.mode() != Mode::X2Apic {
            return Err(Refused);
        }
        match register {
            APR | EOI | REMOTE_READ | DFR | ICR_HIGH | SELF_IPI => Err(Refused),
            ICR => Ok(u64::from(self.icr.1) << 32 | u64::from(self.icr.0)),
            _ => self.register(register, now).map(u64::from).ok_or(Refused),
        }
    }

    /// WRMSR in the x2APIC range.
    ///
    /// # Errors
    /// [`Refused`]: another mode, no register that can be written, or reserved bits.
    pub fn write_msr(&mut self, msr: u32, value: u64, now: &Now) -> Result<Option<Command>, Refused> {
        let register = msr.wrapping_sub(MSR_FIRST);
        if self.mode() != Mode::X2Apic {
            return Err(Refused);
        }
        let allowed = match register {
            TPR | SELF_IPI => 0xff,
            EOI | ESR => 0,
            SVR => SVR_BITS.into(),
            LVT_CMCI => 0x1_17ff,
            ICR => 0xffff_ffff_0000_0000 | u64::from(ICR_BITS & !(1 << 12)),
            LVT_TIMER..=LVT_LAST => {
                let place = (register - LVT_TIMER) as usize;
                let bits = |table: &[u32; LVTS]| table.get(place).copied().map_or(0, u64::from);
                bits(&LVT_BITS) | bits(&LVT_READ_ONLY)
            }
            TIMER_INITIAL => u32::MAX.into(),
            TIMER_DIVIDE => DIVIDE_BITS.into(),
            _ => return Err(Refused),
        };
        if value & !allowed != 0 {
            return Err(Refused);
        }
        let low = value as u32;
        Ok(match register {
            ICR => {
                self.icr.1 = (value >> 32) as u32;
                self.command(low)
            }
            SELF_IPI => self.command(1 << 18 | low),
            _ => {
                self.set_register(register, low, now);
                None
            }
        })
    }

    /// Reads `len` bytes at `offset` of the page. Only what lies in one register's first four bytes reads as
    /// anything but 0.
    pub fn read_page(&mut self, offset: usize, len: usize, now: &Now) -> u32 {
        let (register, byte) = ((offset / 16) as u32, offset % 16);
        if byte + len > 4 || len == 0 {
            return 0;
        }
        let value = match register {
            EOI => 0,
            ICR => self.icr.0,
            ICR_HIGH => self.icr.1,
            _ => self.register(register, now).unwrap_or_else(|| {
                self.raise_error(ERROR_REGISTER);
                0
            }),
        };
        let bytes = value >> (8 * byte);
        match len {
            1 => bytes & 0xff,
            2 => bytes & 0xffff,
            3 => bytes & 0xff_ffff,
            _ => bytes,
        }
    }

    /// Writes `len` bytes at `offset` of the page; other bytes of the register stay. What does not lie in
    /// one register's first four bytes is ignored.
    pub fn write_page(&mut self, offset: usize, len: usize, value: u32, now: &Now) -> Option<Command> {
        let (register, byte) = ((offset / 16) as u32, offset % 16);
        if byte + len > 4 || len == 0 {
            return None;
        }
        let value = if len == 4 {
            value
        } else {
            let mask = ((1 << (8 * len)) - 1) << (8 * byte);
            let old = self.read_page(register as usize * 16, 4, now);
            old & !mask | value << (8 * byte) & mask
        };
        match register {
            ID => self.page_id = (value >> 24) as u8,
            LDR => self.ldr = value & 0xff00_0000,
            DFR => self.dfr = value | DFR_FIXED,
            ICR => return self.command(value),
            ICR_HIGH => self.icr.1 = value & 0xff00_0000,
            EOI | ESR | SVR | TPR | LVT_TIMER..=LVT_LAST | TIMER_INITIAL | TIMER_DIVIDE => {
                self.set_register(register, value, now);
            }
            _ if self.register(register, now).is_none() => self.raise_error(ERROR_REGISTER),
            _ => {}
        }
        None
    }

    /// A register that can be read, as far as both modes have it alike.
    fn register(&self, register: u32, now: &Now) -> Option<u32> {
        let is_page = self.mode() == Mode::XApic;
        Some(match register {
            ID if is_page => u32::from(self.page_id) << 24,
            ID => self.id,
            VERSION => VERSION_VALUE,
            TPR => self.tpr.into(),
            PPR => self.priority().into(),
            APR | REMOTE_READ | LVT_CMCI => 0,
            LDR => self.logical_id(),
            DFR => self.dfr,
            SVR => self.svr,
            ISR..TMR => self.isr.word(register - ISR),
            TMR..IRR => 0,
            IRR..ESR => self.irr.word(register - IRR),
            ESR => self.esr,
            LVT_TIMER..=LVT_LAST => *self.lvt.get((register - LVT_TIMER) as usize)?,
            TIMER_INITIAL => self.timer.initial(),
            TIMER_CURRENT => self.timer.current(self.timer_mode(), now),
            TIMER_DIVIDE => self.timer.divide(),
            _ => return None,
        })
    }

    /// Writes a register that both modes have alike.
    fn set_register(&mut self, register: u32, value: u32, now: &Now) {
        match register {
            TPR => self.tpr = value as u8,
            EOI => {
                if let Some(vector) = self.isr.highest() {
                    self.isr.clear(vector);
                }
            }
            SVR => {
                self.svr = value & SVR_BITS;
                if value & SVR_ENABLED == 0 {
                    self.lvt.iter_mut().for_each(|entry| *entry |= LVT_MASKED);
                }
                self.settle();
            }
            ESR => self.esr = core::mem::take(&mut self.errors),
            LVT_TIMER..=LVT_LAST => self.set_lvt((register - LVT_TIMER) as usize, value, now),
            TIMER_INITIAL => self.timer.load(value, self.timer_mode(), now),
            TIMER_DIVIDE => self.timer.set_divide(value, self.timer_mode(), now),
            _ => {}
        }
    }

    fn set_lvt(&mut self, place: usize, value: u32, now: &Now) {
        let (Some(entry), Some(bits)) = (self.lvt.get_mut(place), LVT_BITS.get(place)) else { return };
        let before = *entry;
        *entry = value & bits | if self.svr & SVR_ENABLED == 0 { LVT_MASKED } else { 0 };
        if place == 0 {
            self.timer.change_mode(timer_mode(before), timer_mode(value), now);
        }
    }

    fn timer_mode(&self) -> TimerMode {
        timer_mode(self.lvt[0])
    }

    /// MSR TSC_DEADLINE, in terms of the same TSC as [`Now`].
    pub fn deadline(&self) -> u64 {
        self.timer.deadline()
    }

    /// Writes MSR TSC_DEADLINE; without effect in other modes of the timer.
    pub fn set_deadline(&mut self, tsc: u64) {
        if self.mode() != Mode::Disabled && self.timer_mode() == TimerMode::Deadline {
            self.timer.set_deadline(tsc);
        }
    }

    /// TSC at which [`Self::tick`] has something to do; 0: never.
    #[inline]
    pub fn due(&self) -> u64 {
        self.timer.due()
    }

    /// Raises the timer's interrupt if its time has come.
    pub fn tick(&mut self, now: &Now) {
        if self.timer.due() == 0 || now.tsc < self.timer.due() {
            return;
        }
        self.timer.fire(self.timer_mode(), now);
        if self.lvt[0] & LVT_MASKED == 0 {
            self.raise(self.lvt[0] as u8);
        }
    }

    /// A write to the low half of the interrupt command register.
    fn command(&mut self, low: u32) -> Option<Command> {
        // Delivery status always says idle.
        self.icr.0 = low & ICR_BITS & !(1 << 12);
        match Command::decode(low, self.icr.1, self.mode()) {
            Ok(command) => Some(command),
            Err(Unsent::IllegalVector) => {
                self.raise_error(ERROR_SEND_VECTOR);
                None
            }
            Err(Unsent::Nothing) => None,
        }
    }

    /// Whether a command reaches this APIC. [`Delivery::Lowest`] goes only to the one of lowest
    /// [priority](Self::priority) among those [enabled](Self::is_enabled) that it reaches.
    pub fn is_reached(&self, command: &Command, is_sender: bool) -> bool {
        match command.shorthand {
            Shorthand::Oneself => is_sender,
            Shorthand::All => true,
            Shorthand::Others => !is_sender,
            Shorthand::None => self.is_addressed(command.destination, command.is_logical),
        }
    }

    /// Whether it is one of those that a destination names.
    fn is_addressed(&self, destination: u32, is_logical: bool) -> bool {
        if !is_logical {
            let id = if self.mode() == Mode::X2Apic { self.id } else { self.page_id.into() };
            return destination == EVERYBODY || destination == id;
        }
        let own = self.logical_id();
        if self.mode() == Mode::X2Apic {
            return own >> 16 == destination >> 16 && own & destination & 0xffff != 0;
        }
        let (own, destination) = (own >> 24, destination & 0xff);
        match self.dfr >> 28 {
            0xf => own & destination != 0,
            0 => own >> 4 == destination >> 4 && own & destination & 0xf != 0,
            _ => false,
        }
    }

    fn logical_id(&self) -> u32 {
        match self.mode() {
            Mode::X2Apic => (self.id >> 4) << 16 | 1 << (self.id & 15),
            _ => self.ldr,
        }
    }

    /// The task priority's class, which is CR8.
    pub fn task_class(&self) -> u8 {
        self.tpr >> 4
    }

    /// Writes CR8.
    pub fn set_task_class(&mut self, class: u8) {
        self.tpr = class << 4;
    }

    /// Takes what a command brings.
    pub fn receive(&mut self, delivery: Delivery) {
        if self.mode() == Mode::Disabled {
            return;
        }
        match delivery {
            Delivery::Fixed(vector) | Delivery::Lowest(vector) => self.raise(vector),
            Delivery::Nmi => self.has_nmi = true,
            Delivery::Init => (self.has_init, self.startup) = (true, None),
            Delivery::Startup(page) => self.startup = Some(page),
        }
    }

    /// Whether an NMI, an INIT or a SIPI waits to be taken.
    #[inline]
    pub fn has_command(&self) -> bool {
        self.has_nmi || self.has_init || self.startup.is_some()
    }

    /// Takes an NMI that was received.
    pub fn take_nmi(&mut self) -> bool {
        core::mem::take(&mut self.has_nmi)
    }

    /// Takes an INIT that was received: the vCPU is to be reset, with [`Self::reset`], and waits.
    pub fn take_init(&mut self) -> bool {
        core::mem::take(&mut self.has_init)
    }

    /// Takes a SIPI that was received: the page to start at, if the vCPU waits for one.
    pub fn take_startup(&mut self) -> Option<u8> {
        self.startup.take()
    }

    /// Raises an interrupt; without effect while the APIC is disabled.
    pub fn raise(&mut self, vector: u8) {
        if !self.is_enabled() {
            return;
        }
        if vector < FIRST_VECTOR {
            return self.raise_error(ERROR_RECEIVE_VECTOR);
        }
        self.irr.set(vector);
        self.has_requests = true;
    }

    /// Notes an error, and raises the error interrupt for each kind of error that is new. An error vector
    /// that is illegal itself is one more error.
    fn raise_error(&mut self, error: u32) {
        if self.errors & error != 0 {
            return;
        }
        self.errors |= error;
        let entry = self.lvt[LVT_ERROR];
        if entry & LVT_MASKED != 0 {
            return;
        }
        if (entry as u8) < FIRST_VECTOR {
            self.errors |= ERROR_RECEIVE_VECTOR;
        } else {
            self.raise(entry as u8);
        }
    }

    /// Processor priority: the higher one of task priority and interrupt in service.
    pub fn priority(&self) -> u8 {
        let in_service = self.isr.highest().unwrap_or(0);
        if in_service >> 4 > self.tpr >> 4 { in_service & 0xf0 } else { self.tpr }
    }

    /// The vector that is to be delivered next.
    #[inline]
    pub fn next(&self) -> Option<u8> {
        if !self.has_requests {
            return None;
        }
        self.irr.highest().filter(|vector| vector >> 4 > self.priority() >> 4)
    }

    /// The guest took the interrupt: it is in service until the guest says end of interrupt.
    pub fn accept(&mut self, vector: u8) {
        self.irr.clear(vector);
        self.isr.set(vector);
        self.settle();
    }

    /// Delivery was interrupted after [`Self::accept`]: the interrupt waits again.
    pub fn retract(&mut self, vector: u8) {
        self.isr.clear(vector);
        self.irr.set(vector);
        self.settle();
    }

    fn settle(&mut self) {
        self.has_requests = self.is_enabled() && !self.irr.is_empty();
    }
}

fn timer_mode(entry: u32) -> TimerMode {
    match entry >> 17 & 3 {
        0 => TimerMode::OneShot,
        1 => TimerMode::Periodic,
        2 => TimerMode::Deadline,
        _ => TimerMode::Reserved,
    }
}
