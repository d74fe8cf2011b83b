use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::protocol::error::{Code, Error, Result};
use crate::protocol::request::Request;

const OWN: &str = "/proc/thread-self/ns/net";
/// include/uapi/linux/magic.h
const NSFS_MAGIC: u32 = 0x6e73_6673;

/// A container's network namespace. The plugin has one thread, which goes into
/// the namespace and comes back: sysctls are those of the thread's namespace.
#[derive(Debug)]
pub struct NetNs {
    path: PathBuf,
    file: File,
    /// The one the plugin was started in.
    own: File,
}

impl NetNs {
    /// The container's, which is not our own.
    pub fn of(request: &Request) -> Result<NetNs> {
        NetNs::existing_of(request)?.ok_or_else(|| {
            let path = request.netns.as_deref().unwrap_or(Path::new(""));
            Error::new(Code::NetNs, format!("CNI_NETNS: {} is not a network namespace", path.display()))
        })
    }

    /// The same where it may be gone already.
    pub fn existing_of(request: &Request) -> Result<Option<NetNs>> {
        let Some(netns) = request.netns.as_deref().map(NetNs::open).transpose()?.flatten() else {
            return Ok(None);
        };
        if netns.is_own()? && !request.own_netns_allowed {
            let msg = format!("CNI_NETNS: {} is the plugin's own network namespace", netns.path().display());
            return Err(Error::new(Code::NetNs, msg));
        }
        Ok(Some(netns))
    }

    /// `None` when there is no namespace at `path` (any more): nothing is there,
    /// or the empty file that a namespace was mounted on.
    fn open(path: &Path) -> Result<Option<NetNs>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed("open", path, &e)),
        };
        let stat = rustix::fs::fstatfs(&file).map_err(|e| failed("look at", path, &e.into()))?;
        if stat.f_type as u32 != NSFS_MAGIC {
            return Ok(None);
        }
        let own = File::open(OWN).map_err(|e| failed("open", Path::new(OWN), &e))?;
        Ok(Some(NetNs { path: path.to_owned(), file, own }))
    }

    /// The number by which the plugin's own is told from others.
    pub fn own_inode() -> Result<u64> {
        fs::metadata(OWN).map(|own| own.ino()).map_err(|e| failed("look at", Path::new(OWN), &e))
    }

    fn is_own(&self) -> Result<bool> {
        let own = self.own.metadata().map_err(|e| failed("look at", Path::new(OWN), &e))?;
        let this = self.file.metadata().map_err(|e| failed("look at", &self.path, &e))?;
        Ok((own.dev(), own.ino()) == (this.dev(), this.ino()))
    }

    /// Run `f` inside.
    pub fn enter<T>(&self, f: impl FnOnce() -> Result<T>) -> Result<T> {
        let go = |to: &File, path: &Path| {
            move_into_link_name_space(to.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(|e| failed("enter", path, &e.into()))
        };
        go(&self.file, &self.path)?;
        let out = f();
        go(&self.own, Path::new(OWN))?;
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
