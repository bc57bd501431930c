//! The local APIC as a PVH guest uses it: x2APIC from reset, interrupts only from itself, no timer.
//!
//! Interrupts of devices come as event channel upcalls and never pass through here; what does is the
//! self-IPI that Linux uses for irq_work. Sources: AMD64 APM vol. 2, chapter 16; Intel SDM vol. 3, 10.12.

/// First and last MSR of the x2APIC range.
pub const MSR_FIRST: u32 = 0x800;
/// See [`MSR_FIRST`].
pub const MSR_LAST: u32 = 0x8ff;

const ID: u32 = 0x802;
const VERSION: u32 = 0x803;
const TPR: u32 = 0x808;
const PPR: u32 = 0x80a;
const EOI: u32 = 0x80b;
const LDR: u32 = 0x80d;
const SVR: u32 = 0x80f;
const ISR: u32 = 0x810;
const TMR: u32 = 0x818;
const IRR: u32 = 0x820;
const ESR: u32 = 0x828;
const ICR: u32 = 0x830;
const LVT_FIRST: u32 = 0x832;
const LVT_LAST: u32 = 0x837;
const TIMER_INITIAL: u32 = 0x838;
const TIMER_CURRENT: u32 = 0x839;
const TIMER_DIVIDE: u32 = 0x83e;
const SELF_IPI: u32 = 0x83f;

const LVTS: usize = (LVT_LAST - LVT_FIRST + 1) as usize;
/// Version 0x14 with five local vectors besides the timer.
const VERSION_VALUE: u64 = 0x0005_0014;
const LVT_MASKED: u64 = 1 << 16;
const LVT_WRITABLE: u64 = 0x7_f7ff;
/// Vectors below are reserved for exceptions.
const FIRST_VECTOR: u8 = 16;

/// The access is not allowed: #GP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused;

/// A set of 256 vectors.
#[derive(Debug, Clone, Copy, Default)]
struct Vectors([u32; 8]);

impl Vectors {
    fn set(&mut self, vector: u8) {
        self.0[usize::from(vector >> 5)] |= 1 << (vector & 31);
    }

    fn clear(&mut self, vector: u8) {
        self.0[usize::from(vector >> 5)] &= !(1 << (vector & 31));
    }

    fn highest(&self) -> Option<u8> {
        let (index, word) = self.0.iter().enumerate().rev().find(|(_, word)| **word != 0)?;
        Some((index as u32 * 32 + 31 - word.leading_zeros()) as u8)
    }
}

/// One vCPU's local APIC.
#[derive(Debug)]
pub struct Apic {
    id: u32,
    tpr: u8,
    svr: u64,
    lvt: [u64; LVTS],
    irr: Vectors,
    isr: Vectors,
    /// Whether any vector waits: the common answer is no.
    has_requests: bool,
}

