//! Commands that take time: jobs that are looked at whenever something happened.
//!
//! A job ends when what it waits for is there or its time is over, never later: a guest that does not
//! answer, or a builder that does not, cannot hold up the operator. A guest acknowledges a request to end
//! by emptying control/shutdown, as Linux does and libxl expects.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use proto::console::OperatorResponse;

use crate::command::{ListForm, StopKind};
use crate::life::{Guest, Key, Next, Phase};
use crate::nodes;
use crate::sample::Sample;
use crate::store::StoreRequest;
use crate::toolstack::{Call, Purpose, Toolstack};
use crate::trace::Dump;

/// How long a guest may take to acknowledge a request to end (as libxl has it).
pub const ACKNOWLEDGE_NS: u64 = 60_000_000_000;
/// How long `quit` waits for guests.
pub const QUIT_NS: u64 = 30_000_000_000;
/// How long `quit` waits for the removal of guests that did not end by themselves.
pub const QUIT_DESTROY_NS: u64 = 5_000_000_000;
/// Between `quit`'s answer and the end of the machine, so that the console can print it.
pub const GRACE_NS: u64 = 200_000_000;

/// A command at work.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) serial: u32,
    /// The operator's number.
    pub(crate) id: u32,
    pub(crate) kind: Kind,
}

#[derive(Debug)]
pub(crate) enum Kind {
    /// Waits for the list of domains.
    List(List),
    /// Waits for facts about the machine.
    Machine(Facts),
    /// Waits for all counters.
    Counters { only: Option<String>, form: ListForm },
    /// Shows rates again and again.
    Top(Top),
    /// Waits for the builder's word about the trace.
    Trace,
    /// Prints the trace.
    Dump(Dump),
    /// Waits until a guest runs.
    Create { key: Key, attaches: bool },
    /// Waits until a guest is gone.
    Destroy { key: Key },
    /// Waits until guests acknowledge, or end.
    Stop { stop: StopKind, targets: Vec<Target>, waits: bool, deadline: u64, status: u8 },
    /// Waits until no guest is left.
    Quit { status: u8, deadline: u64, is_forced: bool },
}

#[derive(Debug)]
pub(crate) enum List {
    Table { only: Option<String>, form: ListForm },
    DomId(String),
    DomName(String),
}

#[derive(Debug)]
pub(crate) enum Facts {
    Info,
    Uptime { is_short: bool, keys: Vec<Key>, has_machine: bool },
}

/// `xl top` at work.
#[derive(Debug)]
pub(crate) struct Top {
    pub(crate) has_pages: bool,
    pub(crate) delay_ns: u64,
    /// Tables that are still to be shown; nothing: until it is ended.
    pub(crate) left: Option<u32>,
    pub(crate) before: Option<Sample>,
    /// When to take the next sample; nothing while one is being taken.
    pub(crate) next_ns: Option<u64>,
}

/// A guest that was asked to end.
#[derive(Debug)]
pub(crate) struct Target {
    key: Key,
    domid: u32,
    name: String,
    state: Asked,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    Waiting,
    Acknowledged,
    Failed,
}

impl Job {
    pub(crate) fn deadline(&self) -> Option<u64> {
        match &self.kind {
            Kind::Quit { deadline, .. } => Some(*deadline),
            Kind::Top(top) => top.next_ns,
            Kind::Stop { deadline, targets, .. } => {
                targets.iter().any(|target| target.state == Asked::Waiting).then_some(*deadline)
            }
            _ => None,
        }
    }
}

/// Whether a guest still is what it was when it was asked to end.
fn lives(guest: Option<&Guest>) -> bool {
    guest.is_some_and(|guest| !matches!(guest.phase, Phase::Ended(_)))
}

impl Toolstack {
    pub(crate) fn stop(&mut self, id: u32, stop: StopKind, keys: &[Key], waits: bool) -> Result<(), String> {
        let mut targets = Vec::new();
        for &key in keys {
            let Some(guest) = self.guest(key) else { continue };
            let (name, domid) = (guest.name.clone(), guest.domid);
            if guest.phase != Phase::Running {
                return Err(format!("guest `{name}` does not run\n"));
            }
            if guest.is_paused {
                return Err(format!(
                    "guest `{name}` is paused and cannot answer; first: xl unpause {name}\n"
                ));
            }
            targets.push(Target { key, domid, name, state: Asked::Waiting });
        }
        let deadline = self.now_ns.saturating_add(ACKNOWLEDGE_NS);
        let serial = self.job(id, Kind::Stop { stop, targets: Vec::new(), waits, deadline, status: 0 });
        for target in &targets {
            let doing = match stop {
                StopKind::Poweroff => "Shutting down",
                StopKind::Reboot => "Rebooting",
            };
            self.output(id, &format!("{doing} domain {}\n", target.domid));
            let path = nodes::control_shutdown(target.domid);
            // The watch comes first, so that no acknowledgement is missed.
            self.store
                .submit(StoreRequest::Watch { path, token: token(serial, target.key) }, Purpose::Nothing);
            self.ask(target.key, target.domid, stop.request());
        }
        if let Some(Job { kind: Kind::Stop { targets: asked, .. }, .. }) =
            self.jobs.iter_mut().find(|job| job.serial == serial)
        {
            *asked = targets;
        }
        Ok(())
    }

