//! What the manifest's check accepts and refuses, and what init gets of it.

use image_builder::manifest::{DEFAULT, DEFAULT_NAME, compile, load};
use image_builder::programs::{Program, of_workspace};
use proto::channel::ChannelKind;
use proto::manifest::Manifest;

fn problems(text: &str) -> String {
    load("system.toml", text, &of_workspace()).map(|_| String::new()).unwrap_or_else(|e| e.to_string())
}

#[test]
fn the_shipped_manifest_is_compiled_as_it_stands() {
    let manifest = load(DEFAULT_NAME, DEFAULT, &of_workspace()).unwrap();
    let compiled = compile(&manifest, &[("console".into(), "mode=mux".into())]).unwrap();
    let encoded = postcard::to_stdvec(&compiled).unwrap();
    let decoded: Manifest = postcard::from_bytes(&encoded).unwrap();
    assert_eq!(decoded, compiled);

    let names: Vec<_> = compiled.services.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["console", "xenstore", "blkback", "netback", "toolstack"]);
    let console = &compiled.services[0];
    assert_eq!(console.program.as_str(), "services/console");
    assert_eq!(console.ports[..], [(0x3f8, 8)]);
    assert_eq!(console.lines[..], [4]);
    assert_eq!(console.options.as_str(), "mode=mux");
    assert_eq!(console.serves[..], [ChannelKind::Log, ChannelKind::GuestConsole]);
    assert_eq!(compiled.services[2].devices[0].devices[..], [0x1042, 0x1001]);
    assert_eq!(compiled.services[4].file.as_str(), "guests");
    assert_eq!(compiled.channels.len(), 3);
    assert_eq!(compiled.vmm.program.as_str(), "services/vmm");
    // Backends run before VMMs, so a busy guest delays nobody's disk.
    assert!(compiled.services.iter().all(|s| s.priority > compiled.vmm.priority));
}

#[test]
fn options_replace_only_their_own_key() {
    let text = DEFAULT.replace("mode=interactive", "a=1 mode=interactive b");
    let manifest = load("system.toml", &text, &of_workspace()).unwrap();
    let compiled = compile(&manifest, &[("console".into(), "mode=mux".into())]).unwrap();
    assert_eq!(compiled.services[0].options.as_str(), "a=1 b mode=mux");
    assert!(compile(&manifest, &[("nobody".into(), "x".into())]).is_err());
}

