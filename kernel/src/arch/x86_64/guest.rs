//! Running a guest with AMD SVM: entering, leaving, and keeping guests' processor state apart.
//!
//! The VMM decides the guest's registers and what is injected, through the state page; every field that
//! could reach beyond the guest (intercepts, permission maps, nested table, ASID, EFER.SVME, interrupt
//! masking) is set here and never copied. State that VMRUN does not switch (FPU, XCR0, DR0-DR3) stays in
//! the processor until another vCPU runs; ring 3 cannot reach it because CR0.TS is set in the host.
//! Sources: AMD64 APM vol. 2, chapter 15.

use core::arch::{asm, x86_64::__cpuid, x86_64::__cpuid_count};
use core::cell::Cell;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use proto::abi::{Error, INTERRUPT_PENDING, SystemField, VcpuState, gpr, groups};
use x86_64::registers::model_specific::{Efer, EferFlags, Msr};

use super::counting::{self, counted};
use super::paging::Ram;
use super::vmcb::{self, Vmcb};
use super::{continue_vcpu, halt, return_from_syscall, take_frames, this_cpu};
use crate::cpu::{self, Cpu};
use crate::memory::Pfn;
use crate::object::thread::count;
use crate::object::vcpu::Vcpu;
use crate::object::vm::Vm;
use crate::syscall;
use crate::trace::Kind;

counted!("guest.s");

unsafe extern "C" {
    fn guest_run();
}

const VM_CR: u32 = 0xc001_0114;
const VM_CR_DISABLED: u64 = 1 << 4;
/// How late the timer's interrupt may be, in TSC ticks (some milliseconds), before it is asked for again.
const TIMER_SLACK: u64 = 1 << 23;
const VM_HSAVE_PA: u32 = 0xc001_0117;

static AVAILABLE: AtomicBool = AtomicBool::new(false);
/// Physical addresses of the I/O and MSR permission maps, and the mask of XCR0 (0: no XSAVE).
static IO_MAP: AtomicU64 = AtomicU64::new(0);
static MSR_MAP: AtomicU64 = AtomicU64::new(0);
static XCR0_MASK: AtomicU64 = AtomicU64::new(0);

/// Hardware virtualisation can be used.
pub fn is_available() -> bool {
    AVAILABLE.load(Ordering::Relaxed)
}

/// Enables SVM on this CPU where it exists, and makes the permission maps that all guests share.
pub fn init(cpu: &'static Cpu, ram: &mut Ram<'_>) {
    if __cpuid(0x8000_0000).eax < 0x8000_000a || __cpuid(0x8000_0001).ecx & 1 << 2 == 0 {
        return;
    }
    let svm = __cpuid(0x8000_000a);
    // SAFETY: the MSR exists where SVM does.
    let is_disabled = unsafe { Msr::new(VM_CR).read() } & VM_CR_DISABLED != 0;
    if svm.edx & 1 == 0 || is_disabled {
        return;
    }
    let io_map = take_frames(ram, 3);
    let msr_map = take_frames(ram, 2);
    let host_save = take_frames(ram, 1);
    let host_vmcb = take_frames(ram, 1);
    // SAFETY: the frames were just taken; the maps intercept everything but what the VMCB holds.
    unsafe {
        core::ptr::write_bytes(io_map.direct() as *mut u8, 0xff, 3 * 4096);
        let msrs = msr_map.direct() as *mut u8;
        core::ptr::write_bytes(msrs, 0xff, 2 * 4096);
        for msr in [
            0x174u32,
            0x175,
            0x176,
            0xc000_0081,
            0xc000_0082,
            0xc000_0083,
            0xc000_0084,
            0xc000_0100,
            0xc000_0101,
            0xc000_0102,
        ] {
            let (base, number) = if msr < 0x2000 { (0, msr) } else { (0x800, msr - 0xc000_0000) };
            let byte = msrs.add(base + (number / 4) as usize);
            *byte &= !(0b11 << (number % 4 * 2));
        }
        Efer::update(|efer| efer.insert(EferFlags::SECURE_VIRTUAL_MACHINE_ENABLE));
        Msr::new(VM_HSAVE_PA).write(host_save.phys().0);
    }
    IO_MAP.store(io_map.phys().0, Ordering::Relaxed);
    MSR_MAP.store(msr_map.phys().0, Ordering::Relaxed);
    cpu.arch.host_vmcb.set(host_vmcb.phys().0);
    save_host(cpu);
    cpu.arch.asids.limit.set(svm.ebx.max(2));
    if __cpuid(1).ecx & 1 << 26 != 0 {
        let sizes = __cpuid_count(0xd, 0);
        let all = u64::from(sizes.edx) << 32 | u64::from(sizes.eax);
        // What does not fit the vCPU's save area (beyond AVX-512) is not offered to guests.
        XCR0_MASK.store(if sizes.ecx <= 4096 { all } else { all & 0b111 }, Ordering::Relaxed);
    }
    AVAILABLE.store(true, Ordering::Relaxed);
}

