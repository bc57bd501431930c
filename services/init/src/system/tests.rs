//! The whole of init against the model kernel: a boot, guests, refusals, deaths, and a failure at every
//! single step of building a guest.

use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;

use proto::abi::ThreadState;
use proto::boot::{DomainInfo, INFO_BASE};
use proto::builder::{DiskSpec, GuestSpec, Request, Response, VifSpec};
use proto::channel::{ChannelKind, Side};
use proto::counters::COUNTERS_BASE;
use proto::guest::RAM_BASE;
use proto::supervise::{Request as Ask, Response as Say};

use super::*;
use crate::bundle::tests::image;
use crate::domain::ServiceState;
use crate::fake::{FakeKernel, list, manifest, spec};
use crate::loader::tests::good;
use crate::pci::tests::{FakeConfig, machine};

type TestSystem = System<FakeKernel, FakeConfig>;

/// Frames of RAM, and where the bundle is.
const RAM: (u64, u64) = (0x1000, 0x4000);
const BUNDLE: u64 = 0x8000;

fn boot() -> TestSystem {
    boot_with(&manifest())
}

fn boot_with(manifest: &Manifest) -> TestSystem {
    let mut kernel = FakeKernel::new();
    kernel.give_init();
    kernel.give_memory(RAM.0, RAM.1);
    let (program, manifest) = (good(), postcard::to_allocvec(manifest).unwrap());
    let mut bzimage = vec![0; 0x300];
    bzimage[0x202..0x206].copy_from_slice(b"HdrS");
    let files: [(&str, &[u8]); 5] = [
        ("manifest", &manifest),
        ("services/any", &program),
        ("kernel", &[1; 9000]),
        ("bzimage", &bzimage),
        ("guests", &[2; 10]),
    ];
    let bundle = image(&files);
    let frames = bundle.len() as u64 / 4096;
    let runs = [
        BootRun { first: RAM.0, count: RAM.1, kind: run_kind::RAM },
        BootRun { first: BUNDLE, count: frames, kind: run_kind::BUNDLE },
        BootRun { first: 0xf_0000, count: 0x1_0000, kind: run_kind::DEVICE },
        BootRun { first: 0x80_0000, count: 0x100_0000, kind: run_kind::DEVICE },
    ];
    for (slot, run) in (init_slots::FIRST_FRAMES..).zip(&runs) {
        kernel.give_run(slot, run.first, run.count, run.kind == run_kind::DEVICE);
    }
    let start = Start { runs: &runs, bundle, tsc_khz: 1_000_000, boot_tsc: 0, kernel_frames: 100 };
    let mut system = System::new(kernel, machine(), &start).unwrap();
    system.build_services().unwrap();
    system
}

fn ready() -> TestSystem {
    let mut system = boot();
    for domid in 1..=5 {
        system.on_supervise(domid, Say::Ready);
    }
    system.outputs.clear();
    system
}

fn state(system: &TestSystem, domid: u32) -> ServiceState {
    match system.domains[&domid].kind {
        Kind::Service(_, state) => state,
        _ => panic!("no service"),
    }
}

fn rich(name: &str) -> GuestSpec {
    let disk = |device, volume| DiskSpec {
        device,
        volume: Text::truncated(volume),
        memory: 0,
        is_read_only: device > 51712,
    };
    GuestSpec {
        disks: list([disk(51712, "vol0"), disk(51728, "vol1")]),
        vifs: list([VifSpec { index: 0, mac: [2, 0, 0, 0, 0, 9], bridge: Text::truncated("xenbr0") }]),
        ..spec(name, 4 << 10)
    }
}

/// Channels that domains were asked to attach or to let go of: domain, channel.
fn asked(system: &mut TestSystem, is_attach: bool) -> Vec<(u32, u32)> {
    let mut asked = Vec::new();
    system.outputs.retain(|output| match output {
        Output::Supervise(to, Ask::Attach(info)) if is_attach => {
            asked.push((*to, info.id));
            false
        }
        Output::Supervise(to, Ask::Detach { id }) if !is_attach => {
            asked.push((*to, *id));
            false
        }
        _ => true,
    });
    asked
}

fn answers(system: &mut TestSystem) -> Vec<Response> {
    let outputs = core::mem::take(&mut system.outputs);
    outputs.into_iter().filter_map(|o| if let Output::Builder(r) = o { Some(r) } else { None }).collect()
}

