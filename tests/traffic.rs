//! Traffic rules with real packets: one test for all of them, run on nftables and
//! on both variants of iptables. Both ends of a packet are sockets inside
//! namespaces; what is looked at is the source address that arrives.

#![allow(clippy::unwrap_used)] // in the helpers of tests, too

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use netns_harness::{Daemon, Host, Lab, Netns, wait_until};
use rustix::net::netdevice::name_to_index;
use rustix::net::sockopt;
use serde_json::json;

const SOON: Duration = Duration::from_secs(20);
const PORT: u16 = 5000;
/// Packets to this port get a mark with kube-proxy's bit on their way in.
const MARKED: u16 = 5001;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Nftables,
    Iptables,
    Legacy,
}

#[test]
fn every_rule_holds_on_nftables() {
    every_rule_holds(Mode::Nftables);
}

#[test]
fn every_rule_holds_on_iptables() {
    every_rule_holds(Mode::Iptables);
}

#[test]
fn every_rule_holds_on_legacy_iptables() {
    every_rule_holds(Mode::Legacy);
}

fn every_rule_holds(mode: Mode) {
    let mut node = Nodes::new("rules", 2);
    for host in &node.hosts {
        mode.drop_what_is_forwarded(host);
        host.run("nft", ["add table inet marks"]).unwrap();
        host.run("nft", ["add chain inet marks in { type filter hook prerouting priority -200 ; }"]).unwrap();
        host.run("nft", [format!("add rule inet marks in udp dport {MARKED} meta mark set 0x4001")]).unwrap();
    }
    node.start(0, mode, &["--ip-masq"]);
    node.start(1, mode, &["--ip-masq"]);
    let (a, b) = (node.pod(0), node.pod(1));
    let (host, outside) = (&node.hosts[0], node.lab.switch());
    outside.ip_batch(&["addr add 203.0.113.1/32 dev lo", "addr add 2001:db8::1/128 dev lo nodad"]).unwrap();
    for (i, pod) in [&a, &b].iter().enumerate() {
        let (v4, v6) = (node.hosts[i].ip4(), node.hosts[i].ip6());
        let routes = [(pod.ip4, v4), (pod.gateway4, v4), (pod.ip6, v6), (pod.gateway6, v6)];
        outside.ip_batch(&routes.map(|(to, via)| format!("route add {to} via {via}"))).unwrap();
    }

    for v6 in [false, true] {
        let pick = |v4: &str, v6_: &str| -> IpAddr { if v6 { v6_ } else { v4 }.parse().unwrap() };
        let (pod, far) = if v6 { (a.ip6, b.ip6) } else { (a.ip4, b.ip4) };
        let (own, gateway) = if v6 { (host.ip6(), a.gateway6) } else { (host.ip4(), a.gateway4) };
        let (router, plain) = (pick("192.168.77.254", "fd77:0::fe"), pick("203.0.113.1", "2001:db8::1"));
        let seen = |from: &Netns, source, to: &Netns, target, port| {
            arrives_from(from, source, to, SocketAddr::new(target, port))
        };

        assert_eq!(
            seen(&a.netns, None, outside, router, PORT),
            Some(own),
            "{mode:?}: to the outside: masqueraded"
        );
        assert_eq!(seen(&a.netns, None, &b.netns, far, PORT), Some(pod), "{mode:?}: to another node's pod");
        assert_eq!(seen(&a.netns, None, outside, plain, PORT), Some(pod), "{mode:?}: to nonMasqueradeCIDRs");
        assert_eq!(
            seen(&a.netns, None, outside, router, MARKED),
            Some(pod),
            "{mode:?}: marked by kube-proxy"
        );
        assert_eq!(
            seen(outside, None, &a.netns, pod, PORT),
            Some(router),
            "{mode:?}: from outside to a pod here"
        );
        let group = pick("239.1.2.3", "ff05::123");
        assert_eq!(seen(host, Some(gateway), outside, group, PORT), Some(gateway), "{mode:?}: multicast");
        assert_eq!(
            seen(host, Some(gateway), outside, router, PORT),
            Some(own),
            "{mode:?}: the same, unicast"
        );
        let tunnel = if v6 { a.tunnel6 } else { a.tunnel4 };
        assert_eq!(
            seen(host, Some(own), &b.netns, far, PORT),
            Some(tunnel),
            "{mode:?}: host to another node's pod"
        );
    }
    assert_eq!(node.env(0, "FLANNEL_IPMASQ"), "true");
}

