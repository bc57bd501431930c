//! What the guest's CPUID says: the host's answers through masks, and Xen's own leaves.
//!
//! A feature is shown only if the table [`proto::cpuid`] offers it and the guest's configuration does not hide it; the
//! local APIC's bit follows the vCPU's APIC_BASE. (OSXSAVE and OSPKE would follow CR4: what they are about is hidden.)
//! Sources: AMD64 APM vol. 3, appendix E; Xen public/arch-x86/cpuid.h, guest_cpuid in arch/x86/cpuid.c.

use proto::cpuid::{self, Narrowing, WORDS, Word};

use crate::apic::{Apic, Mode};

/// Registers of one leaf: eax, ebx, ecx, edx.
pub type Leaf = [u32; 4];

/// First Xen leaf.
const XEN_BASE: u32 = 0x4000_0000;
/// MSR that the guest writes the hypercall page's address to.
pub const HYPERCALL_MSR: u32 = 0x4000_0000;
/// Version of the Xen interface that is reported: 4.17.
pub const XEN_VERSION: u32 = 4 << 16 | 17;
const BASIC_MAX: u32 = 7;
const EXTENDED_BASE: u32 = 0x8000_0000;
const EXTENDED_MAX: u32 = 0x8000_0008;

/// Bits of leaf 0x80000001 edx that say the same as in leaf 1.
const REPEATED: u32 = 0x0183_f3ff;

/// What the policy depends on besides the host.
#[derive(Debug, Clone, Copy)]
pub struct Guest {
    /// Domain ID.
    pub domid: u32,
    /// TSC frequency as the guest sees it.
    pub tsc_khz: u32,
    /// What its configuration hides.
    pub narrowing: Narrowing,
}

/// Leaves that are kept of each of the three ranges.
const KEPT: usize = 16;
/// Place of leaf 1, which holds the APIC number, and whether it is enabled.
const FEATURES: usize = 1;
/// Place of leaf 0x80000001, which repeats the latter.
const REPEATED_FEATURES: usize = 2 * KEPT + 1;
/// Place of leaf 7, which has subleaves; only the first is shown.
const EXTENDED_FEATURES: usize = 7;
/// Places of the Xen leaves 3, which has a subleaf, and 4, which holds the vCPU's number.
const XEN_TIME: usize = KEPT + 3;
/// See [`XEN_TIME`].
const XEN_FEATURES: usize = KEPT + 4;
/// Leaves whose answer is not just what is kept.
const SPECIAL: u64 =
    1 << FEATURES | 1 << EXTENDED_FEATURES | 1 << XEN_TIME | 1 << XEN_FEATURES | 1 << REPEATED_FEATURES;

/// The guest's CPUID: all leaves, computed once; those that do not exist are zero.
#[derive(Debug)]
pub struct Cpuid {
    leaves: [Leaf; 3 * KEPT],
}

/// Where a leaf is kept.
#[inline]
fn place(leaf: u32) -> Option<usize> {
    let range = match leaf & !(KEPT as u32 - 1) {
        0 => 0,
        XEN_BASE => KEPT,
        EXTENDED_BASE => 2 * KEPT,
        _ => return None,
    };
    Some(range + leaf as usize % KEPT)
}

impl Cpuid {
    /// The policy over a host whose CPUID `host` answers.
    pub fn new(host: impl Fn(u32, u32) -> Leaf, guest: Guest) -> Self {
        let features = Features::new(&host, &guest.narrowing);
        let [host_max, ..] = host(0, 0);
        let [extended_max, ..] = host(EXTENDED_BASE, 0);
        let mut leaves = [[0; 4]; 3 * KEPT];
        let mut keep = |leaf, registers| {
            if let Some(kept) = place(leaf).and_then(|place| leaves.get_mut(place)) {
                *kept = registers;
            }
        };
        for leaf in 0..=BASIC_MAX.min(host_max) {
            keep(leaf, basic(leaf, host(leaf, 0), host_max, &features));
        }
        for leaf in EXTENDED_BASE..=EXTENDED_MAX.min(extended_max) {
            keep(leaf, extended(leaf, host(leaf, 0), extended_max, &features));
        }
        for leaf in 0..=4 {
            keep(XEN_BASE + leaf, xen(leaf, guest));
        }
        Self { leaves }
    }

