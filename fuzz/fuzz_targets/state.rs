#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else { unreachable!("no room below /dev/shm") };
    weft_cni::fuzz::state(bytes, dir.path());
});
