//! The store as its clients see it: requests in, replies and events out.

use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;
use proto::text::Bytes;
use proto::xenstore::{Message, Role};

use crate::quota::Limits;
use crate::store::Store;
use crate::wire;

/// Channel of the toolstack.
const TOOLS: u32 = 1;
/// Channel of guest 5.
const GUEST: u32 = 2;
/// Channel of guest 6.
const OTHER: u32 = 3;

/// What a client got: a payload as text, or an error's name.
type Answer = Result<String, String>;

struct Bench {
    store: Store,
    /// Events by channel: path and token.
    events: Vec<(u32, String, String)>,
}

impl Bench {
    fn new(limits: Limits) -> Self {
        let mut store = Store::new(limits);
        store.attach(TOOLS, 4, true).unwrap();
        store.attach(GUEST, 5, false).unwrap();
        store.attach(OTHER, 6, false).unwrap();
        let mut bench = Self { store, events: Vec::new() };
        for (domid, device) in [(5, "51712"), (6, "51712")] {
            let home = alloc::format!("/local/domain/{domid}");
            let back = alloc::format!("/local/domain/0/backend/vbd/{domid}/{device}");
            for (path, perms) in [
                (home.clone(), alloc::format!("n0\0r{domid}")),
                (home.clone() + "/data", alloc::format!("n{domid}")),
                (home.clone() + "/device/vbd/51712", alloc::format!("n{domid}\0r0")),
                (home.clone() + "/control/shutdown", alloc::format!("n{domid}")),
                (back.clone(), alloc::format!("n0\0r{domid}")),
            ] {
                bench.tools(11, &[&path, ""]).unwrap();
                bench.tools(14, &[&path, &perms, ""]).unwrap();
            }
            bench.tools(11, &[&(back + "/state"), "2"]).unwrap();
        }
        bench
    }

    fn ask(&mut self, channel: u32, role: Role, tx: u32, op: u32, parts: &[&str]) -> Answer {
        let payload = parts.join("\0");
        let payload = if op == 6 || op == 21 { "\0".to_string() } else { payload };
        let message = Message { role, op, id: 9, tx, payload: Bytes::truncated(payload.as_bytes()) };
        assert!(self.store.accepts(channel));
        self.store.request(channel, &message);
        let mut answer = None;
        for ready in self.store.take_ready() {
            while let Some(message) = self.store.peek(ready) {
                self.store.pop(ready);
                let text = String::from_utf8_lossy(&message.payload).to_string();
                if message.op == wire::WATCH_EVENT {
                    let mut parts = text.split('\0');
                    let (path, token) = (parts.next().unwrap(), parts.next().unwrap());
                    self.events.push((ready, path.to_string(), token.to_string()));
                } else {
                    assert_eq!((ready, message.id, message.tx, message.role), (channel, 9, tx, role));
                    let is_error = message.op == wire::ERROR;
                    let text = if is_error { text.trim_end_matches('\0').to_string() } else { text };
                    answer = Some(if is_error { Err(text) } else { Ok(text) });
                }
            }
        }
        answer.unwrap()
    }

    fn tools(&mut self, op: u32, parts: &[&str]) -> Answer {
        self.ask(TOOLS, Role::Toolstack, 0, op, parts)
    }

    fn guest(&mut self, op: u32, parts: &[&str]) -> Answer {
        self.ask(GUEST, Role::Guest, 0, op, parts)
    }

    fn backend(&mut self, op: u32, parts: &[&str]) -> Answer {
        self.ask(GUEST, Role::Backend, 0, op, parts)
    }

    fn events(&mut self) -> Vec<(u32, String, String)> {
        core::mem::take(&mut self.events)
    }
}

fn bench() -> Bench {
    Bench::new(Limits::default())
}

fn error(name: &str) -> Answer {
    Err(name.to_string())
}

fn event(channel: u32, path: &str, token: &str) -> (u32, String, String) {
    (channel, path.to_string(), token.to_string())
}

