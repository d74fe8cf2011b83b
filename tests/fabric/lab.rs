//! Hosts with daemons on one etcd, and containers wired by the plugin.

use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use netns_harness::{Daemon, Host, Lab, Netns, wait_until};
use serde_json::{Value, json};

/// Nodes get subnets from 10.42.8.0 to 10.42.66.0, so what a test writes by a number
/// of its own, outside of these, is never a node's.
pub const VXLAN: &str = r#"{"Network":"10.42.0.0/16","SubnetMin":"10.42.8.0","SubnetMax":"10.42.66.0","Backend":{"Type":"vxlan"}}"#;
pub const DUAL: &str = r#"{"EnableIPv6":true,"Network":"10.42.0.0/16","SubnetMin":"10.42.8.0","SubnetMax":"10.42.66.0","IPv6Network":"fd42::/48","Backend":{"Type":"vxlan"}}"#;
pub const SOON: Duration = Duration::from_secs(20);

pub struct Fabric {
    // Daemons go before the lab they stand in.
    pub daemons: Vec<Daemon>,
    pub etcd: Option<Daemon>,
    pub hosts: Vec<Host>,
    pods: std::cell::Cell<usize>,
    pub lab: Lab,
}

pub struct Pod {
    pub netns: Netns,
    pub ips: Vec<IpAddr>,
}

impl Fabric {
    pub fn new(label: &str, config: &str, hosts: usize) -> Fabric {
        let mut fabric = Fabric::without_etcd(label, hosts);
        fabric.start_etcd();
        fabric.put("config", config);
        fabric
    }

    pub fn without_etcd(label: &str, hosts: usize) -> Fabric {
        let lab = Lab::new(label).expect("the lab");
        let hosts = (1..=hosts).map(|i| lab.host(&format!("h{i}")).expect("the lab")).collect();
        Fabric { lab, hosts, etcd: None, daemons: Vec::new(), pods: 0.into() }
    }

    pub fn start_etcd(&mut self) {
        let switch = self.lab.switch();
        let url = self.etcd_url();
        let data = self.lab.dir().join("etcd");
        let mut command = switch.command("etcd");
        command
            .arg("--data-dir")
            .arg(&data)
            .args(["--listen-client-urls", "http://0.0.0.0:2379", "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", "http://127.0.0.1:2380"]);
        self.etcd = Some(switch.spawn("etcd", &mut command).expect("the lab"));
        let healthy = || self.try_etcdctl(&["endpoint", "health"]).is_ok();
        wait_until(SOON, "etcd", healthy).expect("the lab");
    }

    /// Kills etcd; its data stays for `start_etcd`.
    pub fn etcd_away(&mut self) {
        self.etcd.take().expect("etcd").kill9().expect("the lab");
    }

    pub fn etcd_url(&self) -> String {
        format!("http://{}:2379", self.lab.switch_ip4())
    }

    pub fn start_all(&mut self) {
        for i in 0..self.hosts.len() {
            self.start(i, &[]);
        }
        for i in 0..self.hosts.len() {
            self.wait_in_sync(i);
        }
    }

    pub fn start(&mut self, i: usize, extra: &[&str]) {
        self.start_with(i, extra, &[]);
    }

    pub fn start_with(&mut self, i: usize, extra: &[&str], env: &[(&str, &str)]) {
        let etcd = self.etcd_url();
        self.run(i, &[&["--etcd-endpoints", &etcd], extra].concat(), env);
    }

    /// A daemon on host `i`, in place of the one that was there; `args` name its
    /// store.
    pub fn run(&mut self, i: usize, args: &[&str], env: &[(&str, &str)]) {
        let host = &self.hosts[i];
        let mut command = host.command(env!("CARGO_BIN_EXE_weft"));
        command
            .arg("daemon")
            .arg("--subnet-file")
            .arg(host.dir().join("subnet.env"))
            .arg("--admin-socket")
            .arg(host.dir().join("admin.sock"))
            .args(args)
            .envs(env.iter().copied());
        let daemon = host.spawn("weft", &mut command).expect("the lab");
        match i < self.daemons.len() {
            true => self.daemons[i] = daemon,
            false => self.daemons.push(daemon),
        }
    }

    /// Until the daemon says that every other one is its peer and the kernel
    /// agrees.
    pub fn wait_in_sync(&self, i: usize) {
        let others = self.hosts.len() - 1;
        let in_sync = || {
            self.try_status(i).is_some_and(|(status, ok)| {
                ok && status["peers"].as_array().is_some_and(|peers| peers.len() >= others)
            })
        };
        if let Err(error) = wait_until(SOON, "a daemon in sync", in_sync) {
            panic!("{error}: {:#?}: {}", self.try_status(i), self.daemons[i].log_tail(50));
        }
    }

    pub fn status(&self, i: usize) -> Value {
        self.try_status(i).expect("a status").0
    }

    pub fn try_status(&self, i: usize) -> Option<(Value, bool)> {
        let socket = self.hosts[i].dir().join("admin.sock");
        let mut command = self.hosts[i].command(env!("CARGO_BIN_EXE_weft"));
        let output =
            command.args(["status", "--json", "--admin-socket"]).arg(socket).output().expect("the lab");
        let status = serde_json::from_slice(&output.stdout).ok()?;
        Some((status, output.status.success()))
    }

