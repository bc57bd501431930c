//! Event channels, 2-level ABI: ports, and the pending and mask words that the guest shares.
//!
//! Pending and mask words lie in frames that the guest writes with locked instructions: they are only
//! changed atomically here. A port that is raised while masked stays pending until the guest unmasks it.
//! Sources: Xen public/event_channel.h, public/xen.h (shared_info, vcpu_info, 64-bit layout).

use alloc::vec;
use alloc::vec::Vec;
use core::cell::Cell;

use proto::counters;

use crate::errno::Errno;
use crate::machine::device;
use crate::memory::Page;

/// Number of an event channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port(pub u32);

/// Ports of a guest. The 2-level ABI allows 4096.
pub const PORTS: usize = 1024;
/// VIRQ of the vCPU's timer.
pub const VIRQ_TIMER: u32 = 0;
/// VIRQs of a guest.
const VIRQS: u32 = 24;
/// The VMM's devices that a port may lead to: bits of [`Events::kicks`].
pub const DEVICES_MAX: u8 = 64;

const PENDING: usize = 0x800;
const MASK: usize = 0xa00;
const VCPU_INFO_LEN: usize = 64;
/// Fields of vcpu_info.
const UPCALL_PENDING: usize = 0;
const PENDING_SEL: usize = 8;
/// Offset of vcpu_time_info in vcpu_info.
pub const TIME: usize = 32;

/// What a port is bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Binding {
    Free,
    /// Allocated by the guest for a domain that has not bound it yet.
    Unbound,
    /// The other end is a device of the VMM.
    Device(u8),
    Virq(u8),
    Ipi,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    binding: Binding,
    vcpu: u8,
}

/// Where a vCPU's vcpu_info is.
#[derive(Debug, Clone, Copy)]
struct VcpuInfo {
    page: Page,
    offset: usize,
    is_registered: bool,
}

/// A port as EVTCHNOP_status reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// EVTCHNSTAT_*.
    pub status: u32,
    /// vCPU that is notified.
    pub vcpu: u32,
    /// VIRQ number, or the remote port.
    pub detail: u32,
}

/// All event channels of the guest.
#[derive(Debug)]
pub struct Events {
    ports: Vec<Entry>,
    shared_info: Page,
    vcpus: Vec<VcpuInfo>,
    /// Devices whose port the guest notified, by number; whoever serves a device takes its bit.
    pub kicks: u64,
    /// An upcall was announced that the guest was not seen to have taken.
    has_news: Cell<bool>,
    /// Devices that hold work back until [`Self::held_until`].
    held: u64,
    /// Those of them that do so only until the guest waits.
    held_awake: u64,
    /// The TSC at which all devices that hold work back are to be served; 0: there are none.
    pub held_until: u64,
}

impl Events {
    /// No ports, all vcpu_infos in `shared_info`.
    pub fn new(shared_info: Page, vcpus: usize) -> Self {
        let info = |n| VcpuInfo { page: shared_info, offset: n * VCPU_INFO_LEN, is_registered: false };
        Self {
            ports: vec![Entry { binding: Binding::Free, vcpu: 0 }; PORTS],
            shared_info,
            vcpus: (0..vcpus).map(info).collect(),
            kicks: 0,
            has_news: Cell::new(false),
            held: 0,
            held_awake: 0,
            held_until: 0,
        }
    }

    fn entry(&mut self, port: Port) -> Result<&mut Entry, Errno> {
        match self.ports.get_mut(port.0 as usize) {
            Some(entry) if entry.binding != Binding::Free => Ok(entry),
            _ => Err(Errno::Invalid),
        }
    }

    fn has_vcpu(&self, vcpu: u32) -> Result<u8, Errno> {
        if (vcpu as usize) < self.vcpus.len() { Ok(vcpu as u8) } else { Err(Errno::NoEntry) }
    }

    /// Takes the lowest free port (port 0 is never used).
    fn allocate(&mut self, binding: Binding, vcpu: u8) -> Result<Port, Errno> {
        let free = self.ports.iter().skip(1).position(|entry| entry.binding == Binding::Free);
        let index = free.ok_or(Errno::NoSpace)? + 1;
        let entry = self.ports.get_mut(index).ok_or(Errno::NoSpace)?;
        *entry = Entry { binding, vcpu };
        let port = Port(index as u32);
        self.clear_pending(port);
        Ok(port)
    }

