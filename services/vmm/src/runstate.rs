//! Runstates: how long a vCPU ran, could have run, waited and was off; what a guest reads as stolen time.
//!
//! The state changes where the VMM lets a vCPU run, wait or stand aside for another one of its guest. What the
//! kernel's scheduler took from the VMM's thread while a vCPU ran is not seen when it happens: a [`Meter`] finds
//! it, at most once in a while, as the time that the thread neither slept nor was on the CPU. Deliberately not
//! counted as stolen: the time between a device's signal and the thread's turn, which cannot be told from sleep;
//! the delay of a timer can, and is. An update of the area in guest memory is never seen half done, because no
//! vCPU of the guest runs meanwhile: XEN_RUNSTATE_UPDATE is not needed, whether the guest asked for it or not.
//! Where an area is, is remembered for its address space: a guest that maps its area elsewhere without a word finds
//! the update in the old frame, which is its own.
//! Sources: Xen public/vcpu.h (vcpu_runstate_info), common/sched/core.c (vcpu_runstate_change).

use crate::hypercall::Width;
use crate::machine::{Machine, Platform, Vcpu, Wait};
use crate::memory::{GuestMemory, PAGE, Page};
use crate::walk::{Access, Fault, Paging};

/// What a vCPU does, as Xen numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum State {
    /// On a CPU.
    Running = 0,
    /// It could run, but something else does.
    Runnable = 1,
    /// It waits.
    Blocked = 2,
    /// Down or paused.
    Offline = 3,
}

/// vcpu_runstate_info in both layouts.
const LEN: usize = 48;
const LEN_32: usize = 44;

/// Where a guest wants its runstate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area {
    /// Linear address, in whatever address space is current.
    pub linear: u64,
    /// The layout.
    pub width: Width,
}

/// The runstate of a vCPU.
#[derive(Debug, Clone)]
pub struct Runstate {
    state: State,
    /// Since this system time.
    since_ns: u64,
    /// Time in each state, but for what passed since then.
    times_ns: [u64; 4],
    area: Option<Area>,
    /// Where that was in guest memory, for this address space.
    place: Option<(Paging, Page, usize)>,
}

impl Runstate {
    /// In this state since system time 0.
    pub fn new(state: State) -> Self {
        Self { state, since_ns: 0, times_ns: [0; 4], area: None, place: None }
    }

    /// What the vCPU does.
    #[inline]
    pub fn state(&self) -> State {
        self.state
    }

    /// The vCPU does something else since `at_ns`.
    pub fn change(&mut self, state: State, at_ns: u64) {
        if state != self.state {
            self.pass(at_ns, 0);
            self.state = state;
        }
    }

    /// Of the time that the vCPU counts as running, `stolen_ns` were not its own; it runs again.
    pub fn steal(&mut self, stolen_ns: u64, now_ns: u64) {
        if self.state == State::Running {
            self.pass(now_ns, stolen_ns);
        }
    }

    /// Time passes in the present state, but for what counts as runnable.
    fn pass(&mut self, now_ns: u64, runnable_ns: u64) {
        let passed = now_ns.saturating_sub(self.since_ns);
        let runnable = runnable_ns.min(passed);
        self.times_ns[State::Runnable as usize] += runnable;
        self.times_ns[self.state as usize] += passed - runnable;
        self.since_ns += passed;
    }

    /// With the time until now, as VCPUOP_get_runstate_info has it.
    pub fn at(&self, now_ns: u64) -> Self {
        let mut at = self.clone();
        let since_ns = at.since_ns;
        at.pass(now_ns, 0);
        Self { since_ns, ..at }
    }

    /// Has it written to an area of the guest from now on.
    pub fn register(&mut self, area: Area) {
        (self.area, self.place) = (Some(area), None);
    }

    /// Writes it to the area that is registered, if it can be.
    #[inline]
    fn publish(&mut self, memory: &GuestMemory, paging: &Paging) {
        match self.place {
            Some((then, page, offset)) if !paging.differs(&then) => self.write_words(page, offset),
            _ => self.publish_elsewhere(memory, paging),
        }
    }

    #[inline(never)]
    fn publish_elsewhere(&mut self, memory: &GuestMemory, paging: &Paging) {
        self.place = None;
        let Some(area) = self.area else { return };
        // As in Xen, an area that cannot be written is left alone.
        if self.write(memory, paging, area).is_err() {
            return;
        }
        // Only the usual area is remembered: 64-bit, aligned, in one page.
        if area.width == Width::Bits64
            && area.linear.is_multiple_of(8)
            && let Ok(gpa) = paging.translate(memory, area.linear, Access::Write)
            && gpa.offset() <= PAGE - LEN
            && let Some(page) = memory.page(gpa.gfn())
        {
            self.place = Some((*paging, page, gpa.offset()));
        }
    }

