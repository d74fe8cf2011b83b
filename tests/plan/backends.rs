//! What backends promise of the state they want.

use proptest::prelude::*;
use proptest::sample::select;
use serde_json::value::RawValue;
use weft::backends::{Node, Peers, Rejected, from_config};
use weft::model::*;

use crate::worlds::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn dual_stack_is_the_sum_of_two_single_stacks(
        kind in select(vec!["vxlan", "host-gw"]), direct: bool, seed in peers("vxlan", Family::BOTH.to_vec()),
    ) {
        let options = format!(r#","DirectRouting":{direct}"#);
        let peers = of_kind(kind, &seed);
        let desired = |families: &[Family], peers: &Peers| {
            let backend = backend(kind, families, &options, false);
            backend.desired(&node(), &identity(), &key(families, 1), peers).0
        };
        let dual = desired(&Family::BOTH, &peers);

        for family in Family::BOTH {
            prop_assert_eq!(dual.only(family), desired(&[family], &project(&peers, family)));
        }
    }

    #[test]
    fn the_order_of_events_does_not_matter(
        world in world(), gone in peers("vxlan", Family::BOTH.to_vec()), backwards: bool,
    ) {
        // Leases that come and go again, and the lasting ones in either order.
        let mut seen: Peers = gone;
        let mut lasting: Vec<_> = world.peers.iter().map(|(key, attrs)| (*key, attrs.clone())).collect();
        if backwards {
            lasting.reverse();
        }
        seen.extend(lasting);
        seen.retain(|key, _| world.peers.contains_key(key));

        prop_assert_eq!(world.with_peers(&seen), world.desired());
    }

    #[test]
    fn a_broken_peer_changes_no_other(
        seed in peers("vxlan", Family::BOTH.to_vec()), kind in select(vec!["vxlan", "host-gw"]),
        n in 2u8..9, fault in 0..FAULTS.len(),
    ) {
        let mut world = World {
            backend: backend(kind, &Family::BOTH, "", false), node: node(), id: identity(),
            own: key(&Family::BOTH, 1), peers: of_kind(kind, &seed),
        };
        let Some(broken) = (FAULTS[fault].1)(kind, n) else { return Ok(()) };
        // One that takes another's key is that other's new lease.
        prop_assume!(!world.peers.contains_key(&broken.0));
        let before = world.backend.desired(&world.node, &world.id, &world.own, &world.peers);
        world.peers.insert(broken.0, broken.1);

        let after = world.backend.desired(&world.node, &world.id, &world.own, &world.peers);

        prop_assert_eq!(after.0, before.0, "{}", FAULTS[fault].0);
        prop_assert!(after.1.iter().any(|r| r.key == broken.0), "{} was not rejected", FAULTS[fault].0);
        let others: Vec<&Rejected> = after.1.iter().filter(|r| r.key != broken.0).collect();
        prop_assert_eq!(others, before.1.iter().collect::<Vec<_>>());
    }
}

