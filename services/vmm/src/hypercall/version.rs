//! xen_version. Source: Xen public/version.h, public/features.h.

use super::{Call, Field};
use crate::cpuid::XEN_VERSION;
use crate::errno::{Answer, Errno};
use crate::machine::Platform;
use crate::memory::PAGE;

const VERSION: u64 = 0;
const EXTRA_VERSION: u64 = 1;
const CAPABILITIES: u64 = 3;
const CHANGESET: u64 = 4;
const PLATFORM_PARAMETERS: u64 = 5;
const GET_FEATURES: u64 = 6;
const PAGE_SIZE: u64 = 7;
const GUEST_HANDLE: u64 = 8;

/// writable_page_tables, auto_translated_physmap, hvm_callback_vector, hvm_safe_pvclock, not_direct_mapped.
const FEATURES: u32 = 1 << 0 | 1 << 2 | 1 << 8 | 1 << 9 | 1 << 16;

pub(super) fn call<P: Platform>(call: &mut Call<'_, P>) -> Answer {
    let [operation, argument, ..] = call.args;
    match operation {
        VERSION => return Ok(u64::from(XEN_VERSION)),
        PAGE_SIZE => return Ok(PAGE as u64),
        EXTRA_VERSION => text::<P, 16>(call, argument, ".ailurus")?,
        CAPABILITIES => text::<P, 1024>(call, argument, "hvm-3.0-x86_64")?,
        CHANGESET => text::<P, 64>(call, argument, "unavailable")?,
        PLATFORM_PARAMETERS => call.write_long(argument, 0)?,
        GET_FEATURES => {
            let request: [u8; 8] = call.read(argument)?;
            let features = if request.u32_at(0) == 0 { FEATURES } else { 0 };
            call.write(argument.wrapping_add(4), &features.to_le_bytes())?;
        }
        GUEST_HANDLE => {
            let uuid = call.guest().uuid;
            call.write(argument, &uuid)?;
        }
        _ => return Err(Errno::NoSys),
    }
    Ok(0)
}

/// Writes text, padded with zeros to `N` bytes.
fn text<P: Platform, const N: usize>(call: &Call<'_, P>, argument: u64, text: &str) -> Result<(), Errno> {
    let mut bytes = [0; N];
    for (to, from) in bytes.iter_mut().zip(text.bytes()) {
        *to = from;
    }
    call.write(argument, &bytes)
}
