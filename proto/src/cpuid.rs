//! CPUID features by name: which are offered to guests, and how a guest's configuration narrows them.
//!
//! One table for the toolstack (names, refusals) and the VMM (masks). A feature that is not in it is hidden, so that
//! a newer processor never shows something that nobody thought about. Names as in libxl (tools/libs/light/
//! libxl_cpuid.c), with Xen's own (public/arch-x86/cpufeatureset.h) as second ones. Sources: AMD64 APM vol. 3,
//! appendix E; Intel SDM vol. 2, CPUID.

use postcard::experimental::max_size::MaxSize;
use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

/// Registers of CPUID that hold features.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// Leaf 1, ecx.
    Basic1Ecx,
    /// Leaf 1, edx.
    Basic1Edx,
    /// Leaf 7, subleaf 0, ebx.
    Basic7Ebx,
    /// Leaf 7, subleaf 0, ecx.
    Basic7Ecx,
    /// Leaf 7, subleaf 0, edx.
    Basic7Edx,
    /// Leaf 0x80000001, ecx.
    Extended1Ecx,
    /// Leaf 0x80000001, edx; the bits that repeat leaf 1's follow those.
    Extended1Edx,
    /// Leaf 0x80000007, edx.
    Extended7Edx,
    /// Leaf 0x80000008, ebx.
    Extended8Ebx,
}

/// Number of [`Word`]s.
pub const WORDS: usize = 9;

impl Word {
    /// All of them, by number.
    pub const ALL: [Self; WORDS] = [
        Self::Basic1Ecx,
        Self::Basic1Edx,
        Self::Basic7Ebx,
        Self::Basic7Ecx,
        Self::Basic7Edx,
        Self::Extended1Ecx,
        Self::Extended1Edx,
        Self::Extended7Edx,
        Self::Extended8Ebx,
    ];

    /// Leaf and register (0: eax).
    pub const fn place(self) -> (u32, usize) {
        match self {
            Self::Basic1Ecx => (1, 2),
            Self::Basic1Edx => (1, 3),
            Self::Basic7Ebx => (7, 1),
            Self::Basic7Ecx => (7, 2),
            Self::Basic7Edx => (7, 3),
            Self::Extended1Ecx => (0x8000_0001, 2),
            Self::Extended1Edx => (0x8000_0001, 3),
            Self::Extended7Edx => (0x8000_0007, 3),
            Self::Extended8Ebx => (0x8000_0008, 1),
        }
    }
}

/// Whether guests see a feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// If the processor has it.
    Host,
    /// Always: it is made here.
    Always,
    /// Never, because of this.
    Never(&'static str),
}

/// A feature.
#[derive(Debug, Clone, Copy)]
pub struct Feature {
    /// Its names, the usual one first.
    pub names: &'static [&'static str],
    /// Where it is.
    pub word: Word,
    /// See [`Self::word`].
    pub bit: u32,
    /// Whether it is offered.
    pub policy: Policy,
}

impl Feature {
    /// Whether its bit is set.
    pub fn is_in(&self, words: &Words) -> bool {
        words[self.word as usize] >> self.bit & 1 != 0
    }
}

const fn feature(names: &'static [&'static str], word: Word, bit: u32, policy: Policy) -> Feature {
    Feature { names, word, bit, policy }
}

const XSAVE: Policy = Policy::Never("the state beyond SSE is not offered: XCR0 is not the guest's to set");
const AUX: Policy = Policy::Never("TSC_AUX is not switched, since that would make every exit slower");
const SPECULATION: Policy = Policy::Never("the MSRs behind it are not offered");
const VIRTUAL: Policy = Policy::Never("guests cannot have guests");
const POWER: Policy = Policy::Never("it manages power or temperature, which belong to the machine");
const CHECKS: Policy = Policy::Never("machine checks belong to the machine");
const COUNTERS: Policy = Policy::Never("performance counters are not offered");
const INTEL: Policy = Policy::Never("it is Intel's, and guests see an AMD processor");
const ABSENT: Policy = Policy::Never("there is nothing behind it in a PVH guest");

