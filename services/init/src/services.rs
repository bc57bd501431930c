//! The services of the manifest: their order, and building them.
//!
//! All domains are made and wired first; each starts as soon as those that it depends on said that they
//! are ready, so independent ones start in parallel.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use proto::boot::DomainInfo;
use proto::channel::{ChannelKind, Region};
use proto::manifest::{Manifest, Service, is_station};
use proto::text::List;

use crate::devices;
use crate::domain::{Domain, Kind, SUPERVISE_SIGNAL, ServiceState, TIMER_SIGNAL};
use crate::error::BuildError;
use crate::kernel::Kernel;
use crate::pci::{self, ConfigSpace, Function};
use crate::system::{Output, ROOT, System};
use crate::wiring::Wire;

/// Name by which the manifest's wires call init.
pub const ROOT_NAME: &str = "init";
/// Capability slots of a service that serves guests, and of one that does not.
const SLOTS: (u64, u64) = (1024, 128);

/// Checks what image-builder should have checked: the manifest is data too.
///
/// # Errors
/// What is wrong, by name.
pub fn check(manifest: &Manifest) -> Result<(), String> {
    let services = &manifest.services;
    let number = |name: &str| services.iter().position(|service| &*service.name == name);
    for (index, service) in services.iter().enumerate() {
        if number(&service.name) != Some(index) || &*service.name == ROOT_NAME {
            return Err(format!("two services are called {:?}", service.name));
        }
        if let Some(missing) = service.after.iter().find(|name| number(name).is_none()) {
            return Err(format!("{} is to start after {missing:?}, which is not there", service.name));
        }
    }
    // Start in the thought: every round has to find somebody.
    let mut ready: Vec<&str> = Vec::new();
    while ready.len() < services.len() {
        let waits = |service: &&Service| !ready.contains(&&*service.name);
        let next =
            services.iter().filter(waits).find(|s| s.after.iter().all(|name| ready.contains(&&**name)));
        match next {
            Some(service) => ready.push(&service.name),
            None => return Err("services wait for each other in a circle".into()),
        }
    }
    for wire in manifest.channels.iter() {
        let is_known = |name: &str| name == ROOT_NAME || number(name).is_some();
        if !is_known(&wire.client) || !is_known(&wire.server) || wire.client == wire.server {
            return Err(format!("a channel joins {:?} and {:?}", wire.client, wire.server));
        }
        if (&*wire.server == ROOT_NAME) != (wire.kind == ChannelKind::Builder) || &*wire.client == ROOT_NAME {
            return Err(format!("{:?} cannot be joined to init as it is", wire.client));
        }
        if wire.kind == ChannelKind::Net {
            if !is_station(wire.mac) {
                return Err(format!(
                    "the net channel of {:?} has no MAC address of an interface",
                    wire.client
                ));
            }
            let others = manifest.channels.iter().filter(|w| w.kind == ChannelKind::Net && w.mac == wire.mac);
            if others.count() > 1 {
                return Err(format!("the MAC address of {:?} is another interface's, too", wire.client));
            }
        }
    }
    Ok(())
}

/// Domain ID of a service.
pub fn domid(index: usize) -> u32 {
    index as u32 + 1
}

/// What a service is given beside its channels.
#[derive(Debug, Default)]
struct Gifts {
    heap: Region,
    file: Region,
    devices: List<proto::boot::DeviceInfo, 32>,
    lines: List<proto::boot::LineInfo, 4>,
}

impl<K: Kernel, C: ConfigSpace> System<K, C> {
    /// Builds and wires every service and starts those that wait for nobody.
    ///
    /// # Errors
    /// Which service, and why: without its services the system is of no use.
    pub fn build_services(&mut self) -> Result<(), String> {
        let manifest = self.manifest.clone();
        check(&manifest)?;
        let functions = pci::scan(&mut self.config);
        let mut infos = Vec::new();
        for (index, service) in manifest.services.iter().enumerate() {
            let gifts = self.build_service(index, service, &functions);
            infos.push(gifts.map_err(|error| format!("{}: {error}", service.name))?);
        }
        self.wire_services(&manifest).map_err(|error| format!("{error}"))?;
        for (index, (service, gifts)) in manifest.services.iter().zip(infos).enumerate() {
            let info = self.service_info(domid(index), service, gifts);
            self.infos.push(info);
        }
        self.start_services();
        Ok(())
    }

    #[inline(never)]
    fn build_service(
        &mut self,
        index: usize,
        service: &Service,
        functions: &[Function],
    ) -> Result<Box<Gifts>, BuildError> {
        let id = domid(index);
        let slots = if service.serves.is_empty() { SLOTS.1 } else { SLOTS.0 };
        let kind = Kind::Service(index, ServiceState::Built);
        let mut domain = Domain::new(id, service.name.clone(), kind, slots as u32);
        let gifts = self.furnish_service(&mut domain, service, functions, slots);
        // Recorded in any case: what it has can be taken back.
        self.domains.insert(id, domain);
        gifts
    }