/// Saves what VMLOAD brings back after a guest: FS, GS, TR, and the MSRs of system calls. Again whenever one of
/// them changes.
pub fn save_host(cpu: &Cpu) {
    let block = cpu.arch.host_vmcb.get();
    if block != 0 {
        counting::count(SystemField::VmSaveLoads);
        // SAFETY: SVM is enabled, and the frame is this CPU's for that.
        unsafe { asm!("vmsave rax", in("rax") block, options(nostack, preserves_flags)) };
    }
}

/// Address space identifiers of a CPU: handed out in order; when they run out, everything is flushed and
/// a new generation begins.
#[derive(Debug)]
pub struct AsidPool {
    next: Cell<u32>,
    limit: Cell<u32>,
    generation: Cell<u64>,
}

impl AsidPool {
    /// No ASID was given out.
    pub const fn new() -> Self {
        Self { next: Cell::new(1), limit: Cell::new(2), generation: Cell::new(1) }
    }

    /// A fresh ASID, its generation, and whether the TLB has to be flushed first.
    fn take(&self) -> (u32, u64, bool) {
        let mut must_flush = false;
        if self.next.get() >= self.limit.get() {
            self.next.set(1);
            self.generation.set(self.generation.get() + 1);
            must_flush = true;
        }
        let asid = self.next.replace(self.next.get() + 1);
        (asid, self.generation.get(), must_flush)
    }
}

impl Default for AsidPool {
    fn default() -> Self {
        Self::new()
    }
}

/// A vCPU's processor state.
#[derive(Debug)]
pub struct GuestContext {
    /// Physical address of the VMCB.
    vmcb: u64,
    fpu: Pfn,
    /// Where the kernel sees the VMCB and the state page.
    block: *mut Vmcb,
    state: *mut VcpuState,
    asid_generation: Cell<u64>,
    unmaps_seen: Cell<u64>,
    xcr0: Cell<u64>,
    debug: Cell<[u64; 4]>,
}

impl GuestContext {
    /// A vCPU in two zeroed frames (VMCB, FPU area) with its state page.
    ///
    /// # Errors
    /// `NotSupported` without SVM.
    pub fn new(frames: Pfn, state: Pfn, vm: &'static Vm) -> Result<Self, Error> {
        if !is_available() {
            return Err(Error::NotSupported);
        }
        let (vmcb_frame, fpu) = (frames, frames.offset(1));
        // SAFETY: the frames were donated for this vCPU and are zero.
        let block = unsafe { &mut *(vmcb_frame.direct() as *mut Vmcb) };
        block.intercept_cr = vmcb::TASK_PRIORITY;
        block.intercept_dr = vmcb::DEBUG_WRITES;
        block.intercept_exceptions = vmcb::EXCEPTIONS;
        block.intercept_misc1 = vmcb::MISC1;
        block.intercept_misc2 = vmcb::MISC2;
        block.iopm = IO_MAP.load(Ordering::Relaxed);
        block.msrpm = MSR_MAP.load(Ordering::Relaxed);
        block.nested_control = vmcb::NESTED_PAGING;
        block.nested_cr3 = vm.space.root.phys().0;
        // Reset values (APM vol. 2, 14.1.3), which are not those of FNINIT: FCW and tags, MXCSR; in the header
        // "x87 is not in its initial state".
        // SAFETY: as above.
        unsafe {
            (fpu.direct() as *mut u64).write(0xff << 32 | 0x40);
            ((fpu.direct() + 24) as *mut u32).write(0x1f80);
            ((fpu.direct() + 512) as *mut u64).write(1);
        }
        Ok(Self {
            vmcb: vmcb_frame.phys().0,
            fpu,
            block: vmcb_frame.direct() as *mut Vmcb,
            state: state.direct() as *mut VcpuState,
            asid_generation: Cell::new(0),
            unmaps_seen: Cell::new(0),
            xcr0: Cell::new(1),
            debug: Cell::new([0; 4]),
        })
    }

