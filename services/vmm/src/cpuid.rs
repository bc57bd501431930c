//! What the guest's CPUID says: the host's answers through masks, and Xen's own leaves.
//!
//! A feature is shown only if both the host has it and the mask names it, so that a newer processor never
//! shows something that nobody thought about. Hidden on purpose: SVM, MONITOR (no nested use), XSAVE and
//! AVX (its state is not switched), RDTSCP and RDPID (TSC_AUX is not switched), MCE/MCA and MTRR (no MSRs
//! behind them), PCID, LA57. Sources: AMD64 APM vol. 3, appendix E; Xen public/arch-x86/cpuid.h.

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

/// Bits `list` as a word.
const fn bits(list: &[u32]) -> u32 {
    let mut word = 0;
    let mut n = 0;
    while n < list.len() {
        word |= 1 << list[n];
        n += 1;
    }
    word
}

/// Leaf 1 ecx: SSE3, PCLMULQDQ, SSSE3, CX16, SSE4.1, SSE4.2, MOVBE, POPCNT, AES, RDRAND.
const LEAF1_ECX: u32 = bits(&[0, 1, 9, 13, 19, 20, 22, 23, 25, 30]);
/// x2APIC and "under a hypervisor" are ours to say.
const LEAF1_ECX_SET: u32 = bits(&[21, 31]);
/// FPU, VME, DE, PSE, TSC, MSR, PAE, CX8, APIC, SEP, PGE, CMOV, PAT, PSE36, CLFLUSH, MMX, FXSR, SSE, SSE2.
const LEAF1_EDX: u32 = bits(&[0, 1, 2, 3, 4, 5, 6, 8, 9, 11, 13, 15, 16, 17, 19, 23, 24, 25, 26]);
/// The local APIC is emulated: always there.
const LEAF1_EDX_SET: u32 = bits(&[9]);
/// FSGSBASE, SMEP, ERMS, RDSEED, ADX, SMAP, CLFLUSHOPT, CLWB, SHA.
const LEAF7_EBX: u32 = bits(&[0, 7, 9, 18, 19, 20, 23, 24, 29]);
/// UMIP.
const LEAF7_ECX: u32 = bits(&[2]);
/// LAHF, ABM, SSE4A, misaligned SSE, 3DNow prefetch.
const EXT1_ECX: u32 = bits(&[0, 5, 6, 7, 8]);
/// As leaf 1 where the bits repeat, and SYSCALL, NX, MMX extensions, 1 GiB pages, long mode.
const EXT1_EDX: u32 = bits(&[0, 1, 2, 3, 4, 5, 6, 8, 9, 11, 13, 15, 16, 17, 20, 22, 23, 24, 26, 29]);
/// Invariant TSC.
const EXT7_EDX: u32 = bits(&[8]);

/// What the policy depends on besides the host.
#[derive(Debug, Clone, Copy)]
pub struct Guest {
    /// Domain ID.
    pub domid: u32,
    /// TSC frequency as the guest sees it.
    pub tsc_khz: u32,
}

/// Leaves that are kept of each of the three ranges.
const KEPT: usize = 16;
/// Place of leaf 1, which holds the APIC number.
const FEATURES: usize = 1;
/// Place of leaf 7, which has subleaves; only the first is shown.
const EXTENDED_FEATURES: usize = 7;
/// Places of the Xen leaves 3, which has a subleaf, and 4, which holds the vCPU's number.
const XEN_TIME: usize = KEPT + 3;
/// See [`XEN_TIME`].
const XEN_FEATURES: usize = KEPT + 4;
/// Leaves whose answer is not just what is kept.
const SPECIAL: u64 = 1 << FEATURES | 1 << EXTENDED_FEATURES | 1 << XEN_TIME | 1 << XEN_FEATURES;

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
        let [host_max, ..] = host(0, 0);
        let [extended_max, ..] = host(EXTENDED_BASE, 0);
        let mut leaves = [[0; 4]; 3 * KEPT];
        let mut keep = |leaf, registers| {
            if let Some(kept) = place(leaf).and_then(|place| leaves.get_mut(place)) {
                *kept = registers;
            }
        };
        for leaf in 0..=BASIC_MAX.min(host_max) {
            keep(leaf, basic(leaf, host(leaf, 0), host_max));
        }
        for leaf in EXTENDED_BASE..=EXTENDED_MAX.min(extended_max) {
            keep(leaf, extended(leaf, host(leaf, 0), extended_max));
        }
        for leaf in 0..=4 {
            keep(XEN_BASE + leaf, xen(leaf, guest));
        }
        Self { leaves }
    }

    /// Answers `CPUID` of a vCPU with the given Xen number and APIC number. A leaf that does not exist
    /// answers zeros.
    #[inline]
    pub fn answer(&self, leaf: u32, subleaf: u32, vcpu: u32, apic: u32) -> Leaf {
        let Some(place) = place(leaf) else { return [0; 4] };
        let Some(&registers) = self.leaves.get(place) else { return [0; 4] };
        if SPECIAL >> place & 1 == 0 {
            return registers;
        }
        let [eax, ebx, ecx, edx] = registers;
        match place {
            FEATURES => [eax, ebx & 0x00ff_ffff | apic << 24, ecx, edx],
            XEN_FEATURES => [eax, vcpu, ecx, edx],
            _ if subleaf == 0 => registers,
            _ => [0; 4],
        }
    }
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

