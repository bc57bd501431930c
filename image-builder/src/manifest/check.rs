//! What a manifest may not say.
//!
//! Least privilege is checked, not hoped for: a domain gets nothing that its program has no use for, no
//! two domains get the same device, port or line, and what guards the machine itself goes to nobody.

use std::collections::BTreeMap;

use proto::channel::ChannelKind;
use proto::manifest::is_station;
use toml::Spanned;

use super::Problem;
use super::source::{Channel, Manifest, Service, kind_name, parse_kind, parse_mac};
use crate::programs::{INIT, Program, Use, VMM};

/// Highest priority.
const PRIORITY_MAX: u64 = 63;
/// Largest heap: 1 GiB.
const HEAP_KIB_MAX: u64 = 1 << 20;
/// Largest stack: 1 MiB.
const STACK_KIB_MAX: u64 = 1024;
/// Largest memory for DMA of one function: 16 MiB.
const DMA_KIB_MAX: u64 = 16 * 1024;
/// `proto::boot::DeviceInfo::vectors` holds so many.
const VECTORS_MAX: u64 = 8;

/// Ports that belong to whoever guards the machine: first, last, what.
const RESERVED_PORTS: [(u64, u64, &str); 5] = [
    (0x20, 0x21, "the interrupt controllers"),
    (0xa0, 0xa1, "the interrupt controllers"),
    (0x40, 0x43, "the kernel's timer calibration"),
    (0x61, 0x61, "the kernel's timer calibration"),
    (0xcf8, 0xcff, "init, which guards PCI configuration space"),
];

/// All problems of a manifest, in the order of the text as far as possible.
pub fn check(manifest: &Manifest, programs: &[Program]) -> Vec<Problem> {
    let mut check = Check { programs, problems: Vec::new() };
    check.names(manifest);
    for service in &manifest.services {
        check.service(service, manifest);
    }
    check.sharing(manifest);
    check.order(manifest);
    check.channels(manifest);
    check.completeness(manifest);
    let vmm = &manifest.vmm;
    check.range("priority", &vmm.priority, 0, PRIORITY_MAX);
    check.range("heap-kib", &vmm.heap_kib, 64, HEAP_KIB_MAX);
    check.range("decompression-kib", &vmm.decompression_kib, 0, HEAP_KIB_MAX);
    check.range("stack-kib", &vmm.stack_kib, 8, STACK_KIB_MAX);
    check.problems.sort_by_key(|p| p.span.start);
    check.problems
}

struct Check<'a> {
    programs: &'a [Program],
    problems: Vec<Problem>,
}