    fn clear_pending(&self, port: Port) {
        self.shared_info.and_u64(PENDING + word(port), !bit(port));
    }

    /// A port that leads to a device from the start (console, store).
    ///
    /// # Errors
    /// [`Errno::NoSpace`].
    pub fn device_port(&mut self, device: u8) -> Result<Port, Errno> {
        self.allocate(Binding::Device(device), 0)
    }

    /// EVTCHNOP_alloc_unbound.
    ///
    /// # Errors
    /// [`Errno::NoSpace`].
    pub fn allocate_unbound(&mut self) -> Result<Port, Errno> {
        self.allocate(Binding::Unbound, 0)
    }

    /// Binds a device to a port that the guest allocated for it.
    ///
    /// # Errors
    /// [`Errno::Invalid`] when the guest did not allocate it for that, or it is bound already.
    pub fn bind_device(&mut self, port: Port, device: u8) -> Result<(), Errno> {
        let entry = self.entry(port)?;
        if entry.binding != Binding::Unbound {
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
            entry.binding = Binding::Unbound;
        }
    }

    /// EVTCHNOP_bind_virq.
    ///
    /// # Errors
    /// [`Errno::Invalid`], [`Errno::NoEntry`] (no such vCPU), [`Errno::Exists`], [`Errno::NoSpace`].
    pub fn bind_virq(&mut self, virq: u32, vcpu: u32) -> Result<Port, Errno> {
        let vcpu = self.has_vcpu(vcpu)?;
        if virq >= VIRQS {
            return Err(Errno::Invalid);
        }
        if self.virq_port(virq, vcpu).is_some() {
            return Err(Errno::Exists);
        }
        self.allocate(Binding::Virq(virq as u8), vcpu)
    }

    fn virq_port(&self, virq: u32, vcpu: u8) -> Option<Port> {
        let is_it = |entry: &Entry| entry.binding == Binding::Virq(virq as u8) && entry.vcpu == vcpu;
        self.ports.iter().position(is_it).map(|index| Port(index as u32))
    }

    /// Raises a VIRQ, if the guest bound it.
    pub fn raise_virq(&self, virq: u32, vcpu: usize) {
        if let Some(port) = self.virq_port(virq, vcpu as u8) {
            self.raise(port);
        }
    }

