//! Event channels: the ports, what each is bound to, and how a pending one reaches its vCPU.
//!
//! Two ABIs tell the guest which ports are pending: the 2-level one (bits in shared_info, this file and
//! `layout.rs`), with which every guest begins, and FIFO (`fifo.rs`), once the guest has asked for it.
//! Both live in frames that the guest writes with locked instructions: they are only changed atomically
//! here. A port that is raised while masked stays pending until the guest unmasks it.
//! Sources: Xen public/event_channel.h, public/xen.h; common/event_channel.c for the errors and their order.

mod fifo;
mod hold;
mod layout;
mod upcall;

use alloc::vec;
use alloc::vec::Vec;
use core::cell::Cell;

use proto::counters;

use crate::errno::Errno;
use crate::machine::device;
use crate::memory::Page;

pub use fifo::LINK_BITS;
use fifo::{Fifo, Place};
pub use layout::{Layout, TIME};
use layout::{PENDING, VCPU_INFO_LEN, bit, word};
use upcall::VcpuInfo;

/// Number of an event channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port(pub u32);

/// Ports of a guest, whatever the ABI could name: as many as the 2-level one (Xen: `max_event_channels`).
pub const PORTS_MAX: u32 = 4096;
/// Ports come into being in groups of this many; those of a group that are not bound count as closed,
/// those beyond as no ports (Xen: EVTCHNS_PER_BUCKET).
const PORTS_PER_GROUP: usize = 64;
/// The VMM's devices that a port may lead to: bits of [`Events::kicks`].
pub const DEVICES_MAX: u8 = 64;

/// The guest's own domain, as a port's other end.
pub const DOMID_SELF: u16 = 0x7ff0;
/// The domain that the VMM's devices stand for.
pub const BACKEND: u16 = 0;

/// VIRQ of the vCPU's timer.
pub const VIRQ_TIMER: u32 = 0;
/// VIRQs of a guest.
const VIRQS: u32 = 24;
/// Those that each vCPU has of its own: timer, debug, profiler and performance counters. All others belong
/// to the guest or the machine: they are bound on vCPU 0 and may be moved from there.
const VIRQS_PER_VCPU: u32 = 1 << VIRQ_TIMER | 1 << 1 | 1 << 7 | 1 << 13;

/// What a port is bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Binding {
    Free,
    /// Allocated by the guest for a domain that has not bound it yet.
    Unbound(u16),
    /// The other end is a device of the VMM.
    Device(u8),
    /// The other end is a port of the guest's own.
    Peer(u16),
    Virq(u8),
    Ipi,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    binding: Binding,
    vcpu: u8,
    /// It is pending, but the guest's memory has no place for it yet.
    is_kept: bool,
    place: Place,
}

impl Entry {
    const FREE: Self = Self { binding: Binding::Free, vcpu: 0, is_kept: false, place: Place::NEW };

    #[inline]
    fn is_bound(&self) -> bool {
        self.binding != Binding::Free
    }
}

/// A port's other end, as EVTCHNOP_status reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// There is none.
    Closed,
    /// Nobody yet; this domain may bind it.
    Unbound(u16),
    /// A port of a domain.
    Interdomain(u16, Port),
    /// This VIRQ.
    Virq(u32),
    /// The guest itself.
    Ipi,
}

/// All event channels of the guest.
#[derive(Debug)]
pub struct Events {
    /// Port 0 is never used.
    ports: Vec<Entry>,
    shared_info: Page,
    layout: Layout,
    /// Ports below this are raised by the 2-level ABI; 0 with the other one.
    two_level: u32,
    fifo: Option<Fifo>,
    vcpus: Vec<VcpuInfo>,
    /// Devices whose port the guest notified, by number; whoever serves a device takes its bit.
    pub kicks: u64,
    /// See [`Self::news`].
    news: Cell<u32>,
    pollers: Cell<u32>,
    /// Devices that hold work back until [`Self::held_until`].
    held: u64,
    /// Those of them that do so only until the guest waits.
    held_awake: u64,
    /// The TSC at which all devices that hold work back are to be served; 0: there are none.
    pub held_until: u64,
}