    /// Where the guest goes on, as its VMM says.
    pub fn rip(&self) -> u64 {
        // SAFETY: the state page is a frame pinned for this vCPU.
        unsafe { (&raw const (*self.state).rip).read_volatile() }
    }

    /// Before destruction: no CPU holds its state any more.
    pub fn forget(&self) {
        let owner = &this_cpu().arch.guest_state_of;
        if owner.get().is_some_and(|vcpu| core::ptr::eq(&raw const vcpu.context, self)) {
            owner.set(None);
        }
    }
}

/// Enters the guest, on behalf of the current thread; ends in [`guest_left`].
#[inline(always)]
pub fn enter(cpu: &'static Cpu, vcpu: &'static Vcpu, vm: &'static Vm) -> ! {
    let context = &vcpu.context;
    cpu.remind_timer(TIMER_SLACK);
    // SAFETY: the state page is a frame pinned for this vCPU.
    let load = unsafe { (&raw const (*context.state).load).read_volatile() };
    if !cpu.arch.guest_state_of.get().is_some_and(|owner| core::ptr::eq(owner, vcpu))
        || context.asid_generation.get() != cpu.arch.asids.generation.get()
        || context.unmaps_seen.get() != vm.space.unmap_count.get()
        || load != 0
    {
        jump!(prepare_and_run, "rdi" = core::ptr::from_ref(vcpu), "rsi" = core::ptr::from_ref(vm));
    }
    // SAFETY: as in `run`. The flush that `renew_asid` may have asked for is done.
    let block = unsafe { &mut *context.block };
    block.tlb_control = 0;
    run(cpu, vcpu, block)
}

/// Enters the guest after something changed: another guest ran, memory was taken away, the VMM set registers.
#[cold]
extern "C" fn prepare_and_run(vcpu: &'static Vcpu, vm: &'static Vm) -> ! {
    let (cpu, context) = (this_cpu(), &vcpu.context);
    if !cpu.arch.guest_state_of.get().is_some_and(|owner| core::ptr::eq(owner, vcpu)) {
        switch_guest_state(cpu, vcpu);
    }
    let unmaps = vm.space.unmap_count.get();
    // SAFETY: the VMCB's frame is the kernel's, reached by one CPU at a time (that of the vCPU's runner).
    let block = unsafe { &mut *context.block };
    if context.asid_generation.get() != cpu.arch.asids.generation.get() || context.unmaps_seen.get() != unmaps
    {
        renew_asid(cpu, context, block, unmaps);
    }
    // SAFETY: as in `run`.
    unsafe {
        let load = (&raw const (*context.state).load).read_volatile();
        if load != 0 {
            (&raw mut (*context.state).load).write_volatile(0);
            load_groups(block, context, load);
        }
    }
    run(cpu, vcpu, block)
}

#[inline(always)]
fn run(cpu: &'static Cpu, vcpu: &'static Vcpu, block: &mut Vmcb) -> ! {
    let (state, physical) = (vcpu.context.state, vcpu.context.vmcb);
    // SAFETY: the state page is a frame pinned for this vCPU; its VMM may change it at any time, so every
    // field is read once, volatile, and nothing is believed.
    unsafe {
        block.rax = (&raw const (*state).gprs[gpr::RAX]).read_volatile();
        block.rsp = (&raw const (*state).gprs[gpr::RSP]).read_volatile();
        block.rip = (&raw const (*state).rip).read_volatile();
        block.rflags = (&raw const (*state).rflags).read_volatile();
        let interrupt = (&raw const (*state).interrupt).read_volatile();
        block.interrupt_shadow = u64::from((&raw const (*state).interrupt_shadow).read_volatile() & 1);
        let priority = block.virtual_interrupt & vmcb::V_TPR;
        block.virtual_interrupt = if interrupt & INTERRUPT_PENDING == 0 {
            NO_INTERRUPT | priority
        } else {
            NO_INTERRUPT | priority | vmcb::V_IRQ | u64::from(interrupt & 0xff) << vmcb::V_VECTOR_SHIFT
        };
        let inject = (&raw const (*state).inject).read_volatile();
        block.inject = inject;
        if inject != 0 {
            (&raw mut (*state).inject).write_volatile(0);
        }
    }
    jump!(
        guest_run,
        "rdi" = core::ptr::from_ref(vcpu),
        "rsi" = physical,
        "rdx" = cpu.arch.host_vmcb.get(),
        "rcx" = state
    )
}

