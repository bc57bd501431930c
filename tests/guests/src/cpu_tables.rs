//! What CPUID shows and which MSRs there are, beside the tables of the VMM (`proto/src/cpuid.rs`,
//! `services/vmm/src/msr.rs`): here is what a guest relies on, written down a second time.

use crate::check::Check;
use crate::machine::{self, read_msr, write_msr};
use crate::numbers::Random;
use crate::traps::GP;

/// MSRs that read as a constant, and whether writes are accepted without effect.
const CONSTANT: [(u32, u64, bool); 15] = [
    (0x8b, 0, false),
    (0x1d9, 0, true),
    (0x1db, 0, false),
    (0x1de, 0, false),
    (0xc001_0000, 0, true),
    (0xc001_0007, 0, true),
    (0xc001_0010, 0, true),
    (0xc001_0015, 1 << 24, true),
    (0xc001_0016, 0, true),
    (0xc001_0019, 0, true),
    (0xc001_001a, 0, true),
    (0xc001_001d, 0, true),
    (0xc001_1020, 0, true),
    (0xc001_1028, 0, true),
    (0xc001_1029, 0, true),
];

/// MSRs that there are not: those of hidden features, and some that never were.
const ABSENT: [u32; 22] = [
    0x0,
    0x17,
    0x3a,
    0x3b,
    0x48,
    0x49,
    0xfe,
    0x179,
    0x1a0,
    0x200,
    0x2ff,
    0x400,
    0xda0,
    0x4000_0001,
    0xc000_0103,
    0xc000_0104,
    0xc001_0114,
    0xc001_0117,
    0xc001_0200,
    0xc001_1027,
    0x1234_5678,
    u32::MAX,
];

/// MSRs that keep what is written.
const KEPT: [(u32, u64); 9] = [
    (0x174, 8),
    (0x175, 0xffff_8000_0000_1000),
    (0xc000_0081, 0x23_0010 << 32),
    (0xc000_0082, 0xffff_8000_0000_2000),
    (0xc000_0084, 0x4_7700),
    (0xc000_0100, 0x7fff_ffff_f000),
    (0xc000_0102, 0xffff_8000_0000_3000),
    (0x277, 0x0105_0406_0007_0406),
    (0xc001_001f, 1 << 46),
];

const EFER: u32 = 0xc000_0080;
const PAT: u32 = 0x277;
const TSC: u32 = 0x10;

/// The mode `msr-table`.
pub fn msrs(check: &mut Check, random: &mut Random) {
    for (msr, value, is_writable) in CONSTANT {
        check.equal(format_args!("MSR {msr:#x}"), Ok(value), read_msr(msr));
        let written = write_msr(msr, random.next());
        if is_writable {
            check.equal(format_args!("MSR {msr:#x} written"), Ok(()), written);
        } else {
            check.faults(format_args!("MSR {msr:#x} written"), GP, written);
        }
        check.equal(format_args!("MSR {msr:#x} again"), Ok(value), read_msr(msr));
    }
    for msr in ABSENT {
        check.faults(format_args!("MSR {msr:#x} read"), GP, read_msr(msr));
        check.faults(format_args!("MSR {msr:#x} written"), GP, write_msr(msr, 0));
    }
    for (msr, value) in KEPT {
        let before = read_msr(msr);
        check.works(format_args!("MSR {msr:#x} written"), write_msr(msr, value));
        machine::cpuid(0, 0);
        check.equal(format_args!("MSR {msr:#x} read back"), Ok(value), read_msr(msr));
        let _fault = write_msr(msr, before.unwrap_or(0));
    }
    check.faults("microcode loader read", GP, read_msr(0xc001_0020));
    check.works("microcode loader written", write_msr(0xc001_0020, 0x1000));
    check.faults("PAT with a reserved type", GP, write_msr(PAT, 2));
    let efer = read_msr(EFER).unwrap_or(0);
    check.equal_hex("EFER", 0xd00u64, efer);
    for (what, bits) in [("SVME", 1u64 << 12), ("LMSLE", 1 << 13), ("FFXSR", 1 << 14), ("bit 63", 1 << 63)] {
        check.faults(format_args!("EFER.{what}"), GP, write_msr(EFER, efer | bits));
    }
    check.faults("EFER.LME cleared under paging", GP, write_msr(EFER, efer & !0x100));
    check.works("EFER.SCE", write_msr(EFER, efer | 1));
    check.equal("EFER after all that", Ok(efer | 1), read_msr(EFER));
    let (before, now) = (machine::tsc(), read_msr(TSC).unwrap_or(0));
    check.within("the TSC's MSR, between two RDTSC", before..=machine::tsc(), now);
    check.works("the TSC is set", write_msr(TSC, 1 << 50));
    check.within("and counts from there", 1 << 50..=1 << 51, machine::tsc());
    check.faults("hypercall page at an odd address", GP, write_msr(0x4000_0000, 0xc0_0001));
    check.faults("hypercall page where nothing is", GP, write_msr(0x4000_0000, crate::NOWHERE));
    check.works("hypercall page", write_msr(0x4000_0000, crate::SCRATCH));
}

