//! Docker on the bridge that weft gives it: a real dockerd on each of two hosts,
//! containers made from a local file, packets between them.

#![cfg(test)]

#[path = "common/node.rs"]
mod node;

use std::fs;
use std::process::{Command, Stdio};

use netns_harness::{Daemon, Lab, wait_until};

use crate::node::{Node, SOON};

/// Debian's busybox-static: a whole container in one file.
const BUSYBOX: &str = "/bin/busybox";

#[test]
fn containers_of_two_dockers_reach_each_other() {
    let lab = Lab::new("docker").unwrap();
    let nodes = [Node::new(&lab, "h1"), Node::new(&lab, "h2")];
    for node in &nodes {
        node.wait_in_sync();
    }
    let [a, b] = &nodes.map(Docker::start);
    for docker in [a, b] {
        let policy = docker.node.host.run("iptables", ["-S", "FORWARD"]).unwrap();
        assert!(policy.contains("-P FORWARD DROP"), "Docker drops what nobody accepts: {policy}");
    }

    let (ip_a, ip_b) = (a.container("one"), b.container("two"));
    for (from, to) in [((a, "one"), &ip_b), ((b, "two"), &ip_a)] {
        let (docker, name) = from;
        let said = docker.cli(&["exec", name, BUSYBOX, "ping", "-c", "3", "-W", "5", to]);
        assert!(said.contains(" 0% packet loss"), "{said}");
        let mtu = docker.cli(&["exec", name, BUSYBOX, "cat", "/sys/class/net/eth0/mtu"]);
        assert_eq!(mtu.trim(), docker.node.value("FLANNEL_MTU"));
    }
}

struct Docker {
    node: Node,
    daemon: Daemon,
    cgroup: String,
}

impl Docker {
    /// In mount and process namespaces of its own, so that whatever dockerd
    /// leaves in /run, /etc, /opt and the process table goes with it.
    fn start(node: Node) -> Docker {
        const SETUP: &str = r#"
            mount --bind "$DIR" /mnt
            mount -t tmpfs tmpfs /run
            mkdir -p "$DIR"
            mount --move /mnt "$DIR"
            mount -t tmpfs tmpfs /etc/docker
            mount -t tmpfs tmpfs /opt
            dockerd "$@"
        "#;
        // As dockerd itself does where it finds forwarding off, which our daemon
        // keeps on.
        node.host.run("iptables", ["-P", "FORWARD", "DROP"]).unwrap();
        let opts = docker_opts(&node);
        assert!(opts.contains(&"--ip-masq=false".to_owned()), "weft does that: {opts:?}");
        let cgroup = node.host.name().to_owned();
        let dir = node.host.dir();
        let mut command = node.host.command("unshare");
        command
            .args(["--mount", "--pid", "--kill-child", "--mount-proc", "sh", "-ec", SETUP, "dockerd"])
            .arg(format!("--host=unix://{}", dir.join("docker.sock").display()))
            .arg(format!("--cgroup-parent=/{cgroup}"))
            .args(["--data-root=/run/docker-data", "--exec-root=/run/docker", "--storage-driver=vfs"])
            .args(opts)
            .env("DIR", dir);
        let daemon = node.host.spawn("dockerd", &mut command).unwrap();
        let docker = Docker { node, daemon, cgroup };
        wait_until(SOON, "dockerd", || docker.try_cli(&["info"]).is_ok())
            .unwrap_or_else(|error| panic!("{error}: {}", docker.daemon.log_tail(30)));
        docker.import();
        docker
    }

    /// An image with busybox and nothing else.
    fn import(&self) {
        assert!(fs::exists(BUSYBOX).unwrap(), "{BUSYBOX} is missing: apt-get install busybox-static");
        let mut tar = Command::new("tar")
            .args(["-C", "/", "-c", "bin/busybox"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut import = self.command(&["import", "-", "busybox"]);
        let output = import.stdin(tar.stdout.take().unwrap()).output().unwrap();
        assert!(output.status.success() && tar.wait().unwrap().success(), "{output:?}");
    }

    /// Its address.
    fn container(&self, name: &str) -> String {
        let hostname = format!("--name={name}");
        self.cli(&["run", "--detach", &hostname, "busybox", BUSYBOX, "sleep", "300"]);
        let format = "--format={{.NetworkSettings.IPAddress}}";
        self.cli(&["inspect", format, name]).trim().to_owned()
    }

    fn cli(&self, args: &[&str]) -> String {
        self.try_cli(args)
            .unwrap_or_else(|said| panic!("docker {args:?}: {said}: {}", self.daemon.log_tail(20)))
    }

    fn try_cli(&self, args: &[&str]) -> Result<String, String> {
        let output = self.command(args).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command
            .arg(format!("--host=unix://{}", self.node.host.dir().join("docker.sock").display()))
            .args(args);
        command
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let _ = self.daemon.kill9();
        node::remove_cgroups(&self.cgroup);
    }
}

/// What a unit reads from its EnvironmentFile, split as systemd splits
/// `$DOCKER_OPTS`.
fn docker_opts(node: &Node) -> Vec<String> {
    let out = node.host.dir().join("docker_opts.env");
    let subnet_env = node.host.dir().join("subnet.env");
    let args = ["docker-opts", "-c", "-f", subnet_env.to_str().unwrap(), "-d", out.to_str().unwrap()];
    node.host.run(env!("CARGO_BIN_EXE_weft"), args).unwrap();
    let text = fs::read_to_string(out).unwrap();
    let opts = text.trim().strip_prefix("DOCKER_OPTS=\"").and_then(|rest| rest.strip_suffix('"'));
    opts.unwrap_or_else(|| panic!("{text}")).split_whitespace().map(str::to_owned).collect()
}
