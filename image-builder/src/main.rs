//! Command line of image-builder.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use image_builder::manifest::{DEFAULT, DEFAULT_NAME, Manifest, load, load_file};
use image_builder::programs::of_workspace;
use image_builder::progress::Progress;
use image_builder::{BuildRequest, BundleSpec, Error, File, build, bundle, graph, machine, pack_image};
use proto::toolstack::GuestConfigs;

/// Compiles the domains of Ailurus, checks the system manifest and packs what the machine boots.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Compile everything and pack an image without guests.
    Build {
        #[command(flatten)]
        manifest: ManifestArg,
        /// Where the bundle goes.
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Replace an option of a service; may be repeated.
        #[arg(long, value_name = "SERVICE:KEY=VALUE")]
        option: Vec<String>,
        /// Add a file to the bundle; may be repeated.
        #[arg(long, value_name = "NAME=PATH")]
        file: Vec<String>,
    },
    /// Check a manifest.
    Check {
        #[command(flatten)]
        manifest: ManifestArg,
    },
    /// Print a manifest's capability graph as Graphviz text.
    Graph {
        #[command(flatten)]
        manifest: ManifestArg,
    },
    /// List what a bundle holds.
    List {
        /// The bundle.
        bundle: PathBuf,
    },
}

#[derive(Debug, Args)]
struct ManifestArg {
    /// The system manifest; image-builder/system.toml by default.
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
}

impl ManifestArg {
    fn load(&self) -> Result<Manifest, Error> {
        match &self.manifest {
            None => load(DEFAULT_NAME, DEFAULT, &of_workspace()),
            Some(path) => load_file(path, &of_workspace()),
        }
    }
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

fn run(action: Action) -> Result<(), Error> {
    match action {
        Action::Check { manifest } => {
            let manifest = manifest.load()?;
            println!("{} services, {} channels: fine", manifest.services.len(), manifest.channels.len());
        }
        Action::Graph { manifest } => print!("{}", graph::dot(&manifest.load()?)),
        Action::Build { manifest, output, option, file } => {
            let manifest = manifest.load()?;
            let options = pairs(&option, ':')?;
            let mut files: Vec<File> =
                pairs(&file, '=')?.into_iter().map(|(name, path)| File::path(name, path)).collect();
            if !files.iter().any(|f| f.name == proto::toolstack::CONFIGS_FILE) {
                files.push(File::bytes(proto::toolstack::CONFIGS_FILE, no_guests()?));
            }
            let machine = build(&BuildRequest::new(manifest.programs(of_workspace())), Progress::Shown)?;
            let output = output.unwrap_or_else(|| machine::target_dir().join("image/bundle.bin"));
            let image = pack_image(&machine, &BundleSpec { manifest: &manifest, options, files }, &output)?;
            println!("kernel {}", image.kernel.display());
            println!("bundle {} ({} KiB)", image.bundle.display(), image.layout.len / 1024);
        }
        Action::List { bundle: path } => {
            let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
            let layout = bundle::read(&bytes)?;
            println!("{:>10} {:>10}  name", "offset", "bytes");
            for (addr, offset, file_len, memory_len, _) in &layout.segments {
                println!("{offset:>10} {file_len:>10}  init at {addr:#x}, {memory_len} bytes in memory");
            }
            for entry in &layout.entries {
                println!("{:>10} {:>10}  {}", entry.offset, entry.len, entry.name);
            }
        }
    }
    Ok(())
}

fn no_guests() -> Result<Vec<u8>, Error> {
    postcard::to_stdvec(&GuestConfigs::default()).map_err(|e| Error::Bundle(e.to_string()))
}

fn pairs(words: &[String], separator: char) -> Result<Vec<(String, String)>, Error> {
    let pair = |word: &String| {
        let (left, right) = word
            .split_once(separator)
            .ok_or_else(|| Error::Bundle(format!("`{word}`: there is no `{separator}` in it")))?;
        Ok((left.to_owned(), right.to_owned()))
    };
    words.iter().map(pair).collect()
}
