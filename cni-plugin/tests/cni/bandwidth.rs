use std::net::IpAddr;
use std::time::Duration;

use netns_harness::{Netns, iperf3};
use serde_json::{Value, json};
use sha2::{Digest, Sha512};

use crate::node::{Chained, Node, V4, ips, names};

const RATE: u64 = 20_000_000;
const BURST: u64 = 400_000;

#[test]
fn a_container_receives_and_sends_at_its_rates() {
    let node = Node::new("cni-rate", V4);
    let (pod, free) = (node.pod("a"), node.pod("b"));
    let prev = node.add("a", &pod).result();
    let address = ips(&prev)[0];
    let unlimited = ips(&node.add("b", &free).result())[0];
    let conf =
        json!({ "ingressRate": RATE, "ingressBurst": BURST, "egressRate": RATE / 2, "egressBurst": BURST });
    let result = bandwidth(&node, conf).add("a", &pod, &prev).result();

    let gateway: IpAddr = "10.5.17.1".parse().unwrap();
    let mbits = |client: &Netns, server: &Netns, address| {
        iperf3(client, server, address, Duration::from_secs(5)).unwrap() * 1e3
    };
    let receives = mbits(&node.host, &pod, address);
    let sends = mbits(&pod, &node.host, gateway);
    let (free_receives, free_sends) =
        (mbits(&node.host, &free, unlimited), mbits(&free, &node.host, gateway));
    println!("limited to 20: receives {receives:.2} Mbit/s; limited to 10: sends {sends:.2} Mbit/s");
    println!("without limits: receives {free_receives:.0} Mbit/s, sends {free_sends:.0} Mbit/s");
    assert!((18.0..22.0).contains(&receives), "{receives}");
    assert!((9.0..11.0).contains(&sends), "{sends}");
    assert!(free_receives > 100.0 && free_sends > 100.0, "the other container is not limited");
    bandwidth(&node, json!({})).del("a", &pod, &result).result();
}

#[test]
fn limits_come_from_the_runtime_are_checked_and_go() {
    let node = Node::new("cni-tc", V4);
    let pod = node.pod("a");
    let prev = node.add("a", &pod).result();
    let limits = json!({ "ingressRate": RATE, "ingressBurst": BURST, "egressRate": 40_000_000_000_u64, "egressBurst": BURST });
    let plugin = bandwidth(&node, json!({ "runtimeConfig": { "bandwidth": limits } }));
    let result = plugin.add("a", &pod, &prev).result();

    // One interface more: an IFB named as the reference plugin names it.
    let interfaces = result["interfaces"].as_array().unwrap();
    assert_eq!(interfaces[..3], prev["interfaces"].as_array().unwrap()[..]);
    let ifb = reference_name("a");
    let device = &node.host.ip_json(&format!("-d link show {ifb}")).unwrap()[0];
    assert_eq!(interfaces[3], json!({ "name": ifb, "mac": device["address"] }));
    assert_eq!((&device["mtu"], &device["linkinfo"]["info_kind"]), (&json!(1450), &json!("ifb")));

    let veth = interfaces[1]["name"].as_str().unwrap();
    let root = |link: &str| tc(&node, &format!("qdisc show dev {link} root"));
    let ingress = root(veth);
    assert_eq!((&ingress["kind"], &ingress["handle"]), (&json!("tbf"), &json!("1:")));
    assert_eq!((&ingress["options"]["rate"], &ingress["options"]["lat"]), (&json!(RATE / 8), &json!(25_000)));
    assert_eq!(ingress["options"]["burst"], BURST / 8);
    assert_eq!(root(&ifb)["options"]["rate"], 5_000_000_000_u64, "more than 32 bits");
    let filter = node.host.run("tc", ["filter", "show", "dev", veth, "ingress"]).unwrap();
    assert!(filter.contains(&format!("mirred (Egress Redirect to device {ifb}) stolen")), "{filter}");

    plugin.check("a", &pod, &result).result();
    let mut other = limits;
    other["ingressRate"] = json!(RATE + 8);
    let (code, text) = bandwidth(&node, other).check("a", &pod, &result).error();
    assert!(code == 999 && text.contains(veth) && text.contains("rate: 2500000"), "{text}");
    node.host.run("tc", ["qdisc", "del", "dev", &ifb, "root"]).unwrap();
    let (_, text) = plugin.check("a", &pod, &result).error();
    assert!(text.contains(&format!("interface {ifb}: has no token bucket")), "{text}");

    bandwidth(&node, json!({})).del("a", &pod, &result).result();
    assert_eq!(ifbs(&node), Vec::<String>::new());
    let (_, text) = plugin.check("a", &pod, &result).error();
    assert!(text.contains("has no IFB device"), "{text}");
    bandwidth(&node, json!({})).call("DEL", "a", "eth0", None, None).result();
}

