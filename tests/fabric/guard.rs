//! Encapsulated packets from a host that holds no lease, and from those that do.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use netns_harness::{Host, Netns, wait_until};
use serde_json::Value;

use crate::lab::{DUAL, Fabric, SOON};

const PORT: u16 = 5000;

#[test]
fn a_stranger_reaches_no_container_whatever_the_daemon_does() {
    let mut fabric = Fabric::new("guard", DUAL, 2);
    let stranger = fabric.hosts.pop().unwrap();
    fabric.start(0, &["--guard=off"]);
    fabric.wait_in_sync(0);
    let pod = fabric.pod(0);
    let host = fabric.hosts[0].clone();
    let tunnels = Tunnels::aimed_at(&host, &stranger, &pod.ips);
    let arrives = |what: &str| {
        let arrived = pod.ips.iter().map(|ip| arrives(&stranger, &pod.netns, *ip)).collect::<Vec<_>>();
        assert_eq!(arrived.len(), 2, "{what}");
        arrived
    };
    assert_eq!(arrives("off"), [true, true], "unguarded, it is let in in both families");

    fabric.start(0, &[]);
    fabric.wait_in_sync(0);
    assert_eq!(arrives("on"), [false, false]);
    fabric.daemons[0].kill9().unwrap();
    assert_eq!(arrives("dead"), [false, false], "the guard stays when the daemon is gone");
    fabric.start(0, &[]);
    fabric.wait_in_sync(0);
    fabric.etcd_away();
    host.run("nft", ["flush ruleset"]).unwrap();
    wait_until(SOON, "the guard put back without a store", || admitted(&host).is_some()).unwrap();
    assert_eq!(arrives("put back"), [false, false]);
    assert!(host.run("nft", ["list table inet weft-guard"]).unwrap().contains("packets 3 "), "it counts");
    fabric.start_etcd();

    // Another tunnel through the same port is nobody's business here.
    tunnels.set_vni(2);
    host.run(
        "ip",
        ["link add other type vxlan id 2 dstport 8472 local 192.168.77.1 dev eth0".split(' ')]
            .into_iter()
            .flatten(),
    )
    .unwrap();
    host.ip_batch(&["link set other up", "link set other address 02:00:00:00:00:42"]).unwrap();
    tunnels.set_mac("02:00:00:00:00:42");
    assert!(self::arrives(&stranger, &pod.netns, pod.ips[0]));

    fabric.start(0, &["--guard=off"]);
    fabric.wait_in_sync(0);
    assert_eq!(admitted(&host), None, "switched off");
}

#[test]
fn leased_peers_lose_nothing_while_others_come_and_go() {
    let mut fabric = Fabric::new("guarded", DUAL, 2);
    fabric.start_all();
    let (a, b) = (fabric.pod(0), fabric.pod(1));
    let floods: Vec<_> = b.ips.iter().map(|ip| a.netns.flood(*ip, 500).unwrap()).collect();
    wait_until(SOON, "the floods", || floods.iter().all(|flood| flood.received() > 100)).unwrap();
    let key = |n: u8| format!("subnets/10.42.{n}.0-24&fd42:0:0:{n:x}::-64");
    let lease = |n: u8| {
        let data = format!(r#"{{"VNI":1,"VtepMAC":"02:00:00:00:00:{n:02x}"}}"#);
        format!(
            r#"{{"PublicIP":"192.168.78.{n}","PublicIPv6":"fd78::{n:x}","BackendType":"vxlan","BackendData":{data},"BackendV6Data":{data}}}"#
        )
    };
    for n in 200..230 {
        fabric.put(&key(n), &lease(n));
    }
    let host = fabric.hosts[1].clone();
    let holds =
        |count: usize| wait_until(SOON, &format!("{count} addresses"), || admitted(&host) == Some(count));
    holds(62).unwrap();
    for n in 200..230 {
        fabric.etcdctl(&["del", &format!("/coreos.com/network/{}", key(n))]);
    }
    holds(2).unwrap();
    let monitor = host.spawn("monitor", host.command("nft").arg("monitor")).unwrap();
    fabric.start(1, &[]);
    fabric.wait_in_sync(1);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(monitor.log_tail(20), "", "a restart writes nothing");

    for flood in floods {
        let report = flood.stop().unwrap();
        assert!(report.sent > 500 && report.lost() == 0, "{report:?}");
    }
}

/// Devices of the stranger that lead into the host's tunnels.
struct Tunnels<'a>(&'a Host, Vec<(IpAddr, IpAddr)>);

impl<'a> Tunnels<'a> {
    fn aimed_at(host: &Host, stranger: &'a Host, pods: &[IpAddr]) -> Tunnels<'a> {
        let pods =
            pods.iter().map(|pod| (*pod, if pod.is_ipv4() { host.ip4() } else { host.ip6() })).collect();
        let tunnels = Tunnels(stranger, pods);
        tunnels.make(1, |name| {
            let links = host.ip_json(&format!("link show {name}")).unwrap();
            links[0]["address"].as_str().unwrap().to_owned()
        });
        tunnels
    }

    fn make(&self, vni: u32, mac: impl Fn(&str) -> String) {
        for (pod, remote) in &self.1 {
            let (dev, theirs, own) = match pod.is_ipv4() {
                true => ("in4", "flannel.1", "10.42.255.5/32"),
                false => ("in6", "flannel-v6.1", "fd42:0:0:ffff::5/128"),
            };
            let _ = self.0.run("ip", ["link", "del", dev]);
            self.0
                .ip_batch(&[
                    format!(
                        "link add {dev} type vxlan id {vni} dstport 8472 remote {remote} dev eth0 nolearning"
                    ),
                    format!("addr add {own} dev {dev}{}", if pod.is_ipv4() { "" } else { " nodad" }),
                    format!("link set {dev} up"),
                    format!("route add {pod} dev {dev}"),
                    format!("neigh add {pod} lladdr {} dev {dev}", mac(theirs)),
                ])
                .unwrap();
        }
    }

    fn set_vni(&self, vni: u32) {
        self.make(vni, |_| "02:00:00:00:00:01".to_owned());
    }

    fn set_mac(&self, mac: &str) {
        let (pod, _) = self.1[0];
        self.0.ip_batch(&[format!("neigh replace {pod} lladdr {mac} dev in4")]).unwrap();
    }
}

/// Whether one of three datagrams of the stranger arrives in the pod.
fn arrives(stranger: &Host, pod: &Netns, ip: IpAddr) -> bool {
    let receiver = pod.enter(|| UdpSocket::bind((ip, PORT)).unwrap()).unwrap();
    receiver.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let any: SocketAddr = if ip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
    let sender = stranger.enter(|| UdpSocket::bind(any).unwrap()).unwrap();
    (0..3).any(|_| {
        sender.send_to(b"!", (ip, PORT)).unwrap();
        receiver.recv_from(&mut [0; 8]).is_ok()
    })
}

/// How many addresses the guard lets send, as nft lists it; `None` without one.
fn admitted(host: &Host) -> Option<usize> {
    let text = host.run("nft", ["-j", "list", "table", "inet", "weft-guard"]).ok()?;
    let listed: Value = serde_json::from_str(&text).ok()?;
    let sets = listed["nftables"].as_array()?.iter().filter_map(|entry| entry.get("set"));
    Some(sets.map(|set| set["elem"].as_array().map_or(0, Vec::len)).sum())
}
