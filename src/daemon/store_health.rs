//! How the store has fared since start: what metrics and status tell of it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::subnet::StoreEvent;

/// Kept up by the loops that speak with the store.
#[derive(Debug, Default)]
pub struct StoreHealth(Mutex<StoreFacts>);

#[derive(Clone, Copy, Debug, Default)]
pub struct StoreFacts {
    /// When it last told of a lease, as a change or as a listing.
    pub last_event: Option<Instant>,
    /// Since when nobody answers, while that is so.
    pub away_since: Option<Instant>,
    /// Watches that went on after the store was away.
    pub resumes: u64,
    /// Whole listings that were taken in.
    pub listings: u64,
    pub renewals: u64,
    pub failed_renewals: u64,
    /// The last renewal failed.
    failing: bool,
    /// When the store forgets our lease; `None` for a reservation.
    expiry: Option<Instant>,
}

impl StoreHealth {
    pub fn tells(&self, event: &StoreEvent) {
        let mut facts = self.lock();
        match event {
            StoreEvent::Disconnected(_) => facts.away_since = facts.away_since.or(Some(Instant::now())),
            StoreEvent::Connected => {
                facts.away_since = None;
                facts.resumes += 1;
            }
            StoreEvent::Snapshot(_) => facts.listed(),
            StoreEvent::Put(_) | StoreEvent::Delete(_) | StoreEvent::Bad(_) => {
                facts.last_event = Some(Instant::now());
            }
        }
    }

    /// It told of all leases.
    pub fn listed(&self) {
        self.lock().listed();
    }

    /// Our lease is good for `ttl` from now.
    pub fn holds(&self, ttl: Option<Duration>) {
        self.lock().expiry = ttl.map(|ttl| Instant::now() + ttl);
    }

    pub fn renewed(&self, done: bool) {
        let mut facts = self.lock();
        facts.failing = !done;
        let count = if done { &mut facts.renewals } else { &mut facts.failed_renewals };
        *count += 1;
    }

    pub fn facts(&self) -> StoreFacts {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, StoreFacts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StoreFacts {
    fn listed(&mut self) {
        self.listings += 1;
        self.last_event = Some(Instant::now());
    }

    /// Whether our lease could not be renewed when that was tried last.
    pub fn is_failing(&self) -> bool {
        self.failing
    }

    /// For how long what is known of the leases may be out of date.
    pub fn lag(&self) -> Duration {
        self.away_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    pub fn expires_in(&self) -> Option<Duration> {
        self.expiry.map(|expiry| expiry.saturating_duration_since(Instant::now()))
    }
}
