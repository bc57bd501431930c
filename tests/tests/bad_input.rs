//! What a user can get wrong: a clear message with its place, and the exit status for it.
//!
//! Everything here is refused before a machine is built or started.

use std::path::Path;

use qemu_runner::cli::RunArgs;
use qemu_runner::run::run;
use system_tests::io;

/// An ELF header that promises a program header table which is not there.
fn truncated_elf() -> Vec<u8> {
    let mut file = vec![0; 64];
    file[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1]);
    file[16] = 2;
    file[18] = 62;
    file[20] = 1;
    file[32] = 64;
    file[52] = 64;
    file[54] = 56;
    file[56] = 2;
    file
}

/// A bzImage with this payload.
fn bzimage(payload: &[u8], length: u32) -> Vec<u8> {
    let mut file = vec![0; 1024];
    file[0x1f1] = 1;
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    file[0x24c..0x250].copy_from_slice(&length.to_le_bytes());
    file.extend_from_slice(payload);
    file
}

fn prepare(dir: &Path) {
    let put = |name: &str, content: &[u8]| io(std::fs::write(dir.join(name), content));
    put("empty", b"");
    put("text", b"#!/bin/sh\necho I am no kernel\n");
    put("truncated.elf", &truncated_elf());
    let xz = b"\xfd7zXZ\0damaged beyond repair, but long enough to look like something";
    put("corrupt.bzimage", &bzimage(xz, xz.len() as u32));
    put("truncated.bzimage", &bzimage(xz, 1 << 20));
    put("lzma.bzimage", &bzimage(b"\x5d\0\0\x80\0 and the rest of an LZMA stream", 35));
    put("tiny.img", &[0; 511]);
    put("disk.img", &[0; 4096]);
    io(std::fs::create_dir(dir.join("folder")));
}

/// A configuration, the place that the message must name, and what it must say.
const CASES: [(&str, &str, &str); 24] = [
    ("name = \"g\"\nkernel = \"text", "bad.cfg:2:", "error:"),
    ("name = [\n", "bad.cfg:", "error:"),
    ("name = \"g\" = 3\n", "bad.cfg:1:", "error:"),
    ("kernel = \"text\"\n", "bad.cfg:", "name"),
    ("name = \"g\"\n", "bad.cfg:", "kernel"),
    ("name = \"g\"\nkernel = \"none\"\n", "bad.cfg:2:", "there is no kernel"),
    ("name = \"g\"\nkernel = \"folder\"\n", "bad.cfg:2:", "is a folder"),
    ("name = \"g\"\nkernel = \"empty\"\n", "bad.cfg:2:", "neither an ELF file nor a bzImage"),
    ("name = \"g\"\nkernel = \"text\"\n", "bad.cfg:2:", "neither an ELF file nor a bzImage"),
    ("name = \"g\"\nkernel = \"truncated.elf\"\n", "bad.cfg:2:", "the kernel file is"),
    ("name = \"g\"\nkernel = \"corrupt.bzimage\"\n", "bad.cfg:2:", "corrupt"),
    ("name = \"g\"\nkernel = \"truncated.bzimage\"\n", "bad.cfg:2:", "truncated"),
    ("name = \"g\"\nkernel = \"lzma.bzimage\"\n", "bad.cfg:2:", "which is not supported"),
    ("name = \"g\"\nkernel = \"text\"\nramdisk = \"none\"\n", "bad.cfg:3:", "there is no RAM disk"),
    (
        "name = \"g\"\nkernel = \"text\"\ndisk = [\"none.img,raw,xvda,rw\"]\n",
        "bad.cfg:3:",
        "there is no disk image",
    ),
    (
        "name = \"g\"\nkernel = \"text\"\ndisk = [\"tiny.img,raw,xvda,rw\"]\n",
        "bad.cfg:3:",
        "511 bytes, less than one sector",
    ),
    ("name = \"g\"\nkernel = \"text\"\ndisk = [\"disk.img,qcow2,xvda,rw\"]\n", "bad.cfg:3:", "qcow2"),
    (
        "name = \"g\"\nkernel = \"text\"\ndisk = [\"disk.img,raw,xvda,rw\", \"disk.img,raw,xvdb,ro\"]\n",
        "bad.cfg:3:",
        "used by `g`, too",
    ),
    ("name = \"g\"\nkernel = \"text\"\nmemory = 0\n", "bad.cfg:3:", "memory"),
    ("name = \"g\"\nkernel = \"text\"\nmemory = 900000\n", "bad.cfg:3:", "more than this host has"),
    ("name = \"g\"\nkernel = \"text\"\nmemory = 99999999999999999999\n", "bad.cfg:3:", "error:"),
    ("name = \"g\"\nkernel = \"text\"\nvcpus = 99\n", "bad.cfg:3:", "vcpus"),
    ("name = \"g\"\nkernel = \"text\"\ntype = \"hvm\"\n", "bad.cfg:3:", "hvm"),
    ("name = \"g\"\nkernel = \"text\"\nusb = 1\n", "bad.cfg:3:", "usb"),
];

