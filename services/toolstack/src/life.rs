//! The life of a guest: built, described in xenstore, started, ended, removed.
//!
//! A domain ID is never used twice, so a restarted guest is a new one with a new key; whoever waits for
//! the old one sees it gone. A guest is removed in the reverse order of its creation: first its domain,
//! so that nobody writes to its nodes any more, then the nodes.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};

use proto::builder::{DiskSpec, DomainStat, GuestSpec};
use proto::console::OperatorResponse;
use proto::toolstack::{EndReason, Request, Response};

use crate::config::Action;
use crate::format::end_text;
use crate::nodes;
use crate::store::StoreRequest;
use crate::toolstack::{Call, Purpose, Toolstack};

/// Number of a guest's life; a restarted guest gets a new one.
pub(crate) type Key = u32;

/// A guest that ended sooner than this is in trouble.
const QUICK_END_NS: u64 = 10_000_000_000;
/// How often in a row a guest in trouble is restarted.
const QUICK_RESTARTS_MAX: u32 = 5;

/// Where a guest is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The builder builds it, or will.
    Building,
    /// Its nodes are being written.
    Describing,
    /// Its VMM loads the kernel.
    Starting,
    /// It runs, or is paused.
    Running,
    /// It ended and is kept.
    Ended(EndReason),
    /// The builder removes it.
    Destroying,
    /// Its nodes are being removed.
    Clearing,
}

/// What follows a guest's removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nothing.
    Gone,
    /// The guest is built again.
    Restart,
}

/// A guest.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) key: Key,
    /// Index of its configuration.
    pub(crate) config: usize,
    pub(crate) name: String,
    pub(crate) uuid: [u8; 16],
    /// 0 until it is built.
    pub(crate) domid: u32,
    pub(crate) phase: Phase,
    /// Set once it is to be removed.
    pub(crate) next: Option<Next>,
    pub(crate) is_paused: bool,
    pub(crate) started_ns: u64,
    /// Xenstore answers that this phase waits for.
    left: usize,
    /// How often in a row it was restarted soon after its start.
    quick_restarts: u32,
    disks: proto::text::List<DiskSpec, { proto::builder::DISKS_MAX }>,
}

impl Toolstack {
    pub(crate) fn guest(&self, key: Key) -> Option<&Guest> {
        self.guests.iter().find(|guest| guest.key == key)
    }

    fn guest_mut(&mut self, key: Key) -> Option<&mut Guest> {
        self.guests.iter_mut().find(|guest| guest.key == key)
    }

    fn key_of(&self, domid: u32) -> Option<Key> {
        self.guests.iter().find(|guest| guest.domid == domid && domid != 0).map(|guest| guest.key)
    }

    /// All domains are known: adopts guests that outlived an earlier toolstack, then starts the others.
    pub(crate) fn begin(&mut self, stats: &[DomainStat]) {
        for stat in stats.iter().filter(|stat| stat.is_guest) {
            let Some(config) = self.configs.iter().position(|config| config.name() == stat.name.as_str())
            else {
                continue;
            };
            let spec = self.configs.get(config).and_then(|config| config.spec().ok());
            let Some(spec) = spec else { continue };
            let key = self.add(config, &spec, 0);
            if let Some(guest) = self.guest_mut(key) {
                guest.domid = stat.domid;
                guest.phase = Phase::Running;
            }
        }
        let mut boot = BTreeSet::new();
        for index in 0..self.configs.len() {
            let Some(config) = self.configs.get(index) else { break };
            let (is_autostart, name) = (config.is_autostart, config.name().to_string());
            for warning in config.warnings.clone() {
                self.notice(&warning);
            }
            if !is_autostart || self.guests.iter().any(|guest| guest.config == index) {
                continue;
            }
            match self.create(index, 0) {
                Ok(key) => {
                    boot.insert(key);
                }
                Err(reason) => {
                    self.boot_failed += 1;
                    self.notice(&format!("guest `{name}` cannot be started: {reason}"));
                }
            }
        }
        self.boot = Some(boot);
        self.boot_settle();
    }

    /// A guest of the boot bundle has started or failed.
    fn boot_resolved(&mut self, key: Key, has_started: bool) {
        if self.boot.as_mut().is_some_and(|boot| boot.remove(&key)) {
            if !has_started {
                self.boot_failed += 1;
            }
            self.boot_settle();
        }
    }

    /// Says so once all guests of the boot bundle have started or failed.
    fn boot_settle(&mut self) {
        if self.boot.as_ref().is_none_or(|boot| !boot.is_empty()) {
            return;
        }
        self.boot = None;
        let running = self.guests.iter().filter(|guest| guest.phase == Phase::Running);
        let first = running.min_by_key(|guest| guest.config).map_or(0, |guest| guest.domid);
        let failed = self.boot_failed;
        self.answer(OperatorResponse::GuestsStarted { first, failed });
    }

