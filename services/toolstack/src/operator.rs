//! The operator's commands: what each one starts, and the answers of those that only ask.
//!
//! Every command ends with exactly one of `Done`, `Attach` and `ShowLog`.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use proto::builder::{DomainStat, MachineStat};
use proto::console::OperatorResponse;
use proto::text::Text;
use proto::toolstack::Request;

use crate::command::{self, Command, ListForm, Misuse};
use crate::counters;
use crate::format::{self, Overlay};
use crate::jobs::{Facts, Job, Kind, List, Top};
use crate::life::{Guest, Key, Next, Phase};
use crate::nearest::nearest;
use crate::sample::Sample;
use crate::toolstack::{Call, Toolstack};
use crate::top;

/// Commands at work at the same time.
const JOBS_MAX: usize = 32;

impl Toolstack {
    pub(crate) fn on_command(&mut self, id: u32, line: &str) {
        if self.jobs.len() >= JOBS_MAX {
            self.refuse(id, "too many commands are at work; wait for them to end\n");
            return;
        }
        match command::parse(line) {
            Ok(command) => {
                if let Err(message) = self.run(id, command) {
                    self.refuse(id, &message);
                }
            }
            Err(Misuse(message)) => self.refuse(id, &message),
        }
    }

    /// Starts a command.
    ///
    /// # Errors
    /// What to print; the status is 1.
    fn run(&mut self, id: u32, command: Command) -> Result<(), String> {
        match command {
            Command::Nothing => self.done(id, 0),
            Command::Print(text) => {
                self.output(id, &text);
                self.done(id, 0);
            }
            Command::List { only, form } => self.list_job(id, List::Table { only, form }),
            Command::DomId(name) => self.list_job(id, List::DomId(name)),
            Command::DomName(domid) => self.list_job(id, List::DomName(domid)),
            Command::Info => self.machine_job(id, Facts::Info),
            Command::Counters { only, form } => {
                let serial = self.job(id, Kind::Counters { only, form });
                self.call(Call::Sample(serial, Sample::default()));
            }
            Command::Top { is_batch, delay_s, iterations } => {
                let delay_ns = u64::from(delay_s) * 1_000_000_000;
                let top =
                    Top { has_pages: !is_batch, delay_ns, left: iterations, before: None, next_ns: None };
                let serial = self.job(id, Kind::Top(top));
                self.call(Call::Sample(serial, Sample::default()));
            }
            Command::Trace(order) => self.trace(id, order),
            Command::Uptime { is_short, guests } => {
                let has_machine = guests.is_empty();
                let keys = if has_machine { self.running() } else { self.find_all(&guests)? };
                self.machine_job(id, Facts::Uptime { is_short, keys, has_machine });
            }
            Command::Console(name) => {
                let domid = self.find_built(&name)?.domid;
                self.answer(OperatorResponse::Attach { id, domid });
            }
            Command::Dmesg => self.answer(OperatorResponse::ShowLog { id }),
            Command::Create { name, attaches } => {
                let key = self.create_named(&name)?;
                self.job(id, Kind::Create { key, attaches });
            }
            Command::Destroy(name) => {
                let key = self.find(&name)?.key;
                self.remove(key, Next::Gone);
                self.job(id, Kind::Destroy { key });
            }
            Command::Pause(name) => self.pause(id, &name, true)?,
            Command::Unpause(name) => self.pause(id, &name, false)?,
            Command::Stop { kind, guests, waits } => {
                let keys = match guests {
                    Some(names) => self.find_all(&names)?,
                    None => self.running(),
                };
                self.stop(id, kind, &keys, waits)?;
            }
            Command::Quit { is_now, status } => self.quit(id, is_now, status)?,
        }
        Ok(())
    }

    pub(crate) fn job(&mut self, id: u32, kind: Kind) -> u32 {
        let serial = self.next_serial;
        self.next_serial = self.next_serial.wrapping_add(1);
        self.jobs.push(Job { serial, id, kind });
        serial
    }

    fn list_job(&mut self, id: u32, list: List) {
        let serial = self.job(id, Kind::List(list));
        self.call(Call::List(Some(serial), Vec::new()));
    }

    fn machine_job(&mut self, id: u32, facts: Facts) {
        let serial = self.job(id, Kind::Machine(facts));
        self.call(Call::Machine(serial));
    }