    #[inline(never)]
    fn furnish_service(
        &mut self,
        domain: &mut Domain,
        service: &Service,
        functions: &[Function],
        slots: u64,
    ) -> Result<Box<Gifts>, BuildError> {
        let resources = &mut self.resources;
        let mut gifts = Box::<Gifts>::default();
        domain.create(resources, slots, self.fault_event)?;
        let sizes = (u64::from(service.stack_kib), u64::from(service.heap_kib));
        gifts.heap = domain.load(resources, &self.bundle, &service.program, sizes)?;
        for &ports in service.ports.iter() {
            domain.enable_ports(resources, ports)?;
        }
        for &line in service.lines.iter() {
            let signals = domain.take_signal();
            let irq = domain.bind_line(resources, u64::from(line), signals)?;
            let slot = domain.slot()?;
            let (target, acknowledge) = (domain.space.slot, proto::abi::rights::READ);
            let derived = resources.kernel.cap_derive(irq, target, slot, 0, 1, acknowledge);
            derived.map_err(|error| BuildError::Kernel("install an interrupt", error))?;
            let _fits = gifts.lines.push(proto::boot::LineInfo { slot, line: u32::from(line), signals });
        }
        for entry in service.devices.iter() {
            for function in functions.iter().filter(|function| devices::matches(entry, function)) {
                let space = &mut self.device_space;
                let given = devices::give(resources, &mut self.config, space, domain, function, entry)?;
                if gifts.devices.push(given).is_err() {
                    log::warn!("{}: more than 32 devices match, the others are not used", domain.name);
                    break;
                }
            }
        }
        if !service.file.is_empty() {
            // A bundle without the file is one without content for it.
            if let Some(file) = self.bundle.file(&service.file) {
                gifts.file = domain.map_file(resources, &self.bundle, file)?;
            }
        }
        Ok(gifts)
    }

    /// Supervise and log channels for all, then the manifest's.
    #[inline(never)]
    fn wire_services(&mut self, manifest: &Manifest) -> Result<(), BuildError> {
        let number = |name: &str| manifest.services.iter().position(|s| &*s.name == name).map_or(ROOT, domid);
        let log = self.server_of(ChannelKind::Log);
        if let Some(log) = log {
            let mut wire = Wire::new(ChannelKind::Log, ROOT, log);
            wire.a.1 = crate::system::supervise_signal(log);
            let id = self.connect(&wire)?;
            self.announce(id, Output::ConnectLog);
        }
        for index in 0..manifest.services.len() {
            let id = domid(index);
            self.wire_supervision(id)?;
            // The log's own keeper has no use for a channel to itself.
            if let Some(log) = log.filter(|log| *log != id) {
                self.connect(&Wire::new(ChannelKind::Log, id, log))?;
            }
        }
        for wire in manifest.channels.iter() {
            let mut channel = Wire::new(wire.kind, number(&wire.client), number(&wire.server));
            channel.target = wire.target.clone();
            channel.mac = wire.mac;
            if wire.kind == ChannelKind::Builder {
                channel.b.1 = crate::system::BUILDER_SIGNAL;
                self.toolstack = Some(channel.a.0);
            }
            let id = self.connect(&channel)?;
            if wire.kind == ChannelKind::Builder {
                self.announce(id, Output::ConnectBuilder);
            }
        }
        Ok(())
    }

    /// Joins a domain to init's supervision.
    ///
    /// # Errors
    /// No memory, or the kernel's.
    pub fn wire_supervision(&mut self, id: u32) -> Result<u32, BuildError> {
        let mut wire = Wire::new(ChannelKind::Supervise, ROOT, id);
        wire.a.1 = crate::system::supervise_signal(id);
        wire.b.1 = SUPERVISE_SIGNAL;
        let channel = self.connect(&wire)?;
        self.announce(channel, Output::ConnectSupervise);
        Ok(channel)
    }

    #[inline(never)]
    fn service_info(&self, id: u32, service: &Service, gifts: Box<Gifts>) -> Box<DomainInfo> {
        Box::new(DomainInfo {
            channels: self.channel_list(id),
            devices: gifts.devices,
            ports: service.ports.clone(),
            lines: gifts.lines,
            options: service.options.clone(),
            file: gifts.file,
            ..self.plain_info(id, service.name.clone(), gifts.heap)
        })
    }

