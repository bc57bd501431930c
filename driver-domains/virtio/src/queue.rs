//! A virtqueue whose buffers are named by address, with several chains in flight.
//!
//! Around the crate's `VirtQueue`: it remembers each chain until the device has finished with it, tells
//! the device once per batch, and never hands out memory that is not registered. Indirect descriptors
//! and event indices are not used: the first would need heap memory whose physical address nobody
//! knows, and the crate compares event indices without regard to their wrapping.
//! Source: virtio 1.2, 2.7 split virtqueues.
#![expect(unsafe_code, reason = "`VirtQueue` takes slices of memory that the device writes")]

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::slice::{from_raw_parts, from_raw_parts_mut};
use core::sync::atomic::{Ordering, fence};

use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::Transport;

use crate::hal::{DomainHal, Part, is_for_devices, unshare};

/// Descriptors of a chain, at most.
pub const CHAIN_MAX: usize = 3;

/// Why a chain was not queued or not taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueError {
    /// No room: try again after a completion.
    Full,
    /// It has no part, too many, or one outside of the memory for devices.
    BadChain,
    /// The device named a chain that it does not have; it must be reset.
    Device,
}

#[derive(Debug, Clone, Copy, Default)]
struct Chain {
    parts: [Part; CHAIN_MAX],
    inputs: usize,
    len: usize,
}

/// A chain that the device has finished with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// From [`Queue::submit`].
    pub token: u16,
    /// Bytes that the device says it wrote.
    pub written: u32,
}

/// A virtqueue of `N` descriptors.
#[derive(Debug)]
pub struct Queue<const N: usize> {
    queue: Box<VirtQueue<DomainHal, N>>,
    index: u16,
    chains: Vec<Chain>,
    used: usize,
    is_silent: bool,
}

impl<const N: usize> Queue<N> {
    /// Sets up queue `index` of a device that is being initialised.
    ///
    /// # Errors
    /// From the crate: the device's queue is shorter, in use, or memory for DMA is lacking.
    pub fn new<T: Transport>(transport: &mut T, index: u16) -> Result<Self, virtio_drivers::Error> {
        let queue = Box::new(VirtQueue::new(transport, index, false, false)?);
        Ok(Self { queue, index, chains: alloc::vec![Chain::default(); N], used: 0, is_silent: true })
    }

    /// Descriptors that are free.
    pub fn free(&self) -> usize {
        N.saturating_sub(self.used)
    }

    /// Descriptors that the device has.
    pub fn in_flight(&self) -> usize {
        self.used
    }

    /// Queues a chain: parts that the device reads, then parts that it writes. The device learns of it
    /// at [`Self::notify`]. The parts belong to the device until [`Self::complete`] answers the token.
    ///
    /// # Errors
    /// [`QueueError::Full`] and [`QueueError::BadChain`].
    pub fn submit(&mut self, inputs: &[Part], outputs: &[Part]) -> Result<u16, QueueError> {
        let len = inputs.len() + outputs.len();
        if len == 0 || len > CHAIN_MAX {
            return Err(QueueError::BadChain);
        }
        let mut chain = Chain { inputs: inputs.len(), len, ..Chain::default() };
        for (slot, part) in chain.parts.iter_mut().zip(inputs.iter().chain(outputs)) {
            if !is_for_devices(*part) {
                return Err(QueueError::BadChain);
            }
            *slot = *part;
        }
        if self.free() < len {
            return Err(QueueError::Full);
        }
        let queue = &mut self.queue;
        let token = with_slices(&chain, |inputs, outputs| {
            // SAFETY: every part is registered memory, which stays mapped while a device has it and to
            // which no Rust reference is kept: its contents are only ever copied by volatile accesses.
            unsafe { queue.add(inputs, outputs) }
        })
        .map_err(|_| QueueError::Full)?;
        let Some(slot) = self.chains.get_mut(usize::from(token)) else { return Err(QueueError::Device) };
        *slot = chain;
        self.used += len;
        self.is_silent = false;
        Ok(token)
    }

    /// Tells the device about the chains queued since the last call, if it wants to know.
    pub fn notify<T: Transport>(&mut self, transport: &mut T) {
        if self.is_silent {
            return;
        }
        self.is_silent = true;
        // The index must be visible before the device's wish is read, or both may miss each other
        // (virtio 1.2, 2.7.13.4.1); the crate has no barrier between the two.
        fence(Ordering::SeqCst);
        if self.queue.should_notify() {
            transport.notify(self.index);
        }
    }

    /// Whether the device interrupts when it has finished with a chain (at first it does). After turning it
    /// on, look for completions once more before waiting.
    pub fn set_interrupts(&mut self, is_on: bool) {
        self.queue.set_dev_notify(is_on);
        fence(Ordering::SeqCst);
    }

    /// Takes back the next chain that the device has finished with.
    ///
    /// # Errors
    /// [`QueueError::Device`]: reset the device, nothing in the queue can be relied upon.
    pub fn complete(&mut self) -> Result<Option<Completion>, QueueError> {
        let Some(token) = self.queue.peek_used() else { return Ok(None) };
        // Before the crate indexes with it: it trusts the token to be one that it gave out.
        let slot = self.chains.get_mut(usize::from(token)).filter(|chain| chain.len > 0);
        let slot = slot.ok_or(QueueError::Device)?;
        let queue = &mut self.queue;
        let written = with_slices(slot, |inputs, outputs| {
            // SAFETY: the same parts as in `submit`, so the same facts hold.
            unsafe { queue.pop_used(token, inputs, outputs) }
        })
        .map_err(|_| QueueError::Device)?;
        self.used = self.used.saturating_sub(slot.len);
        *slot = Chain::default();
        Ok(Some(Completion { token, written }))
    }

    /// Forgets all chains, after the device was reset; the queue is of no use any more.
    pub fn abandon(&mut self) {
        for chain in &mut self.chains {
            for part in chain.parts.iter().take(chain.len) {
                unshare(*part);
            }
            *chain = Chain::default();
        }
        // Nothing is free: the crate still counts the descriptors as used.
        self.used = N;
    }
}

/// Makes the slices that the crate wants to take addresses and lengths from; nothing reads through them.
fn with_slices<R>(chain: &Chain, run: impl for<'a> FnOnce(&'a [&'a [u8]], &'a mut [&'a mut [u8]]) -> R) -> R {
    let inputs = chain.inputs.min(CHAIN_MAX);
    let outputs = chain.len.saturating_sub(chain.inputs).min(CHAIN_MAX - inputs);
    // Arrays: a container with a destructor could not lend itself for as long as its elements live.
    let mut read: [&[u8]; CHAIN_MAX] = [&[]; CHAIN_MAX];
    let mut written: [&mut [u8]; CHAIN_MAX] = [&mut [], &mut [], &mut []];
    for (slot, part) in read.iter_mut().zip(&chain.parts[..inputs]) {
        // SAFETY: `submit` checked that the part is registered, mapped memory; the slice dies with this call.
        *slot = unsafe { from_raw_parts(part.addr as *const u8, part.len as usize) };
    }
    for (slot, part) in written.iter_mut().zip(&chain.parts[inputs..inputs + outputs]) {
        // SAFETY: as above.
        *slot = unsafe { from_raw_parts_mut(part.addr as *mut u8, part.len as usize) };
    }
    run(&read[..inputs], &mut written[..outputs])
}
