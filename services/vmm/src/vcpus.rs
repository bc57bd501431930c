//! Several vCPUs of one guest: whose turn it is, and how they start and stop each other.
//!
//! All vCPUs of a guest run on the VMM's one thread, one after the other: the one that runs is with the
//! main loop, the others are parked here. A vCPU has its turn until it waits, yields, or its slice is over
//! while another one could run. INIT and SIPI as the local APIC sends them: Intel SDM vol. 3, 9.4 (a second
//! SIPI has no effect); a vCPU that halts with interrupts off is down as in Xen's hvm_vcpu_down.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::apic::{Command, Delivery};
use crate::machine::{Machine, Platform, Start, Vcpu, Wait, earlier};
use crate::nmi::Nmi;

/// The vCPUs whose turn it is not, by number. A guest with one vCPU has none.
#[derive(Debug, Default)]
pub struct Parked(Vec<Option<Box<Vcpu>>>);

impl Parked {
    /// A guest with `count` vCPUs, the first of which is with the caller; the others are to be started.
    pub fn new(count: usize) -> Self {
        if count <= 1 {
            return Self::default();
        }
        let parked = |id| {
            (id > 0).then(|| {
                let mut vcpu = Box::new(Vcpu::new(id as u32));
                vcpu.wait = Wait::Start;
                vcpu
            })
        };
        Self((0..count).map(parked).collect())
    }

    /// Whether there are others at all.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A vCPU whose turn it is not.
    pub fn get_mut(&mut self, id: u32) -> Option<&mut Vcpu> {
        self.0.get_mut(id as usize)?.as_deref_mut()
    }

    /// All vCPUs whose turn it is not, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Vcpu> {
        self.0.iter_mut().filter_map(|vcpu| vcpu.as_deref_mut())
    }

    /// All vCPUs whose turn it is not.
    pub fn iter(&self) -> impl Iterator<Item = &Vcpu> {
        self.0.iter().filter_map(|vcpu| vcpu.as_deref())
    }
}

impl<P: Platform> Machine<P> {
    /// The vCPU with this number: the one that runs, or a parked one.
    pub fn vcpu_mut<'a>(&'a mut self, running: &'a mut Vcpu, id: u32) -> Option<&'a mut Vcpu> {
        if id == running.id { Some(running) } else { self.parked.get_mut(id) }
    }

    /// Whether a parked vCPU could run now. Their timers are looked at, too.
    pub fn is_parked_ready(&mut self) -> bool {
        (0..self.parked.0.len()).any(|id| self.is_ready(id))
    }

    fn is_ready(&mut self, id: usize) -> bool {
        // It is taken out so that the machine can look at it.
        let Some(mut vcpu) = self.parked.0.get_mut(id).and_then(Option::take) else { return false };
        let is_ready = self.wakes(&mut vcpu);
        // What is due on it is found when it is entered.
        self.guest.events.noticed(1 << (id % 32));
        if let Some(place) = self.parked.0.get_mut(id) {
            *place = Some(vcpu);
        }
        is_ready
    }

    /// Parks the vCPU that ran and takes the next one that can run in its place, in turn; `false`: no other one can.
    pub fn take_turn(&mut self, running: &mut Box<Vcpu>) -> bool {
        let (count, at) = (self.parked.0.len(), running.id as usize);
        let next = (1..count).map(|step| (at + step) % count).find(|&id| self.is_ready(id));
        let Some(next) = next.and_then(|id| self.parked.0.get_mut(id)).and_then(Option::take) else {
            return false;
        };
        let before = core::mem::replace(running, next);
        if let Some(place) = self.parked.0.get_mut(at) {
            *place = Some(before);
        }
        true
    }

    /// The TSC at which this vCPU or a parked one needs to be looked at, see [`Self::deadline`]; 0: never.
    pub fn deadline_of_all(&self, running: &Vcpu) -> u64 {
        let others = self.parked.iter().map(|vcpu| self.deadline_parked(vcpu));
        others.fold(self.deadline(running), earlier)
    }

