//! What stands there, what stood there, and what has changed.

use etcd_client::proto::{PbEvent, PbKeyValue, PbRangeRequest, PbRangeResponse, PbResponseHeader};
use rusqlite::{OptionalExtension, Row, params};

use super::super::super::error::RequestError;
use super::super::KeyRange;
use super::Mvcc;

/// Events, and bytes of them, that one reading of the log returns at most,
/// apart from the rest of the last revision.
const REPLAY_EVENTS: usize = 1_000;
const REPLAY_BYTES: usize = 1 << 20;

const KV: &str = "key, value, create_revision, mod_revision, version, lease";

/// A part of the log as a watcher wants it.
#[derive(Debug)]
pub(in super::super::super) enum Replay {
    /// All matching events up to and with `upto`; there is more if that is
    /// below `revision`.
    Events {
        events: Vec<PbEvent>,
        upto: i64,
        revision: i64,
    },
    Compacted(i64),
}

impl Mvcc {
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
    pub(in super::super) fn read(
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
    pub(super) fn live(&self, key: &[u8]) -> rusqlite::Result<Option<(i64, PbKeyValue)>> {
        let sql = format!(
            "SELECT {KV}, id FROM log INDEXED BY log_live WHERE key = ?1 AND superseded IS NULL AND tombstone = 0"
        );
        let mut statement = self.connection.prepare_cached(&sql)?;
        statement.query_row([key], |row| Ok((row.get(6)?, key_value(row)?))).optional()
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
    pub(super) fn before(&self, kv: &PbKeyValue) -> rusqlite::Result<Option<PbKeyValue>> {
        if kv.mod_revision - 1 < self.compacted || kv.create_revision == kv.mod_revision {
            return Ok(None);
        }
        let sql = format!(
            "SELECT {KV} FROM log WHERE key = ?1 AND superseded = ?2 AND mod_revision < ?2 AND tombstone = 0"
        );
        let mut statement = self.connection.prepare_cached(&sql)?;
        statement.query_row(params![kv.key, kv.mod_revision], key_value).optional()
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