    /// Answers `CPUID` of a vCPU with the given Xen number and APIC. A leaf that does not exist answers zeros.
    #[inline]
    pub fn answer(&self, leaf: u32, subleaf: u32, vcpu: u32, apic: &Apic) -> Leaf {
        let Some(place) = place(leaf) else { return [0; 4] };
        let Some(&registers) = self.leaves.get(place) else { return [0; 4] };
        if SPECIAL >> place & 1 == 0 {
            return registers;
        }
        let [eax, ebx, ecx, edx] = registers;
        match place {
            FEATURES => [eax, ebx & 0x00ff_ffff | apic.id() << 24, ecx, edx & with_apic(apic)],
            REPEATED_FEATURES => [eax, ebx, ecx, edx & with_apic(apic)],
            XEN_FEATURES => [eax, vcpu, ecx, edx],
            _ if subleaf == 0 => registers,
            _ => [0; 4],
        }
    }
}

/// Leaf 1, edx but the APIC's bit if APIC_BASE disables that.
fn with_apic(apic: &Apic) -> u32 {
    const APIC: u32 = 1 << 9;
    if apic.mode() == Mode::Disabled { !APIC } else { !0 }
}

fn xen(leaf: u32, guest: Guest) -> Leaf {
    match leaf {
        0 => [XEN_BASE + 4, 0x566e_6558, 0x6558_4d4d, 0x4d4d_566e],
        1 => [XEN_VERSION, 0, 0, 0],
        2 => [1, HYPERCALL_MSR, 0, 0],
        // Host TSC safe; TSC mode 2, never emulated; frequency.
        3 => [1 << 1, 2, guest.tsc_khz, 0],
        // vCPU and domain numbers are valid; no per-vCPU upcall vector: the plain path is cheaper.
        4 => [1 << 3 | 1 << 4, 0, guest.domid, 0],
        _ => [0; 4],
    }
}

/// The features that the guest sees.
#[derive(Debug)]
struct Features([u32; WORDS]);

impl Features {
    fn new(host: &impl Fn(u32, u32) -> Leaf, narrowing: &Narrowing) -> Self {
        let offered = offered(host);
        let narrowed = core::array::from_fn(|n| offered[n] & !narrowing.hidden[n]);
        Self(cpuid::without_dependents(narrowed))
    }

    fn get(&self, word: Word) -> u32 {
        self.0[word as usize]
    }
}

/// The features that a guest on this processor may see.
fn offered(host: &impl Fn(u32, u32) -> Leaf) -> [u32; WORDS] {
    core::array::from_fn(|n| {
        let (leaf, register) = Word::ALL[n].place();
        let [max, ..] = host(leaf & EXTENDED_BASE, 0);
        let has = if leaf <= max { host(leaf, 0)[register] } else { 0 };
        has & cpuid::HOST[n] | cpuid::ALWAYS[n]
    })
}

/// The first feature that the configuration asks for and that this guest would not see, since the processor lacks
/// it or one that it is built on: leaf, register and bit.
pub fn missing(host: impl Fn(u32, u32) -> Leaf, narrowing: &Narrowing) -> Option<(u32, &'static str, u32)> {
    let features = Features::new(&host, narrowing);
    Word::ALL.into_iter().zip(narrowing.required).find_map(|(word, required)| {
        let lacks = required & !features.get(word);
        let (leaf, register) = word.place();
        let register = ["eax", "ebx", "ecx", "edx"].get(register)?;
        (lacks != 0).then_some((leaf, *register, lacks.trailing_zeros()))
    })
}

fn basic(leaf: u32, host: Leaf, host_max: u32, features: &Features) -> Leaf {
    let [eax, ebx, ..] = host;
    match leaf {
        // "AuthenticAMD": Linux picks VMMCALL by the vendor.
        0 => [BASIC_MAX.min(host_max), 0x6874_7541, 0x444d_4163, 0x6974_6e65],
        // CLFLUSH line size; one logical processor.
        1 => {
            let ebx = ebx & 0x0000_ff00 | 1 << 16;
            [eax, ebx, features.get(Word::Basic1Ecx), features.get(Word::Basic1Edx)]
        }
        7 => [0, features.get(Word::Basic7Ebx), features.get(Word::Basic7Ecx), features.get(Word::Basic7Edx)],
        _ => [0; 4],
    }
}

