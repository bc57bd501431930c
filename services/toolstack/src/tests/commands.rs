//! The operator's commands.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;
use proto::builder;
use proto::console::{OperatorRequest, OperatorResponse, Order};
use proto::text::Text;
use proto::toolstack::{EndReason, Request as GuestRequest};

use super::{SECOND, World, config, two};
use crate::jobs::{ACKNOWLEDGE_NS, GRACE_NS, QUIT_DESTROY_NS, QUIT_NS};

#[test]
fn guests_are_listed_with_the_services() {
    let mut world = two();
    let (text, status) = world.command("xl list");
    let rows: Vec<&str> = text.lines().collect();
    assert_eq!(status, Some(0));
    assert_eq!(rows[0], "Name                                        ID   Mem VCPUs\tState\tTime(s)");
    assert_eq!(rows[3], "web                                         10    64     1     -b----       0.0");
    assert_eq!(rows.len(), 5);
    assert_eq!(world.command("xl list console").0.lines().count(), 2);
    assert_eq!(world.command("xl list 11").0.lines().count(), 2);
    assert_eq!(world.command("xl list nobody"), ("Error: Domain 'nobody' does not exist.\n".into(), Some(1)));
    let (json, _) = world.command("xl list -l");
    assert!(json.starts_with("[\n    {") && json.ends_with("}\n]\n"), "{json}");
    assert_eq!(world.command("xl domid db"), ("11\n".into(), Some(0)));
    assert_eq!(world.command("xl domid nobody").1, Some(1));
    assert_eq!(world.command("xl domname 2"), ("console\n".into(), Some(0)));
    assert_eq!(world.command("xl domname 99").1, Some(1));
    assert_eq!(world.command("xl domname x").1, Some(1));
}

#[test]
fn facts_about_the_machine() {
    let mut world = two();
    world.advance(3 * SECOND);
    let (text, status) = world.command("xl info");
    assert_eq!(status, Some(0));
    assert!(text.contains("total_memory           : 1024\n"), "{text}");
    let (text, _) = world.command("xl uptime");
    assert!(text.contains("(machine)                            -  0:01:04\n"), "{text}");
    assert!(text.contains("web                                 10  0:00:03\n"), "{text}");
    assert_eq!(world.command("xl uptime db").0.lines().count(), 2);
}

#[test]
fn consoles_and_the_log_are_the_consoles_business() {
    let mut world = two();
    let attach = world.type_line("xl console db");
    let log = world.type_line("xl dmesg");
    assert!(world.operator.contains(&OperatorResponse::Attach { id: attach, domid: 11 }));
    assert!(world.operator.contains(&OperatorResponse::ShowLog { id: log }));
    assert_eq!(world.result(attach).1, None);
    let (text, status) = world.command("xl console dc");
    assert!(text.contains("did you mean the guest `db`"), "{text}");
    assert_eq!(status, Some(1));
}

#[test]
fn shutdown_waits_for_the_acknowledgement() {
    let mut world = two();
    let (text, status) = world.command("xl shutdown web");
    assert_eq!((text.as_str(), status), ("Shutting down domain 10\n", Some(0)));
    assert_eq!(world.names(), ["db"]);
    let (text, status) = world.command("xl shutdown -w db");
    assert_eq!(text, "Shutting down domain 11\nDomain 11 has been shut down\n");
    assert_eq!(status, Some(0));
    world.assert_no_traces();
    assert!(world.command("xl shutdown web").0.contains("`xl create web` starts it"));
    assert_eq!(world.command("xl shutdown -a"), (String::new(), Some(0)));
}

#[test]
fn a_guest_that_acknowledges_first_and_ends_later() {
    let mut world = two();
    world.obedient = false;
    let at_once = world.type_line("xl shutdown web");
    let waiting = world.type_line("xl shutdown -w web");
    assert_eq!(world.result(at_once).1, None);
    world.write("/local/domain/10/control/shutdown", "");
    world.run();
    assert_eq!(world.result(at_once).1, Some(0));
    assert_eq!(world.result(waiting).1, None);
    world.advance(2 * ACKNOWLEDGE_NS);
    assert_eq!(world.result(waiting).1, None);
    world.end(10, EndReason::PowerOff);
    world.run();
    assert_eq!(world.result(waiting).1, Some(0));
}

