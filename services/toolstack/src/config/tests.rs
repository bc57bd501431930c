//! Tests of the parser as its users see it: each key, each refusal, and arbitrary text.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;

/// The settings that every guest needs; `text` comes after them.
fn with_basics(text: &str) -> String {
    format!("name = \"web\"\ntype = \"pvh\"\nkernel = \"/boot/vmlinuz\"\nmemory = 256\n{text}")
}

fn config(text: &str) -> GuestConfig {
    let parsed = parse("web.cfg", &with_basics(text));
    assert!(parsed.diagnostics.is_empty(), "{:#?}", parsed.diagnostics);
    parsed.config.unwrap()
}

/// The only message, which must be an error (or a warning) and contain `part`.
fn only(severity: Severity, file: &str, part: &str) -> Diagnostic {
    let parsed = parse("web.cfg", file);
    assert_eq!(parsed.diagnostics.len(), 1, "{file}: {:#?}", parsed.diagnostics);
    let message = parsed.diagnostics[0].clone();
    assert_eq!(message.severity, severity, "{file}: {message}");
    assert!(message.message.contains(part), "{file}: {message}");
    assert_eq!(parsed.config.is_some(), severity == Severity::Warning, "{file}");
    message
}

fn error(text: &str, part: &str) -> Diagnostic {
    only(Severity::Error, &with_basics(text), part)
}

fn warning(text: &str, part: &str) -> Diagnostic {
    only(Severity::Warning, &with_basics(text), part)
}

#[test]
fn a_typical_file() {
    let parsed = parse(
        "web.cfg",
        "# web server\nname = 'web'; type = \"pvh\"\nuuid='c0a7d3e2-1b5f-4e6a-9d8c-7b6a5f4e3d2c'\n\
         kernel = '/boot/vmlinuz'\nramdisk = 'initrd.img'\nroot = \"/dev/xvda\"\nextra = 'ro quiet'\n\
         memory = 0x100\nmaxmem = 256\nvcpus = 2\nmaxvcpus = 2\nnomigrate = 1\n\
         disk = [ 'root.img,raw,xvda,w',   # the root\n  'vdev=xvdb, access=ro, target=data, with comma.img',\n ]\n\
         vif = [ 'mac=00:16:3e:01:02:03,bridge=br1', '' ]\n\
         on_poweroff = 'preserve'\non_reboot = 'destroy'\non_watchdog = 'restart'\non_crash = 'restart'",
    );
    assert!(parsed.diagnostics.is_empty(), "{:#?}", parsed.diagnostics);
    let config = parsed.config.unwrap();
    assert_eq!(config.name.value, "web");
    assert_eq!(Uuid(&config.uuid).to_string(), "c0a7d3e2-1b5f-4e6a-9d8c-7b6a5f4e3d2c");
    assert_eq!(config.cmdline.value, "root=/dev/xvda ro quiet");
    assert_eq!(config.memory_kib.value, 256 * 1024);
    assert_eq!(config.vcpus, 2);
    let disks: Vec<_> = config
        .disks
        .iter()
        .map(|d| (d.target.value.as_str(), d.vdev.value.as_str(), d.device, d.is_read_only))
        .collect();
    assert_eq!(disks, [("root.img", "xvda", 51712, false), ("data, with comma.img", "xvdb", 51728, true)]);
    assert_eq!(config.vifs[0].mac.value, [0, 0x16, 0x3e, 1, 2, 3]);
    assert_eq!(config.vifs[0].bridge.value, "br1");
    assert_eq!(config.vifs[1].mac.value[..3], [0, 0x16, 0x3e]);
    assert_eq!(config.vifs[1].bridge.value, "xenbr0");
    let actions = [config.on_poweroff, config.on_reboot, config.on_watchdog, config.on_crash];
    assert_eq!(actions, [Action::Preserve, Action::Destroy, Action::Restart, Action::Restart]);
    let paths: Vec<_> = config.host_paths().map(|(usage, path)| (usage, path.value.as_str())).collect();
    assert_eq!(
        paths,
        [
            (HostPathUse::Kernel, "/boot/vmlinuz"),
            (HostPathUse::Ramdisk, "initrd.img"),
            (HostPathUse::Disk { is_read_only: false }, "root.img"),
            (HostPathUse::Disk { is_read_only: true }, "data, with comma.img"),
        ]
    );
}

