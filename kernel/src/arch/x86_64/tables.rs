//! Descriptor tables: segments, interrupt gates, the TSS with its port bitmap.

use core::cell::Cell;

use x86_64::registers::model_specific::{GsBase, KernelGsBase};
use x86_64::registers::segmentation::{CS, SS, Segment};
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable, SegmentSelector};
use x86_64::structures::idt::InterruptDescriptorTable;
use x86_64::{PrivilegeLevel, VirtAddr};

use super::entry;
use crate::cpu::Cpu;
use crate::memory::Shared;
use crate::object::ports::EnabledPorts;

/// Code segment of ring 3.
pub const USER_CODE: u64 = 0x23;
/// Data segment of ring 3.
pub const USER_DATA: u64 = 0x1b;
const KERNEL_CODE: u16 = 0x08;
const KERNEL_DATA: u16 = 0x10;

/// Task state segment with the I/O permission bitmap behind it (APM vol. 2, 12.2.5). The boot CPU's alone.
#[repr(C, align(16))]
struct Tss {
    reserved0: u32,
    /// Stack pointer for entries from ring 3, as two halves: it is not naturally aligned.
    rsp0: [Cell<u32>; 2],
    rest: [u32; 22],
    reserved1: u16,
    bitmap_base: Cell<u16>,
    /// A clear bit enables the port.
    bitmap: [Cell<u64>; 1024],
    end: [u8; 8],
}

/// Size that the descriptor states: up to the byte after the bitmap.
const TSS_LIMIT: u64 = 104 + 8192;
const _: () = assert!(core::mem::offset_of!(Tss, bitmap) == 104);
const _: () = assert!(core::mem::offset_of!(Tss, rsp0) == 4);

static TSS: Shared<Tss> = Shared(Tss {
    reserved0: 0,
    rsp0: [const { Cell::new(0) }; 2],
    rest: [0; 22],
    reserved1: 0,
    bitmap_base: Cell::new(NO_PORTS),
    bitmap: [const { Cell::new(u64::MAX) }; 1024],
    end: [0xff; 8],
});

/// A bitmap base beyond the limit: no port is enabled.
const NO_PORTS: u16 = 0xffff;
/// The bitmap behind the TSS.
const BITMAP: u16 = 104;

static GDT: spin::Once<GlobalDescriptorTable<8>> = spin::Once::new();
static IDT: spin::Once<InterruptDescriptorTable> = spin::Once::new();

/// Loads all tables and the per-CPU pointer.
pub fn load(cpu: &'static Cpu) {
    let base = &raw const TSS as u64;
    let low = TSS_LIMIT & 0xffff
        | (base & 0xff_ffff) << 16
        | 0x89 << 40
        | (TSS_LIMIT >> 16 & 0xf) << 48
        | (base >> 24 & 0xff) << 56;
    let gdt = GDT.call_once(|| {
        let mut gdt = GlobalDescriptorTable::empty();
        gdt.append(Descriptor::kernel_code_segment());
        gdt.append(Descriptor::kernel_data_segment());
        gdt.append(Descriptor::user_data_segment());
        gdt.append(Descriptor::user_code_segment());
        gdt.append(Descriptor::SystemSegment(low, base >> 32));
        gdt
    });
    let idt = IDT.call_once(interrupt_table);
    gdt.load();
    idt.load();
    // SAFETY: the selectors name the descriptors appended above; GS then points to this CPU's data.
    unsafe {
        CS::set_reg(SegmentSelector(KERNEL_CODE));
        SS::set_reg(SegmentSelector(KERNEL_DATA));
        x86_64::instructions::tables::load_tss(SegmentSelector::new(5, PrivilegeLevel::Ring0));
        core::arch::asm!("mov ds, {0:x}", "mov es, {0:x}", "mov fs, {0:x}", "mov gs, {0:x}", in(reg) 0u16);
    }
    GsBase::write(VirtAddr::from_ptr(cpu));
    KernelGsBase::write(VirtAddr::zero());
}

fn interrupt_table() -> InterruptDescriptorTable {
    let mut idt = InterruptDescriptorTable::new();
    // SAFETY: every stub follows the protocol of its vector (error code or not) and never returns wrongly.
    unsafe {
        idt.divide_error.set_handler_addr(entry::stub(0));
        idt.debug.set_handler_addr(entry::stub(1));
        idt.non_maskable_interrupt.set_handler_addr(entry::stub(2));
        idt.breakpoint.set_handler_addr(entry::stub(3)).set_privilege_level(PrivilegeLevel::Ring3);
        idt.overflow.set_handler_addr(entry::stub(4)).set_privilege_level(PrivilegeLevel::Ring3);
        idt.bound_range_exceeded.set_handler_addr(entry::stub(5));
        idt.invalid_opcode.set_handler_addr(entry::stub(6));
        idt.device_not_available.set_handler_addr(entry::stub(7));
        idt.double_fault.set_handler_addr(entry::stub(8));
        idt.invalid_tss.set_handler_addr(entry::stub(10));
        idt.segment_not_present.set_handler_addr(entry::stub(11));
        idt.stack_segment_fault.set_handler_addr(entry::stub(12));
        idt.general_protection_fault.set_handler_addr(entry::stub(13));
        idt.page_fault.set_handler_addr(entry::stub(14));
        idt.x87_floating_point.set_handler_addr(entry::stub(16));
        idt.alignment_check.set_handler_addr(entry::stub(17));
        idt.machine_check.set_handler_addr(entry::stub(18));
        idt.simd_floating_point.set_handler_addr(entry::stub(19));
        for vector in 32..=255u8 {
            idt[vector].set_handler_addr(entry::stub(u64::from(vector)));
        }
    }
    idt
}

/// Kernel and user selector bases for STAR.
pub fn syscall_selectors() -> (u16, u16) {
    (KERNEL_CODE, KERNEL_DATA | 3)
}

/// Where the processor pushes its frame on an entry from ring 3.
#[inline(always)]
pub fn set_interrupt_stack(top: u64) {
    let [low, high] = &TSS.0.rsp0;
    low.set(top as u32);
    high.set((top >> 32) as u32);
}

/// Hides the bitmap: no port is enabled.
#[inline(always)]
pub fn hide_ports() {
    TSS.0.bitmap_base.set(NO_PORTS);
}

/// Lets the processor see the bitmap.
pub fn show_ports() {
    TSS.0.bitmap_base.set(BITMAP);
}

/// Disables every port in the bitmap.
pub fn clear_ports() {
    for word in &TSS.0.bitmap {
        word.set(u64::MAX);
    }
}

/// Enables or disables ranges in the bitmap.
pub fn set_ports(ports: &EnabledPorts, are_enabled: bool) {
    for (first, count) in ports.iter() {
        let end = (first + count).min(1 << 16);
        let mut port = first;
        while port < end {
            let (index, bit) = ((port / 64) as usize, port % 64);
            let width = (64 - bit).min(end - port);
            let mask = if width == 64 { u64::MAX } else { ((1 << width) - 1) << bit };
            if let Some(word) = TSS.0.bitmap.get(index) {
                word.set(if are_enabled { word.get() & !mask } else { word.get() | mask });
            }
            port += width;
        }
    }
}
