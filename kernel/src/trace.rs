//! The trace of a CPU: a ring of records in frames that the holder of the log capability gave.
//!
//! The kernel writes the oldest record over and reads nothing back; index and capacity are its own, so
//! what a reader does to the pages cannot lead it astray. The frames' capability is pinned meanwhile.
//! While there is no trace, a path whose cost counts has no test for it at all (the system call entry is
//! exchanged, see `arch::set_traced`), and the others one.

#![expect(unsafe_code, reason = "records are written to frames that user space gave for them")]

use core::cell::Cell;
use core::sync::atomic::{AtomicU64, Ordering};

use proto::abi::trace::{FRAMES_MIN, Header, MAGIC, RECORDS_AT, Record};
use proto::abi::{Error, ObjectType, PAGE_SIZE, map, rights};

pub use proto::abi::trace::Kind;

use crate::cap::{Cap, DEVICE, DONATED, OWNED, PINNED};
use crate::memory::Pfn;

/// The trace of a CPU, which alone touches it.
#[derive(Debug, Default)]
pub struct Trace {
    /// Capability of the frames; pinned.
    cap: Cell<Option<&'static Cap>>,
    /// Where the kernel sees them.
    at: Cell<u64>,
    /// Records that fit; 0: no trace.
    capacity: Cell<u64>,
    /// Index of the next record.
    next: Cell<u64>,
    /// Records ever written.
    written: Cell<u64>,
}

impl Trace {
    /// No trace.
    pub const fn new() -> Self {
        Self {
            cap: Cell::new(None),
            at: Cell::new(0),
            capacity: Cell::new(0),
            next: Cell::new(0),
            written: Cell::new(0),
        }
    }

    /// Records are taken.
    #[inline(always)]
    pub fn is_on(&self) -> bool {
        self.capacity.get() != 0
    }

    /// The capability's frames are the ring.
    pub fn is_ring(&self, cap: &Cap) -> bool {
        self.cap.get().is_some_and(|ring| core::ptr::eq(ring, cap))
    }

    /// Starts a trace in the frames.
    ///
    /// # Errors
    /// `BadSlot`, `WrongType`, `NoRight` (to read and write), `NotOwned`, `BadArgument` (address, flags, too
    /// few frames, not RAM), `Busy` (they are in use, or there is a trace already), `IsMapped`.
    pub fn start(&self, cap: &'static Cap, address: u64, flags: u64) -> Result<(), Error> {
        cap.require(ObjectType::Frames, rights::READ | rights::WRITE)?;
        if !cap.has(OWNED) {
            return Err(Error::NotOwned);
        }
        let count = u64::from(cap.count.get());
        if address != 0 || flags != map::READ | map::WRITE || count < FRAMES_MIN || cap.has(DEVICE) {
            return Err(Error::BadArgument);
        }
        if self.is_on() || cap.flags.get() & (DONATED | PINNED) != 0 {
            return Err(Error::Busy);
        }
        if crate::frames::is_mapped(cap) {
            return Err(Error::IsMapped);
        }
        cap.set(PINNED);
        self.cap.set(Some(cap));
        self.at.set(Pfn(cap.base.get()).direct());
        self.next.set(0);
        self.written.set(0);
        let capacity = (count * PAGE_SIZE - RECORDS_AT) / size_of::<Record>() as u64;
        // SAFETY: the run is owned RAM, so the direct map holds it, and pinned: it stays what it is.
        unsafe {
            (self.at.get() as *mut Header).write_volatile(Header { magic: MAGIC, capacity, written: 0 })
        };
        self.capacity.set(capacity);
        crate::arch::set_traced(true);
        Ok(())
    }

    /// Ends the trace, if there is one; the ring keeps what was written.
    pub fn stop(&self) {
        if let Some(cap) = self.cap.take() {
            cap.clear(PINNED);
            self.capacity.set(0);
            crate::arch::set_traced(false);
        }
    }

    /// Writes a record.
    #[cold]
    #[inline(never)]
    pub fn record(&self, kind: Kind, thread: u64, a: u64, b: u64) {
        let index = self.next.get();
        let record =
            Record { tsc: crate::arch::tsc(), kind: kind as u16, cpu: 0, thread: thread as u32, a, b };
        self.next.set(if index + 1 >= self.capacity.get() { 0 } else { index + 1 });
        self.written.set(self.written.get() + 1);
        let at = self.at.get();
        // SAFETY: as in `start`; the index is below the capacity. A record is aligned: its size divides a page.
        // Readers look at `written` first, hence the release.
        unsafe {
            ((at + RECORDS_AT) as *mut Record).add(index as usize).write_volatile(record);
            let written = (at + core::mem::offset_of!(Header, written) as u64) as *mut u64;
            AtomicU64::from_ptr(written).store(self.written.get(), Ordering::Release);
        }
    }
}
