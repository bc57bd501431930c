//! The guest as a whole: what its vCPUs and its devices share, and what one vCPU has of its own.
//!
//! Exits and hypercalls are functions over these values, so that tests drive them with fake memory and a
//! fake [`Platform`]. Invariant: nothing here trusts what the guest wrote; the worst that a guest can do
//! is to end itself.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::Range;

use proto::abi::VcpuState;
use proto::text::Text;
use proto::toolstack::EndReason;
use rt::time;

use crate::apic::{self, Apic};
use crate::clock::{Clock, Tsc};
use crate::cpuid::Cpuid;
use crate::errno::Errno;
use crate::events::{Events, Port, VIRQ_TIMER};
use crate::grants::GrantTable;
use crate::hypercall::Params;
use crate::limiter::Limiter;
use crate::loader::place::special;
use crate::memory::{GFN_END, Gfn, GuestMemory, Page};
use crate::nmi::Nmi;
use crate::runstate::{Meter, Runstate, State};
use crate::vcpus::Parked;
use crate::watchdog::Watchdogs;

/// What the VMM needs of the kernel and the processor.
pub trait Platform {
    /// The time stamp counter.
    fn tsc(&self) -> u64;
    /// How long this thread was on a CPU, in TSC ticks.
    fn cpu_time(&self) -> u64;
    /// Maps special frame `index` into the VM at `gfn`, in place of what is there. It is mapped nowhere.
    ///
    /// # Errors
    /// [`MapFailed`].
    fn map_special(&mut self, index: usize, gfn: Gfn) -> Result<(), MapFailed>;
    /// Takes special frame `index` out of the VM.
    ///
    /// # Errors
    /// [`MapFailed`].
    fn unmap_special(&mut self, index: usize) -> Result<(), MapFailed>;
    /// Takes `count` pages of RAM from `gfn` on out of the VM, as far as its page tables can be cut up.
    fn unmap_ram(&mut self, gfn: Gfn, count: u64);
    /// Maps RAM around `gfn` into the VM, in place of what is there, and answers the frame numbers from the
    /// first to the one behind the last that this concerns.
    ///
    /// # Errors
    /// [`MapFailed`].
    fn map_ram(&mut self, gfn: Gfn) -> Result<Range<u64>, MapFailed>;
}

/// The nested page tables could not be changed (out of frames for them, or out of slots).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapFailed;

/// Numbers of the VMM's devices, as event channels know them.
pub mod device {
    /// The console ring.
    pub const CONSOLE: u8 = 0;
    /// The xenstore ring.
    pub const XENSTORE: u8 = 1;
    /// The first disk.
    pub const FIRST_DISK: u8 = 2;
    /// The first network interface.
    pub const FIRST_VIF: u8 = 32;
}

/// What vCPUs and devices share.
#[derive(Debug)]
pub struct Guest {
    /// Physical memory.
    pub memory: GuestMemory,
    /// Event channels.
    pub events: Events,
    /// Grant table.
    pub grants: GrantTable,
    /// Time.
    pub clock: Clock,
    /// Vector of the upcall, once the guest has set it.
    pub callback: Option<u8>,
    /// Parameters that the guest set.
    pub params: Params,
    /// The map that the guest set in place of the one that it was started with.
    pub memory_map: Option<Box<[u8]>>,
    /// The console's port.
    pub console_port: Port,
    /// The store's port.
    pub store_port: Port,
    /// What the guest wrote to the console before it had a console ring.
    pub early_output: heapless::Deque<u8, 1024>,
    /// What the kernel's scheduler took from the guest.
    pub meter: Meter,
    /// Timers that end the guest.
    pub watchdogs: Watchdogs,
    /// The reason for the guest's end that SCHEDOP_shutdown_code gave in advance.
    pub shutdown_code: Option<u8>,
    /// Bounds what the guest can make the log say.
    pub odd: Limiter,
    /// Domain ID.
    pub domid: u32,
    /// UUID.
    pub uuid: [u8; 16],
}

