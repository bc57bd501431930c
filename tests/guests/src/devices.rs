//! A frontend for a disk and two network interfaces that connects as it should and then does as it pleases.
//!
//! A round connects the devices (again), makes some hundred random requests and ends with producer indices
//! that are impossible. Requests are so near to sound ones that many are: what is wrong with the others is a
//! sector, a grant, a count, a length, a flag. Sources: Xen public/io/ring.h, blkif.h, netif.h,
//! public/grant_table.h.

use crate::machine::{hypercall, peek, poke, poke8, poke32};
use crate::numbers::Random;
use crate::out::say;
use crate::store::Store;
use crate::xen::{EVENT_CHANNEL_OP, give_way, map_frame, notify};
use crate::{NOWHERE, SCRATCH};

const ROUNDS: u64 = 40;
const STEPS: u64 = 250;
/// Where this kernel has its grant table, rings, indirect page and data, in guest-physical memory.
const GRANTS: u64 = SCRATCH + 0x10_0000;
const DISK_RING: u64 = GRANTS + 0x1000;
const TX_RING: u64 = GRANTS + 0x2000;
const RX_RING: u64 = GRANTS + 0x3000;
/// Rings of the second interface: so far behind the first's.
const SECOND: u64 = 0x2000;
const INDIRECT: u64 = GRANTS + 0x6000;
const DATA: u64 = GRANTS + 0x8000;
/// Grants of the rings and the indirect page, in their order; data pages follow.
const FIRST_GRANT: u64 = 8;
const FIRST_DATA: u64 = FIRST_GRANT + 6;
const DATA_PAGES: u64 = 48;
/// Sectors of the disk: 8 MiB.
const SECTORS: u64 = 8 << 11;
/// Times that a backend's state is looked at.
const PATIENCE: u32 = 2000;

const DISK: &[u8] = b"device/vbd/51712/";
const VIFS: [&[u8]; 2] = [b"device/vif/0/", b"device/vif/1/"];

/// One ring, from the frontend's side.
struct Ring {
    page: u64,
    entries: u32,
    stride: u64,
    /// Where a response has its status.
    status: u64,
    produced: u32,
    seen: u32,
    /// Responses of all rounds, and those without an error.
    answers: u64,
    good: u64,
}

impl Ring {
    fn new(page: u64, entries: u32, stride: u64, status: u64) -> Self {
        Self { page, entries, stride, status, produced: 0, seen: 0, answers: 0, good: 0 }
    }

    fn reset(&mut self) {
        (0..8).for_each(|n| poke(self.page + 8 * n, 0));
        poke32(self.page + 4, 1);
        poke32(self.page + 12, 1);
        (self.produced, self.seen) = (0, 0);
    }

    fn slot(&self, index: u32) -> u64 {
        self.page + 64 + u64::from(index % self.entries) * self.stride
    }

    /// Looks for responses: whether there is room for `count` requests.
    fn has_room(&mut self, count: u32) -> bool {
        let visible = peek(self.page + 8) as u32;
        // A guest that has its ring written over by its own disk may find anything here.
        let fresh = visible.wrapping_sub(self.seen);
        if fresh <= self.entries {
            for n in 0..fresh {
                let status = peek(self.slot(self.seen.wrapping_add(n)) + self.status) as i16;
                self.good += u64::from(status >= 0);
            }
            self.answers += u64::from(fresh);
            self.seen = visible;
        }
        self.produced.wrapping_sub(self.seen) + count <= self.entries
    }

    /// Writes the words of the next request.
    fn put(&mut self, words: &[u32]) {
        let at = self.slot(self.produced);
        for (n, word) in words.iter().enumerate() {
            poke32(at + 4 * n as u64, *word);
        }
        self.produced = self.produced.wrapping_add(1);
    }

    fn publish(&self) {
        poke32(self.page, self.produced);
    }