#[test]
fn a_guest_sees_what_linux_expects_at_boot() {
    let mut b = bench();
    assert_eq!(b.guest(2, &["control/platform-feature-xs_reset_watches", ""]), error("ENOENT"));
    assert_eq!(b.guest(1, &["backend", ""]), error("ENOENT"));
    assert_eq!(b.guest(1, &["device", ""]).unwrap(), "vbd\0");
    assert_eq!(b.guest(1, &["control/shutdown", ""]).unwrap(), "");
    assert_eq!(b.guest(2, &["control/shutdown", ""]).unwrap(), "");
    assert_eq!(b.guest(2, &["/local/domain/0/backend/vbd/5/51712/state", ""]).unwrap(), "2");
    assert_eq!(b.guest(2, &["/local/domain/0/backend/vbd/5/51712/none", ""]), error("ENOENT"));
    assert_eq!(b.guest(11, &["device/vbd/51712/state", "3"]).unwrap(), "OK\0");
    assert_eq!(b.backend(2, &["/local/domain/5/device/vbd/51712/state", ""]).unwrap(), "3");
    assert_eq!(b.guest(3, &["device/vbd/51712/state", ""]).unwrap(), "n5\0r0\0");
    assert_eq!(b.guest(10, &["5", ""]).unwrap(), "/local/domain/5\0");
    assert_eq!(b.guest(17, &["6", ""]).unwrap(), "T\0");
    assert_eq!(b.guest(17, &["7", ""]).unwrap(), "F\0");
}

#[test]
fn a_guest_reaches_nothing_of_another_domain() {
    let mut b = bench();
    for (op, rest) in
        [(1, vec![""]), (2, vec![""]), (3, vec![""]), (11, vec!["x"]), (12, vec![""]), (13, vec![""])]
    {
        for path in ["/local/domain/6/data", "/local/domain/6/none", "/local/domain/0/backend/vbd/6/51712"] {
            let mut parts = vec![path];
            parts.extend(rest.iter());
            assert_eq!(b.guest(op, &parts), error("EACCES"), "{op} {path}");
            assert_eq!(b.backend(op, &parts), error("EACCES"), "backend {op} {path}");
        }
    }
    assert_eq!(b.guest(11, &["/local/domain/0/backend/vbd/5/51712/state", "4"]), error("EACCES"));
    assert_eq!(b.guest(11, &["name", "me"]), error("EACCES"));
    assert_eq!(b.guest(14, &["data", "n6", ""]), error("EPERM"));
    assert_eq!(b.guest(14, &["/local/domain/0/backend/vbd/5/51712", "n5", ""]), error("EACCES"));
    let as_tools = b.ask(GUEST, Role::Toolstack, 0, 2, &["/", ""]);
    assert_eq!(as_tools, error("EACCES"));
}

#[test]
fn a_backend_writes_its_own_directory_and_only_reads_the_guest() {
    let mut b = bench();
    assert!(b.backend(11, &["backend/vbd/5/51712/state", "4"]).is_ok());
    assert!(b.backend(11, &["backend/vbd/5/51712/a/b", "4"]).is_ok());
    assert_eq!(b.guest(2, &["/local/domain/0/backend/vbd/5/51712/a/b", ""]).unwrap(), "4");
    assert_eq!(b.backend(11, &["/local/domain/5/control/shutdown", "x"]), error("EACCES"));
    assert_eq!(b.backend(11, &["backend/vif/5/0/state", "4"]), error("EACCES"));
    assert_eq!(b.backend(14, &["backend/vbd/5/51712", "n6", ""]), error("EACCES"));
    assert_eq!(b.backend(1, &["backend/vbd", ""]), error("EACCES"));
    // What a backend makes is charged to its guest.
    assert!(b.store.tree.charged_to(5).iter().any(|p| p.as_str().ends_with("51712/a/b")));
}

#[test]
fn malformed_requests_get_xens_error_names() {
    let mut b = bench();
    assert_eq!(b.guest(2, &["a//b", ""]), error("EINVAL"));
    assert_eq!(b.guest(2, &["a"]), error("EINVAL"));
    assert_eq!(b.guest(99, &["a", ""]), error("ENOSYS"));
    assert_eq!(b.guest(13, &["/", ""]), error("EINVAL"));
    assert_eq!(b.tools(13, &["/", ""]), error("EINVAL"));
    assert_eq!(b.guest(7, &["T", ""]), error("ENOENT"));
    assert_eq!(b.ask(GUEST, Role::Guest, 77, 2, &["data", ""]), error("ENOENT"));
    assert_eq!(b.guest(14, &["data", "q1", ""]), error("EINVAL"));
    assert_eq!(b.guest(4, &["@what", "t", ""]), error("EINVAL"));
    assert_eq!(b.guest(5, &["data", "t", ""]), error("ENOENT"));
}

