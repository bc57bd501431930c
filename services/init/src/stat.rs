//! Facts about domains and the machine, for `xl list`, `xl info`, `xl top` and `xl counters`.

use alloc::format;

use proto::abi::{Field, PAGE_SIZE, SystemField, ThreadState};
use proto::boot::{INIT_HEAP, INIT_STACK};
use proto::builder::{Activity, DomainStat, DomainState, MachineStat, Response};
use proto::counters;
use proto::text::List;

use crate::domain::{Domain, Kind, ServiceState};
use crate::kernel::Kernel;
use crate::operation::refused;
use crate::pci::ConfigSpace;
use crate::system::System;

/// KiB of a frame.
const FRAME_KIB: u64 = 4;

impl<K: Kernel, C: ConfigSpace> System<K, C> {
    /// The facts about the domain at a position of the list, in order of domain IDs.
    pub fn domain_stat(&mut self, index: u32) -> Response {
        let domid = self.domains.keys().nth(index as usize).copied();
        let Some(domain) = domid.and_then(|domid| self.domains.get(&domid)) else {
            return Response::NoDomain;
        };
        let (thread, kernel) = (domain.thread, &mut self.resources.kernel);
        let mut read = |field| kernel.cap_read(thread, field).unwrap_or(0);
        let ticks = read(Field::CpuTime);
        let state = read(Field::ThreadState);
        let activity = Activity {
            thread: read(Field::ThreadId) as u32,
            time_ns: nanoseconds(ticks, self.tsc_khz),
            dispatches: read(Field::Dispatches),
            signals_sent: read(Field::SignalsSent),
            wake_ups: read(Field::WakeUps),
            interrupts: read(Field::Interrupts),
            vcpu_exits: read(Field::VcpuExits),
            vcpu_kernel_exits: read(Field::VcpuKernelExits),
        };
        // Channels count for side A: a guest's are all part of what it costs but the toolstack's.
        let own = |id: &&u32| self.channels.get(id).is_some_and(|channel| channel.b.peer == domain.domid);
        let own = domain.channels.iter().filter(own).filter_map(|id| self.channels.get(id));
        let (channels, volumes) = own.fold((0, 0), |(frames, volumes), channel| {
            (frames + channel.frames(), volumes + channel.volume_frames())
        });
        let frames = domain.frames() + channels;
        let (is_guest, memory, overhead, vcpus) = match domain.kind {
            Kind::Guest { ram, vcpus, .. } => (true, ram + volumes, frames.saturating_sub(ram), vcpus),
            Kind::Service(..) => (false, frames, 0, 1),
            // The kernel gave init its heap and stack.
            Kind::Root => (false, frames + (INIT_HEAP + INIT_STACK) / PAGE_SIZE, 0, 1),
        };
        let stat = DomainStat {
            domid: domain.domid,
            name: domain.name.clone(),
            is_guest,
            memory_kib: memory * FRAME_KIB,
            overhead_kib: overhead * FRAME_KIB,
            vcpus,
            state: state_of(domain, state),
            time_us: activity.time_ns / 1000,
            activity,
        };
        Response::Domain { index, stat }
    }

    /// A domain's counters, as they are at this moment.
    pub fn counters(&mut self, domid: u32) -> Response {
        let Some(domain) = self.domains.get(&domid).filter(|domain| domain.counters != 0) else {
            return refused(&format!("there is no domain {domid}"));
        };
        let mut page = [0; counters::COUNT * 8];
        self.resources.kernel.read(domain.counters, &mut page);
        let mut values = List::new();
        for value in page.as_chunks().0 {
            let _fits = values.push(u64::from_le_bytes(*value));
        }
        Response::Counters { domid, values }
    }

    /// Facts about the machine.
    pub fn machine_stat(&mut self) -> MachineStat {
        let kernel = &mut self.resources.kernel;
        let total = kernel.system_info(SystemField::TotalFrames).unwrap_or(0);
        let cpus = kernel.system_info(SystemField::Cpus).unwrap_or(1);
        let idle = kernel.system_info(SystemField::IdleTime).unwrap_or(0);
        let context_switches = kernel.system_info(SystemField::ContextSwitches).unwrap_or(0);
        let interrupts = kernel.system_info(SystemField::Interrupts).unwrap_or(0);
        let ticks = kernel.tsc().saturating_sub(self.boot_tsc);
        MachineStat {
            total_kib: total * FRAME_KIB,
            free_kib: self.resources.free.free() * FRAME_KIB,
            system_kib: self.system_frames * FRAME_KIB,
            bundle_kib: self.bundle.frames() * FRAME_KIB,
            cpus: cpus as u32,
            tsc_khz: self.tsc_khz,
            uptime_us: nanoseconds(ticks, self.tsc_khz) / 1000,
            idle_us: nanoseconds(idle, self.tsc_khz) / 1000,
            context_switches,
            interrupts,
        }
    }
}

/// What TSC ticks last.
fn nanoseconds(ticks: u64, tsc_khz: u64) -> u64 {
    (u128::from(ticks) * 1_000_000 / u128::from(tsc_khz.max(1))) as u64
}

fn state_of(domain: &Domain, thread: u64) -> DomainState {
    let is_dead =
        matches!(domain.kind, Kind::Service(_, ServiceState::Dead) | Kind::Guest { is_dead: true, .. });
    match ThreadState::try_from(thread) {
        _ if is_dead => DomainState::Crashed,
        Ok(ThreadState::Faulted) => DomainState::Crashed,
        Ok(ThreadState::Running | ThreadState::Throttled) => DomainState::Running,
        Ok(ThreadState::Stopped) => DomainState::Paused,
        Ok(ThreadState::Waiting) | Err(_) => DomainState::Blocked,
    }
}
