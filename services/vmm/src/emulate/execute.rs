//! Performs a decoded instruction on a vCPU's registers and what it reaches.
//!
//! Invariant: an instruction either has all its effects or, where it stops with a fault, none; a string
//! instruction has those of whole steps, and can be begun again.

use proto::abi::{VcpuState, gpr, seg};

use super::alu::{self, DivideError, mask};
use super::bus::{ACCESS_MAX, Bus};
use super::instruction::{Address, CodeSize, Instruction, Op, Operand, Repeat, StringOp};
use crate::walk::{Access, Fault};

/// Steps of a repeated string instruction at one go; then other things have their turn.
const STEPS_MAX: u32 = 256;
const RFLAGS_DF: u64 = 1 << 10;
/// SS attribute B: the stack pointer has 32 bits.
const STACK_32: u16 = 1 << 10;

/// How it went on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// It is done; the next one is at this address in the code segment.
    Next(u64),
    /// A string instruction is not at its end: it is to be executed again.
    Again,
}

/// Why an instruction was not performed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// #PF.
    Fault(Fault),
    /// #GP(0), or #SS(0) where the stack's segment is used.
    Protection {
        /// #SS.
        is_stack: bool,
    },
    /// #DE.
    Divide,
    /// Nobody performs this here.
    Unsupported,
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<DivideError> for Stop {
    fn from(_: DivideError) -> Self {
        Self::Divide
    }
}

/// An instruction and what it works on.
pub struct Execution<'a, 'b> {
    pub state: &'a mut VcpuState,
    pub bus: &'a mut Bus<'b>,
    pub size: CodeSize,
    pub instruction: Instruction,
}

