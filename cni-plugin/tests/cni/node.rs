//! A host with the plugin, its config and its containers.

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use netns_harness::{Host, Lab, Netns, wait_until};
use serde_json::{Value, json};

pub const V4: &str = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.17.1/24\n\
                      FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
pub const DUAL: &str = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.17.1/24\n\
                        FLANNEL_IPV6_NETWORK=fd00:5::/48\n\
                        FLANNEL_IPV6_SUBNET=fd00:5:0:11::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n";

pub struct Node {
    pub lab: Lab,
    pub host: Host,
    /// The plugin's entry of the conflist, flannel's default at first.
    pub conf: Value,
    /// The program called, ours at first.
    pub plugin: PathBuf,
    /// `CNI_PATH`.
    pub path: String,
    pub args: String,
}

impl Node {
    pub fn new(label: &str, subnet_env: &str) -> Node {
        let lab = Lab::new(label).unwrap();
        let host = lab.host("node").unwrap();
        let dir = host.dir().display();
        let conf = json!({
            "cniVersion": "1.0.0", "name": "cbr0", "type": "flannel",
            "subnetFile": format!("{dir}/subnet.env"), "dataDir": format!("{dir}/flannel"),
            "ipam": { "dataDir": format!("{dir}/networks") },
            "delegate": { "hairpinMode": true, "isDefaultGateway": true },
        });
        let plugin = env!("CARGO_BIN_EXE_weft-cni").into();
        let node = Node { lab, host, conf, plugin, path: "/nowhere".into(), args: String::new() };
        node.set_subnet(subnet_env);
        node
    }

    pub fn set_subnet(&self, env: &str) {
        fs::write(self.host.dir().join("subnet.env"), env).unwrap();
    }

    pub fn pod(&self, name: &str) -> Netns {
        self.lab.pod(&self.host, name).unwrap()
    }

    pub fn add(&self, id: &str, pod: &Netns) -> Outcome {
        self.call("ADD", id, "eth0", Some(&pod.path()), None)
    }

    pub fn del(&self, id: &str, pod: &Netns) -> Outcome {
        self.call("DEL", id, "eth0", Some(&pod.path()), None)
    }

    pub fn call(
        &self,
        command: &str,
        id: &str,
        ifname: &str,
        netns: Option<&Path>,
        prev: Option<&Value>,
    ) -> Outcome {
        Outcome::of(self.start(command, id, ifname, netns, prev))
    }

    /// A command that is about no container, with another config.
    pub fn give(&self, command: &str, conf: &Value) -> Outcome {
        Outcome::of(self.start_program(self.host.command(&self.plugin), conf, command, "", "", None))
    }

    /// The plugin with its config already given to it.
    pub fn start(
        &self,
        command: &str,
        id: &str,
        ifname: &str,
        netns: Option<&Path>,
        prev: Option<&Value>,
    ) -> Child {
        let mut conf = self.conf.clone();
        if let Some(prev) = prev {
            conf["prevResult"] = prev.clone();
        }
        self.start_program(self.host.command(&self.plugin), &conf, command, id, ifname, netns)
    }

    /// Another plugin of the conflist, under the name by which a runtime finds it.
    pub fn chained(&self, plugin: &str, mut conf: Value) -> Chained<'_> {
        let link = self.host.dir().join("bin").join(plugin);
        if !link.exists() {
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_weft-cni"), &link).unwrap();
        }
        for key in ["cniVersion", "name"] {
            if conf.get(key).is_none() {
                conf[key] = self.conf[key].clone();
            }
        }
        Chained { node: self, program: link.into(), arguments: Vec::new(), conf }
    }

    pub fn start_program(
        &self,
        mut program: Command,
        conf: &Value,
        command: &str,
        id: &str,
        ifname: &str,
        netns: Option<&Path>,
    ) -> Child {
        let mut child = program
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", id)
            .env("CNI_IFNAME", ifname)
            .env("CNI_NETNS", netns.unwrap_or(Path::new("")))
            .env("CNI_PATH", &self.path)
            .env("CNI_ARGS", &self.args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // VERSION does not read it.
        let _ = child.stdin.take().unwrap().write_all(conf.to_string().as_bytes());
        child
    }

    /// Names and contents of the reservations.
    pub fn reservations(&self) -> Vec<(String, String)> {
        let mut found = files(&self.host.dir().join("networks/cbr0"));
        let kept = ["lock", "last_reserved_ip.", ".weft.boot"];
        found.retain(|(name, _)| !kept.iter().any(|kept| name.starts_with(kept)));
        found
    }

    pub fn cache(&self) -> Vec<(String, String)> {
        files(&self.host.dir().join("flannel"))
    }

    /// Names of the host's veths.
    pub fn veths(&self) -> Vec<String> {
        names(&self.host.ip_json("link show type veth").unwrap())
            .into_iter()
            .filter(|n| n.starts_with("veth"))
            .collect()
    }

    /// No attachment of any container is left.
    pub fn assert_empty(&self) {
        // The kernel takes its time to empty a namespace that was deleted.
        wait_until(Duration::from_secs(5), "the host's veths to go", || self.veths().is_empty()).unwrap();
        assert_eq!(self.reservations(), vec![]);
        assert_eq!(self.cache(), vec![]);
    }
}

