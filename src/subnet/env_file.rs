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
    write_whole(path, 0o644, |file| file.write_all(content))?;
    Ok(true)
}

/// Put a file of that mode in the place of the one that is there, once all of it
/// is written; the directory is made where it is missing.
pub(super) fn write_whole(
    path: &Path,
    mode: u32,
    content: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    DirBuilder::new().recursive(true).mode(0o755).create(dir)?;

    let prefix = temporary_prefix(path);
    sweep(dir, &prefix)?;
    let mut file = tempfile::Builder::new().prefix(&prefix).tempfile_in(dir)?;
    content(file.as_file_mut())?;
    file.as_file().set_permissions(Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    // Without this the rename itself may not outlive a loss of power.
    File::open(dir)?.sync_all()
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use std::process::Command;

    /// Where the child of the test below writes.
    const CHILD: &str = "WEFT_TEST_ENV_FILE";

    #[test]
    fn what_is_written_is_read_and_not_written_again() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("flannel/subnet.env");

        assert!(read(&path).expect("no file is no error").is_none());
        assert!(write(&path, &env(1450)).expect("a writable directory"));
        let inode = fs::metadata(&path).expect("it is there").ino();
        assert!(!write(&path, &env(1450)).expect("a writable directory"));

        let metadata = fs::metadata(&path).expect("it is there");
        assert_eq!((metadata.ino(), metadata.mode() & 0o777), (inode, 0o644));
        assert_eq!(read(&path).expect("well-formed"), Some(env(1450)));
    }

    #[test]
    fn a_broken_file_is_named_and_replaced() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("subnet.env");
        fs::write(&path, "FLANNEL_MTU=many\n").expect("a writable directory");

        let error = read(&path).expect_err("many is no MTU").to_string();

        assert!(error.contains("subnet.env") && error.contains("FLANNEL_MTU"), "{error}");
        assert!(write(&path, &env(1450)).expect("a writable directory"));
    }

    /// A child writes two contents in turn and is killed at a random moment, a
    /// hundred times over.
    #[test]
    fn a_kill_at_any_moment_leaves_one_content_whole() {
        if let Some(path) = std::env::var_os(CHILD) {
            loop {
                for mtu in [1450, 8950] {
                    write(Path::new(&path), &env(mtu)).expect("a writable directory");
                }
            }
        }
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("subnet.env");
        write(&path, &env(1450)).expect("a writable directory");
        let this = std::env::current_exe().expect("the test binary");
        for round in 0..100u64 {
            let mut child = Command::new(&this)
                .args(["--exact", "subnet::env_file::tests::a_kill_at_any_moment_leaves_one_content_whole"])
                .env(CHILD, &path)
                .stdout(std::process::Stdio::null())
                .spawn()
                .expect("the test binary");
            std::thread::sleep(std::time::Duration::from_micros(4_000 + round * 97));
            child.kill().expect("our child");
            child.wait().expect("our child");
            let found = read(&path).expect("well-formed").expect("never gone");
            assert!(found == env(1450) || found == env(8950));
        }
        write(&path, &env(1400)).expect("a writable directory");
        assert_eq!(fs::read_dir(dir.path()).expect("it is there").count(), 1, "nothing is left behind");
    }

    fn env(mtu: u32) -> SubnetEnv {
        let text = format!(
            "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.41.1/24\nFLANNEL_MTU={mtu}\nFLANNEL_IPMASQ=true\n"
        );
        SubnetEnv::parse(&text).expect("well-formed")
    }
}
