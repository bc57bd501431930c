//! Block I/O past the page cache: O_DIRECT and Linux's AIO, as many requests in flight as asked for.
#![expect(
    unsafe_code,
    reason = "Linux AIO, for which there is no safe wrapper: the kernel writes to the buffers"
)]

use std::fs::{File, OpenOptions};
use std::io::{Seek as _, SeekFrom};
use std::mem::offset_of;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;

use crate::Result;
use crate::clock::now;
use crate::figure::print;

/// Requests in flight at most.
const DEPTH_MAX: usize = 64;
/// O_DIRECT wants buffers at such addresses.
const PAGE: usize = 4096;

/// What is read or written how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    is_write: bool,
    is_random: bool,
    block: usize,
    total: u64,
    depth: usize,
}

impl Plan {
    /// Checks the words of the command line.
    pub fn new(pattern: &str, block: usize, total: u64, depth: usize) -> Result<Self> {
        let (is_random, access) = match pattern.strip_prefix("rand") {
            Some(access) => (true, access),
            None => (false, pattern),
        };
        let is_write = match access {
            "read" => false,
            "write" => true,
            _ => return Err(format!("`{pattern}` is none of read, write, randread, randwrite").into()),
        };
        if block == 0 || !block.is_multiple_of(PAGE) {
            return Err(format!("a block of {block} bytes is no multiple of {PAGE}").into());
        }
        if depth == 0 || depth > DEPTH_MAX {
            return Err(format!("{depth} requests in flight: 1 to {DEPTH_MAX} are possible").into());
        }
        if total < block as u64 {
            return Err(format!("{total} bytes in all are less than one block of {block}").into());
        }
        Ok(Self { is_write, is_random, block, total, depth })
    }

    fn name(&self) -> String {
        let random = if self.is_random { "rand" } else { "" };
        let access = if self.is_write { "write" } else { "read" };
        format!("{random}{access}-{}k-qd{}", self.block >> 10, self.depth)
    }
}

/// Measures a plan on a device, or on a file.
pub fn measure(device: &str, plan: &Plan) -> Result<()> {
    let mut options = OpenOptions::new();
    options.read(true).write(plan.is_write).custom_flags(libc::O_DIRECT);
    let mut file = options.open(device).map_err(|error| format!("{device}: {error}"))?;
    let size = file.seek(SeekFrom::End(0))?;
    let blocks = size / plan.block as u64;
    if blocks == 0 {
        return Err(format!("{device} has {size} bytes, less than one block of {}", plan.block).into());
    }
    let wanted = plan.total / plan.block as u64;
    let requests = if plan.is_random { wanted } else { wanted.min(blocks) };
    let mut queue = Queue::new(file, plan)?;
    let mut random = 0x9e37_79b9_7f4a_7c15;
    let mut submitted = 0;
    let mut next = move || {
        let block = if plan.is_random { xorshift(&mut random) } else { submitted };
        submitted += 1;
        block % blocks * plan.block as u64
    };
    let before = now();
    let mut begun = 0;
    while begun < requests.min(plan.depth as u64) {
        queue.submit(begun as usize, next())?;
        begun += 1;
    }
    let mut done = 0;
    let mut events = [Event::default(); DEPTH_MAX];
    while done < requests {
        let count = queue.wait(&mut events)?;
        for event in events.iter().take(count) {
            if event.result != plan.block as i64 {
                return Err(format!("{device}: a request ended with {}", event.result).into());
            }
            done += 1;
            if begun < requests {
                queue.submit(event.data as usize, next())?;
                begun += 1;
            }
        }
    }
    let ns = now() - before;
    let device = device.rsplit('/').next().unwrap_or(device);
    print(
        &format!("{device}-{}", plan.name()),
        &[
            ("requests", requests),
            ("bytes", requests * plan.block as u64),
            ("total-ns", ns),
            ("each-ns", ns / requests),
        ],
    );
    Ok(())
}

/// Marsaglia's xorshift with 64 bits: the same sequence on every machine.
fn xorshift(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// `struct iocb` of Linux's include/uapi/linux/aio_abi.h.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Request {
    data: u64,
    key: u32,
    flags: u32,
    opcode: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    more_flags: u32,
    event_file: u32,
}

const _: () = assert!(size_of::<Request>() == 64 && offset_of!(Request, buffer) == 24);

/// IOCB_CMD_PREAD and IOCB_CMD_PWRITE.
const READ: u16 = 0;
const WRITE: u16 = 1;

