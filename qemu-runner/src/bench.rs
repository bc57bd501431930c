//! `bench`: the figures that the design is held to, counted under `-icount`.

use std::time::Duration;

use image_builder::Progress;

use crate::Error;
use crate::cli::BenchArgs;
use crate::plan::default_config;
use crate::session::{Request, Session};

/// Runs the default guest under `-icount` and prints what the system says about itself.
///
/// # Errors
/// See [`Error::exit_status`].
pub fn bench(args: &BenchArgs) -> Result<(), Error> {
    let mut request = Request::new(vec![default_config(None, None, None, Progress::Shown)?]);
    request.has_icount = true;
    request.progress = Progress::Shown;
    let session = Session::prepare(&request)?;
    println!("{:>10}  program", "bytes");
    let bundle = session.bundle();
    let bytes = std::fs::read(&bundle).map_err(Error::path(&bundle))?;
    for entry in image_builder::bundle::read(&bytes)?.entries {
        if entry.name.starts_with("services/") {
            println!("{:>10}  {}", entry.len, entry.name);
        }
    }
    let machine = session.start(args.log.as_deref())?;
    let timeout = Duration::from_secs(args.timeout);
    machine.wait_up(timeout)?;
    machine.guest(crate::guest::NAME).from_start().wait_shell(timeout)?;
    for command in ["xl info", "xl list"] {
        let (output, _) = machine.exec(command, timeout)?;
        println!("{output}");
    }
    machine.quit(Duration::from_secs(60))
}
