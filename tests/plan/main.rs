//! What the plan from the kernel's state to the wanted one promises, on any
//! state, without a kernel.

#![allow(clippy::unwrap_used, reason = "a test that cannot build its world has failed")]

mod backends;
mod changes;
mod worlds;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use weft::desired::*;
use weft::model::*;
use worlds::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_plan_leads_to_what_is_wanted_and_then_nothing_is_left_to_do(have in observed(), world in world()) {
        let (want, own) = (world.desired(), world.backend.ownership());

        let after = apply(&have, &diff(&have, &want, &own));

        prop_assert!(want.missing_from(&after).is_empty());
        prop_assert_eq!(diff(&after, &want, &own), Plan::default());
        prop_assert!(stale(&after, &want, &own).is_empty(), "{:?}", stale(&after, &want, &own));
    }

    #[test]
    fn what_is_foreign_stays_as_it_is(have in observed(), world in world()) {
        let (want, own) = (world.desired(), world.backend.ownership());

        let after = apply(&have, &diff(&have, &want, &own));

        prop_assert_eq!(foreign(&after, &want, &own), foreign(&have, &want, &own));
    }

    #[test]
    fn only_what_is_ours_is_removed(have in observed(), world in world()) {
        let (want, own) = (world.desired(), world.backend.ownership());
        let mut now = have.clone();

        for op in diff(&have, &want, &own).ops {
            prop_assert!(may_go(&now, &want, &own, &op), "{}", op);
            now.record(&op);
        }
    }

    #[test]
    fn no_route_is_set_before_all_it_stands_on(have in observed(), world in world()) {
        let (want, own) = (world.desired(), world.backend.ownership());
        let mut now = have.clone();

        for op in diff(&have, &want, &own).ops {
            if let Op::SetRoute { nexthop, id, .. } = &op {
                prop_assert!(stands(&now, &want, nexthop, *id), "{} stands on nothing", op);
            }
            now.record(&op);
        }
    }

    #[test]
    fn no_nexthop_object_changes_its_value_or_its_owner(have in observed(), world in world()) {
        let mut now = have.clone();

        for op in diff(&have, &world.desired(), &world.backend.ownership()).ops {
            if let Op::SetNexthop { id, .. } = &op {
                prop_assert!(!now.nexthops.contains_key(id), "{} is in use", op);
                prop_assert!(NEXTHOP_IDS.contains(id));
            }
            now.record(&op);
        }
    }

    #[test]
    fn a_route_that_stays_right_is_never_away(
        objects: bool, before in world(), later in peers("vxlan", Family::BOTH.to_vec()),
    ) {
        let (have, own) = (settled(&before, objects), before.backend.ownership());
        let (old, new) = (before.desired(), before.with_peers(&later));

        let plan = diff(&have, &new, &own);

        for (dst, nexthop) in &new.routes {
            let untouched = plan.ops.iter().all(|op| !touches_route(op, dst));
            prop_assert_eq!(untouched, old.routes.get(dst) == Some(nexthop));
        }
        // A route that changes is replaced in one step, never deleted first.
        let deleted = |op: &Op| matches!(op, Op::DelRoute { dst, .. } if new.routes.contains_key(dst));
        prop_assert!(!plan.ops.iter().any(deleted));
    }

    #[test]
    fn recording_ops_one_by_one_or_together_is_the_same(have in observed(), world in world()) {
        let plan = diff(&have, &world.desired(), &world.backend.ownership());
        let mut together = have.clone();

        together.record_all(&plan.ops);

        prop_assert_eq!(together, apply(&have, &plan));
    }
}