    /// Publishes what cannot be.
    fn run_ahead(&self, random: &mut Random) {
        let ahead = if random.below(2) == 0 { self.entries + 1 } else { random.next() as u32 };
        poke32(self.page, self.produced.wrapping_add(ahead));
    }
}

struct Vif {
    path: &'static [u8],
    /// Grant of the tx ring; the rx ring's is the next.
    grant: u32,
    tx: Ring,
    rx: Ring,
    port: u64,
}

impl Vif {
    fn new(n: u64, path: &'static [u8]) -> Self {
        Self {
            path,
            grant: (FIRST_GRANT + 1 + 2 * n) as u32,
            tx: Ring::new(TX_RING + n * SECOND, 256, 12, 2),
            rx: Ring::new(RX_RING + n * SECOND, 256, 8, 6),
            port: 0,
        }
    }

    /// A packet of some slots, perhaps with extra slots, published as a whole (nearly always).
    fn packet(&mut self, random: &mut Random) {
        if !self.tx.has_room(40) {
            notify(self.port);
            return give_way();
        }
        let more = if random.below(16) == 0 { random.below(30) } else { random.below(4) };
        let extras = if random.below(3) == 0 { 1 + random.below(3) } else { 0 };
        let first = odd(random, |random| 60 + random.below(1400)) & 0xffff;
        let mut flags = random.below(4) | u64::from(more > 0) << 2 | u64::from(extras > 0) << 3;
        if random.below(256) == 0 {
            // A part of a packet.
            flags |= 4;
        }
        self.slot(random, first + more * 100, flags);
        for n in (0..extras).rev() {
            let kind = odd(random, |_| 1) as u32 & 0xff;
            let segment = odd(random, |_| 1448) as u32 & 0xffff;
            let gso = odd(random, |random| 1 + random.below(2)) as u32 & 0xff;
            self.tx.put(&[kind | u32::from(n > 0) << 8 | segment << 16, gso, random.next() as u32]);
        }
        for n in (0..more).rev() {
            self.slot(random, 100, u64::from(n > 0) << 2);
        }
        self.tx.publish();
    }

    fn slot(&mut self, random: &mut Random, size: u64, flags: u64) {
        let grant = odd(random, |random| FIRST_DATA + random.below(DATA_PAGES)) as u32;
        let offset = odd(random, |_| 0) as u32 & 0xffff;
        let size = odd(random, |_| size) as u32 & 0xffff;
        let id = random.next() as u32 & 0xffff;
        self.tx.put(&[grant, offset | (flags as u32 & 0xf) << 16, id | size << 16]);
    }

    /// Pages for frames.
    fn buffers(&mut self, random: &mut Random) {
        let count = 1 + random.below(40) as u32;
        if !self.rx.has_room(count) {
            return;
        }
        for _ in 0..count {
            let grant = odd(random, |random| FIRST_DATA + random.below(DATA_PAGES)) as u32;
            self.rx.put(&[random.next() as u32, grant]);
        }
        self.rx.publish();
    }
}

struct Devices {
    store: Store,
    disk: Ring,
    disk_port: u64,
    /// What one sends to everybody, the other receives.
    vifs: [Vif; 2],
}

/// The mode: steps that were tried.
pub fn run(random: &mut Random) -> u64 {
    // The grant table's first frame.
    map_frame(1, 0, GRANTS >> 12);
    let mut devices = Devices {
        store: Store::new(),
        disk: Ring::new(DISK_RING, 32, 112, 10),
        disk_port: 0,
        vifs: [Vif::new(0, VIFS[0]), Vif::new(1, VIFS[1])],
    };
    let mut connected = 0;
    for _ in 0..ROUNDS {
        connected += u32::from(devices.connect(random));
        for step in 0..STEPS {
            devices.step(random, step);
        }
        devices.end_round(random);
    }
    say!("devices: {connected} rounds connected");
    let [first, second] = &devices.vifs;
    for (name, ring) in [("disk", &devices.disk), ("tx", &first.tx), ("rx", &second.rx)] {
        say!("{name} ring: {} answers, {} of them good", ring.answers, ring.good);
    }
    ROUNDS * STEPS
}

