use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::protocol::error::{Code, Error, Result};

const OWN: &str = "/proc/thread-self/ns/net";
/// include/uapi/linux/magic.h
const NSFS_MAGIC: u32 = 0x6e73_6673;

/// A container's network namespace. The plugin has one thread, which goes into
/// the namespace and comes back: sysctls are those of the thread's namespace.
#[derive(Debug)]
pub struct NetNs {
    path: PathBuf,
    file: File,
}

impl NetNs {
    /// `None` when there is no namespace at `path` (any more): nothing is there,
    /// or the empty file that a namespace was mounted on.
    pub fn open_existing(path: &Path) -> Result<Option<NetNs>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed("open", path, &e)),
        };
        let stat = rustix::fs::fstatfs(&file).map_err(|e| failed("look at", path, &e.into()))?;
        let is_netns = stat.f_type as u32 == NSFS_MAGIC;
        Ok(is_netns.then(|| NetNs { path: path.to_owned(), file }))
    }

    pub fn open(path: &Path) -> Result<NetNs> {
        NetNs::open_existing(path)?.ok_or_else(|| {
            Error::new(Code::NetNs, format!("CNI_NETNS: {} is not a network namespace", path.display()))
        })
    }

    /// Whether it is the one the plugin was started in.
    pub fn is_own(&self) -> Result<bool> {
        let own = fs::metadata(OWN).map_err(|e| failed("look at", Path::new(OWN), &e))?;
        let this = self.file.metadata().map_err(|e| failed("look at", &self.path, &e))?;
        Ok((own.dev(), own.ino()) == (this.dev(), this.ino()))
    }

    /// Run `f` inside.
    pub fn enter<T>(&self, f: impl FnOnce() -> Result<T>) -> Result<T> {
        let own = File::open(OWN).map_err(|e| failed("open", Path::new(OWN), &e))?;
        let go = |to: &File, path: &Path| {
            move_into_link_name_space(to.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(|e| failed("enter", path, &e.into()))
        };
        go(&self.file, &self.path)?;
        let out = f();
        go(&own, Path::new(OWN))?;
        out
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn failed(what: &str, path: &Path, cause: &io::Error) -> Error {
    Error::new(Code::NetNs, format!("{what} network namespace {}: {cause}", path.display()))
}
