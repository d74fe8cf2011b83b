//! Nodes that run either daemon, each with its own plugins, and their containers.

use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use netns_harness::{Daemon, Host, HostOptions, Netns, wait_until};
use serde_json::{Value, json};

use crate::stage::{PREFIX, SOON, Stage};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    Flanneld,
    Weft,
}

pub struct Node {
    // The daemon ends before the host it stands on.
    daemon: Option<Daemon>,
    pub host: Host,
    pub program: Program,
    runs: usize,
    pods: usize,
}

pub struct Pod {
    pub netns: Netns,
    pub ips: Vec<IpAddr>,
}

/// flannel's daemon with the options that a lab asks for.
pub fn flanneld(host: &Host, endpoints: &str) -> Command {
    let mut command = host.command(path_of("FLANNELD"));
    command.args(["-etcd-endpoints", endpoints, "-subnet-file"]).arg(host.dir().join("subnet.env"));
    command
}

impl Node {
    pub fn new(stage: &Stage, name: &str, segment: u8) -> Node {
        let host = stage.lab.host_with(name, HostOptions { segment, ..HostOptions::default() }).unwrap();
        Node { daemon: None, host, program: Program::Weft, runs: 0, pods: 0 }
    }

    /// Returns when `subnet.env` is there: for a node that had one before, at
    /// once.
    pub fn start(&mut self, stage: &Stage, program: Program, extra: &[&str]) {
        let (host, url) = (&self.host, stage.url());
        let mut command = match program {
            Program::Flanneld => flanneld(host, &url),
            Program::Weft => {
                let mut command = host.command(env!("CARGO_BIN_EXE_weft"));
                command
                    .args(["daemon", "--etcd-endpoints", &url, "--subnet-file"])
                    .arg(host.dir().join("subnet.env"))
                    .arg("--admin-socket")
                    .arg(host.dir().join("admin.sock"));
                command
            }
        };
        self.runs += 1;
        self.program = program;
        self.daemon = Some(host.spawn(&self.run(), command.args(extra)).unwrap());
        let written = || host.dir().join("subnet.env").exists();
        wait_until(SOON, "subnet.env", written).unwrap_or_else(|error| panic!("{error}: {}", self.log()));
    }

    /// What flanneld says while it stops is not looked at: it takes the end of
    /// its own calls for errors.
    pub fn stop(&mut self) {
        assert_eq!(self.errors(), Vec::<String>::new());
        let mut daemon = self.daemon.take().unwrap();
        daemon.terminate(Duration::from_secs(10)).unwrap();
    }

    pub fn is_up(&mut self) -> bool {
        self.daemon.as_mut().is_some_and(|daemon| daemon.exited().unwrap().is_none())
    }

