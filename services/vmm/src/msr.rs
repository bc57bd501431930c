//! MSR policy: what RDMSR and WRMSR do, as [`TABLE`]. Whatever is not in it is #GP.
//!
//! An MSR whose feature CPUID hides is not there: MTRRs (0xfe, 0x200-0x20f, 0x250-0x26f, 0x2ff), machine checks
//! (0x179-0x17b, 0x400-0x47f), TSC_ADJUST, XSS, TSC_AUX, SPEC_CTRL and its like, SVM's. Linux reads unknown MSRs with
//! a handler: #GP is one warning. Sources: AMD64 APM vol. 2, 3.2 and appendix A; Xen arch/x86/msr.c and
//! hvm/svm/svm.c; guest-side use measured with Debian 6.1 and 6.12.

use proto::abi::{VcpuState, groups};

use crate::apic;
use crate::cpuid::HYPERCALL_MSR;
use crate::hypercall::Width;
use crate::machine::{Machine, Platform, Vcpu};
use crate::memory::{Gfn, PAGE};
use crate::walk::{CR0_PG, EFER_LMA};

const TSC: u32 = 0x10;
const APIC_BASE: u32 = 0x1b;
const PAT: u32 = 0x277;
const TSC_DEADLINE: u32 = 0x6e0;
const EFER: u32 = 0xc000_0080;
const NB_CFG: u32 = 0xc001_001f;

const EFER_SCE: u64 = 1;
const EFER_LME: u64 = 1 << 8;
const EFER_NXE: u64 = 1 << 11;

/// What becomes of accesses to an MSR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// The guest has it in its VMCB and there is no exit; the processor checks addresses for being canonical.
    Vmcb,
    /// The local APIC's.
    Apic,
    /// [`Machine::read_msr`] and [`Machine::write_msr`] say.
    Own,
    /// Reads as this, writes are #GP.
    Constant(u64),
    /// Reads as this, writes have no effect.
    Ignored(u64),
    /// Reads are #GP, writes have no effect.
    WriteIgnored,
}

/// The MSRs that exist: first and last number, in order.
pub const TABLE: &[(u32, u32, Rule)] = &[
    // TSC.
    (TSC, TSC, Rule::Own),
    (APIC_BASE, APIC_BASE, Rule::Apic),
    // Microcode level: none that a guest could act upon.
    (0x8b, 0x8b, Rule::Constant(0)),
    // SYSENTER_CS, _ESP, _EIP.
    (0x174, 0x176, Rule::Vmcb),
    // DEBUGCTL: neither branch records nor steps by branch are offered; kernels clear it.
    (0x1d9, 0x1d9, Rule::Ignored(0)),
    // The last branches that were never recorded.
    (0x1db, 0x1de, Rule::Constant(0)),
    (PAT, PAT, Rule::Own),
    (TSC_DEADLINE, TSC_DEADLINE, Rule::Apic),
    (apic::MSR_FIRST, apic::MSR_LAST, Rule::Apic),
    (HYPERCALL_MSR, HYPERCALL_MSR, Rule::Own),
    (EFER, EFER, Rule::Own),
    // STAR, LSTAR, CSTAR, SFMASK.
    (0xc000_0081, 0xc000_0084, Rule::Vmcb),
    // FS, GS and kernel GS base.
    (0xc000_0100, 0xc000_0102, Rule::Vmcb),
    // Performance counters of old: kernels probe them without asking CPUID.
    (0xc001_0000, 0xc001_0007, Rule::Ignored(0)),
    // SYSCFG, and IORR: Linux and others read and write them unasked, as Xen's guests may.
    (0xc001_0010, 0xc001_0010, Rule::Ignored(0)),
    // HWCR: the TSC counts at the nominal frequency (TscFreqSel).
    (0xc001_0015, 0xc001_0015, Rule::Ignored(1 << 24)),
    (0xc001_0016, 0xc001_0019, Rule::Ignored(0)),
    // TOP_MEM, TOM2: there is no other memory than the map says.
    (0xc001_001a, 0xc001_001a, Rule::Ignored(0)),
    (0xc001_001d, 0xc001_001d, Rule::Ignored(0)),
    // NB_CFG, which Linux writes and reads back.
    (NB_CFG, NB_CFG, Rule::Own),
    // Microcode loader: some systems load some before they can take a #GP.
    (0xc001_0020, 0xc001_0020, Rule::WriteIgnored),
    // LS_CFG, FP_CFG, DE_CFG: workarounds for errata, which are the host's to apply.
    (0xc001_1020, 0xc001_1020, Rule::Ignored(0)),
    (0xc001_1028, 0xc001_1029, Rule::Ignored(0)),
];

