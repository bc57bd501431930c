//! All counters of the system at one moment, as far as messages can: facts about the machine, then about every
//! domain, then each domain's own counters.

use alloc::vec::Vec;

use proto::builder::{DomainStat, MachineStat, Request, Response};

/// A list that does not end would never be a sample.
const DOMAINS_MAX: usize = 4096;

/// A domain.
#[derive(Debug, Clone)]
pub(crate) struct Domain {
    pub(crate) stat: DomainStat,
    /// Its own counters by index; none when it ended meanwhile.
    pub(crate) counters: Vec<u64>,
}

impl Domain {
    /// A counter; 0 where there is none.
    pub(crate) fn counter(&self, index: usize) -> u64 {
        self.counters.get(index).copied().unwrap_or(0)
    }
}

/// A sample, complete once [`Sample::add`] asks for nothing more.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sample {
    pub(crate) machine: Option<MachineStat>,
    pub(crate) domains: Vec<Domain>,
    /// Domains whose counters are there.
    counted: usize,
}

impl Sample {
    /// What to ask first.
    pub(crate) const FIRST: Request = Request::Machine;

    /// Takes an answer: what to ask next, if anything.
    ///
    /// # Errors
    /// The answer fits no question of a sample.
    pub(crate) fn add(&mut self, response: Response) -> Result<Option<Request>, Response> {
        match response {
            Response::Machine(machine) => {
                self.machine = Some(machine);
                return Ok(Some(Request::Stat { index: 0 }));
            }
            Response::Domain { index, stat } => {
                self.domains.push(Domain { stat, counters: Vec::new() });
                if let Some(index) = index.checked_add(1).filter(|_| self.domains.len() < DOMAINS_MAX) {
                    return Ok(Some(Request::Stat { index }));
                }
            }
            Response::NoDomain => {}
            Response::Counters { domid, values } => match self.domains.get_mut(self.counted) {
                Some(domain) if domain.stat.domid == domid => {
                    domain.counters = values.to_vec();
                    self.counted += 1;
                }
                _ => return Err(Response::Counters { domid, values }),
            },
            // It ended between the two questions.
            Response::Refused { .. } => self.counted += 1,
            other => return Err(other),
        }
        let next = self.domains.get(self.counted);
        Ok(next.map(|domain| Request::Counters { domid: domain.stat.domid }))
    }

    /// The domain of this number.
    pub(crate) fn domain(&self, domid: u32) -> Option<&Domain> {
        self.domains.iter().find(|domain| domain.stat.domid == domid)
    }

    /// Microseconds since the machine's start.
    pub(crate) fn at_us(&self) -> u64 {
        self.machine.as_ref().map_or(0, |machine| machine.uptime_us)
    }
}
