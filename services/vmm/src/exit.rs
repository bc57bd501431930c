//! VM exits: what the guest did that the processor does not do by itself.
//!
//! Nothing a guest does ends in anything but an effect on that guest. Instruction lengths are measured, because
//! the processor does not report them everywhere. What the kernel intercepts, and what follows:
//!
//! | exit | what the guest gets | why |
//! |---|---|---|
//! | CR8 | it is done: [`crate::task_priority`] | it is the local APIC's register |
//! | DR0-DR3, DR7 written | it is done: [`crate::debug`] | QEMU would keep the breakpoints for everybody |
//! | #DB, #AC | the same exception | intercepted for the processor's sake, see the kernel's `vmcb.rs` |
//! | INTR, NMI, SMI, INIT | nothing | the machine's; the kernel's matter |
//! | RDPMC | #GP | no counters are shown |
//! | CPUID, MSR, IOIO, VMMCALL, NPF | [`crate::cpuid`], [`crate::msr`], [`crate::ports`], [`hypercall`], below | |
//! | IRET, while an NMI is in service | it goes on; the next NMI may come | [`crate::nmi`] |
//! | INVD, WBINVD | nothing | caches are coherent for a guest without devices of its own |
//! | PAUSE | its turn is over | |
//! | HLT | waits for an interrupt; with interrupts off the vCPU is down | as Xen's hvm_vcpu_down |
//! | INVLPGA, VMRUN to SKINIT, MONITOR, MWAIT, XSETBV, RDPRU | #UD | CPUID shows none of their features |
//! | SHUTDOWN | the guest ends, for a reboot | triple fault: [`crate::shutdown`] |
//! | INVALID | #GP; the same again 64 times: the guest ends | QEMU's answer to a reserved CR bit |
//! | all others | the guest ends | the kernel does not ask for them |
//!
//! Not intercepted: RDTSC and RDTSCP (TSC_AUX is a constant 0), INT n, PUSHF, INVLPG, CR accesses but CR8, task
//! switches, ICEBP, FERR_FREEZE: what they change is in the VMCB, and an interrupt ends what takes long.
//! Source: AMD64 APM vol. 2, appendix C (exit codes), chapter 15.

use proto::abi::{VcpuState, gpr, groups, seg};
use proto::counters as count;
use proto::toolstack::EndReason;
use rt::counters;

use crate::hypercall::{self, Done};
use crate::inject;
use crate::machine::{Machine, Outcome, Platform, Vcpu, Wait, sentence};
use crate::memory::PAGE;
use crate::ports::IoDone;
use crate::walk::{Access, Paging};

const CR8_READ: u32 = 0x08;
const CR8_WRITE: u32 = 0x18;
const DR_WRITE_FIRST: u32 = 0x30;
const DR_WRITE_LAST: u32 = 0x37;
const DEBUG: u32 = 0x41;
const ALIGNMENT_CHECK: u32 = 0x51;
const INTR: u32 = 0x60;
const NMI: u32 = 0x61;
const SMI: u32 = 0x62;
const VINTR: u32 = 0x64;
const RDPMC: u32 = 0x6f;
const CPUID: u32 = 0x72;
const IRET: u32 = 0x74;
const INVD: u32 = 0x76;
const PAUSE: u32 = 0x77;
const HLT: u32 = 0x78;
const INVLPGA: u32 = 0x7a;
const IOIO: u32 = 0x7b;
const MSR: u32 = 0x7c;
const SHUTDOWN: u32 = 0x7f;
const VMRUN: u32 = 0x80;
const VMMCALL: u32 = 0x81;
const VMLOAD: u32 = 0x82;
const SKINIT: u32 = 0x86;
const WBINVD: u32 = 0x89;
const MONITOR: u32 = 0x8a;
const RDPRU: u32 = 0x8e;
const NPF: u32 = 0x400;
const INVALID: u32 = 0xffff_ffff;

const RFLAGS_IF: u64 = 1 << 9;
/// An instruction is at most this long.
const INSTRUCTION_MAX: usize = 15;
/// So often the same state may be invalid: a guest may try the same bad write in a loop, but not for ever.
const INVALID_MAX: u32 = 64;
/// CS attribute L.
pub(crate) const CODE_64: u32 = 1 << 9;