#[test]
fn a_guest_that_does_not_answer_is_named() {
    let mut world = two();
    world.obedient = false;
    let id = world.type_line("xl reboot -w web");
    assert_eq!(world.toolstack.next_deadline(), Some(ACKNOWLEDGE_NS));
    world.advance(ACKNOWLEDGE_NS);
    let (text, status) = world.result(id);
    assert!(
        text.contains("guest `web` did not acknowledge the request within 60 s; `xl destroy web`"),
        "{text}"
    );
    assert_eq!(status, Some(1));
    assert_eq!(world.store["/local/domain/10/control/shutdown"], "");
    assert!(world.watches.is_empty());
    assert_eq!(world.toolstack.next_deadline(), None);
}

#[test]
fn a_request_that_the_store_refuses_fails() {
    let mut world = two();
    world.store_refuses = Some("control/shutdown");
    let (text, status) = world.command("xl shutdown web");
    assert!(text.contains("xenstore says ENOSPC"), "{text}");
    assert_eq!(status, Some(1));
}

#[test]
fn reboot_makes_a_new_domain() {
    let mut world = two();
    let (text, status) = world.command("xl reboot -w web");
    assert_eq!(text, "Rebooting domain 10\nDomain 10 has been shut down to be restarted\n");
    assert_eq!(status, Some(0));
    assert_eq!(world.domains, [(11, "db".into()), (12, "web".into())].into());
}

#[test]
fn pause_and_unpause() {
    let mut world = two();
    assert_eq!(world.command("xl pause web"), (String::new(), Some(0)));
    assert!(world.command("xl list web").0.contains("--p---"));
    assert!(world.command("xl shutdown web").0.contains("xl unpause web"));
    assert_eq!(world.command("xl unpause 10"), (String::new(), Some(0)));
    assert_eq!(world.told[2..], [(10, GuestRequest::Pause), (10, GuestRequest::Unpause)]);
}

#[test]
fn destroy_and_create() {
    let mut world = two();
    assert_eq!(world.command("xl destroy 10"), (String::new(), Some(0)));
    assert_eq!(world.names(), ["db"]);
    assert!(world.command("xl destroy web").0.contains("does not run"));
    assert!(world.command("xl destroy console").0.contains("invalid domain identifier"));
    assert_eq!(world.command("xl create web.cfg"), (String::new(), Some(0)));
    assert_eq!(world.domains, [(11, "db".into()), (12, "web".into())].into());
    let (text, status) = world.command("xl create web");
    assert!(text.contains("a guest of this name exists already (domain 12)"), "{text}");
    assert_eq!(status, Some(1));
    assert!(world.command("xl create wbe").0.contains("did you mean `web`"));
    world.command("xl destroy web");
    world.refusal = Some("no memory");
    assert_eq!(
        world.command("xl create web"),
        ("guest `web` cannot be started: no memory\n".into(), Some(1))
    );
    world.refusal = None;
    let id = world.type_line("xl create -c web");
    assert!(world.operator.contains(&OperatorResponse::Attach { id, domid: 13 }));
}

#[test]
fn a_disk_is_not_shared_by_writers() {
    let configs = |access: &str| {
        vec![
            config("web", "disk=['d,,xvda,r']", true),
            config("db", &format!("disk=['d,,xvdb,{access}']"), true),
        ]
    };
    let world = World::new(configs("w"));
    assert!(world.has_notice("its disk `vol0` is in use by guest `web`"), "{:?}", world.notices());
    assert_eq!(world.guests_started(), Some((10, 1)));
    assert_eq!(World::new(configs("r")).guests_started(), Some((10, 0)));
    // Volumes in memory are each guest's own, also when they are called alike.
    let memory = |name| config(name, "disk=['ram:8M,xvda,w']", true);
    assert_eq!(World::new(vec![memory("web"), memory("db")]).guests_started(), Some((10, 0)));
    let twins = vec![config("web", "", true), config("web", "", true)];
    assert_eq!(World::new(twins).guests_started(), Some((10, 1)));
}

