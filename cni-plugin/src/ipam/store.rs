//! Reservations on disk, in host-local's format (backend/disk/backend.go), so
//! that both plugins can share a directory: a file for each address with
//! `<containerID>\r\n<ifname>`, `last_reserved_ip.<set>`, and `lock`.
//!
//! A reservation is written aside and linked into place: it is there whole or
//! not at all. Empty and torn files, as other programs leave them in a crash,
//! count as free: whoever holds the lock knows that nobody is writing them.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{FlockOperation, flock};

use super::ranges::{Range, RangeSet};
use crate::files;
use crate::protocol::error::{Error, Result};
use crate::protocol::request::is_identifier;

/// So many addresses are tried one by one before the directory is read to know
/// all that are taken.
const TRIES_WITHOUT_LISTING: usize = 8;

/// The reservations of one network. The lock is held as long as this lives.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    _lock: File,
}

/// Whose a reservation is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub container_id: String,
    pub ifname: String,
}

impl Store {
    /// Waits for the lock.
    pub fn open(dir: &Path) -> Result<Store> {
        let path = dir.join("lock");
        let open = || OpenOptions::new().create(true).truncate(false).write(true).mode(0o750).open(&path);
        let lock = files::within(dir, 0o755, open).map_err(|e| Error::io("open", &path, &e))?;
        loop {
            match flock(&lock, FlockOperation::LockExclusive) {
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(Error::io("lock", &path, &e.into())),
                Ok(()) => return Ok(Store { dir: dir.to_owned(), _lock: lock }),
            }
        }
    }