/// Why a guest's machine cannot be set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoFrames;

impl Guest {
    /// A guest that has not started.
    ///
    /// # Errors
    /// [`NoFrames`] when there are fewer special frames than agreed.
    pub fn new(
        memory: GuestMemory,
        clock: Clock,
        vcpus: usize,
        domid: u32,
        uuid: [u8; 16],
    ) -> Result<Self, NoFrames> {
        let shared_info = memory.special(special::SHARED_INFO).ok_or(NoFrames)?;
        let mut events = Events::new(shared_info, vcpus);
        let store_port = events.device_port(device::XENSTORE).map_err(|_| NoFrames)?;
        let console_port = events.device_port(device::CONSOLE).map_err(|_| NoFrames)?;
        let mut guest = Self {
            memory,
            events,
            grants: GrantTable::default(),
            clock,
            callback: None,
            params: Params::default(),
            memory_map: None,
            console_port,
            store_port,
            early_output: heapless::Deque::new(),
            meter: Meter::default(),
            watchdogs: Watchdogs::default(),
            shutdown_code: None,
            odd: Limiter::default(),
            domid,
            uuid,
        };
        guest.start_time(clock, 0, vcpus);
        Ok(guest)
    }

    /// Starts time: system time is 0 at the clock's start, which is `wall_ns` after 1970.
    pub fn start_time(&mut self, clock: Clock, wall_ns: u64, vcpus: usize) {
        self.clock = clock;
        for (page, offset) in (0..vcpus).filter_map(|vcpu| self.events.time_info(vcpu)) {
            clock.write_time(&page, offset, Tsc::OWN);
        }
        if let Some(page) = self.special(special::SHARED_INFO) {
            clock.write_wall_clock(&page, wall_ns);
        }
    }

    /// A device holds work back for `ns` at the most, see [`Events::hold`].
    pub fn hold(&mut self, device: u8, ns: u64, is_awake: bool) {
        let until_ns = self.clock.ns(time::tsc()).saturating_add(ns);
        self.events.hold(device, self.clock.tsc(until_ns), is_awake);
    }

    /// A special frame.
    pub fn special(&self, index: usize) -> Option<Page> {
        self.memory.special(index)
    }

    /// Console output by other ways than the ring (debugging aids); what does not fit is lost.
    pub fn write_early(&mut self, bytes: impl Iterator<Item = u8>) {
        for byte in bytes {
            if self.early_output.push_back(byte).is_err() {
                break;
            }
        }
        self.events.kicks |= 1 << device::CONSOLE;
    }
}

/// What a vCPU waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Nothing: it runs.
    None,
    /// HLT or SCHEDOP_block: an interrupt.
    Interrupt,
    /// SCHEDOP_poll: one of [`Vcpu::polled`], an interrupt, or the time.
    Poll {
        /// System time, or 0.
        until_ns: u64,
        /// An interrupt that the guest kept itself from taking was pending before: it does not count.
        is_deaf: bool,
    },
    /// To be started: it never was, or it halted with interrupts off.
    Start,
}

