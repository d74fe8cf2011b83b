use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::{PermissionsExt, symlink};

use netns_harness::{Host, Netns};
use serde_json::{Value, json};

use crate::node::{Chained, DUAL, Node, V4, files, ips, run};

#[test]
fn a_host_that_forwards_nothing_forwards_for_its_containers() {
    let node = Node::new("cni-fw", DUAL);
    let other = another_host(&node);
    let pod = node.pod("a");
    let prev = node.add("a", &pod).result();
    for tool in ["iptables", "ip6tables"] {
        node.host.run(tool, ["--policy", "FORWARD", "DROP"]).unwrap();
    }
    let firewall = firewall(&node, json!({ "backend": "iptables" }));
    let lost = |from: &Netns, to: IpAddr| from.ping(to, 3).unwrap().lost();
    for target in [other.ip4(), other.ip6()] {
        assert_eq!(lost(&pod, target), 3, "{target} before");
    }
    assert_eq!(firewall.add("a", &pod, &prev).result(), prev);
    for (target, own) in [other.ip4(), other.ip6()].into_iter().zip(ips(&prev)) {
        assert_eq!(lost(&pod, target), 0, "{target}");
        assert_eq!(lost(&other, own), 3, "only answers come in to {own}");
    }
    firewall.check("a", &pod, &prev).result();

    let expected = |host: &str| {
        format!(
            "-P FORWARD DROP\n-N CNI-ADMIN\n-N CNI-FORWARD\n\
             -A FORWARD -m comment --comment \"CNI firewall plugin rules\" -j CNI-FORWARD\n\
             -A CNI-FORWARD -m comment --comment \"CNI firewall plugin admin overrides\" -j CNI-ADMIN\n\
             -A CNI-FORWARD -d {host} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
             -A CNI-FORWARD -s {host} -j ACCEPT"
        )
    };
    assert_eq!(rules(&node, "iptables"), expected("10.5.17.2/32"));
    assert_eq!(rules(&node, "ip6tables"), expected("fd00:5:0:11::2/128"));
    // An administrator's word comes first.
    node.host.run("iptables", ["-A", "CNI-ADMIN", "-s", "10.5.17.2", "-j", "DROP"]).unwrap();
    assert_eq!(lost(&pod, other.ip4()), 3);
    node.host.run("iptables", ["-F", "CNI-ADMIN"]).unwrap();

    node.host.run("iptables", ["-D", "CNI-FORWARD", "-s", "10.5.17.2", "-j", "ACCEPT"]).unwrap();
    let (code, text) = firewall.check("a", &pod, &prev).error();
    assert!(code == 999 && text.contains("missing: -A CNI-FORWARD -s 10.5.17.2/32 -j ACCEPT"), "{text}");
    firewall.del("a", &pod, &prev).result();
    firewall.del("a", &pod, &prev).result();
    for tool in ["iptables", "ip6tables"] {
        assert_eq!(
            rules(&node, tool).matches("-A CNI-FORWARD").count(),
            1,
            "{tool}: the administrator's chain alone"
        );
    }
    assert_eq!(lost(&pod, other.ip6()), 3);
    assert_eq!(records(&node), Vec::<String>::new());
}

