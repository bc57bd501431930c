//! The same operation by the processor that the tests run on.
#![expect(unsafe_code, reason = "the flags of an instruction are seen only in assembly")]

extern crate std;

use core::arch::asm;

use super::super::alu::*;
use super::super::instruction::{Arith, BitOp, Scan, Shift};
use proptest::prelude::*;

/// Flags with bit 1, which is always set.
const BASE: u64 = 2;

/// One instruction with a destination and a source; result and flags.
macro_rules! binary {
    ($name:literal, $class:ident, $type:ty, $modifier:literal, $a:expr, $b:expr, $flags:expr) => {{
        let (mut a, mut flags) = ($a as $type, $flags | BASE);
        // SAFETY: only the named registers and the status flags change; the stack is as before.
        unsafe {
            asm!(
                "push {f}", "popfq",
                concat!($name, " {a", $modifier, "}, {b", $modifier, "}"),
                "pushfq", "pop {f}",
                a = inout($class) a, b = in($class) $b as $type, f = inout(reg) flags,
            );
        }
        (a as u64, flags & STATUS)
    }};
}

macro_rules! unary {
    ($name:literal, $class:ident, $type:ty, $modifier:literal, $a:expr, $flags:expr) => {{
        let (mut a, mut flags) = ($a as $type, $flags | BASE);
        // SAFETY: as above.
        unsafe {
            asm!(
                "push {f}", "popfq", concat!($name, " {a", $modifier, "}"), "pushfq", "pop {f}",
                a = inout($class) a, f = inout(reg) flags,
            );
        }
        (a as u64, flags & STATUS)
    }};
}

macro_rules! shifted {
    ($name:literal, $class:ident, $type:ty, $modifier:literal, $a:expr, $count:expr, $flags:expr) => {{
        let (mut a, mut flags) = ($a as $type, $flags | BASE);
        // SAFETY: as above.
        unsafe {
            asm!(
                "push {f}", "popfq", concat!($name, " {a", $modifier, "}, cl"), "pushfq", "pop {f}",
                a = inout($class) a, in("cl") $count as u8, f = inout(reg) flags,
            );
        }
        (a as u64, flags & STATUS)
    }};
}

macro_rules! shifted_double {
    ($name:literal, $type:ty, $modifier:literal, $a:expr, $b:expr, $count:expr, $flags:expr) => {{
        let (mut a, mut flags) = ($a as $type, $flags | BASE);
        // SAFETY: as above.
        unsafe {
            asm!(
                "push {f}", "popfq",
                concat!($name, " {a", $modifier, "}, {b", $modifier, "}, cl"),
                "pushfq", "pop {f}",
                a = inout(reg) a, b = in(reg) $b as $type, in("cl") $count as u8, f = inout(reg) flags,
            );
        }
        (a as u64, flags & STATUS)
    }};
}

/// By width.
macro_rules! sized {
    ($macro:ident, $width:expr, $name:literal, $($argument:expr),*) => {
        match $width {
            1 => $macro!($name, reg_byte, u8, "", $($argument),*),
            2 => $macro!($name, reg, u16, ":x", $($argument),*),
            4 => $macro!($name, reg, u32, ":e", $($argument),*),
            _ => $macro!($name, reg, u64, ":r", $($argument),*),
        }
    };
}

macro_rules! sized_words {
    ($macro:ident, $width:expr, $name:literal, $($argument:expr),*) => {
        match $width {
            2 => $macro!($name, u16, ":x", $($argument),*),
            4 => $macro!($name, u32, ":e", $($argument),*),
            _ => $macro!($name, u64, ":r", $($argument),*),
        }
    };
}

fn value() -> impl Strategy<Value = u64> {
    let edges = [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0x7fff_ffff, 0x8000_0000, u64::MAX, 1 << 63];
    prop_oneof![any::<u64>(), prop::sample::select(edges.to_vec())]
}

