//! A kernel file as ELF: parsed, and loaded into a small guest with a RAM disk and a command line.
//!
//! Input: a byte each for the RAM disk's pages and the command line's length, then the file.

use vmm::loader::image::Image;
use vmm::loader::place;
use vmm::testing::{RAM_PAGES, fake, recycle};

use crate::Input;

/// Runs one input, and panics where something does not hold.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let ramdisk = vec![0xa5; usize::from(input.u8()) * 1024];
    let cmdline = "x".repeat(usize::from(input.u8()) * 16);
    let file = input.rest();
    let memory = fake(RAM_PAGES);
    if let Ok(entry) = place::load(&memory, file, &ramdisk, &cmdline) {
        let ram = (RAM_PAGES * 4096) as u64;
        assert!(entry.start_info < ram && entry.rip < ram);
        assert!(Image::parse(file).is_ok_and(|image| image.end <= ram));
    }
    recycle();
}
