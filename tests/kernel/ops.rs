//! Each op, applied and read back.

use serde_json::{Value, json};
use weft::desired::{LinkKind, LinkSpec, Nexthop, Op, ROUTE_PROTOCOL, VxlanSpec};
use weft::kernel::{Kernel, Nexthops, Rtnl};
use weft::model::{IfName, Mac};

use crate::fabric::{Fabric, apply};

#[test]
fn a_vxlan_link_is_made_changed_and_removed() {
    let fabric = Fabric::new("kernel-link", "vxlan", "", 0);
    let mut kernel = fabric.kernel(Nexthops::WherePossible);
    let mut spec = tunnel_spec();

    apply(&mut kernel, &[Op::AddLink { name: tunnel(), spec: Box::new(spec.clone()) }]);
    let made = &fabric.ip("-d link show dev flannel.1")[0];
    let data = &made["linkinfo"]["info_data"];
    assert_eq!(made["address"], "0e:00:00:00:00:01");
    assert_eq!(made["mtu"], 1450);
    assert!(made["flags"].as_array().unwrap().contains(&json!("UP")));
    assert_eq!(
        [&data["id"], &data["port"], &data["learning"], &data["ageing"]],
        [&json!(1), &json!(8472), &json!(false), &json!(300)]
    );
    assert_eq!(data["link"], "eth0");
    assert_eq!(data["local"], json!(fabric.host.ip4()));
    assert_eq!(ethtool(&fabric), "on");

    spec.mac = Mac([0x0e, 0, 0, 0, 0, 2]);
    spec.mtu = 1400;
    spec.tx_checksum = Some(false);
    let LinkKind::Vxlan(vxlan) = &mut spec.kind;
    vxlan.learning = true;
    fabric.by_hand("link set flannel.1 down");
    apply(&mut kernel, &[Op::SetLink { name: tunnel(), spec: Box::new(spec.clone()) }]);
    let set = &fabric.ip("-d link show dev flannel.1")[0];
    assert_eq!((&set["address"], &set["mtu"]), (&json!("0e:00:00:00:00:02"), &json!(1400)));
    assert_eq!(set["ifindex"], made["ifindex"], "changed, not made anew");
    assert_eq!(set["linkinfo"]["info_data"]["learning"], true);
    assert!(set["flags"].as_array().unwrap().contains(&json!("UP")));
    assert_eq!(ethtool(&fabric), "off");
    let seen = &fabric.observe(&mut kernel).links[&tunnel()];
    assert_eq!(seen.kind, Some(spec.kind));
    assert_eq!((seen.mac, seen.mtu, seen.up), (Some(spec.mac), spec.mtu, true));
    assert_eq!(seen.tx_checksum, Some(false));

    apply(&mut kernel, &[Op::DelLink { name: tunnel() }, Op::DelLink { name: tunnel() }]);
    assert!(fabric.host.ip_json("link show dev flannel.1").is_err());
}

#[test]
fn gbp_and_ipv6_tunnels_are_seen_as_they_were_made() {
    let fabric = Fabric::new("kernel-gbp", "vxlan", "", 0);
    let mut kernel = fabric.kernel(Nexthops::WherePossible);
    let mut spec = tunnel_spec();
    let LinkKind::Vxlan(vxlan) = &mut spec.kind;
    (vxlan.local, vxlan.gbp, vxlan.port) = (fabric.host.ip6(), true, 4789);

    apply(&mut kernel, &[Op::AddLink { name: tunnel(), spec: Box::new(spec.clone()) }]);

    let data = &fabric.ip("-d link show dev flannel.1")[0]["linkinfo"]["info_data"];
    assert_eq!((&data["gbp"], &data["port"]), (&json!(true), &json!(4789)));
    assert_eq!(data["local6"], json!(fabric.host.ip6()));
    assert_eq!(fabric.observe(&mut kernel).links[&tunnel()].kind, Some(spec.kind));
}

