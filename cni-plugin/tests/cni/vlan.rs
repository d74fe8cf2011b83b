use netns_harness::Netns;
use serde_json::{Value, json};

use crate::node::{Node, V4, ips};
use crate::uml::with_vlans;

#[test]
fn containers_talk_in_their_own_vlan_only() {
    with_vlans("vlan::containers_talk_in_their_own_vlan_only", None, || {
        let mut node = Node::new("cni-vlan", V4);
        let mut attach = |name: &str, delegate: Value| {
            node.conf["delegate"] = delegate;
            let pod = node.pod(name);
            let result = node.add(name, &pod).result();
            (pod, ips(&result)[0], result["interfaces"][1]["name"].as_str().unwrap().to_owned())
        };
        let layer2 = |fields: Value| {
            let mut delegate = json!({ "isGateway": false });
            delegate.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            delegate
        };
        let (a, ip_a, port_a) = attach("a", layer2(json!({ "vlan": 100 })));
        let (b, ip_b, _) = attach("b", layer2(json!({ "vlan": 100, "preserveDefaultVlan": true })));
        let (c, ip_c, _) = attach("c", layer2(json!({ "vlan": 200 })));
        let trunk = json!([{ "minID": 99, "maxID": 101 }, { "id": 200 }]);
        let (t, _, port_t) = attach("t", layer2(json!({ "vlanTrunk": trunk })));
        let talks = |from: &Netns, to| from.ping(to, 2).unwrap().lost() == 0;

        assert!(talks(&a, ip_b) && talks(&b, ip_a));
        assert!(!talks(&a, ip_c) && !talks(&c, ip_b) && !talks(&t, ip_a) && !talks(&t, ip_c));

        // The trunk's frames carry tags: by them it reaches both VLANs.
        for (vlan, own, other, foreign) in [(100, "10.9.1.1/24", &a, &c), (200, "10.9.2.1/24", &c, &a)] {
            let link = format!("eth0.{vlan}");
            t.ip_batch(&[
                format!("link add link eth0 name {link} type vlan id {vlan}"),
                format!("addr add {own} dev {link}"),
                format!("link set {link} up"),
            ])
            .unwrap();
            let peer = own.replace(".1/24", ".2/24");
            other.ip_batch(&[format!("addr add {peer} dev eth0")]).unwrap();
            assert!(talks(&t, peer.trim_end_matches("/24").parse().unwrap()), "{vlan}");
            foreign.ip_batch(&[format!("addr add {} dev eth0", own.replace(".1/24", ".3/24"))]).unwrap();
            assert!(!talks(&t, own.replace(".1/24", ".3").parse().unwrap()), "{vlan}");
        }
        assert_eq!(vlans(&node, &port_a), "100u");
        assert_eq!(vlans(&node, &port_t), "1u 99 100 101 200");
    });
}

#[test]
fn the_gateway_of_a_vlan_is_an_interface_in_it() {
    with_vlans("vlan::the_gateway_of_a_vlan_is_an_interface_in_it", None, || {
        let mut node = Node::new("cni-vgw", V4);
        node.conf["delegate"] = json!({ "vlan": 100, "isDefaultGateway": true, "macspoofchk": false });
        let pods = ["a", "b"].map(|name| node.pod(name));
        let result = node.add("a", &pods[0]).result();
        let interfaces = result["interfaces"].as_array().unwrap();
        let gateway = &node.host.ip_json("addr show cni0.100").unwrap()[0];
        assert_eq!(interfaces[3], json!({ "name": "cni0.100", "mac": gateway["address"] }));
        assert_eq!(interfaces.len(), 4);
        assert_eq!(gateway["addr_info"][0]["local"], "10.5.17.1");
        let bridge = node.host.ip_json("addr show cni0").unwrap().to_string();
        assert!(!bridge.contains("10.5.17.1"), "{bridge}");
        assert_eq!(pods[0].ping("10.5.17.1".parse().unwrap(), 2).unwrap().lost(), 0);
        let sysctl = "cat /proc/sys/net/ipv6/conf/cni0.100/accept_ra";
        assert_eq!(node.host.run("sh", ["-c", sysctl]).unwrap().trim(), "0");
        let check = node.call("CHECK", "a", "eth0", Some(&pods[0].path()), Some(&result));
        assert!(check.ok, "{check:?}");

        // Half made by a crash: completed.
        node.host.ip_batch(&["link del cni0.100"]).unwrap();
        let result = node.add("b", &pods[1]).result();
        let port = result["interfaces"][3]["name"].as_str().unwrap();
        let ports = node.host.bridge_json("vlan show").unwrap();
        let of_gateway = ports.as_array().unwrap().iter().filter(|p| p["ifname"] != "cni0").count();
        assert_eq!((port, of_gateway), ("cni0.100", 3), "{ports}");
        assert_eq!(pods[1].ping("10.5.17.1".parse().unwrap(), 2).unwrap().lost(), 0);
        for (id, pod) in ["a", "b"].into_iter().zip(&pods) {
            node.del(id, pod).result();
        }
        let left: Vec<_> = node.veths();
        assert_eq!(left.len(), 1, "the gateway's port alone: {left:?}");
    });
}

#[test]
fn a_bridge_that_mixes_all_vlans_is_refused() {
    with_vlans("vlan::a_bridge_that_mixes_all_vlans_is_refused", None, || {
        let mut node = Node::new("cni-vmix", V4);
        node.host.ip_batch(&["link add cni0 type bridge"]).unwrap();
        node.conf["delegate"]["vlan"] = json!(100);
        let (code, text) = node.add("a", &node.pod("a")).error();
        assert!(code == 7 && text.contains("ip link set cni0 type bridge vlan_filtering 1"), "{text}");
        node.assert_empty();
    });
}

/// `u` is untagged, and the PVID.
fn vlans(node: &Node, port: &str) -> String {
    let shown = node.host.bridge_json(&format!("vlan show dev {port}")).unwrap();
    let vlan = |vlan: &Value| {
        let native = vlan["flags"] == json!(["PVID", "Egress Untagged"]);
        format!("{}{}", vlan["vlan"], if native { "u" } else { "" })
    };
    shown[0]["vlans"].as_array().unwrap().iter().map(vlan).collect::<Vec<_>>().join(" ")
}
