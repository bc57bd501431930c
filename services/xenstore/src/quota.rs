//! Quotas: what one domain may use of the store, and the record of who ran into which.
//!
//! Defaults are Xen's (`xenstored --quota`); memory and events are bounded outright here, because the
//! store's heap is fixed. A violation is reported by name; repeated ones at powers of two only, so that
//! a domain cannot flood the log.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;

/// What a domain uses up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Quota {
    /// Nodes charged to the domain.
    Nodes,
    /// Bytes of one value.
    NodeSize,
    /// Entries in one node's permissions.
    Permissions,
    /// Watches.
    Watches,
    /// Open transactions.
    Transactions,
    /// Nodes that one transaction touched.
    TransactionNodes,
    /// Watch events that wait to be taken.
    Events,
    /// Bytes of everything.
    Memory,
    /// Bytes of everybody.
    Total,
}

impl Quota {
    /// The name, as options and messages have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nodes => "nodes",
            Self::NodeSize => "node-size",
            Self::Permissions => "permissions",
            Self::Watches => "watches",
            Self::Transactions => "transactions",
            Self::TransactionNodes => "transaction-nodes",
            Self::Events => "events",
            Self::Memory => "memory",
            Self::Total => "total",
        }
    }
}

/// The limit of each quota.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// [`Quota::Nodes`].
    pub nodes: usize,
    /// [`Quota::NodeSize`].
    pub node_size: usize,
    /// [`Quota::Permissions`].
    pub permissions: usize,
    /// [`Quota::Watches`].
    pub watches: usize,
    /// [`Quota::Transactions`].
    pub transactions: usize,
    /// [`Quota::TransactionNodes`].
    pub transaction_nodes: usize,
    /// [`Quota::Events`].
    pub events: usize,
    /// [`Quota::Memory`].
    pub memory: usize,
    /// [`Quota::Total`].
    pub total: usize,
    /// Replies that may wait on a channel before its next request is taken. Not a violation: the
    /// client's ring fills and it waits.
    pub replies: usize,
    /// Bytes of old versions kept for open transactions; beyond it the oldest transaction loses its
    /// snapshot and will end with EAGAIN.
    pub history: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            nodes: 1000,
            node_size: 2048,
            permissions: 5,
            watches: 128,
            transactions: 10,
            transaction_nodes: 1024,
            events: 256,
            memory: 512 * 1024,
            total: usize::MAX,
            replies: 1,
            history: 256 * 1024,
        }
    }
}

impl Limits {
    /// Changes the limit with this name; `false`: no quota has it.
    pub fn set(&mut self, name: &str, limit: usize) -> bool {
        let field = match name {
            "nodes" => &mut self.nodes,
            "node-size" => &mut self.node_size,
            "permissions" => &mut self.permissions,
            "watches" => &mut self.watches,
            "transactions" => &mut self.transactions,
            "transaction-nodes" => &mut self.transaction_nodes,
            "events" => &mut self.events,
            "memory" => &mut self.memory,
            "total" => &mut self.total,
            _ => return false,
        };
        *field = limit;
        true
    }
}

/// A quota was exceeded; the request was refused or the event was not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Violation {
    /// Who.
    pub domid: u32,
    /// Which.
    pub quota: Quota,
    /// What the use would have become.
    pub value: usize,
    /// What is allowed.
    pub limit: usize,
    /// How often so far.
    pub count: u32,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domid, quota, value, limit, count } = self;
        write!(f, "domain {domid}: quota {} exceeded: {value}, limit {limit}", quota.name())?;
        if *count > 1 { write!(f, " ({count} times so far)") } else { Ok(()) }
    }
}

/// Counts violations and keeps those worth a line.
#[derive(Debug, Default)]
pub struct Violations {
    counts: BTreeMap<(u32, Quota), u32>,
    reports: Vec<Violation>,
}

impl Violations {
    /// Answers whether `value` is within `limit`, and records it when it is not.
    pub fn check(&mut self, domid: u32, quota: Quota, value: usize, limit: usize) -> bool {
        if value <= limit {
            return true;
        }
        let count = self.counts.entry((domid, quota)).or_default();
        *count = count.saturating_add(1);
        if count.is_power_of_two() {
            self.reports.push(Violation { domid, quota, value, limit, count: *count });
        }
        false
    }

    /// Forgets a domain.
    pub fn forget(&mut self, domid: u32) {
        self.counts.retain(|&(id, _), _| id != domid);
    }

    /// The lines to write.
    pub fn take(&mut self) -> Vec<Violation> {
        core::mem::take(&mut self.reports)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn repeated_violations_are_reported_at_powers_of_two() {
        let mut violations = Violations::default();
        for _ in 0..100 {
            assert!(!violations.check(5, Quota::Nodes, 1001, 1000));
        }
        let reports = violations.take();
        assert_eq!(reports.iter().map(|r| r.count).collect::<Vec<_>>(), [1, 2, 4, 8, 16, 32, 64]);
        assert_eq!(reports[0].to_string(), "domain 5: quota nodes exceeded: 1001, limit 1000");
        assert!(violations.check(5, Quota::Nodes, 1000, 1000));
    }

    #[test]
    fn limits_are_set_by_name() {
        let mut limits = Limits::default();
        assert!(limits.set("watches", 7) && limits.watches == 7);
        assert!(!limits.set("wishes", 7));
    }
}
