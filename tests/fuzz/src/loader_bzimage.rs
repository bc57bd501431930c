//! A kernel file as bzImage: found, unpacked, and what comes out parsed.
//!
//! Input: a file; or, where it has no header, a payload that gets a sound one, so that the decoders are reached.

use vmm::loader::bzimage::extract_elf_limited;
use vmm::loader::image::Image;

const LIMIT: u64 = 4 << 20;
const SECTOR: usize = 512;

/// Runs one input, and panics where something does not hold.
pub fn run(bytes: &[u8]) {
    let has_header = bytes.get(0x202..0x206) == Some(b"HdrS") || bytes.starts_with(b"\x7fELF");
    let wrapped;
    let file = if has_header {
        bytes
    } else {
        wrapped = wrap(bytes);
        &wrapped
    };
    if let Ok(elf) = extract_elf_limited(file, LIMIT) {
        assert!(elf.len() as u64 <= LIMIT || elf.len() == file.len());
        let _ = Image::parse(&elf);
    }
}

/// A bzImage of boot protocol 2.15 with this payload.
fn wrap(payload: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 2 * SECTOR];
    file[0x1f1] = 1;
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    file[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    file.extend_from_slice(payload);
    file
}