    /// EVTCHNOP_bind_ipi.
    ///
    /// # Errors
    /// [`Errno::NoEntry`] (no such vCPU), [`Errno::NoSpace`].
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
            Binding::Unbound | Binding::Device(_) => entry.vcpu = vcpu,
            // Per-vCPU VIRQs and IPIs stay where they are.
            _ => return Err(Errno::Invalid),
        }
        Ok(())
    }

    /// EVTCHNOP_close.
    ///
    /// # Errors
    /// [`Errno::Invalid`].
    pub fn close(&mut self, port: Port) -> Result<(), Errno> {
        self.entry(port)?.binding = Binding::Free;
        self.clear_pending(port);
        Ok(())
    }

    /// EVTCHNOP_send.
    ///
    /// # Errors
    /// [`Errno::Invalid`].
    #[inline]
    pub fn send(&mut self, port: Port) -> Result<(), Errno> {
        match self.entry(port)?.binding {
            Binding::Device(device) => {
                count_notification(device);
                self.kick(device);
            }
            Binding::Ipi => self.raise(port),
            // Nobody has bound the other end yet.
            Binding::Unbound => {}
            Binding::Virq(_) | Binding::Free => return Err(Errno::Invalid),
        }
        Ok(())
    }

    /// A device holds work back until `until_tsc` at the latest (a notice for the guest, requests that it
    /// may add to); `is_awake`: only while the guest does not wait. [`Self::expire`] kicks it then.
    pub fn hold(&mut self, device: u8, until_tsc: u64, is_awake: bool) {
        let bit = 1 << (device % DEVICES_MAX);
        self.held |= bit;
        if is_awake {
            self.held_awake |= bit;
        }
        if self.held_until == 0 || until_tsc < self.held_until {
            self.held_until = until_tsc;
        }
    }

    /// Whether a device's work is still held back.
    pub fn holds(&self, device: u8) -> bool {
        self.held & 1 << (device % DEVICES_MAX) != 0
    }

    /// The device has done its work for another reason.
    pub fn unhold(&mut self, device: u8) {
        self.unhold_all(1 << (device % DEVICES_MAX));
    }

    fn unhold_all(&mut self, devices: u64) {
        self.held &= !devices;
        self.held_awake &= !devices;
        if self.held == 0 {
            self.held_until = 0;
        }
    }

    /// Has the devices served whose work is held back no longer, at this time or because the guest waits.
    #[inline]
    pub fn expire(&mut self, waits: bool, tsc: impl FnOnce() -> u64) {
        if self.held_until == 0 {
            return;
        }
        let devices = match waits {
            _ if tsc() >= self.held_until => self.held,
            true => self.held_awake,
            false => return,
        };
        self.kicks |= devices;
        self.unhold_all(devices);
    }

    /// Whether [`Self::expire`] has something to do if the guest waits.
    #[inline]
    pub fn holds_while_awake(&self) -> bool {
        self.held_awake != 0
    }

    #[inline]
    fn kick(&mut self, device: u8) {
        self.kicks |= 1 << (device % DEVICES_MAX);
    }

    /// EVTCHNOP_unmask.
    ///
    /// # Errors
    /// [`Errno::Invalid`].
    pub fn unmask(&mut self, port: Port) -> Result<(), Errno> {
        self.entry(port)?;
        let was_masked = self.shared_info.and_u64(MASK + word(port), !bit(port)) & bit(port) != 0;
        if was_masked && self.is_pending(port) {
            self.select(port);
        }
        Ok(())
    }

    /// EVTCHNOP_status.
    ///
    /// # Errors
    /// [`Errno::Invalid`] outside of the port range.
    pub fn status(&self, port: Port) -> Result<Status, Errno> {
        let entry = self.ports.get(port.0 as usize).ok_or(Errno::Invalid)?;
        let (status, detail) = match entry.binding {
            Binding::Free => (0, 0),
            Binding::Unbound => (1, 0),
            Binding::Device(_) => (2, port.0),
            Binding::Virq(virq) => (4, u32::from(virq)),
            Binding::Ipi => (5, 0),
        };
        Ok(Status { status, vcpu: u32::from(entry.vcpu), detail })
    }

    /// Makes a port pending and its vCPU take the upcall, unless the port is masked.
    #[inline]
    pub fn raise(&self, port: Port) {
        if port.0 as usize >= PORTS {
            return;
        }
        rt::counters::inc(counters::PORTS_RAISED);
        let was_pending = self.shared_info.or_u64(PENDING + word(port), bit(port)) & bit(port) != 0;
        if !was_pending && self.shared_info.u64(MASK + word(port)) & bit(port) == 0 {
            self.select(port);
        }
    }

    /// Announces a pending port to its vCPU.
    fn select(&self, port: Port) {
        let vcpu = self.ports.get(port.0 as usize).map_or(0, |entry| entry.vcpu);
        if let Some(info) = self.vcpus.get(usize::from(vcpu)) {
            let selector = 1u64 << (port.0 / 64 % 64);
            if info.page.or_u64(info.offset + PENDING_SEL, selector) & selector == 0 {
                info.page.set_u8(info.offset + UPCALL_PENDING, 1);
                self.has_news.set(true);
            }
        }
    }

    /// Whether an upcall may be due. It stays so until [`Self::has_upcall`] says that the guest took it.
    #[inline]
    pub fn has_news(&self) -> bool {
        self.has_news.get()
    }

    /// Whether a port is pending, masked or not.
    #[inline]
    pub fn is_pending(&self, port: Port) -> bool {
        (port.0 as usize) < PORTS && self.shared_info.u64(PENDING + word(port)) & bit(port) != 0
    }

    /// Whether the vCPU is to take the upcall.
    #[inline]
    pub fn has_upcall(&self, vcpu: usize) -> bool {
        let is_due = self.vcpus.get(vcpu).is_some_and(|info| info.page.u8(info.offset + UPCALL_PENDING) != 0);
        self.has_news.set(is_due);
        is_due
    }

    /// VCPUOP_register_vcpu_info: the vcpu_info lives at `offset` of `page` from now on. Nothing that was
    /// pending is lost: everything counts as pending once.
    ///
    /// # Errors
    /// [`Errno::NoEntry`] (no such vCPU), [`Errno::Invalid`] (registered before, or not within the page).
    pub fn register_vcpu_info(&mut self, vcpu: usize, page: Page, offset: usize) -> Result<(), Errno> {
        let info = self.vcpus.get_mut(vcpu).ok_or(Errno::NoEntry)?;
        let is_inside = offset.is_multiple_of(8) && offset <= crate::memory::PAGE - VCPU_INFO_LEN;
        if info.is_registered || !is_inside {
            return Err(Errno::Invalid);
        }
        let mut old = [0; VCPU_INFO_LEN];
        info.page.read(info.offset, &mut old);
        page.write(offset, &old);
        *info = VcpuInfo { page, offset, is_registered: true };
        page.set_u64(offset + PENDING_SEL, u64::MAX);
        page.set_u8(offset + UPCALL_PENDING, 1);
        self.has_news.set(true);
        Ok(())
    }

    /// Where the vCPU's time information is.
    pub fn time_info(&self, vcpu: usize) -> Option<(Page, usize)> {
        self.vcpus.get(vcpu).map(|info| (info.page, info.offset + TIME))
    }
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

