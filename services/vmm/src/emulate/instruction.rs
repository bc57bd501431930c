//! A decoded instruction: what it does, and to which operands.
//!
//! `decode.rs` makes them of bytes, `execute.rs` performs them. Only forms with a memory operand exist (the
//! stack counts). Source: AMD64 APM vol. 3 (24594), chapter 1.

/// Default sizes of the code segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodeSize {
    /// Real mode, virtual-8086 mode, 16-bit segments.
    Bits16,
    /// 32-bit segments.
    Bits32,
    /// 64-bit mode.
    Bits64,
}

/// Arithmetic on two operands, in the encoding's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names of the instructions")]
pub enum Arith {
    Add,
    Or,
    Adc,
    Sbb,
    And,
    Sub,
    Xor,
    Cmp,
}

/// Shifts and rotations, in the encoding's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names of the instructions")]
pub enum Shift {
    Rol,
    Ror,
    Rcl,
    Rcr,
    Shl,
    Shr,
    Sar,
}

/// What happens to one bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "bit test and nothing, set, reset, complement")]
pub enum BitOp {
    Test,
    Set,
    Reset,
    Complement,
}

/// Counts of bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names of the instructions")]
pub enum Scan {
    Bsf,
    Bsr,
    Tzcnt,
    Lzcnt,
    Popcnt,
}

/// String instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names of the instructions")]
pub enum StringOp {
    Movs,
    Cmps,
    Stos,
    Lods,
    Scas,
}

/// REP prefixes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    /// None.
    No,
    /// F3: while equal, or just as often as said.
    Equal,
    /// F2.
    NotEqual,
}

/// What an instruction does; operands by their order in manuals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// MOV, MOVNTI.
    Mov,
    /// MOVZX, MOVSX, MOVSXD from so many bytes.
    Extend {
        /// Bytes of the source.
        from: u8,
        /// Whether the sign is extended.
        is_signed: bool,
    },
    /// MOVBE.
    MovSwapped,
    /// ADD to CMP.
    Arith(Arith),
    /// TEST.
    Test,
    /// NOT.
    Not,
    /// NEG.
    Neg,
    /// INC.
    Inc,
    /// DEC.
    Dec,
    /// MUL and IMUL of the accumulator.
    Multiply {
        /// IMUL.
        is_signed: bool,
    },
    /// DIV and IDIV of the accumulator.
    Divide {
        /// IDIV.
        is_signed: bool,
    },
    /// IMUL of a register with memory, or of memory with a constant.
    MultiplyInto(Option<u64>),
    /// XCHG.
    Exchange,
    /// CMPXCHG.
    CompareExchange,
    /// CMPXCHG8B, CMPXCHG16B.
    CompareExchangePair,
    /// XADD.
    ExchangeAdd,
    /// BT and its like.
    Bit(BitOp),
    /// BSF and its like.
    Scan(Scan),
    /// ROL to SAR.
    Shift(Shift),
    /// SHLD, SHRD.
    ShiftDouble {
        /// SHLD.
        is_left: bool,
        /// Count, or CL.
        count: Option<u8>,
    },
    /// PUSH.
    Push,
    /// POP.
    Pop,
    /// Near CALL to an address in an operand.
    Call,
    /// Near CALL, relative.
    CallRelative,
    /// Near JMP to an address in an operand.
    Jump,
    /// Near RET that drops so many bytes.
    Return(u16),
    /// SETcc.
    Set(u8),
    /// CMOVcc.
    MoveIf(u8),
    /// MOVS and its like.
    String(StringOp),
    /// Prefetches, flushes of cache lines, long NOPs.
    Nothing,
    /// A store of a vector register of so many bytes.
    StoreVector(u8),
}

/// How a memory operand's address is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// Register number.
    pub base: Option<u8>,
    /// Register number, and by how much it is shifted.
    pub index: Option<(u8, u8)>,
    /// Constant; sign-extended.
    pub displacement: u64,
    /// Counted from the next instruction.
    pub is_relative: bool,
    /// Index of the segment.
    pub segment: usize,
}

/// One operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operand {
    /// There is none.
    None,
    /// A general register.
    Register(u8),
    /// AH, CH, DH, BH.
    HighByte(u8),
    /// A constant, sign-extended.
    Constant(u64),
    /// Memory.
    Memory(Address),
}

/// A decoded instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// What it does.
    pub op: Op,
    /// First operand.
    pub to: Operand,
    /// Second operand.
    pub from: Operand,
    /// Bytes of the operands: 1, 2, 4, 8.
    pub width: u8,
    /// Bytes of addresses: 2, 4, 8.
    pub address_width: u8,
    /// Segment of a string's source.
    pub segment: usize,
    /// Repetition.
    pub repeat: Repeat,
    /// Bytes in all.
    pub len: u8,
}