impl<P: Platform> Machine<P> {
    /// Handles the exit in `state`. What guests do often is decided here, the rest out of the way.
    #[inline]
    pub fn handle_exit(&mut self, vcpu: &mut Vcpu, state: &mut VcpuState) -> Outcome {
        if vcpu.offered.is_some() || inject::is_valid(state.exit_int_info) {
            self.take_events(vcpu, state);
        }
        if state.cs_attributes & CODE_64 == 0 && self.lacks_segments(vcpu, state) {
            return Outcome::Run;
        }
        let invalid = core::mem::take(&mut vcpu.invalid.0);
        match state.exit_code as u32 {
            VMMCALL => return self.vmmcall(vcpu, state),
            CPUID => self.cpuid(vcpu, state),
            IOIO if self.plain_io(state) => counters::inc(count::EXIT_IOIO),
            HLT => return self.halt(vcpu, state),
            _ => return self.rare_exit(vcpu, state, invalid),
        }
        Outcome::Run
    }

    #[inline(never)]
    fn rare_exit(&mut self, vcpu: &mut Vcpu, state: &mut VcpuState, invalid: u32) -> Outcome {
        // Whatever it is may change what can be injected.
        vcpu.has_news = true;
        let code = state.exit_code as u32;
        counters::inc(match code {
            IOIO => count::EXIT_IOIO,
            MSR => count::EXIT_MSR,
            NPF => count::EXIT_NPF,
            VINTR => count::EXIT_VINTR,
            _ => count::EXIT_OTHER,
        });
        match code {
            MSR => self.msr(vcpu, state),
            IOIO => match self.io(state) {
                IoDone::Run => {}
                IoDone::PowerOff => {
                    return Outcome::End(EndReason::PowerOff, sentence(format_args!("through ACPI")));
                }
                IoDone::Senseless => {
                    return crash(format_args!("port access {:#x} that cannot be", state.exit_info1));
                }
            },
            INTR | NMI | SMI | VINTR => {}
            INVD | WBINVD => self.skip(vcpu, state, 2),
            PAUSE => {
                self.skip(vcpu, state, 2);
                return Outcome::Yield;
            }
            CR8_READ | CR8_WRITE => self.access_task_priority(vcpu, state),
            DR_WRITE_FIRST..=DR_WRITE_LAST => self.write_debug_register(vcpu, state),
            DEBUG => inject::debug(state),
            ALIGNMENT_CHECK => inject::alignment_check(state),
            VMRUN | VMLOAD..=SKINIT | INVLPGA | MONITOR..=RDPRU => inject::invalid_opcode(state),
            RDPMC => inject::general_protection(state),
            IRET => vcpu.leave_nmi(state),
            NPF => return self.nested_fault(vcpu, state),
            SHUTDOWN => return self.guest.triple_fault(state, format_args!("")),
            INVALID => return invalid_state(vcpu, state, invalid),
            _ => return crash(format_args!("unexpected exit {code:#x}, rip {:#x}", state.rip)),
        }
        Outcome::Run
    }

    #[inline]
    fn vmmcall(&mut self, vcpu: &mut Vcpu, state: &mut VcpuState) -> Outcome {
        counters::inc(count::EXIT_VMMCALL);
        let done = hypercall::dispatch(self, vcpu, state);
        match done {
            Done::Answer(_) => {
                self.skip(vcpu, state, 3);
                Outcome::Run
            }
            Done::Again(_) | Done::AgainFrom(_) => Outcome::Run,
            Done::AgainAfter(_, outcome) => outcome,
            Done::Then(outcome) => {
                self.skip(vcpu, state, 3);
                outcome
            }
        }
    }

    fn halt(&mut self, vcpu: &mut Vcpu, state: &mut VcpuState) -> Outcome {
        counters::inc(count::EXIT_HLT);
        // With all vCPUs halted for good the guest is off: Linux without ACPI ends like this.
        self.skip(vcpu, state, 1);
        if state.rflags & RFLAGS_IF == 0 {
            if self.stop_vcpu(vcpu) {
                let what = sentence(format_args!("the guest halted all its CPUs"));
                return Outcome::End(EndReason::PowerOff, what);
            }
            return Outcome::Wait;
        }
        vcpu.wait = Wait::Interrupt;
        Outcome::Wait
    }

