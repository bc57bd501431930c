//! `xl top`: what every domain did between two samples, per second, the busiest first.
//!
//! Two tables, so that either fits a terminal's 80 columns: CPU and signalling of all domains, then exits and
//! requests of those that have any.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

use proto::builder::MachineStat;
use proto::counters::{self as index, EXITS, Name};

use crate::sample::{Domain, Sample};

/// Exit reasons that are named.
const REASONS: usize = 3;

/// What happened between two samples.
struct Rates<'a> {
    after: &'a Domain,
    before: Option<&'a Domain>,
    /// Microseconds between them.
    us: u64,
}

impl Rates<'_> {
    /// How much a number grew, per second, rounded.
    fn rate(&self, number: impl Fn(&Domain) -> u64) -> u64 {
        let grown = number(self.after).saturating_sub(self.before.map_or(0, number));
        ((u128::from(grown) * 1_000_000 + u128::from(self.us / 2)) / u128::from(self.us.max(1))) as u64
    }

    fn counter(&self, index: usize) -> u64 {
        self.rate(|domain| domain.counter(index))
    }

    fn counters(&self, indices: &[usize]) -> u64 {
        self.rate(|domain| indices.iter().fold(0, |sum, &n| sum.wrapping_add(domain.counter(n))))
    }

    /// Share of the time on the CPU in tenths of a percent.
    fn permille(&self) -> u64 {
        self.rate(|domain| domain.stat.activity.time_ns) / 1_000_000
    }

    /// Exits per second: those that reached the VMM, and those that the kernel served alone.
    fn exits(&self) -> (u64, u64) {
        let activity = |domain: &Domain| domain.stat.activity;
        (self.rate(|d| activity(d).vcpu_exits), self.rate(|d| activity(d).vcpu_kernel_exits))
    }

    /// The most frequent reasons of the exits that reached the VMM.
    fn reasons(&self) -> String {
        let mut reasons: Vec<(u64, usize)> = EXITS.map(|index| (self.counter(index), index)).collect();
        reasons.retain(|(rate, _)| *rate > 0);
        reasons.sort_by_key(|&(rate, index)| (core::cmp::Reverse(rate), index));
        let mut text = String::new();
        for (rate, index) in reasons.into_iter().take(REASONS) {
            let name = Name::of(index).map(|name| format!("{name}")).unwrap_or_default();
            let _ok = write!(text, " {} {}", name.strip_prefix("exit_").unwrap_or(&name), short(rate));
        }
        text
    }
}

/// A number in at most six characters.
fn short(number: u64) -> String {
    match number {
        0..=99_999 => format!("{number}"),
        100_000..=99_999_999 => format!("{}k", number / 1000),
        100_000_000..=99_999_999_999 => format!("{}M", number / 1_000_000),
        _ => format!("{}G", number / 1_000_000_000),
    }
}

/// Tenths with their point.
fn tenths(tenths: u64) -> String {
    format!("{}.{}", tenths / 10, tenths % 10)
}

/// A name in its column.
fn name(domain: &Domain) -> String {
    domain.stat.name.chars().take(14).collect()
}

fn head(before: &Sample, after: &Sample) -> String {
    let Some(machine) = &after.machine else { return String::new() };
    let us = after.at_us().saturating_sub(before.at_us());
    let grown = |number: fn(&MachineStat) -> u64| {
        number(machine).saturating_sub(before.machine.as_ref().map_or(0, number))
    };
    let rate = |number| short((u128::from(grown(number)) * 1_000_000 / u128::from(us.max(1))) as u64);
    let idle = u128::from(grown(|machine| machine.idle_us)) * 1000 / u128::from(us.max(1));
    format!(
        "xl top: {} domains, {}% CPU idle, {} switches/s, {} interrupts/s, {} of {} MiB free, {}.{} s\n",
        after.domains.len(),
        tenths(idle.min(1000) as u64),
        rate(|machine| machine.context_switches),
        rate(|machine| machine.interrupts),
        machine.free_kib / 1024,
        machine.total_kib / 1024,
        us / 1_000_000,
        us / 100_000 % 10,
    )
}