/// The features that have a name.
pub const FEATURES: &[Feature] = {
    use Policy::{Always, Host};
    use Word::{
        Basic1Ecx as C1, Basic1Edx as D1, Basic7Ebx as B7, Basic7Ecx as C7, Basic7Edx as D7,
        Extended1Ecx as CE, Extended1Edx as DE, Extended7Edx as D8, Extended8Ebx as B8,
    };
    &[
        feature(&["sse3"], C1, 0, Host),
        feature(&["pclmulqdq", "pclmul"], C1, 1, Host),
        feature(&["dtes64"], C1, 2, INTEL),
        feature(&["monitor"], C1, 3, Policy::Never("MWAIT would keep the processor")),
        feature(&["dscpl"], C1, 4, INTEL),
        feature(&["vmx"], C1, 5, VIRTUAL),
        feature(&["smx"], C1, 6, INTEL),
        feature(&["est", "eist"], C1, 7, POWER),
        feature(&["tm2"], C1, 8, POWER),
        feature(&["ssse3"], C1, 9, Host),
        feature(&["cntxid"], C1, 10, INTEL),
        feature(&["fma"], C1, 12, XSAVE),
        feature(&["cmpxchg16", "cx16"], C1, 13, Host),
        feature(&["xtpr"], C1, 14, INTEL),
        feature(&["pdcm"], C1, 15, COUNTERS),
        feature(&["pcid"], C1, 17, Policy::Never("what it needs of INVPCID was not tried")),
        feature(&["dca"], C1, 18, INTEL),
        feature(&["sse4_1", "sse4.1"], C1, 19, Host),
        feature(&["sse4_2", "sse4.2"], C1, 20, Host),
        feature(&["x2apic"], C1, 21, Always),
        feature(&["movbe"], C1, 22, Host),
        feature(&["popcnt"], C1, 23, Host),
        feature(&["tsc-deadline", "tsc_deadline"], C1, 24, Host),
        feature(&["aes", "aesni"], C1, 25, Host),
        feature(&["xsave"], C1, 26, XSAVE),
        feature(&["osxsave"], C1, 27, XSAVE),
        feature(&["avx"], C1, 28, XSAVE),
        feature(&["f16c"], C1, 29, XSAVE),
        feature(&["rdrand"], C1, 30, Host),
        feature(&["hypervisor"], C1, 31, Always),
        feature(&["fpu"], D1, 0, Host),
        feature(&["vme"], D1, 1, Host),
        feature(&["de"], D1, 2, Host),
        feature(&["pse"], D1, 3, Host),
        feature(&["tsc"], D1, 4, Host),
        feature(&["msr"], D1, 5, Host),
        feature(&["pae"], D1, 6, Host),
        feature(&["mce"], D1, 7, CHECKS),
        feature(&["cmpxchg8", "cx8"], D1, 8, Host),
        feature(&["apic"], D1, 9, Always),
        feature(&["sysenter", "sep"], D1, 11, Host),
        feature(
            &["mtrr"],
            D1,
            12,
            Policy::Never("a guest's memory is RAM: there are no ranges of other types"),
        ),
        feature(&["pge"], D1, 13, Host),
        feature(&["mca"], D1, 14, CHECKS),
        feature(&["cmov"], D1, 15, Host),
        feature(&["pat"], D1, 16, Host),
        feature(&["pse36"], D1, 17, Host),
        feature(&["psn"], D1, 18, INTEL),
        feature(&["clfsh", "clflush"], D1, 19, Host),
        feature(&["ds"], D1, 21, INTEL),
        feature(&["acpi"], D1, 22, POWER),
        feature(&["mmx"], D1, 23, Host),
        feature(&["fxsr"], D1, 24, Host),
        feature(&["sse"], D1, 25, Host),
        feature(&["sse2"], D1, 26, Host),
        feature(&["ss"], D1, 27, INTEL),
        feature(&["htt"], D1, 28, Policy::Never("virtual CPUs are no threads of one core")),
        feature(&["tm", "tm1"], D1, 29, POWER),
        feature(&["ia64"], D1, 30, INTEL),
        feature(&["pbe"], D1, 31, INTEL),
        feature(&["fsgsbase"], B7, 0, Host),
        feature(
            &["tsc_adjust", "tsc-adjust"],
            B7,
            1,
            Policy::Never("time stamps are the same on all CPUs already"),
        ),
        feature(&["bmi1"], B7, 3, XSAVE),
        feature(&["hle"], B7, 4, INTEL),
        feature(&["avx2"], B7, 5, XSAVE),
        feature(&["smep"], B7, 7, Host),
        feature(&["bmi2"], B7, 8, XSAVE),
        feature(&["erms"], B7, 9, Host),
        feature(&["invpcid"], B7, 10, Policy::Never("PCID is not offered")),
        feature(&["rtm"], B7, 11, INTEL),
        feature(&["cmt", "pqm"], B7, 12, COUNTERS),
        feature(&["mpx"], B7, 14, XSAVE),
        feature(&["avx512f"], B7, 16, XSAVE),
        feature(&["avx512dq"], B7, 17, XSAVE),
        feature(&["rdseed"], B7, 18, Host),
        feature(&["adx"], B7, 19, Host),
        feature(&["smap"], B7, 20, Host),
        feature(&["avx512-ifma"], B7, 21, XSAVE),
        feature(&["clflushopt"], B7, 23, Host),
        feature(&["clwb"], B7, 24, Host),
        feature(&["proc-trace"], B7, 25, INTEL),
        feature(&["avx512pf"], B7, 26, XSAVE),
        feature(&["avx512er"], B7, 27, XSAVE),
        feature(&["avx512cd"], B7, 28, XSAVE),
        feature(&["sha"], B7, 29, Host),
        feature(&["avx512bw"], B7, 30, XSAVE),
        feature(&["avx512vl"], B7, 31, XSAVE),
        feature(&["prefetchwt1"], C7, 0, INTEL),
        feature(&["avx512-vbmi"], C7, 1, XSAVE),
        feature(&["umip"], C7, 2, Host),
        feature(&["pku"], C7, 3, XSAVE),
        feature(&["ospke"], C7, 4, XSAVE),
        feature(&["avx512-vbmi2"], C7, 6, XSAVE),
        feature(&["cet-ss"], C7, 7, XSAVE),
        feature(&["gfni"], C7, 8, XSAVE),
        feature(&["vaes"], C7, 9, XSAVE),
        feature(&["vpclmulqdq"], C7, 10, XSAVE),
        feature(&["avx512-vnni"], C7, 11, XSAVE),
        feature(&["avx512-bitalg"], C7, 12, XSAVE),
        feature(&["avx512-vpopcntdq"], C7, 14, XSAVE),
        feature(&["la57"], C7, 16, Policy::Never("the VMM reads four levels of page tables")),
        feature(&["rdpid"], C7, 22, AUX),
        feature(&["cldemote"], C7, 25, INTEL),
        feature(&["pks"], C7, 31, INTEL),
        feature(&["avx512-4vnniw"], D7, 2, XSAVE),
        feature(&["avx512-4fmaps"], D7, 3, XSAVE),
        feature(&["fsrm"], D7, 4, Host),
        feature(&["avx512-vp2intersect"], D7, 8, XSAVE),
        feature(&["srbds-ctrl"], D7, 9, SPECULATION),
        feature(&["md-clear"], D7, 10, SPECULATION),
        feature(&["serialize"], D7, 14, INTEL),
        feature(&["tsxldtrk"], D7, 16, INTEL),
        feature(&["cet-ibt"], D7, 20, XSAVE),
        feature(&["avx512-fp16"], D7, 23, XSAVE),
        feature(&["ibrsb"], D7, 26, SPECULATION),
        feature(&["stibp"], D7, 27, SPECULATION),
        feature(&["l1d-flush"], D7, 28, SPECULATION),
        feature(&["arch-caps"], D7, 29, SPECULATION),
        feature(&["core-caps"], D7, 30, SPECULATION),
        feature(&["ssbd"], D7, 31, SPECULATION),
        feature(&["lahfsahf", "lahf-lm"], CE, 0, Host),
        feature(
            &["cmplegacy", "cmp-legacy"],
            CE,
            1,
            Policy::Never("virtual CPUs are no threads of one core"),
        ),
        feature(&["svm"], CE, 2, VIRTUAL),
        feature(&["extapic"], CE, 3, ABSENT),
        feature(&["altmovcr8", "cr8-legacy"], CE, 4, ABSENT),
        feature(&["abm"], CE, 5, Host),
        feature(&["sse4a"], CE, 6, Host),
        feature(&["misalignsse"], CE, 7, Host),
        feature(&["3dnowprefetch"], CE, 8, Host),
        feature(&["osvw"], CE, 9, ABSENT),
        feature(&["ibs"], CE, 10, COUNTERS),
        feature(&["xop"], CE, 11, XSAVE),
        feature(&["skinit"], CE, 12, VIRTUAL),
        feature(&["wdt"], CE, 13, ABSENT),
        feature(&["lwp"], CE, 15, XSAVE),
        feature(&["fma4"], CE, 16, XSAVE),
        feature(&["nodeid"], CE, 19, ABSENT),
        feature(&["tbm"], CE, 21, XSAVE),
        feature(&["topoext"], CE, 22, ABSENT),
        feature(&["perfctr_core"], CE, 23, COUNTERS),
        feature(&["perfctr_nb"], CE, 24, COUNTERS),
        feature(&["syscall"], DE, 11, Host),
        feature(&["nx"], DE, 20, Host),
        feature(&["mmxext", "mmx+"], DE, 22, Host),
        feature(&["ffxsr", "fxsr-opt"], DE, 25, Policy::Never("EFER.FFXSR is not offered")),
        feature(&["page1gb"], DE, 26, Host),
        feature(&["rdtscp"], DE, 27, AUX),
        feature(&["lm"], DE, 29, Host),
        feature(&["3dnowext"], DE, 30, Policy::Never("processors that run this do not have it")),
        feature(&["3dnow"], DE, 31, Policy::Never("processors that run this do not have it")),
        feature(&["invtsc", "itsc"], D8, 8, Always),
        feature(&["clzero"], B8, 0, Host),
        feature(&["rstr-fp-err-ptrs"], B8, 2, Host),
        feature(&["rdpru"], B8, 4, COUNTERS),
        feature(&["wbnoinvd"], B8, 9, ABSENT),
        feature(&["ibpb"], B8, 12, SPECULATION),
        feature(&["ibrs"], B8, 14, SPECULATION),
        feature(&["amd-stibp"], B8, 15, SPECULATION),
        feature(&["ibrs-always"], B8, 16, SPECULATION),
        feature(&["stibp-always"], B8, 17, SPECULATION),
        feature(&["ibrs-fast"], B8, 18, SPECULATION),
        feature(&["ibrs-same-mode"], B8, 19, SPECULATION),
        feature(&["no-lmsl"], B8, 20, Host),
        feature(&["ppin", "amd-ppin"], B8, 23, ABSENT),
        feature(&["amd-ssbd"], B8, 24, SPECULATION),
        feature(&["virt-ssbd"], B8, 25, SPECULATION),
        feature(&["ssb-no"], B8, 26, Host),
        feature(&["psfd"], B8, 28, SPECULATION),
        feature(&["btc-no"], B8, 29, Host),
        feature(&["ibpb-ret"], B8, 30, SPECULATION),
    ]
};

