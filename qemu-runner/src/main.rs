//! Command line of qemu-runner.

use std::process::ExitCode;

use clap::Parser as _;
use qemu_runner::cli::{Action, Cli, RunArgs, System};
use qemu_runner::{bench, make_guest, run};

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        None => run::run(&RunArgs::by_default()),
        Some(Action::Run(args)) => run::run(&args),
        Some(Action::Bench(args)) => bench::bench(&args),
        Some(Action::MakeGuest(System::Debian(args))) => make_guest::make_debian(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(error.exit_status())
        }
    }
}