fn width() -> impl Strategy<Value = u8> {
    prop::sample::select(alloc::vec![1u8, 2, 4, 8])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn arithmetic_is_the_processors(a in value(), b in value(), width in width(), bits: u64) {
        let flags = bits & STATUS;
        let defined = |op| match op {
            Arith::Or | Arith::And | Arith::Xor => STATUS & !AF,
            _ => STATUS,
        };
        for (op, native) in [
            (Arith::Add, sized!(binary, width, "add", a, b, flags)),
            (Arith::Or, sized!(binary, width, "or", a, b, flags)),
            (Arith::Adc, sized!(binary, width, "adc", a, b, flags)),
            (Arith::Sbb, sized!(binary, width, "sbb", a, b, flags)),
            (Arith::And, sized!(binary, width, "and", a, b, flags)),
            (Arith::Sub, sized!(binary, width, "sub", a, b, flags)),
            (Arith::Xor, sized!(binary, width, "xor", a, b, flags)),
        ] {
            let (result, new) = arith(op, a, b, width, flags);
            prop_assert_eq!((result, new & defined(op)), (native.0, native.1 & defined(op)), "{:?}", op);
        }
        let (_, native) = sized!(binary, width, "cmp", a, b, flags);
        prop_assert_eq!(arith(Arith::Cmp, a, b, width, flags).1, native);
        let (_, native) = sized!(binary, width, "test", a, b, flags);
        prop_assert_eq!(test(a, b, width, flags) & !AF, native & !AF);
        prop_assert_eq!(increment(a, width, flags), sized!(unary, width, "inc", a, flags));
        prop_assert_eq!(decrement(a, width, flags), sized!(unary, width, "dec", a, flags));
        prop_assert_eq!(arith(Arith::Sub, 0, a, width, flags), sized!(unary, width, "neg", a, flags));
    }

    #[test]
    fn shifts_are_the_processors(a in value(), b in value(), count in 0u64..=255, width in width(), bits: u64) {
        let flags = bits & STATUS;
        let masked = count & if width == 8 { 63 } else { 31 };
        let size = u64::from(width) * 8;
        for (op, native) in [
            (Shift::Rol, sized!(shifted, width, "rol", a, count, flags)),
            (Shift::Ror, sized!(shifted, width, "ror", a, count, flags)),
            (Shift::Rcl, sized!(shifted, width, "rcl", a, count, flags)),
            (Shift::Rcr, sized!(shifted, width, "rcr", a, count, flags)),
            (Shift::Shl, sized!(shifted, width, "shl", a, count, flags)),
            (Shift::Shr, sized!(shifted, width, "shr", a, count, flags)),
            (Shift::Sar, sized!(shifted, width, "sar", a, count, flags)),
        ] {
            // What the manual leaves undefined: OF but for a count of 1, AF, CF when all is shifted out.
            let is_plain = matches!(op, Shift::Shl | Shift::Shr);
            let mut undefined = if masked == 0 { 0 } else if masked == 1 { AF } else { AF | OF };
            if is_plain && masked > size {
                undefined |= CF;
            }
            let (result, new) = shift(op, a, count, width, flags);
            let expected = (native.0, native.1 & !undefined);
            prop_assert_eq!((result, new & !undefined), expected, "{:?} {} by {}", op, width, count);
        }
        if width > 1 && masked <= size {
            let undefined = if masked == 0 { 0 } else if masked == 1 { AF } else { AF | OF };
            for (is_left, native) in [
                (true, sized_words!(shifted_double, width, "shld", a, b, count, flags)),
                (false, sized_words!(shifted_double, width, "shrd", a, b, count, flags)),
            ] {
                let (result, new) = shift_double(is_left, a, b, count, width, flags);
                prop_assert_eq!((result, new & !undefined), (native.0, native.1 & !undefined));
            }
        }
    }

    #[test]
    fn bits_are_the_processors(a in value(), b in value(), wide in prop::sample::select(alloc::vec![2u8, 4, 8]), bits: u64) {
        let flags = bits & STATUS;
        macro_rules! words {
            ($name:literal) => {
                match wide {
                    2 => binary!($name, reg, u16, ":x", a, b, flags),
                    4 => binary!($name, reg, u32, ":e", a, b, flags),
                    _ => binary!($name, reg, u64, ":r", a, b, flags),
                }
            };
        }
        for (op, native) in [
            (BitOp::Test, words!("bt")),
            (BitOp::Set, words!("bts")),
            (BitOp::Reset, words!("btr")),
            (BitOp::Complement, words!("btc")),
        ] {
            let (result, new) = bit(op, a & mask(wide), b, wide, flags);
            prop_assert_eq!((result, new & (CF | ZF)), (native.0, native.1 & (CF | ZF)), "{:?}", op);
        }
        // The source is the second operand; with 0 the register stays.
        for (op, native, defined) in [
            (Scan::Bsf, words!("bsf"), ZF),
            (Scan::Bsr, words!("bsr"), ZF),
            (Scan::Popcnt, words!("popcnt"), STATUS),
        ] {
            let (result, new) = scan(op, b, wide, flags);
            prop_assert_eq!(new & defined, native.1 & defined, "{:?}", op);
            prop_assert_eq!(result.unwrap_or(a & mask(wide)), native.0, "{:?}", op);
        }
        if std::is_x86_feature_detected!("bmi1") && std::is_x86_feature_detected!("lzcnt") {
            for (op, native) in [(Scan::Tzcnt, words!("tzcnt")), (Scan::Lzcnt, words!("lzcnt"))] {
                let (result, new) = scan(op, b, wide, flags);
                prop_assert_eq!((result, new & (CF | ZF)), (Some(native.0), native.1 & (CF | ZF)), "{:?}", op);
            }
        }
        let (low, _, new) = multiply(true, a, b, wide, flags);
        let native = words!("imul");
        prop_assert_eq!((low, new & (CF | OF)), (native.0, native.1 & (CF | OF)));
    }

    #[test]
    fn long_multiplication_and_division_are_the_processors(a: u64, b: u64, high: u64) {
        let (low, top, _) = multiply(false, a, b, 8, 0);
        prop_assert_eq!(u128::from(top) << 64 | u128::from(low), u128::from(a) * u128::from(b));
        let (low, top, _) = multiply(true, a, b, 8, 0);
        let signed = i128::from(a as i64) * i128::from(b as i64);
        prop_assert_eq!((u128::from(top) << 64 | u128::from(low)) as i128, signed);
        for width in [1u8, 2, 4, 8] {
            for (high, by) in [(high, b), (0, b), (high, b >> 40), (u64::MAX, b)] {
                if let Ok((quotient, remainder)) = divide(false, high, a, by, width) {
                    let back = u128::from(quotient) * u128::from(by & mask(width)) + u128::from(remainder);
                    let bits = u32::from(width) * 8;
                    prop_assert_eq!(back, u128::from(high & mask(width)) << bits | u128::from(a & mask(width)));
                    prop_assert!(remainder < by & mask(width));
                }
                if let Ok((quotient, remainder)) = divide(true, high, a, by, width) {
                    let long = |value| i128::from(extend(value, width) as i64);
                    let back = long(quotient) * long(by) + long(remainder);
                    let bits = u32::from(width) * 8;
                    let value = u128::from(high & mask(width)) << bits | u128::from(a & mask(width));
                    prop_assert_eq!(back as u128 & (u128::MAX >> (128 - 2 * bits)), value);
                }
            }
        }
    }
}

#[test]
fn impossible_quotients_are_refused() {
    for (is_signed, high, low, by, width) in [
        (false, 0, 5, 0, 4),
        (true, 0, 5, 0, 8),
        (false, 1, 0, 1, 1),
        (false, u64::MAX, 0, 1, 8),
        (true, 1 << 63, 0, u64::MAX, 8),
        (true, 0, 0x80, 1, 1),
        (true, 0x80, 0, 0xff, 1),
    ] {
        assert_eq!(divide(is_signed, high, low, by, width), Err(DivideError));
    }
    assert_eq!(divide(true, 0xff, 0x80, 1, 1), Ok((0x80, 0)));
}

#[test]
fn conditions_are_those_of_the_manual() {
    let holding = |flags| (0..16).filter(|&n| condition(n, flags)).collect::<alloc::vec::Vec<_>>();
    assert_eq!(holding(0), [1, 3, 5, 7, 9, 11, 13, 15]);
    assert_eq!(holding(ZF), [1, 3, 4, 6, 9, 11, 13, 14]);
    assert_eq!(holding(CF | SF), [1, 2, 5, 6, 8, 11, 12, 14]);
    assert_eq!(holding(OF | SF | PF), [0, 3, 5, 7, 8, 10, 13, 15]);
}
