use std::borrow::Cow;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use etcd_client::{Compare, CompareOp, GetOptions, PutOptions, Txn, TxnOp, TxnOpResponse, TxnResponse};
use tonic::Code;

use super::EtcdStore;
use super::connection::{Failure, kv};
use crate::model::{Lease, SubnetKey};
use crate::subnet::alloc::{self, Choice};
use crate::subnet::store::StoreError;
use crate::subnet::{Held, Snapshot, StoredLease, Want};

/// A network is full only where so many fresh listings say so: a node that
/// lost a race may just be giving its subnet back.
const FULL_LISTINGS: u32 = 3;

/// Take a subnet by transaction, again with a fresh listing after each lost
/// race. What was granted and not used is revoked.
pub(super) async fn acquire(store: &EtcdStore, snapshot: &Snapshot, want: &Want) -> Result<Held, StoreError> {
    let mut claim = Claim { store, want, value: want.attrs.to_json(), grant: None };
    let result = claim.run(snapshot).await;
    if let Some(grant) = claim.grant.take() {
        let used = result.as_ref().is_ok_and(|held| held.stored.lease_id == Some(grant.id));
        if !used {
            // It holds no key, and expires by itself where this fails.
            let _ = store.revoke(grant.id).await;
        }
    }
    result
}

struct Claim<'a> {
    store: &'a EtcdStore,
    want: &'a Want,
    /// The record to write.
    value: String,
    /// Granted once, kept over lost races.
    grant: Option<Grant>,
}

#[derive(Clone, Copy)]
pub(super) struct Grant {
    id: i64,
    ttl: Duration,
}

impl Claim<'_> {
    async fn run(&mut self, snapshot: &Snapshot) -> Result<Held, StoreError> {
        let Want { config, attrs, no_other, .. } = self.want;
        let mut previous = self.want.previous;
        let mut listing = Cow::Borrowed(snapshot);
        let mut full = 0;
        let mut pauses = pauses(Duration::from_millis(10), Duration::from_millis(500));
        loop {
            let random = |n| fastrand::usize(..n);
            let decision = match previous.filter(|_| *no_other) {
                Some(key) => alloc::choose_again(config, &listing, &attrs.public_ip, key),
                None => alloc::choose(config, &listing, &attrs.public_ip, previous, random),
            };
            for stale in decision.stale {
                let deleted = self.delete(stale).await;
                deleted.map_err(|failure| self.store.error(&failure))?;
            }
            let held = match decision.choice {
                Choice::Keep(own) => {
                    // Should it be gone by now, it is what we want again.
                    previous = Some(own.lease.key);
                    self.keep(own).await
                }
                Choice::Take(key) => self.take(key, &listing).await,
                Choice::Exhausted(why) => {
                    full += 1;
                    if full > FULL_LISTINGS {
                        return Err(StoreError::Exhausted(why));
                    }
                    Ok(None)
                }
            };
            if let Some(held) = held.map_err(|failure| self.store.error(&failure))? {
                return Ok(held);
            }
            tokio::time::sleep(pauses.next().unwrap_or_default()).await;
            listing = Cow::Owned(super::listing::snapshot(self.store).await?);
        }
    }

    /// Our own record stands: keep its lease alive, and write only what
    /// changed. `None`: it changed hands since the listing.
    async fn keep(&mut self, own: &StoredLease) -> Result<Option<Held>, Failure> {
        if self.grant.is_some_and(|grant| own.lease_id == Some(grant.id)) {
            // Our own write of a moment ago, whose answer was lost and with it
            // the word on newcomers.
            self.delete(own).await?;
            return Ok(None);
        }
        let alive = match own.lease_id {
            None => None,
            Some(id) => self.store.keep_alive(id).await?.map(|ttl| Grant { id, ttl }),
        };
        let stands = own.lease_id.is_none() || alive.is_some();
        if stands && own.lease.attrs == self.want.attrs {
            return Ok(Some(Held { stored: own.clone(), ttl: alive.map(|grant| grant.ttl) }));
        }
        let grant = match (own.lease_id, alive) {
            (None, _) => None,
            (Some(_), Some(alive)) => Some(alive),
            (Some(_), None) => Some(self.grant().await?),
        };
        let when = self.store.stands(own);
        let txn = self.store.put_if(&own.lease.key, when, &self.value, grant.map(|grant| grant.id)).await?;
        Ok(txn.map(|revision| self.held(own.lease.key, grant, revision)))
    }

    /// Take a subnet that was free in `listing`. `None`: somebody was faster, or the
    /// listing is no longer to be relied on.
    async fn take(&mut self, key: SubnetKey, listing: &Snapshot) -> Result<Option<Held>, Failure> {
        let grant = self.grant().await?;
        let name = self.store.keys.subnet(&key);
        let mut conditions = vec![Compare::version(name.as_str(), CompareOp::Equal, 0)];
        // In a store that was wiped or restored since, revisions count anew, and a
        // newcomer may look old: what changed last must stand as it was listed.
        let last = listing.position().last;
        conditions.extend(last.map(|(key, revision)| {
            Compare::mod_revision(self.store.keys.subnet(&key), CompareOp::Equal, revision)
        }));
        let listed = last.map_or(0, |_| listing.revision);
        let lease = PutOptions::new().with_lease(grant.id);
        let since =
            GetOptions::new().with_range(self.store.keys.subnets_end()).with_min_create_revision(listed + 1);
        let txn = Txn::new().when(conditions).and_then([
            TxnOp::put(name.as_str(), self.value.as_str(), Some(lease)),
            TxnOp::get(self.store.keys.subnets(), Some(since)),
        ]);
        let response = self.store.txn(txn).await?;
        if !response.succeeded() {
            return Ok(None);
        }
        let revision = response.header().map_or(0, |header| header.revision());
        if self.overlaps_newcomer(&key, &response, revision) {
            self.delete(&self.held(key, Some(grant), revision).stored).await?;
            return Ok(None);
        }
        Ok(Some(self.held(key, Some(grant), revision)))
    }

    /// Whether a record that came between our listing and our own overlaps it
    /// (two keys of dual stack may share one family's subnet) or is ours
    /// already (an earlier try whose answer was lost). Of two, the later one
    /// yields, and it alone sees the other.
    fn overlaps_newcomer(&self, key: &SubnetKey, response: &TxnResponse, revision: i64) -> bool {
        let responses = response.op_responses();
        let newcomers = responses.iter().filter_map(|response| match response {
            TxnOpResponse::Get(get) => Some(get.kvs()),
            _ => None,
        });
        newcomers.flatten().filter(|kv| kv.create_revision() < revision).any(|kv| {
            match self.store.keys.parse(kv) {
                Ok(other) => {
                    other.lease.key.overlaps(key)
                        || alloc::is_own(&self.want.attrs.public_ip, &other.lease.attrs.public_ip)
                }
                Err(bad) => bad.subnet.is_some_and(|other| other.overlaps(key)),
            }
        })
    }

    /// Remove a record of ours, unless it changed since.
    async fn delete(&self, own: &StoredLease) -> Result<(), Failure> {
        let delete = TxnOp::delete(self.store.keys.subnet(&own.lease.key), None);
        self.store.txn(Txn::new().when(self.store.stands(own)).and_then([delete])).await?;
        Ok(())
    }

    async fn grant(&mut self) -> Result<Grant, Failure> {
        if let Some(grant) = self.grant {
            return Ok(grant);
        }
        let seconds = i64::try_from(self.store.lease_ttl.as_secs()).unwrap_or(i64::MAX);
        let call =
            |client: etcd_client::Client| async move { client.lease_client().grant(seconds, None).await };
        let response = self.store.connection.call(call).await?;
        let grant = Grant { id: response.id(), ttl: seconds_of(response.ttl()) };
        self.grant = Some(grant);
        Ok(grant)
    }

    fn held(&self, key: SubnetKey, grant: Option<Grant>, mod_revision: i64) -> Held {
        let lease = Lease { key, attrs: self.want.attrs.clone() };
        let stored = StoredLease { lease, lease_id: grant.map(|grant| grant.id), mod_revision };
        Held { stored, ttl: grant.map(|grant| grant.ttl) }
    }
}

