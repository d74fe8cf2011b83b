//! The data directory and its lock. Whoever holds the lock owns the file and
//! the socket; the kernel drops it when the process dies, however it dies.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::error::BuiltinError;

/// Where daemons and `weft store` meet unless told otherwise.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/weft";

/// The socket's name in that folder.
pub const SOCKET: &str = "store.sock";

#[derive(Clone, Debug)]
pub(super) struct DataDir(PathBuf);

impl DataDir {
    /// Makes the directory, for its owner alone, where it is missing.
    pub fn prepare(path: &Path) -> Result<Self, BuiltinError> {
        let failed = |cause| BuiltinError::DataDir { path: path.into(), cause };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        Ok(Self(path.canonicalize().map_err(failed)?))
    }

    pub fn database(&self) -> PathBuf {
        self.0.join("store.db")
    }

    pub fn socket(&self) -> PathBuf {
        self.0.join(SOCKET)
    }

    fn lock_path(&self) -> PathBuf {
        self.0.join("store.lock")
    }

    /// The lock, or `None` where another process holds it.
    pub fn try_lock(&self) -> Result<Option<Lock>, BuiltinError> {
        let file = self.open_lock()?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock::held(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(cause)) => Err(BuiltinError::Lock { path: self.lock_path(), cause }),
        }
    }

    /// Waits, as long as it takes, in this thread: the kernel wakes one waiter
    /// the moment the holder is gone, which no polling could match.
    pub fn lock(&self) -> Result<Lock, BuiltinError> {
        let file = self.open_lock()?;
        file.lock().map_err(|cause| BuiltinError::Lock { path: self.lock_path(), cause })?;
        Ok(Lock::held(file))
    }

    /// The error for whoever cannot wait, with the owner's process id.
    pub fn locked(&self) -> BuiltinError {
        let mut pid = String::new();
        if let Ok(file) = File::open(self.lock_path()) {
            // What stands there only helps to find the owner.
            let _ = file.take(20).read_to_string(&mut pid);
        }
        let pid = if pid.is_empty() { pid } else { format!(" (pid {})", pid.trim()) };
        BuiltinError::Locked { dir: self.0.clone(), socket: self.socket(), pid }
    }

    /// Opened close-on-exec, as all of std's files: no child inherits the lock.
    fn open_lock(&self) -> Result<File, BuiltinError> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.lock_path())
            .map_err(|cause| BuiltinError::Lock { path: self.lock_path(), cause })
    }
}

/// Held until dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    fn held(mut file: File) -> Self {
        let note = |file: &mut File| -> std::io::Result<()> {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        if let Err(cause) = note(&mut file) {
            tracing::debug!("store.lock: cannot note the process id: {cause}");
        }
        Self { _file: file }
    }
}