#[test]
fn removing_what_is_not_there_succeeds_below_an_existing_parent() {
    let mut b = bench();
    assert!(b.guest(13, &["data/none", ""]).is_ok());
    assert_eq!(b.guest(13, &["data/none/deeper", ""]), error("ENOENT"));
    assert!(b.guest(11, &["data/a/b/c", "1"]).is_ok());
    assert!(b.guest(12, &["data/a", ""]).is_ok());
    assert!(b.guest(13, &["data/a", ""]).is_ok());
    assert_eq!(b.guest(2, &["data/a/b/c", ""]), error("ENOENT"));
}

#[test]
fn a_watch_fires_at_once_then_for_the_node_and_below() {
    let mut b = bench();
    assert!(b.guest(4, &["data", "tok", ""]).is_ok());
    assert_eq!(b.events(), [event(GUEST, "data", "tok")]);
    assert_eq!(b.guest(4, &["data", "tok", ""]), error("EEXIST"));
    assert_eq!(b.guest(4, &["/local/domain/5/data", "tok", ""]), error("EEXIST"));
    assert!(b.guest(4, &["/local/domain/5/data", "abs", ""]).is_ok());
    b.events();
    assert!(b.tools(11, &["/local/domain/5/data/x/y", "1"]).is_ok());
    let mut events = b.events();
    events.sort();
    assert_eq!(events, [event(GUEST, "/local/domain/5/data/x/y", "abs"), event(GUEST, "data/x/y", "tok")]);
    assert!(b.tools(11, &["/local/domain/5/database", "1"]).is_ok());
    assert!(b.guest(5, &["data", "tok", ""]).is_ok());
    assert!(b.guest(5, &["data", "abs", ""]).is_ok());
    assert!(b.tools(11, &["/local/domain/5/data/x/y", "2"]).is_ok());
    assert_eq!(b.events(), []);
}

#[test]
fn removing_a_subtree_fires_once_above_and_exactly_below() {
    let mut b = bench();
    assert!(b.guest(11, &["data/a/b", "1"]).is_ok());
    for (path, token) in [("data", "up"), ("data/a/b", "leaf"), ("data/a", "top")] {
        assert!(b.guest(4, &[path, token, ""]).is_ok());
    }
    b.events();
    assert!(b.tools(13, &["/local/domain/5/data/a", ""]).is_ok());
    let mut events = b.events();
    events.sort();
    assert_eq!(
        events,
        [event(GUEST, "data/a", "top"), event(GUEST, "data/a", "up"), event(GUEST, "data/a/b", "leaf")]
    );
}

#[test]
fn a_watch_tells_nothing_about_nodes_that_its_owner_may_not_read() {
    let mut b = bench();
    assert!(b.guest(4, &["/local/domain/6", "spy", ""]).is_ok());
    assert!(b.guest(4, &["/", "all", ""]).is_ok());
    assert!(b.guest(4, &["@introduceDomain", "intro", ""]).is_ok());
    assert!(b.backend(4, &["/local/domain/6", "spy", ""]).is_ok());
    assert!(b.backend(4, &["/local/domain/5/device", "mine", ""]).is_ok());
    b.events();
    assert!(b.ask(OTHER, Role::Guest, 0, 11, &["data/secret", "1"]).is_ok());
    b.store.attach(9, 9, false).unwrap();
    assert!(b.guest(11, &["device/vbd/51712/state", "3"]).is_ok());
    let name = "/local/domain/5/device/vbd/51712/state";
    let mut events = b.events();
    events.sort();
    assert_eq!(events, [event(GUEST, name, "all"), event(GUEST, name, "mine")]);
}