    /// What every domain is told.
    #[inline(never)]
    pub fn plain_info(&self, id: u32, name: proto::text::Text<32>, heap: Region) -> DomainInfo {
        DomainInfo {
            domid: id,
            name,
            event: crate::domain::OWN_EVENT,
            timer_signals: TIMER_SIGNAL,
            heap,
            tsc_khz: self.tsc_khz,
            wall_clock_base_ns: self.wall_clock_base_ns,
            channels: List::new(),
            devices: List::new(),
            ports: List::new(),
            lines: List::new(),
            options: proto::text::Text::new(),
            file: Region::default(),
            guest: None,
        }
    }

    /// What a domain is told of its channels.
    pub fn channel_list(&self, id: u32) -> List<proto::channel::ChannelInfo, 28> {
        let mut list = List::new();
        for channel in self.domains.get(&id).map_or(&[][..], |domain| &domain.channels) {
            let Some(channel) = self.channels.get(channel) else { continue };
            if list.push(channel.info_for(id).clone()).is_err() {
                log::warn!("domain {id}: more channels than its start information holds");
                break;
            }
        }
        list
    }

    fn state(&self, name: &str) -> Option<ServiceState> {
        let index = self.manifest.services.iter().position(|service| &*service.name == name)?;
        match self.domains.get(&domid(index))?.kind {
            Kind::Service(_, state) => Some(state),
            _ => None,
        }
    }

    /// Starts every service whose predecessors are ready.
    pub fn start_services(&mut self) {
        for index in 0..self.manifest.services.len() {
            let Some(service) = self.manifest.services.get(index).cloned() else { return };
            let is_due = self.state(&service.name) == Some(ServiceState::Built)
                && service.after.iter().all(|name| self.state(name) == Some(ServiceState::Ready));
            let (Some(domain), Some(info)) = (self.domains.get_mut(&domid(index)), self.infos.get(index))
            else {
                continue;
            };
            if !is_due {
                continue;
            }
            let started = domain.start(&mut self.resources, info, (service.priority, service.weight));
            let state = match started {
                Ok(()) => ServiceState::Started,
                Err(error) => {
                    log::error!("{}: {error}", service.name);
                    ServiceState::Dead
                }
            };
            domain.kind = Kind::Service(index, state);
        }
    }

    /// The service that serves a kind of channel.
    pub fn server_of(&self, kind: ChannelKind) -> Option<u32> {
        self.manifest.services.iter().position(|service| service.serves.contains(&kind)).map(domid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{manifest, service};
    use proto::manifest::Wire as ManifestWire;
    use proto::text::Text;

    #[test]
    fn manifests_that_cannot_work_are_refused_by_name() {
        assert_eq!(check(&manifest()), Ok(()));
        let refused = |change: fn(&mut Vec<Service>)| {
            let mut services: Vec<_> = manifest().services.to_vec();
            change(&mut services);
            let mut list = List::new();
            services.into_iter().for_each(|s| list.push(s).unwrap());
            check(&Manifest { services: list, ..manifest() }).unwrap_err()
        };
        assert!(refused(|s| s.push(service("console"))).contains("two services"));
        assert!(refused(|s| s.push(service("init"))).contains("two services"));
        assert!(refused(|s| s[0].after.push(Text::truncated("nobody")).unwrap()).contains("nobody"));
        assert!(refused(|s| s[0].after.push(Text::truncated("toolstack")).unwrap()).contains("circle"));
        assert!(refused(|s| s[0].after.push(Text::truncated("console")).unwrap()).contains("circle"));
        let wire = |kind, client: &str, server: &str| {
            let mut bad = manifest();
            let target = Text::new();
            let (client, server) = (Text::truncated(client), Text::truncated(server));
            bad.channels.push(ManifestWire { kind, client, server, target, mac: [0; 6] }).unwrap();
            check(&bad).unwrap_err()
        };
        assert!(wire(ChannelKind::Blk, "a", "console").contains("joins"));
        assert!(wire(ChannelKind::Blk, "console", "console").contains("joins"));
        assert!(wire(ChannelKind::Blk, "console", "init").contains("cannot be joined"));
        assert!(wire(ChannelKind::Builder, "toolstack", "console").contains("cannot be joined"));
    }

    #[test]
    fn the_interfaces_of_services_have_addresses_of_their_own() {
        let with = |macs: &[[u8; 6]]| {
            let mut manifest = manifest();
            for mac in macs {
                let (client, server) = (Text::truncated("toolstack"), Text::truncated("netback"));
                let (kind, target) = (ChannelKind::Net, Text::new());
                manifest.channels.push(ManifestWire { kind, client, server, target, mac: *mac }).unwrap();
            }
            check(&manifest)
        };
        let (one, two) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        assert_eq!(with(&[one, two]), Ok(()));
        assert!(with(&[one, two, one]).unwrap_err().contains("is another interface's"));
        for bad in [[0; 6], [0xff; 6], [3, 0, 0, 0, 0, 1]] {
            assert!(with(&[bad]).unwrap_err().contains("no MAC address"));
        }
    }
}
