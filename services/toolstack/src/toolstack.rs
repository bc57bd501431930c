//! The toolstack as a whole: messages of its channels go in, messages for them come out.
//!
//! `life` holds the life cycle of guests, `operator` and `jobs` the commands. Nothing here waits: whatever takes
//! time is a phase of a guest or of a command, and [`Toolstack::next_deadline`] says when to look again.
//! The builder answers without numbers, so it is asked one thing at a time.

use alloc::boxed::Box;
use alloc::collections::{BTreeSet, VecDeque};
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use proto::builder::{self, DomainStat, GuestSpec, MachineStat};
use proto::console::{OperatorRequest, OperatorResponse, Order};
use proto::text::Text;
use proto::xenstore::Message;
use proto::{builder::Request, toolstack as guest};

use crate::boot::BootConfig;
use crate::jobs::Job;
use crate::life::{Guest, Key};
use crate::sample::Sample;
use crate::store::{Store, StoreEvent, StoreRequest};

/// Notices that wait for the console; further ones are dropped.
const NOTICES_MAX: usize = 256;

/// Something for the builder.
#[derive(Debug)]
pub(crate) enum Call {
    /// Build a guest.
    Build(Key, Box<GuestSpec>),
    /// End a guest's domain.
    Destroy(Key, u32),
    /// List all domains, for a command or, without one, for the toolstack's own start.
    List(Option<u32>, Vec<DomainStat>),
    /// Facts about the machine, for a command.
    Machine(u32),
    /// All counters, for a command.
    Sample(u32, Sample),
    /// Something about the trace, for a command.
    Trace(u32, Request),
}

/// What a xenstore request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A node of a guest that is being created.
    Describe(Key),
    /// A node of a guest that is gone.
    Clear(Key),
    /// A guest was asked to end.
    Ask(Key),
    /// What became of that.
    Check(Key),
    /// The answer does not matter.
    Nothing,
}

/// The toolstack.
#[derive(Debug)]
pub struct Toolstack {
    pub(crate) configs: Vec<BootConfig>,
    pub(crate) guests: Vec<Guest>,
    pub(crate) jobs: Vec<Job>,
    pub(crate) now_ns: u64,
    pub(crate) next_key: Key,
    pub(crate) next_serial: u32,
    /// Guests' domains whose channel is there.
    pub(crate) attached: BTreeSet<u32>,
    /// Guests of the boot bundle that have neither started nor failed; nothing once all have.
    pub(crate) boot: Option<BTreeSet<Key>>,
    pub(crate) boot_failed: u32,
    pub(crate) is_quitting: bool,
    /// When to end the machine, and with which status.
    pub(crate) power_off: Option<(u64, u8)>,
    pub(crate) store: Store<Purpose>,
    pub(crate) calls: VecDeque<Call>,
    pub(crate) current: Option<Call>,
    builder_out: VecDeque<Request>,
    guest_out: VecDeque<(u32, guest::Request)>,
    operator_out: VecDeque<OperatorResponse>,
}

impl Toolstack {
    /// A toolstack with these configurations; it first asks which domains exist.
    pub fn new(configs: Vec<BootConfig>) -> Self {
        let mut toolstack = Self {
            configs,
            guests: Vec::new(),
            jobs: Vec::new(),
            now_ns: 0,
            next_key: 1,
            next_serial: 1,
            attached: BTreeSet::new(),
            boot: None,
            boot_failed: 0,
            is_quitting: false,
            power_off: None,
            store: Store::default(),
            calls: VecDeque::new(),
            current: None,
            builder_out: VecDeque::new(),
            guest_out: VecDeque::new(),
            operator_out: VecDeque::new(),
        };
        toolstack.call(Call::List(None, Vec::new()));
        toolstack
    }

    /// The guest configurations could not be read: there are none, and the operator shall know why.
    pub fn report_damage(&mut self, reason: &str) {
        self.boot_failed += 1;
        self.notice(reason);
    }

