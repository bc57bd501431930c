//! A service's end of its supervise channel: what init asks, and signs of life.

use alloc::collections::VecDeque;
use alloc::string::String;

use proto::channel::{ChannelInfo, ChannelKind, Side};
use proto::supervise::{Request, Response, Supervise};
use proto::text::Text;

use crate::channel::{SendError, Server};
use crate::start::Env;

/// Answers that wait for room in the ring. Init asks at most a ring full at a time.
const BACKLOG_MAX: usize = 64;

/// A service that init gives channels to and takes them from.
pub trait Channels {
    /// Uses a channel from now on.
    ///
    /// # Errors
    /// It cannot, for a reason that people can read.
    fn attach(&mut self, info: &ChannelInfo) -> Result<(), String>;
    /// Accesses a channel no longer.
    fn detach(&mut self, id: u32);
}

/// The supervise channel.
#[derive(Debug)]
pub struct Supervisor {
    channel: Server<Supervise>,
    backlog: VecDeque<Response>,
}

impl Supervisor {
    /// Takes the domain's supervise channel; without one the domain ends here.
    pub fn new(env: &Env) -> Self {
        let info = env.info.channels.iter().find(|c| c.kind == ChannelKind::Supervise && c.side == Side::B);
        match info.map(Server::connect) {
            Some(Ok(channel)) => Self { channel, backlog: VecDeque::new() },
            Some(Err(_)) => crate::exit_failed("the supervise channel does not fit"),
            None => crate::exit_failed("there is no supervise channel"),
        }
    }

    /// The next request that the service has to act on; pings are answered here.
    #[expect(clippy::should_implement_trait, reason = "a queue that fills again, not a sequence that ends")]
    pub fn next(&mut self) -> Option<Request> {
        loop {
            // Init is the one that built this domain: where its channel is broken, nothing is left to do
            // but to go on serving.
            match self.channel.receive() {
                Ok(Some(Request::Ping { nonce })) => self.answer(Response::Pong { nonce }),
                Ok(request) => return request,
                Err(_) => return None,
            }
        }
    }

    /// Does all that init asks now.
    pub fn serve(&mut self, service: &mut impl Channels) {
        while let Some(request) = self.next() {
            match request {
                Request::Attach(info) => match service.attach(&info) {
                    Ok(()) => self.attached(info.id),
                    Err(reason) => self.refused(info.id, &reason),
                },
                Request::Detach { id } => {
                    service.detach(id);
                    self.detached(id);
                }
                // Answered by `next`.
                Request::Ping { .. } => {}
            }
        }
    }

    /// Start-up is complete.
    pub fn ready(&mut self) {
        self.answer(Response::Ready);
    }

    /// The channel is in use.
    pub fn attached(&mut self, id: u32) {
        self.answer(Response::Attached { id });
    }

    /// The channel cannot be used, for a reason that people can read.
    pub fn refused(&mut self, id: u32, reason: &str) {
        self.answer(Response::Refused { id, reason: Text::truncated(reason) });
    }

    /// The channel is no longer accessed.
    pub fn detached(&mut self, id: u32) {
        self.answer(Response::Detached { id });
    }

    /// Start-up failed for good.
    pub fn failed(&mut self, reason: &str) {
        self.answer(Response::Failed { reason: Text::truncated(reason) });
    }

    fn answer(&mut self, response: Response) {
        self.backlog.push_back(response);
        self.backlog.truncate(BACKLOG_MAX);
        self.send();
    }

    /// Sends what there is room for.
    fn send(&mut self) {
        while let Some(response) = self.backlog.front() {
            match self.channel.send(response) {
                Ok(()) => {
                    self.backlog.pop_front();
                }
                Err(SendError::Full) => return,
                Err(_) => self.backlog.clear(),
            }
        }
    }

    /// Sends what waits, and signals init if it sleeps; after every batch.
    pub fn flush(&mut self) {
        self.send();
        self.channel.flush();
    }

    /// Announces that the service will wait; `true` when init asks nothing.
    pub fn prepare_sleep(&mut self) -> bool {
        self.channel.prepare_sleep().unwrap_or(true)
    }
}
