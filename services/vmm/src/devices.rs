//! All devices of a guest: who has to be served when, and what the store's handshakes ask for.
//!
//! A device is served when its channel signalled or the guest notified its port. Invariant: before the
//! vCPU is entered or the domain waits, every device's channel is armed (its peer signals the next
//! message) or blocked on the guest (whose notification serves it again): no wake-up can be lost. A
//! channel stays armed until its peer signals, and a device blocked until the guest notifies it, so an exit
//! that concerns no device costs one comparison. While the guest's own requests are served the channel is
//! not armed: a peer that answers at once does not have to signal.

use alloc::vec::Vec;

use proto::bits::bits;
use proto::channel::{ChannelInfo, ChannelKind};
use rt::channel::{ChannelError, Client};

use crate::backend::{Action, Backend, Class};
use crate::blk::{self, Disk, Volume};
use crate::console::Console;
use crate::loader::place::special;
use crate::machine::{Guest, NoFrames, device};
use crate::net::{self, Vif};
use crate::store::Store;

/// Whether a device may be left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sleep {
    /// Its peer will signal.
    Armed,
    /// It waits for the guest.
    Blocked,
    /// There is work.
    Work,
}

/// What `prepare_sleep` of a channel means. A missing channel never has work; a broken one is served once
/// more, which finds out.
pub(crate) fn sleep(prepared: Option<Result<bool, ChannelError>>) -> Sleep {
    match prepared {
        None | Some(Ok(true)) => Sleep::Armed,
        Some(_) => Sleep::Work,
    }
}

/// Whether the guest's devices can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// All can.
    Ready,
    /// Some have not said yet.
    Opening,
    /// One cannot: what and why.
    Refused(alloc::string::String),
}

/// The devices of a guest.
#[derive(Debug)]
pub struct Devices {
    /// Console.
    pub console: Console,
    /// Store.
    pub store: Store,
    disks: Vec<(Disk, u32)>,
    vifs: Vec<(Vif, u32)>,
    /// Which device each handshake of the backend is for.
    handshakes: Vec<(Class, usize)>,
    /// Devices, by number.
    all: u64,
    /// Devices whose channel needs nothing until it signals.
    armed: u64,
    /// Devices that wait for the guest's notification.
    blocked: u64,
    /// Signals of each device's channel, and of all.
    signals: Vec<(u32, u64)>,
    all_signals: u64,
}

impl Devices {
    /// Console and store, and the numbered disks and interfaces.
    ///
    /// # Errors
    /// [`NoFrames`].
    pub fn new(guest: &Guest, disks: &[u32], vifs: &[u32]) -> Result<Self, NoFrames> {
        let console = Console::new(guest.special(special::CONSOLE).ok_or(NoFrames)?);
        let store = Store::new(guest.special(special::XENSTORE).ok_or(NoFrames)?, Backend::new(guest.domid));
        let number = |first: u8, n: usize| first + n as u8;
        let disks: Vec<_> =
            disks.iter().enumerate().map(|(n, &id)| (Disk::new(number(device::FIRST_DISK, n)), id)).collect();
        let vifs: Vec<_> =
            vifs.iter().enumerate().map(|(n, &id)| (Vif::new(number(device::FIRST_VIF, n)), id)).collect();
        let mut all = 1 << device::CONSOLE | 1 << device::XENSTORE;
        let numbers =
            disks.iter().map(|(disk, _)| disk.device()).chain(vifs.iter().map(|(vif, _)| vif.device()));
        for number in numbers {
            all |= 1u64 << number;
        }
        Ok(Self {
            console,
            store,
            disks,
            vifs,
            handshakes: Vec::new(),
            all,
            armed: 0,
            blocked: 0,
            signals: Vec::new(),
            all_signals: 0,
        })
    }

    /// Starts the handshakes with all frontends, whose nodes exist from now on.
    pub fn start_handshakes(&mut self) {
        for (n, (_, id)) in self.disks.iter().enumerate() {
            self.store.backend.add(Class::Vbd, *id);
            self.handshakes.push((Class::Vbd, n));
        }
        for (n, (_, id)) in self.vifs.iter().enumerate() {
            self.store.backend.add(Class::Vif, *id);
            self.handshakes.push((Class::Vif, n));
        }
        self.stir(1 << device::XENSTORE);
    }

    /// These devices have to be looked at again.
    #[inline]
    fn stir(&mut self, devices: u64) {
        self.armed &= !devices;
        self.blocked &= !devices;
    }

    /// Collects the signals of all channels.
    fn note_signals(&mut self) {
        self.signals = bits(self.all).map(|number| (number, self.signals_of(number))).collect();
        self.all_signals = self.signals.iter().fold(0, |all, (_, signals)| all | signals);
    }