fn extended(leaf: u32, host: Leaf, host_max: u32, features: &Features) -> Leaf {
    let [eax, ebx, ..] = host;
    match leaf - EXTENDED_BASE {
        0 => [EXTENDED_MAX.min(host_max), 0x6874_7541, 0x444d_4163, 0x6974_6e65],
        1 => {
            let repeated = features.get(Word::Basic1Edx) & REPEATED;
            [eax, ebx, features.get(Word::Extended1Ecx), features.get(Word::Extended1Edx) | repeated]
        }
        // Name, caches.
        2..=6 => host,
        7 => [0, 0, 0, features.get(Word::Extended7Edx)],
        // Address sizes: the guest gets no more than frames can be mapped at, and 48-bit linear addresses.
        8 => [(eax & 0xff).min(40) | 48 << 8, features.get(Word::Extended8Ebx), 0, 0],
        _ => [0; 4],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn all_ones(leaf: u32, _: u32) -> Leaf {
        match leaf {
            0 => [0x20, !0, !0, !0],
            EXTENDED_BASE => [0x8000_0021, !0, !0, !0],
            0x8000_0008 => [0x3934, !0, !0, !0],
            _ => [!0; 4],
        }
    }

    fn policy() -> Cpuid {
        Cpuid::new(all_ones, Guest { domid: 5, tsc_khz: 2_000_000, narrowing: Narrowing::default() })
    }

    #[test]
    fn features_without_support_are_hidden_on_any_host() {
        let policy = policy();
        let [_, ebx, ecx, edx] = policy.answer(1, 0, 0, &Apic::new(6));
        let (monitor, pcid, xsave, osxsave, avx) = (3, 17, 26, 27, 28);
        for bit in [monitor, pcid, xsave, osxsave, avx] {
            assert_eq!(ecx >> bit & 1, 0, "leaf 1 ecx bit {bit}");
        }
        assert_eq!((ecx >> 21 & 1, ecx >> 31, ebx >> 24), (1, 1, 6));
        assert_eq!(ecx >> 24 & 1, 1, "the deadline timer is shown where the host has it, as on Xen");
        let (mce, mtrr, mca) = (7, 12, 14);
        for bit in [mce, mtrr, mca] {
            assert_eq!(edx >> bit & 1, 0, "leaf 1 edx bit {bit}");
        }
        let [_, _, ecx, edx] = policy.answer(0x8000_0001, 0, 0, &Apic::new(0));
        assert_eq!((ecx >> 2 & 1, edx >> 27 & 1, edx >> 29 & 1), (0, 0, 1), "SVM, RDTSCP, long mode");
        let [_, _, ecx, _] = policy.answer(7, 0, 0, &Apic::new(0));
        assert_eq!((ecx >> 16 & 1, ecx >> 22 & 1), (0, 0), "LA57, RDPID");
        assert_eq!(policy.answer(7, 1, 0, &Apic::new(0)), [0; 4]);
        assert_eq!(policy.answer(0xd, 0, 0, &Apic::new(0)), [0; 4]);
        assert_eq!(policy.answer(0x8000_000a, 0, 0, &Apic::new(0)), [0; 4]);
        assert_eq!(policy.answer(0x8000_0008, 0, 0, &Apic::new(0))[0], 40 | 48 << 8);
    }

    #[test]
    fn nothing_appears_that_the_host_lacks_but_what_is_emulated() {
        let policy = Cpuid::new(
            |leaf, _| if leaf & 0xffff == 0 { [leaf + 8, 0, 0, 0] } else { [0; 4] },
            Guest { domid: 1, tsc_khz: 1, narrowing: Narrowing::default() },
        );
        assert_eq!(policy.answer(1, 0, 0, &Apic::new(0)), [0, 1 << 16, 1 << 21 | 1 << 31, 1 << 9]);
        assert_eq!(policy.answer(0x8000_0007, 0, 0, &Apic::new(0)), [0; 4], "not without a TSC");
    }

    #[test]
    fn the_apics_bit_follows_its_base() {
        let policy = policy();
        let mut apic = Apic::new(2);
        let shown = |apic: &Apic| [1, 0x8000_0001].map(|leaf| policy.answer(leaf, 0, 0, apic));
        let before = shown(&apic);
        for (base, is_shown) in
            [(0xfee0_0d00, true), (0xfee0_0100, false), (0xfee0_0900, true), (0, false), (0xfee0_0800, true)]
        {
            apic.set_base(base).unwrap();
            for ([eax, ebx, ecx, edx], now) in before.into_iter().zip(shown(&apic)) {
                assert_eq!(now, [eax, ebx, ecx, if is_shown { edx } else { edx & !(1 << 9) }], "{base:#x}");
            }
        }
        assert_eq!(before.map(|[.., edx]| edx >> 9 & 1), [1, 1]);
    }

    #[test]
    fn a_narrowed_guest_sees_less_and_nothing_else() {
        let mut narrowing = Narrowing::default();
        for name in ["sse4_2", "fpu", "rdrand", "smep", "nx", "invtsc", "x2apic", "avx"] {
            let feature = cpuid::find(name).unwrap();
            narrowing.hidden[feature.word as usize] |= 1 << feature.bit;
        }
        let narrow = Cpuid::new(all_ones, Guest { domid: 5, tsc_khz: 2_000_000, narrowing });
        let difference = |leaf| -> Leaf {
            let (all, some) =
                (policy().answer(leaf, 0, 0, &Apic::new(0)), narrow.answer(leaf, 0, 0, &Apic::new(0)));
            core::array::from_fn(|n| all[n] ^ some[n])
        };
        // With FPU go MMX and what AMD added to that, with NX SMAP.
        assert_eq!(difference(1), [0, 0, 1 << 20 | 1 << 30 | 1 << 21, 1 | 1 << 23]);
        assert_eq!(difference(7), [0, 1 << 7 | 1 << 20, 0, 0]);
        let repeated = 1 | 1 << 23;
        assert_eq!(difference(0x8000_0001), [0, 0, 0, 1 << 20 | 1 << 22 | repeated]);
        assert_eq!(difference(0x8000_0007), [0, 0, 0, 1 << 8]);
        assert_eq!(difference(0x8000_0008), [0, 1 << 2, 0, 0]);
        assert_eq!((difference(0), difference(8)), ([0; 4], [0; 4]));
    }

    #[test]
    fn what_a_guest_needs_and_the_processor_lacks_is_named() {
        let mut narrowing = Narrowing::default();
        narrowing.required[Word::Basic7Ebx as usize] = 1 << 29 | 1 << 7;
        assert_eq!(missing(all_ones, &narrowing), None);
        let without_sha = |leaf, subleaf| match all_ones(leaf, subleaf) {
            [a, b, c, d] if leaf == 7 => [a, b & !(1 << 29), c, d],
            other => other,
        };
        assert_eq!(missing(without_sha, &narrowing), Some((7, "ebx", 29)));
        narrowing.hidden[Word::Basic1Edx as usize] = 1 << 24;
        assert_eq!(missing(all_ones, &narrowing), Some((7, "ebx", 29)), "SHA without FXSR");
        narrowing.hidden = [0; WORDS];
        let old = |leaf, _| if leaf == 0 { [1, 0, 0, 0] } else { [!0; 4] };
        assert_eq!(missing(old, &narrowing), Some((7, "ebx", 7)), "leaf 7 does not exist");
    }

    #[test]
    fn xen_is_found_and_described() {
        let policy = policy();
        let [eax, ebx, ecx, edx] = policy.answer(XEN_BASE, 0, 0, &Apic::new(0));
        let name: Vec<u8> = [ebx, ecx, edx].iter().flat_map(|r| r.to_le_bytes()).collect();
        assert_eq!((eax, name.as_slice()), (XEN_BASE + 4, b"XenVMMXenVMM".as_slice()));
        assert_eq!(policy.answer(XEN_BASE + 2, 0, 0, &Apic::new(0)), [1, HYPERCALL_MSR, 0, 0]);
        assert_eq!(policy.answer(XEN_BASE + 3, 0, 0, &Apic::new(0)), [2, 2, 2_000_000, 0]);
        assert_eq!(policy.answer(XEN_BASE + 3, 1, 0, &Apic::new(0)), [0; 4]);
        assert_eq!(policy.answer(XEN_BASE + 4, 0, 1, &Apic::new(2)), [0x18, 1, 5, 0]);
        for absent in [8, 0x10, 0x1000_0007, XEN_BASE + 5, XEN_BASE + 0x10, 0x8000_0010, 0xc000_0001] {
            assert_eq!(policy.answer(absent, 0, 1, &Apic::new(2)), [0; 4], "{absent:#x}");
        }
        assert_eq!(policy.answer(XEN_BASE + 0x100, 0, 0, &Apic::new(0)), [0; 4]);
        let [_, ebx, ecx, edx] = policy.answer(0, 0, 0, &Apic::new(0));
        let vendor: Vec<u8> = [ebx, edx, ecx].iter().flat_map(|r| r.to_le_bytes()).collect();
        assert_eq!(vendor, b"AuthenticAMD");
    }
}
