//! Keys, values and their revisions.

use std::collections::BTreeMap;

use etcd_client::proto::{
    PbCompare, PbDeleteResponse, PbEvent, PbKeyValue, PbPutRequest, PbPutResponse, PbRangeRequest,
    PbRangeResponse, PbResponseOp, PbTargetUnion, PbTxnOpRequest, PbTxnOpResponse, PbTxnRequest,
    PbTxnRequestOp, PbTxnResponse,
};
use tokio::time::Instant;
use tonic::Status;

use super::{Record, State, Writer};

const DELETE: i32 = 1;

impl State {
    pub fn range(&mut self, request: &PbRangeRequest) -> Result<PbRangeResponse, Status> {
        self.load.ranges += 1;
        self.expire();
        let mut response = self.read(request)?;
        let bytes: usize = response.kvs.iter().map(|kv| kv.key.len() + kv.value.len()).sum();
        self.load.range_bytes += bytes as u64;
        response.header = Some(self.header());
        Ok(response)
    }

    fn read(&self, request: &PbRangeRequest) -> Result<PbRangeResponse, Status> {
        if request.revision > self.now.revision {
            return Err(Status::out_of_range("etcdserver: mvcc: required revision is a future revision"));
        }
        if request.revision != 0 && request.revision < self.compacted {
            return Err(Status::out_of_range("etcdserver: mvcc: required revision has been compacted"));
        }
        let mut response = PbRangeResponse::default();
        let within = |key: &[u8]| is_within(key, &request.key, &request.range_end);
        let mut take = |kv: &PbKeyValue| {
            if kv.create_revision < request.min_create_revision {
                return;
            }
            response.count += 1;
            if request.limit > 0 && response.kvs.len() as i64 >= request.limit {
                response.more = true;
            } else if !request.count_only {
                let value = if request.keys_only { Vec::new() } else { kv.value.clone() };
                response.kvs.push(PbKeyValue { value, ..kv.clone() });
            }
        };
        if request.revision == 0 || request.revision == self.now.revision {
            self.now
                .records
                .range(request.key.clone()..)
                .take_while(|(key, _)| within(key))
                .for_each(|(_, r)| take(&r.kv));
        } else {
            let past = self.at(request.revision);
            past.values().filter(|kv| within(&kv.key)).for_each(take);
        }
        Ok(response)
    }

    /// The records at an earlier revision: the changes since, undone.
    fn at(&self, revision: i64) -> BTreeMap<Vec<u8>, PbKeyValue> {
        let mut records: BTreeMap<_, _> =
            self.now.records.iter().map(|(k, r)| (k.clone(), r.kv.clone())).collect();
        for (_, event) in self.log.iter().rev().take_while(|(at, _)| *at > revision) {
            let key = &event.kv.as_ref().unwrap().key;
            match &event.prev_kv {
                Some(before) => records.insert(key.clone(), before.clone()),
                None => records.remove(key),
            };
        }
        records
    }

    pub fn txn(&mut self, writer: Writer, request: &PbTxnRequest) -> Result<PbTxnResponse, Status> {
        self.load.txns += 1;
        self.expire();
        let deletes = |op: &PbTxnRequestOp| match &op.request {
            Some(PbTxnOpRequest::RequestDeleteRange(delete)) => Some(delete.key.clone()),
            _ => None,
        };
        if let Some(key) = request.success.iter().find_map(deletes)
            && let Some(value) = self.overtake.take()
        {
            self.put_by(Writer::Other, &key, &value, 0);
        }
        let succeeded = self.ignore_compare || request.compare.iter().all(|compare| self.holds(compare));
        self.load.lost_txns += u64::from(!succeeded);
        let ops = if succeeded { &request.success } else { &request.failure };
        let lease_of = |op: &PbTxnRequestOp| match &op.request {
            Some(PbTxnOpRequest::RequestPut(put)) => put.lease,
            _ => 0,
        };
        if !ops.iter().all(|op| self.is_alive(lease_of(op))) {
            return Err(Status::not_found("etcdserver: requested lease not found"));
        }
        let writes = ops.iter().any(|op| self.changes(op));
        let revision = self.now.revision + 1;
        if writes {
            self.now.revision = revision;
        }
        let mut responses = Vec::new();
        for op in ops {
            responses.push(self.one(writer, op, revision)?);
        }
        Ok(PbTxnResponse { header: Some(self.header()), succeeded, responses })
    }

    fn changes(&self, op: &PbTxnRequestOp) -> bool {
        match &op.request {
            Some(PbTxnOpRequest::RequestPut(_)) => true,
            Some(PbTxnOpRequest::RequestDeleteRange(delete)) => self.now.records.contains_key(&delete.key),
            _ => false,
        }
    }