/// `struct io_event` of the same file.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Event {
    data: u64,
    request: u64,
    result: i64,
    result2: i64,
}

#[repr(C, align(4096))]
#[derive(Debug, Clone)]
struct Page([u8; PAGE]);

/// Requests in flight on a file, each with a buffer of its own.
#[derive(Debug)]
struct Queue {
    context: libc::c_ulong,
    file: File,
    /// The kernel reads and writes them while requests are in flight; nothing here does.
    buffers: Vec<Page>,
    block: usize,
    depth: usize,
    opcode: u16,
}

impl Queue {
    fn new(file: File, plan: &Plan) -> Result<Self> {
        let buffers = vec![Page([0x5a; PAGE]); plan.block / PAGE * plan.depth];
        let mut context: libc::c_ulong = 0;
        // SAFETY: the kernel writes one word, the context's handle.
        check(unsafe { libc::syscall(libc::SYS_io_setup, plan.depth, &raw mut context) }, "io_setup")?;
        let opcode = if plan.is_write { WRITE } else { READ };
        Ok(Self { context, file, buffers, block: plan.block, depth: plan.depth, opcode })
    }

    /// Starts a request with buffer number `index`, which must not be in flight.
    fn submit(&mut self, index: usize, offset: u64) -> Result<()> {
        if index >= self.depth {
            return Err(format!("there is no buffer {index}").into());
        }
        let buffer = self.buffers.as_mut_ptr().wrapping_add(self.block / PAGE * index);
        let request = Request {
            data: index as u64,
            opcode: self.opcode,
            file: self.file.as_raw_fd() as u32,
            buffer: buffer.expose_provenance() as u64,
            bytes: self.block as u64,
            offset: offset as i64,
            ..Request::default()
        };
        let list = [&raw const request];
        // SAFETY: the kernel copies the request before it returns. The buffer has `block` bytes and lives until
        // `drop`, which waits for what is in flight.
        let count = unsafe { libc::syscall(libc::SYS_io_submit, self.context, 1usize, list.as_ptr()) };
        check(count, "io_submit").map(drop)
    }

    /// Waits for at least one request; how many are done.
    fn wait(&self, events: &mut [Event; DEPTH_MAX]) -> Result<usize> {
        let none = std::ptr::null::<libc::timespec>();
        let events = events.as_mut_ptr();
        // SAFETY: the kernel writes at most `depth` events, and there is room for DEPTH_MAX.
        let count =
            unsafe { libc::syscall(libc::SYS_io_getevents, self.context, 1usize, self.depth, events, none) };
        check(count, "io_getevents")
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: ends the context; the call returns when nothing is in flight any more.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }
}

fn check(result: libc::c_long, call: &str) -> Result<usize> {
    usize::try_from(result).map_err(|_| format!("{call}: {}", std::io::Error::last_os_error()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_are_checked_and_named() {
        let plan = Plan::new("randwrite", 4096, 1 << 20, 32).unwrap();
        assert!(plan.is_write && plan.is_random);
        assert_eq!(plan.name(), "randwrite-4k-qd32");
        assert_eq!(Plan::new("read", 1 << 20, 1 << 20, 1).unwrap().name(), "read-1024k-qd1");
        for (pattern, block, total, depth) in [
            ("trim", 4096, 4096, 1),
            ("read", 0, 4096, 1),
            ("read", 512, 4096, 1),
            ("read", 4096, 4095, 1),
            ("read", 4096, 4096, 0),
            ("read", 4096, 4096, 65),
        ] {
            assert!(Plan::new(pattern, block, total, depth).is_err(), "{pattern} {block} {total} {depth}");
        }
    }

    #[test]
    fn every_block_of_a_file_is_written() {
        // In the working directory: temporary folders may be in RAM, where there is no O_DIRECT.
        let file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        file.as_file().set_len(64 * 4096).unwrap();
        let path = file.path().to_str().unwrap();
        let written = measure(path, &Plan::new("write", 4096, 1 << 30, 8).unwrap());
        if let Err(error) = &written
            && error.to_string().contains("Invalid argument")
        {
            // This file system has no O_DIRECT.
            return;
        }
        written.unwrap();
        assert!(std::fs::read(path).unwrap().iter().all(|&byte| byte == 0x5a));
        measure(path, &Plan::new("randread", 4096, 1 << 20, 32).unwrap()).unwrap();
    }

    #[test]
    fn the_random_sequence_does_not_stand_still() {
        let mut state = 1;
        let first = xorshift(&mut state);
        assert_ne!(first, xorshift(&mut state));
    }
}
