//! `subnet.env` on disk: whole or not at all, whenever the machine stops.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::model::{SubnetEnv, SubnetEnvError};

/// One byte more than the parser takes.
const MAX_READ: u64 = (1 << 20) + 1;

#[derive(Debug, Error)]
pub enum EnvFileError {
    #[error("{path}: {cause}", path = path.display())]
    Io { path: PathBuf, cause: io::Error },
    #[error("{path}: {cause}", path = path.display())]
    Parse { path: PathBuf, cause: SubnetEnvError },
}

/// What the file says; `None` where there is none.
pub fn read(path: &Path) -> Result<Option<SubnetEnv>, EnvFileError> {
    let Some(text) = read_text(path).map_err(|cause| EnvFileError::Io { path: path.into(), cause })? else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(&text);
    let parsed = SubnetEnv::parse(&text);
    parsed.map(Some).map_err(|cause| EnvFileError::Parse { path: path.into(), cause })
}

/// Make the file say `env`: directory 0755, file 0644, nothing written where it
/// says so already. A reader, and a crash at any point, finds the old content
/// or the new. Gives whether it was written.
pub fn write(path: &Path, env: &SubnetEnv) -> Result<bool, EnvFileError> {
    replace(path, env.to_string().as_bytes()).map_err(|cause| EnvFileError::Io { path: path.into(), cause })
}

fn replace(path: &Path, content: &[u8]) -> io::Result<bool> {
    if read_text(path).is_ok_and(|old| old.as_deref() == Some(content)) {
        return Ok(false);
    }
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    DirBuilder::new().recursive(true).mode(0o755).create(dir)?;

    let prefix = temporary_prefix(path);
    sweep(dir, &prefix)?;
    let mut file = tempfile::Builder::new().prefix(&prefix).tempfile_in(dir)?;
    file.write_all(content)?;
    file.as_file().set_permissions(Permissions::from_mode(0o644))?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    // Without this the rename itself may not outlive a loss of power.
    File::open(dir)?.sync_all()?;
    Ok(true)
}

fn read_text(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut text = Vec::new();
    file.take(MAX_READ).read_to_end(&mut text)?;
    Ok(Some(text))
}

/// `.subnet.env.new-`
fn temporary_prefix(path: &Path) -> OsString {
    let mut prefix = OsString::from(".");
    prefix.push(path.file_name().unwrap_or_default());
    prefix.push(".new-");
    prefix
}

/// Remove what a crash in the middle of a write left behind.
fn sweep(dir: &Path, prefix: &OsString) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(prefix.as_encoded_bytes()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
