//! MSR policy: what an intercepted RDMSR or WRMSR does. Whatever is not named here is #GP.
//!
//! The MSRs that live in the VMCB (STAR to SYSENTER_EIP, FS and GS base) are not intercepted. Linux reads
//! unknown MSRs with a handler: #GP is one warning. Sources: AMD64 APM vol. 2, 3.2 and appendix A;
//! guest-side use measured with Debian 6.1 and 6.12.

use proto::abi::{VcpuState, groups};

use crate::apic;
use crate::cpuid::HYPERCALL_MSR;
use crate::machine::{Machine, Platform, Vcpu};
use crate::memory::{Gfn, PAGE};
use crate::walk::{CR0_PG, EFER_LMA};

const TSC: u32 = 0x10;
const APIC_BASE: u32 = 0x1b;
const PATCH_LEVEL: u32 = 0x8b;
const DEBUG_CTL: u32 = 0x1d9;
const PAT: u32 = 0x277;
const TSC_DEADLINE: u32 = 0x6e0;
const EFER: u32 = 0xc000_0080;
const TSC_AUX: u32 = 0xc000_0103;
const PERF_FIRST: u32 = 0xc001_0000;
const PERF_LAST: u32 = 0xc001_0007;
const SYSCFG: u32 = 0xc001_0010;
const HWCR: u32 = 0xc001_0015;
const NB_CFG: u32 = 0xc001_001f;
const LS_CFG: u32 = 0xc001_1020;
const DE_CFG_FIRST: u32 = 0xc001_1028;
const DE_CFG_LAST: u32 = 0xc001_1029;

/// HWCR.TscFreqSel: the TSC counts at the nominal frequency.
const HWCR_VALUE: u64 = 1 << 24;
const EFER_SCE: u64 = 1;
const EFER_LME: u64 = 1 << 8;
const EFER_NXE: u64 = 1 << 11;

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
                deadline => deadline.wrapping_add(state.tsc_offset),
            },
            TSC => self.platform.tsc().wrapping_add(state.tsc_offset),
            PAT => state.pat,
            NB_CFG => vcpu.nb_cfg,
            HWCR => HWCR_VALUE,
            PATCH_LEVEL | DEBUG_CTL | TSC_AUX | SYSCFG | LS_CFG => 0,
            PERF_FIRST..=PERF_LAST | DE_CFG_FIRST..=DE_CFG_LAST => 0,
            _ => return Err(Refused),
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
                value => vcpu.apic.set_deadline(value.wrapping_sub(state.tsc_offset).max(1)),
            },
            PAT => write_pat(state, value)?,
            NB_CFG => vcpu.nb_cfg = value,
            HYPERCALL_MSR => self.write_hypercall_page(value)?,
            TSC | DEBUG_CTL | TSC_AUX | HWCR | LS_CFG => {}
            PERF_FIRST..=PERF_LAST | DE_CFG_FIRST..=DE_CFG_LAST => {}
            _ => return Err(Refused),
        }
        Ok(())
    }

    /// Fills the guest's page with one stub per hypercall: `mov $n,%eax; vmmcall; ret`.
    fn write_hypercall_page(&self, value: u64) -> Result<(), Refused> {
        const STUB: usize = 32;
        /// The slot of `iret`, which an HVM guest has no use for.
        const IRET: usize = 23;
        let page = self.guest.memory.page(Gfn(value / PAGE as u64)).ok_or(Refused)?;
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
        state.tsc_offset = 1000u64.wrapping_neg();
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
        for msr in [0x0, 0xfe, 0x179, 0x1a0, 0x2ff, 0xc001_0114, 0xc001_0117, u32::MAX] {
            assert_eq!(machine.read_msr(&vcpu, &state, msr), Err(Refused), "{msr:#x}");
            assert_eq!(machine.write_msr(&mut vcpu, &mut state, msr, 0), Err(Refused), "{msr:#x}");
        }
        assert_eq!(machine.write_msr(&mut vcpu, &mut state, PAT, 2), Err(Refused));
        assert_eq!(machine.write_msr(&mut vcpu, &mut state, PAT, 0x0606), Ok(()));
        assert_eq!(machine.read_msr(&vcpu, &state, PAT), Ok(0x0606));
    }
}
