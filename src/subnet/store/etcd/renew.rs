use std::time::Duration;

use etcd_client::{Client, Compare, CompareOp, GetOptions, KeyValue};

use super::EtcdStore;
use super::connection::{Failure, kv};
use crate::model::{Lease, LeaseAttrs};
use crate::subnet::store::StoreError;
use crate::subnet::{Held, Renewal, StoredLease};

/// Keep the lease alive after a look at its key: an expired or foreign key is
/// lost, a spoilt record of ours is written again.
pub(super) async fn renew(store: &EtcdStore, held: &Held) -> Result<Renewal, StoreError> {
    let written = write(store, &held.stored, &held.stored.lease.attrs).await;
    let written = written.map_err(|failure| store.error(&failure))?;
    Ok(written.map_or(Renewal::Lost, |held| Renewal::Renewed(held.ttl)))
}

/// Put other attributes into our record, on the same lease.
pub(super) async fn update(
    store: &EtcdStore,
    held: &Held,
    attrs: &LeaseAttrs,
) -> Result<Option<Held>, StoreError> {
    // What was connected from an address that is gone would only time out.
    store.connection.reset().await;
    write(store, &held.stored, attrs).await.map_err(|failure| store.error(&failure))
}

/// Make our record say `attrs`, where it does not, and its lease live on.
/// `None`: it is no longer ours.
async fn write(store: &EtcdStore, own: &StoredLease, attrs: &LeaseAttrs) -> Result<Option<Held>, Failure> {
    let Some(record) = record(store, own).await? else { return Ok(None) };
    let parsed = store.keys.parse(&record);
    // What does not parse is nobody's: while our lease lives it is ours.
    let foreign = parsed.as_ref().is_ok_and(|found| {
        let published = &found.lease.attrs.public_ip;
        let ours = *published == own.lease.attrs.public_ip || *published == attrs.public_ip;
        found.lease_id != own.lease_id || !ours
    });
    if foreign {
        return Ok(None);
    }
    let ttl: Option<Duration> = match own.lease_id {
        None => None,
        Some(id) => match store.keep_alive(id).await? {
            None => return Ok(None),
            ttl => ttl,
        },
    };
    let lease = Lease { key: own.lease.key, attrs: attrs.clone() };
    let seen = StoredLease { lease, lease_id: own.lease_id, mod_revision: record.mod_revision() };
    if parsed.is_ok_and(|found| found.lease.attrs == *attrs) {
        return Ok(Some(Held { stored: seen, ttl }));
    }
    // What is spoilt hangs on any lease or none: by its value it is told from another's.
    let name = store.keys.subnet(&own.lease.key);
    let when = [
        Compare::mod_revision(name.as_str(), CompareOp::Equal, record.mod_revision()),
        Compare::value(name, CompareOp::Equal, record.value()),
    ];
    let written = store.put_if(&own.lease.key, when, &attrs.to_json(), own.lease_id).await?;
    Ok(written.map(|mod_revision| Held { stored: StoredLease { mod_revision, ..seen }, ttl }))
}

async fn record(store: &EtcdStore, own: &StoredLease) -> Result<Option<KeyValue>, Failure> {
    let name = store.keys.subnet(&own.lease.key);
    let call = |client: Client| {
        let name = name.clone();
        async move { kv(&client).get(name, None::<GetOptions>).await }
    };
    Ok(store.connection.call(call).await?.take_kvs().into_iter().next())
}