fn built(system: &mut TestSystem, spec: GuestSpec) -> u32 {
    system.on_builder(Request::Build(spec));
    for (peer, id) in asked(system, true) {
        system.on_supervise(peer, Say::Attached { id });
    }
    match answers(system).as_slice() {
        [Response::Built { domid }] => *domid,
        other => panic!("{other:?}"),
    }
}

fn destroyed(system: &mut TestSystem, domid: u32) {
    system.on_builder(Request::Destroy { domid });
    for (peer, id) in asked(system, false) {
        system.on_supervise(peer, Say::Detached { id });
    }
    assert_eq!(answers(system), [Response::Destroyed { domid }]);
}

/// What must be the same after a guest came and went: capabilities of all tables. Memory differs by page
/// tables that a service keeps for the addresses of its channels.
fn holdings(system: &TestSystem) -> (usize, usize, u64) {
    let services: u64 = system.domains.values().map(Domain::frames).sum();
    let donated: u64 = system.resources.own.donated.iter().map(|run| run.count).sum();
    let tables: usize = system.domains.values().map(|domain| domain.space.donated.len()).sum();
    let caps = system.resources.kernel.caps() - tables - system.resources.own.donated.len();
    (caps, system.channels.len(), system.resources.free.free() + services + donated)
}

#[test]
fn services_start_in_the_order_of_the_manifest_and_in_parallel_where_they_can() {
    use ServiceState::{Built, Ready, Started};
    let mut system = boot();
    let states = |s: &TestSystem| (1..=5).map(|domid| state(s, domid)).collect::<Vec<_>>();
    assert_eq!(states(&system), [Started, Built, Started, Started, Built]);
    system.on_supervise(1, Say::Ready);
    assert_eq!(states(&system), [Ready, Started, Started, Started, Built]);
    for domid in [3, 4] {
        system.on_supervise(domid, Say::Ready);
    }
    assert_eq!(state(&system, 5), Built);
    system.on_supervise(2, Say::Ready);
    assert_eq!(state(&system, 5), Started);
    assert_eq!(system.system_frames, 0);
    system.on_supervise(5, Say::Ready);
    assert!(system.system_frames > 100);
}

#[test]
fn a_service_has_what_the_manifest_names_and_nothing_else() {
    let system = boot();
    let info: &DomainInfo = &system.infos[2];
    let kinds: Vec<_> = info.channels.iter().map(|c| (c.kind, c.side)).collect();
    assert_eq!(kinds, [(ChannelKind::Supervise, Side::B), (ChannelKind::Log, Side::A)]);
    let kernel = &system.resources.kernel;
    // Its own event and one signal capability per channel.
    let number = kernel.object(system.domains[&3].space.slot).unwrap();
    assert_eq!(kernel.table(number).len(), 3);
    let device = &info.devices[0];
    assert_eq!((info.devices.len(), device.vectors.len()), (1, 2));
    assert_eq!(
        device.bars.iter().map(|bar| (bar.index, bar.addr != 0)).collect::<Vec<_>>(),
        [(1, false), (4, true)]
    );
    let table_frame = 0xfebd_1000 >> 12;
    assert!(
        kernel
            .mappings(number)
            .iter()
            .all(|(_, first, count)| !(*first..first + count).contains(&table_frame))
    );
    // The kernel's first two MSI lines, and vectors 64 and 65 to their address.
    assert_eq!(kernel.lines, [4, 24, 25]);
    let values: Vec<_> = kernel.registers.iter().map(|(_, value)| *value).collect();
    assert_eq!(values, [0xfee0_0000, 0, 64, 0, 0xfee0_0000, 0, 65, 0, 1]);
    // The console has its line and no log channel to itself.
    let console = &system.infos[0];
    assert_eq!((console.lines[0].line, console.ports[0]), (4, (0x3f8, 8)));
    assert!(console.channels.iter().all(|c| c.kind != ChannelKind::Log || c.side == Side::B));
    // The toolstack's file is there, read-only content of the bundle.
    assert_eq!(system.infos[4].file.len, 10);
}

