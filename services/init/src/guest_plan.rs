//! What a guest is to have, checked before anything is built: what, why and what to do, in a sentence.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use proto::abi::PAGE_SIZE;
use proto::builder::GuestSpec;
use proto::guest::{HIGH_RAM_START, LOW_RAM_END, VCPUS_MAX};

use crate::bundle::{Bundle, File};
use crate::error::BuildError;
use crate::frames::Run;
use crate::kernel::Kernel;
use crate::resources::Resources;

/// Least memory of a guest in KiB: a kernel of any use does not fit less.
const MEMORY_MIN_KIB: u64 = 4096;
/// Most memory of a guest in KiB: what VMM and nested page tables can address (8 TiB).
const MEMORY_MAX_KIB: u64 = 8 << 30;
/// Most ranges of RAM (`GuestInfo::ram`).
const RANGES_MAX: usize = 4;
/// Most disks and network interfaces together: `DomainInfo` holds 28 channels, five are always there.
const DEVICES_MAX: usize = 23;
/// Frames of a large page.
const LARGE: u64 = 512;

/// The files of a guest.
#[derive(Debug, Clone, Copy)]
pub struct Files {
    /// Kernel.
    pub kernel: File,
    /// Initial RAM disk.
    pub ramdisk: Option<File>,
}

/// Checks everything that does not depend on memory.
///
/// # Errors
/// A sentence for people.
pub fn check<'a>(
    spec: &GuestSpec,
    bundle: &Bundle,
    mut names: impl Iterator<Item = &'a str>,
) -> Result<Files, String> {
    let name = &*spec.name;
    if name.is_empty() {
        return Err("a guest needs a name: set name=\"...\"".into());
    }
    if names.any(|other| other == name) {
        return Err(format!("a domain called {name:?} is running: choose another name or end that one"));
    }
    if spec.vcpus == 0 || spec.vcpus as usize > VCPUS_MAX {
        return Err(format!("vcpus={}: a guest has 1 to {VCPUS_MAX}", spec.vcpus));
    }
    let kib = spec.memory_kib;
    if !(MEMORY_MIN_KIB..=MEMORY_MAX_KIB).contains(&kib) {
        return Err(format!("memory of {kib} KiB: a guest has from {} MiB to 8 TiB", MEMORY_MIN_KIB / 1024));
    }
    if !(kib * 1024).is_multiple_of(PAGE_SIZE) {
        return Err(format!("memory of {kib} KiB: ask for a multiple of 4 KiB"));
    }
    if spec.disks.len() + spec.vifs.len() > DEVICES_MAX {
        return Err(format!("more than {DEVICES_MAX} disks and network interfaces: name fewer"));
    }
    if let Some(disk) = spec.disks.iter().find(|disk| !disk.memory.is_multiple_of(PAGE_SIZE)) {
        return Err(format!("a disk in memory of {} bytes: ask for a multiple of 4 KiB", disk.memory));
    }
    let disks: BTreeSet<_> = spec.disks.iter().map(|disk| disk.device).collect();
    let vifs: BTreeSet<_> = spec.vifs.iter().map(|vif| vif.index).collect();
    if disks.len() != spec.disks.len() || vifs.len() != spec.vifs.len() {
        return Err("two disks or two network interfaces have the same number: name each once".into());
    }
    let file = |what, name: &str| {
        let file = bundle.file(name).filter(|file| !file.bytes.is_empty());
        file.ok_or_else(|| format!("the {what} {name:?} is not in the boot bundle: add it to the image"))
    };
    let kernel = file("kernel", &spec.kernel)?;
    let ramdisk = if spec.ramdisk.is_empty() { None } else { Some(file("ramdisk", &spec.ramdisk)?) };
    Ok(Files { kernel, ramdisk })
}

