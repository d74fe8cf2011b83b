//! The whole fabric with real packets: etcd, daemons and containers wired by the
//! plugin, on hosts that are network namespaces.

// Helpers may unwrap as tests do.
#![cfg(test)]

mod configs;
mod doctor;
mod guard;
mod health;
mod lab;
mod leases;
mod observe;
mod uplink;

use std::time::Duration;

use netns_harness::{Daemon, Flood, wait_until};

use crate::lab::{DUAL, Fabric, SOON, VXLAN};

#[test]
fn vxlan_joins_containers_of_two_hosts() {
    every_pair_reaches(VXLAN);
}

#[test]
fn host_gw_joins_containers_of_two_hosts() {
    every_pair_reaches(r#"{"Network":"10.42.0.0/16","Backend":{"Type":"host-gw"}}"#);
}

#[test]
fn dual_stack_joins_both_families() {
    every_pair_reaches(DUAL);
}

#[test]
fn ipv6_alone_joins_too() {
    every_pair_reaches(
        r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd42::/48","Backend":{"Type":"host-gw"}}"#,
    );
}

#[test]
fn a_killed_daemon_comes_back_without_losing_a_packet_or_writing_one_object() {
    let mut fabric = Fabric::new("kill", VXLAN, 2);
    fabric.start_all();
    let (a, b) = (fabric.pod(0), fabric.pod(1));
    let before = fabric.subnet_env(0);
    let flood: Flood = a.netns.flood(b.ips[0], 1000).unwrap();
    wait_until(SOON, "the flood", || flood.received() > 200).unwrap();

    fabric.daemons[0].kill9().unwrap();
    let monitor =
        fabric.hosts[0].spawn("monitor", fabric.hosts[0].command("ip").args(["monitor", "all"])).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    fabric.start(0, &[]);
    fabric.wait_in_sync(0);
    std::thread::sleep(Duration::from_secs(1));

    let report = flood.stop().unwrap();
    assert!(report.sent > 1000, "{report:?}");
    assert_eq!(report.lost(), 0, "{report:?}");
    assert_eq!(fabric.subnet_env(0), before);
    assert_eq!(monitored_changes(&monitor), Vec::<String>::new(), "nothing is rewritten");
}

#[test]
fn stopping_leaves_forwarding_in_place() {
    let mut fabric = Fabric::new("stop", VXLAN, 2);
    fabric.start_all();
    let (a, b) = (fabric.pod(0), fabric.pod(1));
    for daemon in &mut fabric.daemons {
        let status = daemon.terminate(Duration::from_secs(10)).unwrap();
        assert!(status.success(), "{status}: {}", daemon.log_tail(20));
    }
    assert_eq!(a.netns.ping(b.ips[0], 20).unwrap().lost(), 0);
}

#[test]
fn a_store_that_is_away_at_start_is_waited_for_with_a_message() {
    let mut fabric = Fabric::without_etcd("away", 1);
    fabric.start(0, &[]);
    wait_until(SOON, "a message", || fabric.daemons[0].log_tail(50).contains("waiting for")).unwrap();
    assert!(fabric.daemons[0].exited().unwrap().is_none(), "{}", fabric.daemons[0].log_tail(50));

    fabric.start_etcd();
    wait_until(SOON, "the same message for the config", || {
        fabric.daemons[0].log_tail(50).contains("has none yet")
    })
    .unwrap();
    fabric.put("config", VXLAN);
    fabric.wait_in_sync(0);
}

#[test]
fn a_broken_lease_harms_nobody_else() {
    let mut fabric = Fabric::new("broken", VXLAN, 2);
    fabric.start_all();
    let (a, b) = (fabric.pod(0), fabric.pod(1));
    let good = r#"{"PublicIP":"192.168.77.77","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:77"}}"#;
    fabric.put("subnets/10.42.200.0-24", good);
    fabric.wait_for_route(0, "10.42.200.0/24");
    fabric.put("subnets/10.42.200.0-24", "{\"PublicIP\":");
    fabric.put("subnets/10.42.201.0-24", r#"{"PublicIP":"nonsense"}"#);
    fabric.put("subnets/not-a-subnet", good);
    fabric.put(
        "subnets/10.42.202.0-24",
        &good.replace("02:00:00:00:00:77", "ff:ff:ff:ff:ff:ff").replace("77.77", "77.78"),
    );
    fabric.put("subnets/10.42.203.0-24", &good.replace("00:77", "00:79").replace("77.77", "77.79"));
    fabric.wait_for_route(0, "10.42.203.0/24");

    assert_eq!(a.netns.ping(b.ips[0], 5).unwrap().lost(), 0);
    assert!(fabric.has_route(0, "10.42.200.0/24"), "what was last known good stays");
    assert!(!fabric.has_route(0, "10.42.202.0/24"));
    let status = fabric.status(0);
    assert_eq!(status["store"]["bad_records"].as_array().unwrap().len(), 3, "{status:#}");
    let log = fabric.daemons[0].log_tail(500);
    assert_eq!(log.matches("10.42.201.0-24").count(), 1, "logged once: {log}");
}

#[test]
fn what_someone_deletes_is_put_back() {
    let mut fabric = Fabric::new("heal", VXLAN, 2);
    fabric.start_all();
    let (a, b) = (fabric.pod(0), fabric.pod(1));
    let route = fabric.subnet_of(1);
    for fault in [
        vec!["route", "del", &route],
        vec!["link", "set", "flannel.1", "down"],
        vec!["link", "set", "flannel.1", "address", "02:11:22:33:44:55"],
        vec!["link", "del", "flannel.1"],
    ] {
        fabric.hosts[0].run("ip", &fault).unwrap();
        let healed = || a.netns.ping(b.ips[0], 1).is_ok_and(|report| report.lost() == 0);
        wait_until(SOON, &format!("healing of ip {}", fault.join(" ")), healed).unwrap();
    }
    fabric.wait_in_sync(0);
}

#[test]
fn a_lease_that_was_revoked_is_taken_again() {
    let mut fabric = Fabric::new("revoke", VXLAN, 2);
    fabric.start_all();
    let before = fabric.subnet_env(0);
    let key = fabric.subnet_of(0).replace('/', "-");
    fabric.etcdctl(&["del", &format!("/coreos.com/network/subnets/{key}")]);
    let back = || fabric.etcdctl(&["get", &format!("/coreos.com/network/subnets/{key}")]).contains("VtepMAC");
    wait_until(SOON, "the lease", back).unwrap();
    assert_eq!(fabric.subnet_env(0), before);
    fabric.wait_for_route(1, &fabric.subnet_of(0));
}

#[test]
fn the_built_in_store_outlives_the_daemon_that_serves_it() {
    let mut fabric = Fabric::without_etcd("takeover", 3);
    let data = fabric.lab.dir().join("store").display().to_string();
    let builtin = ["--data-dir", &data, "--network", "10.42.0.0/16"];
    fabric.run(0, &builtin, &[]);
    fabric.run(1, &builtin, &[]);
    let subnets = [fabric.wait_for_env(0), fabric.wait_for_env(1)];
    fabric.wait_for_route(0, &fabric.subnet_of(1));

    // The first daemon serves the store: it came first.
    fabric.daemons[0].kill9().unwrap();
    fabric.run(2, &builtin, &[]);
    fabric.wait_for_env(2);
    fabric.wait_for_route(1, &fabric.subnet_of(2));
    assert!(fabric.has_route(0, &fabric.subnet_of(1)), "a dead daemon's forwarding stays");

    fabric.run(0, &builtin, &[]);
    fabric.wait_for_route(0, &fabric.subnet_of(2));
    assert_eq!([fabric.subnet_env(0), fabric.subnet_env(1)], subnets, "the same leases");
}

#[test]
fn wrong_options_are_refused_with_the_way_out() {
    let mut fabric = Fabric::new("options", VXLAN, 1);
    let etcd = fabric.etcd_url();
    for (args, says) in [
        (&["--etcd-endpoints", &etcd, "--iface", "eth9"][..], "this host has lo, eth0"),
        (&["--etcd-endpoints", "not a url"], "not a url"),
        (&["--etcd-keyfile", "/nowhere"], "--etcd-certfile"),
        (&["--subnet-file"], "--subnet-file <FILE>"),
        (&["--network", "192.168.0.0/16", "--data-dir", "DIR"], "192.168.0.0/16 overlaps route 192.168."),
        (&["--network", "10.0.0.0/31", "--data-dir", "DIR"], "10.0.0.0/31"),
        (&["--net-config-path", "/nowhere.json", "--data-dir", "DIR"], "/nowhere.json"),
    ] {
        let host = &fabric.hosts[0];
        let data = host.dir().join("store").display().to_string();
        let mut command = host.command(env!("CARGO_BIN_EXE_weft"));
        command.arg("daemon").args(args.iter().map(|arg| if *arg == "DIR" { &data } else { *arg }));
        let mut daemon = host.spawn("refused", &mut command).unwrap();
        let done = wait_until(SOON, "an exit", || daemon.exited().unwrap().is_some());
        let log = daemon.log_tail(20);
        assert!(done.is_ok() && !daemon.exited().unwrap().unwrap().success(), "{args:?}: {log}");
        assert!(log.contains(says), "{args:?}: {log}");
    }
    fabric.daemons.clear();
}

fn every_pair_reaches(config: &str) {
    let mut fabric = Fabric::new("pairs", config, 2);
    fabric.start_all();
    let pods = [fabric.pod(0), fabric.pod(0), fabric.pod(1), fabric.pod(1)];
    for a in &pods {
        for ip in pods.iter().flat_map(|b| &b.ips) {
            let report = a.netns.ping(*ip, 3).expect("a ping");
            assert_eq!(report.lost(), 0, "{} to {ip}: {report:?}", a.netns.name());
        }
    }
}

/// Lines of `ip monitor` that are about links, routes, nexthops or permanent
/// neighbours. Neighbours that the traffic itself refreshes are not ours, and
/// link-local addresses come when the kernel has looked for duplicates.
fn monitored_changes(monitor: &Daemon) -> Vec<String> {
    let ours = |line: &&str| {
        (line.contains("[ROUTE]")
            || line.contains("[LINK]")
            || line.contains("[NEXTHOP]")
            || line.contains("[ADDR]"))
            || line.contains("PERMANENT")
    };
    monitor
        .log_tail(1000)
        .lines()
        .filter(|line| !line.contains("fe80:"))
        .filter(ours)
        .map(str::to_owned)
        .collect()
}
