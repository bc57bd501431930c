//! Guests from their creation to their end.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use proto::builder;
use proto::text::{Bytes, Text};
use proto::toolstack::{EndReason, Response as FromGuest};
use proto::xenstore::{Message, Role};

use super::{SECOND, World, config, two};
use crate::toolstack::Toolstack;

#[test]
fn boot_guests_start_in_order_and_are_announced() {
    let mut world = World::new(vec![
        config("web", "vif=['']\nmemroy=1", true),
        config("db", "", true),
        config("spare", "", false),
        config("bad", "vcpus=99", true),
        config("lost", "disk=['nowhere,,xvda']", true),
    ]);
    assert_eq!(world.domains, [(10, "web".into()), (11, "db".into())].into());
    assert_eq!(world.started, [10, 11]);
    assert_eq!(world.guests_started(), Some((10, 2)));
    for part in [
        "did you mean `memory`",
        "`web` runs as domain 10",
        "`db` runs as domain 11",
        "`bad.cfg` cannot be started: bad.cfg:5:7: error: 99 virtual CPUs",
        "`lost` cannot be started: lost.cfg: `nowhere` is not part",
    ] {
        assert!(world.has_notice(part), "{part}: {:?}", world.notices());
    }
    assert_eq!(world.store.get("/local/domain/10/device/vif/0/state").map(String::as_str), Some("1"));
    assert_eq!(world.command("xl create spare"), (String::new(), Some(0)));
    assert_eq!(world.names(), ["web", "db", "spare"]);
}

#[test]
fn no_guests_are_announced_too() {
    assert_eq!(World::new(Vec::new()).guests_started(), Some((0, 0)));
    let mut world = World::idle(Vec::new());
    world.toolstack.report_damage("the configurations are damaged");
    world.run();
    assert_eq!(world.guests_started(), Some((0, 1)));
    assert!(world.has_notice("damaged"));
}

#[test]
fn a_guest_starts_only_after_its_nodes_and_its_channel() {
    let mut world = World::idle(vec![config("web", "", true)]);
    let mut build = || world.toolstack.builder_out().pop_front().unwrap();
    build();
    world.toolstack.builder_message(builder::Response::NoDomain);
    assert!(matches!(world.toolstack.builder_out().pop_front(), Some(builder::Request::Build(_))));
    world.toolstack.builder_message(builder::Response::Built { domid: 10 });
    world.domains.insert(10, "web".into());
    world.run();
    assert!(world.started.is_empty());
    world.toolstack.guest_attached(10);
    world.run();
    assert_eq!(world.started, [10]);
}

#[test]
fn every_way_to_fail_at_the_start_leaves_nothing() {
    let mut world = World::idle(vec![config("web", "", true)]);
    world.refusal = Some("16 MiB are free, 64 are needed");
    world.run();
    assert!(world.has_notice("`web` cannot be started: 16 MiB are free"));
    assert_eq!(world.guests_started(), Some((0, 1)));

    let mut world = World::idle(vec![config("web", "", true)]);
    world.store_refuses = Some("memory/target");
    world.run();
    assert!(world.has_notice("xenstore refuses its node /local/domain/10/memory/target: ENOSPC"));
    assert_eq!((world.guests_started(), world.domains.len()), (Some((0, 1)), 0));
    world.assert_no_traces();

    for end in [
        FromGuest::Failed { reason: Text::truncated("the kernel is truncated") },
        FromGuest::Ended { reason: EndReason::Crash, detail: Text::truncated("the kernel is truncated") },
    ] {
        let mut world = World::idle(vec![config("web", "", true)]);
        world.starts = false;
        world.run();
        assert_eq!(world.guests_started(), None);
        world.toolstack.guest_message(10, end);
        world.run();
        assert!(world.has_notice("the kernel is truncated"));
        assert_eq!((world.guests_started(), world.domains.len()), (Some((0, 1)), 0));
        world.assert_no_traces();
    }
}

