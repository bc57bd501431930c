//! The PV console ring, and the channel to the console service.
//!
//! The guest owns `in_cons` and `out_prod`; the other two indices are kept privately and only published.
//! An impossible distance resets that direction. Output is consumed without waiting for input; input that
//! the guest does not take stays in the channel. Source: Xen public/io/console.h.

use proto::console::{GuestConsole, GuestInput, GuestOutput};
use proto::counters::{CONSOLE_BYTES_IN, CONSOLE_BYTES_OUT};
use proto::text::Bytes;
use rt::channel::{Client, SendError};

use crate::devices::{Sleep, sleep};
use crate::machine::Guest;
use crate::memory::Page;

const IN: usize = 0;
const IN_SIZE: u32 = 1024;
const OUT: usize = 1024;
const OUT_SIZE: u32 = 2048;
const IN_CONS: usize = 3072;
const IN_PROD: usize = 3076;
const OUT_CONS: usize = 3080;
const OUT_PROD: usize = 3084;
/// Bytes of one message.
const CHUNK: usize = 246;

/// Copies `out.len()` bytes from a byte ring at free-running index `from`.
pub(crate) fn ring_read(page: &Page, base: usize, size: u32, from: u32, out: &mut [u8]) {
    let start = (from & (size - 1)) as usize;
    let first = out.len().min(size as usize - start);
    let (head, tail) = out.split_at_mut(first);
    page.read(base + start, head);
    page.read(base, tail);
}

/// Copies `bytes` into a byte ring at free-running index `to`.
pub(crate) fn ring_write(page: &Page, base: usize, size: u32, to: u32, bytes: &[u8]) {
    let start = (to & (size - 1)) as usize;
    let (head, tail) = bytes.split_at(bytes.len().min(size as usize - start));
    page.write(base + start, head);
    page.write(base, tail);
}

/// The guest's console.
#[derive(Debug)]
pub struct Console {
    ring: Page,
    link: Option<Client<GuestConsole>>,
    in_prod: u32,
    out_cons: u32,
    /// Input that the ring had no room for, from the offset on.
    input: Bytes<CHUNK>,
    input_done: usize,
}

impl Console {
    /// The console over its ring page.
    pub fn new(ring: Page) -> Self {
        Self { ring, link: None, in_prod: 0, out_cons: 0, input: Bytes::new(), input_done: 0 }
    }

    /// Uses this channel from now on, or none: then output is dropped.
    pub fn set_link(&mut self, link: Option<Client<GuestConsole>>) {
        self.link = link;
    }

    /// The channel.
    pub fn link(&self) -> Option<&Client<GuestConsole>> {
        self.link.as_ref()
    }

    /// Moves what can be moved in both directions.
    pub fn service(&mut self, guest: &mut Guest) {
        let moved_out = self.output(guest);
        let moved_in = self.input(guest);
        if moved_out || moved_in {
            guest.events.raise(guest.console_port);
        }
        if let Some(link) = &mut self.link {
            link.flush();
        }
    }

    /// Asks for a signal when input comes.
    pub fn prepare_sleep(&mut self) -> Sleep {
        // While the guest takes no input there is no point in asking for more.
        if self.input_done < self.input.len() {
            return Sleep::Blocked;
        }
        sleep(self.link.as_mut().map(Client::prepare_sleep))
    }

    /// Sends to the console service; `false`: not now.
    fn send(&mut self, bytes: &[u8]) -> bool {
        let Some(link) = &mut self.link else { return true };
        match link.send(&GuestOutput(Bytes::truncated(bytes))) {
            Ok(()) => {
                rt::counters::add(CONSOLE_BYTES_OUT, bytes.len() as u64);
                true
            }
            Err(SendError::Full) => false,
            Err(error) => {
                log::warn!("console channel: {error}");
                self.link = None;
                true
            }
        }
    }

    fn output(&mut self, guest: &mut Guest) -> bool {
        while !guest.early_output.is_empty() {
            let mut chunk: heapless::Vec<u8, CHUNK> = heapless::Vec::new();
            for &byte in guest.early_output.iter().take(CHUNK) {
                let _ = chunk.push(byte);
            }
            if !self.send(&chunk) {
                return false;
            }
            for _ in 0..chunk.len() {
                guest.early_output.pop_front();
            }
        }
        let produced = self.ring.u32(OUT_PROD);
        let mut waiting = produced.wrapping_sub(self.out_cons);
        if waiting > OUT_SIZE {
            if guest.odd.allows() {
                log::debug!("the guest's console ring is inconsistent; output is skipped");
            }
            self.out_cons = produced;
            waiting = 0;
        }
        let before = self.out_cons;
        while waiting > 0 {
            let mut chunk = [0; CHUNK];
            let len = (waiting as usize).min(CHUNK);
            let chunk = chunk.get_mut(..len).unwrap_or(&mut []);
            ring_read(&self.ring, OUT, OUT_SIZE, self.out_cons, chunk);
            if !self.send(chunk) {
                break;
            }
            self.out_cons = self.out_cons.wrapping_add(len as u32);
            waiting -= len as u32;
        }
        self.ring.set_u32(OUT_CONS, self.out_cons);
        self.out_cons != before
    }

