//! A guest's configuration: what the settings of its file mean.
//!
//! Every setting is honoured, refused with a sentence, or reported as having no effect.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use proto::builder::{DISKS_MAX, VIFS_MAX};
use proto::cpuid::Narrowing;

use super::action::Action;
use super::cpuid;
use super::disk::{self, Disk};
use super::identity;
use super::keys;
use super::number;
use super::report::Report;
use super::source::{Span, Spanned};
use super::syntax::{Atom, Setting, Value};
use super::vif::{self, Vif};
use crate::nearest::nearest;

/// Longest name of a guest in bytes.
pub const NAME_MAX: usize = 32;
/// Longest kernel command line in bytes (Linux takes 2,047).
pub const CMDLINE_MAX: usize = 2048;
/// Least memory of a guest in MiB.
pub const MEMORY_MIN_MIB: u64 = 8;
/// Most memory of a guest in MiB: 1 TiB.
pub const MEMORY_MAX_MIB: u64 = 1 << 20;
/// Memory in MiB of a guest whose file names none, as libxl has it.
const MEMORY_DEFAULT_MIB: u64 = 32;
/// Most virtual CPUs that can be given to a guest.
const VCPUS_MAX: u64 = proto::guest::VCPUS_MAX as u64;

/// A guest, as its file describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestConfig {
    /// Name.
    pub name: Spanned<String>,
    /// UUID; of the file, or one that follows from the name.
    pub uuid: [u8; 16],
    /// Kernel on the host, as the file writes it.
    pub kernel: Spanned<String>,
    /// Initial RAM disk on the host, as the file writes it.
    pub ramdisk: Option<Spanned<String>>,
    /// Kernel command line (`cmdline`, or `root` and `extra`).
    pub cmdline: Spanned<String>,
    /// Memory in KiB.
    pub memory_kib: Spanned<u64>,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// What it does not see of the processor.
    pub cpuid: Narrowing,
    /// Disks in the file's order.
    pub disks: Vec<Disk>,
    /// Network interfaces in the file's order.
    pub vifs: Vec<Vif>,
    /// When the guest powers itself off.
    pub on_poweroff: Action,
    /// When it asks to be restarted.
    pub on_reboot: Action,
    /// When its watchdog fires.
    pub on_watchdog: Action,
    /// When it crashes.
    pub on_crash: Action,
}

/// What a host path of a configuration is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostPathUse {
    /// Kernel image.
    Kernel,
    /// Initial RAM disk.
    Ramdisk,
    /// Disk image.
    Disk {
        /// The guest may not write to it.
        is_read_only: bool,
    },
}

impl GuestConfig {
    /// KiB that the guest takes: its RAM and its volumes in memory.
    pub fn total_kib(&self) -> u64 {
        let volumes = self.disks.iter().fold(0u64, |sum, disk| sum.saturating_add(disk.memory / 1024));
        self.memory_kib.value.saturating_add(volumes)
    }

    /// Which strings are paths on the host: the kernel, the RAM disk and each disk's image, in this order.
    pub fn host_paths(&self) -> impl Iterator<Item = (HostPathUse, &Spanned<String>)> {
        let disks = self
            .disks
            .iter()
            .filter(|disk| disk.memory == 0)
            .map(|disk| (HostPathUse::Disk { is_read_only: disk.is_read_only }, &disk.target));
        core::iter::once((HostPathUse::Kernel, &self.kernel))
            .chain(self.ramdisk.iter().map(|ramdisk| (HostPathUse::Ramdisk, ramdisk)))
            .chain(disks)
    }
}

/// Reads a guest from the settings of its file.
pub(super) fn interpret(settings: Vec<Setting>, report: Report<'_>) -> (Option<GuestConfig>, Report<'_>) {
    let has_syntax_errors = report.errors() > 0;
    let mut fields = Fields { settings, report, has_syntax_errors };
    let config = fields.guest();
    fields.leftovers();
    let report = fields.report;
    // Errors of the syntax count as well: half of a file is no guest.
    let config = config.filter(|_| report.errors() == 0);
    (config, report)
}

struct Fields<'a> {
    settings: Vec<Setting>,
    report: Report<'a>,
    has_syntax_errors: bool,
}