    /// Writes it in the 64-bit layout.
    fn write_words(&self, page: Page, offset: usize) {
        let [a, b, c, d] = self.times_ns;
        page.set_u32(offset, self.state as u32);
        for (n, word) in [self.since_ns, a, b, c, d].into_iter().enumerate() {
            page.set_u64(offset + 8 + 8 * n, word);
        }
    }

    /// Writes it to an area of the guest.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn write(&self, memory: &GuestMemory, paging: &Paging, area: Area) -> Result<(), Fault> {
        let mut info = [0; LEN];
        let [a, b, c, d] = self.times_ns;
        // 64-bit words are 4-byte aligned in the 32-bit layout.
        let (first, len) = if area.width == Width::Bits64 { (8, LEN) } else { (4, LEN_32) };
        for (to, from) in info.iter_mut().zip((self.state as u32).to_le_bytes()) {
            *to = from;
        }
        let words = [self.since_ns, a, b, c, d].into_iter().flat_map(u64::to_le_bytes);
        for (to, from) in info.iter_mut().skip(first).zip(words) {
            *to = from;
        }
        paging.write(memory, area.linear, info.get(..len).unwrap_or(&[]))
    }
}

/// Less than this is not worth an update.
const NOTABLE_US: u64 = 20;
/// How long the VMM runs without looking what was stolen.
const LOOK_US: u64 = 1000;

/// What of the VMM's time was neither sleep nor on the CPU. All in TSC ticks.
#[derive(Debug, Default)]
pub struct Meter {
    slept: u64,
    /// Time off the CPU that was accounted for; `None` before the first look.
    known: Option<u64>,
    next_look: u64,
}

impl Meter {
    /// The VMM slept.
    pub fn slept(&mut self, ticks: u64) {
        self.slept = self.slept.wrapping_add(ticks);
        // Only time that it was not asleep calls for a look.
        self.next_look = self.next_look.saturating_add(ticks);
    }

    /// Whether it is time to [look](Self::look).
    #[inline]
    pub fn is_due(&self, tsc: u64) -> bool {
        tsc >= self.next_look
    }

    /// What was stolen since the last time, if it is notable. `cpu` is the time of the VMM's thread on a CPU.
    pub fn look(&mut self, tsc: u64, cpu: u64, tsc_khz: u64) -> u64 {
        self.next_look = tsc.saturating_add(tsc_khz * LOOK_US / 1000);
        let off = tsc.wrapping_sub(cpu).wrapping_sub(self.slept);
        let Some(known) = self.known else {
            self.known = Some(off);
            return 0;
        };
        // Entering and leaving sleep counts as both: at times there is less than nothing.
        let stolen = off.wrapping_sub(known) as i64;
        if stolen < (tsc_khz * NOTABLE_US / 1000) as i64 {
            return 0;
        }
        self.known = Some(off);
        stolen as u64
    }
}

impl<P: Platform> Machine<P> {
    /// The vCPU is about to run: its runstate says so, and what was stolen is accounted, if it is time to.
    #[inline]
    pub(crate) fn account_entry(&mut self, vcpu: &mut Vcpu, paging: impl FnOnce() -> Paging) {
        let tsc = self.platform.tsc();
        if vcpu.runstate.state != State::Running || self.guest.meter.is_due(tsc) {
            self.account(vcpu, tsc, paging());
        }
    }

    #[inline(never)]
    fn account(&mut self, vcpu: &mut Vcpu, tsc: u64, paging: Paging) {
        let now_ns = self.guest.clock.ns(tsc);
        let mut has_changed = vcpu.runstate.state != State::Running;
        if self.guest.meter.is_due(tsc) {
            let khz = self.guest.clock.khz();
            let stolen = self.guest.meter.look(tsc, self.platform.cpu_time(), khz);
            if stolen != 0 && !has_changed {
                vcpu.runstate.steal(self.guest.clock.span_ns(stolen), now_ns);
                has_changed = true;
            }
        }
        vcpu.runstate.change(State::Running, now_ns);
        if has_changed {
            vcpu.runstate.publish(&self.guest.memory, &paging);
        }
    }

