//! What the toolstack asked for and what is still to happen for it: one request at a time.
//!
//! Building ends when every peer said Attached, destroying when every peer said Detached, both after a
//! bounded time: a peer that does not answer holds up nobody.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;

use proto::boot::DomainInfo;
use proto::builder::{Request, Response};
use proto::supervise;
use proto::text::Text;

use crate::domain::Kind;
use crate::kernel::Kernel;
use crate::pci::ConfigSpace;
use crate::system::{Output, ROOT, System};

/// How long peers have to attach.
pub const ANSWER_MS: u64 = 5_000;
/// How long peers have to detach.
const DETACH_MS: u64 = 1_000;

/// A request that is not answered yet.
#[derive(Debug)]
pub enum Operation {
    /// Peers are to attach, then the VMM starts.
    Build {
        /// The guest.
        domid: u32,
        /// Channels whose other end did not answer.
        waiting: BTreeSet<u32>,
        /// TSC after which the guest is given up.
        deadline: u64,
        /// What its VMM will be told.
        info: Box<DomainInfo>,
    },
    /// Peers are to detach, then all is taken back.
    Destroy {
        /// The guest.
        domid: u32,
        /// Channels whose other end did not answer.
        waiting: BTreeSet<u32>,
        /// TSC after which nobody is waited for.
        deadline: u64,
        /// What the toolstack is told then.
        answer: Response,
    },
}

/// An answer that refuses, for this reason.
pub fn refused(reason: &str) -> Response {
    Response::Refused { reason: Text::truncated(reason) }
}

impl<K: Kernel, C: ConfigSpace> System<K, C> {
    /// A request of the toolstack; not to be called while [`Self::operation`] is under way.
    pub fn on_builder(&mut self, request: Request) {
        match request {
            Request::Build(spec) => {
                if let Err(error) = self.build_guest(&spec) {
                    log::warn!("guest {}: {error}", spec.name);
                    self.answer(refused(&format!("{error}")));
                }
            }
            Request::Destroy { domid } => match self.domains.get(&domid).map(|domain| &domain.kind) {
                Some(Kind::Guest { .. }) => self.begin_destroy(domid, Response::Destroyed { domid }),
                Some(_) => {
                    self.answer(refused(&format!("domain {domid} is no guest: it cannot be destroyed")))
                }
                None => self.answer(refused(&format!("there is no domain {domid}"))),
            },
            Request::Stat { index } => {
                let answer = self.domain_stat(index);
                self.answer(answer);
            }
            Request::Machine => {
                let answer = Response::Machine(self.machine_stat());
                self.answer(answer);
            }
            Request::Counters { domid } => {
                let answer = self.counters(domid);
                self.answer(answer);
            }
            Request::TraceStart { kib } => {
                let answer = match self.start_trace(kib) {
                    Ok(()) => Response::Trace(self.trace_stat()),
                    Err(error) => refused(&format!("{error}")),
                };
                self.answer(answer);
            }
            Request::TraceStop => {
                self.stop_trace();
                let answer = Response::Trace(self.trace_stat());
                self.answer(answer);
            }
            Request::TraceDrop => {
                self.drop_trace();
                let answer = Response::Trace(self.trace_stat());
                self.answer(answer);
            }
            Request::TraceRead { from } => {
                let answer = self.read_trace(from);
                self.answer(answer);
            }
            Request::PowerOff { status } => self.outputs.push_back(Output::PowerOff(status)),
        }
    }

    /// Answers the toolstack.
    pub fn answer(&mut self, response: Response) {
        self.outputs.push_back(Output::Builder(response));
    }

    /// TSC at which [`Self::on_time`] has something to do.
    pub fn deadline(&self) -> Option<u64> {
        match &self.operation {
            Some(Operation::Build { deadline, .. } | Operation::Destroy { deadline, .. }) => Some(*deadline),
            None => None,
        }
    }