impl Fields<'_> {
    /// Where a message stands that is about nothing in the file.
    const START: Span = Span { start: 0, end: 0 };

    fn is_given(&self, key: &str) -> bool {
        self.settings.iter().any(|setting| setting.key.value == key)
    }

    /// Something is not in the file. Where the syntax is wrong it may be, so nothing is said.
    fn missing(&mut self, message: &str) {
        if !self.has_syntax_errors {
            self.report.error(Self::START, message);
        }
    }

    fn take(&mut self, key: &str) -> Option<Setting> {
        let index = self.settings.iter().position(|setting| setting.key.value == key)?;
        Some(self.settings.remove(index))
    }

    /// A string or number.
    fn atom(&mut self, key: &str) -> Option<Atom> {
        let setting = self.take(key)?;
        match setting.value {
            Value::Atom(atom) => Some(atom),
            Value::List(_, span) => {
                self.report.error(span, format!("`{key}` is a single value, not a list; remove the [ ]"));
                None
            }
        }
    }

    fn text(&mut self, key: &str) -> Option<Spanned<String>> {
        self.atom(key).map(|atom| Spanned { value: atom.text, span: atom.span })
    }

    /// Text that may not be empty.
    fn path(&mut self, key: &str) -> Option<Spanned<String>> {
        let text = self.text(key)?;
        if text.value.is_empty() {
            self.report.error(text.span, format!("`{key}` is empty; give the path of a file"));
            return None;
        }
        Some(text)
    }

    fn number(&mut self, key: &str) -> Option<Spanned<u64>> {
        let atom = self.atom(key)?;
        if atom.is_joined {
            self.report.error(atom.span, format!("`{key}` is a number; += works for text and lists only"));
            return None;
        }
        match number::parse(&atom.text) {
            Some(value) => Some(Spanned { value, span: atom.span }),
            None => {
                self.report
                    .error(atom.span, format!("`{key}` is a number, for example: {key} = {}", example(key)));
                None
            }
        }
    }

    fn list(&mut self, key: &str) -> Vec<Atom> {
        let Some(setting) = self.take(key) else { return Vec::new() };
        let Value::List(values, _) = setting.value else {
            let message = format!("`{key}` is a list; write it in [ ]: {key} = [ '...' ]");
            self.report.error(setting.value.span(), message);
            return Vec::new();
        };
        let mut atoms = Vec::new();
        for value in values {
            match value {
                Value::Atom(atom) => atoms.push(atom),
                Value::List(_, span) => {
                    self.report.error(span, format!("an entry of `{key}` is text in quotes, not a list"));
                }
            }
        }
        atoms
    }

    fn guest(&mut self) -> Option<GuestConfig> {
        self.guest_type();
        let name = self.name();
        let uuid = self.uuid(name.as_ref().map_or("", |name| &name.value));
        let has_kernel = self.is_given("kernel");
        let kernel = self.path("kernel");
        if !has_kernel {
            self.missing("there is no kernel; add a line like: kernel = \"/boot/vmlinuz\"");
        }
        let ramdisk = self.path("ramdisk");
        let cmdline = self.cmdline();
        let memory_kib = self.memory();
        let vcpus = self.vcpus();
        let cpuid = self
            .take("cpuid")
            .map_or_else(Default::default, |set| cpuid::parse(&set.value, &mut self.report));
        let disks = self.disks();
        let vifs = self.vifs(&uuid);
        let on_poweroff = self.action("on_poweroff", Action::Destroy);
        let on_reboot = self.action("on_reboot", Action::Restart);
        let on_watchdog = self.action("on_watchdog", Action::Destroy);
        let on_crash = self.action("on_crash", Action::Destroy);
        self.fixed();
        Some(GuestConfig {
            name: name?,
            uuid,
            kernel: kernel?,
            ramdisk,
            cmdline,
            memory_kib: memory_kib?,
            vcpus,
            cpuid,
            disks,
            vifs,
            on_poweroff,
            on_reboot,
            on_watchdog,
            on_crash,
        })
    }

    fn guest_type(&mut self) {
        let is_given = self.is_given("type");
        match self.text("type") {
            Some(text) if text.value == "pvh" => {}
            Some(text) => {
                let message = match text.value.as_str() {
                    "hvm" | "pv" => format!("guests of type \"{}\" are not supported; write type = \"pvh\"", text.value),
                    _ => "the type of a guest is \"pvh\"".to_owned(),
                };
                self.report.error(text.span, message);
            }
            None if is_given => {}
            None => self.missing(
                "there is no type, which means \"pv\" to xl, and that is not supported; add a line: type = \"pvh\"",
            ),
        }
    }

    fn name(&mut self) -> Option<Spanned<String>> {
        let is_given = self.is_given("name");
        let Some(name) = self.text("name") else {
            if !is_given {
                self.missing("the guest has no name; add a line like: name = \"web\"");
            }
            return None;
        };
        let is_allowed = |c: char| !c.is_whitespace() && !c.is_control() && c != '/' && c != '\\';
        let message = if name.value.is_empty() {
            "the name is empty; give the guest one, for example: name = \"web\"".into()
        } else if name.value.len() > NAME_MAX {
            format!("the name has {} bytes; at most {NAME_MAX} are possible", name.value.len())
        } else if !name.value.chars().all(is_allowed) {
            "a guest's name has no blanks, no slashes and no control characters; use - or _ instead".into()
        } else if name.value.bytes().all(|b| b.is_ascii_digit()) {
            "a name of digits would be taken for a domain ID; add a letter".into()
        } else {
            return Some(name);
        };
        self.report.error(name.span, message);
        None
    }

    fn uuid(&mut self, name: &str) -> [u8; 16] {
        let Some(text) = self.text("uuid") else { return identity::uuid_from_name(name) };
        identity::parse_uuid(&text.value).unwrap_or_else(|| {
            let message = format!(
                "`{}` is no UUID; write 32 hexadecimal digits like \"c0a7d3e2-1b5f-4e6a-9d8c-7b6a5f4e3d2c\" or leave \
                 the line out",
                text.value.escape_debug()
            );
            self.report.error(text.span, message);
            [0; 16]
        })
    }

    /// `cmdline`, else `root` and `extra` put together as xl does.
    fn cmdline(&mut self) -> Spanned<String> {
        let cmdline = self.text("cmdline");
        let root = self.text("root");
        let extra = self.text("extra");
        let line = match (cmdline, root, extra) {
            (Some(cmdline), root, extra) => {
                for (key, ignored) in [("root", root), ("extra", extra)] {
                    if let Some(ignored) = ignored {
                        let message =
                            format!("`{key}` has no effect because `cmdline` is given; remove one of them");
                        self.report.warning(ignored.span, message);
                    }
                }
                cmdline
            }
            (None, Some(root), Some(extra)) => {
                Spanned { value: format!("root={} {}", root.value, extra.value), span: extra.span }
            }
            (None, Some(root), None) => Spanned { value: format!("root={}", root.value), span: root.span },
            (None, None, Some(extra)) => extra,
            (None, None, None) => Spanned::default(),
        };
        if line.value.len() > CMDLINE_MAX {
            let message = format!(
                "the kernel command line has {} bytes; at most {CMDLINE_MAX} are possible",
                line.value.len()
            );
            self.report.error(line.span, message);
        }
        line
    }

    fn memory(&mut self) -> Option<Spanned<u64>> {
        let is_given = self.is_given("memory");
        let memory = self.number("memory");
        let maxmem = self.number("maxmem");
        if is_given && memory.is_none() {
            return None;
        }
        if let (Some(memory), Some(maxmem)) = (&memory, &maxmem)
            && memory.value != maxmem.value
        {
            let message = format!(
                "memory that grows while the guest runs is not supported; write maxmem = {} or remove it",
                memory.value
            );
            self.report.error(maxmem.span, message);
        }
        let memory = memory.or(maxmem).unwrap_or_else(|| {
            let message = format!(
                "there is no memory: the guest gets xl's default of {MEMORY_DEFAULT_MIB} MiB; add a line like: memory = 512"
            );
            self.report.warning(Self::START, message);
            Spanned { value: MEMORY_DEFAULT_MIB, span: Self::START }
        });
        let message = match memory.value {
            0..MEMORY_MIN_MIB => {
                format!("{} MiB are too little memory; a guest needs at least {MEMORY_MIN_MIB}", memory.value)
            }
            MEMORY_MIN_MIB..=MEMORY_MAX_MIB => {
                return Some(Spanned { value: memory.value * 1024, span: memory.span });
            }
            _ => format!(
                "{} MiB are too much memory; the number counts MiB, and {MEMORY_MAX_MIB} (1 TiB) is the most",
                memory.value
            ),
        };
        self.report.error(memory.span, message);
        None
    }

    fn vcpus(&mut self) -> u32 {
        let [vcpus, most] = ["vcpus", "maxvcpus"].map(|key| self.number(key).map(|given| (key, given)));
        for (key, given) in [&vcpus, &most].into_iter().flatten() {
            let message = match given.value {
                0 => format!("a guest has at least one virtual CPU; write {key} = 1"),
                1..=VCPUS_MAX => continue,
                n => format!("{n} virtual CPUs are too many: a guest has at most {VCPUS_MAX}"),
            };
            self.report.error(given.span, message);
        }
        let count = vcpus.as_ref().or(most.as_ref()).map_or(1, |(_, given)| given.value);
        if let Some((_, most)) = most
            && most.value != count
        {
            let message =
                format!("virtual CPUs cannot be added while the guest runs; leave this out or write {count}");
            self.report.error(most.span, message);
        }
        count.clamp(1, VCPUS_MAX) as u32
    }

    fn disks(&mut self) -> Vec<Disk> {
        let mut disks: Vec<Disk> = Vec::new();
        for (index, spec) in self.list("disk").iter().enumerate() {
            if index == DISKS_MAX {
                self.report.error(spec.span, format!("a guest has at most {DISKS_MAX} disks"));
                break;
            }
            let Some(disk) = disk::parse(spec, &mut self.report) else { continue };
            if let Some(other) = disks.iter().find(|other| other.device == disk.device) {
                let line = self.report.source.line_of(other.vdev.span);
                let message = if other.vdev.value == disk.vdev.value {
                    format!(
                        "the vdev `{}` is taken by another disk (line {line}); give this one another name",
                        disk.vdev.value
                    )
                } else {
                    format!(
                        "the vdev `{}` is the same device as `{}` (line {line}); give this one another name",
                        disk.vdev.value, other.vdev.value
                    )
                };
                self.report.error(disk.vdev.span, message);
                continue;
            }
            disks.push(disk);
        }
        disks
    }

    fn vifs(&mut self, uuid: &[u8; 16]) -> Vec<Vif> {
        let mut vifs: Vec<Vif> = Vec::new();
        for (index, spec) in self.list("vif").iter().enumerate() {
            if index == VIFS_MAX {
                self.report.error(spec.span, format!("a guest has at most {VIFS_MAX} network interfaces"));
                break;
            }
            let mac = identity::mac_from_uuid(uuid, index);
            let Some(vif) = vif::parse(spec, mac, &mut self.report) else { continue };
            if let Some(other) = vifs.iter().find(|other| other.mac == vif.mac) {
                let line = self.report.source.line_of(other.mac.span);
                let message =
                    format!("another interface has this MAC address (line {line}); give this one its own");
                self.report.error(vif.mac.span, message);
                continue;
            }
            vifs.push(vif);
        }
        vifs
    }

    fn action(&mut self, key: &str, default: Action) -> Action {
        let Some(text) = self.text(key) else { return default };
        if let Some(action) = Action::ALL.into_iter().find(|action| action.name() == text.value) {
            return action;
        }
        let message = if Action::UNSUPPORTED.contains(&text.value.as_str()) {
            format!("{key} = \"{}\" is not supported; write destroy, restart or preserve", text.value)
        } else {
            format!("`{}` is no action; write destroy, restart or preserve", text.value.escape_debug())
        };
        self.report.error(text.span, message);
        default
    }

    /// Keys whose only possible value is what is done anyway.
    fn fixed(&mut self) {
        // No guest is ever migrated.
        self.number("nomigrate");
    }

    /// Settings that nobody took.
    fn leftovers(&mut self) {
        for Setting { key, .. } in core::mem::take(&mut self.settings) {
            let name = key.value.as_str();
            if keys::REFUSED.contains(&name) {
                let message =
                    format!("xl knows `{name}`, but it is not supported here; {}", keys::advice(name));
                self.report.error(key.span, message);
                continue;
            }
            let known = keys::HONOURED.into_iter().chain(keys::REFUSED);
            let message = match nearest(name, known) {
                Some(known) => {
                    format!("`{name}` is no key of xl.cfg and has no effect; did you mean `{known}`?")
                }
                None => format!("`{name}` is no key of xl.cfg and has no effect; remove it"),
            };
            self.report.warning(key.span, message);
        }
    }
}

fn example(key: &str) -> &'static str {
    match key {
        "memory" | "maxmem" => "512",
        _ => "1",
    }
}