#[test]
fn a_service_can_be_a_station_on_the_bridge() {
    let mac = [2, 0, 0, 0, 0x77, 1];
    let (kind, target) = (ChannelKind::Net, Text::truncated("xenbr0"));
    let (client, server) = (Text::truncated("toolstack"), Text::truncated("netback"));
    let mut manifest = manifest();
    manifest.channels.push(proto::manifest::Wire { kind, client, server, target, mac }).unwrap();
    let system = boot_with(&manifest);
    let end = |index: usize| system.infos[index].channels.iter().find(|c| c.kind == kind).unwrap();
    let (server, client) = (end(3), end(4));
    assert_eq!((client.side, server.side), (Side::A, Side::B));
    assert_eq!((client.mac, server.mac, &*server.target), (mac, mac, "xenbr0"));
    assert_eq!((client.pool.len, server.pool.len), (proto::net::POOL_SIZE, proto::net::POOL_SIZE));
    // Only who drives the device learns where the pool is.
    assert!(client.pool_phys == 0 && server.pool_phys != 0);
}

#[test]
fn a_guest_is_built_started_and_taken_back_without_a_trace() {
    let mut system = ready();
    let first = built(&mut system, rich("warm-up"));
    destroyed(&mut system, first);
    let before = holdings(&system);
    let domid = built(&mut system, rich("web"));
    assert_ne!(domid, first);
    let thread = system.resources.kernel.object(system.domains[&domid].thread).unwrap();
    assert_eq!(system.resources.kernel.threads[&thread], ThreadState::Waiting);
    let number = system.resources.kernel.object(system.domains[&domid].space.slot).unwrap();
    let mapped = system.resources.kernel.mappings(number);
    assert!(mapped.iter().any(|(at, first, count)| *at == RAM_BASE && *count == 1024 && first % 512 == 0));
    assert!(mapped.iter().any(|(at, ..)| *at == INFO_BASE));
    destroyed(&mut system, domid);
    assert_eq!(holdings(&system), before);
    assert!(!system.domains.contains_key(&domid));
}

#[test]
fn a_vmm_is_told_where_everything_is() {
    let mut system = ready();
    system.on_builder(Request::Build(rich("web")));
    let Some(Operation::Build { info, domid, waiting, .. }) = &system.operation else {
        panic!("no operation")
    };
    let guest = info.guest.as_ref().unwrap();
    assert_eq!(
        (guest.domid, guest.ram.len(), guest.ram[0].len, guest.kernel.len),
        (*domid, 1, 4 << 20, 9000)
    );
    assert_eq!(info.channels.len(), 8);
    assert_eq!(waiting.len(), 7);
    for disk in guest.disks.iter() {
        let channel = info.channels.iter().find(|c| c.id == disk.channel).unwrap();
        assert_eq!((channel.kind, channel.pool.len), (ChannelKind::Blk, proto::blk::POOL_SIZE));
        assert_eq!(
            (channel.pool_phys, &*channel.target),
            (0, if disk.device == 51712 { "vol0" } else { "vol1" })
        );
    }
    let slots = [guest.special_slot, guest.vm, guest.ram[0].slot, guest.vcpus[0].slot];
    let table = system
        .resources
        .kernel
        .table(system.resources.kernel.object(system.domains[domid].space.slot).unwrap());
    assert!(slots.iter().all(|slot| table.contains(slot) && *slot < proto::guest::FREE_SLOTS));
    // The backend learns where the pool is, for DMA.
    let pools: Vec<u64> = system
        .outputs
        .iter()
        .filter_map(|output| match output {
            Output::Supervise(3, Ask::Attach(info)) => Some(info.pool_phys),
            _ => None,
        })
        .collect();
    assert!(pools.len() == 2 && pools.iter().all(|phys| *phys >= RAM.0 << 12));
}

/// Memory that was zeroed ahead is not zeroed again; what a guest had is, before the next one gets it (the fake
/// kernel fills what a domain had with dirt, and panics when that is handed on).
#[test]
fn memory_is_zeroed_once_for_each_guest_that_gets_it() {
    let mut system = ready();
    system.zero_ahead();
    let ahead = system.resources.kernel.zeroed;
    assert!(ahead >= 8 << 20);
    system.zero_ahead();
    assert_eq!(system.resources.kernel.zeroed, ahead);
    let domid = built(&mut system, spec("web", 8 << 10));
    let own = system.resources.kernel.zeroed - ahead;
    assert!(own < 8 << 20, "{own} bytes more");
    destroyed(&mut system, domid);
    let before = system.resources.kernel.zeroed;
    let domid = built(&mut system, spec("web", 8 << 10));
    assert!(system.resources.kernel.zeroed - before >= 8 << 20);
    destroyed(&mut system, domid);
    // Init sleeps while a peer is waited for: what is due stays so.
    system.on_builder(Request::Build(spec("other", 4 << 10)));
    system.zero_ahead();
    assert!(system.operation.is_some() && system.is_zeroing_due);
    for (peer, id) in asked(&mut system, true) {
        system.on_supervise(peer, Say::Attached { id });
    }
    answers(&mut system);
    system.zero_ahead();
    let before = system.resources.kernel.zeroed;
    built(&mut system, spec("web", 8 << 10));
    assert_eq!(system.resources.kernel.zeroed - before, own);
}

