use serde_json::{Value, json};

use crate::node::{DUAL, Node, V4, ips, names, run};

#[test]
fn containers_reach_each_other_and_the_gateway_in_both_families() {
    let node = Node::new("cni-dual", DUAL);
    let (a, b) = (node.pod("a"), node.pod("b"));
    let first = node.add("a", &a).result();
    let second = node.add("b", &b).result();
    for target in
        ips(&second).into_iter().chain(["10.5.17.1".parse().unwrap(), "fd00:5:0:11::1".parse().unwrap()])
    {
        assert_eq!(a.ping(target, 3).unwrap().lost(), 0, "{target}");
    }
    assert_eq!(first["ips"][0], json!({ "interface": 2, "address": "10.5.17.2/24", "gateway": "10.5.17.1" }));
    assert_eq!(
        first["ips"][1],
        json!({ "interface": 2, "address": "fd00:5:0:11::2/64", "gateway": "fd00:5:0:11::1" })
    );
    let check = node.call("CHECK", "a", "eth0", Some(&a.path()), Some(&first));
    assert!(check.ok && check.json.is_null(), "{check:?}");
    node.del("a", &a).result();
    node.del("b", &b).result();
    node.assert_empty();
    assert_eq!(names(&a.ip_json("link").unwrap()), ["lo"]);
}

#[test]
fn links_have_the_mtu_hairpin_mac_and_sysctls_that_bridge_gives_them() {
    let mut node = Node::new("cni-links", V4);
    node.conf["runtimeConfig"] = json!({ "mac": "0e:11:22:33:44:55" });
    node.args = "IgnoreUnknown=1;MAC=0e:00:00:00:00:09;K8S_POD_NAME=x".into();
    let pod = node.pod("a");
    let result = node.add("a", &pod).result();
    let veth = result["interfaces"][1]["name"].as_str().unwrap().to_owned();
    assert!(veth.len() == 15 && veth.starts_with("veth") && veth[4..].bytes().all(|b| b.is_ascii_hexdigit()));

    let bridge = &node.host.ip_json("-d link show cni0").unwrap()[0];
    let host = &node.host.ip_json(&format!("-d link show {veth}")).unwrap()[0];
    let inside = &pod.ip_json("link show eth0").unwrap()[0];
    assert_eq!((&bridge["mtu"], &host["mtu"], &inside["mtu"]), (&json!(1450), &json!(1450), &json!(1450)));
    assert_eq!(host["linkinfo"]["info_slave_data"]["hairpin"], json!(true));
    assert_eq!(host["linkinfo"]["info_slave_data"]["isolated"], json!(false));
    assert_eq!((&host["master"], &host["operstate"]), (&json!("cni0"), &json!("UP")));
    assert_eq!(inside["address"], "0e:11:22:33:44:55");
    let macs: Vec<_> = result["interfaces"].as_array().unwrap().iter().map(|i| &i["mac"]).collect();
    assert_eq!(macs, [&bridge["address"], &host["address"], &inside["address"]]);

    let sysctl = |netns: &netns_harness::Netns, key: String| {
        netns
            .enter(|| std::fs::read_to_string(format!("/proc/sys/net/{key}")))
            .unwrap()
            .unwrap()
            .trim()
            .to_owned()
    };
    assert_eq!(sysctl(&node.host, "ipv4/ip_forward".into()), "1");
    for link in ["cni0", &veth] {
        assert_eq!(sysctl(&node.host, format!("ipv6/conf/{link}/accept_ra")), "0", "{link}");
    }
    assert_eq!(sysctl(&pod, "ipv4/conf/eth0/arp_notify".into()), "1");
    assert_eq!(sysctl(&pod, "ipv6/conf/eth0/accept_dad".into()), "0");
}

#[test]
fn the_bridge_keeps_its_mac_while_ports_come_and_go() {
    let node = Node::new("cni-mac", V4);
    let mac = || node.host.ip_json("link show cni0").unwrap()[0]["address"].clone();
    let pods = ["a", "b", "c"].map(|name| node.pod(name));
    node.add("a", &pods[0]).result();
    let first = mac();
    node.add("b", &pods[1]).result();
    node.add("c", &pods[2]).result();
    node.del("a", &pods[0]).result();
    assert_eq!(mac(), first);
}

#[test]
fn an_idle_bridge_takes_the_address_of_a_new_subnet_and_a_used_one_keeps_its_own() {
    let node = Node::new("cni-renumber", DUAL);
    let pods = ["a", "b"].map(|name| node.pod(name));
    node.add("a", &pods[0]).result();
    node.set_subnet(&DUAL.replace("10.5.17.", "10.5.99.").replace(":11::", ":99::"));
    let (code, text) = node.add("b", &pods[1]).error();
    assert!(code == 999 && text.contains("10.5.17.1/24") && text.contains("forceAddress"), "{text}");
    assert_eq!(node.reservations().len(), 2, "the refused one's address is free again");
    node.del("a", &pods[0]).result();
    let result = node.add("b", &pods[1]).result();
    assert_eq!(result["ips"][0]["address"], "10.5.99.3/24", "the one after the refused one's");
    let addresses = node.host.ip_json("addr show cni0 scope global").unwrap();
    let local: Vec<_> =
        addresses[0]["addr_info"].as_array().unwrap().iter().filter_map(|a| a["local"].as_str()).collect();
    assert_eq!(local, ["10.5.99.1", "fd00:5:0:99::1"]);
    node.del("b", &pods[1]).result();
}