    /// Brings an interprocessor interrupt to whom it is for.
    pub fn send_command(&mut self, running: &mut Vcpu, command: Command) {
        let sender = running.id;
        let is_reached = |vcpu: &Vcpu| vcpu.apic.is_reached(&command, vcpu.id == sender);
        if let Delivery::Lowest(_) = command.delivery {
            let all = core::iter::once(&*running).chain(self.parked.iter());
            let reached = all.filter(|vcpu| vcpu.apic.is_enabled() && is_reached(vcpu));
            let lowest = reached.min_by_key(|vcpu| vcpu.apic.priority()).map(|vcpu| vcpu.id);
            if let Some(vcpu) = lowest.and_then(|id| self.vcpu_mut(running, id)) {
                vcpu.apic.receive(command.delivery);
            }
            return;
        }
        let others = self.parked.0.iter_mut().filter_map(|vcpu| vcpu.as_deref_mut());
        for vcpu in others.chain(core::iter::once(running)).filter(|vcpu| is_reached(vcpu)) {
            vcpu.apic.receive(command.delivery);
            vcpu.obey();
        }
    }

    /// Whether no vCPU is up, and none will be.
    pub fn is_off(&self, running: &Vcpu) -> bool {
        let mut all = core::iter::once(running).chain(self.parked.iter());
        all.all(|vcpu| vcpu.wait == Wait::Start && vcpu.start.is_none())
    }

    /// The vCPU halted with interrupts off; whether it was the last one that was up.
    pub fn stop_vcpu(&mut self, running: &mut Vcpu) -> bool {
        running.wait = Wait::Start;
        self.is_off(running)
    }
}

impl Vcpu {
    /// INIT: it waits to be started. What it registered with the hypervisor stays.
    fn reset(&mut self) {
        self.apic.reset();
        (self.wait, self.start, self.prepared) = (Wait::Start, None, None);
        self.is_initialised = false;
        (self.offered, self.invalid, self.has_news, self.nmi) = (None, (0, 0), true, Nmi::None);
    }

    /// Lets it start if it waits for that; one that is up is left alone.
    pub fn start(&mut self, start: Start) {
        if self.wait == Wait::Start && self.start.is_none() {
            (self.start, self.is_initialised) = (Some(start), true);
        }
    }

