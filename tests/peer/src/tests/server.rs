//! What the server answers.

use alloc::vec;
use alloc::vec::Vec;

use smoltcp::socket::tcp::State;

use super::guest::Bench;

fn request(operation: u8, count: u64) -> Vec<u8> {
    let mut bytes = vec![operation];
    bytes.extend(count.to_le_bytes());
    bytes
}

#[test]
fn requests_of_every_kind_follow_each_other_on_one_connection() {
    every_kind(Bench::new(true));
    every_kind(Bench::new(false));
}

fn every_kind(mut bench: Bench) {
    let client = bench.connect(5001);
    for count in [3u64, 0, 1_000_000] {
        bench.write(client, &request(b'T', count));
        bench.write(client, &vec![7; count as usize]);
        assert_eq!(bench.read(client, 1), b"k");
        bench.write(client, &request(b'R', count));
        assert_eq!(bench.read(client, count as usize).len(), count as usize);
    }
    bench.write(client, &request(b'L', 300));
    let text: Vec<u8> = (0..300u32).map(|n| n as u8).collect();
    for byte in &text[..20] {
        bench.write(client, &[*byte]);
        assert_eq!(bench.read(client, 1), [*byte]);
    }
    bench.write(client, &text[20..]);
    assert_eq!(bench.read(client, 280), text[20..]);
    // All at once, cut at an odd place.
    let mut stream = request(b'T', 5);
    stream.extend(b"12345");
    stream.extend(request(b'L', 2));
    stream.extend(b"ab");
    stream.extend(request(b'R', 0));
    stream.extend(request(b'T', 0));
    let (first, second) = stream.split_at(12);
    bench.write(client, first);
    bench.write(client, second);
    assert_eq!(bench.read(client, 4), b"kabk");
    bench.run();
    assert_eq!(bench.socket(client).recv_queue(), 0);
}

#[test]
fn six_connections_at_once_and_many_one_after_the_other() {
    let mut bench = Bench::new(true);
    for round in 0..5u8 {
        let clients: Vec<_> = (0..6).map(|_| bench.connect(5001)).collect();
        for &client in &clients {
            bench.write(client, &request(b'L', 1000));
        }
        for (n, &client) in clients.iter().enumerate() {
            bench.write(client, &[round * 16 + n as u8]);
        }
        for (n, &client) in clients.iter().enumerate() {
            assert_eq!(bench.read(client, 1), [round * 16 + n as u8]);
            bench.socket(client).close();
        }
        bench.run();
        bench.run();
        assert!(clients.iter().all(|client| bench.is_over(*client)));
    }
}

#[test]
fn who_stops_sending_still_gets_what_was_asked_for() {
    let mut bench = Bench::new(true);
    let client = bench.connect(5001);
    bench.write(client, &request(b'R', 400_000));
    bench.socket(client).close();
    assert_eq!(bench.read(client, 400_000).len(), 400_000);
    bench.run();
    assert!(bench.is_over(client));
}

#[test]
fn a_request_of_no_kind_breaks_the_connection_off() {
    let mut bench = Bench::new(true);
    for _ in 0..20 {
        let client = bench.connect(5001);
        bench.write(client, &request(b'X', 1));
        bench.run();
        assert_eq!(bench.socket(client).state(), State::Closed);
    }
}

#[test]
fn the_closing_port_accepts_and_closes_again_and_again() {
    let mut bench = Bench::new(true);
    for _ in 0..20 {
        let client = bench.connect(5003);
        for _ in 0..5 {
            bench.run();
        }
        assert_eq!(bench.socket(client).state(), State::CloseWait);
        bench.socket(client).close();
        bench.run();
        assert_eq!(bench.socket(client).state(), State::Closed);
    }
    let refused = bench.connect(5002);
    bench.run();
    assert_eq!(bench.socket(refused).state(), State::Closed);
}