#[test]
fn two_interfaces_of_one_container_are_kept_apart() {
    let mut node = Node::new("cni-two", V4);
    let pod = node.pod("a");
    let add = |node: &Node, ifname: &str| node.call("ADD", "a", ifname, Some(&pod.path()), None).result();
    add(&node, "eth0");
    node.conf["delegate"] = json!({ "bridge": "cni1", "forceAddress": true });
    node.conf["name"] = json!("second");
    node.set_subnet(&V4.replace("10.5.17.", "10.6.1."));
    add(&node, "eth1");
    assert_eq!(node.cache().iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>(), ["a", "a:eth0", "a:eth1"]);
    node.call("DEL", "a", "eth1", Some(&pod.path()), None).result();
    assert_eq!(node.cache().len(), 1, "{:?}", node.cache());
    assert_eq!(names(&pod.ip_json("link").unwrap()), ["lo", "eth0"]);
    assert_eq!(node.reservations().len(), 1);
    node.conf["name"] = json!("cbr0");
    node.del("a", &pod).result();
    node.assert_empty();
}

#[test]
fn masquerading_is_set_up_and_removed_by_either_backend() {
    for (backend, listing) in
        [("iptables", ["iptables-save", "-t", "nat"]), ("nftables", ["nft", "list", "ruleset"])]
    {
        let mut node = Node::new("cni-masq", &V4.replace("IPMASQ=true", "IPMASQ=false"));
        node.conf["delegate"]["ipMasqBackend"] = json!(backend);
        let rules = |node: &Node| {
            let listed = run(node.host.command(listing[0]).args(&listing[1..]));
            listed.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n")
        };
        let pods = ["a", "b"].map(|name| node.pod(name));
        node.add("a", &pods[0]).result();
        node.add("b", &pods[1]).result();
        let both = rules(&node);
        for part in ["10.5.17.2", "10.5.17.3", "10.5.17.0/24", "224.0.0.0/4"] {
            assert!(both.contains(part), "{backend}: {part}: {both}");
        }
        assert!(both.to_lowercase().contains("masquerade"), "{both}");
        // Two interfaces of one container do not share a fate.
        node.call("ADD", "a", "eth1", Some(&pods[0].path()), None).result();
        node.call("DEL", "a", "eth1", Some(&pods[0].path()), None).result();
        assert_eq!(rules(&node), both, "{backend}");
        // Without its namespace the container's rules are found all the same.
        pods[0].remove().unwrap();
        node.call("DEL", "a", "eth0", Some(&pods[0].path()), None).result();
        let one = rules(&node);
        assert!(!one.contains("10.5.17.2") && one.contains("10.5.17.3"), "{backend}: {one}");
        node.del("b", &pods[1]).result();
        let none = rules(&node);
        assert!(!none.contains("10.5.17") && !none.contains("CNI-"), "{backend}: {none}");
        node.assert_empty();
    }
}

#[test]
fn gc_removes_the_masquerading_of_containers_that_are_not_valid() {
    for backend in ["iptables", "nftables"] {
        let node = Node::new("cni-masqgc", V4);
        let mut bridge = node.chained(
            "bridge",
            json!({ "ipMasq": true, "ipMasqBackend": backend, "ipam": { "type": "host-local",
                "dataDir": format!("{}/networks", node.host.dir().display()), "subnet": "10.5.17.0/24" } }),
        );
        for name in ["a", "b"] {
            bridge.call("ADD", name, "eth0", Some(&node.pod(name)), None).result();
        }
        let rules = || {
            let listings = [&["iptables-save"][..], &["nft", "list", "ruleset"]];
            listings.map(|listing| run(node.host.command(listing[0]).args(&listing[1..]))).concat()
        };
        let network = bridge.conf["name"].take();
        bridge.conf["name"] = "other".into();
        bridge.gc(&[]).result();
        bridge.conf["name"] = network;
        assert!(rules().contains("10.5.17.2") && rules().contains("10.5.17.3"), "{backend}: {}", rules());
        bridge.gc(&["b"]).result();
        assert!(!rules().contains("10.5.17.2") && rules().contains("10.5.17.3"), "{backend}: {}", rules());
    }
}

#[test]
fn masqueraded_packets_leave_with_the_hosts_address() {
    let node = Node::new("cni-snat", &V4.replace("IPMASQ=true", "IPMASQ=false"));
    let other = node.lab.host("other").unwrap();
    let pod = node.pod("a");
    node.add("a", &pod).result();
    // The other host has no route to 10.5.17.0/24: answers need the host's address.
    assert_eq!(pod.ping(other.ip4(), 3).unwrap().lost(), 0);
    node.del("a", &pod).result();
}

type Spoil = fn(&Node, &netns_harness::Netns, &Value);

#[test]
fn check_notices_what_was_changed_behind_its_back() {
    let node = Node::new("cni-check", V4);
    let spoil: [(&str, Spoil); 4] = [
        ("route", |_, pod, _| pod.ip_batch(&["route del default"]).unwrap()),
        ("address", |_, pod, _| pod.ip_batch(&["addr flush dev eth0"]).unwrap()),
        ("port", |node, _, result| {
            let veth = result["interfaces"][1]["name"].as_str().unwrap();
            node.host.ip_batch(&[format!("link set {veth} nomaster")]).unwrap();
        }),
        ("reserved", |node, _, _| std::fs::remove_dir_all(node.host.dir().join("networks/cbr0")).unwrap()),
    ];
    for (i, (part, spoil)) in spoil.into_iter().enumerate() {
        let (id, pod) = (format!("c{i}"), node.pod(&format!("p{i}")));
        let result = node.add(&id, &pod).result();
        let check = || node.call("CHECK", &id, "eth0", Some(&pod.path()), Some(&result));
        assert!(check().ok);
        spoil(&node, &pod, &result);
        let (code, text) = check().error();
        assert!(code == 999 && text.contains(part), "{part}: {text}");
        node.del(&id, &pod).result();
    }
}