fn args(dir: &Path, config: &str) -> RunArgs {
    let path = dir.join("bad.cfg");
    // What every guest needs stands on the first line, so that the cases keep their line numbers.
    let has_type = config.contains("type");
    let config = if has_type { config.to_owned() } else { config.replacen('\n', "; type = \"pvh\"\n", 1) };
    io(std::fs::write(&path, config));
    RunArgs { guests: vec![path], exec: vec!["xl list".into()], ..RunArgs::by_default() }
}

#[test]
fn a_bad_configuration_gets_its_place_and_a_sentence() {
    let dir = io(tempfile::tempdir());
    prepare(dir.path());
    for (config, place, sentence) in CASES {
        let Err(error) = run(&args(dir.path(), config)) else { panic!("accepted:\n{config}") };
        let message = error.to_string();
        assert_eq!(error.exit_status(), 2, "{config}\n{message}");
        assert!(message.contains(place) && message.contains(sentence), "{config}\n{message}");
    }
}

#[test]
fn a_syntax_error_shows_line_and_caret() {
    let dir = io(tempfile::tempdir());
    let Err(error) = run(&args(dir.path(), "name = \"g\"\nmemory = = 5\n")) else { panic!("accepted") };
    let message = error.to_string();
    assert!(message.contains("| memory = = 5"), "{message}");
    assert!(message.lines().any(|l| l.trim_start().starts_with('|') && l.contains('^')), "{message}");
}

#[test]
fn an_unknown_key_is_a_warning_that_names_the_nearest() {
    let parsed = qemu_runner::plan::plan(
        &[qemu_runner::plan::ConfigFile {
            name: "a.cfg".into(),
            text: "name = \"g\"; type = \"pvh\"\nkernel = \"/dev/null\"\nmemory = 64\nmemroy = 5\n".into(),
            dir: "/".into(),
        }],
        qemu_runner::plan::Kernels::AsTheyAre,
        qemu_runner::Progress::Silent,
    );
    let plan = system_tests::must(parsed);
    assert_eq!(plan.warnings.len(), 1, "{:?}", plan.warnings);
    assert!(plan.warnings[0].contains("did you mean `memory`"), "{}", plan.warnings[0]);
}

#[test]
fn files_and_options_that_make_no_sense_are_refused() {
    let dir = io(tempfile::tempdir());
    let base = || RunArgs { exec: vec!["xl list".into()], ..RunArgs::by_default() };
    let missing = RunArgs { guests: vec![dir.path().join("none.cfg")], ..base() };
    let binary = dir.path().join("binary.cfg");
    io(std::fs::write(&binary, [0xff, 0xfe]));
    let binary = RunArgs { guests: vec![binary], ..base() };
    let regex = RunArgs { until: Some("(".into()), ..base() };
    let kernel = RunArgs { kernel: Some(dir.path().join("none")), ..base() };
    let manifest = dir.path().join("system.toml");
    io(std::fs::write(&manifest, "[vmm]\npriority = 1000\n"));
    let manifest = RunArgs { manifest: Some(manifest), kernel: Some("/dev/null".into()), ..base() };
    let cases = [
        (missing, "the configuration cannot be read"),
        (binary, "not UTF-8 text"),
        (regex, "--until"),
        (kernel, "there is no kernel"),
        (manifest, "system.toml:1:1: error: missing field"),
    ];
    for (args, sentence) in cases {
        let Err(error) = run(&args) else { panic!("accepted: {args:?}") };
        assert_eq!(error.exit_status(), 2, "{error}");
        assert!(error.to_string().contains(sentence), "{error}");
    }
}
