//! The same calls to flannel's plugin with bridge and host-local, recorded, and
//! to ours. To record: `WEFT_RECORD_GOLDEN=DIR cargo test -p weft-cni golden`,
//! DIR holding the reference plugins (flannel, bridge, host-local).

use std::collections::BTreeMap;
use std::path::Path;
use std::{env, fs};

use serde_json::{Map, Value, json};

use crate::node::{DUAL, Node, V4, files};

#[test]
fn golden_the_default_conflist() {
    compare("default", V4, |node| node.conf["cniVersion"] = json!("0.3.1"));
}

#[test]
fn golden_dual_stack() {
    compare("dual-stack", DUAL, |_| {});
}

#[test]
fn golden_ipv6_alone() {
    let v6 = DUAL.replace("FLANNEL_NETWORK=10.5.0.0/16\n", "").replace("FLANNEL_SUBNET=10.5.17.1/24\n", "");
    compare("ipv6", &v6, |_| {});
}

#[test]
fn golden_every_bridge_field() {
    compare("fields", V4, |node| {
        node.conf["delegate"] = json!({ "bridge": "br9", "isGateway": true, "mtu": 1300,
            "promiscMode": true, "forceAddress": true, "portIsolation": true });
        node.conf["ipam"]["routes"] = json!([
            { "dst": "192.168.0.0/16", "gw": "10.5.17.9" },
            { "dst": "10.5.17.0/24" },
            { "dst": "172.16.0.0/12", "priority": 7 },
        ]);
        node.conf["runtimeConfig"] = json!({ "mac": "0e:11:22:33:44:55", "ips": ["10.5.17.40"] });
    });
}

#[test]
fn golden_masquerade() {
    compare("masquerade", &V4.replace("IPMASQ=true", "IPMASQ=false"), |_| {});
}

fn compare(case: &str, subnet_env: &str, prepare: impl Fn(&mut Node)) {
    let mut node = Node::new("cni-golden", subnet_env);
    prepare(&mut node);
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{case}.json"));
    if let Ok(bin) = env::var("WEFT_RECORD_GOLDEN") {
        node.plugin = Path::new(&bin).join("flannel");
        node.path = bin;
        let text = serde_json::to_string_pretty(&observe(&node)).unwrap();
        fs::write(&golden, text + "\n").unwrap();
        return;
    }
    let expected: Value = serde_json::from_str(&fs::read_to_string(&golden).unwrap()).unwrap();
    let ours = observe(&node);
    for (key, expected) in expected.as_object().unwrap() {
        let (expected, ours) = (
            serde_json::to_string_pretty(expected).unwrap(),
            serde_json::to_string_pretty(&ours[key]).unwrap(),
        );
        assert!(ours == expected, "{case}: {key}: ours {ours}\nreference {expected}");
    }
}

/// Results, links, addresses, routes, sysctls and files after ADD of two
/// containers, and again after DEL of one.
fn observe(node: &Node) -> Value {
    let pods = ["a", "b"].map(|name| node.pod(name));
    let mut seen = Map::new();
    let mut results = vec![node.add("id-a", &pods[0]).result()];
    if node.conf.pointer("/runtimeConfig/ips").is_none() {
        results.push(node.add("id-b", &pods[1]).result());
    }
    let routes = |family: &str| pods[0].ip_json(&format!("{family} route")).unwrap();
    seen.insert("results".into(), results.into());
    seen.insert("bridge".into(), links(&node.host.ip_json("-d link show type bridge").unwrap()));
    seen.insert("ports".into(), links(&node.host.ip_json("-d link show type bridge_slave").unwrap()));
    seen.insert("gateway".into(), addresses(&node.host.ip_json("addr show type bridge").unwrap()));
    seen.insert("container".into(), links(&pods[0].ip_json("-d link show eth0").unwrap()));
    seen.insert("addresses".into(), addresses(&pods[0].ip_json("addr show eth0").unwrap()));
    seen.insert("routes".into(), routes("-4"));
    seen.insert("routes6".into(), routes("-6"));
    seen.insert("host sysctls".into(), bridge_sysctls(&node.host));
    seen.insert("container sysctls".into(), sysctls(&pods[0], &["lo", "eth0"]));
    seen.insert("files".into(), data_files(node));
    seen.insert("rules".into(), rules(node));
    node.del("id-a", &pods[0]).result();
    seen.insert("files after DEL".into(), data_files(node));
    seen.insert("rules after DEL".into(), rules(node));
    normalise(&Value::Object(seen).to_string(), node)
}