#[test]
fn defaults_are_xls() {
    let config = config("");
    assert_eq!((config.on_poweroff, config.on_reboot), (Action::Destroy, Action::Restart));
    assert_eq!((config.on_watchdog, config.on_crash), (Action::Destroy, Action::Destroy));
    assert_eq!(config.cmdline.value, "");
    assert_eq!((config.ramdisk, config.disks.len(), config.vifs.len()), (None, 0, 0));
}

#[test]
fn addition_joins_text_and_lists() {
    assert_eq!(config("extra = 'a'\nextra += ' b'").cmdline.value, "a b");
    assert_eq!(config("extra += 'a'").cmdline.value, "a");
    let disks = config("disk = ['a,,xvda']\ndisk += ['b,,xvdb']").disks;
    assert_eq!((disks[0].target.value.as_str(), disks[1].target.value.as_str()), ("a", "b"));
    error("disk = ['a,,xvda']\ndisk += 'b,,xvdb'", "+= cannot join");
    error("vcpus = 1\nvcpus += 1", "+= works for text and lists only");
}

#[test]
fn command_lines_combine_as_in_xl() {
    assert_eq!(config("root = '/dev/xvda'").cmdline.value, "root=/dev/xvda");
    assert_eq!(config("extra = 'quiet'").cmdline.value, "quiet");
    assert_eq!(config("cmdline = 'x'").cmdline.value, "x");
    warning("cmdline = 'x'\nroot = '/dev/xvda'", "`root` has no effect because `cmdline`");
    warning("cmdline = 'x'\nextra = 'y'", "`extra` has no effect because `cmdline`");
    error(&format!("extra = '{}'", "x".repeat(2049)), "2049 bytes");
}

#[test]
fn every_form_of_a_disk() {
    for (spec, expected) in [
        ("a.img,raw,xvda,rw", ("a.img", 51712, false)),
        ("a.img,,xvda", ("a.img", 51712, false)),
        ("a.img,raw,hda,r", ("a.img", 768, true)),
        ("a.img,raw,sda1,ro", ("a.img", 2049, true)),
        ("a.img,raw,xvda,", ("a.img", 51712, false)),
        ("format=raw, vdev=xvda, access=rw, target=a.img", ("a.img", 51712, false)),
        ("vdev=xvda1,a.img", ("a.img", 51713, false)),
        ("phy:/dev/vg/a,xvda,w", ("/dev/vg/a", 51712, false)),
        ("file:/a.img,xvda,r", ("/a.img", 51712, true)),
        ("raw:/a.img,xvda:disk,r", ("/a.img", 51712, true)),
        ("/odd:name.img,raw,xvda", ("/odd:name.img", 51712, false)),
        ("devtype=disk,specification=xen,no-discard,a.img,,xvda", ("a.img", 51712, false)),
        ("vdev=xvda,target=x,y=z,", ("x,y=z", 51712, false)),
    ] {
        let config = config(&format!("disk = [ '{spec}' ]"));
        let disk = &config.disks[0];
        assert_eq!((disk.target.value.as_str(), disk.device, disk.is_read_only), expected, "{spec}");
        assert!(disk.is_trusted);
    }
    assert!(!config("disk = [ 'untrusted,a.img,,xvda' ]").disks[0].is_trusted);
}