/// A fresh ASID, so that nothing that was unmapped is found in the TLB.
#[cold]
#[inline(never)]
fn renew_asid(cpu: &'static Cpu, context: &GuestContext, block: &mut Vmcb, unmaps: u64) {
    let (asid, generation, must_flush) = cpu.arch.asids.take();
    block.asid = asid;
    context.asid_generation.set(generation);
    context.unmaps_seen.set(unmaps);
    block.tlb_control = if must_flush { vmcb::FLUSH_ALL } else { 0 };
}

/// The guest was left for something that the VMM serves, as a rule.
#[unsafe(no_mangle)]
extern "C" fn guest_left(vcpu: &'static Vcpu) -> ! {
    let cpu = this_cpu();
    let state = vcpu.context.state;
    // SAFETY: as in `run`.
    let (block, store) = unsafe { (&mut *vcpu.context.block, (&raw const (*state).store).read_volatile()) };
    if cpu.trace.is_on()
        || (vmcb::EXIT_MACHINE_CHECK..=vmcb::EXIT_INIT).contains(&block.exit_code)
        || block.virtual_interrupt & vmcb::V_IRQ != 0
        || store != 0
    {
        jump!(left_with_more, "rdi" = core::ptr::from_ref(vcpu));
    }
    // SAFETY: as in `run`.
    unsafe {
        (&raw mut (*state).interrupt).write_volatile(0);
        store_exit(block, state);
    }
    back_to_vmm(cpu)
}

/// [`guest_left`] with something to do besides: a trace, an interrupt of the machine's or the guest's, groups of
/// fields that the VMM wants.
#[cold]
extern "C" fn left_with_more(vcpu: &'static Vcpu) -> ! {
    let cpu = this_cpu();
    let state = vcpu.context.state;
    // SAFETY: as in `run`.
    let block = unsafe { &mut *vcpu.context.block };
    cpu.note(Kind::VmExit, u64::from(block.exit_code), block.exit_info1);
    // SAFETY: as in `run`.
    unsafe {
        let vector = (block.virtual_interrupt >> vmcb::V_VECTOR_SHIFT) as u32 & 0xff;
        let pending = block.virtual_interrupt & vmcb::V_IRQ != 0;
        (&raw mut (*state).interrupt).write_volatile(if pending { vector | INTERRUPT_PENDING } else { 0 });
        if is_for_host(block) {
            serve_host(vcpu, block);
        }
        store_exit(block, state);
        let store = (&raw const (*state).store).read_volatile();
        if store != 0 {
            store_groups(block, state, store);
        }
    }
    back_to_vmm(cpu)
}

#[inline(always)]
fn back_to_vmm(cpu: &'static Cpu) -> ! {
    // SAFETY: the guest ran on behalf of a thread, which is current until another one is.
    let thread = unsafe { cpu.current.get().unwrap_unchecked() };
    count(&thread.counters.vcpu_exits);
    return_from_syscall(thread, 0, 0)
}

/// The guest was left for an interrupt of the machine's, which says nothing to the VMM.
fn is_for_host(block: &Vmcb) -> bool {
    let code = block.exit_code;
    if code == vmcb::EXIT_MACHINE_CHECK {
        halt(format_args!("machine check"));
    }
    // An emulated VMRUN would ignore an interrupt shadow and deliver a pending virtual interrupt between
    // `sti` and `hlt`, so that the guest would sleep over its wake-up: the VMM has to look at that. The
    // machine's interrupt comes as soon as the VMM runs.
    let is_in_shadow = block.virtual_interrupt & vmcb::V_IRQ != 0 && block.interrupt_shadow & 1 != 0;
    (vmcb::EXIT_INTR..=vmcb::EXIT_INIT).contains(&code) && !is_in_shadow
}

