//! A Debian repository with one package that the test made: index and package as apt wants them.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use crate::{io, sha256};

/// The package.
pub const PACKAGE: &str = "ailurus-note";
/// Its file, and what stands in it.
pub const NOTE: (&str, &str) = ("usr/share/ailurus-note/note", "installed over the network");
/// Release and component.
pub const SUITE: &str = "test main";

/// The repository's files by their paths on the server.
pub fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let package = io(std::fs::read(build(dir)));
    let path = format!("pool/{PACKAGE}_1.0_all.deb");
    let packages = format!(
        "Package: {PACKAGE}\nVersion: 1.0\nArchitecture: all\nMaintainer: test <test@example.org>\nFilename: \
         {path}\nSize: {}\nSHA256: {}\nDescription: a note\n",
        package.len(),
        sha256(&package)
    );
    let index = "main/binary-amd64/Packages";
    let date = io(Command::new("date").args(["-u", "-R"]).env("LC_ALL", "C").output()).stdout;
    let release = format!(
        "Origin: test\nSuite: test\nCodename: test\nDate: {}\nArchitectures: amd64\nComponents: main\nSHA256:\n {} \
         {} {index}\n",
        String::from_utf8_lossy(&date).trim(),
        sha256(packages.as_bytes()),
        packages.len()
    );
    BTreeMap::from([
        ("/dists/test/Release".to_owned(), release.into_bytes()),
        (format!("/dists/test/{index}"), packages.into_bytes()),
        (format!("/{path}"), package),
    ])
}

fn build(dir: &Path) -> std::path::PathBuf {
    let tree = dir.join(PACKAGE);
    let (note, text) = (tree.join(NOTE.0), NOTE.1);
    let control = tree.join("DEBIAN/control");
    for (path, text) in [
        (&note, format!("{text}\n")),
        (
            &control,
            format!(
                "Package: {PACKAGE}\nVersion: 1.0\nArchitecture: all\nMaintainer: test \
                 <test@example.org>\nDescription: a note\n"
            ),
        ),
    ] {
        io(std::fs::create_dir_all(path.parent().unwrap_or(dir)));
        io(std::fs::write(path, text));
    }
    let package = dir.join("package.deb");
    // Not zstd, which Debian's dpkg cannot read before release 12.
    let output = Command::new("dpkg-deb")
        .args(["--root-owner-group", "-Zxz", "--build"])
        .args([&tree, &package])
        .output();
    let output = io(output);
    assert!(output.status.success(), "dpkg-deb: {}", String::from_utf8_lossy(&output.stderr));
    package
}
