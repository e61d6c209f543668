//! Any bytes as a packet, at every hook, in both families.
//!
//! `cargo +nightly fuzz run decide ../tests/corpus` from this directory; what it finds goes into that directory.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    portolan_tests::packet::entry::every_hook(bytes);
});
