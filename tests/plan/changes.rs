//! Following changes peer by peer leads where computing everything anew does.

use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::select;
use weft::backends::{Backend, Inputs, Peers, Rejected, Wanted};
use weft::desired::*;
use weft::model::*;

use crate::settled;
use crate::worlds::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_sequence_of_changes_gives_the_state_and_the_plans_of_a_fresh_start(
        world in world(), objects: bool, steps in prop::collection::vec(step(), 1..12),
    ) {
        let mut have = settled(&world, objects);
        let World { backend, node, id: identity, own, peers } = world;
        let mut inputs = Inputs { node, identity, own, peers, whole: true };
        let backend: Arc<dyn Backend> = backend.into();
        let (ownership, kind) = (backend.ownership(), backend.kind());
        let mut wanted = Wanted::new(Arc::clone(&backend), Arc::new(inputs.clone()));

        for changes in steps {
            for (subnet, lease) in changes {
                change(&mut inputs.peers, kind, &inputs.own, subnet, lease);
            }
            let touched = wanted.update(Arc::new(inputs.clone()));

            let (desired, rejected) = afresh(&*backend, &inputs);
            prop_assert_eq!(wanted.desired(), &desired);
            prop_assert_eq!(wanted.rejected(), rejected);
            let touched = touched.expect("a few peers changed, and no more are related to them");
            let plan = diff(&have, &desired, &ownership);
            prop_assert_eq!(&diff_at(&have, &desired, &ownership, &touched), &plan);
            have.record_all(&plan.ops);
        }
    }
}

#[test]
fn a_lone_change_among_many_touches_its_own_entries_alone() {
    let families = Family::BOTH;
    let lease = |n: u8| lease("vxlan", &families, n, mac(n), true);
    let mut peers: Peers = (2..200).map(|n| (key(&families, n), lease(n))).collect();
    let inputs = |peers: &Peers| {
        let own = key(&families, 1);
        Arc::new(Inputs { node: node(), identity: identity(), own, peers: peers.clone(), whole: true })
    };
    let backend = Arc::from(backend("vxlan", &families, "", false));
    let mut wanted = Wanted::new(backend, inputs(&peers));

    peers.insert(key(&families, 200), lease(200));
    let touched = wanted.update(inputs(&peers)).unwrap();

    assert_eq!((touched.neighbours.len(), touched.fdb.len(), touched.routes.len()), (2, 2, 2));
    assert!(touched.routes.contains(&net("10.5.200.0/24")));

    let mut other_node = (*inputs(&peers)).clone();
    other_node.node.uplink_mtu = 1400;
    assert_eq!(wanted.update(Arc::new(other_node)), None, "a change of this node touches everything");
}

/// What becomes of a few subnets at once.
type Step = Vec<(Subnet, Option<(u8, u8, bool)>)>;

fn step() -> impl Strategy<Value = Step> {
    let lease = (2u8..9, 1u8..9, any::<bool>());
    prop::collection::vec((subnet(), prop::option::weighted(0.7, lease)), 1..4)
}

#[derive(Clone, Copy, Debug)]
enum Subnet {
    OfHost(u8),
    /// A quarter of a host's, and four hosts' at once.
    Within(u8),
    Around(u8),
}

fn subnet() -> impl Strategy<Value = Subnet> {
    prop_oneof![
        6 => (2u8..9).prop_map(Subnet::OfHost),
        1 => (1u8..9).prop_map(Subnet::Within),
        1 => select(vec![4u8, 8]).prop_map(Subnet::Around),
    ]
}

fn change(peers: &mut Peers, kind: &str, own: &SubnetKey, subnet: Subnet, lease_of: Option<(u8, u8, bool)>) {
    let families: Vec<_> = own.nets().map(|(family, _)| family).collect();
    let (v4, v6) = match subnet {
        Subnet::OfHost(n) => (format!("10.5.{n}.0/24"), format!("fd00:5:0:{n:x}::/64")),
        Subnet::Within(n) => (format!("10.5.{n}.64/26"), format!("fd00:5:0:{n:x}:4000::/66")),
        Subnet::Around(n) => (format!("10.5.{n}.0/22"), format!("fd00:5:0:{n:x}::/62")),
    };
    let nets = PerFamily { v4: Some(net(&v4)), v6: Some(net(&v6)) };
    let nets = families.iter().map(|&family| (family, *nets.get(family).unwrap())).collect();
    let key = SubnetKey::new(nets).unwrap();
    match lease_of {
        Some((host, m, far)) => drop(peers.insert(key, lease(kind, &families, host, mac(m), far))),
        None => drop(peers.remove(&key)),
    }
}

fn afresh(backend: &dyn Backend, inputs: &Inputs) -> (Desired, Vec<Rejected>) {
    let (desired, mut rejected) = backend.desired(&inputs.node, &inputs.identity, &inputs.own, &inputs.peers);
    rejected.sort_by_key(|rejected| rejected.key);
    (desired, rejected)
}