#[test]
fn what_happens_after_the_end_is_configured() {
    use EndReason::*;
    // (configuration, how it ends, remains or comes back)
    for (more, reason, domains) in [
        ("", PowerOff, vec![]),
        ("", Reboot, vec![11]),
        ("", Crash, vec![]),
        ("", Watchdog, vec![]),
        ("", SoftReset, vec![]),
        ("", Suspend, vec![10]),
        ("on_poweroff='restart'", PowerOff, vec![11]),
        ("on_poweroff='preserve'", PowerOff, vec![10]),
        ("on_reboot='destroy'", Reboot, vec![]),
        ("on_crash='restart'", Crash, vec![11]),
        ("on_crash='preserve'", Crash, vec![10]),
        ("on_crash='restart'", SoftReset, vec![11]),
        ("on_watchdog='restart'", Watchdog, vec![11]),
    ] {
        let mut world = World::new(vec![config("web", more, true)]);
        world.end(10, reason);
        world.run();
        let left: Vec<u32> = world.domains.keys().copied().collect();
        assert_eq!(left, domains, "{more} {reason:?}");
        assert!(
            world.store.keys().all(|path| !path.contains("/10/")) || domains == [10],
            "{more} {reason:?}"
        );
        if domains.is_empty() {
            world.assert_no_traces();
        }
        assert_eq!(world.guests_started(), Some((10, 0)));
    }
}

#[test]
fn a_preserved_guest_is_listed_with_its_reason_and_can_be_destroyed() {
    let mut world = World::new(vec![config("web", "on_crash='preserve'", true)]);
    world.end(10, EndReason::Crash);
    world.run();
    assert!(world.command("xl list web").0.contains("---sc-"));
    assert_eq!(world.command("xl shutdown web").1, Some(1));
    assert_eq!(world.command("xl destroy web"), (String::new(), Some(0)));
    assert!(world.domains.is_empty());
    world.assert_no_traces();
}

#[test]
fn a_dead_vmm_is_a_crash_of_its_guest() {
    let mut world = World::new(vec![config("web", "on_crash='restart'", true)]);
    world
        .toolstack
        .builder_message(builder::Response::Died { domid: 10, reason: Text::truncated("page fault") });
    world.run();
    assert_eq!(world.domains, [(11, "web".into())].into());
    assert!(world.has_notice("crashed (page fault); it is restarted"));
    world.toolstack.builder_message(builder::Response::Died { domid: 2, reason: Text::truncated("oops") });
    world.run();
    assert!(world.has_notice("domain 2 died: oops"));
}

#[test]
fn a_guest_that_ends_at_once_is_not_restarted_for_ever() {
    // A triple fault is a reboot.
    for reason in [EndReason::Crash, EndReason::Reboot] {
        let mut world = World::new(vec![config("web", "on_crash='restart'", true)]);
        for domid in 10..16 {
            assert!(world.domains.contains_key(&domid), "{domid}");
            world.end(domid, reason);
            world.run();
        }
        assert!(world.domains.is_empty());
        assert!(world.has_notice("too often in a row"));
    }
    // One that runs for a while each time is.
    let mut world = World::new(vec![config("web", "on_crash='restart'", true)]);
    for domid in 10..30 {
        world.advance(20 * SECOND);
        world.end(domid, EndReason::Crash);
        world.run();
    }
    assert_eq!(world.domains.len(), 1);
}

#[test]
fn a_rebuilt_toolstack_adopts_running_guests() {
    let mut world = two();
    world.toolstack =
        Toolstack::new(vec![config("web", "disk=['d,,xvda']", true), config("db", "disk=['e,,xvda']", true)]);
    world.operator.clear();
    world.toolstack.guest_attached(10);
    world.toolstack.guest_attached(11);
    world.run();
    assert_eq!((world.domains.len(), world.guests_started()), (2, Some((10, 0))));
    assert_eq!(world.command("xl shutdown -w web").1, Some(0));
    assert_eq!(world.names(), ["db"]);
}

#[test]
fn requests_survive_the_stores_restart() {
    let mut world = World::idle(vec![config("web", "", true)]);
    while world.toolstack.store_out().is_none() {
        assert!(world.step());
    }
    // Four requests are lost with the old store.
    for _ in 0..4 {
        assert!(world.toolstack.store_out().is_some());
        world.toolstack.store_sent();
    }
    world.toolstack.store_reconnected();
    world.run();
    assert_eq!(world.guests_started(), Some((10, 0)));
    assert_eq!(world.store["/local/domain/10/name"], "web");
}

#[test]
fn unasked_messages_change_nothing() {
    let mut world = two();
    world.toolstack.builder_message(builder::Response::Built { domid: 77 });
    world.toolstack.guest_message(99, FromGuest::Started);
    world.toolstack.guest_message(0, FromGuest::Started);
    world.toolstack.guest_message(10, FromGuest::Started);
    let payload = Bytes::truncated(b"OK\0");
    world.toolstack.store_message(&Message { role: Role::Toolstack, op: 11, id: 9999, tx: 0, payload });
    world.run();
    assert_eq!(world.domains.len(), 2);
    assert_eq!(world.command("xl list").1, Some(0));
}