#[test]
fn a_route_that_go_flannel_left_is_retagged_by_one_replacement() {
    for objects in [false, true] {
        let world = one_peer("vxlan");
        let (want, own) = (world.desired(), world.backend.ownership());
        let mut have = settled(&world, objects);
        have.nexthops.clear();
        for route in have.routes.values_mut() {
            (route.protocol, route.nexthop_id) = (BOOT_PROTOCOL, 0);
        }

        let plan = diff(&have, &want, &own);

        let routes: Vec<_> = plan.ops.iter().filter(|op| !matches!(op, Op::SetNexthop { .. })).collect();
        assert!(matches!(routes[..], [Op::SetRoute { .. }]), "{plan:?}");
    }
}

#[test]
fn a_route_by_way_of_somebody_elses_nexthop_object_gets_our_own() {
    let world = one_peer("vxlan");
    let mut have = settled(&world, true);
    have.nexthops.values_mut().for_each(|object| object.protocol = FOREIGN_PROTOCOL);

    let plan = diff(&have, &world.desired(), &world.backend.ownership());

    assert!(matches!(plan.ops[..], [Op::SetNexthop { .. }, Op::SetRoute { id: Some(_), .. }]), "{plan:?}");
}

#[test]
fn a_plain_route_of_ours_is_left_alone_where_there_are_nexthop_objects() {
    let world = one_peer("vxlan");
    let mut have = settled(&world, false);
    have.nexthop_objects = true;

    assert_eq!(diff(&have, &world.desired(), &world.backend.ownership()), Plan::default());
}

#[test]
fn without_a_free_nexthop_id_routes_are_plain() {
    let world = one_peer("host-gw");
    let taken = NEXTHOP_IDS.map(|id| (id, ObservedNexthop { nexthop: None, protocol: FOREIGN_PROTOCOL }));
    let have = Observed { nexthops: taken.collect(), nexthop_objects: true, ..Observed::default() };
    let (want, own) = (world.desired(), world.backend.ownership());

    let plan = diff(&have, &want, &own);

    let ops: Vec<_> = plan.ops.iter().filter(|op| !matches!(op, Op::SetSysctl { .. })).collect();
    assert!(matches!(ops[..], [Op::SetRoute { id: None, .. }]), "{plan:?}");
    assert_eq!(diff(&apply(&have, &plan), &want, &own), Plan::default());
}

#[test]
fn subnets_behind_one_gateway_share_a_nexthop_object() {
    let mut world = one_peer("host-gw");
    world.peers.insert(key(&[Family::V4], 3), lease("host-gw", &[Family::V4], 2, mac(2), false));

    let have = settled(&world, true);

    assert_eq!((have.routes.len(), have.nexthops.len()), (2, 1));
}

#[test]
fn a_new_mac_of_our_own_device_brings_back_the_neighbours_it_drops() {
    let world = one_peer("vxlan");
    let mut have = settled(&world, true);
    have.links.get_mut(&name("flannel.1")).unwrap().mac = Some(mac(99));

    let plan = diff(&have, &world.desired(), &world.backend.ownership());

    assert!(matches!(plan.ops[..], [Op::SetLink { .. }, Op::SetNeighbour { .. }]), "{plan:?}");
}

#[test]
fn a_second_destination_of_a_mac_is_replaced_away() {
    let world = one_peer("vxlan");
    let mut have = settled(&world, true);
    have.fdb.values_mut().for_each(|dsts| assert!(dsts.insert(ip("192.0.2.1"))));

    let plan = diff(&have, &world.desired(), &world.backend.ownership());

    assert!(matches!(plan.ops[..], [Op::SetFdb { .. }]), "{plan:?}");
}

#[test]
fn a_link_that_was_down_gets_its_routes_and_nexthops_again() {
    let world = one_peer("vxlan");
    let mut have = settled(&world, true);
    have.links.get_mut(&name("flannel.1")).unwrap().up = false;

    let plan = diff(&have, &world.desired(), &world.backend.ownership());

    let [Op::SetLink { .. }, Op::SetNeighbour { .. }, Op::SetNexthop { .. }, Op::SetRoute { .. }] =
        plan.ops[..]
    else {
        panic!("{plan:?}");
    };
}

