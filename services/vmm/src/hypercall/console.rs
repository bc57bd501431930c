//! console_io: output before there is a console ring (early printk), as Xen's debug builds take it. Input is for
//! the hardware domain. Source: Xen public/xen.h, drivers/char/console.c.

use super::{Call, Done};
use crate::errno::Errno;
use crate::machine::Platform;

operations! {
    "console_io": u32 {
        WRITE = 0,
        READ = 1,
    }
}

/// Bytes that one pass takes; what the console has no room for is lost.
const PER_PASS: u64 = 512;

pub(super) fn call<P: Platform>(call: &mut Call<'_, P>) -> Done {
    let [_, _, buffer, ..] = call.args;
    let (operation, count) = (call.word(0), u64::from(call.word(1)));
    if operation != WRITE {
        return Done::Answer(Err(Errno::Perm));
    }
    let now = count.min(PER_PASS);
    let mut bytes = [0; 64];
    for done in (0..now).step_by(bytes.len()) {
        let part = bytes.get_mut(..(now - done).min(64) as usize).unwrap_or(&mut []);
        if call.paging.read(&call.machine.guest.memory, buffer.wrapping_add(done), part).is_err() {
            return Done::Answer(Err(Errno::Fault));
        }
        call.machine.guest.write_early(part.iter().copied());
    }
    if now == count {
        return Done::Answer(Ok(0));
    }
    Done::AgainFrom([u64::from(operation), count - now, buffer.wrapping_add(now)])
}
