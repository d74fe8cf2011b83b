//! `weft doctor` on a healthy node, and on one for each thing that can be wrong.

use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::path::PathBuf;

use netns_harness::{Host, wait_until};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::Value;

use crate::lab::{DUAL, Fabric, SOON, VXLAN, plugin};

#[test]
fn a_healthy_node_has_nothing_to_complain_of() {
    for config in [DUAL, r#"{"Network":"10.42.0.0/16","Backend":{"Type":"host-gw"}}"#] {
        let patient = Patient::new("well", config);
        let (checks, ok) = patient.examine(&[]);
        let found: Vec<_> =
            checks.iter().filter(|check| check["findings"] != serde_json::json!([])).collect();
        assert!(ok && found.is_empty(), "{found:#?}");
        assert_eq!(checks.len(), 14);
        let peers = seen(&checks, "peers");
        assert!(peers.contains("answer through the fabric, also to packets of"), "{peers}");
    }
}

#[test]
fn settings_and_links_that_are_wrong_are_named() {
    let mut patient = Patient::new("links", DUAL);
    let host = patient.host();
    host.run("ip", ["route", "add", "10.42.128.0/17", "dev", "eth0"]).unwrap();
    patient.finds("overlap", "problem", "10.42.0.0/16 overlaps route 10.42.128.0/17 dev eth0", &[]);
    host.run("ip", ["route", "del", "10.42.128.0/17"]).unwrap();

    let gateway = patient.fabric.subnet_of(0).replace(".0/", ".1/");
    host.ip_batch(&[format!("addr del {gateway} dev cni0"), "addr add 10.99.0.1/24 dev cni0".to_owned()])
        .unwrap();
    patient.finds("bridge", "problem", "cni0 has 10.99.0.1/24 and not", &[]);
    host.ip_batch(&[format!("addr add {gateway} dev cni0"), "addr del 10.99.0.1/24 dev cni0".to_owned()])
        .unwrap();
    host.ip_batch(&["link set cni0 mtu 1500"]).unwrap();
    patient.finds("mtu", "problem", "cni0 has an MTU of 1500, the fabric leaves 1430", &[]);
    host.ip_batch(&["link set cni0 mtu 1430"]).unwrap();

    assert!(patient.fabric.daemons[0].terminate(SOON).unwrap().success());
    patient.finds("daemon", "problem", "is `weft daemon` running", &[]);
    // Which the daemon would put right.
    host.sysctl("ipv4/ip_forward", "0").unwrap();
    host.sysctl("ipv6/conf/all/forwarding", "0").unwrap();
    patient.finds("sysctls", "problem", "net.ipv4.ip_forward is 0", &[]);
    patient.finds("sysctls", "problem", "net.ipv6.conf.all.forwarding is 0", &[]);
    host.sysctl("ipv4/ip_forward", "1").unwrap();
    host.sysctl("ipv6/conf/all/forwarding", "1").unwrap();
    host.ip_batch(&["link set eth0 mtu 1400"]).unwrap();
    patient.finds("mtu", "problem", "flannel.1 has an MTU of 1450, the uplink eth0 leaves 1350", &[]);
    host.ip_batch(&["link del flannel.1"]).unwrap();
    let bind = |address: &str| host.enter(|| UdpSocket::bind(address).unwrap()).unwrap();
    let taken = bind("127.0.0.1:8472");
    patient.finds("ports", "problem", "UDP port 8472 is taken, and flannel.1 is not there", &[]);
    drop(taken);
    let _taken = host.enter(|| TcpListener::bind("127.0.0.1:8471").unwrap()).unwrap();
    patient.finds("ports", "problem", "TCP 127.0.0.1:8471 is taken", &["--healthz-port=8471"]);
}

