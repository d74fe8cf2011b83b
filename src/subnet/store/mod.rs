//! Where leases live. One trait; etcd v3 is the one client path, the built-in
//! store serves the same API.

pub mod builtin;
mod etcd;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

use crate::model::LeaseAttrs;

pub use super::record::{
    BadRecord, Held, Origin, Position, Renewal, Snapshot, StoreEvent, StoredLease, Want,
};
pub use etcd::{BrokenRecord, Credentials, EtcdConfig, EtcdStore, TimeLeft, TlsFiles};

pub trait Store: Send + Sync {
    /// For messages: `etcd https://a:2379 /coreos.com/network`.
    fn describe(&self) -> String;

    /// The network config's JSON; `None` where nobody has put one yet.
    fn network_config(&self) -> BoxFuture<'_, Result<Option<String>, StoreError>>;

    fn snapshot(&self) -> BoxFuture<'_, Result<Snapshot, StoreError>>;

    /// Take a subnet: our own lease's, else `previous`, else a free one where
    /// `want` leaves the choice. A lost
    /// race is tried again with a fresh listing, never reported.
    fn acquire<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        want: &'a Want,
    ) -> BoxFuture<'a, Result<Held, StoreError>>;

    /// Keep our lease alive without touching its key, so that no peer wakes.
    /// A record of ours that someone spoilt is put right.
    fn renew<'a>(&'a self, held: &'a Held) -> BoxFuture<'a, Result<Renewal, StoreError>>;

    /// Publish `attrs` with the lease we hold: our address or our tunnel changed.
    /// `None` where it is no longer ours.
    fn update<'a>(
        &'a self,
        held: &'a Held,
        attrs: &'a LeaseAttrs,
    ) -> BoxFuture<'a, Result<Option<Held>, StoreError>>;

    /// Changes from `from` on, for ever: it reconnects, resumes and survives
    /// compaction by itself. Where nothing was told yet it begins by saying that it
    /// is disconnected, and gives a listing once it is not.
    fn watch(&self, from: Position) -> BoxStream<'static, StoreEvent>;
}

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Nobody answers, or not in time: worth trying again.
    #[error("{store}: {cause}")]
    Unavailable { store: String, cause: String },
    /// The store refuses (authentication, permission): a person must act.
    #[error("{store}: {cause}")]
    Refused { store: String, cause: String },
    /// There is no free subnet, or the one asked for is another's.
    #[error("no free subnet: {0}")]
    Exhausted(String),
}
