//! From a request to a machine that runs: build, plan, pack, start.

use std::path::{Path, PathBuf};

use image_builder::manifest::{self, Manifest};
use image_builder::programs::{Program, of_workspace};
use image_builder::{BuildRequest, BundleSpec, Progress, pack_image};

use crate::accel::{self, Accel};
use crate::host::tools;
use crate::machine::Machine;
use crate::plan::{ConfigFile, Kernels, Plan, machine_memory, plan_some};
use crate::qemu::{Config, Net, Serial};
use crate::{Error, host};

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Request {
    /// Guests.
    pub guests: Vec<ConfigFile>,
    /// Guests that do not start with the machine but with `xl create`.
    pub further_guests: Vec<ConfigFile>,
    /// How their kernels are treated.
    pub kernels: Kernels,
    /// A system manifest that replaces the shipped one: name and text.
    pub manifest: Option<(String, String)>,
    /// Programs beside the workspace's own, or in place of those of the same name, for tests.
    pub programs: Vec<Program>,
    /// Features of the kernel beside the usual ones, for measuring: `count-instructions`.
    pub kernel_features: Vec<String>,
    /// Options of services: service, `key=value`.
    pub options: Vec<(String, String)>,
    /// Memory of the machine in MiB.
    pub memory_mib: Option<u64>,
    /// CPUs.
    pub smp: u32,
    /// Accelerator; found out by default.
    pub accel: Option<Accel>,
    /// Deterministic counting.
    pub has_icount: bool,
    /// Network.
    pub net: Net,
    /// Port forwardings.
    pub hostfwd: Vec<String>,
    /// Further QEMU arguments.
    pub qemu_args: Vec<String>,
    /// Where the serial port goes.
    pub serial: Serial,
    /// What the user sees.
    pub progress: Progress,
}

impl Request {
    /// These guests, everything else as it is by default, scripted.
    pub fn new(guests: Vec<ConfigFile>) -> Self {
        Self {
            guests,
            further_guests: Vec::new(),
            kernels: Kernels::Unpack,
            manifest: None,
            programs: Vec::new(),
            kernel_features: Vec::new(),
            options: Vec::new(),
            memory_mib: None,
            smp: 1,
            accel: None,
            has_icount: false,
            net: Net::User,
            hostfwd: Vec::new(),
            qemu_args: Vec::new(),
            serial: Serial::Pipe,
            progress: Progress::Silent,
        }
    }
}

/// Everything is ready to start.
#[derive(Debug)]
pub struct Session {
    /// What QEMU is told.
    pub config: Config,
    /// What the guests need.
    pub plan: Plan,
    /// The bundle's folder; it goes when the session does.
    _dir: tempfile::TempDir,
}

impl Session {
    /// Builds, checks and packs.
    ///
    /// # Errors
    /// Whatever is wrong with the configuration, the host or the sources.
    pub fn prepare(request: &Request) -> Result<Self, Error> {
        let progress = request.progress;
        let mut programs = of_workspace();
        programs.retain(|own| !request.programs.iter().any(|other| other.name == own.name));
        programs.extend(request.programs.iter().cloned());
        let manifest = load_manifest(request, &programs)?;
        // What the user wrote is checked first: compiling takes a while.
        let guests = [&request.guests[..], &request.further_guests[..]].concat();
        let plan = plan_some(&guests, request.guests.len(), request.kernels, progress)?;
        for warning in &plan.warnings {
            progress.say(warning);
        }
        let memory_mib = machine_memory(&plan, request.memory_mib)?;
        let program = tools::ensure(tools::QEMU, progress)?;
        let machine = {
            // One build at a time; cargo would wait without saying so.
            let _lock = host::Lock::take(&host::cache_dir().join("build.lock"))?;
            let mut build = BuildRequest::new(manifest.programs(programs));
            build.kernel_features.clone_from(&request.kernel_features);
            image_builder::build(&build, progress)?
        };
        let mut options = request.options.clone();
        let mode = if request.serial == Serial::Terminal { "mode=interactive" } else { "mode=mux" };
        options.push(("console".to_owned(), mode.to_owned()));
        let base = host::cache_dir().join("runs");
        std::fs::create_dir_all(&base).map_err(Error::path(&base))?;
        let dir = tempfile::tempdir_in(&base).map_err(Error::path(&base))?;
        let spec = BundleSpec { manifest: &manifest, options, files: plan.files.clone() };
        let image = pack_image(&machine, &spec, &dir.path().join("bundle.bin"))?;
        let (accel, why) = match request.accel {
            Some(accel) => (accel, "as asked for".to_owned()),
            None if request.has_icount => (Accel::Tcg, "software emulation, counted".to_owned()),
            None => accel::detect(),
        };
        progress.say(format!("Starting the machine: {memory_mib} MiB, {why}."));
        let config = Config {
            program,
            kernel: image.kernel,
            bundle: image.bundle,
            cdrom: None,
            accel,
            has_icount: request.has_icount,
            memory_mib,
            smp: request.smp,
            drives: plan.drives.clone(),
            net: request.net,
            hostfwd: request.hostfwd.clone(),
            serial: request.serial,
            extra: request.qemu_args.clone(),
        };
        Ok(Self { config, plan, _dir: dir })
    }

    /// Starts the machine, scripted.
    ///
    /// # Errors
    /// QEMU does not start.
    pub fn start(&self, log_dir: Option<&Path>) -> Result<Machine, Error> {
        Machine::start(&self.config, log_dir)
    }

    /// The bundle.
    pub fn bundle(&self) -> PathBuf {
        self.config.bundle.clone()
    }
}

fn load_manifest(request: &Request, programs: &[Program]) -> Result<Manifest, Error> {
    let (name, text) = match &request.manifest {
        Some((name, text)) => (name.as_str(), text.as_str()),
        None => (manifest::DEFAULT_NAME, manifest::DEFAULT),
    };
    Ok(manifest::load(name, text, programs)?)
}