#[test]
fn peers_that_are_not_reached_are_named_with_what_is_in_the_way() {
    let patient = Patient::new("peers", DUAL);
    let (host, other, switch) =
        (patient.host(), patient.fabric.hosts[1].clone(), patient.fabric.lab.switch());
    let theirs = patient.fabric.subnet_of(1);

    switch.ip_batch(&["link set h2 mtu 1400"]).unwrap();
    other.ip_batch(&["link set eth0 mtu 1500"]).unwrap();
    patient.finds("peers", "problem", "2 of 2 subnets answer small packets, and none of 1430 bytes", &[]);
    switch.ip_batch(&["link set h2 mtu 1500"]).unwrap();
    // What routers told of the narrow way is remembered for ten minutes.
    for host in [&host, &other] {
        host.run("ip", ["-6", "route", "flush", "cache"]).unwrap();
    }

    other.run("nft", ["add table inet fw; add chain inet fw in { type filter hook input priority -400; }; add rule inet fw in udp dport 8472 drop"]).unwrap();
    let silent =
        format!("do not answer through the tunnel, though their nodes answer: {theirs} at {}", other.ip4());
    patient.finds("peers", "problem", &silent, &[]);
    other.run("nft", ["delete table inet fw"]).unwrap();

    patient.fabric.lab.cut_between(&host, &other).unwrap();
    let gone = format!("do not answer, nor do their nodes: {theirs} at {}", other.ip4());
    patient.finds("peers", "problem", &gone, &[]);
    patient.fabric.lab.mend_between(&host, &other).unwrap();
    let (checks, ok) = patient.examine(&[]);
    assert!(ok, "all is mended: {checks:#?}");
}

#[test]
fn rules_of_others_that_drop_are_named() {
    let patient = Patient::new("drops", DUAL);
    let host = patient.host();
    let rules = |text: &str| host.run("nft", [text]).unwrap();
    rules("add table inet fw; add chain inet fw pass { type filter hook forward priority 0; policy drop; }");
    patient.finds("firewall", "problem", "chain inet fw pass drops what is forwarded", &[]);
    rules("flush table inet fw; delete chain inet fw pass");

    // etcd and echo answers are let in, the tunnel is not.
    rules(
        "add chain inet fw in { type filter hook input priority 0; policy drop; }; add rule inet fw in ip protocol tcp accept; add rule inet fw in meta l4proto { icmp, icmpv6 } accept",
    );
    patient.finds(
        "firewall",
        "problem",
        "chain inet fw in drops what comes in, and no rule beside it names UDP port 8472",
        &[],
    );
    rules("add rule inet fw in udp dport 8000-9000 accept");
    let (checks, ok) = patient.examine(&[]);
    assert!(ok, "{checks:#?}");
    rules("delete table inet fw");

    host.run("iptables-nft", ["-P", "INPUT", "DROP"]).unwrap();
    host.run("iptables-nft", ["-A", "INPUT", "-p", "tcp", "-j", "ACCEPT"]).unwrap();
    patient.finds(
        "firewall",
        "problem",
        "iptables filter INPUT (iptables (nf_tables)) drops what comes in",
        &[],
    );
    host.run("iptables-nft", ["-A", "INPUT", "-j", "ACCEPT"]).unwrap();
    patient.finds("firewall", "warning", "iptables filter INPUT", &[]);
}

