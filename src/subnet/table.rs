//! Everyone's leases, as the store's events tell them. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::{BadRecord, Held, Snapshot, StoreEvent, StoredLease};
use crate::backends::Peers;
use crate::model::{LeaseAttrs, SubnetKey};

/// So many bad records are remembered, to log each once.
const MAX_BAD: usize = 10_000;

/// The other nodes' leases and what became of our own.
#[derive(Debug)]
pub struct LeaseTable {
    own: Held,
    own_state: OwnState,
    peers: Peers,
    /// Records that do not parse now, by the store's key.
    bad: BTreeMap<String, BadRecord>,
    connected: bool,
    /// Whether a snapshot has come.
    seeded: bool,
}

/// What the store says of our own record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnState {
    Held,
    /// Deleted, spoilt, or another node's: renew, and acquire again where the
    /// renewal says `Lost`.
    Doubtful,
}

/// What an event changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// The peers are others than before.
    pub peers: bool,
    /// Records found bad for the first time, to be logged.
    pub bad: Vec<BadRecord>,
}

impl LeaseTable {
    pub fn new(own: Held) -> LeaseTable {
        LeaseTable {
            own,
            own_state: OwnState::Held,
            peers: Peers::new(),
            bad: BTreeMap::new(),
            connected: true,
            seeded: false,
        }
    }

    /// After a renewal or a new acquisition. The events that the store has sent
    /// since decide about the subnet we held before: it may be a peer's.
    pub fn set_own(&mut self, own: Held) -> Change {
        self.own_state = OwnState::Held;
        let peers = self.peers.remove(&own.stored.lease.key).is_some();
        self.own = own;
        Change { peers, bad: Vec::new() }
    }

    pub fn apply(&mut self, event: StoreEvent) -> Change {
        match event {
            StoreEvent::Snapshot(snapshot) => self.replace(snapshot),
            StoreEvent::Put(stored) => self.put(stored),
            StoreEvent::Delete(key) => self.delete(&key),
            StoreEvent::Bad(bad) => self.spoil(bad),
            StoreEvent::Disconnected(_) => self.connection(false),
            StoreEvent::Connected => self.connection(true),
        }
    }

    /// The other nodes' leases; never our own.
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    pub fn own(&self) -> &Held {
        &self.own
    }

    pub fn own_state(&self) -> OwnState {
        self.own_state
    }

    /// How many records of the store do not parse at present.
    pub fn bad_count(&self) -> usize {
        self.bad.len()
    }

    /// Whether the watch is up.
    pub fn connected(&self) -> bool {
        self.connected
    }

    /// The whole truth: who is not in it is gone, but for a peer whose record
    /// was spoilt.
    fn replace(&mut self, snapshot: Snapshot) -> Change {
        let Snapshot { revision, leases, bad } = snapshot;
        let spoilt: BTreeSet<SubnetKey> = bad.iter().filter_map(|bad| bad.subnet).collect();
        let mut peers: Peers = leases.into_iter().map(|s| (s.lease.key, s.lease.attrs)).collect();
        let own = peers.remove(&self.own_key());
        // The first may be the listing that we acquired from: older than our lease.
        let seeded = std::mem::replace(&mut self.seeded, true);
        if seeded || revision >= self.own.stored.mod_revision {
            self.judge_own(own.as_ref());
        }
        for (key, attrs) in &self.peers {
            if spoilt.contains(key) {
                peers.insert(*key, attrs.clone());
            }
        }
        let changed = self.peers != peers;
        self.peers = peers;

        let known = std::mem::take(&mut self.bad);
        let mut change = Change { peers: changed, bad: Vec::new() };
        for bad in bad {
            if known.get(&bad.key) != Some(&bad) {
                change.bad.push(bad.clone());
            }
            self.remember(bad);
        }
        change
    }

    fn put(&mut self, stored: StoredLease) -> Change {
        let (key, attrs) = (stored.lease.key, stored.lease.attrs);
        self.bad.retain(|_, bad| bad.subnet != Some(key));
        if key == self.own_key() {
            self.judge_own(Some(&attrs));
            return Change::default();
        }
        let before = self.peers.insert(key, attrs);
        Change { peers: before.as_ref() != self.peers.get(&key), bad: Vec::new() }
    }

    fn delete(&mut self, key: &SubnetKey) -> Change {
        self.bad.retain(|_, bad| bad.subnet != Some(*key));
        if *key == self.own_key() {
            self.judge_own(None);
            return Change::default();
        }
        Change { peers: self.peers.remove(key).is_some(), bad: Vec::new() }
    }

    fn spoil(&mut self, bad: BadRecord) -> Change {
        if bad.subnet == Some(self.own_key()) {
            self.own_state = OwnState::Doubtful;
        }
        let known = self.bad.get(&bad.key) == Some(&bad);
        let new = if known { Vec::new() } else { vec![bad.clone()] };
        self.remember(bad);
        Change { peers: false, bad: new }
    }

    fn connection(&mut self, up: bool) -> Change {
        self.connected = up;
        Change::default()
    }

    /// Our record is ours as long as it says what we wrote.
    fn judge_own(&mut self, found: Option<&LeaseAttrs>) {
        let held = found == Some(&self.own.stored.lease.attrs);
        self.own_state = if held { OwnState::Held } else { OwnState::Doubtful };
    }

    fn own_key(&self) -> SubnetKey {
        self.own.stored.lease.key
    }

    fn remember(&mut self, bad: BadRecord) {
        if self.bad.len() < MAX_BAD {
            self.bad.insert(bad.key.clone(), bad);
        }
    }
}