    /// Uses a channel for the device that it belongs to: disk or interface `number` for blk and net.
    ///
    /// # Errors
    /// The channel does not fit, or there is no such device.
    pub fn attach(&mut self, info: &ChannelInfo, number: Option<u32>) -> Result<(), ChannelError> {
        const NO_DEVICE: ChannelError = ChannelError::Wiring("device number");
        match info.kind {
            ChannelKind::GuestConsole => self.console.set_link(Some(Client::connect(info)?)),
            ChannelKind::Xenstore => self.store.set_link(Some(Client::connect(info)?)),
            ChannelKind::Blk => {
                let disk = self.disks.iter_mut().find(|(_, id)| Some(*id) == number);
                disk.ok_or(NO_DEVICE)?.0.set_link(Some(Client::connect(info)?));
            }
            ChannelKind::Net => {
                let vif = self.vifs.iter_mut().find(|(_, id)| Some(*id) == number);
                vif.ok_or(NO_DEVICE)?.0.set_link(Some(Client::connect(info)?));
            }
            _ => return Err(ChannelError::Wiring("kind")),
        }
        self.stir(self.all);
        self.note_signals();
        Ok(())
    }

    /// Lets go of the channel with this number, if a device has it; the device's number.
    pub fn detach(&mut self, channel: u32) -> Option<(ChannelKind, u32)> {
        let detached = self.let_go(channel);
        self.note_signals();
        detached
    }

    fn let_go(&mut self, channel: u32) -> Option<(ChannelKind, u32)> {
        if self.console.link().is_some_and(|link| link.info().id == channel) {
            self.console.set_link(None);
            return Some((ChannelKind::GuestConsole, 0));
        }
        if self.store.link().is_some_and(|link| link.info().id == channel) {
            self.store.set_link(None);
            return Some((ChannelKind::Xenstore, 0));
        }
        for (disk, id) in &mut self.disks {
            if disk.link().is_some_and(|link| link.info().id == channel) {
                disk.set_link(None);
                return Some((ChannelKind::Blk, *id));
            }
        }
        for (vif, id) in &mut self.vifs {
            if vif.link().is_some_and(|link| link.info().id == channel) {
                vif.set_link(None);
                return Some((ChannelKind::Net, *id));
            }
        }
        None
    }

    /// Whether all backends have opened what they serve.
    pub fn readiness(&self) -> Readiness {
        let mut is_opening = false;
        for (disk, id) in &self.disks {
            match disk.backing() {
                blk::Backing::Open(_) => {}
                blk::Backing::Opening => is_opening = true,
                blk::Backing::Refused(reason) => {
                    return Readiness::Refused(alloc::format!("disk {id}: {reason}"));
                }
            }
        }
        for (vif, id) in &self.vifs {
            match vif.backing() {
                net::Backing::Open => {}
                net::Backing::Opening => is_opening = true,
                net::Backing::Refused(reason) => {
                    return Readiness::Refused(alloc::format!("network interface {id}: {reason}"));
                }
            }
        }
        if is_opening { Readiness::Opening } else { Readiness::Ready }
    }

    /// Serves the devices whose channels have one of the signals.
    pub fn signalled(&mut self, guest: &mut Guest, signals: u64) {
        if self.all_signals & signals == 0 {
            return;
        }
        for n in 0..self.signals.len() {
            if let Some(&(number, own)) = self.signals.get(n)
                && own & signals != 0
            {
                self.stir(1 << number);
                self.service(guest, number);
            }
        }
    }

    /// Serves until nothing is left to do: see the invariant above. What devices held back until the guest
    /// waits (`waits`), or until now, is served too.
    #[inline]
    pub fn settle(&mut self, guest: &mut Guest, waits: bool) {
        guest.events.expire(waits, rt::time::tsc);
        while guest.events.kicks != 0 || self.armed | self.blocked != self.all {
            self.settle_once(guest);
        }
    }

    fn settle_once(&mut self, guest: &mut Guest) {
        let kicks = core::mem::take(&mut guest.events.kicks) & self.all;
        self.stir(kicks);
        for number in bits(kicks) {
            self.stay_awake(number);
            match self.find(number) {
                Found::Disk(disk) => disk.kicked(guest),
                _ => self.service(guest, number),
            }
        }
        for number in bits(self.all & !(self.armed | self.blocked)) {
            match self.prepare_sleep(number) {
                Sleep::Armed => self.armed |= 1 << number,
                Sleep::Blocked => self.blocked |= 1 << number,
                Sleep::Work => self.service(guest, number),
            }
        }
        self.act(guest);
    }

    /// Takes the wish for a signal back: [`Self::prepare_sleep`] follows before anything waits.
    fn stay_awake(&mut self, number: u32) {
        match self.find(number) {
            Found::Console => self.console.link().map(Client::stay_awake),
            Found::Store => self.store.link().map(Client::stay_awake),
            Found::Disk(disk) => disk.link().map(Client::stay_awake),
            Found::Vif(vif) => vif.link().map(Client::stay_awake),
            Found::Nothing => None,
        };
    }