#[test]
fn a_volume_in_memory_has_a_size_and_no_host_path() {
    for (spec, bytes, is_read_only) in [
        ("ram:64M,xvda,w", 64 << 20, false),
        ("ram:1G,xvda", 1 << 30, false),
        ("ram:1025M,raw,xvda,rw", 1025 << 20, false),
        ("ram:2048k,xvda:disk,r", 2 << 20, true),
        ("untrusted,ram:0x10M,xvda", 16 << 20, false),
    ] {
        let parsed = config(&format!("disk = [ '{spec}', 'a.img,,xvdb' ]"));
        let disk = &parsed.disks[0];
        assert_eq!((disk.memory, disk.device, disk.is_read_only), (bytes, 51712, is_read_only), "{spec}");
        assert_eq!(disk.is_trusted, !spec.starts_with("untrusted"));
        let paths: Vec<_> = parsed.host_paths().map(|(_, path)| path.value.as_str()).collect();
        assert!(paths.contains(&"a.img") && !paths.iter().any(|path| spec.contains(path)), "{paths:?}");
        assert_eq!(parsed.total_kib(), parsed.memory_kib.value + bytes / 1024);
        // Spans differ: the text printed from what was read says the same again.
        let printed = parsed.to_string();
        assert_eq!(super::parse("again", &printed).config.unwrap().to_string(), printed);
    }
    for (spec, part) in [
        ("ram:,xvda,w", "no size"),
        ("ram:64,xvda,w", "write ram:64M"),
        ("ram:lots,xvda,w", "no size"),
        ("ram:-1M,xvda,w", "no size"),
        ("ram:M,xvda,w", "no size"),
        ("ram:512K,xvda,w", "too small"),
        ("ram:1026K,xvda,w", "multiple of 4K"),
        ("ram:2000G,xvda,w", "too large"),
        ("ram:99999999999999999G,xvda,w", "too large"),
        ("ram:64M", "no vdev"),
    ] {
        error(&format!("disk = [ '{spec}' ]"), part);
    }
}

#[test]
fn every_mistake_in_a_disk() {
    for (spec, part) in [
        ("a.img,qcow2,xvda", "qemu-img convert"),
        ("qcow2:a.img,xvda", "qemu-img convert"),
        ("a.img,vmdk,xvda", "no disk format"),
        ("a.img,xvda,w", "between target and vdev"),
        ("a.img,raw", "no vdev"),
        ("", "no vdev"),
        ("vdev=xvda", "no target"),
        ("a.img,raw,vda", "no disk's name"),
        ("a.img,raw,xvda,x", "kind of access"),
        ("a.img,raw,xvda,rw,more", "no disk parameter"),
        ("a.img,raw,xvda,acces=r", "did you mean `access`"),
        ("cdrom,a.iso,raw,hdc", "CD-ROM"),
        ("a.iso,raw,hdc,devtype=cdrom", "CD-ROM"),
        ("raw:a.iso,hdc:cdrom,r", "CD-ROM"),
        ("a.img,raw,xvda,devtype=tape", "disk type"),
        ("a.img,raw,xvda,backendtype=qdisk", "`backendtype` is not supported"),
        ("a.img,raw,xvda,backend=Domain-0", "`backend` is not supported"),
        ("a.img,raw,xvda,specification=virtio", "`specification` is not supported"),
        ("a.img,raw,xvda,script=block-x", "`script` is not supported"),
        ("a.img,raw,xvda,colo", "`colo` is not supported"),
        ("iscsi:x,xvda", "iscsi"),
        ("a.img,raw,vdev=xvda,vdev=xvdb", "second vdev"),
    ] {
        let message = error(&format!("disk = [ '{spec}' ]"), part);
        assert_eq!(message.line, 5, "{spec}");
    }
    warning("disk = [ 'discard,a.img,,xvda' ]", "no effect");
    warning("disk = [ 'direct-io-safe,a.img,,xvda' ]", "no effect");
    error("disk = [ 'a,,xvda',\n'b,,xvda' ]", "taken by another disk (line 5)");
    error("disk = [ 'a,,xvda', 'b,,51712' ]", "same device as `xvda`");
    error("disk = 'a,,xvda'", "is a list");
    error("disk = [ ['a,,xvda'] ]", "not a list");
    let many: String = (0..17).map(|i| format!("'a,,d{i}p0',")).collect();
    error(&format!("disk = [ {many} ]"), "at most 16 disks");
}

