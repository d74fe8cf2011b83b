//! Two loops over the same table: one follows everyone's leases, one keeps our
//! own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::Notify;
use tracing::{debug, error, info, warn};

use super::health;
use super::store_health::StoreHealth;
use crate::model::LeaseAttrs;
use crate::reconciler::Target;
use crate::subnet::renewal::{Due, Timer};
use crate::subnet::store::{Store, StoreError};
use crate::subnet::table::LeaseTable;
use crate::subnet::{BadRecord, Held, Renewal, StoreEvent, Want};

/// So many bad leases are told in the log at a time.
const MAX_TOLD: usize = 10;

/// The table of leases, and who is told when it changes.
#[derive(Debug)]
pub struct Leases {
    table: Mutex<LeaseTable>,
    /// The reconciler's.
    target: Target,
    /// Our own lease is in doubt, or says what is out of date: for its keeper.
    doubt: Notify,
    /// What there is to write down is another: for its writer.
    changed: Notify,
    /// What was asked for, to ask for again.
    want: Mutex<Want>,
    /// Why we hold no lease, while that is so.
    lost: Mutex<Option<String>>,
    pub store: StoreHealth,
}

impl Leases {
    /// `target` is what the reconciler goes by: it has the peers of `table`.
    pub fn new(table: LeaseTable, want: Want, target: Target) -> Leases {
        let store = StoreHealth::default();
        store.holds(table.own().ttl);
        let (doubt, changed) = (Notify::new(), Notify::new());
        // What is remembered was published by the node as it was then.
        if table.own().stored.lease.attrs != want.attrs {
            doubt.notify_one();
        }
        if table.is_listed() {
            store.listed();
            changed.notify_one();
        }
        tell_bad(table.bad());
        Leases {
            store,
            table: Mutex::new(table),
            target,
            doubt,
            changed,
            want: Mutex::new(want),
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

    /// What other nodes are to know of this one from now on.
    pub fn set_attrs(&self, attrs: LeaseAttrs) {
        self.want.lock().unwrap_or_else(PoisonError::into_inner).attrs = attrs;
        self.doubt.notify_one();
    }

    /// Returns when our own lease or a peer's is another than when it last did.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    fn want(&self) -> Want {
        self.want.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_own(&self, held: Held) {
        *self.lost.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.store.holds(held.ttl);
        let mut table = self.table();
        if table.set_own(held).peers {
            self.publish(&table);
        }
        self.changed.notify_one();
    }

    fn publish(&self, table: &LeaseTable) {
        self.target.update(|inputs| {
            inputs.peers = table.peers().clone();
            inputs.whole |= table.is_listed();
        });
        self.changed.notify_one();
    }

    fn set_lost(&self, why: String) {
        *self.lost.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
        self.changed.notify_one();
    }
}

/// Applies the watch's events for as long as there are any.
pub async fn follow(mut events: BoxStream<'static, StoreEvent>, leases: Arc<Leases>) {
    while let Some(event) = health::idle(events.next()).await {
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
        leases.store.tells(&event);
        // Whoever could not renew while the store was away need not wait for the
        // next try.
        let failing = leases.store.facts().is_failing();
        let retry = failing && matches!(event, StoreEvent::Connected);
        let mut table = leases.table();
        let change = table.apply(event);
        if change.peers {
            leases.publish(&table);
        }
        drop(table);
        tell_bad(change.bad.iter());
        if change.doubt || retry {
            leases.doubt.notify_one();
        }
    }
}

fn tell_bad<'a>(bad: impl ExactSizeIterator<Item = &'a BadRecord>) {
    let more = bad.len().saturating_sub(MAX_TOLD);
    for BadRecord { key, reason, .. } in bad.take(MAX_TOLD) {
        warn!("lease {key}: {reason}: left out until it is mended");
    }
    if more > 0 {
        warn!("{more} more leases do not parse: see weft status");
    }
}

/// Renews our lease, publishes what changed of this node, and takes the same
/// subnet again where the store forgot it.
pub async fn keep(store: Arc<dyn Store>, leases: Arc<Leases>, margin: Duration) {
    // Nodes that started together do not renew together: each earlier by a share
    // of the margin that is its own.
    let margin = margin.mul_f64(1.0 + fastrand::f64() / 2.0);
    let mut timer = Timer::new(margin, now(), leases.own().ttl);
    loop {
        health::beat();
        match timer.due(now()) {
            Due::Never => {
                health::idle(leases.doubt.notified()).await;
                timer.hurry(now());
            }
            Due::At(next) => {
                tokio::select! {
                    biased;
                    () = tokio::time::sleep(next.saturating_duration_since(now()).min(health::BEAT)) => {}
                    () = leases.doubt.notified() => timer.hurry(now()),
                }
            }
            Due::Renew => renew(&*store, &leases, &mut timer).await,
            Due::Acquire => acquire_again(&*store, &leases, &mut timer).await,
        }
    }
}

async fn renew(store: &dyn Store, leases: &Leases, timer: &mut Timer) {
    let (held, want) = (leases.own(), leases.want());
    let renewed = match held.stored.lease.attrs == want.attrs {
        true => store.renew(&held).await.map(|renewal| match renewal {
            Renewal::Renewed(ttl) => Some(Held { ttl, ..held.clone() }),
            Renewal::Lost => None,
        }),
        false => store.update(&held, &want.attrs).await.inspect(|updated| {
            if updated.is_some() {
                info!("published: {}", want.attrs.to_json());
            }
        }),
    };
    leases.store.renewed(renewed.is_ok());
    match renewed {
        Ok(Some(held)) => {
            debug!(ttl = ?held.ttl, "lease renewed");
            timer.renewed(now(), held.ttl);
            leases.set_own(held);
        }
        Ok(None) => {
            warn!(subnet = %held.stored.lease.key, "the store no longer has our lease: taking it again");
            acquire_again(store, leases, timer).await;
        }
        Err(error) => {
            warn!("renewal of {}: {error}", held.stored.lease.key);
            timer.failed(now(), fastrand::f64());
        }
    }
}

/// Containers run in our subnet, so another one is no substitute: where someone
/// else holds it we say so, keep forwarding what works, write nothing, and look
/// again.
async fn acquire_again(store: &dyn Store, leases: &Leases, timer: &mut Timer) {
    let held = leases.own();
    let key = held.stored.lease.key;
    let why = match take(store, &held, leases.want()).await {
        Ok(held) => {
            info!(subnet = %key, "lease taken again");
            timer.renewed(now(), held.ttl);
            return leases.set_own(held);
        }
        Err(StoreError::Exhausted(holder)) => format!(
            "subnet {key} is lost: {holder}: containers keep running, but other nodes no longer reach them: free the subnet and it is taken again, or restart the daemon for another one"
        ),
        Err(error @ StoreError::Unavailable { .. }) => {
            warn!("{key} ran out, and may be anyone's: {error}");
            leases.store.renewed(false);
            return timer.failed(now(), fastrand::f64());
        }
        Err(error) => format!("subnet {key} cannot be leased again: {error}"),
    };
    if leases.lost().as_ref() != Some(&why) {
        error!("{why}");
    }
    leases.set_lost(why);
    timer.failed(now(), fastrand::f64());
}

async fn take(store: &dyn Store, held: &Held, want: Want) -> Result<Held, StoreError> {
    // Published under an address that is ours no more, it does not look ours.
    if let Some(held) = store.update(held, &want.attrs).await? {
        return Ok(held);
    }
    let snapshot = store.snapshot().await?;
    let want = Want { previous: Some(held.stored.lease.key), no_other: true, ..want };
    store.acquire(&snapshot, &want).await
}

/// The runtime's clock, which a simulation moves, and what this host has slept
/// since it began: the store counts that, too. Whatever the time of day does is
/// of no matter.
fn now() -> Instant {
    tokio::time::Instant::now().into_std() + asleep()
}

fn asleep() -> Duration {
    let read = |clock| Duration::try_from(clock_gettime(clock)).unwrap_or_default();
    // In this order, so that what passes between the two is not taken for sleep.
    let boot = read(ClockId::Boottime);
    boot.saturating_sub(read(ClockId::Monotonic))
}