/// Features of each word: bit by bit.
pub type Words = [u32; WORDS];

/// Features with the policy [`Policy::Host`].
pub const HOST: Words = masks(true);
/// Features with the policy [`Policy::Always`].
pub const ALWAYS: Words = masks(false);

const fn masks(of_host: bool) -> Words {
    let mut words = [0; WORDS];
    let mut n = 0;
    while n < FEATURES.len() {
        let Feature { word, bit, policy, .. } = FEATURES[n];
        let is_wanted = match policy {
            Policy::Host => of_host,
            Policy::Always => !of_host,
            Policy::Never(_) => false,
        };
        if is_wanted {
            words[word as usize] |= 1 << bit;
        }
        n += 1;
    }
    words
}

/// The feature with this name.
pub fn find(name: &str) -> Option<&'static Feature> {
    FEATURES.iter().find(|feature| feature.names.contains(&name))
}

/// The feature at a place of a word.
pub fn at(word: Word, bit: u32) -> Option<&'static Feature> {
    FEATURES.iter().find(|feature| feature.word == word && feature.bit == bit)
}

/// Features that are built on another one, of those that are offered. A row stands behind the rows that its own
/// feature is named in. Source: deps in Xen's tools/gen-cpuid.py.
const DEPENDENTS: &[(&str, &[&str])] = &[
    ("fpu", &["mmx", "rstr-fp-err-ptrs"]),
    ("pse", &["pse36"]),
    ("pae", &["lm", "nx"]),
    ("tsc", &["tsc-deadline", "invtsc"]),
    ("apic", &["x2apic", "tsc-deadline"]),
    ("mmx", &["mmxext"]),
    ("fxsr", &["sse"]),
    ("sse", &["sse2", "misalignsse"]),
    ("sse2", &["sse3", "lm", "aes", "pclmulqdq", "sha"]),
    ("sse3", &["ssse3", "sse4a"]),
    ("ssse3", &["sse4_1"]),
    ("sse4_1", &["sse4_2"]),
    ("nx", &["smap"]),
    ("lm", &["cmpxchg16", "lahfsahf", "page1gb", "no-lmsl"]),
];