/// What one vCPU has of its own, besides its state page.
#[derive(Debug)]
pub struct Vcpu {
    /// Xen's number.
    pub id: u32,
    /// Local APIC.
    pub apic: Apic,
    /// What it waits for.
    pub wait: Wait,
    /// TSC at which its timer is due; 0: it is not set.
    pub timer: u64,
    /// Period of its periodic timer in nanoseconds, and the system time at which that is due; 0: it is not set.
    pub periodic_ns: (u64, u64),
    /// Ports that it polls.
    pub polled: Vec<Port>,
    /// How its time is spent.
    pub runstate: Runstate,
    /// It was started before, or a hypercall said how it is to start.
    pub is_initialised: bool,
    /// The state in which it is to start once it is let.
    pub prepared: Option<Box<VcpuState>>,
    /// The vector of the local APIC that was offered at the last entry.
    pub offered: Option<u8>,
    /// Exits in a row for the same invalid state, and what it was.
    pub invalid: (u32, u64),
    /// Its NMI.
    pub nmi: Nmi,
    /// NB_CFG, which Linux writes and reads back.
    pub nb_cfg: u64,
    /// What its TSC is ahead of the machine's; its state page has the same.
    pub tsc_offset: u64,
    /// Linear address of the vcpu_time_info that it has besides the one of its vcpu_info.
    pub time_area: Option<u64>,
    /// That is to be written again.
    pub has_new_time: bool,
    /// Something changed that [`Machine::prepare_entry`] or the timer depends on.
    pub has_news: bool,
    /// Lengths of the instructions that exited last.
    pub lengths: Lengths,
    /// How it is to start at its next turn.
    pub start: Option<Start>,
}

/// How a vCPU that waits for that is to start.
#[derive(Debug)]
pub enum Start {
    /// By the local APIC's start-up interrupt with this vector.
    Sipi(u8),
    /// In a state that a hypercall described.
    State(Box<VcpuState>),
}

/// Lengths of instructions that were measured, by address and CR3: a guest exits from few places.
/// A guest that writes other code to the same place misleads only itself.
#[derive(Debug)]
pub struct Lengths([(u64, u64, u8); LENGTHS]);

/// Places that [`Lengths`] keeps; a power of two. An instruction has a place and the one beside it.
const LENGTHS: usize = 32;

impl Lengths {
    #[inline]
    fn index(rip: u64) -> usize {
        /// 2^64 divided by the golden ratio: addresses that differ little are spread.
        const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
        (rip.wrapping_mul(SPREAD) >> (64 - LENGTHS.trailing_zeros())) as usize % LENGTHS
    }

    /// The length of the instruction at `rip`, if it was measured.
    #[inline]
    pub fn get(&self, rip: u64, cr3: u64) -> Option<u8> {
        let index = Self::index(rip);
        let found = |&(at, space, len): &(u64, u64, u8)| {
            if at == rip && space == cr3 && len != 0 { Some(len) } else { None }
        };
        found(&self.0[index]).or_else(|| found(&self.0[index ^ 1]))
    }

    /// Keeps a length.
    pub fn set(&mut self, rip: u64, cr3: u64, len: u8) {
        let index = Self::index(rip);
        // What was here moves over, so that two that share a place do not drive each other out.
        self.0[index ^ 1] = self.0[index];
        self.0[index] = (rip, cr3, len);
    }
}

impl Vcpu {
    /// A vCPU; its APIC number is twice its own, as Xen has it.
    pub fn new(id: u32) -> Self {
        Self {
            id,
            apic: Apic::new(id * 2),
            wait: Wait::None,
            timer: 0,
            periodic_ns: (0, 0),
            polled: Vec::new(),
            // The first one starts with the guest.
            runstate: Runstate::new(if id == 0 { State::Runnable } else { State::Offline }),
            is_initialised: id == 0,
            prepared: None,
            offered: None,
            invalid: (0, 0),
            nmi: Nmi::None,
            nb_cfg: 0,
            tsc_offset: 0,
            time_area: None,
            has_new_time: false,
            has_news: true,
            lengths: Lengths([(0, 0, 0); LENGTHS]),
            start: None,
        }
    }
}

/// What follows an exit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The vCPU goes on.
    Run,
    /// It goes on but others should have the CPU first.
    Yield,
    /// It waits, see [`Vcpu::wait`].
    Wait,
    /// The guest ended.
    End(EndReason, Text<200>),
}

/// The guest, its CPUID and the platform.
#[derive(Debug)]
pub struct Machine<P> {
    /// What devices use too.
    pub guest: Guest,
    /// The kernel and the processor.
    pub platform: P,
    /// CPUID policy.
    pub cpuid: Cpuid,
    /// The vCPUs whose turn it is not.
    pub parked: Parked,
}

