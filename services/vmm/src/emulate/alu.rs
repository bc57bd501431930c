//! Arithmetic as the processor does it, with the flags that it leaves.
//!
//! Values are in the low `width` bytes (1, 2, 4 or 8); what is above is ignored in operands and 0 in results.
//! Flags that the manual leaves undefined are what fits best. Source: AMD64 APM vol. 3.

use super::instruction::{Arith, BitOp, Scan, Shift};

pub const CF: u64 = 1;
pub const PF: u64 = 1 << 2;
pub const AF: u64 = 1 << 4;
pub const ZF: u64 = 1 << 6;
pub const SF: u64 = 1 << 7;
pub const OF: u64 = 1 << 11;
/// All of them.
pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;

/// Quotient or divisor are not possible: #DE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DivideError;

/// A mask of `width` bytes.
pub fn mask(width: u8) -> u64 {
    if width >= 8 { u64::MAX } else { (1 << (8 * width)) - 1 }
}

fn bits(width: u8) -> u32 {
    8 * u32::from(width)
}

fn sign(width: u8) -> u64 {
    1 << (bits(width).clamp(1, 64) - 1)
}

/// The value with its sign extended to 64 bits.
pub fn extend(value: u64, width: u8) -> u64 {
    let unused = 64 - bits(width).clamp(1, 64);
    ((value << unused) as i64 >> unused) as u64
}

fn flag(bit: u64, is_set: bool) -> u64 {
    if is_set { bit } else { 0 }
}

/// ZF, SF and PF of a result.
fn zsp(result: u64, width: u8) -> u64 {
    flag(ZF, result & mask(width) == 0)
        | flag(SF, result & sign(width) != 0)
        | flag(PF, (result as u8).count_ones().is_multiple_of(2))
}

/// Result and new flags of ADD to CMP. CMP's result is that of SUB.
pub fn arith(op: Arith, a: u64, b: u64, width: u8, flags: u64) -> (u64, u64) {
    let (a, b) = (a & mask(width), b & mask(width));
    let carry = flags & CF;
    let (result, carry_out, overflow) = match op {
        Arith::Or => return logic(a | b, width, flags),
        Arith::And => return logic(a & b, width, flags),
        Arith::Xor => return logic(a ^ b, width, flags),
        Arith::Add | Arith::Adc => {
            let carry = if op == Arith::Adc { carry } else { 0 };
            let sum = u128::from(a) + u128::from(b) + u128::from(carry);
            let result = sum as u64 & mask(width);
            (result, sum > u128::from(mask(width)), (a ^ result) & (b ^ result))
        }
        Arith::Sub | Arith::Sbb | Arith::Cmp => {
            let borrow = if op == Arith::Sbb { carry } else { 0 };
            let result = a.wrapping_sub(b).wrapping_sub(borrow) & mask(width);
            (result, u128::from(a) < u128::from(b) + u128::from(borrow), (a ^ b) & (a ^ result))
        }
    };
    let new = flag(CF, carry_out)
        | flag(OF, overflow & sign(width) != 0)
        | (a ^ b ^ result) & AF
        | zsp(result, width);
    (result, flags & !STATUS | new)
}

fn logic(result: u64, width: u8, flags: u64) -> (u64, u64) {
    (result, flags & !STATUS | zsp(result, width))
}

/// TEST: the new flags.
pub fn test(a: u64, b: u64, width: u8, flags: u64) -> u64 {
    logic(a & b & mask(width), width, flags).1
}

/// INC, which leaves CF.
pub fn increment(a: u64, width: u8, flags: u64) -> (u64, u64) {
    let (result, new) = arith(Arith::Add, a, 1, width, flags);
    (result, new & !CF | flags & CF)
}

/// DEC, which leaves CF.
pub fn decrement(a: u64, width: u8, flags: u64) -> (u64, u64) {
    let (result, new) = arith(Arith::Sub, a, 1, width, flags);
    (result, new & !CF | flags & CF)
}

