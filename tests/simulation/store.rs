//! A store in memory with etcd's semantics: one revision a change, transactions,
//! leases, a log that compaction cuts off, and restores that go back in time.
//! It knows who wrote each record and minds that nobody takes another's.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use etcd_client::proto::{
    PbCompare, PbDeleteResponse, PbEvent, PbKeyValue, PbLeaseGrantResponse, PbPutRequest, PbPutResponse,
    PbRangeRequest, PbRangeResponse, PbResponseHeader, PbResponseOp, PbTargetUnion, PbTxnOpRequest,
    PbTxnOpResponse, PbTxnRequest, PbTxnRequestOp, PbTxnResponse,
};
use tokio::sync::Notify;
use tokio::time::Instant;
use tonic::Status;
use weft::model::{LeaseAttrs, SubnetKey};

use super::verdict::Verdict;

pub const PREFIX: &str = "/coreos.com/network";
const SUBNETS: &str = "/coreos.com/network/subnets/";
const DELETE: i32 = 1;

/// Who wrote a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    Node(usize),
    /// Another program, whose record is a good lease.
    Other,
    /// One that writes what is no lease of anybody.
    Vandal,
}

#[derive(Clone, Debug)]
pub struct Record {
    pub kv: PbKeyValue,
    pub writer: Writer,
}

impl Record {
    pub fn lease(&self) -> Option<(SubnetKey, LeaseAttrs)> {
        Some((subnet_of(&self.kv.key)?, LeaseAttrs::parse(&self.kv.value).ok()?))
    }
}

/// What is kept by a snapshot, to be restored.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    pub revision: i64,
    pub records: BTreeMap<Vec<u8>, Record>,
    leases: BTreeMap<i64, Lease>,
}

impl Contents {
    pub fn empty() -> Contents {
        Contents { revision: 1, ..Contents::default() }
    }
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    ttl: i64,
    expires: Instant,
}

/// How much the store has been asked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    pub ranges: u64,
    pub txns: u64,
    pub lost_txns: u64,
    pub grants: u64,
    pub keep_alives: u64,
    pub events: u64,
    pub event_bytes: u64,
    pub range_bytes: u64,
}

pub struct State {
    pub now: Contents,
    pub compacted: i64,
    log: Vec<(i64, PbEvent)>,
    pub cluster: u64,
    pub term: u64,
    next_lease: i64,
    /// Streams of an earlier one are cut.
    pub epoch: u64,
    /// Public addresses of the nodes, as they write them.
    pub addresses: Vec<String>,
    /// Records whose history is no longer one of a node that took a subnet and
    /// keeps it: deleted, expired, restored, written by others.
    pub disturbed: BTreeSet<Vec<u8>>,
    pub disturbed_all: bool,
    /// Records of nodes that were spoilt, as they were, and since when.
    pub spoils: BTreeMap<Vec<u8>, (Record, Instant)>,
    pub ignore_compare: bool,
    pub ignore_history: bool,
    pub load: Load,
    verdict: Verdict,
}

#[derive(Clone)]
pub struct Model {
    state: Arc<Mutex<State>>,
    /// Wakes in the order of waiting, unlike a `watch`.
    pub changed: Arc<Notify>,
}

impl Model {
    pub fn new(verdict: Verdict, addresses: Vec<String>) -> Model {
        let state = State {
            now: Contents::empty(),
            compacted: 0,
            log: Vec::new(),
            cluster: 7,
            term: 10,
            next_lease: 1000,
            epoch: 0,
            addresses,
            disturbed: BTreeSet::new(),
            disturbed_all: false,
            spoils: BTreeMap::new(),
            ignore_compare: false,
            ignore_history: false,
            load: Load::default(),
            verdict,
        };
        Model { state: Arc::new(Mutex::new(state)), changed: Arc::default() }
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Do something and wake who watches.
    pub fn update<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let before = (state.now.revision, state.epoch, state.compacted);
        let done = change(&mut state);
        let woke = before != (state.now.revision, state.epoch, state.compacted);
        drop(state);
        if woke {
            self.changed.notify_waiters();
        }
        done
    }

    /// Lets leases expire, for ever.
    pub async fn expire(self) {
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            self.update(State::expire);
        }
    }
}

impl State {
    pub fn header(&self) -> PbResponseHeader {
        PbResponseHeader {
            cluster_id: self.cluster,
            member_id: 1,
            revision: self.now.revision,
            raft_term: self.term,
        }
    }

    pub fn put_by(&mut self, writer: Writer, key: &[u8], value: &[u8], lease: i64) {
        self.now.revision += 1;
        let revision = self.now.revision;
        self.put(writer, key, value, lease, revision);
    }

    pub fn delete_by(&mut self, writer: Writer, key: &[u8]) {
        if self.now.records.contains_key(key) {
            self.now.revision += 1;
            let revision = self.now.revision;
            self.delete(writer, key, revision);
        }
    }

    /// The log up to `revision` is no more.
    pub fn compact(&mut self, revision: i64) {
        self.compacted = self.compacted.max(revision.min(self.now.revision));
        let compacted = self.compacted;
        self.log.retain(|(revision, _)| *revision >= compacted);
    }

    /// Another leader: every lease has its whole time again.
    pub fn elect(&mut self) {
        self.term += 1;
        self.epoch += 1;
        self.refresh_leases();
    }

