//! What the probe is told to do, and which figure comes from what it says.

use std::borrow::Cow;

use crate::Error;
use crate::bench::report::Figure;
use crate::bench::standard::readings::{Reading, Readings};

/// Where the station of `tests/peer` serves.
const SERVER: &str = "10.77.0.1:5001";

/// One run of the probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// All exits.
    Exits,
    /// All that needs no device.
    Cpu,
    /// Requests of a kind to the disk.
    Blk {
        /// The probe's word.
        pattern: &'static str,
        /// Bytes of a request.
        block: u64,
        /// How many.
        requests: u64,
        /// In flight.
        depth: u64,
    },
    /// To or from the station.
    Net {
        /// The probe's word.
        mode: &'static str,
        /// Bytes, or round trips.
        count: u64,
    },
}

impl Work {
    /// The command for so many times the amount.
    pub fn command(&self, times: u64) -> Cow<'static, str> {
        match *self {
            Self::Exits => "probe exits".into(),
            Self::Cpu => "probe cpu".into(),
            Self::Blk { pattern, block, requests, depth } => {
                let total = block * requests * times;
                format!("probe blk /dev/xvda {pattern} {block} {total} {depth}").into()
            }
            Self::Net { mode, count } => format!("probe net {SERVER} {mode} {}", count * times).into(),
        }
    }

    /// Requests that a domain's time is divided by: block requests, round trips, or 64 KiB of a stream.
    pub fn requests(&self) -> u64 {
        match *self {
            Self::Exits | Self::Cpu => 1,
            Self::Blk { requests, .. } => requests,
            Self::Net { mode: "rr", count } => count,
            Self::Net { count, .. } => count >> 16,
        }
    }
}

/// Where a figure comes from.
#[derive(Debug, Clone, Copy)]
pub struct Source {
    /// Its name.
    pub figure: &'static str,
    /// What is to be done.
    pub work: Work,
    /// The name in the probe's line.
    line: &'static str,
    /// The value in that line.
    value: fn(&Reading) -> Option<u64>,
}

impl Source {
    const fn new(
        figure: &'static str,
        work: Work,
        line: &'static str,
        value: fn(&Reading) -> Option<u64>,
    ) -> Self {
        Self { figure, work, line, value }
    }

    /// The figure: the median of the readings.
    ///
    /// # Errors
    /// It is not there.
    pub fn figure(&self, readings: &Readings) -> Result<Figure, Error> {
        let value = readings.median(self.line, self.value).ok_or_else(|| {
            Error::Died(format!("the probe did not say `{}`, which {} comes from", self.line, self.figure))
        })?;
        Ok(Figure::new(self.figure, value))
    }
}

const fn exit(figure: &'static str, line: &'static str) -> Source {
    Source::new(figure, Work::Exits, line, median)
}

const fn cpu(figure: &'static str, line: &'static str, value: fn(&Reading) -> Option<u64>) -> Source {
    Source::new(figure, Work::Cpu, line, value)
}

const fn net(
    figure: &'static str,
    mode: &'static str,
    count: u64,
    line: &'static str,
    value: fn(&Reading) -> Option<u64>,
) -> Source {
    Source::new(figure, Work::Net { mode, count }, line, value)
}

/// Exits.
pub const EXITS: [Source; 6] = [
    exit("guest-cpuid", "cpuid"),
    exit("guest-vmmcall", "vmmcall"),
    exit("guest-alternating", "alternating"),
    exit("guest-in", "in-unclaimed"),
    exit("guest-rdtsc", "rdtsc"),
    exit("guest-syscall", "syscall"),
];

/// What needs no device.
pub const CPU: [Source; 5] = [
    cpu("page-fault", "page-fault", each),
    cpu("alu-loop", "alu", total),
    cpu("fork-wait", "fork-wait", each),
    cpu("pipe-ping-pong", "pipe-ping-pong", each),
    cpu("sleep-overshoot", "sleep-overshoot", median),
];

// More requests than in the peers' runs, so that a tick of the guest's timer more or less does not show; those in a
// row fit the disk as often as `split` repeats them.
const RANDOM_READ: Work = Work::Blk { pattern: "randread", block: 4096, requests: 512, depth: 1 };
const RANDOM_READS: Work = Work::Blk { pattern: "randread", block: 4096, requests: 1024, depth: 32 };
const RANDOM_WRITE: Work = Work::Blk { pattern: "randwrite", block: 4096, requests: 512, depth: 1 };
const RANDOM_WRITES: Work = Work::Blk { pattern: "randwrite", block: 4096, requests: 1024, depth: 32 };
const LARGE_READ: Work = Work::Blk { pattern: "read", block: 1 << 20, requests: 12, depth: 1 };
const MEDIUM_READS: Work = Work::Blk { pattern: "read", block: 128 << 10, requests: 96, depth: 8 };