/// A plugin after the first one.
pub struct Chained<'a> {
    node: &'a Node,
    /// What is run, the plugin at first, and with what arguments.
    pub program: OsString,
    pub arguments: Vec<OsString>,
    pub conf: Value,
}

impl Chained<'_> {
    pub fn add(&self, id: &str, pod: &Netns, prev: &Value) -> Outcome {
        self.call("ADD", id, "eth0", Some(pod), Some(prev))
    }

    pub fn check(&self, id: &str, pod: &Netns, prev: &Value) -> Outcome {
        self.call("CHECK", id, "eth0", Some(pod), Some(prev))
    }

    pub fn del(&self, id: &str, pod: &Netns, prev: &Value) -> Outcome {
        self.call("DEL", id, "eth0", Some(pod), Some(prev))
    }

    /// `valid` are container IDs, each with an `eth0`.
    pub fn gc(&self, valid: &[&str]) -> Outcome {
        let valid: Vec<_> = valid.iter().map(|id| json!({ "containerID": id, "ifname": "eth0" })).collect();
        let mut conf = self.conf.clone();
        conf["cniVersion"] = "1.1.0".into();
        conf["cni.dev/valid-attachments"] = valid.into();
        self.run("GC", "", "", None, &conf)
    }

    pub fn call(
        &self,
        command: &str,
        id: &str,
        ifname: &str,
        pod: Option<&Netns>,
        prev: Option<&Value>,
    ) -> Outcome {
        let mut conf = self.conf.clone();
        if let Some(prev) = prev {
            conf["prevResult"] = prev.clone();
        }
        self.run(command, id, ifname, pod, &conf)
    }

    fn run(&self, command: &str, id: &str, ifname: &str, pod: Option<&Netns>, conf: &Value) -> Outcome {
        let mut program = self.node.host.command(&self.program);
        program.args(&self.arguments);
        let netns = pod.map(|pod| pod.path());
        Outcome::of(self.node.start_program(program, conf, command, id, ifname, netns.as_deref()))
    }
}

#[derive(Debug)]
pub struct Outcome {
    pub ok: bool,
    /// Result or error; `null` if nothing was printed.
    pub json: Value,
}

impl Outcome {
    pub fn of(child: Child) -> Outcome {
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let json = serde_json::from_str(&text).unwrap_or(Value::Null);
        Outcome { ok: output.status.success(), json }
    }

    pub fn result(self) -> Value {
        assert!(self.ok, "{self:?}");
        self.json
    }

    /// Code and text of the error.
    pub fn error(self) -> (u64, String) {
        assert!(!self.ok, "{self:?}");
        (self.json["code"].as_u64().unwrap(), format!("{} {}", self.json["msg"], self.json["details"]))
    }
}

/// The addresses of a result, without prefix lengths.
pub fn ips(result: &Value) -> Vec<IpAddr> {
    let address = |ip: &Value| ip["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap();
    result["ips"].as_array().unwrap().iter().map(address).collect()
}

pub fn names(links: &Value) -> Vec<String> {
    links.as_array().unwrap().iter().map(|l| l["ifname"].as_str().unwrap().to_owned()).collect()
}

pub fn files(dir: &Path) -> Vec<(String, String)> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let file = |entry: fs::DirEntry| {
        (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap())
    };
    let mut found: Vec<_> = entries.map(|entry| file(entry.unwrap())).collect();
    found.sort();
    found
}

pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
