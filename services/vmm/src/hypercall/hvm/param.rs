//! Parameters of the guest: which it may read, which it may set, and to what.
//! Sources: Xen public/hvm/params.h; hvm_allow_set_param, hvm_set_param and hvm_allow_get_param in
//! arch/x86/hvm/hvm.c, hvm_set_callback_via in arch/x86/hvm/irq.c.

use proto::toolstack::EndReason;

use super::super::{Call, Done, Field};
use crate::errno::{Answer, Errno};
use crate::loader::place::{CONSOLE_GFN, XENSTORE_GFN};
use crate::machine::{Outcome, Platform, sentence};

operations! {
    "hvm_op parameter": u32 {
        CALLBACK_IRQ = 0,
        STORE_PFN = 1,
        STORE_EVTCHN = 2,
        PAE_ENABLED = 4,
        IOREQ_PFN = 5,
        BUFIOREQ_PFN = 6,
        VIRIDIAN = 9,
        TIMER_MODE = 10,
        HPET_ENABLED = 11,
        IDENT_PT = 12,
        DM_DOMAIN = 13,
        ACPI_S_STATE = 14,
        VM86_TSS = 15,
        VPT_ALIGN = 16,
        CONSOLE_PFN = 17,
        CONSOLE_EVTCHN = 18,
        ACPI_IOPORTS_LOCATION = 19,
        MEMORY_EVENT_CR0 = 20,
        MEMORY_EVENT_CR3 = 21,
        MEMORY_EVENT_CR4 = 22,
        MEMORY_EVENT_INT3 = 23,
        NESTEDHVM = 24,
        MEMORY_EVENT_SINGLE_STEP = 25,
        BUFIOREQ_EVTCHN = 26,
        PAGING_RING_PFN = 27,
        MONITOR_RING_PFN = 28,
        SHARING_RING_PFN = 29,
        MEMORY_EVENT_MSR = 30,
        TRIPLE_FAULT_REASON = 31,
        IOREQ_SERVER_PFN = 32,
        NR_IOREQ_SERVER_PAGES = 33,
        VM_GENERATION_ID_ADDR = 34,
        ALTP2M = 35,
        X87_FIP_WIDTH = 36,
        VM86_TSS_SIZED = 37,
        MCA_CAP = 38,
    }
}

/// Parameters end here.
const PARAMS: u32 = 39;
/// CALLBACK_IRQ's type "vector", in its top byte.
const BY_VECTOR: u64 = 2;
/// Lengths of a task state segment: at least its fields, at most also all its bitmaps.
const TSS_MIN: u64 = 0x68;
const TSS_MAX: u64 = TSS_MIN + 0x100 / 8 + 0x1_0000 / 8 + 1;
/// The length that VM86_TSS implies.
const TSS_OLD: u64 = 128;

/// Parameters that keep what a guest sets; the others follow from elsewhere.
#[derive(Debug, Default)]
pub struct Params {
    callback_irq: u64,
    /// Ports, if the guest set others than its own.
    store_port: Option<u64>,
    console_port: Option<u64>,
    tss: u64,
    generation_id: u64,
    x87_width: u64,
}

/// Whether it exists no more.
fn is_deprecated(index: u32) -> bool {
    matches!(index, PAE_ENABLED | DM_DOMAIN | MEMORY_EVENT_CR0..=BUFIOREQ_EVTCHN | MEMORY_EVENT_MSR)
}

/// `{u16 domid, u32 index, u64 value}`.
fn read<P: Platform>(call: &Call<'_, P>, argument: u64) -> Result<(u32, u64), Errno> {
    let request: [u8; 16] = call.read(argument)?;
    let (index, value) = (request.u32_at(4), request.u64_at(8));
    if index >= PARAMS {
        return Err(Errno::Invalid);
    }
    call.only_self(request.u16_at(0))?;
    if is_deprecated(index) { Err(Errno::Invalid) } else { Ok((index, value)) }
}

pub fn get<P: Platform>(call: &mut Call<'_, P>, argument: u64) -> Answer {
    let (index, _) = read(call, argument)?;
    let guest = call.guest();
    let value = match index {
        CALLBACK_IRQ => guest.params.callback_irq,
        STORE_PFN => XENSTORE_GFN.0,
        CONSOLE_PFN => CONSOLE_GFN.0,
        STORE_EVTCHN => guest.params.store_port.unwrap_or(u64::from(guest.store_port.0)),
        CONSOLE_EVTCHN => guest.params.console_port.unwrap_or(u64::from(guest.console_port.0)),
        VM86_TSS => guest.params.tss & 0xffff_ffff,
        VM86_TSS_SIZED => guest.params.tss,
        VM_GENERATION_ID_ADDR => guest.params.generation_id,
        X87_FIP_WIDTH => guest.params.x87_width,
        ACPI_IOPORTS_LOCATION | ALTP2M => 0,
        _ => return Err(Errno::Perm),
    };
    call.write(argument.wrapping_add(8), &value.to_le_bytes())?;
    Ok(0)
}

pub fn set<P: Platform>(call: &mut Call<'_, P>, argument: u64) -> Result<Done, Errno> {
    let (index, value) = read(call, argument)?;
    let guest = call.guest();
    match index {
        CALLBACK_IRQ => set_callback(call, value),
        STORE_EVTCHN => guest.params.store_port = Some(value),
        CONSOLE_EVTCHN => guest.params.console_port = Some(value),
        VM_GENERATION_ID_ADDR => guest.params.generation_id = value,
        X87_FIP_WIDTH if matches!(value, 0 | 4 | 8) => guest.params.x87_width = value,
        X87_FIP_WIDTH => return Err(Errno::Invalid),
        VM86_TSS if value >> 32 != 0 => return Ok(crash("a task state segment above 4 GiB")),
        VM86_TSS => guest.params.tss = if value == 0 { 0 } else { TSS_OLD << 32 | value },
        VM86_TSS_SIZED => {
            let len = (value >> 32).min(TSS_MAX);
            if len < TSS_MIN {
                return Ok(crash("a task state segment that is too short"));
            }
            guest.params.tss = len << 32 | value & 0xffff_ffff;
        }
        // There is no power management block whose ports could move.
        ACPI_IOPORTS_LOCATION => return Err(Errno::NoEquipment),
        _ => return Err(Errno::Perm),
    }
    Ok(Done::Answer(Ok(0)))
}

/// As Xen does with a guest that asks for what cannot be entered.
fn crash(what: &str) -> Done {
    Done::Then(Outcome::End(EndReason::Crash, sentence(format_args!("the guest set {what}"))))
}

/// How the upcall comes. Without interrupt controllers there is no line that could carry it: then all stays as
/// it was, and the value is kept nevertheless.
fn set_callback<P: Platform>(call: &mut Call<'_, P>, value: u64) {
    let guest = call.guest();
    guest.params.callback_irq = value;
    if value >> 56 == BY_VECTOR {
        guest.callback = Some(value as u8);
    }
    let layout = call.width.layout();
    call.guest().events.latch(layout);
    call.vcpu.has_news = true;
}