#[test]
fn without_forward_rules_the_hosts_policy_decides() {
    for mode in [Mode::Iptables, Mode::Legacy] {
        let mut node = Nodes::new("policy", 1);
        mode.drop_what_is_forwarded(&node.hosts[0]);
        node.start(0, mode, &["--iptables-forward-rules=false"]);
        let pod = node.pod(0);
        let router: SocketAddr = (Ipv4Addr::new(192, 168, 77, 254), PORT).into();
        assert_eq!(arrives_from(&pod.netns, None, node.lab.switch(), router), None, "{mode:?}");
        assert_eq!(node.env(0, "FLANNEL_IPMASQ"), "false");
        assert_eq!(mode.own_rules(&node.hosts[0]), "");
    }
}

#[test]
fn a_foreign_chain_that_drops_is_named() {
    let mut node = Nodes::new("foreign", 1);
    let host = &node.hosts[0];
    host.run("nft", ["add table inet fence"]).unwrap();
    host.run("nft", ["add chain inet fence pass { type filter hook forward priority 10 ; policy drop ; }"])
        .unwrap();
    host.run("iptables-nft", ["-P", "FORWARD", "DROP"]).unwrap();
    host.run("ip6tables-legacy", ["-P", "FORWARD", "DROP"]).unwrap();
    node.start(0, Mode::Nftables, &[]);
    let log = node.daemons[0].log_tail(100);
    for chain in ["inet fence pass", "ip filter FORWARD", "ip6tables filter FORWARD (legacy)"] {
        assert!(log.contains(&format!("chain {chain} drops")), "{chain}: {log}");
    }
}

#[test]
fn without_a_tool_the_fabric_goes_on_and_says_so() {
    let mut node = Nodes::new("bare", 1);
    node.path = Some(node.lab.dir().display().to_string());
    node.start(0, Mode::Iptables, &[]);
    let log = node.daemons[0].log_tail(100);
    assert!(log.contains("WARN") && log.contains("neither nft nor iptables is installed"), "{log}");

    node.daemons[0].terminate(SOON).unwrap();
    node.spawn(0, Mode::Iptables, &["--ip-masq"]);
    let says =
        || node.status(0).is_err_and(|e| e.to_string().contains("neither nft nor iptables is installed"));
    wait_until(SOON, "a status that says it", says).unwrap();
}

