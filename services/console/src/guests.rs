//! Guests' consoles: what each wrote last, how much of it was shown, what waits to be read by it.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;

use crate::text_ring::TextRing;

/// Bytes of scrollback for each guest.
pub const SCROLLBACK: usize = 16 * 1024;
/// Bytes of input that may wait for a guest that does not read.
pub const INPUT_MAX: usize = 16 * 1024;
/// Bytes of one message of output or input.
pub const CHUNK: usize = 246;

/// One guest's console.
#[derive(Debug)]
pub struct Guest {
    /// The guest's domain ID.
    pub domid: u32,
    /// The guest's name.
    pub name: String,
    /// What it wrote.
    pub text: TextRing,
    /// Position up to which the text was shown, while it is being shown.
    pub shown: u64,
    /// Its channel is gone; it stays until all of its text was shown.
    pub is_gone: bool,
    input: VecDeque<u8>,
}

impl Guest {
    /// Bytes that wait to be shown.
    pub fn unshown(&self) -> usize {
        usize::try_from(self.text.end() - self.shown.clamp(self.text.start(), self.text.end()))
            .unwrap_or(usize::MAX)
    }
}

/// All of them, by channel.
#[derive(Debug, Default)]
pub struct Guests {
    guests: BTreeMap<u32, Guest>,
    has_input: BTreeSet<u32>,
}

impl Guests {
    /// A guest's channel appears.
    pub fn attach(&mut self, channel: u32, domid: u32, name: &str) {
        let text = TextRing::new(SCROLLBACK);
        let input = VecDeque::new();
        let guest = Guest { domid, name: String::from(name), text, shown: 0, is_gone: false, input };
        self.guests.insert(channel, guest);
    }

    /// Forgets a guest.
    pub fn remove(&mut self, channel: u32) -> Option<Guest> {
        self.has_input.remove(&channel);
        self.guests.remove(&channel)
    }

    /// A guest.
    pub fn get(&self, channel: u32) -> Option<&Guest> {
        self.guests.get(&channel)
    }

    /// A guest.
    pub fn get_mut(&mut self, channel: u32) -> Option<&mut Guest> {
        self.guests.get_mut(&channel)
    }

    /// Channels of all guests after the given one, then the others.
    pub fn channels_after(&self, channel: u32) -> Vec<u32> {
        let after = self.guests.range(channel.saturating_add(1)..).map(|(id, _)| *id);
        after.chain(self.guests.range(..=channel).map(|(id, _)| *id)).collect()
    }

    /// The channel of the guest with this domain ID.
    pub fn by_domid(&self, domid: u32) -> Option<u32> {
        self.living().find(|(_, guest)| guest.domid == domid).map(|(id, _)| id)
    }

    /// The channel of the guest with this name, the newest of several.
    pub fn by_name(&self, name: &str) -> Option<u32> {
        self.living().filter(|(_, guest)| guest.name == name).last().map(|(id, _)| id)
    }

    fn living(&self) -> impl Iterator<Item = (u32, &Guest)> {
        self.guests.iter().filter(|(_, guest)| !guest.is_gone).map(|(id, guest)| (*id, guest))
    }

    /// Queues input for a guest; answers how many bytes found no room and were dropped.
    pub fn type_in(&mut self, channel: u32, bytes: &[u8]) -> usize {
        let Some(guest) = self.guests.get_mut(&channel) else { return bytes.len() };
        let fits = bytes.len().min(INPUT_MAX.saturating_sub(guest.input.len()));
        guest.input.extend(bytes.iter().take(fits));
        if fits > 0 {
            self.has_input.insert(channel);
        }
        bytes.len() - fits
    }

    /// The next message's worth of input for a guest, perhaps empty.
    pub fn input(&self, channel: u32) -> Vec<u8> {
        self.guests.get(&channel).map_or_else(Vec::new, |g| g.input.iter().take(CHUNK).copied().collect())
    }

    /// The first `count` bytes of input were sent.
    pub fn input_sent(&mut self, channel: u32, count: usize) {
        if let Some(guest) = self.guests.get_mut(&channel) {
            guest.input.drain(..count.min(guest.input.len()));
            if guest.input.is_empty() {
                self.has_input.remove(&channel);
            }
        }
    }

    /// Channels for which input waits.
    pub fn with_input(&self) -> impl Iterator<Item = u32> {
        self.has_input.iter().copied()
    }
}
