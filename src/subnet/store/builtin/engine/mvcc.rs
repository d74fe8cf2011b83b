//! Keys with their history over one SQLite transaction.

use std::time::Instant;

use etcd_client::proto::{
    PbDeleteRequest, PbDeleteResponse, PbEvent, PbKeyValue, PbPutRequest, PbPutResponse, PbRangeRequest,
    PbRangeResponse, PbResponseHeader,
};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::super::error::RequestError;
use super::KeyRange;
use super::lease::{Leases, MAX_TTL};

/// Revisions of history kept without being asked: a watcher that was away for
/// longer gets `compacted` and lists anew.
const HISTORY: i64 = 10_000;
/// Compaction waits for so many revisions more, to be worth its while.
const HISTORY_SLACK: i64 = 1_000;
/// Events, and bytes of them, that one reading of the log returns at most,
/// apart from the rest of the last revision.
const REPLAY_EVENTS: usize = 1_000;
const REPLAY_BYTES: usize = 1 << 20;

const KV: &str = "key, value, create_revision, mod_revision, version, lease";

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

/// A part of the log as a watcher wants it.
#[derive(Debug)]
pub(in super::super) enum Replay {
    /// All matching events up to and with `upto`; there is more if that is
    /// below `revision`.
    Events {
        events: Vec<PbEvent>,
        upto: i64,
        revision: i64,
    },
    Compacted(i64),
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