    #[inline]
    fn cpuid(&mut self, vcpu: &mut Vcpu, state: &mut VcpuState) {
        counters::inc(count::EXIT_CPUID);
        let (leaf, subleaf) = (state.gprs[gpr::RAX] as u32, state.gprs[gpr::RCX] as u32);
        let [eax, ebx, ecx, edx] = self.cpuid.answer(leaf, subleaf, vcpu.id, &vcpu.apic);
        state.gprs[gpr::RAX] = u64::from(eax);
        state.gprs[gpr::RBX] = u64::from(ebx);
        state.gprs[gpr::RCX] = u64::from(ecx);
        state.gprs[gpr::RDX] = u64::from(edx);
        self.skip(vcpu, state, 2);
    }

    fn msr(&mut self, vcpu: &mut Vcpu, state: &mut VcpuState) {
        let msr = state.gprs[gpr::RCX] as u32;
        let is_write = state.exit_info1 & 1 != 0;
        let (low, high) = (state.gprs[gpr::RAX] as u32, state.gprs[gpr::RDX] as u32);
        let value = u64::from(high) << 32 | u64::from(low);
        let result = if state.cpl != 0 {
            Err(crate::msr::Refused)
        } else if is_write {
            self.write_msr(vcpu, state, msr, value)
        } else {
            self.read_msr(vcpu, state, msr).map(|value| {
                state.gprs[gpr::RAX] = value & 0xffff_ffff;
                state.gprs[gpr::RDX] = value >> 32;
            })
        };
        if result.is_ok() {
            return self.skip(vcpu, state, 2);
        }
        if self.guest.odd.allows() {
            let what = if is_write { "writes" } else { "reads" };
            log::debug!("the guest {what} MSR {msr:#x} (value {value:#x}) at {:#x}: refused", state.rip);
        }
        inject::general_protection(state);
    }

    /// Goes on behind an instruction whose opcode has `len` bytes, and perhaps prefixes in front.
    #[inline]
    pub(crate) fn skip(&mut self, vcpu: &mut Vcpu, state: &mut VcpuState, len: u8) {
        let total = match vcpu.lengths.get(state.rip, state.cr3) {
            Some(total) => total,
            None => {
                let total = len + self.prefixes(state);
                vcpu.lengths.set(state.rip, state.cr3, total);
                total
            }
        };
        let next = state.rip.wrapping_add(u64::from(total));
        let is_long = state.cs_attributes & CODE_64 != 0;
        inject::finish_at(state, if is_long { next } else { next & 0xffff_ffff });
    }

    /// Outside of 64-bit code an instruction is found with the base of its segment, which the kernel does not
    /// store unless it is asked: then the instruction exits once more. Those that were measured need no look.
    #[inline(never)]
    fn lacks_segments(&self, vcpu: &Vcpu, state: &mut VcpuState) -> bool {
        let is_instruction = matches!(
            state.exit_code as u32,
            CR8_READ | CR8_WRITE | DR_WRITE_FIRST..=DR_WRITE_LAST | RDPMC..=RDPRU
        ) && !matches!(state.exit_code as u32, IRET | IOIO | SHUTDOWN);
        if !is_instruction {
            return false;
        }
        if state.store & groups::SEGMENTS != 0 || vcpu.lengths.get(state.rip, state.cr3).is_some() {
            state.store &= !groups::SEGMENTS;
            return false;
        }
        state.store |= groups::SEGMENTS;
        true
    }

