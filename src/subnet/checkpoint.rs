//! What this node knew last, beside `subnet.env`: a start while the store is away
//! goes by it until the store has told. It is a cache: a restart that reaches the
//! store does not look at it, a reboot makes it void, and what is wrong with it
//! costs no more than the file.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;
use thiserror::Error;

use super::{Held, StoredLease, env_file};
use crate::backends::Peers;
use crate::model::{KeyError, Lease, LeaseAttrs, SubnetKey};

/// Of the file's shape.
const VERSION: u32 = 1;
/// As many leases as there are in a store, of the usual size.
const MAX_READ: u64 = 64 << 20;
/// A lease is some 300 bytes.
const MAX_LEASE: usize = 64 << 10;

#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The network config's JSON.
    pub config: Box<str>,
    /// Our lease. Of the revision that it was written at nothing is known.
    pub own: Held,
    pub peers: Peers,
}

/// A run of the machine, and how long it has lasted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    pub id: String,
    pub up: Duration,
}

#[derive(Debug, Error)]
pub enum CheckpointError {
    #[error("{path}: {cause}", path = path.display())]
    Io { path: PathBuf, cause: io::Error },
    #[error("{path}: {reason}", path = path.display())]
    Content { path: PathBuf, reason: String },
}

impl Boot {
    /// This one, now (random(4), `CLOCK_BOOTTIME`): a clock that goes on while the
    /// machine sleeps and that nobody sets.
    pub fn now() -> io::Result<Boot> {
        let id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        let up = Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default();
        Ok(Boot { id, up })
    }
}

/// Beside `subnet.env`, and as the one of several that it belongs to.
pub fn path(subnet_file: &Path) -> PathBuf {
    let mut path = subnet_file.as_os_str().to_owned();
    path.push(".checkpoint");
    path.into()
}

/// Whole or not at all, and for its owner's eyes: a network config may hold keys.
pub fn write(path: &Path, checkpoint: &Checkpoint, boot: &Boot) -> Result<(), CheckpointError> {
    let document = Document::of(checkpoint, boot);
    let written = env_file::write_whole(path, 0o600, |file| {
        let mut file = BufWriter::new(file);
        serde_json::to_writer(&mut file, &document)?;
        file.write_all(b"\n")?;
        file.flush()
    });
    written.map_err(|cause| CheckpointError::Io { path: path.into(), cause })
}

/// What the file says; `None` where there is none, or none of this boot.
pub fn read(path: &Path, boot: &Boot) -> Result<Option<Checkpoint>, CheckpointError> {
    let content = |reason: String| CheckpointError::Content { path: path.into(), reason };
    let text = read_text(path).map_err(|cause| CheckpointError::Io { path: path.into(), cause })?;
    let Some(text) = text else { return Ok(None) };
    let text = str::from_utf8(&text).map_err(|error| content(error.to_string()))?;
    let saved: Saved<'_> = serde_json::from_str(text).map_err(|error| content(error.to_string()))?;
    if saved.version != VERSION {
        return Err(content(format!("version {}; this program reads {VERSION}", saved.version)));
    }
    if saved.boot != boot.id {
        return Ok(None);
    }
    saved.checkpoint(boot).map(Some).map_err(content)
}

/// Forget what is no longer so. Gone already is as good.
pub fn remove(path: &Path) -> Result<(), CheckpointError> {
    match fs::remove_file(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
            Err(CheckpointError::Io { path: path.into(), cause })
        }
        _ => Ok(()),
    }
}

fn read_text(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut text = Vec::new();
    if file.take(MAX_READ + 1).read_to_end(&mut text)? as u64 > MAX_READ {
        return Err(io::Error::other(format!("larger than {MAX_READ} bytes")));
    }
    Ok(Some(text))
}

/// The file as it is written.
#[derive(Serialize)]
struct Document<'a> {
    version: u32,
    boot: &'a str,
    config: &'a str,
    subnet: SubnetKey,
    lease: &'a LeaseAttrs,
    lease_id: Option<i64>,
    /// By `CLOCK_BOOTTIME`, in seconds; none for a reservation.
    expires: Option<u64>,
    #[serde(serialize_with = "map")]
    peers: &'a Peers,
}

impl<'a> Document<'a> {
    fn of(checkpoint: &'a Checkpoint, boot: &'a Boot) -> Document<'a> {
        let Held { stored, ttl } = &checkpoint.own;
        Document {
            version: VERSION,
            boot: &boot.id,
            config: &checkpoint.config,
            subnet: stored.lease.key,
            lease: &stored.lease.attrs,
            lease_id: stored.lease_id,
            expires: ttl.map(|ttl| (boot.up + ttl).as_secs()),
            peers: &checkpoint.peers,
        }
    }
}