impl Events {
    /// No ports, all vcpu_infos in `shared_info`, the 64-bit layout.
    pub fn new(shared_info: Page, vcpus: usize) -> Self {
        let info = |n| VcpuInfo { page: shared_info, offset: n * VCPU_INFO_LEN, is_registered: false };
        Self {
            ports: vec![Entry::FREE; PORTS_PER_GROUP],
            shared_info,
            layout: Layout::BITS_64,
            two_level: Layout::BITS_64.ports,
            fifo: None,
            vcpus: (0..vcpus).map(info).collect(),
            kicks: 0,
            news: Cell::new(0),
            pollers: Cell::new(0),
            held: 0,
            held_awake: 0,
            held_until: 0,
        }
    }

    /// The entry of a bound port.
    fn entry(&mut self, port: Port) -> Result<&mut Entry, Errno> {
        match self.ports.get_mut(port.0 as usize) {
            Some(entry) if entry.is_bound() => Ok(entry),
            _ => Err(Errno::Invalid),
        }
    }

    /// Whether the port exists, bound or not.
    pub fn is_port(&self, port: Port) -> bool {
        (port.0 as usize) < self.ports.len()
    }

    fn has_vcpu(&self, vcpu: u32) -> Result<u8, Errno> {
        if (vcpu as usize) < self.vcpus.len() { Ok(vcpu as u8) } else { Err(Errno::NoEntry) }
    }

    /// The lowest free port.
    fn free_port(&mut self) -> Result<Port, Errno> {
        let limit = if self.fifo.is_some() { PORTS_MAX } else { self.two_level };
        let fifo = self.fifo.as_ref();
        // A port that the guest has still in a queue cannot begin a new life.
        let is_free = |&(port, entry): &(usize, &Entry)| {
            !entry.is_bound() && !fifo.is_some_and(|fifo| fifo.is_linked(port as u32))
        };
        let found = self.ports.iter().enumerate().skip(1).find(is_free).map_or(self.ports.len(), |(n, _)| n);
        if found >= limit as usize {
            return Err(Errno::NoSpace);
        }
        if found == self.ports.len() {
            self.ports.try_reserve(PORTS_PER_GROUP).map_err(|_| Errno::NoMemory)?;
            self.ports.resize(found + PORTS_PER_GROUP, Entry::FREE);
        }
        Ok(Port(found as u32))
    }

    fn bind(&mut self, port: Port, binding: Binding, vcpu: u8) {
        self.clear_pending(port);
        if let Some(entry) = self.ports.get_mut(port.0 as usize) {
            // The queue on which the guest had it last stays known.
            let place = entry.place.with_default_priority();
            *entry = Entry { binding, vcpu, is_kept: false, place };
        }
    }

    /// Takes the lowest free port.
    fn allocate(&mut self, binding: Binding, vcpu: u8) -> Result<Port, Errno> {
        let port = self.free_port()?;
        self.bind(port, binding, vcpu);
        Ok(port)
    }

    fn clear_pending(&mut self, port: Port) {
        match &self.fifo {
            Some(fifo) => fifo.clear_pending(port.0),
            None if port.0 < self.two_level => {
                self.shared_info.and_u64(PENDING + word(port.0), !bit(port.0));
            }
            None => {}
        }
    }

    /// A port that leads to a device from the start (console, store).
    ///
    /// # Errors
    /// [`Errno::NoSpace`].
    pub fn device_port(&mut self, device: u8) -> Result<Port, Errno> {
        self.allocate(Binding::Device(device), 0)
    }

    /// EVTCHNOP_alloc_unbound, for `remote` to bind.
    ///
    /// # Errors
    /// [`Errno::NoSpace`], [`Errno::NoMemory`].
    pub fn allocate_unbound(&mut self, remote: u16) -> Result<Port, Errno> {
        self.allocate(Binding::Unbound(remote), 0)
    }

    /// EVTCHNOP_bind_interdomain; with the guest's own ports only, as no other domain has any for it.
    ///
    /// # Errors
    /// [`Errno::NoSpace`], [`Errno::NoMemory`], [`Errno::Invalid`] (it is not there to be bound).
    pub fn bind_interdomain(&mut self, remote: u16, remote_port: Port) -> Result<Port, Errno> {
        let port = self.free_port()?;
        let is_waiting = |entry: &Entry| entry.binding == Binding::Unbound(DOMID_SELF);
        let other = self.ports.get_mut(remote_port.0 as usize);
        let other = other.filter(|entry| remote == DOMID_SELF && is_waiting(entry)).ok_or(Errno::Invalid)?;
        other.binding = Binding::Peer(port.0 as u16);
        self.bind(port, Binding::Peer(remote_port.0 as u16), 0);
        // What was sent before this was dropped.
        self.notify(port, 0);
        Ok(port)
    }

