//! Virtual device names of disks and their numbers.
//!
//! Numbers as in docs/man/xen-vbd-interface.7 and libxl: `xvd` disks to 15 with partitions to 15 have
//! `202 << 8 | disk << 4 | partition`, further ones `1 << 28 | disk << 8 | partition`; `hd` and `sd` have
//! Linux's old numbers; `dNpM` names an `xvd` disk by number; a bare number is taken as it is.

/// The number of a virtual device, or nothing if the name is none.
pub fn number(name: &str) -> Option<u32> {
    let xvd = split_letters(name, "xvd", (1 << 20) - 1, 255).or_else(|| split_numbers(name));
    if let Some((disk, partition)) = xvd {
        return Some(if disk <= 15 && partition <= 15 {
            202 << 8 | disk << 4 | partition
        } else {
            1 << 28 | disk << 8 | partition
        });
    }
    if let Some((disk, partition)) = split_letters(name, "hd", 3, 63) {
        return Some((if disk < 2 { 3 } else { 22 }) << 8 | (disk & 1) << 6 | partition);
    }
    if let Some((disk, partition)) = split_letters(name, "sd", 15, 15) {
        return Some(8 << 8 | disk << 4 | partition);
    }
    super::number::parse(name).and_then(|number| u32::try_from(number).ok()).filter(|&n| n < 1 << 31)
}

/// `<prefix>` letters digits: the disk's letters count in base 26 (`z`, `aa`, ...); no digits: the whole disk.
fn split_letters(name: &str, prefix: &str, disk_max: u32, partition_max: u32) -> Option<(u32, u32)> {
    let rest = name.strip_prefix(prefix)?;
    let digits = rest.trim_start_matches(|c: char| c.is_ascii_lowercase());
    let letters = rest.get(..rest.len() - digits.len()).filter(|letters| !letters.is_empty())?;
    let mut disk: u32 = 0;
    for letter in letters.bytes() {
        disk = disk.checked_mul(26)?.checked_add(u32::from(letter - b'a') + 1)?;
    }
    let disk = disk - 1;
    let partition = if digits.is_empty() { 0 } else { decimal(digits)? };
    let is_padded = digits.starts_with('0');
    (disk <= disk_max && partition <= partition_max && !is_padded).then_some((disk, partition))
}

/// `d<disk>p<partition>`.
fn split_numbers(name: &str) -> Option<(u32, u32)> {
    let (disk, partition) = name.strip_prefix('d')?.split_once('p')?;
    let (disk, partition) = (decimal(disk)?, decimal(partition)?);
    (disk < 1 << 20 && partition < 256).then_some((disk, partition))
}

fn decimal(digits: &str) -> Option<u32> {
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_their_numbers() {
        for (name, expected) in [
            ("xvda", 51712),
            ("xvdb", 51728),
            ("xvda1", 51713),
            ("xvdp15", 202 << 8 | 15 << 4 | 15),
            ("xvda16", 1 << 28 | 16),
            ("xvdq", 1 << 28 | 16 << 8),
            ("xvdaa1", 1 << 28 | 26 << 8 | 1),
            ("hda", 768),
            ("hdb", 832),
            ("hdc", 5632),
            ("hdd1", 5697),
            ("sda", 2048),
            ("sdp15", 2303),
            ("d0p0", 51712),
            ("d16p3", 1 << 28 | 16 << 8 | 3),
            ("51712", 51712),
            ("0xca00", 51712),
        ] {
            assert_eq!(number(name), Some(expected), "{name}");
        }
    }

    #[test]
    fn other_names_have_none() {
        for name in [
            "",
            "xvd",
            "xvd1",
            "xvda01",
            "xvda256",
            "XVDA",
            "hde",
            "hda64",
            "sdq",
            "sda16",
            "sdaa",
            "vda",
            "d0",
            "dp",
            "d0p256",
            "xvdzzzzzzzzzzzz",
            "-1",
            "0x",
            "4294967296",
            "2147483648",
            "xvda1x",
        ] {
            assert_eq!(number(name), None, "{name}");
        }
    }
}
