//! What becomes of the uplink is followed while traffic runs.

use std::time::Duration;

use netns_harness::{Netns, wait_until};

use crate::lab::{DUAL, Fabric, SOON, VXLAN};

#[test]
fn a_host_is_renumbered_under_traffic() {
    let mut fabric = Fabric::new("renumber", VXLAN, 2);
    fabric.start_all();
    let (a, b) = (fabric.pod(0), fabric.pod(1));
    let (env, key) = (fabric.subnet_env(0), fabric.key_of(0));
    let lease = lease_of(&fabric, &key);
    let flood = a.netns.flood(b.ips[0], 100).unwrap();
    wait_until(SOON, "the flood", || flood.received() > 50).unwrap();

    renumber(&fabric, 0, "192.168.77.101/24");

    let published = || fabric.etcdctl(&["get", &key]).contains(r#""PublicIP":"192.168.77.101""#);
    wait_until(SOON, "the new address in the store", published).unwrap();
    let before = flood.received();
    wait_until(SOON, "traffic", || flood.received() > before + 50).unwrap();
    let report = flood.stop().unwrap();
    assert!(report.longest_gap < Duration::from_secs(10), "{report:?}");
    let fdb = fabric.hosts[1].bridge_json("fdb show dev flannel.1").unwrap().to_string();
    assert!(fdb.contains("192.168.77.101") && !fdb.contains("\"192.168.77.1\""), "{fdb}");
    assert_eq!((fabric.subnet_env(0), lease_of(&fabric, &key)), (env, lease), "same subnet, same lease");
    fabric.wait_in_sync(0);
    eprintln!("renumbered: {report:?}");
}

#[test]
fn host_gw_and_both_families_are_renumbered_too() {
    let host_gw = VXLAN.replace("vxlan", "host-gw");
    for config in [&host_gw, DUAL] {
        let mut fabric = Fabric::new("renumber-all", config, 2);
        fabric.start_all();
        let (a, b) = (fabric.pod(0), fabric.pod(1));
        let env = fabric.subnet_env(0);
        renumber(&fabric, 0, "192.168.77.101/24");
        let lines = [
            format!("addr del {}/64 dev eth0", fabric.hosts[0].ip6()),
            "addr add fd77::101/64 dev eth0 nodad".to_owned(),
            "route replace default via fd77::fe".to_owned(),
        ];
        fabric.hosts[0].ip_batch(&lines).unwrap();
        let published = || fabric.status(0)["node"]["public_ips"].to_string().contains(".101");
        wait_until(SOON, "the new address", published).unwrap();
        for ip in &b.ips {
            wait_until(SOON, &format!("traffic to {ip}"), || a.netns.reaches(*ip)).unwrap();
        }
        fabric.wait_in_sync(0);
        fabric.wait_in_sync(1);
        assert_eq!(fabric.subnet_env(0), env);
    }
}

#[test]
fn a_host_that_was_renumbered_while_its_daemon_was_away_keeps_its_subnet() {
    let mut fabric = Fabric::new("away-renumber", VXLAN, 2);
    fabric.start_all();
    let (a, b) = (fabric.pod(0), fabric.pod(1));
    let (env, key) = (fabric.subnet_env(0), fabric.key_of(0));
    let lease = lease_of(&fabric, &key);
    fabric.daemons[0].kill9().unwrap();
    renumber(&fabric, 0, "192.168.77.101/24");
    fabric.start(0, &[]);
    let published = || fabric.etcdctl(&["get", &key]).contains(r#""PublicIP":"192.168.77.101""#);
    wait_until(SOON, "the new address in the store", published).unwrap();
    fabric.wait_in_sync(0);
    assert_eq!((fabric.subnet_env(0), lease_of(&fabric, &key)), (env, lease), "same subnet, same lease");
    wait_until(SOON, "traffic", || a.netns.reaches(b.ips[0])).unwrap();
}

#[test]
fn an_mtu_is_followed_down_and_up() {
    let mut fabric = Fabric::new("mtu", VXLAN, 2);
    fabric.start_all();
    let far = fabric.pod(1);
    for uplink in [1400, 9000] {
        for (i, host) in fabric.hosts.iter().enumerate() {
            fabric
                .lab
                .switch()
                .run("ip", ["link", "set", &format!("h{}", i + 1), "mtu", &uplink.to_string()])
                .unwrap();
            host.run("ip", ["link", "set", "eth0", "mtu", &uplink.to_string()]).unwrap();
        }
        let inner = uplink - 50;
        for i in 0..2 {
            let told = || fabric.subnet_env(i).contains(&format!("FLANNEL_MTU={inner}\n"));
            wait_until(SOON, "subnet.env", told).unwrap();
            let set = || mtu_of(&fabric, i, "flannel.1") == u64::from(inner);
            wait_until(SOON, "the tunnel's MTU", set).unwrap();
            fabric.wait_in_sync(i);
        }
        // Between the hosts' tunnels, and from a new container to one that is
        // older than the change.
        let tunnel = fabric.subnet_of(1).replace("/24", "");
        full_packets_alone_reach(&fabric.hosts[0], &tunnel, inner);
        if uplink < 1500 {
            full_packets_alone_reach(&fabric.pod(0).netns, &far.ips[0].to_string(), inner);
        }
    }
}

#[test]
fn an_interface_that_goes_keeps_the_last_known_node_and_a_new_one_is_taken_up() {
    let mut fabric = Fabric::new("vanish", VXLAN, 2);
    fabric.start_all();
    let key = fabric.key_of(0);
    let record = fabric.etcdctl(&["get", &key]);
    let host = &fabric.hosts[0];
    host.run("ip", ["addr", "flush", "dev", "eth0", "scope", "global"]).unwrap();
    let says = |text: &str| {
        let said = || fabric.daemons[0].log_tail(100).contains(text);
        wait_until(SOON, text, said).unwrap();
    };
    says("keeping eth0 and 192.168.77.1 as they were last known");
    assert_eq!(fabric.etcdctl(&["get", &key]), record);
    assert!(fabric.status(0)["node"]["trouble"].as_str().is_some_and(|why| why.contains("keeping eth0")));

    host.ip_batch(&["addr add 192.168.77.1/24 dev eth0", "route add default via 192.168.77.254"]).unwrap();
    says("the uplink is usable again");
    fabric.wait_in_sync(0);
    let (a, b) = (fabric.pod(0), fabric.pod(1));
    wait_until(SOON, "traffic", || a.netns.reaches(b.ips[0])).unwrap();

    // The address and the default route move to a bridge, as hypervisors do it.
    host.ip_batch(&[
        "link add br0 type bridge forward_delay 0",
        "link set br0 up",
        "addr flush dev eth0",
        "link set eth0 master br0",
        "addr add 192.168.77.1/24 dev br0",
        "route add default via 192.168.77.254",
    ])
    .unwrap();
    says("uplink=br0");
    wait_until(SOON, "traffic", || a.netns.reaches(b.ips[0])).unwrap();
    fabric.wait_in_sync(0);
}

#[test]
fn a_default_route_that_moves_alone_moves_the_uplink() {
    let mut fabric = Fabric::new("default-route", VXLAN, 1);
    fabric.start_all();
    let host = &fabric.hosts[0];
    host.ip_batch(&[
        "link add eth1 type veth peer name other",
        "link set other up",
        "link set eth1 up",
        "addr add 192.168.99.1/24 dev eth1",
    ])
    .unwrap();
    // What was told of the link has been looked at by now; nothing more is told of it.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(fabric.status(0)["node"]["uplink"], "eth0");

    host.ip_batch(&["route replace default via 192.168.99.254 dev eth1"]).unwrap();
    let moved = || fabric.status(0)["node"]["uplink"] == "eth1";
    let took = wait_until(SOON, "another uplink", moved).unwrap();
    eprintln!("a default route that moved alone was followed {took:.1?} after");
}

#[test]
fn patterns_and_reach_choose_the_uplink() {
    let mut fabric = Fabric::new("choose", VXLAN, 1);
    fabric.hosts[0]
        .ip_batch(&[
            "link add eth1 type veth peer name eth2",
            "link set eth2 up",
            "addr add 10.9.0.3/24 dev eth1",
            "link set eth1 up",
        ])
        .unwrap();
    for (args, says) in [
        (&["-iface-regex", "^10\\.9"][..], "its address matches --iface-regex ^10\\.9 uplink=eth1"),
        (&["--iface-regex=th1$"], "its name matches"),
        (
            &["--iface=eth7", "--iface-can-reach", "10.9.0.77"],
            "it reaches 10.9.0.77 (--iface eth7: no such interface",
        ),
        (&["--public-ip=10.9.0.3"], "it owns 10.9.0.3"),
    ] {
        fabric.start(0, args);
        let log = || fabric.daemons[0].log_tail(500);
        let chosen = || log().contains(says) && log().contains("public=10.9.0.3");
        wait_until(SOON, says, chosen).unwrap_or_else(|error| panic!("{error}: {}", log()));
        fabric.daemons[0].terminate(SOON).unwrap();
    }
}

/// At the limit a packet that must not be fragmented goes through, beyond it
/// none does.
fn full_packets_alone_reach(from: &Netns, target: &str, mtu: u32) {
    const HEADERS: u32 = 28;
    let ping =
        |size: u32| from.run("ping", ["-c1", "-W2", "-Mdo", "-s", &(size - HEADERS).to_string(), target]);
    wait_until(SOON, &format!("a packet of {mtu} bytes"), || ping(mtu).is_ok()).expect("the lab");
    assert!(ping(mtu + 1).is_err(), "more than the limit goes through");
}

/// As DHCP does it with a new lease: the old address goes, and with it the
/// default route.
fn renumber(fabric: &Fabric, i: usize, address: &str) {
    let old = format!("addr del {}/24 dev eth0", fabric.hosts[i].ip4());
    let new = format!("addr add {address} dev eth0");
    fabric.hosts[i].ip_batch(&[&old, &new, "route add default via 192.168.77.254"]).expect("the lab");
}

/// The number of the lease that a key hangs on.
fn lease_of(fabric: &Fabric, key: &str) -> String {
    let fields = fabric.etcdctl(&["get", key, "-w", "fields"]);
    fields.lines().find(|line| line.starts_with("\"Lease\"")).expect("a lease").to_owned()
}

fn mtu_of(fabric: &Fabric, i: usize, link: &str) -> u64 {
    let links = fabric.hosts[i].ip_json(&format!("link show {link}"));
    links.ok().and_then(|links| links[0]["mtu"].as_u64()).unwrap_or(0)
}
