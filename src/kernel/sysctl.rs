//! Files below `/proc/sys`.

use std::fs::File;
use std::io::{self, Read, Write};

/// No value we handle is longer.
const MAX_LEN: u64 = 4096;

/// The value, without white space around it; `None` where there is no such file.
pub(super) fn read(key: &str) -> io::Result<Option<String>> {
    let file = match File::open(path(key)?) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut value = String::new();
    file.take(MAX_LEN).read_to_string(&mut value)?;
    Ok(Some(value.trim().to_owned()))
}

pub(super) fn write(key: &str, value: &str) -> io::Result<()> {
    if value.len() as u64 > MAX_LEN || value.contains(['\n', '\0']) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // One write: the kernel parses each on its own.
    File::options().write(true).open(path(key)?)?.write_all(value.as_bytes())
}

/// Names may hold dots (`net/ipv4/conf/eth0.5/forwarding`), so the separator is
/// `/`. Nothing outside `net` is ours.
fn path(key: &str) -> io::Result<String> {
    let clean = key.split('/').all(|part| !matches!(part, "" | "." | "..") && !part.contains('\0'));
    if !clean || !key.starts_with("net/") || key.len() > 255 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    Ok(format!("/proc/sys/{key}"))
}