#[test]
fn a_message_points_into_a_specification() {
    let message = error("disk = [ 'a.img,raw,xvda,x' ]", "kind of access");
    assert_eq!((message.line, message.column, message.width), (5, 26, 1));
    let message = error("vif = [ 'mac=nonsense' ]", "no MAC address");
    assert_eq!((message.line, message.column, message.width), (5, 14, 8));
    assert_eq!(
        message.to_string(),
        "web.cfg:5:14: error: `nonsense` is no MAC address; write six hexadecimal bytes, for example \
         00:16:3e:12:34:56\n    5 | vif = [ 'mac=nonsense' ]\n      |              ^^^^^^^^"
    );
}

#[test]
fn every_mistake_in_a_vif() {
    for (spec, part) in [
        ("mac=00:16:3e:00:00", "no MAC address"),
        ("mac=00:16:3e:00:00:100", "no MAC address"),
        ("mac=00:16:3e:00:00:00:00", "no MAC address"),
        ("mac=", "no MAC address"),
        ("mac=01:16:3e:00:00:00", "one interface"),
        ("mac=00:00:00:00:00:00", "one interface"),
        ("bridge=", "name is missing"),
        ("type=ioemu", "emulated"),
        ("model=e1000", "`model=e1000` is not supported"),
        ("ip=10.0.0.1", "not supported"),
        ("script=vif-route", "not supported"),
        ("rate=10Mb/s", "not supported"),
        ("colo_checkpoint_port=1", "not supported"),
        ("bridg=x", "did you mean `bridge`"),
        ("fast", "no vif parameter"),
    ] {
        error(&format!("vif = [ '{spec}' ]"), part);
    }
    assert!(config("vif = [ 'type=vif, mac=0:16:3e:0:0:1' ]").vifs[0].is_trusted);
    assert!(!config("vif = [ 'untrusted' ]").vifs[0].is_trusted);
    error("vif = [ 'mac=00:16:3e:00:00:01',\n'mac=00:16:3e:00:00:01' ]", "has this MAC address (line 5)");
    error(&format!("vif = [ {} ]", "'',".repeat(9)), "at most 8");
}

#[test]
fn every_mistake_in_a_value() {
    for (text, part) in [
        ("vcpus = 33", "at most 32"),
        ("vcpus = 0", "at least one"),
        ("vcpus = 2\nmaxvcpus = 4", "write 2"),
        ("vcpus = 'many'", "`vcpus` is a number"),
        ("vcpus = [ 1 ]", "remove the [ ]"),
        ("maxmem = 512", "maxmem = 256"),
        ("uuid = 'xyz'", "no UUID"),
        ("ramdisk = ''", "`ramdisk` is empty"),
        ("on_crash = 'explode'", "no action"),
        ("on_crash = 'coredump-restart'", "not supported"),
        ("on_crash = 'coredump-destroy'", "not supported"),
        ("on_reboot = 'rename-restart'", "not supported"),
        ("on_poweroff = 'soft-reset'", "not supported"),
    ] {
        error(text, part);
    }
    warning("memory = 512", "set a second time");
}

#[test]
fn what_a_guest_must_have() {
    let file = |name: &str, kind: &str, kernel: &str, memory: &str| {
        format!("name = {name}\n{kind}\nkernel = {kernel}\nmemory = {memory}")
    };
    let pvh = "type = 'pvh'";
    for (text, part) in [
        (file("''", pvh, "'k'", "64"), "name is empty"),
        (file("'a b'", pvh, "'k'", "64"), "no blanks"),
        (file("'a/b'", pvh, "'k'", "64"), "no slashes"),
        (file("'12'", pvh, "'k'", "64"), "domain ID"),
        (file("'abcdefghijklmnopqrstuvwxyz0123456789'", pvh, "'k'", "64"), "36 bytes"),
        (file("'a'", "type = 'hvm'", "'k'", "64"), "\"hvm\" are not supported"),
        (file("'a'", "type = 'pv'", "'k'", "64"), "\"pv\" are not supported"),
        (file("'a'", "type = 'tvm'", "'k'", "64"), "is \"pvh\""),
        (file("'a'", "", "'k'", "64"), "there is no type"),
        (file("'a'", pvh, "''", "64"), "`kernel` is empty"),
        (file("'a'", pvh, "'k'", "0"), "too little"),
        (file("'a'", pvh, "'k'", "7"), "too little"),
        (file("'a'", pvh, "'k'", "1048577"), "too much"),
        (file("'a'", pvh, "'k'", "99999999999999999999"), "`memory` is a number"),
        (file("'a'", pvh, "'k'", "'lots'"), "`memory` is a number"),
        ("type = 'pvh'\nkernel = 'k'\nmemory = 64".into(), "has no name"),
        ("type = 'pvh'\nname = 'a'\nmemory = 64".into(), "there is no kernel"),
    ] {
        only(Severity::Error, &text, part);
    }
    let text = "type = 'pvh'\nname = 'a'\nkernel = 'k'";
    only(Severity::Warning, text, "default of 32 MiB");
    assert_eq!(parse("f", &format!("{text}\nmaxmem = 64")).config.unwrap().memory_kib.value, 65536);
    assert!(parse("f", "").config.is_none());
}