/// What a plugin decides of a link. Left out is the queue's length: the
/// reference sets the host's end to 0, on which a later queueing discipline
/// drops all; ours leaves the kernel's 1000.
fn links(links: &Value) -> Value {
    let link = |link: &Value| {
        let mut kept = Map::new();
        for key in
            ["ifname", "flags", "mtu", "master", "operstate", "linkmode", "group", "promiscuity", "address"]
        {
            kept.insert(key.into(), link[key].clone());
        }
        let port = &link["linkinfo"]["info_slave_data"];
        for key in ["hairpin", "isolated", "learning", "guard", "flood", "state"] {
            kept.insert(format!("port {key}"), port[key].clone());
        }
        Value::Object(kept)
    };
    links.as_array().unwrap().iter().map(link).collect()
}

fn addresses(links: &Value) -> Value {
    let address = |address: &Value| {
        json!([
            address["family"],
            address["local"],
            address["prefixlen"],
            address["broadcast"],
            address["scope"],
            address["label"]
        ])
    };
    let of = |link: &Value| -> Vec<Value> {
        link["addr_info"].as_array().unwrap().iter().filter(|a| a["scope"] != "link").map(address).collect()
    };
    links.as_array().unwrap().iter().flat_map(of).collect()
}

/// Without accept_dad: the reference lets the bridge prove its link-local address
/// for a second, in which no container behind it can be reached by IPv6.
fn bridge_sysctls(host: &netns_harness::Netns) -> Value {
    let mut seen = sysctls(host, &["cni0", "br9"]);
    if let Some(seen) = seen.as_object_mut() {
        seen.retain(|key, _| !key.ends_with("/accept_dad"));
    }
    seen
}

fn sysctls(netns: &netns_harness::Netns, links: &[&str]) -> Value {
    let mut keys = vec!["ipv4/ip_forward".to_owned(), "ipv6/conf/all/forwarding".to_owned()];
    for link in links {
        let of_link = [
            "ipv4/conf/LINK/arp_notify",
            "ipv6/conf/LINK/accept_dad",
            "ipv6/conf/LINK/accept_ra",
            "ipv6/conf/LINK/keep_addr_on_down",
            "ipv6/conf/LINK/disable_ipv6",
            "ipv6/conf/LINK/enhanced_dad",
        ];
        keys.extend(of_link.map(|key| key.replace("LINK", link)));
    }
    let read = |key: String| {
        Some((key.clone(), fs::read_to_string(format!("/proc/sys/net/{key}")).ok()?.trim().to_owned()))
    };
    json!(netns.enter(|| keys.into_iter().filter_map(read).collect::<BTreeMap<_, _>>()).unwrap())
}

/// Our own file beside flannel's is not part of the comparison.
fn data_files(node: &Node) -> Value {
    let parsed =
        |text: &str| if text.starts_with('{') { serde_json::from_str(text).unwrap() } else { json!(text) };
    let of = |dir: &str| {
        files(&node.host.dir().join(dir))
            .into_iter()
            .filter(|(name, _)| !name.contains(":eth"))
            .map(|(name, text)| (name, parsed(&text)))
            .collect::<Map<_, _>>()
    };
    json!({ "flannel": of("flannel"), "networks": of("networks/cbr0") })
}

fn rules(node: &Node) -> Value {
    let text = crate::node::run(node.host.command("iptables-save").args(["-t", "nat"]));
    let rule = |line: &str| (line.starts_with("-A") || line.starts_with(":CNI")).then(|| json!(line));
    text.lines().filter_map(rule).collect()
}

/// Names and MACs that are drawn by lot become what they are of, and lists
/// without an order of their own get one.
fn normalise(text: &str, node: &Node) -> Value {
    let mut text =
        text.replace(&node.host.dir().display().to_string(), "DIR").replace(node.lab.name(), "LAB");
    let value: Value = serde_json::from_str(&text).unwrap();
    let mut known = BTreeMap::new();
    for (n, result) in value["results"].as_array().unwrap().iter().enumerate() {
        for (interface, role) in
            result["interfaces"].as_array().unwrap().iter().zip(["bridge", "host", "container"])
        {
            let role = if role == "bridge" { role.to_owned() } else { format!("{role} {n}") };
            known.insert(interface["mac"].as_str().unwrap().to_owned(), format!("MAC of {role}"));
            if role.starts_with("host") {
                known.insert(interface["name"].as_str().unwrap().to_owned(), format!("veth of {role}"));
            }
        }
    }
    for (from, to) in known {
        text = text.replace(&from, &to);
    }
    let mut value: Value = serde_json::from_str(&text).unwrap();
    for (key, list) in value.as_object_mut().unwrap() {
        if let (Value::Array(list), true) = (list, key != "results") {
            list.sort_by_key(Value::to_string);
        }
    }
    value
}
