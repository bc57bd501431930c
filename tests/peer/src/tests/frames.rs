//! What the station sends, frame by frame, and what hostile frames and messages do to it: nothing.

use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;
use proto::net::{Checksum, FRAMES_MAX, Frame, RECEIVE_BASE, Refusal, Response, Segments};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, Icmpv4Packet,
    Icmpv4Repr, IpProtocol, Ipv4Address, Ipv4Packet, Ipv4Repr, TcpPacket,
};

use super::guest::{Bench, GUEST_MAC, STATION, Sent};
use crate::port::State;

const STATION_IP: Ipv4Address = Ipv4Address::new(10, 77, 0, 1);
const GUEST_IP: Ipv4Address = Ipv4Address::new(10, 77, 0, 2);

fn ethernet(ethertype: EthernetProtocol, len: usize, fill: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut frame = EthernetFrame::new_unchecked(vec![0; 14 + len]);
    frame.set_dst_addr(EthernetAddress(STATION.mac));
    frame.set_src_addr(EthernetAddress(GUEST_MAC));
    frame.set_ethertype(ethertype);
    fill(frame.payload_mut());
    frame.into_inner()
}

fn arp_request() -> Vec<u8> {
    let request = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: EthernetAddress(GUEST_MAC),
        source_protocol_addr: GUEST_IP,
        target_hardware_addr: EthernetAddress::BROADCAST,
        target_protocol_addr: STATION_IP,
    };
    ethernet(EthernetProtocol::Arp, request.buffer_len(), |bytes| {
        request.emit(&mut ArpPacket::new_unchecked(bytes));
    })
}

fn ping(data: &[u8]) -> Vec<u8> {
    let checksum = ChecksumCapabilities::default();
    let echo = Icmpv4Repr::EchoRequest { ident: 7, seq_no: 9, data };
    let ip = Ipv4Repr {
        src_addr: GUEST_IP,
        dst_addr: STATION_IP,
        next_header: IpProtocol::Icmp,
        payload_len: echo.buffer_len(),
        hop_limit: 64,
    };
    ethernet(EthernetProtocol::Ipv4, ip.buffer_len() + echo.buffer_len(), |bytes| {
        ip.emit(&mut Ipv4Packet::new_unchecked(&mut *bytes), &checksum);
        echo.emit(&mut Icmpv4Packet::new_unchecked(&mut bytes[20..]), &checksum);
    })
}

/// What the station answers to a frame.
fn answers(bench: &mut Bench, frame: &[u8]) -> Vec<Sent> {
    bench.netback.borrow_mut().deliver(frame);
    bench.station.poll(bench.now_ns);
    bench.netback.borrow_mut().frames.drain(..).collect()
}

#[test]
fn arp_and_ping_are_answered_with_complete_checksums() {
    let mut bench = Bench::new(true);
    bench.station.poll(0);
    let [(said, reply)] = &answers(&mut bench, &arp_request())[..] else { panic!() };
    let reply = EthernetFrame::new_checked(reply).unwrap();
    assert_eq!((reply.ethertype(), said.checksum), (EthernetProtocol::Arp, Checksum::Valid));
    assert_eq!((reply.src_addr().0, reply.dst_addr().0), (STATION.mac, GUEST_MAC));
    let data: Vec<u8> = (0..56).collect();
    let [(said, reply)] = &answers(&mut bench, &ping(&data))[..] else { panic!() };
    assert_eq!(said.checksum, Checksum::Valid);
    let packet = Ipv4Packet::new_checked(&reply[14..]).unwrap();
    assert!(packet.verify_checksum());
    let echo = Icmpv4Packet::new_checked(packet.payload()).unwrap();
    let echo = Icmpv4Repr::parse(&echo, &ChecksumCapabilities::default()).unwrap();
    assert_eq!(echo, Icmpv4Repr::EchoReply { ident: 7, seq_no: 9, data: &data });
}

/// One's complement sum.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let total: u32 = words.sum();
    let total = (total & 0xffff) + (total >> 16);
    ((total & 0xffff) + (total >> 16)) as u16
}

#[test]
fn tcp_segments_carry_the_sum_that_completes_to_their_checksum() {
    let mut bench = Bench::new(true);
    let client = bench.connect(5001);
    bench.run();
    bench.socket(client).send_slice(b"R\xa1\x0f\0\0\0\0\0\0").unwrap();
    bench.poll_guest();
    bench.station.poll(bench.now_ns);
    let frames: Vec<Sent> = bench.netback.borrow_mut().frames.drain(..).collect();
    let [(said, mut frame)] = <[Sent; 1]>::try_from(frames).unwrap();
    assert_eq!(frame.len(), 54 + 4001);
    assert_eq!((said.checksum, said.segments), (Checksum::Partial, Segments::TcpV4 { size: 1460 }));
    assert!(Ipv4Packet::new_checked(&frame[14..]).unwrap().verify_checksum());
    let completed = !sum(&frame[34..]);
    let mut segment = TcpPacket::new_checked(&mut frame[34..]).unwrap();
    segment.fill_checksum(&STATION_IP.into(), &GUEST_IP.into());
    assert_eq!(segment.checksum(), completed);
}