#[test]
fn the_toolstack_hears_of_domains_and_their_nodes_vanish_with_them() {
    let mut b = bench();
    assert!(b.tools(4, &["@releaseDomain", "r", ""]).is_ok());
    assert!(b.tools(4, &["@introduceDomain", "i", ""]).is_ok());
    assert!(b.guest(11, &["data/x", "1"]).is_ok());
    b.guest(6, &[]).unwrap();
    b.events();
    b.store.detach(GUEST);
    assert_eq!(b.tools(17, &["5", ""]).unwrap(), "F\0");
    assert_eq!(b.events(), [event(TOOLS, "@releaseDomain", "r")]);
    assert_eq!(b.tools(2, &["/local/domain/5", ""]), error("ENOENT"));
    assert_eq!(b.tools(1, &["/local/domain/0/backend/vbd", ""]).unwrap(), "6\0");
    assert_eq!(b.store.tree.usage(5).nodes, 0);
    assert_eq!(b.store.tree.open_snapshot(), b.store.tree.open_snapshot());
}

#[test]
fn transactions_are_isolated_and_commit_as_one() {
    let mut b = bench();
    assert!(b.tools(4, &["/local/domain/5/data", "t", ""]).is_ok());
    b.events();
    let tx: u32 = b.guest(6, &[]).unwrap().trim_end_matches('\0').parse().unwrap();
    let inside = |b: &mut Bench, op, parts: &[&str]| b.ask(GUEST, Role::Guest, tx, op, parts);
    assert!(inside(&mut b, 11, &["data/a", "1"]).is_ok());
    assert!(inside(&mut b, 11, &["data/b", "2"]).is_ok());
    assert_eq!(inside(&mut b, 1, &["data", ""]).unwrap(), "a\0b\0");
    assert_eq!(b.guest(1, &["data", ""]).unwrap(), "");
    assert_eq!(b.events(), []);
    assert_eq!(inside(&mut b, 6, &[]), error("EBUSY"));
    assert_eq!(b.ask(GUEST, Role::Backend, tx, 7, &["T", ""]), error("ENOENT"));
    assert!(inside(&mut b, 7, &["T", ""]).is_ok());
    assert_eq!(b.guest(1, &["data", ""]).unwrap(), "a\0b\0");
    let (a, z) = ("/local/domain/5/data/a", "/local/domain/5/data/b");
    assert_eq!(b.events(), [event(TOOLS, a, "t"), event(TOOLS, z, "t")]);
    assert_eq!(inside(&mut b, 7, &["T", ""]), error("ENOENT"));
}

#[test]
fn a_conflict_is_eagain_and_an_abort_leaves_nothing() {
    let mut b = bench();
    assert!(b.guest(11, &["data/a", "1"]).is_ok());
    let tx: u32 = b.guest(6, &[]).unwrap().trim_end_matches('\0').parse().unwrap();
    assert_eq!(b.ask(GUEST, Role::Guest, tx, 2, &["data/a", ""]).unwrap(), "1");
    assert!(b.tools(11, &["/local/domain/5/data/a", "2"]).is_ok());
    assert_eq!(b.ask(GUEST, Role::Guest, tx, 2, &["data/a", ""]).unwrap(), "1");
    assert!(b.ask(GUEST, Role::Guest, tx, 11, &["data/b", "x"]).is_ok());
    assert_eq!(b.ask(GUEST, Role::Guest, tx, 7, &["T", ""]), error("EAGAIN"));
    let tx: u32 = b.guest(6, &[]).unwrap().trim_end_matches('\0').parse().unwrap();
    assert!(b.ask(GUEST, Role::Guest, tx, 11, &["data/b", "x"]).is_ok());
    assert!(b.ask(GUEST, Role::Guest, tx, 7, &["F", ""]).is_ok());
    assert_eq!(b.guest(1, &["data", ""]).unwrap(), "a\0");
}

#[test]
fn creating_different_children_of_one_parent_is_no_conflict() {
    let mut b = bench();
    let start = |b: &mut Bench| b.guest(6, &[]).unwrap().trim_end_matches('\0').parse::<u32>().unwrap();
    let (one, two) = (start(&mut b), start(&mut b));
    assert!(b.ask(GUEST, Role::Guest, one, 11, &["data/a", "1"]).is_ok());
    assert!(b.ask(GUEST, Role::Guest, two, 11, &["data/b", "2"]).is_ok());
    assert!(b.ask(GUEST, Role::Guest, one, 7, &["T", ""]).is_ok());
    assert!(b.ask(GUEST, Role::Guest, two, 7, &["T", ""]).is_ok());
    assert_eq!(b.guest(1, &["data", ""]).unwrap(), "a\0b\0");
}

