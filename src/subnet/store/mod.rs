//! Where leases live. One trait; etcd v3 is the one client path, the built-in
//! store serves the same API.

use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

use crate::model::{Lease, LeaseAttrs, NetworkConfig, SubnetKey};

/// A record of the store that does not parse: counted, logged once, skipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRecord {
    /// The store's key, as it stands.
    pub key: String,
    pub reason: String,
}

/// A lease as the store holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredLease {
    pub lease: Lease,
    /// The store's lease that the key hangs on; `None` is a reservation.
    pub lease_id: Option<i64>,
    /// Revision of the last change, for compare-and-swap.
    pub mod_revision: i64,
}

/// All leases at one revision of the store. One listing serves acquisition and
/// the start of the watch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub revision: i64,
    pub leases: Vec<StoredLease>,
    pub bad: Vec<BadRecord>,
}

/// A change to the leases, as the watch reports it. A snapshot is a type of its
/// own: an empty one says "there are none", never "I could not read them".
#[derive(Clone, Debug)]
pub enum StoreEvent {
    /// Comes first, and again where the watch could not be resumed.
    Snapshot(Snapshot),
    Put(StoredLease),
    Delete(SubnetKey),
    /// A record was written that does not parse: what was known of it stays.
    Bad(BadRecord),
    /// The connection was lost (with the cause); the watch goes on by itself.
    Disconnected(String),
    /// The watch is up again; what was missed follows or has been reported.
    Connected,
}

/// What a node asks for.
#[derive(Clone, Debug)]
pub struct Want {
    pub config: NetworkConfig,
    pub attrs: LeaseAttrs,
    /// The subnet that `subnet.env` remembers.
    pub previous: Option<SubnetKey>,
}

/// The lease this node holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub stored: StoredLease,
    /// Time left until the store forgets it; `None` for a reservation.
    pub ttl: Option<Duration>,
}

/// What became of a renewal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// Good for this long; `None` for a reservation, which needs none.
    Renewed(Option<Duration>),
    /// The store no longer knows the lease: acquire again.
    Lost,
}

pub trait Store: Send + Sync {
    /// For messages: `etcd https://a:2379 /coreos.com/network`.
    fn describe(&self) -> String;

    /// The network config's JSON; `None` where nobody has put one yet.
    fn network_config(&self) -> BoxFuture<'_, Result<Option<String>, StoreError>>;

    fn snapshot(&self) -> BoxFuture<'_, Result<Snapshot, StoreError>>;

    /// Take a subnet: our own lease's, else `previous`, else a free one. A lost
    /// race is tried again with a fresh listing, never reported.
    fn acquire<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        want: &'a Want,
    ) -> BoxFuture<'a, Result<Held, StoreError>>;

    /// Keep our lease alive without touching its key, so that no peer wakes.
    fn renew<'a>(&'a self, held: &'a Held) -> BoxFuture<'a, Result<Renewal, StoreError>>;

    /// Changes from `from` on, for ever: it reconnects, resumes and survives
    /// compaction by itself. Emits `from` as its first event.
    fn watch(&self, from: Snapshot) -> BoxStream<'static, StoreEvent>;
}

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Nobody answers: worth trying again.
    #[error("{store}: {cause}")]
    Unavailable { store: String, cause: String },
    /// The store refuses (authentication, permission): a person must act.
    #[error("{store}: {cause}")]
    Refused { store: String, cause: String },
    #[error("no free subnet: {0}")]
    Exhausted(String),
}