/// Result and new flags of a shift or rotation. A count of 0 (after masking) changes nothing.
pub fn shift(op: Shift, value: u64, count: u64, width: u8, flags: u64) -> (u64, u64) {
    let (size, value) = (bits(width), value & mask(width));
    let count = count as u32 & if width == 8 { 63 } else { 31 };
    if count == 0 {
        return (value, flags);
    }
    let top = |value: u64| value & sign(width) != 0;
    let below_top = |value: u64| value & sign(width) >> 1 != 0;
    match op {
        Shift::Rol | Shift::Ror => {
            let left = if op == Shift::Rol { count % size } else { (size - count % size) % size };
            let result = if left == 0 { value } else { value << left | value >> (size - left) } & mask(width);
            let (carry, overflow) = if op == Shift::Rol {
                (result & 1 != 0, top(result) != (result & 1 != 0))
            } else {
                (top(result), top(result) != below_top(result))
            };
            (result, flags & !(CF | OF) | flag(CF, carry) | flag(OF, overflow))
        }
        Shift::Rcl | Shift::Rcr => {
            let (mut result, mut carry) = (value, flags & CF != 0);
            for _ in 0..count % (size + 1) {
                let carry_in = carry;
                if op == Shift::Rcl {
                    carry = top(result);
                    result = (result << 1 | u64::from(carry_in)) & mask(width);
                } else {
                    carry = result & 1 != 0;
                    result = result >> 1 | if carry_in { sign(width) } else { 0 };
                }
            }
            let overflow =
                if op == Shift::Rcl { top(result) != carry } else { top(result) != below_top(result) };
            (result, flags & !(CF | OF) | flag(CF, carry) | flag(OF, overflow))
        }
        Shift::Shl => {
            let wide = u128::from(value) << count;
            let result = wide as u64 & mask(width);
            let carry = wide >> size & 1 != 0;
            shifted(result, width, flags, carry, top(result) != carry)
        }
        Shift::Shr => {
            let result = value >> count;
            shifted(result, width, flags, value >> (count - 1) & 1 != 0, top(value))
        }
        Shift::Sar => {
            let wide = i128::from(extend(value, width) as i64);
            let result = (wide >> count) as u64 & mask(width);
            shifted(result, width, flags, wide >> (count - 1) & 1 != 0, false)
        }
    }
}

fn shifted(result: u64, width: u8, flags: u64, carry: bool, overflow: bool) -> (u64, u64) {
    (result, flags & !STATUS | flag(CF, carry) | flag(OF, overflow) | zsp(result, width))
}

/// SHLD and SHRD: `value` shifted, with bits of `filler` coming in.
pub fn shift_double(is_left: bool, value: u64, filler: u64, count: u64, width: u8, flags: u64) -> (u64, u64) {
    let (size, value, filler) = (bits(width), value & mask(width), filler & mask(width));
    let count = count as u32 & if width == 8 { 63 } else { 31 };
    // A count beyond the width is undefined for 16 bits.
    if count == 0 || count > size {
        return (value, flags);
    }
    let (result, carry) = if is_left {
        let both = u128::from(value) << size | u128::from(filler);
        ((both << count >> size) as u64 & mask(width), value >> (size - count) & 1 != 0)
    } else {
        let both = u128::from(filler) << size | u128::from(value);
        ((both >> count) as u64 & mask(width), value >> (count - 1) & 1 != 0)
    };
    shifted(result, width, flags, carry, (result ^ value) & sign(width) != 0)
}

/// A bit's old value in CF, and the value with that bit changed.
pub fn bit(op: BitOp, value: u64, number: u64, width: u8, flags: u64) -> (u64, u64) {
    let bit = 1u64 << (number as u32 & (bits(width) - 1));
    let result = match op {
        BitOp::Test => value,
        BitOp::Set => value | bit,
        BitOp::Reset => value & !bit,
        BitOp::Complement => value ^ bit,
    };
    (result, flags & !CF | flag(CF, value & bit != 0))
}

