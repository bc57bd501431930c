//! What the commands print: xl's own tables.

use alloc::format;
use alloc::string::String;
use core::fmt::Write;

use proto::builder::{DomainStat, DomainState, MachineStat};
use proto::toolstack::EndReason;

use crate::command::ListForm;
use crate::config::Uuid;

/// What the toolstack adds to the builder's facts about a domain.
#[derive(Debug, Clone, Copy, Default)]
pub struct Overlay {
    /// How the guest ended, if it did.
    pub end: Option<EndReason>,
    /// Stopped by `xl pause`.
    pub is_paused: bool,
    /// Being removed.
    pub is_dying: bool,
    /// UUID of a guest.
    pub uuid: Option<[u8; 16]>,
}

/// The six letters of `xl list`: running, blocked, paused, shut down, why, dying.
pub fn state(stat: &DomainStat, overlay: &Overlay) -> String {
    let has_faulted = stat.state == DomainState::Crashed;
    let end = overlay.end.or(has_faulted.then_some(EndReason::Crash));
    let is_paused = overlay.is_paused || stat.state == DomainState::Paused;
    let is_live = end.is_none() && !is_paused;
    let reason = match end {
        None | Some(EndReason::PowerOff) => '-',
        Some(EndReason::Reboot) => 'r',
        Some(EndReason::Suspend) => 's',
        Some(EndReason::Crash) => 'c',
        Some(EndReason::Watchdog) => 'w',
        Some(EndReason::SoftReset) => 'S',
    };
    let letter = |is_set: bool, letter: char| if is_set { letter } else { '-' };
    [
        letter(is_live && stat.state == DomainState::Running, 'r'),
        letter(is_live && stat.state == DomainState::Blocked, 'b'),
        letter(is_paused && end.is_none(), 'p'),
        letter(end.is_some(), 's'),
        reason,
        letter(overlay.is_dying, 'd'),
    ]
    .into_iter()
    .collect()
}

/// Whole MiB; what a service has is rounded up, since it has less than one.
fn mib(stat: &DomainStat) -> u64 {
    if stat.is_guest { stat.memory_kib / 1024 } else { stat.memory_kib.div_ceil(1024) }
}

/// Seconds with one decimal.
fn seconds(us: u64) -> String {
    let tenths = us.saturating_add(50_000) / 100_000;
    format!("{}.{}", tenths / 10, tenths % 10)
}

/// The first line of `xl list`; nothing for the long form.
pub fn list_head(form: ListForm) -> &'static str {
    match form {
        ListForm::Table => "Name                                        ID   Mem VCPUs\tState\tTime(s)\n",
        ListForm::Verbose => {
            "Name                                        ID   Mem VCPUs\tState\tTime(s)   UUID                            \
             Reason-Code\tSecurity Label\n"
        }
        ListForm::Long => "",
    }
}

/// One domain of `xl list`.
pub fn list_row(form: ListForm, stat: &DomainStat, overlay: &Overlay) -> String {
    let state = state(stat, overlay);
    let time = seconds(stat.time_us);
    let uuid = overlay.uuid.unwrap_or([0; 16]);
    if form == ListForm::Long {
        return format!(
            "{{\"domid\": {}, \"name\": \"{}\", \"uuid\": \"{}\", \"is_guest\": {}, \"memory_kib\": {}, \
             \"overhead_kib\": {}, \"vcpus\": {}, \"state\": \"{state}\", \"cpu_time_us\": {}}}",
            stat.domid,
            stat.name.escape_default(),
            Uuid(&uuid),
            stat.is_guest,
            stat.memory_kib,
            stat.overhead_kib,
            stat.vcpus,
            stat.time_us,
        );
    }
    let name = stat.name.as_str();
    let mut row =
        format!("{name:<40} {:>5} {:>5} {:>5}     {state}  {time:>8}", stat.domid, mib(stat), stat.vcpus);
    if form == ListForm::Verbose {
        let reason = overlay.end.map_or("-", |end| match end {
            EndReason::PowerOff => "0",
            EndReason::Reboot => "1",
            EndReason::Suspend => "2",
            EndReason::Crash => "3",
            EndReason::Watchdog => "4",
            EndReason::SoftReset => "5",
        });
        // Writing to a string cannot fail.
        let _ok = write!(row, " {} {reason:>8} {:>16}", Uuid(&uuid), "-");
    }
    row.push('\n');
    row
}

/// `xl info`.
pub fn info(machine: &MachineStat, version: &str) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ok = writeln!(text, "{name:<22} : {value}");
    };
    line("host", "ailurus".into());
    line("release", version.into());
    line("version", "Ailurus".into());
    line("machine", "x86_64".into());
    line("nr_cpus", format!("{}", machine.cpus));
    line("max_cpu_id", format!("{}", machine.cpus.saturating_sub(1)));
    line("nr_nodes", "1".into());
    line("cores_per_socket", format!("{}", machine.cpus));
    line("threads_per_core", "1".into());
    line("cpu_mhz", format!("{}.{:03}", machine.tsc_khz / 1000, machine.tsc_khz % 1000));
    line("virt_caps", "pvh hap".into());
    line("total_memory", format!("{}", machine.total_kib / 1024));
    line("free_memory", format!("{}", machine.free_kib / 1024));
    line("system_memory_kib", format!("{}", machine.system_kib));
    line("bundle_memory_kib", format!("{}", machine.bundle_kib));
    line("idle_time_us", format!("{}", machine.idle_us));
    line("context_switches", format!("{}", machine.context_switches));
    line("interrupts", format!("{}", machine.interrupts));
    line("free_cpus", "0".into());
    line("xen_pagesize", "4096".into());
    line("xend_config_format", "4".into());
    text
}

