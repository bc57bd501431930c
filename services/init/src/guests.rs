//! Building a guest: its VMM domain, its RAM, its VM and vCPUs, and a channel for everything that it may
//! talk to. Nothing of it is shared with another guest.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::format;

use proto::abi::{PAGE_SIZE, map, rights};
use proto::boot::DomainInfo;
use proto::builder::GuestSpec;
use proto::channel::{ChannelKind, Region};
use proto::guest::{
    DeviceChannel, FREE_SLOTS, GuestInfo, RAM_BASE, RamRange, SPECIAL_FRAMES, VMM_SLOTS, VcpuInfo,
};
use proto::supervise;
use proto::text::List;

use crate::domain::{Domain, Kind, ServiceState};
use crate::error::{BuildError, Step};
use crate::guest_plan::{self, Files};
use crate::kernel::Kernel;
use crate::operation::{ANSWER_MS, Operation};
use crate::pci::ConfigSpace;
use crate::space::Space;
use crate::system::{Output, ROOT, System};
use crate::wiring::Wire;

/// Page-table frames that a VM has beyond those of its RAM, for what the VMM maps over it: shared_info,
/// grant table, rings, ACPI tables, each of which may break a large page up.
const SPARE_TABLES: u64 = 24;
/// Heap that a VMM has for each disk and network interface, beside the template's: what is in flight.
const DEVICE_HEAP_KIB: u64 = 16;
/// KiB of guest RAM for which a VMM has a KiB of heap: it keeps a bit per page.
const RAM_PER_HEAP_KIB: u64 = 8 * PAGE_SIZE;
/// Scheduling weight of a VMM, as Xen's default.
pub const WEIGHT: u16 = 256;

impl<K: Kernel, C: ConfigSpace> System<K, C> {
    /// Builds a guest and asks the other ends of its channels to attach; [`Operation::Build`] goes on when
    /// they did.
    ///
    /// # Errors
    /// Why not; everything is as before then.
    #[inline(never)]
    pub fn build_guest(&mut self, spec: &GuestSpec) -> Result<(), BuildError> {
        let names = self.domains.values().map(|domain| &*domain.name);
        let files = guest_plan::check(spec, &self.bundle, names).map_err(BuildError::Request)?;
        guest_plan::check_memory(spec, self.resources.free.free()).map_err(BuildError::Request)?;
        let domid = self.take_domid();
        let kind = Kind::Guest { ram: 0, vcpus: spec.vcpus, is_dead: false };
        let mut domain = Domain::new(domid, spec.name.clone(), kind, FREE_SLOTS);
        let furnished = self.furnish_guest(&mut domain, spec, files);
        self.domains.insert(domid, domain);
        let wired = furnished.and_then(|info| self.wire_guest(domid, spec, info));
        match wired {
            Ok(info) => {
                let waiting = self.ask_to_attach(domid);
                let deadline = self.resources.kernel.tsc().saturating_add(self.ticks(ANSWER_MS));
                self.operation = Some(Operation::Build { domid, waiting, deadline, info });
                Ok(())
            }
            Err(error) => {
                self.remove_domain(domid);
                Err(error)
            }
        }
    }