/// Hidden features: leaf, register, bits.
const HIDDEN: [(u32, usize, u32); 8] = [
    // MONITOR, VMX, FMA, PCID, XSAVE, OSXSAVE, AVX, F16C.
    (1, 2, 1 << 3 | 1 << 5 | 1 << 12 | 1 << 17 | 0b1111 << 26),
    // MCE, MTRR, MCA, HTT.
    (1, 3, 1 << 7 | 1 << 12 | 1 << 14 | 1 << 28),
    // TSC_ADJUST, AVX2, INVPCID, MPX, AVX-512F.
    (7, 1, 1 << 1 | 1 << 5 | 1 << 10 | 1 << 14 | 1 << 16),
    // PKU, OSPKE, CET, LA57, RDPID.
    (7, 2, 0b11 << 3 | 1 << 7 | 1 << 16 | 1 << 22),
    // SVM, IBS, SKINIT, performance counters.
    (0x8000_0001, 2, 1 << 2 | 1 << 10 | 1 << 12 | 1 << 23),
    // FFXSR, RDTSCP, 3DNow.
    (0x8000_0001, 3, 1 << 25 | 1 << 27 | 0b11 << 30),
    // RDPRU, IBRS and its like.
    (0x8000_0008, 1, 1 << 4 | 0b111 << 14),
    (0x8000_0007, 3, !(1 << 8)),
];

/// The mode `cpuid-table`.
pub fn cpuid(check: &mut Check, random: &mut Random) {
    let [max, b, c, d] = machine::cpuid(0, 0);
    check.equal("vendor: AuthenticAMD", [0x6874_7541, 0x444d_4163, 0x6974_6e65], [b, c, d]);
    check.at_most("highest leaf", 7, max);
    let [max, ..] = machine::cpuid(0x8000_0000, 0);
    check.at_most("highest extended leaf", 0x8000_0008, max);
    let [xen, b, c, d] = machine::cpuid(0x4000_0000, 0);
    check.equal("XenVMMXenVMM", [0x566e_6558, 0x6558_4d4d, 0x4d4d_566e], [b, c, d]);
    check.at_least("highest Xen leaf", 0x4000_0002, xen);
    let [_, ebx, ecx, edx] = machine::cpuid(1, 0);
    check.equal("hypervisor, x2APIC, SSE3", (1, 1, 1), (ecx >> 31, ecx >> 21 & 1, ecx & 1));
    check.equal("FPU, TSC, MSR, PAE, CX8, PGE, PAT, SSE2", 0x401_2171, edx & 0x401_2171);
    check.equal("APIC number and logical processors", 1, ebx >> 16);
    let [_, _, _, extended] = machine::cpuid(0x8000_0001, 0);
    check.equal("SYSCALL, NX, long mode", 0x2010_0800, extended & 0x2010_0800);
    check.equal_hex("what leaf 0x80000001 repeats", edx & 0x0183_f3ff, extended & 0x0183_f3ff);
    let [sizes, ..] = machine::cpuid(0x8000_0008, 0);
    check.equal("linear address bits", 48, sizes >> 8 & 0xff);
    for (leaf, register, bits) in HIDDEN {
        let got = machine::cpuid(leaf, 0).get(register).map_or(0, |word| word & bits);
        check.equal_hex(format_args!("hidden features of leaf {leaf:#x}, register {register}"), 0, got);
    }
    for leaf in [0xb, 0xd, 0x10, 0x14, 0x8000_000a, 0x8000_001d, 0x8000_0021, 0x4000_0100, 0xc000_0000] {
        check.equal(format_args!("leaf {leaf:#x}"), [0; 4], machine::cpuid(leaf, 0));
    }
    let mut odd = 0;
    for _ in 0..2000 {
        let leaf = random.next() as u32 | 0x0001_0000;
        odd += u32::from(machine::cpuid(leaf, random.next() as u32) != [0; 4]);
    }
    check.equal("leaves at random that are not zero", 0, odd);
}

/// The mode `cpuid-narrow`, with `cpuid = "host,sse3=0,invtsc=0,fpu=0,avx=0,sse2=1"`.
pub fn narrow(check: &mut Check, _: &mut Random) {
    let [_, _, ecx, edx] = machine::cpuid(1, 0);
    check.equal_hex("SSE3 is hidden, and SSSE3 and SSE4 with it", 0, ecx & (1 | 1 << 9 | 0b11 << 19));
    check.equal("CMPXCHG16 is not", 1, ecx >> 13 & 1);
    check.equal("FPU is hidden, and MMX with it", 0, edx & (1 | 1 << 23));
    check.equal("SSE2 is not", 1, edx >> 26 & 1);
    let [_, _, ecx, edx] = machine::cpuid(0x8000_0001, 0);
    check.equal(
        "SSE4A, FPU, MMXEXT and MMX in leaf 0x80000001",
        (0, 0),
        (ecx & 1 << 6, edx & (1 | 0b11 << 22)),
    );
    check.equal("invariant TSC", 0, machine::cpuid(0x8000_0007, 0)[3]);
    let [_, _, ecx, _] = machine::cpuid(1, 0);
    check.equal("hypervisor and x2APIC", (1, 1), (ecx >> 31, ecx >> 21 & 1));
}
