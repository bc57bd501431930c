//! [`fuzz::blkif_ring`] under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::blkif_ring::run(bytes));