    /// The vCPU, which runs, wants to know its runstate: what was stolen until now is accounted.
    pub(crate) fn account_now(&mut self, vcpu: &mut Vcpu) {
        let tsc = self.platform.tsc();
        let stolen = self.guest.meter.look(tsc, self.platform.cpu_time(), self.guest.clock.khz());
        if stolen != 0 {
            vcpu.runstate.steal(self.guest.clock.span_ns(stolen), self.guest.clock.ns(tsc));
        }
    }

    /// The vCPU waits, or it has to: unless it does so already, since now.
    pub(crate) fn account_wait(&self, vcpu: &mut Vcpu) {
        let state = if vcpu.wait == Wait::Start { State::Offline } else { State::Blocked };
        if vcpu.runstate.state != state {
            vcpu.runstate.change(state, self.now_ns());
        }
    }

    /// The vCPU could go on: if it could not before, since then, which is now or when its timer was due.
    pub(crate) fn account_wake(&self, vcpu: &mut Vcpu, due: Option<u64>) {
        if matches!(vcpu.runstate.state, State::Blocked | State::Offline) {
            let now = self.platform.tsc();
            let since = due.map_or(now, |due| due.min(now));
            vcpu.runstate.change(State::Runnable, self.guest.clock.ns(since));
        }
    }

    /// A vCPU that was put aside for another one is not running; `paging` is its own.
    pub fn account_put_aside(&mut self, id: u32, paging: &Paging) {
        let now_ns = self.now_ns();
        if let Some(vcpu) = self.parked.get_mut(id) {
            if vcpu.runstate.state == State::Running {
                vcpu.runstate.change(State::Runnable, now_ns);
            }
            vcpu.runstate.publish(&self.guest.memory, paging);
        }
    }

