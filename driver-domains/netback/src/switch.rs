//! The switch: which ports a frame goes to.
//!
//! Invariants: a frame never leaves by the port it came in; a vif sends under its own address only, and
//! nobody else under a vif's address.
//! Source: IEEE 802.1Q, 8.6 the forwarding process.

use proto::net::Refusal as Refused;

use crate::table::{Mac, Table};

/// Ports of a switch: the uplink and the vifs.
pub const PORTS_MAX: usize = 64;
/// Bytes of an Ethernet header, the shortest frame that is forwarded.
pub const HEADER_LEN: usize = 14;

/// A port's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port(pub u8);

/// The port of the NIC.
pub const UPLINK: Port = Port(0);

impl Port {
    /// As an index.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    fn bit(self) -> u64 {
        1u64.checked_shl(u32::from(self.0)).unwrap_or(0)
    }
}

/// A set of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PortSet(u64);

impl PortSet {
    /// Whether the port is in it.
    pub fn contains(self, port: Port) -> bool {
        self.0 & port.bit() != 0
    }

    /// It without a port.
    pub fn without(self, port: Port) -> Self {
        Self(self.0 & !port.bit())
    }

    /// Whether there is none in it.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether there is one in it.
    pub fn is_single(self) -> bool {
        self.0.is_power_of_two()
    }

    fn only(self, port: Port) -> Self {
        Self(self.0 & port.bit())
    }

    /// Its ports, lowest first.
    pub fn iter(self) -> impl Iterator<Item = Port> {
        let mut rest = self.0;
        core::iter::from_fn(move || {
            let port = (rest != 0).then(|| Port(rest.trailing_zeros() as u8));
            rest &= rest.wrapping_sub(1);
            port
        })
    }
}

/// Why a frame goes nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Shorter than an Ethernet header.
    Length,
    /// Its source is a group, not the vif's address, or an address that belongs to a vif elsewhere.
    Source,
    /// The port does not exist.
    Port,
}

/// The switch.
#[derive(Debug)]
pub struct Switch {
    table: Table,
    ports: PortSet,
    /// The address of each vif, by port.
    addresses: [Mac; PORTS_MAX],
}

impl Default for Switch {
    fn default() -> Self {
        Self { table: Table::default(), ports: PortSet::default(), addresses: [[0; 6]; PORTS_MAX] }
    }
}

fn is_group(mac: &Mac) -> bool {
    mac[0] & 1 != 0
}

/// Addresses that no bridge forwards: spanning tree, pause frames, link discovery (802.1Q, table 8-1).
fn is_link_local(mac: &Mac) -> bool {
    mac[..5] == [0x01, 0x80, 0xc2, 0, 0] && mac[5] < 0x10
}

impl Switch {
    /// Adds the uplink.
    pub fn add_uplink(&mut self) {
        self.ports.0 |= UPLINK.bit();
    }

    /// Adds a vif with its address.
    ///
    /// # Errors
    /// Why there is none.
    pub fn add_vif(&mut self, mac: Mac) -> Result<Port, Refused> {
        if is_group(&mac) || mac == [0; 6] {
            return Err(Refused::Address);
        }
        let port = (1..PORTS_MAX as u8).map(Port).find(|port| !self.ports.contains(*port));
        let port = port.ok_or(Refused::Ports)?;
        if !self.table.add_static(mac, port) {
            return Err(Refused::AddressTaken);
        }
        if let Some(address) = self.addresses.get_mut(port.index()) {
            *address = mac;
        }
        self.ports.0 |= port.bit();
        Ok(port)
    }

    /// Removes a port and what was known behind it.
    pub fn remove(&mut self, port: Port) {
        self.table.remove_port(port);
        self.ports = self.ports.without(port);
    }

