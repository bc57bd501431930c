//! The committed inputs, run through their targets: what fuzzing once reached or found stays sound.
#![allow(clippy::panic, clippy::unwrap_used, reason = "a panic is a failed test")]

use std::collections::BTreeSet;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::thread;

use fuzz::TARGETS;

/// Folders of inputs: what fuzzing found, chosen by coverage, and a sound example of each kind.
const INPUTS: [&str; 2] = ["corpus", "seeds"];
/// The programs that give the targets to libFuzzer.
const PROGRAMS: &str = "libfuzzer/fuzz_targets";

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn entries(folder: &Path) -> BTreeSet<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// Files at which a target panics.
fn failures(target: fn(&[u8]), files: BTreeSet<PathBuf>) -> Vec<PathBuf> {
    let fails = |path: &PathBuf| {
        let bytes = std::fs::read(path).unwrap();
        catch_unwind(|| target(&bytes)).is_err()
    };
    files.into_iter().filter(fails).collect()
}

#[test]
fn no_target_panics_at_a_committed_input() {
    // A thread each, with the target's name, which is then in the panic's message.
    let threads = TARGETS.map(|(name, target)| {
        let replay = move || {
            let files = INPUTS.iter().flat_map(|inputs| entries(&folder(inputs).join(name))).collect();
            failures(target, files)
        };
        thread::Builder::new().name(name.to_owned()).spawn(replay).unwrap()
    });
    let failed: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn every_target_has_inputs_and_a_program_and_every_folder_a_target() {
    let targets: BTreeSet<_> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    for name in INPUTS.into_iter().chain([PROGRAMS]) {
        let stem = |path: PathBuf| path.file_stem().unwrap().to_string_lossy().into_owned();
        let stems: BTreeSet<_> = entries(&folder(name)).into_iter().map(stem).collect();
        assert_eq!(stems, targets, "{name}");
    }
    for inputs in INPUTS {
        for (name, _) in TARGETS {
            assert!(!entries(&folder(inputs).join(name)).is_empty(), "{inputs}/{name} is empty");
        }
    }
}

#[test]
fn an_input_at_which_a_target_panics_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let [good, bad] = ["good", "bad"].map(|name| {
        let path = dir.path().join(name);
        std::fs::write(&path, name).unwrap();
        path
    });
    let target = |bytes: &[u8]| assert!(bytes != b"bad");
    assert_eq!(failures(target, BTreeSet::from([good, bad.clone()])), [bad]);
}
