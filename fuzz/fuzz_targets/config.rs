#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| weft_cni::fuzz::config(bytes));
