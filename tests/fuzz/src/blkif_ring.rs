//! A disk's ring, grant table and state changes as a guest pleases, between it and a backend that behaves.
//!
//! Input: steps. What must hold: every transfer that reaches the backend lies in the pool and the volume.

use proto::blk::{self, Blk, Direction, IN_FLIGHT_MAX, Request, Response};
use rt::channel::Server;
use vmm::blk::Disk;
use vmm::memory::{Gfn, Page};
use vmm::testing::{channel_with_pool, guest, permit, recycle};

use crate::Input;

const RING_GRANT: u32 = 8;
const RING_GFN: u64 = 2;
const SECTORS: u64 = 4096;
const ENTRIES: u32 = 32;

/// Runs one input, and panics where something does not hold.
pub fn run(bytes: &[u8]) {
    steps(&mut Input::new(bytes));
    recycle();
}

fn steps(input: &mut Input<'_>) {
    let mut guest = guest();
    permit(&guest.memory, RING_GRANT, RING_GFN as u32, false);
    for page in 16..60 {
        permit(&guest.memory, page, page, page % 8 == 0);
    }
    let port = guest.events.allocate_unbound(0).unwrap();
    let (mut disk, mut server) = connect(input);
    disk.service(&mut guest);
    let port = port.0.to_string();
    let protocols = ["x86_64-abi", "", "x86_32-abi", "else"];
    let _ = disk.connect(&mut guest, "8", &port, protocols[usize::from(input.u8() & 3)]);
    let ring = guest.memory.page(Gfn(RING_GFN)).unwrap();
    let mut produced = 0u32;
    while !input.is_empty() {
        match input.u8() % 10 {
            0..3 => {
                request(input, &ring, produced);
                produced = produced.wrapping_add(1);
                ring.set_u32(0, produced);
            }
            3 => {
                let at = usize::from(input.u16()) % 4096;
                let bytes = input.bytes(16.min(4096 - at));
                ring.write(at, bytes);
            }
            4 => ring.set_u32(0, input.u32()),
            5 => {
                let page = guest.memory.page(Gfn(16 + u64::from(input.u8() % 40))).unwrap();
                let at = usize::from(input.u8()) * 8;
                page.write(at, input.bytes(8));
            }
            6 => permit(&guest.memory, u32::from(input.u8() % 64), input.u16().into(), input.u8() & 1 != 0),
            7 => {
                disk.disconnect(&mut guest);
                let protocol = protocols[usize::from(input.u8() & 3)];
                if disk.connect(&mut guest, "8", &port, protocol).is_err() {
                    permit(&guest.memory, RING_GRANT, RING_GFN as u32, false);
                }
                produced = 0;
            }
            8 => serve(&mut server, input),
            _ => disk.kicked(&mut guest),
        }
        disk.service(&mut guest);
        let _ = disk.prepare_sleep();
    }
    serve(&mut server, input);
    disk.service(&mut guest);
}

fn connect(input: &mut Input<'_>) -> (Disk, Server<Blk>) {
    let mut disk = Disk::new(2);
    let (client, mut server) = channel_with_pool::<Blk>(blk::POOL_SIZE);
    disk.set_link(Some(client));
    assert_eq!(server.receive(), Ok(Some(Request::Open)));
    let flags = input.u8();
    let opened = Response::Opened {
        sectors: SECTORS,
        sector_size: 512,
        is_read_only: flags & 1 != 0,
        has_cache: flags & 2 != 0,
    };
    server.send(&opened).unwrap();
    (disk, server)
}

/// A request that is nearly sound.
fn request(input: &mut Input<'_>, ring: &Page, produced: u32) {
    let mut entry = [0; 112];
    let kind = input.u8();
    entry[0] = if kind & 0x80 == 0 { kind % 7 } else { kind };
    entry[1] = input.u8();
    entry[2] = input.u8();
    entry[8] = produced as u8;
    entry[16..18].copy_from_slice(&input.u16().to_le_bytes());
    for segment in entry[24..].chunks_exact_mut(8) {
        let choice = input.u8();
        segment[0] = choice % 64;
        segment[4] = input.u8() % 9;
        segment[5] = if choice & 0x80 == 0 { 7 } else { input.u8() };
    }
    ring.write(64 + (produced % ENTRIES) as usize * 112, &entry);
}

fn serve(server: &mut Server<Blk>, input: &mut Input<'_>) {
    while let Ok(Some(request)) = server.receive() {
        let id = match request {
            Request::Transfer { id, sector, pool_offset, len, direction } => {
                assert!(u64::from(pool_offset) + u64::from(len) <= blk::POOL_SIZE);
                assert!(len > 0 && len % 512 == 0 && pool_offset % 512 == 0 && len <= blk::TRANSFER_MAX);
                assert!(sector + u64::from(len) / 512 <= SECTORS);
                assert!(matches!(direction, Direction::Read | Direction::Write));
                id
            }
            Request::Flush { id } => id,
            Request::Open => continue,
        };
        assert!(usize::from(id) < IN_FLIGHT_MAX);
        let status = if input.u8() & 15 == 1 { blk::Status::IoError } else { blk::Status::Ok };
        let _ = server.send(&Response::Done { id, status });
    }
}