impl Execution<'_, '_> {
    /// Performs the instruction.
    ///
    /// # Errors
    /// [`Stop`].
    pub fn run(&mut self) -> Result<Progress, Stop> {
        let Instruction { op, to, from, width, .. } = self.instruction;
        let next = self.next();
        let flags = self.state.rflags;
        let rax = gpr::RAX as u8;
        match op {
            Op::Mov => {
                let value = self.load(from, width)?;
                self.store(to, width, value)?;
            }
            Op::MovSwapped => {
                let value = self.load(from, width)?.swap_bytes() >> (64 - 8 * u32::from(width.clamp(1, 8)));
                self.store(to, width, value)?;
            }
            Op::Extend { from: narrow, is_signed } => {
                let value = self.load(from, narrow)?;
                let value = if is_signed { alu::extend(value, narrow) } else { value & mask(narrow) };
                self.store(to, width, value)?;
            }
            Op::Arith(op) => {
                let is_kept = op != super::instruction::Arith::Cmp;
                let a = if is_kept { self.load_locked(to, width)? } else { self.load(to, width)? };
                let b = self.load(from, width)?;
                let (result, flags) = alu::arith(op, a, b, width, flags);
                if is_kept {
                    self.store(to, width, result)?;
                }
                self.state.rflags = flags;
            }
            Op::Test => {
                let (a, b) = (self.load(to, width)?, self.load(from, width)?);
                self.state.rflags = alu::test(a, b, width, flags);
            }
            Op::Not => self.change(to, |value, flags| (!value, flags))?,
            Op::Neg => self.change(to, |value, flags| {
                alu::arith(super::instruction::Arith::Sub, 0, value, width, flags)
            })?,
            Op::Inc => self.change(to, |value, flags| alu::increment(value, width, flags))?,
            Op::Dec => self.change(to, |value, flags| alu::decrement(value, width, flags))?,
            Op::Shift(op) => {
                let count = self.load(from, 1)?;
                self.change(to, |value, flags| alu::shift(op, value, count, width, flags))?;
            }
            Op::ShiftDouble { is_left, count } => {
                let count = count.map_or(self.register(gpr::RCX as u8), u64::from);
                let filler = self.load(from, width)?;
                self.change(to, |value, flags| {
                    alu::shift_double(is_left, value, filler, count, width, flags)
                })?;
            }
            Op::Bit(op) => self.bit(op)?,
            Op::Scan(op) => {
                let (result, flags) = alu::scan(op, self.load(from, width)?, width, flags);
                if let Some(result) = result {
                    self.store(to, width, result)?;
                }
                self.state.rflags = flags;
            }
            Op::Multiply { is_signed } => {
                let by = self.load(to, width)?;
                let a = self.register(rax);
                let (low, high, flags) = alu::multiply(is_signed, a, by, width, flags);
                self.set_pair(low, high);
                self.state.rflags = flags;
            }
            Op::Divide { is_signed } => {
                let by = self.load(to, width)?;
                let low = self.register(rax);
                let high = if width == 1 { low >> 8 } else { self.register(gpr::RDX as u8) };
                let (quotient, remainder) = alu::divide(is_signed, high, low, by, width)?;
                self.set_pair(quotient, remainder);
            }
            Op::MultiplyInto(by) => {
                let a = self.load(from, width)?;
                let by = match by {
                    Some(by) => by,
                    None => self.load(to, width)?,
                };
                let (low, _, flags) = alu::multiply(true, a, by, width, flags);
                self.store(to, width, low)?;
                self.state.rflags = flags;
            }
            Op::Exchange => {
                let (memory, register) = (self.load_locked(to, width)?, self.load(from, width)?);
                self.store(to, width, register)?;
                self.store(from, width, memory)?;
            }
            Op::ExchangeAdd => {
                let (memory, register) = (self.load_locked(to, width)?, self.load(from, width)?);
                let (sum, flags) = alu::arith(super::instruction::Arith::Add, memory, register, width, flags);
                self.store(to, width, sum)?;
                self.store(from, width, memory)?;
                self.state.rflags = flags;
            }
            Op::CompareExchange => {
                let memory = self.load_locked(to, width)?;
                let accumulator = self.register(rax);
                let (_, flags) =
                    alu::arith(super::instruction::Arith::Cmp, accumulator, memory, width, flags);
                let is_equal = flags & alu::ZF != 0;
                let value = if is_equal { self.load(from, width)? } else { memory };
                self.store(to, width, value)?;
                if !is_equal {
                    self.set_register(rax, width, memory);
                }
                self.state.rflags = flags;
            }
            Op::CompareExchangePair => self.compare_exchange_pair()?,
            Op::Push => {
                let value = self.load(to, width)?;
                self.push(width, value)?;
            }
            Op::Pop => self.pop_into(to)?,
            Op::Call | Op::CallRelative => {
                let target = match op {
                    Op::Call => self.load(to, width)?,
                    _ => next.wrapping_add(self.load(to, 8)?) & mask(width),
                };
                self.check_target(target)?;
                self.push(width, next)?;
                return Ok(Progress::Next(target));
            }
            Op::Jump => {
                let target = self.load(to, width)?;
                self.check_target(target)?;
                return Ok(Progress::Next(target));
            }
            Op::Return(dropped) => {
                let target = self.bus.read(self.stack(0), width)?;
                self.check_target(target)?;
                self.move_stack(u64::from(width) + u64::from(dropped));
                return Ok(Progress::Next(target));
            }
            Op::Set(number) => self.store(to, 1, u64::from(alu::condition(number, flags)))?,
            Op::MoveIf(number) => {
                let value = self.load(from, width)?;
                // 32 bits are extended even where nothing is moved.
                let value = if alu::condition(number, flags) { value } else { self.load(to, width)? };
                self.store(to, width, value)?;
            }
            Op::String(op) => return self.string(op),
            Op::Nothing => {}
            Op::StoreVector(bytes) => {
                // The registers are out of reach, but nobody looks at what is stored where nothing is.
                let Operand::Memory(address) = to else { return Err(Stop::Unsupported) };
                let linear = self.linear(address, usize::from(bytes))?;
                if !self.bus.is_outside(linear, usize::from(bytes).min(ACCESS_MAX), Access::Write)? {
                    return Err(Stop::Unsupported);
                }
            }
        }
        Ok(Progress::Next(next))
    }