/// What the table says of an MSR.
pub fn rule(msr: u32) -> Option<Rule> {
    TABLE.iter().find(|&&(first, last, _)| (first..=last).contains(&msr)).map(|&(.., rule)| rule)
}

/// The access raises #GP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused;

impl From<apic::Refused> for Refused {
    fn from(_: apic::Refused) -> Self {
        Self
    }
}

impl<P: Platform> Machine<P> {
    /// RDMSR.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn read_msr(&self, vcpu: &Vcpu, state: &VcpuState, msr: u32) -> Result<u64, Refused> {
        Ok(match msr {
            apic::MSR_FIRST..=apic::MSR_LAST => vcpu.apic.read_msr(msr, &self.now())?,
            EFER => state.efer,
            APIC_BASE => vcpu.apic.base(),
            TSC_DEADLINE => match vcpu.apic.deadline() {
                0 => 0,
                deadline => deadline.wrapping_add(vcpu.tsc_offset),
            },
            TSC => self.platform.tsc().wrapping_add(vcpu.tsc_offset),
            PAT => state.pat,
            NB_CFG => vcpu.nb_cfg,
            _ => match rule(msr) {
                Some(Rule::Constant(value) | Rule::Ignored(value)) => value,
                _ => return Err(Refused),
            },
        })
    }

    /// WRMSR.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn write_msr(
        &mut self,
        vcpu: &mut Vcpu,
        state: &mut VcpuState,
        msr: u32,
        value: u64,
    ) -> Result<(), Refused> {
        match msr {
            apic::MSR_FIRST..=apic::MSR_LAST => {
                if let Some(command) = vcpu.apic.write_msr(msr, value, &self.now())? {
                    self.send_command(vcpu, command);
                }
            }
            EFER => write_efer(state, value)?,
            APIC_BASE => vcpu.apic.set_base(value)?,
            TSC_DEADLINE => match value {
                0 => vcpu.apic.set_deadline(0),
                // One that wraps to 0 is in the past.
                value => vcpu.apic.set_deadline(value.wrapping_sub(vcpu.tsc_offset).max(1)),
            },
            PAT => write_pat(state, value)?,
            NB_CFG => vcpu.nb_cfg = value,
            HYPERCALL_MSR => {
                self.write_hypercall_page(value)?;
                self.guest.events.latch(Width::of(state).layout());
            }
            TSC => self.write_tsc(vcpu, state, value),
            _ => match rule(msr) {
                Some(Rule::Ignored(_) | Rule::WriteIgnored) => {}
                _ => return Err(Refused),
            },
        }
        Ok(())
    }

    /// Fills the guest's page with one stub per hypercall: `mov $n,%eax; vmmcall; ret`.
    fn write_hypercall_page(&self, value: u64) -> Result<(), Refused> {
        const STUB: usize = 32;
        /// The slot of `iret`, which an HVM guest has no use for.
        const IRET: usize = 23;
        // Only page 0 exists; its number would be in the low bits.
        let frame = Gfn(value / PAGE as u64);
        let page =
            self.guest.memory.page(frame).filter(|_| value.is_multiple_of(PAGE as u64)).ok_or(Refused)?;
        for number in 0..PAGE / STUB {
            let mut stub = [0xcc; STUB];
            let code: [u8; 9] = [0xb8, number as u8, 0, 0, 0, 0x0f, 0x01, 0xd9, 0xc3];
            let code: &[u8] = if number == IRET { &[0x0f, 0x0b] } else { &code };
            for (to, from) in stub.iter_mut().zip(code) {
                *to = *from;
            }
            page.write(number * STUB, &stub);
        }
        Ok(())
    }
}