    pub fn wait_for_env(&self, i: usize) -> String {
        let file = self.hosts[i].dir().join("subnet.env");
        wait_until(SOON, "subnet.env", || file.exists()).expect("the lab");
        self.subnet_env(i)
    }

    pub fn subnet_env(&self, i: usize) -> String {
        std::fs::read_to_string(self.hosts[i].dir().join("subnet.env")).expect("the lab")
    }

    /// The node's IPv4 subnet, host bits off: `10.42.7.0/24`.
    pub fn subnet_of(&self, i: usize) -> String {
        let env = self.subnet_env(i);
        let subnet = env.lines().find_map(|line| line.strip_prefix("FLANNEL_SUBNET=")).expect("the lab");
        subnet.replace(".1/", ".0/")
    }

    /// The store's key of the node's lease.
    pub fn key_of(&self, i: usize) -> String {
        format!("/coreos.com/network/subnets/{}", self.subnet_of(i).replace('/', "-"))
    }

    pub fn has_route(&self, i: usize, dst: &str) -> bool {
        let routes = self.hosts[i].ip_json(&format!("route show {dst}")).expect("the lab");
        routes.as_array().is_some_and(|routes| !routes.is_empty())
    }

    pub fn wait_for_route(&self, i: usize, dst: &str) {
        wait_until(SOON, &format!("route {dst}"), || self.has_route(i, dst)).expect("the lab");
    }

    pub fn put(&self, key: &str, value: &str) {
        self.etcdctl(&["put", &format!("/coreos.com/network/{key}"), value]);
    }

    /// Leases of so many nodes that are not there, from 10.42.100.0/24 on.
    pub fn put_peers(&self, count: u32) {
        let lease = |n: u32| {
            let (high, low) = (n >> 8, n & 255);
            let data = format!(r#"{{"VNI":1,"VtepMAC":"0e:00:00:00:{high:02x}:{low:02x}"}}"#);
            let value = format!(
                r#"{{"PublicIP":"10.9.{high}.{low}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{data}}}"#
            );
            format!("put /coreos.com/network/subnets/10.{}.{low}.0-24 {}\n", 42 + high, json!(value))
        };
        // As many as etcd takes in one transaction.
        for lot in (100..100 + count).collect::<Vec<_>>().chunks(100) {
            let puts: String = lot.iter().map(|n| lease(*n)).collect();
            self.etcdctl_in(&["txn"], &format!("mod(\"-\") = \"0\"\n\n{puts}\n\n"));
        }
    }

    pub fn etcdctl(&self, args: &[&str]) -> String {
        self.try_etcdctl(args).expect("the lab")
    }

    pub fn try_etcdctl(&self, args: &[&str]) -> Result<String, netns_harness::Error> {
        let url = self.etcd_url();
        let all = ["ETCDCTL_API=3", "etcdctl", "--endpoints", &url];
        self.lab.switch().run("env", all.iter().chain(args))
    }

    /// With something on its standard input.
    pub fn etcdctl_in(&self, args: &[&str], input: &str) -> String {
        let mut command = self.lab.switch().command("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.etcd_url()]).args(args);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("etcdctl");
        child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("etcdctl reads");
        let output = child.wait_with_output().expect("etcdctl ends");
        assert!(output.status.success(), "etcdctl {args:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// A container on host `i`, wired by the plugin as a runtime would.
    pub fn pod(&self, i: usize) -> Pod {
        let number = self.pods.replace(self.pods.get() + 1);
        let (host, name) = (&self.hosts[i], format!("p{number}"));
        let netns = self.lab.pod(host, &name).expect("the lab");
        let data = |what: &str| host.dir().join(what);
        let config = json!({
            "name": "cbr0", "cniVersion": "1.0.0", "type": "flannel",
            "subnetFile": data("subnet.env"), "dataDir": data("flannel"),
            "ipam": {"dataDir": data("networks")},
            "delegate": {"isDefaultGateway": true, "hairpinMode": true, "ipMasq": false},
        });
        let mut child = host
            .command(plugin())
            .env("CNI_COMMAND", "ADD")
            .env("CNI_CONTAINERID", &name)
            .env("CNI_NETNS", netns.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", plugin().parent().expect("the lab"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the lab");
        child.stdin.take().expect("the lab").write_all(config.to_string().as_bytes()).expect("the lab");
        let output = child.wait_with_output().expect("the lab");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{said} {}", String::from_utf8_lossy(&output.stderr));
        let result: Value = serde_json::from_str(&said).expect("the lab");
        let address = |ip: &Value| ip["address"].as_str()?.split('/').next()?.parse().ok();
        let ips = result["ips"]
            .as_array()
            .expect("the lab")
            .iter()
            .map(|ip| address(ip).expect("the lab"))
            .collect();
        Pod { netns, ips }
    }
}

/// The lease of a node 192.168.77.`n` that is not there.
pub fn peer(n: u8) -> String {
    format!(
        r#"{{"PublicIP":"192.168.77.{n}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:00:{n:02x}"}}}}"#
    )
}

/// Built beside `weft` by `cargo build --workspace`, as `make test` does first.
pub fn plugin() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_weft")).with_file_name("weft-cni");
    assert!(path.exists(), "{} is not built: cargo build --workspace", path.display());
    path
}