/// Each change to the shipped manifest, and the sentence that it must be refused with.
#[test]
fn bad_manifests_are_refused_with_a_place_and_a_sentence() {
    let cases = [
        ("priority = 25", "priority = 64", "priority is 64; it must be from 0 to 63"),
        ("priority = 25", "priority = -1", "invalid value"),
        ("priority = 25", "", "missing field `priority`"),
        ("priority = 25", "priority = 25\nspeed = 3", "unknown field `speed`"),
        ("priority = 25", "priority = \"high\"", "invalid type: string \"high\", expected u64"),
        ("heap-kib = 2048", "heap-kib = 4", "heap-kib is 4; it must be from 16 to 1048576"),
        ("stack-kib = 64", "stack-kib = 4", "stack-kib is 4; it must be from 8 to 1024"),
        ("name = \"xenstore\"", "name = \"xen store\"", "a name is 1 to 32 lower-case letters"),
        ("name = \"xenstore\"", "name = \"init\"", "`init` is not listed: it is part of every system"),
        ("name = \"xenstore\"", "name = \"netback\"", "there are two services called `netback`"),
        ("name = \"xenstore\"", "name = \"store\"", "no program is called `store`"),
        ("lines = [4]", "lines = [0]", "an interrupt line is 0"),
        ("count = 8", "count = 0", "0 ports from 0x3f8 on"),
        ("count = 8", "count = 65535", "65535 ports from 0x3f8 on"),
        ("0x3f8, count = 8", "0xcf8, count = 8", "belong to init, which guards PCI configuration space"),
        ("0x3f8, count = 8", "0x3c, count = 8", "belong to the kernel's timer calibration"),
        ("file = \"guests\"", "lines = [5]", "`toolstack` has no use for an interrupt line"),
        (
            "file = \"guests\"",
            "ports = [{ first = 0x60, count = 1 }]",
            "`toolstack` has no use for I/O ports",
        ),
        ("serves = [\"net\"]", "file = \"guests\"", "`netback` has no use for a file"),
        ("serves = [\"net\"]", "serves = [\"xenstore\"]", "`netback` cannot serve xenstore"),
        ("serves = [\"net\"]", "serves = [\"coffee\"]", "no channel kind is called `coffee`"),
        (
            "serves = [\"xenstore\"]",
            "serves = [\"xenstore\", \"xenstore\"]",
            "`xenstore` serves xenstore already",
        ),
        ("[0x1041, 0x1000]", "[0x1041, 0x1042]", "`blkback` has PCI devices 1af4:1042 already"),
        ("[0x1041, 0x1000]", "[]", "a device entry lists 1 to 4 device numbers"),
        ("dma-kib = 512", "dma-kib = 3", "dma-kib is 3; it must be a multiple of 4"),
        ("vectors = 3", "vectors = 9", "vectors is 9; it must be from 1 to 8"),
        ("after = [\"console\"", "after = [\"konsole\"", "no service is called `konsole`"),
        (
            "lines = [4]",
            "lines = [4]\nafter = [\"toolstack\"]",
            "wait for each other: console -> toolstack -> console",
        ),
        ("kind = \"operator\"", "kind = \"telepathy\"", "no channel kind is called `telepathy`"),
        ("kind = \"operator\"", "kind = \"blk\"", "blk channels are made with the guest"),
        ("kind = \"operator\"", "kind = \"log\"", "every service has its log channel without being listed"),
        ("client = \"console\"", "client = \"netback\"", "`netback` has no use for a operator channel"),
        ("client = \"console\"", "client = \"nobody\"", "no service is called `nobody`"),
        ("server = \"xenstore\"", "server = \"blkback\"", "`blkback` cannot serve xenstore channels"),
        ("server = \"init\"", "server = \"console\"", "only init builds domains"),
        ("kind = \"builder\"", "kind = \"operator\"", "`toolstack` cannot work without a builder channel"),
        (
            "kind = \"operator\"",
            "kind = \"operator\"\nmac = \"02:00:00:00:00:01\"",
            "only a net channel has a mac",
        ),
        ("priority = 10", "priority = 40", "its priority must be above the VMMs' (40)"),
    ];
    for (from, to, expected) in cases {
        assert!(DEFAULT.contains(from), "{from}");
        let text = DEFAULT.replacen(from, to, 1);
        let message = problems(&text);
        assert!(message.contains(expected), "{from} -> {to}:\n{message}");
        let place: Vec<_> = message.splitn(4, ':').collect();
        assert!(place[0] == "system.toml" && place[1].parse::<u32>().is_ok(), "{message}");
    }
}

#[test]
fn the_place_is_the_right_one() {
    let text = DEFAULT.replacen("priority = 25", "priority = 77", 1);
    let row = text.lines().position(|l| l == "priority = 77").unwrap() + 1;
    let expected = format!("system.toml:{row}:12: error: priority is 77; it must be from 0 to 63\n");
    let message = problems(&text);
    assert!(message.starts_with(&expected), "{message}");
    assert!(message.ends_with("| priority = 77\n     |            ^^"), "{message}");
}

#[test]
fn two_domains_never_get_the_same_port_or_line() {
    let twin = "\n[[service]]\nname = \"second\"\nprogram = \"console\"\npriority = 30\nheap-kib = 64\n\
                ports = [{ first = 0x3ff, count = 1 }]\nlines = [4]\n";
    let message = problems(&format!("{DEFAULT}{twin}"));
    assert!(message.contains("`console` has some of these ports already"), "{message}");
    assert!(message.contains("`console` has interrupt line 4 already"), "{message}");
}

/// The shipped manifest with a station on the bridge.
fn with_peer(channels: &[(&str, &str)]) -> String {
    let service = "\n[[service]]\nname = \"peer\"\npriority = 5\nheap-kib = 64\n";
    let channel = |(server, mac): &(&str, &str)| {
        format!(
            "[[channel]]\nkind = \"net\"\nclient = \"peer\"\nserver = \"{server}\"\ntarget = \"xenbr0\"\n{mac}\n"
        )
    };
    format!("{DEFAULT}{service}{}", channels.iter().map(channel).collect::<String>())
}

