//! Everyone's leases, as the store's events tell them. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::{BadRecord, Held, Snapshot, StoreEvent, StoredLease};
use crate::backends::Peers;
use crate::model::{Lease, LeaseAttrs, SubnetKey};

/// So many bad records are remembered, to log each once.
const MAX_BAD: usize = 10_000;

/// The other nodes' leases and what became of our own.
#[derive(Debug)]
pub struct LeaseTable {
    own: Held,
    own_state: OwnState,
    peers: Peers,
    /// What was known of peers whose record is spoilt now. They stay peers but where a
    /// healthy record claims their subnet: a node that starts then knows nothing else.
    spoilt: BTreeMap<SubnetKey, LeaseAttrs>,
    /// Records that do not parse now, by the store's key.
    bad: BTreeMap<String, BadRecord>,
    connected: bool,
    /// Whether all that the store had at one time is known.
    is_listed: bool,
}

/// What the store says of our own record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnState {
    Held,
    /// Deleted or spoilt: renew, and acquire again where the renewal says `Lost`.
    Doubtful,
    /// It says what we did not write: renew just so, and wait for its end.
    Foreign,
}

/// What an event changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// The peers are others than before, or known to be all for the first time.
    pub peers: bool,
    /// Our own record came into doubt: renew now.
    pub doubt: bool,
    /// Records found bad for the first time, to be logged.
    pub bad: Vec<BadRecord>,
}

impl LeaseTable {
    /// Of a store that was listed: `peers` and `bad` are all that was there.
    pub fn listed(own: Held, peers: Peers, bad: Vec<BadRecord>) -> LeaseTable {
        let mut table = LeaseTable { is_listed: true, ..LeaseTable::remembered(own, peers) };
        bad.into_iter().for_each(|bad| table.remember(bad));
        table
    }

    /// Of a store that has not told anything yet.
    pub fn remembered(own: Held, peers: Peers) -> LeaseTable {
        LeaseTable {
            own,
            own_state: OwnState::Held,
            peers,
            spoilt: BTreeMap::new(),
            bad: BTreeMap::new(),
            connected: true,
            is_listed: false,
        }
    }

    /// After a renewal or a new acquisition. The events that the store has sent
    /// since decide about the subnet we held before: it may be a peer's.
    pub fn set_own(&mut self, own: Held) -> Change {
        self.own_state = OwnState::Held;
        let peers = self.forget(&own.stored.lease.key);
        self.own = own;
        Change { peers, ..Change::default() }
    }