#[test]
fn a_volume_in_memory_is_the_clients_alone_and_ends_with_it() {
    let mut system = ready();
    let volume =
        |device, memory| DiskSpec { device, volume: Text::truncated("ram:2M"), memory, is_read_only: false };
    let wanted = |memory| GuestSpec {
        disks: list([volume(51712, memory), volume(51728, 4096)]),
        ..spec("web", 4 << 10)
    };
    let first = built(&mut system, wanted(2 << 20));
    destroyed(&mut system, first);
    let before = holdings(&system);
    let refused = |system: &mut TestSystem, spec: GuestSpec| {
        system.on_builder(Request::Build(spec));
        let Some(Response::Refused { reason }) = answers(system).pop() else { panic!("not refused") };
        alloc::string::String::from(reason.as_str())
    };
    let free = system.resources.free.free() * 4096;
    assert!(refused(&mut system, wanted(free & !4095)).contains("disks in memory: only"));
    assert!(refused(&mut system, wanted(!4095)).contains("disks in memory: only"));
    assert!(refused(&mut system, wanted(4097)).contains("multiple of 4 KiB"));
    assert_eq!(holdings(&system), before);

    system.on_builder(Request::Build(wanted(2 << 20)));
    let Some(Operation::Build { info, domid, .. }) = &system.operation else { panic!("no operation") };
    let domid = *domid;
    let sizes: Vec<_> =
        info.channels.iter().filter(|c| c.kind == ChannelKind::Blk).map(|c| (c.pool.len, c.memory)).collect();
    assert_eq!(sizes, [(2 << 20, 2 << 20), (4096, 4096)]);
    let large = info.channels.iter().find(|c| c.memory == 2 << 20).unwrap().pool.addr;
    let number = system.resources.kernel.object(system.domains[&domid].space.slot).unwrap();
    let mapped = system.resources.kernel.mappings(number);
    let is_large = |(at, first, count): &(u64, u64, u64)| *at == large && *count == 512 && first % 512 == 0;
    assert!(mapped.iter().any(is_large), "one large page maps it");
    let theirs: Vec<_> = system
        .outputs
        .iter()
        .filter_map(|output| match output {
            Output::Supervise(3, Ask::Attach(info)) => Some((info.pool.len, info.pool_phys, info.memory)),
            _ => None,
        })
        .collect();
    assert_eq!(theirs, [(0, 0, 2 << 20), (0, 0, 4096)], "the backend learns the size and nothing else");
    for (peer, id) in asked(&mut system, true) {
        system.on_supervise(peer, Say::Attached { id });
    }
    assert_eq!(answers(&mut system), [Response::Built { domid }]);
    let index = system.domains.keys().position(|id| *id == domid).unwrap() as u32;
    let Response::Domain { stat, .. } = system.domain_stat(index) else { panic!("no domain") };
    assert_eq!(stat.memory_kib, (4 << 10) + (2 << 10) + 4);
    assert!(stat.overhead_kib < 2 << 10);
    destroyed(&mut system, domid);
    assert_eq!(holdings(&system), before);
}

#[test]
fn a_compressed_kernel_gets_more_heap() {
    let mut system = ready();
    let heap = |system: &mut TestSystem, kernel| {
        let spec = GuestSpec { kernel: Text::truncated(kernel), ..spec(kernel, 4096) };
        system.on_builder(Request::Build(spec));
        let Some(Operation::Build { info, .. }) = &system.operation else { panic!("no operation") };
        let len = info.heap.len;
        for (peer, id) in asked(system, true) {
            system.on_supervise(peer, Say::Attached { id });
        }
        len
    };
    // A page of it is for a bit per page of the guest.
    assert_eq!(heap(&mut system, "kernel"), (64 + 4) << 10);
    assert_eq!(heap(&mut system, "bzimage"), (64 + 4 + 128) << 10);
}

