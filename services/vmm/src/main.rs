//! The VMM domain: wires a guest's machine and devices to the kernel and to the channels.
//!
//! One loop: serve what signalled, let the vCPU run, handle its exit. The domain sleeps only in
//! `vcpu_run` and `event_wait`, and before either every channel is armed.
#![no_std]
#![no_main]

extern crate alloc;

mod kernel;

use alloc::boxed::Box;
use alloc::vec::Vec;

use proto::abi::Slot;
use proto::channel::{ChannelInfo, ChannelKind};
use proto::guest::GuestInfo;
use proto::supervise;
use proto::text::Text;
use proto::toolstack::{EndReason, Guest as GuestProtocol, Request, Response};
use rt::channel::Server;
use rt::supervise::Supervisor;
use rt::{sys, time};
use vmm::clock::Clock;
use vmm::cpuid::{self, Cpuid};
use vmm::devices::{Devices, Readiness};
use vmm::entry;
use vmm::loader::place::{self, ACPI_BASE, ACPI_PAGES, CONSOLE_GFN, Entry, XENSTORE_GFN, special};
use vmm::loader::{LoadError, acpi, bzimage};
use vmm::machine::{Guest, Machine, Outcome, Start, Vcpu, Wait};
use vmm::memory::{Gfn, GuestMemory, GuestPhys};
use vmm::vcpus::Parked;
use vmm::walk::Paging;

use kernel::{Kernel, StatePage};

rt::entry!(main);

/// Memory that unpacking a kernel may need at most, besides the result: zstd's window, which is as large as the result
/// or 128 MiB, and the one of half the size that it grew from.
const UNPACK_HEAP_MIN: u64 = 192 << 20;

/// How long a vCPU runs while another one of its guest could, in microseconds. A processor that waits for another one
/// in a loop waits for this at the most.
const TURN_US: u64 = 1000;

/// Where the guest is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The toolstack has not said that it may start.
    Built,
    /// It starts as soon as its backends are open.
    Starting,
    Running,
    Paused,
    Ended,
}

/// Why the vCPU does not run.
enum Left {
    /// Signals came.
    Signals(u64),
    /// It left, and something has to be looked at.
    Exit(Outcome),
}

struct Vmm {
    env: rt::Env,
    info: &'static GuestInfo,
    event: Slot,
    supervisor: Supervisor,
    supervise_signals: u64,
    control: Option<Server<GuestProtocol>>,
    machine: Machine<Kernel>,
    devices: Devices,
    /// The vCPU whose turn it is, with its object and its state page.
    vcpu: Box<Vcpu>,
    vcpu_slot: Slot,
    state: StatePage,
    /// TSC at which its turn ends, while another one could run; 0: none could.
    turn_end: u64,
    phase: Phase,
    /// TSC that the event's timer is set to, or 0.
    timer: u64,
    exits: u64,
    /// Channels that were detached, and the device that each belonged to.
    detached: Vec<(ChannelKind, u32)>,
}

fn main(env: rt::Env) -> ! {
    let Some(info) = &env.info.guest else { rt::exit_failed("there is no guest") };
    let mut vmm = match Vmm::new(env, info) {
        Ok(vmm) => vmm,
        Err(reason) => rt::exit_failed(reason),
    };
    vmm.supervisor.ready();
    vmm.run()
}