    /// Binds a device to a port that the guest allocated for it.
    ///
    /// # Errors
    /// [`Errno::Invalid`] when the guest did not allocate it for that, or it is bound already.
    pub fn bind_device(&mut self, port: Port, device: u8) -> Result<(), Errno> {
        let entry = self.entry(port)?;
        if entry.binding != Binding::Unbound(BACKEND) {
            return Err(Errno::Invalid);
        }
        entry.binding = Binding::Device(device);
        // What the guest put into the ring before this is to be seen.
        self.kick(device);
        Ok(())
    }

    /// Undoes [`Self::bind_device`]; a port that the guest has closed since is left alone.
    pub fn unbind_device(&mut self, port: Port, device: u8) {
        if let Ok(entry) = self.entry(port)
            && entry.binding == Binding::Device(device)
        {
            entry.binding = Binding::Unbound(BACKEND);
        }
    }

    /// EVTCHNOP_bind_virq.
    ///
    /// # Errors
    /// [`Errno::Invalid`] (no such VIRQ, or one that vCPU 0 has to bind), [`Errno::NoEntry`] (no such vCPU),
    /// [`Errno::Exists`], [`Errno::NoSpace`], [`Errno::NoMemory`].
    pub fn bind_virq(&mut self, virq: u32, vcpu: u32) -> Result<Port, Errno> {
        if virq >= VIRQS || (!is_per_vcpu(virq) && vcpu != 0) {
            return Err(Errno::Invalid);
        }
        let vcpu = self.has_vcpu(vcpu)?;
        if self.virq_port(virq, vcpu).is_some() {
            return Err(Errno::Exists);
        }
        self.allocate(Binding::Virq(virq as u8), vcpu)
    }

    fn virq_port(&self, virq: u32, vcpu: u8) -> Option<Port> {
        let is_it = |entry: &Entry| {
            entry.binding == Binding::Virq(virq as u8) && (entry.vcpu == vcpu || !is_per_vcpu(virq))
        };
        self.ports.iter().position(is_it).map(|index| Port(index as u32))
    }

    /// Raises a VIRQ, if the guest bound it.
    pub fn raise_virq(&mut self, virq: u32, vcpu: usize) {
        if let Some(port) = self.virq_port(virq, vcpu as u8)
            && let Some(entry) = self.ports.get(port.0 as usize)
        {
            self.notify(port, entry.vcpu);
        }
    }

    /// EVTCHNOP_bind_ipi.
    ///
    /// # Errors
    /// [`Errno::NoEntry`] (no such vCPU), [`Errno::NoSpace`], [`Errno::NoMemory`].
    pub fn bind_ipi(&mut self, vcpu: u32) -> Result<Port, Errno> {
        let vcpu = self.has_vcpu(vcpu)?;
        self.allocate(Binding::Ipi, vcpu)
    }

    /// EVTCHNOP_bind_vcpu.
    ///
    /// # Errors
    /// [`Errno::NoEntry`] (no such vCPU), [`Errno::Invalid`].
    pub fn bind_vcpu(&mut self, port: Port, vcpu: u32) -> Result<(), Errno> {
        let vcpu = self.has_vcpu(vcpu)?;
        let entry = self.entry(port)?;
        match entry.binding {
            Binding::Unbound(_) | Binding::Device(_) | Binding::Peer(_) => {}
            Binding::Virq(virq) if !is_per_vcpu(u32::from(virq)) => {}
            // Per-vCPU VIRQs and IPIs stay where they are.
            _ => return Err(Errno::Invalid),
        }
        entry.vcpu = vcpu;
        Ok(())
    }

    /// EVTCHNOP_close.
    ///
    /// # Errors
    /// [`Errno::Invalid`].
    pub fn close(&mut self, port: Port) -> Result<(), Errno> {
        if let Binding::Peer(other) = self.entry(port)?.binding
            && let Some(other) = self.ports.get_mut(usize::from(other))
        {
            other.binding = Binding::Unbound(DOMID_SELF);
        }
        self.bind(port, Binding::Free, 0);
        Ok(())
    }