    /// Time passed; call it before anything else whenever the domain wakes.
    pub fn tick(&mut self, now_ns: u64) {
        self.now_ns = self.now_ns.max(now_ns);
        if let Some((at, status)) = self.power_off
            && self.now_ns >= at
        {
            self.power_off = None;
            self.builder_out.push_back(Request::PowerOff { status });
        }
        self.settle();
    }

    /// When [`Toolstack::tick`] has something to do at the latest.
    pub fn next_deadline(&self) -> Option<u64> {
        if self.may_read_on() {
            return Some(self.now_ns);
        }
        let jobs = self.jobs.iter().filter_map(Job::deadline);
        jobs.chain(self.power_off.map(|(at, _)| at)).min()
    }

    /// A guest's channel is there.
    pub fn guest_attached(&mut self, domid: u32) {
        self.attached.insert(domid);
        self.start_described();
        self.settle();
    }

    /// A guest's channel is gone. What became of the guest, the builder says.
    pub fn guest_detached(&mut self, domid: u32) {
        self.attached.remove(&domid);
        self.guest_out.retain(|(to, _)| *to != domid);
    }

    /// A guest's VMM says something.
    pub fn guest_message(&mut self, domid: u32, response: guest::Response) {
        self.on_guest(domid, response);
        self.settle();
    }

    /// The operator typed a command, or ends one.
    pub fn operator_message(&mut self, request: &OperatorRequest) {
        match &request.order {
            Order::Run(line) => self.on_command(request.id, line),
            Order::Stop => self.stop_command(request.id),
        }
        self.settle();
    }

    /// The builder answers, or a domain died.
    pub fn builder_message(&mut self, response: builder::Response) {
        if let builder::Response::Died { domid, reason } = response {
            self.on_died(domid, &reason);
        } else if let Some(call) = self.current.take() {
            self.on_builder(call, response);
        } else {
            log::warn!("the builder answers a question that nobody asked");
        }
        self.settle();
    }

    /// The store answers, or a watch fired.
    pub fn store_message(&mut self, message: &Message) {
        match self.store.receive(message) {
            Some(StoreEvent::Answer(purpose, request, result)) => self.on_store(purpose, &request, result),
            Some(StoreEvent::Watch(token)) => self.on_watch(&token),
            None => log::warn!("xenstore answers a request that nobody made"),
        }
        self.settle();
    }

    /// The store was rebuilt and its channel is a new one.
    pub fn store_reconnected(&mut self) {
        self.store.reconnected();
    }

    /// The next message for the store; [`Toolstack::store_sent`] removes it.
    pub fn store_out(&self) -> Option<Message> {
        self.store.next_message()
    }

    /// The store's message is in the ring.
    pub fn store_sent(&mut self) {
        self.store.sent();
    }

    /// Messages for the builder, in order.
    pub fn builder_out(&mut self) -> &mut VecDeque<Request> {
        &mut self.builder_out
    }

    /// Messages for guests (domain IDs), in order.
    pub fn guest_out(&mut self) -> &mut VecDeque<(u32, guest::Request)> {
        &mut self.guest_out
    }

    /// Messages for the console, in order.
    pub fn operator_out(&mut self) -> &mut VecDeque<OperatorResponse> {
        &mut self.operator_out
    }

    /// Messages that wait for the console.
    pub(crate) fn pending_output(&self) -> usize {
        self.operator_out.len()
    }

    /// Asks the builder, once it has answered everything before.
    pub(crate) fn call(&mut self, call: Call) {
        self.calls.push_back(call);
        self.next_call();
    }

    fn next_call(&mut self) {
        if self.current.is_some() {
            return;
        }
        let Some(call) = self.calls.pop_front() else { return };
        self.builder_out.push_back(match &call {
            Call::Build(_, spec) => Request::Build((**spec).clone()),
            Call::Destroy(_, domid) => Request::Destroy { domid: *domid },
            Call::List(..) => Request::Stat { index: 0 },
            Call::Machine(_) => Request::Machine,
            Call::Sample(..) => Sample::FIRST,
            Call::Trace(_, request) => request.clone(),
        });
        self.current = Some(call);
    }