/// Checks that the guest's RAM and its disks in memory fit into `free` frames.
///
/// # Errors
/// A sentence for people.
pub fn check_memory(spec: &GuestSpec, free: u64) -> Result<(), String> {
    let volumes = spec.disks.iter().fold(0u64, |sum, disk| sum.saturating_add(disk.memory));
    let wanted = (spec.memory_kib * 1024).saturating_add(volumes);
    if volumes > 0 && wanted.div_ceil(PAGE_SIZE) > free {
        return Err(format!(
            "memory={} MiB and {} MiB of disks in memory: only {} MiB are free; ask for less or end another guest",
            spec.memory_kib / 1024,
            volumes.div_ceil(1 << 20),
            (free * PAGE_SIZE) >> 20
        ));
    }
    Ok(())
}

/// Whether a kernel is a bzImage, whose payload the VMM has to decompress (Linux boot protocol: "HdrS"
/// at offset 0x202).
pub fn is_bzimage(kernel: &[u8]) -> bool {
    kernel.get(0x202..0x206) == Some(b"HdrS")
}

/// Takes a guest's RAM in as few ranges as free memory allows: guest-physical address and memory.
///
/// # Errors
/// Not enough, with what to do; nothing is taken then.
pub fn take_ram<K: Kernel>(resources: &mut Resources<K>, kib: u64) -> Result<Vec<(u64, Run)>, BuildError> {
    let wanted = kib * 1024 / PAGE_SIZE;
    let free = resources.free.free();
    if wanted > free {
        return Err(BuildError::Request(format!(
            "memory={} MiB: only {} MiB are free; ask for less or end another guest",
            kib / 1024,
            (free * PAGE_SIZE) >> 20
        )));
    }
    let mut ranges: Vec<(u64, Run)> = Vec::new();
    let (mut left, mut gpa) = (wanted, 0);
    while left > 0 {
        let limit = if gpa < LOW_RAM_END { (LOW_RAM_END - gpa) / PAGE_SIZE } else { u64::MAX };
        match take_range(resources, left.min(limit)) {
            Ok(run) if ranges.len() < RANGES_MAX => {
                let (start, count) = (gpa, run.count);
                left -= count;
                gpa += count * PAGE_SIZE;
                if gpa == LOW_RAM_END {
                    gpa = HIGH_RAM_START;
                }
                ranges.push((start, run));
            }
            result => {
                let error = result.map(|run| resources.give(run)).err();
                for (_, run) in ranges {
                    resources.give(run);
                }
                return Err(error.unwrap_or_else(|| {
                    BuildError::Request(format!(
                        "memory={} MiB: {} MiB are free, but in too many pieces; ask for less or end another guest",
                        kib / 1024,
                        (free * PAGE_SIZE) >> 20
                    ))
                }));
            }
        }
    }
    Ok(ranges)
}

