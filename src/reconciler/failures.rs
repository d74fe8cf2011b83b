use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::kernel::netlink::NetlinkError;

/// What failed, by its name, and when to try it again: each on its own clock,
/// so that one bad peer delays no other.
#[derive(Debug)]
pub(super) struct Failures {
    min: Duration,
    max: Duration,
    by_name: BTreeMap<String, Failure>,
}

#[derive(Debug)]
struct Failure {
    text: String,
    delay: Duration,
    retry: Instant,
}

impl Failures {
    pub(super) fn new(min: Duration, max: Duration) -> Failures {
        Failures { min, max, by_name: BTreeMap::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// Anything that has not failed is due.
    pub(super) fn is_due(&self, name: &str, now: Instant) -> bool {
        self.by_name.get(name).is_none_or(|failure| failure.retry <= now)
    }

    pub(super) fn failed(&mut self, name: String, error: &NetlinkError, now: Instant) {
        let delay = self.by_name.get(&name).map_or(self.min, |old| (old.delay * 2).min(self.max));
        self.by_name.insert(name, Failure { text: error.to_string(), delay, retry: now + delay });
    }

    /// Try all again at once: a link has come, and many may have failed for want
    /// of it.
    pub(super) fn hurry(&mut self, now: Instant) {
        for failure in self.by_name.values_mut() {
            failure.retry = now;
        }
    }

    /// Forget all but those named.
    pub(super) fn retain(&mut self, names: &BTreeSet<String>) {
        self.by_name.retain(|name, _| names.contains(name));
    }

    /// When to try again what is due first.
    pub(super) fn next(&self) -> Option<Instant> {
        self.by_name.values().map(|failure| failure.retry).min()
    }

    pub(super) fn texts(&self) -> impl Iterator<Item = String> {
        self.by_name.values().map(|failure| failure.text.clone())
    }
}
