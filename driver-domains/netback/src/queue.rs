//! Frames that wait for the uplink: a bounded queue per port, served in turns.
//!
//! Memory is set aside once. A port has a limit of its own, so a guest that sends too much loses its own
//! frames at the tail and nobody else's.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

use proto::net::FRAME_MAX;

use crate::switch::{PORTS_MAX, Port};

/// Frames that wait, of all ports.
pub const FRAMES: usize = 128;
/// Frames of one port that wait.
pub const PER_PORT: usize = 32;

#[derive(Debug)]
struct Frame {
    bytes: Box<[u8]>,
    len: usize,
}

/// The queue.
#[derive(Debug)]
pub struct FairQueue {
    frames: Vec<Frame>,
    free: Vec<usize>,
    waiting: Vec<VecDeque<usize>>,
    turn: usize,
    len: usize,
}

impl Default for FairQueue {
    fn default() -> Self {
        let frame = || Frame { bytes: alloc::vec![0; usize::from(FRAME_MAX)].into_boxed_slice(), len: 0 };
        Self {
            frames: (0..FRAMES).map(|_| frame()).collect(),
            free: (0..FRAMES).collect(),
            waiting: (0..PORTS_MAX).map(|_| VecDeque::new()).collect(),
            turn: 0,
            len: 0,
        }
    }
}

impl FairQueue {
    /// Whether no frame waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Queues a copy of a frame from `port`; `false`: there was no room for it.
    pub fn push(&mut self, port: Port, bytes: &[u8]) -> bool {
        let Some(waiting) = self.waiting.get_mut(port.index()).filter(|waiting| waiting.len() < PER_PORT)
        else {
            return false;
        };
        let Some(index) = self.free.pop() else { return false };
        let room = self.frames.get_mut(index).and_then(|frame| {
            frame.len = bytes.len();
            frame.bytes.get_mut(..bytes.len())
        });
        let Some(room) = room else {
            self.free.push(index);
            return false;
        };
        room.copy_from_slice(bytes);
        waiting.push_back(index);
        self.len += 1;
        true
    }

    /// Offers waiting frames to `send`, one port after the other, until it says `false`.
    pub fn drain(&mut self, mut send: impl FnMut(&[u8]) -> bool) {
        while self.len > 0 {
            let turn = self.turn % PORTS_MAX;
            let front = self.waiting.get(turn).and_then(|waiting| waiting.front().copied());
            if let Some(index) = front {
                let frame = self.frames.get(index);
                let bytes = frame.and_then(|frame| frame.bytes.get(..frame.len)).unwrap_or(&[]);
                if !send(bytes) {
                    return;
                }
                if let Some(waiting) = self.waiting.get_mut(turn) {
                    waiting.pop_front();
                }
                self.free.push(index);
                self.len -= 1;
            }
            self.turn = (turn + 1) % PORTS_MAX;
        }
    }

    /// Throws away what waits from a port.
    pub fn clear(&mut self, port: Port) {
        if let Some(waiting) = self.waiting.get_mut(port.index()) {
            self.len -= waiting.len();
            self.free.extend(waiting.drain(..));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_take_turns_and_lose_only_their_own_frames() {
        let mut queue = FairQueue::default();
        for n in 0..PER_PORT as u8 {
            assert!(queue.push(Port(1), &[1, n]));
        }
        assert!(!queue.push(Port(1), &[1, 99]));
        assert!(queue.push(Port(2), &[2, 0]) && queue.push(Port(2), &[2, 1]));
        let mut order = Vec::new();
        queue.drain(|frame| {
            order.push((frame[0], frame[1]));
            order.len() < 5
        });
        // The fifth was refused and is offered again.
        assert_eq!(order, [(1, 0), (2, 0), (1, 1), (2, 1), (1, 2)]);
        let mut next = 0;
        queue.drain(|frame| {
            next = frame[1];
            false
        });
        assert_eq!(next, 2);
        queue.clear(Port(1));
        assert!(queue.is_empty());
        assert_eq!(queue.free.len(), FRAMES);
    }

    #[test]
    fn memory_is_bounded() {
        let mut queue = FairQueue::default();
        let taken = (0..PORTS_MAX as u8).flat_map(|port| (0..PER_PORT).map(move |_| Port(port)));
        let taken = taken.filter(|port| queue.push(*port, &[0; FRAME_MAX as usize])).count();
        assert_eq!(taken, FRAMES);
        queue.clear(Port(0));
        assert!(!queue.push(Port(0), &[0; FRAME_MAX as usize + 1]));
        assert!(queue.push(Port(0), &[0; FRAME_MAX as usize]));
    }
}