#[test]
fn a_guest_can_be_destroyed_in_every_phase_of_its_start() {
    for steps in 0..200 {
        let mut world = World::idle(vec![config("web", "disk=['d,,xvda']", true)]);
        let mut was_busy = true;
        for _ in 0..steps {
            was_busy = world.step();
        }
        world.next_id += 1;
        let line = Text::truncated("xl destroy web");
        world.toolstack.operator_message(&OperatorRequest { id: world.next_id, order: Order::Run(line) });
        world.run();
        let (text, status) = world.result(world.next_id);
        // Before the list of domains arrived there is no guest yet; the command says so.
        if status == Some(0) {
            assert!(world.domains.is_empty(), "{steps}");
            world.assert_no_traces();
        } else {
            assert!(text.contains("does not run"), "{steps}: {text}");
        }
        assert!(world.guests_started().is_some(), "{steps}");
        if !was_busy {
            return;
        }
    }
    panic!("the start takes more than 200 steps");
}

#[test]
fn quit_shuts_guests_down_and_ends_the_machine() {
    let mut world = World::new(vec![config("web", "on_poweroff='restart'", true), config("db", "", true)]);
    let (text, status) = world.command("quit 3");
    assert!(text.contains("Shutting down guest web (domain 10)\n"), "{text}");
    assert_eq!((status, world.domains.len(), world.power_off), (Some(0), 0, None));
    world.assert_no_traces();
    assert!(world.command("xl create web").0.contains("being shut down"));
    world.advance(GRACE_NS);
    assert_eq!(world.power_off, Some(3));
}

#[test]
fn quit_destroys_guests_that_do_not_answer() {
    let mut world = two();
    world.obedient = false;
    world.command("xl pause db");
    let id = world.type_line("quit");
    assert_eq!(world.names(), ["web"], "a paused guest cannot shut down");
    assert_eq!(world.command("quit").1, Some(1));
    world.advance(QUIT_NS - 1);
    assert_eq!(world.result(id).1, None);
    world.advance(1);
    assert!(world.result(id).0.contains("`web` did not shut down in time"));
    assert_eq!((world.result(id).1, world.domains.len()), (Some(0), 0));
    world.advance(GRACE_NS);
    assert_eq!(world.power_off, Some(0));
}

#[test]
fn quit_ends_even_if_the_builder_does_not_answer() {
    let mut world = two();
    world.obedient = false;
    let id = world.type_line("quit");
    world.now += QUIT_NS;
    world.toolstack.tick(world.now);
    world.toolstack.builder_out().clear();
    world.advance(QUIT_DESTROY_NS);
    assert_eq!(world.result(id).1, Some(0));
    world.advance(GRACE_NS);
    assert_eq!(world.power_off, Some(0));
}

#[test]
fn quit_now_does_not_wait() {
    let mut world = two();
    world.obedient = false;
    let waiting = world.type_line("xl shutdown -w web");
    assert_eq!(world.command("quit --now").1, Some(0));
    assert_eq!(world.result(waiting).1, Some(1));
    world.advance(GRACE_NS);
    assert_eq!((world.power_off, world.domains.len()), (Some(0), 2));
}