#[test]
fn what_cannot_be_limited_is_refused_and_left_as_it_was() {
    let node = Node::new("cni-tc-bad", V4);
    let pod = node.pod("a");
    let prev = node.add("a", &pod).result();
    let limits =
        json!({ "ingressRate": RATE, "ingressBurst": BURST, "egressRate": RATE, "egressBurst": BURST });
    let veth = prev["interfaces"][1]["name"].as_str().unwrap();
    // Something else receives what the link receives.
    node.host.run("tc", ["qdisc", "add", "dev", veth, "ingress"]).unwrap();
    let (_, text) = bandwidth(&node, limits.clone()).add("a", &pod, &prev).error();
    assert!(text.contains("redirection of link number"), "{text}");
    assert_eq!(ifbs(&node), Vec::<String>::new());
    assert_ne!(tc(&node, &format!("qdisc show dev {veth} root"))["kind"], "tbf");

    let mut without_host_end = prev.clone();
    without_host_end["interfaces"].as_array_mut().unwrap().remove(1);
    let (code, text) = bandwidth(&node, limits.clone()).add("a", &pod, &without_host_end).error();
    assert!(code == 7 && text.contains("the other end of interface eth0"), "{text}");
    let mut old = limits;
    old["cniVersion"] = "0.2.0".into();
    assert_eq!(bandwidth(&node, old).add("a", &pod, &prev).error().0, 1);
    let nothing = bandwidth(&node, json!({})).add("a", &pod, &prev).result();
    assert_eq!(nothing, prev);
}

#[test]
fn each_interface_has_its_own_ifb_and_gc_knows_whose_one_is() {
    let node = Node::new("cni-ifb", V4);
    let conf = json!({ "egressRate": RATE, "egressBurst": BURST });
    let mut made: Vec<Netns> = Vec::new();
    for (id, ifname) in [("a", "eth0"), ("a", "eth1"), ("b", "eth0"), ("c", "eth0")] {
        let pod = if made.is_empty() || id != "a" { node.pod(id) } else { made[0].clone() };
        let prev = node.call("ADD", id, ifname, Some(&pod.path()), None).result();
        bandwidth(&node, conf.clone()).call("ADD", id, ifname, Some(&pod), Some(&prev)).result();
        made.push(pod);
    }
    assert_eq!(ifbs(&node).len(), 4);
    let second = ifbs(&node).into_iter().find(|n| !["a", "b", "c"].map(reference_name).contains(n)).unwrap();
    bandwidth(&node, conf.clone()).call("DEL", "a", "eth0", Some(&made[0]), None).result();
    let sorted = |names: &[&str]| {
        let mut names: Vec<_> = names.iter().map(|n| (*n).to_owned()).collect();
        names.sort();
        names
    };
    let (b, c) = (reference_name("b"), reference_name("c"));
    assert_eq!(ifbs(&node), sorted(&[&second, &b, &c]));

    // Another network's, and one that the reference plugin made: its MAC is random.
    let mut other = conf.clone();
    other["name"] = "other".into();
    node.host.ip_batch(&["link add bwp000000000000 type ifb", "link add bwp-foreign type ifb"]).unwrap();
    let kept = ["bwp000000000000", "bwp-foreign"];
    bandwidth(&node, other).gc(&[]).result();
    assert_eq!(ifbs(&node), sorted(&[&second, &b, &c, kept[0], kept[1]]));
    bandwidth(&node, conf.clone()).gc(&["b"]).result();
    assert_eq!(ifbs(&node), sorted(&[&b, kept[0], kept[1]]));

    // Taken over from the reference plugin, by its name for the container.
    let taken = reference_name("e");
    node.host.ip_batch(&[format!("link add {taken} type ifb")]).unwrap();
    bandwidth(&node, conf).call("DEL", "e", "eth0", None, None).result();
    assert_eq!(ifbs(&node), sorted(&[&b, kept[0], kept[1]]));
}

fn bandwidth(node: &Node, mut conf: Value) -> Chained<'_> {
    conf["type"] = "bandwidth".into();
    node.chained("bandwidth", conf)
}

fn reference_name(id: &str) -> String {
    let digest = Sha512::digest(format!("cbr0{id}"));
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("bwp{}", &hex[..12])
}

fn ifbs(node: &Node) -> Vec<String> {
    let mut names = names(&node.host.ip_json("link show type ifb").unwrap());
    names.sort();
    names
}

fn tc(node: &Node, args: &str) -> Value {
    let text = node.host.run("tc", ["-j"].into_iter().chain(args.split(' '))).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()[0].take()
}