#[test]
fn syntax_errors_show_the_place_and_do_not_cascade() {
    for (text, line, column, part) in [
        ("vcpus 1", 5, 7, "after the key `vcpus` comes ="),
        ("vcpus =\n1", 5, 8, "starts on the same line"),
        ("vcpus = 1 2", 5, 11, "for several write a list"),
        ("vcpus = 1 extra = 'x'", 5, 11, "a setting ends here"),
        ("extra = quiet", 5, 9, "text stands in quotes: \"quiet\""),
        ("extra = 'quiet", 5, 9, "not closed"),
        ("ramdisk = /boot/initrd", 5, 11, "looks like a path"),
        ("disk = [ 'a,,xvda' 'b,,xvdb' ]", 5, 20, "a comma is missing"),
        ("disk = [ 'a,,xvda',\nvif = [ '' ]", 6, 1, "text stands in quotes"),
        ("disk = [ 'a,,xvda'", 5, 19, "starts in line 5 is not closed"),
        ("disk = [ ,", 5, 10, "a value is a number"),
        ("= 1", 5, 1, "starts with its key"),
        ("Vcpus = 1", 5, 1, "lower case"),
        ("vcpus = -1", 5, 9, "no sign"),
        ("localtime = True", 5, 13, "lower case"),
        ("extra = 'a' + 'b'", 5, 13, "Python"),
        ("vcpus = 1\r", 5, 10, "CR LF"),
        ("disk = [[[[[[[[[ 1 ]]]]]]]]]", 5, 16, "nested"),
    ] {
        let message = error(text, part);
        assert_eq!((message.line, message.column), (line, column), "{message}");
    }
}

#[test]
fn cpuid_is_narrowed_in_both_styles() {
    use proto::cpuid::{Narrowing, Word};
    let narrowing = |line: &str| config(line).cpuid;
    let bits = |word: Word, hidden: u32, required: u32| {
        let mut narrowing = Narrowing::default();
        narrowing.hidden[word as usize] = hidden;
        narrowing.required[word as usize] = required;
        narrowing
    };
    assert_eq!(narrowing("cpuid = \"host\""), Narrowing::default());
    assert_eq!(
        narrowing("cpuid = 'host, sse4.2=0,sse4_1=1,rdrand=x'"),
        bits(Word::Basic1Ecx, 1 << 20, 1 << 19)
    );
    assert_eq!(narrowing("cpuid = 'host,rdrand=0,rdrand=x,avx=0,avx=x'"), Narrowing::default());
    assert_eq!(narrowing("cpuid = 'host,nx=0'"), bits(Word::Extended1Edx, 1 << 20, 0));
    // xend's style: bit 31 first.
    let line = "cpuid = [ '1:ecx=x0xxxxxxxxx1xxxxxxxxxxxxxxxxxxxx', '7,0:ebx=xxxxxxxxxxxxxxxxxxxxxxxx0xxxxxxx,eax=xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx' ]";
    let mut both = bits(Word::Basic1Ecx, 1 << 30, 1 << 20);
    both.hidden[Word::Basic7Ebx as usize] = 1 << 7;
    assert_eq!(narrowing(line), both);
}