    pub fn apply(&mut self, event: StoreEvent) -> Change {
        let before = self.own_state;
        let change = self.take_in(event);
        Change { doubt: self.own_state != before && self.own_state != OwnState::Held, ..change }
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

    /// The records that do not parse at present.
    pub fn bad(&self) -> impl ExactSizeIterator<Item = &BadRecord> {
        self.bad.values()
    }

    /// Whether the store has told of all leases yet.
    pub fn is_listed(&self) -> bool {
        self.is_listed
    }

    /// Whether the watch is up.
    pub fn connected(&self) -> bool {
        self.connected
    }

    fn take_in(&mut self, event: StoreEvent) -> Change {
        match event {
            StoreEvent::Snapshot(snapshot) => self.replace(snapshot),
            StoreEvent::Put(stored) => self.put(stored),
            StoreEvent::Delete(key) => self.delete(&key),
            StoreEvent::Bad(bad) => self.spoil(bad),
            StoreEvent::Disconnected(_) => self.connection(false),
            StoreEvent::Connected => self.connection(true),
        }
    }

    /// The whole truth: who is not in it is gone, but for a peer whose record
    /// was spoilt.
    fn replace(&mut self, snapshot: Snapshot) -> Change {
        let Snapshot { leases, bad, .. } = snapshot;
        let was_listed = std::mem::replace(&mut self.is_listed, true);
        let own = leases.iter().find(|stored| stored.lease.key == self.own_key());
        self.judge_own(own.map(|own| own.lease.attrs.clone()).as_ref());
        let mut healthy: Vec<SubnetKey> = leases.iter().map(|stored| stored.lease.key).collect();
        healthy.sort_unstable();
        let is_healthy = |key: &SubnetKey| healthy.binary_search(key).is_ok();
        let spoilt = bad.iter().filter_map(|bad| bad.subnet).filter(|key| !is_healthy(key));
        let known = |key| Some((key, self.spoilt.get(&key).or_else(|| self.peers.get(&key))?.clone()));
        self.spoilt = spoilt.filter_map(known).collect();
        let is_gone = |key: &&SubnetKey| !is_healthy(key) && !self.spoilt.contains_key(key);
        let gone: Vec<SubnetKey> = self.peers.keys().filter(is_gone).copied().collect();
        for key in &gone {
            self.peers.remove(key);
        }
        let changed = self.fill(leases) || !gone.is_empty();
        let changed = self.weigh_spoilt(|_| true) || changed;

        let known = std::mem::take(&mut self.bad);
        let mut change = Change { peers: changed || !was_listed, ..Change::default() };
        for bad in bad {
            if known.get(&bad.key) != Some(&bad) {
                change.bad.push(bad.clone());
            }
            self.remember(bad);
        }
        change
    }

    /// Take in the peers among `leases`; whether any is new or says something
    /// new. One that says the same stays shared with all who know it.
    fn fill(&mut self, leases: Vec<StoredLease>) -> bool {
        let own = self.own_key();
        let others = leases.into_iter().map(|stored| stored.lease).filter(|lease| lease.key != own);
        if self.peers.is_empty() {
            self.peers = others.map(|lease| (lease.key, lease.attrs)).collect();
            return !self.peers.is_empty();
        }
        let mut changed = false;
        for Lease { key, attrs } in others {
            if self.peers.get(&key) != Some(&attrs) {
                self.peers.insert(key, attrs);
                changed = true;
            }
        }
        changed
    }

    fn put(&mut self, stored: StoredLease) -> Change {
        let (key, attrs) = (stored.lease.key, &stored.lease.attrs);
        self.bad.retain(|_, bad| bad.subnet != Some(key));
        if key == self.own_key() {
            self.judge_own(Some(attrs));
            return Change::default();
        }
        self.spoilt.remove(&key);
        let changed = self.fill(vec![stored]);
        Change { peers: self.weigh_spoilt(|spoilt| claims(&key, spoilt)) || changed, ..Change::default() }
    }

    fn delete(&mut self, key: &SubnetKey) -> Change {
        self.bad.retain(|_, bad| bad.subnet != Some(*key));
        if *key == self.own_key() {
            self.judge_own(None);
            return Change::default();
        }
        Change { peers: self.forget(key), ..Change::default() }
    }

    fn spoil(&mut self, bad: BadRecord) -> Change {
        if bad.subnet == Some(self.own_key()) {
            self.own_state = OwnState::Doubtful;
        }
        let known = self.bad.get(&bad.key) == Some(&bad);
        let new = if known { Vec::new() } else { vec![bad.clone()] };
        let peers = bad.subnet.is_some_and(|key| self.spoil_peer(key));
        self.remember(bad);
        Change { peers, bad: new, ..Change::default() }
    }

    fn spoil_peer(&mut self, key: SubnetKey) -> bool {
        if self.spoilt.contains_key(&key) {
            return false;
        }
        let Some(attrs) = self.peers.get(&key) else { return false };
        self.spoilt.insert(key, attrs.clone());
        self.weigh_spoilt(|spoilt| *spoilt == key || claims(&key, spoilt))
    }

    fn forget(&mut self, key: &SubnetKey) -> bool {
        self.spoilt.remove(key);
        let was_peer = self.peers.remove(key).is_some();
        self.weigh_spoilt(|spoilt| claims(key, spoilt)) || was_peer
    }

    /// Whether those that a change `concerns` are peers, or others by now.
    fn weigh_spoilt(&mut self, concerns: impl Fn(&SubnetKey) -> bool) -> bool {
        let concerned: Vec<_> = self.spoilt.keys().filter(|key| concerns(key)).copied().collect();
        let mut changed = false;
        for (key, claimed) in self.claimed(&concerned) {
            if claimed {
                changed |= self.peers.remove(&key).is_some();
            } else if !self.peers.contains_key(&key) {
                self.peers.insert(key, self.spoilt[&key].clone());
                changed = true;
            }
        }
        changed
    }

    /// Whether healthy records claim them, by one pass over all.
    fn claimed(&self, spoilt: &[SubnetKey]) -> Vec<(SubnetKey, bool)> {
        let is_healthy = |key: &&SubnetKey| !self.spoilt.contains_key(key);
        match *spoilt {
            [] => Vec::new(),
            [key] => {
                vec![(
                    key,
                    self.peers.keys().filter(|other| claims(other, &key)).any(|other| is_healthy(&other)),
                )]
            }
            _ => {
                let nets = self.peers.keys().filter(is_healthy).flat_map(SubnetKey::nets);
                let nets: BTreeSet<_> = nets.map(|(_, net)| (net.network(), net.prefix())).collect();
                let claimed = |key: &SubnetKey| key.nets().any(|(_, net)| holds_one_of(net, &nets));
                spoilt.iter().map(|key| (*key, claimed(key))).collect()
            }
        }
    }

    fn connection(&mut self, up: bool) -> Change {
        self.connected = up;
        Change::default()
    }

    /// Our record is ours as long as it says what we wrote.
    fn judge_own(&mut self, found: Option<&LeaseAttrs>) {
        self.own_state = match found {
            None => OwnState::Doubtful,
            Some(attrs) if *attrs == self.own.stored.lease.attrs => OwnState::Held,
            Some(_) => OwnState::Foreign,
        };
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

/// Whether a healthy record is for a part of a spoilt one's subnet, or for the whole
/// of it: a wider one pushes nobody out (as in `backends`).
fn claims(healthy: &SubnetKey, spoilt: &SubnetKey) -> bool {
    let holds = |outer: IpNetwork, inner: IpNetwork| {
        outer.prefix() <= inner.prefix() && outer.contains(inner.network())
    };
    spoilt.nets().any(|(family, outer)| healthy.net(family).is_some_and(|inner| holds(outer, inner)))
}

/// The same, of many: where it begins and its prefix, of each.
fn holds_one_of(outer: IpNetwork, nets: &BTreeSet<(IpAddr, u8)>) -> bool {
    let (first, last) = ((outer.network(), outer.prefix()), (outer.broadcast(), u8::MAX));
    nets.range(first..=last).next().is_some()
}

#[cfg(test)]
mod tests;
