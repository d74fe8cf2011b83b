//! Keys with their history over one SQLite transaction.

mod leases;
mod read;

use std::time::Instant;

use etcd_client::proto::{
    PbDeleteRequest, PbDeleteResponse, PbEvent, PbKeyValue, PbPutRequest, PbPutResponse, PbResponseHeader,
};
use rusqlite::{Connection, Row, params};

use super::super::error::RequestError;
use super::KeyRange;
use super::lease::Leases;
pub(in super::super) use read::Replay;

/// Revisions of history kept without being asked: a watcher that was away for
/// longer gets `compacted` and lists anew.
const HISTORY: i64 = 10_000;
/// Compaction waits for so many revisions more, to be worth its while.
const HISTORY_SLACK: i64 = 1_000;

/// Who answers: fixed for the life of a file, but for the term, which counts
/// how often it was opened.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Identity {
    pub cluster_id: u64,
    pub member_id: u64,
    pub term: u64,
}

impl Identity {
    pub fn header(&self, revision: i64) -> PbResponseHeader {
        PbResponseHeader {
            cluster_id: self.cluster_id,
            member_id: self.member_id,
            revision,
            raft_term: self.term,
        }
    }
}

pub(in super::super) struct Mvcc {
    connection: Connection,
    pub identity: Identity,
    pub leases: Leases,
    revision: i64,
    compacted: i64,
    /// Changes of the revision that is being written.
    sub: i64,
    /// Events of the SQLite transaction.
    events: Vec<PbEvent>,
}

impl Mvcc {
    pub fn load(connection: Connection) -> rusqlite::Result<Self> {
        connection.execute("UPDATE meta SET term = term + 1", [])?;
        let id = |row: &Row<'_>, at| row.get::<_, i64>(at).map(i64::unsigned_abs);
        let identity = connection.query_row("SELECT cluster_id, member_id, term FROM meta", [], |row| {
            Ok(Identity { cluster_id: id(row, 0)?, member_id: id(row, 1)?, term: id(row, 2)? })
        })?;
        let leases = Leases::default();
        let mut mvcc =
            Self { connection, identity, leases, revision: 0, compacted: 0, sub: 0, events: vec![] };
        mvcc.reload()?;
        Ok(mvcc)
    }

    /// Takes what lives in memory from the file. The rows of the newest
    /// revision are never compacted away, so the log knows it.
    fn reload(&mut self) -> rusqlite::Result<()> {
        let ends = "SELECT (SELECT coalesce(max(mod_revision), 1) FROM log), compacted FROM meta";
        (self.revision, self.compacted) =
            self.connection.query_row(ends, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
        self.sub = 0;
        self.events.clear();
        self.leases = Leases::default();
        let now = Instant::now();
        let mut statement = self.connection.prepare("SELECT id, ttl FROM lease")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            self.leases.start(row.get(0)?, row.get(1)?, now);
        }
        Ok(())
    }

    pub fn begin(&mut self) -> rusqlite::Result<()> {
        self.connection.execute_batch("BEGIN")
    }

    /// Makes everything since `begin` durable; returns its events.
    pub fn commit(&mut self) -> rusqlite::Result<Vec<PbEvent>> {
        if self.revision - self.compacted.max(0) > HISTORY + HISTORY_SLACK {
            self.compact_to(self.revision - HISTORY)?;
        }
        self.connection.execute_batch("COMMIT")?;
        Ok(std::mem::take(&mut self.events))
    }

    pub fn roll_back(&mut self) -> rusqlite::Result<()> {
        if !self.connection.is_autocommit() {
            self.connection.execute_batch("ROLLBACK")?;
        }
        self.reload()
    }

    pub fn revision(&self) -> i64 {
        self.revision
    }

    pub fn header(&self) -> PbResponseHeader {
        self.identity.header(self.revision)
    }

    /// Bytes of the file, and of its pages in use.
    pub fn size(&self) -> rusqlite::Result<(i64, i64)> {
        let pragma = |name| self.connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let (size, pages, free) = (pragma("page_size")?, pragma("page_count")?, pragma("freelist_count")?);
        Ok((size * pages, size * (pages - free)))
    }

    /// Runs `write` as one revision, which is taken only if something changed.
    pub fn revise<T>(
        &mut self,
        write: impl FnOnce(&mut Self) -> Result<T, RequestError>,
    ) -> Result<T, RequestError> {
        let result = write(self)?;
        self.revision = self.now();
        self.sub = 0;
        Ok(result)
    }

    /// The revision a reader inside the running write sees.
    pub(super) fn now(&self) -> i64 {
        self.revision + i64::from(self.sub > 0)
    }