/// A port for a backend.
fn port() -> u64 {
    poke(SCRATCH, 0x7ff0);
    hypercall(EVENT_CHANNEL_OP, [6, SCRATCH, 0, 0, 0]);
    peek(SCRATCH) >> 32
}

fn close(port: u64) {
    poke(SCRATCH, port);
    hypercall(EVENT_CHANNEL_OP, [3, SCRATCH, 0, 0, 0]);
}

/// Grants a frame to the backends' domain.
fn grant(number: u64, frame: u64, flags: u64) {
    poke(GRANTS + 8 * number, flags | frame << 32);
}

impl Devices {
    /// Connects all devices, whatever they were before; whether their backends say so.
    fn connect(&mut self, random: &mut Random) -> bool {
        let is_ready = self.all_are(1, b'2');
        close(self.disk_port);
        self.disk_port = port();
        self.disk.reset();
        for vif in &mut self.vifs {
            close(vif.port);
            vif.port = port();
            vif.tx.reset();
            vif.rx.reset();
        }
        for n in 0..FIRST_DATA - FIRST_GRANT {
            grant(FIRST_GRANT + n, (DISK_RING >> 12) + n, 1);
        }
        for n in 0..DATA_PAGES {
            data(n, random);
        }
        self.store.write(&[DISK, b"ring-ref"], FIRST_GRANT as u32);
        self.store.write(&[DISK, b"event-channel"], self.disk_port as u32);
        for Vif { path, grant, port, .. } in &self.vifs {
            self.store.write(&[path, b"tx-ring-ref"], *grant);
            self.store.write(&[path, b"rx-ring-ref"], *grant + 1);
            self.store.write(&[path, b"event-channel"], *port as u32);
            for feature in [&b"feature-sg"[..], b"feature-gso-tcpv4", b"feature-ipv6-csum-offload"] {
                self.store.write(&[path, feature], 1);
            }
        }
        is_ready & self.all_are(4, b'4')
    }

    /// Takes every device to a state; whether every backend follows.
    fn all_are(&mut self, front: u32, back: u8) -> bool {
        for path in [DISK].iter().chain(&VIFS) {
            self.store.write(&[path, b"state"], front);
        }
        [DISK].iter().chain(&VIFS).fold(true, |all, path| all & self.wait(path, back))
    }

    /// Waits until a device's backend is in a state.
    fn wait(&mut self, device: &[u8], state: u8) -> bool {
        let mut path = [0; 96];
        let back = self.store.read(&[device, b"backend"]);
        let len = back.len().min(path.len());
        path.iter_mut().zip(back).for_each(|(to, from)| *to = *from);
        let path = path.get(..len).unwrap_or_default();
        for _ in 0..PATIENCE {
            if self.store.read(&[path, b"/state"]).first() == Some(&state) {
                return true;
            }
            give_way();
        }
        false
    }

    fn step(&mut self, random: &mut Random, step: u64) {
        // What was granted changes under way, at times.
        if random.below(64) == 0 {
            poke(GRANTS + 8 * (FIRST_DATA + random.below(DATA_PAGES)), random.argument());
        }
        match random.below(10) {
            0..4 => self.disk_request(random),
            4..8 => self.vif(random).packet(random),
            _ => self.vif(random).buffers(random),
        }
        // Notices come late, or more often than there is something.
        if random.below(3) == 0 {
            notify(self.disk_port);
        }
        if random.below(3) == 0 {
            notify(self.vif(random).port);
        }
        if step.is_multiple_of(16) {
            give_way();
        }
    }

    fn vif(&mut self, random: &mut Random) -> &mut Vif {
        let [first, second] = &mut self.vifs;
        if random.below(2) == 0 { first } else { second }
    }

