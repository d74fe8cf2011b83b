//! Small worlds, so that what is wanted, what is ours and what is foreign meet
//! in the same few addresses, MACs and ids.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use proptest::collection::{btree_map, btree_set};
use proptest::prelude::*;
use proptest::sample::select;
use weft::backends::{Backend, Identity, Node, Peers, from_config};
use weft::desired::*;
use weft::model::*;

pub const FOREIGN_PROTOCOL: u8 = 186; // BGP
pub const KERNEL_PROTOCOL: u8 = 2;
pub const BOOT_PROTOCOL: u8 = 3; // what Go flannel leaves

pub fn name(text: &str) -> IfName {
    text.parse().unwrap()
}

pub fn mac(last: u8) -> Mac {
    Mac([0x0e, 0, 0, 0, 0, last])
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

/// A fabric, this node in it, and its peers.
#[derive(Debug)]
pub struct World {
    pub backend: Box<dyn Backend>,
    pub node: Node,
    pub id: Identity,
    pub own: SubnetKey,
    pub peers: Peers,
}

impl World {
    pub fn desired(&self) -> Desired {
        self.backend.desired(&self.node, &self.id, &self.own, &self.peers).0
    }

    pub fn with_peers(&self, peers: &Peers) -> Desired {
        self.backend.desired(&self.node, &self.id, &self.own, peers).0
    }
}

pub fn backend(kind: &str, families: &[Family], options: &str, tx_checksum_off: bool) -> Box<dyn Backend> {
    from_config(&config(kind, families, options), tx_checksum_off).unwrap()
}

pub fn config(kind: &str, families: &[Family], options: &str) -> NetworkConfig {
    let (v4, v6) = (families.contains(&Family::V4), families.contains(&Family::V6));
    let json = format!(
        r#"{{"EnableIPv4":{v4},"EnableIPv6":{v6},"Network":"10.5.0.0/16","IPv6Network":"fd00:5::/48","Backend":{{"Type":"{kind}"{options}}}}}"#
    );
    NetworkConfig::parse(&json).unwrap()
}

pub fn node() -> Node {
    let addresses = PerFamily { v4: Some(ip("192.168.7.1")), v6: Some(ip("2001:db8:7::1")) };
    Node {
        uplink: name("eth0"),
        uplink_mtu: 1500,
        address: addresses,
        public_ip: addresses,
        on_link: vec![net("192.168.7.0/24"), net("2001:db8:7::/64")],
    }
}

pub fn identity() -> Identity {
    Identity { mac: PerFamily { v4: Some(mac(1)), v6: Some(mac(1)) } }
}

/// The subnet of host `n`, in the given families.
pub fn key(families: &[Family], n: u8) -> SubnetKey {
    let subnet = |family: &Family| match family {
        Family::V4 => (*family, net(&format!("10.5.{n}.0/24"))),
        Family::V6 => (*family, net(&format!("fd00:5:0:{n:x}::/64"))),
    };
    SubnetKey::new(families.iter().map(subnet).collect()).unwrap()
}

/// What host `n` publishes: behind a router where `far`.
pub fn lease(kind: &str, families: &[Family], host: u8, mac: Mac, far: bool) -> LeaseAttrs {
    let third = if far { 9 } else { 7 };
    let public_ip = |family| match family {
        Family::V4 => ip(&format!("192.168.{third}.{host}")),
        Family::V6 => ip(&format!("2001:db8:{third}::{host:x}")),
    };
    let data = format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#);
    let data = || serde_json::value::RawValue::from_string(data.clone()).unwrap().into();
    LeaseAttrs {
        public_ip: families.iter().map(|&family| (family, public_ip(family))).collect(),
        backend_type: kind.to_owned().into(),
        backend_data: match kind {
            "vxlan" => families.iter().map(|&family| (family, data())).collect(),
            _ => PerFamily::default(),
        },
    }
}

pub fn families() -> impl Strategy<Value = Vec<Family>> {
    select(vec![vec![Family::V4], vec![Family::V6], Family::BOTH.to_vec()])
}

/// Peers of one kind, some of whose MACs and addresses collide.
pub fn peers(kind: &'static str, families: Vec<Family>) -> impl Strategy<Value = Peers> {
    let host = (2u8..9, 2u8..9, any::<bool>());
    btree_map(2u8..9, host, 0..6).prop_map(move |hosts| {
        let one = |(n, (host, m, far))| (key(&families, n), lease(kind, &families, host, mac(m), far));
        hosts.into_iter().map(one).collect()
    })
}

pub fn world() -> impl Strategy<Value = World> {
    let shape = (select(vec!["vxlan", "host-gw"]), families(), any::<bool>(), any::<bool>());
    shape.prop_flat_map(|(kind, families, direct, checksum_off)| {
        let options = format!(r#","DirectRouting":{direct}"#);
        peers(kind, families.clone()).prop_map(move |peers| World {
            backend: backend(kind, &families, &options, checksum_off),
            node: node(),
            id: identity(),
            own: key(&families, 1),
            peers,
        })
    })
}

/// Any state a kernel could be in, ours, flannel's and foreign entries mixed.
pub fn observed() -> impl Strategy<Value = Observed> {
    let links = btree_map(dev(), link(), 0..5);
    let addresses = btree_set((dev(), address()), 0..8);
    let neighbours = btree_map((dev(), gateway()), (1u8..9).prop_map(mac), 0..8);
    let fdb = btree_map(
        (dev(), (1u8..9).prop_map(mac)),
        btree_set(gateway(), 1..3).prop_map(|dsts| dsts.into_iter().collect()),
        0..8,
    );
    let object = (proptest::option::of(nexthop()), protocol())
        .prop_map(|(nexthop, protocol)| ObservedNexthop { nexthop, protocol });
    let nexthops = btree_map(nexthop_id(), object, 0..6);
    let route = (proptest::option::of(nexthop()), prop_oneof![Just(0), nexthop_id()], protocol())
        .prop_map(|(nexthop, nexthop_id, protocol)| ObservedRoute { nexthop, nexthop_id, protocol });
    let routes = btree_map(dst(), route, 0..10);
    let parts = (links, addresses, neighbours, fdb, nexthops, routes, any::<bool>());
    parts.prop_map(|(links, addresses, neighbours, fdb, nexthops, routes, nexthop_objects)| {
        let sysctls = BTreeMap::from([("net/ipv6/conf/flannel.1/accept_ra".to_owned(), "1".to_owned())]);
        let in_use = fdb.keys().copied().step_by(2).collect();
        tidy(Observed {
            links,
            addresses,
            neighbours,
            fdb,
            in_use,
            nexthops,
            routes,
            sysctls,
            nexthop_objects,
        })
    })
}

/// Nothing stands on a link that is not there, no route uses an object that is
/// not there.
fn tidy(mut seen: Observed) -> Observed {
    let links: BTreeSet<_> = seen.links.keys().copied().collect();
    let stands = |nexthop: Option<Nexthop>| nexthop.is_none_or(|nexthop| links.contains(&nexthop.dev));
    let objects = seen.nexthop_objects;
    seen.addresses.retain(|(dev, _)| links.contains(dev));
    seen.neighbours.retain(|(dev, _), _| links.contains(dev));
    seen.fdb.retain(|(dev, _), _| links.contains(dev));
    seen.nexthops.retain(|_, object| objects && stands(object.nexthop));
    let ids: BTreeSet<_> = seen.nexthops.keys().copied().collect();
    seen.routes.retain(|_, route| {
        route.nexthop = if route.nexthop_id == 0 { route.nexthop } else { None };
        (route.nexthop_id == 0 || ids.contains(&route.nexthop_id)) && stands(route.nexthop)
    });
    seen
}

fn dev() -> impl Strategy<Value = IfName> {
    select(vec!["flannel.1", "flannel-v6.1", "eth0", "cni0"]).prop_map(name)
}

fn link() -> impl Strategy<Value = ObservedLink> {
    let kind = (1u32..3, select(vec!["192.168.7.1", "2001:db8:7::1"]), any::<bool>()).prop_map(
        |(vni, local, learning)| {
            let underlay = name("eth0");
            let vxlan = VxlanSpec { vni, underlay, local: ip(local), port: 8472, learning, gbp: false };
            LinkKind::Vxlan(vxlan)
        },
    );
    let kind = proptest::option::weighted(0.8, kind);
    let mtu = select(vec![1450u32, 1430, 1400]);
    let checksum = select(vec![None, Some(true), Some(false)]);
    (1u32..99, 1u8..3, mtu, proptest::bool::weighted(0.8), kind, checksum).prop_map(
        |(index, m, mtu, up, kind, tx_checksum)| ObservedLink {
            index,
            mac: Some(mac(m)),
            mtu,
            up,
            kind,
            tx_checksum,
        },
    )
}

fn address() -> impl Strategy<Value = IpNetwork> {
    let pool = ["10.5.1.0/32", "10.5.2.0/32", "10.5.1.0/24", "192.168.7.1/24", "172.16.0.1/16"];
    let pool6 = ["fd00:5:0:1::/128", "fd00:5:0:2::/128", "2001:db8:7::1/64", "fe80::1/64"];
    select([&pool[..], &pool6[..]].concat()).prop_map(net)
}

fn gateway() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (2u8..9).prop_map(|n| ip(&format!("10.5.{n}.0"))),
        (2u8..9).prop_map(|n| ip(&format!("192.168.7.{n}"))),
        (2u8..9).prop_map(|n| ip(&format!("fd00:5:0:{n:x}::"))),
        (2u8..9).prop_map(|n| ip(&format!("2001:db8:7::{n:x}"))),
    ]
}

fn nexthop() -> impl Strategy<Value = Nexthop> {
    (dev(), gateway()).prop_map(|(dev, via)| Nexthop {
        dev,
        via,
        onlink: dev.as_str().starts_with("flannel"),
    })
}

fn nexthop_id() -> impl Strategy<Value = u32> {
    let first = *NEXTHOP_IDS.start();
    select(vec![7, first, first + 1, first + 2, first + 5])
}

fn dst() -> impl Strategy<Value = IpNetwork> {
    prop_oneof![
        4 => (2u8..9).prop_map(|n| net(&format!("10.5.{n}.0/24"))),
        4 => (2u8..9).prop_map(|n| net(&format!("fd00:5:0:{n:x}::/64"))),
        1 => select(vec!["0.0.0.0/0", "172.16.0.0/12", "::/0", "10.5.0.0/16"]).prop_map(net),
    ]
}

fn protocol() -> impl Strategy<Value = u8> {
    select(vec![KERNEL_PROTOCOL, BOOT_PROTOCOL, ROUTE_PROTOCOL, ROUTE_PROTOCOL, FOREIGN_PROTOCOL])
}
