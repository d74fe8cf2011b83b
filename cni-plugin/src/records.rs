//! A directory of small files, one for each thing to undo. It stands below /run:
//! what it tells of does not outlive a boot either.

use std::fs;
use std::io;
use std::path::PathBuf;

use crate::files;
use crate::protocol::error::{Error, Result};

const SUFFIX: &str = ".json";

#[derive(Clone, Debug)]
pub struct Records(PathBuf);

impl Records {
    pub fn at(dir: impl Into<PathBuf>) -> Records {
        Records(dir.into())
    }

    /// Whole or not at all. `name` has no path separators.
    pub fn put(&self, name: &str, content: &[u8]) -> Result<()> {
        let (path, aside) = (self.path(name), self.0.join(format!(".{name}{SUFFIX}")));
        // A sweep of another network's may take the file aside away, once.
        files::within(&self.0, 0o700, || files::replace(&path, &aside, content))
            .map_err(|e| Error::io("write", &path, &e))
    }

    pub fn get(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.path(name);
        match fs::read(&path) {
            Ok(content) => Ok(Some(content)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("read", &path, &e)),
        }
    }

    pub fn remove(&self, name: &str) -> Result<()> {
        files::remove(&self.path(name))
    }

    /// The names of all.
    pub fn names(&self) -> Result<Vec<String>> {
        let names = self.files()?.into_iter().filter(|name| !name.starts_with('.'));
        Ok(names.filter_map(|name| name.strip_suffix(SUFFIX).map(str::to_owned)).collect())
    }

    /// Remove what killed writers left.
    pub fn sweep(&self) -> Result<()> {
        let left = self.files()?.into_iter().filter(|name| name.starts_with('.') && name.ends_with(SUFFIX));
        left.into_iter().try_for_each(|name| files::remove(&self.0.join(name)))
    }

    fn files(&self) -> Result<Vec<String>> {
        let failed = |e: io::Error| Error::io("list directory", &self.0, &e);
        let entries = match fs::read_dir(&self.0) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let names = entries.map(|entry| Ok(entry.map_err(failed)?.file_name().into_string().ok()));
        names.filter_map(Result::transpose).collect()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}{SUFFIX}"))
    }
}
