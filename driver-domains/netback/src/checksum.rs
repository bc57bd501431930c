//! Completes the TCP or UDP checksum of a frame that leaves the machine.
//!
//! A guest on a virtual network leaves only the pseudo-header's sum in the field. What is no whole TCP or
//! UDP packet over IPv4 or IPv6 is left as it is: the sender asked for something that nobody can do.
//! Sources: RFC 9293, 3.1; RFC 768; RFC 8200, 8.1.

use smoltcp::wire::{IpAddress, IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket, UdpPacket};

use crate::switch::HEADER_LEN;

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const VLAN: u16 = 0x8100;
/// Extension headers of IPv6 that may stand before TCP or UDP.
const EXTENSIONS_MAX: usize = 8;

/// What keeps a checksum from being completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotComplete;

/// Completes the checksum in place.
///
/// # Errors
/// [`NotComplete`]: the frame is unchanged.
pub fn complete(frame: &mut [u8]) -> Result<(), NotComplete> {
    let mut at = HEADER_LEN;
    let mut ethertype = ethertype(frame, at)?;
    if ethertype == VLAN {
        at += 4;
        ethertype = self::ethertype(frame, at)?;
    }
    let packet = frame.get_mut(at..).ok_or(NotComplete)?;
    match ethertype {
        IPV4 => ipv4(packet),
        IPV6 => ipv6(packet),
        _ => Err(NotComplete),
    }
}

/// The type field that ends where the payload at `at` begins.
fn ethertype(frame: &[u8], at: usize) -> Result<u16, NotComplete> {
    let bytes = frame.get(at.saturating_sub(2)..at).and_then(|bytes| bytes.first_chunk());
    bytes.map(|bytes| u16::from_be_bytes(*bytes)).ok_or(NotComplete)
}

fn ipv4(bytes: &mut [u8]) -> Result<(), NotComplete> {
    let mut packet = Ipv4Packet::new_checked(bytes).map_err(|_| NotComplete)?;
    if packet.version() != 4 || packet.header_len() < 20 || packet.more_frags() || packet.frag_offset() != 0 {
        return Err(NotComplete);
    }
    let (source, destination) = (packet.src_addr().into(), packet.dst_addr().into());
    let protocol = packet.next_header();
    transport(protocol, packet.payload_mut(), &source, &destination)
}

fn ipv6(bytes: &mut [u8]) -> Result<(), NotComplete> {
    let mut packet = Ipv6Packet::new_checked(bytes).map_err(|_| NotComplete)?;
    if packet.version() != 6 {
        return Err(NotComplete);
    }
    let (source, destination) = (packet.src_addr().into(), packet.dst_addr().into());
    let mut protocol = packet.next_header();
    let mut payload = packet.payload_mut();
    for _ in 0..EXTENSIONS_MAX {
        match protocol {
            IpProtocol::HopByHop | IpProtocol::Ipv6Opts => {
                let [next, len] = *payload.first_chunk::<2>().ok_or(NotComplete)?;
                protocol = IpProtocol::from(next);
                payload = payload.get_mut((usize::from(len) + 1) * 8..).ok_or(NotComplete)?;
            }
            // A routing header changes the destination that the sum is over; a fragment is no whole packet.
            _ => return transport(protocol, payload, &source, &destination),
        }
    }
    Err(NotComplete)
}