    /// EVTCHNOP_reset: all ports are closed, those of console and store among them, and the guest is back at
    /// the 2-level ABI.
    pub fn reset(&mut self) {
        for port in 1..self.ports.len() as u32 {
            // Those that are closed already are.
            let _ = self.close(Port(port));
        }
        self.fifo = None;
        self.two_level = self.layout.ports;
    }

    /// EVTCHNOP_send.
    ///
    /// # Errors
    /// [`Errno::Invalid`].
    #[inline]
    pub fn send(&mut self, port: Port) -> Result<(), Errno> {
        let entry = self.entry(port)?;
        let vcpu = entry.vcpu;
        match entry.binding {
            Binding::Device(device) => {
                count_notification(device);
                self.kick(device);
            }
            Binding::Ipi => self.notify(port, vcpu),
            Binding::Peer(other) => self.notify_peer(other),
            // Nobody has bound the other end yet.
            Binding::Unbound(_) => {}
            Binding::Virq(_) | Binding::Free => return Err(Errno::Invalid),
        }
        Ok(())
    }

    fn notify_peer(&mut self, port: u16) {
        if let Some(entry) = self.ports.get(usize::from(port)) {
            self.notify(Port(u32::from(port)), entry.vcpu);
        }
    }

    /// EVTCHNOP_unmask. A port that is not bound has no mask.
    ///
    /// # Errors
    /// [`Errno::Invalid`] where no port is.
    pub fn unmask(&mut self, port: Port) -> Result<(), Errno> {
        let entry = self.ports.get_mut(port.0 as usize).ok_or(Errno::Invalid)?;
        if !entry.is_bound() {
            return Ok(());
        }
        let vcpu = entry.vcpu;
        if let Some(fifo) = &mut self.fifo {
            let news = fifo.unmask(port.0, entry.vcpu, &mut entry.place);
            self.fifo_news(vcpu, news);
        } else if port.0 < self.two_level {
            let (word, bit) = (word(port.0), bit(port.0));
            let was_masked = self.shared_info.and_u64(self.layout.mask + word, !bit) & bit != 0;
            if was_masked && self.shared_info.u64(PENDING + word) & bit != 0 {
                self.select(port.0, vcpu);
            }
        }
        Ok(())
    }

    /// EVTCHNOP_status: the other end, and the vCPU that is notified.
    ///
    /// # Errors
    /// [`Errno::Invalid`] where no port is.
    pub fn status(&self, port: Port) -> Result<(Status, u32), Errno> {
        let entry = self.ports.get(port.0 as usize).ok_or(Errno::Invalid)?;
        let status = match entry.binding {
            Binding::Free => Status::Closed,
            Binding::Unbound(domid) => Status::Unbound(domid),
            Binding::Device(_) => Status::Interdomain(BACKEND, port),
            Binding::Peer(other) => Status::Interdomain(DOMID_SELF, Port(u32::from(other))),
            Binding::Virq(virq) => Status::Virq(u32::from(virq)),
            Binding::Ipi => Status::Ipi,
        };
        Ok((status, u32::from(entry.vcpu)))
    }

    /// A device notifies the guest: its port becomes pending. One that the guest has closed does not.
    #[inline]
    pub fn raise(&mut self, port: Port) {
        if let Some(&Entry { binding: Binding::Device(_), vcpu, .. }) = self.ports.get(port.0 as usize) {
            self.notify(port, vcpu);
        }
    }

    /// Makes a bound port pending and its vCPU take the upcall, unless the port is masked.
    #[inline]
    fn notify(&mut self, Port(port): Port, vcpu: u8) {
        rt::counters::inc(counters::PORTS_RAISED);
        if port >= self.two_level {
            return self.notify_elsewhere(port, vcpu);
        }
        let (word, bit) = (word(port), bit(port));
        if self.shared_info.or_u64(PENDING + word, bit) & bit != 0 {
            return;
        }
        self.tell(self.pollers.get());
        if self.shared_info.u64(self.layout.mask + word) & bit == 0 {
            self.select(port, vcpu);
        }
    }

    /// As [`Self::notify`], of a port that is not one of the 2-level ABI.
    #[inline(never)]
    fn notify_elsewhere(&mut self, port: u32, vcpu: u8) {
        let Some(entry) = self.ports.get_mut(port as usize) else { return };
        let news = match &mut self.fifo {
            Some(fifo) => fifo.raise(port, vcpu, &mut entry.place),
            None => fifo::News::NoPlace,
        };
        if news == fifo::News::NoPlace {
            entry.is_kept = true;
        } else {
            self.fifo_news(vcpu, news);
        }
    }

