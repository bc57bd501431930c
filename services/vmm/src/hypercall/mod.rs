//! Hypercalls: number and arguments in, answer out; one file per Xen hypercall with sub-operations.
//!
//! 64-bit code: number in `rax`, arguments in `rdi`, `rsi`, `rdx`, `r10`, `r8`, answer in `rax`. All other
//! code (32-bit and 16-bit segments, unpaged or paged, inside of a 64-bit kernel too, and real mode): number
//! in `eax`, arguments in `ebx`, `ecx`, `edx`, `esi`, `edi`, answer in `eax`, and the structures have the
//! 32-bit layouts: [`Call::handle_at`] and its like tell them apart. Calls from CPL > 0, virtual-8086 mode
//! among them, are refused. Every structure is copied from the guest once, through its own page tables.
//! Sources: Xen public/xen.h, public/arch-x86/xen-x86_32.h; arch/x86/hvm/hypercall.c for the modes.

/// Declares the numbers of a hypercall's sub-operations, and lists them for the test that compares them with
/// `HYPERCALLS.md`: those stand there, too, that are only refused.
macro_rules! operations {
    ($call:literal: $type:ty { $($name:ident = $value:literal,)* }) => {
        $(
            #[allow(dead_code, reason = "some are refused with all others")]
            pub(super) const $name: $type = $value;
        )*
        #[cfg(test)]
        pub(in crate::hypercall) const OPERATIONS: (&str, &[(&str, u64)]) = ($call, &[$((stringify!($name), $value),)*]);
    };
}

mod assist;
mod console;
mod context;
mod domid;
mod evtchn;
mod grant;
mod hvm;
mod memory;
mod multicall;
mod refused;
mod sched;
mod target;
mod vcpu;
mod version;

pub use hvm::Params;

use proto::abi::{VcpuState, gpr};

use crate::errno::{Answer, Errno, to_rax};
use crate::events::Layout;
use crate::machine::{Guest, Machine, Outcome, Platform, Vcpu};
use crate::walk::{EFER_LMA, Paging};

/// Numbers of the hypercalls.
mod number {
    operations! {
        "hypercall": u64 {
            SET_TRAP_TABLE = 0,
            MMU_UPDATE = 1,
            SET_GDT = 2,
            STACK_SWITCH = 3,
            SET_CALLBACKS = 4,
            FPU_TASKSWITCH = 5,
            SCHED_OP_COMPAT = 6,
            PLATFORM_OP = 7,
            SET_DEBUGREG = 8,
            GET_DEBUGREG = 9,
            UPDATE_DESCRIPTOR = 10,
            MEMORY_OP = 12,
            MULTICALL = 13,
            UPDATE_VA_MAPPING = 14,
            SET_TIMER_OP = 15,
            EVENT_CHANNEL_OP_COMPAT = 16,
            XEN_VERSION = 17,
            CONSOLE_IO = 18,
            PHYSDEV_OP_COMPAT = 19,
            GRANT_TABLE_OP = 20,
            VM_ASSIST = 21,
            UPDATE_VA_MAPPING_OTHERDOMAIN = 22,
            IRET = 23,
            VCPU_OP = 24,
            SET_SEGMENT_BASE = 25,
            MMUEXT_OP = 26,
            XSM_OP = 27,
            NMI_OP = 28,
            SCHED_OP = 29,
            CALLBACK_OP = 30,
            XENOPROF_OP = 31,
            EVENT_CHANNEL_OP = 32,
            PHYSDEV_OP = 33,
            HVM_OP = 34,
            SYSCTL = 35,
            DOMCTL = 36,
            KEXEC_OP = 37,
            TMEM_OP = 38,
            ARGO_OP = 39,
            XENPMU_OP = 40,
            DM_OP = 41,
            HYPFS_OP = 42,
            MCA = 48,
            PAGING_DOMCTL_CONT = 49,
        }
    }
}

use number::*;

/// Index of `r10` in the state's registers.
const R10: usize = 10;
const RFLAGS_IF: u64 = 1 << 9;
/// CS attribute L.
const CODE_64: u32 = 1 << 9;
/// The half of a register that 32-bit code sees.
const LOW: u64 = 0xffff_ffff;

/// One hypercall being served.
pub(crate) struct Call<'a, P> {
    machine: &'a mut Machine<P>,
    vcpu: &'a mut Vcpu,
    paging: Paging,
    args: [u64; 5],
    width: Width,
    /// The caller takes interrupts.
    is_interruptible: bool,
}