impl Apic {
    /// The APIC of a vCPU after reset.
    pub fn new(id: u32) -> Self {
        Self {
            id,
            tpr: 0,
            svr: 0xff,
            lvt: [LVT_MASKED; LVTS],
            irr: Vectors::default(),
            isr: Vectors::default(),
            has_requests: false,
        }
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Reads a register.
    ///
    /// # Errors
    /// [`Refused`]: there is none, or it cannot be read.
    pub fn read(&self, msr: u32) -> Result<u64, Refused> {
        let bank = |vectors: &Vectors, first: u32| {
            vectors.0.get((msr - first) as usize).map(|&word| u64::from(word)).ok_or(Refused)
        };
        match msr {
            ID => Ok(u64::from(self.id)),
            VERSION => Ok(VERSION_VALUE),
            TPR => Ok(u64::from(self.tpr)),
            PPR => Ok(u64::from(self.priority())),
            LDR => Ok(u64::from((self.id >> 4) << 16 | 1 << (self.id & 15))),
            SVR => Ok(self.svr),
            ISR..TMR => bank(&self.isr, ISR),
            TMR..IRR => Ok(0),
            IRR..ESR => bank(&self.irr, IRR),
            ESR | ICR | TIMER_INITIAL | TIMER_CURRENT | TIMER_DIVIDE => Ok(0),
            LVT_FIRST..=LVT_LAST => self.lvt.get((msr - LVT_FIRST) as usize).copied().ok_or(Refused),
            _ => Err(Refused),
        }
    }

    /// Writes a register.
    ///
    /// # Errors
    /// [`Refused`]: there is none, it cannot be written, or not with that value.
    pub fn write(&mut self, msr: u32, value: u64) -> Result<(), Refused> {
        match msr {
            TPR if value <= 0xff => self.tpr = value as u8,
            EOI if value == 0 => {
                if let Some(vector) = self.isr.highest() {
                    self.isr.clear(vector);
                }
            }
            SVR if value <= 0xffff_ffff => self.svr = value & 0x3ff,
            ESR if value == 0 => {}
            ICR => self.command(value),
            LVT_FIRST..=LVT_LAST if value <= 0xffff_ffff => {
                if let Some(lvt) = self.lvt.get_mut((msr - LVT_FIRST) as usize) {
                    *lvt = value & LVT_WRITABLE;
                }
            }
            TIMER_INITIAL | TIMER_DIVIDE if value <= 0xffff_ffff => {}
            SELF_IPI if value <= 0xff => self.request(value as u8),
            _ => return Err(Refused),
        }
        Ok(())
    }

    /// An interrupt command: only one that reaches this vCPU with a fixed vector has an effect. There is
    /// no other vCPU to start yet.
    fn command(&mut self, value: u64) {
        let (mode, shorthand, target) = (value >> 8 & 7, value >> 18 & 3, (value >> 32) as u32);
        let is_logical = value >> 11 & 1 != 0;
        let reaches_self = match shorthand {
            0 if is_logical => target & 1 << (self.id & 15) != 0 && target >> 16 == self.id >> 4,
            0 => target == self.id || target == u32::MAX,
            1 | 2 => true,
            _ => false,
        };
        if reaches_self && mode <= 1 {
            self.request(value as u8);
        }
    }

    fn request(&mut self, vector: u8) {
        if vector >= FIRST_VECTOR {
            self.irr.set(vector);
            self.has_requests = true;
        }
    }

    /// Processor priority: the higher one of task priority and interrupt in service.
    fn priority(&self) -> u8 {
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
        self.has_requests = self.irr.highest().is_some();
    }

    /// Delivery was interrupted after [`Self::accept`]: the interrupt waits again.
    pub fn retract(&mut self, vector: u8) {
        self.isr.clear(vector);
        self.request(vector);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_self_ipi_is_delivered_once_and_ended_by_eoi() {
        let mut apic = Apic::new(0);
        assert_eq!(apic.next(), None);
        apic.write(SELF_IPI, 0xf6).unwrap();
        assert_eq!(apic.next(), Some(0xf6));
        assert_eq!(apic.read(IRR + 7), Ok(1 << 22));
        apic.accept(0xf6);
        assert_eq!((apic.next(), apic.read(ISR + 7)), (None, Ok(1 << 22)));
        apic.write(ICR, 0x4_00f7).unwrap();
        assert_eq!(apic.next(), None, "same priority class as the one in service");
        apic.write(EOI, 0).unwrap();
        assert_eq!(apic.next(), Some(0xf7));
        apic.write(TPR, 0xf0).unwrap();
        assert_eq!(apic.next(), None);
    }

    #[test]
    fn commands_to_others_and_wild_accesses_have_no_effect() {
        let mut apic = Apic::new(2);
        apic.write(ICR, 4 << 32 | 0xf6).unwrap();
        apic.write(ICR, 3 << 18 | 0xf6).unwrap();
        apic.write(ICR, 1 << 18 | 5 << 8).unwrap();
        apic.write(ICR, 1 << 18 | 3).unwrap();
        assert_eq!(apic.next(), None);
        apic.write(ICR, 2 << 32 | 0xf6).unwrap();
        assert_eq!(apic.next(), Some(0xf6));
        for msr in MSR_FIRST..=MSR_LAST {
            let _ = (apic.read(msr), apic.write(msr, u64::MAX));
        }
        assert_eq!(apic.read(0x801), Err(Refused));
        assert_eq!(apic.write(ID, 0), Err(Refused));
        assert_eq!(apic.read(ID), Ok(2));
        assert_eq!(apic.read(LDR), Ok(4));
    }
}