#[test]
fn a_transaction_that_saw_a_node_which_was_removed_conflicts() {
    // The node's absence is only visible in the versions kept for the transaction, so these must outlive
    // the check.
    let mut b = bench();
    assert!(b.guest(11, &["data/a", "1"]).is_ok());
    let tx: u32 = b.guest(6, &[]).unwrap().trim_end_matches('\0').parse().unwrap();
    assert!(b.ask(GUEST, Role::Guest, tx, 2, &["data/a", ""]).is_ok());
    assert!(b.guest(13, &["data/a", ""]).is_ok());
    assert_eq!(b.ask(GUEST, Role::Guest, tx, 7, &["T", ""]), error("EAGAIN"));
}

#[test]
fn every_quota_refuses_and_is_named() {
    let limits = Limits {
        nodes: 8,
        node_size: 10,
        permissions: 2,
        watches: 2,
        transactions: 1,
        transaction_nodes: 4,
        ..Limits::default()
    };
    let mut b = Bench::new(limits);
    let named = |b: &mut Bench, answer: Answer, wire: &str, quota: &str| {
        assert_eq!(answer, error(wire), "{quota}");
        let report = b.store.take_violations().pop().unwrap();
        assert_eq!((report.domid, report.quota.name()), (5, quota));
    };
    let answer = b.guest(11, &["data/x", "12345678901"]);
    named(&mut b, answer, "ENOSPC", "node-size");
    let answer = b.guest(14, &["data", "n5", "r0", "r1", ""]);
    named(&mut b, answer, "ENOSPC", "permissions");
    let answer = b.guest(11, &["data/a/b/c/d/e/f/g/h", "1"]);
    named(&mut b, answer, "ENOSPC", "nodes");
    assert_eq!(b.guest(1, &["data", ""]).unwrap(), "", "nothing was created");
    assert!(b.guest(4, &["data", "1", ""]).is_ok());
    assert!(b.guest(4, &["data", "2", ""]).is_ok());
    let answer = b.guest(4, &["data", "3", ""]);
    named(&mut b, answer, "E2BIG", "watches");
    let tx: u32 = b.guest(6, &[]).unwrap().trim_end_matches('\0').parse().unwrap();
    let answer = b.guest(6, &[]);
    named(&mut b, answer, "ENOSPC", "transactions");
    let mut answer = Ok(String::new());
    for n in 0..9 {
        answer = b.ask(GUEST, Role::Guest, tx, 2, &[&alloc::format!("data/{n}"), ""]);
    }
    named(&mut b, answer, "ENOSPC", "transaction-nodes");
    // Another domain is not affected, and the toolstack has no quota.
    assert!(b.ask(OTHER, Role::Guest, 0, 11, &["data/x", "1"]).is_ok());
    assert!(b.tools(11, &["/tool/x", "12345678901"]).is_ok());
}

#[test]
fn memory_is_bounded_inside_a_transaction_and_at_its_end() {
    let mut b = Bench::new(Limits { memory: 8 * 1024, nodes: 100, ..Limits::default() });
    let tx: u32 = b.guest(6, &[]).unwrap().trim_end_matches('\0').parse().unwrap();
    let mut answer = Ok(String::new());
    let mut n = 0;
    while answer.is_ok() && n < 100 {
        let path = alloc::format!("data/{n}");
        answer = b.ask(GUEST, Role::Guest, tx, 11, &[&path, &"x".repeat(1000)]);
        n += 1;
    }
    assert_eq!(answer, error("ENOSPC"));
    assert!((2..9).contains(&n), "{n}");
    assert_eq!(b.store.take_violations().pop().unwrap().quota.name(), "memory");
}

