use super::*;

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
fn a_healthy_record_wins_over_a_spoilt_one_in_any_order() {
    let [old, new, wide] =
        ["10.5.2.0-24&fd00:5:0:2::-64", "10.5.2.0-24&fd00:5:0:3::-64", "10.5.0.0-16"].map(lease_of);
    let spoil = || bad_of(old.lease.key);
    let snapshot = |leases: &[&StoredLease], bad: &[BadRecord]| {
        let leases = leases.iter().map(|lease| (*lease).clone()).collect();
        StoreEvent::Snapshot(Snapshot { revision: 5, leases, bad: bad.to_vec(), ..Snapshot::default() })
    };
    let (put, spoilt) = (|lease: &StoredLease| StoreEvent::Put(lease.clone()), || StoreEvent::Bad(spoil()));
    let orders = [
        vec![put(&old), put(&new), spoilt()],
        vec![put(&old), spoilt(), put(&new)],
        vec![put(&old), snapshot(&[&new], &[spoil()])],
        vec![put(&old), snapshot(&[], &[spoil()]), put(&new)],
        vec![snapshot(&[&old, &new], &[]), spoilt(), spoilt()],
    ];
    for order in orders {
        let mut table = seeded(&[]);
        let last = order
            .into_iter()
            .map(|event| table.apply(event))
            .reduce(|before, change| Change { peers: before.peers || change.peers, ..change });
        assert!(last.unwrap().peers);
        assert_eq!(table.peers().keys().collect::<Vec<_>>(), [&new.lease.key]);
        assert!(table.apply(StoreEvent::Delete(new.lease.key)).peers);
        assert_eq!(table.peers().keys().collect::<Vec<_>>(), [&old.lease.key], "claimed no more");
        table.apply(put(&new));
        table.apply(put(&old));
        assert_eq!(table.peers().len(), 2, "healthy again: whose it is the backends say");
    }

    let mut table = seeded(&[]);
    for event in [put(&old), put(&wide), spoilt(), put(&wide), snapshot(&[&wide], &[spoil()])] {
        table.apply(event);
    }
    assert_eq!(table.peers().len(), 2, "what is wider claims nothing");
    table.apply(StoreEvent::Delete(old.lease.key));
    assert_eq!(table.peers().keys().collect::<Vec<_>>(), [&wide.lease.key]);
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
    let attrs = LeaseAttrs { public_ip, backend_type: "vxlan".into(), backend_data: PerFamily::default() };
    StoredLease { lease: Lease { key: key(node), attrs }, lease_id: Some(1), mod_revision: 1 }
}

fn lease_of(key: &str) -> StoredLease {
    let mut stored = stored(2);
    stored.lease.key = key.parse().unwrap();
    stored
}

fn bad(node: u8) -> BadRecord {
    bad_of(key(node))
}

fn bad_of(key: SubnetKey) -> BadRecord {
    BadRecord { key: format!("/subnets/{key}"), subnet: Some(key), reason: "spoilt".into() }
}

fn key(node: u8) -> SubnetKey {
    format!("10.5.{node}.0-24").parse().expect("a subnet key")
}
