//! `weft cleanup` leaves a host as it was before the daemon came: what others
//! have there stands.

#![cfg(test)]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use netns_harness::{Daemon, Host, Lab, Netns, wait_until};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);

#[test]
fn a_host_is_as_it_was_before_the_daemon_came() {
    let lab = Lab::new("cleanup").unwrap();
    let (node, peer) = (Node::new(&lab, "h1"), Node::new(&lab, "h2"));
    foreign_things(&node.host);
    let before = node.state();

    let mut daemon = node.daemon(&lab, &["--ip-masq", "--ip-blackhole-route"]);
    let _peer = peer.daemon(&lab, &[]);
    node.wait_for_peer(&daemon);
    let pod = lab.pod(&node.host, "p1").unwrap();
    node.plugin("ADD", &pod);

    let refused = node.cleanup(&[]);
    assert!(!refused.status.success() && said(&refused).contains("is running"), "{refused:?}");
    daemon.terminate(Duration::from_secs(10)).unwrap();
    let with_fabric = node.state();
    let dry = node.cleanup(&["--dry-run"]);
    assert!(dry.status.success(), "{dry:?}");
    assert_same(&node.state(), &with_fabric, "a dry run changes nothing");

    let in_use = node.cleanup(&["--cni"]);
    assert!(!in_use.status.success() && said(&in_use).contains("bridge cni0 has ports veth"), "{in_use:?}");
    node.plugin("DEL", &pod);
    let swept = node.cleanup(&["--cni"]);
    assert!(swept.status.success(), "{swept:?}");
    assert_same(&node.state(), &before, &said(&swept));

    let printed = said(&in_use).replace("removed ", "would remove ");
    for line in said(&dry).lines() {
        assert!(printed.contains(line), "{line:?} of the dry run: {printed}");
    }
    let again = node.cleanup(&["--cni"]);
    assert!(again.status.success() && said(&again).contains("nothing of weft"), "{again:?}");
}

#[test]
fn what_flannel_left_goes_too() {
    let lab = Lab::new("cleanup-go").unwrap();
    let node = Node::new(&lab, "h1");
    foreign_things(&node.host);
    let before = node.state();
    flannels_things(&node.host);
    assert_ne!(node.state(), before);

    let swept = node.cleanup(&[]);
    assert!(swept.status.success(), "{swept:?}");
    assert_same(&node.state(), &before, &said(&swept));
}

#[test]
fn the_store_goes_when_nobody_serves_it() {
    let lab = Lab::new("cleanup-store").unwrap();
    let (node, other) = (Node::new(&lab, "h1"), Node::new(&lab, "h2"));
    let daemon = other.daemon(&lab, &[]);
    wait_until(SOON, "a lease", || other.path("flannel/subnet.env").exists()).unwrap();

    let store = lab.dir().join("store");
    let served = node.cleanup(&["--store"]);
    assert!(!served.status.success() && said(&served).contains("serves it"), "{served:?}");
    drop(daemon);
    let swept = node.cleanup(&["--store"]);
    assert!(swept.status.success() && !store.exists(), "{swept:?}");
}