    /// Does what the handshakes ask for.
    fn act(&mut self, guest: &mut Guest) {
        let mut has_acted = false;
        while let Some(action) = self.store.backend.actions.pop_front() {
            has_acted = true;
            match action {
                Action::Connect { device, values } => self.connect(guest, device, &values),
                Action::Disconnect { device } => self.disconnect(guest, device),
            }
        }
        if has_acted {
            // Send what the handshakes have to say.
            self.service(guest, u32::from(device::XENSTORE));
        }
    }

    fn connect(&mut self, guest: &mut Guest, handshake: usize, values: &crate::backend::Values) {
        let [first, second, third, rest @ ..] = values;
        let result = match self.handshakes.get(handshake) {
            Some(&(Class::Vbd, n)) => match self.disks.get_mut(n) {
                Some((disk, _)) => disk.connect(guest, first, second, third),
                None => return,
            },
            Some(&(Class::Vif, n)) => match self.vifs.get_mut(n) {
                Some((vif, _)) => vif.connect(guest, &crate::backend::vif_nodes(first, second, third, rest)),
                None => return,
            },
            None => return,
        };
        match result {
            Ok(()) => self.announce(handshake),
            Err(blk::Unusable(why)) => {
                if guest.odd.allows() {
                    log::warn!("a frontend cannot be connected: {why}");
                }
                self.store.backend.refused(handshake);
            }
        }
    }

    /// Tells the frontend what it is connected to.
    fn announce(&mut self, handshake: usize) {
        let Some(&(class, n)) = self.handshakes.get(handshake) else { return };
        let volume = match self.disks.get(n).map(|(disk, _)| disk.backing()) {
            Some(blk::Backing::Open(volume)) if class == Class::Vbd => *volume,
            _ => return self.store.backend.connected(handshake, &[]),
        };
        /// VDISK_READONLY.
        const READ_ONLY: u32 = 4;
        let Volume { sectors, sector_size, is_read_only, has_cache } = volume;
        let sectors = alloc::format!("{sectors}");
        let sector_size = alloc::format!("{sector_size}");
        let info = alloc::format!("{}", if is_read_only { READ_ONLY } else { 0 });
        let segments = alloc::format!("{}", blk::request::SEGMENTS_MAX);
        let nodes: [(&str, &str); 5] = [
            ("sectors", &sectors),
            ("sector-size", &sector_size),
            ("info", &info),
            ("feature-flush-cache", if has_cache { "1" } else { "0" }),
            ("feature-max-indirect-segments", &segments),
        ];
        self.store.backend.connected(handshake, &nodes);
    }

    fn disconnect(&mut self, guest: &mut Guest, handshake: usize) {
        match self.handshakes.get(handshake) {
            Some(&(Class::Vbd, n)) => {
                if let Some((disk, _)) = self.disks.get_mut(n) {
                    disk.disconnect(guest);
                }
            }
            Some(&(Class::Vif, n)) => {
                if let Some((vif, _)) = self.vifs.get_mut(n) {
                    vif.disconnect(guest);
                }
            }
            None => {}
        }
    }

    fn service(&mut self, guest: &mut Guest, number: u32) {
        match self.find(number) {
            Found::Console => self.console.service(guest),
            Found::Store => self.store.service(guest),
            Found::Disk(disk) => disk.service(guest),
            Found::Vif(vif) => vif.service(guest),
            Found::Nothing => {}
        }
    }

    fn prepare_sleep(&mut self, number: u32) -> Sleep {
        match self.find(number) {
            Found::Console => self.console.prepare_sleep(),
            Found::Store => self.store.prepare_sleep(),
            Found::Disk(disk) => disk.prepare_sleep(),
            Found::Vif(vif) => vif.prepare_sleep(),
            Found::Nothing => Sleep::Armed,
        }
    }

    fn signals_of(&mut self, number: u32) -> u64 {
        let info = match self.find(number) {
            Found::Console => self.console.link().map(Client::info),
            Found::Store => self.store.link().map(Client::info),
            Found::Disk(disk) => disk.link().map(Client::info),
            Found::Vif(vif) => vif.link().map(Client::info),
            Found::Nothing => None,
        };
        info.map_or(0, |info| info.signals)
    }

    fn find(&mut self, number: u32) -> Found<'_> {
        const CONSOLE: u32 = device::CONSOLE as u32;
        const XENSTORE: u32 = device::XENSTORE as u32;
        const FIRST_DISK: u32 = device::FIRST_DISK as u32;
        const FIRST_VIF: u32 = device::FIRST_VIF as u32;
        match number {
            CONSOLE => Found::Console,
            XENSTORE => Found::Store,
            FIRST_DISK..FIRST_VIF => self
                .disks
                .get_mut((number - FIRST_DISK) as usize)
                .map_or(Found::Nothing, |(disk, _)| Found::Disk(disk)),
            _ => self
                .vifs
                .get_mut((number.wrapping_sub(FIRST_VIF)) as usize)
                .map_or(Found::Nothing, |(vif, _)| Found::Vif(vif)),
        }
    }
}

/// A device by its number.
enum Found<'a> {
    Console,
    Store,
    Disk(&'a mut Disk),
    Vif(&'a mut Vif),
    Nothing,
}

#[cfg(test)]
mod tests;
