//! A host with a container runtime and our plugin.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use netns_harness::{Daemon, Lab, wait_until};
use serde_json::json;

use crate::node::{Node, SOON, remove_cgroups};

/// Debian's busybox-static: a whole container in one file.
pub const BUSYBOX: &str = "/bin/busybox";
pub const HOST_PORT: u16 = 8080;

/// A node with a runtime in mount and process namespaces of its own, so that
/// whatever it leaves in /run, /var/lib, /etc, /opt and the process table goes
/// with it.
pub struct Machine {
    pub node: Node,
    namespaces: Daemon,
    pub cgroup: String,
}

/// Files of the runtime's own, by their name in DIR.
pub type Files = &'static [(&'static str, &'static str)];

impl Machine {
    pub fn new(lab: &Lab, name: &str, files: Files, start: &str) -> Machine {
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
    pub fn dir(&self, name: &str) -> String {
        self.node.host.dir().join(name).display().to_string()
    }

    pub fn run(&self, program: &str, args: &[&str]) -> String {
        self.try_run(program, args)
            .unwrap_or_else(|said| panic!("{program} {args:?}: {said} {}", self.namespaces.log_tail(20)))
    }

    /// What it prints, without the newline at its end.
    pub fn try_run(&self, program: &str, args: &[&str]) -> Result<String, String> {
        let output = self.command(program, args)?.stdin(Stdio::null()).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    pub fn command(&self, program: &str, args: &[&str]) -> Result<Command, String> {
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
    pub fn assert_empty(&self) {
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