/// Lets the machine's interrupts in; the guest is entered again, now or when it is the thread's turn.
fn serve_host(vcpu: &'static Vcpu, block: &Vmcb) -> ! {
    // SAFETY: as in `back_to_vmm`.
    let thread = unsafe { this_cpu().current.get().unwrap_unchecked() };
    // SAFETY: as in `run`.
    unsafe {
        store_registers(block, vcpu.context.state);
        // An event whose delivery the interrupt broke off is delivered at the next entry.
        if block.exit_int_info & vmcb::EVENT_VALID != 0 {
            (&raw mut (*vcpu.context.state).inject).write_volatile(block.exit_int_info);
        }
    }
    count(&thread.counters.vcpu_kernel_exits);
    super::interrupt_window();
    syscall::put_off(thread, vcpu);
    if cpu::needs_reschedule() {
        cpu::requeue_current();
        cpu::reschedule();
    }
    continue_vcpu(thread)
}

/// Copies the registers that the processor keeps in the block.
///
/// # Safety
/// `state` is the vCPU's state page.
#[inline(always)]
unsafe fn store_registers(block: &Vmcb, state: *mut VcpuState) {
    // SAFETY: the caller's.
    unsafe {
        (&raw mut (*state).gprs[gpr::RAX]).write_volatile(block.rax);
        (&raw mut (*state).gprs[gpr::RSP]).write_volatile(block.rsp);
        (&raw mut (*state).rip).write_volatile(block.rip);
        (&raw mut (*state).rflags).write_volatile(block.rflags);
    }
}

/// Copies what the VMM may know of the exit.
///
/// # Safety
/// `state` is the vCPU's state page.
#[inline(always)]
unsafe fn store_exit(block: &Vmcb, state: *mut VcpuState) {
    // SAFETY: the caller's.
    unsafe {
        store_registers(block, state);
        (&raw mut (*state).exit_code).write_volatile(u64::from(block.exit_code));
        (&raw mut (*state).exit_info1).write_volatile(block.exit_info1);
        (&raw mut (*state).exit_info2).write_volatile(block.exit_info2);
        (&raw mut (*state).exit_int_info).write_volatile(block.exit_int_info);
        (&raw mut (*state).cr0).write_volatile(block.cr0);
        (&raw mut (*state).cr2).write_volatile(block.cr2);
        (&raw mut (*state).cr3).write_volatile(block.cr3);
        (&raw mut (*state).cr4).write_volatile(block.cr4);
        (&raw mut (*state).efer).write_volatile(block.efer & !vmcb::SVME);
        (&raw mut (*state).cpl).write_volatile(u32::from(block.cpl));
        (&raw mut (*state).cs_attributes)
            .write_volatile(u32::from(block.segments[proto::abi::seg::CS].attributes));
        (&raw mut (*state).interrupt_shadow).write_volatile((block.interrupt_shadow & 1) as u32);
    }
}

/// The virtual interrupt field when nothing is to be delivered.
const NO_INTERRUPT: u64 = vmcb::V_INTR_MASKING | vmcb::V_IGNORE_TPR;

/// Loads groups of fields that the VMM of the vCPU, whose state the processor holds, changed.
///
/// # Safety
/// The state page is a frame pinned for the vCPU.
#[cold]
#[inline(never)]
unsafe fn load_groups(block: &mut Vmcb, context: &GuestContext, load: u32) {
    // SAFETY: the caller's; the copy is the kernel's own afterwards.
    let state = unsafe { context.state.read_volatile() };
    if load & groups::DEBUG != 0 {
        context.debug.set(state.debug);
        load_debug_registers(state.debug);
        block.dr7 = state.dr7;
    }
    if load & groups::DR6 != 0 {
        block.dr6 = state.dr6;
    }
    if load & groups::CONTROL != 0 {
        block.cr0 = state.cr0;
        block.cr2 = state.cr2;
        block.cr3 = state.cr3;
        block.cr4 = state.cr4;
        block.efer = state.efer | vmcb::SVME;
        block.cpl = (state.cpl & 3) as u8;
    }
    if load & groups::SEGMENTS != 0 {
        block.segments = state.segments;
        block.cpl = (state.cpl & 3) as u8;
    }
    if load & groups::MSRS != 0 {
        block.star = state.star;
        block.lstar = state.lstar;
        block.cstar = state.cstar;
        block.sfmask = state.sfmask;
        block.kernel_gs_base = state.kernel_gs_base;
        block.sysenter_cs = state.sysenter_cs;
        block.sysenter_esp = state.sysenter_esp;
        block.sysenter_eip = state.sysenter_eip;
        block.pat = state.pat;
    }
    if load & groups::TSC != 0 {
        block.tsc_offset = state.tsc_offset;
    }
    if load & groups::IRET != 0 {
        block.intercept_misc1 = vmcb::MISC1 | if state.intercept_iret == 0 { 0 } else { vmcb::IRET };
    }
}