#[test]
fn a_service_is_a_station_on_the_bridge_under_its_own_address() {
    let one = ("netback", "mac = \"02:00:00:00:77:01\"");
    let two = ("netback", "mac = \"02:00:00:00:77:fe\"");
    let manifest = load("system.toml", &with_peer(&[one, two]), &of_workspace()).unwrap();
    let compiled = compile(&manifest, &[]).unwrap();
    let wires: Vec<_> = compiled.channels.iter().filter(|c| c.kind == ChannelKind::Net).collect();
    let macs: Vec<_> = wires.iter().map(|wire| wire.mac).collect();
    assert_eq!(macs, [[2, 0, 0, 0, 0x77, 1], [2, 0, 0, 0, 0x77, 0xfe]]);
    assert_eq!(wires[0].target.as_str(), "xenbr0");
    assert!(compiled.channels.iter().all(|c| c.kind == ChannelKind::Net || c.mac == [0; 6]));

    let names = |text: &str| {
        let manifest = load("system.toml", text, &of_workspace()).unwrap();
        manifest.programs(of_workspace()).into_iter().map(|p| p.name).collect::<Vec<_>>()
    };
    assert!(names(&with_peer(&[one])).contains(&"peer".to_owned()));
    assert!(!names(DEFAULT).contains(&"peer".to_owned()), "what no service runs is not compiled");

    let none = problems(&with_peer(&[]));
    assert!(none.contains("`peer` cannot work without a net channel"), "{none}");
    let cases: [(&[(&str, &str)], &str); 8] = [
        (&[("netback", "")], "the interface of `peer` needs an address of its own: add mac = \"02:"),
        (&[one, one], "`peer` has the address 02:00:00:00:77:01 already"),
        (&[("netback", "mac = \"02:00:00:00:77\"")], "`02:00:00:00:77` is no MAC address: write six bytes"),
        (&[("netback", "mac = \"02:00:00:00:77:01:02\"")], "is no MAC address"),
        (&[("netback", "mac = \"02:00:00:00:77:+1\"")], "is no MAC address"),
        (&[("netback", "mac = \"01:00:00:00:77:01\"")], "its first byte must be even"),
        (&[("netback", "mac = \"00:00:00:00:00:00\"")], "and not all zero"),
        (&[("blkback", "mac = \"02:00:00:00:77:01\"")], "`blkback` cannot serve net channels"),
    ];
    for (channels, expected) in cases {
        let message = problems(&with_peer(channels));
        assert!(message.contains(expected), "{channels:?}:\n{message}");
        let place: Vec<_> = message.splitn(4, ':').collect();
        assert!(place[0] == "system.toml" && place[1].parse::<u32>().is_ok(), "{message}");
    }
}

#[test]
fn a_manifest_without_vmm_adds_to_the_shipped_one() {
    let station = include_str!("../../tests/peer/manifest.toml");
    let manifest = load("tests/peer/manifest.toml", station, &of_workspace()).unwrap();
    let names: Vec<_> = manifest.services.iter().map(|s| s.name.get_ref().as_str()).collect();
    assert_eq!(names, ["console", "xenstore", "blkback", "netback", "toolstack", "peer"]);
    // Problems have their places in the text that they are in.
    let row = station.lines().position(|l| l == "priority = 30").unwrap() + 1;
    let message = problems(&station.replace("priority = 30\n", "priority = 64\n"));
    assert!(message.starts_with(&format!("system.toml:{row}:12: error: priority is 64;")), "{message}");
    let message = problems(&station.replace("name = \"peer\"", "name = \"console\""));
    assert!(
        message.starts_with("system.toml:") && message.contains("two services called `console`"),
        "{message}"
    );
    assert!(problems("priority = ").starts_with("system.toml:1:12: error: "));
}

#[test]
fn a_prebuilt_program_may_be_given_anything() {
    let extra = "\n[[service]]\nname = \"hostile\"\npriority = 5\nheap-kib = 64\nfile = \"guests\"\n";
    let text = format!("{DEFAULT}{extra}");
    assert!(problems(&text).contains("no program is called `hostile`"));
    let mut programs = of_workspace();
    programs.push(Program::prebuilt("hostile", "/tmp/hostile"));
    load("system.toml", &text, &programs).unwrap();
}
