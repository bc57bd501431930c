//! Memory and a small world for host tests. Test memory is leaked: objects are `'static`.

use std::alloc::{Layout, alloc_zeroed};

use proto::abi::{ObjectType, PAGE_SIZE, rights};

use crate::cap::Cap;
use crate::cpu;
use crate::memory::Pfn;
use crate::object::domain::Domain;
use crate::object::thread::Thread;
use crate::syscall::{self, Answer, Outcome};

/// `count` fresh zeroed frames whose first frame number is a multiple of `align`.
#[expect(unsafe_code, reason = "test memory")]
pub fn frames(count: u64, align: u64) -> Pfn {
    let layout = Layout::from_size_align((count * PAGE_SIZE) as usize, (align * PAGE_SIZE) as usize).unwrap();
    // SAFETY: the layout is not empty.
    let memory = unsafe { alloc_zeroed(layout) };
    assert!(!memory.is_null());
    Pfn(memory as u64 / PAGE_SIZE)
}

/// A domain with one thread, a run of RAM in slot 16 and nothing else.
pub struct World {
    /// Its only thread, current on this test's CPU.
    pub thread: &'static Thread,
}

/// Frames in slot 16 of a fresh world.
pub const RAM_FRAMES: u64 = 4096;

impl World {
    /// A fresh world.
    pub fn new() -> Self {
        let domain = Domain::create(frames(Domain::frames(1024), 1), 1024).unwrap();
        for _ in 0..64 {
            domain.space.pool.give(frames(1, 1));
        }
        let thread: &'static Thread = Box::leak(Box::new(Thread::new(domain)));
        thread.priority.set(10);
        thread.register(None);
        thread.state.set(proto::abi::ThreadState::Running);
        let ram = frames(RAM_FRAMES, 512);
        syscall::boot_frames(domain.slot(16).unwrap(), ram, RAM_FRAMES as u32, false);
        domain.slot(1).unwrap().fill_root(
            ObjectType::Domain,
            core::ptr::from_ref(domain) as u64,
            0,
            rights::ALL,
        );
        cpu::this().current.set(Some(thread));
        Self { thread }
    }

    /// A capability of the world's domain.
    pub fn cap(&self, slot: u32) -> &'static Cap {
        self.thread.domain.slot(slot.into()).unwrap()
    }

    /// Cuts `count` frames off the RAM in slot 16 into `slot`.
    pub fn take(&self, count: u64, slot: u64) {
        let left = u64::from(self.cap(16).count.get());
        done(syscall::frames_split(self.thread, 16, left - count, slot));
    }
}

/// The value of a call that succeeded at once.
pub fn done(answer: Answer) -> u64 {
    match answer {
        Ok(Outcome::Value(value)) => value,
        other => panic!("{other:?}"),
    }
}