#[test]
fn the_device_of_a_family_that_was_switched_off_goes_as_one() {
    let both = World {
        backend: backend("vxlan", &Family::BOTH, "", false),
        own: key(&Family::BOTH, 1),
        peers: [(key(&Family::BOTH, 2), lease("vxlan", &Family::BOTH, 2, mac(2), false))].into(),
        ..one_peer("vxlan")
    };
    let v4 = backend("vxlan", &[Family::V4], "", false);
    let (want, _) = v4.desired(&both.node, &both.id, &both.own, &both.peers);
    let have = settled(&both, true);

    let plan = diff(&have, &want, &v4.ownership());

    let dst = net("fd00:5:0:2::/64");
    let gone = Op::DelLink { name: name("flannel-v6.1") };
    assert_eq!(plan.ops, [Op::DelRoute { dst, protocol: ROUTE_PROTOCOL }, gone]);
}

#[test]
fn what_is_missing_is_told_by_name() {
    let world = one_peer("vxlan");
    let mut have = settled(&world, true);
    have.fdb.clear();
    have.routes.clear();

    assert_eq!(
        world.desired().missing_from(&have).names(),
        [
            "fdb 0e:00:00:00:00:02 dst 192.168.9.2 dev flannel.1",
            "route 10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink",
        ]
        .map(str::to_owned)
    );
}

#[test]
fn what_a_peer_lacks_is_its_share_of_what_is_missing() {
    let alone = one_peer("vxlan");
    let other = lease("vxlan", &[Family::V4], 3, mac(3), true);
    let mut both = one_peer("vxlan");
    both.peers.insert(key(&[Family::V4], 3), other);
    let mut have = settled(&both, true);
    have.fdb.retain(|(_, of), _| *of != mac(3));
    have.neighbours.retain(|_, of| *of != mac(3));

    let missing = both.desired().missing_from(&have);

    assert!(alone.desired().shared_with(&missing).is_empty());
    let names = [
        "neighbour 10.5.3.0 lladdr 0e:00:00:00:00:03 dev flannel.1",
        "fdb 0e:00:00:00:00:03 dst 192.168.9.3 dev flannel.1",
    ];
    assert_eq!(both.desired().shared_with(&missing).names(), names);
    have.links.clear();
    let missing = both.desired().missing_from(&have);
    assert_eq!(alone.desired().shared_with(&missing).names(), ["link flannel.1"], "everyone's");
}

fn one_peer(kind: &'static str) -> World {
    let families = [Family::V4];
    World {
        backend: backend(kind, &families, "", false),
        node: node(),
        id: identity(),
        own: key(&families, 1),
        peers: [(key(&families, 2), lease(kind, &families, 2, mac(2), kind == "vxlan"))].into(),
    }
}

/// The kernel once `world` is at rest in it.
fn settled(world: &World, nexthop_objects: bool) -> Observed {
    let nothing = Observed { nexthop_objects, ..Observed::default() };
    apply(&nothing, &diff(&nothing, &world.desired(), &world.backend.ownership()))
}

fn apply(have: &Observed, plan: &Plan) -> Observed {
    let mut after = have.clone();
    for op in &plan.ops {
        after.record(op);
    }
    after
}

fn touches_route(op: &Op, net: &ipnetwork::IpNetwork) -> bool {
    match op {
        Op::SetRoute { dst, .. } | Op::DelRoute { dst, .. } => dst == net,
        _ => false,
    }
}

/// Whether a packet sent by `nexthop` gets anywhere.
fn stands(now: &Observed, want: &Desired, nexthop: &Nexthop, id: Option<u32>) -> bool {
    let object = |id| now.nexthops.get(&id).and_then(|object| object.nexthop) == Some(*nexthop);
    let tunnel = || {
        let mac = now.neighbours.get(&(nexthop.dev, nexthop.via));
        let link = now.links.get(&nexthop.dev).is_some_and(|link| link.up);
        link && mac.is_some_and(|mac| now.fdb.contains_key(&(nexthop.dev, *mac)))
    };
    id.is_none_or(object) && (!want.links.contains_key(&nexthop.dev) || tunnel())
}

