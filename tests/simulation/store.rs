//! A store in memory with etcd's semantics: one revision a change, transactions,
//! leases, a log that compaction cuts off, and restores that go back in time.
//! It knows who wrote each record and minds that nobody takes another's.

mod kv;
mod leases;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use etcd_client::proto::{PbEvent, PbKeyValue, PbResponseHeader};
use tokio::sync::Notify;
use tokio::time::Instant;
use tonic::Status;
use weft::model::{LeaseAttrs, SubnetKey};

use super::verdict::{Invariant, Verdict};

pub const PREFIX: &str = "/coreos.com/network";
const SUBNETS: &str = "/coreos.com/network/subnets/";

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
    /// What it says, if anything.
    pub lease: Option<(SubnetKey, LeaseAttrs)>,
}

impl Record {
    fn new(kv: PbKeyValue, writer: Writer) -> Record {
        let lease = subnet_of(&kv.key).zip(LeaseAttrs::parse(&kv.value).ok());
        Record { kv, writer, lease }
    }
}

/// One of the store's machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    Up,
    /// Its process is gone.
    Down,
    /// It answers nothing.
    Dead,
    /// It runs, cut off from the others.
    Alone,
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
    /// With the next sign of life of this lease another program writes this.
    pub snatch: Option<(i64, Vec<u8>, Vec<u8>)>,
    /// The next record that a node deletes, another program writes just before.
    pub overtake: Option<Vec<u8>>,
    pub ignore_compare: bool,
    pub ignore_history: bool,
    pub load: Load,
    machines: Vec<Machine>,
    leader: usize,
    verdict: Verdict,
}

#[derive(Clone)]
pub struct Model {
    state: Arc<Mutex<State>>,
    /// Wakes in the order of waiting, unlike a `watch`.
    pub changed: Arc<Notify>,
}

impl Model {
    pub fn new(verdict: Verdict, addresses: Vec<String>, machines: usize) -> Model {
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
            snatch: None,
            overtake: None,
            ignore_compare: false,
            ignore_history: false,
            load: Load::default(),
            machines: vec![Machine::Up; machines],
            leader: 0,
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

    pub fn machines(&self) -> usize {
        self.machines.len()
    }

    /// Most machines see each other: they have a leader, or will.
    pub fn has_majority(&self) -> bool {
        let up = self.machines.iter().filter(|machine| **machine == Machine::Up).count();
        up * 2 > self.machines.len()
    }

    /// Where the leader went and most are left they take another one.
    pub fn set_machine(&mut self, index: usize, machine: Machine) {
        let led = self.has_majority();
        self.machines[index] = machine;
        let leads = self.machines[self.leader] == Machine::Up;
        if self.has_majority() && !(led && leads) {
            self.leader = self.machines.iter().position(|machine| *machine == Machine::Up).unwrap_or(0);
            self.elect();
        }
    }

    /// What a machine says to whoever calls it, if it does not serve: a status, or
    /// nothing at all.
    pub fn refusal(&self, machine: usize) -> Result<(), Option<Status>> {
        match self.machines[machine] {
            Machine::Up if self.has_majority() => Ok(()),
            // With a leader required, as the daemon asks for, of a watch too.
            Machine::Up | Machine::Alone => Err(Some(Status::unavailable("etcdserver: no leader"))),
            Machine::Down => Err(Some(Status::unavailable("connection refused"))),
            Machine::Dead => Err(None),
        }
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

    /// One owner a subnet: no node writes over a record that is not its own.
    fn judge(&self, writer: Writer, key: &[u8], value: Option<&[u8]>) {
        let Writer::Node(node) = writer else { return };
        if let Some(record) = self.now.records.get(key)
            && !self.may_touch(node, record)
        {
            let (key, verb) =
                (String::from_utf8_lossy(key), if value.is_some() { "writes over" } else { "deletes" });
            self.verdict.violated(Invariant::OneOwner, || {
                format!("node {node} {verb} {key}, which {:?} holds", record.writer)
            });
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
    pub fn leases(&self) -> impl Iterator<Item = (SubnetKey, &LeaseAttrs, &Record)> {
        let good = self.now.records.values().filter(|record| record.writer != Writer::Vandal);
        good.filter_map(|record| record.lease.as_ref().map(|(key, attrs)| (*key, attrs, record)))
    }

    /// Subnets whose records are no leases.
    pub fn spoilt(&self) -> impl Iterator<Item = SubnetKey> {
        let vandals = self.now.records.values().filter(|record| record.writer == Writer::Vandal);
        vandals.filter_map(|record| subnet_of(&record.kv.key))
    }
}

pub fn key_of(subnet: &str) -> Vec<u8> {
    format!("{SUBNETS}{subnet}").into_bytes()
}

pub fn subnet_of(key: &[u8]) -> Option<SubnetKey> {
    str::from_utf8(key).ok()?.strip_prefix(SUBNETS)?.parse().ok()
}
