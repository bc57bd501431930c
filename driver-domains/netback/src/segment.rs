//! Cuts a TCP packet that stands for several into those, as a network card would.
//!
//! The header was checked once ([`Plan::of`]); each segment is that header with its own length, number, flags
//! and checksums before its part of the data. Invariant: a segment is never longer than a frame on a wire.
//! Sources: RFC 9293, 3.1; RFC 3168, 6.1.2 (CWR in the first segment only); RFC 6864 (IPv4 identification).

use proto::net::{PLAIN_MAX, Segments};
use smoltcp::wire::{EthernetFrame, IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket};

use crate::checksum;
use crate::header::Header;

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const VLAN: u16 = 0x8100;
const CWR_AT: usize = 13;
const CWR: u8 = 0x80;

/// Where the parts of a packet lie, and how it is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// First byte of the IP header.
    ip: usize,
    /// First byte of the TCP header.
    tcp: usize,
    /// First byte of the data.
    data: usize,
    /// Bytes of data in a segment.
    size: usize,
    /// Bytes of data.
    total: usize,
    is_v4: bool,
}

impl Plan {
    /// The plan for a frame of `len` bytes. `None`: it is no such packet as its sender says, or its segments
    /// would not fit a wire.
    pub fn of(header: &Header, len: u32, segments: Segments) -> Option<Self> {
        let (is_v4, size) = match segments {
            Segments::One => return None,
            Segments::TcpV4 { size } => (true, usize::from(size)),
            Segments::TcpV6 { size } => (false, usize::from(size)),
        };
        let bytes = header.bytes();
        let mut ip = EthernetFrame::<&[u8]>::header_len();
        if ethertype(bytes, ip)? == VLAN {
            ip += 4;
        }
        if ethertype(bytes, ip)? != if is_v4 { IPV4 } else { IPV6 } {
            return None;
        }
        let packet = bytes.get(ip..)?;
        let (ip_header, protocol, says) = if is_v4 {
            packet.get(..20)?;
            let packet = Ipv4Packet::new_unchecked(packet);
            if packet.version() != 4 || packet.more_frags() || packet.frag_offset() != 0 {
                return None;
            }
            let header_len = usize::from(packet.header_len());
            (header_len, packet.next_header(), usize::from(packet.total_len()))
        } else {
            packet.get(..40)?;
            let packet = Ipv6Packet::new_unchecked(packet);
            if packet.version() != 6 {
                return None;
            }
            // Packets with extension headers are not cut: Linux does not ask for it.
            (40, packet.next_header(), 40 + usize::from(packet.payload_len()))
        };
        let tcp = ip + ip_header;
        let tcp_header = usize::from(*bytes.get(tcp + 12)? >> 4) * 4;
        let data = tcp + tcp_header;
        let is_sound = protocol == IpProtocol::Tcp
            && ip_header >= 20
            && tcp_header >= 20
            && bytes.len() >= data
            && ip + says == len as usize
            && len as usize > data
            && size > 0
            && data + size <= PLAIN_MAX as usize;
        is_sound.then(|| Self { ip, tcp, data, size, total: len as usize - data, is_v4 })
    }

    /// How many segments there are.
    pub fn count(&self) -> usize {
        self.total.div_ceil(self.size)
    }

    /// Makes segment `n` in `out`; its length. `read` copies data from a place in the frame. `None`: there
    /// is no such segment, or it cannot be read.
    pub fn make(
        &self,
        n: usize,
        header: &Header,
        out: &mut [u8],
        read: impl FnOnce(usize, &mut [u8]) -> bool,
    ) -> Option<usize> {
        let from = n.checked_mul(self.size).filter(|from| *from < self.total)?;
        let size = self.size.min(self.total - from);
        let is_last = from + size == self.total;
        let out = out.get_mut(..self.data + size)?;
        let (head, data) = out.split_at_mut_checked(self.data)?;
        head.copy_from_slice(header.bytes().get(..self.data)?);
        if !read(self.data + from, data) {
            return None;
        }
        self.number(n, from, is_last, head)?;
        let ip_len = u16::try_from(out.len() - self.ip).ok()?;
        let packet = out.get_mut(self.ip..)?;
        if self.is_v4 {
            let mut packet = Ipv4Packet::new_unchecked(packet);
            packet.set_total_len(ip_len);
            packet.set_ident(packet.ident().wrapping_add(n as u16));
            packet.fill_checksum();
        } else {
            Ipv6Packet::new_unchecked(packet).set_payload_len(ip_len - 40);
        }
        checksum::complete(out).ok()?;
        Some(out.len())
    }

    /// What TCP's header of segment `n` says that the whole packet's does not.
    fn number(&self, n: usize, from: usize, is_last: bool, head: &mut [u8]) -> Option<()> {
        let tcp = head.get_mut(self.tcp..)?;
        if n > 0 {
            *tcp.get_mut(CWR_AT)? &= !CWR;
        }
        let mut packet = TcpPacket::new_unchecked(tcp);
        packet.set_seq_number(packet.seq_number() + from);
        if !is_last {
            packet.set_fin(false);
            packet.set_psh(false);
        }
        Some(())
    }
}

/// The type field that ends where the payload at `at` begins.
fn ethertype(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at - 2..at)?.first_chunk()?))
}

#[cfg(test)]
pub mod tests {
    //! A large packet for the bridge's tests, and the cutting's own.
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;
    use smoltcp::wire::IpAddress;

