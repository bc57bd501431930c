//! Instructions on a machine: RAM up to 256 KiB, the local APIC's page, and nothing elsewhere.

use alloc::vec::Vec;

use proptest::prelude::*;
use proto::abi::{VcpuState, gpr, groups, seg};

use crate::entry::blank;
use crate::machine::{Machine, Outcome, Vcpu};
use crate::memory::GuestPhys;
use crate::testing::{FakePlatform, machine};
use crate::walk::EFER_LMA;

const NPF: u64 = 0x400;
const CODE: u64 = 0x5000;
const DATA: u64 = 0x8000;
const NOWHERE: u64 = 0xc000_0000;
const APIC: u64 = 0xfee0_0000;

struct Try {
    machine: Machine<FakePlatform>,
    vcpu: Vcpu,
    state: VcpuState,
}

/// 32-bit code without paging, with flat segments that the kernel has stored.
fn flat(code: &[u8]) -> Try {
    let (machine, vcpu) = machine();
    machine.guest.memory.write(GuestPhys(CODE), code).unwrap();
    let mut state = blank();
    (state.exit_code, state.rip) = (NPF, CODE);
    state.store = groups::SEGMENTS;
    Try { machine, vcpu, state }
}

/// 64-bit code: the first GiB and the four around 3 GiB are mapped to themselves.
fn long(code: &[u8]) -> Try {
    let mut this = flat(code);
    let put =
        |at: u64, entry: u64| this.machine.guest.memory.write(GuestPhys(at), &entry.to_le_bytes()).unwrap();
    put(0x1000, 0x2000 | 7);
    for gib in 0..4 {
        put(0x2000 + gib * 8, gib << 30 | 0x87);
    }
    (this.state.cr0, this.state.cr3, this.state.cr4) = (0x8001_0011, 0x1000, 0x20);
    this.state.efer = EFER_LMA | 0x100;
    this.state.cs_attributes = 0x29b;
    this.state.store = 0;
    this
}

impl Try {
    fn with(mut self, registers: &[(usize, u64)]) -> Self {
        registers.iter().for_each(|&(number, value)| self.state.gprs[number] = value);
        self
    }

    fn run(&mut self) -> Outcome {
        self.machine.handle_exit(&mut self.vcpu, &mut self.state)
    }

    /// Runs, and says how long the instruction was.
    fn done(&mut self) -> u64 {
        let before = self.state.rip;
        assert_eq!(self.run(), Outcome::Run);
        assert_eq!(self.state.inject, 0, "an exception");
        self.state.rip - before
    }

    /// Runs; the exception and its error code.
    fn raises(&mut self) -> (u8, u32) {
        let before = self.state.rip;
        assert_eq!(self.run(), Outcome::Run);
        assert_eq!((self.state.inject >> 31 & 1, self.state.inject >> 8 & 7, self.state.rip), (1, 3, before));
        (self.state.inject as u8, (self.state.inject >> 32) as u32)
    }