    fn disk_request(&mut self, random: &mut Random) {
        if !self.disk.has_room(1) {
            notify(self.disk_port);
            return give_way();
        }
        let operation = match random.below(16) {
            0..6 => 0,
            6..12 => 1,
            12 => 3,
            13 => 6,
            14 => 5,
            _ => random.next() as u32 & 0xff,
        };
        let sector = odd(random, |random| random.below(SECTORS - 64));
        let is_indirect = operation == 6 || random.below(4) == 0;
        let mut words = [0; 28];
        if is_indirect {
            let count = odd(random, |random| 1 + random.below(32)) as u32 & 0xffff;
            let direction = odd(random, |random| random.below(2)) as u32 & 0xff;
            words[0] = 6 | direction << 8 | count << 16;
            words[7] = odd(random, |_| FIRST_DATA - 1) as u32;
            for n in 0..64 {
                let [grant, range] = segment(random);
                poke(INDIRECT + 8 * n, u64::from(grant) | u64::from(range) << 32);
            }
        } else {
            let count = odd(random, |random| random.below(12)) as u32 & 0xff;
            words[0] = operation | count << 8;
            for pair in words[6..].chunks_exact_mut(2) {
                pair.copy_from_slice(&segment(random));
            }
        }
        (words[2], words[3]) = (random.next() as u32, random.next() as u32);
        (words[4], words[5]) = (sector as u32, (sector >> 32) as u32);
        self.disk.put(&words);
        // The backend's copy is what counts: this is written while it may be read.
        self.disk.publish();
        if random.below(4) == 0 {
            poke32(self.disk.page + 12, random.next() as u32);
        }
    }

    /// Reads of the disk into its own ring and the grant table; then indices far ahead.
    fn end_round(&mut self, random: &mut Random) {
        self.disk.has_room(0);
        grant(FIRST_DATA, GRANTS >> 12, 1);
        for n in 0..random.below(4) as u32 {
            let target = if n == 3 { FIRST_DATA } else { FIRST_GRANT + u64::from(n) };
            let sector = random.below(SECTORS - 64) as u32;
            self.disk.put(&[1 << 8, 0, n, 0, sector, 0, target as u32, 7 << 8]);
            self.disk.publish();
            notify(self.disk_port);
        }
        self.disk.run_ahead(random);
        notify(self.disk_port);
        for vif in &mut self.vifs {
            vif.tx.has_room(0);
            vif.rx.has_room(0);
            vif.tx.run_ahead(random);
            vif.rx.run_ahead(random);
            notify(vif.port);
        }
        give_way();
    }
}

/// What is usual, and now and then something else.
fn odd(random: &mut Random, usual: impl FnOnce(&mut Random) -> u64) -> u64 {
    if random.below(64) == 0 { random.argument() } else { usual(random) }
}

/// The grant and the range of sectors of a segment.
fn segment(random: &mut Random) -> [u32; 2] {
    let grant = odd(random, |random| FIRST_DATA + random.below(DATA_PAGES)) as u32;
    let range = odd(random, |random| random.below(4) | (4 + random.below(4)) << 8) as u32;
    [grant, range]
}

/// A data page, granted: a frame of TCP over IPv4 to everybody, and noise; some only for reading, some to
/// another domain, one behind the RAM.
fn data(n: u64, random: &mut Random) {
    const FRAME: [u8; 24] = [
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x00, 0x16, 0x3e, 0x00, 0x00, 0x77, 0x08, 0x00, 0x45, 0, 5, 0xb4,
        0, 0, 0, 0, 64, 6,
    ];
    let page = DATA + n * 0x1000;
    for at in (0..0x1000).step_by(64) {
        poke(page + at, random.next());
    }
    for (at, byte) in FRAME.iter().enumerate() {
        poke8(page + at as u64, *byte);
    }
    let (frame, flags) = match n {
        0..44 => (page >> 12, 1),
        44 => (page >> 12, 1 | 4),
        45 => (page >> 12, 1 | 9 << 16),
        46 => (page >> 12, 2),
        _ => (NOWHERE >> 12, 1),
    };
    grant(FIRST_DATA + n, frame, flags);
}