#[test]
fn addresses_neighbours_fdb_and_sysctls_come_and_go() {
    let (fabric, mut kernel) = with_tunnel("kernel-table");
    let dev = tunnel();
    let mac = Mac([0x0e, 0, 0, 0, 1, 1]);
    let sysctl = "net/ipv6/conf/flannel.1/accept_ra".to_owned();
    let addresses = ["10.64.0.0/32", "fd00:64::/128"].map(|a| a.parse().unwrap());
    let neighbours = ["10.64.1.0", "fd00:64:0:1::"].map(|ip| ip.parse().unwrap());
    let vteps = ["172.16.0.1", "172.16.0.2"].map(|ip| ip.parse().unwrap());

    let add = [
        addresses.map(|addr| Op::AddAddress { dev, addr }).to_vec(),
        vec![Op::SetSysctl { key: sysctl.clone(), value: "0".into() }],
        neighbours.map(|ip| Op::SetNeighbour { dev, ip, mac }).to_vec(),
        vteps.map(|dst| Op::SetFdb { dev, mac, dst }).to_vec(),
    ]
    .concat();
    apply(&mut kernel, &add);
    apply(&mut kernel, &add); // nothing is an error the second time

    let addr = fabric.ip("addr show dev flannel.1");
    let local: Vec<_> = list(&addr[0]["addr_info"]).iter().map(|a| (&a["local"], &a["prefixlen"])).collect();
    assert!(local.contains(&(&json!("10.64.0.0"), &json!(32))), "{local:?}");
    assert!(local.contains(&(&json!("fd00:64::"), &json!(128))), "{local:?}");
    for (family, ip) in [("-4", "10.64.1.0"), ("-6", "fd00:64:0:1::")] {
        let neighbours = fabric.ip(&format!("{family} neigh show dev flannel.1"));
        let ours = list(&neighbours).iter().find(|n| n["dst"] == ip).unwrap();
        assert_eq!((&ours["lladdr"], &ours["state"]), (&json!(mac), &json!(["PERMANENT"])));
    }
    assert_eq!(fdb(&fabric, mac), ["172.16.0.2"], "a unicast MAC has one destination, the last set");
    assert_eq!(fabric.host.run("sysctl", ["-n", "net.ipv6.conf.flannel/1.accept_ra"]).unwrap().trim(), "0");
    let mut scope = fabric.scope();
    scope.sysctls.insert(sysctl.clone());
    let seen = kernel.observe(&scope).unwrap();
    assert_eq!(seen.sysctls[&sysctl], "0");
    assert_eq!(seen.neighbours.len(), 2);
    assert!(addresses.iter().all(|addr| seen.addresses.contains(&(dev, *addr))));
    assert_eq!(seen.fdb.len(), 1);

    let del = [
        addresses.map(|addr| Op::DelAddress { dev, addr }).to_vec(),
        neighbours.map(|ip| Op::DelNeighbour { dev, ip }).to_vec(),
        vteps.map(|dst| Op::DelFdb { dev, mac, dst }).to_vec(),
    ]
    .concat();
    apply(&mut kernel, &del);
    apply(&mut kernel, &del); // gone is gone
    let seen = fabric.observe(&mut kernel);
    assert_eq!((seen.neighbours.len(), seen.fdb.len()), (0, 0));
    assert!(fdb(&fabric, mac).is_empty());
}

#[test]
fn routes_go_by_nexthop_objects_or_without() {
    let (fabric, mut kernel) = with_tunnel("kernel-route");
    for (f, dst, via) in [("-4", "10.64.1.0/24", "10.64.1.0"), ("-6", "fd00:64:0:1::/64", "fd00:64:0:1::")] {
        let (dst, id) = (dst.parse().unwrap(), 0x5745_0000);
        let nexthop = Nexthop { dev: tunnel(), via: via.parse().unwrap(), onlink: true };
        let protocol = ROUTE_PROTOCOL.to_string();

        apply(&mut kernel, &[Op::SetNexthop { id, nexthop }, Op::SetRoute { dst, nexthop, id: Some(id) }]);
        let object = fabric.ip("-d nexthop show");
        assert_eq!((&object[0]["id"], &object[0]["gateway"]), (&json!(id), &json!(via)));
        assert_eq!((&object[0]["protocol"], &object[0]["flags"]), (&json!(protocol), &json!(["onlink"])));
        let route = &fabric.ip(&format!("{f} route show {dst}"))[0];
        assert_eq!((&route["nhid"], &route["protocol"]), (&json!(id), &json!(protocol)));
        let seen = fabric.observe(&mut kernel);
        assert!(seen.nexthop_objects);
        assert_eq!(seen.nexthops[&id].nexthop, Some(nexthop));
        assert_eq!(seen.target(&seen.routes[&dst]), Some(nexthop));

        // The same route without the object, in one step.
        apply(&mut kernel, &[Op::SetRoute { dst, nexthop, id: None }, Op::DelNexthop { id }]);
        let route = &fabric.ip(&format!("{f} route show {dst}"))[0];
        assert_eq!((&route["nhid"], &route["gateway"]), (&Value::Null, &json!(via)));
        assert!(list(&route["flags"]).contains(&json!("onlink")));
        let seen = fabric.observe(&mut kernel);
        assert_eq!((seen.routes[&dst].nexthop, seen.routes[&dst].nexthop_id), (Some(nexthop), 0));

        // Another's route to the same place stays: other metric, then other protocol.
        fabric.by_hand(&format!("{f} route add {dst} dev flannel.1 metric 77 proto static"));
        let del = [Op::DelRoute { dst, protocol: ROUTE_PROTOCOL }];
        apply(&mut kernel, &del);
        apply(&mut kernel, &del);
        assert_eq!(fabric.ip(&format!("{f} route show {dst}"))[0]["metric"], 77);
    }
}