/// Which layouts and registers a caller uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// All code but 64-bit code.
    Bits32,
    /// 64-bit code.
    Bits64,
}

impl Width {
    /// That of the code that runs.
    #[inline]
    pub fn of(state: &VcpuState) -> Self {
        if state.efer & EFER_LMA != 0 && state.cs_attributes & CODE_64 != 0 {
            Self::Bits64
        } else {
            Self::Bits32
        }
    }

    /// The layout of shared_info that such code expects.
    pub fn layout(self) -> Layout {
        if self == Self::Bits64 { Layout::BITS_64 } else { Layout::BITS_32 }
    }
}

/// How a hypercall ends.
#[derive(Debug)]
pub enum Done {
    /// With an answer; the vCPU goes on behind the instruction.
    Answer(Answer),
    /// Part of the work is done: the instruction is executed again with this first argument. A 32-bit
    /// caller's arguments have 32 bits.
    Again(u64),
    /// Likewise, with these first three arguments.
    AgainFrom([u64; 3]),
    /// The instruction is executed again with these first two arguments, after something else.
    AgainAfter([u64; 2], Outcome),
    /// With answer 0, and something other than just going on.
    Then(Outcome),
}

impl<P: Platform> Call<'_, P> {
    #[inline]
    fn guest(&mut self) -> &mut Guest {
        &mut self.machine.guest
    }

    /// Copies a structure from the guest.
    #[inline]
    fn read<const N: usize>(&self, linear: u64) -> Result<[u8; N], Errno> {
        Ok(self.paging.read_array(&self.machine.guest.memory, linear)?)
    }

    /// Copies a structure of `N` bytes from the guest, or of `narrow` bytes from a 32-bit caller, whose
    /// fields the caller of this finds by [`Self::handle_at`] and its like; the rest is zero.
    #[inline]
    fn read_sized<const N: usize>(&self, linear: u64, narrow: usize) -> Result<[u8; N], Errno> {
        let mut bytes = [0; N];
        let len = self.by_width(N, narrow);
        self.paging.read(&self.machine.guest.memory, linear, bytes.get_mut(..len).unwrap_or(&mut []))?;
        Ok(bytes)
    }

    /// One of two values, by the caller's width.
    #[inline]
    fn by_width<T>(&self, wide: T, narrow: T) -> T {
        if self.width == Width::Bits64 { wide } else { narrow }
    }

    /// A handle (pointer) or an `unsigned long` of a structure: 64 bits at offset `wide`, or 32 bits at
    /// offset `narrow`.
    #[inline]
    fn handle_at<const N: usize>(&self, bytes: &[u8; N], wide: usize, narrow: usize) -> u64 {
        if self.width == Width::Bits64 { bytes.u64_at(wide) } else { u64::from(bytes.u32_at(narrow)) }
    }

    /// Writes a handle or an `unsigned long`, as wide as the caller's.
    #[inline]
    fn write_long(&self, linear: u64, value: u64) -> Result<(), Errno> {
        let bytes = value.to_le_bytes();
        self.write(linear, bytes.get(..self.by_width(8, 4)).unwrap_or(&[]))
    }

    /// Argument `n`, for those that Xen declares `int` or `unsigned int`: the upper half does not count.
    #[inline]
    fn word(&self, n: usize) -> u32 {
        self.args.get(n).map_or(0, |&arg| arg as u32)
    }

    /// Copies bytes to the guest.
    #[inline]
    fn write(&self, linear: u64, bytes: &[u8]) -> Result<(), Errno> {
        Ok(self.paging.write(&self.machine.guest.memory, linear, bytes)?)
    }
}

/// A little-endian field of a structure that was copied from the guest.
trait Field {
    fn u16_at(&self, at: usize) -> u16;
    fn u32_at(&self, at: usize) -> u32;
    fn u64_at(&self, at: usize) -> u64;
}

impl<const N: usize> Field for [u8; N] {
    fn u16_at(&self, at: usize) -> u16 {
        self.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |b| u16::from_le_bytes(*b))
    }
    fn u32_at(&self, at: usize) -> u32 {
        self.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b))
    }
    fn u64_at(&self, at: usize) -> u64 {
        self.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |b| u64::from_le_bytes(*b))
    }
}

