//! Leases, in memory and in the file, and the keys that end with them.

use std::time::Instant;

use super::super::super::error::RequestError;
use super::super::lease::{Leases, MAX_TTL};
use super::Mvcc;

impl Mvcc {
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