/// Takes those features away that are built on one that is not there, as no processor shows them alone.
pub fn without_dependents(mut words: Words) -> Words {
    for (name, dependents) in DEPENDENTS {
        if find(name).is_some_and(|feature| feature.is_in(&words)) {
            continue;
        }
        for dependent in dependents.iter().filter_map(|name| find(name)) {
            words[dependent.word as usize] &= !(1 << dependent.bit);
        }
    }
    words
}

/// How a guest's configuration narrows what it sees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub struct Narrowing {
    /// Features that are hidden.
    pub hidden: Words,
    /// Features without which the guest is not to start.
    pub required: Words,
}

#[cfg(test)]
mod tests {
    extern crate alloc;

    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;

    #[test]
    fn a_place_and_a_name_belong_to_one_feature() {
        for (n, feature) in FEATURES.iter().enumerate() {
            assert!(feature.bit < 32 && !feature.names.is_empty());
            for other in &FEATURES[n + 1..] {
                assert!((feature.word, feature.bit) != (other.word, other.bit), "{:?}", other.names);
                assert!(feature.names.iter().all(|name| !other.names.contains(name)), "{:?}", other.names);
            }
        }
        for (number, word) in Word::ALL.into_iter().enumerate() {
            assert_eq!(word as usize, number);
        }
    }

