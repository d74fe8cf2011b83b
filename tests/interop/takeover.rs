//! One node changes its daemon while its containers talk.

use std::time::Duration;

use netns_harness::{Daemon, wait_until};
use serde_json::Value;

use crate::cluster::{Node, Program};
use crate::stage::{SOON, Stage};

#[test]
fn vxlan_is_taken_over_and_given_back() {
    change(r#"{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan"}}"#);
}

#[test]
fn dual_stack_vxlan_is_taken_over_and_given_back() {
    change(
        r#"{"EnableIPv6":true,"Network":"10.42.0.0/16","IPv6Network":"fd42::/48","Backend":{"Type":"vxlan"}}"#,
    );
}

/// The nftables rules of the two differ in two places: docs/compat.md.
#[test]
fn nftables_rules_are_taken_over_and_given_back() {
    change(r#"{"EnableNFTables":true,"Network":"10.42.0.0/16","Backend":{"Type":"host-gw"}}"#);
}

#[test]
fn host_gw_is_taken_over_and_given_back() {
    change(r#"{"Network":"10.42.0.0/16","Backend":{"Type":"host-gw"}}"#);
}

const MASQUERADE: [&str; 1] = ["-ip-masq"];

/// flanneld, weft, flanneld on the first of two nodes, the other staying a
/// flanneld.
fn change(config: &str) {
    let stage = Stage::new("takeover");
    stage.put("config", config);
    let mut nodes: Vec<Node> = (1..=2).map(|i| Node::new(&stage, &format!("h{i}"), 0)).collect();
    for node in &mut nodes {
        node.start(&stage, Program::Flanneld, &MASQUERADE);
    }
    let [mut node, mut other] = <[Node; 2]>::try_from(nodes).ok().unwrap();
    let routed = || node.has_routes_to(&other) && other.has_routes_to(&node);
    wait_until(SOON, "routes", routed).unwrap();
    let (a, b, old) = (node.pod(&stage), other.pod(&stage), node.pod(&stage));
    a.check(&b);
    let (before, rules_before) = (identity(&node), rules(&node));
    let names = if config.contains("NFTables") { "flannel-ipv4" } else { "FLANNEL-POSTRTG" };
    assert!(rules_before.contains(names), "{rules_before}");
    let subnet_env = std::fs::read_to_string(node.host.dir().join("subnet.env")).unwrap();

    let floods: Vec<_> = b.ips.iter().map(|ip| a.netns.flood(*ip, 1000).unwrap()).collect();
    std::thread::sleep(Duration::from_millis(300));
    node.stop();
    let monitor = node.host.spawn("monitor", node.host.command("ip").args(["monitor", "all"])).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    node.start(&stage, Program::Weft, &MASQUERADE);
    let tagged = || other.subnets().iter().all(|subnet| node.route(subnet)[0]["protocol"] == "87");
    wait_until(SOON, "routes of weft's", tagged).unwrap_or_else(|error| panic!("{error}: {}", node.log()));
    std::thread::sleep(Duration::from_secs(1));
    for flood in floods {
        let report = flood.stop().unwrap();
        assert!(report.sent > 1000, "{report:?}");
        assert_eq!(report.lost(), 0, "{report:?}: {}", node.log());
    }
    assert_eq!(identity(&node), before, "devices are adopted: {config}");
    assert_eq!(rules(&node), rules_before);
    let after = std::fs::read_to_string(node.host.dir().join("subnet.env")).unwrap();
    assert_eq!(after.replace("MTU=1430", "MTU=1450"), subnet_env);
    assert_eq!(node.errors(), Vec::<String>::new());
    let changes = changes(&monitor);
    let is_retag = |line: &String| {
        let retagged = |subnet: &String| line.starts_with(&format!("[ROUTE]{subnet} "));
        other.subnets().iter().any(retagged) || line.starts_with("[NEXTHOP]id ")
    };
    assert!(changes.iter().all(is_retag), "only the peer's routes are retagged: {changes:#?}");
    let routes = changes.iter().filter(|line| line.contains("[ROUTE]")).count();
    assert_eq!(routes, other.subnets().len(), "each once: {changes:#?}");
    drop(monitor);
    // The plugins change with the daemon, and the containers stay.
    let new = node.pod(&stage);
    for pod in [&a, &b, &old] {
        new.check(pod);
    }
    node.remove(&old);
    let (before, rules_before) = (identity(&node), rules(&node));

    let floods: Vec<_> = b.ips.iter().map(|ip| a.netns.flood(*ip, 1000).unwrap()).collect();
    std::thread::sleep(Duration::from_millis(300));
    node.stop();
    node.start(&stage, Program::Flanneld, &MASQUERADE);
    let running = || node.log().matches("Running backend").count() == 1;
    wait_until(SOON, "flanneld at work again", running).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    for flood in floods {
        let report = flood.stop().unwrap();
        println!("change back to flanneld: {} of {} lost: {config}", report.lost(), report.sent);
    }
    assert_eq!(identity(&node), before, "and again by flanneld: {config}");
    assert_eq!(rules(&node), rules_before);
    let newest = node.pod(&stage);
    for pod in [&a, &b, &new] {
        newest.check(pod);
    }
    node.remove(&new);
    a.check(&newest);
    for node in [&node, &other] {
        assert_eq!(node.errors(), Vec::<String>::new());
    }
}

/// Flannel's chains as the tools print them, without the counters, and flannel's
/// table; flanneld has one for a family that is off, too.
fn rules(node: &Node) -> String {
    let text = node.host.run("iptables-save", [""; 0]).unwrap();
    let lines = text.lines().filter(|line| line.contains("FLANNEL"));
    let tables = node.host.run("nft", ["list", "tables"]).unwrap();
    let tables = tables.lines().filter(|line| line.contains("flannel-ipv4"));
    lines.chain(tables).map(|line| format!("{}\n", line.split(" [").next().unwrap_or_default())).collect()
}

/// Index, name and MAC of every device of the node but containers' own.
fn identity(node: &Node) -> Vec<Value> {
    let links = node.host.ip_json("link").unwrap();
    let links = links.as_array().unwrap().iter();
    links.map(|link| serde_json::json!([link["ifindex"], link["ifname"], link["address"]])).collect()
}

/// Lines of `ip monitor` about what a daemon makes: not about neighbours that
/// the traffic itself refreshes, nor about link-local addresses, which come when
/// the kernel has looked for duplicates.
fn changes(monitor: &Daemon) -> Vec<String> {
    let log = monitor.log_tail(1000);
    let ours = |line: &&str| {
        ["[ROUTE]", "[LINK]", "[NEXTHOP]", "[ADDR]", "PERMANENT"].iter().any(|kind| line.contains(kind))
    };
    log.lines().filter(|line| !line.contains("fe80:")).filter(ours).map(str::to_owned).collect()
}