/// Takes `wanted` frames on a 2 MiB boundary, or as many as there are in one piece.
fn take_range<K: Kernel>(resources: &mut Resources<K>, wanted: u64) -> Result<Run, BuildError> {
    match resources.take(wanted, LARGE) {
        Err(BuildError::Memory { .. }) => {
            // Of the longest run this much is on a boundary in any case.
            let fits = resources.free.longest().saturating_sub(LARGE - 1);
            let part = (fits - fits % LARGE).min(wanted - wanted % LARGE);
            resources.take(part, LARGE)
        }
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::tests::image;
    use crate::fake::{FakeKernel, spec};
    use proto::builder::{DiskSpec, VifSpec};
    use proto::text::Text;

    fn refusal(spec: &GuestSpec) -> String {
        let bundle = Bundle::parse(image(&[("kernel", b"k"), ("empty", b"")]), Vec::new()).unwrap();
        check(spec, &bundle, ["busy"].into_iter()).map(|_| ()).unwrap_err()
    }

    #[test]
    fn requests_that_make_no_sense_are_refused_with_their_reason() {
        let good = spec("web", 64 << 10);
        let bundle = Bundle::parse(image(&[("kernel", b"k")]), Vec::new()).unwrap();
        assert!(check(&good, &bundle, ["busy"].into_iter()).is_ok());
        assert!(refusal(&GuestSpec { name: Text::new(), ..good.clone() }).contains("name"));
        assert!(refusal(&GuestSpec { name: Text::truncated("busy"), ..good.clone() }).contains("running"));
        for memory_kib in [0, 4095, 65537, u64::MAX] {
            assert!(refusal(&GuestSpec { memory_kib, ..good.clone() }).contains("memory"));
        }
        for vcpus in [0, 33, u32::MAX] {
            assert!(refusal(&GuestSpec { vcpus, ..good.clone() }).contains("vcpus"));
        }
        assert!(refusal(&GuestSpec { kernel: Text::truncated("none"), ..good.clone() }).contains("none"));
        assert!(refusal(&GuestSpec { kernel: Text::truncated("empty"), ..good.clone() }).contains("empty"));
        assert!(refusal(&GuestSpec { ramdisk: Text::truncated("none"), ..good.clone() }).contains("ramdisk"));
        let disk = DiskSpec { device: 51712, volume: Text::truncated("v"), memory: 0, is_read_only: false };
        let vif = VifSpec { index: 0, mac: [2, 0, 0, 0, 0, 1], bridge: Text::truncated("b") };
        let mut twice = good.clone();
        twice.disks.push(disk.clone()).unwrap();
        twice.disks.push(disk.clone()).unwrap();
        assert!(refusal(&twice).contains("same number"));
        let mut many = good;
        for index in 0..8 {
            many.vifs.push(VifSpec { index, ..vif.clone() }).unwrap();
        }
        for device in 0..16 {
            many.disks.push(DiskSpec { device, ..disk.clone() }).unwrap();
        }
        assert!(refusal(&many).contains("more than 23"));
    }

    fn memory(runs: &[(u64, u64)]) -> Resources<FakeKernel> {
        let mut resources = Resources::new(FakeKernel::new(), 100);
        for &(first, count) in runs {
            let slot = resources.slot().unwrap();
            resources.kernel.give_run(slot, first, count, false);
            resources.give(Run { slot, first, count });
        }
        resources
    }

    #[test]
    fn ram_leaves_the_hole_below_4_gib_free() {
        let mut resources = memory(&[(1 << 20, 6 << 18)]);
        let ranges = take_ram(&mut resources, 5 << 20).unwrap();
        let places: Vec<_> = ranges.iter().map(|(gpa, run)| (*gpa, run.count)).collect();
        assert_eq!(places, [(0, 3 << 18), (4 << 30, 2 << 18)]);
    }

    #[test]
    fn ram_in_pieces_is_taken_up_to_four_ranges() {
        let pieces: Vec<_> = (1..5).map(|n| (n * 10_000, 2048)).collect();
        let mut resources = memory(&pieces);
        let free = resources.free.free();
        let ranges = take_ram(&mut resources, 4 * 1536 * 4).unwrap();
        assert_eq!(ranges.len(), 4);
        assert!(ranges.iter().all(|(gpa, run)| gpa.is_multiple_of(2 << 20) && run.first.is_multiple_of(512)));
        for (_, run) in ranges {
            resources.give(run);
        }
        let error = take_ram(&mut resources, 4 * 2048 * 4).unwrap_err();
        assert!(alloc::format!("{error}").contains("pieces") || matches!(error, BuildError::Memory { .. }));
        assert!(alloc::format!("{}", take_ram(&mut resources, 1 << 30).unwrap_err()).contains("are free"));
        assert_eq!(resources.free.free(), free);
    }

    #[test]
    fn a_bzimage_is_known_by_its_header() {
        let mut kernel = alloc::vec![0; 0x206];
        assert!(!is_bzimage(&kernel));
        kernel[0x202..].copy_from_slice(b"HdrS");
        assert!(is_bzimage(&kernel));
        assert!(!is_bzimage(&kernel[..0x205]));
    }
}