#[test]
fn the_legacy_variant_of_iptables_gets_the_same_rules() {
    let node = Node::new("cni-fw-legacy", V4);
    let dir = node.host.dir().join("legacy");
    fs::create_dir(&dir).unwrap();
    for tool in ["iptables", "iptables-restore", "ip6tables", "ip6tables-restore"] {
        symlink("/usr/sbin/xtables-legacy-multi", dir.join(tool)).unwrap();
    }
    let pod = node.pod("a");
    let prev = node.add("a", &pod).result();
    let mut plugin = firewall(&node, json!({ "backend": "iptables", "ingressPolicy": "isolated" }));
    let path = format!("PATH={}:{}", dir.display(), std::env::var("PATH").unwrap());
    plugin.arguments = vec![path.into(), plugin.program.clone()];
    plugin.program = "env".into();
    let legacy = dir.join("iptables").to_str().unwrap().to_owned();
    plugin.add("a", &pod, &prev).result();
    let once = rules(&node, &legacy);
    assert!(once.contains("-A CNI-FORWARD -s 10.5.17.2/32 -j ACCEPT"), "{once}");
    assert!(once.contains("-A CNI-ISOLATION-STAGE-2 -o cni0 "), "{once}");
    plugin.check("a", &pod, &prev).result();
    plugin.add("a", &pod, &prev).result();
    assert_eq!(rules(&node, &legacy), once, "nothing twice");
    plugin.call("DEL", "a", "eth0", None, None).result();
    assert!(!rules(&node, &legacy).contains("10.5.17.2"));
    assert!(!run(node.host.command("nft").args(["list", "ruleset"])).contains("CNI-"));
}

#[test]
fn ingress_policies_keep_bridges_and_containers_apart() {
    for (policy, same, across) in [("open", 0, 0), ("same-bridge", 0, 3), ("isolated", 3, 3)] {
        let mut node = Node::new(&format!("cni-fw-{}", &policy[..4]), DUAL);
        let other = another_host(&node);
        let conf = json!({ "backend": "iptables", "ingressPolicy": policy });
        let mut pods = Vec::new();
        for (id, bridge, subnet) in [("a", "cni0", "17"), ("b", "cni0", "17"), ("c", "cni1", "18")] {
            node.conf["delegate"]["bridge"] = bridge.into();
            node.conf["name"] = bridge.into();
            node.set_subnet(
                &DUAL
                    .replace("10.5.17.", &format!("10.5.{subnet}."))
                    .replace(":11::", &format!(":{subnet}::")),
            );
            let pod = node.pod(id);
            let prev = node.add(id, &pod).result();
            let result = firewall(&node, conf.clone()).add(id, &pod, &prev).result();
            firewall(&node, conf.clone()).check(id, &pod, &result).result();
            pods.push((pod, ips(&result), result));
        }
        let [(a, a_ips, _), (b, b_ips, _), (c, c_ips, _)] = &pods[..] else { panic!() };
        // Between containers of a bridge iptables sees packets only if told to.
        for key in ["bridge/bridge-nf-call-iptables", "bridge/bridge-nf-call-ip6tables"] {
            node.host.sysctl(key, "1").unwrap();
        }
        let lost = |from: &Netns, to: IpAddr| from.ping(to, 3).unwrap().lost();
        for family in 0..2 {
            assert_eq!(lost(a, b_ips[family]), same, "{policy}: {} to its neighbour", a_ips[family]);
            assert_eq!(lost(b, a_ips[family]), same, "{policy}");
            assert_eq!(lost(a, c_ips[family]), across, "{policy}: across bridges");
            assert_eq!(lost(c, a_ips[family]), across, "{policy}: across bridges");
        }
        assert_eq!(lost(a, other.ip4()), 0, "{policy}: out of the host");

        // Isolation comes first, whoever came first and however often.
        let forward: Vec<_> = rules(&node, "iptables")
            .lines()
            .filter(|l| l.starts_with("-A FORWARD"))
            .map(str::to_owned)
            .collect();
        match policy {
            "open" => assert_eq!(forward.len(), 1),
            _ => {
                assert!(
                    forward.len() == 2 && forward[0].ends_with("-j CNI-ISOLATION-STAGE-1"),
                    "{forward:?}"
                );
            }
        }
    }
}