    /// The instruction at hand, with zeros where it cannot be read, and how many of its bytes are prefixes.
    #[inline(never)]
    pub(crate) fn instruction(&self, state: &VcpuState) -> ([u8; INSTRUCTION_MAX], u8) {
        let is_long = state.cs_attributes & CODE_64 != 0;
        let start = if is_long { state.rip } else { state.segments[seg::CS].base.wrapping_add(state.rip) };
        let paging = Paging::of(state);
        let mut bytes = [0; INSTRUCTION_MAX];
        let mut done = 0;
        while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = start.wrapping_add(done as u64);
            let at = if is_long { at } else { at & 0xffff_ffff };
            let Ok(gpa) = paging.translate(&self.guest.memory, at, Access::Fetch) else { break };
            let Some(page) = self.guest.memory.page(gpa.gfn()) else { break };
            let len = rest.len().min(PAGE - gpa.offset());
            page.read(gpa.offset(), &mut rest[..len]);
            done += len;
        }
        let is_prefix = |byte: &u8| {
            matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x66 | 0x67 | 0xf0 | 0xf2 | 0xf3)
                || (is_long && matches!(byte, 0x40..=0x4f))
        };
        (bytes, bytes.iter().take_while(|byte| is_prefix(byte)).count().min(INSTRUCTION_MAX - 3) as u8)
    }

    /// How many prefix bytes are in front of the instruction at `rip`.
    #[inline(never)]
    fn prefixes(&self, state: &VcpuState) -> u8 {
        self.instruction(state).1
    }
}

fn crash(what: core::fmt::Arguments<'_>) -> Outcome {
    Outcome::End(EndReason::Crash, sentence(what))
}

