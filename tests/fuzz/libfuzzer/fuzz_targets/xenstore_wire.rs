//! [`fuzz::xenstore_wire`] under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::xenstore_wire::run(bytes));
