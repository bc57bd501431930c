//! The default guest under `-icount`: its start, its exits as it sees them itself, and memory.

use std::time::Duration;

use regex::Regex;

use crate::Error;
use crate::bench::Setting;
use crate::bench::plots::Moment;
use crate::bench::report::Figure;
use crate::guest;
use crate::machine::{Guest, Machine};
use crate::plan::default_config;
use crate::session::{Request, Session};

/// Samples that [`PROBE`] takes of each exit.
const SAMPLES: usize = 128;
/// Instructions of [`PROBE`] between two stamps: RDTSC and three more. The intercepted one is not counted.
const PROBE_OWN: u64 = 4;
/// Instructions per microsecond.
const PER_MICROSECOND: u64 = 1000;

/// A Linux program. It stamps 128 times around CPUID and 128 times around VMMCALL (`xen_version`, from ring 3,
/// which is answered -EPERM), and writes the differences to its standard output:
///
/// ```text
///     sub rsp, 1024; mov rbp, rsp; xor r13d, r13d
/// 1:  rdtsc; mov r14d, eax; xor eax, eax; xor ecx, ecx; cpuid; rdtsc; sub eax, r14d; mov [rbp + 4*r13], eax
///     rdtsc; mov r14d, eax; mov eax, 17; mov edi, 0; vmmcall; rdtsc; sub eax, r14d; mov [rbp + 4*r13 + 512], eax
///     inc r13d; cmp r13d, 128; jne 1b
///     write(1, rbp, 1024); exit(0)
/// ```
#[rustfmt::skip]
const PROBE: [u8; 106] = [
    0x48, 0x81, 0xec, 0x00, 0x04, 0x00, 0x00, 0x48, 0x89, 0xe5, 0x45, 0x31, 0xed,
    0x0f, 0x31, 0x41, 0x89, 0xc6, 0x31, 0xc0, 0x31, 0xc9, 0x0f, 0xa2,
    0x0f, 0x31, 0x44, 0x29, 0xf0, 0x42, 0x89, 0x44, 0xad, 0x00,
    0x0f, 0x31, 0x41, 0x89, 0xc6, 0xb8, 0x11, 0x00, 0x00, 0x00, 0xbf, 0x00, 0x00, 0x00, 0x00, 0x0f, 0x01, 0xd9,
    0x0f, 0x31, 0x44, 0x29, 0xf0, 0x42, 0x89, 0x84, 0xad, 0x00, 0x02, 0x00, 0x00,
    0x41, 0xff, 0xc5, 0x41, 0x81, 0xfd, 0x80, 0x00, 0x00, 0x00, 0x75, 0xc0,
    0xb8, 0x01, 0x00, 0x00, 0x00, 0xbf, 0x01, 0x00, 0x00, 0x00, 0x48, 0x89, 0xee, 0xba, 0x00, 0x04, 0x00, 0x00,
    0x0f, 0x05, 0xb8, 0x3c, 0x00, 0x00, 0x00, 0x31, 0xff, 0x0f, 0x05,
];

/// The probe as an ELF file of one segment.
fn probe() -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 120;
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    let len = HEADERS + PROBE.len() as u64;
    for (value, width) in [
        (2, 2),
        (62, 2),
        (1, 4),
        (BASE + HEADERS, 8),
        (64, 8),
        (0, 8),
        (0, 4),
        (64, 2),
        (56, 2),
        (1, 2),
        (0, 2),
        (0, 2),
        (0, 2),
        (1, 4),
        (5, 4),
        (0, 8),
        (BASE, 8),
        (BASE, 8),
        (len, 8),
        (len, 8),
        (4096, 8u64),
    ] {
        file.extend(u64::to_le_bytes(value).iter().take(width as usize));
    }
    file.extend(PROBE);
    file
}