/// Offset of the word that holds a port's bit.
#[inline]
fn word(port: Port) -> usize {
    port.0 as usize / 64 * 8
}

/// A port's bit in its word.
#[inline]
fn bit(port: Port) -> u64 {
    1 << (port.0 % 64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Gfn, GuestMemory, tests::fake};
    use proptest::prelude::*;

    fn events() -> (GuestMemory, Events) {
        let memory = fake(2);
        let events = Events::new(memory.special(0).unwrap(), 1);
        (memory, events)
    }

    #[test]
    fn a_raised_port_is_pending_selected_and_announced() {
        let (memory, mut events) = events();
        let page = memory.special(0).unwrap();
        let port = events.bind_ipi(0).unwrap();
        events.send(port).unwrap();
        assert!(events.is_pending(port) && events.has_upcall(0));
        assert_eq!((page.u64(PENDING), page.u64(PENDING_SEL)), (1 << port.0, 1));
    }

    #[test]
    fn a_masked_port_waits_for_unmask() {
        let (memory, mut events) = events();
        let page = memory.special(0).unwrap();
        let port = events.bind_virq(VIRQ_TIMER, 0).unwrap();
        page.set_u64(MASK, u64::MAX);
        events.raise_virq(VIRQ_TIMER, 0);
        assert!(events.is_pending(port) && !events.has_upcall(0));
        events.unmask(port).unwrap();
        assert!(events.has_upcall(0));
        assert_eq!(page.u64(MASK), !(1 << port.0));
    }

    #[test]
    fn registering_vcpu_info_loses_nothing_and_works_once() {
        let (memory, mut events) = events();
        let port = events.bind_ipi(0).unwrap();
        let page = memory.page(Gfn(1)).unwrap();
        events.send(port).unwrap();
        assert_eq!(events.register_vcpu_info(0, page, 4096 - 56), Err(Errno::Invalid));
        assert_eq!(events.register_vcpu_info(1, page, 64), Err(Errno::NoEntry));
        events.register_vcpu_info(0, page, 64).unwrap();
        assert_eq!((page.u8(64), page.u64(72)), (1, u64::MAX));
        assert_eq!(events.register_vcpu_info(0, page, 128), Err(Errno::Invalid));
        page.set_u8(64, 0);
        page.set_u64(72, 0);
        let other = events.bind_ipi(0).unwrap();
        events.send(other).unwrap();
        assert_eq!((page.u8(64), page.u64(72)), (1, 1));
    }

    #[test]
    fn device_ports_kick_the_device_and_only_when_bound() {
        let (_memory, mut events) = events();
        let port = events.allocate_unbound().unwrap();
        events.send(port).unwrap();
        assert_eq!(events.kicks, 0);
        events.bind_device(port, 5).unwrap();
        assert_eq!(events.kicks, 1 << 5);
        assert_eq!(events.bind_device(port, 6), Err(Errno::Invalid));
        events.kicks = 0;
        events.send(port).unwrap();
        assert_eq!(events.kicks, 1 << 5);
        events.close(port).unwrap();
        assert_eq!(events.send(port), Err(Errno::Invalid));
        events.unbind_device(port, 5);
        assert_eq!(events.status(port).unwrap().status, 0);
    }

    #[test]
    fn what_the_guest_notifies_is_counted_by_the_kind_of_device() {
        use counters::{BLK_NOTIFICATIONS, NET_NOTIFICATIONS};
        let (_memory, mut events) = events();
        for (number, counter) in
            [(device::FIRST_DISK, BLK_NOTIFICATIONS), (device::FIRST_VIF, NET_NOTIFICATIONS)]
        {
            let port = events.allocate_unbound().unwrap();
            events.bind_device(port, number).unwrap();
            let before = rt::counters::get(counter);
            events.send(port).unwrap();
            // Other tests count into the same page.
            assert!(rt::counters::get(counter) > before);
        }
    }

    #[test]
    fn held_work_is_due_in_time_or_when_the_guest_waits() {
        let (_memory, mut events) = events();
        events.hold(33, 500, false);
        events.hold(34, 400, true);
        events.expire(false, || 399);
        assert!(events.kicks == 0 && events.holds(33) && events.holds(34) && events.holds_while_awake());
        events.expire(true, || 399);
        assert!(events.kicks == 1 << 34 && !events.holds(34) && events.held_until == 400);
        assert!(!events.holds_while_awake());
        events.expire(false, || 400);
        assert_eq!((events.kicks, events.held_until), (3 << 33, 0));
        events.hold(33, 500, true);
        events.unhold(33);
        assert_eq!(events.held_until, 0);
    }

    #[test]
    fn refusals_have_the_numbers_that_linux_tells_apart() {
        let (_memory, mut events) = events();
        let first = events.bind_virq(1, 0).unwrap();
        assert_eq!(events.bind_virq(1, 0), Err(Errno::Exists));
        assert_eq!(events.status(first).unwrap(), Status { status: 4, vcpu: 0, detail: 1 });
        assert_eq!(events.bind_virq(VIRQS, 0), Err(Errno::Invalid));
        assert_eq!(events.bind_virq(0, 1), Err(Errno::NoEntry));
        assert_eq!(events.bind_ipi(9), Err(Errno::NoEntry));
        assert_eq!(events.close(Port(0)), Err(Errno::Invalid));
        assert_eq!(events.close(Port(u32::MAX)), Err(Errno::Invalid));
        assert_eq!(events.send(first), Err(Errno::Invalid));
        assert_eq!(events.bind_vcpu(first, 0), Err(Errno::Invalid));
        while events.allocate_unbound().is_ok() {}
        assert_eq!(events.bind_ipi(0), Err(Errno::NoSpace));
    }

    proptest! {
        #[test]
        fn no_wake_up_is_lost_whatever_the_order(steps in prop::collection::vec((0u8..4, 1u32..130), 1..80)) {
            let (memory, mut events) = events();
            let page = memory.special(0).unwrap();
            for _ in 1..130 {
                events.bind_ipi(0).unwrap();
            }
            for (step, port) in steps {
                let (word, mask) = (port as usize / 64 * 8, 1u64 << (port % 64));
                match step {
                    0 => events.send(Port(port)).unwrap(),
                    1 => { page.or_u64(MASK + word, mask); }
                    2 => events.unmask(Port(port)).unwrap(),
                    // The guest's handler: all that is selected, pending and not masked.
                    _ => {
                        page.set_u8(0, 0);
                        let selected = page.and_u64(PENDING_SEL, 0);
                        for index in 0..64 {
                            if selected >> index & 1 != 0 {
                                let masked = page.u64(MASK + index * 8);
                                page.and_u64(PENDING + index * 8, masked);
                            }
                        }
                    }
                }
                let waiting = (0..3).any(|w| page.u64(PENDING + w * 8) & !page.u64(MASK + w * 8) != 0);
                prop_assert!(!waiting || events.has_upcall(0), "a pending unmasked port without an upcall");
            }
        }
    }
}