#[test]
fn what_waits_is_handled_at_once_and_acknowledged_at_once() {
    for (has_offload, least) in [(false, 40), (true, 2)] {
        acknowledged_at_once(Bench::new(has_offload), least);
    }
}

fn acknowledged_at_once(mut bench: Bench, least: usize) {
    let client = bench.connect(5001);
    bench.write(client, b"T\0\0\x10\0\0\0\0\0");
    bench.run();
    bench.socket(client).send_slice(&[5; 50 * 1460]).unwrap();
    bench.poll_guest();
    let waiting = bench.netback.borrow().messages.len();
    assert!(waiting >= least, "{waiting}");
    bench.station.poll(bench.now_ns);
    assert_eq!(bench.netback.borrow().frames.len(), 1);
    // An echoed byte goes out with the acknowledgement of the byte that came.
    let client = bench.connect(5001);
    bench.write(client, b"L\x01\0\0\0\0\0\0\0");
    bench.socket(client).send_slice(b"x").unwrap();
    bench.poll_guest();
    bench.station.poll(bench.now_ns);
    assert_eq!(bench.netback.borrow().frames.len(), 1);
}

#[test]
fn a_port_that_is_refused_sends_nothing() {
    let mut bench = Bench::new(true);
    bench.netback.borrow_mut().messages.clear();
    bench.station.poll(0);
    assert_eq!(bench.station.port().state(), State::Opening);
    assert!(answers(&mut bench, &arp_request()).is_empty());
    let reason = Refusal::AddressTaken;
    bench.netback.borrow_mut().messages.push_back(Response::Refused(reason));
    assert!(answers(&mut bench, &arp_request()).is_empty());
    assert_eq!(bench.station.port().state(), State::Closed(reason));
}

#[test]
fn a_broken_channel_is_noticed() {
    let mut bench = Bench::new(true);
    bench.netback.borrow_mut().is_broken = true;
    bench.station.poll(0);
    assert!(bench.station.port().is_gone());
}

#[test]
fn a_netback_that_breaks_the_rules_ends_the_network_and_nothing_else() {
    let frame = |offset, len, segments| {
        Response::Receive(Frame { offset, len, checksum: Checksum::Unknown, segments })
    };
    let large = Segments::TcpV4 { size: 1 };
    for message in [
        frame(0, 60, Segments::One),
        frame(RECEIVE_BASE, 1515, Segments::One),
        frame(RECEIVE_BASE, 13, large),
        frame(RECEIVE_BASE, u32::MAX, large),
        frame(2 * RECEIVE_BASE - 59, 60, large),
        frame(u32::MAX, 60, large),
        Response::Sent { count: 1 },
        Response::Sent { count: u16::MAX },
    ] {
        let mut bench = Bench::new(true);
        bench.station.poll(0);
        bench.netback.borrow_mut().messages.push_back(message);
        assert!(answers(&mut bench, &arp_request()).is_empty(), "{message:?}");
        assert!(bench.station.port().is_gone(), "{message:?}");
    }
    let mut bench = Bench::new(true);
    for _ in 0..2 * FRAMES_MAX {
        bench.netback.borrow_mut().messages.push_back(frame(RECEIVE_BASE, 60, Segments::One));
    }
    bench.station.poll(0);
    assert!(bench.station.port().is_gone());
}

proptest! {
    #[test]
    fn no_frame_makes_the_station_panic(
        start in 0..4usize,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bench = Bench::new(true);
        let client = bench.connect(5001);
        bench.run();
        bench.socket(client).send_slice(b"L\x09\0\0\0\0\0\0\0abc").unwrap();
        bench.poll_guest();
        let mut segment = vec![];
        if let Some(Response::Receive(frame)) = bench.netback.borrow().messages.front() {
            segment.extend(&bench.netback.borrow().pool[frame.offset as usize..][..frame.len as usize]);
        }
        let mut frame = [arp_request(), ping(&[1; 20]), segment, vec![]][start].clone();
        for (index, value) in changes {
            if !frame.is_empty() {
                let at = index.index(frame.len());
                frame[at] = value;
            }
        }
        frame.truncate(cut.index(frame.len() + 1).max(frame.len() / 2));
        answers(&mut bench, &frame);
        bench.run();
    }
}
