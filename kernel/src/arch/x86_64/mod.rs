//! x86_64 with AMD SVM.

#![expect(unsafe_code, reason = "this folder is the border to the processor")]

/// Goes on in a function that does not return, with nothing kept: unlike a call, this costs the function in which
/// it stands no frame and no saved registers.
macro_rules! jump {
    ($function:path, $($register:tt = $value:expr),*) => {
        // SAFETY: the function takes these arguments and never returns; it starts with the stack as it is.
        unsafe { core::arch::asm!("jmp {}", sym $function, $(in($register) $value),*, options(noreturn, nostack)) }
    };
}

mod apic;
mod clock;
mod counting;
mod entry;
pub mod guest;
mod paging;
mod serial;
mod tables;
mod vmcb;

use core::cell::Cell;

use proto::abi::SystemField;
use x86_64::instructions::interrupts;
use x86_64::registers::control::{Cr0, Cr0Flags, Cr3, Cr4, Cr4Flags};
use x86_64::registers::model_specific::{Efer, EferFlags};

use crate::cpu::{Cpu, Turn};
use crate::memory::{Pfn, Shared};
use crate::object::domain::Domain;
use crate::object::space::Space;
use crate::object::thread::{Thread, reg};
use crate::object::vcpu::Vcpu;

pub use apic::{FIRST_MSI_VECTOR, set_line_masked};
pub use clock::{set_timer, tsc, tsc_khz};
pub use counting::{Counts, instructions, no_counts};
pub use entry::{continue_vcpu, return_from_interrupt, return_from_syscall, set_traced};
pub use paging::{APIC_PAGES, Ram, build_kernel_space, image_end, share_kernel_half};
pub use serial::{Serial, early_log};
pub use tables::{USER_CODE, USER_DATA};

/// Per-CPU state of the architecture.
#[derive(Debug)]
pub struct ArchCpu {
    /// What becomes of the running thread.
    pub turn: Cell<Turn>,
    /// Level-4 table that CR3 holds.
    root: Cell<u64>,
    /// Whose ports the port bitmap holds, whether or not the processor sees it now.
    ports_of: Cell<Option<&'static Domain>>,
    /// The vCPU whose FPU, XCR0 and debug registers the processor holds.
    guest_state_of: Cell<Option<&'static Vcpu>>,
    /// Physical address of the host's own state for VMLOAD.
    host_vmcb: Cell<u64>,
    asids: guest::AsidPool,
}

impl ArchCpu {
    /// Fresh state.
    pub const fn new() -> Self {
        Self {
            turn: Cell::new(Turn::Lasts),
            root: Cell::new(0),
            ports_of: Cell::new(None),
            guest_state_of: Cell::new(None),
            host_vmcb: Cell::new(0),
            asids: guest::AsidPool::new(),
        }
    }
}

impl Default for ArchCpu {
    fn default() -> Self {
        Self::new()
    }
}

/// Bytes of a kernel stack.
const STACK_SIZE: usize = 32 * 1024;

#[repr(C, align(16))]
struct Stack([u8; STACK_SIZE]);

/// The boot CPU's data and stack; each CPU touches only its own.
static BOOT_CPU: Shared<Cpu> = Shared(Cpu::new());
static mut BOOT_STACK: Stack = Stack([0; STACK_SIZE]);

/// The CPU that executes this.
#[inline(always)]
pub fn this_cpu() -> &'static Cpu {
    let this: u64;
    // SAFETY: in the kernel GS points to the CPU's data, whose first field is its own address.
    unsafe {
        core::arch::asm!("mov {}, gs:[0]", out(reg) this, options(pure, nomem, nostack, preserves_flags));
        &*(this as *const Cpu)
    }
}

/// Sets up the boot CPU: descriptor tables, per-CPU data, control registers, interrupt controllers, clock.
pub fn init_cpu(ram: &mut Ram<'_>) {
    let cpu = &BOOT_CPU.0;
    cpu.this.set(core::ptr::from_ref(cpu) as u64);
    cpu.stack_top.set(&raw const BOOT_STACK as u64 + STACK_SIZE as u64);
    tables::load(cpu);
    set_control_registers();
    entry::init_syscall();
    apic::init();
    clock::calibrate();
    guest::init(cpu, ram);
}

/// Ring-3 threads use no FPU (it holds a guest's state), cannot be executed or read by accident, and
/// cannot read descriptor tables.
fn set_control_registers() {
    let features = core::arch::x86_64::__cpuid_count(7, 0);
    let basic = core::arch::x86_64::__cpuid(1);
    let mut cr4 = Cr4Flags::PHYSICAL_ADDRESS_EXTENSION;
    for (has, flag) in [
        (features.ebx & 1 << 7 != 0, Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION),
        (features.ebx & 1 << 20 != 0, Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION),
        (features.ecx & 1 << 2 != 0, Cr4Flags::USER_MODE_INSTRUCTION_PREVENTION),
        (basic.ecx & 1 << 26 != 0, Cr4Flags::OSXSAVE),
    ] {
        if has {
            cr4 |= flag;
        }
    }
    // SAFETY: the kernel's mappings satisfy SMEP and SMAP, and `boot` already enabled long mode.
    unsafe {
        Cr4::write(cr4);
        Cr0::write(
            Cr0Flags::PROTECTED_MODE_ENABLE
                | Cr0Flags::EXTENSION_TYPE
                | Cr0Flags::NUMERIC_ERROR
                | Cr0Flags::WRITE_PROTECT
                | Cr0Flags::ALIGNMENT_MASK
                | Cr0Flags::TASK_SWITCHED
                | Cr0Flags::PAGING,
        );
        Efer::update(|efer| efer.insert(EferFlags::NO_EXECUTE_ENABLE | EferFlags::SYSTEM_CALL_EXTENSIONS));
    }
}

