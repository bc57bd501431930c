//! From a checked manifest to what init reads.

use proto::manifest::{DeviceMatch, Manifest as Compiled, Service, VmmTemplate, Wire};
use proto::text::{List, Text};

use super::source::{Manifest, parse_kind, parse_mac};
use crate::Error;
use crate::programs::VMM;

/// Share among equals when the manifest names none.
const DEFAULT_WEIGHT: u64 = 256;
/// Stack in KiB when the manifest names none.
const DEFAULT_STACK_KIB: u64 = 64;

/// Compiles a manifest that [`super::check`] accepted; `options` (service, `key=value`) replace or add
/// single options.
///
/// # Errors
/// Something does not fit where init looks for it, or an option is for a service that is not there.
pub fn compile(manifest: &Manifest, options: &[(String, String)]) -> Result<Compiled, Error> {
    if let Some((service, _)) =
        options.iter().find(|(name, _)| !manifest.services.iter().any(|s| s.name.get_ref() == name))
    {
        return Err(Error::Manifest(format!("no service is called `{service}`")));
    }
    let services = manifest.services.iter().map(|s| {
        let name = s.name.get_ref();
        let mut words = s.options.as_ref().map(|o| o.get_ref().clone()).unwrap_or_default();
        for (_, option) in options.iter().filter(|(service, _)| service == name) {
            words = with_option(&words, option);
        }
        Ok(Service {
            name: text(name)?,
            program: text(&format!("services/{}", s.program()))?,
            priority: number(*s.priority.get_ref())?,
            weight: number(s.weight.as_ref().map_or(DEFAULT_WEIGHT, |w| *w.get_ref()))?,
            heap_kib: number(*s.heap_kib.get_ref())?,
            stack_kib: number(s.stack_kib.as_ref().map_or(DEFAULT_STACK_KIB, |k| *k.get_ref()))?,
            after: list(s.after.iter().map(|a| text(a.get_ref())))?,
            ports: list(
                s.ports.iter().map(|p| Ok((number(p.get_ref().first)?, number(p.get_ref().count)?))),
            )?,
            lines: list(s.lines.iter().map(|l| number(*l.get_ref())))?,
            devices: list(s.devices.iter().map(|d| {
                let d = d.get_ref();
                Ok(DeviceMatch {
                    vendor: number(d.vendor)?,
                    devices: list(d.devices.iter().map(|id| number(*id)))?,
                    dma_kib: number(d.dma_kib)?,
                    vectors: number(d.vectors)?,
                })
            }))?,
            options: text(&words)?,
            file: text(s.file.as_ref().map_or("", |f| f.get_ref()))?,
            serves: list(s.serves.iter().map(|k| kind(k.get_ref())))?,
        })
    });
    let channels = manifest.channels.iter().map(|c| {
        Ok(Wire {
            kind: kind(c.kind.get_ref())?,
            client: text(c.client.get_ref())?,
            server: text(c.server.get_ref())?,
            target: text(c.target.as_ref().map_or("", |t| t.get_ref()))?,
            mac: c.mac.as_ref().map_or(Ok([0; 6]), |mac| self::mac(mac.get_ref()))?,
        })
    });
    Ok(Compiled {
        services: list(services)?,
        channels: list(channels)?,
        vmm: VmmTemplate {
            program: text(&format!("services/{VMM}"))?,
            priority: number(*manifest.vmm.priority.get_ref())?,
            heap_kib: number(*manifest.vmm.heap_kib.get_ref())?,
            decompression_kib: number(*manifest.vmm.decompression_kib.get_ref())?,
            stack_kib: number(*manifest.vmm.stack_kib.get_ref())?,
        },
    })
}

/// Options are words; `key=value` replaces the word of the same key.
fn with_option(words: &str, option: &str) -> String {
    let key = option.split('=').next().unwrap_or(option);
    let kept = words.split_whitespace().filter(|w| w.split('=').next() != Some(key));
    kept.chain([option]).collect::<Vec<_>>().join(" ")
}

fn text<const N: usize>(value: &str) -> Result<Text<N>, Error> {
    Text::try_from(value).map_err(|_| Error::Manifest(format!("`{value}` is longer than {N} bytes")))
}

fn number<T: TryFrom<u64>>(value: u64) -> Result<T, Error> {
    T::try_from(value).map_err(|_| Error::Manifest(format!("{value} is too large")))
}

fn kind(name: &str) -> Result<proto::channel::ChannelKind, Error> {
    parse_kind(name).ok_or_else(|| Error::Manifest(format!("no channel kind is called `{name}`")))
}

fn mac(text: &str) -> Result<[u8; 6], Error> {
    parse_mac(text).ok_or_else(|| Error::Manifest(format!("`{text}` is no MAC address")))
}

fn list<T, const N: usize>(values: impl Iterator<Item = Result<T, Error>>) -> Result<List<T, N>, Error> {
    let mut list = List::new();
    for value in values {
        list.push(value?).map_err(|_| Error::Manifest(format!("more than {N} entries in a list")))?;
    }
    Ok(list)
}