    fn add(&mut self, config: usize, spec: &GuestSpec, quick_restarts: u32) -> Key {
        let key = self.next_key;
        self.next_key += 1;
        self.guests.push(Guest {
            key,
            config,
            name: spec.name.to_string(),
            uuid: spec.uuid,
            domid: 0,
            phase: Phase::Building,
            next: None,
            is_paused: false,
            started_ns: self.now_ns,
            left: 0,
            quick_restarts,
            disks: spec.disks.clone(),
        });
        key
    }

    /// Begins to create the guest of a configuration.
    ///
    /// # Errors
    /// A sentence that says why not; nothing was done then.
    pub(crate) fn create(&mut self, config: usize, quick_restarts: u32) -> Result<Key, String> {
        if self.is_quitting {
            return Err("the machine is being shut down".to_string());
        }
        let spec = self.configs.get(config).ok_or("there is no such configuration")?.spec()?;
        for other in &self.guests {
            if other.name == spec.name.as_str() {
                return Err(format!("a guest of this name exists already (domain {})", other.domid));
            }
            if other.uuid == spec.uuid {
                return Err(format!("guest `{}` has the same UUID; give one of them another", other.name));
            }
            let shares = |disk: &&DiskSpec| {
                // A volume in memory is the guest's own, whatever it is called.
                let is_other = |theirs: &DiskSpec| theirs.memory > 0 || theirs.volume != disk.volume;
                let clash =
                    |theirs: &DiskSpec| !(is_other(theirs) || theirs.is_read_only && disk.is_read_only);
                other.disks.iter().any(clash)
            };
            if let Some(disk) = spec.disks.iter().find(shares) {
                return Err(format!(
                    "its disk `{}` is in use by guest `{}`; only disks that both open read-only can be shared",
                    disk.volume, other.name
                ));
            }
        }
        let key = self.add(config, &spec, quick_restarts);
        self.call(Call::Build(key, spec));
        Ok(key)
    }

    pub(crate) fn on_built(&mut self, key: Key, domid: u32) {
        let Some(guest) = self.guest_mut(key) else { return };
        guest.domid = domid;
        if let Some(next) = guest.next {
            self.remove(key, next);
            return;
        }
        guest.phase = Phase::Describing;
        let boot = guest.config;
        let Some(config) = self.configs.get(boot) else { return };
        let (Ok(config), Ok(spec)) = (&config.guest, config.spec()) else { return };
        let requests = nodes::describe(domid, config, &spec);
        self.submit_all(key, requests, Purpose::Describe(key));
    }

    fn submit_all(&mut self, key: Key, requests: alloc::vec::Vec<StoreRequest>, purpose: Purpose) {
        if let Some(guest) = self.guest_mut(key) {
            guest.left = requests.len();
        }
        for request in requests {
            self.store.submit(request, purpose);
        }
    }

    pub(crate) fn on_described(&mut self, key: Key, request: &StoreRequest, error: Option<String>) {
        let Some(guest) = self.guest_mut(key) else { return };
        if guest.phase != Phase::Describing {
            return;
        }
        guest.left = guest.left.saturating_sub(1);
        match error {
            Some(error) => self.fail(key, &format!("xenstore refuses its node {}: {error}", request.path())),
            None => self.start_described(),
        }
    }

    /// Starts the guests whose nodes and whose channel are there.
    pub(crate) fn start_described(&mut self) {
        let mut start = alloc::vec::Vec::new();
        for guest in &mut self.guests {
            if guest.phase == Phase::Describing && guest.left == 0 && self.attached.contains(&guest.domid) {
                guest.phase = Phase::Starting;
                start.push(guest.domid);
            }
        }
        for domid in start {
            self.tell_guest(domid, Request::Start);
        }
    }

    pub(crate) fn on_guest(&mut self, domid: u32, response: Response) {
        let now_ns = self.now_ns;
        let Some(guest) = self.guests.iter_mut().find(|guest| guest.domid == domid && domid != 0) else {
            return;
        };
        let key = guest.key;
        match (response, guest.phase) {
            (Response::Started, Phase::Starting) => {
                guest.phase = Phase::Running;
                guest.started_ns = now_ns;
                let text = format!("guest `{}` runs as domain {domid}", guest.name);
                self.notice(&text);
                self.boot_resolved(key, true);
            }
            (Response::Failed { reason }, Phase::Starting) => self.fail(key, &reason),
            (Response::Ended { reason, detail }, Phase::Starting | Phase::Running) => {
                self.end(key, reason, &detail)
            }
            // A guest that is being removed may say what it likes.
            (_, Phase::Ended(_) | Phase::Destroying | Phase::Clearing) => {}
            (response, phase) => log::warn!("the VMM of domain {domid} says {response:?} while {phase:?}"),
        }
    }

    /// A guest's VMM faulted: to the guest that is a crash.
    pub(crate) fn on_died(&mut self, domid: u32, reason: &str) {
        let Some(key) = self.key_of(domid) else {
            self.notice(&format!("domain {domid} died: {reason}"));
            return;
        };
        match self.guest(key).map(|guest| guest.phase) {
            Some(Phase::Starting | Phase::Running) => self.end(key, EndReason::Crash, reason),
            Some(Phase::Describing) => self.fail(key, reason),
            _ => {}
        }
    }

