//! [`fuzz::loader_elf`] under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::loader_elf::run(bytes));
