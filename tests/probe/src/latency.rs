//! How long a guest that mostly sleeps waits: for its timer, and for a block of its disk.
//!
//! Between two samples it sleeps, so that it asks for far less than its share of the processor: what it waits then is
//! what the hypervisor and the other guests cost it, not what it used itself.

use std::fs::OpenOptions;
use std::io::{Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};

use rustix::thread::{NanosleepRelativeResult, Timespec, clock_nanosleep_relative};
use rustix::time::ClockId;

use crate::Result;
use crate::clock::now;
use crate::figure::{Spread, print};

const SAMPLES: usize = 500;
const PAUSE_NS: u32 = 1_000_000;
const BLOCK: usize = 4096;

#[repr(C, align(4096))]
struct Buffer([u8; BLOCK]);

/// Measures both; the disk is a device or a file.
pub fn measure(disk: &str) -> Result<()> {
    let timer = samples(|| {
        let before = now();
        pause();
        Ok((now() - before).saturating_sub(PAUSE_NS.into()))
    })?;
    say("latency-timer", timer);
    let mut options = OpenOptions::new();
    let mut file = options.read(true).custom_flags(libc::O_DIRECT).open(disk)?;
    let blocks = file.seek(SeekFrom::End(0))? / BLOCK as u64;
    let mut buffer = Box::new(Buffer([0; BLOCK]));
    let mut block = 0u64;
    let read = samples(|| {
        pause();
        // Far from the last one, and another one each time.
        block = (block + blocks / 2 + 1) % blocks.max(1);
        let before = now();
        file.read_exact_at(&mut buffer.0, block * BLOCK as u64)?;
        Ok(now() - before)
    })?;
    say("latency-read", read);
    Ok(())
}

fn pause() {
    let request = Timespec { tv_sec: 0, tv_nsec: PAUSE_NS.into() };
    // Nothing interrupts it: the process handles no signals.
    let NanosleepRelativeResult::Ok = clock_nanosleep_relative(ClockId::Monotonic, &request) else { return };
}

fn samples(mut one: impl FnMut() -> Result<u64>) -> Result<Vec<u64>> {
    (0..SAMPLES).map(|_| one()).collect()
}

fn say(name: &str, mut samples: Vec<u64>) {
    let mean = samples.iter().sum::<u64>() / samples.len().max(1) as u64;
    let Spread { min, median, p99, max } = Spread::of(&mut samples);
    let n = samples.len() as u64;
    print(name, &[("n", n), ("min", min), ("median", median), ("mean", mean), ("p99", p99), ("max", max)]);
}
