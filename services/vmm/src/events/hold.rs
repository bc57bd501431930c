//! Devices that were notified, and those that hold work back until the guest waits or a time is over.

use super::{DEVICES_MAX, Events};

impl Events {
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
    pub(super) fn kick(&mut self, device: u8) {
        self.kicks |= 1 << (device % DEVICES_MAX);
    }
}