    fn ask(&mut self, key: Key, domid: u32, request: &str) {
        let path = nodes::control_shutdown(domid);
        self.store.submit(StoreRequest::Write { path, value: request.to_owned() }, Purpose::Ask(key));
    }

    pub(crate) fn quit(&mut self, id: u32, is_now: bool, status: u8) -> Result<(), String> {
        if self.is_quitting && !is_now {
            return Err(
                "the machine is being shut down already; `quit --now` does not wait for guests\n".to_owned()
            );
        }
        self.is_quitting = true;
        if is_now {
            // Whoever waits for the guests waits no longer.
            for job in core::mem::take(&mut self.jobs) {
                self.done(job.id, 1);
            }
            self.end_machine(id, status);
            return Ok(());
        }
        let keys: Vec<Key> = self.guests.iter().map(|guest| guest.key).collect();
        for key in keys {
            let Some(guest) = self.guest(key) else { continue };
            let (phase, domid, name) = (guest.phase, guest.domid, guest.name.clone());
            match phase {
                Phase::Running if !guest.is_paused => {
                    self.output(id, &format!("Shutting down guest {name} (domain {domid})\n"));
                    self.ask(key, domid, StopKind::Poweroff.request());
                }
                _ => self.remove(key, Next::Gone),
            }
        }
        let deadline = self.now_ns.saturating_add(QUIT_NS);
        self.job(id, Kind::Quit { status, deadline, is_forced: false });
        Ok(())
    }

    fn end_machine(&mut self, id: u32, status: u8) {
        self.done(id, 0);
        self.power_off = Some((self.now_ns.saturating_add(GRACE_NS), status));
    }

    /// A guest will not be created: the commands that wait for it end.
    pub(crate) fn fail_create_jobs(&mut self, key: Key, reason: &str) {
        let is_it = |job: &Job| matches!(job.kind, Kind::Create { key: waiting, .. } if waiting == key);
        let failed: Vec<u32> = self.jobs.iter().filter(|job| is_it(job)).map(|job| job.id).collect();
        self.jobs.retain(|job| !is_it(job));
        for id in failed {
            self.refuse(id, &format!("{reason}\n"));
        }
    }

    /// A watch of control/shutdown fired: looks what the guest wrote there.
    pub(crate) fn on_watch(&mut self, fired: &str) {
        let found = self.jobs.iter().find_map(|job| {
            let Kind::Stop { targets, .. } = &job.kind else { return None };
            let is_it =
                |target: &&Target| target.state == Asked::Waiting && token(job.serial, target.key) == fired;
            targets.iter().find(is_it).map(|target| (target.key, target.domid))
        });
        if let Some((key, domid)) = found {
            let path = nodes::control_shutdown(domid);
            self.store.submit(StoreRequest::Read { path }, Purpose::Check(key));
        }
    }

    /// What stands in control/shutdown: once it is empty, the guest has taken the request.
    pub(crate) fn on_checked(&mut self, key: Key, value: &[u8]) {
        if !value.is_empty() {
            return;
        }
        for job in &mut self.jobs {
            let Kind::Stop { targets, .. } = &mut job.kind else { continue };
            for target in targets.iter_mut().filter(|t| t.key == key && t.state == Asked::Waiting) {
                target.state = Asked::Acknowledged;
            }
        }
    }

    /// The request could not even be written.
    pub(crate) fn on_ask_refused(&mut self, key: Key, error: &str) {
        let mut messages = Vec::new();
        for job in &mut self.jobs {
            let Kind::Stop { targets, status, .. } = &mut job.kind else { continue };
            for target in targets.iter_mut().filter(|t| t.key == key && t.state == Asked::Waiting) {
                target.state = Asked::Failed;
                *status = 1;
                messages.push((
                    job.id,
                    format!("guest `{}` cannot be asked: xenstore says {error}\n", target.name),
                ));
            }
        }
        for (id, message) in messages {
            self.output(id, &message);
        }
    }