    /// etcd's order of work: filter, sort, cut; `count` knows of none of them.
    pub fn range(&self, request: &PbRangeRequest) -> Result<PbRangeResponse, RequestError> {
        self.check_revision(request.revision)?;
        let range = KeyRange::new(&request.key, &request.range_end);
        let revision = if request.revision > 0 { request.revision } else { self.now() };
        let mut response = PbRangeResponse {
            header: Some(PbResponseHeader { revision: self.now(), ..Default::default() }),
            ..Default::default()
        };
        if request.count_only {
            response.count = self.count(&range, revision)?;
            return Ok(response);
        }
        let bounds = [
            request.min_mod_revision,
            request.max_mod_revision,
            request.min_create_revision,
            request.max_create_revision,
        ];
        let whole = request.limit <= 0 || request.sort_order != 0 || bounds != [0; 4];
        let fetch = if whole { -1 } else { request.limit.saturating_add(1) };
        let mut kvs = self.read(&range, revision, fetch)?;
        response.count = if whole || (kvs.len() as i64) < fetch {
            kvs.len() as i64
        } else {
            self.count(&range, revision)?
        };
        let within =
            |value: i64, min: i64, max: i64| (min == 0 || value >= min) && (max == 0 || value <= max);
        kvs.retain(|kv| {
            within(kv.mod_revision, bounds[0], bounds[1]) && within(kv.create_revision, bounds[2], bounds[3])
        });
        sort(&mut kvs, request.sort_order, request.sort_target);
        if request.limit > 0 && kvs.len() as i64 > request.limit {
            kvs.truncate(usize::try_from(request.limit).unwrap_or(usize::MAX));
            response.more = true;
        }
        if request.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value.clear());
        }
        response.kvs = kvs;
        Ok(response)
    }

    /// Keys of `range` as they stood at `revision`, in order; `limit` -1 is all.
    pub(super) fn read(
        &self,
        range: &KeyRange,
        revision: i64,
        limit: i64,
    ) -> rusqlite::Result<Vec<PbKeyValue>> {
        let from = self.rows_at(range, revision);
        let sql = format!("SELECT {KV} {from} ORDER BY key LIMIT ?4");
        let mut statement = self.connection.prepare_cached(&sql)?;
        let rows = statement.query_map(params![range.start, range.end, revision, limit], key_value)?;
        rows.collect()
    }

    fn count(&self, range: &KeyRange, revision: i64) -> rusqlite::Result<i64> {
        let sql = format!("SELECT count(*) {}", self.rows_at(range, revision));
        let mut statement = self.connection.prepare_cached(&sql)?;
        statement.query_row(params![range.start, range.end, revision], |row| row.get(0))
    }

    fn rows_at(&self, range: &KeyRange, revision: i64) -> String {
        let keys = range.condition();
        if revision >= self.now() {
            return format!(
                "FROM log INDEXED BY log_live WHERE {keys} AND superseded IS NULL AND tombstone = 0 AND ?3 > 0"
            );
        }
        format!(
            "FROM log INDEXED BY log_key WHERE {keys} AND tombstone = 0 AND mod_revision <= ?3
             AND (superseded IS NULL OR superseded > ?3)"
        )
    }

    /// The key as it stands now, by its row in the log.
    fn live(&self, key: &[u8]) -> rusqlite::Result<Option<(i64, PbKeyValue)>> {
        let sql = format!(
            "SELECT {KV}, id FROM log INDEXED BY log_live WHERE key = ?1 AND superseded IS NULL AND tombstone = 0"
        );
        let mut statement = self.connection.prepare_cached(&sql)?;
        statement.query_row([key], |row| Ok((row.get(6)?, key_value(row)?))).optional()
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

    /// The changes of `range` from revision `from` on, some at a time.
    pub fn replay(&self, range: &KeyRange, from: i64, prev_kv: bool) -> Result<Replay, RequestError> {
        if from < self.compacted {
            return Ok(Replay::Compacted(self.compacted));
        }
        let sql = format!(
            "SELECT {KV}, tombstone FROM log INDEXED BY log_revision
             WHERE {} AND mod_revision >= ?3 ORDER BY mod_revision, sub",
            range.condition()
        );
        let mut statement = self.connection.prepare_cached(&sql)?;
        let mut rows = statement.query(params![range.start, range.end, from])?;
        let (mut events, mut bytes, mut upto) = (Vec::new(), 0, self.revision);
        let mut last = from;
        while let Some(row) = rows.next()? {
            let kv = key_value(row)?;
            if kv.mod_revision > last && (events.len() >= REPLAY_EVENTS || bytes >= REPLAY_BYTES) {
                upto = last;
                break;
            }
            last = kv.mod_revision;
            bytes += kv.key.len() + kv.value.len();
            let prev_kv = if prev_kv { self.before(&kv)? } else { None };
            events.push(PbEvent { r#type: row.get(6)?, kv: Some(kv), prev_kv });
        }
        Ok(Replay::Events { events, upto, revision: self.revision })
    }

    /// What stood in the key's place before this change, unless compacted. A key
    /// that is made had nothing before it, as etcd sees it, even where the same
    /// transaction deletes it first.
    fn before(&self, kv: &PbKeyValue) -> rusqlite::Result<Option<PbKeyValue>> {
        if kv.mod_revision - 1 < self.compacted || kv.create_revision == kv.mod_revision {
            return Ok(None);
        }
        let sql = format!(
            "SELECT {KV} FROM log WHERE key = ?1 AND superseded = ?2 AND mod_revision < ?2 AND tombstone = 0"
        );
        let mut statement = self.connection.prepare_cached(&sql)?;
        statement.query_row(params![kv.key, kv.mod_revision], key_value).optional()
    }

    /// Grants a lease; `id` 0 lets the store choose. Returns id and time, s.
    pub fn grant(&mut self, id: i64, ttl: i64) -> Result<(i64, i64), RequestError> {
        if ttl > MAX_TTL {
            return Err(RequestError::LeaseTtlTooLarge);
        }
        if self.leases.ttl(id).is_some() {
            return Err(RequestError::LeaseExists);
        }
        let mut id = id;
        while id == 0 || self.leases.ttl(id).is_some() {
            id = rand::random::<i64>() & i64::MAX;
        }
        let ttl = Leases::granted(ttl);
        self.connection.prepare_cached("INSERT INTO lease VALUES (?1, ?2)")?.execute([id, ttl])?;
        self.leases.start(id, ttl, Instant::now());
        Ok((id, ttl))
    }

    /// Ends a lease and deletes its keys in one revision.
    pub fn revoke(&mut self, id: i64) -> Result<(), RequestError> {
        if self.leases.ttl(id).is_none() {
            return Err(RequestError::LeaseNotFound);
        }
        let keys = self.keys_of_lease(id)?;
        self.revise(|mvcc| {
            for key in &keys {
                mvcc.delete_key(key)?;
            }
            Ok(())
        })?;
        self.connection.prepare_cached("DELETE FROM lease WHERE id = ?1")?.execute([id])?;
        self.leases.remove(id);
        Ok(())
    }

    pub fn keys_of_lease(&self, id: i64) -> rusqlite::Result<Vec<Vec<u8>>> {
        let sql = "SELECT key FROM log INDEXED BY log_lease
                   WHERE lease = ?1 AND lease <> 0 AND superseded IS NULL AND tombstone = 0 ORDER BY key";
        let mut statement = self.connection.prepare_cached(sql)?;
        let rows = statement.query_map([id], |row| row.get(0))?;
        rows.collect()
    }

    pub fn expire(&mut self, now: Instant) -> rusqlite::Result<()> {
        while let Some(id) = self.leases.expired(now) {
            match self.revoke(id) {
                Err(RequestError::Storage(cause)) => return Err(cause),
                _ => self.leases.remove(id),
            }
        }
        Ok(())
    }
}

fn key_value(row: &Row<'_>) -> rusqlite::Result<PbKeyValue> {
    Ok(PbKeyValue {
        key: row.get(0)?,
        value: row.get(1)?,
        create_revision: row.get(2)?,
        mod_revision: row.get(3)?,
        version: row.get(4)?,
        lease: row.get(5)?,
    })
}

/// `order` and `target` as in `etcdserverpb.RangeRequest`. Equals stay in the
/// order of their keys, as in etcd for a dozen of them or fewer.
fn sort(kvs: &mut [PbKeyValue], order: i32, target: i32) {
    const DESCEND: i32 = 2;
    let compare = |a: &PbKeyValue, b: &PbKeyValue| match target {
        1 => a.version.cmp(&b.version),
        2 => a.create_revision.cmp(&b.create_revision),
        3 => a.mod_revision.cmp(&b.mod_revision),
        4 => a.value.cmp(&b.value),
        _ => a.key.cmp(&b.key),
    };
    kvs.sort_by(|a, b| if order == DESCEND { compare(b, a) } else { compare(a, b) });
}
