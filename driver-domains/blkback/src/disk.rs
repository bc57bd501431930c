//! What the backend needs of a device: operations in flight, named by tags.

use proto::blk::{Direction, Refusal, SECTOR};

/// Facts about a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Size in units of [`SECTOR`].
    pub sectors: u64,
    /// The device's own sector size in bytes, a multiple of [`SECTOR`].
    pub sector_size: u32,
    /// The device refuses writes.
    pub is_read_only: bool,
    /// The device caches writes and can flush them.
    pub has_flush: bool,
    /// Most bytes of one operation.
    pub operation_max: u32,
}

impl Geometry {
    /// A volume of `bytes` in memory.
    pub fn of_memory(bytes: u64) -> Self {
        let sectors = bytes / SECTOR;
        Self { sectors, sector_size: 512, is_read_only: false, has_flush: false, operation_max: u32::MAX }
    }

    /// Why the volume cannot be used, if so.
    pub fn flaw(&self) -> Option<Refusal> {
        let sector = u64::from(self.sector_size);
        if sector < SECTOR || !sector.is_power_of_two() {
            Some(Refusal::SectorSize)
        } else if self.sectors.checked_mul(SECTOR).is_none() {
            Some(Refusal::ImpossibleSize)
        } else if self.sectors.saturating_mul(SECTOR) < sector {
            Some(Refusal::TooSmall)
        } else if u64::from(self.operation_max) < sector {
            Some(Refusal::TooLittleAtATime)
        } else {
            None
        }
    }
}

/// Who waits for an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag {
    /// The backend's number of the channel; not reused before its last operation ended.
    pub channel: u16,
    /// The request's number.
    pub id: u16,
}

/// What a device does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Moves bytes between the device and a part of a pool.
    Transfer {
        /// Which way.
        direction: Direction,
        /// First sector, in units of [`SECTOR`].
        sector: u64,
        /// Where the part is mapped; contiguous for the device too.
        addr: u64,
        /// Bytes.
        len: u32,
    },
    /// Writes the cache to stable storage.
    Flush,
}

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Done.
    Ok,
    /// Failed.
    Error,
}

/// A device with one volume.
pub trait Disk {
    /// Name of the volume.
    fn name(&self) -> &str;
    /// Facts about it; they never change.
    fn geometry(&self) -> Geometry;
    /// Signals that the device sets when operations have ended.
    fn signals(&self) -> u64;
    /// Operations that [`Self::submit`] takes now.
    fn room(&self) -> usize;
    /// Starts an operation; it reaches the device at [`Self::kick`]. Without room, or for a device that is
    /// broken, it ends at once as [`Outcome::Error`].
    fn submit(&mut self, tag: Tag, operation: Operation) -> Option<Outcome>;
    /// Tells the device about what was submitted since the last call.
    fn kick(&mut self);
    /// An operation that ended, in any order.
    fn complete(&mut self) -> Option<(Tag, Outcome)>;
}
