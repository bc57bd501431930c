//! The tests' own programs for the machine, built with the system's so that these are built once.

use std::path::PathBuf;
use std::sync::OnceLock;

use image_builder::programs::{Origin, Program, of_workspace};
use qemu_runner::Progress;
use qemu_runner::host::{Lock, cache_dir};

use crate::must;

const DOMAIN: &str = "hostile-domain";
const GUEST: &str = "test-guest";

fn built() -> &'static [PathBuf; 2] {
    static BUILT: OnceLock<[PathBuf; 2]> = OnceLock::new();
    BUILT.get_or_init(|| {
        let mut programs = of_workspace();
        programs.extend([DOMAIN, GUEST].map(|name| Program {
            name: name.to_owned(),
            origin: Origin::Workspace { package: name.to_owned(), binary: name.to_owned() },
            uses: None,
        }));
        let _lock = must(Lock::take(&cache_dir().join("build.lock")));
        let built = image_builder::build(&image_builder::BuildRequest::new(programs), Progress::Silent);
        let built = built.unwrap_or_else(|error| panic!("{error}"));
        [DOMAIN, GUEST].map(|name| {
            let found = built.programs.iter().find(|(program, _)| program.name == name);
            found.map(|(_, path)| path.clone()).unwrap_or_else(|| panic!("{name} was not built"))
        })
    })
}

/// The domain of `tests/domains`.
pub fn hostile_domain() -> Program {
    Program::prebuilt(DOMAIN, &built()[0])
}

/// The kernel of `tests/guests`.
pub fn test_guest() -> PathBuf {
    built()[1].clone()
}