    /// Gives up waiting for those who are late.
    pub fn on_time(&mut self, now: u64) {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return;
        }
        match self.operation.take() {
            Some(Operation::Build { domid, waiting, .. }) => {
                let late = waiting.first().and_then(|id| self.channels.get(id)).map(|c| c.peer_of(domid));
                let name = late.and_then(|late| self.domains.get(&late)).map_or("a service", |d| &d.name);
                let reason = format!("{name} does not answer: try again, or restart the machine");
                self.begin_destroy(domid, refused(&reason));
            }
            Some(Operation::Destroy { domid, waiting, answer, .. }) => {
                for id in &waiting {
                    log::warn!("channel {id} of domain {domid} is taken away: its other end did not let go");
                }
                self.finish_destroy(domid, answer);
            }
            None => {}
        }
    }

    /// A peer uses its end of a channel.
    pub fn on_attached(&mut self, from: u32, id: u32) {
        if self.channels.get(&id).is_none_or(|channel| !channel.is_end(from)) {
            return;
        }
        if let Some(Operation::Build { waiting, .. }) = &mut self.operation {
            waiting.remove(&id);
        }
        self.go_on();
    }

    /// A peer cannot use its end of a channel.
    pub fn on_refused(&mut self, from: u32, id: u32, reason: &str) {
        let is_end = self.channels.get(&id).is_some_and(|channel| channel.is_end(from));
        let Some(Operation::Build { domid, waiting, .. }) = &mut self.operation else { return };
        if !is_end || !waiting.remove(&id) {
            return;
        }
        let domid = *domid;
        let name = self.domains.get(&from).map_or("a service", |domain| &domain.name);
        let reason = format!("{name}: {reason}");
        self.operation = None;
        // The one who refused does not hold the channel.
        self.disconnect(id);
        self.begin_destroy(domid, refused(&reason));
    }

    /// A peer let go of a channel.
    pub fn on_detached(&mut self, from: u32, id: u32) {
        let is_closing = self.channels.get(&id).is_some_and(|channel| channel.is_closing);
        let is_end = self.channels.get(&id).is_some_and(|channel| channel.is_end(from));
        if !is_closing || !is_end {
            return;
        }
        self.disconnect(id);
        if let Some(Operation::Destroy { waiting, .. }) = &mut self.operation {
            waiting.remove(&id);
        }
        self.go_on();
    }

    /// Ends the operation when nobody is waited for any more.
    fn go_on(&mut self) {
        match self.operation.take() {
            Some(Operation::Build { domid, waiting, info, .. }) if waiting.is_empty() => {
                self.finish_build(domid, &info);
            }
            Some(Operation::Destroy { domid, waiting, answer, .. }) if waiting.is_empty() => {
                self.finish_destroy(domid, answer);
            }
            other => self.operation = other,
        }
    }

    fn finish_build(&mut self, domid: u32, info: &DomainInfo) {
        let priority = (self.manifest.vmm.priority, crate::guests::WEIGHT);
        let Some(domain) = self.domains.get_mut(&domid) else { return };
        match domain.start(&mut self.resources, info, priority) {
            Ok(()) => {
                log::info!("guest {} is domain {domid}, {} KiB", domain.name, domain.frames() * 4);
                self.answer(Response::Built { domid });
            }
            Err(error) => self.begin_destroy(domid, refused(&format!("{error}"))),
        }
    }

    /// A guest ended by itself before it was built.
    pub fn fail_build(&mut self, domid: u32, reason: &str) -> bool {
        if !matches!(&self.operation, Some(Operation::Build { domid: building, .. }) if *building == domid) {
            return false;
        }
        self.operation = None;
        self.begin_destroy(domid, refused(reason));
        true
    }

    /// Stops a guest's VMM and asks its peers to let go.
    fn begin_destroy(&mut self, domid: u32, answer: Response) {
        let Some(domain) = self.domains.get(&domid) else { return };
        // A thread that faulted or never ran is stopped already.
        let _stopped = self.resources.kernel.thread_suspend(domain.thread);
        let waiting = self.close_channels(domid);
        let deadline = self.resources.kernel.tsc().saturating_add(self.ticks(DETACH_MS));
        self.operation = Some(Operation::Destroy { domid, waiting, deadline, answer });
        self.go_on();
    }

    /// Asks the peers of a domain that is gone to let go of its channels; those not yet let go of.
    pub fn close_channels(&mut self, domid: u32) -> BTreeSet<u32> {
        let mut waiting = BTreeSet::new();
        for id in self.domains.get(&domid).map_or(&[][..], |domain| &domain.channels) {
            let Some(channel) = self.channels.get_mut(id) else { continue };
            let peer = channel.peer_of(domid);
            if peer == ROOT {
                continue;
            }
            if !channel.is_closing {
                channel.is_closing = true;
                self.outputs.push_back(Output::Supervise(peer, supervise::Request::Detach { id: *id }));
            }
            waiting.insert(*id);
        }
        waiting
    }

    fn finish_destroy(&mut self, domid: u32, answer: Response) {
        let name: String = self.domains.get(&domid).map_or_else(String::new, |d| d.name.as_str().into());
        self.remove_domain(domid);
        self.is_zeroing_due = true;
        log::info!("domain {domid} ({name}) is gone, {} KiB are free", self.resources.free.free() * 4);
        self.answer(answer);
    }
}