/// A disk in memory.
pub const BLK: [Source; 6] = [
    Source::new("blk-randread-4k-qd1", RANDOM_READ, "xvda-randread-4k-qd1", each),
    Source::new("blk-randread-4k-qd32", RANDOM_READS, "xvda-randread-4k-qd32", each),
    Source::new("blk-randwrite-4k-qd1", RANDOM_WRITE, "xvda-randwrite-4k-qd1", each),
    Source::new("blk-randwrite-4k-qd32", RANDOM_WRITES, "xvda-randwrite-4k-qd32", each),
    Source::new("blk-read-1m-qd1", LARGE_READ, "xvda-read-1024k-qd1", mebibytes),
    Source::new("blk-read-128k-qd8", MEDIUM_READS, "xvda-read-128k-qd8", mebibytes),
];

/// An image of the host. QEMU answers when the host's kernel does, and the guest's clock does not stand still
/// meanwhile, so these figures are the time on the CPU.
pub const IMAGE: [Source; 5] = [
    Source::new("virtio-randread-4k-qd1", RANDOM_READ, "xvda-randread-4k-qd1", each),
    Source::new("virtio-randread-4k-qd32", RANDOM_READS, "xvda-randread-4k-qd32", each),
    Source::new("virtio-randwrite-4k-qd1", RANDOM_WRITE, "xvda-randwrite-4k-qd1", each),
    Source::new("virtio-randwrite-4k-qd32", RANDOM_WRITES, "xvda-randwrite-4k-qd32", each),
    Source::new("virtio-read-1m-qd1", LARGE_READ, "xvda-read-1024k-qd1", each),
];

/// TCP with the station.
pub const NET: [Source; 3] = [
    net("tcp-rr", "rr", 500, "tcp-rr", mean),
    net("tcp-out", "tx", 8 << 20, "tcp-tx", megabits),
    net("tcp-in", "rx", 8 << 20, "tcp-rx", megabits),
];

fn median(reading: &Reading) -> Option<u64> {
    reading.get("median").copied()
}

fn mean(reading: &Reading) -> Option<u64> {
    reading.get("mean-ns").copied()
}

fn each(reading: &Reading) -> Option<u64> {
    reading.get("each-ns").copied()
}

fn total(reading: &Reading) -> Option<u64> {
    reading.get("total-ns").copied()
}

/// Per 1e9 instructions, each of which takes 1 ns.
fn rate(reading: &Reading, unit: u64) -> Option<u64> {
    let amount = u128::from(*reading.get("bytes")?) * 1_000_000_000 / u128::from(unit);
    u64::try_from(amount.checked_div(u128::from(total(reading)?))?).ok()
}

fn mebibytes(reading: &Reading) -> Option<u64> {
    rate(reading, 1 << 20)
}

fn megabits(reading: &Reading) -> Option<u64> {
    rate(reading, 1_000_000 / 8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::goals;

    #[test]
    fn every_figure_is_in_the_table() {
        for source in [&EXITS[..], &CPU, &BLK, &IMAGE, &NET].concat() {
            assert!(goals::entry(source.figure).is_some(), "{}", source.figure);
        }
    }

    #[test]
    fn figures_are_medians_and_rates() {
        let line = |ns: u64| format!("probe: xvda-read-1024k-qd1 requests=8 bytes=8388608 total-ns={ns}\n");
        let readings = Readings::parse(&[2_000_000, 9_000_000, 1_000_000].map(line).concat());
        assert_eq!(BLK[4].figure(&readings).unwrap(), Figure::new("blk-read-1m-qd1", 4000));
        assert!(BLK[0].figure(&readings).is_err());
        let reading = Reading::from([("bytes".into(), 1_000_000), ("total-ns".into(), 1_000_000)]);
        assert_eq!(megabits(&reading), Some(8000));
    }

    #[test]
    fn commands_grow_with_the_amount() {
        assert_eq!(RANDOM_READ.command(1), "probe blk /dev/xvda randread 4096 2097152 1");
        assert_eq!(NET[0].work.command(3), "probe net 10.77.0.1:5001 rr 1500");
        assert_eq!((NET[0].work.requests(), NET[1].work.requests()), (500, 128));
    }
}
