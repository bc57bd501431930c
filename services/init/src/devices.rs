//! Giving a PCI function to its driver domain: registers, interrupts, memory for DMA, and nothing that
//! reaches beyond the function.
//!
//! The MSI-X table stays with init: an entry is an address and a value that the device writes, so who
//! writes entries can raise any vector.

use alloc::format;
use alloc::vec::Vec;

use proto::abi::{MSI_ADDRESS, PAGE_SIZE, Slot, map, rights};
use proto::boot::{BarInfo, DeviceInfo};
use proto::channel::Region;
use proto::manifest::DeviceMatch;
use proto::text::List;

use crate::domain::Domain;
use crate::error::BuildError;
use crate::kernel::Kernel;
use crate::pci::{self, Bar, ConfigSpace, Function, Msix};
use crate::resources::Resources;

/// First line of an interrupt capability that is an MSI vector: the I/O APIC's lines come before.
pub const FIRST_MSI_LINE: u64 = 24;
/// MSI vectors that the kernel has.
const MSI_LINES: u64 = 160;
/// Most vectors of a function.
const VECTORS_MAX: u8 = 8;

/// Frames that are not RAM, and the MSI vectors: what devices are made of.
#[derive(Debug, Default)]
pub struct DeviceSpace {
    /// First frame, count, capability.
    pub runs: Vec<(u64, u64, Slot)>,
    /// First vector number that a device may write.
    pub first_vector: u64,
    /// Vectors in use.
    pub vectors_used: u64,
}

impl DeviceSpace {
    /// The capability that holds these frames, and their offset in it.
    fn find(&self, first: u64, count: u64) -> Option<(Slot, u64)> {
        self.runs.iter().find_map(|&(start, len, slot)| {
            let offset = first.checked_sub(start)?;
            (offset < len && count <= len - offset).then_some((slot, offset))
        })
    }

    /// A vector that nothing uses: its line, and what the device writes.
    fn take_vector(&mut self) -> Option<(u64, u32)> {
        let index = self.vectors_used;
        if index >= MSI_LINES {
            return None;
        }
        self.vectors_used += 1;
        Some((FIRST_MSI_LINE + index, u32::try_from(self.first_vector + index).ok()?))
    }
}

/// Whether a manifest's entry names the function.
pub fn matches(entry: &DeviceMatch, function: &Function) -> bool {
    entry.vendor == function.vendor && entry.devices.contains(&function.device)
}

/// Gives the function to the domain and lets it work.
///
/// # Errors
/// Its registers are where no device can be, no memory, or the kernel's.
pub fn give<K: Kernel, C: ConfigSpace>(
    resources: &mut Resources<K>,
    config: &mut C,
    space: &mut DeviceSpace,
    domain: &mut Domain,
    function: &Function,
    entry: &DeviceMatch,
) -> Result<DeviceInfo, BuildError> {
    let address = function.address;
    let bars = pci::bars(config, address);
    let msix = pci::msix(config, address).filter(|msix| bars.iter().any(|bar| bar.index == msix.bar));
    let mut infos = List::new();
    for bar in &bars {
        let addr = map_bar(resources, space, domain, bar, msix)?;
        let _at_most_six = infos.push(BarInfo { index: bar.index, phys: bar.phys, size: bar.size, addr });
    }
    pci::decode(config, address);
    let vectors = match msix {
        Some(msix) => program_vectors(resources, space, domain, &bars, msix, entry.vectors)?,
        None => List::new(),
    };
    pci::enable(config, address, msix);

    let page = domain.arena.take(PAGE_SIZE);
    let bytes = pci::copy(config, address);
    domain.map_new(resources, 1, page, map::READ, &[(0, &bytes)])?;

    let frames = (u64::from(entry.dma_kib) * 1024).div_ceil(PAGE_SIZE);
    let (mut dma, mut dma_phys) = (Region::default(), 0);
    if frames > 0 {
        dma = Region { addr: domain.arena.take(frames * PAGE_SIZE), len: frames * PAGE_SIZE };
        let index = domain.map_new(resources, frames, dma.addr, map::READ | map::WRITE, &[])?;
        dma_phys = domain.run(index).map_or(0, |run| run.first * PAGE_SIZE);
    }
    let config = Region { addr: page, len: bytes.len() as u64 };
    Ok(DeviceInfo { address, config, bars: infos, vectors, dma, dma_phys })
}

/// Maps what the driver may have of a BAR; its address, or 0 when all of it is guarded.
fn map_bar<K: Kernel>(
    resources: &mut Resources<K>,
    space: &DeviceSpace,
    domain: &mut Domain,
    bar: &Bar,
    msix: Option<Msix>,
) -> Result<u64, BuildError> {
    let parts = pci::open_parts(bar, msix);
    if parts.is_empty() {
        return Ok(0);
    }
    let addr = domain.arena.take(bar.size);
    for (offset, len) in parts {
        let (first, count) = ((bar.phys + offset) / PAGE_SIZE, len / PAGE_SIZE);
        let (slot, at) = space.find(first, count).ok_or_else(|| no_device(bar.phys + offset))?;
        let flags = map::READ | map::WRITE | map::UNCACHED;
        domain.map_shared(resources, (slot, at), (first, count), addr + offset, flags)?;
    }
    Ok(addr)
}

fn no_device(phys: u64) -> BuildError {
    BuildError::Request(format!("registers at {phys:#x} are in memory that no device can have"))
}

/// Routes up to `wanted` vectors to signals of the domain's event, and masks the rest.
fn program_vectors<K: Kernel>(
    resources: &mut Resources<K>,
    space: &mut DeviceSpace,
    domain: &mut Domain,
    bars: &[Bar],
    msix: Msix,
    wanted: u8,
) -> Result<List<u64, 8>, BuildError> {
    let mut signals_of = List::new();
    let Some(bar) = bars.iter().find(|bar| bar.index == msix.bar) else { return Ok(signals_of) };
    let (start, end) = msix.pages();
    let (first, count) = ((bar.phys + start) / PAGE_SIZE, (end - start) / PAGE_SIZE);
    let (slot, at) = space.find(first, count).ok_or_else(|| no_device(bar.phys + start))?;
    let cap = resources.derive(slot, at, count, rights::READ | rights::WRITE)?;
    // Kept with the domain: when it ends, nobody can reach the table.
    domain.keep_cap(cap);
    let window = resources.arena.take(end - start);
    resources.map_own(cap, (first, count), window, map::READ | map::WRITE | map::UNCACHED)?;
    let table = window + (msix.offset - start) + (bar.phys % PAGE_SIZE);
    let wanted = u16::from(wanted.min(VECTORS_MAX));
    for entry in 0..msix.entries {
        let at = table + u64::from(entry) * pci::MSIX_ENTRY;
        let vector = if entry < wanted { space.take_vector() } else { None };
        let Some((line, data)) = vector else {
            resources.kernel.write_register(at + 12, 1);
            continue;
        };
        let signals = domain.take_signal();
        domain.bind_line(resources, line, signals)?;
        resources.kernel.write_register(at, MSI_ADDRESS as u32);
        resources.kernel.write_register(at + 4, (MSI_ADDRESS >> 32) as u32);
        resources.kernel.write_register(at + 8, data);
        resources.kernel.write_register(at + 12, 0);
        let _at_most_eight = signals_of.push(signals);
    }
    Ok(signals_of)
}
