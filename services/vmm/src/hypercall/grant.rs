//! grant_table_op: the table's size and version. Its frames are mapped by memory_op.
//! Source: Xen public/grant_table.h.

use super::Call;
use crate::errno::{Answer, Errno};
use crate::grants::FRAMES_MAX;
use crate::machine::Platform;

const QUERY_SIZE: u64 = 6;
const SET_VERSION: u64 = 8;
const GET_VERSION: u64 = 10;

pub(super) fn call<P: Platform>(call: &mut Call<'_, P>) -> Answer {
    let [operation, argument, count, ..] = call.args;
    if count != 1 {
        return Err(Errno::Invalid);
    }
    match operation {
        QUERY_SIZE => {
            let frames = call.guest().grants.frames();
            call.write(argument.wrapping_add(4), &frames.to_le_bytes())?;
            call.write(argument.wrapping_add(8), &FRAMES_MAX.to_le_bytes())?;
            call.write(argument.wrapping_add(12), &0i16.to_le_bytes())?;
        }
        SET_VERSION => {
            let version = u32::from_le_bytes(call.read(argument)?);
            if version != 1 {
                return Err(Errno::Invalid);
            }
        }
        GET_VERSION => call.write(argument.wrapping_add(4), &1u32.to_le_bytes())?,
        _ => return Err(Errno::NoSys),
    }
    Ok(0)
}