impl Vmm {
    fn new(env: rt::Env, info: &'static GuestInfo) -> Result<Self, &'static str> {
        let vcpu_info = *info.vcpus.first().ok_or("the guest has no vCPU")?;
        let ram: Vec<_> = info
            .ram
            .iter()
            .map(|range| {
                let addr = proto::guest::RAM_BASE + range.gpa;
                (GuestPhys(range.gpa), proto::channel::Region { addr, len: range.len })
            })
            .collect();
        let memory = GuestMemory::new(&ram, info.special);
        let clock = Clock::new(env.info.tsc_khz, time::tsc());
        let guest = Guest::new(memory, clock, info.vcpus.len(), info.domid, info.uuid)
            .map_err(|_| "there are too few special frames")?;
        let disks: Vec<u32> = info.disks.iter().map(|disk| disk.device).collect();
        let vifs: Vec<u32> = info.vifs.iter().map(|vif| vif.device).collect();
        let devices = Devices::new(&guest, &disks, &vifs).map_err(|_| "there are too few special frames")?;
        let tsc_khz = u32::try_from(env.info.tsc_khz).unwrap_or(u32::MAX);
        let policy = cpuid::Guest { domid: info.domid, tsc_khz, narrowing: info.cpuid };
        let machine = Machine {
            guest,
            platform: Kernel::new(info),
            cpuid: Cpuid::new(kernel::host_cpuid, policy),
            parked: Parked::new(info.vcpus.len()),
        };
        let mut vmm = Self {
            env,
            info,
            event: env.info.event,
            supervisor: Supervisor::new(&env),
            supervise_signals: env
                .channel(ChannelKind::Supervise)
                .map_or(u64::MAX, |channel| channel.signals),
            control: None,
            machine,
            devices,
            vcpu: Box::new(Vcpu::new(0)),
            vcpu_slot: vcpu_info.slot,
            state: StatePage::new(vcpu_info.state),
            turn_end: 0,
            phase: Phase::Built,
            timer: 0,
            exits: 0,
            detached: Vec::new(),
        };
        for channel in env.info.channels.iter() {
            if let Err(reason) = vmm.attach(channel) {
                log::error!("channel {} ({:?}): {reason}", channel.id, channel.kind);
            }
        }
        Ok(vmm)
    }

    /// Takes a channel into use. `Ok(false)`: it is none of this code's.
    fn attach(&mut self, channel: &ChannelInfo) -> Result<bool, rt::channel::ChannelError> {
        match channel.kind {
            ChannelKind::Supervise | ChannelKind::Log => return Ok(false),
            ChannelKind::Guest => self.control = Some(Server::connect(channel)?),
            ChannelKind::Blk | ChannelKind::Net => {
                let listed =
                    if channel.kind == ChannelKind::Blk { &self.info.disks[..] } else { &self.info.vifs[..] };
                let listed =
                    listed.iter().find(|device| device.channel == channel.id).map(|device| device.device);
                // A channel that comes later stands in for one that went away.
                let number = listed.or_else(|| {
                    let at = self.detached.iter().position(|(kind, _)| *kind == channel.kind)?;
                    Some(self.detached.remove(at).1)
                });
                self.devices.attach(channel, number)?;
            }
            _ => self.devices.attach(channel, None)?,
        }
        Ok(true)
    }

    fn run(&mut self) -> ! {
        // At first everything may have something to say.
        let mut signals = u64::MAX;
        loop {
            if signals != 0 {
                self.serve(signals);
            }
            signals = if self.phase == Phase::Running { self.run_guest() } else { self.sleep() };
            if signals & self.env.info.timer_signals != 0 {
                self.timer = 0;
            }
        }
    }

    /// Serves everything that has one of the signals.
    fn serve(&mut self, signals: u64) {
        self.devices.signalled(&mut self.machine.guest, signals);
        let control = self.control.as_ref().map_or(0, |control| control.info().signals);
        if signals & (self.supervise_signals | control) == 0 && self.phase != Phase::Starting {
            return;
        }
        loop {
            while let Some(request) = self.supervisor.next() {
                self.supervise(request);
            }
            self.take_orders();
            if self.phase == Phase::Starting {
                self.devices.settle(&mut self.machine.guest, false);
                self.try_start();
            }
            self.supervisor.flush();
            let is_quiet = self.supervisor.prepare_sleep();
            let has_order = match self.control.as_mut().map(|control| control.prepare_sleep()) {
                None | Some(Ok(true)) => false,
                Some(Ok(false)) => true,
                Some(Err(error)) => {
                    log::warn!("the toolstack's channel: {error}");
                    self.control = None;
                    false
                }
            };
            if is_quiet && !has_order {
                return;
            }
        }
    }

    fn supervise(&mut self, request: supervise::Request) {
        match request {
            supervise::Request::Attach(info) => match self.attach(&info) {
                Ok(true) => self.supervisor.attached(info.id),
                Ok(false) => self.supervisor.refused(info.id, "a VMM has no use for it"),
                Err(error) => self.supervisor.refused(info.id, &alloc::format!("{error}")),
            },
            supervise::Request::Detach { id } => {
                if self.control.as_ref().is_some_and(|control| control.info().id == id) {
                    self.control = None;
                }
                self.detached.extend(self.devices.detach(id));
                self.supervisor.detached(id);
            }
            // Answered by the supervisor itself.
            supervise::Request::Ping { .. } => {}
        }
    }

    /// What the toolstack asks.
    fn take_orders(&mut self) {
        while let Some(control) = &mut self.control {
            match (control.receive(), self.phase) {
                (Ok(Some(Request::Start)), Phase::Built) => {
                    self.devices.start_handshakes();
                    self.phase = Phase::Starting;
                }
                (Ok(Some(Request::Pause)), Phase::Running) => self.phase = Phase::Paused,
                (Ok(Some(Request::Unpause)), Phase::Paused) => self.phase = Phase::Running,
                (Ok(Some(request)), phase) => {
                    log::warn!("{request:?} makes no sense for a guest that is {phase:?}")
                }
                (Ok(None), _) => return,
                (Err(error), _) => {
                    log::warn!("the toolstack's channel: {error}");
                    self.control = None;
                }
            }
        }
    }

    fn tell(&mut self, response: &Response) {
        if let Some(control) = &mut self.control {
            if let Err(error) = control.send(response) {
                log::warn!("the toolstack's channel: {error}");
            }
            control.flush();
        }
    }

    fn try_start(&mut self) {
        let started = match self.devices.readiness() {
            Readiness::Opening => return,
            Readiness::Refused(reason) => Err(reason),
            Readiness::Ready => self.load(),
        };
        match started {
            Ok(entry) => {
                self.start_time();
                for place in self.info.vcpus.iter() {
                    entry::reset(StatePage::new(place.state).get(), 0);
                }
                entry::boot(self.state.get(), entry, 0);
                self.phase = Phase::Running;
                log::info!("the guest starts at {:#x}", entry.rip);
                self.tell(&Response::Started);
            }
            Err(reason) => {
                self.phase = Phase::Ended;
                log::error!("the guest cannot start: {reason}");
                self.tell(&Response::Failed { reason: Text::truncated(&reason) });
            }
        }
    }

    /// Loads the kernel and builds the guest's address space.
    fn load(&mut self) -> Result<Entry, alloc::string::String> {
        if let Some((leaf, register, bit)) = cpuid::missing(kernel::host_cpuid, &self.info.cpuid) {
            return Err(alloc::format!(
                "the processor lacks a feature that `cpuid` asks for: leaf {leaf:#x}, {register}, bit {bit}"
            ));
        }
        let file = rt::memory::bytes(self.info.kernel);
        let ramdisk = rt::memory::bytes(self.info.ramdisk);
        let unpacked;
        let elf = if file.starts_with(b"\x7fELF") {
            file
        } else {
            // Without a heap that is large enough, only find out what is wrong with the file.
            let limit = self.env.info.heap.len.saturating_sub(UNPACK_HEAP_MIN);
            unpacked = bzimage::extract_elf_limited(file, limit).map_err(|error| match error {
                LoadError::TooLarge(..) => alloc::format!(
                    "{error} in this domain's memory; give the system the unpacked ELF file instead"
                ),
                error => alloc::format!("{error}"),
            })?;
            &unpacked
        };
        let entry = place::load(&self.machine.guest.memory, elf, ramdisk, &self.info.cmdline)
            .map_err(|error| alloc::format!("{error}"))?;
        let processors: Vec<_> = (0..self.info.vcpus.len())
            .map(|n| acpi::Processor { vcpu: n as u8, apic: (n * 2) as u8 })
            .collect();
        place::write_acpi(&self.machine.guest.memory, &processors);
        let acpi = (0..ACPI_PAGES as usize).map(|n| (special::ACPI + n, Gfn((ACPI_BASE >> 12) + n as u64)));
        let rings = [(special::CONSOLE, CONSOLE_GFN), (special::XENSTORE, XENSTORE_GFN)];
        for (index, gfn) in acpi.chain(rings) {
            self.machine.place_special(index, gfn).map_err(|errno| {
                alloc::format!("frame {index} cannot be mapped at {:#x} ({errno:?})", gfn.0)
            })?;
        }
        Ok(entry)
    }

    fn start_time(&mut self) {
        let now = time::tsc();
        let wall_ns = time::Clock::new(self.env.info.tsc_khz).tsc_to_ns(now) + self.info.wall_clock_base_ns;
        let clock = Clock::new(self.env.info.tsc_khz, now);
        self.machine.guest.start_time(clock, wall_ns, self.info.vcpus.len());
    }

    /// Waits with the guest not running.
    fn sleep(&mut self) -> u64 {
        self.devices.settle(&mut self.machine.guest, false);
        if self.phase == Phase::Paused {
            self.machine.account_pause(&mut self.vcpu);
        }
        self.wait()
    }

    /// Waits for signals.
    fn wait(&mut self) -> u64 {
        let before = time::tsc();
        let signals = sys::event_wait(self.event).unwrap_or(u64::MAX);
        self.machine.guest.meter.slept(time::tsc().saturating_sub(before));
        signals
    }

    /// Runs the vCPUs until signals come or the phase changes; the signals.
    fn run_guest(&mut self) -> u64 {
        loop {
            if let Some(Outcome::End(reason, detail)) = self.machine.watchdog_end() {
                self.end(reason, detail);
                return 0;
            }
            let has_others = !self.machine.parked.is_empty();
            let waits = self.vcpu.wait != Wait::None && !(has_others && self.machine.is_parked_ready());
            self.devices.settle(&mut self.machine.guest, waits);
            if has_others {
                self.take_turns();
            }
            if self.vcpu.wait != Wait::None && !self.machine.wakes(&mut self.vcpu) {
                // Held back just now.
                if self.machine.guest.events.holds_while_awake() {
                    continue;
                }
                if self.machine.is_off(&self.vcpu) {
                    let what = vmm::machine::sentence(format_args!("the guest stopped all its CPUs"));
                    self.end(EndReason::PowerOff, what);
                    return 0;
                }
                self.set_timer();
                return self.wait();
            }
            if let Some(start) = self.vcpu.start.take() {
                match start {
                    Start::Sipi(vector) => entry::sipi(self.state.get(), vector),
                    Start::State(state) => *self.state.get() = *state,
                }
                self.machine.start_tsc(&mut self.vcpu, self.state.get());
            }
            self.machine.prepare_entry(&mut self.vcpu, self.state.get());
            self.set_timer();
            match self.run_vcpu() {
                Left::Signals(signals) => return signals,
                // The next look at `wait` decides.
                Left::Exit(Outcome::Run | Outcome::Wait) => {}
                Left::Exit(Outcome::Yield) if has_others && self.machine.is_parked_ready() => {
                    // Its turn is over at once.
                    self.turn_end = 1;
                }
                Left::Exit(Outcome::Yield) => {
                    self.devices.settle(&mut self.machine.guest, false);
                    let _never = sys::thread_yield();
                }
                Left::Exit(Outcome::End(reason, detail)) => {
                    self.end(reason, detail);
                    return 0;
                }
            }
        }
    }

    /// Of several vCPUs, has the next one run if this one waits or ran long enough.
    fn take_turns(&mut self) {
        let now = time::tsc();
        let is_over = self.turn_end != 0 && now >= self.turn_end;
        let waits = self.vcpu.wait != Wait::None && !self.machine.wakes(&mut self.vcpu);
        if is_over || waits {
            self.turn_end = 0;
            let (before, paging) = (self.vcpu.id, Paging::of(self.state.get()));
            if self.machine.take_turn(&mut self.vcpu)
                && let Some(place) = self.info.vcpus.get(self.vcpu.id as usize)
            {
                self.vcpu_slot = place.slot;
                self.state = StatePage::new(place.state);
                self.machine.account_put_aside(before, &paging);
            }
        }
        if self.turn_end == 0 && self.machine.is_parked_ready() {
            self.turn_end = now + self.env.info.tsc_khz * TURN_US / 1000;
        }
    }

    /// Runs the vCPU and serves its exits for as long as they change nothing but its registers: no device,
    /// interrupt, timer or wait is looked at in between.
    fn run_vcpu(&mut self) -> Left {
        loop {
            match sys::vcpu_run(self.vcpu_slot, self.event) {
                Ok(0) => {}
                Ok(signals) => return Left::Signals(signals),
                Err(error) => {
                    let detail = vmm::machine::sentence(format_args!("vcpu_run: {error:?}"));
                    return Left::Exit(Outcome::End(EndReason::Crash, detail));
                }
            }
            self.exits += 1;
            match self.machine.handle_exit(&mut self.vcpu, self.state.get()) {
                Outcome::Run if self.machine.is_settled(&self.vcpu) => {}
                outcome => return Left::Exit(outcome),
            }
        }
    }

    /// Sets the event's timer if it would come too late. One that comes too early does no harm, and
    /// leaving it saves a system call.
    fn set_timer(&mut self) {
        let due = if self.machine.parked.is_empty() {
            self.machine.deadline(&self.vcpu)
        } else {
            let others = self.machine.deadline_of_all(&self.vcpu);
            if self.turn_end == 0 || others == 0 { self.turn_end | others } else { self.turn_end.min(others) }
        };
        if due != 0 && (self.timer == 0 || due < self.timer) {
            self.timer = due;
            if let Err(error) = sys::event_timer(self.event, due, self.env.info.timer_signals) {
                log::error!("event_timer: {error:?}");
            }
        }
    }

    fn end(&mut self, reason: EndReason, detail: Text<200>) {
        self.phase = Phase::Ended;
        // What the guest wrote last is to be seen before the news of its end.
        self.devices.settle(&mut self.machine.guest, false);
        log::info!("the guest ended after {} exits ({reason:?}): {detail}", self.exits);
        self.tell(&Response::Ended { reason, detail });
    }
}