#[test]
fn the_lease_goes_from_etcd_and_no_other() {
    let lab = Lab::new("cleanup-lease").unwrap();
    let node = Node::new(&lab, "h1");
    let url = format!("http://{}:2379", lab.switch_ip4());
    let mut command = lab.switch().command("etcd");
    command.arg("--data-dir").arg(lab.dir().join("etcd"));
    command.args(["--listen-client-urls", "http://0.0.0.0:2379", "--advertise-client-urls", &url]);
    let _etcd =
        lab.switch().spawn("etcd", command.args(["--listen-peer-urls", "http://127.0.0.1:2380"])).unwrap();
    let etcdctl = |args: &[&str]| {
        let all = ["ETCDCTL_API=3", "etcdctl", "--endpoints", &url];
        lab.switch().run("env", all.iter().chain(args))
    };
    wait_until(SOON, "etcd", || etcdctl(&["endpoint", "health"]).is_ok()).unwrap();
    let subnets = "/coreos.com/network/subnets/";
    let others = format!("{subnets}10.42.200.0-24");
    etcdctl(&[
        "put",
        "/coreos.com/network/config",
        r#"{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan"}}"#,
    ])
    .unwrap();
    etcdctl(&["put", &others, r#"{"PublicIP":"192.168.77.9","PublicIPv6":null}"#]).unwrap();

    let mut daemon = node.daemon(&lab, &["--etcd-endpoints", &url]);
    wait_until(SOON, "a lease", || node.path("weft/admin.sock").exists()).unwrap();
    daemon.terminate(Duration::from_secs(10)).unwrap();
    assert_eq!(etcdctl(&["get", "--prefix", "--keys-only", subnets]).unwrap().split_whitespace().count(), 2);
    let swept = node.cleanup(&["--store", "--etcd-endpoints", &url]);
    assert!(swept.status.success() && said(&swept).contains("removed lease 10.42."), "{swept:?}");
    assert_eq!(etcdctl(&["get", "--prefix", "--keys-only", subnets]).unwrap().trim(), others);
}

/// What stands on hosts, and a few things that look like ours.
fn foreign_things(host: &Host) {
    host.ip_batch(&[
        "link add br-other type bridge",
        "addr add 10.99.1.1/24 dev br-other",
        "link set br-other up",
        "link add flannel.7 type veth peer name flannel.net",
        "link add vxlan.1 type vxlan id 77 dstport 4790",
        "nexthop add id 7 via 192.168.77.254 dev eth0",
        "route add 10.98.0.0/16 nhid 7",
        "route add 10.97.0.0/16 via 192.168.77.254",
        "route add blackhole 10.96.0.0/16",
        "rule add from 10.99.0.0/16 table 77",
    ])
    .unwrap();
    let nft = "add table inet other
        add chain inet other forward { type filter hook forward priority 0 ; }
        add rule inet other forward ip saddr 10.99.0.0/16 accept
        add table ip flannel-other";
    host.run("nft", [nft]).unwrap();
    for tool in ["iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"] {
        host.run(tool, ["-t", "nat", "-N", "OTHER"]).unwrap();
        host.run(tool, ["-t", "nat", "-A", "POSTROUTING", "-j", "OTHER"]).unwrap();
        host.run(tool, ["-A", "FORWARD", "-m", "comment", "--comment", "not flannel's", "-j", "ACCEPT"])
            .unwrap();
    }
}

/// As flanneld makes them, in every mode at once: routes without a protocol
/// number, rules in both places.
fn flannels_things(host: &Host) {
    host.ip_batch(&[
        "link add flannel.1 type vxlan id 1 dev eth0 local 192.168.77.1 dstport 8472 nolearning",
        "addr add 10.42.3.0/32 dev flannel.1",
        "link set flannel.1 up",
        "route add 10.42.4.0/24 via 10.42.4.0 dev flannel.1 onlink",
        "neigh add 10.42.4.0 lladdr 02:00:00:00:00:04 dev flannel.1 nud permanent",
        "link add flannel-v6.1 type vxlan id 1 dev eth0 local fd77::1 dstport 8472 nolearning",
        "link set flannel-v6.1 up",
        "route add fd42:4::/64 via fd42:4:: dev flannel-v6.1 onlink",
        "tuntap add flannel0 mode tun",
        "route add blackhole 10.42.3.0/24",
    ])
    .unwrap();
    let nft = "add table ip flannel-ipv4
        add chain ip flannel-ipv4 postrtg { type nat hook postrouting priority 100 ; }
        add rule ip flannel-ipv4 postrtg ip saddr 10.42.3.0/24 accept
        add table ip6 flannel-ipv6";
    host.run("nft", [nft]).unwrap();
    for tool in ["iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"] {
        for (table, hook, chain, comment) in [
            ("nat", "POSTROUTING", "FLANNEL-POSTRTG", "flanneld masq"),
            ("filter", "FORWARD", "FLANNEL-FWD", "flanneld forward"),
        ] {
            host.run(tool, ["-t", table, "-N", chain]).unwrap();
            host.run(tool, ["-t", table, "-A", chain, "-m", "comment", "--comment", comment, "-j", "RETURN"])
                .unwrap();
            host.run(tool, ["-t", table, "-A", hook, "-m", "comment", "--comment", comment, "-j", chain])
                .unwrap();
        }
    }
    let dir = host.dir().join("flannel");
    fs::create_dir(&dir).unwrap();
    let env =
        "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.3.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
    fs::write(dir.join("subnet.env"), env).unwrap();
    fs::write(dir.join("wgkey"), "key").unwrap();
}

/// By question.
type State = BTreeMap<String, String>;

struct Node {
    host: Host,
    store: PathBuf,
}

impl Node {
    fn new(lab: &Lab, name: &str) -> Node {
        let node = Node { host: lab.host(name).unwrap(), store: lab.dir().join("store") };
        fs::create_dir(node.path("net.d")).unwrap();
        // Other networks' addresses are kept there too.
        fs::create_dir(node.path("networks")).unwrap();
        let conflist = json!({"name": "cbr0", "cniVersion": "1.0.0", "plugins": [node.plugin_config()]});
        fs::write(node.path("net.d/10-weft.conflist"), conflist.to_string()).unwrap();
        node
    }

    fn path(&self, what: &str) -> PathBuf {
        self.host.dir().join(what)
    }

    fn daemon(&self, lab: &Lab, extra: &[&str]) -> Daemon {
        let mut command = self.host.command(env!("CARGO_BIN_EXE_weft"));
        command.args(["daemon", "--network", "10.42.0.0/16", "--data-dir"]).arg(lab.dir().join("store"));
        command.arg("--subnet-file").arg(self.path("flannel/subnet.env"));
        command.arg("--admin-socket").arg(self.path("weft/admin.sock")).args(extra);
        self.host.spawn("weft", &mut command).unwrap()
    }

    fn wait_for_peer(&self, daemon: &Daemon) {
        let has_route = || {
            let routes = self.host.ip_json("route show dev flannel.1").unwrap_or_default();
            routes.as_array().is_some_and(|routes| !routes.is_empty())
        };
        let ready = || has_route() && self.path("flannel/subnet.env").exists();
        wait_until(SOON, "a peer", ready).unwrap_or_else(|error| panic!("{error}: {}", daemon.log_tail(50)));
    }

    fn cleanup(&self, extra: &[&str]) -> Output {
        let mut command = self.host.command(env!("CARGO_BIN_EXE_weft"));
        command.arg("cleanup").arg("--subnet-file").arg(self.path("flannel/subnet.env"));
        command.arg("--admin-socket").arg(self.path("weft/admin.sock"));
        command.arg("--data-dir").arg(&self.store).arg("--cni-conf-dir").arg(self.path("net.d")).args(extra);
        command.output().unwrap()
    }

    fn plugin_config(&self) -> Value {
        json!({
            "type": "flannel", "subnetFile": self.path("flannel/subnet.env"), "dataDir": self.path("cni"),
            "ipam": {"dataDir": self.path("networks")}, "delegate": {"isDefaultGateway": true},
        })
    }

    fn plugin(&self, verb: &str, pod: &Netns) {
        let mut config = self.plugin_config();
        config["name"] = json!("cbr0");
        config["cniVersion"] = json!("1.0.0");
        // Built beside `weft` by `cargo build --workspace`.
        let plugin = Path::new(env!("CARGO_BIN_EXE_weft")).with_file_name("weft-cni");
        let mut child = self
            .host
            .command(&plugin)
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", "p1")
            .env("CNI_NETNS", pod.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", plugin.parent().unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{verb}: {output:?}");
    }

    /// All that the fabric could have touched, by what was asked.
    fn state(&self) -> State {
        let mut state = BTreeMap::new();
        for question in [
            "ip link",
            "ip addr",
            "ip route show table all",
            "ip -6 route show table all",
            "ip rule",
            "ip nexthop",
            "ip neigh show nud permanent",
            "bridge fdb",
            "nft list ruleset",
            "iptables-legacy-save",
            "ip6tables-legacy-save",
        ] {
            let (program, args) = question.split_once(' ').unwrap_or((question, ""));
            let answer = self.host.run(program, args.split_whitespace()).unwrap();
            state.insert(question.to_owned(), steady(&answer));
        }
        let files = files(self.host.dir());
        state.insert("files".to_owned(), files.join("\n"));
        state
    }
}

/// Without times, counters and what the kernel does by itself with a new link.
fn steady(answer: &str) -> String {
    let passing = ["#", "fe80:", "ff00::/8", "valid_lft", "33:33:", "01:00:5e:"];
    let lines = answer.lines().filter(|line| !passing.iter().any(|part| line.contains(part)));
    lines.map(without_counters).collect::<Vec<_>>().join("\n")
}

/// `:FORWARD ACCEPT [3:252]` and `counter packets 3 bytes 252`.
fn without_counters(line: &str) -> String {
    let mut previous = "";
    let mut words = Vec::new();
    for word in line.split(' ') {
        let is_count = word.starts_with('[') || ["packets", "bytes"].contains(&previous);
        words.extend((!is_count).then_some(word));
        previous = word;
    }
    words.join(" ")
}

/// Fails with the lines that differ and no others.
fn assert_same(now: &State, before: &State, after_what: &str) {
    for (question, answer) in before {
        let (had, has): (Vec<_>, Vec<_>) = (answer.lines().collect(), now[question].lines().collect());
        let lost: Vec<_> = had.iter().filter(|line| !has.contains(line)).collect();
        let left: Vec<_> = has.iter().filter(|line| !had.contains(line)).collect();
        assert!(had == has, "{question}: lost {lost:#?}, left {left:#?}: {after_what}");
    }
}

fn files(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ext| ext == "log") {
            continue;
        }
        found.push(path.display().to_string());
        if path.is_dir() {
            found.extend(files(&path));
        }
    }
    found.sort();
    found
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
