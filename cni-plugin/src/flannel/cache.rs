//! flannel's directory of rendered configs, by which DEL knows what ADD did
//! even when the network's config or the node's subnet changed since.
//!
//! flannel names the file after the container alone, so that a second
//! interface of the container overwrites the first one's, and removes it even
//! when DEL failed. Here each attachment has its own file,
//! `<containerID>:<ifname>` (neither part can hold a ':'), and flannel's name is
//! a hard link to the newest. flannel's plugin put back in place finds what it
//! looks for, and whose file that is shows in the inode.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::chain::{Site, Valid};
use crate::files::{self, remove};
use crate::identity;
use crate::protocol::conf::Conf;
use crate::protocol::error::{Error, Result};

/// The files of one attachment.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
    own: PathBuf,
    flannel: PathBuf,
    network: String,
}

impl Cache {
    pub fn of(dir: &Path, site: &Site) -> Cache {
        let (id, ifname) = (&site.request.container_id, site.request.ifname);
        let (own, flannel) = (dir.join(format!("{id}:{ifname}")), dir.join(id));
        Cache { dir: dir.to_owned(), own, flannel, network: site.network.clone() }
    }

    /// Whether ADD was called for this container before, by whichever plugin.
    pub fn exists(&self) -> bool {
        self.own.exists() || self.flannel.exists()
    }

    /// Whole or not at all, though a power loss may take it: DEL works without.
    pub fn save(&self, delegate: &Conf) -> Result<()> {
        let temporary = self.temporary();
        let write = || {
            // A second name of the file in place, left by a crash, must not be
            // written through.
            let _ = fs::remove_file(&temporary);
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
            file.write_all(&delegate.to_bytes())?;
            fs::rename(&temporary, &self.own)?;
            fs::hard_link(&self.own, &temporary)?;
            fs::rename(&temporary, &self.flannel)
        };
        files::within(&self.dir, 0o700, write).map_err(|e| Error::io("save config", &self.own, &e))
    }

    /// What ADD saved. A file that cannot be used counts as none: what DEL needs
    /// can be had without. One of another network of the same container (flannel
    /// keeps one for all) is left alone.
    pub fn load(&self) -> Option<Conf> {
        [&self.own, &self.flannel].into_iter().find_map(|path| {
            let bytes = fs::read(path).ok()?;
            let delegate =
                parse(&bytes, path).inspect_err(|e| eprintln!("weft-cni: {e}: going on without it")).ok()?;
            (delegate.network == self.network).then_some(delegate)
        })
    }

    /// To be called when DEL is through.
    pub fn remove(&self) -> Result<()> {
        if self.flannel_is_ours() {
            remove(&self.flannel)?;
        }
        remove(&self.temporary())?;
        remove(&self.own)
    }

    /// It says whose it is even when a crash left it empty.
    fn temporary(&self) -> PathBuf {
        let mut name = self.own.as_os_str().to_owned();
        name.push(format!(":{:06x}", identity::tag(&self.network)));
        name.into()
    }

    /// flannel's file is this attachment's if it is the same file; or, where
    /// this attachment has none, if flannel wrote it for this network or it is
    /// of no use to anybody.
    fn flannel_is_ours(&self) -> bool {
        let Ok(flannel) = fs::metadata(&self.flannel) else { return false };
        if let Ok(own) = fs::metadata(&self.own) {
            return own.ino() == flannel.ino();
        }
        let saved = fs::read(&self.flannel).ok().and_then(|bytes| parse(&bytes, &self.flannel).ok());
        flannel.nlink() == 1 && saved.is_none_or(|saved| saved.network == self.network)
    }
}

fn parse(bytes: &[u8], path: &Path) -> Result<Conf> {
    Conf::parse(bytes, &format!("saved config {}", path.display()))
}

/// Remove the files of the network's attachments that are not valid.
pub fn collect(dir: &Path, network: &str, valid: &Valid) -> Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(|e| Error::io("read directory", dir, &e))?,
    };
    let names: Vec<_> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    let (plain, own): (Vec<_>, Vec<_>) =
        names.iter().map(|name| dir.join(name)).zip(&names).partition(|(_, name)| !name.contains(':'));
    let stale = |(path, name): &(PathBuf, &String)| match name.split(':').collect::<Vec<_>>()[..] {
        [id, ifname] => !valid.contains(id, ifname) && network_of(path).is_none_or(|of| of == network),
        [_, _, tag] => tag == format!("{:06x}", identity::tag(network)),
        _ => false,
    };
    let stale: Vec<_> = own.into_iter().filter(stale).collect();
    let inodes: Vec<_> = stale.iter().filter_map(|(path, _)| inode(path)).collect();
    // flannel's name of a stale one, or of one that flannel made.
    let stale_plain = |(path, name): &(PathBuf, &String)| {
        inode(path).is_some_and(|inode| inodes.contains(&inode))
            || network_of(path).is_some_and(|of| of == network) && !valid.iter().any(|(id, _)| id == *name)
    };
    let plain = plain.into_iter().filter(stale_plain).collect::<Vec<_>>();
    plain.iter().chain(&stale).try_for_each(|(path, _)| remove(path))
}

fn inode(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|file| file.ino())
}

fn network_of(path: &Path) -> Option<String> {
    Some(Conf::parse(&fs::read(path).ok()?, "").ok()?.network)
}
