//! [`fuzz::loader_bzimage`] under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::loader_bzimage::run(bytes));