#[test]
fn mistakes_have_a_status() {
    let mut world = two();
    assert_eq!(world.command("xl lsit").1, Some(1));
    assert_eq!(world.command("").1, Some(0));
    let (text, status) = world.command("help");
    assert!(text.len() > 500 && text.contains("unpause"), "more than one message long");
    assert_eq!(status, Some(0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is typed and however guests end: every command answers once, the system comes to rest, and
    /// after `quit` nothing is left.
    #[test]
    fn any_history_comes_to_rest(steps in proptest::collection::vec((0u8..12, 0u32..6, 0u64..20), 0..40)) {
        let mut world = World::new(vec![
            config("web", "on_crash='restart'", true),
            config("db", "on_crash='preserve'\non_poweroff='restart'", true),
            config("spare", "", false),
        ]);
        let mut commands = Vec::new();
        for (what, which, seconds) in steps {
            let name = ["web", "db", "spare", "10", "12", "nobody"][which as usize];
            let line = match what {
                0 => format!("xl destroy {name}"),
                1 => format!("xl create {name}"),
                2 => format!("xl shutdown -w {name}"),
                3 => format!("xl reboot {name}"),
                4 => format!("xl pause {name}"),
                5 => format!("xl unpause {name}"),
                6 => "xl list -l".into(),
                7 => { world.obedient = !world.obedient; world.run(); continue }
                8 => { world.end(10 + which, EndReason::Crash); world.run(); continue }
                9 => { world.end(10 + which, EndReason::PowerOff); world.run(); continue }
                10 => {
                    if world.domains.contains_key(&(10 + which)) {
                        let died = builder::Response::Died { domid: 10 + which, reason: Text::new() };
                        world.toolstack.builder_message(died);
                        world.run();
                    }
                    continue
                }
                _ => { world.advance(seconds * SECOND); continue }
            };
            commands.push(world.type_line(&line));
        }
        commands.push(world.type_line("quit"));
        world.advance(ACKNOWLEDGE_NS);
        world.advance(GRACE_NS);
        for id in commands {
            prop_assert!(world.result(id).1.is_some(), "command {} has not ended", id);
        }
        prop_assert_eq!(world.power_off, Some(0));
        prop_assert!(world.domains.is_empty());
        prop_assert!(world.store.is_empty(), "{:?}", world.store);
    }
}

#[test]
fn counters_of_all_domains_or_of_one() {
    let mut world = two();
    world.advance(3 * SECOND);
    let (text, status) = world.command("xl counters web");
    assert_eq!(status, Some(0));
    let row = |name: &str| text.lines().find(|line| line.contains(name)).map(String::from);
    assert_eq!(text.lines().count(), 1 + (0..512).filter_map(proto::counters::Name::of).count());
    assert!(row("exit_cpuid").is_some_and(|row| row.starts_with("web ") && row.ends_with(" 3")), "{text}");
    let (json, _) = world.command("xl counters -l");
    assert!(
        json.starts_with("[\n    {\"domid\": 1, \"name\": \"init\", \"is_guest\": false, \"thread\": 10, ")
    );
    assert!(json.contains("\"kernel\": {\"cpu_time_ns\": 0, \"dispatches\": 0, "), "{json}");
    assert!(json.contains("\"counters\": {\"signals_sent\": 3, ") && json.ends_with("}}\n]\n"), "{json}");
    let missing = ("Error: Domain 'nobody' does not exist.\n".into(), Some(1));
    assert_eq!(world.command("xl counters nobody"), missing);
}

#[test]
fn top_prints_the_rates_between_samples_and_ends_by_itself() {
    let mut world = two();
    let id = world.type_line("xl top -b -d 2 -i 2");
    assert_eq!(world.result(id), (String::new(), None));
    assert_eq!(world.toolstack.next_deadline(), Some(2 * SECOND));
    world.advance(2 * SECOND);
    let (text, status) = world.result(id);
    // Every counter of every domain grew by 2 in 2 s.
    assert!(
        text.contains(
            "web              10     0.0      0.0   65537       0       0       1       1       2\n"
        )
    );
    assert!(text.contains(" cpuid 1 hlt 1 ioio 1\n"), "{text}");
    assert_eq!(status, None);
    world.advance(2 * SECOND);
    let (text, status) = world.result(id);
    assert_eq!((text.matches("xl top: 4 domains").count(), status), (2, Some(0)));
    assert_eq!(world.toolstack.next_deadline(), None);
    assert!(!world.operator.iter().any(|answer| matches!(answer, OperatorResponse::Page { .. })));
}

#[test]
fn top_shows_pages_until_a_key_ends_it_whatever_it_waits_for() {
    let mut world = two();
    let pages = |world: &World| {
        world.operator.iter().filter(|answer| matches!(answer, OperatorResponse::Page { .. })).count()
    };
    let id = world.type_line("xl top");
    world.advance(SECOND);
    // A domain that comes and one that goes are no trouble.
    world.command("xl destroy db");
    world.advance(SECOND);
    assert_eq!((pages(&world), world.result(id).1), (2, None));
    world.toolstack.operator_message(&OperatorRequest { id, order: Order::Stop });
    world.run();
    assert_eq!(world.result(id).1, Some(0));
    world.advance(10 * SECOND);
    assert_eq!(pages(&world), 2);
    // Ended while the builder was being asked.
    world.next_id += 1;
    let id = world.next_id;
    let line = Text::truncated("xl top");
    world.toolstack.operator_message(&OperatorRequest { id, order: Order::Run(line) });
    world.step();
    for id in [id, id, 77] {
        world.toolstack.operator_message(&OperatorRequest { id, order: Order::Stop });
    }
    world.run();
    assert_eq!(world.result(id), (String::new(), Some(0)));
    assert_eq!(world.toolstack.next_deadline(), None);
    // A command that does something is not ended by it.
    world.obedient = false;
    let id = world.type_line("xl shutdown -w web");
    world.toolstack.operator_message(&OperatorRequest { id, order: Order::Stop });
    world.run();
    assert_eq!(world.result(id).1, None);
}

#[test]
fn a_trace_is_started_stopped_and_dumped_with_names_and_what_was_lost() {
    let mut world = two();
    assert_eq!(world.command("xl trace dump"), ("there is no trace\n".into(), Some(1)));
    let (text, status) = world.command("xl trace start 1000");
    let started = "trace running: 0 records written, 0 overwritten, room for 1000\n";
    assert_eq!((text.as_str(), status), (started, Some(0)));
    world.trace.written = 1250;
    assert!(
        world.command("xl trace stop").0.starts_with("trace stopped: 1250 records written, 250 overwritten")
    );
    let (text, status) = world.command("xl trace dump");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((lines[0], status), ("# tsc_khz 1000000", Some(0)));
    assert_eq!(lines[1..3], ["# thread 10 domain 1 service init", "# thread 20 domain 2 service console"]);
    assert_eq!(lines[3], "# thread 100 domain 10 guest web");
    assert_eq!((lines[5], lines[1004]), ("250 signal 0 10 14 64", "1249 signal 0 10 14 64"));
    assert_eq!(lines[1005..], ["# end: 1000 records, 250 overwritten"]);
    assert_eq!(world.command("xl trace free").1, Some(0));
    // One that runs is printed up to where it was when the dump began.
    world.command("xl trace start 100");
    world.trace.written = 90;
    let (text, status) = world.command("xl trace dump");
    assert!(text.ends_with("\n89 signal 0 10 14 64\n# end: 90 records, 0 overwritten\n"), "{text}");
    assert_eq!(status, Some(0));
}

#[test]
fn a_dump_goes_no_faster_than_the_console_and_can_be_given_up() {
    let mut world = two();
    world.command("xl trace start 1000000");
    world.command("xl trace stop");
    world.trace.written = 100_000;
    world.next_id += 1;
    let id = world.next_id;
    let line = Text::truncated("xl trace dump");
    world.toolstack.operator_message(&OperatorRequest { id, order: Order::Run(line) });
    // The console takes nothing.
    while let Some(request) = world.toolstack.builder_out().pop_front() {
        world.build(request);
    }
    let waiting = world.toolstack.operator_out().len();
    assert!((32..64).contains(&waiting), "{waiting}");
    assert_eq!(world.toolstack.next_deadline(), None);
    world.toolstack.operator_out().clear();
    // It has room again: nobody has to say so.
    assert_eq!(world.toolstack.next_deadline(), Some(world.now));
    world.toolstack.operator_message(&OperatorRequest { id, order: Order::Stop });
    world.run();
    assert_eq!(world.result(id).1, Some(0));
    assert_eq!(world.toolstack.next_deadline(), None);
}
