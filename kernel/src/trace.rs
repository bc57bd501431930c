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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::syscall::{cap_delete, cap_derive, cap_map, cap_unmap, frames_split};
    use crate::testing::{World, done};
    use proptest::prelude::*;

    const LOG: u64 = 40;
    const RING: u64 = 41;
    const FLAGS: u64 = map::READ | map::WRITE;

    /// A world with the log's capability and a run of frames.
    fn world(frames: u64) -> World {
        let w = World::new();
        w.cap(LOG as u32).fill_root(ObjectType::Log, 0, 0, rights::ALL);
        // The frame behind the ring is this one.
        w.take(1, 42);
        w.take(frames, RING);
        w
    }

    fn start(w: &World) -> Result<(), Error> {
        cap_map(w.thread, RING, LOG, 0, FLAGS).map(|_| ())
    }

    fn header(w: &World) -> Header {
        // SAFETY: test memory, which the trace's frames are.
        unsafe { (Pfn(w.cap(RING as u32).base.get()).direct() as *const Header).read() }
    }

    fn ring_record(w: &World, index: u64) -> Record {
        let at = Pfn(w.cap(RING as u32).base.get()).direct() + RECORDS_AT;
        // SAFETY: as above; the caller stays below the capacity.
        unsafe { (at as *const Record).add(index as usize).read() }
    }

    #[test]
    fn a_trace_starts_and_stops_with_the_mapping_of_its_frames() {
        let w = world(3);
        let cpu = crate::cpu::this();
        assert!(!cpu.trace.is_on());
        start(&w).unwrap();
        assert_eq!(header(&w), Header { magic: MAGIC, capacity: 256, written: 0 });
        cpu.note(Kind::Wait, 7, 8);
        assert_eq!(header(&w).written, 1);
        let record = ring_record(&w, 0);
        let thread = w.thread.id.get() as u32;
        assert_eq!((record.kind, record.thread, record.a, record.b), (Kind::Wait as u16, thread, 7, 8));
        done(cap_unmap(w.thread, RING));
        cpu.note(Kind::Wait, 9, 9);
        assert_eq!(header(&w).written, 1);
        assert_eq!(cap_unmap(w.thread, RING).err(), Some(Error::NotMapped));
        start(&w).unwrap();
        done(cap_unmap(w.thread, RING));
    }

    #[test]
    fn each_refusal_of_a_trace() {
        let w = world(2);
        let t = w.thread;
        let refused = |frames, log, address, flags| cap_map(t, frames, log, address, flags).err();
        assert_eq!(refused(99, LOG, 0, FLAGS), Some(Error::BadSlot));
        assert_eq!(refused(RING, 99, 0, FLAGS), Some(Error::BadSlot));
        assert_eq!(refused(1, LOG, 0, FLAGS), Some(Error::WrongType));
        done(cap_derive(t, [LOG, 0, 50, 0, 0, rights::READ | rights::WRITE]));
        assert_eq!(refused(RING, 50, 0, FLAGS), Some(Error::NoRight));
        done(cap_derive(t, [16, 0, 51, 0, 4, rights::READ]));
        assert_eq!(refused(51, LOG, 0, FLAGS), Some(Error::NoRight));
        done(cap_derive(t, [16, 0, 52, 0, 4, rights::READ | rights::WRITE]));
        assert_eq!(refused(52, LOG, 0, FLAGS), Some(Error::NotOwned));
        assert_eq!(refused(RING, LOG, 4096, FLAGS), Some(Error::BadArgument));
        assert_eq!(refused(RING, LOG, 0, map::READ), Some(Error::BadArgument));
        assert_eq!(refused(RING, LOG, 0, 7), Some(Error::BadArgument));
        crate::syscall::boot_frames(w.cap(53), Pfn(8), 4, true);
        assert_eq!(refused(53, LOG, 0, FLAGS), Some(Error::BadArgument));
        done(cap_map(t, RING, 0, 0x10_0000, FLAGS));
        assert_eq!(refused(RING, LOG, 0, FLAGS), Some(Error::IsMapped));
        done(cap_unmap(t, RING));
        start(&w).unwrap();
        // There is one trace, and its frames are nobody else's while it lasts.
        assert_eq!(refused(RING, LOG, 0, FLAGS), Some(Error::Busy));
        assert_eq!(refused(RING, 0, 0x10_0000, FLAGS), Some(Error::IsMapped));
        assert_eq!(frames_split(t, RING, 1, 60).err(), Some(Error::Busy));
        assert_eq!(crate::syscall::cap_move(t, RING, 0, 60).err(), Some(Error::Busy));
        assert_eq!(crate::syscall::event_create(t, RING, 60).err(), Some(Error::Busy));
        done(cap_unmap(t, RING));
        done(frames_split(t, RING, 1, 60));
        assert_eq!(refused(RING, LOG, 0, FLAGS), Some(Error::BadArgument), "one frame is too few");
    }

    #[test]
    fn deleting_the_frames_ends_the_trace() {
        let w = world(2);
        start(&w).unwrap();
        done(cap_delete(w.thread, 0, RING));
        assert!(!crate::cpu::this().trace.is_on());
    }

    /// A reader may hold a derived capability, mapped where it likes.
    #[test]
    fn others_can_read_along() {
        let w = world(2);
        done(cap_derive(w.thread, [RING, 0, 50, 0, 2, rights::READ]));
        start(&w).unwrap();
        done(cap_map(w.thread, 50, 0, 0x20_0000, map::READ));
        done(cap_unmap(w.thread, RING));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// However many records there are, and whatever the reader writes over the pages: the newest ones are
        /// where the count says, and nothing outside of the ring changes.
        #[test]
        fn the_newest_records_are_kept(count in 0u64..700, frames in 2u64..5, garbage: u64) {
            let w = world(frames);
            let beyond = Pfn(w.cap(RING as u32).base.get() + frames).direct() as *const u64;
            let base = Pfn(w.cap(RING as u32).base.get()).direct() as *mut u64;
            let cpu = crate::cpu::this();
            start(&w).unwrap();
            let capacity = header(&w).capacity;
            prop_assert_eq!(capacity, (frames - 1) * 128);
            for n in 0..count {
                // SAFETY: test memory: the header's capacity.
                unsafe { (base.add(1)).write(garbage) };
                cpu.note(Kind::Signal, n, 0);
            }
            prop_assert_eq!(header(&w).written, count);
            for n in count.saturating_sub(capacity)..count {
                prop_assert_eq!(ring_record(&w, n % capacity).a, n);
            }
            // SAFETY: test memory.
            let guard = unsafe { beyond.read() };
            prop_assert_eq!(guard, 0);
            done(cap_unmap(w.thread, RING));
        }
    }
}
