//! A virtio-net function as the bridge's uplink.
//!
//! Frames are copied between the device's buffers and the bridge: what a guest may still write, or has
//! not been checked yet, is never given to the device. All receive buffers are posted all the time. No
//! interrupt is asked for sent frames, except while frames wait for a buffer.
//! Source: virtio 1.2, 5.1 network device; no offload is negotiated, so a frame is at most 1514 bytes.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use netback::link::Uplink;
use proto::abi::PAGE_SIZE;
use proto::boot::DeviceInfo;
use proto::net::PLAIN_MAX;
use virtio_domain::hal::{Buffer, Part};
use virtio_domain::queue::{Completion, Queue, QueueError};
use virtio_domain::transport::MsixTransport;
use virtio_domain::{DeviceType, Transport};

/// Descriptors of a queue; a frame takes one.
const DESCRIPTORS: usize = 128;
/// Bytes of a buffer.
const BUFFER: usize = 2048;
/// Where the header starts in a buffer, so that the frame behind it is aligned to 16.
const HEADER_AT: usize = 4;
/// Bytes of the header in front of a frame (`virtio_net_hdr` with `num_buffers`).
const HEADER_LEN: usize = 12;
const FRAME_AT: usize = HEADER_AT + HEADER_LEN;
/// Bytes of a buffer that the device may fill.
const ROOM: usize = HEADER_LEN + PLAIN_MAX as usize;
/// Pages that the two queues take.
const QUEUE_PAGES: usize = 4;
/// Fewer buffers per direction than this are of no use.
const BUFFERS_MIN: usize = 8;

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

/// One direction: a queue, its memory, and which buffer each of the queue's tokens stands for.
#[derive(Debug)]
struct Direction {
    queue: Queue<DESCRIPTORS>,
    memory: Buffer,
    by_token: Vec<Option<usize>>,
    free: Vec<usize>,
}

impl Direction {
    fn new(transport: &mut MsixTransport, index: u16, buffers: usize) -> Result<Self, String> {
        let queue = Queue::new(transport, index).map_err(|error| format!("its queue {index}: {error}"))?;
        let memory = Buffer::allocate(buffers * BUFFER)
            .ok_or_else(|| String::from("its memory for DMA is too small"))?;
        let free = (0..buffers).rev().collect();
        Ok(Self { queue, memory, by_token: alloc::vec![None; DESCRIPTORS], free })
    }

    fn part(&self, buffer: usize, len: usize) -> Result<Part, QueueError> {
        self.memory.part(buffer * BUFFER + HEADER_AT, len).ok_or(QueueError::BadChain)
    }

    fn submitted(&mut self, token: u16, buffer: usize) -> Result<(), QueueError> {
        *self.by_token.get_mut(usize::from(token)).ok_or(QueueError::Device)? = Some(buffer);
        Ok(())
    }

    /// Lets the device fill a buffer.
    fn post(&mut self, buffer: usize) -> Result<(), QueueError> {
        let part = self.part(buffer, ROOM)?;
        let token = self.queue.submit(&[], &[part])?;
        self.submitted(token, buffer)
    }

    /// A buffer that the device has finished with, and how many bytes it wrote.
    fn complete(&mut self) -> Result<Option<(usize, usize)>, QueueError> {
        let Some(Completion { token, written }) = self.queue.complete()? else { return Ok(None) };
        let buffer = self.by_token.get_mut(usize::from(token)).and_then(Option::take);
        Ok(Some((buffer.ok_or(QueueError::Device)?, written as usize)))
    }
}

/// The NIC. The transport comes first: it is dropped first and resets the device.
#[derive(Debug)]
pub struct Nic {
    transport: MsixTransport,
    receive: Direction,
    transmit: Direction,
    is_waiting_for_room: bool,
    is_broken: bool,
    signals: u64,
}