    /// A guest ended: does what its configuration says.
    fn end(&mut self, key: Key, reason: EndReason, detail: &str) {
        let now_ns = self.now_ns;
        let is_quitting = self.is_quitting;
        let Some(guest) = self.guests.iter_mut().find(|guest| guest.key == key) else { return };
        let config = self.configs.get(guest.config).and_then(|config| config.guest.as_ref().ok());
        let action = match reason {
            _ if is_quitting => Action::Destroy,
            EndReason::PowerOff => config.map_or(Action::Destroy, |config| config.on_poweroff),
            EndReason::Reboot => config.map_or(Action::Restart, |config| config.on_reboot),
            EndReason::Watchdog => config.map_or(Action::Destroy, |config| config.on_watchdog),
            EndReason::Crash | EndReason::SoftReset => {
                config.map_or(Action::Destroy, |config| config.on_crash)
            }
            EndReason::Suspend => Action::Preserve,
        };
        let has_started = guest.phase == Phase::Running;
        let is_quick = now_ns.saturating_sub(guest.started_ns) < QUICK_END_NS;
        guest.quick_restarts = if is_quick { guest.quick_restarts + 1 } else { 0 };
        let gives_up = action == Action::Restart && guest.quick_restarts > QUICK_RESTARTS_MAX;
        let what = match action {
            Action::Restart if gives_up => {
                "it ended soon after its start too often in a row and is not restarted"
            }
            Action::Restart => "it is restarted",
            Action::Preserve => "it is kept for inspection until `xl destroy`",
            Action::Destroy => "it is removed",
        };
        let detail = if detail.is_empty() { String::new() } else { format!(" ({detail})") };
        let text =
            format!("guest `{}` (domain {}) {}{detail}; {what}", guest.name, guest.domid, end_text(reason));
        guest.phase = Phase::Ended(reason);
        self.notice(&text);
        match action {
            Action::Preserve => {}
            Action::Restart if !gives_up => self.remove(key, Next::Restart),
            _ => self.remove(key, Next::Gone),
        }
        // It never ran.
        if !has_started {
            self.boot_resolved(key, false);
        }
    }

    /// A guest cannot be created.
    pub(crate) fn fail(&mut self, key: Key, reason: &str) {
        let Some(guest) = self.guest(key) else { return };
        let text = format!("guest `{}` cannot be started: {reason}", guest.name);
        self.fail_create_jobs(key, &text);
        self.notice(&text);
        self.remove(key, Next::Gone);
        self.boot_resolved(key, false);
    }

    /// Removes a guest, whatever its phase. A later call may only turn a restart into an end.
    pub(crate) fn remove(&mut self, key: Key, next: Next) {
        let Some(guest) = self.guest_mut(key) else { return };
        guest.next = Some(if guest.next == Some(Next::Gone) { Next::Gone } else { next });
        let domid = guest.domid;
        match guest.phase {
            Phase::Destroying | Phase::Clearing => {}
            // The builder's answer is awaited, or its call can be taken back.
            Phase::Building if domid == 0 => {
                let is_building = matches!(&self.current, Some(Call::Build(building, _)) if *building == key);
                if !is_building {
                    self.calls.retain(|call| !matches!(call, Call::Build(waiting, _) if *waiting == key));
                    self.gone(key);
                }
            }
            _ => {
                guest.phase = Phase::Destroying;
                self.call(Call::Destroy(key, domid));
            }
        }
    }

    pub(crate) fn on_destroyed(&mut self, key: Key) {
        let Some(guest) = self.guest_mut(key) else { return };
        guest.phase = Phase::Clearing;
        let requests = nodes::clear(guest.domid, &guest.uuid);
        self.submit_all(key, requests, Purpose::Clear(key));
    }

    pub(crate) fn on_cleared(&mut self, key: Key, request: &StoreRequest, error: Option<String>) {
        if let Some(error) = error.filter(|error| error != "ENOENT") {
            log::warn!("xenstore does not remove {}: {error}", request.path());
        }
        let Some(guest) = self.guest_mut(key) else { return };
        guest.left = guest.left.saturating_sub(1);
        if guest.left == 0 {
            self.gone(key);
        }
    }

    /// Nothing is left of a guest.
    fn gone(&mut self, key: Key) {
        let Some(index) = self.guests.iter().position(|guest| guest.key == key) else { return };
        let guest = self.guests.remove(index);
        self.boot_resolved(key, false);
        self.fail_create_jobs(key, &format!("guest `{}` was removed before it ran", guest.name));
        if guest.next == Some(Next::Restart)
            && !self.is_quitting
            && let Err(reason) = self.create(guest.config, guest.quick_restarts)
        {
            self.notice(&format!("guest `{}` cannot be restarted: {reason}", guest.name));
        }
    }
}