/// BSF and its like; no result: the register stays.
pub fn scan(op: Scan, value: u64, width: u8, flags: u64) -> (Option<u64>, u64) {
    let (size, value) = (bits(width), value & mask(width));
    let trailing = value.trailing_zeros().min(size);
    let leading = value.leading_zeros() - (64 - size);
    let counted = |result: u32, carry| {
        (Some(u64::from(result)), flags & !STATUS | flag(CF, carry) | flag(ZF, result == 0))
    };
    match op {
        Scan::Tzcnt => counted(trailing, value == 0),
        Scan::Lzcnt => counted(leading, value == 0),
        Scan::Popcnt => (Some(u64::from(value.count_ones())), flags & !STATUS | flag(ZF, value == 0)),
        Scan::Bsf | Scan::Bsr if value == 0 => (None, flags | ZF),
        Scan::Bsf => (Some(u64::from(trailing)), flags & !ZF),
        Scan::Bsr => (Some(u64::from(size - 1 - leading)), flags & !ZF),
    }
}

/// The double-width product as (low, high), and the flags.
pub fn multiply(is_signed: bool, a: u64, b: u64, width: u8, flags: u64) -> (u64, u64, u64) {
    let product = if is_signed {
        (i128::from(extend(a, width) as i64) * i128::from(extend(b, width) as i64)) as u128
    } else {
        u128::from(a & mask(width)) * u128::from(b & mask(width))
    };
    let low = product as u64 & mask(width);
    let high = (product >> bits(width)) as u64 & mask(width);
    let fits = high == if is_signed { top_half(low, width) } else { 0 };
    (low, high, flags & !STATUS | flag(CF | OF, !fits) | zsp(low, width) & (SF | PF))
}

/// What the upper half of a product is if its lower half says all, sign included.
fn top_half(low: u64, width: u8) -> u64 {
    if low & sign(width) != 0 { mask(width) } else { 0 }
}

/// Quotient and remainder of the double-width value `high`:`low`.
///
/// # Errors
/// [`DivideError`].
pub fn divide(is_signed: bool, high: u64, low: u64, by: u64, width: u8) -> Result<(u64, u64), DivideError> {
    let value = u128::from(high & mask(width)) << bits(width) | u128::from(low & mask(width));
    if !is_signed {
        let by = u128::from(by & mask(width));
        let quotient = value.checked_div(by).ok_or(DivideError)?;
        let remainder = value.checked_rem(by).ok_or(DivideError)?;
        let quotient = u64::try_from(quotient).map_err(|_| DivideError)?;
        return if quotient <= mask(width) { Ok((quotient, remainder as u64)) } else { Err(DivideError) };
    }
    let unused = 128 - 2 * bits(width);
    let value = (value << unused) as i128 >> unused;
    let by = i128::from(extend(by, width) as i64);
    let quotient = value.checked_div(by).ok_or(DivideError)?;
    let remainder = value.checked_rem(by).ok_or(DivideError)?;
    let short = quotient as u64 & mask(width);
    if i128::from(extend(short, width) as i64) != quotient {
        return Err(DivideError);
    }
    Ok((short, remainder as u64 & mask(width)))
}

/// Whether condition `number` of Jcc, SETcc and CMOVcc holds.
pub fn condition(number: u8, flags: u64) -> bool {
    let has = |bit: u64| flags & bit != 0;
    let holds = match number >> 1 & 7 {
        0 => has(OF),
        1 => has(CF),
        2 => has(ZF),
        3 => has(CF | ZF),
        4 => has(SF),
        5 => has(PF),
        6 => has(SF) != has(OF),
        _ => has(ZF) || has(SF) != has(OF),
    };
    holds != (number & 1 != 0)
}
