//! Which port an Ethernet address is behind.
//!
//! Invariants: an address of a vif is static, no frame moves it; a port holds a bounded number of learned
//! addresses, so that none crowds out another's. Addresses that were not seen for a while are forgotten.
//! Source: IEEE 802.1Q, 8.7 the learning process and 8.8 the filtering database.

use alloc::collections::BTreeMap;

use crate::switch::{PORTS_MAX, Port};

/// An Ethernet address.
pub type Mac = [u8; 6];

/// How long an address is remembered, as IEEE 802.1Q recommends.
pub const AGEING_NS: u64 = 300_000_000_000;
/// How often expired addresses are looked for, at most.
const SWEEP_NS: u64 = 1_000_000_000;
/// Addresses that are learned at one port.
pub const LEARNED_MAX: usize = 1024;

#[derive(Debug, Clone, Copy)]
struct Entry {
    port: Port,
    /// When it was last seen; `None`: static.
    seen_ns: Option<u64>,
}

impl Entry {
    fn is_expired(&self, now_ns: u64) -> bool {
        self.seen_ns.is_some_and(|seen| now_ns.saturating_sub(seen) > AGEING_NS)
    }
}

/// The table.
#[derive(Debug)]
pub struct Table {
    entries: BTreeMap<Mac, Entry>,
    /// Learned addresses of each port.
    learned: [usize; PORTS_MAX],
    swept_ns: u64,
}

impl Default for Table {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), learned: [0; PORTS_MAX], swept_ns: 0 }
    }
}

impl Table {
    /// Makes an address static; `false`: it is another port's static address.
    pub fn add_static(&mut self, mac: Mac, port: Port) -> bool {
        if self.is_static(&mac) {
            return false;
        }
        self.insert(mac, Entry { port, seen_ns: None });
        true
    }

    /// Whether the address belongs to a vif.
    pub fn is_static(&self, mac: &Mac) -> bool {
        self.entries.get(mac).is_some_and(|entry| entry.seen_ns.is_none())
    }

    /// Notes that a frame from `mac` came in at `port`. A static address is left alone, and a port that
    /// knows its share of addresses learns no more until old ones expire.
    pub fn learn(&mut self, mac: Mac, port: Port, now_ns: u64) {
        if let Some(entry) = self.entries.get_mut(&mac) {
            if entry.port == port {
                entry.seen_ns = entry.seen_ns.map(|_| now_ns);
            }
            if entry.seen_ns.is_none() || entry.port == port {
                return;
            }
        }
        if self.count(port) >= LEARNED_MAX {
            self.sweep(now_ns);
        }
        if self.count(port) < LEARNED_MAX {
            self.insert(mac, Entry { port, seen_ns: Some(now_ns) });
        }
    }

    /// Forgets expired addresses; at most once per second, for an outsider can ask for it with each frame.
    fn sweep(&mut self, now_ns: u64) {
        if now_ns.saturating_sub(self.swept_ns) >= SWEEP_NS {
            self.swept_ns = now_ns;
            self.retain(|entry| !entry.is_expired(now_ns));
        }
    }

    fn count(&self, port: Port) -> usize {
        self.learned.get(port.index()).copied().unwrap_or(LEARNED_MAX)
    }

    fn insert(&mut self, mac: Mac, entry: Entry) {
        let old = self.entries.insert(mac, entry);
        Self::account(&mut self.learned, old.as_ref(), |count| count.saturating_sub(1));
        Self::account(&mut self.learned, Some(&entry), |count| count + 1);
    }

    fn account(learned: &mut [usize], entry: Option<&Entry>, change: impl Fn(usize) -> usize) {
        let Some(entry) = entry.filter(|entry| entry.seen_ns.is_some()) else { return };
        if let Some(count) = learned.get_mut(entry.port.index()) {
            *count = change(*count);
        }
    }

    fn retain(&mut self, keep: impl Fn(&Entry) -> bool) {
        let learned = &mut self.learned;
        self.entries.retain(|_, entry| {
            let is_kept = keep(entry);
            if !is_kept {
                Self::account(learned, Some(entry), |count| count.saturating_sub(1));
            }
            is_kept
        });
    }

    /// The port behind which the address was last seen.
    pub fn find(&self, mac: &Mac, now_ns: u64) -> Option<Port> {
        self.entries.get(mac).filter(|entry| !entry.is_expired(now_ns)).map(|entry| entry.port)
    }

    /// Forgets everything behind a port.
    pub fn remove_port(&mut self, port: Port) {
        self.retain(|entry| entry.port != port);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Mac = [2, 0, 0, 0, 0, 1];
    const ONE: Port = Port(1);
    const TWO: Port = Port(2);

    #[test]
    fn an_address_is_learned_moves_and_expires() {
        let mut table = Table::default();
        table.learn(A, ONE, 0);
        assert_eq!(table.find(&A, AGEING_NS), Some(ONE));
        table.learn(A, TWO, 10);
        assert_eq!(table.find(&A, 10), Some(TWO));
        assert_eq!(table.find(&A, 11 + AGEING_NS), None);
        table.learn(A, TWO, 20 + AGEING_NS);
        assert_eq!(table.find(&A, 2 * AGEING_NS), Some(TWO));
        table.remove_port(TWO);
        assert_eq!(table.find(&A, 20 + AGEING_NS), None);
    }

    #[test]
    fn a_static_address_is_not_stolen_and_never_expires() {
        let mut table = Table::default();
        table.learn(A, TWO, 0);
        assert!(table.add_static(A, ONE));
        table.learn(A, TWO, 1);
        assert_eq!(table.find(&A, u64::MAX), Some(ONE));
        assert!(!table.add_static(A, TWO));
        table.remove_port(ONE);
        assert!(table.add_static(A, TWO));
        assert_eq!(table.learned, [0; PORTS_MAX]);
    }

    #[test]
    fn a_port_learns_a_bounded_number_and_harms_no_other() {
        let mut table = Table::default();
        let mac = |n: usize| [2, 1, 0, 0, (n >> 8) as u8, n as u8];
        table.learn(A, ONE, 0);
        for n in 0..LEARNED_MAX + 100 {
            table.learn(mac(n), TWO, 1);
        }
        assert_eq!(table.count(TWO), LEARNED_MAX);
        assert_eq!(table.find(&A, 1), Some(ONE));
        assert_eq!(table.find(&mac(LEARNED_MAX), 1), None);
        // Old ones make room.
        table.learn(mac(LEARNED_MAX), TWO, 2 + AGEING_NS);
        assert_eq!(table.find(&mac(LEARNED_MAX), 2 + AGEING_NS), Some(TWO));
    }
}