#[test]
fn a_tool_with_words_of_its_own_is_no_reason_to_write_for_ever() {
    let mut node = Nodes::new("accent", 1);
    let (dir, calls) = (node.lab.dir().join("bin"), node.lab.dir().join("calls"));
    std::fs::create_dir(&dir).unwrap();
    let script = format!(
        "#!/bin/sh\necho \"$*\" >> {}\nout=$(/usr/sbin/nft \"$@\") || exit\nprintf %s \"$out\" | sed 's/16384/\"0x4000\"/g; s/8472/\"0x2118\"/g'\n",
        calls.display()
    );
    std::fs::write(dir.join("nft"), script).unwrap();
    std::fs::set_permissions(dir.join("nft"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    node.path = Some(format!("{}:{}", dir.display(), std::env::var("PATH").unwrap()));
    let writes = || std::fs::read_to_string(&calls).unwrap().lines().filter(|call| *call == "-f -").count();

    node.start(0, Mode::Nftables, &["--ip-masq", "--audit-interval=1"]);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(writes(), 5, "two for each family, one of the guard: {}", node.daemons[0].log_tail(30));
    node.hosts[0].run("nft", ["flush ruleset"]).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(writes(), 8, "one for each family and the guard: {}", node.daemons[0].log_tail(30));
}

/// By notification, of legacy iptables by the look each second: the audit is a
/// minute away.
#[test]
fn removed_rules_come_back() {
    for mode in [Mode::Nftables, Mode::Iptables, Mode::Legacy] {
        let mut node = Nodes::new("back", 1);
        mode.prepare(&node.hosts[0]);
        let resync = if mode == Mode::Legacy { "--iptables-resync=1" } else { "--iptables-resync=60" };
        node.start(0, mode, &["--ip-masq", resync]);
        let host = &node.hosts[0];
        let whole = mode.own_rules(host);
        assert!(whole.lines().count() > 15, "{mode:?}: {whole}");
        for (program, arguments) in mode.faults() {
            host.run(program, arguments).unwrap();
            let begun = Instant::now();
            let back = || mode.own_rules(host) == whole;
            if let Err(error) = wait_until(SOON, &format!("rules after {program} {arguments:?}"), back) {
                panic!("{error}: {}: {}", mode.own_rules(host), node.daemons[0].log_tail(30));
            }
            println!("{mode:?}: {program} {arguments:?}: back after {:?}", begun.elapsed());
        }
        let counted = || node.repairs(0, "rules") >= mode.faults().len() as u64;
        wait_until(SOON, "rules among what was healed", counted).unwrap();
    }
}

#[test]
fn what_is_well_is_not_written_again() {
    for mode in [Mode::Nftables, Mode::Iptables, Mode::Legacy] {
        let mut node = Nodes::new("idle", 1);
        mode.prepare(&node.hosts[0]);
        let options = ["--ip-masq", "--iptables-resync=1", "--audit-interval=1", "--ip-blackhole-route"];
        node.start(0, mode, &options);
        let pod = node.pod(0);
        let router: SocketAddr = (Ipv4Addr::new(192, 168, 77, 254), PORT).into();
        arrives_from(&pod.netns, None, node.lab.switch(), router).unwrap();

        let host = node.hosts[0].clone();
        let counters = mode.counters(&host);
        assert!(mode != Mode::Legacy || counters.contains("[1:"), "{counters}");
        let rules = host.spawn("nft-monitor", host.command("nft").arg("monitor")).unwrap();
        let routes = host.spawn("ip-monitor", host.command("ip").args(["monitor", "route"])).unwrap();
        std::thread::sleep(Duration::from_secs(3));
        assert!(node.daemons[0].terminate(SOON).unwrap().success());
        node.start(0, mode, &options);
        std::thread::sleep(Duration::from_secs(2));

        assert_eq!(rules.log_tail(100), "", "{mode:?}");
        let changed = routes.log_tail(100);
        assert!(!changed.contains("blackhole"), "{mode:?}: {changed}");
        assert_eq!(mode.counters(&host), counters, "{mode:?}: a chain that is filled anew counts from zero");
    }
}

#[test]
fn changing_the_mode_or_the_network_leaves_nothing_of_the_old() {
    let mut node = Nodes::new("change", 1);
    let modes = [Mode::Iptables, Mode::Nftables, Mode::Legacy, Mode::Nftables, Mode::Iptables];
    for (round, mode) in modes.into_iter().enumerate() {
        node.network = format!("10.{}.0.0/16", 50 + round);
        mode.prepare(&node.hosts[0]);
        node.start(0, mode, &["--ip-masq"]);
        let host = &node.hosts[0];
        for other in [Mode::Nftables, Mode::Iptables, Mode::Legacy] {
            let rules = other.own_rules(host);
            if other != mode {
                assert_eq!(rules, "", "{mode:?} after {round} others: of {other:?}");
                continue;
            }
            assert!(rules.contains(&format!("10.{}.0.0/16", 50 + round)), "{rules}");
            assert!(round == 0 || !rules.contains(&format!("10.{}.0.0", 49 + round)), "{rules}");
        }
        node.daemons[0].terminate(SOON).unwrap();
        mode.tidy(host);
        // Another store with another config.
        node.store += 1;
    }
    node.start(0, Mode::Nftables, &["--iptables-forward-rules=false"]);
    for mode in [Mode::Nftables, Mode::Iptables, Mode::Legacy] {
        assert_eq!(mode.own_rules(&node.hosts[0]), "", "switched off: {mode:?}");
    }
}

#[test]
fn a_blackhole_lives_beside_the_bridge() {
    let mut node = Nodes::new("hole", 1);
    node.start(0, Mode::Nftables, &["--ip-blackhole-route"]);
    let pod = node.pod(0);
    let host = node.hosts[0].clone();
    let holes = || {
        let routes = |family: &str| host.ip_json(&format!("{family} route show type blackhole")).unwrap();
        (routes("-4").as_array().unwrap().len(), routes("-6").as_array().unwrap().len())
    };
    assert_eq!(holes(), (1, 1));
    for ip in [pod.ip4, pod.ip6] {
        assert_eq!(host.ping(ip, 2).unwrap().lost(), 0, "the bridge's route goes first");
    }
    host.run("ip", ["link", "set", "cni0", "down"]).unwrap();
    let route = host.run("ip", ["route", "get", &pod.ip4.to_string()]);
    assert!(route.is_err(), "without the bridge it is dropped here: {route:?}");
    host.run("ip", ["link", "set", "cni0", "up"]).unwrap();

    for family in ["-4", "-6"] {
        let hole = &host.ip_json(&format!("{family} route show type blackhole")).unwrap()[0];
        let dst = hole["dst"].as_str().unwrap();
        host.run("ip", [family, "route", "del", "blackhole", dst, "metric", "4294967295"]).unwrap();
    }
    wait_until(SOON, "the blackhole routes, by notification", || holes() == (1, 1)).unwrap();
    wait_until(SOON, "them among what was healed", || node.repairs(0, "blackhole") == 2).unwrap();
    host.run("nft", ["delete table inet weft-guard"]).unwrap();
    wait_until(SOON, "the guard among them", || node.repairs(0, "guard") == 1).unwrap();

    node.daemons[0].terminate(SOON).unwrap();
    node.start(0, Mode::Nftables, &[]);
    assert_eq!(holes(), (0, 0), "switched off");
}

impl Mode {
    /// So that the host's tools are of this mode before the daemon looks.
    fn prepare(self, host: &Host) {
        if self == Mode::Legacy {
            for tables in ["iptables-legacy", "ip6tables-legacy"] {
                host.run(tables, ["-A", "INPUT", "-j", "ACCEPT"]).unwrap();
            }
        }
    }

    fn tidy(self, host: &Host) {
        if self == Mode::Legacy {
            for tables in ["iptables-legacy", "ip6tables-legacy"] {
                host.run(tables, ["-D", "INPUT", "-j", "ACCEPT"]).unwrap();
            }
        }
    }

    /// As Docker does. No chain of nftables' own can be outvoted.
    fn drop_what_is_forwarded(self, host: &Host) {
        self.prepare(host);
        let suffix = match self {
            Mode::Nftables => return,
            Mode::Iptables => "nft",
            Mode::Legacy => "legacy",
        };
        for word in ["ip", "ip6"] {
            host.run(&format!("{word}tables-{suffix}"), ["-P", "FORWARD", "DROP"]).unwrap();
        }
    }

    /// Ours of both families, as the tools say it; nothing where there are none.
    fn own_rules(self, host: &Host) -> String {
        let ours = |text: String| -> String {
            text.lines()
                .filter(|line| line.contains("FLANNEL-"))
                .map(|line| format!("{line}\n"))
                .collect::<String>()
        };
        match self {
            Mode::Nftables => ["ip flannel-ipv4", "ip6 flannel-ipv6"]
                .iter()
                .map(|table| host.run("nft", [format!("list table {table}")]).unwrap_or_default())
                .collect::<String>(),
            Mode::Iptables => {
                let save = |program: &str| ours(host.run(program, Vec::<&str>::new()).unwrap());
                [save("iptables-nft-save"), save("ip6tables-nft-save")].concat()
            }
            Mode::Legacy => {
                let save = |program: &str| ours(host.run(program, Vec::<&str>::new()).unwrap());
                [save("iptables-legacy-save"), save("ip6tables-legacy-save")].concat()
            }
        }
        .lines()
        // The counters of a chain's declaration.
        .map(|line| format!("{}\n", line.split(" [").next().unwrap_or(line)))
        .collect()
    }

    /// Of the rules in our masquerading chain, where the kernel counts.
    fn counters(self, host: &Host) -> String {
        let program = match self {
            Mode::Nftables => return String::new(),
            Mode::Iptables => "iptables-nft-save",
            Mode::Legacy => "iptables-legacy-save",
        };
        let saved = host.run(program, ["-c", "-t", "nat"]).unwrap();
        saved
            .lines()
            .filter(|line| line.contains("-A FLANNEL-POSTRTG"))
            .map(|line| format!("{line}\n"))
            .collect()
    }

    fn faults(self) -> Vec<(&'static str, &'static [&'static str])> {
        match self {
            Mode::Nftables => vec![
                ("nft", &["flush ruleset"]),
                ("nft", &["flush chain ip6 flannel-ipv6 postrtg"]),
                ("nft", &["add rule ip flannel-ipv4 forward drop"]),
                ("nft", &["add table ip flannel-ipv4 { flags dormant ; }"]),
            ],
            Mode::Iptables => vec![
                ("iptables-nft", &["-t", "nat", "-F"]),
                ("ip6tables-nft", &["-F"]),
                (
                    "iptables-nft",
                    &["-D", "FORWARD", "-m", "comment", "--comment", "flanneld forward", "-j", "FLANNEL-FWD"],
                ),
                ("iptables-nft", &["-I", "FLANNEL-FWD", "-j", "DROP"]),
            ],
            Mode::Legacy => vec![
                ("iptables-legacy", &["-t", "nat", "-F"]),
                ("ip6tables-legacy", &["-F"]),
                (
                    "iptables-legacy",
                    &[
                        "-t",
                        "nat",
                        "-A",
                        "POSTROUTING",
                        "-m",
                        "comment",
                        "--comment",
                        "flanneld masq",
                        "-j",
                        "FLANNEL-POSTRTG",
                    ],
                ),
            ],
        }
    }
}

/// The source address that a datagram arrives with; `None` where none does.
fn arrives_from(from: &Netns, source: Option<IpAddr>, to: &Netns, target: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr =
        if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let receiver = to
        .enter(|| {
            let bound = if target.ip().is_multicast() { any } else { target.ip() };
            let socket = UdpSocket::bind((bound, target.port()))?;
            socket.set_read_timeout(Some(Duration::from_millis(300)))?;
            match target.ip() {
                IpAddr::V4(group) if group.is_multicast() => {
                    socket.join_multicast_v4(&group, &Ipv4Addr::new(192, 168, 77, 254))?;
                }
                IpAddr::V6(group) if group.is_multicast() => {
                    socket.join_multicast_v6(&group, name_to_index(&socket, "br0")?)?;
                }
                _ => {}
            }
            std::io::Result::Ok(socket)
        })
        .unwrap()
        .unwrap();
    let sender = from
        .enter(|| {
            let socket = UdpSocket::bind((source.unwrap_or(any), 0))?;
            // Or a group is looked for on the link that has the source address.
            if target.ip().is_multicast() {
                let link = name_to_index(&socket, "eth0")?;
                match target {
                    SocketAddr::V4(_) => {
                        let any = Ipv4Addr::UNSPECIFIED;
                        sockopt::set_ip_multicast_if_with_ifindex(&socket, &any, &any, link)?;
                    }
                    SocketAddr::V6(_) => sockopt::set_ipv6_multicast_if(&socket, link)?,
                }
            }
            std::io::Result::Ok(socket)
        })
        .unwrap()
        .unwrap();
    // The first packet may wait for a neighbour for longer than the buffer holds,
    // and IPv6 for its own addresses to be proven unique.
    for _ in 0..40 {
        if sender.send_to(b"?", target).is_ok()
            && let Ok((_, peer)) = receiver.recv_from(&mut [0; 16])
        {
            return Some(peer.ip());
        }
    }
    None
}

/// Nodes that share a built-in store, and pods wired by hand.
struct Nodes {
    // Daemons go before the lab they stand in.
    daemons: Vec<Daemon>,
    hosts: Vec<Host>,
    network: String,
    store: usize,
    /// Where daemons look for programs, if not where we do.
    path: Option<String>,
    lab: Lab,
}

struct Pod {
    netns: Netns,
    ip4: IpAddr,
    ip6: IpAddr,
    gateway4: IpAddr,
    gateway6: IpAddr,
    tunnel4: IpAddr,
    tunnel6: IpAddr,
}

impl Nodes {
    fn new(label: &str, hosts: usize) -> Nodes {
        let lab = Lab::new(label).unwrap();
        let hosts = (1..=hosts).map(|i| lab.host(&format!("h{i}")).unwrap()).collect();
        Nodes { daemons: Vec::new(), hosts, network: "10.42.0.0/16".to_owned(), store: 0, path: None, lab }
    }

    fn start(&mut self, i: usize, mode: Mode, options: &[&str]) {
        self.spawn(i, mode, options);
        if let Err(error) = wait_until(SOON, "a daemon in sync", || self.status(i).is_ok()) {
            panic!("{error}: {:?}: {}", self.status(i), self.daemons[i].log_tail(50));
        }
    }

    fn status(&self, i: usize) -> Result<String, netns_harness::Error> {
        let socket = self.hosts[i].dir().join("admin.sock").display().to_string();
        self.hosts[i].run(env!("CARGO_BIN_EXE_weft"), ["status", "--admin-socket", &socket])
    }

    /// Of one kind, as its status has them.
    fn repairs(&self, i: usize, kind: &str) -> u64 {
        let socket = self.hosts[i].dir().join("admin.sock").display().to_string();
        let arguments = ["status", "--json", "--admin-socket", &socket];
        let status = self.hosts[i].run(env!("CARGO_BIN_EXE_weft"), arguments).unwrap();
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        status["kernel"]["repaired"][kind].as_u64().unwrap_or(0)
    }

    fn spawn(&mut self, i: usize, mode: Mode, options: &[&str]) {
        let config = json!({
            "EnableIPv6": true, "Network": self.network, "IPv6Network": "fd42::/48",
            "EnableNFTables": mode == Mode::Nftables,
            "nonMasqueradeCIDRs": ["203.0.113.0/24", "2001:db8::/32"],
            "Backend": {"Type": "vxlan"},
        });
        let (host, store) = (&self.hosts[i], self.lab.dir().join(format!("store-{}", self.store)));
        let file = host.dir().join("net-conf.json");
        std::fs::write(&file, config.to_string()).unwrap();
        let mut command = host.command(env!("CARGO_BIN_EXE_weft"));
        command.arg("daemon").arg("--data-dir").arg(store).arg("--net-config-path").arg(file);
        command.arg("--subnet-file").arg(host.dir().join("subnet.env"));
        command.arg("--admin-socket").arg(host.dir().join("admin.sock")).args(options);
        command.envs(self.path.iter().map(|path| ("PATH", path)));
        let daemon = host.spawn("weft", &mut command).unwrap();
        match i < self.daemons.len() {
            true => self.daemons[i] = daemon,
            false => self.daemons.push(daemon),
        }
    }

    fn env(&self, i: usize, key: &str) -> String {
        let env = std::fs::read_to_string(self.hosts[i].dir().join("subnet.env")).unwrap();
        env.lines().find_map(|line| line.strip_prefix(&format!("{key}="))).unwrap().to_owned()
    }

    /// The bridge and one pod on it, the second address of the subnet.
    fn pod(&self, i: usize) -> Pod {
        let host = &self.hosts[i];
        let netns = self.lab.pod(host, "pod").unwrap();
        let (net4, net6) = (self.env(i, "FLANNEL_SUBNET"), self.env(i, "FLANNEL_IPV6_SUBNET"));
        let (gateway4, gateway6) = (net4.split('/').next().unwrap(), net6.split('/').next().unwrap());
        let last = |gateway: &str, last: &str| format!("{}{last}", gateway.strip_suffix('1').unwrap());
        let (ip4, ip6) = (last(gateway4, "2"), last(gateway6, "2"));
        host.ip_batch(&[
            "link add cni0 type bridge forward_delay 0".to_owned(),
            format!("addr add {net4} dev cni0"),
            format!("addr add {net6} dev cni0 nodad"),
            "link set cni0 up".to_owned(),
            format!("link add veth0 type veth peer name eth0 netns {}", netns.name()),
            "link set veth0 master cni0 up".to_owned(),
        ])
        .unwrap();
        netns
            .ip_batch(&[
                format!("addr add {ip4}/24 dev eth0"),
                format!("addr add {ip6}/64 dev eth0 nodad"),
                "link set eth0 up".to_owned(),
                format!("route add default via {gateway4}"),
                format!("route add default via {gateway6}"),
            ])
            .unwrap();
        Pod {
            netns,
            ip4: ip4.parse().unwrap(),
            ip6: ip6.parse().unwrap(),
            gateway4: gateway4.parse().unwrap(),
            gateway6: gateway6.parse().unwrap(),
            tunnel4: last(gateway4, "0").parse().unwrap(),
            tunnel6: last(gateway6, "0").parse().unwrap(),
        }
    }
}