/// Serves the hypercall in `state`. The answer is in `rax` afterwards, except where it is done again.
#[inline]
pub fn dispatch<P: Platform>(machine: &mut Machine<P>, vcpu: &mut Vcpu, state: &mut VcpuState) -> Done {
    // Real mode has CPL 0, virtual-8086 mode 3.
    if state.cpl != 0 {
        state.gprs[gpr::RAX] = to_rax(Err(Errno::Perm));
        return Done::Answer(Err(Errno::Perm));
    }
    if Width::of(state) == Width::Bits32 {
        return dispatch_narrow(machine, vcpu, state);
    }
    let number = state.gprs[gpr::RAX];
    let args = [gpr::RDI, gpr::RSI, gpr::RDX, R10, gpr::R8].map(|index| state.gprs[index]);
    rt::counters::inc(proto::counters::hypercall(number));
    let is_interruptible = state.rflags & RFLAGS_IF != 0;
    let paging = Paging::of(state);
    let mut call = Call { machine, vcpu, paging, args, width: Width::Bits64, is_interruptible };
    let done = serve(&mut call, number);
    match &done {
        Done::Answer(answer) => state.gprs[gpr::RAX] = to_rax(*answer),
        Done::Again(first) => state.gprs[gpr::RDI] = *first,
        Done::AgainFrom([first, second, third]) => {
            state.gprs[gpr::RDI] = *first;
            state.gprs[gpr::RSI] = *second;
            state.gprs[gpr::RDX] = *third;
        }
        Done::AgainAfter([first, second], _) => {
            state.gprs[gpr::RDI] = *first;
            state.gprs[gpr::RSI] = *second;
        }
        Done::Then(_) => state.gprs[gpr::RAX] = 0,
    }
    done
}

/// [`dispatch`] for all but 64-bit code. As Xen has it, only the lower half of `rax` is written.
#[cold]
#[inline(never)]
fn dispatch_narrow<P: Platform>(machine: &mut Machine<P>, vcpu: &mut Vcpu, state: &mut VcpuState) -> Done {
    let low = |index: usize| state.gprs[index] & LOW;
    let number = low(gpr::RAX);
    let args = [gpr::RBX, gpr::RCX, gpr::RDX, gpr::RSI, gpr::RDI].map(low);
    rt::counters::inc(proto::counters::hypercall(number));
    let is_interruptible = state.rflags & RFLAGS_IF != 0;
    let paging = Paging::of(state);
    let mut call = Call { machine, vcpu, paging, args, width: Width::Bits32, is_interruptible };
    let done = serve(&mut call, number);
    let mut set = |index: usize, value: u64| {
        state.gprs[index] = state.gprs[index] & !LOW | value & LOW;
    };
    match &done {
        Done::Answer(answer) => set(gpr::RAX, to_rax(*answer)),
        Done::Again(first) => set(gpr::RBX, *first),
        Done::AgainFrom([first, second, third]) => {
            set(gpr::RBX, *first);
            set(gpr::RCX, *second);
            set(gpr::RDX, *third);
        }
        Done::AgainAfter([first, second], _) => {
            set(gpr::RBX, *first);
            set(gpr::RCX, *second);
        }
        Done::Then(_) => set(gpr::RAX, 0),
    }
    done
}

fn serve<P: Platform>(call: &mut Call<'_, P>, number: u64) -> Done {
    let [first, second, ..] = call.args;
    let answer = match number {
        SET_TIMER_OP => vcpu::set_timer(call),
        EVENT_CHANNEL_OP => evtchn::call(call),
        SCHED_OP => return sched::call(call),
        VCPU_OP => return vcpu::call(call),
        MEMORY_OP => return memory::call(call),
        XEN_VERSION => {
            // Guests that changed their vcpu_info themselves call this to have it looked at.
            call.vcpu.has_news = true;
            version::call(call)
        }
        VM_ASSIST => assist::call(call),
        CONSOLE_IO => return console::call(call),
        GRANT_TABLE_OP => return grant::call(call),
        HVM_OP => return hvm::call(call),
        MULTICALL => return multicall::call(call),
        _ => refused::call(call, number),
    };
    if answer == Err(Errno::NoSys) && call.machine.guest.odd.allows() {
        log::debug!("hypercall {number} ({first:#x}, {second:#x}) is not implemented");
    }
    Done::Answer(answer)
}

#[cfg(test)]
mod table;
#[cfg(test)]
mod tests;