impl<P: Platform> Machine<P> {
    /// The time for the guest.
    #[inline]
    pub fn now_ns(&self) -> u64 {
        self.guest.clock.ns(self.platform.tsc())
    }

    /// Maps special frame `index` at `gfn`, wherever it was before and whatever was there. RAM that was there
    /// is given away, as Xen frees it.
    ///
    /// # Errors
    /// [`Errno::Invalid`] beyond the guest's address space, [`Errno::NoMemory`].
    pub fn place_special(&mut self, index: usize, gfn: Gfn) -> Result<(), Errno> {
        if gfn.0 >= GFN_END {
            return Err(Errno::Invalid);
        }
        if self.guest.memory.where_is(index) == Some(gfn) {
            return Ok(());
        }
        if let Some(other) = self.guest.memory.special_at(gfn) {
            self.platform.unmap_special(other).map_err(|MapFailed| Errno::NoMemory)?;
            self.guest.memory.set_overlay(other, None);
        }
        self.remove_special(index)?;
        self.platform.map_special(index, gfn).map_err(|MapFailed| Errno::NoMemory)?;
        self.guest.memory.give_away(gfn);
        self.guest.memory.set_overlay(index, Some(gfn));
        Ok(())
    }

    /// Takes special frame `index` out of the guest's address space; nothing is there then.
    ///
    /// # Errors
    /// [`Errno::NoMemory`].
    pub fn remove_special(&mut self, index: usize) -> Result<(), Errno> {
        if self.guest.memory.where_is(index).is_none() {
            return Ok(());
        }
        self.platform.unmap_special(index).map_err(|MapFailed| Errno::NoMemory)?;
        self.guest.memory.set_overlay(index, None);
        Ok(())
    }

    /// Whether the vCPU has a reason to go on now; if so it does not wait any more.
    pub fn wakes(&mut self, vcpu: &mut Vcpu) -> bool {
        let due = self.tick(vcpu);
        let wakes = match vcpu.wait {
            Wait::None => true,
            Wait::Start => vcpu.start.is_some(),
            Wait::Interrupt => self.has_interrupt(vcpu),
            Wait::Poll { until_ns, is_deaf } => {
                let wakes = vcpu.polled.iter().any(|&port| self.guest.events.is_pending(port))
                    || (until_ns != 0 && self.now_ns() >= until_ns)
                    || (!is_deaf && self.has_interrupt(vcpu));
                self.guest.events.set_polling(vcpu.id as usize, !wakes);
                wakes
            }
        };
        if wakes {
            vcpu.wait = Wait::None;
            self.account_wake(vcpu, due);
        } else {
            self.account_wait(vcpu);
        }
        wakes
    }

    /// Whether an interrupt waits for the vCPU, whether it takes any or not.
    pub(crate) fn has_interrupt(&self, vcpu: &Vcpu) -> bool {
        self.guest.callback.is_some() && self.guest.events.has_upcall(vcpu.id as usize)
            || vcpu.apic.next().is_some()
            || vcpu.apic.has_command() && vcpu.nmi != Nmi::InService
    }

    /// The present, as the local APIC needs it.
    pub fn now(&self) -> apic::Now {
        apic::Now { tsc: self.platform.tsc(), clock: self.guest.clock }
    }

    /// Raises the timers' VIRQ, and the local APIC's timer interrupt, if the time of one has come; its TSC.
    #[inline]
    pub fn tick(&mut self, vcpu: &mut Vcpu) -> Option<u64> {
        if vcpu.periodic_ns.0 != 0 {
            self.tick_periodic(vcpu);
        }
        if vcpu.apic.due() != 0 {
            vcpu.apic.tick(&self.now());
        }
        if vcpu.timer != 0 && self.platform.tsc() >= vcpu.timer {
            self.guest.events.raise_virq(VIRQ_TIMER, vcpu.id as usize);
            return Some(core::mem::take(&mut vcpu.timer));
        }
        None
    }

