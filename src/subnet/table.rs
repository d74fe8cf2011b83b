//! Everyone's leases, as the store's events tell them. Pure.

use std::collections::BTreeMap;

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
            bad: BTreeMap::new(),
            connected: true,
            is_listed: false,
        }
    }

    /// After a renewal or a new acquisition. The events that the store has sent
    /// since decide about the subnet we held before: it may be a peer's.
    pub fn set_own(&mut self, own: Held) -> Change {
        self.own_state = OwnState::Held;
        let peers = self.peers.remove(&own.stored.lease.key).is_some();
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
        let spoilt = bad.iter().filter_map(|bad| bad.subnet);
        let mut listed: Vec<SubnetKey> = leases.iter().map(|stored| stored.lease.key).chain(spoilt).collect();
        listed.sort_unstable();
        let is_gone = |key: &&SubnetKey| listed.binary_search(key).is_err();
        let gone: Vec<SubnetKey> = self.peers.keys().filter(is_gone).copied().collect();
        for key in &gone {
            self.peers.remove(key);
        }
        let changed = self.fill(leases) || !gone.is_empty();

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
        Change { peers: self.fill(vec![stored]), ..Change::default() }
    }

    fn delete(&mut self, key: &SubnetKey) -> Change {
        self.bad.retain(|_, bad| bad.subnet != Some(*key));
        if *key == self.own_key() {
            self.judge_own(None);
            return Change::default();
        }
        Change { peers: self.peers.remove(key).is_some(), ..Change::default() }
    }

    fn spoil(&mut self, bad: BadRecord) -> Change {
        if bad.subnet == Some(self.own_key()) {
            self.own_state = OwnState::Doubtful;
        }
        let known = self.bad.get(&bad.key) == Some(&bad);
        let new = if known { Vec::new() } else { vec![bad.clone()] };
        self.remember(bad);
        Change { bad: new, ..Change::default() }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    use crate::model::PerFamily;
    use proptest::prelude::*;

    const OWN: u8 = 1;

    #[test]
    fn a_snapshot_replaces_all_and_leaves_self_out() {
        let mut table = seeded(&[OWN, 2, 3]);
        assert_eq!(peers(&table), [2, 3]);

        let change = table.apply(snapshot(&[OWN, 3, 4], &[]));

        assert!(change.peers);
        assert_eq!((peers(&table), table.own_state()), (vec![3, 4], OwnState::Held));
        assert!(!table.apply(snapshot(&[OWN, 3, 4], &[])).peers, "nothing changed");
    }

    #[test]
    fn a_snapshot_sees_changed_attributes() {
        let mut table = seeded(&[OWN, 2]);
        let StoreEvent::Snapshot(mut after) = snapshot(&[OWN, 2], &[]) else { unreachable!() };
        after.leases[1].lease.attrs.backend_type = "host-gw".into();

        assert!(table.apply(StoreEvent::Snapshot(after)).peers);
        assert_eq!(table.peers()[&key(2)].backend_type, "host-gw");
    }

    #[test]
    fn a_spoilt_record_keeps_its_peer_and_is_told_once() {
        let mut table = seeded(&[OWN, 2]);

        assert_eq!(table.apply(StoreEvent::Bad(bad(2))), Change { bad: vec![bad(2)], ..Change::default() });
        assert_eq!(table.apply(StoreEvent::Bad(bad(2))), Change::default());
        assert_eq!(table.apply(snapshot(&[OWN], &[2])), Change::default());
        assert_eq!((peers(&table), table.bad_count()), (vec![2], 1));

        table.apply(StoreEvent::Put(stored(2)));
        assert_eq!(table.bad_count(), 0);
    }

    #[test]
    fn our_own_record_is_in_doubt_when_deleted_spoilt_or_taken() {
        let mut foreign = stored(OWN);
        foreign.lease.attrs = stored(7).lease.attrs;
        let doubts = [
            StoreEvent::Delete(key(OWN)),
            StoreEvent::Bad(bad(OWN)),
            StoreEvent::Put(foreign),
            snapshot(&[2], &[]),
        ];
        for doubt in doubts {
            let mut table = seeded(&[OWN, 2]);
            table.apply(StoreEvent::Put(stored(OWN)));
            assert_eq!(table.own_state(), OwnState::Held);
            assert!(table.apply(doubt.clone()).doubt);
            assert!(!table.apply(doubt).doubt, "told once");
            assert_ne!(table.own_state(), OwnState::Held);
            assert_eq!(peers(&table), [2]);
            table.set_own(held(OWN));
            assert_eq!(table.own_state(), OwnState::Held);
        }
    }

    #[test]
    fn a_subnet_that_was_anothers_is_told_of_when_it_is_free() {
        let mut table = seeded(&[OWN]);
        let mut foreign = stored(OWN);
        foreign.lease.attrs = stored(7).lease.attrs;
        assert!(table.apply(StoreEvent::Put(foreign)).doubt);
        assert!(table.apply(StoreEvent::Delete(key(OWN))).doubt);
    }

    proptest! {
        #[test]
        fn events_and_a_snapshot_lead_to_the_same_peers(
            events in prop::collection::vec((1u8..20, any::<bool>()), 0..100)
        ) {
            let mut table = seeded(&[]);
            let mut alive = BTreeSet::new();
            for (node, put) in events {
                table.apply(if put { StoreEvent::Put(stored(node)) } else { StoreEvent::Delete(key(node)) });
                if put { alive.insert(node) } else { alive.remove(&node) };
            }
            let mut fresh = seeded(&[]);
            fresh.apply(snapshot(&alive.iter().copied().collect::<Vec<_>>(), &[]));
            prop_assert_eq!(table.peers(), fresh.peers());
            prop_assert!(!table.peers().contains_key(&key(OWN)));
        }
    }

    fn seeded(nodes: &[u8]) -> LeaseTable {
        let others = nodes.iter().copied().filter(|node| *node != OWN).map(|node| stored(node).lease);
        let peers = others.map(|lease| (lease.key, lease.attrs)).collect();
        LeaseTable::listed(held(OWN), peers, Vec::new())
    }

    fn peers(table: &LeaseTable) -> Vec<u8> {
        (0..=u8::MAX).filter(|node| table.peers().contains_key(&key(*node))).collect()
    }

    fn snapshot(nodes: &[u8], spoilt: &[u8]) -> StoreEvent {
        let leases = nodes.iter().copied().map(stored).collect();
        StoreEvent::Snapshot(Snapshot {
            revision: 5,
            leases,
            bad: spoilt.iter().copied().map(bad).collect(),
            ..Snapshot::default()
        })
    }

    fn held(node: u8) -> Held {
        Held { stored: stored(node), ttl: None }
    }

    fn stored(node: u8) -> StoredLease {
        let public_ip = PerFamily { v4: Some([192, 0, 2, node].into()), v6: None };
        let attrs =
            LeaseAttrs { public_ip, backend_type: "vxlan".into(), backend_data: PerFamily::default() };
        StoredLease { lease: Lease { key: key(node), attrs }, lease_id: Some(1), mod_revision: 1 }
    }

    fn bad(node: u8) -> BadRecord {
        BadRecord { key: format!("/subnets/{}", key(node)), subnet: Some(key(node)), reason: "spoilt".into() }
    }

    fn key(node: u8) -> SubnetKey {
        format!("10.5.{node}.0-24").parse().expect("a subnet key")
    }
}
