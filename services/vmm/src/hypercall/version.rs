//! xen_version. What is for the machine's administrator only is denied as Xen denies it.
//! Sources: Xen public/version.h, public/features.h; common/kernel.c, xsm_xen_version in include/xsm/dummy.h.

use super::{Call, Field};
use crate::cpuid::XEN_VERSION;
use crate::errno::{Answer, Errno};
use crate::machine::Platform;
use crate::memory::PAGE;

operations! {
    "xen_version": u32 {
        VERSION = 0,
        EXTRAVERSION = 1,
        COMPILE_INFO = 2,
        CAPABILITIES = 3,
        CHANGESET = 4,
        PLATFORM_PARAMETERS = 5,
        GET_FEATURES = 6,
        PAGESIZE = 7,
        GUEST_HANDLE = 8,
        COMMANDLINE = 9,
        BUILD_ID = 10,
    }
}

/// writable_page_tables, auto_translated_physmap, hvm_callback_vector, hvm_safe_pvclock,
/// memory_op_vnode_supported, not_direct_mapped.
const FEATURES: u32 = 1 << 0 | 1 << 2 | 1 << 8 | 1 << 9 | 1 << 13 | 1 << 16;
/// Where Xen is in a paravirtualised guest's address space.
const VIRT_START: u64 = 0xffff_8000_0000_0000;
const DENIED: &[u8] = b"<denied>\0";
/// Modes in which a guest may run.
const MODES: &str = "hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64 ";
const COMPILER: &str = concat!("rustc, for ailurus ", env!("CARGO_PKG_VERSION"));

pub(super) fn call<P: Platform>(call: &mut Call<'_, P>) -> Answer {
    let [_, argument, ..] = call.args;
    match call.word(0) {
        VERSION => return Ok(u64::from(XEN_VERSION)),
        EXTRAVERSION => text::<P, 16>(call, argument, ".ailurus")?,
        COMPILE_INFO => {
            // Compiler, who, where, when.
            text::<P, 64>(call, argument, COMPILER)?;
            text::<P, 16>(call, argument.wrapping_add(64), "")?;
            text::<P, 32>(call, argument.wrapping_add(80), "")?;
            text::<P, 32>(call, argument.wrapping_add(112), "")?;
        }
        CAPABILITIES => text::<P, 1024>(call, argument, MODES)?,
        CHANGESET => text::<P, 64>(call, argument, "unavailable")?,
        PLATFORM_PARAMETERS => call.write_long(argument, call.by_width(VIRT_START, 0))?,
        GET_FEATURES => {
            let request: [u8; 8] = call.read(argument)?;
            if request.u32_at(0) != 0 {
                return Err(Errno::Invalid);
            }
            call.write(argument.wrapping_add(4), &FEATURES.to_le_bytes())?;
        }
        PAGESIZE if argument == 0 => return Ok(PAGE as u64),
        PAGESIZE => return Err(Errno::Invalid),
        GUEST_HANDLE => {
            let uuid = call.guest().uuid;
            call.write(argument, &uuid)?;
        }
        COMMANDLINE => call.write(argument, DENIED)?,
        BUILD_ID => return Err(Errno::Perm),
        _ => return Err(Errno::NoSys),
    }
    Ok(0)
}

/// Writes text, padded with zeros to `N` bytes.
fn text<P: Platform, const N: usize>(call: &Call<'_, P>, argument: u64, text: &str) -> Result<(), Errno> {
    let mut bytes = [0; N];
    // The last byte stays zero, whatever the text.
    for (to, from) in bytes.iter_mut().take(N - 1).zip(text.bytes()) {
        *to = from;
    }
    call.write(argument, &bytes)
}
