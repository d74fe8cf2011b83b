//! Container runtimes with our plugin on two hosts that weft joins: containers
//! made from a local file ping and fetch from each other, are reached at a host
//! port from outside, and leave nothing when they go.

#![cfg(test)]

#[path = "common/node.rs"]
mod node;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use netns_harness::{Daemon, Lab, wait_until};
use serde_json::json;

use crate::node::{Node, SOON, remove_cgroups};

/// Debian's busybox-static: a whole container in one file.
const BUSYBOX: &str = "/bin/busybox";
const HOST_PORT: u16 = 8080;

#[test]
fn podman() {
    let lab = Lab::new("podman").unwrap();
    let machines = ["h1", "h2"].map(|name| Machine::new(&lab, name, PODMAN, "sleep infinity"));
    for machine in &machines {
        machine.node.wait_in_sync();
        let image = machine.dir("image.tar");
        machine.run("podman", &["import", &image, "web"]);
        let port = format!("{HOST_PORT}:80/tcp");
        let parent = format!("--cgroup-parent=/{}", machine.cgroup);
        let mut args =
            vec!["run", "--detach", "--name=web", &parent, "--network=weft", "--publish", &port, "web"];
        args.extend(SERVE);
        machine.run("podman", &args);
    }
    let [a, b] = machines.each_ref().map(|machine| Container {
        machine,
        ip: machine
            .run("podman", &["inspect", "--format={{.NetworkSettings.Networks.weft.IPAddress}}", "web"]),
        exec: &["podman", "exec", "web"],
    });
    reach(&lab, &a, &b);
    reach_host_port(&lab, &a);
    for machine in &machines {
        machine.run("podman", &["rm", "--force", "--time=0", "web"]);
        machine.assert_empty();
    }
}

#[test]
fn containerd() {
    let lab = Lab::new("containerd").unwrap();
    let machines = ["h1", "h2"].map(|name| {
        let start = "containerd --config \"$DIR/containerd.toml\" --address /run/containerd.sock";
        Machine::new(&lab, name, CONTAINERD, start)
    });
    let ctr_try = |machine: &Machine, args: &[&str]| {
        machine.try_run("ctr", &[&["--address=/run/containerd.sock"], args].concat())
    };
    let ctr = |machine: &Machine, args: &[&str]| {
        ctr_try(machine, args).unwrap_or_else(|said| panic!("ctr {args:?}: {said}"))
    };
    let mut runs = Vec::new();
    for machine in &machines {
        machine.node.wait_in_sync();
        let up = || ctr_try(machine, &["version"]).is_ok();
        wait_until(SOON, "containerd", up).unwrap();
        let rootfs = machine.dir("rootfs");
        let cgroup = format!("--cgroup=/{}/web", machine.cgroup);
        // ctr calls DEL where it was waiting for the end: not for a detached one.
        let mut args = vec![
            "--address=/run/containerd.sock",
            "run",
            "--rm",
            "--cni",
            &cgroup,
            "--rootfs",
            &rootfs,
            "web",
        ];
        args.extend(SERVE);
        runs.push(
            machine
                .node
                .host
                .spawn("ctr", machine.command("ctr", &args).unwrap().stdin(Stdio::null()))
                .unwrap(),
        );
        let serves = || {
            ctr_try(
                machine,
                &[
                    "task",
                    "exec",
                    "--exec-id=up",
                    "web",
                    BUSYBOX,
                    "wget",
                    "-q",
                    "-O-",
                    "http://127.0.0.1/name",
                ],
            )
            .is_ok()
        };
        wait_until(SOON, "the container", serves)
            .unwrap_or_else(|error| panic!("{error}: {}", runs[0].log_tail(20)));
    }
    let exec = &["ctr", "--address=/run/containerd.sock", "task", "exec", "--exec-id=test", "web"];
    let [a, b] = machines.each_ref().map(|machine| {
        let said = ctr(
            machine,
            &["task", "exec", "--exec-id=ip", "web", BUSYBOX, "ip", "-4", "-o", "addr", "show", "eth0"],
        );
        let ip = said.split_whitespace().nth(3).unwrap().split('/').next().unwrap().to_owned();
        Container { machine, ip, exec }
    });
    reach(&lab, &a, &b);
    for machine in &machines {
        ctr(machine, &["task", "kill", "--signal=KILL", "web"]);
        wait_until(SOON, "the end of DEL", || ctr(machine, &["container", "ls", "--quiet"]).is_empty())
            .unwrap();
        machine.assert_empty();
    }
}

