//! The runtimes' library itself, by its own `cnitool`, with our plugin on two
//! hosts that weft joins.

use std::fs;
use std::os::unix::fs::symlink;

use netns_harness::{Lab, Netns, wait_until};
use serde_json::{Value, json};

use crate::cluster::{path_of, weft_cni};
use crate::node::{Node, SOON};

const HOST_PORT: u16 = 8080;

#[test]
fn libcni_drives_the_integrated_plugin() {
    all_verbs("tool-one", |dir| {
        vec![json!({
            "type": "weft",
            "subnetFile": format!("{dir}/subnet.env"),
            "dataDir": format!("{dir}/flannel"),
            "ipam": { "dataDir": format!("{dir}/networks") },
            "delegate": { "isDefaultGateway": true, "hairpinMode": true },
            "tuning": { "mtu": 1300, "dataDir": format!("{dir}/tuning") },
            "firewall": { "dataDir": format!("{dir}/firewall") },
            "capabilities": { "portMappings": true, "bandwidth": true },
        })]
    });
}

#[test]
fn libcni_drives_the_classic_chain() {
    all_verbs("tool-chain", |dir| {
        vec![
            json!({
                "type": "flannel",
                "subnetFile": format!("{dir}/subnet.env"),
                "dataDir": format!("{dir}/flannel"),
                "ipam": { "dataDir": format!("{dir}/networks") },
                "delegate": { "isDefaultGateway": true, "hairpinMode": true },
            }),
            json!({ "type": "tuning", "mtu": 1300, "dataDir": format!("{dir}/tuning") }),
            json!({ "type": "bandwidth", "capabilities": { "bandwidth": true } }),
            json!({ "type": "firewall", "dataDir": format!("{dir}/firewall") }),
            json!({ "type": "portmap", "capabilities": { "portMappings": true } }),
        ]
    });
}

fn all_verbs(name: &str, plugins: impl Fn(&str) -> Vec<Value>) {
    let lab = Lab::new(name).unwrap();
    let machines = ["h1", "h2"].map(|host| Machine::new(&lab, host, &plugins));
    for machine in &machines {
        machine.node.wait_in_sync();
        machine.cnitool("status").unwrap();
    }
    let results = machines.each_ref().map(|machine| {
        let printed = machine.cnitool("add").unwrap();
        machine.cnitool("check").unwrap();
        serde_json::from_str::<Value>(&printed).unwrap()
    });
    let [a, b] = results.each_ref().map(|result| {
        let ip = &result["ips"][0];
        assert_eq!(result["interfaces"][ip["interface"].as_u64().unwrap() as usize]["name"], "eth0");
        ip["address"].as_str().unwrap().split('/').next().unwrap()
    });
    for (from, to) in [(&machines[0], b), (&machines[1], a)] {
        let said = from.pod.run("ping", ["-c", "3", "-W", "5", to]).unwrap();
        assert!(said.contains(" 0% packet loss"), "{said}");
        assert_eq!(from.pod.ip_json("link show eth0").unwrap()[0]["mtu"], 1300);
        assert!(from.rules().contains(&format!("dport {HOST_PORT}")), "{}", from.rules());
        assert_eq!(from.links("ifb").len(), 1);
    }

    // A container that lost its address.
    let [first, second] = &machines;
    first.pod.run("ip", ["address", "flush", "dev", "eth0", "scope", "global"]).unwrap();
    let error = first.cnitool("check").unwrap_err();
    assert!(error.contains(a), "{error}");
    // libcni calls DEL for all it knows, and then GC without a list.
    second.cnitool("gc").unwrap();
    second.assert_empty(b);
    for machine in &machines {
        machine.cnitool("del").unwrap();
    }
    first.assert_empty(a);
    first.cnitool("del").unwrap();
}

/// A node with one container. What libcni keeps stays below the host's folder.
struct Machine {
    node: Node,
    pod: Netns,
}

impl Machine {
    fn new(lab: &Lab, name: &str, plugins: impl Fn(&str) -> Vec<Value>) -> Machine {
        let node = Node::new(lab, name);
        let dir = node.host.dir();
        for folder in ["bin", "net.d", "cni"] {
            fs::create_dir(dir.join(folder)).unwrap();
        }
        for name in ["weft", "flannel", "tuning", "bandwidth", "firewall", "portmap"] {
            symlink(weft_cni(), dir.join("bin").join(name)).unwrap();
        }
        let plugins = plugins(dir.to_str().unwrap());
        let conflist = json!({ "cniVersion": "1.1.0", "name": "weft", "plugins": plugins });
        fs::write(dir.join("net.d/10-weft.conflist"), conflist.to_string()).unwrap();
        let up = || dir.join("subnet.env").exists();
        wait_until(SOON, "subnet.env", up).unwrap();
        let pod = lab.pod(&node.host, "pod").unwrap();
        Machine { node, pod }
    }

    /// What it prints; where it fails, its error.
    fn cnitool(&self, verb: &str) -> Result<String, String> {
        const START: &str = r#"
            mount --bind "$DIR/cni" /mnt
            mount -t tmpfs tmpfs /var/lib
            mkdir /var/lib/cni
            mount --move /mnt /var/lib/cni
            exec "$@"
        "#;
        let dir = self.node.host.dir();
        let mut command = self.node.host.command("unshare");
        command
            .args(["--mount", "sh", "-ec", START, "sh"])
            .arg(path_of("CNITOOL"))
            .args([verb, "weft"])
            .arg(self.pod.path())
            .env("DIR", dir)
            .env("CNI_PATH", dir.join("bin"))
            .env("NETCONFPATH", dir.join("net.d"))
            .env(
                "CAP_ARGS",
                json!({
                    "portMappings": [{ "hostPort": HOST_PORT, "containerPort": 80, "protocol": "tcp" }],
                    "bandwidth": { "egressRate": 80_000_000, "egressBurst": 8_000_000 },
                })
                .to_string(),
            );
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    fn rules(&self) -> String {
        self.node.host.run("nft", ["list", "ruleset"]).unwrap()
    }

    fn links(&self, kind: &str) -> Vec<Value> {
        self.node.host.ip_json(&format!("link show type {kind}")).unwrap().as_array().unwrap().clone()
    }

    /// No link, rule, reservation or other file of the container is left.
    fn assert_empty(&self, ip: &str) {
        // eth0 is the host's own.
        wait_until(SOON, "the veth to go", || self.links("veth").len() == 1).unwrap();
        assert_eq!(self.links("ifb"), Vec::<Value>::new());
        let mut left = Vec::new();
        for folder in ["networks/weft", "flannel", "tuning", "firewall", "cni/results"] {
            let names = fs::read_dir(self.node.host.dir().join(folder)).into_iter().flatten();
            left.extend(names.map(|entry| entry.unwrap().file_name().into_string().unwrap()));
        }
        left.retain(|name| name != "lock" && name != ".weft.boot" && !name.starts_with("last_reserved_ip."));
        assert_eq!(left, Vec::<String>::new());
        let rules = self.rules();
        let of_container = |line: &&str| {
            line.split([' ', ':', '/']).any(|word| word == ip) || line.contains(&HOST_PORT.to_string())
        };
        assert_eq!(rules.lines().filter(of_container).collect::<Vec<_>>(), Vec::<&str>::new());
    }
}