    /// Where the next instruction is.
    fn next(&self) -> u64 {
        let next = self.state.rip.wrapping_add(u64::from(self.instruction.len));
        match self.size {
            CodeSize::Bits64 => next,
            // Code that grows beyond the segment is not wrapped to 16 bits by the processor.
            CodeSize::Bits16 | CodeSize::Bits32 => next & 0xffff_ffff,
        }
    }

    fn register(&self, number: u8) -> u64 {
        self.state.gprs[usize::from(number & 15)]
    }

    fn set_register(&mut self, number: u8, width: u8, value: u64) {
        let register = &mut self.state.gprs[usize::from(number & 15)];
        *register = match width {
            1 | 2 => *register & !mask(width) | value & mask(width),
            _ => value & mask(width),
        };
    }

    /// The accumulator and its extension: AX, DX:AX, EDX:EAX, RDX:RAX.
    fn set_pair(&mut self, low: u64, high: u64) {
        let width = self.instruction.width;
        if width == 1 {
            return self.set_register(gpr::RAX as u8, 2, low & 0xff | high << 8);
        }
        self.set_register(gpr::RAX as u8, width, low);
        self.set_register(gpr::RDX as u8, width, high);
    }

    fn base(&self, segment: usize) -> u64 {
        if self.size == CodeSize::Bits64 && !matches!(segment, seg::FS | seg::GS) {
            return 0;
        }
        self.state.segments.get(segment).map_or(0, |segment| segment.base)
    }

    /// The linear address of `offset` in a segment, for an access to `len` bytes.
    fn in_segment(&self, segment: usize, offset: u64, len: usize) -> Result<u64, Stop> {
        let linear = self.base(segment).wrapping_add(offset);
        if self.size != CodeSize::Bits64 {
            return Ok(linear & 0xffff_ffff);
        }
        let last = linear.wrapping_add(len.saturating_sub(1) as u64);
        if is_canonical(linear) && is_canonical(last) {
            Ok(linear)
        } else {
            Err(Stop::Protection { is_stack: segment == seg::SS })
        }
    }

    fn linear(&self, address: Address, len: usize) -> Result<u64, Stop> {
        self.in_segment(address.segment, self.offset(address) & mask(self.instruction.address_width), len)
    }

    fn offset(&self, address: Address) -> u64 {
        let base = match address.base {
            Some(number) => self.register(number),
            None if address.is_relative => self.next(),
            None => 0,
        };
        let index = address.index.map_or(0, |(number, shift)| self.register(number) << (shift & 3));
        base.wrapping_add(index).wrapping_add(address.displacement)
    }

    fn load(&mut self, operand: Operand, width: u8) -> Result<u64, Stop> {
        Ok(match operand {
            Operand::None => 0,
            Operand::Register(number) => self.register(number) & mask(width),
            Operand::HighByte(number) => self.register(number) >> 8 & 0xff,
            Operand::Constant(value) => value & mask(width),
            Operand::Memory(address) => {
                let linear = self.linear(address, usize::from(width))?;
                self.bus.read(linear, width)?
            }
        })
    }

    /// As [`Self::load`], for a value that is written back.
    fn load_locked(&mut self, operand: Operand, width: u8) -> Result<u64, Stop> {
        let Operand::Memory(address) = operand else { return self.load(operand, width) };
        let linear = self.linear(address, usize::from(width))?;
        Ok(self.bus.read_locked(linear, width)?)
    }

    fn store(&mut self, operand: Operand, width: u8, value: u64) -> Result<(), Stop> {
        match operand {
            Operand::Register(number) => self.set_register(number, width, value),
            Operand::HighByte(number) => {
                let register = &mut self.state.gprs[usize::from(number & 15)];
                *register = *register & !0xff00 | (value & 0xff) << 8;
            }
            Operand::Memory(address) => {
                let linear = self.linear(address, usize::from(width))?;
                self.bus.write(linear, width, value)?;
            }
            Operand::None | Operand::Constant(_) => {}
        }
        Ok(())
    }

