//! Checks of a request, before anything is done with it, and its division into operations.

use proto::blk::{Direction, SECTOR, Status, TRANSFER_MAX};

use crate::disk::{Geometry, Operation};

/// A transfer as it stands in the ring, not yet believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    /// Which way.
    pub direction: Direction,
    /// First sector, in units of [`SECTOR`].
    pub sector: u64,
    /// Where in the pool.
    pub pool_offset: u32,
    /// Bytes.
    pub len: u32,
}

impl Transfer {
    /// Checks it against the volume, `pool_len` bytes of pool (0: the volume is in the client's memory) and the
    /// protocol.
    ///
    /// # Errors
    /// [`Status::BadRequest`], or [`Status::ReadOnly`] for a write that is otherwise right.
    pub fn check(&self, volume: &Geometry, pool_len: u64, is_read_only: bool) -> Result<(), Status> {
        let sector_size = u64::from(volume.sector_size);
        let len = u64::from(self.len);
        let is_len_valid = len != 0 && len <= u64::from(TRANSFER_MAX) && len.is_multiple_of(sector_size);
        let offset = u64::from(self.pool_offset);
        let is_in_pool = match pool_len {
            0 => offset == 0,
            _ => offset.is_multiple_of(SECTOR) && offset + len <= pool_len,
        };
        let per_sector = sector_size / SECTOR;
        let is_in_volume = per_sector != 0
            && self.sector.is_multiple_of(per_sector)
            && self.sector.checked_add(len / SECTOR).is_some_and(|end| end <= volume.sectors);
        if !is_len_valid || !is_in_pool || !is_in_volume {
            return Err(Status::BadRequest);
        }
        if is_read_only && self.direction == Direction::Write {
            return Err(Status::ReadOnly);
        }
        Ok(())
    }

    /// The operation that starts `done` bytes into a checked transfer whose pool is mapped at `pool`;
    /// `None` at its end.
    pub fn operation(&self, volume: &Geometry, pool: u64, done: u32) -> Option<(Operation, u32)> {
        let rest = self.len.checked_sub(done).filter(|rest| *rest > 0)?;
        let limit = volume.operation_max - volume.operation_max % volume.sector_size;
        let len = rest.min(limit);
        let operation = Operation::Transfer {
            direction: self.direction,
            sector: self.sector + u64::from(done) / SECTOR,
            addr: pool + u64::from(self.pool_offset) + u64::from(done),
            len,
        };
        Some((operation, len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proto::blk::POOL_SIZE;

    pub(crate) const VOLUME: Geometry = Geometry {
        sectors: 1000,
        sector_size: 512,
        is_read_only: false,
        has_flush: true,
        operation_max: 64 * 1024,
    };
    const GOOD: Transfer = Transfer { direction: Direction::Write, sector: 0, pool_offset: 0, len: 512 };

    #[test]
    fn each_rule_of_the_protocol_is_checked() {
        let bad = |transfer: Transfer| {
            assert_eq!(transfer.check(&VOLUME, POOL_SIZE, false), Err(Status::BadRequest))
        };
        assert_eq!(GOOD.check(&VOLUME, POOL_SIZE, false), Ok(()));
        bad(Transfer { len: 0, ..GOOD });
        bad(Transfer { len: 513, ..GOOD });
        bad(Transfer { len: TRANSFER_MAX + 512, ..GOOD });
        bad(Transfer { pool_offset: 1, ..GOOD });
        bad(Transfer { pool_offset: POOL_SIZE as u32, ..GOOD });
        bad(Transfer { pool_offset: POOL_SIZE as u32 - 512, len: 1024, ..GOOD });
        bad(Transfer { sector: 1000, ..GOOD });
        bad(Transfer { sector: 999, len: 1024, ..GOOD });
        bad(Transfer { sector: u64::MAX, ..GOOD });
        assert_eq!(Transfer { sector: 999, ..GOOD }.check(&VOLUME, POOL_SIZE, false), Ok(()));
    }

    #[test]
    fn a_write_to_a_read_only_volume_is_named_so() {
        assert_eq!(GOOD.check(&VOLUME, POOL_SIZE, true), Err(Status::ReadOnly));
        assert_eq!(Transfer { len: 1, ..GOOD }.check(&VOLUME, POOL_SIZE, true), Err(Status::BadRequest));
        assert_eq!(Transfer { direction: Direction::Read, ..GOOD }.check(&VOLUME, POOL_SIZE, true), Ok(()));
    }

    #[test]
    fn a_transfer_of_a_volume_in_memory_names_no_part_of_a_pool() {
        assert_eq!(GOOD.check(&VOLUME, 0, false), Ok(()));
        assert_eq!(Transfer { pool_offset: 512, ..GOOD }.check(&VOLUME, 0, false), Err(Status::BadRequest));
        assert_eq!(Transfer { sector: 1000, ..GOOD }.check(&VOLUME, 0, false), Err(Status::BadRequest));
    }

    #[test]
    fn large_sectors_ask_for_alignment() {
        let volume = Geometry { sector_size: 4096, ..VOLUME };
        assert_eq!(GOOD.check(&volume, POOL_SIZE, false), Err(Status::BadRequest));
        assert_eq!(
            Transfer { len: 4096, sector: 1, ..GOOD }.check(&volume, POOL_SIZE, false),
            Err(Status::BadRequest)
        );
        assert_eq!(Transfer { len: 4096, sector: 8, ..GOOD }.check(&volume, POOL_SIZE, false), Ok(()));
    }

    #[test]
    fn flawed_volumes_are_named() {
        assert!(VOLUME.flaw().is_none());
        assert!(Geometry { sectors: 0, ..VOLUME }.flaw().is_some());
        assert!(Geometry { sectors: 7, sector_size: 4096, ..VOLUME }.flaw().is_some());
        assert!(Geometry { sector_size: 0, ..VOLUME }.flaw().is_some());
        assert!(Geometry { sector_size: 520, ..VOLUME }.flaw().is_some());
        assert!(Geometry { operation_max: 511, ..VOLUME }.flaw().is_some());
        assert!(Geometry { sectors: u64::MAX, ..VOLUME }.flaw().is_some());
    }

    proptest! {
        #[test]
        fn operations_cover_a_transfer_exactly(len in 1u32..=256, max in 1u32..300, sector in 0u64..700, extra in 0u32..512) {
            let volume = Geometry { operation_max: max * 512 + extra, ..VOLUME };
            let transfer = Transfer { sector, len: len * 512, ..GOOD };
            prop_assume!(transfer.check(&volume, POOL_SIZE, false).is_ok());
            let (mut done, mut next) = (0, transfer.sector);
            while let Some((operation, len)) = transfer.operation(&volume, 0x1000, done) {
                let Operation::Transfer { sector, addr, len: bytes, .. } = operation else { unreachable!() };
                prop_assert_eq!(bytes, len);
                prop_assert!(len > 0 && len <= volume.operation_max && len % 512 == 0);
                prop_assert_eq!(sector, next);
                prop_assert_eq!(addr, 0x1000 + u64::from(done));
                next += u64::from(len) / 512;
                done += len;
            }
            prop_assert_eq!(done, transfer.len);
        }
    }
}