#[test]
fn cpuid_never_widens() {
    let message = error("cpuid = 'host,avx=1'", "`avx` cannot be shown to a guest: the state beyond SSE");
    assert_eq!((message.line, message.column, message.width), (5, 15, 5));
    error("cpuid = 'host,svm=k'", "guests cannot have guests");
    error("cpuid = 'host,sse4_2=1,sse3=0'", "`sse4_2` is built on a feature that this hides");
    error("cpuid = 'host,rdrnd=0'", "did you mean `rdrand`");
    error("cpuid = 'host,nothing_like_it=0'", "no feature of CPUID that is known here");
    error("cpuid = 'host,family=6'", "`family` is a number");
    error("cpuid = 'host,rdrand'", "`rdrand` has no value");
    error("cpuid = 'host,rdrand=yes'", "`yes` is no value");
    error("cpuid = 'rdrand=0'", "the first word of `cpuid` is host");
    error("cpuid = [ '1' ]", "a leaf and its registers");
    error("cpuid = [ 'one:ecx=x' ]", "no leaf of CPUID");
    error("cpuid = [ '1:ecx=x' ]", "32 of the letters");
    error("cpuid = [ '1:efx=xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx' ]", "32 of the letters");
    error(
        "cpuid = [ '1:ecx=xxx1xxxxxxxxxxxxxxxxxxxxxxxxxxxx' ]",
        "bit 28 of leaf 0x1 ecx (avx) cannot be set",
    );
    error("cpuid = [ '4:eax=0xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx' ]", "only hides features");
    error("cpuid = [ [ '1' ] ]", "text in quotes, not a list");
}

#[test]
fn one_run_shows_all_mistakes() {
    let parsed =
        parse("f", "name = web\ntype = 'hvm'\nkernel = 'k'\nmemory = 1\nvcpu = 1\npci = [ '0:1' ]\n");
    let lines: Vec<_> = parsed.diagnostics.iter().map(|d| (d.line, d.severity)).collect();
    use Severity::{Error, Warning};
    assert_eq!(lines, [(1, Error), (2, Error), (4, Error), (5, Warning), (6, Error)]);
    assert_eq!((parsed.errors().count(), parsed.warnings().count()), (4, 1));
}

#[test]
fn keys_of_xl_are_refused_by_name() {
    for key in keys::REFUSED {
        error(&format!("{key} = 1"), &format!("xl knows `{key}`"));
    }
}

#[test]
fn the_lists_of_keys_have_no_doubles() {
    for pair in keys::REFUSED.windows(2) {
        assert!(pair[0] < pair[1], "{} {}", pair[0], pair[1]);
    }
    for key in keys::HONOURED {
        assert!(!keys::REFUSED.contains(&key), "{key}");
        // A key that the parser does not take would be reported as unknown.
        let parsed = parse("f", &format!("{key} = 1"));
        assert!(!parsed.diagnostics.iter().any(|d| d.message.contains("no key of xl.cfg")), "{key}");
    }
}

#[test]
fn unknown_keys_get_a_suggestion() {
    let message = warning("memroy = 1", "did you mean `memory`");
    assert_eq!((message.line, message.column, message.width), (5, 1, 6));
    warning("vpcus = 1", "did you mean `vcpus`");
    warning("nonsense_key = 1", "has no effect; remove it");
}

#[test]
fn huge_files_are_refused() {
    let parsed = parse("f", &"#".repeat(FILE_MAX + 1));
    assert!(parsed.config.is_none());
    assert!(parsed.diagnostics[0].message.contains("bytes"));
}

/// Pieces that a configuration is made of, so that random files get past the first word.
fn fragment() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("name = 'a'\n".to_string()),
        Just("disk = [".to_string()),
        Just("vif += [ 'mac=".to_string()),
        Just("'\\x".to_string()),
        Just("]".to_string()),
        Just("é,".to_string()),
        Just("'\n".to_string()),
        Just("memory = 0x".to_string()),
        Just("target=".to_string()),
        "[a-z_]{1,8} ?\\+?= ?",
        "\\PC{0,12}",
        any::<String>(),
    ]
}

