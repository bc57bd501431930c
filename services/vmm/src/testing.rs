//! A machine over fake memory and a fake platform, for the tests of this crate and for fuzz targets.
#![allow(clippy::unwrap_used, reason = "test code; what is wrong here is a failed test")]

extern crate std;

use alloc::vec;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::ops::Range;

use proto::abi::PAGE_SIZE;
use proto::channel::{ChannelInfo, Protocol, Region, Side};
use proto::cpuid::Narrowing;
use proto::text::Text;
use rt::channel::{Client, Server};

use crate::clock::Clock;
use crate::cpuid::{self, Cpuid};
use crate::grants::{PER_FRAME, PERMIT_ACCESS, READ_ONLY};
use crate::loader::place::special;
use crate::machine::{Guest, Machine, MapFailed, Platform, Vcpu};
use crate::memory::{Gfn, GuestMemory, GuestPhys, PAGE, SPECIALS};
use crate::vcpus::Parked;

/// Pages of RAM that the fake machine has.
pub const RAM_PAGES: usize = 64;
/// Pages that [`Platform::map_ram`] maps at once.
const REGION: u64 = 16;

std::thread_local! {
    /// Regions that were given out, and those that may be given out again.
    static GIVEN: RefCell<Vec<Region>> = const { RefCell::new(Vec::new()) };
    static FREE: RefCell<Vec<Region>> = const { RefCell::new(Vec::new()) };
}

/// Memory with `ram_pages` pages of RAM at 0 that lives until the process ends.
pub fn fake(ram_pages: usize) -> GuestMemory {
    GuestMemory::new(&[(GuestPhys(0), leak(ram_pages))], leak(SPECIALS))
}

/// Page-aligned zeroed memory; for ever, but for [`recycle`].
pub fn leak(pages: usize) -> Region {
    let len = (pages * PAGE) as u64;
    let used = FREE.with_borrow_mut(|free| {
        let at = free.iter().position(|region| region.len == len)?;
        Some(free.swap_remove(at))
    });
    let region = used.unwrap_or_else(|| {
        let words = vec![0u64; (pages + 1) * PAGE / 8].leak();
        Region { addr: (words.as_mut_ptr() as u64).next_multiple_of(PAGE_SIZE), len }
    });
    if used.is_some() && pages > 0 {
        rt::shared::Shared::from_region(region).fill(0, pages * PAGE, 0).unwrap();
    }
    GIVEN.with_borrow_mut(|given| given.push(region));
    region
}

/// Lets all memory that this thread got so far be given out again: nothing made of it may be in use any more.
pub fn recycle() {
    GIVEN.with_borrow_mut(|given| FREE.with_borrow_mut(|free| free.append(given)));
}

/// Grants frame `gfn` to the backend as `grant`.
pub fn permit(memory: &GuestMemory, grant: u32, gfn: u32, is_read_only: bool) {
    let page = memory.special(special::GRANTS + (grant / PER_FRAME) as usize).unwrap();
    let offset = (grant % PER_FRAME) as usize * 8;
    page.set_u32(offset + 4, gfn);
    page.set_u32(offset, u32::from(PERMIT_ACCESS | if is_read_only { READ_ONLY } else { 0 }));
}

/// The flags of a grant.
pub fn flags(memory: &GuestMemory, grant: u32) -> u16 {
    memory.special(special::GRANTS).unwrap().u16(grant as usize * 8)
}

/// A platform whose clock stands still until it is set, at 1 GHz.
#[derive(Debug, Default)]
pub struct FakePlatform {
    /// The time stamp counter.
    pub tsc: Cell<u64>,
    /// The thread's time on a CPU.
    pub cpu_time: Cell<u64>,
    /// What is mapped.
    pub mapped: Vec<(usize, Gfn)>,
    /// RAM that was taken out of the VM, by page.
    pub unmapped: Vec<u64>,
}

impl Platform for FakePlatform {
    fn tsc(&self) -> u64 {
        self.tsc.get()
    }
    fn cpu_time(&self) -> u64 {
        self.cpu_time.get()
    }
    fn map_special(&mut self, index: usize, gfn: Gfn) -> Result<(), MapFailed> {
        assert!(self.mapped.iter().all(|(other, _)| *other != index), "a capability is mapped at most once");
        self.mapped.push((index, gfn));
        Ok(())
    }
    fn unmap_special(&mut self, index: usize) -> Result<(), MapFailed> {
        let before = self.mapped.len();
        self.mapped.retain(|(other, _)| *other != index);
        assert_eq!(self.mapped.len() + 1, before);
        Ok(())
    }
    fn unmap_ram(&mut self, gfn: Gfn, count: u64) {
        let pages = gfn.0..gfn.0 + count;
        self.unmapped.retain(|page| !pages.contains(page));
        self.unmapped.extend(pages);
    }
    fn map_ram(&mut self, gfn: Gfn) -> Result<Range<u64>, MapFailed> {
        let region = gfn.0 & !(REGION - 1)..(gfn.0 & !(REGION - 1)) + REGION;
        self.unmapped.retain(|page| !region.contains(page));
        Ok(region)
    }
}

/// A guest that has not started.
pub fn guest() -> Guest {
    guest_of(1)
}

fn guest_of(vcpus: usize) -> Guest {
    Guest::new(fake(RAM_PAGES), Clock::new(1_000_000, 0), vcpus, 5, [7; 16]).unwrap()
}

/// A machine with one vCPU.
pub fn machine() -> (Machine<FakePlatform>, Vcpu) {
    machine_of(1)
}

/// A machine with several vCPUs, of which the first is here.
pub fn machine_of(vcpus: usize) -> (Machine<FakePlatform>, Vcpu) {
    let cpuid = Cpuid::new(
        |_, _| [u32::MAX; 4],
        cpuid::Guest { domid: 5, tsc_khz: 1_000_000, narrowing: Narrowing::default() },
    );
    let (guest, platform, parked) = (guest_of(vcpus), FakePlatform::default(), Parked::new(vcpus));
    (Machine { guest, platform, cpuid, parked }, Vcpu::new(0))
}

/// Both ends of a channel over memory of the test's own.
pub fn channel<P: Protocol>() -> (Client<P>, Server<P>) {
    channel_with_pool(0)
}

/// As [`channel`], with a pool.
pub fn channel_with_pool<P: Protocol>(pool: u64) -> (Client<P>, Server<P>) {
    let (server, info) = server_and_info(pool);
    (Client::connect(&info).unwrap(), server)
}

/// The server's end of a channel, and what its client is told.
pub fn server_and_info<P: Protocol>(pool: u64) -> (Server<P>, ChannelInfo) {
    let leak = |bytes: usize| leak(bytes / PAGE);
    let mut info = ChannelInfo {
        id: 1,
        kind: P::KIND,
        side: Side::B,
        peer: 0,
        peer_name: Text::new(),
        rings: leak(P::CHANNEL_SIZE),
        pool: leak(pool as usize),
        pool_phys: 0,
        signal: 0,
        signals: 4,
        target: Text::new(),
        is_read_only: false,
        memory: 0,
        mac: [0; 6],
    };
    let server = Server::connect(&info).unwrap();
    info.side = Side::A;
    (server, info)
}