    /// Acts on an INIT and a SIPI that its APIC received.
    fn obey(&mut self) {
        if self.apic.take_init() {
            self.reset();
        }
        if let Some(vector) = self.apic.take_startup() {
            self.start(Start::Sipi(vector));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apic::{Now, Shorthand};
    use crate::testing::machine_of;

    #[test]
    fn vcpus_have_their_turns_in_order_and_those_that_wait_have_none() {
        let (mut machine, first) = machine_of(4);
        let mut running = Box::new(first);
        assert!(!machine.is_parked_ready() && !machine.take_turn(&mut running), "none was started");
        for id in [1, 3] {
            machine.parked.get_mut(id).unwrap().start(Start::Sipi(id as u8));
        }
        let mut turns = Vec::new();
        for _ in 0..5 {
            assert!(machine.take_turn(&mut running));
            turns.push(running.id);
        }
        assert_eq!(turns, [1, 3, 0, 1, 3]);
        machine.parked.get_mut(0).unwrap().wait = Wait::Interrupt;
        assert!(machine.take_turn(&mut running));
        assert_eq!(running.id, 1);
        assert!(machine.parked.get_mut(1).is_none(), "the one that runs is not parked");
        assert!([1, 2].iter().all(|&id| machine.vcpu_mut(&mut running, id).is_some()));
        assert!(machine.vcpu_mut(&mut running, 4).is_none());
    }

    fn command(delivery: Delivery, shorthand: Shorthand, destination: u32) -> Command {
        Command { shorthand, destination, is_logical: false, delivery }
    }

    #[test]
    fn init_and_sipi_start_and_stop_and_a_second_sipi_has_no_effect() {
        let (mut machine, mut first) = machine_of(3);
        let to_second = |delivery| command(delivery, Shorthand::None, 2);
        machine.send_command(&mut first, to_second(Delivery::Init));
        assert!(!machine.is_parked_ready());
        machine.send_command(&mut first, to_second(Delivery::Startup(0x98)));
        machine.send_command(&mut first, to_second(Delivery::Startup(0x99)));
        assert!(machine.is_parked_ready());
        let start = machine.parked.get_mut(1).unwrap().start.take();
        assert!(matches!(start, Some(Start::Sipi(0x98))));
        machine.send_command(&mut first, to_second(Delivery::Startup(0x9a)));
        assert!(machine.parked.get_mut(1).unwrap().start.is_none());
        assert!(machine.parked.get_mut(2).unwrap().start.is_none(), "it was not addressed");
        machine.send_command(&mut first, command(Delivery::Init, Shorthand::Others, 0));
        assert!(!machine.is_parked_ready() && first.wait == Wait::None);
        machine.send_command(&mut first, command(Delivery::Init, Shorthand::None, 0));
        assert!(machine.is_off(&first), "it reset itself, and nobody is left to start it");
    }

    #[test]
    fn interrupts_reach_those_that_are_addressed_and_wake_them() {
        let (mut machine, mut first) = machine_of(3);
        for id in [1, 2] {
            let other = machine.parked.get_mut(id).unwrap();
            other.wait = Wait::Interrupt;
            other.apic.write_page(0xf0, 4, 0x1ff, &Now { tsc: 0, clock: machine.guest.clock });
        }
        machine.send_command(&mut first, command(Delivery::Fixed(0x40), Shorthand::None, 4));
        let pending = |machine: &mut Machine<_>, id| machine.parked.get_mut(id).unwrap().apic.next();
        assert_eq!((pending(&mut machine, 1), pending(&mut machine, 2)), (None, Some(0x40)));
        machine.send_command(&mut first, command(Delivery::Lowest(0x41), Shorthand::Others, 0));
        assert_eq!((pending(&mut machine, 1), pending(&mut machine, 2)), (Some(0x41), Some(0x40)));
        machine.send_command(&mut first, command(Delivery::Nmi, Shorthand::All, 0));
        assert!(first.apic.has_command() && machine.is_parked_ready());
    }

    #[test]
    fn the_guest_is_off_when_the_last_vcpu_halts_for_good() {
        let (mut machine, first) = machine_of(2);
        let mut running = Box::new(first);
        machine.parked.get_mut(1).unwrap().start(Start::Sipi(1));
        assert!(!machine.stop_vcpu(&mut running));
        assert!(machine.take_turn(&mut running) && running.id == 1);
        running.start = None;
        assert!(machine.stop_vcpu(&mut running));
    }

    #[test]
    fn a_parked_vcpus_timer_is_a_deadline_and_wakes_it() {
        let (mut machine, first) = machine_of(2);
        let mut running = Box::new(first);
        machine.guest.callback = Some(0xf3);
        machine.guest.events.bind_virq(0, 1).unwrap();
        let other = machine.parked.get_mut(1).unwrap();
        (other.wait, other.timer) = (Wait::Interrupt, 700);
        assert_eq!(machine.deadline_of_all(&running), 700);
        assert!(!machine.is_parked_ready());
        machine.platform.tsc.set(700);
        assert!(machine.take_turn(&mut running) && running.id == 1);
        assert_eq!(machine.deadline_of_all(&running), 0);
    }

    /// A masked port made pending by one vCPU left another one waiting that polled it; and an upcall due on a
    /// vCPU that was known to be ready kept the running one from being settled.
    #[test]
    fn news_of_a_parked_vcpu_unsettle_the_running_one_once() {
        let (mut machine, first) = machine_of(2);
        let mut running = Box::new(first);
        machine.guest.callback = Some(0xf3);
        running.has_news = false;
        let ports = [(); 2].map(|()| machine.guest.events.bind_ipi(1).unwrap());
        machine.guest.special(0).unwrap().set_u64(0xa00, 1 << ports[0].0);
        let other = machine.parked.get_mut(1).unwrap();
        other.polled.push(ports[0]);
        other.wait = Wait::Poll { until_ns: 0, is_deaf: false };
        assert!(!machine.is_parked_ready() && machine.is_settled(&running));
        machine.guest.events.send(ports[0]).unwrap();
        assert!(!machine.is_settled(&running));
        assert!(machine.is_parked_ready() && machine.is_settled(&running));
        machine.parked.get_mut(1).unwrap().wait = Wait::Interrupt;
        assert!(!machine.is_parked_ready());
        machine.guest.events.send(ports[1]).unwrap();
        assert!(!machine.is_settled(&running));
        assert!(machine.is_parked_ready() && machine.is_settled(&running));
        assert!(machine.take_turn(&mut running));
        assert!(machine.guest.events.has_upcall(1) && !machine.is_settled(&running));
    }
}
