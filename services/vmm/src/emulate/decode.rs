//! Instruction bytes to an operation with its operands, for instructions that access memory.
//!
//! Only what a kernel does to a device's registers or to memory is decoded, in 16, 32 and 64-bit code, and
//! only forms with a memory operand (the stack counts). Everything else is [`Undecoded::Unknown`]. Whatever
//! the bytes are, this ends with an answer and never reads beyond them.
//! Source: AMD64 APM vol. 3 (24594), chapter 1 and appendix A.

use proto::abi::{gpr, seg};

use super::instruction::{
    Address, Arith, BitOp, CodeSize, Instruction, Op, Operand, Repeat, Scan, Shift, StringOp,
};

/// An instruction is at most this long.
pub const INSTRUCTION_MAX: usize = 15;

/// Why there is no instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undecoded {
    /// It goes on behind the bytes.
    Truncated,
    /// None of those that can be performed here.
    Unknown,
}

/// Decodes the instruction that `bytes` begin with.
///
/// # Errors
/// [`Undecoded`].
pub fn decode(bytes: &[u8], size: CodeSize) -> Result<Instruction, Undecoded> {
    let bytes = bytes.get(..INSTRUCTION_MAX).unwrap_or(bytes);
    let mut decoder = Decoder { bytes, at: 0, size, prefixes: Prefixes::default() };
    let opcode = decoder.prefixes()?;
    let decoded = if opcode == 0x0f { decoder.two_bytes()? } else { decoder.one_byte(opcode)? };
    let (op, to, from, width) = decoded;
    Ok(Instruction {
        op,
        to,
        from,
        width,
        address_width: decoder.address_width(),
        segment: decoder.prefixes.segment.unwrap_or(seg::DS),
        repeat: decoder.prefixes.repeat,
        len: decoder.at as u8,
    })
}

#[derive(Debug, Clone, Copy)]
struct Prefixes {
    has_operand: bool,
    has_address: bool,
    segment: Option<usize>,
    repeat: Repeat,
    rex: u8,
}

impl Default for Prefixes {
    fn default() -> Self {
        Self { has_operand: false, has_address: false, segment: None, repeat: Repeat::No, rex: 0 }
    }
}

/// REX bits.
const REX: u8 = 0x40;
const REX_W: u8 = 8;
const REX_R: u8 = 4;
const REX_X: u8 = 2;
const REX_B: u8 = 1;

struct Decoder<'a> {
    bytes: &'a [u8],
    at: usize,
    size: CodeSize,
    prefixes: Prefixes,
}

/// ModRM: the register field (with REX.R, and without), and the operand that has to be memory.
struct ModRm {
    register: u8,
    extension: u8,
    memory: Operand,
}

type Decoded = Result<(Op, Operand, Operand, u8), Undecoded>;

