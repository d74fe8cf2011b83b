//! The store's own leases, which keys live on.

use std::collections::BTreeSet;
use std::time::Duration;

use etcd_client::proto::PbLeaseGrantResponse;
use tokio::time::Instant;

use super::{Lease, State, Writer};

impl State {
    pub fn expire_now(&mut self, id: i64) {
        if let Some(lease) = self.now.leases.get_mut(&id) {
            lease.expires = Instant::now();
        }
        self.expire();
    }

    /// The time left, in seconds, of a record's lease; `None` where it has none.
    pub fn is_alive(&self, id: i64) -> bool {
        id == 0 || self.now.leases.contains_key(&id)
    }

    pub fn grant(&mut self, ttl: i64) -> PbLeaseGrantResponse {
        self.load.grants += 1;
        self.next_lease += 1;
        let (id, expires) = (self.next_lease, Instant::now() + Duration::from_secs(ttl as u64));
        self.now.leases.insert(id, Lease { ttl, expires });
        PbLeaseGrantResponse { header: Some(self.header()), id, ttl, error: String::new() }
    }

    /// The time to live; 0 where the lease is no more.
    pub fn keep_alive(&mut self, id: i64) -> i64 {
        self.load.keep_alives += 1;
        self.expire();
        if let Some((_, key, value)) = self.snatch.take_if(|(lease, ..)| *lease == id) {
            self.put_by(Writer::Other, &key, &value, 0);
        }
        let Some(lease) = self.now.leases.get_mut(&id) else { return 0 };
        lease.expires = Instant::now() + Duration::from_secs(lease.ttl as u64);
        lease.ttl
    }

    pub fn revoke(&mut self, id: i64) -> bool {
        let known = self.now.leases.remove(&id).is_some();
        self.drop_records_of(&BTreeSet::from([id]));
        known
    }

    /// A lease's time is counted by the leader, from its election on.
    pub fn expire(&mut self) {
        if !self.has_majority() {
            return;
        }
        let now = Instant::now();
        let dead: BTreeSet<i64> =
            self.now.leases.iter().filter(|(_, lease)| lease.expires <= now).map(|(id, _)| *id).collect();
        if dead.is_empty() {
            return;
        }
        self.now.leases.retain(|id, _| !dead.contains(id));
        self.drop_records_of(&dead);
    }

    fn drop_records_of(&mut self, dead: &BTreeSet<i64>) {
        let keys: Vec<_> = self
            .now
            .records
            .values()
            .filter(|r| dead.contains(&r.kv.lease))
            .map(|r| r.kv.key.clone())
            .collect();
        if keys.is_empty() {
            return;
        }
        self.now.revision += 1;
        let revision = self.now.revision;
        for key in keys {
            self.delete(Writer::Other, &key, revision);
        }
    }

    pub(super) fn refresh_leases(&mut self) {
        for lease in self.now.leases.values_mut() {
            lease.expires = Instant::now() + Duration::from_secs(lease.ttl as u64);
        }
    }
}
