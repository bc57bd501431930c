//! From xl.cfg files to what goes into the bundle and what becomes a disk of the machine.
//!
//! Every path of a configuration is looked at before anything starts, with the same parser that the
//! toolstack uses; what is wrong is said with file, line and what to do.

use std::path::{Path, PathBuf};

use image_builder::{File, Progress};
use proto::toolstack::{CONFIGS_FILE, CONFIGS_MAX, GuestConfig as PackedConfig, GuestConfigs, Resource};
use toolstack::config::{FILE_MAX, GuestConfig, HostPathUse, Source, Span, Spanned, parse};

use crate::guest::{kernel, package};
use crate::qemu::Drive;
use crate::{Error, host};

/// Smallest disk in bytes: one sector.
const SECTOR: u64 = 512;

/// A configuration and the folder that its relative paths start from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFile {
    /// Name, for messages.
    pub name: String,
    /// Text.
    pub text: String,
    /// Folder.
    pub dir: PathBuf,
}

impl ConfigFile {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, is too long or is not text.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let wrong = |why: String| Error::Usage(format!("{}: {why}", path.display()));
        let bytes =
            std::fs::read(path).map_err(|e| wrong(format!("the configuration cannot be read: {e}")))?;
        if bytes.len() > FILE_MAX {
            return Err(wrong(format!(
                "the configuration has {} bytes; at most {FILE_MAX} are possible",
                bytes.len()
            )));
        }
        let text =
            String::from_utf8(bytes).map_err(|_| wrong("the configuration is not UTF-8 text".to_owned()))?;
        let absolute = std::path::absolute(path).map_err(Error::path(path))?;
        let dir = absolute.parent().unwrap_or(Path::new("/")).to_path_buf();
        Ok(Self { name: path.display().to_string(), text, dir })
    }
}

/// What the guests need.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Guests' names, in the order of the configurations.
    pub guests: Vec<String>,
    /// Files of the bundle: the configurations, kernels, RAM disks.
    pub files: Vec<File>,
    /// Disks.
    pub drives: Vec<Drive>,
    /// Memory of all guests, in MiB.
    pub guests_mib: u64,
    /// Bytes of all files.
    pub files_bytes: u64,
    /// Warnings about the configurations.
    pub warnings: Vec<String>,
}

/// How guests' files are treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernels {
    /// A bzImage is unpacked on the host.
    Unpack,
    /// Files are packed as they are, unchecked: the VMM unpacks and refuses.
    AsTheyAre,
}

/// Plans for these configurations.
///
/// # Errors
/// All that is wrong with them, with places.
pub fn plan(configs: &[ConfigFile], kernels: Kernels, progress: Progress) -> Result<Plan, Error> {
    plan_some(configs, configs.len(), kernels, progress)
}

/// [`plan`] where only the first guests start with the machine; the others wait for `xl create`.
///
/// # Errors
/// As [`plan`].
pub fn plan_some(
    configs: &[ConfigFile],
    started: usize,
    kernels: Kernels,
    progress: Progress,
) -> Result<Plan, Error> {
    if configs.len() > CONFIGS_MAX {
        return Err(Error::Usage(format!("{} guests; at most {CONFIGS_MAX} are possible", configs.len())));
    }
    let mut planner =
        Planner { plan: Plan::default(), kernels, progress, problems: Vec::new(), disks: Vec::new() };
    let mut resources = Vec::new();
    for (index, file) in configs.iter().enumerate() {
        let parsed = parse(&file.name, &file.text);
        planner.plan.warnings.extend(parsed.warnings().map(ToString::to_string));
        planner.problems.extend(parsed.errors().map(ToString::to_string));
        resources.push(parsed.config.map(|c| planner.guest(index, file, &c)).unwrap_or_default());
    }
    if !planner.problems.is_empty() {
        return Err(Error::Usage(planner.problems.join("\n")));
    }
    let packed = pack(configs, started, &resources)?;
    let mut plan = planner.plan;
    plan.files_bytes += packed.len() as u64;
    plan.files.push(File::bytes(CONFIGS_FILE, packed));
    Ok(plan)
}

/// What stands for a host path in the system.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Named {
    path: String,
    name: String,
}

fn pack(configs: &[ConfigFile], started: usize, resources: &[Vec<Named>]) -> Result<Vec<u8>, Error> {
    let mut packed = GuestConfigs::default();
    for (index, (file, resources)) in configs.iter().zip(resources).enumerate() {
        let list = resources.iter().map(|r| Resource { path: &r.path, name: &r.name }).collect();
        let is_autostart = index < started;
        let config = PackedConfig { file: &file.name, text: &file.text, is_autostart, resources: list };
        packed.configs.push(config).map_err(|_| Error::Usage("too many guests".to_owned()))?;
    }
    postcard::to_stdvec(&packed)
        .map_err(|e| Error::Usage(format!("the guests' configurations cannot be packed: {e}")))
}