#[test]
fn a_store_that_is_away_refuses_or_has_nothing_is_named() {
    let patient = Patient::new("store", DUAL);
    let switch = patient.fabric.lab.switch_ip4();
    patient.finds("store", "problem", "has no network config", &["--etcd-prefix=/nothing"]);
    patient.finds("store", "problem", "http://192.0.2.1:1", &["--etcd-endpoints=http://192.0.2.1:1"]);

    let server = patient.fabric.lab.switch().enter(|| TcpListener::bind((switch, 2381)).unwrap()).unwrap();
    std::thread::spawn(move || {
        for mut stream in server.incoming().map_while(Result::ok) {
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
    });
    let fake = format!("--etcd-endpoints=http://{switch}:2381");
    patient.finds("clock", "problem", "ahead of http://", &[&fake]);

    patient.fabric.put("subnets/10.42.200.0-24&fd42:0:0:c8::-64", "\u{1b}[2J");
    patient.finds("leases", "warning", "10.42.200.0-24", &[]);
    for args in
        [&["user", "add", "root:secret"][..], &["user", "grant-role", "root", "root"], &["auth", "enable"]]
    {
        patient.fabric.etcdctl(args);
    }
    patient.finds("store", "problem", "user name is empty", &[]);
    let login = ["--etcd-username=root", "--etcd-password=secret"];
    assert!(seen(&patient.examine(&login).0, "store").ends_with("answers"));
}

#[test]
fn hundreds_of_peers_that_are_gone_are_summed_up() {
    let patient = Patient::new("gone", &VXLAN.replace("10.42.0.0/16", "10.42.0.0/15"));
    patient.fabric.put_peers(300);
    // Nothing leads there, and nobody says so.
    patient.host().run("ip", ["route", "add", "10.9.0.0/16", "dev", "lo"]).unwrap();
    wait_until(SOON, "their routes", || patient.fabric.has_route(0, "10.43.143.0/24")).unwrap();
    patient.finds(
        "peers",
        "problem",
        "256 of 301 subnets do not answer, nor do their nodes: 10.42.100.0/24 at 10.9.0.100, ",
        &[],
    );
    patient.finds("peers", "problem", "44 of 301 subnets do not answer either", &[]);
    patient.finds("peers", "problem", "… and 246 more", &[]);
}

/// etcd tells the time over TLS as well; a skew is told of in the same way as in
/// plain, which the test of the store shows.
#[test]
fn the_clock_is_compared_with_an_etcd_behind_tls() {
    let patient = Patient::new("tls", DUAL);
    let (switch, address) = (patient.fabric.lab.switch(), patient.fabric.lab.switch_ip4());
    let file = |name: &str| patient.fabric.lab.dir().join(name).display().to_string();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let cert = CertificateParams::new(vec![address.to_string()]).unwrap().signed_by(&key, &ca).unwrap();
    for (name, pem) in [("ca", ca.pem()), ("cert", cert.pem()), ("key", key.serialize_pem())] {
        std::fs::write(file(name), pem).unwrap();
    }
    let url = format!("https://{address}:2389");
    let mut etcd = switch.command("etcd");
    etcd.args([
        "--data-dir",
        &file("tls-etcd"),
        "--listen-client-urls",
        &url,
        "--advertise-client-urls",
        &url,
    ])
    .args(["--listen-peer-urls", "http://127.0.0.1:2390"])
    .args(["--cert-file", &file("cert"), "--key-file", &file("key")])
    .args(["--trusted-ca-file", &file("ca"), "--client-cert-auth"]);
    let _etcd = switch.spawn("tls-etcd", &mut etcd).unwrap();

    let (endpoint, ca) = (format!("--etcd-endpoints={url}"), format!("--etcd-cafile={}", file("ca")));
    let login = [
        endpoint,
        ca,
        format!("--etcd-certfile={}", file("cert")),
        format!("--etcd-keyfile={}", file("key")),
    ];
    let login: Vec<&str> = login.iter().map(String::as_str).collect();
    let compared = || seen(&patient.examine(&login).0, "clock") == "within 5 s of the store's";
    wait_until(SOON, "the time of etcd", compared).unwrap();
    let stranger = &login[..2];
    assert!(seen(&patient.examine(stranger).0, "clock").starts_with("not compared"), "who is not let in");
}

#[test]
fn files_that_lack_or_lie_are_named() {
    let patient = Patient::new("files", DUAL);
    let (host, env) = (patient.host(), patient.fabric.subnet_env(0));
    let other = host.dir().join("other.env");
    let named = format!("--subnet-file={}", other.display());
    patient.finds("subnet.env", "problem", "is not there", &[&named]);
    std::fs::write(&other, "FLANNEL_MTU=x\n").unwrap();
    patient.finds("subnet.env", "problem", "FLANNEL_MTU", &[&named]);
    std::fs::write(&other, env.replace("FLANNEL_MTU=1430", "FLANNEL_MTU=1500")).unwrap();
    patient.finds("subnet.env", "problem", "an MTU of 1500, the uplink eth0 leaves 1430", &[&named]);
    let subnet = patient.fabric.subnet_of(0).replace(".0/", ".1/");
    std::fs::write(&other, env.replace(&subnet, "10.42.250.1/24")).unwrap();
    patient.finds("subnet.env", "problem", "says 10.42.250.0-24", &[&named]);

    let empty = host.dir().join("empty");
    std::fs::create_dir(&empty).unwrap();
    patient.finds(
        "cni",
        "warning",
        "names a plugin of type",
        &[&format!("--cni-conf-dir={}", empty.display())],
    );
    patient.finds(
        "cni",
        "problem",
        "is not there, and a config names it",
        &[&format!("--cni-bin-dir={}", empty.display())],
    );
}

/// The first of two nodes with a container each.
struct Patient {
    fabric: Fabric,
    configs: PathBuf,
    plugins: PathBuf,
}

impl Patient {
    fn new(label: &str, config: &str) -> Patient {
        let mut fabric = Fabric::new(label, config, 2);
        fabric.start_all();
        fabric.pod(0);
        fabric.pod(1);
        let (configs, plugins) = (fabric.lab.dir().join("net.d"), fabric.lab.dir().join("bin"));
        std::fs::create_dir(&configs).unwrap();
        std::fs::create_dir(&plugins).unwrap();
        let conflist = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/10-weft.conflist");
        std::fs::copy(conflist, configs.join("10-weft.conflist")).unwrap();
        for name in ["weft", "flannel"] {
            std::os::unix::fs::symlink(plugin(), plugins.join(name)).unwrap();
        }
        Patient { fabric, configs, plugins }
    }

    fn host(&self) -> Host {
        self.fabric.hosts[0].clone()
    }

    /// All checks, and whether it was content. `extra` goes before what we say.
    fn examine(&self, extra: &[&str]) -> (Vec<Value>, bool) {
        let host = &self.fabric.hosts[0];
        let mut args = vec![
            "doctor".to_owned(),
            "--json".to_owned(),
            format!("--admin-socket={}", host.dir().join("admin.sock").display()),
        ];
        for (name, value) in [
            ("etcd-endpoints", self.fabric.etcd_url()),
            ("subnet-file", host.dir().join("subnet.env").display().to_string()),
            ("cni-conf-dir", self.configs.display().to_string()),
            ("cni-bin-dir", self.plugins.display().to_string()),
        ] {
            if !extra.iter().any(|arg| arg.starts_with(&format!("--{name}="))) {
                args.push(format!("--{name}={value}"));
            }
        }
        let mut command = host.command(env!("CARGO_BIN_EXE_weft"));
        let output = command.args(args).args(extra).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let checks = serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("{error}: {text} {}", String::from_utf8_lossy(&output.stderr)));
        (checks, output.status.success())
    }

    #[track_caller]
    fn finds(&self, name: &str, level: &str, what: &str, extra: &[&str]) {
        let (checks, ok) = self.examine(extra);
        let check = checks.iter().find(|check| check["name"] == name).expect(name);
        let findings = check["findings"].as_array().unwrap();
        let found = findings.iter().find(|finding| finding["what"].as_str().unwrap().contains(what));
        let Some(found) = found else { panic!("{what:?} is not in {check:#}") };
        assert_eq!(found["level"], level);
        assert!(["why", "cure"].iter().all(|part| found[part].as_str().unwrap().len() > 10), "{found:#}");
        assert!(level == "warning" || !ok, "a problem ends it with 1");
    }
}

fn seen(checks: &[Value], name: &str) -> String {
    checks.iter().find(|check| check["name"] == name).unwrap()["seen"].as_str().unwrap().to_owned()
}