#[test]
fn a_guest_that_vanishes_frees_its_connection() {
    let mut bench = Bench::new(true);
    for _ in 0..6 {
        let client = bench.connect(5001);
        bench.write(client, &request(b'L', 10));
        bench.sockets.remove(client);
        bench.netback.borrow_mut().frames.clear();
    }
    // The network swallows all signs of life, and the answers that the guest's stack would give.
    for _ in 0..40 {
        bench.now_ns += 5_000_000_000;
        bench.station.poll(bench.now_ns);
        bench.netback.borrow_mut().frames.clear();
    }
    let client = bench.connect(5001);
    bench.write(client, &request(b'T', 0));
    assert_eq!(bench.read(client, 1), b"k");
}

#[test]
fn lost_frames_cost_time_but_no_byte() {
    let mut bench = Bench::new(true);
    bench.netback.borrow_mut().loses = Some(11);
    let client = bench.connect(5001);
    bench.write(client, &request(b'T', 300_000));
    bench.write(client, &vec![1; 300_000]);
    assert_eq!(bench.read(client, 1), b"k");
    bench.write(client, &request(b'R', 300_000));
    assert_eq!(bench.read(client, 300_000).len(), 300_000);
    bench.write(client, &request(b'L', 1000));
    let text: Vec<u8> = (0..1000u32).map(|n| (n * 7) as u8).collect();
    bench.write(client, &text);
    assert_eq!(bench.read(client, 1000), text);
}

/// Of data without meaning only headers are copied; what stands before and behind them must not suffer.
#[test]
fn what_has_a_meaning_arrives_between_bytes_that_have_none() {
    for (has_offload, loses) in [(true, None), (false, None), (true, Some(7)), (false, Some(7))] {
        let mut bench = Bench::new(has_offload);
        bench.netback.borrow_mut().pool.fill(0xee);
        bench.netback.borrow_mut().loses = loses;
        let client = bench.connect(5001);
        let text: Vec<u8> = (0..3000u32).map(|n| (n * 13 % 251) as u8).collect();
        for _ in 0..2 {
            let mut stream = request(b'L', 3000);
            stream.extend(&text);
            stream.extend(request(b'T', 700_000));
            stream.extend(vec![0x55; 700_000]);
            stream.extend(request(b'R', 100_000));
            stream.extend(request(b'L', 3000));
            stream.extend(&text);
            stream.extend(request(b'R', 500_000));
            bench.write(client, &stream);
            assert_eq!(bench.read(client, 3000), text);
            assert_eq!(bench.read(client, 1), b"k");
            bench.read(client, 100_000);
            assert_eq!(bench.read(client, 3000), text);
            bench.read(client, 500_000);
        }
        // And another client's bytes, while one takes and one gives.
        let (taker, giver, echo) = (bench.connect(5001), client, bench.connect(5001));
        bench.write(giver, &request(b'R', 600_000));
        bench.write(taker, &request(b'T', 1_000_000));
        bench.write(echo, &request(b'L', 3000));
        bench.socket(taker).send_slice(&vec![1; 100_000]).unwrap();
        bench.write(echo, &text);
        assert_eq!(bench.read(echo, 3000), text);
    }
}

#[test]
fn the_station_rests_only_while_a_client_sends_a_lot() {
    let mut bench = Bench::new(true);
    let client = bench.connect(5001);
    bench.write(client, &request(b'T', 1_000_000));
    let mut rests = Vec::new();
    let mut left = 1_000_000;
    while left > 0 {
        let sent = bench.socket(client).send_slice(&vec![1; left.min(100_000)]).unwrap();
        left -= sent;
        bench.poll_guest();
        bench.station.poll(bench.now_ns);
        rests.push((left, bench.station.can_rest()));
        bench.poll_guest();
        bench.station.poll(bench.now_ns);
        bench.station.poll(bench.now_ns);
        assert!(!bench.station.can_rest(), "nothing came");
    }
    assert!(rests.iter().all(|(left, rests)| !rests || (100_000..750_000).contains(left)), "{rests:?}");
    assert!(rests.iter().filter(|(_, rests)| *rests).count() > 2, "{rests:?}");
    assert_eq!(bench.read(client, 1), b"k");
    bench.write(client, &request(b'R', 3_000_000));
    bench.station.poll(bench.now_ns);
    assert!(!bench.station.can_rest());
}
