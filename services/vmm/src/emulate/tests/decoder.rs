//! What is decoded is what another decoder says, and any bytes are survived.

use super::super::decode::*;
use super::super::instruction::*;
use alloc::vec::Vec;
use iced_x86::{Decoder, DecoderOptions, OpKind, Register};
use proptest::prelude::*;

fn bits(size: CodeSize) -> u32 {
    match size {
        CodeSize::Bits16 => 16,
        CodeSize::Bits32 => 32,
        CodeSize::Bits64 => 64,
    }
}

fn sizes() -> impl Strategy<Value = CodeSize> {
    prop::sample::select(Vec::from([CodeSize::Bits16, CodeSize::Bits32, CodeSize::Bits64]))
}

/// Prefixes, an opcode, and bytes enough for the rest.
fn instructions() -> impl Strategy<Value = Vec<u8>> {
    let prefix = prop::sample::select(Vec::from([
        0x66u8, 0x67, 0xf2, 0xf3, 0xf0, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x48, 0x4f, 0x41, 0x44, 0x40,
    ]));
    let escape = prop::sample::select(Vec::from([&[][..], &[0x0f], &[0x0f], &[0x0f, 0x38]]));
    let rest = prop::collection::vec(any::<u8>(), 14);
    (prop::collection::vec(prefix, 0..3), escape, rest)
        .prop_map(|(prefixes, escape, rest)| [&prefixes[..], escape, &rest[..]].concat())
}

fn number(register: Register) -> Option<u8> {
    (register != Register::None).then(|| register.full_register().number() as u8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn it_agrees_with_another_decoder(bytes in instructions(), size in sizes()) {
        let Ok(ours) = decode(&bytes, size) else { return Ok(()) };
        let mut decoder = Decoder::with_ip(bits(size), &bytes, 0, DecoderOptions::AMD | DecoderOptions::NO_INVALID_CHECK);
        let theirs = decoder.decode();
        prop_assert!(!theirs.is_invalid(), "{:02x?} is none: {:?}", bytes, ours);
        prop_assert_eq!(usize::from(ours.len), theirs.len(), "{:02x?} {:?}", bytes, ours);
        let memory = [ours.to, ours.from].into_iter().find_map(|operand| match operand {
            Operand::Memory(address) => Some(address),
            _ => None,
        });
        let Some(address) = memory else { return Ok(()) };
        if !(0..theirs.op_count()).any(|n| theirs.op_kind(n) == OpKind::Memory) {
            prop_assert!(false, "{:02x?}: no memory in {:?}", bytes, theirs.code());
        }
        if !address.is_relative {
            prop_assert_eq!(address.base, number(theirs.memory_base()), "{:02x?}", bytes);
            let mask = match ours.address_width { 2 => 0xffff, 4 => 0xffff_ffff, _ => u64::MAX };
            prop_assert_eq!(address.displacement & mask, theirs.memory_displacement64() & mask, "{:02x?}", bytes);
        }
        let index = address.index.map(|(number, _)| number);
        prop_assert_eq!(index, number(theirs.memory_index()), "{:02x?}", bytes);
        if let Some((_, shift)) = address.index {
            prop_assert_eq!(1 << shift, theirs.memory_index_scale());
        }
        let segment = theirs.memory_segment();
        let segments = [Register::ES, Register::CS, Register::SS, Register::DS, Register::FS, Register::GS];
        let ours_segment = segments[address.segment];
        // In 64-bit code only FS and GS count.
        let counts = |segment| size != CodeSize::Bits64 || segment == Register::FS || segment == Register::GS;
        if counts(segment) || counts(ours_segment) {
            prop_assert_eq!(ours_segment, segment, "{:02x?}", bytes);
        }
        let is_sized = !matches!(ours.op,
            Op::Nothing | Op::Extend { .. } | Op::CompareExchangePair | Op::StoreVector(_) | Op::Call | Op::Jump);
        let bytes_of_memory = theirs.memory_size().size();
        if is_sized && bytes_of_memory != 0 {
            prop_assert_eq!(usize::from(ours.width), bytes_of_memory, "{:02x?} {:?}", bytes, theirs.code());
        }
        if let Op::StoreVector(bytes_of_vector) = ours.op {
            prop_assert_eq!(usize::from(bytes_of_vector), bytes_of_memory, "{:02x?} {:?}", bytes, theirs.code());
        }
        if let Op::Extend { from, .. } = ours.op {
            prop_assert_eq!(usize::from(from), bytes_of_memory, "{:02x?} {:?}", bytes, theirs.code());
        }
    }

    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..20), size in sizes()) {
        if let Ok(instruction) = decode(&bytes, size) {
            prop_assert!((1..=INSTRUCTION_MAX).contains(&usize::from(instruction.len)));
            prop_assert!(matches!(instruction.width, 1 | 2 | 4 | 8));
        }
        for len in 0..bytes.len() {
            let part = decode(&bytes[..len], size);
            prop_assert!(part == Err(Undecoded::Truncated) || part == decode(&bytes, size) || len >= INSTRUCTION_MAX);
        }
    }
}

/// Which opcodes with a memory operand are performed: a list that changes only on purpose.
#[test]
fn what_a_kernel_uses_is_decoded() {
    let memory_forms: [&[u8]; 22] = [
        &[0x8b, 0x03],
        &[0x89, 0x03],
        &[0x88, 0x03],
        &[0xc7, 0x03, 1, 2, 3, 4],
        &[0x0f, 0xb6, 0x03],
        &[0x48, 0x63, 0x03],
        &[0x0f, 0xc3, 0x03],
        &[0xf3, 0xa5],
        &[0xf0, 0x0f, 0xb1, 0x0b],
        &[0xf0, 0x48, 0x0f, 0xc7, 0x0b],
        &[0xf0, 0x0f, 0xc1, 0x03],
        &[0x0f, 0xab, 0x03],
        &[0x0f, 0xba, 0x2b, 5],
        &[0x0f, 0xbc, 0x03],
        &[0xd1, 0x23],
        &[0xff, 0x33],
        &[0x8f, 0x03],
        &[0xff, 0x13],
        &[0xff, 0x23],
        &[0x0f, 0x38, 0xf1, 0x03],
        &[0x66, 0x0f, 0x7f, 0x03],
        &[0xa0, 1, 2, 3, 4, 5, 6, 7, 8],
    ];
    for bytes in memory_forms {
        let decoded = decode(bytes, CodeSize::Bits64).map(|instruction| usize::from(instruction.len));
        assert_eq!(decoded, Ok(bytes.len()), "{bytes:02x?}");
    }
    // Loads of vector registers, x87, VEX, far calls, segment registers.
    let others: [&[u8]; 6] = [
        &[0x0f, 0x28, 0x03],
        &[0xd9, 0x03],
        &[0xc5, 0xf8, 0x28, 0x03],
        &[0xff, 0x1b],
        &[0x8e, 0x03],
        &[0x0f, 0x01, 0x13],
    ];
    for bytes in others {
        assert_eq!(decode(bytes, CodeSize::Bits64), Err(Undecoded::Unknown), "{bytes:02x?}");
    }
}
