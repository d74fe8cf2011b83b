//! Mechanisms defeated from outside, one at a time, to see that the simulation
//! minds: an invariant that nothing can violate says nothing.

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use weft::model::LeaseAttrs;
use weft::subnet::store::{EtcdStore, Store, StoreError};
use weft::subnet::{Held, Position, Renewal, Snapshot, StoreEvent, Want};

use super::verdict::Invariant;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// Transactions succeed whatever they compare.
    NoCompare,
    /// A renewal is believed done and is not.
    NoRenewal,
    /// Everything is ours to remove.
    OwnsAll,
    /// A bad record counts as a deleted one.
    BadIsGone,
    /// Ten tasks stay behind after each renewal.
    Leaks,
    /// A bad record is remembered for ever, each version of it.
    Hoards,
    /// Nobody is told that notifications were lost.
    NoResync,
    /// A restored store looks like the one before.
    NoHistory,
    /// The watch never tells that a lease is gone.
    NoDelete,
    /// Settings seem to be others at each look at them.
    Misreads,
    /// What failed is tried again at once.
    NoPause,
    /// What a node knew last is taken for all there is.
    WholeMemory,
    /// The watch ends with its connection.
    EndsWatch,
}

impl Mutant {
    /// With the invariant that each violates, every one of them at least once.
    pub const ALL: [(Mutant, Invariant); 13] = [
        (Mutant::NoCompare, Invariant::OneOwner),
        (Mutant::NoRenewal, Invariant::OneBeliever),
        (Mutant::OwnsAll, Invariant::ForeignUntouched),
        (Mutant::BadIsGone, Invariant::NoPeerLost),
        (Mutant::Leaks, Invariant::BoundedMemory),
        (Mutant::Hoards, Invariant::BoundedMemory),
        (Mutant::NoResync, Invariant::Settles),
        (Mutant::NoHistory, Invariant::Settles),
        (Mutant::NoDelete, Invariant::Settles),
        (Mutant::Misreads, Invariant::StaysQuiet),
        (Mutant::NoPause, Invariant::Rests),
        (Mutant::WholeMemory, Invariant::NoPeerLost),
        (Mutant::EndsWatch, Invariant::Lives),
    ];
}

/// The daemon's client of the store, with one of its mechanisms defeated or none.
pub struct Mutated {
    pub etcd: EtcdStore,
    pub mutant: Option<Mutant>,
}

impl Store for Mutated {
    fn describe(&self) -> String {
        self.etcd.describe()
    }

    fn network_config(&self) -> BoxFuture<'_, Result<Option<String>, StoreError>> {
        self.etcd.network_config()
    }

    fn snapshot(&self) -> BoxFuture<'_, Result<Snapshot, StoreError>> {
        self.etcd.snapshot()
    }

    fn acquire<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        want: &'a Want,
    ) -> BoxFuture<'a, Result<Held, StoreError>> {
        self.etcd.acquire(snapshot, want)
    }

    fn renew<'a>(&'a self, held: &'a Held) -> BoxFuture<'a, Result<Renewal, StoreError>> {
        match self.mutant {
            Some(Mutant::NoRenewal) => Box::pin(async { Ok(Renewal::Renewed(held.ttl)) }),
            Some(Mutant::Leaks) => {
                (0..10).for_each(|_| drop(tokio::spawn(std::future::pending::<()>())));
                self.etcd.renew(held)
            }
            _ => self.etcd.renew(held),
        }
    }

    fn update<'a>(
        &'a self,
        held: &'a Held,
        attrs: &'a LeaseAttrs,
    ) -> BoxFuture<'a, Result<Option<Held>, StoreError>> {
        self.etcd.update(held, attrs)
    }

    fn watch(&self, from: Position) -> BoxStream<'static, StoreEvent> {
        let events = self.etcd.watch(from);
        match self.mutant {
            Some(Mutant::BadIsGone) => Box::pin(events.map(|event| match event {
                StoreEvent::Bad(bad) => bad.subnet.map_or(StoreEvent::Bad(bad), StoreEvent::Delete),
                other => other,
            })),
            Some(Mutant::Hoards) => Box::pin(events.flat_map(|event| {
                let again = match &event {
                    StoreEvent::Bad(bad) => {
                        let mut other = bad.clone();
                        (other.key, other.subnet) = (format!("{}#{}", bad.key, fastrand::u64(..)), None);
                        Some(StoreEvent::Bad(other))
                    }
                    _ => None,
                };
                futures_util::stream::iter([event].into_iter().chain(again))
            })),
            Some(Mutant::NoDelete) => {
                Box::pin(events.filter(|event| std::future::ready(!matches!(event, StoreEvent::Delete(_)))))
            }
            Some(Mutant::EndsWatch) => Box::pin(
                events.take_while(|event| std::future::ready(!matches!(event, StoreEvent::Disconnected(_)))),
            ),
            _ => events,
        }
    }
}
