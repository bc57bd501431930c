//! The guest configurations that came with the boot bundle.

use alloc::borrow::ToOwned;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use proto::builder::{DiskSpec, GuestSpec, VifSpec};
use proto::text::{List, Text};
use proto::toolstack::{CONFIGS_MAX, GuestConfig as BootGuest};

use crate::config::{self, GuestConfig};

/// One configuration of the bundle.
#[derive(Debug, Clone)]
pub struct BootConfig {
    /// The file's name.
    pub file: String,
    /// Start it with the machine.
    pub is_autostart: bool,
    /// The guest, or the sentence that says why there is none.
    pub guest: Result<GuestConfig, String>,
    /// What in the file has no effect, one sentence each.
    pub warnings: Vec<String>,
    /// Host paths and what stands for them in the system.
    resources: Vec<(String, String)>,
}

/// Decodes the file that holds the configurations ([`proto::toolstack::GuestConfigs`]); no bytes: none.
///
/// # Errors
/// A sentence for people.
pub fn decode(bytes: &[u8]) -> Result<Vec<BootConfig>, String> {
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    let damaged =
        |_| "the guest configurations of the boot bundle are damaged; build the image again".to_owned();
    // One at a time: all of them together would be a large value on a small stack.
    let (count, mut rest) = postcard::take_from_bytes::<u32>(bytes).map_err(damaged)?;
    if count as usize > CONFIGS_MAX {
        return Err(format!(
            "the boot bundle has {count} guest configurations; at most {CONFIGS_MAX} are possible"
        ));
    }
    let mut configs = Vec::new();
    for _ in 0..count {
        let (guest, after) = postcard::take_from_bytes::<BootGuest<'_>>(rest).map_err(damaged)?;
        rest = after;
        configs.push(BootConfig::new(&guest));
    }
    Ok(configs)
}

impl BootConfig {
    /// Reads one configuration.
    pub fn new(boot: &BootGuest<'_>) -> Self {
        let parsed = config::parse(boot.file, boot.text);
        let warnings = parsed.warnings().map(|warning| warning.sentence().to_string()).collect();
        let first_error = parsed.errors().next().map(|error| error.sentence().to_string());
        let guest = match (parsed.config, first_error) {
            (Some(config), None) => Ok(config),
            (_, error) => Err(error.unwrap_or_else(|| format!("{}: no guest is described there", boot.file))),
        };
        let resources = boot.resources.iter().map(|r| (r.path.to_owned(), r.name.to_owned())).collect();
        Self { file: boot.file.to_owned(), is_autostart: boot.is_autostart, guest, warnings, resources }
    }

    /// The guest's name, or the file's if there is no guest.
    pub fn name(&self) -> &str {
        self.guest.as_ref().map_or(&self.file, |guest| &guest.name.value)
    }

    /// Whether the operator means this configuration by `name`: the guest's name or the file's, with or
    /// without its folder.
    pub fn is_called(&self, name: &str) -> bool {
        self.name() == name || self.file == name || self.file.rsplit('/').next() == Some(name)
    }

    /// What to ask the builder for.
    ///
    /// # Errors
    /// A sentence that says why this guest cannot be built.
    pub fn spec(&self) -> Result<Box<GuestSpec>, String> {
        let guest = self.guest.as_ref().map_err(Clone::clone)?;
        let mut disks = List::new();
        for disk in &guest.disks {
            let volume = match disk.memory {
                0 => self.resource(&disk.target.value)?,
                _ => Text::try_from(format!("ram:{}", disk.target.value).as_str())
                    .map_err(|_| self.too_long("size of a disk"))?,
            };
            let spec = DiskSpec {
                device: disk.device,
                volume,
                memory: disk.memory,
                is_read_only: disk.is_read_only,
            };
            disks.push(spec).map_err(|_| self.too_long("disk list"))?;
        }
        let mut vifs = List::new();
        for (index, vif) in (0..).zip(&guest.vifs) {
            let bridge = Text::try_from(vif.bridge.value.as_str()).map_err(|_| self.too_long("bridge"))?;
            vifs.push(VifSpec { index, mac: vif.mac.value, bridge })
                .map_err(|_| self.too_long("vif list"))?;
        }
        let ramdisk = match &guest.ramdisk {
            Some(ramdisk) => self.resource(&ramdisk.value)?,
            None => Text::new(),
        };
        Ok(Box::new(GuestSpec {
            name: Text::try_from(guest.name.value.as_str()).map_err(|_| self.too_long("name"))?,
            uuid: guest.uuid,
            memory_kib: guest.memory_kib.value,
            vcpus: guest.vcpus,
            kernel: self.resource(&guest.kernel.value)?,
            ramdisk,
            cmdline: Text::try_from(guest.cmdline.value.as_str())
                .map_err(|_| self.too_long("command line"))?,
            cpuid: guest.cpuid,
            disks,
            vifs,
        }))
    }