type Broken = fn(&'static str, u8) -> Option<(SubnetKey, LeaseAttrs)>;

/// Leases that are broken in both families; `None` where a kind has no such data.
const FAULTS: &[(&str, Broken)] = &[
    ("multicast PublicIP", |kind, n| with_ip(kind, n, "224.0.0.1", "ff02::1")),
    ("loopback PublicIP", |kind, n| with_ip(kind, n, "127.0.0.1", "::1")),
    ("unspecified PublicIP", |kind, n| with_ip(kind, n, "0.0.0.0", "::")),
    ("our PublicIP", |kind, n| with_ip(kind, n, "192.168.7.1", "2001:db8:7::1")),
    ("broadcast and link-local PublicIP", |kind, n| with_ip(kind, n, "255.255.255.255", "fe80::2")),
    ("PublicIP inside our own subnet", |kind, n| with_ip(kind, n, "10.5.1.9", "fd00:5:0:1::9")),
    ("no PublicIP", |kind, n| {
        let (key, attrs) = good(kind, n);
        Some((key, LeaseAttrs { public_ip: PerFamily::default(), ..attrs }))
    }),
    ("our own subnet", |kind, n| Some((subnet("10.5.1.128/25", "fd00:5:0:1:8000::/65"), good(kind, n).1))),
    ("the whole network", |kind, n| Some((subnet("10.5.0.0/16", "fd00:5::/48"), good(kind, n).1))),
    ("a subnet outside", |kind, n| Some((subnet("10.6.1.0/24", "fd00:6:0:1::/64"), good(kind, n).1))),
    ("a subnet around the network", |kind, n| Some((subnet("10.0.0.0/8", "fd00::/16"), good(kind, n).1))),
    ("no data", |kind, n| {
        let (key, attrs) = good(kind, n);
        (kind == "vxlan").then_some((key, LeaseAttrs { backend_data: PerFamily::default(), ..attrs }))
    }),
    ("null data", |kind, n| with_data(kind, n, "null")),
    ("an array for data", |kind, n| with_data(kind, n, "[1]")),
    ("another VNI", |kind, n| with_data(kind, n, r#"{"VNI":2,"VtepMAC":"0e:00:00:00:00:63"}"#)),
    ("no VNI", |kind, n| with_data(kind, n, r#"{"VtepMAC":"0e:00:00:00:00:63"}"#)),
    ("a multicast MAC", |kind, n| with_data(kind, n, r#"{"VNI":1,"VtepMAC":"01:00:5e:00:00:01"}"#)),
    ("a zero MAC", |kind, n| with_data(kind, n, r#"{"VNI":1,"VtepMAC":"00:00:00:00:00:00"}"#)),
    ("our own MAC", |kind, n| with_data(kind, n, r#"{"VNI":1,"VtepMAC":"0e:00:00:00:00:01"}"#)),
    ("a MAC that is none", |kind, n| with_data(kind, n, r#"{"VNI":1,"VtepMAC":"0e:00"}"#)),
    ("a number for a MAC", |kind, n| with_data(kind, n, r#"{"VNI":1,"VtepMAC":7}"#)),
    ("a peer off the link", |kind, n| {
        (kind == "host-gw").then(|| (key(&Family::BOTH, n), lease(kind, &Family::BOTH, 9, mac(9), true)))
    }),
];

#[test]
fn a_fault_in_one_family_leaves_the_other_in_place() {
    let backend = backend("vxlan", &Family::BOTH, "", false);
    let mut attrs = lease("vxlan", &Family::BOTH, 2, mac(2), false);
    let whole: Peers = [(key(&Family::BOTH, 2), attrs.clone())].into();
    attrs.backend_data.v4 = Some(raw("{}"));
    let half: Peers = [(key(&Family::BOTH, 2), attrs)].into();
    let desired = |peers| backend.desired(&node(), &identity(), &key(&Family::BOTH, 1), peers);

    let (want, rejected) = desired(&half);

    assert_eq!(want.only(Family::V6), desired(&whole).0.only(Family::V6));
    assert_eq!(want.only(Family::V4), desired(&Peers::new()).0.only(Family::V4));
    let text: Vec<_> = rejected.iter().map(Rejected::to_string).collect();
    assert_eq!(text, ["lease 10.5.2.0-24&fd00:5:0:2::-64: BackendData: VNI is missing"]);
}

#[test]
fn of_two_nodes_with_one_mac_the_lower_subnet_is_served() {
    let families = [Family::V4];
    let backend = backend("vxlan", &families, "", false);
    let twin = |host| lease("vxlan", &families, host, mac(7), false);
    let peers: Peers = [(key(&families, 4), twin(4)), (key(&families, 3), twin(3))].into();

    let (want, rejected) = backend.desired(&node(), &identity(), &key(&families, 1), &peers);

    assert_eq!(want.routes.keys().copied().collect::<Vec<_>>(), [net("10.5.3.0/24")]);
    let reason = "BackendData: VtepMAC 0e:00:00:00:00:07 is that of the node at 192.168.7.3";
    assert_eq!(rejected, [Rejected { key: key(&families, 4), reason: reason.to_owned() }]);
}

#[test]
fn a_lease_of_a_wide_prefix_pushes_out_none_inside_it() {
    let families = [Family::V4];
    let backend = backend("vxlan", &families, "", false);
    let wide = SubnetKey::new(PerFamily { v4: Some(net("10.5.4.0/22")), v6: None }).unwrap();
    let at = |host| lease("vxlan", &families, host, mac(host), false);
    let peers: Peers = [(wide, at(9)), (key(&families, 5), at(5)), (key(&families, 7), at(7))].into();

    let (want, rejected) = backend.desired(&node(), &identity(), &key(&families, 1), &peers);

    assert_eq!(want.routes.keys().copied().collect::<Vec<_>>(), [net("10.5.5.0/24"), net("10.5.7.0/24")]);
    let reason = "subnet 10.5.4.0/22 overlaps another lease's, which begins at 10.5.5.0";
    assert_eq!(rejected, [Rejected { key: wide, reason: reason.to_owned() }]);
}

#[test]
fn two_leases_of_one_node_are_both_served() {
    let families = [Family::V4];
    let backend = backend("vxlan", &families, "", false);
    let attrs = lease("vxlan", &families, 3, mac(7), false);
    let peers: Peers = [(key(&families, 4), attrs.clone()), (key(&families, 3), attrs)].into();

    let (want, rejected) = backend.desired(&node(), &identity(), &key(&families, 1), &peers);

    assert_eq!((want.routes.len(), want.fdb.len(), rejected), (2, 1, vec![]));
}

#[test]
fn peers_of_other_backends_are_passed_over_without_a_word() {
    let world_peers: Peers =
        [(key(&[Family::V4], 2), lease("wireguard", &[Family::V4], 2, mac(2), false))].into();
    let backend = backend("vxlan", &[Family::V4], "", false);

    let (want, rejected) = backend.desired(&node(), &identity(), &key(&[Family::V4], 1), &world_peers);

    assert_eq!((want.routes.len(), rejected), (0, vec![]));
}

#[test]
fn direct_routing_takes_no_tunnel_to_peers_on_the_link() {
    let families = [Family::V4];
    let backend = backend("vxlan", &families, r#","directrouting":true"#, false);
    let near = (key(&families, 2), lease("vxlan", &families, 2, mac(2), false));
    let far = (key(&families, 3), lease("vxlan", &families, 3, mac(3), true));

    let (want, _) = backend.desired(&node(), &identity(), &key(&families, 1), &[near, far].into());

    let routes: Vec<_> = want.routes.iter().map(|(dst, nexthop)| format!("{dst} {nexthop}")).collect();
    assert_eq!(
        routes,
        ["10.5.2.0/24 via 192.168.7.2 dev eth0", "10.5.3.0/24 via 10.5.3.0 dev flannel.1 onlink"]
    );
    assert_eq!((want.neighbours.len(), want.fdb.len()), (1, 1));
}

#[test]
fn a_vxlan_node_publishes_what_flannel_does() {
    let attrs = backend("vxlan", &Family::BOTH, "", false).attrs(&node(), &identity());

    let data = r#"{"VNI":1,"VtepMAC":"0e:00:00:00:00:01"}"#;
    let expected = format!(
        r#"{{"PublicIP":"192.168.7.1","PublicIPv6":"2001:db8:7::1","BackendType":"vxlan","BackendData":{data},"BackendV6Data":{data}}}"#
    );
    assert_eq!(attrs.to_json(), expected);
    assert_eq!(backend("vxlan", &Family::BOTH, "", false).published_identity(&attrs), identity());
}

#[test]
fn the_mtu_leaves_room_for_the_underlays_own_header() {
    let mtu = |families: &[Family], options| backend("vxlan", families, options, false).mtu(&node());
    assert_eq!(mtu(&[Family::V4], ""), 1450);
    assert_eq!(mtu(&[Family::V6], ""), 1430);
    assert_eq!(mtu(&Family::BOTH, ""), 1430);
    assert_eq!(mtu(&[Family::V4], r#","MTU":1400"#), 1350);
    // The uplink is the limit, whatever the config says.
    assert_eq!(mtu(&[Family::V4], r#","MTU":9000"#), 1450);
    assert_eq!(backend("host-gw", &Family::BOTH, "", false).mtu(&node()), 1500);
}

#[test]
fn a_node_that_cannot_take_part_is_told_why() {
    let check = |kind, families: &[Family], options, node: &Node| {
        backend(kind, families, options, false).check(node).unwrap_err().to_string()
    };
    let no_v6 = Node { public_ip: node().public_ip.only(Family::V4), ..node() };
    let behind_nat = Node { public_ip: PerFamily { v4: Some(ip("203.0.113.5")), v6: None }, ..node() };

    assert_eq!(backend("vxlan", &Family::BOTH, "", false).check(&node()), Ok(()));
    assert_eq!(
        check("vxlan", &Family::BOTH, "", &no_v6),
        "PublicIPv6: none: expected an IPv6 address on eth0, as the network config enables IPv6"
    );
    assert_eq!(
        check("vxlan", &Family::BOTH, r#","MTU":1349"#, &node()),
        "MTU: 1349: expected 1350 or more on eth0 to carry IPv6 in VXLAN"
    );
    assert_eq!(
        check("host-gw", &[Family::V4], "", &behind_nat),
        "PublicIP: 203.0.113.5: expected eth0's own address, which is 192.168.7.1: host-gw does not work behind NAT"
    );
}

#[test]
fn a_wrong_option_is_named_with_its_value_and_what_is_accepted() {
    let error = |families: &[Family], options| {
        from_config(&config("vxlan", families, options), false).unwrap_err().to_string()
    };
    for (options, expected) in [
        (r#","VNI":16777216"#, "VNI: 16777216: expected a whole number from 0 to 16777215"),
        (r#","VNI":"1""#, r#"VNI: "1": expected a whole number from 0 to 4294967295"#),
        (r#","port":65536"#, "Port: 65536: expected a whole number from 0 to 65535"),
        (r#","GBP":1"#, "GBP: 1: expected true or false"),
    ] {
        assert_eq!(error(&[Family::V4], options), expected);
    }
    assert!(error(&[Family::V6], r#","VNI":10000"#).starts_with("VNI: 10000: expected "));
    let unknown = from_config(&config("geneve", &[Family::V4], ""), false).unwrap_err().to_string();
    assert_eq!(unknown, r#"Backend.Type: "geneve": expected vxlan or host-gw"#);
}

#[test]
fn options_are_taken_as_go_takes_them() {
    let options = r#","vni":7,"MacPrefix":"0E-2A","Name":"x","PORT":0,"Learning":true,"gbp":null"#;
    let backend = backend("vxlan", &[Family::V4], options, true);

    let (want, _) = backend.desired(&node(), &identity(), &key(&[Family::V4], 1), &Peers::new());

    let link = &want.links[&name("flannel.7")];
    let weft::desired::LinkKind::Vxlan(vxlan) = &link.kind;
    assert_eq!((vxlan.vni, vxlan.port, vxlan.learning, vxlan.gbp), (7, 8472, true, false));
    assert_eq!(link.tx_checksum, Some(false));
    assert!(want.sysctls.contains_key("net/ipv6/conf/flannel.7/accept_ra"));
}

fn of_kind(kind: &'static str, peers: &Peers) -> Peers {
    let host = |attrs: &LeaseAttrs| match attrs.public_ip.v4 {
        Some(std::net::IpAddr::V4(v4)) => (v4.octets()[3], v4.octets()[2] == 9),
        _ => (2, false),
    };
    let rebuilt = peers.iter().map(|(key, attrs)| match kind {
        "vxlan" => (*key, attrs.clone()),
        _ => (*key, lease(kind, &Family::BOTH, host(attrs).0, mac(2), host(attrs).1)),
    });
    rebuilt.collect()
}

fn project(peers: &Peers, family: Family) -> Peers {
    let one = |(key, attrs): (&SubnetKey, &LeaseAttrs)| {
        let nets = key.nets().filter(|(f, _)| *f == family).collect();
        let attrs = LeaseAttrs {
            public_ip: attrs.public_ip.only(family),
            backend_type: attrs.backend_type.clone(),
            backend_data: attrs.backend_data.clone().only(family),
        };
        (SubnetKey::new(nets).unwrap(), attrs)
    };
    peers.iter().map(one).collect()
}

fn good(kind: &str, n: u8) -> (SubnetKey, LeaseAttrs) {
    (key(&Family::BOTH, n), lease(kind, &Family::BOTH, 99, mac(99), false))
}

fn with_ip(kind: &str, n: u8, v4: &str, v6: &str) -> Option<(SubnetKey, LeaseAttrs)> {
    let (key, attrs) = good(kind, n);
    Some((key, LeaseAttrs { public_ip: PerFamily { v4: Some(ip(v4)), v6: Some(ip(v6)) }, ..attrs }))
}

fn with_data(kind: &str, n: u8, data: &str) -> Option<(SubnetKey, LeaseAttrs)> {
    let (key, attrs) = good(kind, n);
    let backend_data = PerFamily { v4: Some(raw(data)), v6: Some(raw(data)) };
    (kind == "vxlan").then_some((key, LeaseAttrs { backend_data, ..attrs }))
}

fn subnet(v4: &str, v6: &str) -> SubnetKey {
    SubnetKey::new(PerFamily { v4: Some(net(v4)), v6: Some(net(v6)) }).unwrap()
}

fn raw(json: &str) -> BackendData {
    RawValue::from_string(json.to_owned()).unwrap().into()
}