fn basic(leaf: u32, host: Leaf, host_max: u32) -> Leaf {
    let [eax, ebx, ecx, edx] = host;
    match leaf {
        // "AuthenticAMD": Linux picks VMMCALL by the vendor.
        0 => [BASIC_MAX.min(host_max), 0x6874_7541, 0x444d_4163, 0x6974_6e65],
        1 => [
            eax,
            // CLFLUSH line size; one logical processor.
            ebx & 0x0000_ff00 | 1 << 16,
            ecx & LEAF1_ECX | LEAF1_ECX_SET,
            edx & LEAF1_EDX | LEAF1_EDX_SET,
        ],
        7 => [0, ebx & LEAF7_EBX, ecx & LEAF7_ECX, 0],
        _ => [0; 4],
    }
}

fn extended(leaf: u32, host: Leaf, host_max: u32) -> Leaf {
    let [eax, ebx, ecx, edx] = host;
    match leaf - EXTENDED_BASE {
        0 => [EXTENDED_MAX.min(host_max), 0x6874_7541, 0x444d_4163, 0x6974_6e65],
        1 => [eax, ebx, ecx & EXT1_ECX, edx & EXT1_EDX | LEAF1_EDX_SET],
        // Name, caches.
        2..=6 => host,
        7 => [0, 0, 0, EXT7_EDX],
        // Address sizes: the guest gets no more than frames can be mapped at, and 48-bit linear addresses.
        8 => [(eax & 0xff).min(40) | 48 << 8, 0, 0, 0],
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
        Cpuid::new(all_ones, Guest { domid: 5, tsc_khz: 2_000_000 })
    }

    #[test]
    fn features_without_support_are_hidden_on_any_host() {
        let policy = policy();
        let [_, ebx, ecx, edx] = policy.answer(1, 0, 0, 6);
        let (monitor, pcid, deadline, xsave, osxsave, avx) = (3, 17, 24, 26, 27, 28);
        for bit in [monitor, pcid, deadline, xsave, osxsave, avx] {
            assert_eq!(ecx >> bit & 1, 0, "leaf 1 ecx bit {bit}");
        }
        assert_eq!((ecx >> 21 & 1, ecx >> 31, ebx >> 24), (1, 1, 6));
        let (mce, mtrr, mca) = (7, 12, 14);
        for bit in [mce, mtrr, mca] {
            assert_eq!(edx >> bit & 1, 0, "leaf 1 edx bit {bit}");
        }
        let [_, _, ecx, edx] = policy.answer(0x8000_0001, 0, 0, 0);
        assert_eq!((ecx >> 2 & 1, edx >> 27 & 1, edx >> 29 & 1), (0, 0, 1), "SVM, RDTSCP, long mode");
        let [_, _, ecx, _] = policy.answer(7, 0, 0, 0);
        assert_eq!((ecx >> 16 & 1, ecx >> 22 & 1), (0, 0), "LA57, RDPID");
        assert_eq!(policy.answer(7, 1, 0, 0), [0; 4]);
        assert_eq!(policy.answer(0xd, 0, 0, 0), [0; 4]);
        assert_eq!(policy.answer(0x8000_000a, 0, 0, 0), [0; 4]);
        assert_eq!(policy.answer(0x8000_0008, 0, 0, 0)[0], 40 | 48 << 8);
    }

    #[test]
    fn nothing_appears_that_the_host_lacks_but_what_is_emulated() {
        let policy = Cpuid::new(
            |leaf, _| if leaf & 0xffff == 0 { [leaf + 8, 0, 0, 0] } else { [0; 4] },
            Guest { domid: 1, tsc_khz: 1 },
        );
        assert_eq!(policy.answer(1, 0, 0, 0), [0, 1 << 16, 1 << 21 | 1 << 31, 1 << 9]);
        assert_eq!(policy.answer(0x8000_0007, 0, 0, 0), [0, 0, 0, 1 << 8]);
    }

    #[test]
    fn xen_is_found_and_described() {
        let policy = policy();
        let [eax, ebx, ecx, edx] = policy.answer(XEN_BASE, 0, 0, 0);
        let name: Vec<u8> = [ebx, ecx, edx].iter().flat_map(|r| r.to_le_bytes()).collect();
        assert_eq!((eax, name.as_slice()), (XEN_BASE + 4, b"XenVMMXenVMM".as_slice()));
        assert_eq!(policy.answer(XEN_BASE + 2, 0, 0, 0), [1, HYPERCALL_MSR, 0, 0]);
        assert_eq!(policy.answer(XEN_BASE + 3, 0, 0, 0), [2, 2, 2_000_000, 0]);
        assert_eq!(policy.answer(XEN_BASE + 3, 1, 0, 0), [0; 4]);
        assert_eq!(policy.answer(XEN_BASE + 4, 0, 1, 2), [0x18, 1, 5, 0]);
        for absent in [8, 0x10, 0x1000_0007, XEN_BASE + 5, XEN_BASE + 0x10, 0x8000_0010, 0xc000_0001] {
            assert_eq!(policy.answer(absent, 0, 1, 2), [0; 4], "{absent:#x}");
        }
        assert_eq!(policy.answer(XEN_BASE + 0x100, 0, 0, 0), [0; 4]);
        let [_, ebx, ecx, edx] = policy.answer(0, 0, 0, 0);
        let vendor: Vec<u8> = [ebx, edx, ecx].iter().flat_map(|r| r.to_le_bytes()).collect();
        assert_eq!(vendor, b"AuthenticAMD");
    }
}