    /// Of the daemon's last run.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.host.dir().join(format!("{}.log", self.run()))).unwrap_or_default()
    }

    fn run(&self) -> String {
        format!("{:?}-{}", self.program, self.runs)
    }

    /// klog marks errors by an `E` before the date.
    pub fn errors(&self) -> Vec<String> {
        let is_error = |line: &&str| match self.program {
            Program::Flanneld => line.starts_with('E') && line[1..].starts_with(|c: char| c.is_ascii_digit()),
            Program::Weft => line.contains(" ERROR ") || line.contains(" WARN "),
        };
        self.log().lines().filter(is_error).map(str::to_owned).collect()
    }

    /// The values of `subnet.env` by name.
    pub fn env(&self, name: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.host.dir().join("subnet.env")).unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(&format!("{name}=")));
        value.map(str::to_owned)
    }

    /// Base addresses of the node's subnets, with prefix length.
    pub fn subnets(&self) -> Vec<String> {
        let v4 = self.env("FLANNEL_SUBNET").map(|subnet| subnet.replace(".1/", ".0/"));
        let v6 = self.env("FLANNEL_IPV6_SUBNET").map(|subnet| subnet.replace("::1/", "::/"));
        v4.into_iter().chain(v6).collect()
    }

    /// The node's key in the store.
    pub fn key(&self) -> String {
        format!("{PREFIX}/subnets/{}", self.subnets().join("&").replace('/', "-"))
    }

    pub fn has_routes_to(&self, other: &Node) -> bool {
        other.subnets().iter().all(|subnet| self.route(subnet) != json!([]))
    }

    pub fn route(&self, subnet: &str) -> Value {
        let family = if subnet.contains(':') { "-6" } else { "-4" };
        self.host.ip_json(&format!("{family} route show {subnet}")).unwrap()
    }

    /// A container wired by the plugins that belong to the node's daemon.
    pub fn pod(&mut self, stage: &Stage) -> Pod {
        self.pods += 1;
        let name = format!("p{}", self.pods);
        let netns = stage.lab.pod(&self.host, &name).unwrap();
        let said = self.cni("ADD", &netns);
        let result: Value = serde_json::from_str(&said).unwrap();
        let address = |ip: &Value| ip["address"].as_str()?.split('/').next()?.parse().ok();
        let ips = result["ips"].as_array().unwrap().iter().map(|ip| address(ip).unwrap()).collect();
        Pod { netns, ips }
    }

    /// Takes a container away by the plugins that belong to the node's daemon,
    /// whichever wired it; nothing of it may be left.
    pub fn remove(&self, pod: &Pod) {
        self.cni("DEL", &pod.netns);
        for ip in &pod.ips {
            let reserved = self.host.dir().join("networks/cbr0").join(ip.to_string());
            assert!(!reserved.exists(), "{ip} is still reserved after {:?}'s DEL", self.program);
        }
        let links = pod.netns.ip_json("link").unwrap();
        assert_eq!(links.as_array().map(Vec::len), Some(1), "loopback alone: {links:#}");
    }

    fn cni(&self, verb: &str, netns: &Netns) -> String {
        let data = |what: &str| self.host.dir().join(what);
        let config = json!({
            "name": "cbr0", "cniVersion": "1.0.0", "type": "flannel",
            "subnetFile": data("subnet.env"), "dataDir": data("flannel"),
            "ipam": {"dataDir": data("networks")},
            "delegate": {"isDefaultGateway": true, "hairpinMode": true, "ipMasq": false},
        });
        let (plugin, path) = match self.program {
            Program::Flanneld => (path_of("CNI_BIN").join("flannel"), path_of("CNI_BIN")),
            Program::Weft => (weft_cni(), weft_cni().with_file_name("")),
        };
        let mut command = self.host.command(plugin);
        command.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", netns.name());
        command.env("CNI_NETNS", netns.path()).env("CNI_IFNAME", "eth0").env("CNI_PATH", path);
        answer(&mut command, &config)
    }
}

impl Pod {
    /// Pings every address of the other and sends it a megabyte by TCP.
    pub fn check(&self, other: &Pod) {
        for &ip in &other.ips {
            let pair = format!("{} to {ip} in {}", self.netns.name(), other.netns.name());
            // Duplicate address detection on the reference plugin's bridge takes
            // a second in which IPv6 does not flow.
            wait_until(SOON, &pair, || self.netns.reaches(ip)).unwrap();
            let report = self.netns.ping(ip, 20).unwrap();
            assert_eq!(report.lost(), 0, "{pair}: {report:?}");
            assert_eq!(self.send(other, ip), MEGABYTE, "{pair}");
        }
    }

    fn send(&self, other: &Pod, ip: IpAddr) -> usize {
        let listener = other.netns.enter(|| TcpListener::bind(SocketAddr::new(ip, 0))).unwrap().unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::scope(|scope| {
            let receiver = scope.spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                stream.set_read_timeout(Some(SOON)).unwrap();
                std::io::copy(&mut stream, &mut std::io::sink()).unwrap() as usize
            });
            let connect = || TcpStream::connect_timeout(&address, Duration::from_secs(5));
            let mut stream = self.netns.enter(connect).unwrap().unwrap();
            stream.write_all(&vec![7; MEGABYTE]).unwrap();
            drop(OwnedFd::from(stream));
            receiver.join().unwrap()
        })
    }
}

const MEGABYTE: usize = 1 << 20;

fn answer(command: &mut Command, config: &Value) -> String {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said} {}", String::from_utf8_lossy(&output.stderr));
    said
}

pub fn path_of(variable: &str) -> PathBuf {
    let path = PathBuf::from(std::env::var_os(variable).unwrap_or_default());
    assert!(
        path.exists(),
        "{variable}={}: not there: make interop FLANNELD=… CNI_BIN=… CNITOOL=…",
        path.display()
    );
    path
}

pub fn weft_cni() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_weft")).with_file_name("weft-cni");
    assert!(path.exists(), "{} is not built: cargo build --workspace", path.display());
    path
}