    #[cold]
    fn tick_periodic(&mut self, vcpu: &mut Vcpu) {
        let (period, due) = vcpu.periodic_ns;
        let now = self.now_ns();
        if now >= due {
            // What was missed is not made up for.
            vcpu.periodic_ns.1 = now.saturating_add(period);
            self.guest.events.raise_virq(VIRQ_TIMER, vcpu.id as usize);
        }
    }

    /// Sets the vCPU's timer to an absolute system time; one in the past fires at once.
    pub fn set_timer(&mut self, vcpu: &mut Vcpu, until_ns: u64) {
        vcpu.timer = self.guest.clock.tsc(until_ns).max(1);
        vcpu.has_news = true;
        self.tick(vcpu);
    }

    /// The end of the guest that one of its watchdogs brings about now.
    #[inline]
    pub fn watchdog_end(&self) -> Option<Outcome> {
        let due = self.guest.watchdogs.due();
        (due != 0 && self.platform.tsc() >= due).then(|| {
            let what = sentence(format_args!("the guest did not set its watchdog again in time"));
            Outcome::End(EndReason::Watchdog, what)
        })
    }

    /// Whether the vCPU can be entered again as it left: no device was notified, nothing is to be injected
    /// that was not before, no timer changed. The common answer, found by three words.
    #[inline]
    pub fn is_settled(&self, vcpu: &Vcpu) -> bool {
        self.guest.events.kicks == 0 && !self.guest.events.has_news() && !vcpu.has_news
    }

    /// The TSC at which the vCPU that runs needs [`Self::tick`] or [`Self::wakes`], or a device its turn; 0: never.
    #[inline]
    pub fn deadline(&self, vcpu: &Vcpu) -> u64 {
        let nmi = if vcpu.wait == Wait::None { vcpu.nmi.look_at() } else { 0 };
        earlier(self.deadline_parked(vcpu), nmi)
    }

    /// The same for one that is parked.
    #[inline]
    pub(crate) fn deadline_parked(&self, vcpu: &Vcpu) -> u64 {
        let poll = match vcpu.wait {
            Wait::Poll { until_ns, .. } if until_ns != 0 => self.guest.clock.tsc(until_ns),
            _ => 0,
        };
        let periodic = if vcpu.periodic_ns.0 == 0 { 0 } else { self.guest.clock.tsc(vcpu.periodic_ns.1) };
        let own = earlier(earlier(earlier(vcpu.timer, vcpu.apic.due()), poll), periodic);
        earlier(earlier(own, self.guest.events.held_until), self.guest.watchdogs.due())
    }
}

/// The earlier of two times, of which 0 is none.
#[inline]
pub(crate) fn earlier(a: u64, b: u64) -> u64 {
    if a == 0 || b == 0 { a | b } else { a.min(b) }
}

/// Cuts a sentence to what a message holds.
pub fn sentence(text: core::fmt::Arguments<'_>) -> Text<200> {
    let mut out = Text::new();
    // Too long a sentence is cut.
    let _ = core::fmt::write(&mut out, text);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two instructions that exit in turn were measured each time when their addresses shared a place.
    #[test]
    fn two_instructions_that_share_a_place_are_both_kept() {
        let at = 0x40_1000;
        let shares = |other: &u64| Lengths::index(*other) == Lengths::index(at);
        let other = (at + 1..).find(shares).unwrap();
        let mut lengths = Vcpu::new(0).lengths;
        lengths.set(at, 7, 2);
        lengths.set(other, 7, 3);
        assert_eq!((lengths.get(at, 7), lengths.get(other, 7)), (Some(2), Some(3)));
        assert_eq!((lengths.get(at, 8), lengths.get(at + 1, 7)), (None, None));
    }
}