    fn input(&mut self, guest: &mut Guest) -> bool {
        let consumed = self.ring.u32(IN_CONS);
        if self.in_prod.wrapping_sub(consumed) > IN_SIZE {
            if guest.odd.allows() {
                log::debug!("the guest's console ring is inconsistent; input is skipped");
            }
            self.in_prod = consumed;
        }
        let before = self.in_prod;
        loop {
            if self.input_done >= self.input.len() && !self.next_input() {
                break;
            }
            let room = IN_SIZE - self.in_prod.wrapping_sub(consumed).min(IN_SIZE);
            let rest = self.input.get(self.input_done..).unwrap_or(&[]);
            let chunk = rest.get(..rest.len().min(room as usize)).unwrap_or(&[]);
            if chunk.is_empty() {
                break;
            }
            ring_write(&self.ring, IN, IN_SIZE, self.in_prod, chunk);
            self.in_prod = self.in_prod.wrapping_add(chunk.len() as u32);
            self.input_done += chunk.len();
            rt::counters::add(CONSOLE_BYTES_IN, chunk.len() as u64);
        }
        self.ring.set_u32(IN_PROD, self.in_prod);
        self.in_prod != before
    }

    /// Takes the next message of input; `false`: there is none.
    fn next_input(&mut self) -> bool {
        let Some(link) = &mut self.link else { return false };
        match link.receive() {
            Ok(Some(GuestInput(bytes))) => {
                self.input = bytes;
                self.input_done = 0;
                true
            }
            Ok(None) => false,
            Err(error) => {
                log::warn!("console channel: {error}");
                self.link = None;
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loader::place::special;
    use crate::testing::{channel, guest};
    use alloc::vec::Vec;
    use proptest::prelude::*;
    use rt::channel::Server;

    fn console() -> (Guest, Console, Page, Server<GuestConsole>) {
        let guest = guest();
        let page = guest.special(special::CONSOLE).unwrap();
        let mut console = Console::new(page);
        let (client, server) = channel::<GuestConsole>();
        console.set_link(Some(client));
        (guest, console, page, server)
    }

    fn received(server: &mut Server<GuestConsole>) -> Vec<u8> {
        let mut all = Vec::new();
        while let Ok(Some(GuestOutput(bytes))) = server.receive() {
            all.extend_from_slice(&bytes);
        }
        all
    }

    #[test]
    fn output_arrives_in_order_across_the_end_of_the_ring() {
        let (mut guest, mut console, page, mut server) = console();
        (console.out_cons, console.in_prod) = (u32::MAX - 99, 0);
        let text: Vec<u8> = (0..1500u32).map(|n| n as u8).collect();
        ring_write(&page, OUT, OUT_SIZE, console.out_cons, &text);
        page.set_u32(OUT_PROD, console.out_cons.wrapping_add(1500));
        let before = rt::counters::get(CONSOLE_BYTES_OUT);
        console.service(&mut guest);
        // Other tests count into the same page.
        assert!(rt::counters::get(CONSOLE_BYTES_OUT) >= before + 1500);
        assert_eq!(received(&mut server), text);
        assert_eq!(page.u32(OUT_CONS), page.u32(OUT_PROD));
        assert!(guest.events.is_pending(guest.console_port));
    }

    #[test]
    fn a_full_channel_stops_the_guest_and_nothing_is_lost() {
        let (mut guest, mut console, page, mut server) = console();
        let mut sent = 0u32;
        let mut got = Vec::new();
        for round in 0..20 {
            let room = OUT_SIZE - sent.wrapping_sub(page.u32(OUT_CONS));
            let text: Vec<u8> = (sent..sent + room).map(|n| (n % 251) as u8).collect();
            ring_write(&page, OUT, OUT_SIZE, sent, &text);
            sent += room;
            page.set_u32(OUT_PROD, sent);
            console.service(&mut guest);
            if round % 5 == 4 {
                got.extend(received(&mut server));
            }
        }
        console.service(&mut guest);
        got.extend(received(&mut server));
        assert!(sent > 8000);
        assert_eq!(got, (0..sent).map(|n| (n % 251) as u8).collect::<Vec<_>>());
    }

    #[test]
    fn input_waits_for_the_guest_to_make_room() {
        let (mut guest, mut console, page, mut server) = console();
        let before = rt::counters::get(CONSOLE_BYTES_IN);
        for n in 0..6u8 {
            server.send(&GuestInput(Bytes::truncated(&[n; 246]))).unwrap();
        }
        console.service(&mut guest);
        assert_eq!(page.u32(IN_PROD), 1024);
        assert_eq!(console.prepare_sleep(), Sleep::Blocked);
        page.set_u32(IN_CONS, 1024);
        console.service(&mut guest);
        assert_eq!(page.u32(IN_PROD), 6 * 246);
        assert_eq!(page.u8(IN + (6 * 246 - 1) % 1024), 5);
        assert!(rt::counters::get(CONSOLE_BYTES_IN) >= before + 6 * 246);
    }

    proptest! {
        #[test]
        fn random_rings_are_survived(words in prop::collection::vec((0usize..1024, any::<u32>()), 1..60)) {
            let (mut guest, mut console, page, mut server) = console();
            for (index, value) in words {
                page.set_u32(index * 4, value);
                page.set_u32(IN_CONS + 4 * (index % 4), value);
                server.send(&GuestInput(Bytes::truncated(b"abc"))).ok();
                console.service(&mut guest);
                prop_assert!(received(&mut server).len() <= 2048);
            }
        }
    }
}
