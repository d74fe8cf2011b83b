//! Files that are whole whenever the process is killed. They are not flushed to
//! disk: what a power loss takes, it takes together with the containers.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use crate::protocol::error::{Error, Result};

/// Write under the name `aside`, then put it in place of whatever `path` is.
pub fn replace(path: &Path, aside: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(aside)?;
    file.write_all(content)?;
    fs::rename(aside, path)
}

/// Do what needs a directory. Where it fails for something missing, the
/// directory is made and it is done again.
pub fn within<T>(dir: &Path, mode: u32, act: impl Fn() -> io::Result<T>) -> io::Result<T> {
    match act() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(mode).create(dir)?;
            act()
        }
        done => done,
    }
}

/// Gone already is as good.
pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, &e)),
        _ => Ok(()),
    }
}
