//! Virtual machine control block (AMD64 APM vol. 2, appendix B).

use core::mem::offset_of;

use proto::abi::Segment;

/// The block. Fields in between are reserved or unused by this kernel and stay zero.
#[repr(C)]
pub struct Vmcb {
    pub intercept_cr: u32,
    pub intercept_dr: u32,
    pub intercept_exceptions: u32,
    pub intercept_misc1: u32,
    pub intercept_misc2: u32,
    reserved0: [u32; 11],
    pub iopm: u64,
    pub msrpm: u64,
    pub tsc_offset: u64,
    pub asid: u32,
    pub tlb_control: u32,
    pub virtual_interrupt: u64,
    pub interrupt_shadow: u64,
    pub exit_code: u32,
    /// Undefined on some implementations for VMEXIT_INVALID.
    exit_code_high: u32,
    pub exit_info1: u64,
    pub exit_info2: u64,
    pub exit_int_info: u64,
    pub nested_control: u64,
    reserved1: [u64; 2],
    pub inject: u64,
    pub nested_cr3: u64,
    reserved2: [u64; 105],
    /// ES, CS, SS, DS, FS, GS, GDTR, LDTR, IDTR, TR, as `abi::seg` numbers them.
    pub segments: [Segment; 10],
    reserved3: [u8; 43],
    pub cpl: u8,
    reserved4: u32,
    pub efer: u64,
    reserved5: [u64; 14],
    pub cr4: u64,
    pub cr3: u64,
    pub cr0: u64,
    pub dr7: u64,
    pub dr6: u64,
    pub rflags: u64,
    pub rip: u64,
    reserved6: [u64; 11],
    pub rsp: u64,
    reserved7: [u64; 3],
    pub rax: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub cr2: u64,
    reserved8: [u64; 4],
    pub pat: u64,
    reserved9: [u64; 306],
}

const _: () = {
    assert!(size_of::<Vmcb>() == 4096);
    assert!(offset_of!(Vmcb, iopm) == 0x40);
    assert!(offset_of!(Vmcb, asid) == 0x58);
    assert!(offset_of!(Vmcb, exit_code) == 0x70);
    assert!(offset_of!(Vmcb, nested_control) == 0x90);
    assert!(offset_of!(Vmcb, inject) == 0xa8);
    assert!(offset_of!(Vmcb, nested_cr3) == 0xb0);
    assert!(offset_of!(Vmcb, segments) == 0x400);
    assert!(offset_of!(Vmcb, cpl) == 0x4cb);
    assert!(offset_of!(Vmcb, efer) == 0x4d0);
    assert!(offset_of!(Vmcb, cr4) == 0x548);
    assert!(offset_of!(Vmcb, rip) == 0x578);
    assert!(offset_of!(Vmcb, rsp) == 0x5d8);
    assert!(offset_of!(Vmcb, rax) == 0x5f8);
    assert!(offset_of!(Vmcb, cr2) == 0x640);
    assert!(offset_of!(Vmcb, pat) == 0x668);
};

/// `intercept_misc1`: INTR, NMI, SMI, INIT, RDPMC, CPUID, INVD, HLT, INVLPGA, IOIO, MSR, SHUTDOWN.
pub const MISC1: u32 = 0b1111 | 1 << 15 | 1 << 18 | 1 << 22 | 1 << 24 | 1 << 26 | 1 << 27 | 1 << 28 | 1 << 31;
/// `intercept_misc1`: IRET, if the VMM wants to know when the handler of an NMI ends.
pub const IRET: u32 = 1 << 20;
/// `intercept_misc2`: VMRUN, VMMCALL, VMLOAD, VMSAVE, STGI, CLGI, SKINIT, WBINVD, MONITOR, MWAIT, XSETBV, RDPRU.
pub const MISC2: u32 = 0b111_1111 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 13 | 1 << 14;
/// `intercept_cr`: reads and writes of CR8, which is a register of the guest's local APIC.
pub const TASK_PRIORITY: u32 = 1 << 8 | 1 << 24;
/// `intercept_dr`: writes of DR0-DR3 and DR7 (DR5 may be DR7's alias). QEMU keeps breakpoints that the guest
/// set when the host runs; those that VMRUN loads it does not.
pub const DEBUG_WRITES: u32 = 0b1010_1111 << 16;
/// Machine checks belong to the host. #DB and #AC, raised by their own delivery, would keep the processor in
/// the guest for good, interrupts included (CVE-2015-8104, CVE-2015-5307).
pub const EXCEPTIONS: u32 = 1 << 1 | 1 << 17 | 1 << 18;

/// `virtual_interrupt`: the guest's CR8.
pub const V_TPR: u64 = 0xf;
/// `virtual_interrupt`: an interrupt is pending.
pub const V_IRQ: u64 = 1 << 8;
/// `virtual_interrupt`: ignore the virtual task priority.
pub const V_IGNORE_TPR: u64 = 1 << 20;
/// `virtual_interrupt`: physical interrupts obey the host's RFLAGS.IF.
pub const V_INTR_MASKING: u64 = 1 << 24;
/// `virtual_interrupt`: the vector's place.
pub const V_VECTOR_SHIFT: u32 = 32;

/// `tlb_control`: flush everything.
pub const FLUSH_ALL: u32 = 1;
/// `inject`, `exit_int_info`: the field holds an event.
pub const EVENT_VALID: u64 = 1 << 31;
/// EFER.SVME: must be set while the guest runs.
pub const SVME: u64 = 1 << 12;
/// `nested_control`: nested paging.
pub const NESTED_PAGING: u64 = 1;

/// Exit code: physical interrupt; NMI and SMI follow.
pub const EXIT_INTR: u32 = 0x60;
/// Exit code: INIT.
pub const EXIT_INIT: u32 = 0x63;
/// Exit code: machine check.
pub const EXIT_MACHINE_CHECK: u32 = 0x52;
