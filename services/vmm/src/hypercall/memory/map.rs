//! memory_map and set_memory_map: the map that the guest was started with, until it replaces it.

use alloc::boxed::Box;
use alloc::vec;

use super::super::{Call, Field};
use crate::errno::{Answer, Errno};
use crate::loader::place::memory_map;
use crate::machine::Platform;

/// An entry is address, length and kind, without padding.
const ENTRY_LEN: usize = 20;
/// Entries that Xen takes.
const ENTRIES_MAX: u32 = 1024;
/// Entries that are kept: for more there is no memory here.
const ENTRIES_KEPT: u32 = 128;

/// `{u32 count, handle buffer}`.
pub fn read<P: Platform>(call: &mut Call<'_, P>, argument: u64) -> Answer {
    let request: [u8; 16] = call.read_sized(argument, 8)?;
    let (room, buffer) = (request.u32_at(0) as usize, call.handle_at(&request, 8, 4));
    let count = match &call.machine.guest.memory_map {
        Some(map) if map.is_empty() => return Err(Errno::NoSys),
        Some(map) => {
            let len = map.len().min(room.saturating_mul(ENTRY_LEN));
            let map = map.get(..len).unwrap_or(&[]);
            call.paging.write(&call.machine.guest.memory, buffer, map)?;
            len / ENTRY_LEN
        }
        None => {
            let map = memory_map(&call.guest().memory);
            let count = map.len().min(room);
            for (n, entry) in map.iter().take(count).enumerate() {
                let at = buffer.wrapping_add((n * ENTRY_LEN) as u64);
                call.write(at, &entry.start.to_le_bytes())?;
                call.write(at.wrapping_add(8), &entry.len.to_le_bytes())?;
                call.write(at.wrapping_add(16), &entry.kind.to_le_bytes())?;
            }
            count
        }
    };
    call.write(argument, &(count as u32).to_le_bytes())?;
    Ok(0)
}

/// `{u16 domid, {u32 count, handle buffer}}`.
pub fn write<P: Platform>(call: &mut Call<'_, P>, argument: u64) -> Answer {
    let request: [u8; 24] = call.read_sized(argument, 12)?;
    let count = request.u32_at(call.by_width(8, 4));
    if count > ENTRIES_MAX {
        return Err(Errno::Invalid);
    }
    call.only_self(request.u16_at(0))?;
    if count > ENTRIES_KEPT {
        return Err(Errno::NoMemory);
    }
    let mut map = vec![0; count as usize * ENTRY_LEN];
    call.paging.read(&call.machine.guest.memory, call.handle_at(&request, 16, 8), &mut map)?;
    call.guest().memory_map = Some(Box::from(map));
    Ok(0)
}