/// The container's process: it hands out the name of its host.
const SERVE: [&str; 6] = [BUSYBOX, "httpd", "-f", "-p", "80", "-h/www"];

struct Container<'a> {
    machine: &'a Machine,
    ip: String,
    /// Before a command that is to run inside.
    exec: &'a [&'a str],
}

impl Container<'_> {
    fn exec(&self, args: &[&str]) -> String {
        let all = [self.exec, &[BUSYBOX], args].concat();
        self.machine.run(all[0], &all[1..])
    }
}

/// Both ways, by ping and by HTTP, and from the switch to neither's own address.
fn reach(lab: &Lab, a: &Container<'_>, b: &Container<'_>) {
    for (from, to) in [(a, b), (b, a)] {
        let said = from.exec(&["ping", "-c", "3", "-W", "5", &to.ip]);
        assert!(said.contains(" 0% packet loss"), "{said}");
        let page = from.exec(&["wget", "-q", "-O-", &format!("http://{}/name", to.ip)]);
        assert_eq!(page, to.machine.node.host.name(), "{}", lab.name());
    }
}

/// A connection from outside to the host's own address.
fn reach_host_port(lab: &Lab, to: &Container<'_>) {
    let host = &to.machine.node.host;
    let url = format!("http://{}:{HOST_PORT}/name", host.ip4());
    let page = lab.switch().run("curl", ["--silent", "--show-error", "--max-time", "10", &url]).unwrap();
    assert_eq!(page, host.name());
}

/// A node with a runtime in mount and process namespaces of its own, so that
/// whatever it leaves in /run, /var/lib, /etc, /opt and the process table goes
/// with it.
struct Machine {
    node: Node,
    namespaces: Daemon,
    cgroup: String,
}

/// Files of the runtime's own, by their name in DIR.
type Files = &'static [(&'static str, &'static str)];

const PODMAN: Files = &[
    (
        "containers.conf",
        r#"
        [engine]
        cgroup_manager = "cgroupfs"
        events_logger = "file"
        runtime = "runc"
        [network]
        network_backend = "cni"
        cni_plugin_dirs = ["/opt/cni/bin"]
        network_config_dir = "/etc/cni/net.d"
        default_network = "weft"
        "#,
    ),
    (
        "storage.conf",
        r#"
        [storage]
        driver = "vfs"
        runroot = "/run/storage"
        graphroot = "/var/lib/storage"
        "#,
    ),
];

const CONTAINERD: Files = &[(
    "containerd.toml",
    r#"
    version = 2
    root = "/var/lib/containerd"
    state = "/run/containerd"
    disabled_plugins = ["io.containerd.grpc.v1.cri"]
    "#,
)];

impl Machine {
    fn new(lab: &Lab, name: &str, files: Files, start: &str) -> Machine {
        const SETUP: &str = r#"
            mount --make-rprivate /
            mount --bind "$DIR" /mnt
            for folder in /run /var/lib /opt /etc/cni; do
                mount -t tmpfs tmpfs $folder
            done
            mkdir -p "$DIR" /run/netns /var/lib/cni
            mount --move /mnt "$DIR"
            mkdir -p /opt/cni
            ln -s "$DIR/bin" /opt/cni/bin
            ln -s "$DIR/net.d" /etc/cni/net.d
            touch "$DIR/ready"
        "#;
        let node = Node::new(lab, name);
        let dir = node.host.dir().to_owned();
        for (file, content) in files {
            fs::write(dir.join(file), content).unwrap();
        }
        install(&dir);
        container_files(&dir, node.host.name());
        let mut command = node.host.command("unshare");
        command
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-ec"])
            .arg(format!("{SETUP}\nexec {start}"))
            .env("DIR", &dir);
        let namespaces = node.host.spawn("runtime", &mut command).unwrap();
        let cgroup = node.host.name().to_owned();
        let machine = Machine { node, namespaces, cgroup };
        let ready = || dir.join("ready").exists() && dir.join("subnet.env").exists();
        wait_until(SOON, "namespaces and subnet.env", ready)
            .unwrap_or_else(|error| panic!("{error}: {}", machine.namespaces.log_tail(20)));
        machine
    }

    /// In the folder that is shared with the runtime.
    fn dir(&self, name: &str) -> String {
        self.node.host.dir().join(name).display().to_string()
    }