prop_compose! {
    fn any_disk()(
        target in "[!-~ é]{0,20}[!-~é]", mib in proptest::option::weighted(0.2, 1u64..5000),
        device in 0u32..40, is_read_only: bool, is_trusted: bool
    ) -> Disk {
        let target = mib.map_or(target, |mib| format!("{mib}M"));
        let vdev = format!("d{device}p0");
        let number = device_number(&vdev).unwrap();
        Disk {
            target: Spanned { value: target, span: Span::default() },
            memory: mib.unwrap_or(0) << 20,
            vdev: Spanned { value: vdev, span: Span::default() },
            device: number,
            is_read_only,
            is_trusted,
        }
    }
}

prop_compose! {
    fn any_vif()(tail: [u8; 5], bridge in "[a-z0-9.]{1,15}", is_trusted: bool) -> Vif {
        let [a, b, c, d, e] = tail;
        Vif {
            mac: Spanned { value: [2, a, b, c, d, e], span: Span::default() },
            bridge: Spanned { value: bridge, span: Span::default() },
            is_trusted,
        }
    }
}

fn any_action() -> impl Strategy<Value = Action> {
    proptest::sample::select(Action::ALL.to_vec())
}

prop_compose! {
    fn any_config()(
        name in "[a-z][a-zA-Z0-9_.é-]{0,12}",
        uuid: [u8; 16],
        kernel in "\\PC{1,20}",
        ramdisk in proptest::option::of("[ -~\n\t]{1,20}"),
        cmdline in "[^\0]{0,40}",
        mib in MEMORY_MIN_MIB..=MEMORY_MAX_MIB,
        disks in proptest::collection::vec(any_disk(), 0..6),
        vifs in proptest::collection::vec(any_vif(), 0..4),
        hidden in proptest::collection::vec((0..proto::cpuid::FEATURES.len(), any::<bool>()), 0..4),
        actions in (any_action(), any_action(), any_action(), any_action()),
    ) -> GuestConfig {
        let text = |value: String| Spanned { value, span: Span::default() };
        let mut disks: Vec<Disk> = disks;
        disks.sort_by_key(|disk| disk.device);
        disks.dedup_by_key(|disk| disk.device);
        let mut vifs: Vec<Vif> = vifs;
        vifs.dedup_by_key(|vif| vif.mac.value);
        let mut cpuid = proto::cpuid::Narrowing::default();
        for (feature, is_hidden) in hidden {
            let proto::cpuid::Feature { word, bit, policy, .. } = proto::cpuid::FEATURES[feature];
            let words = if is_hidden { &mut cpuid.hidden } else { &mut cpuid.required };
            if is_hidden || !matches!(policy, proto::cpuid::Policy::Never(_)) {
                words[word as usize] |= 1 << bit;
            }
            cpuid.required[word as usize] &= !cpuid.hidden[word as usize];
        }
        let (on_poweroff, on_reboot, on_watchdog, on_crash) = actions;
        GuestConfig {
            name: text(name),
            uuid,
            kernel: text(kernel),
            ramdisk: ramdisk.map(text),
            cmdline: text(cmdline),
            memory_kib: Spanned { value: mib * 1024, span: Span::default() },
            vcpus: 1,
            cpuid,
            disks,
            vifs,
            on_poweroff,
            on_reboot,
            on_watchdog,
            on_crash,
        }
    }
}

proptest! {
    #[test]
    fn arbitrary_text_gives_messages_and_never_a_panic(text: String) {
        let parsed = parse("f", &text);
        for message in &parsed.diagnostics {
            prop_assert!(!message.to_string().is_empty());
        }
    }

    #[test]
    fn arbitrary_pieces_never_panic(pieces in proptest::collection::vec(fragment(), 0..24)) {
        let parsed = parse("f", &pieces.concat());
        prop_assert_eq!(parsed.config.is_some(), parsed.errors().count() == 0);
        for message in &parsed.diagnostics {
            prop_assert!(message.to_string().contains('^'));
        }
    }

    #[test]
    fn a_printed_configuration_reads_as_the_same_one(config in any_config()) {
        let text = config.to_string();
        let parsed = parse("f", &text);
        prop_assert!(parsed.diagnostics.is_empty(), "{}\n{:#?}", text, parsed.diagnostics);
        prop_assert_eq!(parsed.config.unwrap(), config);
    }
}
