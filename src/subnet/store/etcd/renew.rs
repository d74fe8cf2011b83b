use etcd_client::{Client, GetOptions};

use super::EtcdStore;
use super::connection::{Failure, kv};
use crate::subnet::store::StoreError;
use crate::subnet::{Held, Renewal, StoredLease};

/// Keep the lease alive after a look at its key: an expired or foreign key is
/// lost, a spoilt record of ours is written again.
pub(super) async fn renew(store: &EtcdStore, held: &Held) -> Result<Renewal, StoreError> {
    try_renew(store, &held.stored).await.map_err(|failure| store.error(&failure))
}

async fn try_renew(store: &EtcdStore, own: &StoredLease) -> Result<Renewal, Failure> {
    let name = store.keys.subnet(&own.lease.key);
    let call = |client: Client| {
        let name = name.clone();
        async move { kv(&client).get(name, None::<GetOptions>).await }
    };
    let response = store.connection.call(call).await?;
    let Some(record) = response.kvs().first() else { return Ok(Renewal::Lost) };
    let parsed = store.keys.parse(record);
    // What does not parse is nobody's: while our lease lives it is ours.
    let foreign = parsed.as_ref().is_ok_and(|found| {
        found.lease_id != own.lease_id || found.lease.attrs.public_ip != own.lease.attrs.public_ip
    });
    if foreign {
        return Ok(Renewal::Lost);
    }
    let ttl = match own.lease_id {
        None => None,
        Some(id) => match store.keep_alive(id).await? {
            None => return Ok(Renewal::Lost),
            ttl => ttl,
        },
    };
    if parsed.is_ok_and(|found| found.lease.attrs == own.lease.attrs) {
        return Ok(Renewal::Renewed(ttl));
    }
    let seen = StoredLease { mod_revision: record.mod_revision(), ..own.clone() };
    let written = store.put_if_unchanged(&seen, &own.lease.attrs.to_json(), own.lease_id).await?;
    Ok(written.map_or(Renewal::Lost, |_| Renewal::Renewed(ttl)))
}