#[test]
fn isolation_comes_before_acceptance_in_whatever_order_they_were_made() {
    let node = Node::new("cni-fw-order", V4);
    let (a, b) = (node.pod("a"), node.pod("b"));
    let prev = node.add("a", &a).result();
    let isolating = json!({ "backend": "iptables", "ingressPolicy": "isolated" });
    firewall(&node, isolating.clone()).add("a", &a, &prev).result();
    let jump = ["FORWARD", "-m", "comment", "--comment", "CNI firewall plugin rules", "-j", "CNI-FORWARD"];
    let forward = || {
        rules(&node, "iptables")
            .lines()
            .filter(|l| l.starts_with("-A FORWARD"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let right = forward();
    node.host.run("iptables", ["-D"].into_iter().chain(jump)).unwrap();
    let next = node.add("b", &b).result();
    firewall(&node, json!({ "backend": "iptables" })).add("b", &b, &next).result();
    assert_eq!(forward(), right, "acceptance came back below");
    node.host.run("iptables", ["-D"].into_iter().chain(jump)).unwrap();
    node.host.run("iptables", ["-I"].into_iter().chain(jump)).unwrap();
    let (_, text) = firewall(&node, isolating.clone()).check("a", &a, &prev).error();
    assert!(text.contains("-D FORWARD"), "{text}");
    firewall(&node, isolating).add("a", &a, &prev).result();
    assert_eq!(forward(), right);
}

#[test]
fn rules_are_removed_by_their_owner_alone_and_found_without_adds_result() {
    let node = Node::new("cni-fw-owner", V4);
    let plugin = firewall(&node, json!({ "backend": "iptables" }));
    let result = |address: &str| json!({ "cniVersion": "1.0.0", "interfaces": [{ "name": "cni0" }], "ips": [{ "address": format!("{address}/24") }] });
    let pod = node.pod("a");
    let has = |address: &str| rules(&node, "iptables").matches(&format!(" {address}/32 ")).count() == 2;
    // The address of `a` goes to `b`, and the runtime repeats the DEL of `a`.
    plugin.add("a", &pod, &result("10.5.17.2")).result();
    plugin.add("b", &pod, &result("10.5.17.2")).result();
    plugin.add("c", &pod, &result("10.5.17.3")).result();
    assert!(has("10.5.17.2") && has("10.5.17.3"), "{}", rules(&node, "iptables"));
    plugin.del("a", &pod, &result("10.5.17.2")).result();
    plugin.call("DEL", "a", "eth0", None, None).result();
    plugin.call("DEL", "b", "eth1", None, None).result();
    assert!(has("10.5.17.2"), "they are b's now");
    plugin.call("DEL", "b", "eth0", None, None).result();
    assert!(!has("10.5.17.2") && has("10.5.17.3"));

    plugin.add("d", &pod, &result("10.5.17.4")).result();
    let mut other = firewall(&node, json!({ "backend": "iptables", "name": "other" }));
    other.add("e", &pod, &result("10.5.17.5")).result();
    plugin.gc(&["c"]).result();
    assert!(has("10.5.17.3") && !has("10.5.17.4") && has("10.5.17.5"));
    other.conf["name"] = "third".into();
    other.gc(&[]).result();
    assert!(has("10.5.17.3") && has("10.5.17.5"));
    // Made by the reference plugin, which keeps no record.
    fs::remove_dir_all(node.host.dir().join("firewall")).unwrap();
    plugin.del("c", &pod, &result("10.5.17.3")).result();
    assert!(!has("10.5.17.3") && has("10.5.17.5"));
}

#[test]
fn what_firewall_does_not_take_is_refused_and_can_be_deleted() {
    let node = Node::new("cni-fw-bad", V4);
    let pod = node.pod("a");
    let prev = node.add("a", &pod).result();
    for (conf, interface, code, part) in [
        (json!({ "cniVersion": "0.3.1" }), "cni0", 1, "cniVersion 0.3.1 does not allow ADD"),
        (json!({ "ingressPolicy": "shut" }), "cni0", 7, "ingressPolicy: \\\"shut\\\": expected \\\"open\\\""),
        (json!({ "iptablesAdminChainName": "A\nCOMMIT" }), "cni0", 7, "iptablesAdminChainName"),
        (json!({ "iptablesAdminChainName": "-F" }), "cni0", 7, "iptablesAdminChainName"),
        (json!({ "ingressPolicy": "isolated" }), "cni+", 7, "prevResult.interfaces[0].name: \\\"cni+\\\""),
        (json!({ "ingressPolicy": "isolated" }), "x\" -j", 7, "expected a bridge's name"),
    ] {
        let mut conf = conf;
        conf["backend"] = "iptables".into();
        let mut prev = prev.clone();
        prev["interfaces"][0]["name"] = interface.into();
        let (found, text) = firewall(&node, conf.clone()).add("a", &pod, &prev).error();
        assert!(found == code && text.contains(part), "{found} {text}");
        firewall(&node, conf).del("a", &pod, &prev).result();
        assert_eq!((rules(&node, "iptables").lines().count(), records(&node)), (1, vec![]));
    }
    let (code, text) = firewall(&node, json!({})).call("ADD", "a", "eth0", Some(&pod), None).error();
    assert!(code == 7 && text.contains("prevResult: missing"), "{text}");
}

/// A stand-in that notes how it is called, on a host with the chain that the real
/// one makes.
#[test]
fn firewalld_is_asked_where_it_runs() {
    let node = Node::new("cni-fw-stub", DUAL);
    let dir = node.host.dir().join("stub");
    fs::create_dir(&dir).unwrap();
    let (program, log) = (dir.join("firewall-cmd"), dir.join("log"));
    fs::write(&program, format!("#!/bin/sh\necho \"$*\" >> {}\n", log.display())).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let pod = node.pod("a");
    let prev = node.add("a", &pod).result();
    run(node.host.command("nft").args(["add table inet firewalld; add chain inet firewalld filter_FORWARD"]));
    let mut plugin = firewall(&node, json!({ "firewalldZone": "internal" }));
    let path = format!("PATH={}:{}", dir.display(), std::env::var("PATH").unwrap());
    plugin.arguments = vec![path.into(), plugin.program.clone()];
    plugin.program = "env".into();
    let calls = || {
        let calls = fs::read_to_string(&log).unwrap_or_default();
        let _ = fs::remove_file(&log);
        calls.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let (v4, v6) = ("source=10.5.17.2/32", "source=fd00:5:0:11::2/128");
    plugin.add("a", &pod, &prev).result();
    assert_eq!(calls(), ["--state".to_owned(), format!("--zone=internal --add-{v4} --add-{v6}")]);
    plugin.check("a", &pod, &prev).result();
    let each = |verb: &str| [v4, v6].map(|source| format!("--zone=internal --{verb}-{source}"));
    assert_eq!(calls(), each("query"));
    // The zone is that of ADD, whatever the config says now.
    plugin.conf["backend"] = "iptables".into();
    plugin.conf["firewalldZone"] = "trusted".into();
    plugin.del("a", &pod, &prev).result();
    assert_eq!(calls(), each("remove"));
    assert_eq!(rules(&node, "iptables").lines().count(), 1);
}

pub fn firewall(node: &Node, mut conf: Value) -> Chained<'_> {
    conf["type"] = "firewall".into();
    conf["dataDir"] = node.host.dir().join("firewall").to_str().unwrap().into();
    node.chained("firewall", conf)
}

/// One that reaches the node's containers by way of the node.
fn another_host(node: &Node) -> Host {
    let other = node.lab.host("other").unwrap();
    other
        .ip_batch(&[
            format!("route add 10.5.0.0/16 via {}", node.host.ip4()),
            format!("route add fd00:5::/48 via {}", node.host.ip6()),
        ])
        .unwrap();
    other
}

/// Of the filter table, but INPUT's and OUTPUT's policies.
fn rules(node: &Node, tool: &str) -> String {
    let listed = run(node.host.command(tool).args(["--list-rules"]));
    let lines = listed.lines().filter(|line| !line.starts_with("-P INPUT") && !line.starts_with("-P OUTPUT"));
    lines.collect::<Vec<_>>().join("\n")
}

fn records(node: &Node) -> Vec<String> {
    files(&node.host.dir().join("firewall")).into_iter().map(|(name, _)| name).collect()
}