fn transport(
    protocol: IpProtocol,
    payload: &mut [u8],
    source: &IpAddress,
    destination: &IpAddress,
) -> Result<(), NotComplete> {
    match protocol {
        IpProtocol::Tcp => {
            let mut packet = TcpPacket::new_checked(payload).map_err(|_| NotComplete)?;
            packet.fill_checksum(source, destination);
        }
        IpProtocol::Udp => {
            let mut packet = UdpPacket::new_checked(payload).map_err(|_| NotComplete)?;
            packet.fill_checksum(source, destination);
        }
        _ => return Err(NotComplete),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    /// One's complement sum over `bytes`, written without smoltcp.
    fn sum(bytes: &[u8]) -> u16 {
        let mut total: u32 = bytes
            .chunks(2)
            .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)))
            .sum();
        while total > 0xffff {
            total = (total & 0xffff) + (total >> 16);
        }
        total as u16
    }

    fn ethernet(ethertype: u16, packet: &[u8]) -> Vec<u8> {
        let mut frame = alloc::vec![2; 12];
        frame.extend(ethertype.to_be_bytes());
        frame.extend(packet);
        frame
    }

    /// DNS query "example.com" from 192.168.0.31 to 192.168.0.1, total length 57, checksum field zero;
    /// padded with bytes that are not of the packet.
    fn udp4() -> Vec<u8> {
        let mut packet = alloc::vec![
            0x45, 0, 0, 57, 0x12, 0x34, 0, 0, 64, 17, 0, 0, 192, 168, 0, 31, 192, 168, 0, 1, // IPv4
            0xc0, 0x00, 0, 53, 0, 37, 0, 0, // UDP
        ];
        packet.extend(
            b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03com\x00\x00\x01\x00\x01",
        );
        packet.extend([0xee; 3]);
        ethernet(IPV4, &packet)
    }

    #[test]
    fn udp_over_ipv4_matches_the_sum_by_hand() {
        let mut frame = udp4();
        assert_eq!(complete(&mut frame), Ok(()));
        let mut data = Vec::from(&frame[14 + 12..14 + 20]);
        data.extend([0, 17, 0, 37]);
        data.extend(&frame[34..34 + 37]);
        assert_eq!(sum(&data), 0xffff);
        assert_ne!(frame[40..42], [0, 0]);
        assert_eq!(frame[71..], [0xee; 3]);
    }

    #[test]
    fn a_small_udp_packet_gets_the_checksum_worked_out_on_paper() {
        let packet = [
            0x45, 0, 0, 30, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, // IPv4
            0x10, 0x00, 0, 9, 0, 10, 0xff, 0xff, // UDP; the field's old value does not count
            0x62, 0x62,
        ];
        let mut frame = ethernet(IPV4, &packet);
        assert_eq!(complete(&mut frame), Ok(()));
        // 0a00+0001+0a00+0002 + 0011+000a + 1000+0009+000a+6262 = 8693; its complement is 796c.
        assert_eq!(frame[40..42], [0x79, 0x6c]);
    }

    #[test]
    fn tcp_over_ipv6_behind_an_option_header_is_completed() {
        let mut packet = alloc::vec![0x60, 0, 0, 0, 0, 8 + 20 + 3, 0, 64];
        packet.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        packet.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        packet.extend([6, 0, 1, 4, 0, 0, 0, 0]);
        packet.extend([0, 80, 1, 2, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18, 1, 0, 0xab, 0xcd, 0, 0]);
        packet.extend(b"abc");
        let mut frame = ethernet(IPV6, &packet);
        assert_eq!(complete(&mut frame), Ok(()));
        let mut data = Vec::from(&frame[14 + 8..14 + 40]);
        data.extend([0, 0, 0, 23, 0, 0, 0, 6]);
        data.extend(&frame[14 + 48..]);
        assert_eq!(sum(&data), 0xffff);
    }

    #[test]
    fn a_tagged_frame_is_completed_too() {
        let mut frame = udp4();
        let mut tagged = Vec::from(&frame[..12]);
        tagged.extend([0x81, 0, 0, 5]);
        tagged.extend(&frame[12..]);
        assert_eq!(complete(&mut tagged), Ok(()));
        complete(&mut frame).unwrap();
        assert_eq!(tagged[16..], frame[12..]);
    }

    #[test]
    fn what_is_no_whole_packet_is_left_alone() {
        let unchanged = |mut frame: Vec<u8>| {
            let before = frame.clone();
            assert_eq!(complete(&mut frame), Err(NotComplete));
            assert_eq!(frame, before);
        };
        unchanged(Vec::from(&udp4()[..40]));
        unchanged(ethernet(0x0806, &[0; 28]));
        let patched = |at: usize, value: u8| {
            let mut frame = udp4();
            frame[at] = value;
            frame
        };
        unchanged(patched(14 + 6, 0x20)); // more fragments follow
        unchanged(patched(14 + 7, 1)); // a later fragment
        unchanged(patched(14 + 9, 1)); // ICMP
        unchanged(patched(14, 0x65)); // IPv6 in an IPv4 frame
        unchanged(patched(14, 0x41)); // a header of 4 bytes
        unchanged(patched(14 + 3, 200)); // longer than the frame
        unchanged(patched(14 + 25, 200)); // UDP longer than the packet
    }

    proptest! {
        #[test]
        fn no_frame_makes_it_panic(
            ethertype in prop_oneof![Just(IPV4), Just(IPV6), Just(VLAN), any::<u16>()],
            version in prop_oneof![Just(0x45u8), Just(0x60), any::<u8>()],
            protocol in prop_oneof![Just(6u8), Just(17), Just(0), any::<u8>()],
            mut packet in prop::collection::vec(prop_oneof![Just(0u8), 0u8..64, any::<u8>()], 0..120),
        ) {
            for (at, value) in [(0, version), (6, protocol), (9, protocol)] {
                if let Some(byte) = packet.get_mut(at) {
                    *byte = value;
                }
            }
            let mut frame = ethernet(ethertype, &packet);
            let before = frame.clone();
            if complete(&mut frame).is_err() {
                prop_assert_eq!(frame, before);
            }
        }
    }
}
