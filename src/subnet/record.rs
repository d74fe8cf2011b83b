use std::time::Duration;

use crate::model::{Lease, LeaseAttrs, NetworkConfig, SubnetKey};

/// A record of the store that does not parse: counted, logged once, skipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRecord {
    /// The store's key, as it stands (shortened where it is over long).
    pub key: String,
    /// The subnet, where the key at least is one: nobody else can take it, and
    /// what was known of its owner stays.
    pub subnet: Option<SubnetKey>,
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

/// All leases at one revision of the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// 0 where it is remembered, not listed: a store's revisions begin with 1.
    pub revision: i64,
    /// Whose revision that is.
    pub origin: Option<Origin>,
    pub leases: Vec<StoredLease>,
    pub bad: Vec<BadRecord>,
}

impl Snapshot {
    pub fn position(&self) -> Position {
        let last = self.leases.iter().max_by_key(|stored| stored.mod_revision);
        Position {
            revision: self.revision,
            origin: self.origin,
            last: last.map(|stored| (stored.lease.key, stored.mod_revision)),
        }
    }
}

/// How far the store has told: where a watch begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// 0 where nothing was told yet: a store's revisions begin with 1.
    pub revision: i64,
    /// Whose revision that is.
    pub origin: Option<Origin>,
    /// The lease that changed last, and at which revision.
    pub last: Option<(SubnetKey, i64)>,
}

impl Position {
    /// Whether the store has told of all leases there.
    pub fn is_listed(&self) -> bool {
        self.revision > 0
    }
}

/// Which history of a store its revisions count in. Where the cluster is another or
/// the term has gone back, the store was replaced or restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    pub cluster: u64,
    pub term: u64,
}

/// A change to the leases, as the watch reports it. A snapshot is a type of its
/// own: an empty one says "there are none", never "I could not read them".
#[derive(Clone, Debug)]
pub enum StoreEvent {
    /// All there are: where a watch began with nothing told, or could not be resumed.
    Snapshot(Snapshot),
    Put(StoredLease),
    Delete(SubnetKey),
    /// A record was written that does not parse: what was known of it stays.
    Bad(BadRecord),
    /// The connection was lost (with the cause); the watch goes on by itself. Comes
    /// again where the store is there and refuses.
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
    /// Containers live in `previous`: no other will do.
    pub no_other: bool,
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
    /// The store no longer knows the lease, or its key is someone else's:
    /// acquire again.
    Lost,
}