    pub(super) fn check_revision(&self, revision: i64) -> Result<(), RequestError> {
        match revision {
            ..=0 => Ok(()),
            _ if revision > self.revision => Err(RequestError::FutureRevision),
            _ if revision < self.compacted => Err(RequestError::Compacted),
            _ => Ok(()),
        }
    }

    /// What etcd checks before it lets a put begin.
    pub fn check_put(&self, put: &PbPutRequest) -> Result<(), RequestError> {
        if put.lease != 0 && self.leases.ttl(put.lease).is_none() {
            return Err(RequestError::LeaseNotFound);
        }
        if (put.ignore_value || put.ignore_lease) && self.live(&put.key)?.is_none() {
            return Err(RequestError::KeyNotFound);
        }
        Ok(())
    }

    /// Puts within [`Self::revise`], after [`Self::check_put`].
    pub fn put(&mut self, put: PbPutRequest) -> Result<PbPutResponse, RequestError> {
        let before = self.live(&put.key)?;
        let previous = before.as_ref().map(|(_, kv)| kv);
        let revision = self.revision + 1;
        let kept = previous.cloned().unwrap_or_default();
        let kv = PbKeyValue {
            key: put.key,
            value: if put.ignore_value { kept.value } else { put.value },
            lease: if put.ignore_lease { kept.lease } else { put.lease },
            create_revision: previous.map_or(revision, |kv| kv.create_revision),
            mod_revision: revision,
            version: kept.version + 1,
        };
        let prev_kv = previous.filter(|_| put.prev_kv).cloned();
        self.append(kv, before, false)?;
        let header = PbResponseHeader { revision, ..Default::default() };
        Ok(PbPutResponse { header: Some(header), prev_kv })
    }

    /// Deletes within [`Self::revise`].
    pub fn delete(&mut self, request: &PbDeleteRequest) -> Result<PbDeleteResponse, RequestError> {
        let range = KeyRange::new(&request.key, &request.range_end);
        let doomed = self.read(&range, i64::MAX, -1)?;
        for kv in &doomed {
            self.delete_key(&kv.key)?;
        }
        Ok(PbDeleteResponse {
            header: Some(PbResponseHeader { revision: self.now(), ..Default::default() }),
            deleted: doomed.len() as i64,
            prev_kvs: if request.prev_kv { doomed } else { Vec::new() },
        })
    }

    fn delete_key(&mut self, key: &[u8]) -> rusqlite::Result<()> {
        let before = self.live(key)?;
        let mod_revision = self.revision + 1;
        self.append(PbKeyValue { key: key.to_vec(), mod_revision, ..Default::default() }, before, true)
    }

    fn append(
        &mut self,
        kv: PbKeyValue,
        before: Option<(i64, PbKeyValue)>,
        tombstone: bool,
    ) -> rusqlite::Result<()> {
        if let Some((id, _)) = before {
            let sql = "UPDATE log SET superseded = ?1 WHERE id = ?2";
            self.connection.prepare_cached(sql)?.execute(params![kv.mod_revision, id])?;
        }
        // A transaction may change a key twice; its watchers hear what stood
        // there before the whole of it.
        let first = self.sub == 0;
        let prev_kv = if first { before.map(|(_, previous)| previous) } else { self.before(&kv)? };
        let sql =
            "INSERT INTO log (mod_revision, sub, key, value, create_revision, version, lease, tombstone)
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
        self.connection.prepare_cached(sql)?.execute(params![
            kv.mod_revision,
            self.sub,
            kv.key,
            kv.value,
            kv.create_revision,
            kv.version,
            kv.lease,
            tombstone
        ])?;
        self.sub += 1;
        self.events.push(PbEvent { r#type: i32::from(tombstone), kv: Some(kv), prev_kv });
        Ok(())
    }

    /// Forgets what was replaced or deleted before `revision`. Changes at that
    /// very revision stay, so that a watch may start there.
    pub fn compact(&mut self, revision: i64) -> Result<(), RequestError> {
        if revision <= self.compacted {
            return Err(RequestError::Compacted);
        }
        if revision > self.revision {
            return Err(RequestError::FutureRevision);
        }
        Ok(self.compact_to(revision)?)
    }

    fn compact_to(&mut self, revision: i64) -> rusqlite::Result<()> {
        let sql = "DELETE FROM log WHERE mod_revision < ?1 AND (tombstone = 1 OR superseded <= ?1)";
        self.connection.prepare_cached(sql)?.execute([revision])?;
        self.connection.prepare_cached("UPDATE meta SET compacted = ?1")?.execute([revision])?;
        self.compacted = revision;
        Ok(())
    }
}
