//! An image: the kernel's ELF file, and the bundle with everything else.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use crate::bundle::{self, File, Layout};
use crate::elf;
use crate::machine::Machine;
use crate::manifest::{self, Manifest};
use crate::programs::{INIT, VMM};
use crate::{Error, manifest::compile};

/// What an image is made of, besides the programs.
#[derive(Debug)]
pub struct BundleSpec<'a> {
    /// The checked manifest.
    pub manifest: &'a Manifest,
    /// Options that replace the manifest's: service, `key=value`.
    pub options: Vec<(String, String)>,
    /// Further files: guests' kernels and the like.
    pub files: Vec<File>,
}

/// An image, ready for a boot loader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The kernel.
    pub kernel: PathBuf,
    /// The bundle.
    pub bundle: PathBuf,
    /// What is where in the bundle.
    pub layout: Layout,
}

/// Packs the bundle to a file.
///
/// # Errors
/// A program is missing or not a program; a service names a file that nobody packs; I/O.
pub fn pack_image(machine: &Machine, spec: &BundleSpec<'_>, bundle: &Path) -> Result<Image, Error> {
    let program = |name: &str| {
        let found = machine.programs.iter().find(|(p, _)| p.name == name);
        let (_, path) = found.ok_or_else(|| Error::Bundle(format!("the program `{name}` was not built")))?;
        std::fs::read(path).map_err(Error::io(path))
    };
    let init = elf::flatten(INIT, &program(INIT)?)?;
    let compiled = compile(spec.manifest, &spec.options)?;
    let encoded = postcard::to_stdvec(&compiled)
        .map_err(|e| Error::Bundle(format!("the manifest cannot be encoded: {e}")))?;
    let mut files = vec![File::bytes(proto::manifest::FILE, encoded)];
    let mut names: Vec<&str> = spec.manifest.services.iter().map(manifest::Service::program).collect();
    names.push(VMM);
    names.sort_unstable();
    names.dedup();
    for name in names {
        let shortened = elf::shorten(name, &program(name)?)?;
        files.push(File::bytes(format!("services/{name}"), shortened));
    }
    files.extend(spec.files.iter().cloned());
    for service in compiled.services.iter().filter(|s| !s.file.is_empty()) {
        if !files.iter().any(|f| f.name == service.file.as_str()) {
            return Err(Error::Bundle(format!("`{}` needs the file `{}`", service.name, service.file)));
        }
    }
    if let Some(parent) = bundle.parent() {
        std::fs::create_dir_all(parent).map_err(Error::io(parent))?;
    }
    let file = std::fs::File::create(bundle).map_err(Error::io(bundle))?;
    let mut out = std::io::BufWriter::with_capacity(1 << 20, file);
    let layout = bundle::write(&mut out, &init, &files)?;
    out.flush().map_err(Error::io(bundle))?;
    Ok(Image { kernel: machine.kernel.clone(), bundle: bundle.to_path_buf(), layout })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::tests::program;
    use crate::programs::{Program, of_workspace};

    fn machine(dir: &Path) -> Machine {
        let elf = program(0x20_0000, &[(0x20_0000, 5, b"code", 4)]);
        let build = |p: Program| {
            let path = dir.join(&p.name);
            std::fs::write(&path, &elf).unwrap();
            (p, path)
        };
        Machine { kernel: dir.join("kernel"), programs: of_workspace().into_iter().map(build).collect() }
    }

    #[test]
    fn an_image_has_every_program_and_the_manifest() {
        let dir = tempfile::tempdir().unwrap();
        let manifest = manifest::load("m", manifest::DEFAULT, &of_workspace()).unwrap();
        let mut spec = BundleSpec { manifest: &manifest, options: vec![], files: vec![] };
        let path = dir.path().join("out/bundle.bin");
        let error = pack_image(&machine(dir.path()), &spec, &path).unwrap_err().to_string();
        assert_eq!(error, "`toolstack` needs the file `guests`");

        spec.files.push(File::bytes("guests", vec![0]));
        let image = pack_image(&machine(dir.path()), &spec, &path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bundle::read(&bytes).unwrap(), image.layout);
        let names: Vec<_> = image.layout.entries.iter().map(|e| e.name.as_str()).collect();
        let services = ["blkback", "console", "netback", "toolstack", "vmm", "xenstore"];
        let expected: Vec<_> = services.iter().map(|s| format!("services/{s}")).collect();
        assert_eq!(names[0], "manifest");
        assert_eq!(names[1..7], expected);
        assert_eq!(names[7], "guests");
    }

    #[test]
    fn a_program_that_is_no_program_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let machine = machine(dir.path());
        std::fs::write(dir.path().join("netback"), b"text").unwrap();
        let manifest = manifest::load("m", manifest::DEFAULT, &of_workspace()).unwrap();
        let files = vec![File::bytes("guests", vec![0])];
        let spec = BundleSpec { manifest: &manifest, options: vec![], files };
        let error = pack_image(&machine, &spec, &dir.path().join("b")).unwrap_err().to_string();
        assert!(error.starts_with("netback: not a 64-bit x86 ELF program"), "{error}");
    }
}