/// Largest leaf of a page table: 1 GiB where the processor has it, else 2 MiB.
pub fn largest_leaf() -> u32 {
    if core::arch::x86_64::__cpuid(0x8000_0001).edx & 1 << 26 != 0 { 3 } else { 2 }
}

/// Guest-physical address bits.
pub fn guest_physical_bits() -> u32 {
    (core::arch::x86_64::__cpuid(0x8000_0008).eax & 0xff).clamp(32, 48)
}

/// The processor has SVM with nested paging and the firmware left it enabled.
pub fn has_virtualisation() -> bool {
    guest::is_available()
}

/// Loads a thread's context: address space, interrupt stack, ports.
#[inline(always)]
pub fn activate(cpu: &'static Cpu, thread: &'static Thread) {
    activate_but_ports(cpu, thread);
    if thread.domain.ports.is_empty() {
        tables::hide_ports();
    } else {
        show_ports(cpu, thread.domain);
    }
}

/// Loads a thread's context and goes on in it behind its system call, with status 0.
#[inline(always)]
pub fn activate_and_return(cpu: &'static Cpu, thread: &'static Thread, value: u64) -> ! {
    activate_but_ports(cpu, thread);
    if !thread.domain.ports.is_empty() {
        jump!(show_ports_and_return, "rdi" = core::ptr::from_ref(thread), "rsi" = value);
    }
    tables::hide_ports();
    return_from_syscall(thread, 0, value)
}

#[cold]
extern "C" fn show_ports_and_return(thread: &'static Thread, value: u64) -> ! {
    show_ports(this_cpu(), thread.domain);
    return_from_syscall(thread, 0, value)
}

#[inline(always)]
fn activate_but_ports(cpu: &'static Cpu, thread: &'static Thread) {
    let root = thread.root;
    if cpu.arch.root.get() != root {
        cpu.arch.root.set(root);
        counting::count(SystemField::Cr3Writes);
        // SAFETY: the domain's table holds the kernel's half, and its frames are the kernel's.
        unsafe { core::arch::asm!("mov cr3, {}", in(reg) root, options(nostack, preserves_flags)) };
    }
    tables::set_interrupt_stack(&raw const thread.regs as u64 + (reg::COUNT * 8) as u64);
}

/// Lets a domain use its ports. The bitmap is changed only when another domain has ports too.
#[cold]
#[inline(never)]
fn show_ports(cpu: &'static Cpu, domain: &'static Domain) {
    let before = cpu.arch.ports_of.replace(Some(domain));
    if !before.is_some_and(|before| core::ptr::eq(before, domain)) {
        if let Some(before) = before {
            tables::set_ports(&before.ports, false);
        }
        tables::set_ports(&domain.ports, true);
    }
    tables::show_ports();
}

/// Enabled ports of some domain changed, or a domain that had some is going.
pub fn ports_changed() {
    let cpu = this_cpu();
    if cpu.arch.ports_of.take().is_some() {
        tables::clear_ports();
    }
    if let Some(thread) = cpu.current.get() {
        activate(cpu, thread);
    }
}

/// Flushes what this CPU remembers of a space from which something was unmapped.
pub fn flush_if_active(space: &Space) {
    if this_cpu().arch.root.get() == space.root.phys().0 {
        let (frame, flags) = Cr3::read();
        counting::count(SystemField::Cr3Writes);
        // SAFETY: the same table again.
        unsafe { Cr3::write(frame, flags) };
    }
}

/// Waits for an interrupt and handles it.
pub fn idle_once() {
    interrupts::enable_and_hlt();
    interrupts::disable();
}

/// Lets pending interrupts in.
fn interrupt_window() {
    // SAFETY: the handlers for interrupts taken in ring 0 return here; `nop` ends the shadow of `sti`.
    unsafe { core::arch::asm!("sti", "nop", "cli", options(nostack)) };
}

/// Resets the machine: a triple fault.
pub fn reset_machine() -> ! {
    let empty = x86_64::structures::DescriptorTablePointer { limit: 0, base: x86_64::VirtAddr::zero() };
    // SAFETY: nothing runs after this.
    unsafe {
        x86_64::instructions::tables::lidt(&empty);
        core::arch::asm!("ud2", options(noreturn));
    }
}

/// Reports a bug of the kernel and stops the machine for good.
pub fn halt(message: core::fmt::Arguments<'_>) -> ! {
    interrupts::disable();
    let _ = core::fmt::write(&mut Serial, format_args!("\r\nkernel: {message}\r\n"));
    // Under QEMU this ends the run with a status of its own (see qemu-runner); elsewhere nobody listens.
    // SAFETY: an output to a port that no device of a PC decodes.
    unsafe { x86_64::instructions::port::Port::<u8>::new(0xf4).write(0x3f) };
    loop {
        x86_64::instructions::hlt();
    }
}

/// A frame that only the kernel uses, for the architecture's tables.
pub(crate) fn take_frames(ram: &mut Ram<'_>, count: u64) -> Pfn {
    match ram.take(count) {
        Some(first) => first,
        None => halt(format_args!("not enough RAM below 4 GiB for the kernel's own tables")),
    }
}