/// Whether `op` removes nothing, or something that we may remove.
fn may_go(now: &Observed, want: &Desired, own: &Ownership, op: &Op) -> bool {
    let inside = |net: ipnetwork::IpNetwork| {
        own.networks.iter().any(|n| n.contains(net.ip()) && n.prefix() <= net.prefix())
    };
    match op {
        Op::DelRoute { dst, protocol } => {
            let target = now.routes.get(dst).and_then(|route| now.target(route));
            let over_own_link = target.is_some_and(|nexthop| own.links.contains(&nexthop.dev));
            *protocol == ROUTE_PROTOCOL || (*protocol != KERNEL_PROTOCOL && inside(*dst) && over_own_link)
        }
        Op::DelAddress { dev, addr } => {
            let family = Family::of_net(*addr);
            let served = want.addresses.iter().any(|(d, a)| d == dev && Family::of_net(*a) == family);
            served && (inside(*addr) || family == Family::V6 && !addr.to_string().starts_with("fe80"))
        }
        Op::DelLink { name: dev } | Op::DelNeighbour { dev, .. } | Op::DelFdb { dev, .. } => {
            own.links.contains(dev)
        }
        Op::DelNexthop { id } => now.nexthops[id].protocol == ROUTE_PROTOCOL,
        _ => true,
    }
}

/// What is ours and yet not wanted.
fn stale(have: &Observed, want: &Desired, own: &Ownership) -> Vec<String> {
    let used: BTreeSet<_> = have.routes.values().map(|route| route.nexthop_id).collect();
    let links = have.links.keys().filter(|name| own.links.contains(name) && !want.links.contains_key(name));
    let neighbours =
        have.neighbours.keys().filter(|key| own.links.contains(&key.0) && !want.neighbours.contains_key(key));
    let exact = |key, dsts: &Destinations| dsts.iter().eq(want.fdb.get(key));
    let fdb = have.fdb.iter().filter(|(key, dsts)| own.links.contains(&key.0) && !exact(key, dsts));
    let routes =
        have.routes.iter().filter(|(dst, r)| r.protocol == ROUTE_PROTOCOL && !want.routes.contains_key(dst));
    let ours = have.nexthops.iter().filter(|(_, object)| object.protocol == ROUTE_PROTOCOL);
    let unused = ours.filter(|(id, _)| !used.contains(id));

    let mut all: Vec<_> = links.map(|x| format!("{x:?}")).collect();
    all.extend(neighbours.map(|x| format!("{x:?}")));
    all.extend(fdb.map(|x| format!("{x:?}")));
    all.extend(routes.map(|x| format!("{x:?}")));
    all.extend(unused.map(|x| format!("{x:?}")));
    all
}

/// What of `have` no plan may touch.
fn foreign(have: &Observed, want: &Desired, own: &Ownership) -> Observed {
    let mut rest = have.clone();
    let is_own = |nexthop: Option<Nexthop>| nexthop.is_some_and(|nexthop| own.links.contains(&nexthop.dev));
    rest.links.retain(|name, _| !own.links.contains(name));
    rest.addresses.retain(|(dev, _)| !own.links.contains(dev));
    rest.neighbours.retain(|(dev, _), _| !own.links.contains(dev));
    rest.fdb.retain(|(dev, _), _| !own.links.contains(dev));
    rest.nexthops.retain(|_, object| object.protocol != ROUTE_PROTOCOL && !is_own(object.nexthop));
    rest.routes.retain(|dst, route| {
        !want.routes.contains_key(dst) && route.protocol != ROUTE_PROTOCOL && !is_own(have.target(route))
    });
    rest.sysctls = BTreeMap::new();
    rest
}