impl EtcdStore {
    /// That our record is the one that was seen. Its revision alone does not say so: in
    /// a store that was restored since they count anew.
    fn stands(&self, own: &StoredLease) -> [Compare; 2] {
        let name = self.keys.subnet(&own.lease.key);
        let lease = own.lease_id.unwrap_or_default();
        [
            Compare::mod_revision(name.as_str(), CompareOp::Equal, own.mod_revision),
            Compare::lease(name, CompareOp::Equal, lease),
        ]
    }

    /// Write `value` for `key` where all of `when` holds; on `lease`, or on none. Gives
    /// the revision written.
    pub(super) async fn put_if(
        &self,
        key: &SubnetKey,
        when: [Compare; 2],
        value: &str,
        lease: Option<i64>,
    ) -> Result<Option<i64>, Failure> {
        let options = lease.map(|id| PutOptions::new().with_lease(id));
        let put = TxnOp::put(self.keys.subnet(key), value, options);
        let txn = Txn::new().when(when).and_then([put]);
        let response = self.txn(txn).await?;
        let revision = response.header().map_or(0, |header| header.revision());
        Ok(response.succeeded().then_some(revision))
    }

    /// One keep-alive. Gives the time left; `None` where the lease is no more.
    pub(super) async fn keep_alive(&self, id: i64) -> Result<Option<Duration>, Failure> {
        let call = |client: etcd_client::Client| async move {
            let (mut keeper, mut stream) = client.lease_client().keep_alive(id).await?;
            keeper.keep_alive().await?;
            Ok(stream.message().await?.map_or(0, |response| response.ttl()))
        };
        match self.connection.call(call).await {
            Ok(ttl) => Ok((ttl > 0).then(|| seconds_of(ttl))),
            Err(failure) if failure.code == Code::NotFound => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    pub(super) async fn txn(&self, txn: Txn) -> Result<TxnResponse, Failure> {
        self.connection
            .call(|client| {
                let txn = txn.clone();
                async move { kv(&client).txn(txn).await }
            })
            .await
    }

    async fn revoke(&self, id: i64) -> Result<(), Failure> {
        let call = |client: etcd_client::Client| async move { client.lease_client().revoke(id).await };
        self.connection.call(call).await.map(drop)
    }
}

/// Endless jittered pauses, doubling from `first` to about `most`.
pub(super) fn pauses(first: Duration, most: Duration) -> impl Iterator<Item = Duration> + Send {
    ExponentialBuilder::default()
        .with_min_delay(first)
        .with_max_delay(most)
        .without_max_times()
        .with_jitter()
        .build()
}

fn seconds_of(ttl: i64) -> Duration {
    Duration::from_secs(ttl.try_into().unwrap_or(0))
}
