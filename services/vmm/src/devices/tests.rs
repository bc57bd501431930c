//! The devices together: a store service, a blkback and a frontend over real channels.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use proto::blk::Blk;
use proto::console::GuestConsole;
use proto::text::Bytes;
use proto::xenstore::{Message, Role, Xenstore};
use rt::channel::Server;

use super::*;
use crate::grants::tests::permit;
use crate::memory::Gfn;
use crate::testing::{guest, server_and_info};

struct Setup {
    guest: Guest,
    devices: Devices,
    store: Server<Xenstore>,
    blk: Server<Blk>,
    console: Server<GuestConsole>,
    written: Vec<(String, String)>,
    front_state: &'static str,
}

const DISK: u32 = 51712;

fn setup() -> Setup {
    let guest = guest();
    let mut devices = Devices::new(&guest, &[DISK], &[]).unwrap();
    let (store, info) = server_and_info::<Xenstore>(0);
    devices.attach(&info, None).unwrap();
    let (blk, info) = server_and_info::<Blk>(proto::blk::POOL_SIZE);
    assert!(devices.attach(&info, Some(7)).is_err());
    devices.attach(&info, Some(DISK)).unwrap();
    let (console, info) = server_and_info::<GuestConsole>(0);
    devices.attach(&info, None).unwrap();
    Setup { guest, devices, store, blk, console, written: Vec::new(), front_state: "1" }
}

impl Setup {
    fn serve_store(&mut self) {
        while let Ok(Some(request)) = self.store.receive() {
            assert_eq!(request.role, Role::Backend);
            let text = core::str::from_utf8(&request.payload).unwrap().to_string();
            let (path, rest) = text.split_once('\0').unwrap();
            let (op, payload) = match request.op {
                2 if path.ends_with("/state") => (2, self.front_state),
                2 if path.ends_with("/ring-ref") => (2, "8"),
                2 if path.ends_with("/event-channel") => (2, "3"),
                2 => (16, "ENOENT\0"),
                11 => {
                    self.written.push((path.to_string(), rest.to_string()));
                    (11, "OK\0")
                }
                op => (op, "OK\0"),
            };
            let payload = Bytes::truncated(payload.as_bytes());
            self.store.send(&Message { role: Role::Backend, op, id: request.id, tx: 0, payload }).unwrap();
        }
    }

    fn fire(&mut self) {
        let payload = Bytes::truncated(b"/local/domain/5/device/vbd/51712/state\x000\0");
        self.store.send(&Message { role: Role::Backend, op: 15, id: 0, tx: 0, payload }).unwrap();
    }

    fn rounds(&mut self) {
        for _ in 0..12 {
            self.devices.signalled(&mut self.guest, u64::MAX);
            self.devices.settle(&mut self.guest, false);
            self.serve_store();
        }
    }

    fn last(&self, key: &str) -> Option<&str> {
        self.written.iter().rev().find(|(path, _)| path.ends_with(key)).map(|(_, value)| value.as_str())
    }
}

#[test]
fn a_disk_is_opened_connected_and_described_before_it_says_connected() {
    let mut s = setup();
    assert_eq!(s.devices.readiness(), Readiness::Opening);
    s.blk
        .send(&proto::blk::Response::Opened {
            sectors: 2048,
            sector_size: 512,
            is_read_only: true,
            has_cache: true,
        })
        .unwrap();
    s.rounds();
    assert_eq!(s.devices.readiness(), Readiness::Ready);
    s.devices.start_handshakes();
    s.rounds();
    assert_eq!(s.last("/state"), Some("2"));
    permit(&s.guest.memory, 8, 2, false);
    assert_eq!(s.guest.events.allocate_unbound(0).unwrap(), crate::events::Port(3));
    s.front_state = "3";
    s.fire();
    s.rounds();
    let keys: Vec<&str> = s.written.iter().filter_map(|(path, _)| path.rsplit('/').next()).collect();
    assert_eq!(
        keys,
        [
            "state",
            "sectors",
            "sector-size",
            "info",
            "feature-flush-cache",
            "feature-max-indirect-segments",
            "state"
        ]
    );
    assert_eq!((s.last("/info"), s.last("/sectors"), s.last("/state")), (Some("4"), Some("2048"), Some("4")));
    s.front_state = "6";
    s.fire();
    s.rounds();
    assert_eq!(s.last("/state"), Some("6"));
    assert_eq!(crate::grants::tests::flags(&s.guest.memory, 8), 1);
}

#[test]
fn a_refused_volume_is_told_with_its_reason() {
    let mut s = setup();
    let reason = proto::blk::Refusal::NoVolume;
    s.blk.send(&proto::blk::Response::Refused { reason }).unwrap();
    s.rounds();
    assert_eq!(
        s.devices.readiness(),
        Readiness::Refused("disk 51712: There is no volume of this name.".into())
    );
}

#[test]
fn console_input_that_the_guest_does_not_take_does_not_keep_the_domain_awake() {
    let mut s = setup();
    for _ in 0..8 {
        s.console.send(&proto::console::GuestInput(Bytes::truncated(&[b'x'; 246]))).unwrap();
    }
    s.devices.signalled(&mut s.guest, u64::MAX);
    s.devices.settle(&mut s.guest, false);
    let ring = s.guest.special(special::CONSOLE).unwrap();
    assert_eq!(ring.u32(3076), 1024);
    // Blocked devices cost nothing until their guest notifies.
    assert_eq!((s.devices.armed | s.devices.blocked, s.guest.events.kicks), (s.devices.all, 0));
    assert_ne!(s.devices.blocked & 1 << device::CONSOLE, 0);
    ring.set_u32(3072, 1024);
    let port = s.guest.console_port;
    s.guest.events.send(port).unwrap();
    s.devices.settle(&mut s.guest, false);
    assert_eq!(ring.u32(3076), 8 * 246);
    assert_eq!(s.guest.memory.special_at(Gfn(0)), None);
}

#[test]
fn a_detached_channel_is_let_go_and_its_successor_taken() {
    let mut s = setup();
    assert_eq!(s.devices.detach(999), None);
    let number = s.devices.detach(1);
    assert!(number.is_some());
}