/// Stores groups of fields that the VMM wants to see.
///
/// # Safety
/// `state` is the vCPU's state page.
#[cold]
#[inline(never)]
unsafe fn store_groups(block: &Vmcb, state: *mut VcpuState, store: u32) {
    // SAFETY: the caller's.
    unsafe {
        if store & groups::DR6 != 0 {
            (&raw mut (*state).dr6).write_volatile(block.dr6);
        }
        if store & groups::SEGMENTS != 0 {
            (&raw mut (*state).segments).write_volatile(block.segments);
        }
        if store & groups::MSRS != 0 {
            (&raw mut (*state).star).write_volatile(block.star);
            (&raw mut (*state).lstar).write_volatile(block.lstar);
            (&raw mut (*state).cstar).write_volatile(block.cstar);
            (&raw mut (*state).sfmask).write_volatile(block.sfmask);
            (&raw mut (*state).kernel_gs_base).write_volatile(block.kernel_gs_base);
            (&raw mut (*state).sysenter_cs).write_volatile(block.sysenter_cs);
            (&raw mut (*state).sysenter_esp).write_volatile(block.sysenter_esp);
            (&raw mut (*state).sysenter_eip).write_volatile(block.sysenter_eip);
        }
    }
}

/// Exchanges the state that VMRUN does not switch: FPU, XCR0, DR0 to DR3.
#[cold]
fn switch_guest_state(cpu: &'static Cpu, to: &'static Vcpu) {
    let from = cpu.arch.guest_state_of.replace(Some(to));
    let mask = XCR0_MASK.load(Ordering::Relaxed);
    // SAFETY: the areas are a frame each, owned by their vCPUs; TS is clear only in here, and nothing in
    // here uses the FPU for itself.
    unsafe {
        asm!("clts", options(nostack));
        if let Some(from) = from {
            let context = &from.context;
            if mask != 0 {
                context.xcr0.set(xgetbv());
                xsetbv(mask);
                asm!("xsave64 [{}]", in(reg) context.fpu.direct(), in("eax") u32::MAX, in("edx") u32::MAX);
            } else {
                asm!("fxsave64 [{}]", in(reg) context.fpu.direct());
            }
        }
        let context = &to.context;
        if mask != 0 {
            xsetbv(mask);
            asm!("xrstor64 [{}]", in(reg) context.fpu.direct(), in("eax") u32::MAX, in("edx") u32::MAX);
            xsetbv(context.xcr0.get());
        } else {
            asm!("fxrstor64 [{}]", in(reg) context.fpu.direct());
        }
        load_debug_registers(context.debug.get());
        asm!("mov {0}, cr0", "or {0}, 8", "mov cr0, {0}", out(reg) _, options(nostack));
    }
}

fn load_debug_registers([d0, d1, d2, d3]: [u64; 4]) {
    // SAFETY: the host's DR7 enables none of them.
    unsafe {
        asm!("mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}",
            in(reg) d0, in(reg) d1, in(reg) d2, in(reg) d3, options(nomem, nostack));
    }
}

fn xgetbv() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: CR4.OSXSAVE is set where this is called.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

fn xsetbv(value: u64) {
    counting::count(SystemField::XcrWrites);
    // SAFETY: the value is what the processor offers, or what a guest had set.
    unsafe {
        asm!("xsetbv", in("ecx") 0, in("eax") value as u32, in("edx") (value >> 32) as u32,
            options(nomem, nostack));
    }
}