    /// Everything but the channels.
    #[inline(never)]
    fn furnish_guest(
        &mut self,
        domain: &mut Domain,
        spec: &GuestSpec,
        files: Files,
    ) -> Result<Box<DomainInfo>, BuildError> {
        let template = self.manifest.vmm.clone();
        let resources = &mut self.resources;
        domain.create(resources, VMM_SLOTS, self.fault_event)?;
        let devices = (spec.disks.len() + spec.vifs.len()) as u64;
        let bits_kib = spec.memory_kib.div_ceil(RAM_PER_HEAP_KIB);
        let mut heap_kib = u64::from(template.heap_kib) + devices * DEVICE_HEAP_KIB + bits_kib;
        if guest_plan::is_bzimage(files.kernel.bytes) {
            heap_kib += u64::from(template.decompression_kib);
        }
        let sizes = (u64::from(template.stack_kib), heap_kib);
        let heap = domain.load(resources, &self.bundle, &template.program, sizes)?;
        let kernel = domain.map_file(resources, &self.bundle, files.kernel)?;
        let ramdisk = match files.ramdisk {
            Some(file) => domain.map_file(resources, &self.bundle, file)?,
            None => Region::default(),
        };

        let make = |k: &mut K, run, dst| k.vm_create(run, dst);
        let vm_cap = domain.object(resources, 2, "make a VM", make)?;
        let mut vm = Space::new(vm_cap);
        let ram = self.give_ram(domain, &mut vm, spec.memory_kib);
        let spare = self.resources.donate(&mut vm, SPARE_TABLES);
        // Recorded in any case: what it has can be taken back.
        domain.vm = Some(vm);
        let (ram, ()) = (ram?, spare?);

        let resources = &mut self.resources;
        let special =
            Region { addr: domain.arena.take(SPECIAL_FRAMES * PAGE_SIZE), len: SPECIAL_FRAMES * PAGE_SIZE };
        let run = domain.map_new(resources, SPECIAL_FRAMES, special.addr, map::READ | map::WRITE, &[])?;
        let special_cap = domain.run(run).map_or(0, |run| run.slot);
        let special_slot = domain.slot()?;
        let all = rights::READ | rights::WRITE | rights::EXECUTE | rights::CONTROL;
        let target = domain.space.slot;
        let kernel_calls = &mut resources.kernel;
        kernel_calls
            .cap_derive(special_cap, target, special_slot, 0, SPECIAL_FRAMES, all)
            .step("install the special frames")?;
        let vm_slot = domain.slot()?;
        kernel_calls.cap_derive(vm_cap, target, vm_slot, 0, 0, all).step("install the VM")?;
        let vcpus = self.give_vcpus(domain, vm_cap, spec.vcpus)?;

        let guest = GuestInfo {
            domid: domain.domid,
            name: spec.name.clone(),
            uuid: spec.uuid,
            ram,
            special,
            special_slot,
            vm: vm_slot,
            vcpus,
            kernel,
            ramdisk,
            cmdline: spec.cmdline.clone(),
            cpuid: spec.cpuid,
            wall_clock_base_ns: self.wall_clock_base_ns,
            disks: List::new(),
            vifs: List::new(),
        };
        let plain = self.plain_info(domain.domid, spec.name.clone(), heap);
        Ok(Box::new(DomainInfo { guest: Some(guest), ..plain }))
    }

    /// Zeroed RAM, mapped into the VMM and the VM, and named by capabilities of the VMM.
    fn give_ram(
        &mut self,
        domain: &mut Domain,
        vm: &mut Space,
        memory_kib: u64,
    ) -> Result<List<RamRange, 4>, BuildError> {
        let resources = &mut self.resources;
        let ranges = guest_plan::take_ram(resources, memory_kib)?;
        if let Kind::Guest { ram, .. } = &mut domain.kind {
            *ram = ranges.iter().map(|(_, run)| run.count).sum();
        }
        // All is kept first, so that a failure in between loses nothing.
        let ranges = ranges.into_iter().map(|(gpa, run)| {
            let range = (gpa, run.slot, run.first, run.count);
            (range, domain.keep(run))
        });
        let ranges: alloc::vec::Vec<_> = ranges.collect();
        let mut list = List::new();
        let all = rights::READ | rights::WRITE | rights::EXECUTE | rights::CONTROL;
        for ((gpa, owned, first, count), kept) in ranges {
            if let Some(run) = domain.run(kept) {
                resources.fill(run, &[])?;
            }
            let read_write = map::READ | map::WRITE;
            resources.map(&mut domain.space, owned, (first, count), RAM_BASE + gpa, read_write)?;
            let in_vm = resources.derive(owned, 0, count, read_write | map::EXECUTE)?;
            domain.keep_cap(in_vm);
            resources.map(vm, in_vm, (first, count), gpa, read_write | map::EXECUTE)?;
            let slot = domain.slot()?;
            let target = domain.space.slot;
            resources.kernel.cap_derive(owned, target, slot, 0, count, all).step("install the RAM")?;
            let _at_most_four = list.push(RamRange { gpa, len: count * PAGE_SIZE, slot });
        }
        Ok(list)
    }