impl Decoder<'_> {
    fn byte(&mut self) -> Result<u8, Undecoded> {
        let byte = self.bytes.get(self.at).copied().ok_or(Undecoded::Truncated)?;
        self.at += 1;
        Ok(byte)
    }

    /// A constant of `len` bytes, sign-extended.
    fn constant(&mut self, len: u8) -> Result<u64, Undecoded> {
        let mut value = 0;
        for n in 0..len {
            value |= u64::from(self.byte()?) << (8 * n);
        }
        let unused = 64 - 8 * u32::from(len.clamp(1, 8));
        Ok(((value << unused) as i64 >> unused) as u64)
    }

    /// Takes prefixes; the first byte of the opcode.
    fn prefixes(&mut self) -> Result<u8, Undecoded> {
        loop {
            let byte = self.byte()?;
            match byte {
                // Without effect, not even on another one.
                0x26 | 0x2e | 0x36 | 0x3e if self.size == CodeSize::Bits64 => {}
                0x26 => self.prefixes.segment = Some(seg::ES),
                0x2e => self.prefixes.segment = Some(seg::CS),
                0x36 => self.prefixes.segment = Some(seg::SS),
                0x3e => self.prefixes.segment = Some(seg::DS),
                0x64 => self.prefixes.segment = Some(seg::FS),
                0x65 => self.prefixes.segment = Some(seg::GS),
                0x66 => self.prefixes.has_operand = true,
                0x67 => self.prefixes.has_address = true,
                // LOCK: the vCPUs of a guest take turns, so that every access here is atomic.
                0xf0 => {}
                0xf2 => self.prefixes.repeat = Repeat::NotEqual,
                0xf3 => self.prefixes.repeat = Repeat::Equal,
                0x40..=0x4f if self.size == CodeSize::Bits64 => {
                    // It counts only right in front of the opcode.
                    self.prefixes.rex = byte;
                    let next = self.bytes.get(self.at).copied().ok_or(Undecoded::Truncated)?;
                    if is_prefix(next) || next & 0xf0 == REX {
                        self.prefixes.rex = 0;
                    }
                }
                _ => return Ok(byte),
            }
        }
    }

    fn has_rex(&self, bit: u8) -> bool {
        self.prefixes.rex & bit != 0
    }

    /// Bytes of operands that are not bytes.
    fn width(&self) -> u8 {
        match (self.size, self.prefixes.has_operand) {
            (CodeSize::Bits64, _) if self.has_rex(REX_W) => 8,
            (CodeSize::Bits16, false) | (CodeSize::Bits32 | CodeSize::Bits64, true) => 2,
            _ => 4,
        }
    }

    /// Bytes of what goes onto the stack.
    fn stack_width(&self) -> u8 {
        match self.width() {
            4 if self.size == CodeSize::Bits64 => 8,
            width => width,
        }
    }

    /// Bytes of the target of a near branch. Manufacturers differ on those of 16 bits in 64-bit code.
    fn branch_width(&self) -> Result<u8, Undecoded> {
        match (self.size, self.prefixes.has_operand) {
            (CodeSize::Bits64, true) => Err(Undecoded::Unknown),
            (CodeSize::Bits64, false) => Ok(8),
            _ => Ok(self.width()),
        }
    }

    fn address_width(&self) -> u8 {
        match (self.size, self.prefixes.has_address) {
            (CodeSize::Bits64, false) => 8,
            (CodeSize::Bits16, false) | (CodeSize::Bits32, true) => 2,
            _ => 4,
        }
    }

    /// A general register of `width` bytes.
    fn general(&self, number: u8, width: u8) -> Operand {
        if width == 1 && self.prefixes.rex == 0 && (4..8).contains(&number) {
            Operand::HighByte(number - 4)
        } else {
            Operand::Register(number)
        }
    }

    fn modrm(&mut self) -> Result<ModRm, Undecoded> {
        let byte = self.byte()?;
        let (mode, extension, rm) = (byte >> 6, byte >> 3 & 7, byte & 7);
        let register = extension | if self.has_rex(REX_R) { 8 } else { 0 };
        if mode == 3 {
            return Err(Undecoded::Unknown);
        }
        let address =
            if self.address_width() == 2 { self.address_16(mode, rm)? } else { self.address(mode, rm)? };
        Ok(ModRm { register, extension, memory: Operand::Memory(address) })
    }

    fn address_16(&mut self, mode: u8, rm: u8) -> Result<Address, Undecoded> {
        let (bx, bp, si, di) = (gpr::RBX as u8, gpr::RBP as u8, gpr::RSI as u8, gpr::RDI as u8);
        let (base, index) = match rm {
            0 => (Some(bx), Some((si, 0))),
            1 => (Some(bx), Some((di, 0))),
            2 => (Some(bp), Some((si, 0))),
            3 => (Some(bp), Some((di, 0))),
            4 => (Some(si), None),
            5 => (Some(di), None),
            6 if mode == 0 => (None, None),
            6 => (Some(bp), None),
            _ => (Some(bx), None),
        };
        let displacement = match mode {
            0 if rm == 6 => self.constant(2)?,
            0 => 0,
            1 => self.constant(1)?,
            _ => self.constant(2)?,
        };
        Ok(self.address_of(base, index, displacement, false))
    }

    fn address(&mut self, mode: u8, rm: u8) -> Result<Address, Undecoded> {
        let extended = |number: u8, has_bit: bool| number | if has_bit { 8 } else { 0 };
        let mut base = Some(extended(rm, self.has_rex(REX_B)));
        let mut index = None;
        let mut is_relative = false;
        let mut has_displacement = false;
        if rm == 4 {
            let sib = self.byte()?;
            let number = extended(sib >> 3 & 7, self.has_rex(REX_X));
            index = (number != gpr::RSP as u8).then_some((number, sib >> 6));
            base = Some(extended(sib & 7, self.has_rex(REX_B)));
            if sib & 7 == 5 && mode == 0 {
                (base, has_displacement) = (None, true);
            }
        } else if rm == 5 && mode == 0 {
            is_relative = self.size == CodeSize::Bits64;
            (base, has_displacement) = (None, true);
        }
        let displacement = match mode {
            0 if !has_displacement => 0,
            1 => self.constant(1)?,
            _ => self.constant(4)?,
        };
        Ok(self.address_of(base, index, displacement, is_relative))
    }

    fn address_of(
        &self,
        base: Option<u8>,
        index: Option<(u8, u8)>,
        displacement: u64,
        is_relative: bool,
    ) -> Address {
        let is_stack = base.is_some_and(|base| matches!(base.into(), gpr::RSP | gpr::RBP));
        let usual = if is_stack { seg::SS } else { seg::DS };
        let segment = self.prefixes.segment.unwrap_or(usual);
        Address { base, index, displacement, is_relative, segment }
    }

    fn one_byte(&mut self, opcode: u8) -> Decoded {
        // Bit 0 of most opcodes says whether operands are bytes.
        let width = if opcode & 1 == 0 { 1 } else { self.width() };
        let accumulator = Operand::Register(gpr::RAX as u8);
        Ok(match opcode {
            0x00..=0x3f if opcode & 7 < 4 => {
                let op = Op::Arith(arith(opcode >> 3));
                let modrm = self.modrm()?;
                let register = self.general(modrm.register, width);
                if opcode & 2 == 0 {
                    (op, modrm.memory, register, width)
                } else {
                    (op, register, modrm.memory, width)
                }
            }
            0x50..=0x5f => {
                let number = opcode & 7 | if self.has_rex(REX_B) { 8 } else { 0 };
                let op = if opcode < 0x58 { Op::Push } else { Op::Pop };
                (op, Operand::Register(number), Operand::None, self.stack_width())
            }
            0x63 if self.size == CodeSize::Bits64 => {
                let modrm = self.modrm()?;
                let from = self.width().min(4);
                let op = Op::Extend { from, is_signed: true };
                (op, Operand::Register(modrm.register), modrm.memory, self.width())
            }
            0x68 | 0x6a => {
                let len = if opcode == 0x6a { 1 } else { self.width().min(4) };
                (Op::Push, Operand::Constant(self.constant(len)?), Operand::None, self.stack_width())
            }
            0x69 | 0x6b => {
                let modrm = self.modrm()?;
                let width = self.width();
                let by = self.constant(if opcode == 0x6b { 1 } else { width.min(4) })?;
                (Op::MultiplyInto(Some(by)), Operand::Register(modrm.register), modrm.memory, width)
            }
            0x80 | 0x81 | 0x83 => {
                let modrm = self.modrm()?;
                let len = if opcode == 0x81 { width.min(4) } else { 1 };
                let by = Operand::Constant(self.constant(len)?);
                (Op::Arith(arith(modrm.extension)), modrm.memory, by, width)
            }
            0x84..=0x8b => {
                let modrm = self.modrm()?;
                let register = self.general(modrm.register, width);
                match opcode {
                    0x84 | 0x85 => (Op::Test, modrm.memory, register, width),
                    0x86 | 0x87 => (Op::Exchange, modrm.memory, register, width),
                    0x88 | 0x89 => (Op::Mov, modrm.memory, register, width),
                    _ => (Op::Mov, register, modrm.memory, width),
                }
            }
            0x8f => {
                let modrm = self.modrm()?;
                let op = if modrm.extension == 0 { Op::Pop } else { return Err(Undecoded::Unknown) };
                (op, modrm.memory, Operand::None, self.stack_width())
            }
            0xa0..=0xa3 => {
                let displacement = self.offset()?;
                let memory = Operand::Memory(self.address_of(None, None, displacement, false));
                if opcode < 0xa2 {
                    (Op::Mov, accumulator, memory, width)
                } else {
                    (Op::Mov, memory, accumulator, width)
                }
            }
            0xa4..=0xa7 | 0xaa..=0xaf => {
                let op = match opcode & 0xfe {
                    0xa4 => StringOp::Movs,
                    0xa6 => StringOp::Cmps,
                    0xaa => StringOp::Stos,
                    0xac => StringOp::Lods,
                    _ => StringOp::Scas,
                };
                (Op::String(op), Operand::None, Operand::None, width)
            }
            0xc0 | 0xc1 | 0xd0..=0xd3 => {
                let modrm = self.modrm()?;
                let count = match opcode {
                    0xc0 | 0xc1 => Operand::Constant(self.constant(1)?),
                    0xd0 | 0xd1 => Operand::Constant(1),
                    _ => Operand::Register(gpr::RCX as u8),
                };
                (Op::Shift(shift(modrm.extension)), modrm.memory, count, width)
            }
            0xc2 | 0xc3 => {
                let dropped = if opcode == 0xc2 { self.constant(2)? as u16 } else { 0 };
                (Op::Return(dropped), Operand::None, Operand::None, self.branch_width()?)
            }
            0xc6 | 0xc7 => {
                let modrm = self.modrm()?;
                if modrm.extension != 0 {
                    return Err(Undecoded::Unknown);
                }
                (Op::Mov, modrm.memory, Operand::Constant(self.constant(width.min(4))?), width)
            }
            0xe8 => {
                let width = self.branch_width()?;
                let target = Operand::Constant(self.constant(width.min(4))?);
                (Op::CallRelative, target, Operand::None, width)
            }
            0xf6 | 0xf7 => {
                let modrm = self.modrm()?;
                let op = match modrm.extension {
                    0 | 1 => {
                        let mask = Operand::Constant(self.constant(width.min(4))?);
                        return Ok((Op::Test, modrm.memory, mask, width));
                    }
                    2 => Op::Not,
                    3 => Op::Neg,
                    4 | 5 => Op::Multiply { is_signed: modrm.extension == 5 },
                    _ => Op::Divide { is_signed: modrm.extension == 7 },
                };
                (op, modrm.memory, Operand::None, width)
            }
            0xfe | 0xff => {
                let modrm = self.modrm()?;
                let (op, width) = match (opcode, modrm.extension) {
                    (_, 0) => (Op::Inc, width),
                    (_, 1) => (Op::Dec, width),
                    (0xff, 2) => (Op::Call, self.branch_width()?),
                    (0xff, 4) => (Op::Jump, self.branch_width()?),
                    (0xff, 6) => (Op::Push, self.stack_width()),
                    _ => return Err(Undecoded::Unknown),
                };
                (op, modrm.memory, Operand::None, width)
            }
            _ => return Err(Undecoded::Unknown),
        })
    }

    /// The address in an instruction without ModRM.
    fn offset(&mut self) -> Result<u64, Undecoded> {
        let len = self.address_width();
        let value = self.constant(len)?;
        Ok(if len == 8 { value } else { value & ((1 << (8 * len)) - 1) })
    }

    fn two_bytes(&mut self) -> Decoded {
        let opcode = self.byte()?;
        if opcode == 0x38 {
            return self.three_bytes();
        }
        let is_known = matches!(opcode,
            0x0d | 0x11 | 0x13 | 0x17..=0x1f | 0x29 | 0x2b | 0x40..=0x4f | 0x7e | 0x7f | 0x90..=0x9f
            | 0xa3..=0xa5 | 0xab..=0xaf | 0xb0 | 0xb1 | 0xb3 | 0xb6..=0xb8 | 0xba..=0xbf
            | 0xc0 | 0xc1 | 0xc3 | 0xc7 | 0xd6 | 0xe7);
        if !is_known {
            return Err(Undecoded::Unknown);
        }
        let width = self.width();
        let bytes_or_width = if opcode & 1 == 0 { 1 } else { width };
        let modrm = self.modrm()?;
        let (memory, wide) = (modrm.memory, Operand::Register(modrm.register));
        let register = self.general(modrm.register, bytes_or_width);
        Ok(match opcode {
            0x0d | 0x18..=0x1f => (Op::Nothing, memory, Operand::None, width),
            0x40..=0x4f => (Op::MoveIf(opcode & 15), wide, memory, width),
            0x90..=0x9f => (Op::Set(opcode & 15), memory, Operand::None, 1),
            0xa3 | 0xab | 0xb3 | 0xbb => (Op::Bit(bit_op(opcode >> 3)), memory, wide, width),
            0xba if modrm.extension >= 4 => {
                let bit = self.constant(1)? & (u64::from(width) * 8 - 1);
                (Op::Bit(bit_op(modrm.extension)), memory, Operand::Constant(bit), width)
            }
            0xa4 | 0xac => {
                let count = Some(self.constant(1)? as u8);
                (Op::ShiftDouble { is_left: opcode == 0xa4, count }, memory, wide, width)
            }
            0xa5 | 0xad => (Op::ShiftDouble { is_left: opcode == 0xa5, count: None }, memory, wide, width),
            // CLFLUSH, CLFLUSHOPT, CLWB.
            0xae if self.prefixes.repeat == Repeat::No
                && (modrm.extension == 7 || modrm.extension == 6 && self.prefixes.has_operand) =>
            {
                (Op::Nothing, memory, Operand::None, width)
            }
            0xaf => (Op::MultiplyInto(None), wide, memory, width),
            0xb0 | 0xb1 => (Op::CompareExchange, memory, register, bytes_or_width),
            0xb6 | 0xb7 | 0xbe | 0xbf => {
                let op = Op::Extend { from: if opcode & 1 == 0 { 1 } else { 2 }, is_signed: opcode >= 0xbe };
                (op, wide, memory, width)
            }
            0xb8 if self.prefixes.repeat == Repeat::Equal => (Op::Scan(Scan::Popcnt), wide, memory, width),
            0xbc | 0xbd => {
                let op = match (opcode, self.prefixes.repeat == Repeat::Equal) {
                    (0xbc, false) => Scan::Bsf,
                    (0xbc, true) => Scan::Tzcnt,
                    (_, false) => Scan::Bsr,
                    (_, true) => Scan::Lzcnt,
                };
                (Op::Scan(op), wide, memory, width)
            }
            0xc0 | 0xc1 => (Op::ExchangeAdd, memory, register, bytes_or_width),
            0xc3 if self.prefixes.repeat == Repeat::No && !self.prefixes.has_operand => {
                (Op::Mov, memory, wide, if width == 8 { 8 } else { 4 })
            }
            0xc7 if modrm.extension == 1 => {
                (Op::CompareExchangePair, memory, Operand::None, if width == 8 { 8 } else { 4 })
            }
            _ => match self.vector_store(opcode) {
                Some(bytes) => (Op::StoreVector(bytes), memory, Operand::None, width),
                None => return Err(Undecoded::Unknown),
            },
        })
    }

    /// How many bytes of a vector register an opcode stores.
    fn vector_store(&self, opcode: u8) -> Option<u8> {
        let long = if self.has_rex(REX_W) { 8 } else { 4 };
        match (opcode, self.prefixes.repeat, self.prefixes.has_operand) {
            (0x11, Repeat::Equal, _) => Some(4),
            (0x11, Repeat::NotEqual, _) => Some(8),
            (0x13 | 0x17, Repeat::No, _) | (0xd6, Repeat::No, true) => Some(8),
            (0x11 | 0x29 | 0x2b, Repeat::No, _) => Some(16),
            (0x7e, Repeat::No, _) => Some(long),
            (0x7f | 0xe7, Repeat::No, false) => Some(8),
            (0x7f | 0xe7, Repeat::No, true) | (0x7f, Repeat::Equal, _) => Some(16),
            _ => None,
        }
    }

    fn three_bytes(&mut self) -> Decoded {
        let opcode = self.byte()?;
        if !matches!(opcode, 0xf0 | 0xf1) || self.prefixes.repeat != Repeat::No {
            return Err(Undecoded::Unknown);
        }
        let width = self.width();
        let modrm = self.modrm()?;
        let register = Operand::Register(modrm.register);
        let (to, from) = if opcode == 0xf0 { (register, modrm.memory) } else { (modrm.memory, register) };
        Ok((Op::MovSwapped, to, from, width))
    }
}

fn is_prefix(byte: u8) -> bool {
    matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3)
}

fn arith(number: u8) -> Arith {
    use Arith::*;
    [Add, Or, Adc, Sbb, And, Sub, Xor, Cmp][usize::from(number & 7)]
}

fn shift(number: u8) -> Shift {
    use Shift::*;
    // 6 is an undocumented other name of 4.
    [Rol, Ror, Rcl, Rcr, Shl, Shr, Shl, Sar][usize::from(number & 7)]
}

fn bit_op(number: u8) -> BitOp {
    use BitOp::*;
    [Test, Set, Reset, Complement][usize::from(number & 3)]
}
