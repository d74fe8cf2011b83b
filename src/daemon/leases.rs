//! Two loops over the same table: one follows everyone's leases, one keeps our
//! own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tokio::sync::Notify;
use tracing::{debug, error, info, warn};

use super::join::patiently;
use crate::model::SubnetKey;
use crate::reconciler::Target;
use crate::subnet::renewal::{Due, Timer};
use crate::subnet::store::{Store, StoreError};
use crate::subnet::table::LeaseTable;
use crate::subnet::{Held, Renewal, StoreEvent, Want, alloc};

/// The table of leases, and who is told when it changes.
#[derive(Debug)]
pub struct Leases {
    table: Mutex<LeaseTable>,
    /// The reconciler's.
    target: Target,
    /// Our own lease is in doubt: for its keeper.
    doubt: Notify,
    /// Why we hold no lease, while that is so.
    lost: Mutex<Option<String>>,
}

impl Leases {
    pub fn new(held: Held, target: Target) -> Leases {
        Leases {
            table: Mutex::new(LeaseTable::new(held)),
            target,
            doubt: Notify::new(),
            lost: Mutex::new(None),
        }
    }

    pub fn table(&self) -> MutexGuard<'_, LeaseTable> {
        // Nothing panics with the lock held; if it did, the table is whole.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn own(&self) -> Held {
        self.table().own().clone()
    }

    pub fn lost(&self) -> Option<String> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_own(&self, held: Held) {
        *self.lost.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let mut table = self.table();
        if table.set_own(held).peers {
            self.publish(&table);
        }
    }

    fn publish(&self, table: &LeaseTable) {
        self.target.update(|inputs| inputs.peers.clone_from(table.peers()));
    }

    fn set_lost(&self, why: String) {
        *self.lost.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    }
}

/// Applies the watch's events for as long as there are any.
pub async fn follow(mut events: BoxStream<'static, StoreEvent>, leases: Arc<Leases>) {
    while let Some(event) = events.next().await {
        match &event {
            StoreEvent::Disconnected(cause) => warn!("store: {cause}: going on with what is known"),
            StoreEvent::Connected => info!("store: connected again"),
            StoreEvent::Snapshot(snapshot) => {
                debug!(leases = snapshot.leases.len(), revision = snapshot.revision, "snapshot");
            }
            StoreEvent::Put(stored) => debug!(lease = %stored.lease.key, "put"),
            StoreEvent::Delete(key) => debug!(lease = %key, "deleted"),
            StoreEvent::Bad(_) => {}
        }
        let mut table = leases.table();
        let change = table.apply(event);
        if change.peers {
            leases.publish(&table);
        }
        drop(table);
        for bad in change.bad {
            warn!("lease {}: {}: left out until it is mended", bad.key, bad.reason);
        }
        if change.doubt {
            leases.doubt.notify_one();
        }
    }
}

/// Renews our lease, and takes the same subnet again where the store forgot it.
pub async fn keep(store: Arc<dyn Store>, leases: Arc<Leases>, want: Want, margin: Duration) {
    let mut timer = Timer::new(margin, Instant::now(), leases.own().ttl);
    loop {
        match timer.due(Instant::now()) {
            Due::Never => {
                leases.doubt.notified().await;
                timer.hurry(Instant::now());
            }
            Due::At(next) => {
                tokio::select! {
                    () = tokio::time::sleep_until(next.into()) => {}
                    () = leases.doubt.notified() => timer.hurry(Instant::now()),
                }
            }
            Due::Renew => renew(&*store, &leases, &want, &mut timer).await,
            Due::Acquire => acquire_again(&*store, &leases, &want, &mut timer).await,
        }
    }
}

async fn renew(store: &dyn Store, leases: &Leases, want: &Want, timer: &mut Timer) {
    let mut held = leases.own();
    match store.renew(&held).await {
        Ok(Renewal::Renewed(ttl)) => {
            debug!(?ttl, "lease renewed");
            timer.renewed(Instant::now(), ttl);
            held.ttl = ttl;
            leases.set_own(held);
        }
        Ok(Renewal::Lost) => {
            warn!(subnet = %held.stored.lease.key, "the store no longer has our lease: taking it again");
            acquire_again(store, leases, want, timer).await;
        }
        Err(error) => {
            warn!("renewal of {}: {error}", held.stored.lease.key);
            timer.failed(Instant::now(), rand::random());
        }
    }
}

/// Containers run in our subnet, so another one is no substitute: where someone
/// else holds it we say so, keep forwarding what works, and try again.
async fn acquire_again(store: &dyn Store, leases: &Leases, want: &Want, timer: &mut Timer) {
    let key = leases.own().stored.lease.key;
    let taken = match take(store, key, want).await {
        Ok(held) => {
            info!(subnet = %held.stored.lease.key, "lease taken again");
            timer.renewed(Instant::now(), held.ttl);
            return leases.set_own(held);
        }
        Err(taken) => taken,
    };
    if leases.lost().as_ref() != Some(&taken) {
        error!("{taken}");
    }
    leases.set_lost(taken);
    timer.failed(Instant::now(), rand::random());
}

async fn take(store: &dyn Store, key: SubnetKey, want: &Want) -> Result<Held, String> {
    let says = |error: StoreError| format!("subnet {key} is not ours in the store: {error}");
    let snapshot = patiently("leases", || store.snapshot()).await.map_err(says)?;
    let other = snapshot.leases.iter().find(|stored| {
        stored.lease.key.overlaps(&key)
            && !alloc::is_own(&want.attrs.public_ip, &stored.lease.attrs.public_ip)
    });
    if let Some(other) = other {
        let holder =
            other.lease.attrs.public_ip.iter().map(|(_, ip)| ip.to_string()).collect::<Vec<_>>().join(", ");
        return Err(format!(
            "subnet {key} was lost to {holder} ({}): containers keep running; move them or free the subnet, then restart the daemon for a new one",
            other.lease.key
        ));
    }
    let want = Want { previous: Some(key), ..want.clone() };
    let held = store.acquire(&snapshot, &want).await.map_err(says)?;
    if held.stored.lease.key != key {
        return Err(format!(
            "subnet {key} was lost and {} leased instead: containers keep running; restart the daemon to move to it",
            held.stored.lease.key
        ));
    }
    Ok(held)
}
