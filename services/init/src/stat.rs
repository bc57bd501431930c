//! Facts about domains and the machine, for `xl list` and `xl info`.

use proto::abi::{Field, PAGE_SIZE, SystemField, ThreadState};
use proto::boot::{INIT_HEAP, INIT_STACK};
use proto::builder::{DomainStat, DomainState, MachineStat, Response};

use crate::domain::{Domain, Kind, ServiceState};
use crate::kernel::Kernel;
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
        let kernel = &mut self.resources.kernel;
        let ticks = kernel.cap_read(domain.thread, Field::CpuTime).unwrap_or(0);
        let state = kernel.cap_read(domain.thread, Field::ThreadState).unwrap_or(0);
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
            time_us: (u128::from(ticks) * 1000 / u128::from(self.tsc_khz)) as u64,
        };
        Response::Domain { index, stat }
    }

    /// Facts about the machine.
    pub fn machine_stat(&mut self) -> MachineStat {
        let kernel = &mut self.resources.kernel;
        let total = kernel.system_info(SystemField::TotalFrames).unwrap_or(0);
        let cpus = kernel.system_info(SystemField::Cpus).unwrap_or(1);
        let ticks = kernel.tsc().saturating_sub(self.boot_tsc);
        MachineStat {
            total_kib: total * FRAME_KIB,
            free_kib: self.resources.free.free() * FRAME_KIB,
            system_kib: self.system_frames * FRAME_KIB,
            bundle_kib: self.bundle.frames() * FRAME_KIB,
            cpus: cpus as u32,
            tsc_khz: self.tsc_khz,
            uptime_us: (u128::from(ticks) * 1000 / u128::from(self.tsc_khz)) as u64,
        }
    }
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