    /// Reserve the next free address of the set, round robin; `None` when none
    /// is left. `set_index` is the set's place in the config.
    pub fn next<'r>(
        &self,
        owner: &Owner,
        set_index: usize,
        set: &'r RangeSet,
    ) -> Result<Option<(IpAddr, &'r Range)>> {
        let last = self.last_reserved(set_index);
        let mut candidates = set.candidates(last);
        for (ip, range) in candidates.by_ref().take(TRIES_WITHOUT_LISTING) {
            if self.reserve(owner, set_index, ip)? {
                return Ok(Some((ip, range)));
            }
        }
        let taken = self.list()?;
        for (ip, range) in candidates {
            if !taken.contains(&ip) && self.reserve(owner, set_index, ip)? {
                return Ok(Some((ip, range)));
            }
        }
        // Only torn files can be free now.
        for (ip, range) in set.candidates(last).filter(|(ip, _)| taken.contains(ip)) {
            if self.is_torn(ip) && self.reserve(owner, set_index, ip)? {
                return Ok(Some((ip, range)));
            }
        }
        Ok(None)
    }

    /// Reserve one address; false when it is taken.
    pub fn reserve(&self, owner: &Owner, set_index: usize, ip: IpAddr) -> Result<bool> {
        let path = self.path(ip);
        if path.exists() && !self.is_torn(ip) {
            return Ok(false);
        }
        let content = format!("{}\r\n{}", owner.container_id, owner.ifname);
        self.replace(&path, content.as_bytes())?;
        self.replace(&self.dir.join(last_file(set_index)), ip.to_string().as_bytes())?;
        Ok(true)
    }

    /// Release what the owner has; the addresses released. With `hint`, as many
    /// addresses as the owner is known to have at most, they are looked at first
    /// and the rest only where one of them is not the owner's.
    pub fn release(&self, owner: &Owner, hint: &[IpAddr]) -> Result<Vec<IpAddr>> {
        // What a crash may have left.
        let _ = fs::remove_file(self.dir.join(TEMPORARY));
        let key = format!("{}\r\n{}", owner.container_id, owner.ifname);
        if !hint.is_empty() && hint.iter().all(|ip| self.content(*ip).as_deref() == Some(key.as_str())) {
            hint.iter().try_for_each(|ip| self.remove(*ip))?;
            return Ok(hint.to_vec());
        }
        let mine = self.of(owner)?;
        mine.iter().try_for_each(|ip| self.remove(*ip))?;
        Ok(mine)
    }

    /// The addresses an owner has. Files of old host-locals, which hold no
    /// interface, count where none with the interface is found.
    pub fn of(&self, owner: &Owner) -> Result<Vec<IpAddr>> {
        let key = format!("{}\r\n{}", owner.container_id, owner.ifname);
        let held: Vec<_> = self.list()?.into_iter().filter_map(|ip| Some((ip, self.content(ip)?))).collect();
        let with = |key: &str| held.iter().filter(|(_, c)| c == key).map(|(ip, _)| *ip).collect::<Vec<_>>();
        let mine = with(&key);
        Ok(if mine.is_empty() { with(&owner.container_id) } else { mine })
    }

    /// Release all but what `is_valid` says yes to, which gets the container ID and
    /// the interface; files of old host-locals hold none. Torn files go, too.
    pub fn retain(&self, is_valid: impl Fn(&str, Option<&str>) -> bool) -> Result<()> {
        let stale = |ip: &IpAddr| {
            let content = self.content(*ip).unwrap_or_default();
            match content.split_once("\r\n") {
                Some((id, ifname)) => !is_valid(id, Some(ifname)),
                None => !is_valid(&content, None),
            }
        };
        let _ = fs::remove_file(self.dir.join(TEMPORARY));
        self.list()?.into_iter().filter(stale).try_for_each(|ip| self.remove(ip))
    }

    /// Once a boot: release what was reserved before it `began`, since nothing that
    /// was then is there still. Also where another host-local wrote it.
    pub fn forget_earlier_boots(
        &self,
        boot_id: &str,
        began: impl FnOnce() -> Option<SystemTime>,
    ) -> Result<()> {
        let marker = self.dir.join(BOOT);
        if fs::read_to_string(&marker).is_ok_and(|id| id == boot_id) {
            return Ok(());
        }
        let Some(began) = began() else { return Ok(()) };
        let written = |ip: &IpAddr| fs::metadata(self.path(*ip)).and_then(|file| file.modified());
        let earlier = |ip: &IpAddr| written(ip).is_ok_and(|time| time < began);
        self.list()?.into_iter().filter(earlier).try_for_each(|ip| self.remove(ip))?;
        self.replace(&marker, boot_id.as_bytes())
    }

    fn last_reserved(&self, set_index: usize) -> Option<IpAddr> {
        fs::read_to_string(self.dir.join(last_file(set_index))).ok()?.trim().parse().ok()
    }

    fn list(&self) -> Result<HashSet<IpAddr>> {
        let entries = fs::read_dir(&self.dir).map_err(|e| Error::io("read directory", &self.dir, &e))?;
        Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
    }

    /// Of a torn file none, so that nobody holds what `reserve` gives away.
    fn content(&self, ip: IpAddr) -> Option<String> {
        let bytes = fs::read(self.path(ip)).ok().filter(|bytes| !is_torn(bytes))?;
        Some(String::from_utf8(bytes).ok()?.trim().to_owned())
    }

    fn is_torn(&self, ip: IpAddr) -> bool {
        fs::read(self.path(ip)).is_ok_and(|bytes| is_torn(&bytes))
    }

    /// Write aside, then put in place. A name that is taken is overwritten,
    /// hence callers look first; the lock keeps everybody else out.
    fn replace(&self, path: &Path, content: &[u8]) -> Result<()> {
        let aside = self.dir.join(TEMPORARY);
        files::replace(path, &aside, content).map_err(|e| Error::io("write", path, &e))
    }

    fn remove(&self, ip: IpAddr) -> Result<()> {
        files::remove(&self.path(ip))
    }

    fn path(&self, ip: IpAddr) -> PathBuf {
        self.dir.join(ip.to_string())
    }
}

/// Holds the boot that reservations were last made in.
const BOOT: &str = ".weft.boot";
/// One name is enough under the lock, and what a crash leaves is overwritten.
const TEMPORARY: &str = ".weft.tmp";

fn last_file(set_index: usize) -> String {
    format!("last_reserved_ip.{set_index}")
}