fn map<S: Serializer>(peers: &Peers, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(peers.iter())
}

/// The file as it is read: nothing in it is taken on trust.
#[derive(Deserialize)]
struct Saved<'a> {
    version: u32,
    boot: String,
    config: Box<str>,
    subnet: String,
    #[serde(borrow)]
    lease: &'a RawValue,
    lease_id: Option<i64>,
    expires: Option<u64>,
    #[serde(borrow)]
    peers: BTreeMap<String, &'a RawValue>,
}

impl Saved<'_> {
    fn checkpoint(self, boot: &Boot) -> Result<Checkpoint, String> {
        let lease = parse(&self.subnet, self.lease)?;
        let ttl = self.expires.map(|expires| Duration::from_secs(expires).saturating_sub(boot.up));
        let own = Held { stored: StoredLease { lease, lease_id: self.lease_id, mod_revision: 0 }, ttl };
        let peers = self.peers.into_iter().map(|(key, attrs)| {
            let Lease { key, attrs } = parse(&key, attrs)?;
            Ok((key, attrs))
        });
        Ok(Checkpoint { config: self.config, own, peers: peers.collect::<Result<_, String>>()? })
    }
}

fn parse(key: &str, attrs: &RawValue) -> Result<Lease, String> {
    let bad = |reason: String| format!("lease {key:.80}: {reason}");
    if attrs.get().len() > MAX_LEASE {
        return Err(bad(format!("{} bytes", attrs.get().len())));
    }
    let attrs = LeaseAttrs::parse(attrs.get().as_bytes()).map_err(|error| bad(error.to_string()))?;
    Ok(Lease { key: key.parse().map_err(|error: KeyError| bad(error.to_string()))?, attrs })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn what_is_written_is_read_with_the_time_that_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(&dir.path().join("flannel/subnet.env"));
        assert!(read(&path, &boot(1)).unwrap().is_none());
        write(&path, &checkpoint(), &boot(1)).unwrap();
        assert_eq!(path.file_name().unwrap(), "subnet.env.checkpoint");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600, "a config may hold keys");

        let after = |up| read(&path, &boot(up)).unwrap().unwrap();
        let (before, found) = (checkpoint(), after(3));
        assert_eq!((&found.config, &found.peers), (&before.config, &before.peers));
        assert_eq!(found.own.stored.lease, before.own.stored.lease);
        assert_eq!(found.own.stored.lease_id, Some(7));
        assert_eq!(found.own.ttl, Some(8 * MINUTE));
        assert_eq!(after(30).own.ttl, Some(Duration::ZERO), "it ran out meanwhile");

        let rebooted = Boot { id: "another".to_owned(), up: MINUTE };
        assert!(read(&path, &rebooted).unwrap().is_none());
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert!(read(&path, &boot(3)).unwrap().is_none());
    }

    #[test]
    fn what_is_cut_short_or_spoilt_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("subnet.env.checkpoint");
        write(&path, &checkpoint(), &boot(1)).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        for at in (0..text.len() - 1).filter(|at| text.is_char_boundary(*at)) {
            fs::write(&path, &text[..at]).unwrap();
            read(&path, &boot(1)).expect_err("cut short");
        }
        for (whole, spoilt) in [
            ("10.5.2.0-24", "10.5.2.1-24"),
            ("192.0.2.2", "192.0.2.256"),
            ("\"version\":1", "\"version\":2"),
            ("{", "[[[[["),
        ] {
            assert!(text.contains(whole));
            fs::write(&path, text.replace(whole, spoilt)).unwrap();
            let error = read(&path, &boot(1)).expect_err(spoilt).to_string();
            assert!(error.contains("subnet.env.checkpoint"), "{error}");
        }
    }

    fn checkpoint() -> Checkpoint {
        let lease = |n: u8| {
            let json =
                format!(r#"{{"PublicIP":"192.0.2.{n}","BackendType":"vxlan","BackendData":{{"VNI":1}}}}"#);
            let attrs = LeaseAttrs::parse(json.as_bytes()).unwrap();
            Lease { key: format!("10.5.{n}.0-24").parse().unwrap(), attrs }
        };
        let stored = StoredLease { lease: lease(1), lease_id: Some(7), mod_revision: 0 };
        Checkpoint {
            config: "{\n \"Network\": \"10.5.0.0/16\"}".into(),
            own: Held { stored, ttl: Some(10 * MINUTE) },
            peers: [2, 3].map(lease).into_iter().map(|lease| (lease.key, lease.attrs)).collect(),
        }
    }

    fn boot(minutes: u32) -> Boot {
        Boot { id: "this".to_owned(), up: minutes * MINUTE }
    }
}