    #[test]
    fn dependents_are_known_and_follow_what_they_depend_on() {
        let place = |name: &str| {
            let feature = find(name).unwrap_or_else(|| panic!("{name}"));
            assert!(!matches!(feature.policy, Policy::Never(_)), "{name} is not offered");
            DEPENDENTS.iter().position(|(row, _)| feature.names.contains(row))
        };
        for (n, (name, dependents)) in DEPENDENTS.iter().enumerate() {
            assert_eq!(place(name), Some(n));
            for dependent in *dependents {
                assert!(place(dependent).is_none_or(|row| row > n), "{dependent} stands before {name}");
            }
        }
    }

    #[test]
    fn what_is_built_on_an_absent_feature_is_absent() {
        let all = [!0; WORDS];
        assert_eq!(without_dependents(all), all);
        let lost = |gone: &str| {
            let mut words = all;
            let gone = find(gone).unwrap();
            words[gone.word as usize] &= !(1 << gone.bit);
            let left = without_dependents(words);
            let is_lost = |feature: &&Feature| feature.is_in(&words) && !feature.is_in(&left);
            FEATURES.iter().filter(is_lost).map(|feature| feature.names[0]).collect::<Vec<_>>()
        };
        assert_eq!(lost("sse4_1"), ["sse4_2"]);
        assert_eq!(lost("sse3"), ["ssse3", "sse4_1", "sse4_2", "sse4a"]);
        assert_eq!(lost("pae"), ["cmpxchg16", "smap", "lahfsahf", "nx", "page1gb", "lm", "no-lmsl"]);
        assert!(["sse2", "lm", "sha", "no-lmsl"].iter().all(|name| lost("fxsr").contains(name)));
        assert_eq!((lost("rdrand"), lost("tsc")), (vec![], vec!["tsc-deadline", "invtsc"]));
    }

    #[test]
    fn nothing_that_needs_switched_state_or_absent_msrs_is_offered() {
        for name in
            ["xsave", "avx", "rdtscp", "rdpid", "svm", "monitor", "mce", "mtrr", "pcid", "la57", "pku"]
        {
            let feature = find(name).unwrap();
            assert!(matches!(feature.policy, Policy::Never(_)), "{name}");
            let word = feature.word as usize;
            assert_eq!((HOST[word] | ALWAYS[word]) >> feature.bit & 1, 0, "{name}");
        }
    }
}