    fn too_long(&self, what: &str) -> String {
        format!("{}: the {what} is too long", self.file)
    }

    /// What stands for a host path.
    fn resource(&self, path: &str) -> Result<Text<64>, String> {
        let (_, name) = self.resources.iter().find(|(known, _)| known == path).ok_or_else(|| {
            format!("{}: `{path}` is not part of the boot bundle; start the machine again with it", self.file)
        })?;
        Text::try_from(name.as_str()).map_err(|_| self.too_long("name of a file"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::toolstack::{GuestConfigs, Resource};

    const TEXT: &str = "name='web'\ntype='pvh'\nkernel='/k'\nramdisk='/r'\nmemory=64\nextra='quiet'\n\
                        disk=['/d,,xvda,r']\nvif=['bridge=br0']\nnomemory=1\n";

    fn resources() -> heapless::Vec<Resource<'static>, 40> {
        [("/k", "guest/0/kernel"), ("/r", "guest/0/ramdisk"), ("/d", "vol0")]
            .into_iter()
            .map(|(path, name)| Resource { path, name })
            .collect()
    }

    #[test]
    fn configurations_become_specifications() {
        let mut configs = GuestConfigs::default();
        let boot = BootGuest { file: "dir/web.cfg", text: TEXT, is_autostart: true, resources: resources() };
        configs.configs.push(boot.clone()).unwrap();
        configs.configs.push(BootGuest { file: "bad.cfg", text: "name = x", ..boot }).unwrap();
        let mut buffer = [0; 1024];
        let configs = decode(postcard::to_slice(&configs, &mut buffer).unwrap()).unwrap();
        let spec = configs[0].spec().unwrap();
        assert_eq!(
            (&*spec.name, &*spec.kernel, &*spec.ramdisk),
            ("web", "guest/0/kernel", "guest/0/ramdisk")
        );
        assert_eq!((spec.memory_kib, &*spec.cmdline), (65536, "quiet"));
        assert_eq!((&*spec.disks[0].volume, spec.disks[0].is_read_only), ("vol0", true));
        assert_eq!((&*spec.vifs[0].bridge, spec.vifs[0].index), ("br0", 0));
        assert!(configs[0].warnings[0].contains("nomemory"));
        for name in ["web", "web.cfg", "dir/web.cfg"] {
            assert!(configs[0].is_called(name), "{name}");
        }
        assert!(!configs[0].is_called("dir"));
        assert!(configs[1].spec().unwrap_err().starts_with("bad.cfg:1:8: error: text stands in quotes"));
        assert_eq!(configs[1].name(), "bad.cfg");
    }

    #[test]
    fn a_path_without_a_resource_is_refused() {
        let boot = BootGuest { file: "f", text: TEXT, is_autostart: true, resources: heapless::Vec::new() };
        assert!(BootConfig::new(&boot).spec().unwrap_err().contains("`/d` is not part of the boot bundle"));
    }

    #[test]
    fn damaged_files_are_refused() {
        assert!(decode(&[]).unwrap().is_empty());
        assert!(decode(&[1]).is_err());
        assert!(decode(&[200, 1, 0]).unwrap_err().contains("at most 32"));
        assert!(decode(&[0xff; 16]).is_err());
    }
}
