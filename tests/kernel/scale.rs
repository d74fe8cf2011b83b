//! Ten thousand peers. Run with `--nocapture` for the figures.

use std::time::Instant;

use weft::desired::{Op, diff};
use weft::kernel::{Kernel, Nexthops};

use crate::fabric::{Fabric, apply};

const PEERS: u32 = 10_000;

#[test]
fn ten_thousand_peers_by_nexthop_objects() {
    all_at_once("kernel-10k-nh", Nexthops::WherePossible);
}

/// A fifth: the kernel needs the square of the time without nexthop objects.
#[test]
fn two_thousand_peers_by_plain_routes() {
    let fabric = Fabric::new("kernel-2k", "vxlan", "", 2_000);
    join(&fabric, Nexthops::Never);
}

fn all_at_once(label: &str, nexthops: Nexthops) {
    let fabric = Fabric::new(label, "vxlan", "", PEERS);
    join(&fabric, nexthops);
    let routes = fabric.ip("-4 route show proto 87").as_array().unwrap().len();
    assert_eq!(routes, PEERS as usize);
}

fn join(fabric: &Fabric, nexthops: Nexthops) {
    let mut kernel = fabric.kernel(nexthops);
    let (want, own, scope) = (fabric.desired(), fabric.backend.ownership(), fabric.scope());

    let begun = Instant::now();
    let plan = diff(&kernel.observe(&scope).unwrap(), &want, &own).ops;
    apply(&mut kernel, &plan);
    let joined = begun.elapsed();

    let begun = Instant::now();
    let have = kernel.observe(&scope).unwrap();
    let observed = begun.elapsed();
    let begun = Instant::now();
    let again = diff(&have, &want, &own).ops;
    let compared = begun.elapsed();

    assert_eq!(again, [], "{} peers", fabric.inputs.peers.len());
    assert_eq!(plan.iter().any(|op| matches!(op, Op::SetNexthop { .. })), nexthops != Nexthops::Never);
    eprintln!(
        "{} dual-stack peers, {nexthops:?}: observe, diff and apply {} ops {joined:.0?}; observe {observed:.0?}; diff {compared:.0?}",
        fabric.inputs.peers.len(),
        plan.len(),
    );
}