/// A state that the processor refuses. Where it does not raise #GP for a bad CR write itself, this does;
/// if the guest cannot even take that, it is over.
fn invalid_state(vcpu: &mut Vcpu, state: &mut VcpuState, count: u32) -> Outcome {
    let fixed = [state.rip, state.rflags, state.cr0, state.cr3, state.cr4, state.efer];
    let what = state.gprs.iter().chain(&fixed).fold(0u64, |sum, &word| sum.rotate_left(7) ^ word);
    let before = if vcpu.invalid.1 == what { count } else { 0 };
    if before >= INVALID_MAX {
        return crash(format_args!(
            "invalid processor state: rip {:#x}, cr0 {:#x}, cr4 {:#x}, efer {:#x}",
            state.rip, state.cr0, state.cr4, state.efer
        ));
    }
    vcpu.invalid = (before + 1, what);
    inject::general_protection(state);
    Outcome::Run
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::blank;
    use crate::memory::GuestPhys;
    use crate::testing::machine;
    use proptest::prelude::*;
    use proto::abi::INTERRUPT_PENDING;

    fn exit(code: u32) -> VcpuState {
        let mut state = blank();
        state.exit_code = u64::from(code);
        state.rip = 0x5000;
        state
    }

    #[test]
    fn cpuid_answers_and_skips_its_prefixes() {
        let (mut machine, mut vcpu) = machine();
        machine.guest.memory.write(GuestPhys(0x5000), &[0x66, 0xf3, 0x0f, 0xa2]).unwrap();
        let mut state = exit(CPUID);
        state.gprs[gpr::RAX] = 0x4000_0000;
        assert_eq!(machine.handle_exit(&mut vcpu, &mut state), Outcome::Run);
        assert_eq!((state.rip, state.gprs[gpr::RBX]), (0x5004, 0x566e_6558));
    }

    #[test]
    fn halt_with_interrupts_off_is_power_off_and_else_a_wait() {
        let (mut machine, mut vcpu) = machine();
        let mut state = exit(HLT);
        assert!(matches!(machine.handle_exit(&mut vcpu, &mut state), Outcome::End(EndReason::PowerOff, _)));
        // It counts as done: VCPUOP_up goes on behind it.
        assert_eq!((state.rip, vcpu.wait), (0x5001, Wait::Start));
        let (mut machine, mut vcpu) = crate::testing::machine();
        let mut state = exit(HLT);
        state.rflags |= RFLAGS_IF;
        assert_eq!(machine.handle_exit(&mut vcpu, &mut state), Outcome::Wait);
        assert_eq!((state.rip, vcpu.wait), (0x5001, Wait::Interrupt));
        assert!(!machine.wakes(&mut vcpu));
        machine.set_timer(&mut vcpu, 500);
        machine.guest.callback = Some(0xf3);
        machine.guest.events.bind_virq(0, 0).unwrap();
        assert!(!machine.wakes(&mut vcpu));
        assert!(machine.deadline(&vcpu) >= 500);
        machine.platform.tsc.set(machine.deadline(&vcpu));
        assert!(machine.wakes(&mut vcpu));
        machine.prepare_entry(&mut vcpu, &mut state);
        assert_eq!(state.interrupt, 0xf3 | INTERRUPT_PENDING);
    }

    /// Every exit was followed by a look at devices, timer and interrupts; one that changes only registers
    /// must not be, and any other one must.
    #[test]
    fn only_what_changes_something_unsettles_the_machine() {
        let (mut machine, mut vcpu) = machine();
        machine.guest.callback = Some(0xf3);
        machine.guest.memory.write(GuestPhys(0x9000), &7u32.to_le_bytes()).unwrap();
        let ipi = machine.guest.events.bind_ipi(0).unwrap();
        let call = |machine: &mut Machine<_>, vcpu: &mut Vcpu, number: u64, arguments: [u64; 2]| {
            let mut state = exit(VMMCALL);
            (state.efer, state.cs_attributes) = (0x500, 0x200);
            state.gprs[gpr::RAX] = number;
            [state.gprs[gpr::RDI], state.gprs[gpr::RSI]] = arguments;
            machine.prepare_entry(vcpu, &mut state);
            assert_eq!(machine.handle_exit(vcpu, &mut state), Outcome::Run);
            (machine.is_settled(vcpu), state.interrupt)
        };
        let mut state = exit(CPUID);
        machine.prepare_entry(&mut vcpu, &mut state);
        for (code, info) in [(CPUID, 0), (IOIO, 0xe0_0011), (IOIO, 0xcfc_0041)] {
            state.exit_code = u64::from(code);
            state.exit_info1 = info;
            assert_eq!(machine.handle_exit(&mut vcpu, &mut state), Outcome::Run);
            assert!(machine.is_settled(&vcpu), "{code:#x}");
        }
        assert!(call(&mut machine, &mut vcpu, 44, [0, 0]).0, "an unknown hypercall");
        assert!(!call(&mut machine, &mut vcpu, 17, [0, 0]).0, "the one that asks for a look");
        assert!(!call(&mut machine, &mut vcpu, 15, [1 << 40, 0]).0, "a timer");
        machine.guest.memory.write(GuestPhys(0x9000), &ipi.0.to_le_bytes()).unwrap();
        assert!(!call(&mut machine, &mut vcpu, 32, [4, 0x9000]).0, "an upcall");
        let (is_settled, interrupt) = call(&mut machine, &mut vcpu, 44, [0, 0]);
        assert_eq!((is_settled, interrupt), (false, 0xf3 | INTERRUPT_PENDING), "still not taken");
        machine.guest.special(0).unwrap().set_u8(0, 0);
        assert_eq!(call(&mut machine, &mut vcpu, 44, [0, 0]), (true, 0), "taken");
        let mut state = exit(MSR);
        (state.exit_info1, state.gprs[gpr::RCX], state.gprs[gpr::RAX]) = (1, 0x83f, 0xf6);
        machine.handle_exit(&mut vcpu, &mut state);
        assert!(!machine.is_settled(&vcpu), "a local APIC interrupt");
    }

    /// INVLPGA and RDPMC, which the kernel intercepts, ended the guest.
    #[test]
    fn what_the_guest_is_not_shown_is_an_exception_and_not_its_end() {
        let (mut machine, mut vcpu) = machine();
        for (code, vector) in [(VMRUN, 6), (0x84, 6), (INVLPGA, 6), (0x8d, 6), (RDPRU, 6), (RDPMC, 13)] {
            let mut state = exit(code);
            assert_eq!(machine.handle_exit(&mut vcpu, &mut state), Outcome::Run, "{code:#x}");
            assert_eq!((state.inject as u8, state.rip), (vector, 0x5000), "{code:#x}");
        }
    }

    #[test]
    fn ends_are_told_with_a_sentence() {
        let (mut machine, mut vcpu) = machine();
        let mut state = exit(NPF);
        (state.exit_info1, state.exit_info2) = (0x1_0000_0006, 0xfee0_0030);
        // While a double fault is delivered.
        state.exit_int_info = 0x8000_0b08;
        let Outcome::End(EndReason::Reboot, detail) = machine.handle_exit(&mut vcpu, &mut state) else {
            panic!()
        };
        assert!(
            detail.contains("triple fault: guest-physical address 0xfee00030") && detail.contains("0x5000"),
            "{detail}"
        );
        let outcome = machine.handle_exit(&mut vcpu, &mut exit(SHUTDOWN));
        assert!(matches!(outcome, Outcome::End(EndReason::Reboot, _)));
    }

    /// A guest that tried two bad writes of CR4 with no other exit in between was ended.
    #[test]
    fn an_invalid_state_is_a_fault_until_it_is_plain_that_there_is_no_way_on() {
        let (mut machine, mut vcpu) = machine();
        for n in 0..1000 {
            let mut state = exit(INVALID);
            state.gprs[gpr::RCX] = n;
            assert_eq!(machine.handle_exit(&mut vcpu, &mut state), Outcome::Run);
            assert_eq!(state.inject, 0x8000_0b0d);
        }
        for _ in 0..INVALID_MAX {
            assert_eq!(machine.handle_exit(&mut vcpu, &mut exit(INVALID)), Outcome::Run);
        }
        assert!(matches!(
            machine.handle_exit(&mut vcpu, &mut exit(INVALID)),
            Outcome::End(EndReason::Crash, _)
        ));
        let mut state = exit(CPUID);
        assert_eq!(machine.handle_exit(&mut vcpu, &mut state), Outcome::Run);
        assert_eq!(machine.handle_exit(&mut vcpu, &mut exit(INVALID)), Outcome::Run, "not in a row");
    }

    /// A debugger's step over an instruction that exits went one instruction too far.
    #[test]
    fn a_step_over_an_emulated_instruction_traps_behind_it() {
        let (mut machine, mut vcpu) = machine();
        let mut state = exit(CPUID);
        state.rflags |= 1 << 8;
        machine.handle_exit(&mut vcpu, &mut state);
        assert_eq!((state.rip, state.inject, state.dr6), (0x5002, 0x8000_0301, 0xffff_4ff0));
    }

    #[test]
    fn intercepted_exceptions_are_the_guests() {
        let (mut machine, mut vcpu) = machine();
        for (code, event) in [(DEBUG, 0x8000_0301), (ALIGNMENT_CHECK, 0x8000_0b11)] {
            let mut state = exit(code);
            assert_eq!(machine.handle_exit(&mut vcpu, &mut state), Outcome::Run);
            assert_eq!((state.inject, state.rip), (event, 0x5000));
        }
    }

    proptest! {
        #[test]
        fn any_exit_with_any_registers_is_survived(
            code in prop_oneof![0x60u32..0x90, Just(NPF), Just(INVALID), any::<u32>()],
            gprs: [u64; 16], info: (u64, u64, u64), control: (u64, u64, u64, u64), cpl in 0u32..4,
            attributes: u32, number in 0u64..45, op in 0u64..24, small in 0u64..0x4_0000
        ) {
            let (mut machine, mut vcpu) = machine();
            let mut state = exit(code);
            state.gprs = gprs;
            (state.exit_info1, state.exit_info2, state.exit_int_info) = info;
            (state.cr0, state.cr3, state.cr4, state.efer) = control;
            state.cpl = cpl;
            state.cs_attributes = attributes;
            let _ = machine.handle_exit(&mut vcpu, &mut state);
            machine.prepare_entry(&mut vcpu, &mut state);
            // And as a hypercall that is well-formed enough to get far.
            let mut state = exit(VMMCALL);
            state.efer = 0x500;
            state.cs_attributes = 0x200;
            state.gprs = gprs;
            state.gprs[gpr::RAX] = number;
            state.gprs[gpr::RDI] = op;
            state.gprs[gpr::RSI] = small;
            state.gprs[gpr::RDX] = small ^ 0x1000;
            let random: alloc::vec::Vec<u8> = gprs.iter().flat_map(|r| r.to_le_bytes()).collect();
            let _ = machine.guest.memory.write(GuestPhys(small & 0x3_f000), &random);
            let _ = machine.handle_exit(&mut vcpu, &mut state);
            let _ = machine.wakes(&mut vcpu);
            let _ = machine.deadline(&vcpu);
        }
    }
}
