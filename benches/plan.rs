//! How long the pure part of a reconciliation takes, by number of peers, and what
//! a lease takes in memory:
//!
//! ```text
//! cargo bench --no-default-features --bench plan
//! ```

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use serde_json::value::RawValue;
use weft::backends::{Backend, Identity, Inputs, Node, Peers, Wanted, from_config};
use weft::desired::{Desired, Observed, Op, Ownership, diff, diff_at};
use weft::model::{BackendData, Family, LeaseAttrs, Mac, NetworkConfig, PerFamily, SubnetKey};

const CONFIG: &str =
    r#"{"Network":"10.0.0.0/8","EnableIPv6":true,"IPv6Network":"fd00::/32","Backend":{"Type":"BACKEND"}}"#;
const RUNS: usize = 9;

fn main() {
    println!("dual stack, median of {RUNS}, in milliseconds");
    println!(
        "{:<8} {:>6} {:>9} {:>10} {:>10} {:>10} {:>10}",
        "backend", "peers", "desired", "diff all", "record", "diff idle", "one more"
    );
    for kind in ["vxlan", "host-gw"] {
        for count in [1_000, 10_000, 65_000] {
            row(kind, count);
        }
    }
    let entry = size_of::<(SubnetKey, LeaseAttrs)>();
    println!("a lease takes {entry} bytes, an op {}", size_of::<Op>());
}

fn row(kind: &str, count: u32) {
    let config = NetworkConfig::parse(&CONFIG.replace("BACKEND", kind)).expect("a valid config");
    let backend = from_config(&config, false).expect("a valid backend");
    let (peers, own) = (peers(kind, count), backend.ownership());
    let want = desired(&*backend, &peers);
    let nothing = Observed { nexthop_objects: true, ..Observed::default() };
    let plan = diff(&nothing, &want, &own);
    let settled = recorded(&nothing, &want, &own);
    assert_eq!(want.routes.len(), 2 * count as usize);
    assert!(diff(&settled, &want, &own).ops.is_empty());

    let times = [
        median(|| drop(desired(&*backend, &peers))),
        median(|| drop(diff(&nothing, &want, &own))),
        median(|| nothing.clone().record_all(&plan.ops)),
        median(|| drop(diff(&settled, &want, &own))),
    ];
    let [desired, all, record, idle] = times.map(|time| time.as_secs_f64() * 1e3);
    let lone = one_more(kind, &peers, settled).as_secs_f64() * 1e3;
    println!("{kind:<8} {count:>6} {desired:>9.2} {all:>10.2} {record:>10.2} {idle:>10.2} {lone:>10.3}");
}

/// From a lease that comes to the ops for it, and these recorded.
fn one_more(kind: &str, peers: &Peers, mut have: Observed) -> Duration {
    let config = NetworkConfig::parse(&CONFIG.replace("BACKEND", kind)).expect("a valid config");
    let backend: Arc<dyn Backend> = from_config(&config, false).expect("a valid backend").into();
    let own = backend.ownership();
    let inputs = |peers: Peers| {
        Arc::new(Inputs { node: node(), identity: identity(), own: key(0), peers, whole: true })
    };
    let mut wanted = Wanted::new(backend, inputs(peers.clone()));
    let mut peers = peers.clone();
    let mut next = peers.len() as u32;
    median(|| {
        next += 1;
        peers.insert(key(next), lease(kind, next));
        let touched = wanted.update(inputs(peers.clone())).expect("one peer changed");
        let plan = diff_at(&have, wanted.desired(), &own, &touched);
        assert!(plan.ops.len() >= 4, "{plan:?}");
        have.record_all(&plan.ops);
    })
}

fn median(mut run: impl FnMut()) -> Duration {
    let mut times: Vec<_> = (0..RUNS)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed()
        })
        .collect();
    times.sort();
    times[RUNS / 2]
}

fn recorded(have: &Observed, want: &Desired, own: &Ownership) -> Observed {
    let mut after = have.clone();
    after.record_all(&diff(have, want, own).ops);
    after
}

fn desired(backend: &dyn Backend, peers: &Peers) -> Desired {
    backend.desired(&node(), &identity(), &key(0), peers).0
}

fn identity() -> Identity {
    Identity { mac: PerFamily { v4: Some(mac(0)), v6: Some(mac(0)) } }
}

fn node() -> Node {
    let public_ip = public_ip(0);
    Node {
        uplink: "eth0".parse().expect("a name"),
        uplink_mtu: 1500,
        address: public_ip,
        public_ip,
        on_link: vec!["172.16.0.0/12".parse().expect("a prefix"), "2001:db8::/64".parse().expect("a prefix")],
    }
}

fn peers(kind: &str, count: u32) -> Peers {
    (1..=count).map(|n| (key(n), lease(kind, n))).collect()
}

fn lease(kind: &str, n: u32) -> LeaseAttrs {
    let data = |n| match kind {
        "vxlan" => RawValue::from_string(format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, mac(n)))
            .ok()
            .map(BackendData::from),
        _ => None,
    };
    LeaseAttrs {
        public_ip: public_ip(n),
        backend_type: kind.to_owned().into(),
        backend_data: PerFamily { v4: data(n), v6: data(n) },
    }
}

fn key(n: u32) -> SubnetKey {
    let v4 = IpNetwork::new(Ipv4Addr::from_bits(0x0a00_0000 | n << 8).into(), 24);
    let v6 = IpNetwork::new(Ipv6Addr::from_bits(0xfd00 << 112 | u128::from(n) << 64).into(), 64);
    let nets = [(Family::V4, v4), (Family::V6, v6)];
    SubnetKey::new(nets.into_iter().map(|(family, net)| (family, net.expect("a prefix"))).collect())
        .expect("a key")
}

fn public_ip(n: u32) -> PerFamily<std::net::IpAddr> {
    let v4 = Ipv4Addr::from_bits(0xac10_0001 + n).into();
    let v6 = Ipv6Addr::from_bits(0x2001_0db8 << 96 | u128::from(n + 1)).into();
    PerFamily { v4: Some(v4), v6: Some(v6) }
}

fn mac(n: u32) -> Mac {
    let [a, b, c, d] = n.to_be_bytes();
    Mac::local([2, 0, a, b, c, d])
}
