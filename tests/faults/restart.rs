//! A daemon that is started again while the store is away comes up with what it
//! knew, and heals what breaks.

use std::time::Duration;

use netns_harness::{Host, wait_until};
use serde_json::Value;

use crate::lab::{SOON, VXLAN};
use crate::stage::Stage;

const OTHERS: &str = r#"{"PublicIP":"192.168.77.99","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:99"}}"#;

#[test]
fn without_the_store_it_serves_containers_and_heals_and_with_it_it_is_right() {
    let config = VXLAN.replace("{\"Network\"", "{\"EnableNFTables\":true,\"Network\"");
    let mut stage = Stage::with_config("restart", 1, &[("FLANNELD_IP_MASQ", "true")], &config);
    stage.put_peer(100);
    stage.fabric.wait_for_route(0, "10.42.100.0/24");
    let env = stage.fabric.subnet_env(0);
    let before = picture(&stage.fabric.hosts[0]);
    stage.await_checkpoint(0, "10.42.100.0-24");
    stage.etcd.members[0].kill();
    stage.fabric.daemons[0].kill9().unwrap();
    // While nobody looks.
    let (far, host) = (stage.fabric.subnet_of(1), stage.fabric.hosts[0].clone());
    stage.forget_traffic();
    host.run("ip", ["route", "del", &far]).unwrap();
    host.run("ip", ["neigh", "flush", "dev", "flannel.1", "nud", "permanent"]).unwrap();

    stage.start_daemon(0);
    let healed = || picture(&host) == before;
    wait_until(SOON, "what broke before the start", healed).unwrap_or_else(|e| differs(&e, &host, &before));
    let late = stage.fabric.pod(0);
    let target = stage.pods[1].ips[0];
    wait_until(SOON, "traffic of a new container", || late.netns.reaches(target)).unwrap();
    for fault in faults(&host, &far) {
        host.run("sh", ["-c", &fault]).unwrap();
        wait_until(SOON, &fault, healed).unwrap_or_else(|e| differs(&e, &host, &before));
    }
    wait_until(SOON, "traffic", || late.netns.reaches(target)).unwrap();
    let (status, ok) = stage.fabric.try_status(0).unwrap();
    assert!(!ok && status["store"]["connected"] == false && status["lease"]["ok"] == true, "{status}");
    assert_eq!(stage.fabric.subnet_env(0), env);

    stage.etcd.start_hidden(|etcd| {
        etcd.ctl(&["put", "/coreos.com/network/subnets/10.42.101.0-24", OTHERS]);
        etcd.ctl(&["del", "/coreos.com/network/subnets/10.42.100.0-24"]);
    });
    let right =
        || stage.fabric.has_route(0, "10.42.101.0/24") && !stage.fabric.has_route(0, "10.42.100.0/24");
    let took = wait_until(SOON, "the leases of meanwhile", right).unwrap();
    eprintln!("restarted while the store was away: right {took:.1?} after its return");
    stage.fabric.wait_in_sync(0);
    stage.assert_right("a restart while the store was away");
}

#[test]
fn what_it_knew_may_be_out_of_date_and_cuts_nobody_off() {
    let mut stage = Stage::new("outdated", 1, &[]);
    stage.put_peer(100);
    stage.fabric.wait_for_route(0, "10.42.100.0/24");
    let path = stage.await_checkpoint(0, "10.42.100.0-24");
    stage.etcd.members[0].kill();
    stage.fabric.daemons[0].kill9().unwrap();
    // As of before anyone else came.
    let mut known: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    known["peers"] = serde_json::json!({});
    std::fs::write(&path, known.to_string()).unwrap();

    stage.start_daemon(0);
    stage.await_resumed(0);
    let (far, host) = (stage.fabric.subnet_of(1), stage.fabric.hosts[0].clone());
    assert!(stage.fabric.has_route(0, &far) && stage.fabric.has_route(0, "10.42.100.0/24"));
    let kernel = picture(&host);
    assert!(kernel.matches("02:00:00:00:02:64").count() == 2, "neighbour and FDB entry: {kernel}");

    let gone = "/coreos.com/network/subnets/10.42.100.0-24";
    stage.etcd.start_hidden(|etcd| drop(etcd.ctl(&["del", gone])));
    let gone =
        || !stage.fabric.has_route(0, "10.42.100.0/24") && !picture(&host).contains("02:00:00:00:02:64");
    wait_until(SOON, "the end of who left", gone).unwrap();
    let guard = host.run("nft", ["list", "table", "inet", "weft-guard"]).unwrap();
    assert!(!guard.contains("192.168.77.100"), "{guard}");
    stage.assert_right("a restart with what was out of date");
}