fn write_efer(state: &mut VcpuState, value: u64) -> Result<(), Refused> {
    if value & !(EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE) != 0 {
        return Err(Refused);
    }
    if (value ^ state.efer) & EFER_LME != 0 && state.cr0 & CR0_PG != 0 {
        return Err(Refused);
    }
    // LMA follows paging; software cannot set it.
    state.efer = value & !EFER_LMA | state.efer & EFER_LMA;
    state.load |= groups::CONTROL;
    Ok(())
}

fn write_pat(state: &mut VcpuState, value: u64) -> Result<(), Refused> {
    if value.to_le_bytes().iter().any(|&kind| !matches!(kind, 0 | 1 | 4..=7)) {
        return Err(Refused);
    }
    // With nested paging the guest's PAT only weakens what is RAM anyway: a shadow to read back suffices.
    state.pat = value;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::blank;
    use crate::memory::GuestPhys;
    use crate::testing::machine;

    #[test]
    fn efer_follows_the_architecture() {
        let (mut machine, mut vcpu) = machine();
        let mut state = blank();
        state.load = 0;
        let mut write = |state: &mut VcpuState, value| machine.write_msr(&mut vcpu, state, EFER, value);
        assert_eq!(write(&mut state, EFER_LME | EFER_NXE | EFER_SCE), Ok(()));
        assert_eq!((state.efer, state.load), (0x901, groups::CONTROL));
        assert_eq!(write(&mut state, EFER_LME | 1 << 12), Err(Refused), "SVME is not the guest's");
        state.cr0 |= CR0_PG;
        state.efer |= EFER_LMA;
        assert_eq!(write(&mut state, EFER_NXE), Err(Refused), "LME with paging on");
        assert_eq!(write(&mut state, EFER_LME), Ok(()));
        assert_eq!(state.efer, EFER_LME | EFER_LMA);
    }

    #[test]
    fn the_apic_starts_with_its_page_and_has_msrs_in_x2apic_mode_only() {
        const ENABLE: u32 = 0x80f;
        const SELF_IPI: u32 = 0x83f;
        let (mut machine, mut vcpu) = machine();
        let mut state = blank();
        assert_eq!(machine.read_msr(&vcpu, &state, APIC_BASE), Ok(0xfee0_0900));
        assert_eq!(machine.write_msr(&mut vcpu, &mut state, SELF_IPI, 0xf6), Err(Refused));
        assert_eq!(machine.write_msr(&mut vcpu, &mut state, APIC_BASE, 0xfee0_0d00), Ok(()));
        assert_eq!(machine.write_msr(&mut vcpu, &mut state, APIC_BASE, 0xfee0_0900), Err(Refused));
        assert_eq!(machine.read_msr(&vcpu, &state, APIC_BASE), Ok(0xfee0_0d00));
        assert_eq!(machine.write_msr(&mut vcpu, &mut state, ENABLE, 0x1ff), Ok(()));
        assert_eq!(machine.write_msr(&mut vcpu, &mut state, SELF_IPI, 0xf6), Ok(()));
        assert_eq!(vcpu.apic.next(), Some(0xf6));
    }

    #[test]
    fn the_deadline_is_in_the_guests_own_tsc() {
        let (mut machine, mut vcpu) = machine();
        let mut state = blank();
        vcpu.tsc_offset = 1000u64.wrapping_neg();
        for (msr, value) in [(APIC_BASE, 0xfee0_0d00), (0x80f, 0x1ff), (0x832, 0x4_0040), (TSC_DEADLINE, 500)]
        {
            assert_eq!(machine.write_msr(&mut vcpu, &mut state, msr, value), Ok(()), "{msr:#x}");
        }
        assert_eq!(machine.read_msr(&vcpu, &state, TSC_DEADLINE), Ok(500));
        assert_eq!(machine.deadline(&vcpu), 1500);
        machine.platform.tsc.set(1500);
        assert!(machine.wakes(&mut vcpu));
        assert_eq!((vcpu.apic.next(), machine.deadline(&vcpu)), (Some(0x40), 0));
        assert_eq!(machine.read_msr(&vcpu, &state, TSC_DEADLINE), Ok(0));
    }

    #[test]
    fn the_hypercall_page_has_a_stub_per_number() {
        let (mut machine, mut vcpu) = machine();
        let mut state = blank();
        assert_eq!(machine.write_msr(&mut vcpu, &mut state, HYPERCALL_MSR, 0x3000), Ok(()));
        let mut stub = [0; 10];
        machine.guest.memory.read(GuestPhys(0x3000 + 29 * 32), &mut stub).unwrap();
        assert_eq!(stub, [0xb8, 29, 0, 0, 0, 0x0f, 0x01, 0xd9, 0xc3, 0xcc]);
        machine.guest.memory.read(GuestPhys(0x3000 + 23 * 32), &mut stub).unwrap();
        assert_eq!(stub[..2], [0x0f, 0x0b]);
        assert_eq!(machine.write_msr(&mut vcpu, &mut state, HYPERCALL_MSR, u64::MAX), Err(Refused));
    }

    #[test]
    fn unknown_and_senseless_accesses_are_refused() {
        let (mut machine, mut vcpu) = machine();
        let mut state = blank();
        let absent =
            [0x0, 0x3b, 0x48, 0xfe, 0x179, 0x1a0, 0x200, 0x2ff, 0x400, 0xda0, 0xc000_0103, 0xc000_0104];
        for msr in absent.into_iter().chain([0xc001_0114, 0xc001_0117, 0xc001_1027, u32::MAX]) {
            assert_eq!(machine.read_msr(&vcpu, &state, msr), Err(Refused), "{msr:#x}");
            assert_eq!(machine.write_msr(&mut vcpu, &mut state, msr, 0), Err(Refused), "{msr:#x}");
        }
        assert_eq!(machine.write_msr(&mut vcpu, &mut state, PAT, 2), Err(Refused));
        assert_eq!(machine.write_msr(&mut vcpu, &mut state, PAT, 0x0606), Ok(()));
        assert_eq!(machine.read_msr(&vcpu, &state, PAT), Ok(0x0606));
    }

    #[test]
    fn the_table_is_in_order_and_says_what_happens() {
        for pair in TABLE.windows(2) {
            assert!(pair[0].0 <= pair[0].1 && pair[0].1 < pair[1].0, "{:x?}", pair[1]);
        }
        let (mut machine, mut vcpu) = machine();
        let mut state = blank();
        for (msr, rule) in
            TABLE.iter().flat_map(|&(first, last, rule)| (first..=last).map(move |n| (n, rule)))
        {
            if matches!(rule, Rule::Own | Rule::Apic) {
                continue;
            }
            let before = machine.read_msr(&vcpu, &state, msr);
            let written = machine.write_msr(&mut vcpu, &mut state, msr, u64::MAX);
            let expected = match rule {
                Rule::Constant(value) => (Ok(value), Err(Refused)),
                Rule::Ignored(value) => (Ok(value), Ok(())),
                Rule::WriteIgnored => (Err(Refused), Ok(())),
                // There is no such exit.
                _ => (Err(Refused), Err(Refused)),
            };
            assert_eq!((before, written), expected, "{msr:#x}");
            assert_eq!(machine.read_msr(&vcpu, &state, msr), before, "{msr:#x}");
        }
        assert_eq!((state.load, state.pat), (blank().load, blank().pat));
    }

    proptest::proptest! {
        #[test]
        fn what_is_not_in_the_table_is_refused(msr: u32, value: u64) {
            proptest::prop_assume!(rule(msr).is_none());
            let (mut machine, mut vcpu) = machine();
            let mut state = blank();
            proptest::prop_assert_eq!(machine.read_msr(&vcpu, &state, msr), Err(Refused));
            proptest::prop_assert_eq!(machine.write_msr(&mut vcpu, &mut state, msr, value), Err(Refused));
        }
    }
}