    pub(crate) fn take_job(&mut self, serial: u32) -> Option<Job> {
        let index = self.jobs.iter().position(|job| job.serial == serial)?;
        Some(self.jobs.remove(index))
    }

    /// Prints in pieces that fit a message.
    pub(crate) fn output(&mut self, id: u32, text: &str) {
        let mut rest = text;
        while !rest.is_empty() {
            let piece = Text::truncated(rest);
            let length = piece.len();
            rest = rest.get(length..).unwrap_or("");
            self.answer(OperatorResponse::Output { id, text: piece });
        }
    }

    pub(crate) fn done(&mut self, id: u32, status: u8) {
        self.answer(OperatorResponse::Done { id, status });
    }

    pub(crate) fn refuse(&mut self, id: u32, message: &str) {
        self.output(id, message);
        self.done(id, 1);
    }

    /// A guest by name or domain ID.
    fn find(&self, name: &str) -> Result<&Guest, String> {
        let domid = name.parse::<u32>().ok().filter(|&domid| domid != 0);
        let is_it = |guest: &&Guest| guest.name == name || domid == Some(guest.domid);
        self.guests.iter().find(is_it).ok_or_else(|| {
            if self.configs.iter().any(|config| config.is_called(name)) {
                return format!("guest `{name}` does not run; `xl create {name}` starts it\n");
            }
            match nearest(name, self.guests.iter().map(|guest| guest.name.as_str())) {
                Some(near) => {
                    format!("{name} is an invalid domain identifier; did you mean the guest `{near}`?\n")
                }
                None => format!("{name} is an invalid domain identifier: no guest has this name or ID\n"),
            }
        })
    }

    /// A guest whose domain exists.
    fn find_built(&self, name: &str) -> Result<&Guest, String> {
        let guest = self.find(name)?;
        if guest.domid == 0 { Err(format!("guest `{name}` is still being built\n")) } else { Ok(guest) }
    }

    fn find_all(&self, names: &[String]) -> Result<Vec<Key>, String> {
        names.iter().map(|name| self.find(name).map(|guest| guest.key)).collect()
    }

    /// All guests that run, in the order of their domain IDs.
    fn running(&self) -> Vec<Key> {
        let mut running: Vec<&Guest> =
            self.guests.iter().filter(|guest| guest.phase == Phase::Running).collect();
        running.sort_by_key(|guest| guest.domid);
        running.iter().map(|guest| guest.key).collect()
    }

    fn create_named(&mut self, name: &str) -> Result<Key, String> {
        let Some(index) = self.configs.iter().position(|config| config.is_called(name)) else {
            let known = self.configs.iter().map(|config| config.name());
            return Err(match nearest(name, known) {
                Some(near) => format!("no configuration is called `{name}`; did you mean `{near}`?\n"),
                None => format!("no configuration of the boot bundle is called `{name}`\n"),
            });
        };
        let name = self.config_name(index);
        self.create(index, 0).map_err(|reason| format!("guest `{name}` cannot be started: {reason}\n"))
    }

    fn pause(&mut self, id: u32, name: &str, pauses: bool) -> Result<(), String> {
        let key = self.find(name)?.key;
        let Some(guest) = self.guests.iter_mut().find(|guest| guest.key == key) else { return Ok(()) };
        if guest.phase != Phase::Running {
            return Err(format!("guest `{name}` does not run\n"));
        }
        guest.is_paused = pauses;
        let domid = guest.domid;
        self.tell_guest(domid, if pauses { Request::Pause } else { Request::Unpause });
        self.done(id, 0);
        Ok(())
    }

    fn overlay(&self, domid: u32) -> Overlay {
        let Some(guest) = self.guests.iter().find(|guest| guest.domid == domid) else {
            return Overlay::default();
        };
        Overlay {
            end: if let Phase::Ended(reason) = guest.phase { Some(reason) } else { None },
            is_paused: guest.is_paused,
            is_dying: matches!(guest.phase, Phase::Destroying | Phase::Clearing),
            uuid: Some(guest.uuid),
        }
    }