    /// Replaces an operand and the flags.
    fn change(&mut self, to: Operand, change: impl Fn(u64, u64) -> (u64, u64)) -> Result<(), Stop> {
        let width = self.instruction.width;
        let (value, flags) = change(self.load_locked(to, width)?, self.state.rflags);
        self.store(to, width, value)?;
        self.state.rflags = flags;
        Ok(())
    }

    /// A bit's number in a register reaches beyond the operand, in both directions.
    fn bit(&mut self, op: super::instruction::BitOp) -> Result<(), Stop> {
        let Instruction { to, from, width, .. } = self.instruction;
        let Operand::Memory(mut address) = to else { return Err(Stop::Unsupported) };
        let number = self.load(from, width)?;
        if let Operand::Register(_) = from {
            let bits = u32::from(width.max(1)) * 8;
            let units = alu::extend(number, width) as i64 >> bits.trailing_zeros();
            let beyond = units.wrapping_mul(i64::from(width));
            address.displacement = address.displacement.wrapping_add(beyond as u64);
        }
        let to = Operand::Memory(address);
        let is_kept = op != super::instruction::BitOp::Test;
        let value = if is_kept { self.load_locked(to, width)? } else { self.load(to, width)? };
        let (result, flags) = alu::bit(op, value, number, width, self.state.rflags);
        if is_kept {
            self.store(to, width, result)?;
        }
        self.state.rflags = flags;
        Ok(())
    }

    fn compare_exchange_pair(&mut self) -> Result<(), Stop> {
        let Instruction { to, width, .. } = self.instruction;
        let Operand::Memory(address) = to else { return Err(Stop::Unsupported) };
        let linear = self.linear(address, 2 * usize::from(width))?;
        if width == 8 && linear % 16 != 0 {
            return Err(Stop::Protection { is_stack: false });
        }
        let behind = linear.wrapping_add(width.into());
        let low = self.bus.read_locked(linear, width)?;
        let high = self.bus.read_locked(behind, width)?;
        let has = |number: usize, value: u64| self.register(number as u8) & mask(width) == value;
        if has(gpr::RAX, low) && has(gpr::RDX, high) {
            let (low, high) = (self.register(gpr::RBX as u8), self.register(gpr::RCX as u8));
            self.bus.write(linear, width, low)?;
            self.bus.write(behind, width, high)?;
            self.state.rflags |= alu::ZF;
        } else {
            self.set_register(gpr::RAX as u8, width, low);
            self.set_register(gpr::RDX as u8, width, high);
            self.state.rflags &= !alu::ZF;
        }
        Ok(())
    }

    /// Bytes of the stack pointer.
    fn stack_pointer_width(&self) -> u8 {
        let stack = self.state.segments.get(seg::SS);
        match self.size {
            CodeSize::Bits64 => 8,
            _ if stack.is_some_and(|stack| stack.attributes & STACK_32 != 0) => 4,
            _ => 2,
        }
    }

    /// The linear address of what is `above` the top of the stack.
    fn stack(&self, above: i64) -> u64 {
        let pointer = self.register(gpr::RSP as u8).wrapping_add(above as u64);
        let linear = self.base(seg::SS).wrapping_add(pointer & mask(self.stack_pointer_width()));
        if self.size == CodeSize::Bits64 { linear } else { linear & 0xffff_ffff }
    }

    fn move_stack(&mut self, by: u64) {
        let pointer = self.register(gpr::RSP as u8).wrapping_add(by);
        // Not as a register of that width: what is above stays.
        let mask = mask(self.stack_pointer_width());
        let register = &mut self.state.gprs[gpr::RSP];
        *register = *register & !mask | pointer & mask;
    }

    fn push(&mut self, width: u8, value: u64) -> Result<(), Stop> {
        let linear = self.stack(-i64::from(width));
        if self.size == CodeSize::Bits64 && !is_canonical(linear) {
            return Err(Stop::Protection { is_stack: true });
        }
        self.bus.write(linear, width, value)?;
        self.move_stack(u64::from(width).wrapping_neg());
        Ok(())
    }