    fn fifo_news(&self, vcpu: u8, news: fifo::News) {
        if news.is_pending() {
            self.tell(self.pollers.get());
        }
        if news == fifo::News::Upcall {
            self.announce(vcpu);
        }
    }

    /// Raises the ports that had no place when they were raised.
    fn raise_kept(&mut self) {
        for port in 1..self.ports.len() as u32 {
            if let Some(entry) = self.ports.get_mut(port as usize)
                && core::mem::take(&mut entry.is_kept)
            {
                let vcpu = entry.vcpu;
                self.notify(Port(port), vcpu);
            }
        }
    }

    /// Whether a bound port is pending, masked or not.
    #[inline]
    pub fn is_pending(&self, port: Port) -> bool {
        match &self.fifo {
            None => {
                port.0 < self.two_level && self.shared_info.u64(PENDING + word(port.0)) & bit(port.0) != 0
            }
            Some(fifo) => fifo.is_pending(port.0),
        }
    }

    /// EVTCHNOP_init_control: the FIFO ABI from now on, and a vCPU's control block at `offset` of `page`
    /// (`None`: there is no memory).
    ///
    /// # Errors
    /// [`Errno::NoEntry`] (no such vCPU), [`Errno::Invalid`] (not within the page, misaligned, no memory, or
    /// the vCPU has one already), [`Errno::NoMemory`].
    pub fn init_control(&mut self, vcpu: u32, page: Option<Page>, offset: u32) -> Result<(), Errno> {
        let vcpu = self.has_vcpu(vcpu)?;
        let offset = fifo::control_offset(offset)?;
        let page = page.ok_or(Errno::Invalid)?;
        if let Some(fifo) = &mut self.fifo {
            return fifo.set_control(vcpu, page, offset);
        }
        let mut fifo = Fifo::new(self.vcpus.len())?;
        fifo.set_control(vcpu, page, offset)?;
        // What was pending is again as soon as it has a word in the array.
        for port in 1..self.ports.len() as u32 {
            let is_pending = self.is_pending(Port(port));
            if let Some(entry) = self.ports.get_mut(port as usize) {
                entry.is_kept |= is_pending && entry.is_bound();
                entry.place = Place::NEW;
            }
        }
        self.fifo = Some(fifo);
        self.two_level = 0;
        Ok(())
    }

    /// EVTCHNOP_expand_array: words for more ports, in `page` (`None`: there is no memory).
    ///
    /// # Errors
    /// [`Errno::NotSupported`] before [`Self::init_control`], [`Errno::NoSpace`], [`Errno::Invalid`] (no
    /// memory), [`Errno::NoMemory`].
    pub fn expand_array(&mut self, page: Option<Page>) -> Result<(), Errno> {
        self.fifo.as_mut().ok_or(Errno::NotSupported)?.expand(page)?;
        self.raise_kept();
        Ok(())
    }

    /// EVTCHNOP_set_priority: counts from the next time that the port is put into a queue.
    ///
    /// # Errors
    /// [`Errno::Invalid`] (no such port or priority), [`Errno::NoSys`] (not with the 2-level ABI),
    /// [`Errno::Access`] (not bound).
    pub fn set_priority(&mut self, port: Port, priority: u32) -> Result<(), Errno> {
        let has_priorities = self.fifo.is_some();
        let entry = self.ports.get_mut(port.0 as usize).ok_or(Errno::Invalid)?;
        if !has_priorities {
            return Err(Errno::NoSys);
        }
        if !entry.is_bound() {
            return Err(Errno::Access);
        }
        entry.place.set_priority(priority)
    }
}

fn is_per_vcpu(virq: u32) -> bool {
    VIRQS_PER_VCPU >> (virq % 32) & 1 != 0
}

/// Counts what the guest notified; console and store have no such counter.
#[inline]
fn count_notification(number: u8) {
    if number >= device::FIRST_VIF {
        rt::counters::inc(counters::NET_NOTIFICATIONS);
    } else if number >= device::FIRST_DISK {
        rt::counters::inc(counters::BLK_NOTIFICATIONS);
    }
}

#[cfg(test)]
mod tests;