/// Boots and measures: figures, and what happened when.
///
/// # Errors
/// The machine or its guest does not come up, or not in time.
pub fn measure(setting: Setting<'_>) -> Result<(Vec<Figure>, Vec<Moment>), Error> {
    let Setting { timeout, log, progress } = setting;
    let mut request = Request::new(vec![default_config(None, None, None, progress)?]);
    request.has_icount = true;
    request.progress = progress;
    let session = Session::prepare(&request)?;
    let machine = session.start(log)?;
    machine.wait_up(timeout)?;
    let mut shell = machine.guest(guest::NAME).from_start();
    shell.wait_shell(timeout)?;
    let (mut figures, moments) = time(&machine, &mut shell, timeout)?;
    figures.extend(exits(&mut shell, timeout)?);
    figures.extend(memory(&machine, timeout)?);
    machine.quit(Duration::from_secs(60))?;
    Ok((figures, moments))
}

/// Exits as the guest sees them, the whole way to the VMM and back.
fn exits(shell: &mut Guest<'_>, timeout: Duration) -> Result<Vec<Figure>, Error> {
    let bytes: String = probe().iter().map(|byte| format!("\\x{byte:02x}")).collect();
    let command =
        format!("printf '{bytes}' >/tmp/probe && chmod +x /tmp/probe && /tmp/probe | od -An -v -t u4");
    let (output, status) = shell.shell(&command, timeout)?;
    let samples: Vec<u64> = output.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    if status != 0 || samples.len() != 2 * SAMPLES {
        return Err(Error::Died(format!("the probe in the guest ended with status {status}: {output}")));
    }
    let figure = |name, samples: &[u64]| Figure::new(name, median(samples).saturating_sub(PROBE_OWN));
    let (cpuid, vmmcall) = samples.split_at(SAMPLES);
    Ok(vec![figure("guest-cpuid", cpuid), figure("guest-vmmcall", vmmcall)])
}

fn median(samples: &[u64]) -> u64 {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or(0)
}

/// How long the guest took to start: by its own clock, and as time on the CPU of its domain.
fn time(
    machine: &Machine,
    shell: &mut Guest<'_>,
    timeout: Duration,
) -> Result<(Vec<Figure>, Vec<Moment>), Error> {
    let (domains, _) = machine.exec("xl list -l", timeout)?;
    let (log, _) = shell.shell("dmesg | grep ' as init process'", timeout)?;
    let stamp = Regex::new(r"\[ *(\d+)\.(\d{6})\] Run /init").map_err(|e| Error::Usage(e.to_string()))?;
    let found = stamp.captures(&log).and_then(|found| {
        let number = |index| found.get(index)?.as_str().parse::<u64>().ok();
        Some(number(1)? * 1_000_000 + number(2)?)
    });
    let init = found.ok_or_else(|| Error::Died(format!("the guest's log has no init in it: {log}")))?;
    let log = machine.exec("xl dmesg", timeout)?.0;
    let stamps = Stamps::read(&log)?;
    let mut moments = moments(&log);
    moments.push(Moment { micros: stamps.guest + init, what: "the guest's init".into() });
    let create = stamps.guest.saturating_sub(stamps.services);
    let total: u64 = list(&domains)?.iter().map(|domain| number(domain, "cpu_time_us")).sum();
    let own = list(&domains)?.iter().filter(|d| is_guest(d)).map(|d| number(d, "cpu_time_us")).sum::<u64>();
    let figure = |name, micros: u64| Figure::new(name, micros * PER_MICROSECOND);
    let figures = vec![
        figure("reset-to-guest", stamps.guest),
        figure("create-to-guest", create),
        figure("guest-kernel-to-init", init),
        figure("create-to-init", create + init),
        figure("guest-to-shell", own),
        figure("reset-to-shell", total),
    ];
    Ok((figures, moments))
}

/// Microseconds since the machine's reset, by the machine's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamps {
    /// All services were ready, which is when the toolstack orders the first guest.
    services: u64,
    /// The guest's first instruction.
    guest: u64,
}

impl Stamps {
    fn read(log: &str) -> Result<Self, Error> {
        let at =
            |what: &str| log.lines().find(|line| line.contains(what)).and_then(stamp).map(|found| found.0);
        let stamps = at("init: all services are ready").zip(at(": the guest starts at"));
        let (services, guest) = stamps.ok_or_else(|| {
            Error::Died(format!("the machine's log does not show the guest's start: {log}"))
        })?;
        Ok(Self { services, guest })
    }
}