    /// A TCP packet over IPv4 or IPv6 with `data` bytes of data, as a guest hands it on.
    pub fn large(destination: [u8; 6], source: [u8; 6], is_v4: bool, data: usize) -> Vec<u8> {
        let mut frame = Vec::from(destination);
        frame.extend(source);
        let tcp_len = 32 + data;
        if is_v4 {
            frame.extend([8, 0, 0x45, 0]);
            frame.extend((20 + tcp_len as u16).to_be_bytes());
            frame.extend([0xff, 0xff, 0x40, 0, 64, 6, 0, 0, 10, 77, 0, 2, 10, 77, 0, 1]);
        } else {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend((tcp_len as u16).to_be_bytes());
            frame.extend([6, 64]);
            frame.extend([0xfd; 16]);
            frame.extend([0xfe; 16]);
        }
        // Ports, sequence number just before it wraps, acknowledgement, 32 bytes, CWR ACK PSH FIN, window.
        frame.extend([0x30, 0, 0x13, 0x89, 0xff, 0xff, 0xff, 0, 0, 0, 0, 1, 0x80, 0x99, 1, 0, 0, 0, 0, 0]);
        frame.extend([1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8]);
        frame.extend((0..data).map(|n| (n * 7 / 8) as u8));
        frame
    }

    fn header(frame: &[u8]) -> Header {
        Header::read(frame.len() as u32, |out| {
            out.copy_from_slice(&frame[..out.len()]);
            true
        })
        .unwrap()
    }

    fn cut(frame: &[u8], segments: Segments) -> Option<Vec<Vec<u8>>> {
        let header = header(frame);
        let plan = Plan::of(&header, frame.len() as u32, segments)?;
        let segment = |n| {
            let mut out = alloc::vec![0; PLAIN_MAX as usize];
            let len = plan.make(n, &header, &mut out, |at, data| {
                data.copy_from_slice(&frame[at..at + data.len()]);
                true
            })?;
            out.truncate(len);
            Some(out)
        };
        assert!(segment(plan.count()).is_none());
        (0..plan.count()).map(segment).collect()
    }

    #[test]
    fn segments_carry_all_data_in_order_and_right_checksums() {
        for (is_v4, segments, data_at) in
            [(true, Segments::TcpV4 { size: 1448 }, 66), (false, Segments::TcpV6 { size: 1428 }, 86)]
        {
            let frame = large([1; 6], [2; 6], is_v4, 5000);
            let cut = cut(&frame, segments).unwrap();
            assert_eq!(cut.len(), 4);
            let mut data: Vec<u8> = Vec::new();
            for (n, segment) in cut.iter().enumerate() {
                let (source, destination, payload): (IpAddress, IpAddress, &[u8]) = if is_v4 {
                    let packet = Ipv4Packet::new_checked(&segment[14..]).unwrap();
                    assert!(packet.verify_checksum());
                    assert_eq!(packet.ident(), 0xffffu16.wrapping_add(n as u16));
                    (packet.src_addr().into(), packet.dst_addr().into(), packet.payload())
                } else {
                    let packet = Ipv6Packet::new_checked(&segment[14..]).unwrap();
                    (packet.src_addr().into(), packet.dst_addr().into(), packet.payload())
                };
                let packet = TcpPacket::new_checked(payload).unwrap();
                assert!(packet.verify_checksum(&source, &destination));
                assert_eq!(packet.seq_number().0 as u32, 0xffff_ff00u32.wrapping_add(data.len() as u32));
                assert_eq!((packet.fin(), packet.psh()), (n == 3, n == 3));
                assert_eq!(payload[CWR_AT] & CWR != 0, n == 0);
                data.extend(packet.payload());
            }
            assert_eq!(data, frame[data_at..]);
        }
    }

    #[test]
    fn what_is_not_what_it_says_is_not_cut() {
        let frame = large([1; 6], [2; 6], true, 5000);
        let v4 = Segments::TcpV4 { size: 1448 };
        assert!(cut(&frame, v4).is_some());
        assert_eq!(cut(&frame, Segments::TcpV6 { size: 1448 }), None);
        assert_eq!(cut(&frame, Segments::TcpV4 { size: 0 }), None);
        assert_eq!(cut(&frame, Segments::TcpV4 { size: 1449 }), None, "too long for a wire");
        assert_eq!(cut(&frame[..4000], v4), None, "shorter than it says");
        assert_eq!(cut(&frame[..66], v4), None);
        for (at, value) in [(14, 0x65), (14, 0x44), (20, 0x20), (21, 1), (23, 17), (46, 0x40), (46, 0xf0)] {
            let mut frame = frame.clone();
            frame[at] = value;
            assert_eq!(cut(&frame, v4), None, "{at} {value}");
        }
    }

    proptest! {
        #[test]
        fn no_packet_makes_it_panic_and_no_segment_is_too_long(
            changes in prop::collection::vec((12usize..80, any::<u8>()), 0..6),
            is_v4 in any::<bool>(),
            data in 0usize..6000,
            size in prop_oneof![1u16..4, 1000u16..1500, any::<u16>()],
        ) {
            let mut frame = large([1; 6], [2; 6], is_v4, data);
            for (at, value) in changes {
                if let Some(byte) = frame.get_mut(at) {
                    *byte = value;
                }
            }
            let segments = if is_v4 { Segments::TcpV4 { size } } else { Segments::TcpV6 { size } };
            if let Some(cut) = cut(&frame, segments) {
                prop_assert!(cut.iter().all(|segment| segment.len() <= PLAIN_MAX as usize));
                prop_assert!(cut.iter().all(|segment| segment[..12] == frame[..12]));
            }
        }
    }
}
