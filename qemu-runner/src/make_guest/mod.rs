//! `make-guest`: disk images with a whole operating system, which GRUB boots as it would on a computer.
//!
//! [`tree`] gets the system's files (cached: it takes minutes), [`personal`] gives them what no two systems may share,
//! [`disk`] makes the image of them. No step mounts anything, so it works in a container.

pub mod disk;
pub mod personal;
pub mod tree;

use std::path::{Path, PathBuf};

use image_builder::Progress;
use image_builder::toolchain::find_program;

use crate::Error;
use crate::cli::DebianArgs;
use crate::host::debian::{Apt, unpack};
use crate::host::{Lock, cache_dir, tools, write_whole};
use personal::{Login, Personal};
use tree::Recipe;

/// GRUB as the kernel of a PVH guest: Debian's package, the file in it.
const GRUB_PACKAGE: &str = "grub-xen-host";
const GRUB: &str = "usr/lib/grub-xen/grub-i386-xen_pvh.bin";
/// Memory of the guest in MiB: Debian's own initial RAM disk needs 256.
const MEMORY_MIB: u32 = 512;

/// Everything about an image that can be chosen.
#[derive(Debug, Clone)]
pub struct Order {
    /// The system's files.
    pub recipe: Recipe,
    /// What is this system's own.
    pub personal: Personal,
    /// Bytes of the image.
    pub size: u64,
}

/// What was made.
#[derive(Debug, Clone)]
pub struct Made {
    /// The disk image.
    pub image: PathBuf,
    /// GRUB, which is the guest's kernel.
    pub grub: PathBuf,
    /// The guest's configuration.
    pub config: PathBuf,
}

/// The command `make-guest debian`.
///
/// # Errors
/// Not root, an option that is wrong, a tool or package that cannot be had, or no space.
pub fn make_debian(args: &DebianArgs) -> Result<(), Error> {
    let progress = Progress::Shown;
    require_root()?;
    let image = args.output.clone().unwrap_or_else(|| whole_dir().join("debian.img"));
    if image.exists() && !args.force {
        return Err(Error::Usage(format!(
            "{} exists, and a system in it may have been used: give another --output, or --force to make it anew",
            image.display()
        )));
    }
    let keys = args.ssh_key.iter().map(|path| personal::read_key(path)).collect::<Result<Vec<_>, _>>()?;
    let (password, is_ours) = match &args.root_password {
        Some(password) => (password.clone(), false),
        None => (personal::random_password()?, true),
    };
    let order = Order {
        recipe: Recipe::new(&args.suite, &args.mirror, &args.packages),
        personal: Personal {
            hostname: args.hostname.clone(),
            login: Login { root_password: password.clone(), ssh_keys: keys },
        },
        size: args.size,
    };
    let made = debian(&image, &order, progress)?;
    let mut files = vec![made.image.clone(), made.grub.clone(), made.config.clone()];
    println!("image:          {}", made.image.display());
    println!("configuration:  {}", made.config.display());
    if is_ours {
        let file = image.with_extension("password");
        personal::write_secret(&file, &format!("{password}\n"))?;
        println!("root's password: {password} (also in {})", file.display());
        files.push(file);
    }
    hand_over(&files)?;
    println!("Start it:       cargo run -p qemu-runner -- run --guest {}", made.config.display());
    Ok(())
}

/// Makes an image with a whole Debian, and beside it GRUB and the guest's configuration.
///
/// # Errors
/// As [`make_debian`].
pub fn debian(image: &Path, order: &Order, progress: Progress) -> Result<Made, Error> {
    order.personal.check()?;
    let dir = whole_dir();
    let _lock = Lock::take(&dir.join("lock"))?;
    let mke2fs = tools::ensure(tools::MKE2FS, progress)?;
    let tree = tree::get(&order.recipe, &dir, progress)?;
    let ids = disk::Ids::new()?;
    let step = progress.step("disk image");
    personal::apply(&tree, &order.personal, &order.recipe, &ids.file_system)?;
    disk::build(&tree, &mke2fs, image, order.size, &ids)?;
    step.done(format!("GPT with one ext4 partition, {} MiB", order.size >> 20));
    let grub = image.with_file_name("grub-i386-xen_pvh.bin");
    write_whole(&grub, &grub_file(&dir, progress)?)?;
    let config = image.with_extension("cfg");
    write_whole(&config, xl_cfg(&order.personal.hostname, &grub, image).as_bytes())?;
    for file in [&grub, &config] {
        set_mode(file, 0o644)?;
    }
    Ok(Made { image: image.to_owned(), grub, config })
}

/// Where whole systems are kept.
fn whole_dir() -> PathBuf {
    cache_dir().join("whole")
}

/// debootstrap changes root into the new system, and its files belong to many users.
fn require_root() -> Result<(), Error> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let words = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    let program = std::env::current_exe().map_err(Error::io("this program"))?;
    Err(Error::Usage(format!(
        "A whole system can only be installed by root (its files belong to several users, and its packages' scripts \
         run inside of it). Type:\n    sudo {} {words}",
        program.display()
    )))
}

/// What sudo made belongs to the one who typed it.
fn hand_over(files: &[PathBuf]) -> Result<(), Error> {
    let id = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    let (Some(user), Some(group)) = (id("SUDO_UID"), id("SUDO_GID")) else { return Ok(()) };
    for file in files {
        std::os::unix::fs::chown(file, Some(user), Some(group)).map_err(Error::path(file))?;
    }
    Ok(())
}

fn set_mode(path: &Path, mode: u32) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(Error::path(path))
}

/// GRUB's file: the installed one, or out of the package.
fn grub_file(dir: &Path, progress: Progress) -> Result<Vec<u8>, Error> {
    let installed = Path::new("/").join(GRUB);
    if installed.is_file() {
        return std::fs::read(&installed).map_err(Error::path(&installed));
    }
    if find_program("apt-get").is_none() {
        return Err(Error::Usage(format!("/{GRUB} is missing; Debian calls the package {GRUB_PACKAGE}.")));
    }
    let package = Apt::new(&dir.join("packages"))?.download(GRUB_PACKAGE, progress)?;
    let unpacked = tempfile::tempdir_in(dir).map_err(Error::path(dir))?;
    unpack(&package, unpacked.path())?;
    let file = unpacked.path().join(GRUB);
    std::fs::read(&file).map_err(Error::path(&file))
}

/// The guest's configuration, with paths relative to itself.
fn xl_cfg(name: &str, grub: &Path, image: &Path) -> String {
    let file = |path: &Path| path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    format!(
        "# GRUB is the guest's kernel; it loads Linux from the disk.\nname = \"{name}\"\ntype = \"pvh\"\nkernel = \
         \"{}\"\nmemory = {MEMORY_MIB}\nvcpus = 1\ndisk = [\"vdev=xvda,format=raw,access=rw,target={}\"]\nvif = \
         [\"bridge=xenbr0\"]\n",
        file(grub),
        file(image)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_accepted() {
        let text = xl_cfg("debian", Path::new("/a/grub.bin"), Path::new("/a/b,c.img"));
        let parsed = toolstack::config::parse("debian.cfg", &text);
        assert_eq!(parsed.diagnostics, []);
        let config = parsed.config.unwrap();
        assert_eq!(config.kernel.value, "grub.bin");
        assert_eq!((config.disks[0].target.value.as_str(), config.disks[0].device), ("b,c.img", 51712));
    }
}
