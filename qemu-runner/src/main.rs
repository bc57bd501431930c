//! Command line of qemu-runner.

use std::process::ExitCode;

use clap::Parser as _;
use qemu_runner::cli::{Action, Cli, RunArgs};
use qemu_runner::{bench, run};

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        None => run::run(&RunArgs::by_default()),
        Some(Action::Run(args)) => run::run(&args),
        Some(Action::Bench(args)) => bench::bench(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(error.exit_status())
        }
    }
}