    pub(crate) fn list_for_job(&mut self, serial: u32, stats: &[DomainStat]) {
        let Some(Job { id, kind: Kind::List(list), .. }) = self.take_job(serial) else { return };
        let is_it = |stat: &&DomainStat, name: &str| stat.name.as_str() == name;
        match list {
            List::Table { only, form } => {
                let is_wanted = |stat: &&DomainStat| {
                    only.as_ref().is_none_or(|only| is_it(stat, only) || only.parse() == Ok(stat.domid))
                };
                let rows: Vec<String> = stats
                    .iter()
                    .filter(is_wanted)
                    .map(|stat| format::list_row(form, stat, &self.overlay(stat.domid)))
                    .collect();
                if let Some(only) = only.filter(|_| rows.is_empty()) {
                    self.refuse(id, &format!("Error: Domain '{only}' does not exist.\n"));
                    return;
                }
                let text = match form {
                    ListForm::Long => format!("[\n    {}\n]\n", rows.join(",\n    ")),
                    _ => format!("{}{}", format::list_head(form), rows.concat()),
                };
                self.output(id, &text);
                self.done(id, 0);
            }
            List::DomId(name) => match stats.iter().find(|stat| is_it(stat, &name)) {
                Some(stat) => {
                    self.output(id, &format!("{}\n", stat.domid));
                    self.done(id, 0);
                }
                None => self.refuse(
                    id,
                    &format!("Can't get domid of domain name '{name}', maybe this domain does not exist.\n"),
                ),
            },
            List::DomName(domid) => match domid.parse::<u32>() {
                Err(_) => self.refuse(id, "Invalid domain id.\n\n"),
                Ok(domid) => match stats.iter().find(|stat| stat.domid == domid) {
                    Some(stat) => {
                        self.output(id, &format!("{}\n", stat.name));
                        self.done(id, 0);
                    }
                    None => self.refuse(
                        id,
                        &format!("Can't get domain name of domain id '{domid}', maybe this domain does not exist.\n"),
                    ),
                },
            },
        }
    }

    pub(crate) fn sample_for_job(&mut self, serial: u32, sample: Sample) {
        // A command that was given up meanwhile.
        let Some(job) = self.take_job(serial) else { return };
        let id = job.id;
        match job.kind {
            Kind::Counters { only, form } => {
                let is_wanted = |stat: &DomainStat| {
                    only.as_ref().is_none_or(|only| *stat.name == **only || only.parse() == Ok(stat.domid))
                };
                let domains: Vec<_> =
                    sample.domains.iter().filter(|domain| is_wanted(&domain.stat)).collect();
                if let Some(only) = only.as_ref().filter(|_| domains.is_empty()) {
                    return self.refuse(id, &format!("Error: Domain '{only}' does not exist.\n"));
                }
                let is_long = form == ListForm::Long;
                let text = if is_long { counters::json(domains) } else { counters::table(domains) };
                self.output(id, &text);
                self.done(id, 0);
            }
            Kind::Top(mut top) => {
                if let Some(before) = &top.before {
                    if top.has_pages {
                        self.answer(OperatorResponse::Page { id });
                    }
                    self.output(id, &top::page(before, &sample));
                    top.left = top.left.map(|left| left.saturating_sub(1));
                    if top.left == Some(0) {
                        return self.done(id, 0);
                    }
                }
                top.before = Some(sample);
                top.next_ns = Some(self.now_ns.saturating_add(top.delay_ns));
                self.jobs.push(Job { serial, id, kind: Kind::Top(top) });
            }
            kind => {
                self.jobs.push(Job { serial, id, kind });
                self.begin_dump(serial, &sample);
            }
        }
    }

    pub(crate) fn machine_for_job(&mut self, serial: u32, machine: &MachineStat) {
        let Some(Job { id, kind: Kind::Machine(facts), .. }) = self.take_job(serial) else { return };
        let text = match facts {
            Facts::Info => format::info(machine, env!("CARGO_PKG_VERSION")),
            Facts::Uptime { is_short, keys, has_machine } => {
                let mut text = String::from(if is_short { "" } else { format::UPTIME_HEAD });
                if has_machine {
                    let up_ns = machine.uptime_us.saturating_mul(1000);
                    text.push_str(&format::uptime_row("(machine)", None, up_ns, is_short));
                }
                for guest in keys.iter().filter_map(|&key| self.guest(key)) {
                    let up_ns = self.now_ns.saturating_sub(guest.started_ns);
                    text.push_str(&format::uptime_row(&guest.name, Some(guest.domid), up_ns, is_short));
                }
                text
            }
        };
        self.output(id, &text);
        self.done(id, 0);
    }
}