#[test]
fn a_failure_at_any_step_leaves_everything_as_it_was() {
    let mut system = ready();
    let first = built(&mut system, rich("warm-up"));
    destroyed(&mut system, first);
    let before = holdings(&system);
    let mut steps = 0;
    loop {
        system.resources.kernel.calls_left = Some(steps);
        system.on_builder(Request::Build(rich("web")));
        for (peer, id) in asked(&mut system, true) {
            system.on_supervise(peer, Say::Attached { id });
        }
        if system.resources.kernel.calls_left.take().is_some() {
            break;
        }
        for (peer, id) in asked(&mut system, false) {
            system.on_supervise(peer, Say::Detached { id });
        }
        match answers(&mut system).as_slice() {
            [Response::Refused { reason }] => assert!(reason.contains("kernel refused"), "{reason}"),
            other => panic!("step {steps}: {other:?}"),
        }
        assert_eq!(holdings(&system), before, "step {steps}");
        steps += 1;
    }
    assert!(steps > 100, "{steps}");
}

#[test]
fn memory_that_is_not_there_is_refused_and_costs_nothing() {
    let mut system = ready();
    let before = holdings(&system);
    system.on_builder(Request::Build(spec("big", 1 << 20)));
    let [Response::Refused { reason }] = &answers(&mut system)[..] else { panic!("not refused") };
    assert!(reason.contains("MiB are free"), "{reason}");
    assert_eq!(holdings(&system), before);
}

#[test]
fn a_peer_that_refuses_ends_the_building_with_its_reason() {
    let mut system = ready();
    system.on_builder(Request::Build(rich("web")));
    let attach = asked(&mut system, true);
    let &(blkback, id) = attach.iter().find(|(peer, _)| *peer == 3).unwrap();
    // Others cannot refuse in its name.
    system.on_supervise(2, Say::Refused { id, reason: Text::truncated("mine") });
    assert!(matches!(system.operation, Some(Operation::Build { .. })));
    system.on_supervise(blkback, Say::Refused { id, reason: Text::truncated("there is no volume vol0") });
    let detach = asked(&mut system, false);
    assert!(detach.len() == attach.len() - 1 && !detach.contains(&(blkback, id)));
    for (peer, id) in detach {
        system.on_supervise(peer, Say::Detached { id });
    }
    let [Response::Refused { reason }] = &answers(&mut system)[..] else { panic!("not refused") };
    assert_eq!(&**reason, "blkback: there is no volume vol0");
    assert_eq!(system.domains.len(), 6);
}

#[test]
fn a_peer_that_is_silent_holds_nobody_up() {
    let mut system = ready();
    system.on_builder(Request::Build(rich("web")));
    let deadline = system.deadline().unwrap();
    system.on_time(deadline - 1);
    assert!(matches!(system.operation, Some(Operation::Build { .. })));
    system.on_time(deadline);
    assert!(matches!(system.operation, Some(Operation::Destroy { .. })));
    system.on_time(system.deadline().unwrap());
    let [Response::Refused { reason }] = &answers(&mut system)[..] else { panic!("not refused") };
    assert!(reason.contains("does not answer"), "{reason}");
    assert_eq!((system.domains.len(), system.operation.is_none()), (6, true));
}

#[test]
fn a_vmm_that_faults_is_reported_and_its_peers_let_go() {
    let mut system = ready();
    let domid = built(&mut system, rich("web"));
    let other = built(&mut system, spec("db", 4096));
    let thread = system.resources.kernel.object(system.domains[&domid].thread).unwrap();
    system.resources.kernel.threads.insert(thread, ThreadState::Faulted);
    system.on_fault();
    system.on_fault();
    let detach = asked(&mut system, false);
    assert_eq!(detach.len(), 7);
    let [Response::Died { domid: died, reason }] = &answers(&mut system)[..] else { panic!("not told once") };
    assert!(*died == domid && reason.contains("page fault"), "{reason}");
    let Response::Domain { stat, .. } = system.domain_stat(6) else { panic!("no such domain") };
    assert_eq!((stat.domid, stat.state), (domid, proto::builder::DomainState::Crashed));
    for (peer, id) in detach {
        system.on_supervise(peer, Say::Detached { id });
    }
    destroyed(&mut system, domid);
    assert!(system.domains.contains_key(&other));
}

