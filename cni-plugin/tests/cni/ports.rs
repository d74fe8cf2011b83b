//! What a container's port of the bridge lets through.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::json;

use crate::node::{Node, V4, ips, run};

#[test]
fn a_spoofed_mac_is_dropped_and_the_rules_go_with_the_container() {
    let mut node = Node::new("cni-spoof", V4);
    let pods = ["a", "b", "free"].map(|name| node.pod(name));
    node.conf["delegate"]["macspoofchk"] = json!(true);
    let a = node.add("a", &pods[0]).result();
    let b = ips(&node.add("b", &pods[1]).result())[0];
    node.conf["delegate"]["macspoofchk"] = json!(false);
    node.add("free", &pods[2]).result();

    let mac = a["interfaces"][2]["mac"].as_str().unwrap();
    for (pod, mac, lost) in [
        (&pods[0], mac, 0),
        (&pods[0], "0e:00:00:00:00:66", 2),
        (&pods[0], mac, 0),
        (&pods[2], "0e:00:00:00:00:67", 0),
    ] {
        pod.ip_batch(&[format!("link set eth0 address {mac}")]).unwrap();
        // The other learns the MAC anew.
        pods[1].ip_batch(&["neigh flush all"]).unwrap();
        assert_eq!(pod.ping(b, 2).unwrap().lost(), lost, "{mac}");
    }
    let rules = || run(node.host.command("nft").args(["list", "table", "bridge", "nat"]));
    let chain = "chain cni-br-iface-a-eth0-mac {";
    assert!(rules().contains(chain) && rules().contains("comment \"macspoofchk-a-eth0\""), "{}", rules());
    node.conf["delegate"]["macspoofchk"] = json!(true);
    // Whatever is left to go by.
    pods[0].remove().unwrap();
    node.call("DEL", "a", "eth0", None, None).result();
    assert!(!rules().contains("-a-eth0") && rules().contains("-b-eth0"), "{}", rules());
    node.del("b", &pods[1]).result();
    node.del("free", &pods[2]).result();
    assert!(!rules().contains("cni-br-iface"), "{}", rules());
}

#[test]
fn isolated_ports_reach_the_host_and_not_each_other() {
    let mut node = Node::new("cni-isolated", V4);
    node.conf["delegate"]["portIsolation"] = json!(true);
    let pods = ["a", "b"].map(|name| node.pod(name));
    node.add("a", &pods[0]).result();
    let b = ips(&node.add("b", &pods[1]).result())[0];
    assert_eq!(pods[0].ping(b, 2).unwrap().lost(), 2);
    assert_eq!(pods[0].ping("10.5.17.1".parse().unwrap(), 2).unwrap().lost(), 0);
}

#[test]
fn a_disabled_interface_is_left_down_and_without_addresses() {
    let mut node = Node::new("cni-disabled", V4);
    node.plugin = node.host.dir().join("bridge");
    symlink(env!("CARGO_BIN_EXE_weft-cni"), &node.plugin).unwrap();
    node.conf = json!({ "cniVersion": "1.0.0", "name": "l2", "type": "bridge", "bridge": "br7",
        "disableContainerInterface": true });
    let pod = node.pod("a");
    let result = node.add("a", &pod).result();
    let link = &pod.ip_json("addr show eth0").unwrap()[0];
    assert_eq!((&link["operstate"], &link["addr_info"]), (&json!("DOWN"), &json!([])));
    assert_eq!(result["interfaces"].as_array().unwrap().len(), 3);
    assert_eq!(result.get("ips"), None);
    node.conf["disableContainerInterface"] = json!(false);
    node.del("a", &pod).result();
    node.add("a", &pod).result();
    let link = &pod.ip_json("addr show eth0").unwrap()[0];
    assert_eq!(
        (&link["operstate"], &node.host.ip_json("addr show br7").unwrap()[0]["operstate"]),
        (&json!("UP"), &json!("UP"))
    );
    node.del("a", &pod).result();
    assert_eq!(node.veths(), Vec::<String>::new());
}

/// Also where the bridge was there before, up, and nobody asks for IPv6.
#[test]
fn router_advertisements_of_containers_are_not_believed() {
    let node = Node::new("cni-ra", V4);
    node.host.ip_batch(&["link add cni0 type bridge", "link set cni0 up"]).unwrap();
    let accept_ra = |link: &str| {
        let path = format!("/proc/sys/net/ipv6/conf/{link}/accept_ra");
        node.host.enter(|| fs::read_to_string(path)).unwrap().unwrap().trim().to_owned()
    };
    assert_eq!(accept_ra("cni0"), "1");
    let pod = node.pod("a");
    let result = node.add("a", &pod).result();
    for link in ["cni0", result["interfaces"][1]["name"].as_str().unwrap()] {
        assert_eq!(accept_ra(link), "0", "{link}");
    }
    node.del("a", &pod).result();
}
