//! An interface's two rings, grant table and state changes as a guest pleases, and frames for it.
//!
//! Input: steps. What must hold: every frame that reaches netback lies in the sending half of the pool.

use proto::net::{Checksum, Frame, Net, Offloads, POOL_SIZE, RECEIVE_BASE, Request, Response, Segments};
use rt::channel::Server;
use vmm::machine::Guest;
use vmm::memory::{Gfn, Page};
use vmm::net::{Nodes, Vif};
use vmm::testing::{channel_with_pool, guest, permit, recycle};

use crate::Input;

const TX: u64 = 8;
const RX: u64 = 9;
const ENTRIES: u32 = 256;

/// Runs one input, and panics where something does not hold.
pub fn run(bytes: &[u8]) {
    steps(&mut Input::new(bytes));
    recycle();
}

fn steps(input: &mut Input<'_>) {
    let mut guest = guest();
    for page in 8..60 {
        permit(&guest.memory, page, page, page % 8 == 7);
    }
    let port = guest.events.allocate_unbound(0).unwrap().0.to_string();
    let mut vif = Vif::new(32);
    let (client, mut server) = channel_with_pool::<Net>(POOL_SIZE);
    vif.set_link(Some(client));
    assert_eq!(server.receive(), Ok(Some(Request::Open)));
    server.send(&Response::Opened).unwrap();
    vif.service(&mut guest);
    connect(&mut vif, &mut guest, &port, input.u8());
    let [tx, rx] = [TX, RX].map(|gfn| guest.memory.page(Gfn(gfn)).unwrap());
    let (mut tx_prod, mut rx_prod) = (0u32, 0u32);
    while !input.is_empty() {
        match input.u8() % 12 {
            0..4 => {
                put_tx(input, &tx, tx_prod);
                tx_prod = tx_prod.wrapping_add(1);
                tx.set_u32(0, tx_prod);
            }
            4..6 => {
                let count = u32::from(input.u8() % 24);
                let first = u32::from(input.u8() % 64);
                for n in 0..count {
                    let at = 64 + (rx_prod % ENTRIES) as usize * 8;
                    rx.write(at, &[n as u8, 0, 0, 0]);
                    rx.set_u32(at + 4, first + n);
                    rx_prod = rx_prod.wrapping_add(1);
                }
                rx.set_u32(0, rx_prod);
            }
            6 => {
                let page = if input.u8() & 1 == 0 { &tx } else { &rx };
                let at = usize::from(input.u16()) % 4096;
                page.write(at, input.bytes(12.min(4096 - at)));
            }
            7 => (if input.u8() & 1 == 0 { &tx } else { &rx }).set_u32(0, input.u32()),
            8 => permit(&guest.memory, u32::from(input.u8() % 64), input.u16().into(), input.u8() & 1 != 0),
            9 => {
                vif.disconnect(&mut guest);
                (tx_prod, rx_prod) = (0, 0);
                connect(&mut vif, &mut guest, &port, input.u8());
            }
            10 => frame(input, &mut server),
            _ => serve(&mut server),
        }
        vif.service(&mut guest);
        let _ = vif.prepare_sleep();
    }
    serve(&mut server);
    vif.service(&mut guest);
}

fn connect(vif: &mut Vif, guest: &mut Guest, port: &str, flags: u8) {
    for grant in [TX, RX] {
        permit(&guest.memory, grant as u32, grant as u32, false);
    }
    let offloads = Offloads {
        has_partial_checksum: flags & 1 == 0,
        has_tcp_v4: flags & 2 == 0,
        has_tcp_v6: flags & 4 == 0,
    };
    let nodes = Nodes { tx_ring_ref: "8", rx_ring_ref: "9", event_channel: port, offloads };
    let _ = vif.connect(guest, &nodes);
}

/// A slot that is nearly sound.
fn put_tx(input: &mut Input<'_>, tx: &Page, produced: u32) {
    let mut entry = [0; 12];
    entry[0] = input.u8() % 64;
    entry[4..6].copy_from_slice(&(input.u16() % 4200).to_le_bytes());
    entry[6] = input.u8();
    entry[8] = produced as u8;
    entry[10..12].copy_from_slice(&input.u16().to_le_bytes());
    tx.write(64 + (produced % ENTRIES) as usize * 12, &entry);
}

/// A frame from netback, which the VMM distrusts as well.
fn frame(input: &mut Input<'_>, server: &mut Server<Net>) {
    let flags = input.u8();
    let size = input.u16();
    let segments = match flags & 3 {
        0 | 1 => Segments::One,
        2 => Segments::TcpV4 { size },
        _ => Segments::TcpV6 { size },
    };
    let base = if flags & 0x10 == 0 { RECEIVE_BASE } else { 0 };
    let offset = base + u32::from(input.u8()) * 1024;
    let frame = Frame { offset, len: input.u16().into(), checksum: Checksum::Partial, segments };
    let _ = server.send(&Response::Receive(frame));
}

fn serve(server: &mut Server<Net>) {
    while let Ok(Some(request)) = server.receive() {
        if let Request::Send(frame) = request {
            // Length 0 stands for one that was given up.
            assert!(frame.len == 0 || frame.is_within(0), "{frame:?}");
            let _ = server.send(&Response::Sent { count: 1 });
        }
    }
}