#[test]
fn an_error_names_the_object_the_cause_and_the_way_out() {
    let (fabric, mut kernel) = with_tunnel("kernel-error");
    let missing: IfName = "gone0".parse().unwrap();
    let good = Op::SetNeighbour { dev: tunnel(), ip: "10.64.1.0".parse().unwrap(), mac: Mac([2; 6]) };
    let nexthop = |dev| Nexthop { dev, via: "10.64.2.0".parse().unwrap(), onlink: false };

    let results = kernel.apply(&[
        Op::SetRoute { dst: "10.64.2.0/24".parse().unwrap(), nexthop: nexthop(missing), id: None },
        Op::SetRoute { dst: "10.64.2.0/24".parse().unwrap(), nexthop: nexthop(tunnel()), id: None },
        Op::SetSysctl { key: "net/../kernel/hostname".into(), value: "x".into() },
        good,
    ]);

    let texts: Vec<_> = results.iter().map(|r| r.as_ref().map_err(ToString::to_string)).collect();
    assert_eq!(
        texts,
        [
            Err("route 10.64.2.0/24 via 10.64.2.0 dev gone0: ENODEV: the link is gone".into()),
            Err("route 10.64.2.0/24 via 10.64.2.0 dev flannel.1: ENETUNREACH: Nexthop has invalid gateway: \
                 the gateway is not on that link: is it up, with an address?"
                .into()),
            Err("sysctl net/../kernel/hostname=x: EINVAL".into()),
            Ok(&()),
        ]
    );
    assert_eq!(list(&fabric.ip("neigh show dev flannel.1 nud permanent")).len(), 1, "the good one was done");
}

fn with_tunnel(label: &str) -> (Fabric, Rtnl) {
    let fabric = Fabric::new(label, "vxlan", "", 0);
    let mut kernel = fabric.kernel(Nexthops::WherePossible);
    apply(&mut kernel, &[Op::AddLink { name: tunnel(), spec: Box::new(tunnel_spec()) }]);
    (fabric, kernel)
}

fn tunnel() -> IfName {
    "flannel.1".parse().unwrap()
}

fn tunnel_spec() -> LinkSpec {
    LinkSpec {
        mac: Mac([0x0e, 0, 0, 0, 0, 1]),
        mtu: 1450,
        kind: LinkKind::Vxlan(VxlanSpec {
            vni: 1,
            underlay: "eth0".parse().unwrap(),
            local: "192.168.77.1".parse().unwrap(),
            port: 8472,
            learning: false,
            gbp: false,
        }),
        tx_checksum: None,
    }
}

fn ethtool(fabric: &Fabric) -> String {
    let text = fabric.host.run("ethtool", ["-k", "flannel.1"]).unwrap();
    let line = text.lines().find(|line| line.contains("tx-checksum-ip-generic")).unwrap();
    line.split_whitespace().nth(1).unwrap().to_owned()
}

fn fdb(fabric: &Fabric, mac: Mac) -> Vec<String> {
    let entries = fabric.bridge("fdb show dev flannel.1");
    let of_mac = list(&entries).iter().filter(|entry| entry["mac"] == json!(mac));
    of_mac.map(|entry| entry["dst"].as_str().unwrap().to_owned()).collect()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}
