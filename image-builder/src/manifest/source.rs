//! The manifest as TOML has it; every value knows its place in the text.

use proto::channel::ChannelKind;
use serde::Deserialize;
use toml::Spanned;

use super::Problem;

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Manifest {
    /// Service domains.
    #[serde(default, rename = "service")]
    pub services: Vec<Service>,
    /// Channels between services.
    #[serde(default, rename = "channel")]
    pub channels: Vec<Channel>,
    /// What every VMM gets.
    pub vmm: Vmm,
}

/// A service domain.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Service {
    /// Name.
    pub name: Spanned<String>,
    /// Program; the name by default.
    pub program: Option<Spanned<String>>,
    /// Priority.
    pub priority: Spanned<u64>,
    /// Share among equals.
    pub weight: Option<Spanned<u64>>,
    /// Heap in KiB.
    pub heap_kib: Spanned<u64>,
    /// Stack in KiB.
    pub stack_kib: Option<Spanned<u64>>,
    /// Services that must be ready first.
    #[serde(default)]
    pub after: Vec<Spanned<String>>,
    /// I/O ports.
    #[serde(default)]
    pub ports: Vec<Spanned<Ports>>,
    /// Interrupt lines.
    #[serde(default)]
    pub lines: Vec<Spanned<u64>>,
    /// PCI functions.
    #[serde(default)]
    pub devices: Vec<Spanned<Device>>,
    /// Options.
    pub options: Option<Spanned<String>>,
    /// A file of the bundle.
    pub file: Option<Spanned<String>>,
    /// Channel kinds that it offers to guests.
    #[serde(default)]
    pub serves: Vec<Spanned<String>>,
}

impl Service {
    /// Its program's name.
    pub fn program(&self) -> &str {
        self.program.as_ref().unwrap_or(&self.name).get_ref()
    }
}

/// A range of I/O ports.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Ports {
    /// First port.
    pub first: u64,
    /// How many.
    pub count: u64,
}

/// PCI functions.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Device {
    /// Vendor.
    pub vendor: u64,
    /// Device IDs.
    pub devices: Vec<u64>,
    /// DMA memory per function.
    pub dma_kib: u64,
    /// MSI-X vectors per function.
    pub vectors: u64,
}

/// A channel.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Channel {
    /// Kind.
    pub kind: Spanned<String>,
    /// Side A.
    pub client: Spanned<String>,
    /// Side B.
    pub server: Spanned<String>,
    /// Target.
    pub target: Option<Spanned<String>>,
    /// Net: the client's address.
    pub mac: Option<Spanned<String>>,
}

/// What every VMM gets.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Vmm {
    /// Priority.
    pub priority: Spanned<u64>,
    /// Heap in KiB.
    pub heap_kib: Spanned<u64>,
    /// Additional heap for decompression.
    pub decompression_kib: Spanned<u64>,
    /// Stack in KiB.
    pub stack_kib: Spanned<u64>,
}

/// Decodes the text.
///
/// # Errors
/// What TOML or a key's type forbids.
pub(super) fn parse(text: &str) -> Result<Manifest, Problem> {
    toml::from_str(text)
        .map_err(|e| Problem { message: e.message().to_owned(), span: e.span().unwrap_or(0..0) })
}

/// Whether the text says what every VMM gets, as a whole system's does.
///
/// # Errors
/// What TOML forbids.
pub(super) fn has_vmm(text: &str) -> Result<bool, Problem> {
    let table: toml::Table = toml::from_str(text)
        .map_err(|e| Problem { message: e.message().to_owned(), span: e.span().unwrap_or(0..0) })?;
    Ok(table.contains_key("vmm"))
}

const KINDS: [(&str, ChannelKind); 9] = [
    ("supervise", ChannelKind::Supervise),
    ("log", ChannelKind::Log),
    ("guest-console", ChannelKind::GuestConsole),
    ("operator", ChannelKind::Operator),
    ("xenstore", ChannelKind::Xenstore),
    ("blk", ChannelKind::Blk),
    ("net", ChannelKind::Net),
    ("builder", ChannelKind::Builder),
    ("guest", ChannelKind::Guest),
];

/// A MAC address as it is usually written: six bytes in hexadecimal, with colons between them.
pub fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut words = text.split(':');
    for byte in &mut mac {
        let word = words.next().filter(|w| w.len() == 2 && w.bytes().all(|b| b.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(word, 16).ok()?;
    }
    words.next().is_none().then_some(mac)
}

/// A channel kind by its name in the manifest.
pub fn parse_kind(name: &str) -> Option<ChannelKind> {
    KINDS.iter().find(|(n, _)| *n == name).map(|(_, kind)| *kind)
}

/// The name of a channel kind in the manifest.
pub fn kind_name(kind: ChannelKind) -> &'static str {
    KINDS.iter().find(|(_, k)| *k == kind).map_or("?", |(name, _)| name)
}
