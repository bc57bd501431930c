//! A kernel file as ELF: parsed, and loaded into a small guest with a RAM disk and a command line.
//!
//! Input: a byte each for the RAM disk's pages and the command line's length, then the file.
#![no_main]

use fuzz::Input;
use libfuzzer_sys::fuzz_target;
use vmm::loader::image::Image;
use vmm::loader::place;
use vmm::testing::{RAM_PAGES, fake, recycle};

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let ramdisk = vec![0xa5; usize::from(input.u8()) * 1024];
    let cmdline = "x".repeat(usize::from(input.u8()) * 16);
    let file = input.rest();
    let memory = fake(RAM_PAGES);
    if let Ok(entry) = place::load(&memory, file, &ramdisk, &cmdline) {
        let ram = (RAM_PAGES * 4096) as u64;
        assert!(entry.start_info < ram && u64::from(entry.rip) < ram);
        assert!(Image::parse(file).is_ok_and(|image| image.end <= ram));
    }
    recycle();
});