/// Not what any host-local writes: no container ID, or a line break and no
/// interface after it.
fn is_torn(content: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(content) else { return true };
    let (id, ifname) = match text.split_once("\r\n") {
        Some((id, ifname)) => (id, Some(ifname)),
        None => (text, None),
    };
    !is_identifier(id.trim_end_matches([' ', '\n', '\t'])) || ifname.is_some_and(|i| i.trim().is_empty())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::ipam::ranges;
    use crate::protocol::fields::Fields;

    #[test]
    fn torn_reservations_are_told_from_whole_and_from_old_ones() {
        for torn in ["", "\0\0\0", "abc\r", "abc\r\n", "\r\neth0", " "] {
            assert!(is_torn(torn.as_bytes()), "{torn:?}");
        }
        for whole in ["abc\r\neth0", "abc", "abc\n", "0a.b-c_d\r\nnet1"] {
            assert!(!is_torn(whole.as_bytes()), "{whole:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Against a list of all addresses, walked round from the last one given.
        #[test]
        fn allocation_is_round_robin_and_gives_no_address_twice(
            containers in proptest::collection::vec(0u8..40, 1..120),
            torn in proptest::collection::btree_set(2u8..30, 0..4),
        ) {
            let dir = tempfile::tempdir()?;
            let set = set(&json!([
                { "subnet": "10.0.0.0/28" },
                { "subnet": "10.0.1.0/24", "rangeStart": "10.0.1.1", "rangeEnd": "10.0.1.9" },
            ]));
            let addresses = |net: u8, hosts: std::ops::RangeInclusive<u8>| {
                hosts.map(move |n| IpAddr::from([10, 0, net, n]))
            };
            let all: Vec<IpAddr> = addresses(0, 2..=14).chain(addresses(1, 2..=9)).collect();
            let store = Store::open(dir.path())?;
            for n in torn {
                fs::write(dir.path().join(format!("10.0.0.{n}")), "")?;
            }
            let mut held: BTreeMap<u8, IpAddr> = BTreeMap::new();
            let mut last: Option<IpAddr> = None;
            for container in containers {
                let owner = Owner { container_id: format!("c{container}"), ifname: "eth0".into() };
                if let Some(ip) = held.remove(&container) {
                    prop_assert_eq!(store.release(&owner, &[])?, vec![ip]);
                    continue;
                }
                let start = last.and_then(|last| all.iter().position(|ip| *ip == last)).map_or(0, |at| at + 1);
                let free = |ip: &&IpAddr| !held.values().any(|taken| taken == *ip);
                let expected = all.iter().cycle().skip(start).take(all.len()).find(free).copied();
                let given = store.next(&owner, 0, &set)?.map(|(ip, _)| ip);
                prop_assert_eq!(given, expected);
                if let Some(ip) = given {
                    held.insert(container, ip);
                    last = given;
                }
            }
        }
    }

    #[test]
    fn a_full_subnet_gives_nothing_but_what_a_crash_left_torn() -> Result<()> {
        let dir = tempfile::tempdir().map_err(Error::internal)?;
        let set = set(&json!([{ "subnet": "10.0.0.0/24" }]));
        let store = Store::open(dir.path())?;
        let owner = |n: usize| Owner { container_id: format!("c{n}"), ifname: "eth0".into() };
        for n in 0..253 {
            assert!(store.next(&owner(n), 0, &set)?.is_some(), "{n}");
        }
        assert!(store.next(&owner(999), 0, &set)?.is_none());
        let torn: IpAddr = [10, 0, 0, 99].into();
        fs::write(store.path(torn), "").map_err(Error::internal)?;
        assert_eq!(store.next(&owner(999), 0, &set)?.map(|(ip, _)| ip), Some(torn));
        Ok(())
    }

    #[test]
    fn reservations_of_an_earlier_boot_are_forgotten_once_a_boot() -> Result<()> {
        let dir = tempfile::tempdir().map_err(Error::internal)?;
        let store = Store::open(dir.path())?;
        let began = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
        let reserve = |n: u8, at: SystemTime| -> Result<IpAddr> {
            let owner = Owner { container_id: format!("c{n}"), ifname: "eth0".into() };
            let ip = [10, 0, 0, n].into();
            assert!(store.reserve(&owner, 0, ip)?);
            File::open(store.path(ip)).and_then(|file| file.set_modified(at)).map_err(Error::internal)?;
            Ok(ip)
        };

        // Taken over in mid-flight: what is of this boot stays, whoever wrote it.
        reserve(2, began - second)?;
        let live = reserve(3, began)?;
        store.forget_earlier_boots("one", || Some(began))?;
        assert_eq!(store.list()?, HashSet::from([live]));
        // The clock is set right: all that is there looks older than the boot.
        store.forget_earlier_boots("one", || Some(began + minute))?;
        assert_eq!(store.list()?, HashSet::from([live]));
        // The machine was started again, and another plugin was here first.
        let live = reserve(4, began + minute)?;
        store.forget_earlier_boots("two", || Some(began + minute))?;
        assert_eq!(store.list()?, HashSet::from([live]));
        Ok(())
    }

    fn set(ranges: &serde_json::Value) -> RangeSet {
        let ipam = json!({ "ranges": [ranges] });
        ranges::parse(&Fields::root(ipam.as_object().unwrap()), None).unwrap().remove(0)
    }
}