    fn word(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.machine.guest.memory.read(GuestPhys(at), &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }

    fn put(self, at: u64, value: u64) -> Self {
        self.machine.guest.memory.write(GuestPhys(at), &value.to_le_bytes()).unwrap();
        self
    }
}

#[test]
fn nothing_reads_as_ones_and_ignores_writes() {
    let at = [(gpr::RBX, NOWHERE), (gpr::RAX, 0x1122_3344_5566_7788)];
    for (code, expected) in [
        (&[0x8b, 0x03][..], 0xffff_ffff),
        (&[0x48, 0x8b, 0x03], u64::MAX),
        (&[0x66, 0x8b, 0x03], 0x1122_3344_5566_ffff),
        (&[0x8a, 0x03], 0x1122_3344_5566_77ff),
        (&[0x8a, 0x23], 0x1122_3344_5566_ff88),
        (&[0x0f, 0xb6, 0x03], 0xff),
        (&[0x48, 0x0f, 0xbe, 0x03], u64::MAX),
        (&[0x0f, 0xbf, 0x03], 0xffff_ffff),
        (&[0x48, 0x63, 0x03], u64::MAX),
        (&[0x66, 0x0f, 0x38, 0xf0, 0x03], 0x1122_3344_5566_ffff),
        (&[0x89, 0x03], 0x1122_3344_5566_7788),
        (&[0x88, 0x63, 0x10], 0x1122_3344_5566_7788),
        (&[0xc7, 0x03, 1, 2, 3, 4], 0x1122_3344_5566_7788),
        (&[0x0f, 0xc3, 0x03], 0x1122_3344_5566_7788),
        (&[0x48, 0x0f, 0xc1, 0x03], u64::MAX),
        (&[0x48, 0x87, 0x03], u64::MAX),
        (&[0xf0, 0x0f, 0xb1, 0x0b], 0xffff_ffff),
        (&[0x66, 0x0f, 0x7f, 0x03], 0x1122_3344_5566_7788),
        (&[0x0f, 0x18, 0x03], 0x1122_3344_5566_7788),
    ] {
        let mut this = long(code).with(&at);
        assert_eq!(this.done(), code.len() as u64, "{code:02x?}");
        assert_eq!(this.state.gprs[gpr::RAX], expected, "{code:02x?}");
    }
}

#[test]
fn constant_addresses_and_those_relative_to_the_instruction_are_reached() {
    let mut moffs = vec_of(&[0x48, 0xa1], &NOWHERE.to_le_bytes());
    let mut this = long(&moffs);
    assert_eq!((this.done(), this.state.gprs[gpr::RAX]), (10, u64::MAX));
    moffs[1] = 0xa3;
    assert_eq!(long(&moffs).done(), 10);
    let relative = vec_of(&[0xc7, 0x05], &0x7000_0000u32.to_le_bytes());
    assert_eq!(long(&vec_of(&relative, &[1, 0, 0, 0])).done(), 10);
    // Relative to itself and its constant: the word right behind it.
    let behind = [0x81, 0x05, 0, 0, 0, 0, 1, 0, 0, 0];
    let mut this = long(&behind).put(CODE + 10, 41);
    assert_eq!((this.done(), this.word(CODE + 10)), (10, 42));
    let mut this = flat(&vec_of(&[0xa1], &(NOWHERE as u32).to_le_bytes()));
    assert_eq!((this.done(), this.state.gprs[gpr::RAX]), (5, 0xffff_ffff));
}

fn vec_of(first: &[u8], second: &[u8]) -> Vec<u8> {
    [first, second].concat()
}

#[test]
fn arithmetic_with_nothing_sets_flags_as_with_ones() {
    let flags = |code: &[u8], rax: u64| {
        let mut this = long(code).with(&[(gpr::RBX, NOWHERE), (gpr::RAX, rax)]);
        this.state.rflags = 2;
        assert_eq!(this.done(), code.len() as u64);
        (this.state.rflags, this.state.gprs[gpr::RAX])
    };
    const CF: u64 = 1;
    const ZF: u64 = 0x40;
    assert_eq!(flags(&[0x01, 0x03], 1).0 & (CF | ZF), CF | ZF, "add [rbx], eax");
    assert_eq!(flags(&[0x03, 0x03], 5), (flags(&[0x03, 0x03], 5).0, 4), "add eax, [rbx]");
    assert_eq!(flags(&[0x83, 0x3b, 0xff], 0).0 & ZF, ZF, "cmp dword [rbx], -1");
    assert_eq!(flags(&[0xf6, 0x03, 1], 0).0 & ZF, 0, "test byte [rbx], 1");
    assert_eq!(flags(&[0xfe, 0x03], 0).0 & (CF | ZF), ZF, "inc byte [rbx]");
    assert_eq!(flags(&[0xf7, 0x1b], 0).0 & CF, CF, "neg dword [rbx]");
    assert_eq!(flags(&[0x0f, 0xba, 0x33, 7], 0).0 & CF, CF, "btr dword [rbx], 7");
    assert_eq!(flags(&[0x48, 0x0f, 0xbd, 0x03], 0).1, 63, "bsr rax, [rbx]");
    assert_eq!(flags(&[0xd1, 0x2b], 0).0 & CF, CF, "shr dword [rbx], 1");
    assert_eq!(flags(&[0xf7, 0x23], 2).1, 0xffff_fffe, "mul dword [rbx]");
    assert_eq!(flags(&[0x0f, 0x44, 0x03], 3).1, 3, "cmove eax, [rbx]");
    assert_eq!(flags(&[0x0f, 0x45, 0x03], 3).1, 0xffff_ffff, "cmovne eax, [rbx]");
}

#[test]
fn a_bits_number_in_a_register_reaches_beyond_the_word() {
    let word = DATA + 0x100;
    for (number, at, bit) in
        [(5u64, word, 5u32), (35, word + 4, 3), (-1i64 as u64, word - 4, 31), (0x400, word + 128, 0)]
    {
        let mut this = long(&[0x0f, 0xab, 0x03]).with(&[(gpr::RBX, word), (gpr::RAX, number)]);
        assert_eq!(this.done(), 3);
        assert_eq!(this.word(at) as u32, 1 << bit, "{number:#x}");
        assert_eq!(this.state.rflags & 1, 0);
    }
    // Far out to where nothing is: the bit is 1.
    let number = (NOWHERE - DATA) * 8 + 13;
    let mut this = long(&[0x48, 0x0f, 0xa3, 0x03]).with(&[(gpr::RBX, DATA), (gpr::RAX, number)]);
    assert_eq!((this.done(), this.state.rflags & 1), (4, 1));
}

#[test]
fn strings_go_both_ways_stop_where_they_differ_and_have_turns() {
    let copy = [(gpr::RSI, NOWHERE), (gpr::RDI, DATA), (gpr::RCX, 10)];
    let mut this = long(&[0xf3, 0x48, 0xa5]).with(&copy);
    assert_eq!(this.done(), 3);
    assert_eq!((this.word(DATA), this.word(DATA + 72), this.word(DATA + 80)), (u64::MAX, u64::MAX, 0));
    assert_eq!(
        (this.state.gprs[gpr::RSI], this.state.gprs[gpr::RDI], this.state.gprs[gpr::RCX]),
        (NOWHERE + 80, DATA + 80, 0)
    );
    let mut this = long(&[0xf3, 0xa4]).with(&copy);
    this.state.rflags |= 1 << 10;
    assert_eq!((this.done(), this.state.gprs[gpr::RDI]), (2, DATA - 10));
    assert_eq!((this.word(DATA - 8), this.word(DATA)), (u64::MAX, 0xff));
    assert_eq!(this.word(DATA - 16), 0xff << 56);
    // More than one go.
    let mut this = long(&[0xf3, 0xaa]).with(&[(gpr::RDI, NOWHERE), (gpr::RCX, 1000)]);
    let mut goes = 0;
    while this.state.rip == CODE {
        assert_eq!(this.run(), Outcome::Run);
        goes += 1;
    }
    assert_eq!((goes, this.state.gprs[gpr::RCX], this.state.gprs[gpr::RDI]), (4, 0, NOWHERE + 1000));
    // Where the pattern ends.
    let mut this = long(&[0xf3, 0xa6])
        .with(&[(gpr::RSI, DATA), (gpr::RDI, NOWHERE), (gpr::RCX, 10)])
        .put(DATA, 0x12_ffff);
    assert_eq!((this.done(), this.state.gprs[gpr::RCX], this.state.rflags & 0x40), (2, 7, 0));
    let mut this = long(&[0xf2, 0xae]).with(&[(gpr::RDI, NOWHERE), (gpr::RCX, 10), (gpr::RAX, 0xff)]);
    assert_eq!((this.done(), this.state.gprs[gpr::RCX], this.state.rflags & 0x40), (2, 9, 0x40));
    // Nothing to do; addresses of 32 bits; no repetition.
    let mut this = long(&[0xf3, 0xab]).with(&[(gpr::RDI, NOWHERE), (gpr::RCX, 0)]);
    assert_eq!((this.done(), this.state.gprs[gpr::RDI]), (2, NOWHERE));
    let mut this = long(&[0x67, 0xad]).with(&[(gpr::RSI, 0xffff_0000_0000_0000 | NOWHERE)]);
    assert_eq!(
        (this.done(), this.state.gprs[gpr::RAX], this.state.gprs[gpr::RSI]),
        (2, 0xffff_ffff, NOWHERE + 4)
    );
}

#[test]
fn a_string_that_faults_midway_has_done_what_it_did() {
    let mut this =
        long(&[0xf3, 0x48, 0xa5]).with(&[(gpr::RSI, NOWHERE), (gpr::RDI, (1 << 32) - 16), (gpr::RCX, 5)]);
    assert_eq!(this.raises(), (14, 2));
    assert_eq!((this.state.cr2, this.state.gprs[gpr::RCX]), (1 << 32, 3));
}

#[test]
fn the_stack_may_be_anywhere() {
    let at = [(gpr::RSP, NOWHERE + 64), (gpr::RAX, 7), (gpr::RBX, NOWHERE)];
    let mut this = long(&[0x50]).with(&at);
    assert_eq!((this.done(), this.state.gprs[gpr::RSP]), (1, NOWHERE + 56));
    let mut this = long(&[0x58]).with(&at);
    assert_eq!(
        (this.done(), this.state.gprs[gpr::RAX], this.state.gprs[gpr::RSP]),
        (1, u64::MAX, NOWHERE + 72)
    );
    assert_eq!(long(&[0xff, 0x33]).with(&[(gpr::RBX, NOWHERE), (gpr::RSP, DATA)]).done(), 2);
    let mut this = long(&[0xff, 0x33]).with(&[(gpr::RBX, NOWHERE), (gpr::RSP, DATA)]);
    this.done();
    assert_eq!((this.word(DATA - 8), this.state.gprs[gpr::RSP]), (u64::MAX, DATA - 8));
    let mut this = long(&[0xe8, 0xfb, 0x0f, 0, 0]).with(&at);
    assert_eq!((this.done(), this.state.gprs[gpr::RSP]), (0x1000, NOWHERE + 56));
    assert_eq!(long(&[0xff, 0x23]).with(&at).done(), u64::MAX - CODE, "a jump to all ones");
    let mut this = flat(&[0x8f, 0x44, 0x24, 4]).with(&[(gpr::RSP, DATA)]).put(DATA, 77);
    assert_eq!((this.done(), this.state.gprs[gpr::RSP], this.word(DATA + 8)), (4, DATA + 4, 77));
    let mut this = flat(&[0x66, 0x50]).with(&at);
    this.state.segments[seg::SS].attributes &= !(1 << 10);
    this.state.gprs[gpr::RSP] = 0x1_0000;
    assert_eq!((this.done(), this.state.gprs[gpr::RSP]), (2, 0x1_fffe), "the stack pointer has 16 bits");
}

#[test]
fn an_operand_may_lie_half_in_ram() {
    let end = crate::testing::RAM_PAGES as u64 * 4096;
    let mut this = long(&[0x48, 0x8b, 0x03]).with(&[(gpr::RBX, end - 3)]).put(end - 8, 0x0102_0304_0506_0708);
    assert_eq!((this.done(), this.state.gprs[gpr::RAX]), (3, 0xffff_ffff_ff01_0203));
    let mut this = long(&[0x48, 0x89, 0x03]).with(&[(gpr::RBX, end - 3), (gpr::RAX, 0x1122_3344_5566_7788)]);
    assert_eq!((this.done(), this.word(end - 8)), (3, 0x6677_8800_0000_0000));
    let mut this = long(&[0x0f, 0x11, 0x03]).with(&[(gpr::RBX, end - 3)]);
    assert_eq!(this.raises(), (6, 0), "a vector register that reaches RAM");
}

#[test]
fn the_page_of_the_local_apic_is_reached_in_xapic_mode_only() {
    let mut this = long(&[0x8b, 0x03]).with(&[(gpr::RBX, APIC + 0x30)]);
    assert_eq!((this.done(), this.state.gprs[gpr::RAX]), (2, 0x5_0014));
    let mut this = long(&[0xc7, 0x03, 0xff, 1, 0, 0]).with(&[(gpr::RBX, APIC + 0xf0)]);
    this.done();
    assert!(this.vcpu.apic.is_enabled());
    // A self-IPI by command, and its end by a bit instruction on EOI.
    (this.state.rip, this.state.gprs[gpr::RBX]) = (CODE, APIC + 0x300);
    this.machine.guest.memory.write(GuestPhys(CODE + 2), &0x4_0041u32.to_le_bytes()).unwrap();
    this.done();
    assert_eq!(this.vcpu.apic.next(), Some(0x41));
    // OR on a register reads and writes it.
    let mut this = long(&[0x80, 0x0b, 0x40]).with(&[(gpr::RBX, APIC + 0x80)]);
    this.done();
    assert_eq!(this.vcpu.apic.read_page(0x80, 4, &this.machine.now()), 0x40);
    let mut this = long(&[0x8b, 0x03]).with(&[(gpr::RBX, APIC + 0x30)]);
    this.vcpu.apic.set_base(0xfee0_0d00).unwrap();
    assert_eq!((this.done(), this.state.gprs[gpr::RAX]), (2, 0xffff_ffff), "x2APIC mode has no page");
    let mut this = long(&[0x48, 0x8b, 0x03]).with(&[(gpr::RBX, APIC + 0x30)]);
    assert_eq!((this.done(), this.state.gprs[gpr::RAX]), (3, 0), "too wide an access");
}

#[test]
fn segments_are_asked_for_where_they_count() {
    let mut this = flat(&[0x65, 0xa1, 0x30, 0, 0, 0]);
    this.state.store = 0;
    this.state.segments[seg::GS].base = APIC;
    assert_eq!((this.run(), this.state.rip), (Outcome::Run, CODE));
    assert_eq!(this.state.store, groups::SEGMENTS);
    assert_eq!((this.done(), this.state.gprs[gpr::RAX], this.state.store), (6, 0x5_0014, 0));
    let mut this = long(&[0x65, 0x8b, 0x03]).with(&[(gpr::RBX, 0x30)]);
    this.state.segments[seg::GS].base = APIC;
    assert_eq!((this.run(), this.state.rip), (Outcome::Run, CODE));
    assert_eq!((this.done(), this.state.gprs[gpr::RAX]), (3, 0x5_0014));
    // Real mode: segments count for the code, too.
    let mut this = flat(&[]).with(&[(gpr::RBX, 0x30)]);
    this.machine.guest.memory.write(GuestPhys(0x2_0010), &[0x66, 0x8b, 0x07]).unwrap();
    (this.state.cs_attributes, this.state.rip, this.state.cr0) = (0x9b, 0x10, 0x10);
    this.state.segments[seg::CS].base = 0x2_0000;
    this.state.segments[seg::DS].base = APIC;
    assert_eq!((this.done(), this.state.gprs[gpr::RAX]), (3, 0x5_0014));
}

#[test]
fn an_instruction_may_cross_pages() {
    let code = [0x81, 0x0d, 0, 0, 0, 0xc0, 1, 2, 3, 4];
    for split in 1..code.len() as u64 {
        let mut this = flat(&[]);
        this.state.rip = 0x6000 - split;
        this.machine.guest.memory.write(GuestPhys(0x6000 - split), &code).unwrap();
        assert_eq!(this.done(), code.len() as u64);
    }
}

#[test]
fn what_cannot_be_performed_is_an_exception_in_the_guest() {
    for code in [&[0x0f, 0x28, 0x03][..], &[0xd9, 0x03], &[0x0f, 0x01, 0x1b], &[0xff, 0x2b]] {
        let mut this = long(code).with(&[(gpr::RBX, NOWHERE)]);
        assert_eq!(this.raises(), (6, 0), "{code:02x?}");
    }
    let mut this = long(&[]);
    (this.state.rip, this.state.exit_info1, this.state.exit_info2) = (NOWHERE, 1 << 32 | 0x14, NOWHERE);
    assert_eq!(this.raises(), (6, 0), "instructions from nowhere");
    let mut this = long(&[0xf7, 0x33]).with(&[(gpr::RBX, NOWHERE), (gpr::RDX, u64::MAX)]);
    assert_eq!(this.raises(), (0, 0), "a quotient that does not fit");
    let mut this = long(&[0x48, 0x8b, 0x03]).with(&[(gpr::RBX, 0x7fff_ffff_fffe)]);
    assert_eq!(this.raises(), (13, 0), "half in the hole of the address space");
    let mut this = long(&[0x50]).with(&[(gpr::RSP, 1 << 50)]);
    assert_eq!(this.raises(), (12, 0));
    let mut this = long(&[0x8b, 0x03]).with(&[(gpr::RBX, NOWHERE)]);
    this.state.rflags |= 1 << 8;
    assert_eq!(this.run(), Outcome::Run);
    assert_eq!((this.state.inject as u8, this.state.dr6 >> 14 & 1, this.state.rip), (1, 1, CODE + 2));
}

#[test]
fn page_tables_that_are_nowhere_are_full_of_ones() {
    let mut this = long(&[0x8b, 0x03]).with(&[(gpr::RBX, 0x1_0000_0000)]).put(0x2000 + 4 * 8, NOWHERE | 7);
    (this.state.exit_info1, this.state.exit_info2, this.state.store) = (1 << 33 | 7, NOWHERE, 0);
    assert_eq!(this.raises(), (14, 9));
    assert_eq!(this.state.cr2, 0x1_0000_0000);
    // All of them: not even the instruction can be fetched.
    let mut this = long(&[0x8b, 0x03]);
    (this.state.exit_info1, this.state.cr3, this.state.store) = (1 << 33 | 7, NOWHERE, 0);
    assert_eq!(this.raises(), (14, 0x19));
    // Nor can that fault be delivered, nor what follows.
    (this.state.exit_int_info, this.state.inject) = (this.state.inject, 0);
    assert_eq!(this.raises(), (8, 0));
    (this.state.exit_int_info, this.state.inject) = (this.state.inject, 0);
    assert!(matches!(this.run(), Outcome::End(..)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn any_instruction_with_any_registers_ends_in_progress_or_an_exception(
        mut code in prop::collection::vec(any::<u8>(), 15), escape in 0u8..4, registers: [u64; 16],
        places in prop::array::uniform16(0usize..6), mode in 0u8..3, info in 0u64..0x40, flags: u64, cpl in 0u32..4
    ) {
        if escape == 0 {
            code[0] = 0x0f;
        }
        let mut this = if mode == 0 { long(&code) } else { flat(&code) };
        this.state.store = groups::SEGMENTS;
        if mode == 2 {
            this.state.cs_attributes = 0x9b;
        }
        for ((register, random), place) in this.state.gprs.iter_mut().zip(registers).zip(places) {
            *register = [random, NOWHERE, APIC + (random & 0xff0), DATA + (random & 0xfff), random & 0xffff, 0x3_fffc][place];
        }
        this.state.rflags = flags & 0x4_0cd5 | 2;
        this.state.cpl = cpl;
        this.state.exit_info1 = (info & 3) << 32 | info >> 1;
        let before = (this.state.rip, this.state.gprs);
        let outcome = this.run();
        prop_assert_eq!(outcome, Outcome::Run);
        let has_moved = (this.state.rip, this.state.gprs) != before || this.state.inject != 0;
        // A jump to itself and a REP with 2^64 steps to go are progress, too; neither keeps all registers.
        prop_assert!(has_moved || matches!(code[0], 0xc2 | 0xc3 | 0xe8 | 0xff), "{:02x?}", code);
    }
}
