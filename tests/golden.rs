//! A weft node ends in the same state as the flanneld nodes whose pictures are
//! in tests/golden/flanneld.

#![cfg(test)]

#[path = "common/golden.rs"]
mod golden;
#[path = "common/stage.rs"]
mod stage;

use std::collections::BTreeSet;

use golden::{SCENES, file, play};
use netns_harness::{Daemon, Host};
use serde_json::Value;
use stage::Stage;

#[test]
fn vxlan() {
    a_weft_node_is_as_a_flanneld_node("vxlan");
}

#[test]
fn vxlan_options() {
    a_weft_node_is_as_a_flanneld_node("vxlan-options");
}

#[test]
fn vxlan_direct() {
    a_weft_node_is_as_a_flanneld_node("vxlan-direct");
}

#[test]
fn vxlan_dual() {
    a_weft_node_is_as_a_flanneld_node("vxlan-dual");
}

#[test]
fn vxlan_returning() {
    a_weft_node_is_as_a_flanneld_node("vxlan-returning");
}

#[test]
fn host_gw() {
    a_weft_node_is_as_a_flanneld_node("host-gw");
}

#[test]
fn host_gw_dual() {
    a_weft_node_is_as_a_flanneld_node("host-gw-dual");
}

#[test]
fn masquerade() {
    a_weft_node_is_as_a_flanneld_node("masquerade");
}

#[test]
fn masquerade_nftables() {
    a_weft_node_is_as_a_flanneld_node("masquerade-nftables");
}

#[test]
fn no_forward() {
    a_weft_node_is_as_a_flanneld_node("no-forward");
}

fn a_weft_node_is_as_a_flanneld_node(name: &str) {
    let scene = SCENES.iter().find(|scene| scene.name == name).unwrap();
    let path = file(scene);
    let recorded = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}: make interop RECORD=1 writes it", path.display()));
    let flanneld: Value = serde_json::from_str(&recorded).unwrap();
    let mut differences = Vec::new();
    let played = play(scene, |stage, host| weft(stage, host, scene.args));
    compare(name, &flanneld, &played, &mut differences);
    let found = BTreeSet::from_iter(differences);
    let of_scene = |place: &String| place.starts_with(&format!("{name} / "));
    let known: BTreeSet<String> = known().into_iter().filter(of_scene).collect();
    let (new, gone): (Vec<_>, Vec<_>) =
        (found.difference(&known).collect(), known.difference(&found).collect());
    assert!(new.is_empty() && gone.is_empty(), "new: {new:#?}\nno longer there: {gone:#?}");
}

/// docs/compat.md gives the reasons.
fn known() -> Vec<String> {
    let mut all = Vec::new();
    // flanneld leaves the FDB entry of a MAC that a peer no longer has.
    let mut stale = |scene: &str, dst: &str, mac: &str| {
        let entry = format!(r#"{{"dst":"{dst}","flags":["self"],"mac":"{mac}","state":"permanent"}}"#);
        all.push(format!("{scene} / 3 one moved / fdb: - {entry}"));
    };
    for scene in ["vxlan", "vxlan-options", "vxlan-returning", "vxlan-dual"] {
        stale(scene, "192.168.77.3", "02:00:00:00:00:03");
    }
    stale("vxlan-dual", "fd77::3", "02:00:00:00:06:03");
    for picture in ["1 three peers", "2 one left", "3 one moved"] {
        // The IPv6 tunnel's MTU is the smaller.
        all.push(format!("vxlan-dual / {picture} / subnet.env: - FLANNEL_MTU=1450 + FLANNEL_MTU=1430"));
        // flanneld's nftables rules mean something else than its iptables rules.
        for (table, ip, network, subnet) in [
            ("ip flannel-ipv4", "ip", "10.42.0.0/16", "10.42.1.0/24"),
            ("ip6 flannel-ipv6", "ip6", "fd42::/48", "fd42:0:0:1::/64"),
        ] {
            for rule in [
                "- \"\\t\\tmeta mark 0x00004000 return\"".to_owned(),
                "+ \"\\t\\tmeta mark & 0x00004000 == 0x00004000 return\"".to_owned(),
                format!("- \"\\t\\t{ip} saddr != {subnet} {ip} daddr {network} return\""),
                format!("+ \"\\t\\t{ip} saddr != {network} {ip} daddr {subnet} return\""),
            ] {
                all.push(format!(
                    "masquerade-nftables / {picture} / rules / nft -s list table {table}: {rule}"
                ));
            }
        }
    }
    all
}

fn weft(stage: &Stage, host: &Host, args: &[&str]) -> Daemon {
    let mut command = host.command(env!("CARGO_BIN_EXE_weft"));
    command
        .args(["daemon", "--etcd-endpoints", &stage.url()])
        .arg("--subnet-file")
        .arg(host.dir().join("subnet.env"))
        .arg("--admin-socket")
        .arg(host.dir().join("admin.sock"))
        .args(args);
    host.spawn("weft", &mut command).unwrap()
}

/// Collects where two pictures differ, each with its place in them.
fn compare(place: &str, flanneld: &Value, weft: &Value, out: &mut Vec<String>) {
    match (flanneld, weft) {
        (Value::Object(a), Value::Object(b)) if a.keys().eq(b.keys()) => {
            for (key, value) in a {
                compare(&format!("{place} / {key}"), value, &b[key], out);
            }
        }
        (Value::Array(a), Value::Array(b)) => {
            let lack = |from: &[Value], sign: char, other: &[Value], out: &mut Vec<String>| {
                let rows = from.iter().filter(|row| !other.contains(row));
                out.extend(rows.map(|row| format!("{place}: {sign} {row}")));
            };
            lack(a, '-', b, out);
            lack(b, '+', a, out);
            let both = |of: &[Value], other: &[Value]| -> Vec<Value> {
                of.iter().filter(|row| other.contains(row)).cloned().collect()
            };
            if both(a, b) != both(b, a) {
                out.push(format!("{place}: in another order or number"));
            }
        }
        (Value::String(a), Value::String(b)) if a.lines().count() == b.lines().count() => {
            let lines = a.lines().zip(b.lines()).filter(|(a, b)| a != b);
            out.extend(lines.map(|(a, b)| format!("{place}: - {a} + {b}")));
        }
        _ if flanneld == weft => {}
        _ => out.push(format!("{place}: flanneld {flanneld}, weft {weft}")),
    }
}