#[test]
fn a_vmm_that_gives_up_while_it_is_built_is_a_refusal() {
    let mut system = ready();
    system.on_builder(Request::Build(rich("web")));
    let Some(Operation::Build { domid, .. }) = system.operation else { panic!("no operation") };
    system.on_supervise(domid, Say::Failed { reason: Text::truncated("no") });
    system.on_time(u64::MAX);
    assert!(matches!(&answers(&mut system)[..], [Response::Refused { reason }] if reason.contains("no")));
}

#[test]
fn a_service_that_is_dead_serves_no_new_guest() {
    let mut system = ready();
    system.on_supervise(4, Say::Failed { reason: Text::truncated("no network card") });
    assert_eq!(state(&system, 4), ServiceState::Dead);
    system.on_builder(Request::Build(rich("web")));
    let [Response::Refused { reason }] = &answers(&mut system)[..] else { panic!("not refused") };
    assert!(reason.to_string().contains("Net"), "{reason}");
    built(&mut system, spec("without-network", 4096));
}

#[test]
fn answers_that_nobody_asked_for_change_nothing() {
    let mut system = ready();
    let domid = built(&mut system, rich("web"));
    let (channels, id) = (system.channels.len(), system.domains[&domid].channels[3]);
    for from in 0..9 {
        for id in [0, id, 9999] {
            system.on_supervise(from, Say::Attached { id });
            system.on_supervise(from, Say::Detached { id });
            system.on_supervise(from, Say::Refused { id, reason: Text::new() });
            system.on_supervise(from, Say::Pong { nonce: id });
        }
        system.on_supervise(from, Say::Ready);
    }
    assert_eq!((system.channels.len(), system.outputs.len()), (channels, 0));
}

#[test]
fn only_guests_can_be_destroyed() {
    let mut system = ready();
    for domid in [0, 1, 5, 6, u32::MAX] {
        system.on_builder(Request::Destroy { domid });
        assert!(matches!(&answers(&mut system)[..], [Response::Refused { .. }]), "{domid}");
    }
}

#[test]
fn the_list_of_domains_ends() {
    let mut system = ready();
    let domid = built(&mut system, spec("web", 4096));
    let mut names = Vec::new();
    while let Response::Domain { stat, .. } = system.domain_stat(names.len() as u32) {
        assert_eq!(stat.is_guest, stat.domid == domid);
        if stat.is_guest {
            assert_eq!((stat.memory_kib, stat.time_us), (4096, 5_000));
            assert!(stat.overhead_kib > 0);
        }
        names.push(stat.name);
    }
    let names: Vec<&str> = names.iter().map(|name| &**name).collect();
    assert_eq!(names, ["init", "console", "xenstore", "blkback", "netback", "toolstack", "web"]);
    let machine = system.machine_stat();
    assert_eq!(machine.system_kib, system.system_frames * 4);
    assert!(machine.free_kib > 0);
}

#[test]
fn many_guests_fit_and_init_runs_out_with_a_sentence() {
    let mut system = ready();
    let free = system.resources.free.free();
    let mut guests = Vec::new();
    let reason = loop {
        system.on_builder(Request::Build(spec(&alloc::format!("g{}", guests.len()), 4096)));
        for (peer, id) in asked(&mut system, true) {
            system.on_supervise(peer, Say::Attached { id });
        }
        match answers(&mut system).pop().unwrap() {
            Response::Built { domid } => guests.push(domid),
            Response::Refused { reason } => break reason,
            other => panic!("{other:?}"),
        }
    };
    assert!(guests.len() >= 8, "{}: {reason}", guests.len());
    for domid in guests {
        destroyed(&mut system, domid);
    }
    // What is not free again are page tables for channels, in the services that keep them.
    assert!(free - system.resources.free.free() < 64);
}