    fn on_builder(&mut self, call: Call, response: builder::Response) {
        use builder::Response;
        match (call, response) {
            (Call::Build(key, _), Response::Built { domid }) => self.on_built(key, domid),
            (Call::Build(key, _), Response::Refused { reason }) => self.fail(key, &reason),
            (Call::Destroy(key, _), Response::Destroyed { .. }) => self.on_destroyed(key),
            (Call::Destroy(key, domid), Response::Refused { reason }) => {
                // Nothing is there to be destroyed, or it cannot be: either way it is no guest any more.
                self.notice(&alloc::format!("domain {domid} could not be destroyed: {reason}"));
                self.on_destroyed(key);
            }
            (Call::List(job, mut stats), Response::Domain { index, stat }) => {
                stats.push(stat);
                // A list that does not grow would never end.
                match index.checked_add(1).filter(|_| stats.len() < 4096) {
                    Some(index) => {
                        self.builder_out.push_back(Request::Stat { index });
                        self.current = Some(Call::List(job, stats));
                    }
                    None => self.on_list(job, &stats),
                }
            }
            (Call::List(job, stats), Response::NoDomain) => self.on_list(job, &stats),
            (Call::Machine(job), Response::Machine(machine)) => self.on_machine(job, &machine),
            (
                Call::Trace(job, _),
                response @ (Response::Trace(_) | Response::Records { .. } | Response::Refused { .. }),
            ) => {
                self.on_trace(job, response);
            }
            (Call::Sample(job, mut sample), response) => match sample.add(response) {
                Ok(Some(request)) => {
                    self.builder_out.push_back(request);
                    self.current = Some(Call::Sample(job, sample));
                }
                Ok(None) => self.sample_for_job(job, sample),
                Err(_) => {
                    log::error!("the builder's answer does not fit the question");
                    self.current = Some(Call::Sample(job, sample));
                }
            },
            (call, _) => {
                log::error!("the builder's answer does not fit the question");
                // An unfit answer answers nothing: the right one may follow.
                self.current = Some(call);
            }
        }
    }

    fn on_list(&mut self, job: Option<u32>, stats: &[DomainStat]) {
        match job {
            Some(serial) => self.list_for_job(serial, stats),
            None => self.begin(stats),
        }
    }

    fn on_machine(&mut self, serial: u32, machine: &MachineStat) {
        self.machine_for_job(serial, machine);
    }

    fn on_store(&mut self, purpose: Purpose, request: &StoreRequest, result: Result<Vec<u8>, String>) {
        match purpose {
            Purpose::Describe(key) => self.on_described(key, request, result.err()),
            Purpose::Clear(key) => self.on_cleared(key, request, result.err()),
            Purpose::Ask(key) => {
                if let Err(error) = result {
                    self.on_ask_refused(key, &error);
                }
            }
            Purpose::Check(key) => self.on_checked(key, result.as_deref().unwrap_or(&[])),
            Purpose::Nothing => {}
        }
    }

    pub(crate) fn tell_guest(&mut self, domid: u32, request: guest::Request) {
        self.guest_out.push_back((domid, request));
    }

    pub(crate) fn answer(&mut self, response: OperatorResponse) {
        self.operator_out.push_back(response);
    }

    /// Tells the operator; also goes to the log.
    pub(crate) fn notice(&mut self, text: &str) {
        log::info!("{text}");
        if self.operator_out.len() < NOTICES_MAX {
            self.answer(OperatorResponse::Notice { text: Text::truncated(text) });
        }
    }

    /// Does what became possible.
    fn settle(&mut self) {
        self.advance_jobs();
        self.next_call();
    }

    /// The name of a configuration.
    pub(crate) fn config_name(&self, index: usize) -> String {
        self.configs.get(index).map_or("", BootConfig::name).to_string()
    }
}