    /// Another cluster, from a snapshot of an earlier one or from nothing.
    pub fn restore(&mut self, from: Contents, same_cluster: bool) {
        self.now = from;
        self.compacted = self.now.revision;
        self.log.clear();
        self.epoch += 1;
        self.disturbed_all = true;
        self.spoils.clear();
        if !same_cluster {
            self.cluster += 1;
        }
        if !self.ignore_history {
            self.term = 2;
        }
        self.refresh_leases();
    }

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
        let Some(lease) = self.now.leases.get_mut(&id) else { return 0 };
        lease.expires = Instant::now() + Duration::from_secs(lease.ttl as u64);
        lease.ttl
    }

    pub fn revoke(&mut self, id: i64) -> bool {
        let known = self.now.leases.remove(&id).is_some();
        self.drop_records_of(&BTreeSet::from([id]));
        known
    }

    pub fn expire(&mut self) {
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

    fn refresh_leases(&mut self) {
        for lease in self.now.leases.values_mut() {
            lease.expires = Instant::now() + Duration::from_secs(lease.ttl as u64);
        }
    }

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
        let kv = self.now.records.get(&compare.key).map(|record| &record.kv);
        let (found, wanted) = match compare.target_union.as_ref().unwrap() {
            PbTargetUnion::Version(wanted) => (kv.map_or(0, |kv| kv.version), *wanted),
            PbTargetUnion::CreateRevision(wanted) => (kv.map_or(0, |kv| kv.create_revision), *wanted),
            PbTargetUnion::ModRevision(wanted) => (kv.map_or(0, |kv| kv.mod_revision), *wanted),
            other => panic!("not in this model: {other:?}"),
        };
        assert_eq!(compare.result, 0, "the daemon compares for equality");
        found == wanted
    }

    fn put(&mut self, writer: Writer, key: &[u8], value: &[u8], lease: i64, revision: i64) {
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
            (Writer::Vandal, Some(record)) if matches!(record.writer, Writer::Node(_)) => {
                self.spoils.insert(key.to_vec(), (record.clone(), Instant::now()));
            }
            (Writer::Vandal, _) => {}
            _ => drop(self.spoils.remove(key)),
        }
        if !matches!(writer, Writer::Node(_)) {
            self.disturbed.insert(key.to_vec());
        }
        self.now.records.insert(key.to_vec(), Record { kv: kv.clone(), writer });
        self.log.push((revision, PbEvent { r#type: 0, kv: Some(kv), prev_kv: before }));
    }

    fn delete(&mut self, writer: Writer, key: &[u8], revision: i64) -> bool {
        self.judge(writer, key, None);
        let Some(record) = self.now.records.remove(key) else { return false };
        self.spoils.remove(key);
        self.disturbed.insert(key.to_vec());
        let kv = PbKeyValue { key: key.to_vec(), mod_revision: revision, ..PbKeyValue::default() };
        self.log.push((revision, PbEvent { r#type: DELETE, kv: Some(kv), prev_kv: Some(record.kv) }));
        true
    }

    /// One owner a subnet: no node writes over a record that is not its own.
    fn judge(&self, writer: Writer, key: &[u8], value: Option<&[u8]>) {
        let Writer::Node(node) = writer else { return };
        if let Some(record) = self.now.records.get(key)
            && !self.may_touch(node, record)
        {
            let (key, verb) =
                (String::from_utf8_lossy(key), if value.is_some() { "writes over" } else { "deletes" });
            self.verdict.violated(|| format!("node {node} {verb} {key}, which {:?} holds", record.writer));
        }
    }

    fn may_touch(&self, node: usize, record: &Record) -> bool {
        if record.writer == Writer::Node(node) {
            return true;
        }
        match LeaseAttrs::parse(&record.kv.value) {
            Ok(attrs) if attrs.public_ip.is_empty() => true,
            Ok(attrs) => attrs.public_ip.iter().any(|(_, ip)| ip.to_string() == self.addresses[node]),
            // What is nobody's record is the subnet's last owner's to mend.
            Err(_) => true,
        }
    }

    /// All records that are good leases, by whom they were written.
    pub fn leases(&self) -> impl Iterator<Item = (SubnetKey, LeaseAttrs, &Record)> {
        let good = self.now.records.values().filter(|record| record.writer != Writer::Vandal);
        good.filter_map(|record| record.lease().map(|(key, attrs)| (key, attrs, record)))
    }

    /// Subnets whose records are no leases.
    pub fn spoilt(&self) -> impl Iterator<Item = SubnetKey> {
        let vandals = self.now.records.values().filter(|record| record.writer == Writer::Vandal);
        vandals.filter_map(|record| subnet_of(&record.kv.key))
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

pub fn key_of(subnet: &str) -> Vec<u8> {
    format!("{SUBNETS}{subnet}").into_bytes()
}

pub fn subnet_of(key: &[u8]) -> Option<SubnetKey> {
    str::from_utf8(key).ok()?.strip_prefix(SUBNETS)?.parse().ok()
}

fn is_within(key: &[u8], start: &[u8], end: &[u8]) -> bool {
    match end {
        [] => key == start,
        [0] => key >= start,
        end => key >= start && key < end,
    }
}