    fn run(&self, program: &str, args: &[&str]) -> String {
        self.try_run(program, args)
            .unwrap_or_else(|said| panic!("{program} {args:?}: {said} {}", self.namespaces.log_tail(20)))
    }

    /// What it prints, without the newline at its end.
    fn try_run(&self, program: &str, args: &[&str]) -> Result<String, String> {
        let output = self.command(program, args)?.stdin(Stdio::null()).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    fn command(&self, program: &str, args: &[&str]) -> Result<Command, String> {
        let pid = self.namespaces.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        let inside = children.split_whitespace().next().ok_or("the namespaces' first process is gone")?;
        let mut command = self.node.host.command("nsenter");
        command
            .args(["--mount", "--pid", "--target", inside, program])
            .args(args)
            .env("CONTAINERS_CONF", self.dir("containers.conf"))
            .env("CONTAINERS_STORAGE_CONF", self.dir("storage.conf"));
        Ok(command)
    }

    /// No veth, address, reservation, rule or file of a container is left.
    fn assert_empty(&self) {
        let host = &self.node.host;
        let veths = || host.ip_json("link show type veth").unwrap().as_array().unwrap().len();
        // eth0 is the host's own.
        wait_until(Duration::from_secs(5), "the veths to go", || veths() == 1).unwrap();
        let mut left = Vec::new();
        for folder in ["networks/weft", "flannel"] {
            let names = fs::read_dir(host.dir().join(folder)).into_iter().flatten();
            left.extend(names.map(|entry| entry.unwrap().file_name().into_string().unwrap()));
        }
        left.retain(|name| {
            !["lock", ".weft.boot"].contains(&name.as_str()) && !name.starts_with("last_reserved_ip.")
        });
        assert_eq!(left, Vec::<String>::new());
        let subnet = self.node.value("FLANNEL_SUBNET");
        let prefix = subnet.rsplit_once('.').unwrap().0;
        let rules = host.run("nft", ["list", "ruleset"]).unwrap();
        let of_container = |line: &&str| {
            let of =
                |n: u8| line.contains(&format!("{prefix}.{n} ")) || line.contains(&format!("{prefix}.{n}:"));
            (2..=9).any(of) || line.contains(&HOST_PORT.to_string())
        };
        assert_eq!(rules.lines().filter(of_container).collect::<Vec<_>>(), Vec::<&str>::new());
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.namespaces.kill9();
        remove_cgroups(&self.cgroup);
    }
}

/// Our plugin by every name in DIR/bin, and a conflist as flannel's users have
/// it in DIR/net.d.
fn install(dir: &Path) {
    let plugin = Path::new(env!("CARGO_BIN_EXE_weft")).with_file_name("weft-cni");
    assert!(plugin.exists(), "{} is missing: cargo build -p weft-cni", plugin.display());
    for folder in ["bin", "net.d"] {
        fs::create_dir(dir.join(folder)).unwrap();
    }
    for name in ["flannel", "bridge", "host-local", "portmap", "loopback"] {
        symlink(&plugin, dir.join("bin").join(name)).unwrap();
    }
    let conflist = json!({
        "cniVersion": "0.4.0",
        "name": "weft",
        "plugins": [
            {
                "type": "flannel",
                "subnetFile": dir.join("subnet.env"),
                "dataDir": dir.join("flannel"),
                "ipam": { "dataDir": dir.join("networks") },
                "delegate": { "isDefaultGateway": true, "hairpinMode": true },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    });
    fs::write(dir.join("net.d/10-weft.conflist"), conflist.to_string()).unwrap();
}

/// DIR/rootfs with busybox and a page, and the same as DIR/image.tar.
fn container_files(dir: &Path, page: &str) {
    assert!(fs::exists(BUSYBOX).unwrap(), "{BUSYBOX} is missing: apt-get install busybox-static");
    let rootfs = dir.join("rootfs");
    for folder in ["bin", "www"] {
        fs::create_dir_all(rootfs.join(folder)).unwrap();
    }
    fs::copy(BUSYBOX, rootfs.join("bin/busybox")).unwrap();
    fs::write(rootfs.join("www/name"), page).unwrap();
    let status =
        Command::new("tar").arg("-C").arg(&rootfs).arg("-cf").arg(dir.join("image.tar")).arg(".").status();
    assert!(status.unwrap().success());
}
