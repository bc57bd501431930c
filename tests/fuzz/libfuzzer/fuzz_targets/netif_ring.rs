//! [`fuzz::netif_ring`] under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::netif_ring::run(bytes));