impl Check<'_> {
    fn say<T>(&mut self, at: &Spanned<T>, message: impl Into<String>) {
        self.problems.push(Problem { message: message.into(), span: at.span() });
    }

    fn range(&mut self, what: &str, value: &Spanned<u64>, min: u64, max: u64) {
        let n = *value.get_ref();
        if !(min..=max).contains(&n) {
            self.say(value, format!("{what} is {n}; it must be from {min} to {max}"));
        }
    }

    fn length<T>(&mut self, what: &str, list: &[Spanned<T>], max: usize) {
        if let Some(extra) = list.get(max) {
            self.say(extra, format!("at most {max} {what} per service"));
        }
    }

    fn names(&mut self, manifest: &Manifest) {
        if let Some(extra) = manifest.services.get(24) {
            self.say(&extra.name, "at most 24 services");
        }
        let mut seen = BTreeMap::new();
        for Service { name, .. } in &manifest.services {
            let text = name.get_ref().as_str();
            let is_word = text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
            if text.is_empty() || text.len() > 32 || !is_word {
                self.say(name, "a name is 1 to 32 lower-case letters, digits and `-`");
            } else if [INIT, VMM, "kernel"].contains(&text) {
                self.say(name, format!("`{text}` is not listed: it is part of every system"));
            }
            if seen.insert(text, ()).is_some() {
                self.say(name, format!("there are two services called `{text}`"));
            }
        }
    }

    fn service(&mut self, service: &Service, manifest: &Manifest) {
        let name = service.name.get_ref();
        self.range("priority", &service.priority, 0, PRIORITY_MAX);
        self.range("heap-kib", &service.heap_kib, 16, HEAP_KIB_MAX);
        if let Some(weight) = &service.weight {
            self.range("weight", weight, 1, 4096);
        }
        if let Some(stack) = &service.stack_kib {
            self.range("stack-kib", stack, 8, STACK_KIB_MAX);
        }
        if let Some(options) = service.options.as_ref().filter(|o| o.get_ref().len() > 256) {
            self.say(options, "options are longer than 256 bytes");
        }
        if let Some(file) = service.file.as_ref().filter(|f| f.get_ref().len() > 64) {
            self.say(file, "a file's name is at most 64 bytes");
        }
        self.length("services in `after`", &service.after, 8);
        self.length("port ranges", &service.ports, 4);
        self.length("interrupt lines", &service.lines, 4);
        self.length("device entries", &service.devices, 4);
        self.length("kinds in `serves`", &service.serves, 4);
        for ports in &service.ports {
            let (first, count) = (ports.get_ref().first, ports.get_ref().count);
            let last = first.checked_add(count).filter(|end| count > 0 && *end <= 0x1_0000);
            let Some(last) = last.map(|end| end - 1) else {
                self.say(ports, format!("{count} ports from {first:#x} on: ports are numbered 0 to 0xffff"));
                continue;
            };
            for (reserved, end, whose) in RESERVED_PORTS {
                if first <= end && reserved <= last {
                    self.say(ports, format!("ports {reserved:#x} to {end:#x} belong to {whose}"));
                }
            }
        }
        for line in &service.lines {
            self.range("an interrupt line", line, 1, 255);
        }
        for device in &service.devices {
            self.device(device);
        }
        let Some(program) = self.programs.iter().find(|p| p.name == service.program()) else {
            let at = service.program.as_ref().unwrap_or(&service.name);
            let known: Vec<_> = self.programs.iter().map(|p| p.name.as_str()).collect();
            self.say(at, format!("no program is called `{}`; there are {}", at.get_ref(), known.join(", ")));
            return;
        };
        self.uses(service, &program.clone());
        let is_backend = service.serves.iter().any(|s| !s.get_ref().is_empty());
        let (own, vmm) = (*service.priority.get_ref(), *manifest.vmm.priority.get_ref());
        if is_backend && own <= vmm {
            self.say(
                &service.priority,
                format!(
                    "`{name}` serves guests, so its priority must be above the VMMs' ({vmm}): a guest that is \
                     always busy would keep it from running"
                ),
            );
        }
    }

    fn device(&mut self, device: &Spanned<super::Device>) {
        let d = device.get_ref();
        if d.vendor == 0 || d.vendor >= 0xffff {
            self.say(device, format!("{:#x} is no PCI vendor", d.vendor));
        }
        if d.devices.is_empty() || d.devices.len() > 4 {
            self.say(device, "a device entry lists 1 to 4 device numbers");
        }
        if d.devices.iter().any(|id| *id > 0xffff) {
            self.say(device, "a PCI device number is at most 0xffff");
        }
        if d.dma_kib == 0 || d.dma_kib > DMA_KIB_MAX || !d.dma_kib.is_multiple_of(4) {
            self.say(
                device,
                format!("dma-kib is {}; it must be a multiple of 4, 4 to {DMA_KIB_MAX}", d.dma_kib),
            );
        }
        if d.vectors == 0 || d.vectors > VECTORS_MAX {
            self.say(device, format!("vectors is {}; it must be from 1 to {VECTORS_MAX}", d.vectors));
        }
    }

    /// A domain gets nothing that its program has no use for.
    fn uses(&mut self, service: &Service, program: &Program) {
        let name = service.name.get_ref();
        let useless =
            |what: &str| format!("`{name}` has no use for {what}: its program is `{}`", program.name);
        if let Some(at) = service.ports.first().filter(|_| !program.has_use_for(Use::Ports)) {
            self.say(at, useless("I/O ports"));
        }
        if let Some(at) = service.lines.first().filter(|_| !program.has_use_for(Use::Lines)) {
            self.say(at, useless("an interrupt line"));
        }
        if let Some(at) = service.devices.first().filter(|_| !program.has_use_for(Use::Devices)) {
            self.say(at, useless("a PCI device"));
        }
        if let Some(at) = service.file.as_ref().filter(|_| !program.has_use_for(Use::File)) {
            self.say(at, useless("a file"));
        }
        for serves in &service.serves {
            match parse_kind(serves.get_ref()) {
                None => self.say(serves, format!("no channel kind is called `{}`", serves.get_ref())),
                Some(kind) if !program.has_use_for(Use::Serves(kind)) => {
                    self.say(
                        serves,
                        format!(
                            "`{name}` cannot serve {}: its program is `{}`",
                            serves.get_ref(),
                            program.name
                        ),
                    );
                }
                Some(_) => {}
            }
        }
    }

    /// No two domains get the same device, port or line, and a kind of channel has one server.
    fn sharing(&mut self, manifest: &Manifest) {
        let mut ports: Vec<(u64, u64, &str)> = Vec::new();
        let mut lines: BTreeMap<u64, &str> = BTreeMap::new();
        let mut devices: BTreeMap<(u64, u64), &str> = BTreeMap::new();
        let mut serves: BTreeMap<&str, &str> = BTreeMap::new();
        for service in &manifest.services {
            let name = service.name.get_ref().as_str();
            for range in &service.ports {
                let (first, end) =
                    (range.get_ref().first, range.get_ref().first.saturating_add(range.get_ref().count));
                if let Some((_, _, other)) = ports.iter().find(|(f, e, _)| first < *e && *f < end) {
                    self.say(range, format!("`{other}` has some of these ports already"));
                }
                ports.push((first, end, name));
            }
            for line in &service.lines {
                if let Some(other) = lines.insert(*line.get_ref(), name) {
                    self.say(line, format!("`{other}` has interrupt line {} already", line.get_ref()));
                }
            }
            for device in &service.devices {
                let vendor = device.get_ref().vendor;
                for id in &device.get_ref().devices {
                    if let Some(other) = devices.insert((vendor, *id), name) {
                        self.say(device, format!("`{other}` has PCI devices {vendor:04x}:{id:04x} already"));
                    }
                }
            }
            for kind in &service.serves {
                if let Some(other) = serves.insert(kind.get_ref(), name) {
                    self.say(kind, format!("`{other}` serves {} already", kind.get_ref()));
                }
            }
        }
    }

    /// `after` names services and has no cycle.
    fn order(&mut self, manifest: &Manifest) {
        let index = |name: &str| manifest.services.iter().position(|s| s.name.get_ref() == name);
        for service in &manifest.services {
            for after in &service.after {
                if index(after.get_ref()).is_none() {
                    self.say(after, format!("no service is called `{}`", after.get_ref()));
                }
            }
        }
        // What can never start: take away, again and again, whatever waits for nothing that is left.
        let mut left: Vec<&Service> = manifest.services.iter().collect();
        loop {
            let names: Vec<&str> = left.iter().map(|s| s.name.get_ref().as_str()).collect();
            let before = left.len();
            left.retain(|s| s.after.iter().any(|a| names.contains(&a.get_ref().as_str())));
            if left.len() == before {
                break;
            }
        }
        if let Some((at, cycle)) = left.first().and_then(|first| cycle_from(first, &left)) {
            self.say(at, format!("these services wait for each other: {}", cycle.join(" -> ")));
        }
    }

    fn channels(&mut self, manifest: &Manifest) {
        if let Some(extra) = manifest.channels.get(48) {
            self.say(&extra.kind, "at most 48 channels");
        }
        let mut seen = Vec::new();
        let mut macs = BTreeMap::new();
        for channel in &manifest.channels {
            let Channel { kind, client, server, target, mac } = channel;
            if let Some(target) = target.as_ref().filter(|t| t.get_ref().len() > 64) {
                self.say(target, "a target is at most 64 bytes");
            }
            if client.get_ref() == server.get_ref() {
                self.say(server, format!("both ends of the channel are `{}`", server.get_ref()));
            }
            // A client may have several interfaces; what keeps them apart is their addresses.
            let id = (kind.get_ref(), client.get_ref(), server.get_ref(), mac.as_ref().map(Spanned::get_ref));
            if seen.contains(&id) {
                self.say(kind, "this channel is listed twice");
            }
            seen.push(id);
            let Some(known) = parse_kind(kind.get_ref()) else {
                self.say(kind, format!("no channel kind is called `{}`", kind.get_ref()));
                continue;
            };
            self.mac(channel, known, &mut macs);
            match known {
                ChannelKind::Supervise | ChannelKind::Log => {
                    self.say(
                        kind,
                        format!("every service has its {} channel without being listed", kind.get_ref()),
                    );
                    continue;
                }
                ChannelKind::Guest | ChannelKind::GuestConsole | ChannelKind::Blk => {
                    self.say(kind, format!("{} channels are made with the guest", kind.get_ref()));
                    continue;
                }
                ChannelKind::Operator | ChannelKind::Xenstore | ChannelKind::Builder | ChannelKind::Net => {}
            }
            if let Some(program) = self.end(client, manifest)
                && !program.has_use_for(Use::Client(known))
            {
                let name = client.get_ref();
                self.say(client, format!("`{name}` has no use for a {} channel", kind.get_ref()));
            }
            if known == ChannelKind::Builder {
                if server.get_ref() != INIT {
                    self.say(server, "only init builds domains");
                }
            } else if let Some(program) = self.end(server, manifest)
                && !program.has_use_for(Use::Server(known))
            {
                let name = server.get_ref();
                self.say(server, format!("`{name}` cannot serve {} channels", kind.get_ref()));
            }
        }
    }

    /// An interface has an address that no other one has; other channels have none.
    fn mac<'a>(&mut self, channel: &'a Channel, kind: ChannelKind, macs: &mut BTreeMap<[u8; 6], &'a str>) {
        let client = channel.client.get_ref().as_str();
        let Some(mac) = &channel.mac else {
            if kind == ChannelKind::Net {
                let message = format!(
                    "the interface of `{client}` needs an address of its own: add mac = \"02:00:00:00:00:01\""
                );
                self.say(&channel.kind, message);
            }
            return;
        };
        let text = mac.get_ref();
        if kind != ChannelKind::Net {
            self.say(mac, "only a net channel has a mac: remove it");
            return;
        }
        let Some(address) = parse_mac(text) else {
            let message = format!(
                "`{text}` is no MAC address: write six bytes in hexadecimal, as in 02:00:00:00:00:01"
            );
            self.say(mac, message);
            return;
        };
        if !is_station(address) {
            let message = format!(
                "`{text}` is not an interface's address: its first byte must be even, and not all zero"
            );
            self.say(mac, message);
        } else if let Some(other) = macs.insert(address, client) {
            self.say(mac, format!("`{other}` has the address {text} already: give each interface its own"));
        }
    }

    /// The program at an end of a channel; says so when there is none.
    fn end(&mut self, at: &Spanned<String>, manifest: &Manifest) -> Option<Program> {
        let service = manifest.services.iter().find(|s| s.name.get_ref() == at.get_ref());
        if service.is_none() {
            self.say(at, format!("no service is called `{}`", at.get_ref()));
        }
        let program = service?.program();
        self.programs.iter().find(|p| p.name == program).cloned()
    }

    /// A service has the channels without which it cannot work.
    fn completeness(&mut self, manifest: &Manifest) {
        for service in &manifest.services {
            let program = self.programs.iter().find(|p| p.name == service.program());
            let uses = program.and_then(|p| p.uses.clone()).unwrap_or_default();
            for need in uses {
                let Use::Client(kind) = need else { continue };
                let is_wired = manifest.channels.iter().any(|c| {
                    c.client.get_ref() == service.name.get_ref() && c.kind.get_ref() == kind_name(kind)
                });
                // A console without a toolstack is a log, which is of use.
                let is_optional = kind == ChannelKind::Operator;
                if !is_wired && !is_optional {
                    self.say(
                        &service.name,
                        format!(
                            "`{}` cannot work without a {} channel: add a [[channel]] with it as the client",
                            service.name.get_ref(),
                            kind_name(kind)
                        ),
                    );
                }
            }
        }
    }
}

/// Follows `after` inside of `left` until a service comes twice.
fn cycle_from<'a>(first: &'a Service, left: &[&'a Service]) -> Option<(&'a Spanned<String>, Vec<&'a str>)> {
    let mut path = vec![first.name.get_ref().as_str()];
    let mut service = first;
    loop {
        let (at, next) = service.after.iter().find_map(|after| {
            left.iter().find(|s| s.name.get_ref() == after.get_ref()).map(|next| (after, *next))
        })?;
        let name = next.name.get_ref().as_str();
        path.push(name);
        if let Some(start) = path.iter().position(|n| *n == name).filter(|start| start + 1 < path.len()) {
            return Some((at, path.split_off(start)));
        }
        service = next;
    }
}
