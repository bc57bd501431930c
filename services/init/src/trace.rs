//! The kernel's trace: init gives the ring's frames, reads it through a mapping of its own, and takes the
//! frames back.
//!
//! The kernel goes on writing while init reads. So `written` is looked at before and behind every copy: a
//! record that may have been overwritten in between is not handed on.

use alloc::format;
use core::mem::offset_of;

use proto::abi::trace::{FRAMES_MIN, Header, MAGIC, RECORDS_AT, Record};
use proto::abi::{PAGE_SIZE, Slot, init_slots, map, rights};
use proto::builder::{RECORDS_MAX, Response, TraceRecord, TraceStat};
use proto::text::List;

use crate::error::{BuildError, Step};
use crate::frames::Run;
use crate::kernel::Kernel;
use crate::operation::refused;
use crate::pci::ConfigSpace;
use crate::resources::Resources;
use crate::system::System;

/// Largest ring.
pub const KIB_MAX: u32 = 64 << 10;
/// Bytes of a record.
const RECORD: u64 = size_of::<Record>() as u64;

/// A ring.
#[derive(Debug)]
pub struct Trace {
    run: Run,
    /// Init's capability for reading it, and where it is mapped.
    view: (Slot, u64),
    capacity: u64,
    is_running: bool,
}

impl Trace {
    /// Zeroed frames, mapped read-only into init.
    fn new<K: Kernel>(resources: &mut Resources<K>, frames: u64) -> Result<Self, BuildError> {
        let run = resources.take_filled(frames, 1, &[])?;
        let view = match resources.derive(run.slot, 0, frames, rights::READ) {
            Ok(view) => view,
            Err(error) => {
                resources.give(run);
                return Err(error);
            }
        };
        let address = resources.arena.take(frames * PAGE_SIZE);
        let range = (run.first, frames);
        let trace = Self { run, view: (view, address), capacity: 0, is_running: false };
        match resources.map_own(view, range, address, map::READ) {
            Ok(()) => Ok(trace),
            Err(error) => {
                trace.end(resources);
                Err(error)
            }
        }
    }

    fn words<K: Kernel, const N: usize>(&self, kernel: &mut K, offset: u64) -> [u64; N] {
        let mut words = [0; N];
        for (index, word) in (0..).zip(&mut words) {
            let mut bytes = [0; 8];
            kernel.read(self.view.1 + offset + 8 * index, &mut bytes);
            *word = u64::from_le_bytes(bytes);
        }
        words
    }

    /// Has the kernel use it.
    fn start<K: Kernel>(&mut self, kernel: &mut K) -> Result<(), BuildError> {
        let flags = map::READ | map::WRITE;
        kernel.cap_map(self.run.slot, init_slots::LOG, 0, flags).step("start the trace")?;
        self.is_running = true;
        let [magic, capacity] = self.words(kernel, 0);
        let room = (self.run.count * PAGE_SIZE - RECORDS_AT) / RECORD;
        if magic != MAGIC || !(1..=room).contains(&capacity) {
            return Err(BuildError::Request("the kernel's trace has another layout than init's".into()));
        }
        self.capacity = capacity;
        Ok(())
    }

    /// Records ever written.
    fn written<K: Kernel>(&self, kernel: &mut K) -> u64 {
        let [written] = self.words(kernel, offset_of!(Header, written) as u64);
        written
    }

    /// Gives everything back.
    fn end<K: Kernel>(self, resources: &mut Resources<K>) {
        resources.delete(self.view.0);
        resources.arena.give(self.view.1, self.run.count * PAGE_SIZE);
        // Stops it, if it runs.
        resources.release(self.run);
    }
}

impl<K: Kernel, C: ConfigSpace> System<K, C> {
    /// Starts the trace in a ring of `kib`; one that exists is given back first.
    ///
    /// # Errors
    /// An absurd size, no memory, or the kernel's; there is no trace then.
    pub fn start_trace(&mut self, kib: u32) -> Result<(), BuildError> {
        let frames = (u64::from(kib) * 1024).div_ceil(PAGE_SIZE);
        if frames < FRAMES_MIN || kib > KIB_MAX {
            let least = FRAMES_MIN * PAGE_SIZE / 1024;
            let reason = format!("a trace has {least} to {KIB_MAX} KiB, not {kib}");
            return Err(BuildError::Request(reason));
        }
        self.drop_trace();
        let resources = &mut self.resources;
        let mut trace = Trace::new(resources, frames)?;
        if let Err(error) = trace.start(&mut resources.kernel) {
            trace.end(resources);
            return Err(error);
        }
        self.trace = Some(trace);
        Ok(())
    }

    /// Stops the trace, if it runs.
    pub fn stop_trace(&mut self) {
        if let Some(trace) = self.trace.as_mut().filter(|trace| trace.is_running) {
            trace.is_running = false;
            if let Err(error) = self.resources.kernel.cap_unmap(trace.run.slot) {
                log::error!("the trace could not be stopped: {error:?}");
            }
        }
    }

    /// Stops the trace and gives its memory back.
    pub fn drop_trace(&mut self) {
        self.stop_trace();
        if let Some(trace) = self.trace.take() {
            trace.end(&mut self.resources);
        }
    }

    /// What the trace does.
    pub fn trace_stat(&mut self) -> TraceStat {
        let Some(trace) = &self.trace else { return TraceStat::default() };
        let written = trace.written(&mut self.resources.kernel);
        TraceStat { is_running: trace.is_running, capacity: trace.capacity, written }
    }

    /// Records from number `from` on, or from the oldest that is left.
    pub fn read_trace(&mut self, from: u64) -> Response {
        let Some(trace) = &self.trace else {
            return refused("there is no trace; `xl trace start` begins one");
        };
        let kernel = &mut self.resources.kernel;
        let (capacity, written) = (trace.capacity, trace.written(kernel));
        let mut first = from.max(written.saturating_sub(capacity));
        let mut records = [TraceRecord::default(); RECORDS_MAX];
        let count = written.saturating_sub(first).min(RECORDS_MAX as u64);
        for (number, record) in (first..first + count).zip(&mut records) {
            let [tsc, what, a, b] = trace.words(kernel, RECORDS_AT + number % capacity * RECORD);
            let (kind, cpu, thread) = (what as u16, (what >> 16) as u16, (what >> 32) as u32);
            *record = TraceRecord { tsc, kind, cpu, thread, a, b };
        }
        // The record that is being written now is beyond `written` and takes the oldest one's place.
        let running = u64::from(trace.is_running);
        let oldest = (trace.written(kernel) + running).saturating_sub(capacity);
        let overwritten = oldest.saturating_sub(first).min(count);
        first += overwritten;
        let mut list = List::new();
        for record in records.iter().take(count as usize).skip(overwritten as usize) {
            let _fits = list.push(*record);
        }
        Response::Records { first, written, records: list }
    }
}