#[test]
fn a_domain_that_does_not_drain_loses_only_its_own_events() {
    let mut b = Bench::new(Limits { events: 4, ..Limits::default() });
    assert!(b.guest(4, &["data", "g", ""]).is_ok());
    assert!(b.tools(4, &["/local/domain/5/data", "t", ""]).is_ok());
    b.events();
    // The guest's channel is not drained while the toolstack's is.
    for n in 0..10 {
        let payload = alloc::format!("/local/domain/5/data/{n}\0v");
        let payload = Bytes::truncated(payload.as_bytes());
        for _ in 0..2 {
            let payload = payload.clone();
            b.store.request(TOOLS, &Message { role: Role::Toolstack, op: 11, id: 1, tx: 0, payload });
            while b.store.peek(TOOLS).is_some() {
                b.store.pop(TOOLS);
            }
        }
    }
    let mut waiting = 0;
    while let Some(message) = b.store.peek(GUEST) {
        assert_eq!(message.op, wire::WATCH_EVENT);
        b.store.pop(GUEST);
        waiting += 1;
    }
    assert_eq!(waiting, 4);
    let report = b.store.take_violations().pop().unwrap();
    assert_eq!((report.domid, report.quota.name(), report.limit), (5, "events", 4));
}

#[test]
fn a_reply_that_waits_holds_back_the_next_request() {
    let mut b = bench();
    let payload = Bytes::truncated(b"data\0");
    b.store.request(GUEST, &Message { role: Role::Guest, op: 1, id: 1, tx: 0, payload });
    assert!(!b.store.accepts(GUEST));
    assert!(b.store.accepts(OTHER));
    b.store.pop(GUEST);
    assert!(b.store.accepts(GUEST));
}

#[test]
fn reset_ends_watches_and_transactions_of_that_role_only() {
    let mut b = bench();
    assert!(b.guest(4, &["data", "g", ""]).is_ok());
    assert!(b.backend(4, &["/local/domain/5/data", "b", ""]).is_ok());
    let tx: u32 = b.guest(6, &[]).unwrap().trim_end_matches('\0').parse().unwrap();
    b.events();
    assert!(b.guest(21, &[]).is_ok());
    assert_eq!(b.ask(GUEST, Role::Guest, tx, 7, &["T", ""]), error("ENOENT"));
    assert!(b.guest(11, &["data/x", "1"]).is_ok());
    assert_eq!(b.events(), [event(GUEST, "/local/domain/5/data/x", "b")]);
}

#[test]
fn a_large_directory_is_read_in_parts() {
    let mut b = bench();
    let name = |n: usize| alloc::format!("child-with-a-long-name-{n:04}");
    for n in 0..1000 {
        b.tools(11, &[&("/local/domain/6/big/".to_string() + &name(n)), ""]).unwrap();
    }
    let path = "/local/domain/6/big";
    assert_eq!(b.tools(1, &[path, ""]), error("E2BIG"));
    let (mut offset, mut names) = (0, String::new());
    for _ in 0..20 {
        let part = b.tools(22, &[path, &offset.to_string(), ""]).unwrap();
        let (_, list) = part.split_once('\0').unwrap();
        let (list, is_last) = match list.strip_suffix("\0\0") {
            Some(list) => (list.to_string() + "\0", true),
            None => (list.to_string(), false),
        };
        offset += list.len();
        names += &list;
        if is_last {
            break;
        }
    }
    let expected: String = (0..1000).map(|n| name(n) + "\0").collect();
    assert_eq!(names, expected);
    assert!(b.tools(22, &[path, "999999", ""]).unwrap().ends_with("\0\0"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn random_messages_harm_nobody(
        requests in prop::collection::vec(
            (0u32..24, 0u32..3, 0usize..3, prop::collection::vec(any::<u8>(), 0..40)), 0..60)
    ) {
        let mut b = bench();
        for (op, tx, role, payload) in requests {
            let role = [Role::Guest, Role::Backend, Role::Toolstack][role];
            let payload = Bytes::truncated(&payload);
            b.store.request(GUEST, &Message { role, op, id: 0, tx, payload });
            while b.store.peek(GUEST).is_some() {
                b.store.pop(GUEST);
            }
        }
        prop_assert_eq!(b.tools(2, &["/local/domain/0/backend/vbd/6/51712/state", ""]).unwrap(), "2");
    }
}