/// The first line of `xl uptime`.
pub const UPTIME_HEAD: &str = "Name                                ID Uptime\n";

/// One line of `xl uptime`.
pub fn uptime_row(name: &str, domid: Option<u32>, up_ns: u64, is_short: bool) -> String {
    let seconds = up_ns / 1_000_000_000;
    let (days, hours, minutes, rest) =
        (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let days = match days {
        0 => String::new(),
        1 => "1 day, ".into(),
        n => format!("{n} days, "),
    };
    let id = domid.map_or("-".into(), |domid| format!("{domid}"));
    if is_short {
        format!(" up {days}{hours:>2}:{minutes:02}, {name} ({id})\n")
    } else {
        format!("{name:<33} {id:>4} {days}{hours:>2}:{minutes:02}:{rest:02}\n")
    }
}

/// How a guest ended, as the end of a sentence.
pub const fn end_text(end: EndReason) -> &'static str {
    match end {
        EndReason::PowerOff => "powered off",
        EndReason::Reboot => "asked for a restart",
        EndReason::Suspend => "suspended itself",
        EndReason::Crash => "crashed",
        EndReason::Watchdog => "was stopped by its watchdog",
        EndReason::SoftReset => "asked for a soft reset, which is not supported",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::text::Text;

    fn stat() -> DomainStat {
        DomainStat {
            domid: 9,
            name: Text::truncated("web"),
            is_guest: true,
            memory_kib: 262_144,
            overhead_kib: 1900,
            vcpus: 1,
            state: DomainState::Blocked,
            time_us: 12_349_999,
            activity: Default::default(),
        }
    }

    #[test]
    fn rows_are_xls() {
        let row = list_row(ListForm::Table, &stat(), &Overlay::default());
        assert_eq!(row, "web                                          9   256     1     -b----      12.3\n");
        let overlay = Overlay { uuid: Some([0xab; 16]), end: Some(EndReason::Crash), ..Overlay::default() };
        assert_eq!(
            list_row(ListForm::Verbose, &stat(), &overlay),
            "web                                          9   256     1     ---sc-      12.3 \
             abababab-abab-abab-abab-abababababab        3                -\n"
        );
        let service = DomainStat { is_guest: false, memory_kib: 300, ..stat() };
        assert!(list_row(ListForm::Table, &service, &Overlay::default()).contains("    9     1     1 "));
        assert_eq!(
            list_row(ListForm::Long, &service, &Overlay::default()),
            "{\"domid\": 9, \"name\": \"web\", \"uuid\": \"00000000-0000-0000-0000-000000000000\", \"is_guest\": false, \
             \"memory_kib\": 300, \"overhead_kib\": 1900, \"vcpus\": 1, \"state\": \"-b----\", \"cpu_time_us\": 12349999}"
        );
    }

    #[test]
    fn every_state_has_its_letter() {
        let letters = |machine: DomainState, overlay: Overlay| {
            state(&DomainStat { state: machine, ..stat() }, &overlay)
        };
        let none = Overlay::default();
        assert_eq!(letters(DomainState::Running, none), "r-----");
        assert_eq!(letters(DomainState::Blocked, none), "-b----");
        assert_eq!(letters(DomainState::Paused, none), "--p---");
        assert_eq!(letters(DomainState::Crashed, none), "---sc-");
        assert_eq!(letters(DomainState::Blocked, Overlay { is_paused: true, ..none }), "--p---");
        assert_eq!(letters(DomainState::Running, Overlay { is_dying: true, ..none }), "r----d");
        for (end, expected) in [
            (EndReason::PowerOff, "---s--"),
            (EndReason::Reboot, "---sr-"),
            (EndReason::Suspend, "---ss-"),
            (EndReason::Watchdog, "---sw-"),
            (EndReason::SoftReset, "---sS-"),
        ] {
            assert_eq!(letters(DomainState::Blocked, Overlay { end: Some(end), ..none }), expected);
        }
    }

    #[test]
    fn times_are_rounded_and_split() {
        assert_eq!(seconds(0), "0.0");
        assert_eq!(seconds(49_999), "0.0");
        assert_eq!(seconds(999_999), "1.0");
        assert_eq!(seconds(u64::MAX), format!("{}.{}", u64::MAX / 1_000_000, u64::MAX / 100_000 % 10));
        let ns = |seconds: u64| seconds * 1_000_000_000;
        assert_eq!(
            uptime_row("web", Some(9), ns(3_723), false),
            "web                                  9  1:02:03\n"
        );
        assert_eq!(uptime_row("web", None, ns(90_000), true), " up 1 day,  1:00, web (-)\n");
        assert!(uptime_row("web", Some(9), ns(200_000), false).ends_with("2 days,  7:33:20\n"));
    }

    #[test]
    fn info_has_xls_columns() {
        let machine = MachineStat {
            total_kib: 2_097_152,
            free_kib: 1_048_576,
            system_kib: 9000,
            bundle_kib: 30_000,
            cpus: 2,
            tsc_khz: 2_893_202,
            uptime_us: 0,
            idle_us: 0,
            context_switches: 0,
            interrupts: 0,
        };
        let text = info(&machine, "0.1.0");
        for line in [
            "host                   : ailurus\n",
            "cpu_mhz                : 2893.202\n",
            "free_memory            : 1024\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }
}