    /// Decides where a frame that came in at `ingress` and begins with `header` goes.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn forward(&mut self, ingress: Port, header: &[u8], now_ns: u64) -> Result<PortSet, Refusal> {
        if !self.ports.contains(ingress) {
            return Err(Refusal::Port);
        }
        let (destination, rest) = header.split_first_chunk::<6>().ok_or(Refusal::Length)?;
        let source = rest.first_chunk::<6>().ok_or(Refusal::Length)?;
        if header.len() < HEADER_LEN {
            return Err(Refusal::Length);
        }
        if ingress == UPLINK {
            if is_group(source) || self.table.is_static(source) {
                return Err(Refusal::Source);
            }
            self.table.learn(*source, ingress, now_ns);
        } else if self.addresses.get(ingress.index()) != Some(source) {
            // A vif's address is static: there is nothing to learn.
            return Err(Refusal::Source);
        }
        let others = self.ports.without(ingress);
        if is_group(destination) {
            return Ok(if is_link_local(destination) { PortSet::default() } else { others });
        }
        Ok(self.table.find(destination, now_ns).map_or(others, |port| others.only(port)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    const A: Mac = [2, 0, 0, 0, 0, 0xa];
    const B: Mac = [2, 0, 0, 0, 0, 0xb];
    const OUTSIDE: Mac = [4, 0, 0, 0, 0, 1];
    const ALL: Mac = [0xff; 6];

    fn frame(destination: Mac, source: Mac) -> [u8; 60] {
        let mut frame = [0; 60];
        frame[..6].copy_from_slice(&destination);
        frame[6..12].copy_from_slice(&source);
        frame
    }

    fn switch() -> (Switch, Port, Port) {
        let mut switch = Switch::default();
        switch.add_uplink();
        let (a, b) = (switch.add_vif(A).unwrap(), switch.add_vif(B).unwrap());
        (switch, a, b)
    }

    fn ports(result: Result<PortSet, Refusal>) -> Vec<u8> {
        result.unwrap().iter().map(|port| port.0).collect()
    }

    #[test]
    fn unknown_and_group_addresses_are_flooded_known_ones_are_not() {
        let (mut switch, a, b) = switch();
        assert_eq!(ports(switch.forward(a, &frame(OUTSIDE, A), 0)), [0, b.0]);
        assert_eq!(ports(switch.forward(UPLINK, &frame(ALL, OUTSIDE), 0)), [a.0, b.0]);
        assert_eq!(ports(switch.forward(a, &frame(OUTSIDE, A), 0)), [0]);
        assert_eq!(ports(switch.forward(a, &frame(B, A), 0)), [b.0]);
        assert_eq!(ports(switch.forward(a, &frame([0x33, 0x33, 0, 0, 0, 1], A), 0)), [0, b.0]);
        assert!(ports(switch.forward(a, &frame(A, A), 0)).is_empty());
        assert!(ports(switch.forward(a, &frame([1, 0x80, 0xc2, 0, 0, 0xe], A), 0)).is_empty());
        let late = crate::table::AGEING_NS + 1;
        assert_eq!(ports(switch.forward(a, &frame(OUTSIDE, A), late)), [0, b.0]);
    }

    #[test]
    fn nobody_takes_the_address_of_a_vif() {
        let (mut switch, a, b) = switch();
        assert_eq!(switch.forward(b, &frame(ALL, A), 0), Err(Refusal::Source));
        assert_eq!(switch.forward(b, &frame(ALL, OUTSIDE), 0), Err(Refusal::Source));
        assert_eq!(switch.forward(UPLINK, &frame(ALL, A), 0), Err(Refusal::Source));
        assert_eq!(switch.forward(UPLINK, &frame(ALL, ALL), 0), Err(Refusal::Source));
        assert_eq!(ports(switch.forward(b, &frame(A, B), 0)), [a.0]);
        assert!(switch.add_vif(A).is_err());
        assert!(switch.add_vif(ALL).is_err() && switch.add_vif([0; 6]).is_err());
        switch.remove(a);
        assert_eq!(switch.forward(a, &frame(B, A), 0), Err(Refusal::Port));
        assert_eq!(switch.add_vif(A), Ok(a));
    }

    #[test]
    fn a_vif_does_not_send_under_an_address_learned_outside() {
        let (mut switch, _, b) = switch();
        assert!(switch.forward(UPLINK, &frame(ALL, OUTSIDE), 0).is_ok());
        assert_eq!(switch.forward(b, &frame(ALL, OUTSIDE), 0), Err(Refusal::Source));
        assert_eq!(ports(switch.forward(b, &frame(OUTSIDE, B), 0)), [0]);
    }

    #[test]
    fn frames_without_a_header_are_refused() {
        let (mut switch, a, _) = switch();
        assert_eq!(switch.forward(a, &frame(ALL, A)[..13], 0), Err(Refusal::Length));
        assert_eq!(switch.forward(a, &[], 0), Err(Refusal::Length));
        assert!(switch.forward(a, &frame(ALL, A)[..14], 0).is_ok());
    }

    #[test]
    fn the_ports_run_out() {
        let mut switch = Switch::default();
        for n in 1..PORTS_MAX as u8 {
            assert_eq!(switch.add_vif([2, 0, 0, 0, 0, n]), Ok(Port(n)));
        }
        assert!(switch.add_vif([2, 0, 0, 0, 1, 0]).is_err());
    }
}