    /// The operator ends a command: one that only shows something is over, any other goes on.
    pub(crate) fn stop_command(&mut self, id: u32) {
        let is_shown = |job: &Job| job.id == id && matches!(job.kind, Kind::Top(_) | Kind::Dump(_));
        if let Some(index) = self.jobs.iter().position(is_shown) {
            self.jobs.remove(index);
            self.done(id, 0);
        }
    }

    /// Looks at all jobs and ends those that have what they waited for.
    pub(crate) fn advance_jobs(&mut self) {
        for mut job in core::mem::take(&mut self.jobs) {
            if !self.advance(&mut job) {
                self.jobs.push(job);
            }
        }
    }

    /// `true` when the job has answered.
    fn advance(&mut self, job: &mut Job) -> bool {
        let (id, serial) = (job.id, job.serial);
        match &mut job.kind {
            Kind::List(_) | Kind::Machine(_) | Kind::Counters { .. } | Kind::Trace => return false,
            Kind::Top(top) => {
                if top.next_ns.is_some_and(|at| self.now_ns >= at) {
                    top.next_ns = None;
                    self.call(Call::Sample(serial, Sample::default()));
                }
                return false;
            }
            Kind::Dump(dump) => {
                self.read_on(serial, dump);
                return false;
            }
            Kind::Create { key, attaches } => {
                match self.guest(*key).map(|guest| (guest.phase, guest.domid)) {
                    Some((Phase::Building | Phase::Describing | Phase::Starting, _)) => return false,
                    Some((Phase::Running, domid)) if *attaches => {
                        self.answer(OperatorResponse::Attach { id, domid })
                    }
                    Some((Phase::Running, _)) => self.done(id, 0),
                    _ => self.refuse(id, "the guest ended before it ran\n"),
                }
            }
            Kind::Destroy { key } => {
                if self.guest(*key).is_some() {
                    return false;
                }
                self.done(id, 0);
            }
            Kind::Stop { stop, targets, waits, deadline, status } => {
                let is_late = self.now_ns >= *deadline;
                for target in targets.iter_mut().filter(|target| target.state == Asked::Waiting) {
                    if !lives(self.guest(target.key)) {
                        target.state = Asked::Acknowledged;
                    } else if is_late {
                        target.state = Asked::Failed;
                        *status = 1;
                        let Target { name, domid, .. } = &*target;
                        let text = format!(
                            "guest `{name}` did not acknowledge the request within {} s; `xl destroy {name}` ends it\n",
                            ACKNOWLEDGE_NS / 1_000_000_000
                        );
                        let path = nodes::control_shutdown(*domid);
                        self.output(id, &text);
                        // The request is taken back, as libxl does.
                        self.store
                            .submit(StoreRequest::Write { path, value: String::new() }, Purpose::Nothing);
                    }
                }
                let is_asking = targets.iter().any(|target| target.state == Asked::Waiting);
                let has_lasting =
                    |target: &Target| target.state == Asked::Acknowledged && lives(self.guest(target.key));
                if is_asking || (*waits && targets.iter().any(has_lasting)) {
                    return false;
                }
                for target in targets.iter() {
                    let path = nodes::control_shutdown(target.domid);
                    self.store.submit(
                        StoreRequest::Unwatch { path, token: token(serial, target.key) },
                        Purpose::Nothing,
                    );
                    if *waits && target.state == Asked::Acknowledged {
                        let what = match stop {
                            StopKind::Poweroff => "has been shut down",
                            StopKind::Reboot => "has been shut down to be restarted",
                        };
                        let text = format!("Domain {} {what}\n", target.domid);
                        self.output(id, &text);
                    }
                }
                self.done(id, *status);
            }
            Kind::Quit { status, deadline, is_forced } => {
                if !self.guests.is_empty() && self.now_ns < *deadline {
                    return false;
                }
                if !self.guests.is_empty() && !*is_forced {
                    *is_forced = true;
                    *deadline = self.now_ns.saturating_add(QUIT_DESTROY_NS);
                    let rest: Vec<Key> = self.guests.iter().map(|guest| guest.key).collect();
                    for key in rest {
                        let name = self.guest(key).map_or(String::new(), |guest| guest.name.clone());
                        self.output(
                            id,
                            &format!("guest `{name}` did not shut down in time and is destroyed\n"),
                        );
                        self.remove(key, Next::Gone);
                    }
                    if !self.guests.is_empty() {
                        return false;
                    }
                }
                let status = *status;
                self.end_machine(id, status);
            }
        }
        true
    }
}

/// The token of the watch by which a command hears a guest's acknowledgement.
fn token(serial: u32, key: Key) -> String {
    format!("stop/{serial}/{key}")
}
