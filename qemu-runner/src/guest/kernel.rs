//! A guest's kernel file: unpacked once on the host, where that takes a second.
//!
//! The guest's VMM can unpack a bzImage by itself, but under emulation that takes very long. What is
//! wrong with a file is found here, before anything is started.

use std::path::{Path, PathBuf};

use vmm::loader::extract_elf;
use vmm::loader::image::Image;

use crate::Error;
use crate::host::{cache_dir, sha256, write_whole};

/// Checks a kernel file and returns the ELF file to pack; a bzImage is unpacked to the cache.
///
/// # Errors
/// What is wrong with the file, as a sentence without its name.
pub fn prepare(path: &Path) -> Result<PathBuf, String> {
    prepare_in(&cache_dir().join("kernels"), path).map_err(|e| e.to_string())
}

fn prepare_in(cache: &Path, path: &Path) -> Result<PathBuf, Error> {
    let file = std::fs::read(path).map_err(Error::io("the kernel cannot be read"))?;
    let wrong = |e: vmm::loader::LoadError| Error::Usage(e.to_string());
    if file.starts_with(b"\x7fELF") {
        Image::parse(&file).map_err(wrong)?;
        return Ok(path.to_path_buf());
    }
    let unpacked = cache.join(format!("{}.elf", sha256(&[&file])));
    if !unpacked.exists() {
        let elf = extract_elf(&file).map_err(wrong)?;
        Image::parse(&elf).map_err(wrong)?;
        write_whole(&unpacked, &elf)?;
    }
    Ok(unpacked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_kernel_is_refused_with_a_sentence() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kernel");
        let mut header = vec![0; 1024];
        header[0x202..0x206].copy_from_slice(b"HdrS");
        header[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
        let mut corrupt = header.clone();
        corrupt[0x248..0x24c].copy_from_slice(&0xffff_0000u32.to_le_bytes());
        let cases: [(&[u8], &str); 5] = [
            (b"", "neither an ELF file nor a bzImage"),
            (b"#!/bin/sh\n", "neither an ELF file nor a bzImage"),
            (b"\x7fELF", "truncated"),
            (&header[..0x240], "truncated"),
            (&corrupt, "truncated"),
        ];
        for (content, expected) in cases {
            std::fs::write(&path, content).unwrap();
            let error = prepare_in(dir.path(), &path).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let error = prepare_in(dir.path(), &dir.path().join("none")).unwrap_err().to_string();
        assert!(error.contains("cannot be read"), "{error}");
    }
}