/// Microseconds and text of a line of the machine's log.
fn stamp(line: &str) -> Option<(u64, &str)> {
    let (stamp, text) = line.trim_start_matches(['[', ' ']).split_once("] ")?;
    let (seconds, micros) = stamp.split_once('.')?;
    Some((seconds.parse::<u64>().ok()? * 1_000_000 + micros.parse::<u64>().ok()?, text))
}

/// What the log says about the way to the first guest's first instruction.
fn moments(log: &str) -> Vec<Moment> {
    let ends = [" is ready (domain", "all services are ready", " is domain ", "the guest starts at"];
    let told = |(micros, text): (u64, &str)| {
        let text = text.strip_prefix("init: ").unwrap_or(text);
        ends.iter().any(|end| text.contains(end)).then(|| {
            let what = text.split([';', ',', '(']).next().unwrap_or(text).split(" at 0x").next();
            Moment { micros, what: what.unwrap_or(text).trim().to_owned() }
        })
    };
    let mut moments = vec![Moment { micros: 0, what: "reset".into() }];
    moments.extend(log.lines().filter_map(stamp).filter_map(told));
    moments
}

fn list(text: &str) -> Result<Vec<serde_json::Value>, Error> {
    serde_json::from_str(text).map_err(|e| Error::Died(format!("`xl list -l` is no JSON: {e}\n{text}")))
}

fn number(domain: &serde_json::Value, key: &str) -> u64 {
    domain.get(key).and_then(serde_json::Value::as_u64).unwrap_or(0)
}

fn is_guest(domain: &serde_json::Value) -> bool {
    domain.get("is_guest").and_then(serde_json::Value::as_bool).unwrap_or(false)
}

/// Memory of the system and of what each guest takes beside its own.
fn memory(machine: &Machine, timeout: Duration) -> Result<Vec<Figure>, Error> {
    let (info, _) = machine.exec("xl info", timeout)?;
    let value = |key: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim_start_matches([' ', ':']).trim().parse::<u64>().ok()
    };
    let system = value("system_memory_kib").unwrap_or(0);
    let (domains, _) = machine.exec("xl list -l", timeout)?;
    let guest = list(&domains)?.iter().filter(|d| is_guest(d)).map(|d| number(d, "overhead_kib")).sum();
    Ok(vec![Figure::new("memory-system", system), Figure::new("memory-per-guest", guest)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stamps_are_read_from_the_log_and_missing_stamps_are_an_error() {
        let log = "[    0.032866] init: all services are ready; x\n[    1.084956] debian: the guest starts at 0x1\n";
        assert_eq!(Stamps::read(log).unwrap(), Stamps { services: 32_866, guest: 1_084_956 });
        assert!(Stamps::read("[    0.032866] init: all services are ready").is_err());
    }

    #[test]
    fn the_moments_of_the_boot_are_read_from_the_log() {
        let log = "[    0.032342] init: blkback is ready (domain 3, 792 KiB)\n[    0.032337] blkback: volume vol0\n\
                   [    0.071148] init: guest debian is domain 6, 263840 KiB\n[    1.000001] debian: the guest starts at 0x1\n";
        let moments = moments(log);
        let moments: Vec<(u64, &str)> = moments.iter().map(|m| (m.micros, m.what.as_str())).collect();
        let expected = [
            (0, "reset"),
            (32_342, "blkback is ready"),
            (71_148, "guest debian is domain 6"),
            (1_000_001, "debian: the guest starts"),
        ];
        assert_eq!(moments, expected);
    }

    #[test]
    fn the_probe_is_a_program_of_one_segment() {
        let file = probe();
        assert_eq!(file.len(), 120 + PROBE.len());
        assert_eq!(file.get(120..124), Some(&PROBE[..4]));
        assert_eq!(file.get(24..32), Some(&0x40_0078u64.to_le_bytes()[..]));
    }

    #[test]
    fn a_list_of_domains_is_read() {
        let text = r#"[ {"domid": 1, "is_guest": false, "cpu_time_us": 5}, {"domid": 2, "is_guest": true} ]"#;
        let domains = list(text).unwrap();
        assert_eq!(domains.iter().filter(|d| is_guest(d)).count(), 1);
        assert_eq!(domains.iter().map(|d| number(d, "cpu_time_us")).sum::<u64>(), 5);
        assert!(list("no").is_err());
    }
}
