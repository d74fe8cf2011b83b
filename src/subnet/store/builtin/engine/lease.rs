//! When leases end. The file knows their ids and times to live; the deadlines
//! live in memory, so keeping a lease alive writes nothing.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

/// The least time to live etcd grants with its default election timeout, s.
const MIN_TTL: i64 = 2;
/// The most time to live that etcd grants, s.
pub(super) const MAX_TTL: i64 = 9_000_000_000;

#[derive(Debug, Default)]
pub(in super::super) struct Leases {
    by_id: HashMap<i64, (i64, Instant)>,
    by_deadline: BTreeSet<(Instant, i64)>,
}

impl Leases {
    /// The time to live that is granted for the one asked for, s.
    pub fn granted(ttl: i64) -> i64 {
        ttl.max(MIN_TTL)
    }

    /// Adds a lease, or gives a known one its whole time again.
    pub fn start(&mut self, id: i64, ttl: i64, now: Instant) {
        self.remove(id);
        let deadline = now + Duration::from_secs(ttl.clamp(0, MAX_TTL).unsigned_abs());
        self.by_id.insert(id, (ttl, deadline));
        self.by_deadline.insert((deadline, id));
    }

    /// The granted time to live of a lease that is known; it starts anew.
    pub fn keep_alive(&mut self, id: i64, now: Instant) -> Option<i64> {
        let ttl = self.ttl(id)?;
        self.start(id, ttl, now);
        Some(ttl)
    }

    pub fn ttl(&self, id: i64) -> Option<i64> {
        self.by_id.get(&id).map(|(ttl, _)| *ttl)
    }

    /// Whole seconds left.
    pub fn remaining(&self, id: i64, now: Instant) -> Option<i64> {
        let (_, deadline) = self.by_id.get(&id)?;
        i64::try_from(deadline.saturating_duration_since(now).as_secs()).ok()
    }

    pub fn remove(&mut self, id: i64) {
        if let Some((_, deadline)) = self.by_id.remove(&id) {
            self.by_deadline.remove(&(deadline, id));
        }
    }

    /// Soonest to end first.
    pub fn ids(&self) -> Vec<i64> {
        self.by_deadline.iter().map(|(_, id)| *id).collect()
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        self.by_deadline.first().map(|(deadline, _)| *deadline)
    }

    pub fn expired(&self, now: Instant) -> Option<i64> {
        self.by_deadline.first().filter(|(deadline, _)| *deadline <= now).map(|(_, id)| *id)
    }
}