/// A disk of the host, with who uses it.
struct Disk {
    canonical: PathBuf,
    user: String,
}

struct Planner {
    plan: Plan,
    kernels: Kernels,
    progress: Progress,
    problems: Vec<String>,
    disks: Vec<Disk>,
}

impl Planner {
    fn say(&mut self, file: &ConfigFile, span: Span, message: impl Into<String>) {
        let source = Source { file: &file.name, text: &file.text };
        self.problems.push(source.error(span, message).to_string());
    }

    fn guest(&mut self, index: usize, file: &ConfigFile, config: &GuestConfig) -> Vec<Named> {
        let name = config.name.value.clone();
        if self.plan.guests.contains(&name) {
            self.say(
                file,
                config.name.span,
                format!("there is another guest called `{name}`; names are unique"),
            );
        }
        self.plan.guests.push(name);
        self.plan.guests_mib = self.plan.guests_mib.saturating_add(config.total_kib().div_ceil(1024));
        if config.total_kib() / 1024 > host_memory_mib() {
            self.say(
                file,
                config.memory_kib.span,
                format!(
                    "the guest asks for {} MiB, more than this host has ({} MiB); ask for less",
                    config.total_kib() / 1024,
                    host_memory_mib()
                ),
            );
        }
        let mut resources: Vec<Named> = Vec::new();
        for (purpose, path) in config.host_paths() {
            let name = match purpose {
                HostPathUse::Kernel => self.kernel(index, file, path),
                HostPathUse::Ramdisk => self.ramdisk(index, file, path),
                HostPathUse::Disk { is_read_only } => self.disk(file, config, path, is_read_only),
            };
            let Some(name) = name else { continue };
            let clash = resources.iter().find(|r| r.path == path.value);
            match clash {
                Some(other) if other.name != name => {
                    self.say(
                        file,
                        path.span,
                        format!("`{}` stands for two different things here", path.value),
                    );
                }
                Some(_) => {}
                None => resources.push(Named { path: path.value.clone(), name }),
            }
        }
        resources
    }

    /// A readable regular file, or a message.
    fn host_file(&mut self, file: &ConfigFile, path: &Spanned<String>, what: &str) -> Option<PathBuf> {
        let full = file.dir.join(&path.value);
        let opened = std::fs::File::open(&full).and_then(|f| f.metadata());
        match opened {
            Ok(data) if data.is_dir() => {
                self.say(file, path.span, format!("{} is a folder; give the {what}'s file", full.display()));
            }
            Ok(_) => return Some(full),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => self.say(
                file,
                path.span,
                format!(
                    "there is no {what} {}; paths are relative to {}",
                    full.display(),
                    file.dir.display()
                ),
            ),
            Err(e) => self.say(file, path.span, format!("the {what} {} cannot be read: {e}", full.display())),
        }
        None
    }

    fn kernel(&mut self, index: usize, file: &ConfigFile, path: &Spanned<String>) -> Option<String> {
        let full = self.host_file(file, path, "kernel")?;
        let prepared = match self.kernels {
            Kernels::AsTheyAre => full,
            Kernels::Unpack => {
                let step = self.progress.step("unpack guest kernel");
                match kernel::prepare(&full) {
                    Ok(prepared) => {
                        drop(step);
                        prepared
                    }
                    Err(why) => {
                        self.say(file, path.span, why);
                        return None;
                    }
                }
            }
        };
        Some(self.pack_file(format!("guest/{index}/kernel"), prepared))
    }

    fn ramdisk(&mut self, index: usize, file: &ConfigFile, path: &Spanned<String>) -> Option<String> {
        let full = self.host_file(file, path, "RAM disk")?;
        Some(self.pack_file(format!("guest/{index}/ramdisk"), full))
    }

    /// Names a file of the bundle; the same host file is packed once.
    fn pack_file(&mut self, name: String, path: PathBuf) -> String {
        let file = File::path(name.clone(), &path);
        if let Some(same) = self.plan.files.iter().find(|f| f.content == file.content) {
            return same.name.clone();
        }
        self.plan.files_bytes += std::fs::metadata(&path).map(|m| m.len()).unwrap_or_default();
        self.plan.files.push(file);
        name
    }