impl Nic {
    /// Sets the device up and posts its receive buffers.
    ///
    /// # Errors
    /// A sentence for people.
    pub fn new(device: &DeviceInfo) -> Result<Self, String> {
        let config = rt::memory::bytes(device.config);
        let mut transport = MsixTransport::new(device, config).map_err(|error| format!("{error}"))?;
        if transport.device_type() != DeviceType::Network {
            return Err(String::from("it is no network device"));
        }
        transport.negotiate(0).map_err(|error| format!("{error}"))?;
        let pages = usize::try_from(device.dma.len / PAGE_SIZE).unwrap_or(0).saturating_sub(QUEUE_PAGES);
        // Whole pages for each direction.
        let buffers = (pages / 2 * (PAGE_SIZE as usize / BUFFER)).min(DESCRIPTORS);
        if buffers < BUFFERS_MIN {
            return Err(String::from("its memory for DMA is too small"));
        }
        let receive = Direction::new(&mut transport, RECEIVE, buffers)?;
        let mut transmit = Direction::new(&mut transport, TRANSMIT, buffers)?;
        transport.check_vectors().map_err(|error| format!("{error}"))?;
        transmit.queue.set_interrupts(false);
        transport.finish_init();
        let signals = device.vectors.iter().fold(0, |all, signals| all | signals);
        let mut nic =
            Self { transport, receive, transmit, is_waiting_for_room: false, is_broken: false, signals };
        while let Some(buffer) = nic.receive.free.pop() {
            nic.receive.post(buffer).map_err(|error| format!("its queue refused a buffer: {error:?}"))?;
        }
        nic.kick();
        Ok(nic)
    }

    /// The device broke the rules of a queue: stop it. The bridge goes on without an uplink.
    fn give_up(&mut self) {
        log::error!("the NIC broke the rules of its queues and was stopped");
        self.transport.reset();
        self.receive.queue.abandon();
        self.transmit.queue.abandon();
        self.is_broken = true;
    }

    fn try_transmit(&mut self, frame: &[u8]) -> Result<bool, QueueError> {
        self.reap()?;
        if self.transmit.free.is_empty() && !self.is_waiting_for_room {
            // Ask for an interrupt, then look once more: the device may have finished just before.
            self.is_waiting_for_room = true;
            self.transmit.queue.set_interrupts(true);
            self.reap()?;
        }
        let Some(buffer) = self.transmit.free.pop() else { return Ok(false) };
        if self.is_waiting_for_room {
            self.is_waiting_for_room = false;
            self.transmit.queue.set_interrupts(false);
        }
        let at = buffer * BUFFER;
        let is_written = self.transmit.memory.write(at + HEADER_AT, &[0; HEADER_LEN])
            && self.transmit.memory.write(at + FRAME_AT, frame);
        if !is_written {
            return Err(QueueError::BadChain);
        }
        let part = self.transmit.part(buffer, HEADER_LEN + frame.len())?;
        let token = self.transmit.queue.submit(&[part], &[])?;
        self.transmit.submitted(token, buffer)?;
        Ok(true)
    }

    /// Takes back the buffers of frames that were sent.
    fn reap(&mut self) -> Result<(), QueueError> {
        while let Some((buffer, _)) = self.transmit.complete()? {
            self.transmit.free.push(buffer);
        }
        Ok(())
    }

    fn try_receive(&mut self, out: &mut [u8]) -> Result<Option<usize>, QueueError> {
        while let Some((buffer, written)) = self.receive.complete()? {
            let len = written.min(ROOM).checked_sub(HEADER_LEN).filter(|len| *len <= out.len());
            let room = len.and_then(|len| out.get_mut(..len));
            let is_read = room.is_some_and(|room| self.receive.memory.read(buffer * BUFFER + FRAME_AT, room));
            self.receive.post(buffer)?;
            if is_read {
                return Ok(len);
            }
        }
        Ok(None)
    }
}

impl Uplink for Nic {
    fn transmit(&mut self, frame: &[u8]) -> bool {
        if self.is_broken || frame.len() > PLAIN_MAX as usize {
            // Nobody will ever take it.
            return true;
        }
        self.try_transmit(frame).unwrap_or_else(|_| {
            self.give_up();
            true
        })
    }

    fn receive(&mut self, out: &mut [u8]) -> Option<usize> {
        if self.is_broken {
            return None;
        }
        self.try_receive(out).unwrap_or_else(|_| {
            self.give_up();
            None
        })
    }

    fn signals(&self) -> u64 {
        self.signals
    }

    fn kick(&mut self) {
        if !self.is_broken {
            self.receive.queue.notify(&mut self.transport);
            self.transmit.queue.notify(&mut self.transport);
        }
    }
}