    fn give_vcpus(
        &mut self,
        domain: &mut Domain,
        vm: proto::abi::Slot,
        count: u32,
    ) -> Result<List<VcpuInfo, { proto::guest::VCPUS_MAX }>, BuildError> {
        let resources = &mut self.resources;
        let mut list = List::new();
        for _ in 0..count {
            let state = resources.take_filled(1, 1, &[])?;
            let (state_cap, range) = (state.slot, (state.first, state.count));
            domain.keep(state);
            // The state page is mapped after it became the vCPU's: the kernel takes only unmapped frames.
            let make = |k: &mut K, run, dst| k.vcpu_create(run, vm, state_cap, dst);
            let vcpu = domain.object(resources, proto::abi::VCPU_FRAMES, "make a vCPU", make)?;
            let state = domain.arena.take(PAGE_SIZE);
            resources.map(&mut domain.space, state_cap, range, state, map::READ | map::WRITE)?;
            let slot = domain.slot()?;
            let target = domain.space.slot;
            let use_it = rights::READ | rights::WRITE | rights::CONTROL;
            resources.kernel.cap_derive(vcpu, target, slot, 0, 0, use_it).step("install a vCPU")?;
            let _at_most_that_many = list.push(VcpuInfo { slot, state });
        }
        Ok(list)
    }

    /// A service that is ready to serve a kind of channel.
    fn ready_server_of(&self, kind: ChannelKind) -> Result<u32, BuildError> {
        let server = self.server_of(kind).filter(|id| {
            self.domains.get(id).is_some_and(|d| matches!(d.kind, Kind::Service(_, ServiceState::Ready)))
        });
        server.ok_or_else(|| BuildError::Request(format!("no running service serves {kind:?} channels")))
    }

    /// All channels of a guest.
    #[inline(never)]
    fn wire_guest(
        &mut self,
        domid: u32,
        spec: &GuestSpec,
        mut info: Box<DomainInfo>,
    ) -> Result<Box<DomainInfo>, BuildError> {
        self.wire_supervision(domid)?;
        for kind in [ChannelKind::Log, ChannelKind::GuestConsole, ChannelKind::Xenstore] {
            let server = self.ready_server_of(kind)?;
            self.connect(&Wire::new(kind, domid, server))?;
        }
        let (mut disks, mut vifs) = (List::new(), List::new());
        for disk in spec.disks.iter() {
            let server = self.ready_server_of(ChannelKind::Blk)?;
            let wire = Wire {
                target: disk.volume.clone(),
                is_read_only: disk.is_read_only,
                memory: disk.memory,
                ..Wire::new(ChannelKind::Blk, domid, server)
            };
            let channel = self.connect(&wire)?;
            let _as_many = disks.push(DeviceChannel { device: disk.device, channel });
        }
        for vif in spec.vifs.iter() {
            let server = self.ready_server_of(ChannelKind::Net)?;
            let wire = Wire {
                target: vif.bridge.clone(),
                mac: vif.mac,
                ..Wire::new(ChannelKind::Net, domid, server)
            };
            let channel = self.connect(&wire)?;
            let _as_many = vifs.push(DeviceChannel { device: vif.index, channel });
        }
        let toolstack = self.toolstack.ok_or_else(|| BuildError::Request("there is no toolstack".into()))?;
        self.connect(&Wire::new(ChannelKind::Guest, toolstack, domid))?;
        info.channels = self.channel_list(domid);
        if let Some(guest) = &mut info.guest {
            guest.disks = disks;
            guest.vifs = vifs;
        }
        Ok(info)
    }

    /// Tells the other ends of a guest's channels to use them; the channels that have to be answered for.
    fn ask_to_attach(&mut self, domid: u32) -> BTreeSet<u32> {
        let mut waiting = BTreeSet::new();
        for id in self.domains.get(&domid).map_or(&[][..], |domain| &domain.channels) {
            let Some(channel) = self.channels.get(id) else { continue };
            let peer = channel.peer_of(domid);
            if peer != ROOT {
                let attach = supervise::Request::Attach(channel.info_for(peer).clone());
                self.outputs.push_back(Output::Supervise(peer, attach));
                waiting.insert(*id);
            }
        }
        waiting
    }

    /// Takes back all that a domain had, its channels included. Nobody may use them any more.
    pub fn remove_domain(&mut self, domid: u32) {
        // Init's own end goes first, with everything that is still to be said through it.
        self.outputs.retain(|output| match output {
            Output::Supervise(to, _) => *to != domid,
            Output::ConnectSupervise(info) => info.peer != domid,
            _ => true,
        });
        self.outputs.push_front(Output::Disconnect(domid));
        let channels = self.domains.get(&domid).map(|domain| domain.channels.clone()).unwrap_or_default();
        for id in channels {
            self.disconnect(id);
        }
        if let Some(domain) = self.domains.remove(&domid) {
            domain.dismantle(&mut self.resources);
        }
    }
}
