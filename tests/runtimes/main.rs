//! Container runtimes with our plugin on two hosts that weft joins: containers
//! made from a local file ping and fetch from each other, are reached at a host
//! port from outside, and leave nothing when they go.

#![cfg(test)]

mod cri;
mod machine;
#[path = "../common/node.rs"]
mod node;

use std::process::Stdio;

use netns_harness::{Lab, wait_until};

use crate::machine::{BUSYBOX, Files, HOST_PORT, Machine};
use crate::node::SOON;

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