#[test]
fn a_config_that_is_another_by_then_is_taken_up() {
    let mut stage = Stage::new("reconfig", 1, &[]);
    stage.await_checkpoint(0, "10.42.");
    stage.etcd.members[0].kill();
    stage.fabric.daemons[0].kill9().unwrap();
    stage.start_daemon(0);
    stage.await_resumed(0);
    stage.forget_traffic();

    let config = VXLAN.replace("10.42.", "10.43.");
    stage.etcd.start_hidden(|etcd| drop(etcd.ctl(&["put", "/coreos.com/network/config", &config])));
    let moved = || stage.fabric.subnet_env(0).contains("FLANNEL_NETWORK=10.43.0.0/16");
    wait_until(SOON, "the other network", moved).unwrap();
    let only = || {
        let ip = stage.fabric.hosts[0].ip4().to_string();
        let held: Vec<_> = stage.etcd.records().into_iter().filter(|(_, holder)| *holder == ip).collect();
        matches!(&held[..], [(key, _)] if *key == stage.fabric.key_of(0))
    };
    wait_until(SOON, "one lease", only).unwrap();
    assert!(stage.fabric.daemons[0].exited().unwrap().is_none());
}

#[test]
fn a_subnet_that_is_anothers_by_then_is_left_to_it() {
    let mut stage = Stage::new("gone", 1, &[("WEFT_LEASE_TTL", "6")]);
    stage.await_checkpoint(0, "10.42.");
    let key = stage.fabric.key_of(0);
    stage.etcd.members[0].kill();
    stage.fabric.daemons[0].kill9().unwrap();
    std::thread::sleep(Duration::from_secs(7));
    stage.start_daemon(0);
    stage.await_resumed(0);
    let log = stage.fabric.daemons[0].log_tail(50);
    assert!(log.contains("ran out and may be another's"), "{log}");
    stage.watch_traffic_within(1);

    stage.etcd.start_hidden(|etcd| {
        wait_until(2 * SOON, "the end of the lease", || !etcd.keys().contains(&key)).unwrap();
        etcd.ctl(&["put", &key, OTHERS]);
    });
    let written = stage.etcd.mod_revision(&key);
    let lost = || {
        let status = stage.fabric.try_status(0);
        status.is_some_and(|(status, _)| status["lease"]["state"].as_str().unwrap().contains("is lost"))
    };
    wait_until(SOON, "the loss", lost).unwrap();
    std::thread::sleep(Duration::from_secs(7));
    assert_eq!(stage.etcd.mod_revision(&key), written, "nobody writes over it");
    stage.assert_one_holder_each("taken meanwhile", &[1]);

    stage.etcd.ctl(&["del", &key]);
    stage.fabric.wait_in_sync(0);
    stage.assert_one_holder_each("free again", &[0, 1]);
}

/// Each in the words of a shell.
fn faults(host: &Host, far: &str) -> Vec<String> {
    let fdb = host.bridge_json("fdb show dev flannel.1").unwrap();
    let entry = fdb.as_array().unwrap().iter().find(|entry| entry.get("dst").is_some()).unwrap();
    let fdb = format!("{} dst {}", entry["mac"].as_str().unwrap(), entry["dst"].as_str().unwrap());
    [
        format!("ip route del {far}"),
        "ip neigh flush dev flannel.1 nud permanent".to_owned(),
        format!("bridge fdb del {fdb} dev flannel.1"),
        "ip link set flannel.1 address 02:11:22:33:44:55".to_owned(),
        "ip link set flannel.1 down".to_owned(),
        "sysctl -qw net.ipv4.conf.all.forwarding=0".to_owned(),
        "nft delete table ip flannel-ipv4".to_owned(),
        "ip link del flannel.1".to_owned(),
    ]
    .to_vec()
}

/// All that a node has in its kernel, without numbers of no consequence.
fn picture(host: &Host) -> String {
    let mut lines = Vec::new();
    let mut list = |entries: Result<Value, netns_harness::Error>, keys: &[&str]| {
        for entry in entries.unwrap_or_default().as_array().into_iter().flatten() {
            let values = keys.iter().filter_map(|key| Some(format!("{key} {}", entry.get(key)?)));
            lines.push(values.collect::<Vec<_>>().join(" "));
        }
    };
    list(host.ip_json("route show proto 87"), &["dst", "gateway", "dev"]);
    list(host.ip_json("neigh show dev flannel.1 nud permanent"), &["dst", "lladdr"]);
    list(host.bridge_json("fdb show dev flannel.1"), &["mac", "dst"]);
    list(host.ip_json("link show dev flannel.1"), &["address", "mtu", "flags"]);
    list(host.ip_json("addr show dev flannel.1 scope global"), &["ifname"]);
    lines.sort();
    let run = |program: &str, args: &[&str]| host.run(program, args).unwrap_or_default();
    let rules = run("nft", &["--stateless", "list", "table", "ip", "flannel-ipv4"]);
    let forwarding = run("sysctl", &["-n", "net.ipv4.conf.all.forwarding"]);
    format!("{}\n{rules}{forwarding}", lines.join("\n"))
}

fn differs(error: &netns_harness::Error, host: &Host, before: &str) -> Duration {
    panic!("{error}: {before} became {}", picture(host))
}