    fn disk(
        &mut self,
        file: &ConfigFile,
        config: &GuestConfig,
        path: &Spanned<String>,
        is_read_only: bool,
    ) -> Option<String> {
        let full = self.host_file(file, path, "disk image")?;
        let canonical = std::fs::canonicalize(&full).unwrap_or(full);
        let size = match disk_size(&canonical) {
            Ok(size) => size,
            Err(e) => {
                self.say(
                    file,
                    path.span,
                    format!("the disk image {} cannot be read: {e}", canonical.display()),
                );
                return None;
            }
        };
        if size < SECTOR {
            self.say(
                file,
                path.span,
                format!(
                    "the disk image {} has {size} bytes, less than one sector ({SECTOR}); enlarge it: truncate -s 64M FILE",
                    canonical.display()
                ),
            );
            return None;
        }
        if !is_read_only && let Err(e) = std::fs::OpenOptions::new().write(true).open(&canonical) {
            self.say(
                file,
                path.span,
                format!(
                    "the disk image {} cannot be written to: {e}; give the guest read-only access (ro) or change the \
                     file's mode",
                    canonical.display()
                ),
            );
            return None;
        }
        let user = config.name.value.clone();
        if let Some(index) = self.disks.iter().position(|d| d.canonical == canonical) {
            let shared = &mut self.plan.drives[index];
            if !(shared.is_read_only && is_read_only) {
                let other = self.disks[index].user.clone();
                let message = format!(
                    "the disk image {} is used by `{other}`, too, and not only for reading: its file system would be \
                     destroyed; give both read-only access or make a copy",
                    canonical.display()
                );
                self.say(file, path.span, message);
                return None;
            }
            return Some(shared.volume.clone());
        }
        let volume = format!("vol{}", self.disks.len());
        self.plan.drives.push(Drive { path: canonical.clone(), volume: volume.clone(), is_read_only });
        self.disks.push(Disk { canonical, user });
        Some(volume)
    }
}

/// Bytes of an image file or block device.
fn disk_size(path: &Path) -> std::io::Result<u64> {
    std::io::Seek::seek(&mut std::fs::File::open(path)?, std::io::SeekFrom::End(0))
}

/// Memory of the host in MiB; no limit where that cannot be found out.
fn host_memory_mib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").trim().parse::<u64>().ok());
    kib.map_or(u64::MAX, |kib| kib / 1024)
}

/// Memory of the machine in MiB for a plan: guests, files, and room for the system.
///
/// # Errors
/// What was asked for is too little, or more than the host has.
pub fn machine_memory(plan: &Plan, asked: Option<u64>) -> Result<u64, Error> {
    let needed = plan.guests_mib.saturating_add(plan.files_bytes.div_ceil(1 << 20)).saturating_add(256);
    let memory = match asked {
        Some(asked) if asked < needed => {
            return Err(Error::Usage(format!(
                "--memory {asked} is too little: guests, their kernels and the system need {needed} MiB"
            )));
        }
        Some(asked) => asked,
        None => needed.max(crate::qemu::DEFAULT_MEMORY_MIB).next_multiple_of(64),
    };
    if memory > host_memory_mib() {
        return Err(Error::Usage(format!(
            "the machine would need {memory} MiB and this host has {}; give the guests less memory",
            host_memory_mib()
        )));
    }
    Ok(memory)
}

/// The default guest, or one made of files named on the command line, as a configuration.
///
/// # Errors
/// A package, tool or file that cannot be had.
pub fn default_config(
    kernel: Option<&Path>,
    package: Option<&package::Name>,
    initrd: Option<&Path>,
    disk: Option<&Path>,
    progress: Progress,
) -> Result<ConfigFile, Error> {
    use crate::guest::{CMDLINE, NAME, own_root, prepare_with, xl_cfg};
    let cmdline = |has_disk| if has_disk { CMDLINE } else { "console=hvc0 8250.nr_uarts=0 quiet" };
    let absolute = |path: &Path| std::path::absolute(path).map_err(Error::path(path));
    let dir = host::cache_dir();
    let text = if let Some(kernel) = kernel {
        let initrd = initrd.map(absolute).transpose()?;
        let disk = disk.map(absolute).transpose()?;
        xl_cfg("guest", &absolute(kernel)?, initrd.as_deref(), disk.as_deref(), cmdline(disk.is_some()))
    } else {
        let files = prepare_with(package, progress)?;
        let initrd = initrd.map(absolute).transpose()?.unwrap_or_else(|| files.initrd.clone());
        let disk = match disk {
            Some(disk) => absolute(disk)?,
            None => own_root(&files)?,
        };
        xl_cfg(NAME, &files.kernel, Some(&initrd), Some(&disk), cmdline(true))
    };
    Ok(ConfigFile { name: "default guest".to_owned(), text, dir })
}
