//! What a person does to leases, besides what daemons do: each a transaction
//! that holds only while the store is as it was seen.

use std::time::Duration;

use etcd_client::{Client, Compare, CompareOp, Txn, TxnOp};
use tonic::Code;

use super::{EtcdStore, listing};
use crate::model::Lease;
use crate::subnet::store::StoreError;
use crate::subnet::{BadRecord, StoredLease};

/// Time that a lease has left, of what it was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeLeft {
    pub left: Duration,
    pub granted: Duration,
}

/// A record that does not parse, with what it takes to remove it.
#[derive(Clone, Debug)]
pub struct BrokenRecord {
    pub bad: BadRecord,
    key: Vec<u8>,
    mod_revision: i64,
}

impl EtcdStore {
    /// `None` where the lease is no more.
    pub async fn time_left(&self, lease_id: i64) -> Result<Option<TimeLeft>, StoreError> {
        let call = |client: Client| async move { client.lease_client().time_to_live(lease_id, None).await };
        let seconds = |ttl: i64| Duration::from_secs(ttl.try_into().unwrap_or(0));
        match self.connection.call(call).await {
            Ok(time) if time.ttl() <= 0 => Ok(None),
            Ok(time) => {
                Ok(Some(TimeLeft { left: seconds(time.ttl()), granted: seconds(time.granted_ttl()) }))
            }
            Err(failure) if failure.code == Code::NotFound => Ok(None),
            Err(failure) => Err(self.error(&failure)),
        }
    }

    /// Writes a record without a lease, if none has changed since `revision`.
    pub async fn reserve(&self, lease: &Lease, revision: i64) -> Result<bool, StoreError> {
        let unchanged = Compare::mod_revision(self.keys.subnets(), CompareOp::Less, revision + 1)
            .with_range(self.keys.subnets_end());
        let put = TxnOp::put(self.keys.subnet(&lease.key), lease.attrs.to_json(), None);
        self.succeeds(Txn::new().when([unchanged]).and_then([put])).await
    }

    /// Deletes a record, unless it changed since it was seen.
    pub async fn release(&self, seen: &StoredLease) -> Result<bool, StoreError> {
        self.delete(self.keys.subnet(&seen.lease.key).as_bytes(), seen.mod_revision).await
    }

    /// The same for a record that does not parse.
    pub async fn remove(&self, seen: &BrokenRecord) -> Result<bool, StoreError> {
        self.delete(&seen.key, seen.mod_revision).await
    }

    /// The records that do not parse.
    pub async fn broken_records(&self) -> Result<Vec<BrokenRecord>, StoreError> {
        let mut broken = Vec::new();
        let take = |record: &etcd_client::KeyValue| {
            if let Err(bad) = self.keys.parse(record) {
                let (key, mod_revision) = (record.key().to_vec(), record.mod_revision());
                broken.push(BrokenRecord { bad, key, mod_revision });
            }
        };
        listing::walk(self, take).await.map_err(|failure| self.error(&failure))?;
        Ok(broken)
    }

    async fn delete(&self, key: &[u8], seen: i64) -> Result<bool, StoreError> {
        let unchanged = Compare::mod_revision(key, CompareOp::Equal, seen);
        self.succeeds(Txn::new().when([unchanged]).and_then([TxnOp::delete(key, None)])).await
    }

    async fn succeeds(&self, txn: Txn) -> Result<bool, StoreError> {
        let response = self.txn(txn).await.map_err(|failure| self.error(&failure))?;
        Ok(response.succeeded())
    }
}