    fn one(&mut self, writer: Writer, op: &PbTxnRequestOp, revision: i64) -> Result<PbResponseOp, Status> {
        let response = match &op.request {
            Some(PbTxnOpRequest::RequestPut(PbPutRequest { key, value, lease, .. })) => {
                self.put(writer, key, value, *lease, revision);
                PbTxnOpResponse::ResponsePut(PbPutResponse::default())
            }
            Some(PbTxnOpRequest::RequestRange(range)) => PbTxnOpResponse::ResponseRange(self.read(range)?),
            Some(PbTxnOpRequest::RequestDeleteRange(delete)) => {
                let deleted = self.delete(writer, &delete.key, revision);
                let deleted = PbDeleteResponse { deleted: deleted.into(), ..PbDeleteResponse::default() };
                PbTxnOpResponse::ResponseDeleteRange(deleted)
            }
            _ => return Err(Status::unimplemented("not in this model")),
        };
        Ok(PbResponseOp { response: Some(response) })
    }

    fn holds(&self, compare: &PbCompare) -> bool {
        assert!(compare.range_end.is_empty(), "the daemon compares single keys");
        assert_eq!(compare.result, 0, "the daemon compares for equality");
        let kv = self.now.records.get(&compare.key).map(|record| &record.kv);
        let (found, wanted) = match compare.target_union.as_ref().unwrap() {
            PbTargetUnion::Version(wanted) => (kv.map_or(0, |kv| kv.version), *wanted),
            PbTargetUnion::CreateRevision(wanted) => (kv.map_or(0, |kv| kv.create_revision), *wanted),
            PbTargetUnion::ModRevision(wanted) => (kv.map_or(0, |kv| kv.mod_revision), *wanted),
            PbTargetUnion::Lease(wanted) => (kv.map_or(0, |kv| kv.lease), *wanted),
            // Of a key that is not there it never holds (etcd's applyCompare).
            PbTargetUnion::Value(wanted) => return kv.is_some_and(|kv| kv.value == *wanted),
        };
        found == wanted
    }

    pub(super) fn put(&mut self, writer: Writer, key: &[u8], value: &[u8], lease: i64, revision: i64) {
        self.judge(writer, key, Some(value));
        let before = self.now.records.get(key).map(|record| record.kv.clone());
        let kv = PbKeyValue {
            key: key.to_vec(),
            value: value.to_vec(),
            create_revision: before.as_ref().map_or(revision, |kv| kv.create_revision),
            version: before.as_ref().map_or(0, |kv| kv.version) + 1,
            mod_revision: revision,
            lease,
        };
        match (writer, self.now.records.get(key)) {
            // A slow daemon may yet have to hear of what happened to it before.
            (Writer::Vandal, Some(_)) if self.disturbed_all || self.disturbed.contains(key) => {}
            (Writer::Vandal, Some(record)) if matches!(record.writer, Writer::Node(_)) => {
                self.spoils.insert(key.to_vec(), (record.clone(), Instant::now()));
            }
            (Writer::Vandal, _) => {}
            _ => drop(self.spoils.remove(key)),
        }
        if !matches!(writer, Writer::Node(_)) {
            self.disturbed.insert(key.to_vec());
        }
        self.now.records.insert(key.to_vec(), Record::new(kv.clone(), writer));
        self.log.push((revision, PbEvent { r#type: 0, kv: Some(kv), prev_kv: before }));
    }

    pub(super) fn delete(&mut self, writer: Writer, key: &[u8], revision: i64) -> bool {
        self.judge(writer, key, None);
        let Some(record) = self.now.records.remove(key) else { return false };
        self.spoils.remove(key);
        self.disturbed.insert(key.to_vec());
        let kv = PbKeyValue { key: key.to_vec(), mod_revision: revision, ..PbKeyValue::default() };
        self.log.push((revision, PbEvent { r#type: DELETE, kv: Some(kv), prev_kv: Some(record.kv) }));
        true
    }

    /// Events from `from` on, and the revision they lead to.
    pub fn since(&mut self, from: i64, key: &[u8], end: &[u8]) -> (Vec<PbEvent>, i64) {
        let start = self.log.partition_point(|(revision, _)| *revision < from);
        let events: Vec<_> = self.log[start..]
            .iter()
            .map(|(_, event)| event)
            .filter(|event| is_within(&event.kv.as_ref().unwrap().key, key, end))
            .map(|event| PbEvent { prev_kv: None, ..event.clone() })
            .collect();
        self.load.events += events.len() as u64;
        let size = |event: &PbEvent| event.kv.as_ref().map_or(0, |kv| kv.key.len() + kv.value.len());
        self.load.event_bytes += events.iter().map(size).sum::<usize>() as u64;
        (events, self.now.revision)
    }
}

fn is_within(key: &[u8], start: &[u8], end: &[u8]) -> bool {
    match end {
        [] => key == start,
        [0] => key >= start,
        end => key >= start && key < end,
    }
}