#[test]
fn a_domains_counters_are_read_from_its_own_page_and_nobody_elses() {
    let mut system = ready();
    let domid = built(&mut system, rich("web"));
    let number = system.resources.kernel.object(system.domains[&domid].space.slot).unwrap();
    let page = |s: &TestSystem, number| {
        let found = s.resources.kernel.mappings(number);
        found.into_iter().find(|(at, ..)| *at == COUNTERS_BASE).unwrap()
    };
    let (view, own) = (system.domains[&domid].counters, page(&system, number));
    // Init sees the same frame elsewhere.
    let seen = system.resources.kernel.mappings(0);
    assert!(seen.contains(&(view, own.1, 1)) && own.2 == 1);
    let mut asked = |domid| {
        system.on_builder(Request::Counters { domid });
        answers(&mut system).pop().unwrap()
    };
    let Response::Counters { domid: answered, values } = asked(domid) else { panic!() };
    assert_eq!((answered, values.len(), values[3]), (domid, proto::counters::COUNT, 0));
    assert!(matches!(asked(0), Response::Counters { domid: 0, .. }));
    assert!(matches!(asked(99), Response::Refused { .. }));
    // What the domain wrote is handed on as it is.
    system.resources.kernel.write_frame(own.1, 3 * 8, &u64::MAX.to_le_bytes());
    system.on_builder(Request::Counters { domid });
    let Some(Response::Counters { values, .. }) = answers(&mut system).pop() else { panic!() };
    assert_eq!((values[2], values[3]), (0, u64::MAX));
}

/// Number of the first record, and the numbers that the records themselves carry.
fn records(system: &mut TestSystem, from: u64) -> (u64, Vec<u64>) {
    system.on_builder(Request::TraceRead { from });
    match answers(system).pop() {
        Some(Response::Records { first, records, .. }) => {
            assert!(records.iter().all(|r| r.thread == 7 && r.cpu == 0 && u64::from(r.kind) == r.tsc - 1000));
            (first, records.iter().map(|r| r.tsc - 1000).collect())
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_trace_is_started_read_stopped_and_its_memory_comes_back() {
    let mut system = ready();
    let ask = |system: &mut TestSystem, request| {
        system.on_builder(request);
        answers(system).pop().unwrap()
    };
    assert!(matches!(ask(&mut system, Request::TraceRead { from: 0 }), Response::Refused { .. }));
    for kib in [0, 4, 100 << 10] {
        assert!(matches!(ask(&mut system, Request::TraceStart { kib }), Response::Refused { .. }));
    }
    let warm_up = ask(&mut system, Request::TraceStart { kib: 12 });
    assert!(matches!(warm_up, Response::Trace(s) if s.is_running && s.capacity == 256 && s.written == 0));
    ask(&mut system, Request::TraceDrop);
    let before = holdings(&system);
    ask(&mut system, Request::TraceStart { kib: 12 });
    assert_eq!(records(&mut system, 0), (0, vec![]));
    for _ in 0..100 {
        system.resources.kernel.record();
    }
    assert_eq!(records(&mut system, 0), (0, (0..80).collect()));
    assert_eq!(records(&mut system, 80), (80, (80..100).collect()));
    assert_eq!(records(&mut system, 100), (100, vec![]));
    // The ring went round: the oldest are gone, and the place of the next one is not trusted while it runs.
    for _ in 100..300 {
        system.resources.kernel.record();
    }
    assert_eq!(records(&mut system, 0), (45, (45..124).collect()));
    let stopped = ask(&mut system, Request::TraceStop);
    assert!(matches!(stopped, Response::Trace(s) if !s.is_running && s.written == 300));
    system.resources.kernel.record();
    assert_eq!(records(&mut system, 0), (44, (44..124).collect()));
    // A new one replaces it.
    let again = ask(&mut system, Request::TraceStart { kib: 8 });
    assert!(matches!(again, Response::Trace(s) if s.is_running && s.capacity == 128 && s.written == 0));
    let gone = ask(&mut system, Request::TraceDrop);
    assert_eq!(gone, Response::Trace(proto::builder::TraceStat::default()));
    assert_eq!(holdings(&system), before);
}

#[test]
fn a_trace_that_cannot_be_started_leaves_nothing_behind() {
    let mut system = ready();
    system.on_builder(Request::TraceStart { kib: 12 });
    system.on_builder(Request::TraceDrop);
    answers(&mut system);
    let before = holdings(&system);
    for calls in 0..100 {
        system.resources.kernel.calls_left = Some(calls);
        system.on_builder(Request::TraceStart { kib: 12 });
        if matches!(answers(&mut system).as_slice(), [Response::Trace(_)]) {
            assert!(calls > 3);
            return;
        }
        assert!(system.trace.is_none());
        assert_eq!(holdings(&system), before, "after {calls} calls");
    }
    panic!("it never starts");
}