    /// The guest is paused: its vCPUs are off until they go on.
    pub fn account_pause(&mut self, running: &mut Vcpu) {
        let now_ns = self.now_ns();
        let pause = |vcpu: &mut Vcpu| {
            if vcpu.runstate.state != State::Blocked {
                vcpu.runstate.change(State::Offline, now_ns);
            }
        };
        pause(running);
        self.parked.iter_mut().for_each(pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Gfn, GuestPhys};
    use crate::testing::machine;
    use proptest::prelude::*;

    fn flat() -> Paging {
        Paging::of(&crate::entry::blank())
    }

    #[test]
    fn times_add_up_whatever_happens_to_a_vcpu() {
        let mut runstate = Runstate::new(State::Runnable);
        runstate.change(State::Running, 100);
        runstate.steal(30, 200);
        runstate.change(State::Blocked, 250);
        runstate.change(State::Blocked, 260);
        runstate.change(State::Offline, 300);
        assert_eq!(runstate.times_ns, [120, 130, 50, 0]);
        assert_eq!(runstate.at(310).times_ns, [120, 130, 50, 10]);
        assert_eq!(runstate.at(310).since_ns, 300);
    }

    #[test]
    fn the_area_has_the_layout_of_whoever_registered_it() {
        let (machine, _) = machine();
        let mut runstate = Runstate::new(State::Runnable);
        runstate.change(State::Blocked, 7);
        let page = machine.guest.memory.page(Gfn(2)).unwrap();
        let write = |width| {
            machine.guest.memory.write(GuestPhys(0x2000), &[0xee; 64]).unwrap();
            runstate.write(&machine.guest.memory, &flat(), Area { linear: 0x2000, width }).unwrap();
        };
        write(Width::Bits64);
        assert_eq!((page.u32(0), page.u64(8), page.u64(16), page.u64(24)), (2, 7, 0, 7));
        assert_eq!((page.u64(40), page.u8(48)), (0, 0xee));
        write(Width::Bits32);
        assert_eq!((page.u32(0), page.u32(4), page.u32(12), page.u32(20)), (2, 7, 0, 7));
        assert_eq!((page.u32(40), page.u8(44)), (0, 0xee));
    }

    #[test]
    fn a_registered_area_follows_the_address_space() {
        let (machine, _) = machine();
        let memory = &machine.guest.memory;
        let mut runstate = Runstate::new(State::Runnable);
        runstate.register(Area { linear: 0x2040, width: Width::Bits64 });
        let page = |gfn| memory.page(Gfn(gfn)).unwrap();
        for at in [5, 9, 20] {
            runstate.change(if at == 9 { State::Blocked } else { State::Running }, at);
            runstate.publish(memory, &flat());
            let mut info = [0; LEN];
            page(2).read(0x40, &mut info);
            let mut expected = [0; LEN];
            runstate.write(memory, &flat(), Area { linear: 0x4000, width: Width::Bits64 }).unwrap();
            page(4).read(0, &mut expected);
            assert_eq!(info, expected);
        }
        assert!(runstate.place.is_some());
        // With paging, the address is in another frame: entry 2 of a table at 0x6000 points to 0x5000.
        memory.write(GuestPhys(0x7000), &0x6007u32.to_le_bytes()).unwrap();
        memory.write(GuestPhys(0x6008), &0x5007u32.to_le_bytes()).unwrap();
        let mut state = crate::entry::blank();
        (state.cr0, state.cr3) = (0x8000_0011, 0x7000);
        runstate.change(State::Blocked, 70);
        runstate.publish(memory, &Paging::of(&state));
        assert_eq!((page(5).u64(0x48), page(2).u64(0x48)), (70, 20));
        // In a page that is absent nothing is written, and across pages everything is.
        runstate.register(Area { linear: 0x3000, width: Width::Bits64 });
        runstate.publish(memory, &Paging::of(&state));
        assert!(runstate.place.is_none());
        runstate.register(Area { linear: 0x8ff0, width: Width::Bits64 });
        runstate.publish(memory, &flat());
        assert_eq!((page(8).u64(0xff8), page(9).u64(0), runstate.place.is_none()), (70, 54, true));
    }

    #[test]
    fn what_the_scheduler_took_is_stolen_and_sleep_is_not() {
        let (mut machine, mut vcpu) = machine();
        // 1 GHz: a tick is a nanosecond.
        let mut step = |tsc: u64, cpu: u64, slept: u64| {
            machine.guest.meter.slept(slept);
            machine.platform.tsc.set(tsc);
            machine.platform.cpu_time.set(cpu);
            machine.account_entry(&mut vcpu, flat);
            vcpu.runstate.at(tsc).times_ns
        };
        assert_eq!(step(1_000_000, 900_000, 0), [0, 1_000_000, 0, 0]);
        // 5 ms, of which 3 on the CPU.
        assert_eq!(step(6_000_000, 3_900_000, 0), [3_000_000, 3_000_000, 0, 0]);
        // Half a millisecond later nobody looks.
        assert_eq!(step(6_500_000, 3_900_000, 0), [3_500_000, 3_000_000, 0, 0]);
        // A second, but asleep.
        assert_eq!(step(1_006_500_000, 3_900_100, 1_000_000_000)[1], 3_000_000);
        // What nobody looked at is found later.
        assert_eq!(step(1_008_000_000, 5_400_100, 0)[1], 3_500_000 - 100);
    }

    #[test]
    fn a_late_timer_is_time_in_which_the_vcpu_could_have_run() {
        let (mut machine, mut vcpu) = machine();
        machine.account_entry(&mut vcpu, flat);
        machine.set_timer(&mut vcpu, 5000);
        (vcpu.wait, machine.guest.callback) = (Wait::Interrupt, Some(0xf3));
        machine.guest.events.bind_virq(0, 0).unwrap();
        machine.platform.tsc.set(1000);
        assert!(!machine.wakes(&mut vcpu));
        machine.platform.tsc.set(8000);
        assert!(machine.wakes(&mut vcpu));
        let [running, runnable, blocked, offline] = vcpu.runstate.at(8000).times_ns;
        assert_eq!((running, offline), (1000, 0));
        assert!((2900..=3000).contains(&runnable) && blocked + runnable == 7000, "{runnable}");
        assert_eq!(vcpu.runstate.state(), State::Runnable);
        machine.account_entry(&mut vcpu, flat);
        assert_eq!(vcpu.runstate.state(), State::Running);
    }

    proptest! {
        #[test]
        fn no_time_is_lost(steps in prop::collection::vec((0u32..5, 0u64..1000, 0u64..2000), 0..50)) {
            let mut runstate = Runstate::new(State::Offline);
            let mut now = 0;
            for (kind, passed, stolen) in steps {
                now += passed;
                let before = runstate.at(now).times_ns;
                match kind {
                    0 => runstate.change(State::Running, now),
                    1 => runstate.change(State::Runnable, now),
                    2 => runstate.change(State::Blocked, now),
                    3 => runstate.change(State::Offline, now),
                    _ => runstate.steal(stolen, now),
                }
                let at = runstate.at(now);
                prop_assert_eq!(at.times_ns.iter().sum::<u64>(), now);
                // A guest that reads stolen time finds it growing.
                prop_assert!(at.times_ns[1] >= before[1]);
            }
        }
    }
}