/// The page for the time between two samples.
pub(crate) fn page(before: &Sample, after: &Sample) -> String {
    let us = after.at_us().saturating_sub(before.at_us());
    let mut rates: Vec<Rates<'_>> = after
        .domains
        .iter()
        .map(|domain| Rates { after: domain, before: before.domain(domain.stat.domid), us })
        .collect();
    rates.sort_by_key(|rates| {
        (core::cmp::Reverse(rates.rate(|domain| domain.stat.activity.time_ns)), rates.after.stat.domid)
    });
    let mut text = head(before, after);
    text.push_str("NAME             ID  CPU(%)   CPU(s)  MEM(k) SWTCH/s  SIGN/s SUPPR/s  WAKE/s   MSG/s\n");
    for rates in &rates {
        let stat = &rates.after.stat;
        let _ok = writeln!(
            text,
            "{:<14} {:>4} {:>7} {:>8} {:>7} {:>7} {:>7} {:>7} {:>7} {:>7}",
            name(rates.after),
            stat.domid,
            tenths(rates.permille()),
            tenths(stat.time_us / 100_000),
            stat.memory_kib.saturating_add(stat.overhead_kib),
            short(rates.rate(|domain| domain.stat.activity.dispatches)),
            short(rates.rate(|domain| domain.stat.activity.signals_sent)),
            short(rates.counter(index::SIGNALS_SUPPRESSED)),
            short(rates.counter(index::WAKE_UPS)),
            short(rates.counters(&[index::MESSAGES_SENT, index::MESSAGES_RECEIVED])),
        );
    }
    let mut has_head = false;
    for rates in &rates {
        let blk = rates.counters(&[index::BLK_READS, index::BLK_WRITES, index::BLK_FLUSHES]);
        let blk_bytes = rates.counters(&[index::BLK_BYTES_READ, index::BLK_BYTES_WRITTEN]);
        let net = rates.counters(&[index::NET_FRAMES_OUT, index::NET_FRAMES_IN, index::NET_FORWARDED]);
        let net_bytes = rates.counters(&[index::NET_BYTES_OUT, index::NET_BYTES_IN]);
        let (exits, kernel_exits) = rates.exits();
        if !rates.after.stat.is_guest && blk == 0 && net == 0 {
            continue;
        }
        if !core::mem::replace(&mut has_head, true) {
            text.push_str(
                "\nNAME              BLK/s   KiB/s   NET/s   KiB/s  EXIT/s  KERN/s  exits by reason\n",
            );
        }
        let row = format!(
            "{:<14} {:>8} {:>7} {:>7} {:>7} {:>7} {:>7} {}",
            name(rates.after),
            short(blk),
            short(blk_bytes / 1024),
            short(net),
            short(net_bytes / 1024),
            short(exits),
            short(kernel_exits),
            rates.reasons(),
        );
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::builder::{Activity, DomainStat, DomainState};
    use proto::text::Text;

    fn domain(domid: u32, name: &str, time_ns: u64, counters: &[(usize, u64)]) -> Domain {
        let mut values = alloc::vec![0; index::COUNT];
        counters.iter().for_each(|&(index, value)| values[index] = value);
        let activity = Activity { time_ns, dispatches: time_ns / 1000, ..Activity::default() };
        Domain {
            stat: DomainStat {
                domid,
                name: Text::truncated(name),
                is_guest: domid > 5,
                memory_kib: 262_144,
                overhead_kib: 100,
                vcpus: 1,
                state: DomainState::Blocked,
                time_us: time_ns / 1000,
                activity: Activity { vcpu_exits: time_ns / 1000 * 3, ..activity },
            },
            counters: values,
        }
    }

    fn sample(uptime_us: u64, domains: Vec<Domain>) -> Sample {
        let machine = MachineStat {
            total_kib: 1 << 20,
            free_kib: 1 << 19,
            system_kib: 0,
            bundle_kib: 0,
            cpus: 1,
            tsc_khz: 1_000_000,
            uptime_us,
            idle_us: uptime_us / 4,
            context_switches: uptime_us,
            interrupts: 0,
        };
        let mut sample = Sample::default();
        (sample.machine, sample.domains) = (Some(machine), domains);
        sample
    }

    #[test]
    fn the_busiest_comes_first_and_rates_are_per_second() {
        let before = sample(1_000_000, alloc::vec![domain(1, "console", 500, &[])]);
        let after = sample(
            3_000_000,
            alloc::vec![
                domain(1, "console", 2_000_500, &[(index::SIGNALS_SUPPRESSED, 9)]),
                domain(
                    6,
                    "a-guest-with-a-long-name",
                    1_000_000_000,
                    &[
                        (index::EXIT_CPUID, 7),
                        (index::EXIT_VMMCALL, 400_000),
                        (index::EXIT_HLT, 50),
                        (index::EXIT_MSR, 60),
                        (index::BLK_READS, 10),
                        (index::BLK_BYTES_READ, 40 << 10),
                    ],
                ),
            ],
        );
        let text = page(&before, &after);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0],
            "xl top: 2 domains, 25.0% CPU idle, 1000k switches/s, 0 interrupts/s, 512 of 1024 MiB free, 2.0 s"
        );
        assert_eq!(
            lines[2],
            "a-guest-with-a    6    50.0      1.0  262244    500k       0       0       0       0"
        );
        assert_eq!(
            lines[3],
            "console           1     0.1      0.0  262244    1000       0       5       0       0"
        );
        assert_eq!(
            lines[6],
            "a-guest-with-a        5      20       0       0   1500k       0  vmmcall 200k msr 30 hlt 25"
        );
        assert_eq!(lines.len(), 7, "{text}");
        assert!(lines.iter().take(4).skip(1).all(|line| line.len() <= 86));
    }

    #[test]
    fn counters_that_go_back_and_equal_samples_are_no_panic() {
        let (early, late) = (domain(1, "x", u64::MAX, &[(0, u64::MAX)]), domain(1, "x", 0, &[]));
        let text = page(&sample(5, alloc::vec![early]), &sample(5, alloc::vec![late.clone()]));
        assert!(text.contains("x                 1     0.0"), "{text}");
        let huge = domain(7, "y", u64::MAX / 4, &[(index::BLK_READS, u64::MAX), (index::BLK_WRITES, 2)]);
        page(&sample(0, alloc::vec![]), &sample(1, alloc::vec![huge]));
        page(&Sample::default(), &Sample::default());
    }

    #[test]
    fn numbers_are_short() {
        for (number, text) in [(0, "0"), (99_999, "99999"), (100_000, "100k"), (100_000_000, "100M")] {
            assert_eq!(short(number), text);
        }
        assert!(short(u64::MAX).len() <= 12);
    }
}