    fn pop_into(&mut self, to: Operand) -> Result<(), Stop> {
        let width = self.instruction.width;
        let linear = self.stack(0);
        if self.size == CodeSize::Bits64 && !is_canonical(linear) {
            return Err(Stop::Protection { is_stack: true });
        }
        let value = self.bus.read(linear, width)?;
        // An address by the stack pointer is computed after it has moved.
        let before = self.register(gpr::RSP as u8);
        self.move_stack(width.into());
        let stored = self.store(to, width, value);
        if stored.is_err() {
            self.state.gprs[gpr::RSP] = before;
        }
        stored
    }

    fn check_target(&self, target: u64) -> Result<(), Stop> {
        if self.size == CodeSize::Bits64 && !is_canonical(target) {
            return Err(Stop::Protection { is_stack: false });
        }
        Ok(())
    }

    fn string(&mut self, op: StringOp) -> Result<Progress, Stop> {
        let Instruction { repeat, address_width, .. } = self.instruction;
        let next = Progress::Next(self.next());
        if repeat == Repeat::No {
            self.string_step(op)?;
            return Ok(next);
        }
        let rcx = gpr::RCX as u8;
        for _ in 0..STEPS_MAX {
            let left = self.register(rcx) & mask(address_width);
            if left == 0 {
                return Ok(next);
            }
            self.string_step(op)?;
            self.set_counter(rcx, left - 1);
            let is_equal = self.state.rflags & alu::ZF != 0;
            let compares = matches!(op, StringOp::Cmps | StringOp::Scas);
            if left == 1 || compares && is_equal != (repeat == Repeat::Equal) {
                return Ok(next);
            }
            // Who sends commands to others gives way to them.
            if self.bus.commands.is_full() {
                break;
            }
        }
        Ok(Progress::Again)
    }

    /// Sets a register that counts or points, as wide as addresses are.
    fn set_counter(&mut self, number: u8, value: u64) {
        self.set_register(number, self.instruction.address_width, value);
    }

    fn string_step(&mut self, op: StringOp) -> Result<(), Stop> {
        let Instruction { width, address_width, segment, .. } = self.instruction;
        let (rsi, rdi, rax) = (gpr::RSI as u8, gpr::RDI as u8, gpr::RAX as u8);
        let len = usize::from(width);
        let source = self.in_segment(segment, self.register(rsi) & mask(address_width), len);
        let target = self.in_segment(seg::ES, self.register(rdi) & mask(address_width), len);
        let (uses_source, uses_target) = match op {
            StringOp::Movs => {
                let value = self.bus.read(source?, width)?;
                self.bus.write(target?, width, value)?;
                (true, true)
            }
            StringOp::Cmps => {
                let (a, b) = (self.bus.read(source?, width)?, self.bus.read(target?, width)?);
                let (_, flags) = alu::arith(super::instruction::Arith::Cmp, a, b, width, self.state.rflags);
                self.state.rflags = flags;
                (true, true)
            }
            StringOp::Stos => {
                let value = self.register(rax);
                self.bus.write(target?, width, value)?;
                (false, true)
            }
            StringOp::Lods => {
                let value = self.bus.read(source?, width)?;
                self.set_register(rax, width, value);
                (true, false)
            }
            StringOp::Scas => {
                let (a, b) = (self.register(rax), self.bus.read(target?, width)?);
                let (_, flags) = alu::arith(super::instruction::Arith::Cmp, a, b, width, self.state.rflags);
                self.state.rflags = flags;
                (false, true)
            }
        };
        let is_down = self.state.rflags & RFLAGS_DF != 0;
        let by = if is_down { u64::from(width).wrapping_neg() } else { u64::from(width) };
        for (number, is_used) in [(rsi, uses_source), (rdi, uses_target)] {
            if is_used {
                self.set_counter(number, self.register(number).wrapping_add(by));
            }
        }
        Ok(())
    }
}

fn is_canonical(linear: u64) -> bool {
    (linear as i64) << 16 >> 16 == linear as i64
}
