//! A disk image of a tree of files: a GPT with one ext4 partition.
//!
//! mke2fs copies the files into the file system, so nothing is mounted. Source: UEFI specification, 5.3 (GPT).

use std::path::Path;
use std::process::Command;

use gpt::GptConfig;
use gpt::disk::LogicalBlockSize;
use gpt::mbr::ProtectiveMBR;
use gpt::partition_types::LINUX_FS;

use crate::Error;

/// Bytes of a sector.
const SECTOR: u64 = 512;
/// Where the partition starts, in sectors: at 1 MiB, as every partitioning program has it.
const START: u64 = 2048;
/// Sectors behind the partition: 1 MiB, of which the table's copy needs 33.
const BEHIND: u64 = 2048;
/// Features of the file system, whatever the host's mke2fs would choose: GRUB 2.06 cannot read newer ones
/// (metadata_csum_seed, orphan_file).
const MKE2FS_CONF: &str = "[defaults]\nbase_features = sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr\n\
                           default_mntopts = acl,user_xattr\nenable_periodic_fsck = 0\nblocksize = 4096\ninode_size = 256\n\
                           inode_ratio = 16384\n[fs_types]\next4 = {\nfeatures = \
                           has_journal,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize\n}\n";

/// Names of the image's parts that must be its own.
#[derive(Debug, Clone)]
pub struct Ids {
    /// UUID of the file system.
    pub file_system: String,
}

impl Ids {
    /// New ones.
    ///
    /// # Errors
    /// The host has no random numbers.
    pub fn new() -> Result<Self, Error> {
        let path = Path::new("/proc/sys/kernel/random/uuid");
        let uuid = std::fs::read_to_string(path).map_err(Error::path(path))?;
        Ok(Self { file_system: uuid.trim().to_owned() })
    }
}

/// First byte of the partition.
pub const OFFSET: u64 = START * SECTOR;

/// Makes the image, whole or not at all.
///
/// # Errors
/// The files do not fit, or I/O.
pub fn build(tree: &Path, mke2fs: &Path, image: &Path, size: u64, ids: &Ids) -> Result<(), Error> {
    let size = size & !(OFFSET - 1);
    let sectors = (size / SECTOR).checked_sub(START + BEHIND).filter(|sectors| *sectors > 0);
    let sectors = sectors.ok_or_else(|| Error::Usage("--size: a disk has at least 3 MiB".to_owned()))?;
    let dir = image.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir).map_err(Error::path(dir))?;
    let part = tempfile::NamedTempFile::new_in(dir).map_err(Error::path(dir))?;
    part.as_file().set_len(size).map_err(Error::path(image))?;
    partition(part.as_file(), sectors).map_err(Error::path(image))?;

    let mut config = tempfile::NamedTempFile::new().map_err(Error::io("temporary file"))?;
    std::io::Write::write_all(&mut config, MKE2FS_CONF.as_bytes()).map_err(Error::io("temporary file"))?;
    let output = Command::new(mke2fs)
        .env("MKE2FS_CONFIG", config.path())
        .args(["-q", "-F", "-t", "ext4", "-L", "root", "-U", &ids.file_system, "-d"])
        .arg(tree)
        .arg("-E")
        .arg(format!("offset={OFFSET},lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0"))
        .arg(part.path())
        .arg(format!("{}k", sectors * SECTOR / 1024))
        .output()
        .map_err(Error::path(mke2fs))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.trim();
        let hint = if said.contains("allocate block") { " (give more --size)" } else { "" };
        return Err(Error::Usage(format!("mke2fs cannot make {}{hint}: {said}", image.display())));
    }
    super::set_mode(part.path(), 0o644)?;
    part.persist(image).map_err(|e| Error::Usage(format!("{}: {e}", image.display())))?;
    Ok(())
}

fn partition(file: &std::fs::File, sectors: u64) -> std::io::Result<()> {
    let mut device = file.try_clone()?;
    let all = file.metadata()?.len() / SECTOR;
    let protective = ProtectiveMBR::with_lb_size(u32::try_from(all - 1).unwrap_or(u32::MAX));
    protective.overwrite_lba0(&mut device).map_err(std::io::Error::other)?;
    let config = GptConfig::new().writable(true).logical_block_size(LogicalBlockSize::Lb512);
    let mut table = config.create_from_device(device, None).map_err(std::io::Error::other)?;
    table
        .add_partition("debian", sectors * SECTOR, LINUX_FS, 0, Some(START))
        .map_err(std::io::Error::other)?;
    table.write().map_err(std::io::Error::other)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use image_builder::toolchain::find_program;

    #[test]
    fn the_partition_holds_the_files_and_ends_before_the_tables_copy() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, image) = (dir.path().join("tree"), dir.path().join("disk.img"));
        std::fs::create_dir(&tree).unwrap();
        std::fs::write(tree.join("note"), "kept").unwrap();
        let Some(mke2fs) = find_program("mke2fs") else { return };
        let ids = Ids { file_system: "01234567-89ab-4cde-8f01-23456789abcd".to_owned() };
        build(&tree, &mke2fs, &image, 32 << 20, &ids).unwrap();

        let table = GptConfig::new().writable(false).open(&image).unwrap();
        let partition = table.partitions().get(&1).unwrap();
        assert_eq!((partition.first_lba, partition.last_lba), (START, (32 << 20) / SECTOR - BEHIND - 1));
        let bytes = std::fs::read(&image).unwrap();
        // The superblock, 1 KiB into the partition: magic and UUID.
        let superblock = &bytes[OFFSET as usize + 1024..];
        assert_eq!(superblock[56..58], [0x53, 0xef]);
        assert_eq!(superblock[104..108], [0x01, 0x23, 0x45, 0x67]);
        assert!(bytes.windows(4).any(|bytes| bytes == b"kept"));
    }

    #[test]
    fn files_that_do_not_fit_are_an_error_and_leave_no_image() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, image) = (dir.path().join("tree"), dir.path().join("disk.img"));
        std::fs::create_dir(&tree).unwrap();
        std::fs::write(tree.join("big"), vec![1; 16 << 20]).unwrap();
        let Some(mke2fs) = find_program("mke2fs") else { return };
        let error = build(&tree, &mke2fs, &image, 16 << 20, &Ids::new().unwrap()).unwrap_err().to_string();
        assert!(error.contains("--size"), "{error}");
        assert!(build(&tree, &mke2fs, &image, 1 << 20, &Ids::new().unwrap()).is_err());
        assert!(!image.exists());
    }
}
