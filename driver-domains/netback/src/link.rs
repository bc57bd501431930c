//! What the bridge needs of a vif's channel and of the NIC.

use proto::net::{Request, Response};

/// The peer broke the rules of the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

/// A vif's channel and its pool.
pub trait Link {
    /// The next request.
    ///
    /// # Errors
    /// [`Gone`].
    fn receive(&mut self) -> Result<Option<Request>, Gone>;
    /// Sends a response.
    ///
    /// # Errors
    /// [`Gone`]: the ring is broken, or full, which no client that keeps to the protocol brings about.
    fn send(&mut self, response: &Response) -> Result<(), Gone>;
    /// Signals the client, if it sleeps.
    fn flush(&mut self);
    /// Asks for a signal with the next request; `true`: there is none now.
    ///
    /// # Errors
    /// [`Gone`].
    fn prepare_sleep(&mut self) -> Result<bool, Gone>;
    /// Signals that the client sets.
    fn signals(&self) -> u64;
    /// Copies out of the pool; `false`: outside of it.
    fn read(&self, offset: u32, out: &mut [u8]) -> bool;
    /// Copies into the pool; `false`: outside of it.
    fn write(&self, offset: u32, bytes: &[u8]) -> bool;
    /// Copies from this pool to another vif's; `false`: outside of one of them.
    fn copy(&self, offset: u32, to: &Self, to_offset: u32, len: u32) -> bool;
    /// A frame of this vif's guest or for it is dropped.
    fn note_dropped(&self);
}

/// The NIC.
pub trait Uplink {
    /// Takes a frame to send; `false`: no room now.
    fn transmit(&mut self, frame: &[u8]) -> bool;
    /// Copies the next received frame out: its length.
    fn receive(&mut self, out: &mut [u8]) -> Option<usize>;
    /// Signals that the device's interrupts set.
    fn signals(&self) -> u64;
    /// Tells the device about frames to send and free buffers.
    fn kick(&mut self);
}
